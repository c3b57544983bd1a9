"""How much room there is for a cache."""

from __future__ import annotations

import shutil

import platformdirs
import psutil


def available_memory() -> int:
    """The bytes of memory that can be used without swapping.

    >>> available_memory() > 0
    True
    """
    return int(psutil.virtual_memory().available)


def free_shared_memory() -> int:
    """The bytes of memory that processes can share; 0 if the system does not say.

    >>> 0 <= free_shared_memory() <= psutil.virtual_memory().total
    True
    """
    try:
        # psutil knows nothing of /dev/shm, whose size limits what processes can share on Linux.
        return min(available_memory(), shutil.disk_usage("/dev/shm").free)
    except OSError:  # not on Linux
        return 0


def free_disk() -> int:
    """The free bytes on the disk of the user's cache folder.

    >>> free_disk() >= 0
    True
    """
    folder = platformdirs.user_cache_path("ftrain")
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
