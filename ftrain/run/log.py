"""The metrics of training steps, summed on the device and read a few times a second."""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Mapping
from typing import Any

import torch

from ftrain.data.order import Pace
from ftrain.metrics import Metrics

READ_INTERVAL = 0.5  # seconds between two reads; a read makes the host wait for the device


class Log:
    """Sums the metrics of steps into lines of metrics.jsonl and into epochs.

    Args:
      every: steps per line.
      pace: says which steps end an epoch.
    """

    def __init__(self, every: int, pace: Pace) -> None:
        self.every, self.pace = every, pace
        self.line: list[Metrics] = []  # of the current line
        self.unchecked: list[tuple[int, Metrics]] = []  # steps not yet known to be finite
        self.waiting: list[
            tuple[int, Metrics, float]
        ] = []  # complete lines that have not been read: last step, sums, time
        self.epoch: list[Metrics] = []  # of the epoch, except those in `line`
        self.line_began = self.last_read = time.monotonic()

    def add(self, step: int, metrics: Metrics) -> None:
        """Adds the metrics of a step without reading them."""
        self.line.append(metrics)
        self.unchecked.append((step, metrics))
        if step % self.every == 0 or self.pace.ends_epoch(step):
            total = _total(self.line)
            self.line = []
            self.epoch.append(total)
            self.waiting.append((step, total, time.monotonic()))

    @property
    def due(self) -> bool:
        """Whether the last read was long enough ago."""
        return time.monotonic() - self.last_read > READ_INTERVAL

    def read(self) -> tuple[list[dict[str, Any]], int | None]:
        """The complete lines since the last read, and the first step since then whose loss or gradient was not finite;
        there are no lines from that step on."""
        bad = self._first_nonfinite()
        lines: list[dict[str, Any]] = []
        for step, total, when in self.waiting:
            if bad is not None and step >= bad:
                break
            values = total.compute()
            rate = values["count"] / max(when - self.line_began, 1e-9)
            self.line_began = when
            epoch = self.pace.epoch_of(step)
            lines.append({"kind": "step", "epoch": epoch, "step": step, **values, "images_per_second": round(rate, 2)})
        self.waiting, self.last_read = [], time.monotonic()
        return lines, bad

    def _first_nonfinite(self) -> int | None:
        unchecked, self.unchecked = self.unchecked, []
        if not unchecked:
            return None
        flags = torch.stack([metrics.nonfinite for _, metrics in unchecked]).tolist()
        return next((step for (step, _), flag in zip(unchecked, flags, strict=True) if flag), None)

    def of_epoch(self) -> dict[str, float]:
        """The metrics of the epoch. All its lines must have been read."""
        return _total(self.epoch).compute()

    def end_epoch(self) -> None:
        """Forgets the epoch."""
        self.epoch = []

    def restart_clock(self) -> None:
        """Excludes the time since the last step from the rate of the next line."""
        self.line_began = time.monotonic()

    def save(self) -> dict[str, Any]:
        """What a checkpoint within an epoch records, as JSON values that restore the same bits."""
        return {name: _sums(parts) for name, parts in (("line", self.line), ("epoch", self.epoch))}

    def restore(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Restores what `save` returned."""
        self.line, self.epoch = ([_metrics(saved[name], device)] if saved[name] else [] for name in ("line", "epoch"))


def _total(parts: list[Metrics]) -> Metrics:
    return functools.reduce(operator.add, parts)


def _sums(parts: list[Metrics]) -> dict[str, Any] | None:
    if not parts:
        return None
    return {
        name: {key: sum.item() for key, sum in value.items()} if isinstance(value, dict) else value.item()
        for name, value in vars(_total(parts)).items()
        if name != "examples"  # there are none in training
    }


def _metrics(sums: Mapping[str, Any], device: torch.device) -> Metrics:
    def tensor(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)

    values: dict[str, Any] = {
        name: {key: tensor(sum) for key, sum in value.items()} if isinstance(value, dict) else tensor(value)
        for name, value in sums.items()
    }
    return Metrics(**values)
