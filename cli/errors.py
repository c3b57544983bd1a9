"""Errors of commands: one message, and an exit code."""

from __future__ import annotations

import errno
import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from ftrain.errors import (
    BusyError,
    CheckpointError,
    DataError,
    ExportError,
    Interrupted,
    ProcessError,
    SettingsError,
    TrainingError,
    WorkerError,
)
from ftrain.text import shown

from .messages import note, silence

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_CODES: dict[type[BaseException], int] = {
    SettingsError: 2,
    DataError: 65,
    CheckpointError: 65,
    TrainingError: 1,
    WorkerError: 1,
    ExportError: 1,
    ProcessError: 75,
    BusyError: 75,
    KeyboardInterrupt: 130,
}
# From sysexits.h, EX_CANTCREAT and EX_IOERR; and the exit code that a shell reports after SIGPIPE.
CANNOT_CREATE, CANNOT_WRITE, BROKEN_PIPE = 73, 74, 141

tracebacks_wanted = False  # set by `ftrain --debug`


def is_output_lost(error: BaseException) -> bool:
    """Whether an error says that nobody reads the output any more: the pipe or the terminal was closed. An error about
    a file has the name of the file."""
    return isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO) and error.filename is None


def reported(command: Command) -> Command:
    """A command whose errors end it with one message and an exit code; `ftrain --debug` adds the traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except (Exception, KeyboardInterrupt) as raised:
            if tracebacks_wanted:
                traceback.print_exc()
            error = _diagnosis(raised) or raised
            if is_output_lost(error):  # as `| head` leaves it
                silence()
                sys.exit(BROKEN_PIPE)
            note(f"ftrain: {message(error)}")
            sys.exit(exit_code(error))

    return run  # type: ignore[return-value]


def _diagnosis(error: BaseException) -> BaseException | None:
    """A clear error in place of torch's about a worker that was killed, which torch raises wherever the main process
    happens to be: often between two events of a run."""
    if not (isinstance(error, RuntimeError) and "DataLoader worker" in str(error)):
        return None
    from ftrain.data.workers import worker_error  # torch has been imported, as it raised the error

    return worker_error(error)


def exit_code(error: BaseException) -> int:
    """The exit code of a command that an error ends."""
    if isinstance(error, Interrupted):
        return 128 + error.signal
    if isinstance(error, OSError):
        return CANNOT_CREATE if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else CANNOT_WRITE
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def message(error: BaseException) -> str:
    """What a user is told of an error."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, tuple(EXIT_CODES)):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {shown(error.filename)}' if error.filename else ''}"
    text = shown(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text} (this is a bug in ftrain; `ftrain --debug ...` shows where)"
