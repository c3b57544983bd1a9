"""Checkpoints: training states on disk, written durably and read safely.

`checkpoints/step_00001234/` holds state.safetensors, with every tensor of the state under its path such as
`params/conv1.weight`, and manifest.json. A folder gets this name only when everything in it is on the disk, so a folder
with this name is complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import attrs
import torch
from torch import Tensor

from ftrain.disk import durable, manifest, tensorfile
from ftrain.disk.manifest import MANIFEST, TENSORS, DamagedError
from ftrain.disk.snapshot import Snapshot, named
from ftrain.disk.tensorfile import TensorFile
from ftrain.errors import CheckpointError
from ftrain.state import TrainState, keeping_averages
from ftrain.text import shown
from ftrain.torch_private import pytree

CHUNK = 2**22  # bytes that are read and hashed at a time
PARAMS, BUFFERS, EMA = "params/", "buffers/", "ema/"

T = TypeVar("T")
Template = Callable[[Collection[str]], TrainState]


@attrs.frozen(eq=False)
class Loaded:
    """A state from a checkpoint, with the checkpoint's manifest and folder.

    Attributes:
      damaged: the damaged checkpoints that were tried before it, and why each cannot be read.
    """

    state: TrainState
    manifest: dict[str, Any]
    folder: Path
    damaged: dict[Path, str]


@attrs.frozen(eq=False)
class LoadedNetwork:
    """A network from a checkpoint, with the checkpoint's step and folder.

    Attributes:
      damaged: the damaged checkpoints that were tried before it, and why each cannot be read.
    """

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    step: int
    folder: Path
    damaged: dict[Path, str]


def save(folder: Path, state: TrainState | Snapshot, additions: Mapping[str, Any]) -> Path:
    """Writes a checkpoint and returns its folder. If one with the same tensors exists, only its manifest is replaced.

    Args:
      folder: contains the checkpoints; it is made if necessary.
      state: on any device.
      additions: what to add to the manifest, as JSON values.

    Raises:
      OSError: with the path, and the number of bytes needed if there is no room. Nothing of the checkpoint is left.

    >>> import ftrain, tempfile
    >>> state = ftrain.init_state({"w": torch.ones(3)}, {}, ftrain.adamw(0.1), seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     saved = save(Path(folder), state, {"epoch": 1})
    ...     saved.name, find(Path(folder)) == [saved], load(saved, template=state).params["w"].tolist()
    ('step_00000000', True, [1.0, 1.0, 1.0])
    """
    snapshot = Snapshot.of(state, int(state.step)) if isinstance(state, TrainState) else state
    snapshot.wait()
    target = folder_of(folder, snapshot.step)
    parts = tensorfile.parts(snapshot.tensors)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    file = {"bytes": sum(len(part) for part in parts), "sha256": digest.hexdigest()}
    document = manifest.dump(snapshot.step, file, additions)
    if target.is_dir():
        try:
            same = manifest.read(target)["files"] == {TENSORS: file}
        except CheckpointError:
            same = False
        if same:
            durable.write_file(target / MANIFEST, document)
            return target
        quarantine(target)
    with durable.new_folder(target) as partial:
        durable.write(partial / TENSORS, parts)
        durable.write(partial / MANIFEST, [document])
    return target


def load(folder: Path, template: TrainState | Template) -> TrainState:
    """The state in a checkpoint's folder.

    Args:
      template: a state of the same network and optimizer, such as `init_state` returns: the names, shapes, dtypes and
        devices to expect, which are compared before anything is allocated. Whether it has averages does not matter:
        the result has them if the checkpoint does. Or a function from the names of the parameters that the checkpoint
        has to such a state.

    Raises:
      CheckpointError: if a file is missing or damaged (`DamagedError`), or belongs to a different network or optimizer.
    """
    with _open(folder) as file:
        found = file.signatures()
        trained = [name.removeprefix(PARAMS) for name in found if name.startswith(PARAMS)]
        template = template if isinstance(template, TrainState) else template(trained)
        template = keeping_averages(template, any(name.startswith(EMA) for name in found))
        expected = named(template)
        _check_signatures(folder, expected, found, "network or optimizer")
        leaves = [_laid_out_as(tensor, file.read(name)) for name, tensor in expected.items()]
    state: TrainState = pytree.tree_unflatten(leaves, pytree.tree_structure(template))
    return state


def load_network(
    folder: Path, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers of the network in a checkpoint's folder, or their averages where it has them. No optimizer
    state is read.

    Args:
      params, buffers: tensors of the same network, as templates: the names, shapes, dtypes and devices to expect. Which
        parameters were trained, and which lay among the buffers, does not matter.

    Raises:
      CheckpointError: if a file is missing or damaged (`DamagedError`), or belongs to a different network.
    """
    with _open(folder) as file:
        found = file.signatures()
        trained = {name for name in found if name.startswith(PARAMS)}
        tensors = {**params, **buffers}
        paths = {n: f"{PARAMS}{n}" if f"{PARAMS}{n}" in trained else f"{BUFFERS}{n}" for n in tensors}
        expected = {paths[name]: tensor for name, tensor in tensors.items()}
        network = {name: each for name, each in found.items() if name.startswith((PARAMS, BUFFERS))}
        _check_signatures(folder, expected, network, "network")

        def read(templates: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: _laid_out_as(tensor, file.read(f"{EMA}{name}" if f"{EMA}{name}" in found else paths[name]))
                for name, tensor in templates.items()
            }

        return read(params), read(buffers)


def load_first(folders: Sequence[Path], template: TrainState | Template) -> Loaded:
    """The first of one or more checkpoints that is not damaged; `template` as for `load`.

    Raises:
      CheckpointError: if all are damaged, or the first intact one belongs to a different network or optimizer.
    """
    (state, document), path, damaged = _first(folders, lambda path: (load(path, template), manifest.read(path)))
    return Loaded(state, document, path, damaged)


def load_network_first(
    folders: Sequence[Path], params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> LoadedNetwork:
    """The network in the first of one or more checkpoints that is not damaged; arguments as for `load_network`.

    Raises:
      CheckpointError: if all are damaged, or the first intact one belongs to a different network.
    """
    tensors, path, damaged = _first(folders, lambda path: load_network(path, params, buffers))
    return LoadedNetwork(*tensors, step_of(path), path, damaged)


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


def prune(folder: Path, keep: set[Path]) -> None:
    """Removes the checkpoints that are not in `keep`."""
    for path in find(folder):
        if path not in keep:
            durable.remove_folder(path)


def quarantine(path: Path) -> Path:
    """Renames a checkpoint that cannot be resumed from, so that its step can be saved again; returns the new path."""
    number = 1
    while (target := path.with_name(f"quarantined_{path.name}{f'.{number}' if number > 1 else ''}")).exists():
        number += 1
    durable.rename(path, target)
    return target


@contextmanager
def _open(folder: Path) -> Iterator[TensorFile]:
    """The file of tensors of a checkpoint, after a check of its size and SHA-256."""
    expected = manifest.read(folder)["files"][TENSORS]
    path = folder / TENSORS
    try:
        with open(path, "rb") as file:
            _check_content(file, path, expected)
            yield TensorFile(file)
    except (OSError, ValueError) as error:
        raise manifest.reading_error(path, error) from error


def _check_content(file: BinaryIO, path: Path, expected: Mapping[str, Any]) -> None:
    digest = hashlib.sha256()
    left = expected["bytes"] + 1  # no more, however large the file is
    while part := file.read(min(left, CHUNK)):
        digest.update(part)
        left -= len(part)
    if left != 1 or digest.hexdigest() != expected.get("sha256"):
        raise DamagedError(f"{shown(path)} is damaged: its size or checksum differs from the one in {MANIFEST}")


def _check_signatures(folder: Path, expected: Mapping[str, Tensor], found: Mapping[str, str], owner: str) -> None:
    wanted = {name: tensorfile.signature(tensor) for name, tensor in expected.items()}
    differences = [
        f"{shown(name)}: expected {wanted.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
        for name in sorted({*wanted, *found})
        if wanted.get(name) != found.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"{shown(folder / TENSORS)} belongs to a different {owner}: {'; '.join(differences[:3])}. To start a new "
            "run from this network, export it (`ftrain export`) and pass the file as `weights`"
        )


def _first(folders: Sequence[Path], read: Callable[[Path], T]) -> tuple[T, Path, dict[Path, str]]:
    damaged: dict[Path, str] = {}
    for path in folders:
        try:
            return read(path), path, damaged
        except DamagedError as error:
            damaged[path] = str(error)
    raise CheckpointError(
        f"none of the {len(folders)} checkpoints in {shown(folders[0].parent)} can be read: "
        f"{'; '.join(damaged.values())}. Restore one from a copy, or start a new run"
    )


def _laid_out_as(template: Tensor, tensor: Tensor) -> Tensor:
    """A tensor on the device of the template and with its strides, on which kernels and so the last bits depend."""
    if tensor.stride() == template.stride():
        return tensor.to(template.device)
    return torch.empty_like(template).copy_(tensor)
