from __future__ import annotations

import gzip
import hashlib
import inspect
import pickle
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision.datasets
from PIL import Image

from ftrain.data import Images, sources
from ftrain.data import batches as load
from ftrain.data.decode import crop_and_resize, oriented_size
from ftrain.data.sources import by_name, from_arrays, from_dataset
from ftrain.errors import DataError

COLOUR = np.arange(4 * 6 * 5 * 3, dtype=np.uint8).reshape(4, 6, 5, 3)  # 4 images, 6 high, 5 wide
GREY = COLOUR[..., 0]
LABELS = [0, 1, 2, 1]


class Pictures:
    """A data set that makes its images anew each time."""

    classes = ("cat", "dog", "eel")

    def __init__(self, images: Any = COLOUR, given: Any = LABELS, **attributes: Any) -> None:
        self.images, self.given = images, given
        self.reads = 0
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, position: int) -> Any:
        self.reads += 1
        image = self.images[position]
        if isinstance(image, Exception):
            raise image
        return image, self.given[position]


def pixels(source: Any, position: int) -> npt.NDArray[np.uint8]:
    """The whole image as the pipeline gets it, [height, width, 3], if it is square."""
    with source.open(position) as image:
        height, width = oriented_size(image)
        assert height == width
        return crop_and_resize(image, (0, 0, width, height), height).transpose(1, 2, 0)


def message(error: type[Exception], function: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Arrays


def test_arrays_are_a_source() -> None:
    source = from_arrays(COLOUR, LABELS, classes=["cat", "dog", "eel"], name="mine")
    assert len(source) == 4
    assert source.title == "mine"
    assert source.classes == ("cat", "dog", "eel")
    assert source.labels.tolist() == [0, 1, 2, 1]
    assert source.labels.dtype == np.int64
    assert source.name(2) == "mine[2]"
    with source.open(2) as image:
        assert (image.mode, image.size) == ("RGB", (5, 6))
        assert np.array_equal(np.asarray(image), COLOUR[2])
        assert oriented_size(image) == (6, 5)
    with from_arrays(GREY, LABELS).open(3) as image:
        assert (image.mode, image.size) == ("L", (5, 6))
        assert np.array_equal(np.asarray(image), GREY[3])


def test_arrays_in_every_layout_are_the_same_images() -> None:
    first = from_arrays(COLOUR, LABELS)
    assert first.classes == ("0", "1", "2")
    facts = (b"12\0[4, 6, 5, 3]", b"15\0('0', '1', '2')", b"32\0" + np.array([0, 1, 2, 1], "<i8").tobytes())
    assert first.fingerprint == hashlib.sha256(b"".join(facts) + bytes(range(256)) + bytes(range(104))).hexdigest()
    planes = np.ascontiguousarray(COLOUR.transpose(0, 3, 1, 2))
    others = (
        from_arrays(torch.from_numpy(COLOUR), torch.tensor(LABELS), name="another name"),
        from_arrays(planes, np.array(LABELS, dtype=np.uint8)),
        from_arrays(torch.from_numpy(planes), torch.tensor(LABELS, dtype=torch.int32)),
    )
    for other in others:
        assert other.fingerprint == first.fingerprint
        assert np.array_equal(np.asarray(other.open(1)), COLOUR[1])


def test_the_fingerprint_of_arrays_covers_everything() -> None:
    changed = COLOUR.copy()
    changed[3, 5, 4, 2] += 1
    sources = (
        from_arrays(COLOUR, LABELS),
        from_arrays(changed, LABELS),
        from_arrays(COLOUR, [0, 1, 2, 2]),
        from_arrays(COLOUR, LABELS, classes=["0", "1", "two"]),
        from_arrays(COLOUR.reshape(4, 5, 6, 3), LABELS),
        from_arrays(COLOUR.reshape(4, 6, 15), LABELS),
    )
    assert len({source.fingerprint for source in sources}) == 6


def test_arrays_are_not_copied() -> None:
    for images in (COLOUR, GREY, COLOUR.transpose(0, 3, 1, 2)):
        assert np.shares_memory(from_arrays(images, LABELS).images, COLOUR)
        assert np.shares_memory(from_arrays(torch.from_numpy(images), LABELS).images, COLOUR)


def test_arrays_that_cannot_be_written(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", COLOUR)
    source = from_arrays(np.load(tmp_path / "images.npy", mmap_mode="r"), LABELS)
    assert source.fingerprint == from_arrays(COLOUR, LABELS).fingerprint
    assert np.array_equal(np.asarray(source.open(0)), COLOUR[0])


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (
            COLOUR / np.float32(255),
            "images hold uint8 from 0 to 255; got float32 for array. Scale them to 0..255, round them, and convert "
            "them to uint8",
        ),
        (torch.zeros(4, 3, 8, 8), "images hold uint8 from 0 to 255; got float32 for array. Scale them to 0..255"),
        (COLOUR.astype(np.int64), "images hold uint8 from 0 to 255; got int64 for array. Convert them to uint8"),
        ([[1, 2], [3, 4]], "images are a numpy array or a torch tensor; got list for array"),
        (
            np.zeros((4, 3, 7, 3), np.uint8),
            "images of the shape [4, 3, 7, 3] can be [N, 3, H, W] or [N, H, W, 3]; pad or crop them so that only",
        ),
        (
            np.zeros((4, 8, 8, 4), np.uint8),
            "images have the shape [N, H, W, 3], [N, 3, H, W], or [N, H, W] for grey ones, and are not empty; got "
            "[4, 8, 8, 4] for array",
        ),
        (np.zeros((4, 64), np.uint8), "images have the shape"),
        (np.zeros((0, 8, 8, 3), np.uint8), "images have the shape"),
        (np.zeros((4, 0, 8, 3), np.uint8), "images have the shape"),
        (COLOUR[:3], "every image has one label; got 3 images and 4 labels"),
    ],
)
def test_arrays_that_are_no_images(images: Any, expected: str) -> None:
    assert message(ValueError, from_arrays, images, LABELS).startswith(expected)


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([0.0, 1.0, 2.0, 1.0], None, "labels are whole numbers of shape [N]; got float64 [4] for array"),
        ([[0], [1], [2], [1]], None, "labels are whole numbers of shape [N]; got int64 [4, 1] for array"),
        ([0, 1, -1, 1], None, "labels count from 0; array[2] has -1"),
        (
            [1, 2, 3, 2],
            None,
            "no image of array has the label 0, and the largest label is 3; count the classes from 0 without gaps, or "
            "name all of them with classes=",
        ),
        ([0, 1, 3, 10**12], None, "no image of array has the label 2, and the largest label is 1000000000000;"),
        (LABELS, ["a", "b"], "array[2] has the label 2, which is none of the 2 classes: their labels are 0 to 1"),
        (LABELS, ["a", "b", "a"], 'every class has a name of its own; got "a" for more than one'),
        (LABELS, "abc", "classes= takes a list of names, one for each label; got 'abc'"),
        (LABELS, [0, 1, 2], "classes= takes a list of names, one for each label; got [0, 1, 2]"),
        ([0, 0, 0, 0], None, "a classifier needs at least two classes; array has 1"),
        ([0, 0, 0, 0], ["a"], "a classifier needs at least two classes; array has 1"),
    ],
)
def test_labels_that_do_not_fit(labels: Any, classes: Any, expected: str) -> None:
    assert message(ValueError, from_arrays, COLOUR, labels, classes=classes).startswith(expected)


