"""Files that are not images known here, counted by kind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ftrain.data import heif
from ftrain.text import shown

_MOST = 8  # kinds that are named


def kind_of(name: str) -> str:
    """The kind of a file: its suffix in lower case.

    >>> kind_of("notes.PDF"), kind_of("LICENSE")
    ('.pdf', 'without a suffix')
    """
    return os.path.splitext(name)[1].lower() or "without a suffix"


def described(counts: Mapping[str, int]) -> str:
    """The numbers of files of each kind, the most frequent first; and what to install if some of them can be read.

    >>> described({".pdf": 1, ".txt": 27})
    '27 .txt, 1 .pdf'
    """
    kinds = sorted(counts, key=lambda kind: (-counts[kind], kind))
    parts = [f"{counts[kind]} {shown(kind)}" for kind in kinds[:_MOST]]
    if others := kinds[_MOST:]:
        parts.append(f"{sum(counts[kind] for kind in others)} of {len(others)} other kinds")
    install = f" ({heif.INSTALL})" if not heif.is_installed() and set(heif.SUFFIXES) & counts.keys() else ""
    return ", ".join(parts) + install


def skipped_line(*sources: Any) -> str | None:
    """One line about the files that were found beside the images of sources, such as "skipped: 27 .heic, 1 .pdf"; None
    if there are none."""
    counts: Counter[str] = Counter()
    for source in sources:
        counts.update(getattr(source, "skipped", {}))
    return f"skipped: {described(counts)}" if counts else None
