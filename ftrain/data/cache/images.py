"""Reading images from a cache."""

from __future__ import annotations

import functools
from pathlib import Path

import attrs
import torch
from torch import Tensor

from ftrain.data.augment import Box
from ftrain.data.cache.format import CacheFormat
from ftrain.data.cache.plan import CachePlan
from ftrain.data.resize import resized
from ftrain.errors import DataError


@attrs.frozen(eq=False, slots=False)
class ImageCache:
    """Decoded images, by their positions in the source.

    Attributes:
      plan: where each image lies.
      form: what is held of each image.
      path: of the file with the pixels, if they are on disk.
      memory: uint8 [bytes], shared between processes, if they are in memory.

    >>> import numpy as np
    >>> plan = CachePlan(np.array([[0, 2, 3, 200, 300]]), {})
    >>> cache = ImageCache(plan, CacheFormat(2, None), None, torch.arange(18, dtype=torch.uint8))
    >>> cache.size(0), cache.whole(0).shape
    ((200, 300), torch.Size([3, 2, 3]))
    >>> cache.crop(0, (299.0, 199.0, 1.0, 1.0), 1).flatten().tolist()
    [15, 16, 17]
    """

    plan: CachePlan
    form: CacheFormat
    path: Path | None
    memory: Tensor | None

    @functools.cached_property
    def _pixels(self) -> Tensor:
        if self.memory is not None:
            return self.memory
        return torch.from_file(str(self.path), shared=False, size=self.plan.bytes, dtype=torch.uint8)

    def size(self, position: int) -> tuple[int, int]:
        """Height and width in pixels of the original image.

        Raises:
          DataError: if it could not be read when the cache was built.
        """
        if position in self.plan.bad_images:
            raise DataError(self.plan.bad_images[position])
        height, width = self.plan.places[position, 3:].tolist()
        return height, width

    def whole(self, position: int) -> Tensor:
        """All that the cache stores for an image, uint8 [3, height, width], channels last in memory.

        Raises:
          DataError: if it could not be read when the cache was built.
        """
        self.size(position)
        first, height, width = self.plan.places[position, :3].tolist()
        return self._pixels[first : first + height * width * 3].view(height, width, 3).permute(2, 0, 1)

    def crop(self, position: int, box: Box, size: int) -> Tensor:
        """A part of an image, scaled to a square: uint8 [3, size, size].

        The box is in pixels of the original image, and is rounded to whole pixels of the cached one. Scaling is
        antialiased.

        Raises:
          DataError: if it could not be read when the cache was built.
        """
        pixels = self.whole(position)
        full_height, full_width = self.size(position)
        left, top, width, height = box
        columns = _span(left, width, full_width, pixels.shape[2])
        rows = _span(top, height, full_height, pixels.shape[1])
        return resized(pixels[:, rows, columns], size, size, self.form.interpolation)


def _span(start: float, length: float, full: int, cached: int) -> slice:
    first = min(round(start * cached / full), cached - 1)
    return slice(first, max(first + 1, min(round((start + length) * cached / full), cached)))
