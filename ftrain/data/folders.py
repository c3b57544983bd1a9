"""A folder with one folder of images per class as a source."""

from __future__ import annotations

import difflib
import os
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ftrain.data import heif
from ftrain.data.columns import is_table_of_labels
from ftrain.data.index import Index, fingerprint_of
from ftrain.data.rows import is_table
from ftrain.data.skipped import described, kind_of
from ftrain.errors import DataError
from ftrain.text import listed, shown

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff", ".ppm", ".pgm")

_METADATA = (b"thumbs.db", b"ehthumbs.db", b"desktop.ini", b"__macosx", b"@eadir")  # of Windows, macOS, Synology
_STRAY = "images outside of the class folders"
_Places = tuple[tuple[int, int], ...]


def scan(root: Path, *, classes: Sequence[str] | None = None) -> Index:
    """Lists the images of the class folders directly below `root`, at any depth, following symbolic links.

    An image is a file whose suffix, in any case, is one of `suffixes`; `Index.skipped` counts other files. Files and
    folders whose names start with a dot are ignored, and so are what systems put into folders, such as Thumbs.db, and
    links back to a folder that contains them.

    Args:
      root: a folder with one folder of images per class.
      classes: for validation data, the classes of the training data, whose labels it then shares. Not all of them need
        to have images here. None uses the names of the folders, sorted by their bytes.

    Raises:
      ValueError: if `root` is not a folder.
      DataError: if there are no class folders or no images; if a folder is not one of `classes`; without `classes`, if
        a class has no images or there is only one class; if something cannot be read.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         (Path(folder) / name).mkdir()
    ...         Image.new("RGB", (8, 8)).save(Path(folder) / name / "1.png")
    ...     index = scan(Path(folder))
    >>> index.classes, index.paths, index.labels.tolist()
    (('cat', 'dog'), ('cat/1.png', 'dog/1.png'), [0, 1])
    """
    if not root.is_dir():
        raise ValueError(f"{'not a folder' if root.exists() else 'no such folder'}: {shown(root)}")
    try:
        names, stray = _class_folders(os.fsencode(root))
        if not names:
            raise DataError(_no_class_folders(root, stray))
        if classes is not None:
            _check_known(root, names, classes)
        return _index(root, names, classes, Counter({_STRAY: stray} if stray else {}))
    except OSError as error:
        at = shown(error.filename) if error.filename else shown(root)
        raise DataError(f"cannot read {at} while looking for images: {error.strerror}") from error


def suffixes() -> tuple[str, ...]:
    """With which names of images end, in lower case; with those of HEIC files if they can be read."""
    return (*SUFFIXES, *heif.SUFFIXES) if heif.is_installed() else SUFFIXES


def image_files(folder: str | os.PathLike[str]) -> tuple[list[str], Mapping[str, int]]:
    """The paths of all images in a folder, at any depth, sorted by their bytes; and how many other files there are, as
    in `Index.skipped`.

    Raises:
      OSError: if a folder cannot be read.
    """
    top, skipped = os.fsencode(folder), Counter[str]()
    found = sorted(_images(top, b".", (), skipped))
    return [os.fsdecode(os.path.join(top, os.path.normpath(path))) for path, _, _ in found], skipped


def _index(root: Path, names: list[bytes], classes: Sequence[str] | None, skipped: Counter[str]) -> Index:
    top = os.fsencode(root)
    place = _place(top)
    names_of_labels = names if classes is None else [os.fsencode(name) for name in classes]
    labels_of = {name: label for label, name in enumerate(names_of_labels)}
    paths: list[str] = []
    sizes, modified = array("q"), array("q")
    counts: list[int] = []
    for name in names:
        images = _images(top, name, (place,), skipped)
        images.sort()
        paths.extend([os.fsdecode(path) for path, _, _ in images])
        sizes.extend([size for _, size, _ in images])
        modified.extend([when for _, _, when in images])
        counts.append(len(images))
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if not paths:
        raise DataError(
            f"no images in {shown(root)}: none of its {len(names)} class folders ({listed(names)}) has a file that "
            f"ends in {', '.join(suffixes())}{_instead(skipped)}{_table_instead(root)}"
        )
    if classes is None and empty:
        raise DataError(
            f"no images in the class folder{'s' * (len(empty) > 1)} {listed(empty)} of {shown(root)}; every class "
            f"needs at least one training image{_instead(skipped)}. Add images, or remove the folder"
        )
    if classes is None and len(names) == 1:
        raise DataError(
            f"only one class folder in {shown(root)}: {listed(names)}; a classifier needs at least two. Put the "
            f"images of each class in a folder of its own{_table_instead(root)}"
        )
    known = tuple(os.fsdecode(name) for name in labels_of)
    lengths = np.frombuffer(sizes, dtype=np.int64)
    return Index(
        root=root,
        classes=known,
        paths=tuple(paths),
        labels=np.repeat(np.array([labels_of[name] for name in names], dtype=np.int64), counts),
        sizes=lengths,
        modified=np.frombuffer(modified, dtype=np.int64),
        fingerprint=fingerprint_of(known, paths, lengths),
        skipped=dict(skipped),
    )


