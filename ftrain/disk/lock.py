"""A folder for one process at a time, by a lock of the kernel's: free as soon as its holder has ended, however."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ftrain.disk import durable
from ftrain.errors import BusyError
from ftrain.text import shown

LOCK = ".lock"
_held: set[int] = set()  # descriptors


def _let_go_in_child() -> None:
    """A forked process would hold the lock on after the end of the one that took it."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder, which is made if need be, and removed if it is empty at the end.

    Raises:
      BusyError: if another process holds it, or another part of this one.
      OSError: if it cannot be written into.
    """
    path = folder / LOCK
    while True:
        made = durable.make_folder(folder)
        with suppress(FileNotFoundError):  # whoever had the empty folder removed it
            descriptor = _take(path)
            break
    _held.add(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        _held.discard(descriptor)
        os.close(descriptor)
        with suppress(OSError):  # what is not empty stays
            for empty in made:
                empty.rmdir()


def _take(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):  # else its holder removed it in between
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode("utf-8", "replace") or "another process"
            os.close(descriptor)
            raise BusyError(
                f"{shown(path.parent)} is in use by {shown(holder)}; wait until it ends, or give another folder as "
                "--out"
            ) from None
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
