"""What the pipeline needs of a set of images, wherever they are."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image


class Source(Protocol):
    """Images with labels, by their positions from 0 on."""

    @property
    def title(self) -> str:
        """What to call the whole, such as the folder."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; a label is a position in it."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """One for each image, int64 [N]."""

    @property
    def fingerprint(self) -> str:
        """A SHA-256 in hexadecimal, the same for the same data."""

    def __len__(self) -> int: ...

    def open(self, position: int) -> Image.Image:
        """An image, its header read and its pixels perhaps not. To be closed, or used in a `with` statement.

        Raises:
          DataError: if it cannot be read.
        """

    def name(self, position: int) -> str:
        """What to call an image in messages and lists, such as its path."""
