"""A look at every image of a data set: what cannot be read, what is there twice, how many and how large they are."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from ftrain.data.decode import read_image
from ftrain.data.folders import Index
from ftrain.data.workers import work
from ftrain.errors import DataError

CHUNK = 16


class Place(NamedTuple):
    """An image of a data set of several parts, such as train and val."""

    part: str
    label: str
    path: str


@attrs.frozen
class Report:
    """What was found.

    Attributes:
      classes: for each part, how many images each class has.
      sizes: height and width of the readable images, int64 [images, 2].
      unreadable: the images that cannot be read, and why.
      duplicates: groups of files with the same bytes.
    """

    classes: dict[str, dict[str, int]]
    sizes: npt.NDArray[np.int64]
    unreadable: list[tuple[Place, str]]
    duplicates: list[list[Place]]

    @property
    def leaks(self) -> list[list[Place]]:
        """The groups of duplicates that are in several parts."""
        return [group for group in self.duplicates if len({place.part for place in group}) > 1]

    @property
    def conflicts(self) -> list[list[Place]]:
        """The groups of duplicates that have several labels."""
        return [group for group in self.duplicates if len({place.label for place in group}) > 1]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        sides = {
            name: {"smallest": int(side.min()), "median": int(np.median(side)), "largest": int(side.max())}
            for name, side in (("height", self.sizes[:, 0]), ("width", self.sizes[:, 1]))
            if len(side)
        }
        return {
            "classes": self.classes,
            "sizes": sides,
            "unreadable": [{**place._asdict(), "cause": cause} for place, cause in self.unreadable],
            "duplicates": [[place._asdict() for place in group] for group in self.duplicates],
            "leaks": len(self.leaks),
            "conflicts": len(self.conflicts),
        }


def check(parts: Mapping[str, Index], *, workers: int) -> Generator[int, None, Report]:
    """Reads every image: yields how many are read, and returns the report."""
    sizes: list[tuple[int, int]] = []
    unreadable: list[tuple[Place, str]] = []
    copies: dict[str, list[Place]] = defaultdict(list)
    done = 0
    for part, index in parts.items():
        chunks = (range(first, min(first + CHUNK, len(index))) for first in range(0, len(index), CHUNK))
        for positions, found in work(_Reader(index), chunks, workers=workers):
            for position, (digest, size, cause) in zip(positions, found, strict=True):
                place = Place(part, index.classes[index.labels[position]], index.name(position))
                if cause is not None:
                    unreadable.append((place, cause))
                else:
                    sizes.append(size)
                    copies[digest].append(place)
            done += len(positions)
            yield done
    return Report(
        classes={part: _counts(index) for part, index in parts.items()},
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        unreadable=unreadable,
        duplicates=[group for group in copies.values() if len(group) > 1],
    )


def _counts(index: Index) -> dict[str, int]:
    counts = np.bincount(index.labels, minlength=len(index.classes)).tolist()
    return dict(zip(index.classes, counts, strict=True))


class _Reader(Dataset[Any]):
    def __init__(self, index: Index) -> None:
        self.index = index

    def __getitem__(self, positions: range) -> tuple[range, list[tuple[str, tuple[int, int], str | None]]]:
        return positions, [self.read(self.index.name(position)) for position in positions]

    def read(self, path: str) -> tuple[str, tuple[int, int], str | None]:
        try:
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            height, width = read_image(path).shape[1:]
        except OSError as error:
            return "", (0, 0), error.strerror or str(error)
        except DataError as error:
            return "", (0, 0), str(error)
        return digest, (height, width), None
