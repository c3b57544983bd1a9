"""torchvision's data sets by name."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import pickle
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt
import pytest
import torchvision.datasets
from example_images import GREY, LABELS, Pictures, message, pixels
from PIL import Image

from ftrain.data import torchvision_datasets
from ftrain.data.decode import crop_and_resize, oriented_size
from ftrain.data.torchvision_datasets import by_name
from ftrain.errors import DataError


@pytest.fixture(autouse=True)
def no_internet(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were requested."""
    asked: list[str] = []

    def urlopen(request: urllib.request.Request, *args: Any, **options: Any) -> None:
        asked.append(request.full_url)
        assert socket.getdefaulttimeout() == torchvision_datasets.SILENCE
        raise URLError(OSError(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def idx(values: npt.NDArray[np.uint8]) -> bytes:
    """The format of MNIST: a type (8 for bytes), the number of sides, the sides, the values."""
    return bytes([0, 0, 8, values.ndim]) + b"".join(side.to_bytes(4, "big") for side in values.shape) + values.tobytes()


def mnist_files(prefix: str, seed: int) -> dict[str, bytes]:
    """Twenty images, two of each digit, in its order."""
    images = np.random.default_rng(seed).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    return {f"{prefix}-images-idx3-ubyte": idx(images), f"{prefix}-labels-idx1-ubyte": idx(labels)}


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in {**mnist_files("train", 0), **mnist_files("t10k", 1)}.items():
        (raw / name).write_bytes(content)
    return tmp_path / "data"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_mnist_by_name(mnist: Path, no_internet: list[str]) -> None:
    before = files(mnist)
    train, val = by_name("MNIST", mnist)
    assert (train.name, val.name) == ("mnist/train", "mnist/val")
    assert train.image_name(17) == "mnist/train[17]"
    assert train.classes == val.classes
    assert train.classes[7:] == ("7 - seven", "8 - eight", "9 - nine")
    assert train.labels.tolist() == val.labels.tolist() == [*range(10), *range(10)]
    expected = np.random.default_rng(1).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    assert np.array_equal(pixels(val, 3)[..., 1], expected[3])
    assert train.fingerprint != val.fingerprint
    assert by_name("mnist", str(mnist), download=False)[0].fingerprint == train.fingerprint
    assert pickle.loads(pickle.dumps(val)).open(3).tobytes() == expected[3].tobytes()
    assert files(mnist) == before
    assert no_internet == []


@pytest.mark.parametrize("name", ["fashion-mnist", "Fashion_MNIST", "FashionMNIST", " fashion mnist "])
def test_names_in_any_spelling(tmp_path: Path, name: str) -> None:
    assert message(DataError, by_name, name, tmp_path, download=False) == (
        f"fashion-mnist is missing or incomplete in {tmp_path}: Dataset not found. You can use download=True to "
        f"download it. Allow the download, or put its files into {tmp_path}, arranged as "
        "torchvision.datasets.FashionMNIST expects"
    )


def test_unknown_names(tmp_path: Path) -> None:
    text = message(ValueError, by_name, "cifar1000", tmp_path)
    assert text.startswith("`dataset` must be one of cifar10, cifar100, country211, ")
    assert text.endswith("; got 'cifar1000', the closest names are cifar100, cifar10")
    assert message(ValueError, by_name, "qqq", tmp_path).endswith("; got 'qqq', no name is similar")


def test_no_internet_leaves_nothing_behind(tmp_path: Path, no_internet: list[str]) -> None:
    folder = tmp_path / "data"
    assert message(DataError, by_name, "cifar10", folder) == (
        "cannot download cifar10: <urlopen error [Errno -3] Temporary failure in name resolution>. Check the "
        f"connection and the free disk space and try again, or put its files into {folder}, arranged as "
        "torchvision.datasets.CIFAR10 expects (archives need not be unpacked)"
    )
    assert no_internet[0] == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert socket.getdefaulttimeout() is None
    assert not folder.exists()


class Response:
    """The answer of a server."""

    def __init__(self, url: str, content: bytes) -> None:
        self.url, self.left, self.length = url, [content], len(content)

    def read(self, size: int) -> bytes:
        return self.left.pop() if self.left else b""

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of a server with a small MNIST with its own checksums. A test may remove some."""
    have = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in mnist_files("train", 0).items()}
    have |= {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in mnist_files("t10k", 1).items()}
    checksums = [(name, hashlib.md5(content).hexdigest()) for name, content in have.items()]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", checksums)

    def urlopen(request: urllib.request.Request, *args: Any, **options: Any) -> Response:
        name = request.full_url.rsplit("/", 1)[1]
        if name not in have:
            raise URLError("no such file")
        return Response(request.full_url, have[name])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return have


def test_a_download_appears_only_when_complete(tmp_path: Path, mirror: dict[str, bytes]) -> None:
    train, val = by_name("mnist", tmp_path / "data")
    assert (len(train), len(val)) == (20, 20)
    raw = [f"MNIST/raw/{name}" for name in (*mirror, *(name.removesuffix(".gz") for name in mirror))]
    assert files(tmp_path / "data") == sorted(raw)
    mirror.clear()
    assert by_name("mnist", tmp_path / "data")[1].fingerprint == val.fingerprint


@pytest.mark.parametrize("damage", ["missing", "checksum"])
def test_a_download_that_fails_in_the_middle(tmp_path: Path, mirror: dict[str, bytes], damage: str) -> None:
    (tmp_path / "kept").mkdir()
    last = mirror.pop("t10k-labels-idx1-ubyte.gz")
    if damage == "checksum":
        mirror["t10k-labels-idx1-ubyte.gz"] = last[:-1]
    text = message(DataError, by_name, "mnist", tmp_path)
    assert text.startswith("cannot download mnist: ")
    assert {"missing": "no such file", "checksum": "File not found or corrupted."}[damage] in text
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    mirror["t10k-labels-idx1-ubyte.gz"] = last
    assert len(by_name("mnist", tmp_path)[0]) == 20


def test_a_download_that_is_stopped(tmp_path: Path, mirror: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Response, "read", stop)
    with pytest.raises(KeyboardInterrupt):
        by_name("mnist", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_archives_put_there_by_hand_are_used(tmp_path: Path, mirror: dict[str, bytes]) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in list(mirror):
        (raw / name).write_bytes(mirror.pop(name))
    archives = files(tmp_path)
    train, _ = by_name("mnist", tmp_path)
    assert train.labels.tolist() == [*range(10), *range(10)]
    assert files(tmp_path) == sorted([*archives, *(name.removesuffix(".gz") for name in archives)])
    assert not any(path.is_symlink() for path in raw.iterdir())


def test_damaged_files_are_downloaded_again(mnist: Path, mirror: dict[str, bytes]) -> None:
    path = mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    assert message(DataError, by_name, "mnist", mnist, download=False).startswith(
        f"mnist is missing or incomplete in {mnist}: "
    )
    by_name("mnist", mnist)
    assert path.read_bytes() == whole


def test_damage_that_a_download_does_not_repair(mnist: Path, no_internet: list[str]) -> None:
    (mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx(np.full(20, 11, dtype=np.uint8)))
    assert message(DataError, by_name, "mnist", mnist) == (
        f"cannot read mnist in {mnist}: mnist/train[0] has the label 11, but the labels of the 10 classes are 0 "
        "to 9. Remove its files there and download them again"
    )
    assert no_internet == []


def test_cifar10_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    cifar = torchvision.datasets.CIFAR10
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", {"label_names": classes})[1]}
    batches = [write(f"data_batch_{i + 1}", {"data": images[i : i + 1], "labels": [i]}) for i in range(5)]
    monkeypatch.setattr(cifar, "meta", meta)
    monkeypatch.setattr(cifar, "train_list", batches)
    monkeypatch.setattr(cifar, "test_list", [write("test_batch", {"data": images[5:], "labels": [9]})])
    train, val = by_name("CIFAR-10", tmp_path, download=False)
    assert train.classes == val.classes == tuple(classes)
    assert train.labels.tolist() == [0, 1, 2, 3, 4]
    assert val.labels.tolist() == [9]
    assert np.array_equal(pixels(train, 4), images[4].reshape(3, 32, 32).transpose(1, 2, 0))


def test_textures_by_name_are_decoded_by_ftrain(tmp_path: Path) -> None:
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for split in ("train", "val"):
        names = [f"{name}/{name}_{split}.jpg" for name in ("banded", "dotted")]
        (base / "labels" / f"{split}1.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            (base / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), "white").save(base / "images" / name)
    train, val = by_name("dtd", tmp_path)
    assert train.classes == val.classes == ("banded", "dotted")
    path = str(base / "images" / "dotted" / "dotted_val.jpg")
    assert val.image_name(1) == path
    with val.open(1) as image:
        assert image.format == "JPEG"  # so that no more is decoded than a crop needs
        assert oriented_size(image) == (30, 40)
        assert crop_and_resize(image, (0, 0, 30, 30), 8).min() == 255
    Path(path).write_bytes(b"")
    assert message(DataError, val.open, 1) == f"cannot read the image {path}: the file is empty"
    (base / "labels" / "val1.txt").write_text("dotted/dotted_val.jpg\n")
    assert message(DataError, by_name, "dtd", tmp_path, download=False).startswith(
        f"cannot read dtd in {tmp_path}: a classifier needs at least two classes; dtd/val has 1"
    )


def test_splits_with_different_classes_are_damaged(tmp_path: Path) -> None:
    base = tmp_path / "imagenette2"
    for place in ("train/n01440764", "train/n02102040", "train/n02979186", "val/n01440764", "val/n02979186"):
        (base / place).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(base / place / "x.JPEG")
    assert message(DataError, by_name, "imagenette", tmp_path) == (
        f"cannot read imagenette in {tmp_path}: its splits have different classes (3 and 2). Remove its files "
        "there and download them again"
    )
    (base / "val" / "n02102040").mkdir()
    Image.new("RGB", (2, 2)).save(base / "val" / "n02102040" / "x.JPEG")
    train, val = by_name("imagenette", tmp_path)
    assert train.classes == ("tench", "English springer", "cassette player")
    assert val.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["svhn", "flowers102", "stanford-cars"])
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, no_internet: list[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    expected = f"reading {name} needs the package scipy; run pip install scipy"
    assert message(DataError, by_name, name, tmp_path) == expected
    assert no_internet == []


KINDS = {
    "cifar10": ("CIFAR10", {"train": True}, {"train": False}),
    "cifar100": ("CIFAR100", {"train": True}, {"train": False}),
    "country211": ("Country211", {"split": "train"}, {"split": "valid"}),
    "dtd": ("DTD", {"split": "train"}, {"split": "val"}),
    "emnist-balanced": ("EMNIST", {"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
    "emnist-byclass": ("EMNIST", {"split": "byclass", "train": True}, {"split": "byclass", "train": False}),
    "emnist-bymerge": ("EMNIST", {"split": "bymerge", "train": True}, {"split": "bymerge", "train": False}),
    "emnist-digits": ("EMNIST", {"split": "digits", "train": True}, {"split": "digits", "train": False}),
    "fashion-mnist": ("FashionMNIST", {"train": True}, {"train": False}),
    "fgvc-aircraft": ("FGVCAircraft", {"split": "train"}, {"split": "val"}),
    "flowers102": ("Flowers102", {"split": "train"}, {"split": "val"}),
    "food101": ("Food101", {"split": "train"}, {"split": "test"}),
    "gtsrb": ("GTSRB", {"split": "train"}, {"split": "test"}),
    "imagenette": ("Imagenette", {"split": "train"}, {"split": "val"}),
    "kmnist": ("KMNIST", {"train": True}, {"train": False}),
    "mnist": ("MNIST", {"train": True}, {"train": False}),
    "oxford-iiit-pet": ("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}),
    "qmnist": ("QMNIST", {"train": True}, {"train": False}),
    "rendered-sst2": ("RenderedSST2", {"split": "train"}, {"split": "val"}),
    "stanford-cars": ("StanfordCars", {"split": "train"}, {"split": "test"}),
    "stl10": ("STL10", {"split": "train"}, {"split": "test"}),
    "svhn": ("SVHN", {"split": "train"}, {"split": "test"}),
    "usps": ("USPS", {"train": True}, {"train": False}),
}
IN_FILES = {
    *("country211", "dtd", "fgvc-aircraft", "flowers102", "food101", "imagenette", "rendered-sst2", "stanford-cars")
}


def test_all_names_are_tested() -> None:
    assert torchvision_datasets.names() == list(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_each_name_makes_the_right_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    class_name, *splits = KINDS[name]
    original = getattr(torchvision.datasets, class_name)
    signature = inspect.signature(original)
    made: list[dict[str, Any]] = []

    def make(*args: Any, **options: Any) -> list[Any]:
        arguments = signature.bind(*args, **options).arguments
        arguments |= arguments.pop("kwargs", {})
        made.append(arguments)
        return [(image, label) for image, label in zip(GREY, LABELS, strict=True)]

    make.__signature__ = signature  # type: ignore[attr-defined]
    monkeypatch.setattr(torchvision.datasets, class_name, make)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: True)
    train, val = by_name(name, tmp_path)
    loader = {"loader": str} if name in IN_FILES else {}
    assert made == [{"root": str(tmp_path), **split, **loader, "download": False} for split in splits]
    assert (train.name, val.name) == (f"{name}/train", f"{name}/val")


@pytest.mark.parametrize("name", KINDS)
def test_each_class_takes_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Up to the error for missing files, which comes after its arguments have been checked."""
    if name == "stanford-cars":
        pytest.importorskip("scipy")
    monkeypatch.setattr("importlib.util.find_spec", lambda package: True)
    assert message(DataError, by_name, name, tmp_path, download=False).startswith(
        f"{name} is missing or incomplete in {tmp_path}: "
    )
    assert files(tmp_path) == []


@pytest.mark.parametrize(("name", "count"), [("stl10", 10), ("svhn", 10), ("gtsrb", 43), ("usps", 10)])
def test_classes_where_the_data_set_has_no_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    monkeypatch.setattr(torchvision.datasets, KINDS[name][0], lambda root, download, **options: Pictures())
    monkeypatch.setattr("importlib.util.find_spec", lambda package: True)
    _, val = by_name(name, tmp_path)
    expected = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    assert val.classes == (expected if name == "stl10" else tuple(str(label) for label in range(count)))


def test_torchvision_is_imported_only_for_its_data_sets() -> None:
    check = "import sys, ftrain.data.torchvision_datasets; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=900).returncode == 0
