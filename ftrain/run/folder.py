"""The folder of a run: config.json, classes.json, metrics.jsonl, curves.png and checkpoints/."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from ftrain.disk import checkpoint, durable, sealed
from ftrain.disk.lock import LOCK, holding
from ftrain.errors import CheckpointError, SettingsError
from ftrain.run.settings import Settings, from_mapping
from ftrain.text import shown

if TYPE_CHECKING:
    from ftrain.models import WeightsReport  # which would import torchvision

CONFIG = "config.json"
CLASSES = "classes.json"
METRICS = "metrics.jsonl"
FACTS = ("settings", "asked", "command", "device", "versions", "data", "classes")


@attrs.frozen
class Run:
    """What a run's folder says about it.

    Attributes:
      damage: what could not be read, and where it was taken from instead.
    """

    folder: Path
    settings: Settings
    classes: tuple[str, ...]
    config: dict[str, Any]
    damage: str | None = None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Holds a run's folder, which is made if need be, while this process works on it.

    Raises:
      SettingsError: if it is no folder.
      BusyError: if another process holds it.
      OSError: if it cannot be made or written into.
    """
    _check_is_folder(folder)
    with holding(folder):
        checkpoints = folder / "checkpoints"
        for place in (folder, checkpoints, *checkpoint.find(checkpoints)):
            if place.is_dir():
                durable.sweep(place)
        yield


def is_begun(folder: Path) -> bool:
    """Whether a run has written something that it could go on from."""
    return (folder / CONFIG).exists() or bool(checkpoint.find(folder / "checkpoints"))


def check_free(folder: Path) -> None:
    """Raises SettingsError unless a run can have this folder: it is not there, or empty."""
    _check_is_folder(folder)
    if folder.is_dir() and any(path.name != LOCK and not _is_empty(path) for path in folder.iterdir()):
        raise SettingsError(
            f"{shown(folder)} is not empty; give another folder as --out, or go on with --resume {shown(folder)}"
        )


def _is_empty(path: Path) -> bool:
    """Whether it is a folder for checkpoints that a run had made before it was killed."""
    return path.name == "checkpoints" and path.is_dir() and not any(path.iterdir())


def _check_is_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out takes a folder; {shown(folder)} is a file")


def write(run: Run) -> None:
    """Writes config.json and classes.json into the run's folder, which is made if need be."""
    durable.make_folder(run.checkpoints)
    durable.write_file(run.folder / CONFIG, sealed.dump(run.config))  # first, since by it the folder is a run's
    durable.write_file(run.folder / CLASSES, json.dumps(list(run.classes), indent=1).encode())


def open_run(folder: Path) -> Run:
    """The run in a folder. If config.json is damaged, what the newest whole checkpoint notes of it is taken.

    Raises:
      SettingsError: if there is none.
      CheckpointError: if neither can be read.
    """
    if not is_begun(folder):
        raise SettingsError(f"{shown(folder)} is not the folder of a run: there is no {CONFIG}")
    damage = None
    try:
        return _run(folder, sealed.read(folder / CONFIG))
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        damage = f"{shown(folder / CONFIG)} cannot be read: {_cause(error)}"
    for path in reversed(checkpoint.find(folder / "checkpoints")):
        try:
            run = _run(folder, checkpoint.read_manifest(path)["config"])
        except (CheckpointError, ValueError, KeyError, TypeError):
            continue
        return attrs.evolve(run, damage=f"{damage}; what {path.name} notes of it is used")
    raise CheckpointError(f"{damage}, and there is no checkpoint that says it. Begin a new run")


def _run(folder: Path, config: dict[str, Any]) -> Run:
    if missing := [name for name in FACTS if name not in config]:
        raise ValueError(f"{CONFIG} does not say its {', '.join(missing)}")
    for split in ("train", "val"):
        for name in ("from", "images", "fingerprint", "classes"):
            config["data"][split][name]
        dict(config["data"][split]["classes"])
    if not (isinstance(config["asked"], dict) and isinstance(config["settings"], dict)):
        raise TypeError(f"{CONFIG} does not say its settings")
    if not all(isinstance(text, str) for text in (*config["command"], *config["classes"])):
        raise TypeError(f"{CONFIG} does not say command and classes")
    settings = Settings(**from_mapping(dict(config["settings"]), source=CONFIG))
    return Run(folder, settings, tuple(config["classes"]), config)


