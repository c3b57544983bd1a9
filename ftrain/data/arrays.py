"""Images in an array as a source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from ftrain.data.classes import class_names
from ftrain.data.convert import named
from ftrain.data.fingerprint import digest_of
from ftrain.data.labels import Labels
from ftrain.text import shown

_CHUNK = 256  # images that are hashed at once


@attrs.frozen(eq=False)
class Arrays:
    """Images in memory. Forked worker processes share the memory; others get a copy each.

    Attributes:
      name: of the source, in messages.
      classes: the names of the classes. A label is a position in this tuple.
      images: uint8 [N, H, W, 3], or [N, H, W] for grey images.
      labels: int64 [N], or uint8 [N, C] of 0 and 1 if an image may have several labels.
      fingerprint: a SHA-256 over the shape, the classes, the labels and all pixels, in hexadecimal.

    >>> from_arrays(np.zeros((2, 8, 8, 3), np.uint8), [0, 1]).images.shape
    (2, 8, 8, 3)
    """

    name: str
    classes: tuple[str, ...]
    images: npt.NDArray[np.uint8] = attrs.field(repr=False)
    labels: Labels = attrs.field(repr=False)
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, position: int) -> Image.Image:
        """The image at `position`."""
        return named(Image.fromarray(self.images[position]), self.image_name(position))

    def image_name(self, position: int) -> str:
        """The name of the source and the position, such as array[17]."""
        return f"{self.name}[{position}]"


def from_arrays(
    images: npt.NDArray[Any] | Tensor,
    labels: npt.ArrayLike | Tensor,
    *,
    classes: Sequence[str] | None = None,
    name: str = "array",
) -> Arrays:
    """Images in memory as a source. They are not copied, so do not change them while they are in use.

    Args:
      images: uint8 [N, H, W, 3] or [N, 3, H, W], or [N, H, W] for grey images.
      labels: integers from 0 on, [N]; or if an image may have several labels, 0 or 1 for each class, [N, C].
      classes: the names of the classes, by label; for validation data, those of the training data. None names them "0",
        "1" and so on up to the largest label, and then every one of these labels must occur.
      name: of the source, in messages.

    Raises:
      ValueError: if an argument is not as described, if it is ambiguous which side of the images is their channels, or
        if there are fewer than two classes.

    >>> source = from_arrays(np.zeros((3, 8, 8), np.uint8), [0, 1, 0], classes=["cat", "dog"], name="mine")
    >>> len(source), source.classes, source.image_name(2)
    (3, ('cat', 'dog'), 'mine[2]')
    """
    pixels = _channels_last(images, name)
    numbers = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    multi_label = numbers.ndim == 2 and numbers.shape[1] > 1
    if multi_label:
        numbers = _zeros_and_ones(numbers, name)
    elif numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be integers of shape [N], got {numbers.dtype} {list(numbers.shape)} for {shown(name)}"
        )
    if len(numbers) != len(pixels):
        raise ValueError(f"every image needs one label, got {len(pixels)} images and {len(numbers)} labels")
    if multi_label:
        known, whole = class_names(np.arange(numbers.shape[1]), classes, name), numbers
        if len(known) != numbers.shape[1]:
            raise ValueError(f"{shown(name)} has labels for {numbers.shape[1]} classes, but there are {len(known)}")
    else:
        known, whole = class_names(numbers, classes, name), numbers.astype(np.int64)
    digest = digest_of(list(pixels.shape), known, whole)
    for first in range(0, len(pixels), _CHUNK):
        digest.update(np.ascontiguousarray(pixels[first : first + _CHUNK]))
    return Arrays(name, known, pixels, whole, digest.hexdigest())


def _zeros_and_ones(labels: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    if labels.dtype.kind not in "biuf" or 0 in labels.shape or not np.isin(labels, (0, 1)).all():
        raise ValueError(
            f"labels of shape [N, C] must be 0 or 1, whether each class applies; got {labels.dtype} "
            f"{list(labels.shape)} with other values, or without any, for {shown(name)}"
        )
    return labels.astype(np.uint8)


def _channels_last(images: npt.NDArray[Any] | Tensor, name: str) -> npt.NDArray[np.uint8]:
    """A view of the images as uint8 [N, H, W, 3] or [N, H, W]."""
    if not isinstance(images, np.ndarray | Tensor):
        raise ValueError(
            f"images must be a numpy array or a torch tensor, got {type(images).__name__} for {shown(name)}"
        )
    dtype = str(images.dtype).removeprefix("torch.")
    if dtype != "uint8":
        advice = "Scale them to 0..255, round them, and convert" if "float" in dtype else "Convert"
        raise ValueError(f"images must be uint8 from 0 to 255, got {dtype} for {shown(name)}. {advice} them to uint8")
    shape = list(images.shape)
    pixels: npt.NDArray[np.uint8] = np.asarray(images.cpu() if isinstance(images, Tensor) else images)
    first, last = (pixels.ndim == 4 and shape[side] == 3 for side in (1, 3))
    if first and last:
        raise ValueError(
            f"images of the shape {shape} can be [N, 3, H, W] or [N, H, W, 3]; pad or crop them so that only the "
            "side of the channels is 3"
        )
    if not (first or last or pixels.ndim == 3) or 0 in shape:
        raise ValueError(
            f"images must have the shape [N, H, W, 3] or [N, 3, H, W], or [N, H, W] if they are grey, and not be "
            f"empty; got {shape} for {shown(name)}"
        )
    return pixels.transpose(0, 2, 3, 1) if first else pixels
