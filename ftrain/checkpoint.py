"""A state on disk: written durably, read safely.

`checkpoints/step_00001234/` holds state.safetensors (every tensor of the state under its path, such as
`params/conv1.weight`) and manifest.json (the format's version, size and SHA-256 of the tensors' file, and what the
writer adds: epoch, metrics). A folder of that name is complete: it gets the name only when all in it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ftrain.errors import CheckpointError
from ftrain.state import TrainState

FORMAT = 1
TENSORS = "state.safetensors"
MANIFEST = "manifest.json"


def save(folder: Path, state: TrainState, manifest: Mapping[str, Any]) -> Path:
    """Writes a checkpoint, and returns its folder; if it is there already, nothing is done.

    Args:
      folder: holds the checkpoints; made if need be.
      state: on any device.
      manifest: what to note beside it, as JSON values.
    """
    step = int(state.step)
    target = folder / f"step_{step:08d}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        # Cloned, because tensors that share memory are refused.
        tensors = {path: tensor.cpu().contiguous().clone() for path, tensor in _named(state).items()}
        data = safetensors.torch.save(tensors)
        _write(temporary / TENSORS, data)
        document = {
            "format": FORMAT,
            "step": step,
            "files": {TENSORS: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
            **manifest,
        }
        _write(temporary / MANIFEST, json.dumps(document, indent=1).encode())
        _sync_folder(temporary)
        temporary.rename(target)
        _sync_folder(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def load(folder: Path, template: TrainState) -> TrainState:
    """The state in a checkpoint's folder.

    Args:
      template: a state of the same network and optimizer, such as `init_state` gives: the names, shapes, dtypes and
        devices to expect.

    Raises:
      CheckpointError: for a file that is missing, damaged, or holds other tensors.
    """
    manifest = read_manifest(folder)
    path = folder / TENSORS
    try:
        data = path.read_bytes()
        noted = manifest["files"][TENSORS]
        if len(data) != noted["bytes"] or hashlib.sha256(data).hexdigest() != noted["sha256"]:
            raise CheckpointError(f"{path} is damaged: its bytes are not those that {MANIFEST} notes")
        found = safetensors.torch.load(data)
    except (OSError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    expected = _named(template)
    if problems := _differences(expected, found):
        raise CheckpointError(f"{path} is of another network or optimizer: {'; '.join(problems[:3])}")
    leaves = [found[name].to(tensor.device) for name, tensor in expected.items()]
    state: TrainState = pytree.tree_unflatten(leaves, pytree.tree_structure(template))
    return state


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a checkpoint's manifest says.

    Raises:
      CheckpointError: if there is none that can be read.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read: {error}") from error
    if version != FORMAT:
        raise CheckpointError(f"{folder} has format {version}; this ftrain reads format {FORMAT}")
    return manifest


def find(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, by step."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def best(found: Sequence[Path]) -> Path | None:
    """The checkpoint with the highest validation accuracy, the earliest of several; those from within an epoch have
    none."""
    manifests = {path: read_manifest(path) for path in found}
    judged = [path for path in found if "val" in manifests[path]]
    return max(judged, key=lambda path: float(manifests[path]["val"]["accuracy"]), default=None)


def prune(folder: Path, keep: set[Path]) -> None:
    """Removes the checkpoints that are not in `keep`."""
    for path in find(folder):
        if path not in keep:
            # Renamed first, so that a folder with a checkpoint's name is never half of one.
            doomed = path.with_name(f".{path.name}.removed")
            if doomed.exists():  # left by a process that was stopped here
                shutil.rmtree(doomed)
            path.rename(doomed)
            shutil.rmtree(doomed)


def write_file(path: Path, data: bytes) -> None:
    """Writes a file that is there whole or not at all, also after power is lost."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write(temporary, data)
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _named(state: TrainState) -> dict[str, Tensor]:
    leaves, _ = pytree.tree_flatten_with_path(state)
    return {"/".join(_name(entry) for entry in path): leaf for path, leaf in leaves}


def _name(entry: Any) -> str:
    if isinstance(entry, pytree.GetAttrKey):
        return entry.name
    return str(entry.key if isinstance(entry, pytree.MappingKey) else entry.idx)


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    def kind(tensors: Mapping[str, Tensor], name: str) -> str:
        tensor = tensors.get(name)
        return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

    names = sorted(expected.keys() | found.keys())
    pairs = [(name, kind(expected, name), kind(found, name)) for name in names]
    return [f"{name}: expected {wanted}, found {got}" for name, wanted, got in pairs if wanted != got]


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