def test_validation_arrays_may_lack_classes() -> None:
    source = from_arrays(COLOUR, [2, 2, 2, 2], classes=["a", "b", "c", "d"])
    assert source.classes == ("a", "b", "c", "d")


# Data sets


def test_a_data_set_is_a_source() -> None:
    source = from_dataset(Pictures(), name="mine/train")
    assert len(source) == 4
    assert source.title == "mine/train"
    assert source.classes == ("cat", "dog", "eel")
    assert source.labels.tolist() == [0, 1, 2, 1]
    assert source.labels.dtype == np.int64
    assert source.name(3) == "mine/train[3]"
    with source.open(1) as image:
        assert np.array_equal(np.asarray(image), COLOUR[1])
    assert from_dataset(list(zip(COLOUR, LABELS, strict=True))).classes == ("0", "1", "2")
    assert from_dataset(Pictures(), classes=["a", "b", "c"]).classes == ("a", "b", "c")


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        torch.from_numpy,
        lambda image: torch.from_numpy(image).permute(2, 0, 1),
        lambda image: torch.from_numpy(image[None, ..., 0]),
        lambda image: image[..., 0],
    ],
    ids=["PIL", "grey torch [H, W]", "torch [3, H, W]", "torch [1, H, W]", "grey numpy"],
)
def test_images_in_every_form(convert: Any) -> None:
    squares = COLOUR[:, :5]
    images = [convert(np.ascontiguousarray(each[..., 0] if convert is torch.from_numpy else each)) for each in squares]
    source = from_dataset(Pictures(images))
    colour = isinstance(images[0], Image.Image) or images[0].shape == (3, 5, 5)
    for position, square in enumerate(squares):
        expected = square if colour else np.repeat(square[..., :1], 3, axis=2)
        assert np.array_equal(pixels(source, position), expected)


