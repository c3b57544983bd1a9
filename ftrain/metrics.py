"""Metrics as sums on the device: added up over batches, read once, divided at the end."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ftrain.pytree import frozen


@frozen
class Metrics:
    """Sums over examples and steps. `a + b` merges two; `compute` divides.

    The sums are float64 (float32 on Apple's GPUs), so that batch size and order do not show in the result.
    """

    loss: Float[Tensor, ""]  # over examples, each times its weight
    correct: Float[Tensor, ""]  # examples whose largest logit is the label's
    count: Float[Tensor, ""]  # examples
    nonfinite: Float[Tensor, ""]  # batches whose loss or gradient was not finite
    per_example: dict[str, Float[Tensor, ""]]  # further sums over examples: top5
    per_step: dict[str, Float[Tensor, ""]]  # sums over training steps: steps, lr, grad_norm

    def __add__(self, other: Metrics) -> Metrics:
        """The metrics of both together. They must hold the same sums.

        Raises:
          ValueError: if one is of training and the other of evaluation, or their numbers of classes differ.
        """
        ours, theirs = {*self.per_example, *self.per_step}, {*other.per_example, *other.per_step}
        if ours != theirs:
            raise ValueError(f"metrics to add must hold the same sums; got {sorted(ours)} and {sorted(theirs)}")
        return Metrics(
            loss=self.loss + other.loss,
            correct=self.correct + other.correct,
            count=self.count + other.count,
            nonfinite=self.nonfinite + other.nonfinite,
            per_example={name: value + other.per_example[name] for name, value in self.per_example.items()},
            per_step={name: value + other.per_step[name] for name, value in self.per_step.items()},
        )

    def compute(self) -> dict[str, float]:
        """Means over the examples (loss in nats, accuracy, top5) and over the training steps (lr, grad_norm), and the
        totals count and nonfinite, as Python floats. Reads the device once; a mean over nothing is nan."""
        names = ["loss", "accuracy", "count", "nonfinite", *self.per_example, *self.per_step]
        sums = [
            self.loss,
            self.correct,
            self.count,
            self.nonfinite,
            *self.per_example.values(),
            *self.per_step.values(),
        ]
        values = dict(zip(names, torch.stack(sums).tolist(), strict=True))
        steps = values.pop("steps", 0.0)
        for name in ("loss", "accuracy", *self.per_example):
            values[name] = values[name] / values["count"] if values["count"] else float("nan")
        for name in self.per_step.keys() - {"steps"}:
            values[name] = values[name] / steps if steps else float("nan")
        return values


def measure(
    logits: Float[Tensor, "B C"], labels: Tensor, losses: Float[Tensor, "B"], weights: Float[Tensor, "B"]
) -> Metrics:
    """The metrics of one batch.

    Args:
      logits: the class with the largest one is the answer; the lower class number wins a tie, nan never does.
      labels: class numbers [B], or probabilities [B, C], of which the most probable class is the label.
      losses: one per example.
      weights: what each example counts; 0 leaves it out.
    """
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    rank = _rank(logits, labels.argmax(dim=-1) if labels.ndim > 1 else labels)
    weights = weights.to(wide)
    loss = torch.where(weights > 0, losses, 0.0).to(wide).mul(weights).sum()

    def hits(places: int) -> Tensor:
        return ((rank < places).to(wide) * weights).sum()

    return Metrics(
        loss=loss,
        correct=hits(1),
        count=weights.sum(),
        nonfinite=(~torch.isfinite(loss)).to(wide),
        per_example={"top5": hits(5)} if logits.shape[-1] > 5 else {},
        per_step={},
    )


def _rank(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the label's. Unlike topk it settles ties, and runs under vmap without a gather."""
    classes = torch.arange(logits.shape[-1], device=logits.device)
    own: Bool[Tensor, "B C"] = labels[..., None] == classes
    score = torch.where(own, logits, 0.0).sum(dim=-1, keepdim=True)
    ahead = ~(logits <= score) | (logits == score) & (classes < labels[..., None])
    return ahead.sum(dim=-1)


def class_scores(confusion: Int64[Tensor, "C C"]) -> dict[str, Float[Tensor, "C"]]:
    """Precision, recall, F1 and number of images of each class, from counts with a row for each label and a column for
    each answer. A quotient of 0 by 0 is 0."""
    confusion = confusion.to(torch.float64)
    hits, answers, labels = confusion.diagonal(), confusion.sum(dim=0), confusion.sum(dim=1)
    return {
        "precision": hits / answers.clamp_min(1.0),
        "recall": hits / labels.clamp_min(1.0),
        "f1": 2.0 * hits / (answers + labels).clamp_min(1.0),
        "images": labels,
    }
