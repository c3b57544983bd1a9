"""Saving in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Saver:
    """Saves in the background, one checkpoint at a time. An error of one is raised at the next call, or at the end."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, KeyboardInterrupt):
            return  # at once means at once; what was committed is whole
        if kind is None or kind is GeneratorExit:
            self.finish()
        elif self._thread:
            self._thread.join()

    def start(self, work: Callable[[], object]) -> None:
        """Has `work` done in the background, when what is being done is done."""
        self.finish()
        # A daemon, so that a process that is to end at once does not wait for it.
        self._thread = threading.Thread(target=self._do, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Waits until what was started is done."""
        if self._thread:
            self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises what went wrong, if anything did so far."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
