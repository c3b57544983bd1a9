"""Losses: pure functions of logits and labels to one value per example, so that examples can be weighted."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["Loss", "binary_cross_entropy", "cross_entropy", "mean_squared_error"]

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

    >>> [round(loss, 4) for loss in cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).tolist()]  # log 4
    [1.3863, 1.3863]
    """
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)


def binary_cross_entropy(
    logits: Float[Tensor, "B C"], labels: Int64[Tensor, "B"] | Float[Tensor, "B C"]
) -> Float[Tensor, "B"]:
    """The logistic loss of each class against one-hot targets, in nats, averaged over the classes (Wightman et al.,
    ResNet strikes back, 2021, section 3). Arguments as for `cross_entropy`.

    >>> [round(loss, 4) for loss in binary_cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).tolist()]  # log 2
    [0.6931, 0.6931]
    """
    return F.binary_cross_entropy_with_logits(logits, _targets(logits, labels), reduction="none").mean(dim=-1)


def mean_squared_error(
    logits: Float[Tensor, "B C"], labels: Int64[Tensor, "B"] | Float[Tensor, "B C"]
) -> Float[Tensor, "B"]:
    """The squared distance from the logits to one-hot targets, averaged over the classes (Hui and Belkin, 2021).
    Arguments as for `cross_entropy`.

    >>> mean_squared_error(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])).tolist()
    [0.0, 1.0]
    """
    return (logits - _targets(logits, labels)).square().mean(dim=-1)


def _targets(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.dtype.is_floating_point:
        return labels
    # Not F.one_hot, which reads the labels back to the host, as neither vmap nor a single graph can.
    return (labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)).to(logits.dtype)
