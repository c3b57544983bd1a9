"""Images that a table lists with their labels, as a source for each split.

Every row has a path or URL and a label; it may have a split, a weight and a group. An image has several labels if a
cell names several or if it is in several rows.
"""

from __future__ import annotations

import difflib
import os
import stat
from array import array
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from ftrain.data.columns import Entry, entries_of
from ftrain.data.download import downloaded, is_url
from ftrain.data.index import Index, fingerprint_of, relative
from ftrain.data.labels import Labels
from ftrain.data.merged import Task, check_single, is_multi_label, merged
from ftrain.data.source import Preparing
from ftrain.errors import DataError
from ftrain.text import listed, shown

ALL = "all"  # the split of images of which the table tells none
TRAINING = ("train", ALL)
NAMED = 3  # missing files that are named


@attrs.frozen(eq=False)
class Table:
    """What a table lists.

    Attributes:
      parts: the images of each split that was asked for and that the table has: train, val and test, or all.
      others: how many images the other splits have.
      notes: what is unusual, in words.
    """

    parts: dict[str, Index]
    others: dict[str, int]
    notes: tuple[str, ...]


def read_table(
    path: Path,
    *,
    splits: Sequence[str] = ("train", "val", ALL),
    classes: Sequence[str] | None = None,
    task: Task = "auto",
) -> Generator[Preparing, None, Table]:
    """Reads a table and finds its images; those at URLs are downloaded. Yields its progress, and returns the table.

    The images of a split are sorted by the bytes of their paths, so that the order of the rows does not matter.

    Args:
      path: a .csv, .tsv, .jsonl or .parquet file.
      splits: those whose images are needed.
      classes: those that labels may have; None for those of the training images, sorted: by their values if all are
        integers, otherwise by their bytes.
      task: whether an image has one label or any number of them; auto tells by the labels.

    Raises:
      DataError: if the table cannot be read or is not as described, with the row; or if images are missing.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("1.png", "2.png"):
    ...         Image.new("RGB", (8, 8)).save(Path(folder) / name)
    ...     _ = (Path(folder) / "labels.csv").write_text("path,labels\\n1.png,red|round\\n2.png,round\\n")
    ...     try:
    ...         next(reading := read_table(Path(folder) / "labels.csv"))
    ...     except StopIteration as end:
    ...         found = end.value.parts["all"]
    >>> found.classes, found.paths, found.labels.tolist()
    (('red', 'round'), ('1.png', '2.png'), [[1, 1], [0, 1]])
    """
    entries, repeated, clashes = merged(path, entries_of(path, whole_labels=task == "single-label"))
    if not entries:
        raise DataError(f"the table {shown(path)} has no rows; expected one for each image")
    several = is_multi_label(path, entries, clashes, task)
    if not several:
        check_single(path, entries)
    by_split: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: os.fsencode(entry.path)):
        by_split.setdefault(entry.split or ALL, []).append(entry)
    if classes is None:
        source = [entry for split in TRAINING for entry in by_split.get(split, [])] or entries
        known = _sorted({label for entry in source for label in entry.labels})
        if len(known) < 2:
            raise DataError(
                f"the table {shown(path)} has {'only the label ' + listed(known) if known else 'no labels'}"
                f"{' among its training images' * ('train' in by_split)}; a classifier needs at least two"
            )
    else:
        known = list(classes)
    notes = []
    if classes is None and {"train", "test"} <= {*splits} and "test" in by_split:  # training ignores them too
        tests = [entry for entry in by_split["test"] if set(entry.labels) <= set(known)]
        if left_out := len(by_split.pop("test")) - len(tests):
            images = "1 image" if left_out == 1 else f"{left_out} images"
            notes.append(f"left out {images} for testing in {shown(path)} with labels that no training image has")
        by_split |= {"test": tests} if tests else {}
    wanted = [split for split in splits if split in by_split]
    _check_known(path, [entry for split in wanted for entry in by_split[split]], known)
    files = yield from _files(path, [entry for split in wanted for entry in by_split[split]])
    parts = {split: _index(path, by_split[split], known, several, files) for split in wanted}
    if repeated:
        rows = f"1 row of {shown(path)} repeats another, and is" if repeated == 1 else ""
        rows = rows or f"{repeated} rows of {shown(path)} repeat others, and are"
        notes.append(f"{rows} not counted again")
    if shared := len(_groups(by_split.get("train", ())) & _groups(by_split.get("val", ()))):
        groups = f"1 group of {shown(path)} has" if shared == 1 else f"{shared} groups of {shown(path)} have"
        notes.append(
            f"{groups} both training and validation images, so that the validation metrics may be too good to be true"
        )
    others = {split: len(found) for split, found in by_split.items() if split not in wanted}
    return Table(parts, others, tuple(notes))


