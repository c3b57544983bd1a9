"""What an example looks like: the part of the image that is shown, as a function of keys.

A view is a box (left, top, width, height) in pixels of the upright full-size image, and whether it is mirrored.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import ftrain.random
from ftrain.data.order import purpose_key

ATTEMPTS = 10
RATIO = (3.0 / 4.0, 4.0 / 3.0)
CENTRE_SHARE = 0.875


class View(NamedTuple):
    """A box in pixels of the upright image, and whether it is mirrored left to right."""

    box: tuple[float, float, float, float]
    mirrored: bool


def example_draws(seed: int, epoch: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) for each example, float64 [examples, 2 * ATTEMPTS + 3], whose only arguments are the
    seed, the epoch and the index of the example."""
    keys = ftrain.random.fold_in(purpose_key(seed, "augment", epoch), torch.from_numpy(indices.copy()))
    draw = torch.func.vmap(lambda key: ftrain.random.uniform(key, (2 * ATTEMPTS + 3,), torch.float64))
    numbers: npt.NDArray[np.float64] = draw(keys).numpy()
    return numbers


def random_view(
    height: int, width: int, draws: npt.NDArray[np.float64], *, smallest_share: float, mirror: bool
) -> View:
    """A random crop, by the rule of torchvision's RandomResizedCrop, mirrored half of the time.

    The area is uniform in [smallest_share, 1] of the image's, the logarithm of width / height uniform in that of
    [3/4, 4/3]; of ten such draws the first that fits is taken, at a uniform place in whole pixels. If none fits, the
    largest box at the centre that keeps the ratio within bounds (Szegedy et al., Going deeper with convolutions, 2015).

    Args:
      height, width: of the upright image.
      draws: one row of `example_draws`.
      smallest_share: in (0, 1]; at 1 the whole image is shown as in `centre_view`, without a crop.
      mirror: whether to mirror at all.
    """
    mirrored = mirror and bool(draws[0] < 0.5)
    if smallest_share == 1.0:
        return View(centre_view(height, width, share=1.0).box, mirrored)
    place_x, place_y = draws[1], draws[2]
    areas = height * width * (smallest_share + (1.0 - smallest_share) * draws[3 : 3 + ATTEMPTS])
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratios = np.exp(low + (high - low) * draws[3 + ATTEMPTS : 3 + 2 * ATTEMPTS])
    widths, heights = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    if fits.any():
        first = int(fits.argmax())
        crop_width, crop_height = int(widths[first]), int(heights[first])
        left, top = int(place_x * (width - crop_width + 1)), int(place_y * (height - crop_height + 1))
    else:
        ratio = min(max(width / height, RATIO[0]), RATIO[1])
        crop_width, crop_height = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return View((left, top, crop_width, crop_height), mirrored)


def centre_view(height: int, width: int, *, share: float = CENTRE_SHARE) -> View:
    """The square at the centre whose side is `share` of the shorter side: as resizing the shorter side to size / share
    and cropping size at the centre, in one step."""
    side = max(1.0, share * min(height, width))
    return View(((width - side) / 2.0, (height - side) / 2.0, side, side), False)
