"""A command in several processes: starting them, and ending one of them."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ftrain.errors import ProcessError, SettingsError

from .errors import exit_code, message
from .messages import note, silence

if TYPE_CHECKING:
    from ftrain.run.launch import Request

Command = TypeVar("Command", bound=Callable[..., Any])
RESTARTS = 3  # of a run that is resumed automatically, after a process was killed or lost


def in_processes(command: Command) -> Command:
    """A command that may run in several processes, of which the first one talks."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not is_started():
            return command(*args, **kwargs)
        from ftrain.parallel.launcher import end_with_launcher
        from ftrain.parallel.place import place

        try:
            here = place()
        except SettingsError:  # the command says what is wrong
            return command(*args, **kwargs)
        if here.world == 1:
            return command(*args, **kwargs)
        end_with_launcher()
        if here.rank > 0:
            silence()
        code, error = 0, None
        try:
            command(*args, **kwargs)
        except SystemExit as end:
            code, error = end.code if isinstance(end.code, int) else int(end.code is not None), end.__context__
        _leave(code, error)

    return run  # type: ignore[return-value]


def is_started() -> bool:
    """Whether a launcher has started this process, perhaps as one of several. Imports no torch."""
    return "RANK" in os.environ or "SLURM_STEP_NUM_TASKS" in os.environ


def end(error: BaseException) -> NoReturn:
    """Ends this process, whose main thread is stuck, with the message of an error and its exit code."""
    note(f"ftrain: {message(error)}")
    _leave(exit_code(error), error)


def _leave(code: int, error: BaseException | None) -> NoReturn:
    from ftrain.parallel.launcher import leave

    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # At once, because the threads of gloo may abort a process that ends in the usual way.
    why = "" if error is None else message(error)
    os._exit(leave(code, why, again=isinstance(error, ProcessError)))


def start(request: Request, processes: int | None) -> None:
    """Starts the processes that were asked for, and ends with their exit code; returns if this one is enough.

    Args:
      processes: how many; None for one for each GPU.
    """
    from ftrain.parallel.launcher import start
    from ftrain.parallel.place import place

    here = place()
    if here.world > 1:
        if processes not in (None, here.world):
            raise SettingsError(
                f"`processes={processes}` differs from the {here.world} processes that the launcher has started; leave "
                "it out"
            )
        return
    count = _one_for_each_gpu(request) if processes is None else processes
    if count == 1:
        return
    again = request.resume == "auto"
    try:
        code = start(["-m", "ftrain", *sys.argv[1:]], processes=count, restarts=RESTARTS if again else 0)
    except ProcessError as error:
        how = "start the same command again" if again else "resume the run with `resume=RUN`"
        raise ProcessError(f"{error}; {how}") from error
    sys.exit(code)


def _one_for_each_gpu(request: Request) -> int:
    """How many processes a run has that was not told: one for each GPU, up to a power of two and to the number of the
    logical shards of a run that is resumed."""
    import torch

    from ftrain.run.launch import shards_of

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus < 2 or request.asked.get("device", "auto") not in ("auto", "cuda"):
        return 1
    count = 1 << (gpus.bit_length() - 1)
    shards = request.asked.get("shards") or shards_of(request) or count
    count = min(count, shards & -shards)
    while (request.asked.get("batch_size") or count) % count:
        count //= 2
    if count > 1:
        note(f"training in {count} processes, one for each GPU; `processes=1` uses one")
    return count
