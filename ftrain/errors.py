"""What can go wrong for reasons that a user can mend. Each message says what was expected, what was found, and what to
do."""

from __future__ import annotations

import os
import re


class SettingsError(ValueError):
    """A setting that is unknown, out of range, or does not go with another, with the model or with this machine."""


class DataError(Exception):
    """Images or folders that cannot be trained on."""


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged, or of another network."""


class TrainingError(Exception):
    """Training cannot go on."""


class WorkerError(Exception):
    """A process that reads images was ended from outside."""


def worker_error(error: RuntimeError) -> WorkerError | None:
    """What an error of torch's DataLoader means, if it is about a worker that died. It is raised wherever the main
    process happens to be."""
    if "DataLoader worker" not in str(error) or "Caught" in str(error):
        return None
    how = re.search(r"signal: ([^.]*)", str(error))
    return WorkerError(
        f"a process that reads images was ended from outside{f' (signal: {how[1]})' if how else ''}, mostly because "
        "memory ran out; give fewer --workers or a smaller --batch-size, and go on with --resume"
    )


def shown(name: str | bytes | os.PathLike[str]) -> str:
    r"""`name` fit for a terminal: whatever is not printable becomes an escape such as \n, \x1b or \u200b.

    A byte that is no UTF-8 (which a file name may have) becomes \xff, say.
    """
    return "".join(char if char.isprintable() else _escaped(char) for char in os.fsdecode(name))


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # os.fsdecode's stand-in for a byte that it could not decode
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")
