"""Checking every image of a data set: bad images, duplicates, class counts and sizes."""

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
from ftrain.data.index import Index
from ftrain.data.labels import images_of_class, label_names
from ftrain.data.workers import run_jobs
from ftrain.errors import DataError
from ftrain.text import shown

CHUNK = 16
UNEVEN = 10  # times as many images as another class has


class CheckedImage(NamedTuple):
    """An image of a data set.

    Attributes:
      split: such as train or val.
      label: the name of its class; of several labels, all names.
      path: of its file.
    """

    split: str
    label: str
    path: str

    def as_json(self) -> dict[str, str]:
        """The image as JSON values."""
        return {"part": self.split, "label": self.label, "path": self.path}


@attrs.frozen
class Report:
    """The result of `check`.

    Attributes:
      classes: for each split, how many images each class has.
      sizes: height and width of all images but the bad ones, int64 [images, 2].
      bad_images: the images that cannot be read, and why.
      duplicates: groups of files with the same bytes.
    """

    classes: dict[str, dict[str, int]]
    sizes: npt.NDArray[np.int64]
    bad_images: list[tuple[CheckedImage, str]]
    duplicates: list[list[CheckedImage]]

    @property
    def leaks(self) -> list[list[CheckedImage]]:
        """The groups of duplicates that are in more than one split."""
        return [group for group in self.duplicates if len({image.split for image in group}) > 1]

    @property
    def conflicts(self) -> list[list[CheckedImage]]:
        """The groups of duplicates that have more than one label."""
        return [group for group in self.duplicates if len({image.label for image in group}) > 1]

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
            "unreadable": [{**image.as_json(), "cause": cause} for image, cause in self.bad_images],
            "duplicates": [[image.as_json() for image in group] for group in self.duplicates],
            "leaks": len(self.leaks),
            "conflicts": len(self.conflicts),
        }


def check(splits: Mapping[str, Index], *, workers: int) -> Generator[int, None, Report]:
    """Reads every image. Yields the number of images read, and returns the report."""
    sizes: list[tuple[int, int]] = []
    bad_images: list[tuple[CheckedImage, str]] = []
    copies: dict[str, list[CheckedImage]] = defaultdict(list)
    done = 0
    for split, index in splits.items():
        chunks = (range(first, min(first + CHUNK, len(index))) for first in range(0, len(index), CHUNK))
        for positions, found in run_jobs(_Reader(index), chunks, workers=workers):
            for position, (digest, size, cause) in zip(positions, found, strict=True):
                label = label_names(index.labels[position], index.classes)
                image = CheckedImage(split, label, index.image_name(position))
                if cause is not None:
                    bad_images.append((image, cause))
                else:
                    sizes.append(size)
                    copies[digest].append(image)
            done += len(positions)
            yield done
    return Report(
        classes={split: _counts(index) for split, index in splits.items()},
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        bad_images=bad_images,
        duplicates=[group for group in copies.values() if len(group) > 1],
    )


def uneven(counts: Mapping[str, int]) -> str | None:
    """A warning if some classes have far fewer images than others; None otherwise.

    >>> uneven({"cat": 100, "dog": 3})
    'the classes are uneven: "dog" has 3 images and "cat" has 100. A high accuracy may then hide that small classes ...
    """
    smallest, largest = (choose(counts, key=lambda name: counts[name]) for choose in (min, max))
    if counts[smallest] * UNEVEN > counts[largest]:
        return None
    return (
        f'the classes are uneven: "{shown(smallest)}" has {_images(counts[smallest])} and "{shown(largest)}" has '
        f"{counts[largest]}. A high accuracy may then hide that small classes are not learned; look at the scores of "
        "each class in `ftrain evaluate`, and add images"
    )


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _counts(index: Index) -> dict[str, int]:
    return dict(zip(index.classes, images_of_class(index.labels, len(index.classes)), strict=True))


class _Reader(Dataset[Any]):
    def __init__(self, index: Index) -> None:
        self.index = index

    def __getitem__(self, positions: range) -> tuple[range, list[tuple[str, tuple[int, int], str | None]]]:
        return positions, [self.read(self.index.image_name(position)) for position in positions]

    def read(self, path: str) -> tuple[str, tuple[int, int], str | None]:
        try:
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            height, width = read_image(path).shape[1:]
        except OSError as error:
            return "", (0, 0), error.strerror or str(error)
        except DataError as error:
            return "", (0, 0), str(error)
        return digest, (height, width), None
