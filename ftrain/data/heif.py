"""HEIC files, the photographs of iPhones. Pillow reads them with pillow-heif, which is optional."""

from __future__ import annotations

import functools
import importlib.util
import os

from PIL import Image

SUFFIXES = (".heic", ".heif")
INSTALL = "reading .heic files needs pillow-heif, an extra: `pip install '.[heif]'`"
# With which files begin (ISO/IEC 23008-12, and the registry of brands at mp4ra.org). AVIF has others.
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")


def is_installed() -> bool:
    """Whether pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def is_heif(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins like a HEIF file."""
    with open(path, "rb") as file:
        start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:] in _BRANDS


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """The image, of which only the header is read. libheif has applied its rotation, and checks its size when it is
    decoded.

    Raises:
      ValueError: if pillow-heif is not installed.
    """
    if not is_installed():
        raise ValueError(INSTALL)
    _register()
    return Image.open(path, formats=("HEIF",))


@functools.cache
def _register() -> None:
    """Not before the first such file is found, because importing the package takes time."""
    import pillow_heif

    pillow_heif.register_heif_opener()
