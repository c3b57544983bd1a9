"""SIGINT and SIGTERM: the first asks for an end between two steps, a second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ftrain.errors import Interrupted

WATCHED = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a signal has asked for an end, and which.

    Attributes:
      waits: whether there is something to finish first; otherwise the first signal already ends the process.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.waits = False

    def __call__(self) -> bool:
        return self.signal is not None


@contextmanager
def watched() -> Iterator[Stop]:
    """Watches for signals, in the main thread; elsewhere Python does not let one."""
    stop = Stop()
    owner = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() != owner:
            return  # a worker that was just forked; its parent decides
        if stop.waits and stop.signal is None:
            stop.signal = number
            # Not by print: the signal may have come in the middle of one.
            os.write(2, b"\nstopping after this step; a second signal stops at once\n")
            return
        for watched_signal in WATCHED:
            signal.signal(watched_signal, signal.SIG_DFL)  # a third ends even what does not return to Python
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in WATCHED}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