def in_mode(mode: str) -> tuple[Image.Image, list[int]]:
    """A picture of 2 x 2 pixels of one colour, and that colour as RGB."""
    make = {
        "1": (255, [255, 255, 255]),
        "L": (90, [90, 90, 90]),
        "LA": ((90, 0), [255, 255, 255]),
        "P": (0, [10, 20, 30]),
        "RGB": ((10, 20, 30), [10, 20, 30]),
        "RGBA": ((10, 20, 30, 0), [255, 255, 255]),
        "CMYK": ((0, 0, 0, 255), [0, 0, 0]),
        "I": (65535, [255, 255, 255]),
        "I;16": (257 * 7, [7, 7, 7]),
    }
    colour, expected = make[mode]
    image = Image.new(mode, (2, 2), colour)  # type: ignore[arg-type]
    if mode == "P":
        image.putpalette([10, 20, 30])
    return image, expected


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16"])
def test_images_in_memory_follow_the_rules_of_files(mode: str) -> None:
    image, expected = in_mode(mode)
    source = from_dataset([(image, 0), (image, 1)])
    for _ in range(2):  # the data set's own image survives
        assert pixels(source, 1).tolist() == [[expected] * 2] * 2
    assert not hasattr(image, "filename")


def test_an_image_that_cannot_be_converted_is_an_error_with_its_name() -> None:
    source = from_dataset([(Image.new("F", (2, 2)), 0), (Image.new("L", (2, 2)), 1)], name="mine")
    assert message(DataError, pixels, source, 0).startswith(
        "cannot read the image mine[0]: its pixels are floating-point numbers"
    )


def test_images_that_pillow_has_not_read_yet(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.jpg", exif=Image.Exif())
    held = [(Image.open(tmp_path / "x.jpg"), 0), (Image.open(tmp_path / "x.jpg"), 1)]
    from_path = from_dataset([(tmp_path / "x.jpg", 0), (str(tmp_path / "x.jpg"), 1)])
    for _ in range(2):
        for position in range(2):
            assert np.array_equal(pixels(from_dataset(held), position), pixels(from_path, position))
    with from_dataset(held).open(0) as image:  # scaled down when it is decoded if it is a file, and if not then not
        assert crop_and_resize(image, (0, 0, 64, 64), 8).shape == (3, 8, 8)


def test_orientation_counts_in_memory_too() -> None:
    image = Image.fromarray(COLOUR[0])
    image.getexif()[0x0112] = 6
    image.info["exif"] = image.getexif().tobytes()
    with from_dataset([(image, 0), (image, 1)]).open(0) as opened:
        assert oriented_size(opened) == (5, 6)


def test_images_in_files_are_named_and_opened_by_their_paths(tmp_path: Path) -> None:
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (2, 2), colour).save(tmp_path / f"{number}.png")
    pairs: list[Any] = [(tmp_path / "0.png", 0), (str(tmp_path / "1.png"), 1)]
    source = from_dataset(pairs)
    assert [source.name(0), source.name(1)] == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    with source.open(1) as image:
        assert image.filename == str(tmp_path / "1.png")  # type: ignore[attr-defined]
    assert pixels(source, 1).tolist() == [[[0, 0, 255]] * 2] * 2
    before = source.fingerprint
    assert from_dataset(pairs).fingerprint == before
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    broken = from_dataset(pairs)
    assert broken.fingerprint != before
    assert message(DataError, pixels, broken, 1).startswith(f"cannot read the image {tmp_path / '1.png'}: ")
    (tmp_path / "1.png").unlink()
    gone = from_dataset(pairs)
    expected = f"cannot read the image {tmp_path / '1.png'}: No such file or directory"
    assert message(DataError, pixels, gone, 1) == expected


MANY = LABELS * 25
MANY_IMAGES = np.zeros((100, 2, 2), np.uint8)


