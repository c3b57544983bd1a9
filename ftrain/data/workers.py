"""Worker processes that do jobs ahead of time, and hand over the results in the order of the jobs."""

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


def work(
    dataset: Dataset[Any], jobs: Iterable[Any], *, workers: int, ahead: int = 4, pin_memory: bool = False
) -> Iterator[Any]:
    """`dataset[job]` for every job, in order.

    Args:
      jobs: gone through as needed, by this process.
      workers: processes; 0 works in this one. They start at the first result and end with the last.
      ahead: jobs that each worker may be ahead.
      pin_memory: whether to put tensors into page-locked memory, for copies to a GPU that do not wait.

    Raises:
      WorkerError: if a worker is killed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: as the user wishes
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            collate_fn=_as_it_is,
            sampler=jobs,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_parent,
            generator=torch.Generator(),  # else the loader takes its workers' seed from the global one
        )
        others = set(multiprocessing.active_children())
        results = iter(loader)
        ours = set(multiprocessing.active_children()) - others
    try:
        yield from results
    except RuntimeError as error:
        raise worker_error(error) or error from None
    finally:
        del results  # ends the workers, which an error's traceback would keep alive
        for worker in ours:
            worker.kill()  # one that is stuck, and that the interpreter would wait for


def _leave_signals_to_parent(worker: int) -> None:
    """A terminal, or a scheduler, sends a signal to all processes of a run, of which one decides what to do."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def shared_zeros(*shape: int) -> Tensor:
    """Zeros, uint8, in memory that processes share."""
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]


def _as_it_is(result: Any) -> Any:
    return result


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
