"""Labelled images in files as a source."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from PIL import Image

from ftrain.data.decode import open_image
from ftrain.data.labels import Labels, is_of_class
from ftrain.errors import DataError
from ftrain.text import shown


@attrs.frozen(eq=False)
class Index:
    """Labelled images in files, sorted by the bytes of their paths; those that `scan` lists are sorted by class
    first.

    Attributes:
      root: the folder that was scanned, or the folder of the table.
      classes: the names of the classes. A label is a position in this tuple.
      paths: the images' paths relative to `root`, with forward slashes. Bytes that are not UTF-8 are as `os.fsdecode`
        returns them. In a table there may be absolute paths and URLs.
      labels: int64 [N], or uint8 [N, C] of 0 and 1 if an image may have several labels.
      sizes: int64 [N], the sizes of the files in bytes.
      modified: int64 [N], the times when the files were last written, in nanoseconds since 1970.
      fingerprint: a SHA-256 over the classes, the paths and the sizes, and for a table over labels and weights, in
        hexadecimal.
      skipped: how many files were found that are not images known here, by kind: by their suffix, such as ".pdf".
      split: of a part of an index that was split automatically, what config.json records of the split.
      table: the table that lists the images; None for a folder.
      weights: float32 [N], how much each image counts; None if all count the same.
      groups: int64 [N]; images with the same number belong together when images are split. None if there are no groups.
      files: where the images are, if not in `root` under their paths: images of URLs, downloaded.

    >>> from ftrain.data import sample_folder, scan
    >>> index = scan(sample_folder() / "val")
    >>> with index.open(0) as image:
    ...     print(len(index), index.classes[:2], index.paths[0], image.size)
    500 ('ankle-boot', 'bag') ankle-boot/00000.png (28, 28)
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: Labels
    sizes: npt.NDArray[np.int64]
    modified: npt.NDArray[np.int64]
    fingerprint: str
    skipped: Mapping[str, int] = attrs.field(factory=dict)
    split: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    table: Path | None = None
    weights: npt.NDArray[np.float32] | None = attrs.field(default=None, repr=False)
    groups: npt.NDArray[np.int64] | None = attrs.field(default=None, repr=False)
    files: tuple[str, ...] | None = attrs.field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def name(self) -> str:
        """The absolute path of the folder or the table."""
        return os.path.abspath(self.table or self.root)

    def open(self, position: int) -> Image.Image:
        """The image at `position`, of which only the header is read.

        Raises:
          DataError: if it cannot be read.
        """
        return open_image(self.image_name(position))

    def image_name(self, position: int) -> str:
        """The path of the image at `position`."""
        return os.path.join(self.root, (self.files or self.paths)[position])

    def part(self, chosen: npt.NDArray[np.bool_], **changes: Any) -> Index:
        """Some of the images, with the classes of all.

        Args:
          chosen: which ones, bool [N].
          changes: other attributes that differ.
        """
        positions = np.flatnonzero(chosen)
        paths = tuple(self.paths[position] for position in positions.tolist())
        labels, sizes = self.labels[positions], self.sizes[positions]
        weights = None if self.weights is None else relative(self.weights[positions], self.name)
        listed = () if self.table is None else (labels, weights)  # in a folder, the paths tell the labels
        return attrs.evolve(
            self,
            paths=paths,
            labels=labels,
            sizes=sizes,
            modified=self.modified[positions],
            fingerprint=fingerprint_of(self.classes, paths, sizes, *listed),
            weights=weights,
            groups=None if self.groups is None else self.groups[positions],
            files=None if self.files is None else tuple(self.files[position] for position in positions.tolist()),
            **changes,
        )

    def class_fingerprints(self) -> dict[str, dict[str, int | str]]:
        """How many images each class has, and a SHA-256 over their paths and sizes, to find out what has changed."""
        found: dict[str, dict[str, int | str]] = {}
        for label, name in enumerate(self.classes):
            digest = hashlib.sha256()
            members = np.flatnonzero(is_of_class(self.labels, label)).tolist()
            for position in members:
                digest.update(b"\0%s\0%d" % (os.fsencode(self.paths[position]), self.sizes[position]))
            found[name] = {"images": len(members), "fingerprint": digest.hexdigest()}
        return found


def relative(weights: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32] | None:
    """Weights of images, divided by their mean, so that they add up to the number of images; None if all are the same.

    Args:
      name: of the table, for messages.

    Raises:
      DataError: if all are 0.

    >>> relative(np.array([1.0, 3.0]), "labels.csv").tolist()
    [0.5, 1.5]
    """
    if not len(weights):
        return None
    largest = float(weights.max())
    if largest == 0.0:
        raise DataError(f"all weights in {shown(name)} are 0; expected at least one above 0 in each split")
    if bool((weights == largest).all()):
        return None
    scaled = weights.astype(np.float64) / largest
    found: npt.NDArray[np.float32] = (scaled / scaled.mean()).astype(np.float32)
    return found


def fingerprint_of(
    classes: Iterable[str], paths: Iterable[str], sizes: npt.NDArray[np.int64], *listed: npt.NDArray[Any] | None
) -> str:
    """A SHA-256 over the names of classes, over the paths and sizes of files, and over what a table says of them."""
    digest = hashlib.sha256()
    for name in classes:
        digest.update(b"%s\0" % os.fsencode(name))
    for path, size in zip(paths, sizes.tolist(), strict=True):
        digest.update(b"\0%s\0%d" % (os.fsencode(path), size))
    for values in listed:
        digest.update(b"\0\0none" if values is None else b"\0\0%s" % values.tobytes())
    return digest.hexdigest()
