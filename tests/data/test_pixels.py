"""Single images in every form have the pixels of a lossless file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from example_images import message
from PIL import Image

from ftrain.data import image_pixels
from ftrain.data.augment import centre_pixels
from ftrain.data.decode import open_image
from ftrain.errors import DataError

NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
GREY = NOISE[..., 0]
PLANES = np.ascontiguousarray(NOISE.transpose(2, 0, 1))


def test_written_out() -> None:
    # Two columns, three rows: the square at the centre starts half a pixel down, where Pillow mixes two rows.
    image = np.array([[[0, 0, 0], [10, 20, 30]], [[100, 0, 0], [10, 20, 30]], [[100, 0, 0], [10, 20, 30]]], np.uint8)
    assert image_pixels(image[1:], 2, fraction=1.0).tolist() == [
        [[100, 10], [100, 10]],
        [[0, 20], [0, 20]],
        [[0, 30], [0, 30]],
    ]
    assert image_pixels(image, 1, fraction=0.5)[1:].tolist() == [[[10]], [[15]]]
    assert image_pixels(np.full((5, 3), 9, np.uint8), 2, fraction=1.0).tolist() == [[[9, 9], [9, 9]]] * 3


WIDE = np.array([[0, 10, 20, 30], [100, 110, 120, 130]], np.uint8)
BARS = (7, 8, 9)


def test_pad_written_out() -> None:
    assert image_pixels(WIDE, 4, fraction=0.875, fit="pad", bars=BARS).tolist() == [
        [[bar] * 4, [0, 10, 20, 30], [100, 110, 120, 130], [bar] * 4] for bar in BARS
    ]
    assert image_pixels(WIDE.T, 4, fraction=1.0, fit="pad", bars=BARS)[1].tolist() == [
        [8, 0, 100, 8],
        [8, 10, 110, 8],
        [8, 20, 120, 8],
        [8, 30, 130, 8],
    ]
    # 1 x 2 pixels of what is scaled to half its size, in the upper half, because a bar of 0.5 pixels is rounded down.
    assert image_pixels(WIDE, 2, fraction=1.0, fit="pad", bars=BARS)[2].tolist() == [[57, 73], [9, 9]]
    assert image_pixels(np.full((3, 200), 50, np.uint8), 5, fraction=1.0, fit="pad", bars=BARS)[0].tolist() == [
        [7] * 5,
        [7] * 5,
        [50] * 5,
        [7] * 5,
        [7] * 5,
    ]


def test_stretch_written_out() -> None:
    # Pillow's triangle of 2 pixels on each side: (0.75 * 0 + 0.75 * 10 + 0.25 * 20) / 1.75 = 7.14, and so on.
    assert image_pixels(WIDE, 2, fraction=0.875, fit="stretch").tolist() == [[[7, 23], [107, 123]]] * 3
    # 2 rows become 4: at 0.25, 0.75, 1.25 and 1.75 of 2, so 1/4 and 3/4 of the way between them.
    assert image_pixels(WIDE, 4, fraction=1.0, fit="stretch")[0].tolist() == [
        [0, 10, 20, 30],
        [25, 35, 45, 55],
        [75, 85, 95, 105],
        [100, 110, 120, 130],
    ]


def test_crop_written_out() -> None:
    assert image_pixels(WIDE, 2, fraction=1.0, fit="crop").tolist() == [[[10, 20], [110, 120]]] * 3
    assert image_pixels(WIDE, 2, fraction=1.0).tolist() == [[[10, 20], [110, 120]]] * 3


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_square_image_is_the_same_with_every_fit(fit: Any) -> None:
    square = NOISE[:30]
    expected = image_pixels(square, 12, fraction=1.0)
    assert np.array_equal(image_pixels(square, 12, fraction=1.0, fit=fit, bars=BARS), expected)


@pytest.mark.parametrize(("fit", "decoded"), [("crop", (200, 80)), ("pad", (50, 20)), ("stretch", (200, 80))])
def test_a_jpeg_is_decoded_no_larger_than_its_fit_needs(fit: Any, decoded: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", (400, 160)).save(tmp_path / "x.jpg")
    with open_image(tmp_path / "x.jpg") as image:
        assert centre_pixels(image, 50, fraction=1.0, fit=fit, bars=BARS).shape == (3, 50, 50)
        assert image.size == decoded


def test_the_orientation_of_a_file_counts_before_the_fit(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    Image.fromarray(WIDE).save(tmp_path / "x.png", exif=exif)
    assert image_pixels(tmp_path / "x.png", 4, fraction=1.0, fit="pad", bars=BARS)[0].tolist() == [
        [7, 100, 0, 7],
        [7, 110, 10, 7],
        [7, 120, 20, 7],
        [7, 130, 30, 7],
    ]


@pytest.mark.parametrize(
    ("image", "file"),
    [
        (NOISE, NOISE),
        (PLANES, NOISE),
        (torch.from_numpy(PLANES), NOISE),
        (Image.fromarray(NOISE), NOISE),
        (GREY, GREY),
        (torch.from_numpy(GREY.copy()), GREY),
        (torch.from_numpy(GREY.copy())[None], GREY),
        (Image.fromarray(GREY), GREY),
        (NOISE[::-1, ::2], NOISE[::-1, ::2]),
    ],
    ids=["HW3", "3HW", "torch 3HW", "PIL", "grey HW", "grey torch HW", "grey torch 1HW", "grey PIL", "strided"],
)
@pytest.mark.parametrize("fraction", [1.0, 0.875])
def test_the_pixels_of_a_lossless_file(image: Any, file: Any, fraction: float, tmp_path: Path) -> None:
    Image.fromarray(np.ascontiguousarray(file)).save(tmp_path / "x.png")
    expected = image_pixels(tmp_path / "x.png", 12, fraction=fraction)
    assert expected.shape == (3, 12, 12)
    assert expected.dtype == np.uint8
    assert np.array_equal(image_pixels(str(tmp_path / "x.png"), 12, fraction=fraction), expected)
    for _ in range(2):  # the image itself does not change
        assert np.array_equal(image_pixels(image, 12, fraction=fraction), expected)


def test_transparent_parts_become_white() -> None:
    image = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert image_pixels(image, 2, fraction=1.0).tolist() == [
        [[255, 10], [255, 255]],
        [[255, 20], [255, 255]],
        [[255, 30], [255, 255]],
    ]


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_orientation_is_applied_to_an_image_that_pillow_opened(suffix: str, tmp_path: Path) -> None:
    grey = np.zeros((16, 16), np.uint8)
    grey[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    Image.fromarray(grey).save(tmp_path / f"x.{suffix}", exif=exif)
    with Image.open(tmp_path / f"x.{suffix}") as image:
        assert (image_pixels(image, 2, fraction=1.0)[0] > 127).tolist() == [[False, True], [False, True]]
    assert (image_pixels(tmp_path / f"x.{suffix}", 2, fraction=1.0)[0] > 127).tolist() == [[False, True]] * 2


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (
            NOISE / np.float32(255),
            "cannot use the image in memory: expected uint8 from 0 to 255, got float32. Omit transforms such as "
            "ToTensor, since ftrain crops, flips and normalises images itself; or scale the values to 0..255, round "
            "them, and convert them to uint8",
        ),
        (torch.zeros(3, 4, 4), "cannot use the image in memory: expected uint8 from 0 to 255, got float32. Omit"),
        (GREY > 7, "cannot use the image in memory: expected uint8 from 0 to 255, got bool. Convert it to uint8"),
        (
            np.zeros((2, 4, 4, 3), np.uint8),
            "cannot use the image in memory: expected the shape [H, W, 3], [3, H, W] or ",
        ),
        (
            torch.from_numpy(NOISE),
            "cannot use the image in memory: expected the shape [3, H, W], [1, H, W] or [H, W], go",
        ),
        (
            np.zeros((0, 4), np.uint8),
            "cannot use the image in memory: expected the shape [H, W, 3], [3, H, W] or [H, W],",
        ),
        (7, "cannot use the image in memory: expected a path, a PIL image, or a uint8 array or tensor; got int"),
    ],
)
def test_images_that_cannot_be_used(image: Any, expected: str) -> None:
    assert message(ValueError, image_pixels, image, 8, fraction=1.0).startswith(expected)
    if isinstance(image, int):
        assert "image mine[3]: " in message(ValueError, image_pixels, image, 8, fraction=1.0, name="mine[3]")


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    expected = f"cannot read the image {tmp_path / 'x.png'}: No such file or directory"
    assert message(DataError, image_pixels, tmp_path / "x.png", 8, fraction=1.0) == expected
    text = message(DataError, image_pixels, Image.new("F", (2, 2)), 2, fraction=1.0)
    assert text.startswith("cannot read the image in memory: its pixels are floating-point numbers")


@pytest.mark.parametrize(("fit", "bars"), [("zoom", None), ("pad", None)])
def test_an_unknown_fit(fit: Any, bars: Any) -> None:
    expected = f"`fit` must be crop, stretch, or pad with `bars`; got {fit!r} and None"
    assert message(ValueError, image_pixels, NOISE, 8, fraction=1.0, fit=fit, bars=bars) == expected


@pytest.mark.parametrize(
    ("size", "fraction", "expected"),
    [
        (0, 1.0, "`size` must be at least 1 pixel, got 0"),
        (8, 0.0, "`fraction` must be more than 0 and at most 1, got 0.0"),
        (8, 1.5, "`fraction` must be more than 0 and at most 1, got 1.5"),
    ],
)
def test_arguments_out_of_range(size: int, fraction: float, expected: str) -> None:
    assert message(ValueError, image_pixels, NOISE, size, fraction=fraction) == expected
