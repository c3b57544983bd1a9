"""Images in any form, as Pillow images that `ftrain.data.decode` can crop."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ftrain.data.decode import open_image
from ftrain.errors import DataError
from ftrain.text import shown


def to_pillow(image: Any, name: str) -> Image.Image:
    """The image as a Pillow image of its own, which may be changed and closed. A file's pixels are not read yet.

    Args:
      image: the path of an image file, a PIL image, a uint8 array [H, W, 3], [3, H, W] or [H, W], or a uint8 tensor
        [3, H, W], [1, H, W] or [H, W]. An array whose first and last sides are both 3 is read as [H, W, 3].
      name: of the image, for messages.

    Raises:
      ValueError: if it is none of these.
      DataError: if it cannot be read.

    >>> to_pillow(np.zeros((4, 6, 3), np.uint8), "mine[0]").size
    (6, 4)
    """
    if problem := _problem(image):
        raise ValueError(f"cannot use the image {shown(name)}: {problem}")
    if isinstance(image, str | os.PathLike):
        return open_image(image)
    try:
        if isinstance(image, Image.Image):
            return named(image.copy(), name)
        pixels = np.asarray(image.cpu() if isinstance(image, Tensor) else image)
        if pixels.ndim == 3 and (isinstance(image, Tensor) or pixels.shape[2] != 3):
            pixels = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
        return named(Image.fromarray(pixels), name)
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"cannot read the image {shown(name)}: {cause_of(error)}") from error


def named(image: Image.Image, name: str) -> Image.Image:
    """The image, named where an image from a file has its path, for messages about what is done with it later."""
    image.filename = name  # type: ignore[attr-defined]
    return image


def cause_of(error: Exception) -> str:
    """What an error says, in one line that is fit for a terminal."""
    cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shown(" ".join(cause.split()))


def _problem(image: Any) -> str | None:
    """Why an image cannot be used, or None if it can."""
    if isinstance(image, Image.Image | str | os.PathLike):
        return None
    if isinstance(image, Tensor):
        fits = image.dim() == 2 or (image.dim() == 3 and image.shape[0] in (1, 3))
        expected = "[3, H, W], [1, H, W] or [H, W]"
    elif isinstance(image, np.ndarray):
        fits = image.ndim == 2 or (image.ndim == 3 and 3 in (image.shape[0], image.shape[2]))
        expected = "[H, W, 3], [3, H, W] or [H, W]"
    else:
        return f"expected a path, a PIL image, or a uint8 array or tensor; got {type(image).__name__}"
    dtype = str(image.dtype).removeprefix("torch.")
    if "float" in dtype:
        return (
            f"expected uint8 from 0 to 255, got {dtype}. Omit transforms such as ToTensor, since ftrain crops, flips "
            "and normalises images itself; or scale the values to 0..255, round them, and convert them to uint8"
        )
    if dtype != "uint8":
        return f"expected uint8 from 0 to 255, got {dtype}. Convert it to uint8"
    if not fits or 0 in image.shape:
        return f"expected the shape {expected}, got {list(image.shape)}"
    return None
