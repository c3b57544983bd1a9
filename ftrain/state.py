"""All of training as one immutable value."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

import ftrain.random
from ftrain.frozen import frozen
from ftrain.module import Tensors
from ftrain.optim import Optimizer


@frozen
class TrainState:
    """Everything that a training step reads and writes. Data only, and a pytree."""

    step: Int64[Tensor, ""]  # steps taken
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    opt_state: Any  # a pytree of tensors, the optimizer's own
    key: Int64[Tensor, "2"]  # never advances: draws fold the step into it


def init_state(params: Tensors, buffers: Tensors, optimizer: Optimizer, *, seed: int) -> TrainState:
    """The state before the first step, on the device of the parameters, whose tensors it holds without copying.

    Args:
      params, buffers: as `functionalize` gives them.
      optimizer: its `init` makes the optimizer state.
      seed: an integer in [0, 2**64), from which every draw of the training steps follows.

    Raises:
      ValueError: for a network without parameters to train, or a seed out of range.
    """
    if not params:
        raise ValueError("there is nothing to train: the network has no parameters that require gradients")
    device = next(iter(params.values())).device
    return TrainState(
        step=torch.zeros((), dtype=torch.int64, device=device),
        params=params,
        buffers=buffers,
        opt_state=optimizer.init(params),
        key=ftrain.random.key(seed, device=device),
    )
