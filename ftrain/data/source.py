"""What the input pipeline needs to know about a set of images, wherever they are."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from PIL import Image

from ftrain.data.labels import Labels


class Source(Protocol):
    """Labelled images, by their positions from 0 on.

    `scan`, `from_arrays`, `from_dataset` and `by_name` make sources. Any object with these attributes is one too. It
    must be possible to pickle it where worker processes are not forked. If it has an attribute `weights`, float32 [N],
    its images count that much.

    >>> import numpy as np
    >>> from ftrain.data import from_arrays
    >>> source: Source = from_arrays(np.zeros((2, 8, 8), np.uint8), [0, 1], name="mine")
    >>> len(source), source.image_name(1), source.open(1).size
    (2, 'mine[1]', (8, 8))
    """

    @property
    def name(self) -> str:
        """The name of the whole source in messages, such as the path of a folder."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes. A label is a position in this tuple."""

    @property
    def labels(self) -> Labels:
        """The label of each image, int64 [N]; or uint8 [N, C] of 0 and 1, if an image may have several labels."""

    @property
    def fingerprint(self) -> str:
        """A SHA-256 in hexadecimal, the same for the same data."""

    def __len__(self) -> int: ...

    def open(self, position: int) -> Image.Image:
        """An image whose header has been read, and perhaps its pixels. Close it, or use it in a `with` statement.

        Raises:
          DataError: if it cannot be read.
        """

    def image_name(self, position: int) -> str:
        """The name of an image in messages and lists, such as its path."""


class Preparing(NamedTuple):
    """The progress of work on a source before it can be used.

    Attributes:
      what: the work, such as "comparing images".
      done: images so far.
      total: all images.
      note: what a user must be told first, in words; empty for nothing.

    >>> Preparing("comparing images", done=256, total=1000).done
    256
    """

    what: str
    done: int
    total: int
    note: str = ""
