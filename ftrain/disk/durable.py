"""The one module that writes: files and folders that are on the disk whole or not at all, also after power is lost.

Content is written under another name and flushed, then renamed, and then the folder that holds it is flushed. What a
process leaves that is killed on the way has a name that nothing reads, and `sweep` removes it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ftrain.text import readable

PARTIAL, REMOVED = ".partial", ".removed"
Part = bytes | memoryview


def write_file(path: Path, data: bytes) -> None:
    """Writes or replaces a file.

    Raises:
      OSError: with the path and the bytes that were needed; the file is then as it was.
    """
    with new_file(path) as partial:
        write(partial, [data])


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """The name of a file to `write`, which gets the name `target` at the end, in place of one that has it. If that
    fails, nothing is left of it, and `target` is as it was."""
    partial = _partial(target)
    try:
        with _named(target):
            yield partial
            os.rename(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(target.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which gets the name `target` at the end. If that fails, nothing is left of it.

    Raises:
      OSError: if `target` is there and not empty, or cannot be written.
    """
    make_folder(target.parent)
    partial = _partial(target)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _named(target):
            os.mkdir(partial)
            yield partial
            sync(partial)
            os.rename(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(target.parent)


def write(path: Path, parts: Sequence[Part]) -> None:
    """Writes and flushes a file whose name nobody reads yet, such as one in a `new_folder`.

    Raises:
      OSError: with the bytes that were needed.
    """
    needed = sum(len(part) for part in parts)
    with _named(path), _needing(needed, path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for part in parts:
                _write_all(descriptor, part)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def append(path: Path, data: bytes) -> None:
    """Adds to a file that is there.

    Raises:
      OSError: with the bytes that were needed; the file is then as it was.
    """
    with _named(path), _needing(len(data), path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            size = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            except BaseException:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> list[Path]:
    """Makes a folder and those above it that are missing, and returns the new ones, the innermost first."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        try:
            os.mkdir(made)
        except FileExistsError:  # another process was first
            if not made.is_dir():
                raise
        sync(made.parent)
    return missing


def rename(path: Path, target: Path) -> None:
    """Renames within a folder."""
    os.rename(path, target)
    sync(path.parent)


def remove_folder(folder: Path) -> None:
    """Removes a folder and all in it. It loses its name first, so that a folder of that name is never half of one."""
    doomed = folder.with_name(f".{folder.name}{REMOVED}")
    shutil.rmtree(doomed, ignore_errors=True)  # left by a process that was stopped here
    rename(folder, doomed)
    shutil.rmtree(doomed)


def sweep(folder: Path) -> None:
    """Removes from a folder what killed processes have left there half written or half removed. To be called while no
    other process writes into it."""
    for path in filter(is_leftover, folder.iterdir()):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether `sweep` would remove it."""
    return path.name.startswith(".") and path.suffix in (PARTIAL, REMOVED)


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")


def _write_all(descriptor: int, part: Part) -> None:
    left = memoryview(part)
    while left:
        left = left[os.write(descriptor, left) :]


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Lets an error name what was to be written, not the name that it had until then."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and PARTIAL not in str(error.filename):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error


@contextmanager
def _needing(count: int, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        raise OSError(error.errno, f"{error.strerror}; {readable(count)} are needed", str(path)) from error
