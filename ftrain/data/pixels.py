"""The pixels of one example, as the network receives them."""

from __future__ import annotations

import os
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ftrain.data.augment import Colour, Fit, centre_pixels, example_draws
from ftrain.data.convert import to_pillow
from ftrain.data.decode import crop, oriented_size
from ftrain.data.images import Images
from ftrain.data.resize import Interpolation, resized


def train_pixels(images: Images, position: int, draws: npt.NDArray[np.float64]) -> Tensor:
    """A training image as it is augmented in one epoch, if `images` does not say otherwise, uint8 [3, S, S].

    Args:
      images: the data.
      position: of the image in `images.train`.
      draws: the random numbers of this example in this epoch, one row of `example_draws`.

    Raises:
      DataError: if the image cannot be read.
    """
    if images.unaugmented:
        return train_pixels_unaugmented(images, position)
    augmentation, cache, size = images.augmentation, images.train_cache, images.image_size
    if cache is not None:
        view = augmentation.view(*cache.size(position), draws)
        holds_squares = cache.form.fraction is not None
        pixels = cache.whole(position) if holds_squares else cache.crop(position, view.box, size)
    else:
        with images.train.open(position) as image:
            view = augmentation.view(*oriented_size(image), draws)
            if augmentation.crop_scale == 1.0:
                pixels = _square(image, images, fraction=1.0)
            else:
                part = torch.from_numpy(crop(image, view.box, size)).permute(2, 0, 1)
                pixels = resized(part, size, size, augmentation.interpolation)
    return augmentation.apply(pixels.flip(-1) if view.flipped else pixels, draws)


def train_pixels_in_epoch(images: Images, position: int, epoch: int) -> Tensor:
    """A training image as it is augmented in an epoch, counted from 0: uint8 [3, S, S].

    Raises:
      DataError: if the image cannot be read.
    """
    draws = example_draws(images.seed, epoch, np.array([position]), count=images.augmentation.draws)
    return train_pixels(images, position, draws[0])


def train_pixels_unaugmented(images: Images, position: int) -> Tensor:
    """A training image as evaluation would use it, uint8 [3, S, S].

    Raises:
      DataError: if the image cannot be read.
    """
    with images.train.open(position) as image:
        return _evaluated(image, images)


def val_pixels(images: Images, position: int) -> Tensor:
    """A validation image, uint8 [3, S, S].

    Raises:
      DataError: if the image cannot be read.
    """
    if images.val_cache is not None:
        return images.val_cache.whole(position)
    with images.val.open(position) as image:
        return _evaluated(image, images)


def image_pixels(
    image: str | os.PathLike[str] | Image.Image | npt.NDArray[Any] | Tensor,
    size: int,
    *,
    fraction: float,
    fit: Fit = "crop",
    bars: Colour | None = None,
    interpolation: Interpolation = "bilinear",
    name: str = "in memory",
) -> npt.NDArray[np.uint8]:
    """A single image as evaluation uses it: whole, or the square at its centre, uint8 [3, size, size].

    An image in memory gives the same pixels as a lossless file of it. The rules are those of files: EXIF orientation is
    applied, and transparent parts become white.

    Args:
      image: the path of an image file, a PIL image, a uint8 array [H, W, 3], [3, H, W] or [H, W], or a uint8 tensor
        [3, H, W], [1, H, W] or [H, W]. An array whose first and last sides are both 3 is read as [H, W, 3].
      size: the side of the result in pixels.
      fraction: the side of the square as a fraction of the image's shorter side, in (0, 1].
      fit: how an image that is not square becomes a square: crop uses the square at its centre, pad adds bars, and
        stretch changes its ratio. The last two use the whole image.
      bars: red, green and blue from 0 to 255, with `fit="pad"`.
      interpolation: how to scale.
      name: of an image that is not in a file, in messages.

    Raises:
      ValueError: if an argument is not as described.
      DataError: if the image cannot be read.

    >>> image_pixels(np.full((6, 4), 7, np.uint8), 2, fraction=1.0).tolist()
    [[[7, 7], [7, 7]], [[7, 7], [7, 7]], [[7, 7], [7, 7]]]
    """
    if size < 1:
        raise ValueError(f"`size` must be at least 1 pixel, got {size}")
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"`fraction` must be more than 0 and at most 1, got {fraction}")
    if fit not in get_args(Fit) or (bars is None and fit == "pad"):
        raise ValueError(f"`fit` must be crop, stretch, or pad with `bars`; got {fit!r} and {bars!r}")
    with to_pillow(image, name) as opened:
        return centre_pixels(opened, size, fraction=fraction, fit=fit, bars=bars, interpolation=interpolation)


def _evaluated(image: Image.Image, images: Images) -> Tensor:
    return _square(image, images, fraction=images.augmentation.centre_fraction)


def _square(image: Image.Image, images: Images, *, fraction: float) -> Tensor:
    augmentation = images.augmentation
    pixels = centre_pixels(
        image,
        images.image_size,
        fraction=fraction,
        fit=augmentation.fit,
        bars=augmentation.bars,
        interpolation=augmentation.interpolation,
    )
    return torch.from_numpy(pixels)
