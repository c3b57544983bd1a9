"""Training with several labels per example: labels are float [B, C], 1 where a class applies and 0 where it does not.

`train_step` and `eval_step` do it with a binary loss and with the `measure` of this module:

    train_step(state, batch, apply=apply, optimizer=optimizer, loss=binary_cross_entropy, measure=multi_label.measure)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ftrain.metrics import Metric, Metrics, check_names, total, values_of
from ftrain.scores import average_precision, best_thresholds, label_scores, summary

__all__ = ["average_precision", "best_thresholds", "focal", "label_scores", "measure", "summary"]


def focal(logits: Float[Tensor, "B C"], labels: Float[Tensor, "B C"], *, gamma: float = 2.0) -> Float[Tensor, "B"]:
    """-sum over both answers a of y_a (1 - p_a)^gamma log p_a, in nats, averaged over the classes: binary cross-entropy
    in which answers that are already right count less (Lin et al., Focal loss, 2017, equation 4).

    Args:
      logits: any real numbers; sigmoid gives p of the answer that the class applies.
      labels: from 0 to 1; between them after mixing.
      gamma: >= 0; 0 gives binary cross-entropy.

    >>> [round(loss, 4) for loss in focal(torch.zeros(2, 4), torch.eye(4)[:2]).tolist()]  # (1/2)^2 log 2
    [0.1733, 0.1733]
    """
    return (_focal(logits, labels, gamma) + _focal(-logits, 1.0 - labels, gamma)).mean(dim=-1)


def measure(
    logits: Float[Tensor, "B C"],
    labels: Float[Tensor, "B C"],
    losses: Float[Tensor, "B"],
    weights: Float[Tensor, "B"],
    metrics: Mapping[str, Metric] | None = None,
    *,
    by_class: bool = False,
) -> Metrics:
    """The metrics of one batch of examples with several labels.

    Args:
      logits: a class is predicted where the logit is positive, which is where its probability is above 0.5.
      labels: from 0 to 1; a class applies from 0.5 on.
      losses, weights, metrics: as for `ftrain.metrics.measure`.
      by_class: whether to keep the logits and labels of the examples, from which `Metrics.compute` finds the mean
        average precision, and F1 at the thresholds where it is the largest.

    Raises:
      ValueError: for a metric with a name of ftrain's own, or one that does not return [B].

    >>> logits, labels = torch.tensor([[2.0, -1.0], [2.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> batch = measure(logits, labels, losses=torch.tensor([0.5, 1.5]), weights=torch.ones(2))
    >>> batch.compute()  # 2 of 3 predicted labels are right, and none is missing
    {'loss': 1.0, 'accuracy': 0.5, 'count': 2.0, 'nonfinite': 0.0, 'micro_f1': 0.8}
    """
    check_names(metrics or ())
    predicted, actual = logits > 0, labels >= 0.5
    loss = total(losses, weights)
    own = weights.to(loss.dtype)
    return Metrics(
        loss=loss,
        correct=total((predicted == actual).all(dim=-1), weights),
        count=own.sum(),
        nonfinite=(~torch.isfinite(loss)).to(loss.dtype),
        per_example={
            name: total(values_of(name, metric, logits, labels), weights) for name, metric in (metrics or {}).items()
        },
        per_step={},
        per_label={
            "hits": total((predicted & actual).sum(dim=-1), weights),
            "predicted": total(predicted.sum(dim=-1), weights),
            "actual": total(actual.sum(dim=-1), weights),
        },
        examples=((logits, labels, weights),) if by_class else (),
    )


def _focal(logits: Tensor, answers: Tensor, gamma: float) -> Tensor:
    log_p = F.logsigmoid(logits)
    # 1 - p, without the cancellation that makes its power's derivative infinite at p = 1.
    rest = -torch.expm1(log_p.clamp_max(-torch.finfo(log_p.dtype).tiny))
    return -answers * rest**gamma * log_p