def from_table(path: Path, *, classes: Sequence[str] | None = None, task: Task = "auto") -> Index:
    """The images of a table without a column for the split, as a source. Arguments and errors as for `read_table`.

    >>> from_table(Path("no/such/labels.csv"))
    Traceback (most recent call last):
    ...
    ftrain.errors.DataError: cannot read the table no/such/labels.csv: No such file or directory
    """
    work = read_table(path, classes=classes, task=task)
    while True:
        try:
            next(work)
        except StopIteration as end:
            table: Table = end.value
            break
    if ALL not in table.parts:
        raise DataError(
            f"the table {shown(path)} has a column for the split; pass it as `data` itself, and not as one of a pair"
        )
    return table.parts[ALL]


def _sorted(labels: Iterable[str]) -> list[str]:
    names = sorted(labels, key=str.encode)
    if all(name.isdecimal() and name.isascii() and name == str(int(name[:18])) for name in names):
        return sorted(names, key=int)
    return names


def _check_known(path: Path, entries: Iterable[Entry], classes: Sequence[str]) -> None:
    known = set(classes)
    for entry in entries:
        for label in entry.labels:
            if label not in known:
                nearest = difflib.get_close_matches(label, classes, n=1, cutoff=0.0)
                raise DataError(
                    f"{shown(path)}, row {entry.row}: the label {listed([label])} is not one of the {len(classes)} "
                    f"classes of the training data; the closest is {listed(nearest)}. Correct it, or train on that "
                    "class too"
                )


def _files(path: Path, entries: Sequence[Entry]) -> Generator[Preparing, None, dict[str, tuple[str, int, int]]]:
    """The file of each image, with its size and the time when it was last written, by the path in the table.

    Raises:
      DataError: if files are missing or cannot be downloaded.
    """
    urls = [entry.path for entry in entries if is_url(entry.path)]
    places = dict(zip(urls, (yield from downloaded(urls)), strict=True))
    found: dict[str, tuple[str, int, int]] = {}
    missing = []
    for entry in entries:
        place = places.get(entry.path) or os.path.join(path.parent, entry.path)
        try:
            status = os.stat(place)
        except (FileNotFoundError, NotADirectoryError):
            missing.append(f"{shown(entry.path)} (row {entry.row})")
            continue
        except OSError as error:
            raise DataError(
                f"{shown(path)}, row {entry.row}: cannot read {shown(place)}: {error.strerror or error}"
            ) from error
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{shown(path)}, row {entry.row}: expected an image; {shown(place)} is not a file")
        found[entry.path] = place, status.st_size, status.st_mtime_ns
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise DataError(
            f"{len(missing)} of the {len(entries)} images in the table {shown(path)} do not exist: "
            f"{', '.join(missing[:NAMED])}{more}. Paths are relative to the folder of the table, and need the suffix "
            "of the file; correct them, or move the table"
        )
    return found


def _index(
    path: Path,
    entries: Sequence[Entry],
    classes: Sequence[str],
    multi_label: bool,
    files: Mapping[str, tuple[str, int, int]],
) -> Index:
    paths = tuple(entry.path for entry in entries)
    places, sizes, modified = zip(*(files[each] for each in paths), strict=True)
    lengths = np.frombuffer(array("q", sizes), dtype=np.int64)
    labels = _labels(entries, classes, multi_label)
    weights = relative(np.array([entry.weight for entry in entries], dtype=np.float64), str(path))
    return Index(
        root=path.parent,
        classes=tuple(classes),
        paths=paths,
        labels=labels,
        sizes=lengths,
        modified=np.frombuffer(array("q", modified), dtype=np.int64),
        fingerprint=fingerprint_of(classes, paths, lengths, labels, weights),
        table=path,
        weights=weights,
        groups=_numbered(entries),
        files=places if any(map(is_url, paths)) else None,
    )


def _labels(entries: Sequence[Entry], classes: Sequence[str], multi_label: bool) -> Labels:
    numbers = {name: label for label, name in enumerate(classes)}
    if not multi_label:
        return np.array([numbers[entry.labels[0]] for entry in entries], dtype=np.int64)
    labels = np.zeros((len(entries), len(classes)), dtype=np.uint8)
    for row, entry in enumerate(entries):
        labels[row, [numbers[label] for label in entry.labels]] = 1
    return labels


def _groups(entries: Iterable[Entry]) -> set[Any]:
    return {entry.group for entry in entries if entry.group}


def _numbered(entries: Sequence[Entry]) -> npt.NDArray[np.int64] | None:
    """The group of each image as the position of its first image; an image without a group is alone."""
    if not any(entry.group for entry in entries):
        return None
    first: dict[str, int] = {}
    numbers = [first.setdefault(entry.group, at) if entry.group else at for at, entry in enumerate(entries)]
    return np.array(numbers, dtype=np.int64)