@pytest.mark.parametrize(
    "attributes",
    [
        {"targets": MANY},
        {"targets": torch.tensor(MANY)},
        {"labels": np.array(MANY, dtype=np.uint8)},
        {"_labels": MANY},
        {"_samples": [("path", label) for label in MANY]},
        {"targets": [[1, 2], [1]] * 50, "labels": MANY},
        {"targets": torch.zeros(100, 8, dtype=torch.int64), "samples": [("path", label) for label in MANY]},
    ],
    ids=lambda attributes: "+".join(f"{name}: {type(each).__name__}" for name, each in attributes.items()),
)
def test_labels_are_read_from_attributes(attributes: dict[str, Any]) -> None:
    data = Pictures(MANY_IMAGES, MANY, **attributes)
    assert from_dataset(data).labels.tolist() == MANY
    assert data.reads == 2 * 16


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"targets": MANY[:-1]},
        {"targets": MANY[::-1]},
        {"labels": [None] * 100},
        {"targets": [float(label) for label in MANY]},
        {"samples": ["path"] * 100},
        {"labels": lambda: MANY},
        {"targets": MANY, "target_transform": lambda label: label},
    ],
)
def test_labels_that_no_attribute_holds_are_read_one_by_one(attributes: dict[str, Any]) -> None:
    data = Pictures(MANY_IMAGES, MANY, **attributes)
    assert from_dataset(data).labels.tolist() == MANY
    assert data.reads == 2 * 16 + 100


@pytest.mark.parametrize("convert", [np.int64, np.array, torch.tensor, lambda label: torch.tensor([label])])
def test_labels_in_every_form(convert: Any) -> None:
    assert from_dataset(Pictures(COLOUR, [convert(label) for label in LABELS])).labels.tolist() == LABELS


@pytest.mark.parametrize("label", [1.0, None, "dog", torch.tensor([0, 1]), np.array([0, 1])])
def test_labels_that_are_no_whole_numbers(label: Any) -> None:
    text = message(ValueError, from_dataset, Pictures(COLOUR, [0, 1, label, 1]))
    assert text.startswith("a label is a whole number; dataset[2] has ")


def test_names_of_classes() -> None:
    def classes_of(own: Any) -> tuple[str, ...]:
        data = Pictures()
        data.classes = own
        return from_dataset(data).classes

    assert classes_of(["a", "b", "c", "d"]) == ("a", "b", "c", "d")
    assert classes_of([("crane", "bird"), ("boat",), ("crane",)]) == ("crane (0)", "boat", "crane (2)")
    assert classes_of({"a": 0}) == ("0", "1", "2")
    assert classes_of([7, 8, 9]) == ("0", "1", "2")
    assert message(ValueError, classes_of, ["a", "b"]).startswith("dataset[2] has the label 2, which is none of the 2")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (
            torch.zeros(3, 8, 8),
            "cannot use the image dataset[0]: expected uint8; got float32, as ToTensor makes them. Leave the transform "
            "away: ftrain crops, flips and normalises images itself",
        ),
        (np.zeros((8, 8, 3)), "cannot use the image dataset[0]: expected uint8; got float64, as ToTensor makes them."),
        (
            np.zeros((8, 8), np.int32),
            "cannot use the image dataset[0]: expected uint8; got int32. Convert it to 0..255",
        ),
        (
            torch.zeros((8, 8, 3), dtype=torch.uint8),
            "cannot use the image dataset[0]: expected the shape [3, H, W] or [1, H, W]; got [8, 8, 3]",
        ),
        (
            np.zeros((3, 8, 8), np.uint8),
            "cannot use the image dataset[0]: expected the shape [H, W, 3] or [H, W]; got [3, 8, 8]",
        ),
        (np.zeros((0, 8), np.uint8), "cannot use the image dataset[0]: expected the shape"),
        (
            [[1, 2], [3, 4]],
            "cannot use the image dataset[0]: expected a PIL image, pixels in uint8, or the path of a file; got list",
        ),
    ],
)
def test_images_that_cannot_be_used(image: Any, expected: str) -> None:
    assert message(ValueError, from_dataset, [(image, 0), (image, 1)]).startswith(expected)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            iter([(GREY[0], 0)]),
            "a data set with __len__ and __getitem__ is needed, to open its examples in any order; got list_iterator "
            "for dataset",
        ),
        ([], "the data set dataset is empty; at least one example is needed"),
        (
            [{"image": GREY[0], "label": 0}],
            "a data set of (image, label) is needed; dataset[0] is a dict of image, label",
        ),
        ([(GREY[0], 0, 0)], "a data set of (image, label) is needed; dataset[0] is (array("),
        ([(GREY[0], 0), (GREY[1], 0)], "a classifier needs at least two classes; dataset has 1"),
        ([(GREY[0], 1), (GREY[1], 2)], "no image of dataset has the label 0, and the largest label is 2;"),
    ],
    ids=["iterator", "empty", "dict", "three", "one class", "from one"],
)
def test_data_sets_that_cannot_be_used(data: Any, expected: str) -> None:
    assert message(ValueError, from_dataset, data).startswith(expected)


