"""Images that do not lie in class folders: arrays, data sets of (image, label), and torchvision's by their names."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import operator
import os
import re
import reprlib
import socket
import tempfile
import warnings
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from ftrain.data.decode import open_image
from ftrain.errors import DataError
from ftrain.text import shown

SAMPLED = 16  # examples of a data set that are looked at when it is taken in
SILENCE = 60.0  # seconds after which a download that receives nothing is given up

_CHUNK = 256  # images that are hashed at once
_ARCHIVES = (".bz2", ".gz", ".mat", ".tgz", ".zip")
_DIGITS = tuple("0123456789")


class _Kind(NamedTuple):
    """One of torchvision's data sets: its class, and with which arguments it gives the two splits."""

    class_name: str
    train: Mapping[str, Any]
    val: Mapping[str, Any]
    classes: tuple[str, ...] | None = None  # where the data set itself does not name them, or not always
    package: str | None = None  # that reading it takes, besides those of ftrain


def _flagged(class_name: str, classes: tuple[str, ...] | None = None, **options: Any) -> _Kind:
    return _Kind(class_name, {**options, "train": True}, {**options, "train": False}, classes)


def _split(class_name: str, train: str, val: str, classes: tuple[str, ...] | None = None, package: str = "") -> _Kind:
    return _Kind(class_name, {"split": train}, {"split": val}, classes, package or None)


# Where there is a validation split, the test split stays untouched.
_KINDS = {
    "cifar10": _flagged("CIFAR10"),
    "cifar100": _flagged("CIFAR100"),
    "country211": _split("Country211", "train", "valid"),
    "dtd": _split("DTD", "train", "val"),
    "emnist-balanced": _flagged("EMNIST", split="balanced"),
    "emnist-byclass": _flagged("EMNIST", split="byclass"),
    "emnist-bymerge": _flagged("EMNIST", split="bymerge"),
    "emnist-digits": _flagged("EMNIST", split="digits"),
    "fashion-mnist": _flagged("FashionMNIST"),
    "fgvc-aircraft": _split("FGVCAircraft", "train", "val"),
    "flowers102": _split("Flowers102", "train", "val", package="scipy"),
    "food101": _split("Food101", "train", "test"),
    "gtsrb": _split("GTSRB", "train", "test", tuple(str(label) for label in range(43))),
    "imagenette": _split("Imagenette", "train", "val"),
    "kmnist": _flagged("KMNIST"),
    "mnist": _flagged("MNIST"),
    "oxford-iiit-pet": _split("OxfordIIITPet", "trainval", "test"),
    "qmnist": _flagged("QMNIST"),
    "rendered-sst2": _split("RenderedSST2", "train", "val"),
    "stanford-cars": _split("StanfordCars", "train", "test", package="scipy"),
    "stl10": _split(
        "STL10",
        "train",
        "test",
        ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    ),
    "svhn": _split("SVHN", "train", "test", _DIGITS, package="scipy"),
    "usps": _flagged("USPS", _DIGITS),
}


@attrs.frozen(eq=False)
class Arrays:
    """Images in memory. Forked worker processes share the memory; others get a copy each.

    Attributes:
      title: what to call the whole.
      classes: the names of the classes; a label is a position in it.
      images: uint8 [N, H, W, 3], or [N, H, W] for grey ones.
      labels: int64 [N].
      fingerprint: a SHA-256 over the shape, the classes, the labels and all pixels, in hexadecimal.
    """

    title: str
    classes: tuple[str, ...]
    images: npt.NDArray[np.uint8] = attrs.field(repr=False)
    labels: npt.NDArray[np.int64] = attrs.field(repr=False)
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, position: int) -> Image.Image:
        """The image at `position`."""
        return _named(Image.fromarray(self.images[position]), self.name(position))

    def name(self, position: int) -> str:
        """The title and the position, such as array[17]."""
        return f"{self.title}[{position}]"


