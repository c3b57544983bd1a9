"""Which epoch is the best, and which checkpoints are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ftrain.disk import checkpoint, manifest
from ftrain.run.settings import BestBy
from ftrain.run.spec import RunSpec

T = TypeVar("T")


def score(val: Mapping[str, float], by: BestBy) -> float:
    """How good the validation metrics of an epoch are: the higher, the better."""
    match by:
        case "accuracy":
            found = val["accuracy"]
        case "macro":
            found = val.get("macro_accuracy", math.nan)
        case "map":
            found = val.get("map", math.nan)
        case "loss":
            found = -val["loss"]
    return -math.inf if math.isnan(found) else found  # nan is the worst


def ranked(epochs: Iterable[T], value: Callable[[T], float]) -> list[T]:
    """Epochs by their scores, the best first, and the earliest of equals first.

    Args:
      epochs: in their order.
    """
    return sorted(epochs, key=lambda epoch: -value(epoch))


def best_epoch(lines: Iterable[Mapping[str, Any]], by: BestBy) -> Mapping[str, Any] | None:
    """The line of the best epoch among the lines of metrics.jsonl; None if no epoch is complete."""
    epochs = [line for line in lines if line["kind"] == "epoch"]
    return next(iter(ranked(epochs, lambda line: score(line["val"], by))), None)


def epochs_since_best(lines: Iterable[Mapping[str, Any]], by: BestBy, *, until: float = math.inf) -> int:
    """How many epochs were evaluated after the best one, up to a step."""
    epochs = [line for line in lines if line["kind"] == "epoch" and line["step"] <= until]
    best = best_epoch(epochs, by)
    return sum(line["step"] > best["step"] for line in epochs) if best else 0


def patience_is_over(spec: RunSpec, since_best: int) -> bool:
    """Whether the run ends, because this number of epochs in a row were not better than the best."""
    return 0 < spec.patience <= since_best


def best_first(checkpoints: Sequence[Path], by: BestBy) -> list[Path]:
    """Checkpoints in the order in which to try them for the best: first those whose manifest cannot be read, since they
    may have been the best; then those of epochs by score; then those from within an epoch. Within the first and the
    last group the newest comes first.

    Args:
      checkpoints: by step.
    """
    manifests = manifest.read_all(checkpoints)
    unread = [path for path in checkpoints if path not in manifests]
    ended = [path for path in checkpoints if "val" in manifests.get(path, {})]
    within = [path for path in checkpoints if path in manifests and path not in ended]
    return [*unread[::-1], *ranked(ended, lambda path: score(manifests[path]["val"], by)), *within[::-1]]


def prune(folder: Path, spec: RunSpec) -> None:
    """Removes the checkpoints in a folder that are not to be kept: all but the last `keep_last`, the best, and those of
    the epochs from `save_station` on."""
    found = checkpoint.find(folder)
    manifests = manifest.read_all(found)
    ended = [path for path in found if "val" in manifests.get(path, {})]
    best = ranked(ended, lambda path: score(manifests[path]["val"], spec.best_by))[:1]
    stations = [path for path in ended if manifests[path]["epoch"] >= spec.save_station]
    checkpoint.prune(folder, {*found[-spec.keep_last :], *best, *stations})
