"""How good the scores of multi-label classifiers are over a whole set of examples: average precision, and F1 at
thresholds. Tensors [N, C] hold a row for each example; sums are float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["average_precision", "best_thresholds", "label_scores", "summary"]

NO_CHOICE = 0.5  # the threshold of a class without examples
_HIGHEST = 1.0 - 2.0**-53  # probability, the largest float64 below 1
_LOWEST = 2.0**-1021  # half of it is a normal float64


def average_precision(
    logits: Float[Tensor, "N C"], labels: Float[Tensor, "N C"], weights: Float[Tensor, "N"]
) -> Float[Tensor, "C"]:
    """The average precision of each class: sum_n (R_n - R_n-1) P_n, where P_n and R_n are precision and recall at the
    n-th largest distinct logit as the threshold. It equals scikit-learn's `average_precision_score`.

    Args:
      logits: any real numbers; nan counts as the lowest.
      labels: at least 0.5 where the class applies.
      weights: how much each example counts.

    Returns:
      float64; nan for a class without examples.

    >>> logits = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    >>> average_precision(logits, torch.tensor([[1.0], [0.0], [1.0], [0.0]]), torch.ones(4)).tolist()  # 1/2 (1 + 2/3)
    [0.8333333333333333]
    """
    hits, predictions, gains, _ = _curve(logits, labels, weights)
    precision = hits / predictions.clamp_min(torch.finfo(torch.float64).tiny)
    return (gains * precision).sum(dim=0) / gains.sum(dim=0)


def best_thresholds(
    logits: Float[Tensor, "N C"], labels: Float[Tensor, "N C"], weights: Float[Tensor, "N"]
) -> Float[Tensor, "C"]:
    """For each class the threshold of the probability, sigmoid(logit), at which F1 is the largest; of several, the
    highest. Arguments as for `average_precision`.

    A threshold lies halfway between two logits, or at half of the lowest probability. A class applies where its
    probability is at least its threshold. Probabilities that float64 cannot tell apart count as equal, and at those
    that are 0 or nan a class never applies.

    Returns:
      float64 in (0, 1); 0.5 for a class without examples, or without probabilities above 0.

    >>> logits = torch.tensor([[2.0], [0.0], [-2.0]])
    >>> best_thresholds(logits, torch.tensor([[1.0], [1.0], [0.0]]), torch.ones(3)).tolist()  # sigmoid(-1)
    [0.2689414213699951]
    """
    if not len(logits):
        return torch.full(logits.shape[1:], NO_CHOICE, dtype=torch.float64)
    probabilities = torch.sigmoid(logits.cpu().to(torch.float64)).clamp_max(_HIGHEST)
    hits, predictions, gains, ordered = _curve(probabilities, labels, weights)
    f1 = (2.0 * hits / (predictions + gains.sum(dim=0))).nan_to_num(nan=0.0)
    best = torch.where(ordered >= _LOWEST, f1, -1.0).argmax(dim=0, keepdim=True)
    score = ordered.gather(0, best)
    # The largest probability that is smaller; 0 if there is none.
    below = torch.where((ordered < score) & (ordered >= _LOWEST), ordered, 0.0).amax(dim=0, keepdim=True)
    halfway = torch.sigmoid((torch.logit(score) + torch.logit(below)) / 2.0)
    threshold = torch.where(below > 0.0, torch.where(halfway > below, halfway, score), score / 2.0)
    some = (gains.sum(dim=0) > 0) & (score[0] >= _LOWEST)
    return torch.where(some, torch.minimum(threshold, score)[0], NO_CHOICE)


def label_scores(
    logits: Float[Tensor, "N C"],
    labels: Float[Tensor, "N C"],
    weights: Float[Tensor, "N"],
    thresholds: Sequence[float],
) -> dict[str, Float[Tensor, "C"]]:
    """The scores of each class at thresholds of its probability. Arguments as for `average_precision`.

    Returns:
      float64 [C] each, by the names ap (average precision), precision, recall, f1, threshold and images. A quotient of
      0 by 0 is 0, but the ap of a class without examples is nan.

    >>> logits, labels = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [1.0]])
    >>> found = label_scores(logits, labels, torch.ones(2), [0.5])
    >>> {name: round(values.item(), 3) for name, values in found.items()}
    {'ap': 1.0, 'precision': 1.0, 'recall': 0.5, 'f1': 0.667, 'threshold': 0.5, 'images': 2.0}
    """
    limits = torch.tensor(thresholds, dtype=torch.float64)
    own = weights.cpu().to(torch.float64)[:, None]
    predicted, actual = applies(logits, limits), labels.cpu() >= 0.5
    hits = (own * (predicted & actual)).sum(dim=0)
    predictions, positives = (own * predicted).sum(dim=0), (own * actual).sum(dim=0)
    tiny = torch.finfo(torch.float64).tiny
    return {
        "ap": average_precision(logits, labels, weights),
        "precision": hits / predictions.clamp_min(tiny),
        "recall": hits / positives.clamp_min(tiny),
        "f1": 2.0 * hits / (predictions + positives).clamp_min(tiny),
        "threshold": limits,
        "images": positives,
    }


def summary(
    logits: Float[Tensor, "N C"],
    labels: Float[Tensor, "N C"],
    weights: Float[Tensor, "N"],
    thresholds: Sequence[float],
) -> dict[str, float]:
    """The scores of all classes together, at thresholds of their probabilities. Arguments as for `average_precision`.

    Returns:
      map: the mean of the average precisions. macro_f1: the mean of the classes' F1; both over the classes that have
      examples. micro_f1: F1 of all labels of all classes together. accuracy: the fraction of examples all of whose
      labels are right.

    >>> logits, labels = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    >>> {name: round(value, 3) for name, value in summary(logits, labels, torch.ones(2), [0.5, 0.5]).items()}
    {'accuracy': 0.5, 'map': 0.75, 'macro_f1': 0.833, 'micro_f1': 0.8}
    """
    by_class = label_scores(logits, labels, weights, thresholds)
    own = weights.cpu().to(torch.float64)
    predicted, actual = applies(logits, by_class["threshold"]), labels.cpu() >= 0.5
    right = own * (predicted == actual).all(dim=1)
    found = by_class["images"] > 0
    hits = (own[:, None] * (predicted & actual)).sum()
    both = (own[:, None] * predicted).sum() + (own[:, None] * actual).sum()
    return {
        "accuracy": float(right.sum() / own.sum()),
        "map": float(by_class["ap"][found].mean()),
        "macro_f1": float(by_class["f1"][found].mean()),
        "micro_f1": float(2.0 * hits / both.clamp_min(torch.finfo(torch.float64).tiny)),
    }


def applies(logits: Float[Tensor, "N C"], thresholds: Float[Tensor, "C"]) -> Bool[Tensor, "N C"]:
    """Whether each class applies: whether its probability is at least its threshold. On the CPU."""
    return torch.sigmoid(logits.cpu().to(torch.float64)) >= thresholds.cpu()


def _curve(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The examples of each class in the order of their logits, the largest first: the sums of the weights of the true
    and of all examples whose logits are at least as large, the weight of each if it is true, and the logits. float64
    [N, C] on the CPU, since other devices may lack float64."""
    scores = logits.cpu().to(torch.float64).nan_to_num(nan=-torch.inf)
    scores, order = scores.sort(dim=0, descending=True, stable=True)
    own = weights.cpu().to(torch.float64)[:, None].expand_as(scores).gather(0, order)
    gains = own * (labels.cpu() >= 0.5).gather(0, order)
    # Of equal logits, all count at each of them.
    count = len(scores)
    places = torch.arange(count)[:, None].expand_as(scores)
    ends = torch.cat([scores[1:] != scores[:-1], torch.ones_like(scores[:1], dtype=torch.bool)])
    last = torch.where(ends, places, count).flip(0).cummin(dim=0).values.flip(0)
    return gains.cumsum(dim=0).gather(0, last), own.cumsum(dim=0).gather(0, last), gains, scores
