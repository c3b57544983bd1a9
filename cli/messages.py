"""Messages to the user: notes, warnings, and a progress bar."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import typer

from ftrain.run.settings import Settings, flag

if TYPE_CHECKING:
    from ftrain.data.source import Preparing

T = TypeVar("T")
SLOW = 1.0  # seconds after which work that is usually quick is shown

# The names in backticks that are options of commands.
OPTIONS = frozenset(field.name for field in attrs.fields(Settings)) | {
    "csv",
    "dry_run",
    "format",
    "fraction",
    "json",
    "override",
    "processes",
    "resume",
    "step",
}


def note(text: str) -> None:
    """Prints a line to stderr, beside the output of the command."""
    typer.echo(as_flags(text), err=True)


def warn(causes: Iterable[str]) -> None:
    """Prints what is wrong but does not end the command."""
    for cause in causes:
        note(f"warning: {cause}")


def as_flags(text: str) -> str:
    """A message of the library in the words of the command line: `batch_size` becomes --batch-size, `accumulate=4`
    becomes --accumulate 4, and `override=True` becomes --override."""

    def option(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name not in OPTIONS:
            return match[0]
        if value == "False":
            return flag(f"no_{name}")
        return flag(name) if value in (None, "True") else f"{flag(name)} {value}"

    return re.sub(r"`([a-z_]+)(?:=([^`]*))?`", option, text)


def with_bar(
    work: Generator[Any, None, T], title: str, total: int, *, done: Callable[[Any], int] = lambda event: event
) -> T:
    """Runs a generator to its end, with a progress bar on a terminal, and returns its result.

    Args:
      done: how many of `total` are done, from what `work` yields.
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


def prepared(work: Generator[Preparing, None, T]) -> T:
    """Runs the search for images to its end, and returns its result. A progress bar appears on a terminal if it takes
    more than a second."""
    from rich.console import Console
    from rich.progress import Progress

    start = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", visible=False)
        while True:
            try:
                what, done, total, text = next(work)
            except StopIteration as end:
                result: T = end.value
                return result
            if text:
                progress.console.print(as_flags(text), markup=False, highlight=False, soft_wrap=True)
            slow = time.monotonic() - start > SLOW
            progress.update(task, description=what, completed=done, total=total, visible=slow)


def silence() -> None:
    """Discards further output, when nobody reads it any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
