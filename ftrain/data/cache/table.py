"""A table of features: what a frozen part of a network makes of each image of a source, computed once."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import platformdirs
import torch
from torch import Tensor

from ftrain.data.cache.disk import reserve
from ftrain.disk import durable

FORMAT = 1  # raised when older tables can no longer be read
FEATURES, ABOUT = "features.bin", "table.json"


@attrs.frozen(eq=False)
class FeatureTable:
    """Features of images, by their positions in the source.

    Attributes:
      features: float32 [N, ...], in memory, in a file that is mapped, or on a GPU.
      bad_images: why an image could not be read, by its position. The features of such an image are not used.

    >>> table = FeatureTable(torch.arange(6.0).reshape(3, 2), {1: "cannot read the image"})
    >>> features, readable, skipped = table.rows(torch.tensor([2, 1]))
    >>> features.tolist(), readable.tolist(), skipped
    ([[4.0, 5.0], [2.0, 3.0]], [1.0, 0.0], {1: 'cannot read the image'})
    """

    features: Tensor
    bad_images: dict[int, str]

    def rows(self, positions: Tensor) -> tuple[Tensor, Tensor, dict[int, str]]:
        """The features at some positions, int64 [B]; float32 [B] on the host, 1 for images that could be read and 0 for
        others; and why those could not."""
        readable = torch.ones(len(positions))
        skipped = {}
        if self.bad_images:
            for row, position in enumerate(positions.tolist()):
                if position in self.bad_images:
                    readable[row], skipped[position] = 0.0, self.bad_images[position]
        return self.features[positions.to(self.features.device)], readable, skipped


def table_folder(facts: Sequence[Any]) -> Path:
    """Where a table is kept on disk: in the user's cache folder, under a name that depends on what it is made of.

    Args:
      facts: everything that its features depend on, as JSON values.
    """
    name = hashlib.sha256(json.dumps([FORMAT, *facts]).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return platformdirs.user_cache_path("ftrain") / "features" / name


def open_table(folder: Path) -> FeatureTable | None:
    """The table in a folder, or None if there is none or it is damaged. The whole file is read.

    >>> open_table(Path("no/such/folder")) is None
    True
    """
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        size = 4 * math.prod(about["shape"])
        if about["format"] != FORMAT or (folder / FEATURES).stat().st_size != size:
            return None
        if about["sha256"] != _sha256(folder / FEATURES):
            return None
        return FeatureTable(
            _mapped(folder / FEATURES, about["shape"], shared=False),
            {int(position): cause for position, cause in about["unreadable"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextmanager
def new_table(folder: Path, shape: Sequence[int]) -> Iterator[FeatureTable]:
    """A table to fill, which is on disk in `folder` at the end. If that fails, nothing is left.

    Raises:
      OSError: if the disk is full or cannot be written.
    """
    if folder.is_dir() and open_table(folder) is None:  # damaged
        durable.remove_folder(folder)
    try:
        with durable.new_folder(folder) as partial:
            descriptor = os.open(partial / FEATURES, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                reserve(descriptor, 4 * math.prod(shape), folder)
            finally:
                os.close(descriptor)
            table = FeatureTable(_mapped(partial / FEATURES, shape, shared=True), {})
            yield table
            durable.sync(partial / FEATURES)
            about = {"format": FORMAT, "shape": list(shape), "unreadable": table.bad_images}
            about["sha256"] = _sha256(partial / FEATURES)
            durable.write(partial / ABOUT, [json.dumps(about).encode()])
    except OSError:
        if open_table(folder) is None:  # otherwise another run was first
            raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mapped(path: Path, shape: Sequence[int], *, shared: bool) -> Tensor:
    return torch.from_file(str(path), shared=shared, size=math.prod(shape), dtype=torch.float32).reshape(tuple(shape))
