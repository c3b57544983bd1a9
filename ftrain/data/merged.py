"""The rows of a table about the same image as one, and whether its images may have several labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import attrs

from ftrain.data.columns import Entry
from ftrain.data.download import is_url
from ftrain.errors import DataError
from ftrain.text import listed, shown

Task = Literal["auto", "single-label", "multi-label"]
MOST_ACCIDENTS = 0.05  # fraction of images up to which several labels count as a mistake


def merged(path: Path, entries: Iterable[Entry]) -> tuple[list[Entry], int, list[tuple[Entry, Entry]]]:
    """One entry for each image, with all its labels; how many rows repeat another; and the first pairs of rows that
    give an image different labels."""
    found: dict[str, Entry] = {}
    folder = os.path.abspath(path.parent)
    repeated, clashes = 0, dict[str, tuple[Entry, Entry]]()
    for entry in entries:
        # One file may be spelled as a relative and as an absolute path.
        place = entry.path if is_url(entry.path) else os.path.normpath(os.path.join(folder, entry.path))
        before = found.setdefault(place, entry)
        if before is entry:
            continue
        for name in ("split", "weight", "group"):
            was, now = getattr(before, name), getattr(entry, name)
            if was != now:
                raise DataError(
                    f"{shown(path)}, row {entry.row}: {shown(entry.path)} has the {name} {shown(str(now))}, but in row "
                    f"{before.row} {shown(str(was))}; give it the same in all of its rows"
                )
        labels = tuple(dict.fromkeys(before.labels + entry.labels))
        if set(before.labels) == set(entry.labels):
            repeated += 1
        else:
            clashes.setdefault(place, (before, entry))
        spelling = min(before.path, entry.path)  # whatever the order of the rows
        found[place] = attrs.evolve(before, path=spelling, labels=labels, several=before.several or entry.several)
    return list(found.values()), repeated, list(clashes.values())


def is_multi_label(path: Path, entries: Sequence[Entry], clashes: Sequence[tuple[Entry, Entry]], task: Task) -> bool:
    """Whether images may have several labels.

    Raises:
      DataError: if some have, although that must be a mistake.
    """
    if task == "multi-label":
        return True
    in_cell = [entry for entry in entries if entry.several]
    if task == "single-label":
        if in_cell:
            raise DataError(
                f"{shown(path)}, row {in_cell[0].row}: expected one label, because of `task=single-label`; found "
                f"{listed(in_cell[0].labels) or 'none'}"
            )
    elif max(len(in_cell), len(clashes)) > MOST_ACCIDENTS * len(entries):
        return True
    if in_cell:
        have = "1 image" if len(in_cell) == 1 else f"{len(in_cell)} images"
        have += f" of {len(entries)} {'has' if len(in_cell) == 1 else 'have'}"
        raise DataError(
            f"{shown(path)}, row {in_cell[0].row}: {shown(in_cell[0].path)} has the labels "
            f"{listed(in_cell[0].labels) or 'none'}, but only {have} other than one label in a cell, which may be a "
            "mistake. Correct the rows; if | and ; are part of names, use `task=single-label`; if images may have "
            "several labels, use `task=multi-label`"
        )
    if clashes:
        before, entry = clashes[0]
        images = "1 image" if len(clashes) == 1 else f"{len(clashes)} images"
        advice = "" if task == "single-label" else "; if images may have several labels, use `task=multi-label`"
        raise DataError(
            f"{shown(path)}, row {entry.row}: {shown(entry.path)} has the label {listed(entry.labels) or 'none'}, but "
            f"in row {before.row} {listed(before.labels) or 'none'} ({images} of {len(entries)} have different labels "
            f"in several rows). Correct the rows{advice}"
        )
    return False


def check_single(path: Path, entries: Iterable[Entry]) -> None:
    """Raises DataError if an image has no label."""
    for entry in entries:
        if not entry.labels:
            raise DataError(
                f"{shown(path)}, row {entry.row}: {shown(entry.path)} has no label. Give it one or remove the row; if "
                "it means that no class applies, use `task=multi-label`"
            )
