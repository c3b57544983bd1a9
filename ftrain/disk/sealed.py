"""JSON documents with a seal: a SHA-256 of what they say, by which damage is told from meaning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIMIT = 64 * 2**20  # bytes of a document that are read
SEAL = "seal"


def dump(document: Mapping[str, Any]) -> bytes:
    """A document of JSON values as the bytes of a file, with its seal."""
    return json.dumps({**document, SEAL: _seal(document)}, indent=1).encode()


def read(path: Path) -> dict[str, Any]:
    """The document in a file, without its seal.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is no sealed document, or not what was sealed.
    """
    with open(path, "rb") as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise ValueError(f"it is larger than {LIMIT} bytes")
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    if document.pop(SEAL, None) != _seal(document):
        raise ValueError("it is not what was written: its seal does not fit")
    return document


def _seal(document: Mapping[str, Any]) -> str:
    # Through JSON and back, so that it is the same whether tuples and numbers as names have become JSON's or not yet.
    plain = json.loads(json.dumps(document))
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
