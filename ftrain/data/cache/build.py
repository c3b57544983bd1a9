"""Building a cache, unless there is one already."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal, NamedTuple

from ftrain.data.cache.disk import build_on_disk, cache_folder, open_cache
from ftrain.data.cache.format import CacheFormat
from ftrain.data.cache.images import ImageCache
from ftrain.data.cache.memory import build_in_memory
from ftrain.data.cache.plan import CachePlan, plan_cache
from ftrain.data.source import Source
from ftrain.text import shown


class Caching(NamedTuple):
    """The progress of building a cache.

    Attributes:
      done: images decoded so far.
      total: all images.
      bytes: the size of the cache when it is complete.
      place: where it is: "memory", or the path of a folder, safe to print.

    >>> Caching(done=32, total=2000, bytes=4_704_000, place="memory").done
    32
    """

    done: int
    total: int
    bytes: int
    place: str


def build_cache(
    source: Source, form: CacheFormat, kind: Literal["ram", "disk"], *, workers: int
) -> Generator[Caching, None, ImageCache]:
    """Decodes all images of a source into a cache. Yields its progress, and returns the cache. If the cache is on disk
    already, nothing is decoded or yielded.

    Args:
      source: the images.
      form: what to hold of each image.
      kind: where: in shared memory, or in the user's cache folder.
      workers: processes that decode; 0 decodes in this one.

    Raises:
      DataError: if there is not enough memory.
      OSError: if the disk is full or cannot be written. No files remain then.

    >>> import numpy as np
    >>> from ftrain.data import from_arrays
    >>> source = from_arrays(np.zeros((2, 8, 8), np.uint8), [0, 1])
    >>> list(build_cache(source, CacheFormat(4, 1.0), "ram", workers=0))
    [Caching(done=0, total=2, bytes=96, place='memory'), Caching(done=2, total=2, bytes=96, place='memory')]
    """
    folder = cache_folder(source, form) if kind == "disk" else None
    if folder and (cache := open_cache(folder)):
        return cache
    place = shown(folder) if folder else "memory"
    *_, plan = plan_cache(source, form, workers=workers)
    assert isinstance(plan, CachePlan)
    yield Caching(0, len(source), plan.bytes, place)
    building = (
        build_on_disk(source, plan, form, folder, workers=workers)
        if folder
        else build_in_memory(source, plan, form, workers=workers)
    )
    for event in building:
        if isinstance(event, ImageCache):
            return event
        yield Caching(event, len(source), plan.bytes, place)
    raise AssertionError("a build ends with a cache")
