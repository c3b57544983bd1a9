from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from PIL import Image

from ftrain.data import sample
from ftrain.data.folders import scan
from ftrain.data.sample import sample_folder

CLASSES = (
    "ankle-boot",
    "bag",
    "coat",
    "dress",
    "pullover",
    "sandal",
    "shirt",
    "sneaker",
    "t-shirt",
    "trouser",
)
IN_ANOTHER_PROCESS = """
import os, pathlib, sys, tarfile
import platformdirs
from ftrain.data.sample import sample_folder
platformdirs.user_cache_path = lambda name: pathlib.Path(sys.argv[1])
os.fsync = lambda file: None
left, extractfile = [500], tarfile.TarFile.extractfile
def stop_in_the_middle(archive, member):
    if not left[0]:
        os._exit(9)
    left[0] -= 1
    return extractfile(archive, member)
if sys.argv[2] == "stop":
    tarfile.TarFile.extractfile = stop_in_the_middle
print(sample_folder())
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache" / "ftrain"
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: folder)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # which takes seconds on some disks
    return folder


def start(cache: Path, *, stop: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", IN_ANOTHER_PROCESS, str(cache), "stop" if stop else ""]
    root = Path(sample.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def test_the_sample_is_a_folder_of_classes(cache: Path) -> None:
    folder = sample_folder()
    assert folder.parent == cache
    assert folder.name.startswith("fashion-mnist-sample-")
    train = scan(folder / "train")
    val = scan(folder / "val", classes=train.classes)
    assert train.classes == CLASSES
    assert np.bincount(train.labels).tolist() == [200] * 10
    assert np.bincount(val.labels).tolist() == [50] * 10
    assert train.paths[0] == "ankle-boot/00000.png"
    assert files(folder) == 2502
    assert "Copyright (c) 2017 Zalando SE, https://tech.zalando.com" in (folder / "LICENSE").read_text()
    assert "https://github.com/zalandoresearch/fashion-mnist" in (folder / "SOURCE.md").read_text()


def test_the_pixels_are_the_original_ones(cache: Path) -> None:
    with Image.open(sample_folder() / "train" / "ankle-boot" / "00000.png") as image:
        assert image.mode == "L"
        pixels = np.asarray(image)
    assert pixels.shape == (28, 28)
    assert pixels.sum() == 76247  # of the first image of the training set, which is an ankle boot
    assert pixels[14, 10:].tolist() == [
        0,
        0,
        237,
        226,
        217,
        223,
        222,
        219,
        222,
        221,
        216,
        223,
        229,
        215,
        218,
        255,
        77,
        0,
    ]


def test_the_second_call_unpacks_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sample_folder()
    changed = folder.stat().st_mtime_ns
    monkeypatch.delattr(tarfile, "open")
    assert sample_folder() == folder
    assert folder.stat().st_mtime_ns == changed
    assert list(cache.iterdir()) == [folder]


def is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def test_every_file_is_on_the_disk_before_the_folder_has_its_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[list[str]] = []
    monkeypatch.setattr(
        os, "fsync", lambda file: names.append([path.name for path in cache.iterdir()]) if is_file(file) else None
    )
    folder = sample_folder()
    assert len(names) == 2502
    assert all(folder.name not in seen for seen in names)


def test_processes_that_unpack_at_the_same_time(cache: Path) -> None:
    processes = [start(cache) for _ in range(2)]
    outputs = [process.communicate(timeout=900)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert set(outputs) == {str(sample_folder())}
    assert list(cache.iterdir()) == [sample_folder()]
    assert files(cache) == 2502


def test_what_a_killed_process_leaves_is_not_used(cache: Path) -> None:
    process = start(cache, stop=True)
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 9, output
    [left] = cache.iterdir()
    assert left.name.startswith(".")
    assert files(left) == 500
    folder = sample_folder()
    assert folder != left
    assert files(folder) == 2502


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_no_files_remain_if_unpacking_fails(cache: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(file: int) -> None:
        if is_file(file):
            raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)) as caught:
        sample_folder()
    assert list(cache.iterdir()) == []
    if isinstance(error, OSError):
        assert f"cannot unpack the sample images to {cache}{os.sep}fashion-mnist-sample-" in str(caught.value)
        assert ": No space left on device. " in str(caught.value)


def test_a_cache_folder_that_cannot_be_written(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"File exists\. Free space there .* set XDG_CACHE_HOME to a folder that is"):
        sample_folder()
