"""Checks of the arguments that all steps have in common: the network and the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_apply(apply: Any) -> None:
    """Raises TypeError for what is commonly given instead of a network's function."""
    if isinstance(apply, torch.nn.Module):
        found = f"a module ({type(apply).__name__})"
        advice = "Call apply, params, buffers = ftrain.functionalize(module)"
    elif isinstance(apply, tuple):
        found = f"a tuple of {len(apply)}"
        advice = "Unpack it: apply, params, buffers = ftrain.functionalize(module)"
    elif not callable(apply):
        found = f"a {type(apply).__name__}"
        advice = "Call apply, params, buffers = ftrain.functionalize(module)"
    else:
        return
    raise TypeError(f"`apply` must be the function that ftrain.functionalize returns; got {found}. {advice}")


def unpack_batch(batch: Any) -> tuple[Any, Tensor, Tensor]:
    """The inputs, labels and weights of a batch; the weights are 1 if the batch has none.

    Raises:
      TypeError, ValueError: for a batch of another form.
    """
    if not isinstance(batch, tuple | list):
        raise TypeError(f"`batch` must be (inputs, labels) or (inputs, labels, weights); got a {type(batch).__name__}")
    if len(batch) not in (2, 3):
        raise ValueError(
            f"`batch` must be (inputs, labels) or (inputs, labels, weights); got {len(batch)} values. A batch of "
            "ftrain.data starts with these: use batch[:3]"
        )
    inputs, labels, *rest = batch
    if not isinstance(labels, Tensor) or labels.ndim == 0:
        found = f"a 0-d tensor of {labels.dtype}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise TypeError(f"the labels of `batch` must be a tensor [B] or [B, C]; got {found}")
    if isinstance(inputs, Tensor) and inputs.shape[:1] != labels.shape[:1]:
        raise ValueError(
            f"the inputs and labels of `batch` must have the same length; got inputs of shape {list(inputs.shape)} and "
            f"labels of shape {list(labels.shape)}"
        )
    weights = rest[0] if rest else torch.ones(labels.shape[:1], device=labels.device)
    if not isinstance(weights, Tensor) or weights.shape != labels.shape[:1]:
        found = f"{list(weights.shape)}" if isinstance(weights, Tensor) else f"a {type(weights).__name__}"
        raise ValueError(
            f"the weights of `batch` must be a tensor of shape {list(labels.shape[:1])}, one per label; got {found}"
        )
    return inputs, labels, weights
