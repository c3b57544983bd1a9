"""Worker processes that run jobs ahead of time and return the results in the order of the jobs."""

from __future__ import annotations

import math
import multiprocessing
import re
import signal
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ftrain.errors import WorkerError
from ftrain.torch_private import shared_storage


def run_jobs(
    dataset: Dataset[Any], jobs: Iterable[Any], *, workers: int, ahead: int = 4, pin_memory: bool = False
) -> Iterator[Any]:
    """`dataset[job]` for every job, in order.

    Args:
      dataset: returns a result for a job.
      jobs: iterated by this process, as far as needed.
      workers: processes; 0 runs the jobs in this one. They start with the first result and end with the last.
      ahead: jobs that each worker may be ahead.
      pin_memory: whether to put tensors into page-locked memory, so that copies to a GPU need not be waited for.

    Raises:
      WorkerError: if a worker is killed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: the user's choice
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            collate_fn=_unchanged,
            sampler=jobs,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # or else the loader would draw its workers' seed from the global generator
        )
        others = set(multiprocessing.active_children())
        results = iter(loader)
        ours = set(multiprocessing.active_children()) - others
    try:
        yield from results
    except RuntimeError as error:
        raise worker_error(error) or error from None
    finally:
        del results  # stops the workers, which an error's traceback would keep alive
        for worker in ours:
            worker.kill()  # a worker that hangs would keep the interpreter from exiting


def _ignore_signals(worker: int) -> None:
    """A terminal or a scheduler sends signals to all processes of a run; only the parent decides what to do."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def shared_zeros(*shape: int) -> Tensor:
    """Zeros, uint8, in memory that all processes share."""
    storage = shared_storage(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]


def _unchanged(result: Any) -> Any:
    return result


def worker_error(error: Exception) -> WorkerError | None:
    """A clear error in place of one of torch's DataLoader about a worker that died; None for any other error. torch
    raises it wherever the main process happens to be."""
    if "DataLoader worker" not in str(error) or "Caught" in str(error):
        return None
    how = re.search(r"signal: ([^.]*)", str(error))
    return WorkerError(
        f"a worker process that loads images was killed{f' (signal: {how[1]})' if how else ''}, usually because memory "
        "ran out. Use fewer `workers` or a smaller `batch_size`, and resume the run"
    )