@attrs.frozen(eq=False)
class Examples:
    """The examples of an indexable data set. What it keeps in memory is shared by forked worker processes; others get
    a copy each.

    Attributes:
      title: what to call the whole.
      classes: the names of the classes; a label is a position in it.
      dataset: what gives (image, label) for a position.
      labels: int64 [N].
      in_files: whether it gives paths of images instead of images.
      fingerprint: a SHA-256 over the title, the classes, the labels and a few of the images, in hexadecimal.
    """

    title: str
    classes: tuple[str, ...]
    dataset: Any = attrs.field(repr=False)
    labels: npt.NDArray[np.int64] = attrs.field(repr=False)
    in_files: bool
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, position: int) -> Image.Image:
        """The image at `position`; of an image in a file its header is read and its pixels are not.

        Raises:
          DataError: if the data set does not give it, or if it cannot be read or used.
        """
        name = f"{self.title}[{position}]"
        try:
            image, _ = _example(self.dataset, position, name)
            return _opened(image, name)
        except ValueError as error:  # the data set gives other things than it began with
            raise DataError(str(error)) from error

    def name(self, position: int) -> str:
        """The path of the image at `position`, or the title and the position, such as cifar10/train[17]."""
        name = f"{self.title}[{position}]"
        if self.in_files:
            image, _ = _example(self.dataset, position, name)
            if isinstance(image, str | os.PathLike):
                return os.fspath(image)
        return name


def from_arrays(
    images: npt.NDArray[Any] | Tensor,
    labels: npt.ArrayLike | Tensor,
    *,
    classes: Sequence[str] | None = None,
    name: str = "array",
) -> Arrays:
    """Images in memory as a source. They are not copied, so leave them as they are while they are in use.

    Args:
      images: uint8 [N, H, W, 3], [N, 3, H, W], or [N, H, W] for grey ones.
      labels: whole numbers from 0 on, [N].
      classes: their names, by label; for validation data, those of the training data. If None, "0", "1" and so on up to
        the largest label, and then every one of these labels must occur.
      name: what to call the images in messages.

    Raises:
      ValueError: if one of them is not as said above, if it cannot be seen which side of the images is their channels,
        or if there are fewer than two classes.
    """
    pixels = _as_pixels(images, name)
    numbers = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"labels are whole numbers of shape [N]; got {numbers.dtype} {list(numbers.shape)} for {shown(name)}"
        )
    if len(numbers) != len(pixels):
        raise ValueError(f"every image has one label; got {len(pixels)} images and {len(numbers)} labels")
    known, whole = _classes(numbers, classes, name), numbers.astype(np.int64)
    digest = _digest(list(pixels.shape), known, whole)
    for first in range(0, len(pixels), _CHUNK):
        digest.update(np.ascontiguousarray(pixels[first : first + _CHUNK]))
    return Arrays(name, known, pixels, whole, digest.hexdigest())


