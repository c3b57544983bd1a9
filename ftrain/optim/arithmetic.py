"""What the optimizers have in common: checked hyperparameters, and arithmetic on dicts of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ftrain.optim.base import Tensors
from ftrain.schedules import Schedule, constant


def as_schedule(lr: float | Tensor | Schedule) -> Schedule:
    """The learning rate as a function of the step."""
    if isinstance(lr, Tensor):
        return lambda step: lr
    if callable(lr):
        return lr
    check_range("lr", lr, 0.0)
    return constant(lr)


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value < high:
        limit = f" and < {high:g}" if high < math.inf else ""
        raise ValueError(f"`{name}` must be a number >= {low:g}{limit}; got {value}")


def check_eps(eps: float) -> None:
    if not eps > 0.0:
        raise ValueError(f"`eps` must be a number > 0; got {eps}")


def zeros(params: Tensors) -> Tensors:
    return {name: torch.zeros_like(param) for name, param in params.items()}


def sqrt(square: Tensor) -> Tensor:
    """The square root, with the derivative 0 at 0 instead of infinity: a parameter whose gradients have all been zero
    must not turn a hypergradient into nan."""
    positive = square > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, square, 1.0)), square)
