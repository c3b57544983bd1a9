"""Text fit for a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable


def shown(name: str | bytes | os.PathLike[str]) -> str:
    r"""`name` fit for a terminal: whatever is not printable becomes an escape such as \n, \x1b or \u200b.

    A byte that is no UTF-8 (which a file name may have) becomes \xff, say.
    """
    return "".join(char if char.isprintable() else _escaped(char) for char in os.fsdecode(name))


def listed(names: Iterable[str | bytes], most: int = 5) -> str:
    """Names in quotes, fit for a terminal: the first few, and how many more there are.

    >>> listed(["cat", "dog", "owl"], most=2)
    '"cat", "dog" and 1 more'
    """
    quoted = [f'"{shown(name)}"' for name in names]
    return ", ".join(quoted[:most]) + (f" and {len(quoted) - most} more" if len(quoted) > most else "")


def readable(count: int) -> str:
    """A number of bytes as a person would say it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # os.fsdecode's stand-in for a byte that it could not decode
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")
