"""The manifest of a checkpoint: version of the format, size and SHA-256 of the file of tensors, and what a run adds:
epoch, metrics, configuration, classes."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ftrain.disk import sealed
from ftrain.errors import CheckpointError
from ftrain.text import shown

FORMAT = 1
TENSORS = "state.safetensors"
MANIFEST = "manifest.json"
_DAMAGE = (errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)


class DamagedError(CheckpointError):
    """A file of a checkpoint is missing, or differs from what was written."""


def dump(step: int, file: Mapping[str, Any], additions: Mapping[str, Any]) -> bytes:
    """A manifest as the bytes of a file.

    Args:
      file: "bytes" and "sha256" of the file of tensors.
      additions: JSON values by name.
    """
    return sealed.dump({"format": FORMAT, "step": step, "files": {TENSORS: file}, **additions})


def read(folder: Path) -> dict[str, Any]:
    """The manifest in a checkpoint's folder.

    Raises:
      DamagedError: if there is none, or it is damaged.
      CheckpointError: if it has another version of the format.
    """
    path = folder / MANIFEST
    try:
        manifest = sealed.read(path)
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{shown(folder)} has format {manifest['format']!r}; this version of ftrain reads format {FORMAT}"
            )
        files = manifest["files"]
        if set(files) != {TENSORS}:
            raise ValueError(f"it must list {TENSORS} and no other file")
        if not (isinstance(files[TENSORS]["bytes"], int) and files[TENSORS]["bytes"] >= 0):
            raise ValueError(f"it has no valid size of {TENSORS}")
        if manifest["step"] != int(folder.name.removeprefix("step_")):
            raise ValueError(f"it belongs to step {manifest['step']!r}")
        if "val" in manifest:
            float(manifest["val"]["accuracy"])
            for name in ("loss", "macro_accuracy", "map"):
                float(manifest["val"].get(name, 0.0))
        if not all(0.0 <= float(each) <= 1.0 for each in manifest.get("thresholds", ())):
            raise ValueError("its thresholds must be from 0 to 1")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise reading_error(path, error) from error
    return manifest


def read_all(folders: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """The manifests of checkpoints, without those that cannot be read."""
    found = {}
    for folder in folders:
        with suppress(CheckpointError):
            found[folder] = read(folder)
    return found


def reading_error(path: Path, error: Exception) -> Exception:
    """The error to raise when reading a file failed: DamagedError, or the error itself if the file is not to blame, as
    when memory, descriptors or permissions are missing."""
    if isinstance(error, OSError):
        if error.errno not in _DAMAGE:
            return error if error.filename else OSError(error.errno, error.strerror, str(path))
        return DamagedError(f"cannot read {shown(path)}: {error.strerror}")
    if isinstance(error, KeyError):
        return DamagedError(f"cannot read {shown(path)}: it lacks {shown(str(error))}")
    return DamagedError(f"cannot read {shown(path)}: {shown(str(error))}")
