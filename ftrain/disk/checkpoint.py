"""A state on disk: written durably, read safely.

`checkpoints/step_00001234/` holds state.safetensors (every tensor of the state under its path, such as
`params/conv1.weight`) and manifest.json (the format's version, size and SHA-256 of the tensors' file, and what the
writer adds: epoch, metrics, configuration, classes). A folder of that name is complete: it gets the name only when all
in it is on the disk.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import attrs
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ftrain.disk import durable, sealed, tensorfile
from ftrain.disk.tensorfile import TensorFile
from ftrain.errors import CheckpointError
from ftrain.state import TrainState, keeping_averages
from ftrain.text import shown

FORMAT = 1
TENSORS = "state.safetensors"
MANIFEST = "manifest.json"
READ_AT_ONCE = 2**22  # bytes
EMA = "ema/"

T = TypeVar("T")


class DamagedError(CheckpointError):
    """A checkpoint whose files are not as they were written."""


@attrs.frozen(eq=False)
class Snapshot:
    """A state copied to the host, which later steps do not change.

    Attributes:
      tensors: by their paths in the state, contiguous, on the CPU.
      copied: when the copies will have been made; None if they are.
    """

    step: int
    tensors: dict[str, Tensor]
    copied: torch.cuda.Event | None

    @classmethod
    def of(cls, state: TrainState, step: int) -> Snapshot:
        """A snapshot of a state that has taken `step` steps. From a GPU it is copied in the order of the device's work,
        for which nobody waits here."""
        cuda = state.step.device.type == "cuda"
        tensors = {}
        for path, tensor in named(state).items():
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=cuda)
            tensors[path] = host.copy_(tensor, non_blocking=cuda)
        return cls(step, tensors, torch.cuda.current_stream(state.step.device).record_event() if cuda else None)


@attrs.frozen(eq=False)
class Loaded:
    """A state that was read, its manifest, and the damaged checkpoints that were tried before it, with causes."""

    state: TrainState
    manifest: dict[str, Any]
    folder: Path
    damaged: dict[Path, str]


@attrs.frozen(eq=False)
class LoadedNetwork:
    """A network that was read: its tensors, the step of its state, and the damaged checkpoints that were tried before
    it, with causes."""

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    step: int
    folder: Path
    damaged: dict[Path, str]


def save(folder: Path, state: TrainState | Snapshot, manifest: Mapping[str, Any]) -> Path:
    """Writes a checkpoint, and returns its folder. If there is one of the same state, only its notes are replaced.

    Args:
      folder: holds the checkpoints; made if need be.
      state: on any device.
      manifest: what to note beside it, as JSON values.

    Raises:
      OSError: with the path, and the bytes that were needed if there was no room. Nothing is left of it then.
    """
    snapshot = Snapshot.of(state, int(state.step)) if isinstance(state, TrainState) else state
    if snapshot.copied is not None:
        snapshot.copied.synchronize()
    target = folder_of(folder, snapshot.step)
    parts = tensorfile.parts(snapshot.tensors)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    file = {"bytes": sum(len(part) for part in parts), "sha256": digest.hexdigest()}
    notes = sealed.dump({"format": FORMAT, "step": snapshot.step, "files": {TENSORS: file}, **manifest})
    if target.is_dir():
        try:
            same = read_manifest(target)["files"] == {TENSORS: file}
        except CheckpointError:
            same = False
        if same:
            durable.write_file(target / MANIFEST, notes)
            return target
        set_aside(target)
    with durable.new_folder(target) as partial:
        durable.write(partial / TENSORS, parts)
        durable.write(partial / MANIFEST, [notes])
    return target


def load(folder: Path, template: TrainState) -> TrainState:
    """The state in a checkpoint's folder.

    Args:
      template: a state of the same network and optimizer, such as `init_state` gives: the names, shapes, dtypes and
        devices to expect. They are compared before anything is allocated. The checkpoint may have averages, or none,
        whether or not the template has.

    Raises:
      CheckpointError: for a file that is missing, damaged (`DamagedError`), or holds other tensors.
    """
    with _open(folder) as found:
        kinds = found.kinds()
        template = keeping_averages(template, any(name.startswith(EMA) for name in kinds))
        expected = named(template)
        _check_kinds(folder, expected, kinds)
        leaves = [_laid_out_as(tensor, found.read(name)) for name, tensor in expected.items()]
    state: TrainState = pytree.tree_unflatten(leaves, pytree.tree_structure(template))
    return state


def load_network(
    folder: Path, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers of the network in a checkpoint's folder, or their averages if it has any. No optimizer
    state is read.

    Args:
      params, buffers: tensors of the same network, as templates: the names, shapes, dtypes and devices to expect.

    Raises:
      CheckpointError: if a file is missing, damaged (`DamagedError`), or holds another network.
    """

    def read(found: TensorFile, tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
        averaged = {name for name in tensors if f"{EMA}{name}" in found.kinds()}
        return {
            name: _laid_out_as(tensor, found.read(f"{EMA if name in averaged else part}{name}"))
            for name, tensor in tensors.items()
        }

    with _open(folder) as found:
        expected = {
            **{f"params/{name}": t for name, t in params.items()},
            **{f"buffers/{n}": t for n, t in buffers.items()},
        }
        network = {name: kind for name, kind in found.kinds().items() if name.startswith(("params/", "buffers/"))}
        _check_kinds(folder, expected, network)
        return read(found, params, "params/"), read(found, buffers, "buffers/")


@contextmanager
def _open(folder: Path) -> Iterator[TensorFile]:
    """The tensors of a checkpoint, after their checksum was compared."""
    expected = read_manifest(folder)["files"][TENSORS]
    path = folder / TENSORS
    try:
        with open(path, "rb") as file:
            _check_content(file, path, expected)
            yield TensorFile(file)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _check_kinds(folder: Path, expected: Mapping[str, Tensor], found: Mapping[str, str]) -> None:
    if problems := _differences(expected, found):
        raise CheckpointError(
            f"{shown(folder / TENSORS)} is of a different network or optimizer: {'; '.join(problems[:3])}. A new run can "
            "start from this network: ftrain export RUN --format safetensors, then ftrain fit --weights FILE"
        )


def load_first(found: Sequence[Path], template: TrainState) -> Loaded:
    """The first of some checkpoints, at least one, that is not damaged.

    Raises:
      CheckpointError: if all are damaged, or the first that is not is of another network.
    """
    (state, manifest), path, damaged = _first(found, lambda path: (load(path, template), read_manifest(path)))
    return Loaded(state, manifest, path, damaged)


def load_network_first(
    found: Sequence[Path], params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> LoadedNetwork:
    """The network in the first of some checkpoints, at least one, that is not damaged; arguments as for `load_network`.

    Raises:
      CheckpointError: if all are damaged, or the first that is not is of another network.
    """
    tensors, path, damaged = _first(found, lambda path: load_network(path, params, buffers))
    return LoadedNetwork(*tensors, step_of(path), path, damaged)


def _first(found: Sequence[Path], read: Callable[[Path], T]) -> tuple[T, Path, dict[Path, str]]:
    damaged: dict[Path, str] = {}
    for path in found:
        try:
            return read(path), path, damaged
        except DamagedError as error:
            damaged[path] = str(error)
    raise CheckpointError(
        f"none of the {len(found)} checkpoints in {shown(found[0].parent)} can be read: {'; '.join(damaged.values())}. "
        "Put back a copy of one, or begin a new run"
    )


def set_aside(path: Path) -> Path:
    """Renames a checkpoint that cannot be gone on from, so that its step can be saved again; returns the new name."""
    number = 1
    while (target := path.with_name(f"set_aside_{path.name}{f'.{number}' if number > 1 else ''}")).exists():
        number += 1
    durable.rename(path, target)
    return target


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a checkpoint's manifest says.

    Raises:
      DamagedError: if there is none that can be read.
      CheckpointError: if it is of another version of the format.
    """
    path = folder / MANIFEST
    try:
        manifest = sealed.read(path)
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{shown(folder)} has format {manifest['format']!r}; this ftrain reads format {FORMAT}"
            )
        noted = manifest["files"]
        if set(noted) != {TENSORS}:
            raise ValueError(f"it names other files than {TENSORS}")
        if not (isinstance(noted[TENSORS]["bytes"], int) and noted[TENSORS]["bytes"] >= 0):
            raise ValueError(f"it says no size of {TENSORS}")
        if manifest["step"] != int(folder.name.removeprefix("step_")):
            raise ValueError(f"it is of step {manifest['step']!r}")
        if "val" in manifest:
            float(manifest["val"]["accuracy"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return manifest


def _damaged(path: Path, error: Exception) -> Exception:
    """What an error of reading says of a file: that it is damaged, unless it is not the file's fault, as for want of
    the right to read it, or of memory."""
    theirs = (errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
    if isinstance(error, OSError) and error.errno not in theirs:
        return error
    return DamagedError(f"{shown(path)} cannot be read: {shown(str(error))}")


def folder_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint."""
    return int(folder.name.removeprefix("step_"))


def find(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, by step."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=step_of)


def manifests(found: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """What the manifests of checkpoints say; those that cannot be read are left out."""
    read = {}
    for path in found:
        with suppress(CheckpointError):
            read[path] = read_manifest(path)
    return read


def prune(folder: Path, keep: set[Path]) -> None:
    """Removes the checkpoints that are not in `keep`."""
    for path in find(folder):
        if path not in keep:
            durable.remove_folder(path)


def named(state: TrainState) -> dict[str, Tensor]:
    """The tensors of a state by their paths in it, such as `params/conv1.weight`."""
    leaves, _ = pytree.tree_flatten_with_path(state)
    return {"/".join(_name(entry) for entry in path): leaf for path, leaf in leaves}


def _name(entry: Any) -> str:
    if isinstance(entry, pytree.GetAttrKey):
        return entry.name
    return str(entry.key if isinstance(entry, pytree.MappingKey) else entry.idx)


def _laid_out_as(template: Tensor, tensor: Tensor) -> Tensor:
    """A tensor where the template is, and in memory as it is, since kernels and so last bits depend on that."""
    if tensor.stride() == template.stride():
        return tensor.to(template.device)
    return torch.empty_like(template).copy_(tensor)


def _check_content(file: BinaryIO, path: Path, noted: Mapping[str, Any]) -> None:
    digest = hashlib.sha256()
    left = noted["bytes"] + 1  # no further, however large the file is
    while part := file.read(min(left, READ_AT_ONCE)):
        digest.update(part)
        left -= len(part)
    if left != 1 or digest.hexdigest() != noted.get("sha256"):
        raise DamagedError(f"{shown(path)} is damaged: its bytes are not those that {MANIFEST} notes")


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, str]) -> list[str]:
    wanted = {name: tensorfile.kind(tensor) for name, tensor in expected.items()}
    pairs = [(name, wanted.get(name, "nothing"), found.get(name, "nothing")) for name in sorted({*wanted, *found})]
    return [f"{shown(name)}: expected {wanted}, found {got}" for name, wanted, got in pairs if wanted != got]
