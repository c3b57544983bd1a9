"""Saving checkpoints in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ftrain.errors import Interrupted


class Saver:
    """Saves checkpoints in a background thread, one at a time. An error is raised at the next call, or at the end."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Interrupted):
            return  # the process ends immediately; checkpoints on the disk are complete
        if kind is None or kind is GeneratorExit:
            self.finish()
        elif self._thread:
            self._thread.join()

    def start(self, work: Callable[[], object]) -> None:
        """Waits for the work under way, then starts `work` in the background."""
        self.finish()
        # A daemon, so that a process that must end immediately does not wait for it.
        self._thread = threading.Thread(target=self._do, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Waits for the work under way.

        Raises:
          BaseException: what the work raised.
        """
        if self._thread:
            self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises the error of work that has failed, if any."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