def test_random_transforms_are_refused() -> None:
    class Noisy(Pictures):
        def __getitem__(self, position: int) -> Any:
            image, label = super().__getitem__(position)
            return image + np.uint8(self.reads), label

    assert message(ValueError, from_dataset, Noisy()) == (
        "the image dataset[0] is another one each time; leave random transforms away, since ftrain crops and flips "
        "itself, and the same in every run"
    )


def test_what_a_data_set_raises_is_an_error_with_the_name_of_the_example() -> None:
    images: list[Any] = list(COLOUR)
    images[2] = OSError("truncated\nfile")
    source = from_dataset(Pictures(images, targets=LABELS), name="mine")  # as long as the image is not needed
    assert source.labels.tolist() == LABELS
    assert np.array_equal(np.asarray(source.open(1)), COLOUR[1])
    assert message(DataError, source.open, 2) == "cannot read the image mine[2]: truncated file"
    assert message(DataError, from_dataset, Pictures(images)) == "cannot read the image dataset[2]: truncated file"


def test_images_that_change_their_kind_are_errors_when_they_are_opened() -> None:
    data = Pictures(list(COLOUR))
    source = from_dataset(data, name="mine")
    data.images[1] = None
    assert message(DataError, source.open, 1).startswith("cannot use the image mine[1]: expected a PIL image")


def test_the_fingerprint_of_a_data_set() -> None:
    changed = COLOUR.copy()
    changed[3, 5, 4, 2] += 1
    first = from_dataset(Pictures()).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert from_dataset(Pictures([Image.fromarray(each) for each in COLOUR], targets=LABELS)).fingerprint == first
    others = (
        from_dataset(Pictures(), name="other"),
        from_dataset(Pictures(), classes=["a", "b", "c"]),
        from_dataset(Pictures(COLOUR, [0, 1, 2, 2])),
        from_dataset(Pictures(COLOUR[:3], LABELS[:3])),
        from_dataset(Pictures(changed)),
    )
    assert len({first, *(other.fingerprint for other in others)}) == 6


def test_sources_can_be_pickled() -> None:
    for source in (from_arrays(COLOUR, LABELS), from_dataset(Pictures())):
        copy = pickle.loads(pickle.dumps(source))
        assert np.array_equal(np.asarray(copy.open(2)), COLOUR[2])
        assert (copy.classes, copy.fingerprint) == (source.classes, source.fingerprint)
        assert copy.labels.tolist() == LABELS
        assert "array([" not in repr(source)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_sources(workers: int) -> None:
    train, val = from_arrays(COLOUR, LABELS), from_dataset(Pictures(torch.from_numpy(GREY)))
    images = Images(train=train, val=val, batch_size=2, eval_batch_size=4, image_size=4)
    first, second, evaluation = load(images, [*images.train_jobs(0), *images.val_jobs()], workers=workers)
    assert sorted([*first.indices.tolist(), *second.indices.tolist()]) == [0, 1, 2, 3]
    assert first.labels.tolist() == [LABELS[position] for position in first.indices.tolist()]
    assert evaluation.labels.tolist() == LABELS
    assert torch.equal(evaluation.images[:, 0], evaluation.images[:, 2])  # grey


def test_torchvision_is_imported_only_for_its_data_sets() -> None:
    check = "import sys, ftrain.data.sources; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=120).returncode == 0


# torchvision's data sets by name


