"""What an example looks like: the part of the image that is shown, and what becomes of it, as functions of keys.

A view is a box (left, top, width, height) in pixels of the upright full-size image, and whether it is mirrored.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import attrs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

import ftrain.random
from ftrain.data.decode import crop_and_resize, oriented_size
from ftrain.data.order import purpose_key
from ftrain.data.policies import (
    COLOR_JITTER_DRAWS,
    ERASING_DRAWS,
    TRIVIAL_AUGMENT_DRAWS,
    color_jitter,
    rand_augment,
    rand_augment_draws,
    random_erasing,
    trivial_augment_wide,
)

ATTEMPTS = 10
CENTRE_SHARE = 0.875

# Which of an example's draws are for what.
_VIEW = slice(0, 2 * ATTEMPTS + 3)
_POLICY = slice(_VIEW.stop, _VIEW.stop + max(rand_augment_draws(2), TRIVIAL_AUGMENT_DRAWS))
_JITTER = slice(_POLICY.stop, _POLICY.stop + COLOR_JITTER_DRAWS)
_ERASING = slice(_JITTER.stop, _JITTER.stop + ERASING_DRAWS)

Box = tuple[float, float, float, float]


class View(NamedTuple):
    """A box in pixels of the upright image, and whether it is mirrored left to right."""

    box: Box
    mirrored: bool


@attrs.frozen(kw_only=True)
class Augmentation:
    """How training shows an image otherwise in each epoch."""

    crop_scale: float = 1.0  # smallest share of an image's area that a crop shows; 1 for the square at its centre
    crop_ratio: float = 4.0 / 3.0  # widest ratio of a crop's width to its height; its inverse is the narrowest
    mirror: bool = True  # whether half of the images are mirrored left to right
    policy: Literal["none", "rand-augment", "trivial-augment"] = "none"
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # of brightness, contrast, saturation, hue
    erasing: float = 0.0  # probability that a rectangle is hidden
    fill: tuple[int, int, int] = (124, 116, 104)  # the colour of what is not there: red, green, blue, 0 to 255

    @property
    def draws(self) -> int:
        """How many numbers an example needs from `example_draws`."""
        needed = [_VIEW]
        needed += [_POLICY] if self.policy != "none" else []
        needed += [_JITTER] if any(self.jitter) else []
        needed += [_ERASING] if self.erasing else []
        return needed[-1].stop

    @property
    def centre_share(self) -> float:
        """How much of an image's shorter side evaluation shows: all of it where training shows whole squares."""
        return 1.0 if self.crop_scale == 1.0 else CENTRE_SHARE

    def view(self, height: int, width: int, draws: npt.NDArray[np.float64]) -> View:
        """The part of an image of that size that is shown."""
        return random_view(
            height, width, draws, smallest_share=self.crop_scale, widest_ratio=self.crop_ratio, mirror=self.mirror
        )

    def apply(self, pixels: Tensor, draws: npt.NDArray[np.float64]) -> Tensor:
        """What is done to the pixels of a view, uint8 [3, S, S]: the policy, the jitter, the erasing, in this order."""
        if self.draws == _VIEW.stop:
            return pixels
        array = pixels.numpy()
        if self.policy == "rand-augment":
            array = rand_augment(array, draws[_POLICY], fill=self.fill)
        elif self.policy == "trivial-augment":
            array = trivial_augment_wide(array, draws[_POLICY][:TRIVIAL_AUGMENT_DRAWS], fill=self.fill)
        if any(self.jitter):
            brightness, contrast, saturation, hue = self.jitter
            array = color_jitter(
                array, draws[_JITTER], brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
            )
        if self.erasing:
            array = random_erasing(array, draws[_ERASING], probability=self.erasing, fill=self.fill)
        return torch.from_numpy(array)


def example_draws(seed: int, epoch: int, indices: npt.NDArray[np.int64], *, count: int) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) for each example, float64 [examples, count], whose only arguments are the seed, the
    epoch and the index of the example. (More of them begin with the same ones.)"""
    keys = ftrain.random.fold_in(purpose_key(seed, "augment", epoch), torch.from_numpy(indices.copy()))
    draw = torch.func.vmap(lambda key: ftrain.random.uniform(key, (count,), torch.float64))
    numbers: npt.NDArray[np.float64] = draw(keys).numpy()
    return numbers


def random_view(
    height: int,
    width: int,
    draws: npt.NDArray[np.float64],
    *,
    smallest_share: float,
    widest_ratio: float = 4.0 / 3.0,
    mirror: bool,
) -> View:
    """A random crop, by the rule of torchvision's RandomResizedCrop, mirrored half of the time.

    The area is uniform in [smallest_share, 1] of the image's, the logarithm of width / height uniform in that of
    [1 / widest_ratio, widest_ratio]; of ten such draws the first that fits is taken, at a uniform place in whole
    pixels. If none fits, the largest box at the centre that keeps the ratio within bounds (Szegedy et al., Going deeper
    with convolutions, 2015).

    Args:
      height, width: of the upright image.
      draws: one row of `example_draws`.
      smallest_share: in (0, 1]; at 1 the square at the centre is shown as in `centre_view`, without a crop.
      mirror: whether to mirror at all.
    """
    mirrored = mirror and bool(draws[0] < 0.5)
    if smallest_share == 1.0:
        return View(centre_view(height, width, share=1.0).box, mirrored)
    place_x, place_y, *shapes = draws[1 : _VIEW.stop].tolist()
    spread = math.log(widest_ratio)
    for area_draw, ratio_draw in zip(shapes[:ATTEMPTS], shapes[ATTEMPTS:], strict=True):
        area = height * width * (smallest_share + (1.0 - smallest_share) * area_draw)
        ratio = math.exp(spread * (2.0 * ratio_draw - 1.0))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 1 <= crop_width <= width and 1 <= crop_height <= height:
            left, top = int(place_x * (width - crop_width + 1)), int(place_y * (height - crop_height + 1))
            return View((left, top, crop_width, crop_height), mirrored)
    ratio = min(max(width / height, 1.0 / widest_ratio), widest_ratio)
    crop_width, crop_height = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return View(((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height), mirrored)


def centre_view(height: int, width: int, *, share: float = CENTRE_SHARE) -> View:
    """The square at the centre whose side is `share` of the shorter side: as resizing the shorter side to size / share
    and cropping size at the centre, in one step."""
    side = max(1.0, share * min(height, width))
    return View(((width - side) / 2.0, (height - side) / 2.0, side, side), False)


def centre_pixels(image: Image.Image, size: int, *, share: float) -> npt.NDArray[np.uint8]:
    """The square at the centre of an image, scaled: uint8 [3, size, size]."""
    return crop_and_resize(image, centre_view(*oriented_size(image), share=share).box, size)
