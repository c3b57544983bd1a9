"""SIGINT and SIGTERM: the first asks for an end between two steps, a second ends the process at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ftrain.errors import Interrupted

WATCHED = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar hides


class Stop:
    """Whether an end has been asked for.

    Attributes:
      code: the exit code to end with, once one has been.
      waits: whether there is something to finish first; otherwise the first signal already ends the process.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self.waits = False

    def __call__(self) -> bool:
        return self.code is not None


@contextmanager
def watched() -> Iterator[Stop]:
    """Watches for signals, in the main thread; elsewhere Python does not let one."""
    stop = Stop()
    owner = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() != owner:
            return  # a worker that was just forked; its parent decides
        if not stop.waits:
            raise Interrupted(number)
        if stop.code is None:
            stop.code = 128 + number
            _say(b"\nstopping after this step; a second signal stops at once\n")
            return
        # Not by an exception: to unwind is to wait for workers, and to let go of the run while it is being written.
        for child in multiprocessing.active_children():
            child.kill()
        _say(b"\nstopped at once; the last checkpoint is whole\n" + (SHOW_CURSOR if sys.stderr.isatty() else b""))
        os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in WATCHED}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: bytes) -> None:
    """Not by print: the signal may have come in the middle of one; and whoever reads may have had it too."""
    with suppress(OSError):
        os.write(2, text)
