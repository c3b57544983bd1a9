"""The one place where errors of torch and of the operating system become errors that say what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ftrain.data.workers import worker_error
from ftrain.errors import FtrainError, TrainingError
from ftrain.run.spec import RunSpec
from ftrain.text import shown


@contextmanager
def diagnosed(spec: RunSpec) -> Iterator[None]:
    """Raises an error of the block as one that says what to do, if it is known what it means.

    Raises:
      TrainingError: if memory ran out.
      WorkerError: if a process that loads images was killed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise _meaning(error, spec) or error from None


def _meaning(error: Exception, spec: RunSpec) -> FtrainError | None:
    return memory_error(error, batch_size=spec.batch_size, accumulate=spec.accumulate) or worker_error(error)


def memory_error(error: Exception, *, batch_size: int, accumulate: int = 1) -> TrainingError | None:
    """What an error means, if it says that memory ran out: on a device, on the host, or in Python."""
    said = re.search(r"out of memory|can't allocate memory|not enough memory", str(error))
    if not said and not isinstance(error, MemoryError):
        return None
    parts = next((n for n in range(accumulate + 1, batch_size // 2 + 1) if batch_size % n == 0), None)
    in_parts = f"`accumulate={parts}`, which splits the batch into smaller parts, or " if parts else ""
    smaller = f"`batch_size={batch_size // 2}`" if batch_size > 1 else "a smaller `image_size` or `model`"
    return TrainingError(
        f"memory ran out at `batch_size={batch_size}`; the last checkpoint is intact. Start a new run with {in_parts}"
        f"{smaller}, or resume this one with `resume=RUN`, `override=True` and the same, which changes the result. The "
        f"original message: {shown((str(error).strip() or type(error).__name__).splitlines()[0])}"
    )
