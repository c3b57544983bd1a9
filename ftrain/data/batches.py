"""Batches of uint8 images, made by worker processes in an order that does not depend on them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Literal, NamedTuple

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ftrain.data.augment import Augmentation, centre_pixels, example_draws
from ftrain.data.cache import Form, Store, scaled
from ftrain.data.decode import crop, open_image, oriented_size
from ftrain.data.order import train_indices
from ftrain.data.source import Source
from ftrain.data.workers import shared_zeros, work
from ftrain.errors import DataError


class ImageBatch(NamedTuple):
    """A batch on the host: images uint8 [B, 3, S, S], labels int64 [B], weights float32 [B] (0 for padding and for
    images that are left out), the indices of the examples int64 [B], and why, for each index that was left out."""

    images: Tensor
    labels: Tensor
    weights: Tensor
    indices: Tensor
    left_out: dict[int, str]


class Job(NamedTuple):
    """One batch to make: the batch of a training step, or a batch of the validation data."""

    split: Literal["train", "val"]
    number: int


@attrs.frozen(kw_only=True)
class Images:
    """Everything that decides what batches hold."""

    train: Source
    val: Source  # with the classes of `train`
    batch_size: int
    image_size: int  # side in pixels of what the network sees
    eval_batch_size: int = 64
    augmentation: Augmentation = Augmentation()
    seed: int = 0  # what order and augmentation follow from
    train_store: Store | None = None  # where decoded images are kept, if they are
    val_store: Store | None = None
    skip_unreadable: bool = False  # whether to leave out an image that cannot be read, instead of raising

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train) // self.batch_size

    @property
    def eval_batches(self) -> int:
        return -(-len(self.val) // self.eval_batch_size)

    @property
    def train_form(self) -> Form:
        """What a store keeps of a training image: enough for the smallest crop to have its size in pixels."""
        if self.augmentation.crop_scale == 1.0:
            return Form(self.image_size, 1.0)
        return Form(round(self.image_size / self.augmentation.crop_scale**0.5), None)

    @property
    def val_form(self) -> Form:
        """What a store keeps of a validation image: just what evaluation shows."""
        return Form(self.image_size, self.augmentation.centre_share)

    def train_jobs(self, epoch: int, *, skip: int = 0) -> list[Job]:
        """The batches of an epoch's training steps after the first `skip`; epochs are counted from 0."""
        first = epoch * self.steps_per_epoch
        return [Job("train", step) for step in range(first + skip, first + self.steps_per_epoch)]

    def val_jobs(self) -> list[Job]:
        """The batches of the whole validation data."""
        return [Job("val", number) for number in range(self.eval_batches)]


def load(images: Images, jobs: Iterable[Job], *, workers: int = 0, pin_memory: bool = False) -> Generator[ImageBatch]:
    """The batches of `jobs`, in their order.

    Args:
      workers: processes that read ahead; 0 reads in this one. The batches are the same bytes whatever it is.
      pin_memory: whether to put batches into page-locked memory, for copies to a GPU that do not wait.

    Raises:
      DataError: for an image that cannot be read, unless they are to be left out.
      WorkerError: if a worker is killed.
    """
    for batch in work(_Batches(images), jobs, workers=workers, pin_memory=pin_memory):
        if isinstance(batch, DataError):
            raise batch
        yield batch


