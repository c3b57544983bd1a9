"""Batches of uint8 images, loaded by worker processes in an order that does not depend on them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ftrain.data.augment import example_draws
from ftrain.data.images import Images, Job
from ftrain.data.labels import is_multi_label
from ftrain.data.order import Examples, train_examples
from ftrain.data.pixels import train_pixels, val_pixels
from ftrain.data.source import Source
from ftrain.data.workers import run_jobs, shared_zeros
from ftrain.errors import DataError


class ImageBatch(NamedTuple):
    """A batch on the host.

    Attributes:
      images: uint8 [B, 3, S, S], where B is less than the batch size if only a part of each batch is loaded.
      labels: int64 [B], or float32 [B, C] of 0 and 1 if an image may have several labels.
      weights: float32 [B], 1 for an example or what its source says, and 0 for padding and skipped images.
      indices: the positions of the examples in the source, int64 [B].
      skipped: why an image was skipped, by its position in the source.

    >>> from ftrain.data import from_arrays
    >>> source = from_arrays(np.zeros((3, 8, 8), np.uint8), [0, 1, 1])
    >>> images = Images(train=source, val=source, batch_size=2, image_size=8, eval_batch_size=4)
    >>> [batch] = load(images, images.val_jobs())
    >>> batch.labels.tolist(), batch.weights.tolist(), batch.skipped
    ([0, 1, 1, 0], [1.0, 1.0, 1.0, 0.0], {})
    """

    images: Tensor
    labels: Tensor
    weights: Tensor
    indices: Tensor
    skipped: dict[int, str]


def load(images: Images, jobs: Iterable[Job], *, workers: int = 0, pin_memory: bool = False) -> Generator[ImageBatch]:
    """Loads batches, in the order of `jobs`. They are the same to the byte whatever `workers` is.

    Args:
      images: the data.
      jobs: the batches to load, such as `images.train_jobs(0)`.
      workers: processes that load ahead; 0 loads in this one.
      pin_memory: whether to put batches into page-locked memory, so that copies to a GPU need not be waited for.

    Raises:
      DataError: for an image that cannot be read, unless `images.skip_bad_images` is set.
      WorkerError: if a worker is killed.

    >>> from ftrain.data import from_arrays
    >>> source = from_arrays(np.zeros((8, 8, 8), np.uint8), [0, 1] * 4)
    >>> images = Images(train=source, val=source, batch_size=4, image_size=8)
    >>> [tuple(batch.images.shape) for batch in load(images, images.train_jobs(0))]
    [(4, 3, 8, 8), (4, 3, 8, 8)]
    """
    for batch in run_jobs(_Batches(images), jobs, workers=workers, pin_memory=pin_memory):
        if isinstance(batch, DataError):
            raise batch
        yield batch


def batch_examples(images: Images, job: Job) -> Examples:
    """The examples of a whole batch, without padding."""
    if job.split == "train":
        return train_examples(images.seed, job.number, images.pace, images.balance)
    first = job.number * images.eval_batch_size
    indices = np.arange(first, min(first + images.eval_batch_size, len(images.val)))
    return Examples(indices, np.zeros_like(indices))


def labels_and_weights(source: Source, indices: npt.NDArray[np.int64], size: int) -> tuple[Tensor, Tensor]:
    """The labels and the weights of examples as a batch has them, padded with 0 to a size.

    >>> from ftrain.data import from_arrays
    >>> source = from_arrays(np.zeros((2, 8, 8), np.uint8), [[1, 0], [0, 1]])
    >>> labels, weights = labels_and_weights(source, np.array([1]), size=2)
    >>> labels.tolist(), weights.tolist()
    ([[0.0, 1.0], [0.0, 0.0]], [1.0, 0.0])
    """
    labels, own = source.labels[indices], getattr(source, "weights", None)
    weights = np.ones(len(indices), dtype=np.float32) if own is None else np.asarray(own[indices], dtype=np.float32)
    padding = (0, size - len(indices))
    labels = np.pad(labels.astype(np.float32), (padding, (0, 0))) if is_multi_label(labels) else np.pad(labels, padding)
    return torch.from_numpy(labels), torch.from_numpy(np.pad(weights, padding))


def read_batch(images: Images, job: Job) -> ImageBatch:
    """One batch, loaded in this process. It is padded to its full size with weight 0, so that shapes never vary.

    Raises:
      DataError: for an image that cannot be read, unless `images.skip_bad_images` is set.
    """
    train, rows = job.split == "train", images.rows(job)
    source, size = images.train if train else images.val, rows.stop - rows.start
    indices, epochs = (each[rows] for each in batch_examples(images, job))
    if train:
        draws = example_draws(images.seed, epochs, indices, count=images.augmentation.draws)
    shape = (size, 3, images.image_size, images.image_size)
    # A worker process writes straight into shared memory, so that handing over the batch copies nothing.
    pixels = torch.zeros(shape, dtype=torch.uint8) if get_worker_info() is None else shared_zeros(*shape)
    labels, weights = labels_and_weights(source, indices, size)
    skipped: dict[int, str] = {}
    for row, position in enumerate(indices.tolist()):
        try:
            example = train_pixels(images, position, draws[row]) if train else val_pixels(images, position)
        except DataError as error:
            if not images.skip_bad_images:
                raise
            skipped[position] = str(error)
            # The colour that normalisation maps to 0, since BatchNorm includes skipped images in its statistics.
            pixels[row] = torch.tensor(images.augmentation.fill, dtype=torch.uint8)[:, None, None]
            weights[row] = 0.0
        else:
            pixels[row] = example
    return ImageBatch(
        images=pixels,
        labels=labels,
        weights=weights,
        indices=torch.from_numpy(np.pad(indices, (0, size - len(indices)))),
        skipped=skipped,
    )


class _Batches(Dataset[ImageBatch | DataError]):
    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, job: Job) -> ImageBatch | DataError:
        try:
            return read_batch(self.images, job)
        except DataError as error:
            return error  # if a worker raised it, torch would put a traceback into its message
