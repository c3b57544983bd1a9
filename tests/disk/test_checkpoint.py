from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ftrain import optim
from ftrain.disk import checkpoint, durable, manifest, sealed
from ftrain.disk.tensorfile import TensorFile
from ftrain.errors import CheckpointError
from ftrain.state import TrainState, init_state, keeping_averages

NAMES_OF_CHAIN = {
    "step",
    "key",
    "params/head.weight",
    "params/head.bias",
    "buffers/norm.mean",
    "buffers/norm.count",
    "opt_state/1/exp_avg/head.weight",
    "opt_state/1/exp_avg/head.bias",
    "opt_state/1/exp_avg_sq/head.weight",
    "opt_state/1/exp_avg_sq/head.bias",
}


def state(step: int = 7, fill: float = 0.5, optimizer: optim.Optimizer | None = None) -> TrainState:
    """A small state whose optimizer state is a tuple of an empty dict and a dict of dicts."""
    generator = torch.Generator().manual_seed(0)
    params = {
        "head.weight": torch.randn(3, 4, generator=generator),
        "head.bias": torch.full((3,), fill),
    }
    buffers = {"norm.mean": torch.randn(3, generator=generator), "norm.count": torch.tensor(5)}
    with_state = optim.Transform(lambda params: {}, lambda grads, state, params, step: (grads, state))
    optimizer = optimizer or optim.chain(with_state, optim.adamw(0.1))
    initial = init_state(params, buffers, optimizer, seed=2**40 + 3)
    params, opt_state = optimizer.update(params, initial.opt_state, params, initial.step)
    return attrs.evolve(initial, step=torch.tensor(step), params=params, opt_state=opt_state)


def blank(like: TrainState) -> TrainState:
    return pytree.tree_map(torch.zeros_like, like)


def assert_bitwise_equal(found: TrainState, expected: TrainState) -> None:
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for ours, theirs in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.contiguous().flatten().view(torch.uint8).tolist() == (
            theirs.contiguous().flatten().view(torch.uint8).tolist()
        )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def damage(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def forge(folder: Path, **changes: Any) -> None:
    """Changes a manifest, with a valid checksum."""
    document = {**sealed.read(folder / "manifest.json"), **changes}
    (folder / "manifest.json").write_bytes(sealed.dump(document))


def error_of(folder: Path, template: TrainState) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder, template)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    saved = state()
    folder = checkpoint.save(tmp_path, saved, {})
    loaded = checkpoint.load(folder, blank(saved))
    assert isinstance(loaded, TrainState)
    assert isinstance(loaded.opt_state, tuple)
    assert loaded.step.item() == 7
    assert loaded.key.tolist() == [256, 3]
    assert_bitwise_equal(loaded, saved)


@pytest.mark.parametrize(
    "optimizer",
    [
        optim.sgd(0.1),
        optim.sgd(0.1, momentum=0.9),
        optim.adam(0.1),
        optim.adagrad(0.1),
        optim.chain(optim.clip_by_global_norm(1.0), optim.sgd(0.1)),
        optim.chain(optim.Transform(lambda params: {"first": params}, lambda g, s, p, t: (g, s)), optim.adamw(0.1)),
    ],
)
def test_every_optimizer_state_comes_back(tmp_path: Path, optimizer: optim.Optimizer) -> None:
    saved = state(optimizer=optimizer)
    assert_bitwise_equal(checkpoint.load(checkpoint.save(tmp_path, saved, {}), blank(saved)), saved)


