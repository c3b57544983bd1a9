"""The processes of a run: how they start together, agree, and end together."""

from __future__ import annotations

import datetime
import itertools
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from ftrain.errors import ProcessError, SettingsError
from ftrain.parallel import failures
from ftrain.parallel.place import Place, place
from ftrain.parallel.ranks import Ranks, one_process, ranks
from ftrain.parallel.watch import FAILURE, TOLD, Activity, Watch
from ftrain.torch_private import pytree

__all__ = ["Processes", "end_process", "joined"]

E = TypeVar("E")
T = TypeVar("T")
LOST = 5.0  # seconds that processes wait for each other when the run has failed
POLL = 0.05  # seconds between two looks at the store


class Processes:
    """The processes of a run, as one of them sees them. This class is a run of one process; `joined` makes others.

    All processes make the same calls in the same order.

    Attributes:
      place: of this process.
    """

    place = Place()

    @property
    def world(self) -> int:
        """The number of processes."""
        return self.place.world

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.place.rank == 0

    def ranks(self, shards: int) -> Ranks:
        """How a batch lies over the processes."""
        return one_process(shards)

    def doing(self, what: str, *, may_take_long: bool = False) -> None:
        """Notes what the process does from now on, for the message about one that hangs."""

    def agree(self, wish: int) -> int:
        """The largest wish of all processes. It does not wait for them: the answer may be that of the call before, but
        it is the same in all processes."""
        return wish

    def gathered(self, value: T) -> list[T]:
        """The value of each process, which can be pickled, by rank."""
        return [value]

    def from_first(self, value: T) -> T:
        """The value of the first process, which can be pickled."""
        return value

    def tensors_of_first(self, tree: T) -> T:
        """The tree with the tensors of the first process. Its structure, shapes and dtypes are the same in all."""
        return tree

    def first_then_all(self, work: Callable[[], Generator[E, None, T]]) -> Generator[E, None, T]:
        """Does some work in the first process, and then in the others, so that they find the files which it has
        written. The result is this process's own; if that of the first is None, the others do nothing.

        Raises:
          BaseException: what the work of the first raised.
        """
        return (yield from work())


class _Joined(Processes):
    """One of several processes."""

    def __init__(self, here: Place, timeout: float, end: Callable[[BaseException], NoReturn]) -> None:
        self.place = here
        # Longer than the watch waits, whose message says more.
        self._patience = datetime.timedelta(seconds=2.0 * timeout + 60.0)
        control = dist.new_group(backend="gloo", timeout=self._patience)
        assert isinstance(control, dist.ProcessGroup)
        self._control = control
        self._keys = self.from_first(uuid.uuid4().hex)
        self._store = self._connection()
        self._end = end
        self._waited = 0
        self._agreement: tuple[dist.Work, torch.Tensor] | None = None
        self._watch = Watch(
            self._connection(), rank=here.rank, world=here.world, limit=timeout, failed=self._failed, hangs=self._hangs
        )
        self._watch.start()

    def ranks(self, shards: int) -> Ranks:
        return ranks(shards)

    def _connection(self) -> Any:
        """The store of torch.distributed, which is safe to use from one thread at a time."""
        store = dist.TCPStore(  # type: ignore[attr-defined]
            self.place.address, self.place.port, is_master=False, wait_for_workers=False, timeout=self._patience
        )
        return dist.PrefixStore(f"ftrain/{self._keys}", store)  # type: ignore[attr-defined]

    def doing(self, what: str, *, may_take_long: bool = False) -> None:
        self._watch.activity = Activity(what, self._watch.activity.number + 1, may_take_long)

    def agree(self, wish: int) -> int:
        before, word = self._agreement, torch.tensor(wish)
        work = dist.all_reduce(word, dist.ReduceOp.MAX, group=self._control, async_op=True)
        assert work is not None
        self._agreement = work, word
        if before is None:
            return 0
        work, word = before
        work.wait()
        return int(word)

    def gathered(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self._control)
        return found

    def from_first(self, value: T) -> T:
        told: list[Any] = [value if self.is_first else None]
        dist.broadcast_object_list(told, src=0, group=self._control)
        found: T = told[0]
        return found

    def tensors_of_first(self, tree: T) -> T:
        def broadcast(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            on_host = leaf.detach().cpu().contiguous()
            dist.broadcast(on_host, src=0, group=self._control)
            # Into memory of the same layout, which the bits of a convolution depend on.
            return leaf if self.is_first else torch.empty_like(leaf).copy_(on_host)

        return pytree.tree_map(broadcast, tree)  # type: ignore[no-any-return]

    def first_then_all(self, work: Callable[[], Generator[E, None, T]]) -> Generator[E, None, T]:
        key, done = f"first/{self._waited}", f"all/{self._waited}"
        self._waited += 1
        if self.is_first:
            self.doing("preparing the run", may_take_long=True)
            result = yield from work()
            self._store.set(key, "nothing" if result is None else "done")
        else:
            self.doing("waiting for process 0 to prepare the run")
            self._wait_until(lambda: self._store.check([key]))
            self.doing("preparing the run", may_take_long=True)
            result = (yield from work()) if self._store.get(key) == b"done" else None  # type: ignore[assignment]
        self._store.add(done, 1)
        self._wait_until(lambda: self._store.add(done, 0) == self.world)
        self.doing("starting to train")
        return result

    def _wait_until(self, is_so: Callable[[], bool]) -> None:
        """Waits without a limit, unless a process fails."""
        while not is_so():
            if self._store.check([FAILURE]):
                raise failures.load(self._store.get(FAILURE).decode())[1]
            time.sleep(POLL)

    def finish(self) -> None:
        """Ends what all processes have in common, when all of them are done."""
        if self._agreement is not None:
            self._agreement[0].wait()
        self.doing("ending")
        dist.barrier(group=self._control)
        self._watch.stop()
        dist.destroy_process_group()

    def explained(self, error: BaseException) -> BaseException:
        """The error with which all processes end, if this one has this error: that of the process that failed first."""
        try:
            if failures.is_lost_connection(error):
                deadline = time.monotonic() + LOST
                while time.monotonic() < deadline and self._watch.failure is None and not self._store.check([FAILURE]):
                    time.sleep(POLL)
                error = self._lost(error)
            mine = failures.dump(error, self.place.rank)
            first = self._watch.failure or self._store.compare_set(FAILURE, "", mine).decode()
            self._wait_for_others()
        except RuntimeError:  # the store has gone, with the process or the launcher that held it
            if self._watch.failure is not None:
                return failures.load(self._watch.failure)[1]
            return self._lost(error) if failures.is_lost_connection(error) else error
        return error if first == mine else failures.load(first)[1]

    def _lost(self, error: BaseException) -> ProcessError:
        cause = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        return ProcessError(
            f"another process of the run has ended without a message, or the connection to it was lost, during: "
            f"{self._watch.activity.what}. The last checkpoint is intact; resume the run. The original message is: "
            f"{cause}"
        )

    def _wait_for_others(self) -> None:
        """Waits until all processes know why the run ends: the first may hold the store, and a launcher interrupts the
        others as soon as one ends."""
        deadline = time.monotonic() + LOST
        while self._store.add(TOLD, 0) < self.world and time.monotonic() < deadline:
            time.sleep(POLL)

    def give_up(self) -> None:
        """Stops to watch, after an error."""
        self._watch.stop()

    def _failed(self, text: str) -> None:
        """Ends the process, from the thread that watches: another has failed, and the main thread is stuck."""
        self._end(failures.load(text)[1])

    def _hangs(self, what: str) -> None:
        """As `_failed`, when a process hangs."""
        error = ProcessError(f"{what}. The last checkpoint is intact; resume the run, or give a longer `timeout`")
        try:
            self._watch.tell(failures.dump(error, self.place.rank))
        finally:
            self._end(error)


def end_process(error: BaseException) -> NoReturn:
    """Ends this process at once, with a message, and with the exit code that says: try again."""
    sys.stderr.write(f"{error}\n")
    sys.stderr.flush()
    os._exit(os.EX_TEMPFAIL)


_stores: list[Any] = []  # one, which lives as long as this process, since others may still read it
_numbers = itertools.count()  # of the groups that this process has joined


def _new_store(here: Place, patience: datetime.timedelta) -> Any:
    """The store through which the processes find each other, with keys that no group before has used."""
    if not _stores:
        # TorchElastic may hold it; otherwise the first process does.
        held = here.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = dist.TCPStore(  # type: ignore[attr-defined]
            here.address, here.port, here.world, is_master=held, timeout=patience, multi_tenant=True
        )
        _stores.append(store)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"group/{attempt}/{next(_numbers)}", _stores[0])  # type: ignore[attr-defined]


