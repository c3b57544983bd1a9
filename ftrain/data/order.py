"""Which examples a batch contains, as a function of the seed, the epoch and the step alone."""

from __future__ import annotations

import functools
import zlib

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


def train_indices(seed: int, step: int, *, examples: int, batch_size: int) -> npt.NDArray[np.int64]:
    """The examples in the batch of training step `step`, int64 [batch_size].

    An epoch has examples // batch_size steps. The examples that do not fill a batch are dropped, different ones in each
    epoch.

    >>> train_indices(0, 1, examples=10, batch_size=4).tolist()
    [7, 8, 1, 5]
    """
    epoch, batch = divmod(step, examples // batch_size)
    return epoch_order(seed, epoch, examples)[batch * batch_size : (batch + 1) * batch_size]
