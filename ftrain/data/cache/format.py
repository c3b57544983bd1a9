"""What a cache stores for each image."""

from __future__ import annotations

from typing import NamedTuple


class CacheFormat(NamedTuple):
    """What a cache stores for each image: the square at its centre, or all of it.

    Attributes:
      side: in pixels: of the square, or of the shorter side of the whole image, which is never enlarged.
      fraction: the side of the square as a fraction of the image's shorter side; None for the whole image.

    >>> CacheFormat(24, 0.875).size(60, 96), CacheFormat(30, None).size(60, 96)
    ((24, 24), (30, 48))
    """

    side: int
    fraction: float | None

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in the cache of an image with this height and width in pixels."""
        if self.fraction is not None:
            return self.side, self.side
        scale = min(1.0, self.side / min(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))