@contextmanager
def _signals_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def joined(
    *,
    timeout: float,
    device: str = "cpu",
    here: Place | None = None,
    end: Callable[[BaseException], NoReturn] = end_process,
) -> Iterator[Processes]:
    """Joins the processes that torchrun, `ftrain fit --processes` or srun has started, for a block in which all of them
    do the same. Without one of these launchers, there is only this process.

    Args:
      timeout: seconds after which a process that does not get further is said to hang.
      device: the type of the device on which the processes compute: cpu, cuda or mps.
      here: the place of this process; by default what the environment says.
      end: ends this process at once when its main thread is stuck, because another has failed or hangs.

    Raises:
      BaseException: if one process raises an error inside the block, all others raise the same.
      ProcessError: if another process has ended without an error that it could tell.
      SettingsError: if there is one of torch's process groups already, or there are not enough GPUs.
    """
    here = here or place()
    if here.world == 1:
        yield Processes()
        return
    if dist.is_initialized():
        raise SettingsError(
            "torch.distributed has been initialised already; a run does it itself, so do not call init_process_group"
        )
    backend = "gloo"
    if device == "cuda":
        count = torch.cuda.device_count()
        alone = count == 1 and "CUDA_VISIBLE_DEVICES" in os.environ  # as srun shows each process its own
        if here.local_world > count and not alone:
            raise SettingsError(
                f"{here.local_world} processes were started on this machine, which has {count} GPUs; start one process "
                "for each of them at most, or use `device=cpu`"
            )
        torch.cuda.set_device(0 if alone else here.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    patience = datetime.timedelta(seconds=timeout)
    try:
        dist.init_process_group(
            backend, store=_new_store(here, patience), world_size=here.world, rank=here.rank, timeout=patience
        )
        processes = _Joined(here, timeout, end)
    except RuntimeError as error:
        raise ProcessError(
            f"process {here.rank} did not find all {here.world} processes of the run at {here.address}, port "
            f"{here.port}, within {timeout:g} s: {str(error).splitlines()[0]}"
        ) from error
    try:
        yield processes
        processes.finish()
    except BaseException as error:
        with _signals_ignored():  # a launcher sends them as soon as one process has ended
            raised = processes.explained(error)
        processes.give_up()
        if raised is error:
            raise
        raise raised from error
