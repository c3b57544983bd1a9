"""Losses: pure functions of logits and labels to one value per example, so that examples can be weighted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = [
    "Loss",
    "balanced_weights",
    "binary_cross_entropy",
    "class_weighted",
    "cross_entropy",
    "effective_weights",
    "focal",
    "logit_adjusted",
    "mean_squared_error",
]

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


def focal(
    logits: Float[Tensor, "B C"], labels: Int64[Tensor, "B"] | Float[Tensor, "B C"], *, gamma: float = 2.0
) -> Float[Tensor, "B"]:
    """-sum_c q_c (1 - p_c)^gamma log p_c, in nats, with p = softmax(logits): cross-entropy in which examples that are
    already classified well count less (Lin et al., Focal loss, 2017, equation 4).

    Args:
      logits, labels: as for `cross_entropy`.
      gamma: >= 0; 0 gives cross-entropy.

    >>> [round(loss, 4) for loss in focal(torch.zeros(2, 4), torch.tensor([0, 3])).tolist()]  # (3/4)^2 log 4
    [0.7798, 0.7798]
    """
    log_p = F.log_softmax(logits, dim=-1)
    # 1 - p, without the cancellation that makes its power's derivative infinite at p = 1.
    rest = -torch.expm1(log_p.clamp_max(-torch.finfo(log_p.dtype).tiny))
    return -(_targets(logits, labels) * rest**gamma * log_p).sum(dim=-1)


def class_weighted(loss: Loss, weights: Float[Tensor, "C"]) -> Loss:
    """A loss in which each example counts as much as its class says.

    Args:
      loss: any loss.
      weights: by class, >= 0, on the device of the logits, such as `balanced_weights` returns. An example with
        probabilities as its label, as after mixing, has their mean weight.

    >>> weighted = class_weighted(cross_entropy, torch.tensor([1.0, 3.0]))
    >>> [round(loss, 4) for loss in weighted(torch.zeros(2, 2), torch.tensor([0, 1])).tolist()]  # log 2, 3 log 2
    [0.6931, 2.0794]
    """

    def weighted(logits: Tensor, labels: Tensor) -> Tensor:
        return loss(logits, labels) * (_targets(logits, labels) * weights.to(logits.dtype)).sum(dim=-1)

    return weighted


def logit_adjusted(loss: Loss, counts: Float[Tensor, "C"] | Int64[Tensor, "C"], *, tau: float = 1.0) -> Loss:
    """A loss of logits + tau log(prior), where the prior is the frequency of each class in training, so that the logits
    themselves, which evaluation uses, are those of classes that are equally frequent (Menon et al., Long-tail learning
    via logit adjustment, 2021, equation 10).

    Args:
      loss: any loss of logits that softmax turns into probabilities.
      counts: training examples by class, > 0, on the device of the logits.
      tau: the strength, >= 0.

    >>> adjusted = logit_adjusted(cross_entropy, torch.tensor([30, 10]))
    >>> [round(loss, 4) for loss in adjusted(torch.zeros(2, 2), torch.tensor([0, 1])).tolist()]  # -log 3/4, -log 1/4
    [0.2877, 1.3863]
    """
    counts = counts.to(torch.float32 if counts.device.type == "mps" else torch.float64)
    offsets = tau * torch.log(counts / counts.sum())

    def adjusted(logits: Tensor, labels: Tensor) -> Tensor:
        return loss(logits + offsets.to(logits.dtype), labels)

    return adjusted


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """A weight for each class inversely proportional to its number of examples: N / (C n_c), so that all classes weigh
    the same and the mean weight of an example is 1.

    Args:
      counts: training examples by class.

    Raises:
      ValueError: for a class without examples.

    >>> balanced_weights([30, 10])
    [0.6666666666666666, 2.0]
    """
    return _normalised([1.0 / _positive(count) for count in counts], counts)


def effective_weights(counts: Sequence[int], *, beta: float = 0.999) -> list[float]:
    """A weight for each class inversely proportional to its effective number of examples, (1 - beta^n_c) / (1 - beta):
    between no weights and balanced ones, since further examples of a class add less and less (Cui et al.,
    Class-balanced loss, 2019, equation 2). The mean weight of an example is 1.

    Args, Raises: as for `balanced_weights`; beta in [0, 1).

    >>> [round(weight, 4) for weight in effective_weights([10_000, 1_000, 100])]
    [0.8787, 1.3897, 9.2293]
    """
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"`beta` must be a number >= 0 and < 1; got {beta}")
    return _normalised([(1.0 - beta) / (1.0 - beta ** _positive(count)) for count in counts], counts)


def _normalised(weights: list[float], counts: Sequence[int]) -> list[float]:
    mean = sum(weight * count for weight, count in zip(weights, counts, strict=True)) / sum(counts)
    return [weight / mean for weight in weights]


def _positive(count: int) -> int:
    if count < 1:
        raise ValueError(f"`counts` must be positive, because a class without examples has no weight; got {count}")
    return count


def _targets(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.dtype.is_floating_point:
        return labels
    # Not F.one_hot, which reads the labels back to the host, as neither vmap nor a single graph can.
    return (labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)).to(logits.dtype)
