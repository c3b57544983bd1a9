"""Decoding image files to uint8 RGB, no more pixels than a crop needs.

The rules are the same for every format: of an animation, the first frame; EXIF orientation is applied; transparent
parts become white; 16-bit grey is scaled to 8 bits and not clipped; everything else is as Pillow converts it to RGB.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import simplejpeg

# Imported by name, because Pillow would otherwise import all of its fifty formats to identify a file.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from PIL.ExifTags import Base as ExifTag
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ftrain.data import heif
from ftrain.data.resize import Interpolation
from ftrain.errors import DataError
from ftrain.text import shown

_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")  # and HEIF, in ftrain.data.heif
_FORMAT_NAMES = f"{', '.join(_FORMATS)} or HEIC"
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_SLACK = 0.01  # pixels by which a box may exceed the image because of rounding


def read_image(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """The whole image as RGB, uint8 [3, height, width].

    Raises:
      DataError: if the file cannot be read as an image.
    """
    with open_image(path) as image, _as_data_error(path):
        return _channels_first(_upright(image, _orientation(image)))


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """The image, of which only the header is read. Close it, or use it in a `with` statement.

    Raises:
      DataError: if the file cannot be read or is not an image, or if it has more pixels than
        `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with _as_data_error(path):
        image = _opened(path)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:  # Pillow only warns
        image.close()
        raise DataError(_unreadable(path, _too_large(f"{image.width} x {image.height} pixels, more than")))
    return image


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Height and width in pixels after the EXIF orientation has been applied.

    Only TIFF and PNG files are decoded for this: in a PNG, the orientation may come after the pixels.

    Args:
      image: from `open_image`.

    Raises:
      DataError: if the file has to be decoded and cannot be.
    """
    with _as_data_error(_path(image)):
        return (image.width, image.height) if _orientation(image) >= 5 else (image.height, image.width)


def crop_and_resize(
    image: Image.Image,
    box: tuple[float, float, float, float],
    size: int | tuple[int, int],
    interpolation: Interpolation = "bilinear",
) -> npt.NDArray[np.uint8]:
    """A part of the image, scaled: RGB, contiguous uint8 [3, height, width].

    Scaling is antialiased (Pillow's). A JPEG is decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 at which the
    part still has as many pixels on each side as the result.

    Args:
      image: from `open_image`. A JPEG can be used only once, since it is decoded for this box and size.
      box: left, top, width and height of the part in pixels of the image as `oriented_size` measures it. They need not
        be integers.
      size: the side of a square, or the height and width of the result, in pixels.
      interpolation: how to scale.

    Raises:
      DataError: if the pixels cannot be decoded.
      ValueError: if the box is empty or not inside the image, or if a JPEG is used again.

    >>> crop_and_resize(Image.new("RGB", (6, 4), "red"), (1, 0, 4, 4), 2).tolist()
    [[[255, 255], [255, 255]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]
    """
    height, width = (size, size) if isinstance(size, int) else size
    pixels, part = _decoded(image, box, height, width)
    scaled = Image.fromarray(pixels).resize((width, height), _RESAMPLING[interpolation], box=part)
    return np.ascontiguousarray(np.asarray(scaled).transpose(2, 0, 1))


def crop(image: Image.Image, box: tuple[float, float, float, float], size: int) -> npt.NDArray[np.uint8]:
    """A part of the image before it is scaled to a square of `size` pixels: RGB, uint8 [height, width, 3].

    A JPEG is decoded as in `crop_and_resize`, and the box is rounded to whole pixels of that.

    Raises:
      DataError, ValueError: as for `crop_and_resize`.
    """
    pixels, (left, top, right, bottom) = _decoded(image, box, size, size)
    rows, columns = pixels.shape[:2]
    first, above = min(round(left), columns - 1), min(round(top), rows - 1)
    return pixels[above : max(above + 1, round(bottom)), first : max(first + 1, round(right))]


def _opened(path: str | os.PathLike[str]) -> Image.Image:
    try:
        return Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError:
        if not heif.is_heif(path):
            raise
    return heif.open_image(path)


def _decoded(
    image: Image.Image, box: tuple[float, float, float, float], needed_rows: int, needed_columns: int
) -> tuple[npt.NDArray[np.uint8], tuple[float, float, float, float]]:
    """The image, RGB [height, width, 3], decoded at the smallest scale at which the part still has as many pixels as
    are needed; and the left, top, right and bottom of the part in these pixels."""
    path = _path(image)
    with _as_data_error(path):
        orientation = _orientation(image)
    left, top, width, height = box
    columns, rows = (image.height, image.width) if orientation >= 5 else (image.width, image.height)
    inside = left >= -_SLACK and left + width <= columns + _SLACK and top >= -_SLACK and top + height <= rows + _SLACK
    if not (width > 0 and height > 0 and inside):
        raise ValueError(f"`box` must be (left, top, width, height) inside {columns} x {rows} pixels; got {box}")
    scale, pixels = 1, None
    if isinstance(image, JpegImageFile):
        if image.decoderconfig:
            raise ValueError(f"{shown(path)} has been decoded for another box; open it again")
        scale = max(s for s in (1, 2, 4, 8) if s == 1 or (height >= s * needed_rows and width >= s * needed_columns))
        pixels = _decode_with_simplejpeg(image, scale) if orientation == 1 and image.mode == "RGB" else None
        image.draft("RGB", (image.width // scale, image.height // scale))
    if pixels is None:
        with _as_data_error(path):
            pixels = np.array(_rgb(_upright(image, orientation)))
    return pixels, (
        max(left / scale, 0.0),
        max(top / scale, 0.0),
        min((left + width) / scale, pixels.shape[1]),
        min((top + height) / scale, pixels.shape[0]),
    )


def _decode_with_simplejpeg(image: JpegImageFile, scale: int) -> npt.NDArray[np.uint8] | None:
    """The pixels of a JPEG by simplejpeg, which takes two thirds of Pillow's time. None for a file that it refuses;
    Pillow then decides whether it can be read."""
    assert image.fp is not None
    image.fp.seek(0)
    rows, columns = -(-image.height // scale), -(-image.width // scale)
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            image.fp.read(), "RGB", min_height=rows, min_width=columns
        )
    except ValueError:
        return None
    return pixels if pixels.shape == (rows, columns, 3) else None


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """The decoded image, RGB or grey, with its orientation applied."""
    image.load()
    pixels = _opaque(image)
    return pixels.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else pixels


def _opaque(image: Image.Image) -> Image.Image:
    """The same pixels as RGB or L."""
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, and their range is unknown. Save it with 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(layer, mask=layer)
        return canvas
    if image.mode in ("RGB", "L"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have more than 16 bits, and their range is unknown. Save it with 8 or 16 bits")
    scaled = (values + 128) // 257  # 65535 / 255 = 257
    if "transparency" in image.info:  # the value that means transparent
        scaled[values == image.info["transparency"]] = 255
    return Image.fromarray(scaled.astype(np.uint8))


def _rgb(pixels: Image.Image) -> Image.Image:
    return pixels if pixels.mode == "RGB" else pixels.convert("RGB")


def _channels_first(pixels: Image.Image) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(_rgb(pixels)).transpose(2, 0, 1))


def _orientation(image: Image.Image) -> int:
    """1 to 8 as in EXIF, or 1 if the EXIF block is invalid."""
    if isinstance(image, PngImageFile | TiffImageFile):
        image.load()
    if isinstance(image, TiffImageFile):
        return 1  # Pillow has applied it
    if isinstance(image, JpegImageFile) and not {"exif", "xmp"} & image.info.keys():
        return 1  # getexif would find the same, slowly
    try:
        orientation = image.getexif().get(ExifTag.Orientation, 1)
    except Exception:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _path(image: Image.Image) -> str:
    return os.fsdecode(getattr(image, "filename", "") or "in memory")


@contextmanager
def _as_data_error(path: str | os.PathLike[str]) -> Generator[None]:
    """Turns any error inside into a DataError: Pillow raises errors of many kinds for damaged files."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_unreadable(path, _too_large("more pixels than"))) from error
    except UnidentifiedImageError as error:
        empty = os.path.getsize(path) == 0
        cause = "the file is empty" if empty else f"it is not a {_FORMAT_NAMES} file, or it is truncated"
        raise DataError(_unreadable(path, cause)) from error
    except Exception as error:
        cause = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(_unreadable(path, cause)) from error


def _unreadable(path: str | os.PathLike[str], cause: str) -> str:
    return f"cannot read the image {shown(path)}: {shown(cause)}"


def _too_large(pixels: str) -> str:
    limit = f"the limit of {Image.MAX_IMAGE_PIXELS} that protects against decompression bombs"
    return f"it has {pixels} {limit}. Shrink or remove it"
