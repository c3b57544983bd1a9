"""Metrics as sums on the device: added over batches, read once, divided at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, runtime_checkable

import attrs
import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

from ftrain import scores
from ftrain.pytree import frozen

__all__ = ["RESERVED_NAMES", "Measure", "Metric", "Metrics", "check_names", "class_scores", "measure"]

Metric = Callable[[Float[Tensor, "B C"], Tensor], Tensor]
Examples = tuple[Float[Tensor, "B C"], Float[Tensor, "B C"], Float[Tensor, "B"]]  # logits, labels and weights

_OF_METRICS = [
    *("accuracy", "correct", "count", "grad_norm", "loss", "lr", "macro_accuracy", "nonfinite", "steps", "top5"),
    *("macro_f1", "map", "micro_f1"),
]
_OF_LOG_LINES = ["epoch", "images_per_second", "kind", "left_out", "seconds", "step", "train", "val"]  # metrics.jsonl
RESERVED_NAMES = frozenset([*_OF_METRICS, *_OF_LOG_LINES])


@frozen
class Metrics:
    """Sums over examples and over steps. `a + b` merges two; `compute` divides.

    The sums are float64 (float32 on Apple's GPUs), so that batch size and order do not show in the result.

    Attributes:
      loss: the sum of the losses, each times its example's weight.
      correct: the number of examples whose largest logit is the label's.
      count: the number of examples.
      nonfinite: the number of batches whose loss or gradient was not finite; in evaluation over logical shards, the
        number of such shards.
      per_example: further sums over examples: top5, and your own metrics.
      per_step: sums over training steps: steps, lr, grad_norm.
      per_class: in evaluation, sums over the examples of each class, [C]: correct, count.
      per_label: if examples may have several labels, sums over all labels of all examples: hits, predicted, actual.
      examples: in evaluation, if examples may have several labels, those of each batch: logits, labels and weights.

    >>> logits, labels = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1])
    >>> batch = measure(logits, labels, losses=torch.tensor([0.5, 1.5]), weights=torch.ones(2))
    >>> (batch + batch).compute()
    {'loss': 1.0, 'accuracy': 0.5, 'count': 4.0, 'nonfinite': 0.0}
    """

    loss: Float[Tensor, ""]
    correct: Float[Tensor, ""]
    count: Float[Tensor, ""]
    nonfinite: Float[Tensor, ""]
    per_example: dict[str, Float[Tensor, ""]]
    per_step: dict[str, Float[Tensor, ""]]
    per_class: dict[str, Float[Tensor, "C"]] = attrs.field(factory=dict)
    per_label: dict[str, Float[Tensor, ""]] = attrs.field(factory=dict)
    examples: tuple[Examples, ...] = ()

    def __add__(self, other: Metrics) -> Metrics:
        """The metrics of both together. They must hold the same sums.

        Raises:
          ValueError: if one is of training and the other of evaluation, or if their numbers of classes or their own
            metrics differ.
        """
        ours, theirs = ({*each.per_example, *each.per_step, *each.per_class, *each.per_label} for each in (self, other))
        if ours != theirs:
            raise ValueError(f"only metrics with the same sums can be added; got {sorted(ours)} and {sorted(theirs)}")
        return Metrics(
            loss=self.loss + other.loss,
            correct=self.correct + other.correct,
            count=self.count + other.count,
            nonfinite=self.nonfinite + other.nonfinite,
            per_example={name: value + other.per_example[name] for name, value in self.per_example.items()},
            per_step={name: value + other.per_step[name] for name, value in self.per_step.items()},
            per_class={name: value + other.per_class[name] for name, value in self.per_class.items()},
            per_label={name: value + other.per_label[name] for name, value in self.per_label.items()},
            examples=self.examples + other.examples,
        )

    def compute(self) -> dict[str, float]:
        """Python floats: means over the examples (loss, accuracy, top5 and your own metrics), over the training steps
        (lr, grad_norm) and, in evaluation, over the classes that have examples (macro_accuracy, the mean of their
        accuracies), and the totals count and nonfinite. Reads the device once. A mean over nothing is nan.

        If examples may have several labels, accuracy is the fraction of those all of whose labels are right, and there
        is micro_f1, the F1 of all labels together; in evaluation both are at the best thresholds instead of 0.5, and
        map (mean average precision) and macro_f1 are added, as `ftrain.multi_label.summary` computes them."""
        macro = {"macro_accuracy": _macro_accuracy(**self.per_class)} if self.per_class else {}
        macro |= {"micro_f1": _f1(**self.per_label)} if self.per_label else {}
        names = ["loss", "accuracy", "count", "nonfinite", *self.per_example, *self.per_step, *macro]
        sums = [
            self.loss,
            self.correct,
            self.count,
            self.nonfinite,
            *self.per_example.values(),
            *self.per_step.values(),
            *macro.values(),
        ]
        values = dict(zip(names, torch.stack(sums).tolist(), strict=True))
        steps = values.pop("steps", 0.0)
        for name in ("loss", "accuracy", *self.per_example):
            values[name] = values[name] / values["count"] if values["count"] else float("nan")
        for name in self.per_step.keys() - {"steps"}:
            values[name] = values[name] / steps if steps else float("nan")
        if self.examples and values["count"]:
            logits, labels, weights = self.gathered()
            values |= scores.summary(logits, labels, weights, self.best_thresholds())
        return values

    def best_thresholds(self) -> list[float]:
        """In evaluation, if examples may have several labels: for each class the threshold of its probability at which
        F1 is the largest, as `ftrain.multi_label.best_thresholds` finds it."""
        thresholds: list[float] = scores.best_thresholds(*self.gathered()).tolist()
        return thresholds

    def gathered(self) -> Examples:
        """The logits, labels and weights of all examples with a weight above 0, on the CPU, where `examples` has
        them."""
        logits, labels, weights = (
            torch.cat([part.cpu() for part in parts]) for parts in zip(*self.examples, strict=True)
        )
        counted = weights > 0
        return logits[counted], labels[counted], weights[counted]


def with_examples(metrics: Metrics, examples: tuple[Examples, ...]) -> Metrics:
    """The metrics with other examples."""
    return Metrics(**{**vars(metrics), "examples": examples})


@runtime_checkable
class Measure(Protocol):
    """A function to the metrics of a batch: `measure`, or `ftrain.multi_label.measure`."""

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        losses: Tensor,
        weights: Tensor,
        metrics: Mapping[str, Metric] | None = None,
        *,
        by_class: bool = False,
    ) -> Metrics: ...


def measure(
    logits: Float[Tensor, "B C"],
    labels: Tensor,
    losses: Float[Tensor, "B"],
    weights: Float[Tensor, "B"],
    metrics: Mapping[str, Metric] | None = None,
    *,
    by_class: bool = False,
) -> Metrics:
    """The metrics of one batch.

    Args:
      logits: the class with the largest one is the prediction. The lower class number wins a tie; nan never does.
      labels: class numbers [B], or probabilities [B, C], of which the most probable class is the label.
      losses: one per example.
      weights: how much each example counts. One with weight 0 is ignored, even if its loss or a metric of it is nan.
      metrics: your own, by name: functions of (logits, labels), as they are given here, to one number or bool per
        example, [B].
      by_class: whether to count by class as well, for the macro-averaged accuracy.

    Raises:
      ValueError: for a metric with a name of ftrain's own, or one that does not return [B].

    >>> confident = lambda logits, labels: logits.softmax(dim=-1).amax(dim=-1) > 0.9
    >>> logits, labels = torch.tensor([[5.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1])
    >>> measure(logits, labels, torch.zeros(2), torch.ones(2), {"confident": confident}).compute()["confident"]
    0.5
    """
    label = labels.argmax(dim=-1) if labels.ndim > 1 else labels
    rank = _rank(logits, label)
    loss = total(losses, weights)
    counts = weights.to(loss.dtype)

    def hits(places: int) -> Tensor:
        return ((rank < places).to(loss.dtype) * counts).sum()

    check_names(metrics or ())
    per_example = {"top5": hits(5)} if logits.shape[-1] > 5 else {}
    for name, metric in (metrics or {}).items():
        per_example[name] = total(values_of(name, metric, logits, labels), weights)
    return Metrics(
        loss=loss,
        correct=hits(1),
        count=counts.sum(),
        nonfinite=(~torch.isfinite(loss)).to(loss.dtype),
        per_example=per_example,
        per_step={},
        per_class=_by_class(rank < 1, label, counts, logits.shape[-1]) if by_class else {},
    )


def total(values: Tensor, weights: Tensor) -> Float[Tensor, ""]:
    """The sum of values [B], each times its example's weight, without those whose weight is 0, even if they are nan."""
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    weights = weights.to(dtype)
    return torch.where(weights > 0, values, 0.0).to(dtype).mul(weights).sum()


def check_names(names: Iterable[str]) -> None:
    """Checks the names of metrics of one's own.

    Raises:
      ValueError: for a name that ftrain gives to a value of its own, in `Metrics.compute` or in metrics.jsonl.

    >>> check_names(["confident"])
    >>> check_names(["loss"])
    Traceback (most recent call last):
    ...
    ValueError: a metric cannot be called 'loss', which ftrain uses itself; choose a name other than accuracy, ...
    """
    for name in names:
        if name in RESERVED_NAMES:
            raise ValueError(
                f"a metric cannot be called {name!r}, which ftrain uses itself; choose a name other than "
                f"{', '.join(sorted(RESERVED_NAMES))}"
            )


def _by_class(correct: Tensor, labels: Tensor, weights: Tensor, classes: int) -> dict[str, Tensor]:
    counts = torch.where(labels[..., None] == torch.arange(classes, device=labels.device), weights[..., None], 0.0)
    return {"correct": (counts * correct[..., None]).sum(dim=0), "count": counts.sum(dim=0)}


def _macro_accuracy(correct: Tensor, count: Tensor) -> Tensor:
    found = count > 0
    return torch.where(found, correct / torch.where(found, count, 1.0), 0.0).sum() / found.sum()


def _f1(hits: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
    return 2.0 * hits / (predicted + actual).clamp_min(torch.finfo(hits.dtype).tiny)


def values_of(name: str, metric: Metric, logits: Tensor, labels: Tensor) -> Tensor:
    """What a metric says of each example.

    Raises:
      ValueError: if it does not return one value per example.
    """
    values = metric(logits, labels)
    if values.shape != logits.shape[:1]:
        raise ValueError(
            f"the metric {name!r} must return one value per example, of shape {list(logits.shape[:1])}; got "
            f"{list(values.shape)}"
        )
    return values


def _rank(logits: Tensor, labels: Tensor) -> Tensor:
    """The number of classes ahead of the label's, int64 [B]. Unlike topk it settles ties, and runs under vmap without a
    gather."""
    classes = torch.arange(logits.shape[-1], device=logits.device)
    own: Bool[Tensor, "B C"] = labels[..., None] == classes
    score = torch.where(own, logits, 0.0).sum(dim=-1, keepdim=True)
    ahead = ~(logits <= score) | (logits == score) & (classes < labels[..., None])
    return ahead.sum(dim=-1)


def class_scores(confusion: Real[Tensor, "C C"]) -> dict[str, Float[Tensor, "C"]]:
    """Precision, recall, F1 and number of images of each class. A quotient of 0 by 0 is 0.

    Args:
      confusion: counts or sums of weights, with a row for each label and a column for each prediction.

    Returns:
      float64 [C] each, by the names precision, recall, f1 and images.

    >>> class_scores(torch.tensor([[3, 1], [0, 4]]))["recall"].tolist()
    [0.75, 1.0]
    """
    confusion, tiny = confusion.to(torch.float64), torch.finfo(torch.float64).tiny
    hits, predictions, labels = confusion.diagonal(), confusion.sum(dim=0), confusion.sum(dim=1)
    return {
        "precision": hits / predictions.clamp_min(tiny),
        "recall": hits / labels.clamp_min(tiny),
        "f1": 2.0 * hits / (predictions + labels).clamp_min(tiny),
        "images": labels,
    }
