"""torchvision's data sets by name, downloaded completely or not at all."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import os
import re
import socket
import tempfile
import warnings
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ftrain.data.convert import cause_of
from ftrain.data.datasets import Examples, from_dataset
from ftrain.errors import DataError
from ftrain.text import shown

SILENCE = 60.0  # seconds without any data after which a download fails

_ARCHIVES = (".bz2", ".gz", ".mat", ".tgz", ".zip")
_DIGITS = tuple("0123456789")


class _Kind(NamedTuple):
    """One of torchvision's data sets: its class, and the arguments that select each split."""

    class_name: str
    train: Mapping[str, Any]
    val: Mapping[str, Any]
    classes: tuple[str, ...] | None = None  # where the data set itself does not always name them
    package: str | None = None  # that must be installed to read it, besides the dependencies of ftrain


def _flagged(class_name: str, classes: tuple[str, ...] | None = None, **options: Any) -> _Kind:
    return _Kind(class_name, {**options, "train": True}, {**options, "train": False}, classes)


def _split(class_name: str, train: str, val: str, classes: tuple[str, ...] | None = None, package: str = "") -> _Kind:
    return _Kind(class_name, {"split": train}, {"split": val}, classes, package or None)


# If a data set has a validation split, its test split is not used.
_KINDS = {
    "cifar10": _flagged("CIFAR10"),
    "cifar100": _flagged("CIFAR100"),
    "country211": _split("Country211", "train", "valid"),
    "dtd": _split("DTD", "train", "val"),
    "emnist-balanced": _flagged("EMNIST", split="balanced"),
    "emnist-byclass": _flagged("EMNIST", split="byclass"),
    "emnist-bymerge": _flagged("EMNIST", split="bymerge"),
    "emnist-digits": _flagged("EMNIST", split="digits"),
    "fashion-mnist": _flagged("FashionMNIST"),
    "fgvc-aircraft": _split("FGVCAircraft", "train", "val"),
    "flowers102": _split("Flowers102", "train", "val", package="scipy"),
    "food101": _split("Food101", "train", "test"),
    "gtsrb": _split("GTSRB", "train", "test", tuple(str(label) for label in range(43))),
    "imagenette": _split("Imagenette", "train", "val"),
    "kmnist": _flagged("KMNIST"),
    "mnist": _flagged("MNIST"),
    "oxford-iiit-pet": _split("OxfordIIITPet", "trainval", "test"),
    "qmnist": _flagged("QMNIST"),
    "rendered-sst2": _split("RenderedSST2", "train", "val"),
    "stanford-cars": _split("StanfordCars", "train", "test", package="scipy"),
    "stl10": _split(
        "STL10",
        "train",
        "test",
        ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    ),
    "svhn": _split("SVHN", "train", "test", _DIGITS, package="scipy"),
    "usps": _flagged("USPS", _DIGITS),
}


def names() -> list[str]:
    """The names of data sets that `by_name` accepts, sorted.

    >>> names()[:2]
    ['cifar10', 'cifar100']
    """
    return sorted(_KINDS)


def by_name(name: str, folder: str | os.PathLike[str], *, download: bool = True) -> tuple[Examples, Examples]:
    """The training and the validation images of one of torchvision's data sets. If it has no validation split, its test
    split is used instead.

    Args:
      name: one of `names()`, in any case, with -, _ or nothing between its parts.
      folder: where its files are, arranged as torchvision does. A download is moved there once it is complete.
      download: whether to download missing files.

    Raises:
      ValueError: if no data set has this name.
      DataError: if files are missing or cannot be downloaded or read, or if a package is missing.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     by_name("cifar10", folder, download=False)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ftrain.errors.DataError: cifar10 is missing or incomplete in ...
    """
    name = _spelled(name)
    kind = _KINDS[name]
    if kind.package and importlib.util.find_spec(kind.package) is None:
        raise DataError(f"reading {name} needs the package {kind.package}; run pip install {kind.package}")
    root = Path(os.path.abspath(folder))
    by_hand = f"put its files into {shown(root)}, arranged as torchvision.datasets.{kind.class_name} expects"
    try:
        return _both(name, kind, root)
    except (DataError, MemoryError):
        raise
    except (RuntimeError, FileNotFoundError) as error:
        if not download:
            raise DataError(
                f"{name} is missing or incomplete in {shown(root)}: {cause_of(error)}. Allow the download, or {by_hand}"
            ) from error
    except Exception as error:  # damaged files raise errors of many kinds
        raise DataError(_damaged(name, root, error)) from error
    try:
        _download(name, kind, root)
    except MemoryError:
        raise
    except Exception as error:  # from the connection, the archives or the disk
        raise DataError(
            f"cannot download {name}: {cause_of(error)}. Check the connection and the free disk space and try again, "
            f"or {by_hand} (archives need not be unpacked)"
        ) from error
    try:
        return _both(name, kind, root)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(_damaged(name, root, error)) from error


def _spelled(name: str) -> str:
    squashed = {_squashed(known): known for known in _KINDS}
    if _squashed(name) in squashed:
        return squashed[_squashed(name)]
    near = [squashed[each] for each in difflib.get_close_matches(_squashed(name), squashed, n=3)]
    hint = f"the closest names are {', '.join(near)}" if near else "no name is similar"
    raise ValueError(f"`dataset` must be one of {', '.join(names())}; got {name!r}, {hint}")


def _squashed(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.strip().lower())


def _both(name: str, kind: _Kind, root: Path) -> tuple[Examples, Examples]:
    train, val = (
        from_dataset(_constructed(kind, root, options), classes=kind.classes, name=f"{name}/{split}")
        for split, options in (("train", kind.train), ("val", kind.val))
    )
    if train.classes != val.classes:
        raise ValueError(f"its splits have different classes ({len(train.classes)} and {len(val.classes)})")
    return train, val


def _damaged(name: str, root: Path, error: Exception) -> str:
    return f"cannot read {name} in {shown(root)}: {cause_of(error)}. Remove its files there and download them again"


def _constructed(kind: _Kind, root: Path, options: Mapping[str, Any], *, download: bool = False) -> Any:
    import torchvision.datasets

    make = getattr(torchvision.datasets, kind.class_name)
    if "loader" in inspect.signature(make).parameters:
        options = {**options, "loader": str}  # returns paths, so that no more is decoded than a crop needs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"dtype\(\): align should be")  # numpy about the pickles of CIFAR
        return make(str(root), **options, download=download)


def _download(name: str, kind: _Kind, root: Path) -> None:
    """Downloads both splits to a temporary folder and then moves them, because torchvision would mistake a partly
    unpacked archive for a complete data set."""
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as temporary, _socket_timeout():
            filling = Path(temporary)
            _link_archives(root, filling)
            for options in (kind.train, kind.val):
                _constructed(kind, filling, options, download=True)
            _move(filling, root)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                root.rmdir()
        raise


def _link_archives(root: Path, filling: Path) -> None:
    """Links archives that are already in `root` into `filling`, so that they are not downloaded again."""
    for pattern in ("*", "*/*", "*/*/*"):
        for path in root.glob(pattern):
            place = path.relative_to(root)
            if path.suffix in _ARCHIVES and not place.parts[0].startswith(".") and path.is_file():
                link = filling / place
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)


def _move(filling: Path, root: Path) -> None:
    for entry in sorted(filling.iterdir()):
        target = root / entry.name
        if entry.is_symlink():
            continue
        if entry.is_dir() and target.is_dir():
            _move(entry, target)
        else:
            os.replace(entry, target)


@contextlib.contextmanager
def _socket_timeout() -> Generator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
