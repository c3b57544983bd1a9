"""An indexable data set of (image, label) as a source."""

from __future__ import annotations

import hashlib
import operator
import os
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from ftrain.data.classes import class_names
from ftrain.data.convert import cause_of, to_pillow
from ftrain.data.fingerprint import digest_of
from ftrain.errors import DataError
from ftrain.text import shown

SAMPLED = 16  # examples that `from_dataset` looks at


@attrs.frozen(eq=False)
class Examples:
    """The examples of an indexable data set. Forked worker processes share the memory that it uses; others get a copy
    each.

    Attributes:
      name: of the source, in messages.
      classes: the names of the classes. A label is a position in this tuple.
      dataset: returns (image, label) for a position.
      labels: int64 [N].
      in_files: whether it returns paths of image files instead of images.
      fingerprint: a SHA-256 over the name, the classes, the labels and a few of the images, in hexadecimal.

    >>> from_dataset([(np.zeros((8, 8), np.uint8), 0), (np.zeros((9, 9), np.uint8), 1)]).labels.tolist()
    [0, 1]
    """

    name: str
    classes: tuple[str, ...]
    dataset: Any = attrs.field(repr=False)
    labels: npt.NDArray[np.int64] = attrs.field(repr=False)
    in_files: bool
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, position: int) -> Image.Image:
        """The image at `position`. If it is in a file, only its header is read.

        Raises:
          DataError: if the data set fails to return it, or if it cannot be read or used.
        """
        name = f"{self.name}[{position}]"
        try:
            image, _ = _example(self.dataset, position, name)
            return to_pillow(image, name)
        except ValueError as error:  # the data set no longer returns what it did at first
            raise DataError(str(error)) from error

    def image_name(self, position: int) -> str:
        """The path of the image at `position`, or the name of the source with the position, such as mine/train[17]."""
        name = f"{self.name}[{position}]"
        if self.in_files:
            image, _ = _example(self.dataset, position, name)
            if isinstance(image, str | os.PathLike):
                return os.fspath(image)
        return name


def from_dataset(dataset: Any, *, classes: Sequence[str] | None = None, name: str = "dataset") -> Examples:
    """Any indexable data set of (image, label) as a source: torchvision's, a list of pairs, or one of your own.

    An image is the path of an image file, a PIL image, a uint8 array [H, W, 3], [3, H, W] or [H, W], or a uint8 tensor
    [3, H, W], [1, H, W] or [H, W]. Of a JPEG file, no more pixels are decoded than a crop needs (with `loader=str`,
    torchvision's data sets return paths). A label is an integer from 0 on, or a tensor or array of one integer.

    Labels come from the attribute `targets`, `labels`, `_labels`, `samples` or `_samples` if it agrees with a sample of
    the examples; otherwise every example is read once. The fingerprint covers the name, the classes, the labels, and of
    at most 16 evenly spaced images the pixels, or the bytes if they are in files.

    Args:
      dataset: has `__len__` and `__getitem__`. It must return the same image every time, so it must not apply random
        transforms. Where worker processes are not forked, it must be possible to pickle it.
      classes: the names of the classes, by label. None uses the attribute `classes` of the data set, or else "0", "1"
        and so on up to the largest label, and then every one of these labels must occur.
      name: of the source, in messages.

    Raises:
      ValueError: if the data set, its images or its labels are not as described, or if there are fewer than two
        classes.
      DataError: if an example cannot be read when its label is needed.

    >>> pairs = [(np.zeros((8, 8, 3), np.uint8), 0), (Image.new("RGB", (6, 9)), 1)]
    >>> source = from_dataset(pairs, classes=["cat", "dog"], name="mine")
    >>> source.labels.tolist(), source.open(1).size
    ([0, 1], (6, 9))
    """
    length = _length(dataset, name)
    digest = hashlib.sha256()
    seen: dict[int, int] = {}
    in_files = False
    for position in np.unique(np.linspace(0, length - 1, SAMPLED).astype(int)).tolist():
        at = f"{name}[{position}]"
        try:
            image, label = _example(dataset, position, at)
            seen[position] = _label(label, at)
            in_files = in_files or isinstance(image, str | os.PathLike)
            content = _content(image, at)
            same = content == _content(_example(dataset, position, at)[0], at)
        except DataError:  # raised again when the image is loaded, and may be skipped then
            content, same = b"unreadable", True
        if not same:
            raise ValueError(
                f"the image {shown(at)} is different every time it is read. Remove random transforms: ftrain crops and "
                "flips images itself, in a way that can be repeated"
            )
        digest.update(content)
    numbers = _listed_labels(dataset, length, seen)
    if numbers is None:
        numbers = np.empty(length, dtype=np.int64)
        for position in range(length):
            at = f"{name}[{position}]"
            numbers[position] = _label(_example(dataset, position, at)[1], at)
    known = class_names(numbers, _own_classes(dataset) if classes is None else classes, name)
    whole = numbers.astype(np.int64)
    fingerprint = digest_of(name, known, whole, digest.hexdigest()).hexdigest()
    return Examples(name, known, dataset, whole, in_files, fingerprint)


