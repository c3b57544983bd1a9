"""Where each image lies in a cache, worked out from the headers of all images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from ftrain.data.cache.format import CacheFormat
from ftrain.data.decode import oriented_size
from ftrain.data.source import Source
from ftrain.data.workers import run_jobs
from ftrain.errors import DataError

_CHUNK = 32  # images in a worker's job


@attrs.frozen(eq=False)
class CachePlan:
    """Where each image lies in a cache.

    Attributes:
      places: int64 [N, 5], a row for each image: its first byte, height and width in the cache, height and width of the
        original. All but the first byte are 0 for an image whose header cannot be read.
      bad_images: why an image cannot be read, for each such image by its position.

    >>> CachePlan(np.array([[0, 24, 24, 60, 96], [1728, 24, 24, 48, 48]]), {}).bytes
    3456
    """

    places: npt.NDArray[np.int64]
    bad_images: dict[int, str]

    @property
    def bytes(self) -> int:
        """The size of all pixels together."""
        return int((self.places[:, 1] * self.places[:, 2]).sum()) * 3


def plan_cache(source: Source, form: CacheFormat, *, workers: int) -> Iterator[int | CachePlan]:
    """Reads the header of every image. Yields the number of images read, after each chunk, and finally the plan.

    >>> from ftrain.data import from_arrays
    >>> source = from_arrays(np.zeros((2, 60, 96), np.uint8), [0, 1])
    >>> *progress, plan = plan_cache(source, CacheFormat(30, None), workers=0)
    >>> progress, plan.places.tolist()
    ([2], [[0, 30, 48, 60, 96], [4320, 30, 48, 60, 96]])
    """
    sizes = np.zeros((len(source), 2), dtype=np.int64)
    bad_images: dict[int, str] = {}
    for positions, found in run_jobs(_Headers(source), chunks(len(source)), workers=workers):
        for position, size in zip(positions, found, strict=True):
            if isinstance(size, DataError):
                bad_images[position] = str(size)
            else:
                sizes[position] = size
        yield positions.stop
    cached = [form.size(*size) if size[0] else (0, 0) for size in sizes.tolist()]
    shapes = np.array(cached, dtype=np.int64).reshape(-1, 2)
    ends = np.cumsum(shapes[:, 0] * shapes[:, 1] * 3)
    starts = np.concatenate([[0], ends[:-1]])
    yield CachePlan(np.column_stack([starts, shapes, sizes]), bad_images)


def chunks(count: int) -> Iterator[range]:
    """The positions 0 to count - 1, in jobs for worker processes."""
    return (range(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK))


class _Headers(Dataset[Any]):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, positions: range) -> tuple[range, list[Any]]:
        return positions, [self.size(position) for position in positions]

    def size(self, position: int) -> tuple[int, int] | DataError:
        try:
            with self.source.open(position) as image:
                return oriented_size(image)
        except DataError as error:
            return error
