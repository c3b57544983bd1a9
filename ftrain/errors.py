"""What can go wrong for reasons that a user can mend. Each message says what was expected, what was found, and what to
do."""

from __future__ import annotations

import re

from ftrain.text import shown


class SettingsError(ValueError):
    """A setting that is unknown, out of range, or does not go with another, with the model or with this machine."""


class DataError(Exception):
    """Images or folders that cannot be trained on."""


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged, or of another network."""


class TrainingError(Exception):
    """Training cannot go on."""


class ExportError(Exception):
    """A network that cannot be exported as it is."""


class BusyError(Exception):
    """A run's folder that another process holds."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end at once."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class WorkerError(Exception):
    """A process that reads images was ended from outside."""


def worker_error(error: Exception) -> WorkerError | None:
    """What an error of torch's DataLoader means, if it is about a worker that died. It is raised wherever the main
    process happens to be."""
    if "DataLoader worker" not in str(error) or "Caught" in str(error):
        return None
    how = re.search(r"signal: ([^.]*)", str(error))
    return WorkerError(
        f"a process that reads images was ended from outside{f' (signal: {how[1]})' if how else ''}, mostly because "
        "memory ran out; give fewer --workers or a smaller --batch-size, and go on with --resume"
    )


def memory_error(error: Exception, *, batch_size: int, accumulate: int = 1) -> TrainingError | None:
    """What an error means, if it is about memory that ran out: torch's for a device, torch's for the host, Python's."""
    said = re.search(r"out of memory|can't allocate memory|not enough memory", str(error))
    if not said and not isinstance(error, MemoryError):
        return None
    parts = next((n for n in range(accumulate + 1, batch_size // 2 + 1) if batch_size % n == 0), None)
    in_parts = f"--accumulate {parts}, which takes the batch in smaller parts, or with " if parts else ""
    smaller = f"--batch-size {batch_size // 2}" if batch_size > 1 else "a smaller --image-size or --model"
    return TrainingError(
        f"memory ran out at batch size {batch_size}; the last checkpoint stands. Begin a new run with {in_parts}"
        f"{smaller}, or go on so with --resume RUN --override, whose result is another. What was said: "
        f"{shown((str(error).strip() or type(error).__name__).splitlines()[0])}"
    )
