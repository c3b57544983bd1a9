"""A lock on a folder, which the kernel frees as soon as its holder ends in any way.

The `filelock` package could replace this only from version 3.32 on: before, forked workers keep the lock, and a refused
attempt erases the name of the holder. It never removes the file of the lock.
"""

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
_descriptors: set[int] = set()  # of the locks of this process


def _close_in_child() -> None:
    """A forked process inherits the descriptors, and would keep the locks when this process has ended."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder, which is made if necessary, and removed at the end if it is empty.

    Raises:
      BusyError: if another process, or another part of this one, has locked it.
      OSError: if the folder cannot be made or written.
    """
    path = folder / LOCK
    while True:
        made = durable.make_folder(folder)
        with suppress(FileNotFoundError), durable.naming(path):  # its last holder has just removed the empty folder
            descriptor = _acquire(path)
            break
    _descriptors.add(descriptor)
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        with durable.naming(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        _descriptors.discard(descriptor)
        with durable.naming(path):
            os.close(descriptor)
        with suppress(OSError):  # a folder that is not empty stays
            for empty in made:
                empty.rmdir()


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):  # otherwise its holder removed it in between
                return descriptor
        except BlockingIOError:
            message = _busy(path, descriptor)
            os.close(descriptor)
            raise BusyError(message) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _busy(path: Path, descriptor: int) -> str:
    opened = os.fstat(descriptor)
    if any(os.path.samestat(opened, os.fstat(own)) for own in _descriptors):  # such as a generator in a notebook
        return f"{shown(path.parent)} is locked by another run in this process; finish or close it first"
    holder = os.read(descriptor, 1000).decode("utf-8", "replace") or "another process"
    return f"{shown(path.parent)} is in use by {shown(holder)}; wait until it ends, or choose another folder as `out`"


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
