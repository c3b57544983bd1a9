"""Which examples a batch contains, as a function of the seed, the epoch and the step alone."""

from __future__ import annotations

import functools
import zlib
from typing import NamedTuple

import attrs
import numpy as np
import numpy.typing as npt
import torch

import ftrain.random


def purpose_key(seed: int, purpose: str, epoch: int) -> torch.Tensor:
    """The key for one purpose ("order", "augment") in one epoch, int64 [2]."""
    return ftrain.random.fold_in(ftrain.random.fold_in(ftrain.random.key(seed), zlib.crc32(purpose.encode())), epoch)


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, examples: int) -> npt.NDArray[np.int64]:
    """The order of the examples in an epoch: a permutation of 0 to examples - 1, read-only int64 [examples].

    >>> epoch_order(0, 0, 10).tolist()
    [0, 3, 6, 4, 7, 8, 1, 5, 2, 9]
    """
    order: npt.NDArray[np.int64] = ftrain.random.permutation(purpose_key(seed, "order", epoch), examples).numpy()
    order.setflags(write=False)
    return order


@attrs.frozen
class Pace:
    """How the training steps of a run follow from the number of its examples.

    An epoch uses every example once. Its last batch is filled with the first examples of the next epoch, so that no
    example is lost and every batch is full. With `drop_last`, the examples that do not fill a batch are dropped, other
    ones in each epoch.

    >>> pace = Pace(examples=10, batch_size=4)
    >>> [pace.steps(epochs) for epochs in range(5)], [pace.epoch_of(step) for step in range(1, 7)]
    ([0, 3, 5, 8, 10], [1, 1, 1, 2, 2, 3])
    >>> Pace(examples=10, batch_size=4, drop_last=True).steps(4)
    8
    """

    examples: int
    batch_size: int
    drop_last: bool = False

    @property
    def per_epoch(self) -> float:
        """The mean number of steps of an epoch."""
        return self.used / self.batch_size

    @property
    def used(self) -> int:
        """The examples that an epoch uses."""
        return self.examples - self.examples % self.batch_size if self.drop_last else self.examples

    def steps(self, epochs: int) -> int:
        """The steps of the first `epochs` epochs."""
        return -(-epochs * self.used // self.batch_size)

    def epochs(self, steps: int) -> int:
        """How many epochs are over after this number of steps."""
        return steps * self.batch_size // self.used

    def epoch_of(self, step: int) -> int:
        """The epoch, counted from 1, that a step, counted from 1, ends or is within."""
        return self.epochs(step - 1) + 1

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch is over after this number of steps, and was not before the last of them."""
        return self.epochs(step) == self.epoch_of(step)


class Examples(NamedTuple):
    """The examples of a batch, int64 [B] each.

    Attributes:
      indices: their positions in the source.
      epochs: the epoch, counted from 0, that each belongs to.
    """

    indices: npt.NDArray[np.int64]
    epochs: npt.NDArray[np.int64]


def train_examples(seed: int, step: int, pace: Pace) -> Examples:
    """The examples in the batch of training step `step`, counted from 0.

    >>> train_examples(0, 2, Pace(examples=10, batch_size=4))
    Examples(indices=array([2, 9, 9, 8]), epochs=array([0, 0, 1, 1]))
    """
    places = np.arange(step * pace.batch_size, (step + 1) * pace.batch_size)
    epochs, places = np.divmod(places, pace.used)
    indices = [epoch_order(seed, epoch, pace.examples)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
    return Examples(np.concatenate(indices), epochs)
