"""Errors as text that one process gives to the others, so that all of a run end with the same one."""

from __future__ import annotations

import json
import re

import ftrain.errors
from ftrain.errors import FtrainError, Interrupted

__all__ = ["dump", "is_lost_connection", "load"]

# What torch and gloo say, in errors without a class of their own, when the other side of a connection is gone.
_LOST = r"gloo|nccl|connection|broken pipe|socket|timed? ?out|recv|sendBytes|barrier"


def dump(error: BaseException, rank: int) -> str:
    """An error of a process as text."""
    record: dict[str, object] = {"rank": rank, "kind": type(error).__name__, "text": str(error)}
    if isinstance(error, OSError):
        record |= {"kind": "OSError", "parts": [error.errno, error.strerror, _text(error.filename)]}
    elif isinstance(error, Interrupted):
        record |= {"parts": [error.signal]}
    return json.dumps(record)


def load(text: str) -> tuple[int, BaseException]:
    """The process and its error, from `dump`. An error that is not one of ftrain's is a RuntimeError that names its
    class.

    >>> load(dump(FileNotFoundError(2, "No such file or directory", "cat.png"), rank=3))
    (3, FileNotFoundError(2, 'No such file or directory'))
    """
    record = json.loads(text)
    kind, rank = record["kind"], int(record["rank"])
    if kind == "OSError":
        number, message, name = record["parts"]
        return rank, OSError(number, message, name) if number else OSError(record["text"])
    if kind == "Interrupted":
        return rank, Interrupted(record["parts"][0])
    if kind == "KeyboardInterrupt":
        return rank, KeyboardInterrupt(record["text"])
    if kind == "GeneratorExit":
        return rank, KeyboardInterrupt(f"process {rank} has ended the run")
    known = getattr(ftrain.errors, kind, None)
    if isinstance(known, type) and issubclass(known, FtrainError):
        return rank, known(record["text"])
    return rank, RuntimeError(f"process {rank}: {kind}: {record['text']}")


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error may only say that another process has ended."""
    if isinstance(error, ConnectionError):
        return True
    if isinstance(error, FtrainError) or not isinstance(error, RuntimeError):
        return False
    return re.search(_LOST, str(error), re.IGNORECASE) is not None


def _text(name: object) -> str | None:
    return None if name is None else name.decode(errors="replace") if isinstance(name, bytes) else str(name)
