from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest
import torch
from PIL import Image, ImageFile

from ftrain.data import heif
from ftrain.data.decode import crop_and_resize, open_image, oriented_size, read_image
from ftrain.data.resize import resized
from ftrain.errors import DataError

RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]
ORIENTATION = 274
NUMBERED = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
TURNED = {  # NUMBERED with each orientation applied
    1: [[10, 20, 30], [40, 50, 60]],
    2: [[30, 20, 10], [60, 50, 40]],
    3: [[60, 50, 40], [30, 20, 10]],
    4: [[40, 50, 60], [10, 20, 30]],
    5: [[10, 40], [20, 50], [30, 60]],
    6: [[40, 10], [50, 20], [60, 30]],
    7: [[60, 30], [50, 20], [40, 10]],
    8: [[30, 60], [20, 50], [10, 40]],
}


def rows(path: Path) -> list[list[list[int]]]:
    """The pixels as read, [height][width][3]."""
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    values: list[list[list[int]]] = pixels.transpose(1, 2, 0).tolist()
    return values


def grey(values: list[int]) -> list[list[int]]:
    return [[value] * 3 for value in values]


def crop(path: Path, box: tuple[float, float, float, float], size: int) -> npt.NDArray[np.uint8]:
    with open_image(path) as image:
        pixels = crop_and_resize(image, box, size)
    assert pixels.shape == (3, size, size)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    return pixels


def reason(path: Path) -> str:
    """Why the image cannot be read, by both ways of reading it."""
    with pytest.raises(DataError) as whole:
        read_image(path)
    with pytest.raises(DataError) as part:
        crop(path, (0, 0, 1, 1), 1)
    assert str(whole.value) == str(part.value)
    start = f"cannot read the image {path}: "
    assert str(whole.value).startswith(start)
    return str(whole.value)[len(start) :]


def photograph(width: int, height: int) -> Image.Image:
    """Smooth, like most photographs, with a slope that would reveal a shift."""
    y, x = np.mgrid[0:height, 0:width]
    waves = 60 * np.sin(x / 9) * np.cos(y / 11)
    pixels = np.stack([255 * x / width, 255 * y / height, 128 + waves], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


# Pixels


def test_rgb(tmp_path: Path) -> None:
    for suffix in ("png", "bmp", "ppm", "tif"):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)).save(path)
        assert rows(path) == [[RED, GREEN], [BLUE, WHITE]]
    Image.fromarray(np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)).save(tmp_path / "x.webp", lossless=True)
    assert rows(tmp_path / "x.webp") == [[RED, GREEN], [BLUE, WHITE]]


def test_grey_and_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 7, 255]], np.uint8)).save(tmp_path / "grey.png")
    assert rows(tmp_path / "grey.png") == [grey([0, 7, 255])]
    Image.fromarray(np.array([[0, 7, 255]], np.uint8)).save(tmp_path / "grey.pgm")
    assert rows(tmp_path / "grey.pgm") == [grey([0, 7, 255])]
    Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1").save(tmp_path / "1.png")
    assert rows(tmp_path / "1.png") == [grey([0, 255, 255])]


def test_alpha_is_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[255, 0, 0, 255], [0, 0, 255, 128], [9, 9, 9, 0]]], np.uint8)
    for suffix in ("png", "tif"):
        Image.fromarray(pixels).save(tmp_path / f"x.{suffix}")
        assert rows(tmp_path / f"x.{suffix}") == [[RED, [127, 127, 255], WHITE]]


def test_grey_with_alpha_is_over_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[100, 255], [100, 0], [0, 128]]], np.uint8), "LA").save(tmp_path / "x.png")
    assert rows(tmp_path / "x.png") == [grey([100, 255, 127])]
    Image.fromarray(np.array([[100, 200]], np.uint8)).save(tmp_path / "key.png", transparency=100)
    assert rows(tmp_path / "key.png") == [grey([255, 200])]