def _cause(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else shown(str(error))


def write_weights_report(run: Run, report: WeightsReport) -> None:
    """Writes weights.json: what was loaded, skipped, and left at random."""
    durable.write_file(run.folder / "weights.json", json.dumps(attrs.asdict(report), indent=1).encode())


def append_metrics(run: Run, lines: Sequence[Mapping[str, Any]]) -> None:
    """Adds lines to metrics.jsonl."""
    if lines:
        durable.append(run.folder / METRICS, _as_lines(lines))


def read_metrics(run: Run) -> tuple[list[dict[str, Any]], int]:
    """The lines of metrics.jsonl, none if there is no such file; and how many others cannot be read. A last line that
    was cut off while it was written is neither."""
    try:
        data = (run.folder / METRICS).read_bytes()
    except FileNotFoundError:
        return [], 0
    *texts, _ = data.split(b"\n")
    found = [_line(text) for text in texts]
    lines = [line for line in found if line is not None]
    return lines, len(found) - len(lines)


def metrics_file(run: Run) -> dict[str, Any]:
    """What a checkpoint notes of metrics.jsonl as it is now: its size and SHA-256."""
    data = (run.folder / METRICS).read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def rewind_metrics(run: Run, noted: tuple[int, str] | None, step: int) -> str | None:
    """Takes out of metrics.jsonl what is about to be written again by a run that goes on from a step.

    Args:
      noted: size and SHA-256 of the file when the step's checkpoint was written; None where a run begins.

    Returns:
      What is wrong with the file, if anything is. It is in metrics.jsonl.damaged then, and those of its lines that can
      be read are kept, up to the step.
    """
    path = run.folder / METRICS
    if noted is None:
        durable.write_file(path, b"")
        return None
    data = path.read_bytes() if path.exists() else b""
    size, digest = noted
    kept = data[:size]
    if hashlib.sha256(kept).hexdigest() == digest:
        durable.write_file(path, kept)
        return None
    durable.write_file(run.folder / f"{METRICS}.damaged", data)
    lines, unreadable = read_metrics(run)
    durable.write_file(path, _as_lines([line for line in lines if line["step"] <= step]))
    return (
        f"{METRICS} is not what was written, and {unreadable} of its lines cannot be read; it is kept as "
        f"{METRICS}.damaged"
    )


def check_not_lost(run: Run) -> None:
    """Raises CheckpointError for a run that must have had checkpoints and has none."""
    epochs = [line for line in read_metrics(run)[0] if line["kind"] == "epoch"]
    # The first is written while the second epoch goes on; with a third line it had been committed.
    if len(epochs) > 2 or ((run.folder / CONFIG).exists() and not run.checkpoints.is_dir()):
        raise CheckpointError(
            f"the checkpoints of {shown(run.folder)} are gone; put them back, or begin a new run in another folder"
        )


def best_epoch(run: Run) -> tuple[int, float] | None:
    """The epoch with the highest validation accuracy so far, the first of several, and that accuracy."""
    epochs = [(line["epoch"], line["val"]["accuracy"]) for line in read_metrics(run)[0] if line["kind"] == "epoch"]
    return max(epochs, key=lambda pair: pair[1], default=None)


def _as_lines(lines: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    match line:
        case {"kind": "step", "step": int(), "loss": int() | float(), "accuracy": int() | float()}:
            pass
        case {
            "kind": "epoch",
            "step": int(),
            "epoch": int(),
            "train": {"loss": int() | float(), "accuracy": int() | float()},
            "val": {"loss": int() | float(), "accuracy": int() | float()},
        }:
            pass
        case _:
            return None
    known: dict[str, Any] = line
    return known
