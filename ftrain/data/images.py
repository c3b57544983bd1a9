"""Everything that decides what batches contain."""

from __future__ import annotations

from typing import Literal, NamedTuple

import attrs

from ftrain.data.augment import Augmentation
from ftrain.data.cache import CacheFormat, ImageCache
from ftrain.data.order import Balance, Pace
from ftrain.data.source import Source


class Job(NamedTuple):
    """A batch to load.

    Attributes:
      split: which images.
      number: the step of the training run from 0 on, or the number of the batch in the validation data.

    >>> Job("train", 17).number
    17
    """

    split: Literal["train", "val"]
    number: int


@attrs.frozen(kw_only=True)
class Images:
    """Everything that decides what batches contain.

    Attributes:
      train: the images to train on.
      val: the images to validate with. They have the classes of `train`.
      batch_size: examples in a training batch.
      image_size: the side in pixels of the square images that the network receives.
      eval_batch_size: examples in a validation batch.
      augmentation: how training images vary from epoch to epoch.
      seed: decides order and augmentation.
      train_cache, val_cache: decoded images, if there are any.
      drop_last: whether to drop the examples of an epoch that do not fill a batch; see `Pace`.
      skip_bad_images: whether to skip an image that cannot be read, instead of raising an error.
      unaugmented: whether training images are read as evaluation would read them, from their files, and not augmented.
      balance: of the classes in training batches; None to use each image once in an epoch.
      part, parts: of a batch only this one of equal parts is loaded; its number, from 0, and how many there are.

    >>> import numpy as np
    >>> from ftrain.data import from_arrays
    >>> source = from_arrays(np.zeros((10, 8, 8), np.uint8), [0, 1] * 5)
    >>> images = Images(train=source, val=source, batch_size=4, image_size=8)
    >>> images.pace.steps(1), images.train_jobs(1), images.val_jobs()
    (3, [Job(split='train', number=3), Job(split='train', number=4)], [Job(split='val', number=0)])
    """

    train: Source
    val: Source
    batch_size: int
    image_size: int
    eval_batch_size: int = 64
    augmentation: Augmentation = Augmentation()
    seed: int = 0
    train_cache: ImageCache | None = None
    val_cache: ImageCache | None = None
    drop_last: bool = False
    skip_bad_images: bool = False
    unaugmented: bool = False
    balance: Balance | None = None
    part: int = 0
    parts: int = 1

    def rows(self, job: Job) -> slice:
        """Which rows of a batch are loaded."""
        size = (self.batch_size if job.split == "train" else self.eval_batch_size) // self.parts
        return slice(self.part * size, (self.part + 1) * size)

    @property
    def pace(self) -> Pace:
        """How training steps and epochs follow from the number of training images."""
        return Pace(len(self.train), self.batch_size, self.drop_last)

    @property
    def eval_batches(self) -> int:
        """Batches in the validation data."""
        return -(-len(self.val) // self.eval_batch_size)

    @property
    def train_cache_format(self) -> CacheFormat:
        """What a cache stores for a training image: enough pixels for the smallest crop."""
        if self.augmentation.crop_scale == 1.0:
            return self._square_format(1.0)
        side = round(self.image_size / self.augmentation.crop_scale**0.5)
        return CacheFormat(side, None, interpolation=self.augmentation.interpolation)

    @property
    def val_cache_format(self) -> CacheFormat:
        """What a cache stores for a validation image: exactly what evaluation uses."""
        return self._square_format(self.augmentation.centre_fraction)

    def _square_format(self, fraction: float) -> CacheFormat:
        augmentation = self.augmentation
        return CacheFormat(
            self.image_size,
            fraction,
            fit=augmentation.fit,
            bars=augmentation.bars,
            interpolation=augmentation.interpolation,
        )

    def train_jobs(self, epoch: int, *, skip: int = 0) -> list[Job]:
        """The batches of an epoch's training steps after the first `skip`. Epochs are counted from 0."""
        return [Job("train", step) for step in range(self.pace.steps(epoch) + skip, self.pace.steps(epoch + 1))]

    def val_jobs(self) -> list[Job]:
        """The batches of all validation data."""
        return [Job("val", number) for number in range(self.eval_batches)]
