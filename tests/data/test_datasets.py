"""Indexable data sets as a source."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from example_images import COLOUR, GREY, LABELS, Pictures, message, pixels
from PIL import Image

from ftrain.data import Images, load
from ftrain.data.arrays import from_arrays
from ftrain.data.datasets import from_dataset
from ftrain.data.decode import crop_and_resize, oriented_size
from ftrain.errors import DataError


def test_a_data_set_is_a_source() -> None:
    source = from_dataset(Pictures(), name="mine/train")
    assert len(source) == 4
    assert source.name == "mine/train"
    assert source.classes == ("cat", "dog", "eel")
    assert source.labels.tolist() == [0, 1, 2, 1]
    assert source.labels.dtype == np.int64
    assert source.image_name(3) == "mine/train[3]"
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
        lambda image: image.transpose(2, 0, 1),
    ],
    ids=["PIL", "grey torch [H, W]", "torch [3, H, W]", "torch [1, H, W]", "grey numpy", "numpy [3, H, W]"],
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
    for _ in range(2):  # the data set's own image does not change
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
    with from_dataset(held).open(0) as image:  # a file could be decoded at a smaller scale
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
    assert [source.image_name(0), source.image_name(1)] == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
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
def test_labels_without_an_attribute_are_read_one_by_one(attributes: dict[str, Any]) -> None:
    data = Pictures(MANY_IMAGES, MANY, **attributes)
    assert from_dataset(data).labels.tolist() == MANY
    assert data.reads == 2 * 16 + 100


@pytest.mark.parametrize("convert", [np.int64, np.array, torch.tensor, lambda label: torch.tensor([label])])
def test_labels_in_every_form(convert: Any) -> None:
    assert from_dataset(Pictures(COLOUR, [convert(label) for label in LABELS])).labels.tolist() == LABELS


@pytest.mark.parametrize("label", [1.0, None, "dog", torch.tensor([0, 1]), np.array([0, 1])])
def test_labels_that_are_not_integers(label: Any) -> None:
    text = message(ValueError, from_dataset, Pictures(COLOUR, [0, 1, label, 1]))
    assert text.startswith("a label must be an integer; dataset[2] has ")


def test_names_of_classes() -> None:
    def classes_of(own: Any) -> tuple[str, ...]:
        data = Pictures()
        data.classes = own
        return from_dataset(data).classes

    assert classes_of(["a", "b", "c", "d"]) == ("a", "b", "c", "d")
    assert classes_of([("crane", "bird"), ("boat",), ("crane",)]) == ("crane (0)", "boat", "crane (2)")
    assert classes_of({"a": 0}) == ("0", "1", "2")
    assert classes_of([7, 8, 9]) == ("0", "1", "2")
    assert message(ValueError, classes_of, ["a", "b"]).startswith("dataset[2] has the label 2, but the labels of the 2")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (
            torch.zeros(3, 8, 8),
            "cannot use the image dataset[0]: expected uint8 from 0 to 255, got float32. Omit transforms such "
            "as ToTensor, since ftrain crops, flips and normalises images itself; or scale the values to 0..255",
        ),
        (np.zeros((8, 8, 3)), "cannot use the image dataset[0]: expected uint8 from 0 to 255, got float64."),
        (
            np.zeros((8, 8), np.int32),
            "cannot use the image dataset[0]: expected uint8 from 0 to 255, got int32. Convert it to uint8",
        ),
        (
            torch.zeros((8, 8, 3), dtype=torch.uint8),
            "cannot use the image dataset[0]: expected the shape [3, H, W], [1, H, W] or [H, W], got [8, 8, 3]",
        ),
        (
            np.zeros((4, 8, 8), np.uint8),
            "cannot use the image dataset[0]: expected the shape [H, W, 3], [3, H, W] or [H, W], got [4, 8, 8]",
        ),
        (np.zeros((0, 8), np.uint8), "cannot use the image dataset[0]: expected the shape"),
        (
            [[1, 2], [3, 4]],
            "cannot use the image dataset[0]: expected a path, a PIL image, or a uint8 array or tensor; got list",
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
            "a data set must have __len__ and __getitem__, so that its examples can be read in any order; got "
            "list_iterator for dataset",
        ),
        ([], "the data set dataset is empty; it needs at least one example"),
        (
            [{"image": GREY[0], "label": 0}],
            "a data set must consist of pairs (image, label); dataset[0] is a dict of image, label",
        ),
        ([(GREY[0], 0, 0)], "a data set must consist of pairs (image, label); dataset[0] is (array("),
        ([(GREY[0], 0), (GREY[1], 0)], "a classifier needs at least two classes; dataset has 1"),
        ([(GREY[0], 1), (GREY[1], 2)], "no image of dataset has the label 0, but the largest label is 2;"),
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
        "the image dataset[0] is different every time it is read. Remove random transforms: ftrain crops and flips "
        "images itself, in a way that can be repeated"
    )


def test_what_a_data_set_raises_is_an_error_with_the_name_of_the_example() -> None:
    images: list[Any] = list(COLOUR)
    images[2] = OSError("truncated\nfile")
    source = from_dataset(Pictures(images, targets=LABELS), name="mine")  # the image is not needed for this
    assert source.labels.tolist() == LABELS
    assert np.array_equal(np.asarray(source.open(1)), COLOUR[1])
    assert message(DataError, source.open, 2) == "cannot read the image mine[2]: truncated file"
    assert message(DataError, from_dataset, Pictures(images)) == "cannot read the image dataset[2]: truncated file"


def test_images_that_change_their_kind_are_errors_when_they_are_opened() -> None:
    data = Pictures(list(COLOUR))
    source = from_dataset(data, name="mine")
    data.images[1] = None
    assert message(DataError, source.open, 1).startswith("cannot use the image mine[1]: expected a path, a PIL image")


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