def test_palette_with_transparency_is_over_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.save(tmp_path / "plain.png")
    assert rows(tmp_path / "plain.png") == [[RED, GREEN, BLUE]]
    image.save(tmp_path / "x.png", transparency=bytes([255, 0, 128]))
    assert rows(tmp_path / "x.png") == [[RED, WHITE, [127, 127, 255]]]
    image.save(tmp_path / "x.gif", transparency=1)
    assert rows(tmp_path / "x.gif") == [[RED, WHITE, BLUE]]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
    if suffix == "pgm":
        path.write_bytes(b"P5 8 1 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    assert rows(path) == [grey([0, 0, 1, 1, 128, 254, 255, 255])]
    assert crop(path, (4, 0, 1, 1), 1).ravel().tolist() == [128, 128, 128]


def test_16_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    Image.fromarray(np.array([[1000, 1001]], np.uint16)).save(tmp_path / "x.png", transparency=1000)
    assert rows(tmp_path / "x.png") == [grey([255, 4])]


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "i.tif")
    assert reason(tmp_path / "i.tif") == (
        "its pixels have more than 16 bits, and their range is unknown. Save it with 8 or 16 bits"
    )
    Image.fromarray(np.array([[0.0, 0.5]], np.float32)).save(tmp_path / "f.tif")
    assert reason(tmp_path / "f.tif") == (
        "its pixels are floating-point numbers, and their range is unknown. Save it with 8 or 16 bits"
    )