def on_device(
    batches: Iterable[ImageBatch], device: torch.device
) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor], ImageBatch]]:
    """(images, labels, weights) on the device, and the batch that they are from. To a GPU the next batch is copied
    while this one is used."""
    if device.type != "cuda":
        for batch in batches:
            yield (batch.images.to(device), batch.labels.to(device), batch.weights.to(device)), batch
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[tuple[Tensor, Tensor, Tensor], ImageBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            images, labels, weights = (part.to(device, non_blocking=True) for part in batch[:3])
        copied = stream.record_event()
        if ahead is not None:
            yield _arrived(*ahead, device)
        ahead = (images, labels, weights), batch, copied
    if ahead is not None:
        yield _arrived(*ahead, device)


def _arrived(
    parts: tuple[Tensor, Tensor, Tensor], batch: ImageBatch, copied: torch.cuda.Event, device: torch.device
) -> tuple[tuple[Tensor, Tensor, Tensor], ImageBatch]:
    now = torch.cuda.current_stream(device)
    now.wait_event(copied)
    for part in parts:
        part.record_stream(now)  # else the memory would be taken for the next copy while it is read
    return parts, batch


def read_batch(images: Images, job: Job) -> ImageBatch:
    """One batch, read in this process. Padded at the end to its full size with weight 0, so that shapes never vary."""
    train = job.split == "train"
    source, size = (images.train, images.batch_size) if train else (images.val, images.eval_batch_size)
    if train:
        indices = train_indices(images.seed, job.number, examples=len(source), batch_size=size)
        epoch = job.number // images.steps_per_epoch
        draws = example_draws(images.seed, epoch, indices, count=images.augmentation.draws)
    else:
        indices = np.arange(job.number * size, min((job.number + 1) * size, len(source)))
    shape = (size, 3, images.image_size, images.image_size)
    # What a worker process hands over is made where it is shared, so that nothing is copied.
    pixels = torch.zeros(shape, dtype=torch.uint8) if get_worker_info() is None else shared_zeros(*shape)
    weights = torch.zeros(size)
    left_out: dict[int, str] = {}
    for row, position in enumerate(indices.tolist()):
        try:
            example = train_pixels(images, position, draws[row]) if train else val_pixels(images, position)
        except DataError as error:
            if not images.skip_unreadable:
                raise
            left_out[position] = str(error)
            # What is nothing after normalisation, because BatchNorm sees it.
            pixels[row] = torch.tensor(images.augmentation.fill, dtype=torch.uint8)[:, None, None]
        else:
            pixels[row] = example
            weights[row] = 1.0
    padding = (0, size - len(indices))
    return ImageBatch(
        images=pixels,
        labels=torch.from_numpy(np.pad(source.labels[indices], padding)),
        weights=weights,
        indices=torch.from_numpy(np.pad(indices, padding)),
        left_out=left_out,
    )


def train_pixels(images: Images, position: int, draws: npt.NDArray[np.float64]) -> Tensor:
    """A training image as one epoch shows it, uint8 [3, S, S].

    Args:
      draws: of the example in that epoch, from `example_draws`.
    """
    augmentation, store, size = images.augmentation, images.train_store, images.image_size
    if store is not None:
        view = augmentation.view(*store.size(position), draws)
        kept_square = store.form.share is not None
        pixels = store.whole(position) if kept_square else store.crop(position, view.box, size)
    else:
        with images.train.open(position) as image:
            view = augmentation.view(*oriented_size(image), draws)
            if augmentation.crop_scale == 1.0:
                pixels = torch.from_numpy(centre_pixels(image, size, share=1.0))
            else:
                pixels = scaled(torch.from_numpy(crop(image, view.box, size)).permute(2, 0, 1), size, size)
    return augmentation.apply(pixels.flip(-1) if view.mirrored else pixels, draws)


def train_pixels_of(images: Images, position: int, epoch: int) -> Tensor:
    """A training image as an epoch shows it, uint8 [3, S, S]; epochs are counted from 0."""
    draws = example_draws(images.seed, epoch, np.array([position]), count=images.augmentation.draws)
    return train_pixels(images, position, draws[0])


def centre_pixels_of(images: Images, position: int) -> Tensor:
    """A training image as evaluation would show it, uint8 [3, S, S]."""
    with images.train.open(position) as image:
        return torch.from_numpy(centre_pixels(image, images.image_size, share=images.augmentation.centre_share))


def val_pixels(images: Images, position: int) -> Tensor:
    """A validation image, uint8 [3, S, S]."""
    if images.val_store is not None:
        return images.val_store.whole(position)
    with images.val.open(position) as image:
        return torch.from_numpy(centre_pixels(image, images.image_size, share=images.augmentation.centre_share))


def read_centre(path: str, image_size: int, *, share: float) -> npt.NDArray[np.uint8]:
    """An image file as evaluation shows it: its centre, uint8 [3, image_size, image_size]."""
    with open_image(path) as image:
        return centre_pixels(image, image_size, share=share)


class _Batches(Dataset[ImageBatch | DataError]):
    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, job: Job) -> ImageBatch | DataError:
        try:
            return read_batch(self.images, job)
        except DataError as error:
            return error  # raised in a worker, it would arrive with a traceback for a message
