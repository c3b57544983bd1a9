"""What the columns of a table mean, told by their names, and what its cells say."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import attrs

from ftrain.data.download import can_download, is_url
from ftrain.data.rows import Row, read_rows
from ftrain.errors import DataError
from ftrain.text import listed, shown

# The names of columns, in lower case, with _ for spaces and hyphens.
NAMES = {
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path"),
        *("image", "images", "image_path", "image_file", "image_filename", "img", "img_path"),
        *("url", "image_url", "uri"),
    ),
    "label": (
        *("label", "labels", "class", "classes", "class_name", "category", "categories"),
        *("target", "targets", "tag", "tags"),
    ),
    "split": ("split", "set", "subset", "fold", "partition"),
    "weight": ("weight", "weights", "sample_weight"),
    "group": ("group", "groups", "group_id"),
}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
PEEK = 2**16  # bytes
MAX_CELL = 131_072  # characters, as in the csv module
NO_SPLIT = ". If the numbers are folds of a cross-validation, rename the column, to cv_fold for example"
SEPARATORS = re.compile(r"[|;]")  # of several labels in one cell


@attrs.frozen
class Entry:
    """An image as a table lists it.

    Attributes:
      row: of the table, for messages.
      path: relative to the folder of the table, absolute, or a URL.
      labels: the names of its classes.
      several: whether the cell is of a table in which images may have several labels, because it has several, or is
        an empty list.
      split: train, val or test; "" if the table has no splits.
      weight: how much it counts; finite and >= 0.
      group: "" for none.
    """

    row: int
    path: str
    labels: tuple[str, ...]
    several: bool
    split: str
    weight: float
    group: str


def entries_of(path: Path, *, whole_labels: bool = False) -> Iterator[Entry]:
    """The rows of a table.

    Args:
      whole_labels: whether a cell that names several labels with | or ; is one label. A separator at the end is not
        part of a label, whatever this is, since a run must read its table as it did when it started.

    Raises:
      DataError: if a column is missing, or a cell is not as expected.
    """
    columns, rows = read_rows(path)
    if not columns:
        raise DataError(f"the table {shown(path)} is empty; expected a row of column names, and a row for each image")
    roles = _roles(path, columns)
    for row in rows(roles.values()):
        yield _entry(path, row, roles, whole_labels)


def is_table_of_labels(path: Path) -> bool:
    """Whether a table has columns for paths and labels, told by its first lines."""
    try:
        return bool(_roles(path, read_rows(path, most=PEEK)[0]))
    except DataError:
        return False


def _roles(path: Path, columns: list[str]) -> dict[str, str]:
    """The column of each role that the table has."""
    roles: dict[str, str] = {}
    for column in columns:
        role = next((role for role, names in NAMES.items() if re.sub(r"[ -]", "_", column.lower()) in names), None)
        if role is None:
            continue
        if role in roles:
            raise DataError(
                f"the table {shown(path)} has two columns for the {role}, {listed([roles[role], column])}; rename or "
                "remove one of them"
            )
        roles[role] = column
    for role in ("path", "label"):
        if role not in roles:
            raise DataError(
                f"the table {shown(path)} has no column for the {role}; expected one called {', '.join(NAMES[role])} "
                f"(in any case), found {listed(columns, most=20)}. Rename the column"
            )
    return roles


def _entry(path: Path, row: Row, roles: dict[str, str], whole_labels: bool) -> Entry:
    cells = {role: row.values[column] for role, column in roles.items()}

    def fail(problem: str) -> NoReturn:
        raise DataError(f"{shown(path)}, row {row.number}: {problem}")

    for role, value in cells.items():
        if (length := _length(value)) > MAX_CELL:
            fail(f"expected at most {MAX_CELL} characters in a cell; found {length} for the {role}")
    place = _text(cells["path"])
    if not place:
        found = "an empty cell" if cells["path"] in (None, "") or place == "" else f"a {type(cells['path']).__name__}"
        fail(f"expected the path or the URL of an image; found {found}")
    if is_url(place):
        if not can_download(place):
            fail(f"{shown(place)} cannot be downloaded; expected a URL that begins with http:// or https://")
    elif "\0" in place:
        fail(f"{shown(place)} is not the name of a file")
    else:
        place = os.path.normpath(place)
    labels, several = _labels(cells["label"], whole_labels)
    if labels is None:
        fail(f"expected a label, a string or an integer, or a list of labels; found {shown(repr(cells['label']))[:80]}")
    split = ""
    if "split" in cells:
        split = SPLITS.get((_text(cells["split"]) or "").lower(), "")
        if not split:
            fail(
                f"expected a split, one of train, val (or valid, validation) and test; found "
                f"{listed([str(cells['split'])])}"
                f"{NO_SPLIT if (_text(cells['split']) or '').isdecimal() else ''}"
            )
    weight = _number(cells.get("weight", 1.0))
    if weight is None or not 0.0 <= weight < math.inf:
        fail(f"expected a weight, a finite number >= 0; found {listed([str(cells['weight'])])}")
    group = "" if _is_missing(cells.get("group")) else _text(cells["group"])
    if group is None:
        fail(f"expected a group, a string or an integer; found {shown(repr(cells['group']))[:80]}")
    return Entry(row.number, place, labels, several, split, weight, group)


def _labels(value: Any, whole: bool) -> tuple[tuple[str, ...] | None, bool]:
    """The labels of a cell, None for a cell that has none that can be used; and whether the cell is one of several."""
    if isinstance(value, list | tuple):
        names = [_text(each) for each in value]
        if not all(names):
            return None, True
        found = tuple(dict.fromkeys(name for name in names if name))
        return found, len(found) != 1
    if _is_missing(value):
        return (), False
    text = _text(value)
    if text is None:
        return None, False
    parts = SEPARATORS.split(text) if isinstance(value, str) else [text]
    found = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    return ((text,), False) if whole and len(found) > 1 else (found, len(found) > 1)


def _length(value: Any) -> int:
    if isinstance(value, list | tuple):
        return len(value) + sum(len(each) for each in value if isinstance(each, str | bytes))
    return len(value) if isinstance(value, str | bytes) else 0


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str | None:
    """A cell as text without space around it; None for what is no text, integer or bool."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():  # a column of integers, of which some are missing
        value = int(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str | int):
        return None
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, from JSON
        return None
    return text


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