@pytest.fixture(autouse=True)
def no_internet(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were asked for."""
    asked: list[str] = []

    def urlopen(request: urllib.request.Request, *args: Any, **options: Any) -> None:
        asked.append(request.full_url)
        assert socket.getdefaulttimeout() == sources.SILENCE
        raise URLError(OSError(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def idx(values: npt.NDArray[np.uint8]) -> bytes:
    """The format of MNIST: a type (8 for bytes), the number of sides, the sides, the values."""
    return bytes([0, 0, 8, values.ndim]) + b"".join(side.to_bytes(4, "big") for side in values.shape) + values.tobytes()


def mnist_files(prefix: str, seed: int) -> dict[str, bytes]:
    """Twenty images, two of each digit, in its order."""
    images = np.random.default_rng(seed).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    return {f"{prefix}-images-idx3-ubyte": idx(images), f"{prefix}-labels-idx1-ubyte": idx(labels)}


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in {**mnist_files("train", 0), **mnist_files("t10k", 1)}.items():
        (raw / name).write_bytes(content)
    return tmp_path / "data"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_mnist_by_name(mnist: Path, no_internet: list[str]) -> None:
    before = files(mnist)
    train, val = by_name("MNIST", mnist)
    assert (train.title, val.title) == ("mnist/train", "mnist/val")
    assert train.name(17) == "mnist/train[17]"
    assert train.classes == val.classes
    assert train.classes[7:] == ("7 - seven", "8 - eight", "9 - nine")
    assert train.labels.tolist() == val.labels.tolist() == [*range(10), *range(10)]
    expected = np.random.default_rng(1).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    assert np.array_equal(pixels(val, 3)[..., 1], expected[3])
    assert train.fingerprint != val.fingerprint
    assert by_name("mnist", str(mnist), download=False)[0].fingerprint == train.fingerprint
    assert pickle.loads(pickle.dumps(val)).open(3).tobytes() == expected[3].tobytes()
    assert files(mnist) == before
    assert no_internet == []


@pytest.mark.parametrize("name", ["fashion-mnist", "Fashion_MNIST", "FashionMNIST", " fashion mnist "])
def test_names_in_any_spelling(tmp_path: Path, name: str) -> None:
    assert message(DataError, by_name, name, tmp_path, download=False) == (
        f"fashion-mnist is not in {tmp_path}, or not the whole of it: Dataset not found. You can use download=True to "
        f"download it. Allow the download, or put its files into {tmp_path} by hand, laid out as "
        "torchvision.datasets.FashionMNIST has them"
    )


def test_unknown_names(tmp_path: Path) -> None:
    text = message(ValueError, by_name, "cifar1000", tmp_path)
    assert text.startswith("a data set is one of cifar10, cifar100, country211, ")
    assert text.endswith("; got 'cifar1000', the nearest are cifar100, cifar10")
    assert message(ValueError, by_name, "qqq", tmp_path).endswith("; got 'qqq', none is near")


def test_no_internet_leaves_nothing_behind(tmp_path: Path, no_internet: list[str]) -> None:
    folder = tmp_path / "data"
    assert message(DataError, by_name, "cifar10", folder) == (
        "cannot download cifar10: <urlopen error [Errno -3] Temporary failure in name resolution>. See to the "
        f"connection and to room on the disk and try again, or put its files into {folder} by hand, laid out as "
        "torchvision.datasets.CIFAR10 has them (the archives will do)"
    )
    assert no_internet[0] == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert socket.getdefaulttimeout() is None
    assert not folder.exists()


class Response:
    """What a server sends."""

    def __init__(self, url: str, content: bytes) -> None:
        self.url, self.left, self.length = url, [content], len(content)

    def read(self, size: int) -> bytes:
        return self.left.pop() if self.left else b""

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A server that has a small MNIST with checksums of its own: its files, which a test may take away."""
    have = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in mnist_files("train", 0).items()}
    have |= {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in mnist_files("t10k", 1).items()}
    checksums = [(name, hashlib.md5(content).hexdigest()) for name, content in have.items()]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", checksums)

    def urlopen(request: urllib.request.Request, *args: Any, **options: Any) -> Response:
        name = request.full_url.rsplit("/", 1)[1]
        if name not in have:
            raise URLError("no such file")
        return Response(request.full_url, have[name])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return have


def test_a_download_arrives_as_a_whole(tmp_path: Path, mirror: dict[str, bytes]) -> None:
    train, val = by_name("mnist", tmp_path / "data")
    assert (len(train), len(val)) == (20, 20)
    raw = [f"MNIST/raw/{name}" for name in (*mirror, *(name.removesuffix(".gz") for name in mirror))]
    assert files(tmp_path / "data") == sorted(raw)
    mirror.clear()
    assert by_name("mnist", tmp_path / "data")[1].fingerprint == val.fingerprint


@pytest.mark.parametrize("damage", ["missing", "checksum"])
def test_a_download_that_fails_in_the_middle(tmp_path: Path, mirror: dict[str, bytes], damage: str) -> None:
    (tmp_path / "kept").mkdir()
    last = mirror.pop("t10k-labels-idx1-ubyte.gz")
    if damage == "checksum":
        mirror["t10k-labels-idx1-ubyte.gz"] = last[:-1]
    text = message(DataError, by_name, "mnist", tmp_path)
    assert text.startswith("cannot download mnist: ")
    assert {"missing": "no such file", "checksum": "File not found or corrupted."}[damage] in text
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    mirror["t10k-labels-idx1-ubyte.gz"] = last
    assert len(by_name("mnist", tmp_path)[0]) == 20


