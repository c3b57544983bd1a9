"""The one place where errors of torch and of the operating system become errors that say what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ftrain.data.workers import worker_error
from ftrain.errors import TrainingError
from ftrain.run.spec import RunSpec
from ftrain.text import shown


@contextmanager
def diagnosed(spec: RunSpec, *, resumable: bool = False) -> Iterator[None]:
    """Raises an error of the block as one that says what to do, if its meaning is known.

    Args:
      resumable: whether the block trains a run with checkpoints.

    Raises:
      TrainingError: if memory ran out.
      WorkerError: if a process that loads images was killed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise _out_of_memory(error, spec, resumable) or worker_error(error) or error from None


def _out_of_memory(error: Exception, spec: RunSpec, resumable: bool) -> TrainingError | None:
    """What an error means, if it says that memory ran out: on a device, on the host, or in Python."""
    text = str(error).strip() or type(error).__name__
    if not (isinstance(error, MemoryError) or re.search(_MEMORY_RAN_OUT, text)):
        return None
    each = spec.batch_size * spec.accumulate // spec.parts  # of a process
    divisors = (n for n in range(spec.accumulate + 1, each // 2 + 1) if each % n == 0)
    parts = next(divisors, None)
    remedy = f"`accumulate={parts}`, which splits the batch into smaller parts, or " if parts else ""
    remedy += (
        f"`batch_size={spec.batch_size // 2}`" if spec.batch_size > 1 else "a smaller `image_size` or a smaller network"
    )
    where = (
        " in a new run, or in this one with `resume=RUN` and `override=True`, which changes its result; its last "
        "checkpoint is intact"
        if resumable
        else ""
    )
    return TrainingError(
        f"memory ran out at `batch_size={spec.batch_size}`; use {remedy}{where}. The original message: "
        f"{shown(text.splitlines()[0])}"
    )


_MEMORY_RAN_OUT = r"out of memory|can't allocate memory|not enough memory"
