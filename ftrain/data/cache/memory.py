"""Building a cache in shared memory."""

from __future__ import annotations

from collections.abc import Iterator

from ftrain.data.cache import room
from ftrain.data.cache.fill import fill
from ftrain.data.cache.format import CacheFormat
from ftrain.data.cache.images import ImageCache
from ftrain.data.cache.plan import CachePlan
from ftrain.data.source import Source
from ftrain.data.workers import shared_zeros
from ftrain.errors import DataError
from ftrain.text import readable


def build_in_memory(source: Source, plan: CachePlan, form: CacheFormat, *, workers: int) -> Iterator[int | ImageCache]:
    """Builds a cache in memory that worker processes share. Yields the number of images done, and finally the cache.

    Raises:
      DataError: if there is not enough shared memory.
    """
    free = room.free_shared_memory()
    if 0 < free < plan.bytes:
        raise DataError(
            f"`cache=ram` needs {readable(plan.bytes)} of shared memory, but only {readable(free)} is free; use "
            "`cache=disk` or `cache=none`"
        )
    yield from fill(source, ImageCache(plan, form, None, shared_zeros(plan.bytes)), workers)
