"""Batches of uint8 images, made by worker processes in an order that does not depend on them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import attrs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ftrain.data.augment import CENTRE_SHARE, View, centre_view, example_draws, random_view
from ftrain.data.decode import crop_and_resize, open_image, oriented_size
from ftrain.data.index import Index
from ftrain.data.order import train_indices
from ftrain.errors import DataError


class ImageBatch(NamedTuple):
    """A batch on the host: images uint8 [B, 3, S, S], labels int64 [B], weights float32 [B] (0 for padding), and the
    indices of the examples int64 [B]."""

    images: Tensor
    labels: Tensor
    weights: Tensor
    indices: Tensor


class Job(NamedTuple):
    """One batch to make: the batch of a training step, or a batch of the validation data."""

    split: Literal["train", "val"]
    number: int


@attrs.frozen(kw_only=True)
class Images:
    """Everything that decides what batches hold."""

    train: Index
    val: Index  # with the classes of `train`
    batch_size: int
    image_size: int  # side in pixels of what the network sees
    eval_batch_size: int = 64
    crop_scale: float = 1.0  # smallest share of an image that a training crop shows; 1 for no crops
    mirror: bool = True  # whether half of the training images are mirrored left to right
    seed: int = 0  # what order, crops and mirroring follow from

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train) // self.batch_size

    def train_jobs(self, epoch: int) -> list[Job]:
        """The batches of an epoch's training steps; epochs are counted from 0."""
        steps = range(epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch)
        return [Job("train", step) for step in steps]

    def val_jobs(self) -> list[Job]:
        """The batches of the whole validation data."""
        return [Job("val", number) for number in range(-(-len(self.val) // self.eval_batch_size))]


def load(images: Images, jobs: Sequence[Job], *, workers: int = 0, pin_memory: bool = False) -> Iterator[ImageBatch]:
    """The batches of `jobs`, in their order.

    Args:
      workers: processes that read ahead; 0 reads in this one. The batches are the same bytes whatever it is.
      pin_memory: whether to put batches into page-locked memory, for copies to a GPU that do not wait.

    Raises:
      DataError: for an image that cannot be read.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: as the user wishes
        loader: DataLoader[ImageBatch | DataError] = DataLoader(
            _Batches(images),
            batch_size=None,
            sampler=jobs,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else the loader takes its workers' seed from the global one
        )
        batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    finally:
        del batches  # ends the workers, which an error's traceback would keep alive


def read_batch(images: Images, job: Job) -> ImageBatch:
    """One batch, read in this process."""
    if job.split == "train":
        indices = train_indices(images.seed, job.number, examples=len(images.train), batch_size=images.batch_size)
        draws = example_draws(images.seed, job.number // images.steps_per_epoch, indices)
        pixels = [_train_pixels(images, int(position), row) for position, row in zip(indices, draws, strict=True)]
        return _batch(pixels, images.train.labels[indices], indices, images.batch_size)
    start = job.number * images.eval_batch_size
    indices = np.arange(start, min(start + images.eval_batch_size, len(images.val)))
    share = centre_share(images.crop_scale)
    pixels = [read_centre(images.val.name(int(i)), images.image_size, share=share) for i in indices]
    return _batch(pixels, images.val.labels[indices], indices, images.eval_batch_size)


def centre_share(crop_scale: float) -> float:
    """How much of an image's shorter side evaluation shows: all of it where training showed whole images."""
    return 1.0 if crop_scale == 1.0 else CENTRE_SHARE


def read_centre(path: str, image_size: int, *, share: float) -> npt.NDArray[np.uint8]:
    """An image as evaluation shows it: its centre, uint8 [3, image_size, image_size]."""
    with open_image(path) as image:
        return _pixels(image, centre_view(*oriented_size(image), share=share), image_size)


def _train_pixels(images: Images, position: int, draws: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    with images.train.open(position) as image:
        height, width = oriented_size(image)
        view = random_view(height, width, draws, smallest_share=images.crop_scale, mirror=images.mirror)
        return _pixels(image, view, images.image_size)


def _pixels(image: Image.Image, view: View, size: int) -> npt.NDArray[np.uint8]:
    pixels = crop_and_resize(image, view.box, size)
    return pixels[:, :, ::-1] if view.mirrored else pixels


def _batch(
    pixels: list[npt.NDArray[np.uint8]], labels: npt.NDArray[np.int64], indices: npt.NDArray[np.int64], size: int
) -> ImageBatch:
    """Padded at the end to `size` examples with weight 0, so that shapes never vary."""
    padding = size - len(pixels)
    stacked = np.stack([*pixels, *(np.zeros_like(pixels[0]) for _ in range(padding))])
    return ImageBatch(
        torch.from_numpy(stacked),
        torch.from_numpy(np.pad(labels, (0, padding))),
        torch.from_numpy(np.pad(np.ones(len(pixels), np.float32), (0, padding))),
        torch.from_numpy(np.pad(indices, (0, padding))),
    )


class _Batches(Dataset[ImageBatch | DataError]):
    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, job: Job) -> ImageBatch | DataError:
        try:
            return read_batch(self.images, job)
        except DataError as error:
            return error  # raised in a worker, it would arrive with a traceback for a message
