"""Learning-rate schedules: pure functions from the step, a 0-d int tensor, to the rate, a 0-d float tensor.

The rate is float64 (float32 on Apple's GPUs), as exact as the Python float that `torch.optim` would be given.
Optimizers convert it to the dtype of each parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Schedule", "constant", "step_decay", "warmup_cosine", "warmup_linear"]

Schedule = Callable[[Int[Tensor, ""]], Float[Tensor, ""]]


def constant(value: float) -> Schedule:
    """A constant rate: lr(t) = value.

    >>> constant(0.1)(torch.tensor(7)).item()
    0.1
    """

    def schedule(step: Int[Tensor, ""]) -> Float[Tensor, ""]:
        return torch.full_like(_time(step), value)

    return schedule


def warmup_cosine(peak: float, *, total_steps: int, warmup_steps: int = 0, floor: float = 0.0) -> Schedule:
    """Linear warm-up, then half a cosine from the peak to the floor (Loshchilov and Hutter, SGDR, 2017, eq. 5).

    With w = warmup_steps and T = total_steps:

        t < w:   lr(t) = peak (t + 1) / w
        t >= w:  lr(t) = floor + (peak - floor) (1 + cos(pi (t - w) / (T - w))) / 2,   and lr(t) = floor from T on

    Raises:
      ValueError: unless 0 <= warmup_steps < total_steps and 0 <= floor <= peak.

    >>> rate = warmup_cosine(1.0, total_steps=8, warmup_steps=4)
    >>> [round(rate(torch.tensor(t)).item(), 4) for t in range(9)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.8536, 0.5, 0.1464, 0.0]
    """
    _check(peak, total_steps, warmup_steps, floor)

    def decay(fraction: Tensor) -> Tensor:
        return floor + (peak - floor) * (1.0 + torch.cos(math.pi * fraction)) / 2.0

    return _after_warmup(peak, total_steps, warmup_steps, decay)


def warmup_linear(peak: float, *, total_steps: int, warmup_steps: int = 0, floor: float = 0.0) -> Schedule:
    """Linear warm-up, then a straight line from the peak to the floor.

    With w = warmup_steps and T = total_steps:

        t < w:   lr(t) = peak (t + 1) / w
        t >= w:  lr(t) = peak + (floor - peak) (t - w) / (T - w),   and lr(t) = floor from T on

    Raises:
      ValueError: unless 0 <= warmup_steps < total_steps and 0 <= floor <= peak.

    >>> rate = warmup_linear(1.0, total_steps=6, warmup_steps=2)
    >>> [rate(torch.tensor(t)).item() for t in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    _check(peak, total_steps, warmup_steps, floor)

    def decay(fraction: Tensor) -> Tensor:
        return peak + (floor - peak) * fraction

    return _after_warmup(peak, total_steps, warmup_steps, decay)


def step_decay(initial: float, *, every: int, factor: float = 0.1) -> Schedule:
    """A staircase (step decay): lr(t) = initial * factor ** floor(t / every).

    Raises:
      ValueError: unless every >= 1 and factor > 0.

    >>> rate = step_decay(1.0, every=2, factor=0.5)
    >>> [rate(torch.tensor(t)).item() for t in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    if every < 1 or factor <= 0:
        raise ValueError(f"`every` must be >= 1 and `factor` > 0; got {every} and {factor}")

    def schedule(step: Int[Tensor, ""]) -> Float[Tensor, ""]:
        decays = _time(torch.div(step, every, rounding_mode="floor"))
        return initial * factor**decays

    return schedule


def _after_warmup(peak: float, total_steps: int, warmup_steps: int, decay: Callable[[Tensor], Tensor]) -> Schedule:
    def schedule(step: Int[Tensor, ""]) -> Float[Tensor, ""]:
        time = _time(step)
        decayed = decay(torch.clamp((time - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0))
        if warmup_steps == 0:
            return decayed
        return torch.where(time < warmup_steps, peak * (time + 1.0) / warmup_steps, decayed)

    return schedule


def _time(step: Tensor) -> Tensor:
    return step.to(torch.float32 if step.device.type == "mps" else torch.float64)


def _check(peak: float, total_steps: int, warmup_steps: int, floor: float) -> None:
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"`warmup_steps` must be >= 0 and < `total_steps`; got {warmup_steps} and {total_steps}")
    if not 0 <= floor <= peak:
        raise ValueError(f"`floor` must be >= 0 and <= `peak`; got {floor} and {peak}")
