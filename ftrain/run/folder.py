"""The folder of a run: config.json, classes.json, metrics.jsonl, curves.png and checkpoints/."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from ftrain.disk import checkpoint, durable, manifest, sealed
from ftrain.disk.lock import LOCK, locked
from ftrain.errors import CheckpointError, SettingsError
from ftrain.run.settings import Settings, as_before, from_mapping
from ftrain.run.spec import RunSpec
from ftrain.text import shown

if TYPE_CHECKING:
    from ftrain.models import WeightsReport  # would import torchvision

CONFIG = "config.json"
CLASSES = "classes.json"
METRICS = "metrics.jsonl"
REQUIRED = ("settings", "asked", "command", "device", "versions", "data", "classes")


@attrs.frozen
class RunFolder:
    """A run's folder and what its config.json says.

    Attributes:
      damage: which file could not be read, and what replaces it.
    """

    path: Path
    config: dict[str, Any]
    damage: str | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        return tuple(self.config["classes"])

    @property
    def split(self) -> Mapping[str, Any] | None:
        """What is recorded of the split of the images into training and validation images, if it was automatic."""
        split: Mapping[str, Any] | None = self.config["data"].get("split")
        return split

    @property
    def settings(self) -> Settings:
        """The settings of the run, all decided."""
        return as_before(Settings(**from_mapping(self.config["settings"], source=CONFIG)))

    @property
    def spec(self) -> RunSpec:
        """The spec of the run."""
        train = self.config["data"]["train"]
        counts = train["classes"]
        return RunSpec.of(
            self.settings,
            classes=self.classes,
            class_counts=tuple(int(counts[name]["images"]) for name in self.classes),
            train_examples=int(train["images"]),
            compile_because=str(self.config.get("kernels", {}).get("compile_because", "")),
        )


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Locks a run's folder, which is made if necessary, against other processes.

    Raises:
      SettingsError: if it is not a folder.
      BusyError: if another process has locked it.
      OSError: if it cannot be made or written.
    """
    _check_is_folder(folder)
    with locked(folder):
        checkpoints = folder / "checkpoints"
        for place in (folder, checkpoints, *checkpoint.find(checkpoints)):
            if place.is_dir():
                durable.sweep(place)
        yield


def is_started(folder: Path) -> bool:
    """Whether the folder has anything of a run that could be resumed."""
    return (folder / CONFIG).exists() or bool(checkpoint.find(folder / "checkpoints"))


def check_free(folder: Path) -> None:
    """Raises SettingsError unless a new run can use this folder: it does not exist, or is empty."""
    _check_is_folder(folder)
    if folder.is_dir() and any(path.name != LOCK and not _is_empty_checkpoints(path) for path in folder.iterdir()):
        raise SettingsError(
            f"{shown(folder)} is not empty; choose another folder as `out`, or resume the run with "
            f"`resume={shown(folder)}`"
        )


def _is_empty_checkpoints(path: Path) -> bool:
    """A run that was killed early leaves this."""
    return path.name == "checkpoints" and path.is_dir() and not any(path.iterdir())


def _check_is_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"`out` must be a folder; {shown(folder)} is a file")


def write(run: RunFolder) -> None:
    """Writes config.json and classes.json into the run's folder, which is made if necessary."""
    durable.make_folder(run.checkpoints)
    durable.write_file(run.path / CONFIG, sealed.dump(run.config))  # first, because it makes the folder a run's
    durable.write_file(run.path / CLASSES, json.dumps(list(run.classes), indent=1).encode())


def read(folder: Path) -> RunFolder:
    """The run in a folder. If config.json is damaged, the copy in the newest intact checkpoint replaces it.

    Raises:
      SettingsError: if the folder is not a run's.
      CheckpointError: if neither can be read.
    """
    if not is_started(folder):
        raise SettingsError(f"{shown(folder)} is not the folder of a run: it has no {CONFIG}")
    try:
        return _checked(folder, sealed.read(folder / CONFIG))
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        damage = f"cannot read {shown(folder / CONFIG)}: {_cause(error)}"
    for path in reversed(checkpoint.find(folder / "checkpoints")):
        try:
            run = _checked(folder, manifest.read(path)["config"])
        except (CheckpointError, ValueError, KeyError, TypeError):
            continue
        return attrs.evolve(run, damage=f"{damage}; using the copy in {path.name}")
    raise CheckpointError(f"{damage}, and no checkpoint has a copy of it. Start a new run")


