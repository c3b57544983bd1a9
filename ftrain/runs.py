"""The folder of a run: config.json, classes.json, metrics.jsonl, curves.png and checkpoints/."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from ftrain import checkpoint
from ftrain.errors import SettingsError
from ftrain.settings import Settings, from_mapping

CONFIG = "config.json"
CLASSES = "classes.json"
METRICS = "metrics.jsonl"


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


def create(folder: Path, settings: Settings, classes: Sequence[str], facts: Mapping[str, Any]) -> Run:
    """Makes a run's folder.

    Args:
      facts: what config.json says beside the settings: versions, device, command line, fingerprints of the data.

    Raises:
      SettingsError: if the folder is there and not empty.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise SettingsError(f"{folder} is not empty; give another folder as --out, or go on with --resume {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    config = {"settings": attrs.asdict(settings), **facts}
    checkpoint.write_file(folder / CLASSES, json.dumps(list(classes), indent=1).encode())
    checkpoint.write_file(folder / CONFIG, json.dumps(config, indent=1).encode())
    return Run(folder, settings, tuple(classes), config)


def open_run(folder: Path) -> Run:
    """The run in a folder.

    Raises:
      SettingsError: if there is none that can be read.
    """
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        classes = tuple(json.loads((folder / CLASSES).read_bytes()))
        settings = Settings(**from_mapping(config["settings"], source=str(folder / CONFIG)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{folder} is not the folder of a run: {error}") from error
    return Run(folder, settings, classes, config)


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