def test_a_download_that_is_stopped(tmp_path: Path, mirror: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Response, "read", stop)
    with pytest.raises(KeyboardInterrupt):
        by_name("mnist", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_archives_that_are_put_there_by_hand_will_do(tmp_path: Path, mirror: dict[str, bytes]) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in list(mirror):
        (raw / name).write_bytes(mirror.pop(name))
    archives = files(tmp_path)
    train, _ = by_name("mnist", tmp_path)
    assert train.labels.tolist() == [*range(10), *range(10)]
    assert files(tmp_path) == sorted([*archives, *(name.removesuffix(".gz") for name in archives)])
    assert not any(path.is_symlink() for path in raw.iterdir())


def test_what_is_damaged_is_downloaded_again(mnist: Path, mirror: dict[str, bytes]) -> None:
    path = mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    assert message(DataError, by_name, "mnist", mnist, download=False).startswith(f"mnist is not in {mnist}, or not")
    by_name("mnist", mnist)
    assert path.read_bytes() == whole


def test_what_cannot_be_mended_by_a_download(mnist: Path, no_internet: list[str]) -> None:
    (mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx(np.full(20, 11, dtype=np.uint8)))
    assert message(DataError, by_name, "mnist", mnist) == (
        f"cannot read mnist in {mnist}: mnist/train[0] has the label 11, which is none of the 10 classes: their labels "
        "are 0 to 9. Remove its files there and get them again"
    )
    assert no_internet == []


def test_cifar10_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    cifar = torchvision.datasets.CIFAR10
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", {"label_names": classes})[1]}
    batches = [write(f"data_batch_{i + 1}", {"data": images[i : i + 1], "labels": [i]}) for i in range(5)]
    monkeypatch.setattr(cifar, "meta", meta)
    monkeypatch.setattr(cifar, "train_list", batches)
    monkeypatch.setattr(cifar, "test_list", [write("test_batch", {"data": images[5:], "labels": [9]})])
    train, val = by_name("CIFAR-10", tmp_path, download=False)
    assert train.classes == val.classes == tuple(classes)
    assert train.labels.tolist() == [0, 1, 2, 3, 4]
    assert val.labels.tolist() == [9]
    assert np.array_equal(pixels(train, 4), images[4].reshape(3, 32, 32).transpose(1, 2, 0))


def test_textures_by_name_are_decoded_by_ftrain(tmp_path: Path) -> None:
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for split in ("train", "val"):
        names = [f"{name}/{name}_{split}.jpg" for name in ("banded", "dotted")]
        (base / "labels" / f"{split}1.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            (base / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), "white").save(base / "images" / name)
    train, val = by_name("dtd", tmp_path)
    assert train.classes == val.classes == ("banded", "dotted")
    path = str(base / "images" / "dotted" / "dotted_val.jpg")
    assert val.name(1) == path
    with val.open(1) as image:
        assert image.format == "JPEG"  # as the file is, of which no more is decoded than a crop needs
        assert oriented_size(image) == (30, 40)
        assert crop_and_resize(image, (0, 0, 30, 30), 8).min() == 255
    Path(path).write_bytes(b"")
    assert message(DataError, val.open, 1) == f"cannot read the image {path}: the file is empty"
    (base / "labels" / "val1.txt").write_text("dotted/dotted_val.jpg\n")
    assert message(DataError, by_name, "dtd", tmp_path, download=False).startswith(
        f"cannot read dtd in {tmp_path}: a classifier needs at least two classes; dtd/val has 1"
    )


def test_splits_with_different_classes_are_damaged(tmp_path: Path) -> None:
    base = tmp_path / "imagenette2"
    for place in ("train/n01440764", "train/n02102040", "train/n02979186", "val/n01440764", "val/n02979186"):
        (base / place).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(base / place / "x.JPEG")
    assert message(DataError, by_name, "imagenette", tmp_path) == (
        f"cannot read imagenette in {tmp_path}: its two splits have different classes (3 and 2). Remove its files "
        "there and get them again"
    )
    (base / "val" / "n02102040").mkdir()
    Image.new("RGB", (2, 2)).save(base / "val" / "n02102040" / "x.JPEG")
    train, val = by_name("imagenette", tmp_path)
    assert train.classes == ("tench", "English springer", "cassette player")
    assert val.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["svhn", "flowers102", "stanford-cars"])
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, no_internet: list[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    expected = f"{name} cannot be read without the package scipy; pip install scipy"
    assert message(DataError, by_name, name, tmp_path) == expected
    assert no_internet == []


KINDS = {
    "cifar10": ("CIFAR10", {"train": True}, {"train": False}),
    "cifar100": ("CIFAR100", {"train": True}, {"train": False}),
    "country211": ("Country211", {"split": "train"}, {"split": "valid"}),
    "dtd": ("DTD", {"split": "train"}, {"split": "val"}),
    "emnist-balanced": ("EMNIST", {"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
    "emnist-byclass": ("EMNIST", {"split": "byclass", "train": True}, {"split": "byclass", "train": False}),
    "emnist-bymerge": ("EMNIST", {"split": "bymerge", "train": True}, {"split": "bymerge", "train": False}),
    "emnist-digits": ("EMNIST", {"split": "digits", "train": True}, {"split": "digits", "train": False}),
    "fashion-mnist": ("FashionMNIST", {"train": True}, {"train": False}),
    "fgvc-aircraft": ("FGVCAircraft", {"split": "train"}, {"split": "val"}),
    "flowers102": ("Flowers102", {"split": "train"}, {"split": "val"}),
    "food101": ("Food101", {"split": "train"}, {"split": "test"}),
    "gtsrb": ("GTSRB", {"split": "train"}, {"split": "test"}),
    "imagenette": ("Imagenette", {"split": "train"}, {"split": "val"}),
    "kmnist": ("KMNIST", {"train": True}, {"train": False}),
    "mnist": ("MNIST", {"train": True}, {"train": False}),
    "oxford-iiit-pet": ("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}),
    "qmnist": ("QMNIST", {"train": True}, {"train": False}),
    "rendered-sst2": ("RenderedSST2", {"split": "train"}, {"split": "val"}),
    "stanford-cars": ("StanfordCars", {"split": "train"}, {"split": "test"}),
    "stl10": ("STL10", {"split": "train"}, {"split": "test"}),
    "svhn": ("SVHN", {"split": "train"}, {"split": "test"}),
    "usps": ("USPS", {"train": True}, {"train": False}),
}
IN_FILES = {
    *("country211", "dtd", "fgvc-aircraft", "flowers102", "food101", "imagenette", "rendered-sst2", "stanford-cars")
}


def test_all_names_are_tested() -> None:
    assert sources.names() == list(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_each_name_makes_the_right_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    class_name, *splits = KINDS[name]
    original = getattr(torchvision.datasets, class_name)
    signature = inspect.signature(original)
    made: list[dict[str, Any]] = []

    def make(*args: Any, **options: Any) -> list[Any]:
        arguments = signature.bind(*args, **options).arguments
        arguments |= arguments.pop("kwargs", {})
        made.append(arguments)
        return [(image, label) for image, label in zip(GREY, LABELS, strict=True)]

    make.__signature__ = signature  # type: ignore[attr-defined]
    monkeypatch.setattr(torchvision.datasets, class_name, make)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: True)
    train, val = by_name(name, tmp_path)
    loader = {"loader": str} if name in IN_FILES else {}
    assert made == [{"root": str(tmp_path), **split, **loader, "download": False} for split in splits]
    assert (train.title, val.title) == (f"{name}/train", f"{name}/val")


@pytest.mark.parametrize("name", KINDS)
def test_each_class_takes_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Until it misses its files, which comes after its arguments were checked."""
    if name == "stanford-cars":
        pytest.importorskip("scipy")
    monkeypatch.setattr("importlib.util.find_spec", lambda package: True)
    assert message(DataError, by_name, name, tmp_path, download=False).startswith(f"{name} is not in {tmp_path}, or")
    assert files(tmp_path) == []


@pytest.mark.parametrize(("name", "count"), [("stl10", 10), ("svhn", 10), ("gtsrb", 43), ("usps", 10)])
def test_classes_where_the_data_set_has_no_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    monkeypatch.setattr(torchvision.datasets, KINDS[name][0], lambda root, download, **options: Pictures())
    monkeypatch.setattr("importlib.util.find_spec", lambda package: True)
    _, val = by_name(name, tmp_path)
    expected = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    assert val.classes == (expected if name == "stl10" else tuple(str(label) for label in range(count)))