def test_cmyk(tmp_path: Path) -> None:
    pixels = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255], [0, 255, 255, 0]]], np.uint8)
    Image.fromarray(pixels, "CMYK").save(tmp_path / "x.tif")
    assert rows(tmp_path / "x.tif") == [[WHITE, [0, 255, 255], [0, 0, 0], RED]]
    Image.new("CMYK", (16, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg")  # inverted in the file, Adobe's convention
    assert b"Adobe" in (tmp_path / "x.jpg").read_bytes()
    assert np.abs(np.array(rows(tmp_path / "x.jpg")) - RED).max() <= 2
    assert np.abs(crop(tmp_path / "x.jpg", (0, 0, 8, 8), 2).astype(int) - np.array(RED)[:, None, None]).max() <= 2


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    frames = [Image.new("RGB", (2, 1), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert rows(path) == [[RED, RED]]
    assert crop(path, (0, 0, 1, 1), 1).ravel().tolist() == RED


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp"])
def test_one_pixel(tmp_path: Path, suffix: str) -> None:
    Image.new("L", (1, 1), 200).save(tmp_path / f"x.{suffix}")
    assert rows(tmp_path / f"x.{suffix}") == [grey([200])]
    assert crop(tmp_path / f"x.{suffix}", (0, 0, 1, 1), 3).tolist() == [[[200] * 3] * 3] * 3


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"x.{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(NUMBERED).convert("RGB")
    image.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    expected = TURNED[orientation]
    with open_image(path) as opened:
        assert oriented_size(opened) == (len(expected), len(expected[0]))
        # The top right pixel. Loaders read the size first, which must not rotate the image.
        assert crop_and_resize(opened, (len(expected[0]) - 1, 0, 1, 1), 1)[0, 0, 0] == expected[0][-1]
    assert rows(path) == [grey(row) for row in expected]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_a_jpeg_at_reduced_scale(tmp_path: Path, orientation: int) -> None:
    blocks = np.kron(NUMBERED, np.ones((64, 64), np.uint8)) * 4
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(blocks).save(tmp_path / "x.jpg", exif=exif, quality=95)
    expected = np.array(TURNED[orientation]) * 4
    with open_image(tmp_path / "x.jpg") as image:
        assert oriented_size(image) == (64 * expected.shape[0], 64 * expected.shape[1])
    for row, column in np.ndindex(expected.shape):
        part = crop(tmp_path / "x.jpg", (64 * column + 16, 64 * row + 16, 32, 32), 4)
        assert np.abs(part.astype(int) - expected[row, column]).max() <= 2


def test_an_orientation_after_the_pixels_of_a_png(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(NUMBERED).save(tmp_path / "x.png", exif=exif)
    data = (tmp_path / "x.png").read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    tail = data.index(b"IEND") - 4
    (tmp_path / "x.png").write_bytes(data[:start] + data[end:tail] + data[start:end] + data[tail:])
    with open_image(tmp_path / "x.png") as image:
        assert oriented_size(image) == (3, 2)
        assert crop_and_resize(image, (0, 2, 1, 1), 1)[0, 0, 0] == 60
    assert rows(tmp_path / "x.png") == [grey(row) for row in TURNED[6]]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(NUMBERED).save(tmp_path / "x.png", exif=exif)
    assert rows(tmp_path / "x.png") == [grey(row) for row in TURNED[1]]


@pytest.mark.filterwarnings("ignore")  # Pillow warns about the block
@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0nonsense that is no TIFF", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_a_broken_exif_block_is_ignored(tmp_path: Path, exif: bytes) -> None:
    Image.new("L", (16, 8), 200).save(tmp_path / "x.jpg", exif=exif)
    assert rows(tmp_path / "x.jpg") == [grey([200] * 16)] * 8


# Crops


def test_a_crop_at_its_own_size_is_exact(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert (crop(tmp_path / "x.png", (3, 2, 5, 5), 5) == pixels[2:7, 3:8].transpose(2, 0, 1)).all()


def test_a_crop_between_pixels(tmp_path: Path) -> None:
    Image.fromarray(np.tile(np.arange(0, 100, 10, np.uint8), (10, 1))).save(tmp_path / "x.png")
    assert crop(tmp_path / "x.png", (1.5, 0.5, 4, 4), 4)[0].tolist() == [[15, 25, 35, 45]] * 4


def test_a_smaller_size_is_antialiased(tmp_path: Path) -> None:
    Image.fromarray(np.tile(np.array([[0, 255], [255, 0]], np.uint8), (32, 32))).save(tmp_path / "x.png")
    assert np.abs(crop(tmp_path / "x.png", (8, 8, 48, 48), 4).astype(int) - 127.5).max() <= 1.5


def test_a_png_can_be_used_again(tmp_path: Path) -> None:
    Image.fromarray(NUMBERED).save(tmp_path / "x.png")
    with open_image(tmp_path / "x.png") as image:
        parts = [int(crop_and_resize(image, (left, 0, 1, 1), 1)[0, 0, 0]) for left in (2, 0, 2)]
    assert parts == [30, 10, 30]


def test_a_jpeg_cannot_be_used_again(tmp_path: Path) -> None:
    photograph(64, 64).save(tmp_path / "x.jpg")
    with open_image(tmp_path / "x.jpg") as image:
        crop_and_resize(image, (0, 0, 64, 64), 8)
        with pytest.raises(ValueError, match="has been decoded for another box; open it again"):
            crop_and_resize(image, (0, 0, 8, 8), 8)


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        (65, (256, 192)),
        (64, (256, 192)),
        (48, (128, 96)),
        (32, (128, 96)),
        (24, (64, 48)),
        (12, (32, 24)),
        (1, (32, 24)),
    ],
)
def test_a_jpeg_is_decoded_no_larger_than_needed(tmp_path: Path, size: int, decoded: tuple[int, int]) -> None:
    photograph(256, 192).save(tmp_path / "x.jpg")
    with open_image(tmp_path / "x.jpg") as image:
        crop_and_resize(image, (10, 10, 160, 100), size)
        assert image.size == decoded


@pytest.mark.parametrize("size", [20, 40, 80, 160])
@pytest.mark.parametrize("box", [(0.0, 0.0, 253.0, 187.0), (90.3, 20.6, 162.7, 166.4), (3.0, 7.0, 160.0, 161.0)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_reduced_scale_gives_the_same_crop_as_the_full_scale(
    tmp_path: Path, size: int, box: tuple[float, float, float, float], mode: str
) -> None:
    photograph(253, 187).convert(mode).save(tmp_path / "x.jpg", quality=95)
    with Image.open(tmp_path / "x.jpg") as image:
        image.save(tmp_path / "x.png")
    difference = crop(tmp_path / "x.jpg", box, size).astype(int) - crop(tmp_path / "x.png", box, size)
    assert np.abs(difference).mean() < 1.0
    assert np.abs(difference.mean(axis=(1, 2))).max() < 0.5  # half a pixel of the smallest scale would make it 4


@pytest.mark.parametrize(
    "box",
    [(0, 0, 0, 2), (0, 0, 3, -1), (-1, 0, 2, 2), (0, -1, 2, 2), (1, 0, 3, 2), (0, 1, 1, 2), (0, 0, float("nan"), 1)],
)
def test_a_box_outside_the_image(tmp_path: Path, box: tuple[float, float, float, float]) -> None:
    Image.fromarray(NUMBERED).save(tmp_path / "x.png")
    with (
        open_image(tmp_path / "x.png") as image,
        pytest.raises(ValueError, match=r"`box` must be \(left, top, width, height\) inside 3 x 2 pixels; got \("),
    ):
        crop_and_resize(image, box, 1)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_box_that_exceeds_the_image_by_rounding_only(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (29, 31), "white").save(tmp_path / f"x.{suffix}")
    box = (29 - 7.000001, -1e-6, 7.00001, 31.00001)
    assert (crop(tmp_path / f"x.{suffix}", box, 2) == 255).all()


# HEIC and AVIF


def save(image: Image.Image, path: Path, **options: Any) -> None:
    """Writes a HEIC or AVIF file, as losslessly as the encoder can."""
    pillow_heif.register_heif_opener()
    best = {"quality": 100, "subsampling": "4:4:4"} if path.suffix == ".avif" else {"quality": -1, "chroma": 444}
    image.save(path, **best, **options)


@pytest.mark.parametrize("suffix", ["avif", "heic", "heif"])
def test_heic_and_avif_have_the_pixels_that_were_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    picture = photograph(128, 96)
    save(picture, path)
    assert np.abs(read_image(path).transpose(1, 2, 0).astype(int) - np.asarray(picture)).max() <= 3
    part = crop(path, (32, 16, 64, 64), 16).transpose(1, 2, 0).astype(int)
    expected = np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR, box=(32, 16, 96, 80)))
    assert np.abs(part - expected).max() <= 3
    with open_image(path) as image:  # unlike a JPEG, it can be used again
        assert [int(crop_and_resize(image, (left, 0, 8, 8), 1)[0, 0, 0]) for left in (96, 0)] == pytest.approx(
            [200, 8], abs=3
        )


@pytest.mark.parametrize("suffix", ["avif", "heic"])
def test_heic_and_avif_grey_and_alpha(tmp_path: Path, suffix: str) -> None:
    save(Image.new("L", (16, 8), 200), tmp_path / f"grey.{suffix}")
    assert np.abs(np.array(rows(tmp_path / f"grey.{suffix}")) - 200).max() <= 1
    pixels = np.zeros((16, 48, 4), np.uint8)
    pixels[:, :16], pixels[:, 16:32], pixels[:, 32:] = (255, 0, 0, 255), (0, 0, 255, 128), (9, 9, 9, 0)
    save(Image.fromarray(pixels), tmp_path / f"alpha.{suffix}")
    found = np.array(rows(tmp_path / f"alpha.{suffix}"))[8, [8, 24, 40]]
    assert np.abs(found - [RED, [127, 127, 255], WHITE]).max() <= 3


@pytest.mark.parametrize("suffix", ["avif", "heic"])
def test_of_several_images_in_a_heic_or_avif_file_the_first_is_used(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 8), color) for color in ("red", "blue", "lime")]
    save(frames[0], tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:])
    with open_image(tmp_path / f"x.{suffix}") as image:
        assert getattr(image, "n_frames", 1) == 3
    assert np.abs(np.array(rows(tmp_path / f"x.{suffix}")) - RED).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["avif", "heic"])