def _length(dataset: Any, name: str) -> int:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(
            f"a data set must have __len__ and __getitem__, so that its examples can be read in any order; got "
            f"{type(dataset).__name__} for {shown(name)}"
        )
    length = len(dataset)
    if not length:
        raise ValueError(f"the data set {shown(name)} is empty; it needs at least one example")
    return length


def _example(dataset: Any, position: int, name: str) -> tuple[Any, Any]:
    """Image and label as the data set returns them."""
    try:
        example = dataset[position]
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"cannot read the image {shown(name)}: {cause_of(error)}") from error
    if not isinstance(example, tuple | list) or len(example) != 2:
        found = f"a dict of {', '.join(map(str, example))}" if isinstance(example, dict) else reprlib.repr(example)
        raise ValueError(f"a data set must consist of pairs (image, label); {shown(name)} is {shown(found)}")
    return example[0], example[1]


def _label(label: Any, name: str) -> int:
    try:
        number: Any = label.item() if isinstance(label, Tensor | np.ndarray) else label
        return operator.index(number)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"a label must be an integer; {shown(name)} has {shown(reprlib.repr(label))}") from error


def _content(image: Any, name: str) -> bytes:
    """A digest of an image. For a file it covers the bytes, because the pixels depend on the version of the decoder."""
    if isinstance(image, str | os.PathLike):
        try:
            return hashlib.sha256(Path(image).read_bytes()).digest()
        except OSError as error:
            raise DataError(f"cannot read the image {shown(image)}: {cause_of(error)}") from error
    with to_pillow(image, name) as picture:
        return digest_of(picture.mode, picture.size, picture.tobytes()).digest()  # type: ignore[no-any-return]


def _listed_labels(dataset: Any, length: int, seen: Mapping[int, int]) -> npt.NDArray[Any] | None:
    """All labels from an attribute, if there is one that agrees with the examples in `seen`."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    candidates = [getattr(dataset, attribute, None) for attribute in ("targets", "labels", "_labels")]
    for attribute in ("samples", "_samples"):
        pairs = getattr(dataset, attribute, None)
        if isinstance(pairs, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            candidates.append([label for _, label in pairs])
    for values in candidates:
        if not isinstance(values, list | tuple | np.ndarray | Tensor) or len(values) != length:
            continue
        try:
            numbers = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
        except ValueError:  # lists of different lengths
            continue
        fits = numbers.ndim == 1 and numbers.dtype.kind in "iu"
        if fits and all(numbers[position] == label for position, label in seen.items()):
            return numbers
    return None


def _own_classes(dataset: Any) -> list[str] | None:
    """The names that a data set gives to its classes; of several names for one class, the first."""
    own = getattr(dataset, "classes", None)
    if not isinstance(own, list | tuple) or not all(isinstance(each, str | tuple) and each for each in own):
        return None
    known = [each if isinstance(each, str) else str(each[0]) for each in own]
    counts = Counter(known)  # two classes of ImageNet are called crane
    return [f"{each} ({label})" if counts[each] > 1 else each for label, each in enumerate(known)]
