"""Whatever happens to a run, the same command goes on from its last whole checkpoint, and ends with the same bits."""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kill_runs import Calls, watching
from tiny_runs import STEPS, images, result, settings, tiny_network, train

from ftrain import checkpoint, durable, loop, provenance, runs
from ftrain.errors import CheckpointError


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_run_that_is_killed_anywhere_ends_as_if_it_had_not_been(tmp_path, capsys):
    script = Path(__file__).with_name("kill_runs.py")
    command = [sys.executable, str(script), str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    with capsys.disabled():
        print(f"\n{done.stdout.splitlines()[-1]}")
    assert re.fullmatch(r"\d+ places and \d+ moments tried, 0 missed, 0 lost\n", done.stdout), done.stdout + done.stderr
    assert done.returncode == 0


# --- power loss: what was not flushed is gone, or half there


class File:
    def __init__(self):
        self.data, self.flushed = b"", b""


class Folder:
    def __init__(self):
        self.entries, self.flushed = {}, {}


class Disk:
    """A disk that does what `durable` did, call by call, and knows what of it is flushed."""

    def __init__(self):
        self.root = Folder()

    def at(self, path):
        node = self.root
        for name in path.parts:
            node = node.entries[name]
        return node

    def do(self, call, path, *rest):
        parent = self.at(path.parent) if path.parts else self.root
        if call == "mkdir":
            parent.entries[path.name] = Folder()
        elif call == "create":
            parent.entries[path.name] = File()
        elif call == "write":
            self.at(path).data += rest[0]
        elif call == "fsync":
            node = self.at(path)
            node.flushed = node.data if isinstance(node, File) else dict(node.entries)
        elif call == "rename":
            parent.entries[rest[0].name] = parent.entries.pop(path.name)
        elif call == "rmtree":
            del parent.entries[path.name]
        else:
            raise AssertionError(call)

    def after_loss(self, names, content):
        """The files by path, and the folders as None, once power was lost.

        Args:
          names: whether un-flushed names are "kept" or "lost".
          content: what is left of un-flushed bytes: "kept", "lost", "half" or "zeros".
        """
        found = {}

        def walk(folder, path):
            for name, node in (folder.entries if names == "kept" else folder.flushed).items():
                if isinstance(node, Folder):
                    found[path / name] = None
                    walk(node, path / name)
                else:
                    new = node.data[len(node.flushed) :]
                    left = {"kept": new, "lost": b"", "half": new[: len(new) // 2], "zeros": bytes(len(new))}
                    found[path / name] = node.flushed + left[content]

        walk(self.root, Path())
        return found


def recorded(root, folder):
    """The calls of an undisturbed run, their paths relative to `root`."""
    calls, opened = [], {}

    def at_call(name, function, *arguments):
        value = function(*arguments)
        if name in ("write", "fsync"):
            path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}")).relative_to(root)
            if path not in opened and (root / path).is_file():
                opened[path] = True
                calls.append(("create", path))
            data = [bytes(arguments[1][:value])] if name == "write" else []
            calls.append((name, path, *data))
        elif name == "rename":
            source, target = (Path(path).relative_to(root) for path in arguments)
            opened.pop(source, None)
            opened[target] = True
            calls.append((name, source, target))
        else:
            calls.append((name, Path(arguments[0]).relative_to(root)))
        return value

    with watching(at_call):
        train(folder)
    return calls


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the names of open files in /proc")
def test_a_run_whose_machine_loses_power_anywhere_ends_as_if_it_had_not(undisturbed, tmp_path):
    root = tmp_path.resolve() / "recorded"
    root.mkdir()
    disk, tried, expected = Disk(), {}, result(undisturbed)
    for call in [("fsync", Path()), *recorded(root, root / "run")]:
        disk.do(*call)
        for names in ("kept", "lost"):
            for content in ("kept", "lost", "half", "zeros"):
                left = disk.after_loss(names, content)
                tried.setdefault(hashlib.sha256(repr(sorted(left.items())).encode()).hexdigest(), (call, left))
    assert len(tried) > 150
    lost = []
    for number, (call, left) in enumerate(tried.values()):
        base = tmp_path / str(number)
        base.mkdir()
        for path, content in left.items():
            if content is None:
                (base / path).mkdir()
            else:
                (base / path).write_bytes(content)
        train(base / "run")
        if result(base / "run") != expected:
            lost.append(call[:2])
        shutil.rmtree(base)
    assert lost == []


# --- damage


def copied(folder, target):
    shutil.copytree(folder, target)
    return target


def committed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


COMMITTED = [
    "checkpoints/step_00000004/manifest.json",
    "checkpoints/step_00000004/state.safetensors",
    "checkpoints/step_00000006/manifest.json",
    "checkpoints/step_00000006/state.safetensors",
    "checkpoints/step_00000008/manifest.json",
    "checkpoints/step_00000008/state.safetensors",
    "classes.json",
    "config.json",
    "metrics.jsonl",
]


def test_what_a_run_commits(undisturbed):
    assert committed(undisturbed) == COMMITTED


@pytest.mark.parametrize("name", COMMITTED)
@pytest.mark.parametrize("how", ["empty", "cut", "first", "middle", "last", "gone"])
def test_a_run_with_a_damaged_file_ends_as_if_it_were_whole(undisturbed, tmp_path, name, how):
    folder = copied(undisturbed, tmp_path / "run")
    data = bytearray((folder / name).read_bytes())
    place = {"first": 0, "middle": len(data) // 2, "last": len(data) - 2}
    if how == "gone":
        (folder / name).unlink()
    elif how in place:
        data[place[how]] ^= 4
        (folder / name).write_bytes(data)
    else:
        (folder / name).write_bytes(b"" if how == "empty" else data[: len(data) // 2])
    said = [event.cause for event in train(folder) if isinstance(event, loop.Damaged)]
    last = checkpoint.find(folder / "checkpoints")[-1]
    assert last.name == "step_00000008"
    assert (last / "state.safetensors").read_bytes() == (undisturbed / COMMITTED[5]).read_bytes()
    if "step_00000008" in name:
        assert len(said) == 1
        assert "step_00000008" in said[0] and "it is kept as set_aside_step_00000008" in said[0]
        assert (folder / "checkpoints" / "set_aside_step_00000008").is_dir()
    if name != "metrics.jsonl":
        assert result(folder) == result(undisturbed)


@pytest.mark.parametrize("offset", range(0, 2600, 97))
def test_a_bit_that_flips_in_the_newest_manifest_or_the_settings_is_found(undisturbed, tmp_path, offset):
    folder = copied(undisturbed, tmp_path / "run")
    for name in ("checkpoints/step_00000008/manifest.json", "config.json"):
        data = bytearray((folder / name).read_bytes())
        data[offset % len(data)] ^= 1
        (folder / name).write_bytes(data)
    train(folder)
    assert result(folder) == result(undisturbed)


def test_settings_are_taken_from_a_checkpoint_if_their_file_is_damaged(undisturbed, tmp_path):
    folder = copied(undisturbed, tmp_path / "run")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"lr": 0.01', '"lr": 0.02'))
    opened = runs.open_run(folder)
    assert opened.settings.lr == 0.01
    assert opened.damage == (
        f"{folder}/config.json cannot be read: it is not what was written: its seal does not fit; what step_00000008 "
        "notes of it is used"
    )


def test_a_run_of_which_all_checkpoints_are_damaged_does_not_begin_anew(undisturbed, tmp_path):
    folder = copied(undisturbed, tmp_path / "run")
    for path in checkpoint.find(folder / "checkpoints"):
        (path / "state.safetensors").write_bytes(b"")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    message = "none of the 3 checkpoints in .* can be read: .*step_00000008.* is damaged"
    with pytest.raises(CheckpointError, match=message):
        train(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_line_of_metrics_that_cannot_be_read_is_said_and_kept(undisturbed, tmp_path):
    folder = copied(undisturbed, tmp_path / "run")
    data = (folder / "metrics.jsonl").read_bytes()
    first = data.index(b"\n")
    damaged = b"\x00" * first + data[first:]
    (folder / "metrics.jsonl").write_bytes(damaged)
    said = [event.cause for event in train(folder) if isinstance(event, loop.Damaged)]
    assert said == ["1 lines of metrics.jsonl cannot be read; they are kept in metrics.jsonl.damaged"]
    assert (folder / "metrics.jsonl.damaged").read_bytes() == damaged
    assert (folder / "metrics.jsonl").read_bytes() == data[first + 1 :]


def test_order_comes_from_step_numbers_and_not_from_clocks(undisturbed, tmp_path):
    folder = copied(undisturbed, tmp_path / "run")
    for age, path in enumerate(checkpoint.find(folder / "checkpoints")):
        for file in (path, *path.iterdir()):
            os.utime(file, (10**9 - age, 10**9 - age))  # the newest step looks oldest
    assert [type(event) for event in train(folder)] == [loop.Started]
    assert result(folder) == result(undisturbed)


# --- a full disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_disk_that_fills_up_anywhere_ends_the_run_with_the_checkpoints_before_whole(undisturbed, tmp_path, number):
    calls = 0

    def count(name, function, *arguments):
        nonlocal calls
        calls += name == "write"
        return function(*arguments)

    with watching(count):
        train(tmp_path / "counted")
    expected = result(undisturbed)
    for full_at in range(0, calls, 7):
        writes = 0

        def fill(name, function, *arguments, full_at=full_at):
            nonlocal writes
            if name == "write":
                writes += 1
                if writes == full_at + 1:
                    function(arguments[0], arguments[1][:1])
                if writes > full_at:
                    raise OSError(number, os.strerror(number))
            return function(*arguments)

        folder = tmp_path / str(full_at)
        with watching(fill), pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
            train(folder)
        assert re.search("; [0-9.]+ (bytes|kB) are needed$", caught.value.strerror)
        assert caught.value.filename.startswith(str(folder))
        assert ".partial" not in caught.value.filename
        assert [path for path in folder.rglob("*") if durable.is_leftover(path)] == []
        train(folder)
        assert result(folder) == expected


def test_an_error_while_saving_in_the_background_ends_the_run(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    run, batches = provenance.new_run(settings(), images(), tmp_path / "run", ["ftrain"]), images()
    monkeypatch.setattr(checkpoint, "save", full)
    with tiny_network(), runs.hold(run.folder), pytest.raises(OSError, match="No space left"):
        list(loop.fit(run, batches))
    assert checkpoint.find(run.checkpoints) == []


def test_one_save_is_in_flight_at_a_time_and_none_is_lost(tmp_path, monkeypatch):
    save, running, most = checkpoint.save, 0, 0

    def watched(*arguments):
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return save(*arguments)
        finally:
            running -= 1

    monkeypatch.setattr(checkpoint, "save", watched)
    train(tmp_path / "run", checkpoint_every=1, keep_last=100)
    assert most == 1
    assert [path.name for path in checkpoint.find(tmp_path / "run" / "checkpoints")] == [
        f"step_{step:08d}" for step in range(1, STEPS + 1)
    ]


def test_calls_stands_for_the_os_module():
    """What the fault tests rest on."""
    seen = []
    calls = Calls(lambda name, function, *arguments: seen.append(name) or function(*arguments))
    calls.mkdir  # noqa: B018
    assert calls.getpid() == os.getpid()
    assert seen == []
