"""Losses: pure functions of logits and labels to one value per example, so that examples can be weighed or left out."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

Loss = Callable[[Float[Tensor, "B C"], Tensor], Float[Tensor, "B"]]


def cross_entropy(
    logits: Float[Tensor, "B C"],
    labels: Int64[Tensor, "B"] | Float[Tensor, "B C"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Tensor, "B"]:
    """-sum_c q_c log softmax(logits)_c, in nats, with q the (smoothed) target.

    Args:
      logits: any real numbers.
      labels: class numbers in [0, C), or probabilities that sum to one over C.
      label_smoothing: e in [0, 1): q becomes (1 - e) q + e / C (Szegedy et al., Rethinking Inception, 2016, section 7).
    """
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)


def binary_cross_entropy(
    logits: Float[Tensor, "B C"], labels: Int64[Tensor, "B"] | Float[Tensor, "B C"]
) -> Float[Tensor, "B"]:
    """One logistic loss per class, averaged over the classes, against one-hot targets (Wightman et al., ResNet strikes
    back, 2021, section 3). Labels as for `cross_entropy`."""
    return F.binary_cross_entropy_with_logits(logits, _targets(logits, labels), reduction="none").mean(dim=-1)


def mean_squared_error(
    logits: Float[Tensor, "B C"], labels: Int64[Tensor, "B"] | Float[Tensor, "B C"]
) -> Float[Tensor, "B"]:
    """The squared distance from the logits to one-hot targets, averaged over the classes (Hui and Belkin, 2021).
    Labels as for `cross_entropy`."""
    return (logits - _targets(logits, labels)).square().mean(dim=-1)


def _targets(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.dtype.is_floating_point:
        return labels
    # A comparison, because F.one_hot reads the labels back to the host, which vmap and a single graph forbid.
    return (labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)).to(logits.dtype)