def from_dataset(dataset: Any, *, classes: Sequence[str] | None = None, name: str = "dataset") -> Examples:
    """Any indexable data set of (image, label) as a source: torchvision's, a list of pairs, one of your own.

    An image is a PIL image, uint8 [H, W, 3] or [H, W] in numpy, uint8 [3, H, W], [1, H, W] or [H, W] in torch, or the
    path of an image file, of which no more is then decoded than a crop needs (`loader=str` makes torchvision's data
    sets give paths). A label is a whole number from 0 on, also in a tensor or array of one element.

    The labels are taken from the attribute `targets`, `labels`, `_labels`, `samples` or `_samples` if it fits the
    examples that are looked at; otherwise by going through the data set once. The fingerprint covers the name, the
    classes, the labels, and of at most 16 images, evenly spread, their pixels, or their bytes if they are in files.

    Args:
      dataset: with `__len__` and `__getitem__`. It must give the same image each time, so without random transforms,
        and can be pickled where worker processes are not forked.
      classes: the names of the classes, by label. If None, the attribute `classes` of the data set; without that "0",
        "1" and so on up to the largest label, and then every one of these labels must occur.
      name: what to call the data set in messages.

    Raises:
      ValueError: if the data set, its images or its labels are not as said above, or if there are fewer than two
        classes.
      DataError: if an example cannot be read when its label is needed.
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
        except DataError:  # which is raised again when the image is needed, and may be left out then
            content, same = b"unreadable", True
        if not same:
            raise ValueError(
                f"the image {shown(at)} is another one each time; leave random transforms away, since ftrain crops and "
                "flips itself, and the same in every run"
            )
        digest.update(content)
    numbers = _listed_labels(dataset, length, seen)
    if numbers is None:
        numbers = np.empty(length, dtype=np.int64)
        for position in range(length):
            at = f"{name}[{position}]"
            numbers[position] = _label(_example(dataset, position, at)[1], at)
    known = _classes(numbers, _own_classes(dataset) if classes is None else classes, name)
    whole = numbers.astype(np.int64)
    fingerprint = _digest(name, known, whole, digest.hexdigest()).hexdigest()
    return Examples(name, known, dataset, whole, in_files, fingerprint)


def names() -> list[str]:
    """The names that `by_name` knows."""
    return sorted(_KINDS)


def by_name(name: str, folder: str | os.PathLike[str], *, download: bool = True) -> tuple[Examples, Examples]:
    """The training and the validation images of one of torchvision's data sets; its test images serve to validate with
    if it has no validation split.

    Args:
      name: one of `names()`, in any case, with -, _ or nothing between its parts.
      folder: where its files are, laid out as torchvision does; a download is put there when it is complete.
      download: whether to download what is not there.

    Raises:
      ValueError: for another name.
      DataError: if the files are not there, cannot be downloaded or read, or if a package is missing.
    """
    name = _spelled(name)
    kind = _KINDS[name]
    if kind.package and importlib.util.find_spec(kind.package) is None:
        raise DataError(f"{name} cannot be read without the package {kind.package}; pip install {kind.package}")
    root = Path(os.path.abspath(folder))
    by_hand = f"put its files into {shown(root)} by hand, laid out as torchvision.datasets.{kind.class_name} has them"
    try:
        return _both(name, kind, root)
    except (DataError, MemoryError):
        raise
    except (RuntimeError, FileNotFoundError) as error:
        if not download:
            raise DataError(
                f"{name} is not in {shown(root)}, or not the whole of it: {_cause(error)}. Allow the download, or "
                f"{by_hand}"
            ) from error
    except Exception as error:  # of many kinds, for broken files
        raise DataError(_damaged(name, root, error)) from error
    try:
        _download(name, kind, root)
    except MemoryError:
        raise
    except Exception as error:  # of many kinds: of the connection, of the archives, of the disk
        raise DataError(
            f"cannot download {name}: {_cause(error)}. See to the connection and to room on the disk and try again, or "
            f"{by_hand} (the archives will do)"
        ) from error
    try:
        return _both(name, kind, root)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(_damaged(name, root, error)) from error


def _as_pixels(images: npt.NDArray[Any] | Tensor, name: str) -> npt.NDArray[np.uint8]:
    """A view of the images as uint8 [N, H, W, 3] or [N, H, W]."""
    if not isinstance(images, np.ndarray | Tensor):
        raise ValueError(f"images are a numpy array or a torch tensor; got {type(images).__name__} for {shown(name)}")
    dtype = str(images.dtype).removeprefix("torch.")
    if dtype != "uint8":
        scale = "Scale them to 0..255, round them, and convert" if "float" in dtype else "Convert"
        raise ValueError(f"images hold uint8 from 0 to 255; got {dtype} for {shown(name)}. {scale} them to uint8")
    shape = list(images.shape)
    pixels: npt.NDArray[np.uint8] = np.asarray(images.cpu() if isinstance(images, Tensor) else images)
    first, last = (pixels.ndim == 4 and shape[side] == 3 for side in (1, 3))
    if first and last:
        raise ValueError(
            f"images of the shape {shape} can be [N, 3, H, W] or [N, H, W, 3]; pad or crop them so that only the "
            "channels are 3"
        )
    if not (first or last or pixels.ndim == 3) or 0 in shape:
        raise ValueError(
            f"images have the shape [N, H, W, 3], [N, 3, H, W], or [N, H, W] for grey ones, and are not empty; got "
            f"{shape} for {shown(name)}"
        )
    return pixels.transpose(0, 2, 3, 1) if first else pixels


def _classes(labels: npt.NDArray[Any], classes: Sequence[str] | None, name: str) -> tuple[str, ...]:
    """The names of the classes, fit for the labels."""
    smallest, largest = int(labels.argmin()), int(labels.argmax())
    if labels[smallest] < 0:
        raise ValueError(f"labels count from 0; {shown(name)}[{smallest}] has {labels[smallest]}")
    if classes is None:
        present = np.unique(labels)
        gaps = np.flatnonzero(present != np.arange(len(present)))
        if len(gaps):
            raise ValueError(
                f"no image of {shown(name)} has the label {gaps[0]}, and the largest label is {labels[largest]}; count "
                "the classes from 0 without gaps, or name all of them with classes="
            )
        known = tuple(str(label) for label in present.tolist())
    elif isinstance(classes, str) or not all(isinstance(each, str) for each in classes):
        raise ValueError(f"classes= takes a list of names, one for each label; got {reprlib.repr(classes)}")
    else:
        known = tuple(classes)
        twice = [each for each, count in Counter(known).items() if count > 1]
        if twice:
            raise ValueError(f'every class has a name of its own; got "{shown(twice[0])}" for more than one')
        if labels[largest] >= len(known):
            raise ValueError(
                f"{shown(name)}[{largest}] has the label {labels[largest]}, which is none of the {len(known)} classes: "
                f"their labels are 0 to {len(known) - 1}"
            )
    if len(known) < 2:
        raise ValueError(f"a classifier needs at least two classes; {shown(name)} has {len(known)}")
    return known


def _digest(*facts: Any) -> Any:
    """A SHA-256 over lists and names of which each begins and ends where it does."""
    digest = hashlib.sha256()
    for fact in facts:
        content = fact.astype("<i8").tobytes() if isinstance(fact, np.ndarray) else repr(fact).encode()
        digest.update(b"%d\0%s" % (len(content), content))
    return digest


def _length(dataset: Any, name: str) -> int:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(
            f"a data set with __len__ and __getitem__ is needed, to open its examples in any order; got "
            f"{type(dataset).__name__} for {shown(name)}"
        )
    length = len(dataset)
    if not length:
        raise ValueError(f"the data set {shown(name)} is empty; at least one example is needed")
    return length


def _example(dataset: Any, position: int, name: str) -> tuple[Any, Any]:
    """Image and label as the data set gives them."""
    try:
        example = dataset[position]
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"cannot read the image {shown(name)}: {_cause(error)}") from error
    if not isinstance(example, tuple | list) or len(example) != 2:
        found = f"a dict of {', '.join(map(str, example))}" if isinstance(example, dict) else reprlib.repr(example)
        raise ValueError(f"a data set of (image, label) is needed; {shown(name)} is {found}")
    return example[0], example[1]


def _label(label: Any, name: str) -> int:
    try:
        number: Any = label.item() if isinstance(label, Tensor | np.ndarray) else label
        return operator.index(number)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"a label is a whole number; {shown(name)} has {reprlib.repr(label)}") from error


def _fault(image: Any) -> str | None:
    """What keeps an image from being used, if anything does."""
    if isinstance(image, Image.Image | str | os.PathLike):
        return None
    if isinstance(image, Tensor):
        fits, wanted = image.dim() == 2 or (image.dim() == 3 and image.shape[0] in (1, 3)), "[3, H, W] or [1, H, W]"
    elif isinstance(image, np.ndarray):
        fits, wanted = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3), "[H, W, 3] or [H, W]"
    else:
        return f"expected a PIL image, pixels in uint8, or the path of a file; got {type(image).__name__}"
    dtype = str(image.dtype).removeprefix("torch.")
    if "float" in dtype:
        return (
            f"expected uint8; got {dtype}, as ToTensor makes them. Leave the transform away: ftrain crops, flips and "
            "normalises images itself"
        )
    if dtype != "uint8":
        return f"expected uint8; got {dtype}. Convert it to 0..255 in uint8"
    if not fits or 0 in image.shape:
        return f"expected the shape {wanted}; got {list(image.shape)}"
    return None


def _opened(image: Any, name: str) -> Image.Image:
    """A PIL image that nobody else has."""
    if fault := _fault(image):
        raise ValueError(f"cannot use the image {shown(name)}: {fault}")
    if isinstance(image, str | os.PathLike):
        return open_image(image)
    try:
        if isinstance(image, Image.Image):
            return _named(image.copy(), name)
        pixels = image.cpu() if isinstance(image, Tensor) else image
        if isinstance(pixels, Tensor) and pixels.dim() == 3:
            pixels = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
        return _named(Image.fromarray(np.asarray(pixels)), name)
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"cannot read the image {shown(name)}: {_cause(error)}") from error


def _named(image: Image.Image, name: str) -> Image.Image:
    """The image with its name where that of a file has its path: for messages about what is done with it later."""
    image.filename = name  # type: ignore[attr-defined]
    return image


def _content(image: Any, name: str) -> bytes:
    """A digest of an image: of the bytes of a file, since its pixels depend on the version of the decoder too."""
    if isinstance(image, str | os.PathLike):
        try:
            return hashlib.sha256(Path(image).read_bytes()).digest()
        except OSError as error:
            raise DataError(f"cannot read the image {shown(image)}: {_cause(error)}") from error
    with _opened(image, name) as picture:
        return _digest(picture.mode, picture.size, picture.tobytes()).digest()  # type: ignore[no-any-return]


def _listed_labels(dataset: Any, length: int, seen: Mapping[int, int]) -> npt.NDArray[Any] | None:
    """All labels from an attribute, if one holds them and it agrees with the examples that were seen."""
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
        except ValueError:  # of lists of different lengths
            continue
        fits = numbers.ndim == 1 and numbers.dtype.kind in "iu"
        if fits and all(numbers[position] == label for position, label in seen.items()):
            return numbers
    return None


def _own_classes(dataset: Any) -> list[str] | None:
    """What a data set calls its classes; where it has several names for one, the first."""
    own = getattr(dataset, "classes", None)
    if not isinstance(own, list | tuple) or not all(isinstance(each, str | tuple) and each for each in own):
        return None
    known = [each if isinstance(each, str) else str(each[0]) for each in own]
    counts = Counter(known)  # two classes of ImageNet are called crane
    return [f"{each} ({label})" if counts[each] > 1 else each for label, each in enumerate(known)]


def _spelled(name: str) -> str:
    squashed = {_squashed(known): known for known in _KINDS}
    if _squashed(name) in squashed:
        return squashed[_squashed(name)]
    near = [squashed[each] for each in difflib.get_close_matches(_squashed(name), squashed, n=3)]
    hint = f"the nearest are {', '.join(near)}" if near else "none is near"
    raise ValueError(f"a data set is one of {', '.join(names())}; got {name!r}, {hint}")


def _squashed(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.strip().lower())


def _both(name: str, kind: _Kind, root: Path) -> tuple[Examples, Examples]:
    train, val = (
        from_dataset(_constructed(kind, root, options), classes=kind.classes, name=f"{name}/{split}")
        for split, options in (("train", kind.train), ("val", kind.val))
    )
    if train.classes != val.classes:
        raise ValueError(f"its two splits have different classes ({len(train.classes)} and {len(val.classes)})")
    return train, val


def _damaged(name: str, root: Path, error: Exception) -> str:
    return f"cannot read {name} in {shown(root)}: {_cause(error)}. Remove its files there and get them again"


def _constructed(kind: _Kind, root: Path, options: Mapping[str, Any], *, download: bool = False) -> Any:
    import torchvision.datasets

    make = getattr(torchvision.datasets, kind.class_name)
    if "loader" in inspect.signature(make).parameters:
        options = {**options, "loader": str}  # paths, to decode no more than is needed
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"dtype\(\): align should be")  # what numpy thinks of the pickles of CIFAR
        return make(str(root), **options, download=download)


def _download(name: str, kind: _Kind, root: Path) -> None:
    """Downloads both splits to a folder of their own and then moves them, since torchvision takes what it was
    interrupted in unpacking for the whole."""
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as temporary, _given_up_in_silence():
            filling = Path(temporary)
            _link_archives(root, filling)
            for options in (kind.train, kind.val):
                _constructed(kind, filling, options, download=True)
            _move(filling, root)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                root.rmdir()
        raise


def _link_archives(root: Path, filling: Path) -> None:
    """Makes what was downloaded before, or put there by hand, count."""
    for pattern in ("*", "*/*", "*/*/*"):
        for path in root.glob(pattern):
            place = path.relative_to(root)
            if path.suffix in _ARCHIVES and not place.parts[0].startswith(".") and path.is_file():
                link = filling / place
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)


def _move(filling: Path, root: Path) -> None:
    for entry in sorted(filling.iterdir()):
        target = root / entry.name
        if entry.is_symlink():
            continue
        if entry.is_dir() and target.is_dir():
            _move(entry, target)
        else:
            os.replace(entry, target)


@contextlib.contextmanager
def _given_up_in_silence() -> Generator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _cause(error: Exception) -> str:
    cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shown(" ".join(cause.split()))