def test_orientation_of_heic_and_avif(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"x.{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    blocks = Image.fromarray(np.kron(NUMBERED, np.ones((16, 16), np.uint8)) * 4).convert("RGB")
    save(blocks, path, exif=exif.tobytes())  # both encoders also write it as a property of the image
    expected = np.array(TURNED[orientation]) * 4
    with open_image(path) as opened:
        assert oriented_size(opened) == (16 * expected.shape[0], 16 * expected.shape[1])
        for row, column in np.ndindex(expected.shape):
            part = crop_and_resize(opened, (16 * column + 4, 16 * row + 4, 8, 8), 1)
            assert np.abs(part.ravel().astype(int) - expected[row, column]).max() <= 3
    assert np.abs(read_image(path)[0, 8::16, 8::16].astype(int) - expected).max() <= 3


def test_exif_orientation_of_a_heic_file_is_ignored(tmp_path: Path) -> None:
    """As the standard demands (ISO/IEC 23008-12): what counts is the rotation in the file itself."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    save(photograph(64, 48), tmp_path / "x.heic", exif=exif)  # which the encoder stores and does not read
    with open_image(tmp_path / "x.heic") as image:
        assert oriented_size(image) == (48, 64)


@pytest.mark.parametrize("form", ["heic", "jpg"])
def test_the_content_of_a_file_named_heic_decides(tmp_path: Path, form: str) -> None:
    save(photograph(64, 48), tmp_path / "x.heic") if form == "heic" else photograph(64, 48).save(tmp_path / "x.jpg")
    (tmp_path / f"x.{form}").rename(tmp_path / f"y.{'jpg' if form == 'heic' else 'heic'}")
    [path] = tmp_path.iterdir()
    assert read_image(path).shape == (3, 48, 64)


def test_a_heic_file_without_the_package_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(photograph(64, 48), tmp_path / "x.heic")
    monkeypatch.setattr(heif, "is_installed", lambda: False)
    assert reason(tmp_path / "x.heic") == "reading .heic files needs pillow-heif, an extra: `pip install '.[heif]'`"


def test_a_heic_file_whose_header_lies_about_its_size(tmp_path: Path) -> None:
    save(photograph(64, 64), tmp_path / "x.heic")
    data = bytearray((tmp_path / "x.heic").read_bytes())
    size = data.index(b"ispe") + 8
    assert data[size : size + 8] == (64).to_bytes(4) + (64).to_bytes(4)
    data[size : size + 8] = (16).to_bytes(4) + (12).to_bytes(4)
    (tmp_path / "x.heic").write_bytes(data)
    assert reason(tmp_path / "x.heic")
    data[size : size + 8] = (20_000).to_bytes(4) + (20_000).to_bytes(4)
    (tmp_path / "x.heic").write_bytes(data)
    assert "the limit of 89478485 that protects against decompression bombs" in reason(tmp_path / "x.heic")


# Bad images


@pytest.mark.parametrize("tenths", range(10))
@pytest.mark.parametrize(
    "suffix", ["jpg", "progressive.jpg", "png", "webp", "gif", "bmp", "tif", "lzw.tif", "ppm", "avif", "heic"]
)
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_truncated(tmp_path: Path, suffix: str, tenths: int, action: str) -> None:
    path = tmp_path / f"x.{suffix}"
    noise = np.random.default_rng(0).integers(0, 60, (96, 128, 3), np.uint8)
    pixels = Image.fromarray(np.asarray(photograph(128, 96)) // 2 + noise)
    options = {"progressive.jpg": {"progressive": True}, "lzw.tif": {"compression": "tiff_lzw"}}
    pillow_heif.register_heif_opener()
    pixels.save(path, **options.get(suffix, {}))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * tenths // 10])
    with warnings.catch_warnings():
        warnings.simplefilter(action)  # type: ignore[arg-type]
        assert reason(path)
    path.write_bytes(data)
    assert read_image(path).shape == (3, 96, 128)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"")
    assert reason(tmp_path / "x.jpg") == "the file is empty"


def test_a_text_file_named_jpg(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("not found\n" * 50)
    assert reason(tmp_path / "x.jpg") == (
        "it is not a JPEG, PNG, WEBP, AVIF, BMP, GIF, TIFF, PPM or HEIC file, or it is truncated"
    )


def test_a_format_that_runs_programs_is_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.jpg")
    assert reason(tmp_path / "x.jpg").startswith("it is not a ")


def test_the_content_and_not_the_suffix_decides_the_format(tmp_path: Path) -> None:
    Image.fromarray(NUMBERED).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert rows(tmp_path / "x.jpg") == [grey(row) for row in TURNED[1]]


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    assert reason(tmp_path / "x.jpg") == "No such file or directory"
    (tmp_path / "y.jpg").mkdir()
    assert reason(tmp_path / "y.jpg") == "Is a directory"


@pytest.mark.parametrize("width", [11, 21])  # Pillow warns about the first and refuses the second
@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize("suffix", ["png", "avif", "heic"])
def test_a_decompression_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, width: int, action: str
) -> None:
    pillow_heif.register_heif_opener()
    Image.new("L", (width, 10)).save(tmp_path / f"x.{suffix}")
    Image.new("L", (10, 10)).save(tmp_path / f"y.{suffix}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter(action)  # type: ignore[arg-type]
        found = "11 x 10 pixels, more than" if width == 11 and action == "ignore" else "more pixels than"
        assert reason(tmp_path / f"x.{suffix}") == (
            f"it has {found} the limit of 100 that protects against decompression bombs. Shrink or remove it"
        )
        assert read_image(tmp_path / f"y.{suffix}").shape == (3, 10, 10)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert read_image(tmp_path / f"x.{suffix}").shape == (3, 10, width)


@pytest.mark.skipif(sys.platform == "win32", reason="names cannot hold control characters")
def test_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\n.jpg"
    path.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(caught.value) == rf"cannot read the image {tmp_path}/a\x1b[31m\n.jpg: the file is empty"


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    Image.fromarray(NUMBERED).save(tmp_path / "x.png")
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    try:
        (tmp_path / "x.png").rename(path)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes only UTF-8")
    assert read_image(path).shape == (3, 2, 3)
    with open_image(path) as image:
        assert crop_and_resize(image, (0, 0, 1, 1), 1)[0, 0, 0] == 10


def test_no_global_state_changes(tmp_path: Path) -> None:
    before = (list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    photograph(64, 64).save(tmp_path / "x.jpg")
    crop(tmp_path / "x.jpg", (0, 0, 64, 64), 8)
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:700])
    assert reason(tmp_path / "x.jpg")
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before


@pytest.mark.parametrize(
    ("interpolation", "expected"),
    [
        ("bilinear", [0, 0, 0, 0, 0, 64, 191, 255, 255, 255, 255, 255]),
        ("bicubic", [0, 0, 0, 0, 0, 52, 203, 255, 255, 255, 255, 255]),
    ],
)
def test_interpolation(interpolation, expected):
    edge = np.repeat(np.array([[0, 0, 0, 255, 255, 255]], dtype=np.uint8), 6, axis=0)
    image = Image.fromarray(edge)
    enlarged = crop_and_resize(image, (0, 0, 6, 6), 12, interpolation)
    assert enlarged[0, 6].tolist() == expected
    pixels = torch.from_numpy(np.stack([edge] * 3))
    assert (resized(pixels, 12, 12, interpolation)[0, 6].int() - torch.tensor(expected)).abs().max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_torch_and_pillow_scale_alike(interpolation):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    pillow = crop_and_resize(Image.fromarray(noise), (0, 0, 40, 40), 17, interpolation)
    pixels = torch.from_numpy(noise).permute(2, 0, 1)
    difference = resized(pixels, 17, 17, interpolation).int() - torch.from_numpy(pillow).int()
    assert difference.abs().max() <= 1
