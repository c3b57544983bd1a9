"""Files are written completely or not at all, and a full disk is reported with the number of bytes needed."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from ftrain.disk import durable, lock, manifest


class FailError(Exception):
    pass


def fail(*args: Any) -> Any:
    raise FailError


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    durable.write_file(path, b"one")
    durable.write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["config.json"]


@pytest.mark.parametrize("where", ["open", "write", "fsync", "rename"])
def test_a_file_is_replaced_completely_or_not_at_all(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    durable.write_file(path, b"one")
    with monkeypatch.context() as patch:
        patch.setattr(os, where, fail)
        with pytest.raises(FailError):
            durable.write_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["config.json"]


def test_a_partial_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    durable.write_file(tmp_path / "file", b"0123456789")
    durable.append(tmp_path / "file", b"abcdefgh")
    assert (tmp_path / "file").read_bytes() == b"0123456789abcdefgh"


def test_a_folder_gets_its_name_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with durable.new_folder(target) as filling:
        durable.write(filling / "file", [b"one ", memoryview(b"two")])
        assert not target.exists()
    assert names(tmp_path) == ["deep", "deep/folder", "deep/folder/file"]
    assert (target / "file").read_bytes() == b"one two"


def test_a_folder_that_fails_does_not_appear(tmp_path: Path) -> None:
    def fill() -> None:
        with durable.new_folder(tmp_path / "folder") as filling:
            durable.write(filling / "file", [b"one"])
            raise FailError

    with pytest.raises(FailError):
        fill()
    assert names(tmp_path) == []


def test_a_failed_append_leaves_the_file_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"a line\n")
    write = os.write
    written = []

    def full(descriptor: int, data: Any) -> int:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(data)
        return write(descriptor, data[:4])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError) as caught:
        durable.append(path, b"another line\n")
    assert path.read_bytes() == b"a line\n"
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.strerror == "No space left on device; 13 bytes are needed"
    assert caught.value.filename == str(path)


def test_a_full_disk_is_reported_with_the_bytes_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> int:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError) as caught, durable.new_folder(tmp_path / "step_1") as filling:
        durable.write(filling / "state", [b"0" * 1_000_000, b"1" * 500_000])
    assert caught.value.strerror == "File too large; 1.5 MB are needed"
    assert names(tmp_path) == []


def appended(path: Path) -> None:
    durable.append(path / "file", b"more")


def replaced(path: Path) -> None:
    durable.write_file(path / "file", b"more")


def synced(path: Path) -> None:
    durable.sync(path / "file")


def renamed(path: Path) -> None:
    durable.rename(path / "file", path / "other")


def made(path: Path) -> None:
    durable.make_folder(path / "folder")


def locked(path: Path) -> None:
    with lock.locked(path):
        pass


@pytest.mark.parametrize(
    ("action", "call", "name"),
    [
        (appended, "write", "file"),
        (appended, "fsync", "file"),
        (replaced, "write", "file"),
        (replaced, "fsync", "file"),
        (synced, "fsync", "file"),
        (renamed, "fsync", ""),  # the folder
        (made, "fsync", ""),
        (locked, "write", ".lock"),
        (locked, "ftruncate", ".lock"),
    ],
)
@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE])
def test_every_error_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: Any, call: str, name: str, number: int
) -> None:
    """Without a name, the command would take it for an error of a closed terminal."""

    def broken(*args: Any) -> Any:
        raise OSError(number, os.strerror(number))

    (tmp_path / "file").write_bytes(b"some")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, broken)
        with pytest.raises(OSError) as caught:
            action(tmp_path)
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / name))


def test_a_lock_that_cannot_be_taken_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError) as caught:
        locked(tmp_path)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOLCK, str(tmp_path / ".lock"))


def test_a_reading_error_names_its_file() -> None:
    path = Path("run/state.safetensors")
    found = manifest.reading_error(path, OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert isinstance(found, OSError)
    assert found.filename == str(path)
    assert str(manifest.reading_error(path, OSError(errno.EIO, "Input/output error"))) == (
        "cannot read run/state.safetensors: Input/output error"
    )


def test_sweeping_removes_leftovers_of_killed_processes_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".step_00000007.4711.partial").mkdir()
    (tmp_path / ".step_00000007.4711.partial" / "state").write_bytes(b"half")
    (tmp_path / ".step_00000003.removed").mkdir()
    (tmp_path / ".config.json.4711.partial").write_bytes(b"half")
    kept = [".hidden", "half.partial", "step_00000007"]
    for name in kept:
        (tmp_path / name).write_bytes(b"the user's")
    durable.sweep(tmp_path)
    assert names(tmp_path) == kept


def test_made_folders_are_returned_innermost_first(tmp_path: Path) -> None:
    assert durable.make_folder(tmp_path) == []
    assert durable.make_folder(tmp_path / "a" / "b") == [tmp_path / "a" / "b", tmp_path / "a"]


WRITERS = {
    "durable.py",
    "launcher.py",  # how a process has ended, in a folder that lives as long as the launcher
    "lock.py",  # the name of the holder, which only a message needs
    "fill.py",  # pixels of a cache, by worker processes
    "disk.py",  # a cache on disk, which is flushed and renamed there
    "sample.py",  # the sample, unpacked into a durable.new_folder
    "split.py",  # links to images or copies of them, in a durable.new_folder
    "torchvision_datasets.py",  # links to downloaded images
}
CALLS = {"write_text", "write_bytes", "symlink_to", "savefig", "rename", "fsync", "copy2", "save_file"}


def test_nothing_else_writes() -> None:
    root = Path(__file__).parents[2]
    found = set()
    for path in [*(root / "ftrain").rglob("*.py"), *(root / "cli").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = [part.value for part in node.args[1:] if isinstance(part, ast.Constant)]
            if (name == "open" and any(set("wax+") & set(str(mode)) for mode in modes)) or name in CALLS:
                found.add((path.name, name))
    outside = {(path, name) for path, name in found if path not in WRITERS}
    # Pictures are drawn into memory; a checkpoint is quarantined by durable.rename.
    assert outside == {("curves.py", "savefig"), ("checkpoint.py", "rename")}
