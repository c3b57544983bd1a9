"""What a cache stores for each image."""

from __future__ import annotations

from typing import Any, NamedTuple

from ftrain.data.augment import Colour, Fit
from ftrain.data.resize import Interpolation


class CacheFormat(NamedTuple):
    """What a cache stores for each image: a square, as evaluation uses it, or all of it.

    Attributes:
      side: in pixels: of the square, or of the shorter side of the whole image, which is never enlarged.
      fraction: the side of the square as a fraction of the image's shorter side; None for no square.
      fit, bars: how the image becomes a square, as for `ftrain.data.image_pixels`.
      interpolation: how it is scaled, and how crops of it are.

    >>> CacheFormat(24, 0.875).size(60, 96), CacheFormat(30, None).size(60, 96)
    ((24, 24), (30, 48))
    """

    side: int
    fraction: float | None
    fit: Fit = "crop"
    bars: Colour | None = None
    interpolation: Interpolation = "bilinear"

    @property
    def facts(self) -> list[Any]:
        """The fields up to the last one that differs from its default, so that older caches, without it, are found.

        >>> CacheFormat(24, 0.875).facts, CacheFormat(24, 0.875, fit="stretch").facts
        ([24, 0.875], [24, 0.875, 'stretch'])
        """
        fields = list(zip(self, self._fields, strict=True))
        while fields and fields[-1][0] == self._field_defaults.get(fields[-1][1], ...):
            fields.pop()
        return [value for value, _ in fields]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in the cache of an image with this height and width in pixels."""
        if self.fraction is not None:
            return self.side, self.side
        scale = min(1.0, self.side / min(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))