def _class_folders(top: bytes) -> tuple[list[bytes], int]:
    """The names of the folders in `top`, sorted, and the number of images directly in it."""
    names, stray, known = [], 0, _known_suffixes()
    with os.scandir(top) as entries:
        for entry in entries:
            if is_ignored(entry.name):
                continue
            if entry.is_dir():
                if not is_output(Path(os.fsdecode(entry.path))):
                    names.append(entry.name)
            elif entry.name.lower().endswith(known):
                stray += 1
    return sorted(names), stray


def is_output(folder: Path) -> bool:
    """Whether ftrain wrote a folder: that of a run or of `ftrain data check`, or runs/ with such folders in it."""
    if (folder / "check.json").is_file() and (folder / "check.png").is_file():
        return True
    return _is_run(folder) or (
        folder.name == "runs" and any(_is_run(path) for form in ("*", "*/*") for path in folder.glob(form))
    )


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()


def _images(top: bytes, folder: bytes, above: _Places, skipped: Counter[str]) -> list[tuple[bytes, int, int]]:
    """Paths relative to `top`, sizes and times of the images in `folder`, at any depth, in no order. Other files are
    counted in `skipped`."""
    found: list[tuple[bytes, int, int]] = []
    known = _known_suffixes()
    pending = [(folder, above)]
    while pending:
        folder, above = pending.pop()
        place = _place(os.path.join(top, folder))
        if place in above:
            continue
        with os.scandir(os.path.join(top, folder)) as entries:
            for entry in entries:
                name = entry.name
                if is_ignored(name):
                    continue
                if name.lower().endswith(known) and entry.is_file():
                    status = entry.stat()
                    found.append((b"%s/%s" % (folder, name), status.st_size, status.st_mtime_ns))
                elif entry.is_dir():
                    pending.append((b"%s/%s" % (folder, name), (*above, place)))
                elif entry.is_symlink() and name.lower().endswith(known):
                    entry.stat()  # raises an error: the link is broken
                elif entry.is_file():
                    skipped[kind_of(os.fsdecode(name))] += 1
    return found


def _known_suffixes() -> tuple[bytes, ...]:
    return tuple(suffix.encode() for suffix in suffixes())


def is_ignored(name: bytes) -> bool:
    """Whether a file or folder is hidden, or belongs to the operating system."""
    return name.startswith(b".") or name.lower() in _METADATA


def _place(folder: bytes) -> tuple[int, int]:
    """The identity of a folder, whatever path leads to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _check_known(root: Path, names: Sequence[bytes], classes: Sequence[str]) -> None:
    known = {os.fsencode(name) for name in classes}
    unknown = [name for name in names if name not in known]
    if unknown:
        nearest = difflib.get_close_matches(os.fsdecode(unknown[0]), classes, n=1, cutoff=0.0)
        more = f" (and {len(unknown) - 1} more: {listed(unknown[1:])})" if len(unknown) > 1 else ""
        raise DataError(
            f"the class folder {listed(unknown[:1])} of {shown(root)}{more} is not one of the {len(classes)} classes "
            f"of the training data; the closest is {listed(nearest)}. Rename or remove it, or train on that class too"
        )


def _no_class_folders(root: Path, stray: int) -> str:
    found = f"no class folders in {shown(root)}"
    if stray:
        images = "1 image" if stray == 1 else f"{stray} images"
        return (
            f"{found}, but {images} directly in it. There must be one folder per class: move the images of each class "
            f"to a folder that is named after it{_table_instead(root)}"
        )
    return (
        f"{found}; expected one folder of images per class, named after the class. Create them or choose another folder"
    )


def _table_instead(root: Path) -> str:
    """What to do if a table of labels lies in a folder or beside it."""
    for folder in (root, root.parent if root.name not in ("", "..") else root / ".."):
        with suppress(OSError):
            for path in sorted(folder.iterdir()):
                if is_table(path) and path.is_file() and is_table_of_labels(path):
                    return f"; or train on the labels in {shown(path.name)}: `data={shown(path)}`"
    return ""


def _instead(skipped: Mapping[str, int]) -> str:
    return f"; found {described(skipped)}" if skipped else ""
