"""Turning errors of torch and of the operating system into errors that say what to do."""

from __future__ import annotations

import re

from ftrain.errors import TrainingError
from ftrain.text import shown


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
