"""Images in arrays as a source."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from example_images import COLOUR, GREY, LABELS, message

from ftrain.data.arrays import from_arrays
from ftrain.data.decode import oriented_size


def test_arrays_are_a_source() -> None:
    source = from_arrays(COLOUR, LABELS, classes=["cat", "dog", "eel"], name="mine")
    assert len(source) == 4
    assert source.name == "mine"
    assert source.classes == ("cat", "dog", "eel")
    assert source.labels.tolist() == [0, 1, 2, 1]
    assert source.labels.dtype == np.int64
    assert source.image_name(2) == "mine[2]"
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


def test_read_only_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", COLOUR)
    source = from_arrays(np.load(tmp_path / "images.npy", mmap_mode="r"), LABELS)
    assert source.fingerprint == from_arrays(COLOUR, LABELS).fingerprint
    assert np.array_equal(np.asarray(source.open(0)), COLOUR[0])


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (
            COLOUR / np.float32(255),
            "images must be uint8 from 0 to 255, got float32 for array. Scale them to 0..255, round them, and convert "
            "them to uint8",
        ),
        (torch.zeros(4, 3, 8, 8), "images must be uint8 from 0 to 255, got float32 for array. Scale them to 0..255"),
        (COLOUR.astype(np.int64), "images must be uint8 from 0 to 255, got int64 for array. Convert them to uint8"),
        ([[1, 2], [3, 4]], "images must be a numpy array or a torch tensor, got list for array"),
        (
            np.zeros((4, 3, 7, 3), np.uint8),
            "images of the shape [4, 3, 7, 3] can be [N, 3, H, W] or [N, H, W, 3]; pad or crop them so that only the "
            "side of the channels is 3",
        ),
        (
            np.zeros((4, 8, 8, 4), np.uint8),
            "images must have the shape [N, H, W, 3] or [N, 3, H, W], or [N, H, W] if they are grey, and not be empty; "
            "got [4, 8, 8, 4] for array",
        ),
        (np.zeros((4, 64), np.uint8), "images must have the shape"),
        (np.zeros((0, 8, 8, 3), np.uint8), "images must have the shape"),
        (np.zeros((4, 0, 8, 3), np.uint8), "images must have the shape"),
        (COLOUR[:3], "every image needs one label, got 3 images and 4 labels"),
    ],
)
def test_arrays_that_are_not_images(images: Any, expected: str) -> None:
    assert message(ValueError, from_arrays, images, LABELS).startswith(expected)


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([0.0, 1.0, 2.0, 1.0], None, "labels must be integers of shape [N], got float64 [4] for array"),
        ([[0], [1], [2], [1]], None, "labels must be integers of shape [N], got int64 [4, 1] for array"),
        ([0, 1, -1, 1], None, "labels must count from 0; array[2] has the label -1"),
        (
            [1, 2, 3, 2],
            None,
            "no image of array has the label 0, but the largest label is 3; number the classes from 0 without gaps, or "
            "name all of them with `classes`",
        ),
        ([0, 1, 3, 10**12], None, "no image of array has the label 2, but the largest label is 1000000000000;"),
        (LABELS, ["a", "b"], "array[2] has the label 2, but the labels of the 2 classes are 0 to 1"),
        (LABELS, ["a", "b", "a"], '`classes` must be distinct names; got "a" more than once'),
        (LABELS, "abc", "`classes` must be a list of names, one for each label; got 'abc'"),
        (LABELS, [0, 1, 2], "`classes` must be a list of names, one for each label; got [0, 1, 2]"),
        ([0, 0, 0, 0], None, "a classifier needs at least two classes; array has 1"),
        ([0, 0, 0, 0], ["a"], "a classifier needs at least two classes; array has 1"),
    ],
)
def test_labels_that_do_not_fit(labels: Any, classes: Any, expected: str) -> None:
    assert message(ValueError, from_arrays, COLOUR, labels, classes=classes).startswith(expected)


def test_validation_arrays_may_lack_classes() -> None:
    source = from_arrays(COLOUR, [2, 2, 2, 2], classes=["a", "b", "c", "d"])
    assert source.classes == ("a", "b", "c", "d")
