"""Starting the processes of a run on one machine, through torch's TorchElastic."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from ftrain.errors import ProcessError
from ftrain.parallel.place import place

__all__ = ["end_with_launcher", "leave", "start"]

ENDS = "FTRAIN_ENDS"  # the folder in which each process leaves how it ended
LAUNCHER = "FTRAIN_LAUNCHER"  # the number of the launcher among the system's processes
WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SHUTDOWN = 60  # seconds for processes to save after a signal
PR_SET_PDEATHSIG = 1


def start(arguments: Sequence[str], *, processes: int, restarts: int = 0) -> int:
    """Runs `python ARGUMENTS` in several processes, and waits for their end.

    Args:
      processes: how many.
      restarts: how often all of them are started again after one has been killed, lost or found hanging.

    Returns:
      The exit code of the run: the largest of its processes, or 128 plus the number of the signal that ended it.

    Raises:
      ProcessError: if a process was killed, or the first one could not say why it ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # this process does nothing else, and says itself what has happened
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SHUTDOWN)
    # A signal that is ignored stays ignored, as nohup wants it.
    watched = [each for each in WATCHED if signal.getsignal(each) != signal.SIG_IGN]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        local_addr="127.0.0.1",
        signals_to_handle=",".join(each.name for each in watched),
    )
    with tempfile.TemporaryDirectory(prefix="ftrain-") as name:
        folder = Path(name)
        os.environ[ENDS], os.environ[LAUNCHER] = name, str(os.getpid())
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                what = f"process {rank} was killed by {signal.Signals(-failure.exitcode).name}"
                raise ProcessError(f"{what}; the last checkpoint is intact") from error
            ends = _ends(folder)
            if ends and 0 not in ends:  # the first process could not say why
                raise ProcessError(ends[min(ends)][1]) from error
            return failure.exitcode
        except SignalException as error:
            return max([128 + int(error.sigval), *_codes(folder)])
        return max(_codes(folder), default=0)


def leave(code: int, message: str = "", *, again: bool = False) -> int:
    """Leaves to `start` how this process ends. Returns the exit code with which it is to end, so that TorchElastic
    starts all again only if that may help.

    Args:
      code, message: of a command without a launcher.
      again: whether the run may be tried again.
    """
    if (name := os.environ.get(ENDS)) is None:
        # torchrun would start a run again that was asked to stop.
        stopped = code in (128 + signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGHUP)
        return 0 if stopped and "TORCHELASTIC_RUN_ID" in os.environ else code
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    Path(name, f"{attempt}-{place().rank}").write_text(json.dumps([code, message]))
    return code if again else 0


def _codes(folder: Path) -> list[int]:
    return [code for code, _ in _ends(folder).values()]


def _ends(folder: Path) -> dict[int, tuple[int, str]]:
    """The exit codes and messages that the processes of the last attempt have left, by rank."""
    found: dict[int, dict[int, tuple[int, str]]] = {}
    for path in folder.iterdir():
        attempt, rank = map(int, path.name.split("-"))
        code, message = json.loads(path.read_text())
        found.setdefault(attempt, {})[rank] = int(code), str(message)
    return found[max(found)] if found else {}


def end_with_launcher() -> None:
    """Makes the system kill this process when its launcher ends, even by SIGKILL. Where that is not Linux, nothing
    happens."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if str(os.getppid()) != os.environ.get(LAUNCHER, str(os.getppid())):  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)
