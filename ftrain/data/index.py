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


@attrs.frozen(eq=False)
class Index:
    """Labelled images in files, as `scan` lists them: class by class, and within a class sorted by the bytes of their
    paths.

    Attributes:
      root: the folder that was scanned.
      classes: the names of the classes. A label is a position in this tuple.
      paths: the images' paths relative to `root`, with forward slashes. Bytes that are not UTF-8 are as `os.fsdecode`
        returns them.
      labels: int64 [N].
      sizes: int64 [N], the sizes of the files in bytes.
      modified: int64 [N], the times when the files were last written, in nanoseconds since 1970.
      fingerprint: a SHA-256 over the classes, the paths and the sizes, in hexadecimal.
      skipped: how many files were found that are not images known here, by kind: by their suffix, such as ".pdf".
      split: of a part of an index that was split automatically, what config.json records of the split.

    >>> from ftrain.data import sample_folder, scan
    >>> index = scan(sample_folder() / "val")
    >>> with index.open(0) as image:
    ...     print(len(index), index.classes[:2], index.paths[0], image.size)
    500 ('ankle-boot', 'bag') ankle-boot/00000.png (28, 28)
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    modified: npt.NDArray[np.int64]
    fingerprint: str
    skipped: Mapping[str, int] = attrs.field(factory=dict)
    split: Mapping[str, Any] | None = attrs.field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def name(self) -> str:
        """The absolute path of the folder."""
        return os.path.abspath(self.root)

    def open(self, position: int) -> Image.Image:
        """The image at `position`, of which only the header is read.

        Raises:
          DataError: if it cannot be read.
        """
        return open_image(self.image_name(position))

    def image_name(self, position: int) -> str:
        """The path of the image at `position`."""
        return os.path.join(self.root, self.paths[position])

    def part(self, chosen: npt.NDArray[np.bool_], **changes: Any) -> Index:
        """Some of the images, with the classes of all.

        Args:
          chosen: which ones, bool [N].
          changes: other attributes that differ.
        """
        positions = np.flatnonzero(chosen)
        paths = tuple(self.paths[position] for position in positions.tolist())
        return attrs.evolve(
            self,
            paths=paths,
            labels=self.labels[positions],
            sizes=self.sizes[positions],
            modified=self.modified[positions],
            fingerprint=fingerprint_of(self.classes, paths, self.sizes[positions]),
            **changes,
        )

    def class_fingerprints(self) -> dict[str, dict[str, int | str]]:
        """How many images each class has, and a SHA-256 over their paths and sizes, to find out what has changed."""
        found: dict[str, dict[str, int | str]] = {}
        for label, name in enumerate(self.classes):
            digest = hashlib.sha256()
            members = np.flatnonzero(self.labels == label).tolist()
            for position in members:
                digest.update(b"\0%s\0%d" % (os.fsencode(self.paths[position]), self.sizes[position]))
            found[name] = {"images": len(members), "fingerprint": digest.hexdigest()}
        return found


def fingerprint_of(classes: Iterable[str], paths: Iterable[str], sizes: npt.NDArray[np.int64]) -> str:
    """A SHA-256 over the names of classes, and over the paths and sizes of files."""
    digest = hashlib.sha256()
    for name in classes:
        digest.update(b"%s\0" % os.fsencode(name))
    for path, size in zip(paths, sizes.tolist(), strict=True):
        digest.update(b"\0%s\0%d" % (os.fsencode(path), size))
    return digest.hexdigest()
