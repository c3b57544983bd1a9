"""Which epoch is the best, and which checkpoints are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ftrain.disk import checkpoint, manifest
from ftrain.run.spec import RunSpec

T = TypeVar("T")


def ranked(epochs: Iterable[T], accuracy: Callable[[T], float]) -> list[T]:
    """Epochs by validation accuracy, the best first, and the earliest of equals first.

    Args:
      epochs: in their order.
    """
    return sorted(epochs, key=lambda epoch: -accuracy(epoch))


def best_epoch(lines: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The line of the best epoch among the lines of metrics.jsonl; None if no epoch is complete."""
    epochs = [line for line in lines if line["kind"] == "epoch"]
    return next(iter(ranked(epochs, lambda line: float(line["val"]["accuracy"]))), None)


def best_first(checkpoints: Sequence[Path]) -> list[Path]:
    """Checkpoints in the order in which to try them for the best: first those whose manifest cannot be read, since they
    may have been the best; then those of epochs by accuracy; then those from within an epoch. Within the first and the
    last group the newest comes first.

    Args:
      checkpoints: by step.
    """
    manifests = manifest.read_all(checkpoints)
    unread = [path for path in checkpoints if path not in manifests]
    ended = [path for path in checkpoints if "val" in manifests.get(path, {})]
    within = [path for path in checkpoints if path in manifests and path not in ended]
    return [*unread[::-1], *ranked(ended, lambda path: float(manifests[path]["val"]["accuracy"])), *within[::-1]]


def prune(folder: Path, spec: RunSpec) -> None:
    """Removes the checkpoints in a folder that are not to be kept: all but the last `keep_last`, the best, and those of
    the epochs from `save_station` on."""
    found = checkpoint.find(folder)
    manifests = manifest.read_all(found)
    ended = [path for path in found if "val" in manifests.get(path, {})]
    best = ranked(ended, lambda path: float(manifests[path]["val"]["accuracy"]))[:1]
    stations = [path for path in ended if manifests[path]["epoch"] >= spec.save_station]
    checkpoint.prune(folder, {*found[-spec.keep_last :], *best, *stations})
