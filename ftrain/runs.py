"""The folder of a run: config.json, classes.json, metrics.jsonl, curves.png and checkpoints/."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from ftrain import checkpoint
from ftrain.errors import SettingsError, shown
from ftrain.settings import Settings, from_mapping

if TYPE_CHECKING:
    from ftrain.models import WeightsReport  # which would import torchvision

CONFIG = "config.json"
CLASSES = "classes.json"
METRICS = "metrics.jsonl"
FACTS = ("command", "device", "versions", "data")


@attrs.frozen
class Run:
    """What a run's folder says about it."""

    folder: Path
    settings: Settings
    classes: tuple[str, ...]
    config: dict[str, Any]

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def check_free(folder: Path) -> None:
    """Raises SettingsError unless a run can have this folder: it is not there, or empty."""
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out takes a folder; {shown(folder)} is a file")
    if folder.is_dir() and any(folder.iterdir()):
        raise SettingsError(
            f"{shown(folder)} is not empty; give another folder as --out, or go on with --resume {shown(folder)}"
        )


def write(run: Run) -> None:
    """Writes config.json and classes.json into the run's folder, which is made if need be."""
    run.folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_file(run.folder / CLASSES, json.dumps(list(run.classes), indent=1).encode())
    checkpoint.write_file(run.folder / CONFIG, json.dumps(run.config, indent=1).encode())


def open_run(folder: Path) -> Run:
    """The run in a folder.

    Raises:
      SettingsError: if there is none that can be read.
    """
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        classes = tuple(json.loads((folder / CLASSES).read_bytes()))
        missing = [name for name in ("settings", *FACTS) if name not in config]
        if missing:
            raise ValueError(f"{CONFIG} does not say its {', '.join(missing)}")
        settings = Settings(**from_mapping(dict(config["settings"]), source=CONFIG))
    except (OSError, ValueError, KeyError, TypeError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"{shown(folder)} is not the folder of a run: {cause}") from error
    return Run(folder, settings, classes, config)


def write_weights_report(run: Run, report: WeightsReport) -> None:
    """Writes weights.json: what was loaded, skipped, and left at random."""
    checkpoint.write_file(run.folder / "weights.json", json.dumps(attrs.asdict(report), indent=1).encode())


def append_metrics(run: Run, lines: Sequence[Mapping[str, Any]]) -> None:
    """Adds lines to metrics.jsonl."""
    with open(run.folder / METRICS, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none if there is no such file. A last line that was cut off is left out."""
    try:
        text = (run.folder / METRICS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def forget_metrics_after(run: Run, step: int) -> None:
    """Takes the lines of later steps out of metrics.jsonl, because they are about to be taken again."""
    kept = [line for line in read_metrics(run) if line["step"] <= step]
    data = "".join(json.dumps(line) + "\n" for line in kept).encode()
    checkpoint.write_file(run.folder / METRICS, data)
