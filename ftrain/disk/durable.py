"""Files and folders that are on the disk completely or not at all, even after a power loss. Nothing else writes.

Content is written under a temporary name and flushed, then renamed, and then the parent folder is flushed. A process
that is killed in between leaves temporary names, which nothing reads and `sweep` removes. Every OSError names a path.
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
      OSError: with the path, and the number of bytes needed if there is no room; the file is unchanged.
    """
    with new_file(path) as partial:
        write(partial, [data])


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A temporary name for a file to `write`, which is renamed to `target` at the end and replaces it. If that fails,
    the temporary file is removed and `target` is unchanged."""
    partial = _partial(target)
    try:
        with naming(target):
            yield partial
            os.rename(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(target.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder to fill, which is renamed to `target` at the end. If that fails, it is removed.

    Raises:
      OSError: if `target` exists and is not empty, or cannot be written.
    """
    make_folder(target.parent)
    partial = _partial(target)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with naming(target):
            os.mkdir(partial)
            yield partial
            sync(partial)
            os.rename(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(target.parent)


def write(path: Path, parts: Sequence[Part]) -> None:
    """Writes and flushes a file under a temporary name, or in a `new_folder`.

    Raises:
      OSError: with the number of bytes needed if there is no room.
    """
    needed = sum(len(part) for part in parts)
    with naming(path), _needing(needed, path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for part in parts:
                _write_all(descriptor, part)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def append(path: Path, data: bytes) -> None:
    """Appends to an existing file.

    Raises:
      OSError: with the number of bytes needed if there is no room; the file is unchanged.
    """
    with naming(path), _needing(len(data), path):
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
    """Makes a folder and its missing parents, and returns the new ones, the innermost first."""
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
    """Renames a file or folder within its parent folder."""
    os.rename(path, target)
    sync(path.parent)


def remove_folder(folder: Path) -> None:
    """Removes a folder and its contents. It is renamed first, so that a folder with its name is always complete."""
    doomed = folder.with_name(f".{folder.name}{REMOVED}")
    shutil.rmtree(doomed, ignore_errors=True)  # left by a process that was killed here
    rename(folder, doomed)
    shutil.rmtree(doomed)


def sweep(folder: Path) -> None:
    """Removes what killed processes have left in a folder. No other process may be writing into it."""
    for path in filter(is_leftover, folder.iterdir()):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether `sweep` would remove this file or folder."""
    return path.name.startswith(".") and path.suffix in (PARTIAL, REMOVED)


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """Adds the path of a file or folder to an OSError that has none, or only the path of a temporary file. The system
    gives none for a call on a descriptor, such as write or fsync."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and PARTIAL not in str(error.filename)):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")


def _write_all(descriptor: int, part: Part) -> None:
    left = memoryview(part)
    while left:
        left = left[os.write(descriptor, left) :]


@contextmanager
def _needing(count: int, path: Path) -> Iterator[None]:
    """Adds the number of bytes needed to an OSError about missing room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        raise OSError(error.errno, f"{error.strerror}; {readable(count)} are needed", str(path)) from error
