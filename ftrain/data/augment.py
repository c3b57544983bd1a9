"""Data augmentation: which part of an image an epoch uses and what is done to it, as functions of random numbers.

A box is (left, top, width, height) in pixels of the full-size image after its EXIF orientation has been applied.
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
from ftrain.data.resize import Interpolation

ATTEMPTS = 10
CENTRE_FRACTION = 0.875  # torchvision's: resize the shorter side to 256, then crop 224

# What each of an example's random numbers is for.
_VIEW = slice(0, 2 * ATTEMPTS + 3)
_POLICY = slice(_VIEW.stop, _VIEW.stop + max(rand_augment_draws(2), TRIVIAL_AUGMENT_DRAWS))
_JITTER = slice(_POLICY.stop, _POLICY.stop + COLOR_JITTER_DRAWS)
_ERASING = slice(_JITTER.stop, _JITTER.stop + ERASING_DRAWS)

Box = tuple[float, float, float, float]
Fit = Literal["crop", "pad", "stretch"]
Colour = tuple[int, int, int]


class View(NamedTuple):
    """A part of an image, and whether it is flipped left to right."""

    box: Box
    flipped: bool


@attrs.frozen(kw_only=True)
class Augmentation:
    """Data augmentation. The operations are applied in this order.

    Attributes:
      crop_scale: the smallest area of a random crop, as a fraction of the image's area, in (0, 1]. At 1 there is no
        random crop, and training uses the square that evaluation uses.
      crop_ratio: the largest ratio of a crop's width to its height, at least 1. The smallest is its inverse.
      flip: whether each image is flipped left to right with probability 0.5.
      policy: RandAugment or TrivialAugment, from `ftrain.data.policies`.
      jitter: the strength of the changes to brightness, contrast, saturation and hue.
      erasing: the probability of erasing a rectangle.
      fill: red, green and blue from 0 to 255 for erased pixels, and for pixels from outside the image.
      fit: how an image that is not square becomes a square where it is not cropped at random: crop uses the square at
        its centre, pad adds bars of the colour `fill`, and stretch changes its ratio.
      interpolation: how images are scaled, in training and in evaluation.
      centre_fraction: the side of the square that evaluation uses, as a fraction of the image's shorter side, in
        (0, 1]. By default 7/8, or all of it if training does not crop.

    >>> Augmentation(crop_scale=0.25).centre_fraction, Augmentation().centre_fraction
    (0.875, 1.0)
    """

    crop_scale: float = 1.0
    crop_ratio: float = 4.0 / 3.0
    flip: bool = True
    policy: Literal["none", "rand-augment", "trivial-augment"] = "none"
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    erasing: float = 0.0
    fill: Colour = (124, 116, 104)
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"
    centre_fraction: float = attrs.field(
        default=attrs.Factory(lambda self: default_centre_fraction(self.crop_scale), takes_self=True)
    )

    @property
    def bars(self) -> Colour | None:
        """The colour of the bars that evaluation adds; None if it adds none."""
        return self.fill if self.fit == "pad" else None

    @property
    def draws(self) -> int:
        """How many random numbers an example needs from `example_draws`."""
        needed = [_VIEW]
        needed += [_POLICY] if self.policy != "none" else []
        needed += [_JITTER] if any(self.jitter) else []
        needed += [_ERASING] if self.erasing else []
        return needed[-1].stop

    def view(self, height: int, width: int, draws: npt.NDArray[np.float64]) -> View:
        """The part of an image of `height` x `width` pixels that training uses."""
        return random_view(
            height, width, draws, smallest_fraction=self.crop_scale, widest_ratio=self.crop_ratio, flip=self.flip
        )

    def apply(self, pixels: Tensor, draws: npt.NDArray[np.float64]) -> Tensor:
        """The pixels of a view, uint8 [3, S, S], after the policy, the jitter and the erasing."""
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


def default_centre_fraction(crop_scale: float, of_weights: float = CENTRE_FRACTION) -> float:
    """The part of an image that evaluation uses, if nothing else is asked for: all of it if training does not crop.

    Args:
      crop_scale: the smallest area of a random crop, as in `Augmentation`.
      of_weights: the fraction that pretrained weights expect.

    >>> default_centre_fraction(0.35), default_centre_fraction(1.0)
    (0.875, 1.0)
    """
    return 1.0 if crop_scale == 1.0 else of_weights


def example_draws(
    seed: int, epochs: int | npt.NDArray[np.int64], indices: npt.NDArray[np.int64], *, count: int
) -> npt.NDArray[np.float64]:
    """The random numbers of each example, uniform in [0, 1): float64 [examples, count].

    Args:
      epochs: of the examples, counted from 0: one for all, or int64 [examples].
      indices: their positions in the source, int64 [examples].

    They depend on the seed, the epoch and the index of the example alone. A larger `count` appends numbers and leaves
    the first ones as they are.

    >>> rows = example_draws(0, 1, np.array([3, 8]), count=5)
    >>> rows.shape, bool((rows[1] == example_draws(0, 1, np.array([8]), count=5)[0]).all())
    ((2, 5), True)
    """
    epochs = np.broadcast_to(epochs, indices.shape)
    keys = torch.empty((len(indices), 2), dtype=torch.int64)
    for epoch in np.unique(epochs).tolist():
        rows = torch.from_numpy(epochs == epoch)
        members = torch.from_numpy(indices[epochs == epoch])
        keys[rows] = ftrain.random.fold_in(purpose_key(seed, "augment", epoch), members)
    draw = torch.func.vmap(lambda key: ftrain.random.uniform(key, (count,), torch.float64))
    numbers: npt.NDArray[np.float64] = draw(keys).numpy()
    return numbers


def random_view(
    height: int,
    width: int,
    draws: npt.NDArray[np.float64],
    *,
    smallest_fraction: float,
    widest_ratio: float = 4.0 / 3.0,
    flip: bool,
) -> View:
    """A random crop with the distribution of torchvision's RandomResizedCrop, flipped with probability 0.5.

    Its area is uniform in [smallest_fraction, 1] times the image's, and the logarithm of width / height is uniform
    between those of 1 / widest_ratio and widest_ratio. The first of ten such draws that fits into the image is used, at
    a uniform position in whole pixels. If none fits, the crop is the largest box at the centre whose ratio is within
    bounds (Szegedy et al., Going deeper with convolutions, 2015).

    Args:
      height, width: of the image, after its EXIF orientation has been applied.
      draws: one row of `example_draws`.
      smallest_fraction: in (0, 1]. At 1 the view is the square at the centre, without a random crop.
      widest_ratio: at least 1.
      flip: whether to flip at all.
    """
    flipped = flip and bool(draws[0] < 0.5)
    if smallest_fraction == 1.0:
        return View(centre_view(height, width, fraction=1.0).box, flipped)
    place_x, place_y, *shapes = draws[1 : _VIEW.stop].tolist()
    spread = math.log(widest_ratio)
    for area_draw, ratio_draw in zip(shapes[:ATTEMPTS], shapes[ATTEMPTS:], strict=True):
        area = height * width * (smallest_fraction + (1.0 - smallest_fraction) * area_draw)
        ratio = math.exp(spread * (2.0 * ratio_draw - 1.0))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 1 <= crop_width <= width and 1 <= crop_height <= height:
            left, top = int(place_x * (width - crop_width + 1)), int(place_y * (height - crop_height + 1))
            return View((left, top, crop_width, crop_height), flipped)
    ratio = min(max(width / height, 1.0 / widest_ratio), widest_ratio)
    crop_width, crop_height = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return View(((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height), flipped)


def centre_view(height: int, width: int, *, fraction: float = CENTRE_FRACTION) -> View:
    """The square at the centre whose side is `fraction` times the shorter side. Scaling it to `size` pixels is the same
    as scaling the shorter side to size / fraction pixels and cropping the centre.

    >>> centre_view(100, 200).box
    (56.25, 6.25, 87.5, 87.5)
    """
    side = max(1.0, fraction * min(height, width))
    return View(((width - side) / 2.0, (height - side) / 2.0, side, side), False)


def centre_pixels(
    image: Image.Image,
    size: int,
    *,
    fraction: float,
    fit: Fit = "crop",
    bars: Colour | None = None,
    interpolation: Interpolation = "bilinear",
) -> npt.NDArray[np.uint8]:
    """A whole image, or the square at its centre, scaled: uint8 [3, size, size].

    Args:
      fraction: of the shorter side, with crop.
      fit: as in `Augmentation`.
      bars: red, green and blue, with pad.
      interpolation: how to scale.

    Raises:
      DataError: if its pixels cannot be decoded.
    """
    height, width = oriented_size(image)
    if fit == "crop":
        return crop_and_resize(image, centre_view(height, width, fraction=fraction).box, size, interpolation)
    if fit == "stretch":
        return crop_and_resize(image, (0, 0, width, height), size, interpolation)
    rows, columns = (max(1, round(size * side / max(height, width))) for side in (height, width))
    above, left = (size - rows) // 2, (size - columns) // 2
    square = np.empty((3, size, size), np.uint8)
    square[:] = np.array(bars, np.uint8)[:, None, None]
    square[:, above : above + rows, left : left + columns] = crop_and_resize(
        image, (0, 0, width, height), (rows, columns), interpolation
    )
    return square
