"""Malicious files are refused in bounded memory, and no code in them is run."""

import ast
import contextlib
import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
from ftrain_cli.main import app
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import network, train
from typer.testing import CliRunner

import ftrain
from ftrain import models
from ftrain.disk import checkpoint, manifest, sealed
from ftrain.disk.snapshot import named
from ftrain.errors import CheckpointError
from ftrain.run import folder as run_folder

MOST_MEMORY = 100_000  # kB that a refusal may use


@contextlib.contextmanager
def little_memory():
    """Fails if the memory of the process grows much, if the system reports it."""
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc(5)

    def now(name):
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    before = now("VmRSS")
    yield
    assert now("VmHWM") - before < MOST_MEMORY


def test_memory_use_is_detected():
    with pytest.raises(AssertionError), little_memory():
        bytes(bytearray(2 * MOST_MEMORY * 1024))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The checkpoint of a tiny run."""
    run = tmp_path_factory.mktemp("runs") / "run"
    train(run, epochs=1, checkpoint_every=None)
    return checkpoint.find(run / "checkpoints")[-1]


@pytest.fixture(scope="module")
def template():
    _, params, buffers = ftrain.functionalize(network("", classes=2, image_size=8, seed=1))
    return ftrain.init_state(params, buffers, ftrain.adamw(0.01), seed=0)


def write(target, data, **changes):
    """A checkpoint with these bytes and a matching manifest."""
    target.mkdir(exist_ok=True)
    (target / "state.safetensors").write_bytes(data)
    files = {"state.safetensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    (target / "manifest.json").write_bytes(sealed.dump({"format": 1, "step": 4, "files": files, **changes}))
    return target


def packed(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin, end, dtype="U8", shape=None):
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


MANY = b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % n for n in range(1_000_000)) + b"}"
FILES = {
    "nothing": b"",
    "half a length": b"\x10\x00",
    "header too short": packed(b"{", length=1),
    "header of no bytes": packed(b""),
    "header longer than the file": packed(b"{}", length=1000),
    "header of 2^63 bytes": packed(b"{}", length=2**63),
    "header of 2^64 - 1 bytes": packed(b"{}", length=2**64 - 1),
    "header that is no JSON": packed(b"\x80\x04K\x01."),
    "header that is not UTF-8": packed(b'{"\xff\xfe": 1}'),
    "header nested too deep": packed(b'{"a":' + b"[" * 500_000),
    "header that is a list": packed([]),
    "entry that is a number": packed({"step": 7}),
    "entry without a shape": packed({"step": {"dtype": "I64", "data_offsets": [0, 8]}}, bytes(8)),
    "overlapping": packed({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "holed": packed({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
    "trailing": packed({"a": entry(0, 4)}, bytes(12)),
    "beyond the end": packed({"a": entry(0, 400)}, bytes(12)),
    "backwards": packed({"a": {"dtype": "U8", "shape": [4], "data_offsets": [8, 4]}}, bytes(12)),
    "negative": packed({"a": {"dtype": "U8", "shape": [-4], "data_offsets": [0, 4]}}, bytes(4)),
    "shape that overflows": packed({"a": entry(0, 4, "F32", [2**62, 8])}, bytes(4)),
    "shape of terabytes": packed({"a": entry(0, 4, "F32", [10**12])}, bytes(4)),
    "unknown dtype": packed({"a": entry(0, 4, "PICKLE", [4])}, bytes(4)),
    "wrong dtype": packed({"step": entry(0, 8, "F64", [])}, bytes(8)),
    "a million tensors": packed(MANY),
    "a pickle": pickle.dumps({"step": 7}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_malicious_checkpoint_is_refused(name, tmp_path, template):
    target = write(tmp_path / "step_00000004", FILES[name])
    with little_memory(), pytest.raises(CheckpointError, match="state.safetensors") as caught:
        checkpoint.load(target, template)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", FILES)
def test_malicious_weights_are_refused(name, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(FILES[name])
    module = network("", classes=2, image_size=8, seed=1)
    refusal = ValueError if name == "wrong dtype" else CheckpointError  # a tensor that fits nowhere, in a good file
    with little_memory(), pytest.raises(refusal):
        models.load_weights(module, tmp_path / "weights.safetensors", name="resnet18")


def mutated(data, changes):
    data = bytearray(data)
    for place, kind, value in changes:
        at = place % (len(data) + 1)
        if kind == "set":
            data[at : at + 1] = bytes([value])
        elif kind == "insert":
            data[at:at] = bytes([value])
        elif kind == "delete":
            del data[at : at + value]
        else:
            data[at : at + 8] = (value << 56 | value).to_bytes(8, "little")
    return bytes(data)


# Most near the beginning, where the header is.
PLACES = st.one_of(st.integers(0, 8), st.integers(0, 2000), st.integers(0, 2**20))
CHANGES = st.lists(
    st.tuples(PLACES, st.sampled_from(["set", "insert", "delete", "overwrite"]), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)
BY_THE_THOUSAND = settings(
    max_examples=2000,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@given(changes=CHANGES)
@BY_THE_THOUSAND
def test_changed_tensors_are_refused_or_have_the_expected_shapes(folder, tmp_path, template, changes):
    data = mutated((folder / "state.safetensors").read_bytes(), changes)
    target = write(tmp_path / "step_00000004", data)
    try:
        state = checkpoint.load(target, template)
    except CheckpointError:
        return
    ours, theirs = named(state), named(template)
    assert {name: (t.dtype, t.shape) for name, t in ours.items()} == {n: (t.dtype, t.shape) for n, t in theirs.items()}


@given(changes=CHANGES)
@BY_THE_THOUSAND
def test_a_changed_manifest_is_refused(folder, tmp_path, changes):
    original = (folder / "manifest.json").read_bytes()
    data = mutated(original, changes)
    target = tmp_path / folder.name
    target.mkdir(exist_ok=True)
    (target / "manifest.json").write_bytes(data)
    try:
        found = manifest.read(target)
    except CheckpointError:
        return
    assert found == manifest.read(folder)  # only white space was changed


@pytest.mark.parametrize(
    "files",
    [
        {"../../../etc/passwd": {"bytes": 1, "sha256": "0"}},
        {"state.safetensors": {"bytes": 1, "sha256": "0"}, "../state.safetensors": {"bytes": 1, "sha256": "0"}},
        {"state.safetensors": {"bytes": -5, "sha256": "0"}},
        {"state.safetensors": {"bytes": 2**70, "sha256": 7}},
        {"state.safetensors": {"bytes": "1", "sha256": "0"}},
        ["state.safetensors"],
        7,
    ],
)
def test_a_manifest_with_other_files_or_without_a_size_is_refused(tmp_path, template, files):
    target = write(tmp_path / "step_00000004", b"x", files=files)
    with pytest.raises(CheckpointError):
        checkpoint.load(target, template)


@pytest.mark.parametrize("text", [b"[" * 10**6, b'{"a":' * 10**5, b'{"step": 1' + b"0" * 5000 + b"}", b" " * 2**27])
def test_a_malicious_document_is_refused(tmp_path, text):
    target = write(tmp_path / "step_00000004", b"")
    (target / "manifest.json").write_bytes(text)
    with little_memory(), pytest.raises(CheckpointError, match=r"^cannot read .*manifest\.json: "):
        manifest.read(target)


def test_a_link_to_another_file_is_refused(folder, tmp_path, template):
    """The content that it points to is refused like any other."""
    target = write(tmp_path / "step_00000004", b"")
    (target / "state.safetensors").unlink()
    (target / "state.safetensors").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(target, template)


# --- pickles


class Harm:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return open, (str(self.proof), "w")


def zipped(content, name="archive/data.pkl", compression=zipfile.ZIP_STORED):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive:
        archive.writestr(name, content)
        archive.writestr("archive/version", "3")
    return data.getvalue()


def pickles(proof):
    plain = pickle.dumps(Harm(proof))
    return {
        "plain": plain,
        "zipped": zipped(plain),
        "zipped twice": zipped(zipped(plain)),
        "twice in one file": pickle.dumps({}) + plain,
        "old": pickle.dumps(Harm(proof), protocol=0),
        "named as an archive of code": zipped(plain, name="archive/code/harm.py"),
    }


@pytest.mark.parametrize("name", pickles(""))
@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "safetensors"])
def test_a_pickle_is_never_run(name, suffix, tmp_path):
    proof, path = tmp_path / "proof", tmp_path / f"weights.{suffix}"
    path.write_bytes(pickles(proof)[name])
    with pytest.raises((CheckpointError, ValueError)):
        models.load_weights(network("", classes=2, image_size=8, seed=1), path, name="resnet18")
    assert not proof.exists()


def test_the_pickles_would_do_harm(tmp_path):
    proof = tmp_path / "proof"
    pickle.loads(pickles(proof)["plain"]).close()
    assert proof.exists()


def test_a_zip_bomb_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(zipped(bytes(10**8), name="archive/data/0", compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match="it unpacks to 100000001 bytes"):
        models.load_weights(network("", classes=2, image_size=8, seed=1), path, name="resnet18")


def test_a_refused_file_of_weights_ends_the_command_with_65(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickles(tmp_path / "proof")["plain"])
    arguments = ["fit", "--model", "shufflenet_v2_x0_5", "--weights", str(path), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*arguments, "--epochs", "1", "--device", "cpu", "--workers", "0"])
    assert result.exit_code == 65, result.output
    assert (
        f"cannot load {path}: it is damaged, or holds more than tensors, such as code, which is never run"
        in result.output
    )
    assert not (tmp_path / "proof").exists()
    assert not (tmp_path / "run").exists()


# --- names


def test_names_of_classes_are_data(tmp_path):
    """They are not used as paths, and cannot control a terminal."""
    names = ("../../harm", "\x1b[2J\x1b]0;harm\x07", "/etc/passwd")
    settings = {"image_size": 8, "lr": 0.1}
    config = {
        "settings": settings,
        "asked": {},
        "command": [],
        "device": "",
        "versions": {},
        "data": {},
        "classes": names,
    }
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes(sealed.dump({**config, "data": DATA, "command": ["ftrain", "\x1b[31m"]}))
    run = run_folder.read(folder)
    assert run.classes == names
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["info", str(folder)])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "\\x1b[31m" in result.output
    assert sorted(tmp_path.rglob("*")) == before


DATA = {split: {"from": "\x1b]0;harm\x07", "images": 1, "fingerprint": "", "classes": {}} for split in ("train", "val")}


@pytest.mark.parametrize("path", sorted(Path(ftrain.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_no_part_of_ftrain_unpickles(path):
    tree = ast.parse(path.read_text())
    imported = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle"} & set(imported)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load"):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("weights_only") == "True" or given.get("allow_pickle") == "False", ast.unparse(node)
