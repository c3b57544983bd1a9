"""Saving in the background: what happens to work under way when the block is left."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ftrain.disk.saver import Saver
from ftrain.errors import Interrupted


class Work:
    """Work that ends when it is released."""

    def __init__(self) -> None:
        self.started, self.released, self.done = threading.Event(), threading.Event(), False

    def __call__(self) -> None:
        self.started.set()
        self.released.wait()
        self.done = True


def leave(error: BaseException | None, work: Work) -> None:
    with Saver() as saver:
        saver.start(work)
        work.started.wait()
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), GeneratorExit(), ValueError()])
def test_work_under_way_is_waited_for(error: Any) -> None:
    work = Work()
    if error is None:
        work.released.set()
        leave(None, work)
    else:
        # The thread that leaves can only go on when this one releases the work.
        ended: list[BaseException] = []

        def run() -> None:
            try:
                leave(error, work)
            except BaseException as raised:
                ended.append(raised)

        thread = threading.Thread(target=run)
        thread.start()
        work.started.wait()
        thread.join(0.05)
        assert thread.is_alive()
        work.released.set()
        thread.join()
        assert ended == [error]
    assert work.done


def test_an_interrupted_process_does_not_wait() -> None:
    work = Work()
    with pytest.raises(Interrupted):
        leave(Interrupted(15), work)
    assert not work.done
    work.released.set()
