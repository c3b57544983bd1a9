"""The networks of torchvision and timm, from a table in the package. Imports neither, so that `ftrain models` is quick.

`python tools/make_network_table.py` makes the table from the versions that are installed. Networks are always built by
the installed version, whatever the table has.
"""

from __future__ import annotations

import functools
import importlib.metadata
from pathlib import Path
from typing import Literal

import attrs

from ftrain.models.spelling import TIMM

Library = Literal["torchvision", "timm"]
FILE = Path(__file__).parent / "networks.tsv"


@attrs.frozen
class Entry:
    """What the table says about a network.

    Attributes:
      name: as `canonical` returns it.
      parameters: with 1,000 classes.
      smallest_size: the side in pixels of the smallest images that it can be trained on; None if that is not known.
      input_size: the side in pixels of the images that it was designed for.
    """

    name: str
    parameters: int
    smallest_size: int | None
    input_size: int


@attrs.frozen
class Table:
    """The networks of both libraries.

    Attributes:
      versions: of the libraries that the table was made from.
      entries: by name.
    """

    versions: dict[Library, str]
    entries: dict[str, Entry]

    def of(self, library: Library) -> list[str]:
        """The names of a library's networks."""
        return [name for name in self.entries if name.startswith(TIMM) == (library == "timm")]


@functools.cache
def read() -> Table:
    """The table of the package.

    >>> read().entries["resnet18"]
    Entry(name='resnet18', parameters=11689512, smallest_size=1, input_size=224)
    """
    head, _, *lines = FILE.read_text(encoding="utf-8").splitlines()
    versions: dict[Library, str] = {}
    for part in head.removeprefix("# ").split(", "):
        library, version = part.split(" ")
        versions["timm" if library == "timm" else "torchvision"] = version
    entries = {}
    for line in lines:
        name, parameters, smallest, size = line.split("\t")
        entries[name] = Entry(name, int(parameters), int(smallest) if smallest else None, int(size))
    return Table(versions, entries)


def installed(library: Library) -> str | None:
    """The version of a library that is installed, without the suffix of its build; None if it is not installed.

    >>> installed("torchvision").count(".")
    2
    """
    try:
        return importlib.metadata.version(library).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None
