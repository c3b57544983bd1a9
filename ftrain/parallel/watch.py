"""A thread that finds a process of a run which hangs, and ends this one when another has failed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

__all__ = ["FAILURE", "TOLD", "Activity", "Beat", "Store", "Watch", "hanging"]

FAILURE = "failure"  # the key of the text that a failed process leaves
TOLD = "told"  # the key of the number of processes that have read it
GRACE = 15.0  # seconds for the main thread to end by itself after another process has failed


class Store(Protocol):
    """What is used of torch's stores, which all processes share."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def add(self, key: str, value: int) -> int: ...


class Activity(NamedTuple):
    """What the main thread of a process does.

    Attributes:
      what: in words.
      number: how many activities there were before.
      may_take_long: whether it has no limit in time, such as compiling.
    """

    what: str = "starting"
    number: int = 0
    may_take_long: bool = False


class Beat(NamedTuple):
    """A sign of life of a process.

    Attributes:
      number: how many there were before.
      activity: of its main thread.
    """

    number: int
    activity: Activity


def hanging(beats: dict[int, Beat], beat_age: dict[int, float], progress_age: float, limit: float) -> str | None:
    """Which process hangs, in words; None if none does.

    Args:
      beats: the last sign of life of each process.
      beat_age: the seconds since each of them was new.
      progress_age: the seconds since the main thread of any process last did something new.
      limit: the seconds from which a process hangs.

    >>> beats = {0: Beat(9, Activity("training step 7", 20)), 1: Beat(9, Activity("loading training step 7", 19))}
    >>> hanging(beats, {0: 0.0, 1: 0.0}, progress_age=61.0, limit=60.0)
    'process 1 has not finished for 60 s: loading training step 7'
    >>> hanging(beats, {0: 0.0, 1: 61.0}, progress_age=61.0, limit=60.0)
    'process 1 has not answered for 60 s; its last sign of life was during: loading training step 7'
    """
    # When nobody gets further, a process has been silent for about as long.
    longest = limit / 2.0 if progress_age > limit else limit
    silent = [rank for rank, age in sorted(beat_age.items()) if age > longest]
    if silent:
        rank = silent[0]
        return (
            f"process {rank} has not answered for {limit:g} s; its last sign of life was during: "
            f"{beats[rank].activity.what}"
        )
    if progress_age <= limit or any(beat.activity.may_take_long for beat in beats.values()):
        return None
    rank = min(beats, key=lambda rank: (beats[rank].activity.number, rank))
    if len({beat.activity.what for beat in beats.values()}) == 1:
        return (
            f"no process has got further for {limit:g} s, each of them in: {beats[rank].activity.what}; the network "
            "between them may be interrupted"
        )
    return f"process {rank} has not finished for {limit:g} s: {beats[rank].activity.what}"


class Watch:
    """Sends signs of life, looks at those of the others, and at whether one of them has failed.

    Attributes:
      activity: of the main thread, which sets it.
      failure: the text that a failed process has left; None if there is none yet.

    Args:
      store: shared by all processes. Nothing else may use this object.
      limit: the seconds after which a process hangs.
      failed: called with the text that a failed process has left, when the main thread has not ended by itself.
      hangs: called with what hangs, in words.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        world: int,
        limit: float,
        failed: Callable[[str], None],
        hangs: Callable[[str], None],
    ) -> None:
        self.activity = Activity()
        self.failure: str | None = None
        self._store, self._rank, self._world, self._limit = store, rank, world, limit
        self._failed, self._hangs = failed, hangs
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Starts to watch."""
        self._send(0)
        self._thread.start()

    def stop(self) -> None:
        """Stops to watch; waits for what is under way, but not for a store that does not answer."""
        self._done.set()
        self._thread.join(timeout=1.0)

    def tell(self, failure: str) -> None:
        """Tells the other processes that this one has failed, from the thread of the watch."""
        self._store.set(FAILURE, failure)

    def _send(self, number: int) -> None:
        self._store.set(f"beat/{self._rank}", json.dumps([number, *self.activity]))

    def _run(self) -> None:
        interval = min(2.0, self._limit / 5.0)
        seen: dict[int, tuple[Beat, float]] = {}  # with the time when it was new
        now = progress = time.monotonic()
        number = 0
        while not self._done.wait(interval):
            before, now = now, time.monotonic()
            if now - before > 2.0 * interval + 1.0:  # this process was suspended, perhaps with all others
                seen, progress = {}, now
            try:
                number += 1
                self._send(number)
                if self._store.check([FAILURE]):
                    self.failure = self._store.get(FAILURE).decode()
                    self._store.add(TOLD, 1)
                    break
                # The first process looks at all; the others look at the first.
                looked_at = range(self._world) if self._rank == 0 else (0,)
                found = {rank: beat for rank in looked_at if (beat := self._beat(rank)) is not None}
            except Exception as error:  # the store has gone, with the process or the launcher that held it
                if not self._done.is_set():
                    self._hangs(f"the process or launcher that connects all others no longer answers ({error})")
                return
            for rank, beat in found.items():
                old = seen.get(rank)
                if old is None or old[0].activity != beat.activity:
                    progress = now
                if old is None or old[0].number != beat.number:
                    seen[rank] = beat, now
            if seen:
                ages = {rank: now - since for rank, (_, since) in seen.items()}
                beats = {rank: beat for rank, (beat, _) in seen.items()}
                idle = now - progress if self._rank == 0 else 0.0  # only the first process knows what all of them do
                if (what := hanging(beats, ages, idle, self._limit)) is not None:
                    self._hangs(what)
                    return
        # From here on without the store, which may go at any time.
        if self.failure is not None and not self._done.wait(GRACE):
            self._failed(self.failure)

    def _beat(self, rank: int) -> Beat | None:
        if not self._store.check([f"beat/{rank}"]):
            return None
        count, *activity = json.loads(self._store.get(f"beat/{rank}"))
        return Beat(count, Activity(*activity))