def _checked(folder: Path, config: dict[str, Any]) -> RunFolder:
    if missing := [name for name in REQUIRED if name not in config]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for split in ("train", "val"):
        for name in ("from", "images", "fingerprint", "classes"):
            config["data"][split][name]
        dict(config["data"][split]["classes"])
    if not (isinstance(config["asked"], dict) and isinstance(config["settings"], dict)):
        raise TypeError(f"the settings in {CONFIG} are not a table")
    if not all(isinstance(text, str) for text in (*config["command"], *config["classes"])):
        raise TypeError(f"the command or the classes in {CONFIG} are not strings")
    run = RunFolder(folder, config)
    _ = run.settings  # raises if a setting is unknown or out of range
    return run


def _cause(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else shown(str(error))


def write_weights_report(run: RunFolder, report: WeightsReport) -> None:
    """Writes weights.json: which tensors of the pretrained weights were loaded and skipped, and which parameters are at
    their random initialisation."""
    durable.write_file(run.path / "weights.json", json.dumps(attrs.asdict(report), indent=1).encode())


def append_metrics(run: RunFolder, lines: Sequence[Mapping[str, Any]]) -> None:
    """Appends lines to metrics.jsonl."""
    if lines:
        durable.append(run.path / METRICS, _as_lines(lines))


def read_metrics(run: RunFolder) -> tuple[list[dict[str, Any]], int]:
    """The lines of metrics.jsonl (none if there is no such file), and the number of lines that cannot be read. A last
    line that was cut off while it was written counts as neither."""
    try:
        data = (run.path / METRICS).read_bytes()
    except FileNotFoundError:
        return [], 0
    *texts, _ = data.split(b"\n")
    found = [_line(text) for text in texts]
    lines = [line for line in found if line is not None]
    return lines, len(found) - len(lines)


def metrics_seal(run: RunFolder) -> dict[str, Any]:
    """The current size and SHA-256 of metrics.jsonl, which a checkpoint records."""
    data = (run.path / METRICS).read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def rewind_metrics(run: RunFolder, seal: tuple[int, str] | None, step: int) -> str | None:
    """Removes the lines of metrics.jsonl that a run which resumes at a step will write again.

    Args:
      seal: size and SHA-256 of the file when the step's checkpoint was written; None for a new run.

    Returns:
      What is wrong with the file, if anything is. A copy is then in metrics.jsonl.damaged, and the lines up to the step
      that can be read are kept.
    """
    path = run.path / METRICS
    if seal is None:
        durable.write_file(path, b"")
        return None
    data = path.read_bytes() if path.exists() else b""
    size, digest = seal
    kept = data[:size]
    if hashlib.sha256(kept).hexdigest() == digest:
        durable.write_file(path, kept)
        return None
    durable.write_file(run.path / f"{METRICS}.damaged", data)
    lines, unreadable = read_metrics(run)
    durable.write_file(path, _as_lines([line for line in lines if line["step"] <= step]))
    return f"{METRICS} has been damaged: {unreadable} of its lines cannot be read; a copy of it is in {METRICS}.damaged"


def check_not_lost(run: RunFolder) -> None:
    """Raises CheckpointError if the run must have had checkpoints and has none."""
    epochs = [line for line in read_metrics(run)[0] if line["kind"] == "epoch"]
    # The first is written while the second epoch is under way; it was committed before the third line.
    if len(epochs) > 2 or ((run.path / CONFIG).exists() and not run.checkpoints.is_dir()):
        raise CheckpointError(
            f"the checkpoints of {shown(run.path)} are missing; put them back, or start a new run in another folder"
        )


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
