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


@attrs.frozen(eq=False)
class Balance:
    """The examples of each class, for batches in which every class is equally frequent.

    An epoch then has as many draws as there are examples, so that it is as long as without a balance. The draws of all
    epochs go through the classes in turn, and those of a class through its examples: every class is drawn equally
    often, up to one, in each epoch and from the first to any other, and so is every example of a class. The order of
    the draws in an epoch is random, and so is the order of the examples of a class, anew each time that all of them
    have been drawn.

    Attributes:
      members: the positions of the examples of each class, int64, without classes that have none.

    >>> balance = Balance.of([0, 0, 0, 0, 1, 2])
    >>> train_examples(0, 0, Pace(examples=6, batch_size=6), balance).indices.tolist()
    [3, 2, 4, 4, 5, 5]
    """

    members: tuple[npt.NDArray[np.int64], ...]

    @classmethod
    def of(cls, labels: npt.ArrayLike) -> Balance:
        """The balance of examples with these labels, which are integers."""
        labels = np.asarray(labels)
        return cls(tuple(np.flatnonzero(labels == label) for label in np.unique(labels)))


class Examples(NamedTuple):
    """The examples of a batch, int64 [B] each.

    Attributes:
      indices: their positions in the source.
      epochs: the epoch, counted from 0, that each belongs to; with a balance, how often it has been drawn before. An
        example has each of these numbers at most once, so that the two together are the key of its augmentation.
    """

    indices: npt.NDArray[np.int64]
    epochs: npt.NDArray[np.int64]


def train_examples(seed: int, step: int, pace: Pace, balance: Balance | None = None) -> Examples:
    """The examples in the batch of training step `step`, counted from 0.

    Args:
      balance: of the classes; None to use each example once in an epoch.

    >>> train_examples(0, 2, Pace(examples=10, batch_size=4))
    Examples(indices=array([2, 9, 9, 8]), epochs=array([0, 0, 1, 1]))
    """
    places = np.arange(step * pace.batch_size, (step + 1) * pace.batch_size)
    epochs, places = np.divmod(places, pace.used)
    if balance is not None:
        orders = ((epoch, _balanced_epoch(seed, epoch, pace.used, balance)) for epoch in np.unique(epochs).tolist())
        drawn = [order[:, places[epochs == epoch]] for epoch, order in orders]
        return Examples(*np.concatenate(drawn, axis=1))
    indices = [epoch_order(seed, epoch, pace.examples)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
    return Examples(np.concatenate(indices), epochs)


@functools.lru_cache(maxsize=2)
def _balanced_epoch(seed: int, epoch: int, used: int, balance: Balance) -> npt.NDArray[np.int64]:
    """The draws of an epoch with a balance, int64 [2, used]: the position of each example, and how often it has been
    drawn before."""
    classes, sizes = len(balance.members), np.array([len(each) for each in balance.members])
    order = ftrain.random.permutation(purpose_key(seed, "order", epoch), used).numpy()
    # The draws of all epochs are numbered. Number q is of class q % classes, whose draw number q // classes it is.
    draws, of_class = np.divmod(epoch * used + order, classes)
    # The draws of a class fall into rounds, each a permutation of its examples. These are the rounds in this epoch.
    first, last = (-(-(number * used - np.arange(classes)) // classes) for number in (epoch, epoch + 1))
    start = first // sizes
    rounds = np.maximum(-(-last // sizes) - start, 0)
    counts = rounds * sizes
    ends, ends_of_rounds = np.cumsum(counts), np.cumsum(rounds)
    labels = np.repeat(np.arange(classes), counts)
    numbers = np.arange(ends[-1]) - np.repeat(ends - counts - start * sizes, counts)
    group = (ends_of_rounds - rounds - start)[labels] + numbers // sizes[labels]
    high, low = ftrain.random.fold_in(purpose_key(seed, "balance", 0), torch.from_numpy(labels << 32 | numbers)).T
    # A sort by group and, within it, by as many of 63 random bits as there is room for.
    room = 63 - int(ends_of_rounds[-1]).bit_length()
    sort_key = group << room | (high << 31 | low >> 1).numpy() >> 63 - room
    shuffled = numbers[np.argsort(sort_key, kind="stable")] % sizes[labels]
    positions = np.concatenate(balance.members)[(np.cumsum(sizes) - sizes)[labels] + shuffled]
    place = (ends - counts)[of_class] + draws - (start * sizes)[of_class]
    found = np.stack([positions[place], draws // sizes[of_class]])
    found.setflags(write=False)
    return found
