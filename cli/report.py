"""What the user is told: notes, and errors as one message with an exit code."""

from __future__ import annotations

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

import typer

from ftrain.errors import (
    BusyError,
    CheckpointError,
    DataError,
    ExportError,
    Interrupted,
    SettingsError,
    TrainingError,
    WorkerError,
)
from ftrain.text import shown

Command = TypeVar("Command", bound=Callable[..., Any])
T = TypeVar("T")

EXIT_CODES: dict[type[BaseException], int] = {
    SettingsError: 2,
    DataError: 65,
    CheckpointError: 65,
    TrainingError: 1,
    WorkerError: 1,
    ExportError: 1,
    BusyError: 75,
    KeyboardInterrupt: 130,
}


# As sysexits.h has them: EX_CANTCREAT and EX_IOERR; and what a shell says of a process that SIGPIPE ended.
CANNOT_CREATE, CANNOT_WRITE, BROKEN_PIPE = 73, 74, 141

tracebacks_wanted = False  # set by `ftrain --debug`


def note(text: str) -> None:
    """One line beside the output proper."""
    typer.echo(text, err=True)


def warn(causes: Iterable[str]) -> None:
    """Lines about what is wrong but does not end the command."""
    for cause in causes:
        note(f"warning: {cause}")


def with_progress(
    work: Generator[Any, None, T], title: str, total: int, *, done: Callable[[Any], int] = lambda event: event
) -> T:
    """Goes through what says how far it is, beside a progress bar where there is a terminal, and hands on its result.

    Args:
      done: how many of `total` are done, by what `work` yields.
    """
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        while True:
            try:
                progress.update(task, completed=done(next(work)))
            except StopIteration as end:
                result: T = end.value
                return result


def silence() -> None:
    """Sends what is still to be said nowhere, when nobody reads on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def reported(command: Command) -> Command:
    """A command whose errors end it with one message and an exit code; `ftrain --debug` adds the traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if tracebacks_wanted:
                traceback.print_exc()
            from ftrain.data.workers import worker_error  # torch is imported by now, if there are workers

            error = (isinstance(error, RuntimeError) and worker_error(error)) or error
            if isinstance(error, BrokenPipeError):  # as `| head` leaves it; nobody reads on
                silence()
                sys.exit(BROKEN_PIPE)
            note(f"ftrain: {_message(error)}")
            sys.exit(_exit_code(error))

    return run  # type: ignore[return-value]


def _exit_code(error: BaseException) -> int:
    if isinstance(error, Interrupted):
        return 128 + error.signal
    if isinstance(error, OSError):
        return CANNOT_CREATE if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else CANNOT_WRITE
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; `ftrain fit --resume RUN` goes on with a run from its last checkpoint"
    if isinstance(error, tuple(EXIT_CODES)):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {shown(error.filename)}' if error.filename else ''}"
    return f"{type(error).__name__}: {shown(str(error))} (a fault of ftrain's: `ftrain --debug ...` shows where)"
