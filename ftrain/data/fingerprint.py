"""Digests that identify data."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def digest_of(*facts: Any) -> Any:
    """A SHA-256 object over arrays and over whatever `repr` shows, each with its length in front, so that none can be
    mistaken for a part of the next."""
    digest = hashlib.sha256()
    for fact in facts:
        content = fact.astype("<i8").tobytes() if isinstance(fact, np.ndarray) else repr(fact).encode()
        digest.update(b"%d\0%s" % (len(content), content))
    return digest
