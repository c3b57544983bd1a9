"""SIGINT, SIGTERM and SIGHUP: the first stops a run after its current step, a second ends the process immediately."""

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

WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar hides


class Stop:
    """Whether a signal has asked the run to stop.

    Attributes:
      code: the exit code, once a signal has arrived; None before.
      waits: whether there is a run to save; until then the first signal ends the process.
      announced: whether a progress bar shows that the run is stopping, so that a line would only disturb it.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self.waits = False
        self.announced = False

    def __call__(self) -> bool:
        return self.code is not None


@contextmanager
def watched() -> Iterator[Stop]:
    """Handles signals. Python allows that only in the main thread; elsewhere nothing happens."""
    stop = Stop()
    owner = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() != owner:
            return  # a worker that was just forked; the main process decides
        if not stop.waits:
            raise Interrupted(number)
        if stop.code is None:
            stop.code = 128 + number
            if not stop.announced:
                _write(b"\nstopping after this step; a second signal stops immediately\n")
            return
        # Not by an exception: unwinding would wait for workers, and unlock the run while it is being written.
        for child in multiprocessing.active_children():
            child.kill()
        _write(
            b"\nstopped immediately; the last checkpoint is intact\n" + (SHOW_CURSOR if sys.stderr.isatty() else b"")
        )
        os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # A signal that is ignored stays ignored, as nohup wants it.
    numbers = [number for number in WATCHED if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(text: bytes) -> None:
    """Writes to stderr without `print`, which the signal may have interrupted. The reader may be gone as well."""
    with suppress(OSError):
        os.write(2, text)
