"""JSON documents with a SHA-256 of their content, by which damage is detected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftrain.disk.durable import naming

LIMIT = 64 * 2**20  # bytes of the largest document that is read
SEAL = "seal"


def dump(document: Mapping[str, Any]) -> bytes:
    """A document of JSON values as the bytes of a file, with its checksum."""
    return json.dumps({**document, SEAL: _checksum(document)}, indent=1).encode()


def read(path: Path) -> dict[str, Any]:
    """The document in a file, without its checksum.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is not such a document, or is damaged.
    """
    with naming(path), open(path, "rb") as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise ValueError(f"it is larger than the limit of {LIMIT} bytes")
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")
    if document.pop(SEAL, None) != _checksum(document):
        raise ValueError("it is damaged: its checksum does not match")
    return document


def _checksum(document: Mapping[str, Any]) -> str:
    # Through JSON and back, so that tuples count as lists, and numbers that are keys as strings.
    plain = json.loads(json.dumps(document))
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