def test_every_dtype_and_shape_comes_back(tmp_path: Path) -> None:
    odd = {
        "uint8": torch.tensor([0, 1, 255], dtype=torch.uint8),
        "int8": torch.tensor([-128, 127], dtype=torch.int8),
        "int16": torch.tensor([-(2**15)], dtype=torch.int16),
        "int32": torch.tensor([2**31 - 1], dtype=torch.int32),
        "int64": torch.tensor(-(2**63)),
        "uint32": torch.tensor([2**32 - 1], dtype=torch.uint32),
        "bool": torch.tensor([True, False]),
        "bfloat16": torch.tensor([1.0, -0.0, float("nan"), 3e38], dtype=torch.bfloat16),
        "float16": torch.tensor([6e-8, float("inf")], dtype=torch.float16),
        "float64": torch.tensor([5e-324, 1 / 3], dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "a/b.c d-é": torch.tensor(1.0),
    }
    saved = attrs.evolve(state(), buffers=odd)
    loaded = checkpoint.load(checkpoint.save(tmp_path, saved, {}), blank(saved))
    assert_bitwise_equal(loaded, saved)
    assert loaded.buffers["transposed"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_parameters_that_share_memory_are_each_saved(tmp_path: Path) -> None:
    saved = state()
    both = torch.arange(4.0)
    saved = attrs.evolve(saved, buffers={"left": both, "right": both, "half": both[2:]})
    loaded = checkpoint.load(checkpoint.save(tmp_path, saved, {}), blank(saved))
    assert_bitwise_equal(loaded, saved)


def test_layout_on_disk(tmp_path: Path) -> None:
    folder = checkpoint.save(
        tmp_path / "deep" / "checkpoints", state(step=1234), {"epoch": 3, "metrics": {"loss": 0.5}}
    )
    assert folder == tmp_path / "deep" / "checkpoints" / "step_00001234"
    assert files(folder) == ["manifest.json", "state.safetensors"]
    data = (folder / "state.safetensors").read_bytes()
    document = json.loads((folder / "manifest.json").read_text())
    assert len(document.pop("seal")) == 64
    assert document == {
        "format": 1,
        "step": 1234,
        "files": {"state.safetensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
        "epoch": 3,
        "metrics": {"loss": 0.5},
    }
    assert manifest.read(folder)["epoch"] == 3
    assert set(safetensors.torch.load(data)) == NAMES_OF_CHAIN


def test_saving_changes_nothing(tmp_path: Path) -> None:
    saved = state()
    copy = pytree.tree_map(torch.clone, saved)
    checkpoint.save(tmp_path, saved, {})
    assert_bitwise_equal(saved, copy)


def test_loading_changes_neither_template_nor_files(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, state(), {})
    template = blank(state())
    before = {path: path.read_bytes() for path in folder.iterdir()}
    loaded = checkpoint.load(folder, template)
    for leaf in pytree.tree_leaves(loaded):
        leaf.fill_(1)
    assert all(not leaf.any() for leaf in pytree.tree_leaves(template))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_saving_the_same_state_again_replaces_its_manifest(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, state(), {"epoch": 1})
    tensors = (folder / "state.safetensors").stat()
    assert checkpoint.save(tmp_path, state(), {"epoch": 2}) == folder
    assert manifest.read(folder)["epoch"] == 2
    assert (folder / "state.safetensors").stat().st_ino == tensors.st_ino
    assert_bitwise_equal(checkpoint.load(folder, blank(state())), state())
    assert files(tmp_path) == ["step_00000007", "step_00000007/manifest.json", "step_00000007/state.safetensors"]


@pytest.mark.parametrize("earlier", ["another state", "damaged"])
def test_saving_over_a_different_state_quarantines_it(tmp_path: Path, earlier: str) -> None:
    folder = checkpoint.save(tmp_path, state(fill=0.5), {"epoch": 1})
    if earlier == "damaged":
        damage(folder / "manifest.json", 30)
    assert checkpoint.save(tmp_path, state(fill=1.0), {"epoch": 2}) == folder
    assert manifest.read(folder)["epoch"] == 2
    assert_bitwise_equal(checkpoint.load(folder, blank(state())), state(fill=1.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quarantined_step_00000007", "step_00000007"]
    assert checkpoint.find(tmp_path) == [folder]


@pytest.mark.parametrize("offset", [0, 3, 8, 20, -1, -100])
def test_a_damaged_byte_is_found(tmp_path: Path, offset: int) -> None:
    folder = checkpoint.save(tmp_path, state(), {})
    path = folder / "state.safetensors"
    damage(path, offset)
    assert error_of(folder, state()) == f"{path} is damaged: its size or checksum differs from the one in manifest.json"


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file_is_found(tmp_path: Path, length: int) -> None:
    folder = checkpoint.save(tmp_path, state(), {})
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    assert error_of(folder, state()) == f"{path} is damaged: its size or checksum differs from the one in manifest.json"


def test_a_file_in_another_format_is_found(tmp_path: Path) -> None:
    """Even if the manifest matches it."""
    folder = checkpoint.save(tmp_path, state(), {})
    path, data = folder / "state.safetensors", b"\xff" * 64
    path.write_bytes(data)
    forge(folder, files={path.name: {"bytes": 64, "sha256": hashlib.sha256(data).hexdigest()}})
    assert error_of(folder, state()).startswith(f"cannot read {path}: ")


def test_missing_tensors_are_found(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, state(), {})
    (folder / "state.safetensors").unlink()
    assert error_of(folder, state()).startswith(f"cannot read {folder / 'state.safetensors'}: ")


def test_a_missing_manifest_or_folder_is_found(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, state(), {})
    (folder / "manifest.json").unlink()
    assert error_of(folder, state()).startswith(f"cannot read {folder / 'manifest.json'}: ")
    assert error_of(tmp_path / "nowhere", state()).startswith(
        f"cannot read {tmp_path / 'nowhere' / 'manifest.json'}: No such file or directory"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"format"', "{}", "\xff"])
def test_an_invalid_manifest_is_found(tmp_path: Path, text: str) -> None:
    folder = checkpoint.save(tmp_path, state(), {})
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    assert error_of(folder, state()).startswith(f"cannot read {folder / 'manifest.json'}: ")


@pytest.mark.parametrize("entry", [{}, None, {"state.safetensors": {}}, {"state.safetensors": None}, []])
def test_a_manifest_without_checksums_is_found(tmp_path: Path, entry: Any) -> None:
    folder = checkpoint.save(tmp_path, state(), {})
    forge(folder, files=entry)
    assert f"cannot read {folder / 'manifest.json'}: " in error_of(folder, state())


def test_another_version_of_the_format_is_refused(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, state(), {})
    forge(folder, format=2)
    assert error_of(folder, state()) == f"{folder} has format 2; this version of ftrain reads format 1"


def changed(template: TrainState, name: str, tensor: Tensor | None) -> TrainState:
    params = {key: value for key, value in template.params.items() if key != name}
    return attrs.evolve(template, params=params if tensor is None else params | {name: tensor})


@pytest.mark.parametrize(
    ("name", "tensor", "difference"),
    [
        ("head.bias", torch.zeros(5), "params/head.bias: expected float32 [5], found float32 [3]"),
        ("head.bias", torch.zeros(3, dtype=torch.float64), "params/head.bias: expected float64 [3], found float32 [3]"),
        ("head.bias", None, "params/head.bias: expected nothing, found float32 [3]"),
        ("tail.bias", torch.zeros(()), "params/tail.bias: expected float32 [], found nothing"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, name: str, tensor: Tensor | None, difference: str) -> None:
    folder = checkpoint.save(tmp_path, state(), {})
    message = error_of(folder, changed(state(), name, tensor))
    assert message == (
        f"{folder / 'state.safetensors'} belongs to a different network or optimizer: {difference}. To start a new run "
        "from this network, export it (`ftrain export`) and pass the file as `weights`"
    )


def test_another_optimizer_is_refused_with_the_first_differences(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, state(optimizer=optim.sgd(0.1, momentum=0.9)), {})
    expected = (
        "opt_state/exp_avg/head.bias: expected float32 [3], found nothing; "
        "opt_state/exp_avg/head.weight: expected float32 [3, 4], found nothing; "
        "opt_state/exp_avg_sq/head.bias: expected float32 [3], found nothing."
    )
    assert expected in error_of(folder, state(optimizer=optim.adam(0.1)))


@pytest.mark.parametrize("saved_with", [False, True])
@pytest.mark.parametrize("template_with", [False, True])
def test_averages_are_loaded_if_the_checkpoint_has_them(tmp_path: Path, saved_with: bool, template_with: bool) -> None:
    saved = keeping_averages(state(), saved_with)
    folder = checkpoint.save(tmp_path, saved, {})
    assert_bitwise_equal(checkpoint.load(folder, keeping_averages(blank(saved), template_with)), saved)


def test_clipping_does_not_change_the_tensors_of_a_checkpoint(tmp_path: Path) -> None:
    saved = state(optimizer=optim.adamw(0.1))
    clipped = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(0.1))
    assert_bitwise_equal(checkpoint.load(checkpoint.save(tmp_path, saved, {}), state(optimizer=clipped)), saved)


def network_of(like: TrainState) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    template = blank(like)
    return template.params, template.buffers


@pytest.fixture
def names_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records the names of the tensors that are read."""
    names: list[str] = []
    read = TensorFile.read

    def recorded(file: TensorFile, name: str) -> Tensor:
        names.append(name)
        return read(file, name)

    monkeypatch.setattr(TensorFile, "read", recorded)
    return names


def test_loading_a_network_reads_no_optimizer_state(tmp_path: Path, names_read: list[str]) -> None:
    saved = state()
    params, buffers = checkpoint.load_network(checkpoint.save(tmp_path, saved, {}), *network_of(saved))
    assert names_read == ["params/head.weight", "params/head.bias", "buffers/norm.mean", "buffers/norm.count"]
    assert_bitwise_equal(attrs.evolve(saved, params=params, buffers=buffers), saved)


def test_loading_a_network_prefers_averages(tmp_path: Path, names_read: list[str]) -> None:
    """A buffer of integers has none."""
    saved = keeping_averages(state(), True)
    saved = attrs.evolve(saved, ema={name: average + 1 for name, average in saved.ema.items()})
    params, buffers = checkpoint.load_network(checkpoint.save(tmp_path, saved, {}), *network_of(saved))
    assert names_read == ["ema/head.weight", "ema/head.bias", "ema/norm.mean", "buffers/norm.count"]
    expected = {**saved.ema, "norm.count": torch.tensor(5)}
    assert {name: tensor.tolist() for name, tensor in {**params, **buffers}.items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }


def test_loading_a_network_compares_the_network_alone(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, state(optimizer=optim.sgd(0.1, momentum=0.9)), {})
    params, buffers = network_of(state(optimizer=optim.adam(0.1)))
    checkpoint.load_network(folder, params, buffers)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_network(folder, {**params, "head.bias": torch.zeros(5)}, buffers)
    assert str(caught.value) == (
        f"{folder / 'state.safetensors'} belongs to a different network: params/head.bias: expected float32 [5], found "
        "float32 [3]. To start a new run from this network, export it (`ftrain export`) and pass the file as `weights`"
    )


def test_the_first_intact_network_is_loaded(tmp_path: Path) -> None:
    folders = [checkpoint.save(tmp_path, state(step=step, fill=float(step)), {}) for step in (1, 2, 3)]
    damage(folders[2] / "state.safetensors", -1)
    loaded = checkpoint.load_network_first(folders[::-1], *network_of(state()))
    assert (loaded.step, loaded.folder) == (2, folders[1])
    expected = state(step=2, fill=2.0).params
    assert {n: t.tolist() for n, t in loaded.params.items()} == {n: t.tolist() for n, t in expected.items()}
    assert loaded.damaged == {
        folders[
            2
        ]: f"{folders[2]}/state.safetensors is damaged: its size or checksum differs from the one in manifest.json"
    }


# --- failures


class FailError(Exception):
    pass


@pytest.mark.parametrize("where", ["write", "fsync", "manifest", "sync", "rename"])
def test_a_save_that_fails_leaves_nothing(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise FailError

    earlier = checkpoint.save(tmp_path, state(step=1), {})
    before = files(tmp_path)
    additions: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        if where == "manifest":
            patch.setattr(sealed, "dump", fail)
        elif where == "sync":
            patch.setattr(durable, "sync", fail)
        else:
            patch.setattr(os, where, fail)
        with pytest.raises(FailError):
            checkpoint.save(tmp_path, state(step=2), additions)
    assert files(tmp_path) == before
    assert checkpoint.find(tmp_path) == [earlier]
    assert checkpoint.save(tmp_path, state(step=2), additions).name == "step_00000002"


def test_a_save_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a save."""

    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, state(), {})
    assert files(tmp_path) == []


def test_leftovers_of_a_killed_save_are_not_a_checkpoint(tmp_path: Path) -> None:
    left = tmp_path / f".step_00000007.{os.getpid()}.partial"
    left.mkdir()
    (left / "state.safetensors").write_bytes(b"half")
    assert checkpoint.find(tmp_path) == []
    saved = state()
    folder = checkpoint.save(tmp_path, saved, {})
    assert checkpoint.find(tmp_path) == [folder]
    assert not left.exists()
    assert_bitwise_equal(checkpoint.load(folder, blank(saved)), saved)


def test_find_goes_by_step(tmp_path: Path) -> None:
    assert checkpoint.find(tmp_path / "nowhere") == []
    for step in (30, 4, 200):
        checkpoint.save(tmp_path, state(step=step), {})
    (tmp_path / ".step_00000001.99.partial").mkdir()
    (tmp_path / "step_notes.txt").write_text("a file")
    assert [path.name for path in checkpoint.find(tmp_path)] == ["step_00000004", "step_00000030", "step_00000200"]


def test_find_goes_by_step_beyond_eight_digits(tmp_path: Path) -> None:
    for step in (10**8, 99_999_999):
        checkpoint.save(tmp_path, state(step=step), {})
    assert [path.name for path in checkpoint.find(tmp_path)] == ["step_99999999", "step_100000000"]


def test_prune_keeps_the_given_checkpoints(tmp_path: Path) -> None:
    folders = [checkpoint.save(tmp_path, state(step=step), {}) for step in (1, 2, 3, 4)]
    (tmp_path / "notes.txt").write_text("stays")
    checkpoint.prune(tmp_path, {folders[1], folders[3]})
    assert checkpoint.find(tmp_path) == [folders[1], folders[3]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "step_00000002", "step_00000004"]
    checkpoint.prune(tmp_path, set(folders))
    assert checkpoint.find(tmp_path) == [folders[1], folders[3]]
    checkpoint.load(folders[3], blank(state()))


def test_an_interrupted_prune_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between the renaming and the removal, it leaves no folder that looks like a checkpoint."""
    folder = checkpoint.save(tmp_path, state(), {})

    def fail(path: Path, **options: Any) -> None:
        if path.exists():
            raise FailError

    with monkeypatch.context() as patch:
        patch.setattr(durable.shutil, "rmtree", fail)
        with pytest.raises(FailError):
            checkpoint.prune(tmp_path, set())
    assert checkpoint.find(tmp_path) == []
    assert checkpoint.save(tmp_path, state(), {}) == folder
    checkpoint.prune(tmp_path, set())
    assert checkpoint.find(tmp_path) == []
