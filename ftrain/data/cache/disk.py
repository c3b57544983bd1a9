"""A cache on disk: a folder with pixels.bin, places.npy and store.json.

The folder gets its name only when everything in it has been flushed to the disk. Two runs that build the same cache do
not disturb each other, and the second one to finish uses the first one's.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import platformdirs
import torch

from ftrain.data.cache.fill import fill
from ftrain.data.cache.format import CacheFormat
from ftrain.data.cache.images import ImageCache
from ftrain.data.cache.plan import CachePlan
from ftrain.data.index import Index
from ftrain.data.source import Source
from ftrain.disk import durable
from ftrain.text import readable

FORMAT = 2  # raised when older caches can no longer be read
PIXELS, PLACES, ABOUT = "pixels.bin", "places.npy", "store.json"


def cache_folder(source: Source, form: CacheFormat) -> Path:
    """Where the cache of a source is: in the user's cache folder, under a name that depends on the images' names, sizes
    and times, on what the cache stores for them, and on the versions of Pillow and torch.

    >>> from ftrain.data import from_arrays
    >>> folder = cache_folder(from_arrays(np.zeros((2, 8, 8), np.uint8), [0, 1]), CacheFormat(4, 1.0))
    >>> folder.parent.name, len(folder.name)
    ('decoded', 24)
    """
    facts: list[Any] = [FORMAT, source.fingerprint, form.facts, PIL.__version__, torch.__version__]
    if isinstance(source, Index):
        facts += [os.path.realpath(source.root), hashlib.sha256(source.modified.tobytes()).hexdigest()]
    name = hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return platformdirs.user_cache_path("ftrain") / "decoded" / name


def open_cache(folder: Path) -> ImageCache | None:
    """The cache in a folder, or None if there is none or it is damaged.

    >>> open_cache(Path("no/such/folder")) is None
    True
    """
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        places = np.load(folder / PLACES, allow_pickle=False)
        plan = CachePlan(places, {int(position): cause for position, cause in about["unreadable"].items()})
        complete = about["format"] == FORMAT and os.path.getsize(folder / PIXELS) == about["bytes"] == plan.bytes
        return ImageCache(plan, CacheFormat(*about["form"]), folder / PIXELS, None) if complete else None
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def build_on_disk(
    source: Source, plan: CachePlan, form: CacheFormat, folder: Path, *, workers: int
) -> Iterator[int | ImageCache]:
    """Builds a cache in a folder. Yields the number of images done, and finally the cache.

    Raises:
      OSError: if the disk is full or cannot be written. No files remain then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    filling, claim = _claim(folder)
    try:
        with open(filling / PIXELS, "wb") as file:
            reserve(file.fileno(), plan.bytes, folder)
            partial = ImageCache(plan, form, filling / PIXELS, None)
            for event in fill(source, partial, workers):
                if isinstance(event, ImageCache):
                    partial = event
                else:
                    yield event
            about = {"format": FORMAT, "form": form.facts, "bytes": plan.bytes}
            bad_images = {str(position): cause for position, cause in partial.plan.bad_images.items()}
            with durable.naming(folder):
                os.fsync(file.fileno())
                np.save(filling / PLACES, partial.plan.places)
                (filling / ABOUT).write_text(json.dumps({**about, "unreadable": bad_images}, indent=1))
            for name in (PLACES, ABOUT, "."):
                durable.sync(filling / name)
        try:
            filling.rename(folder)
            durable.sync(folder.parent)
        except OSError:
            if not folder.is_dir():  # otherwise another run was first
                raise
    finally:
        shutil.rmtree(filling, ignore_errors=True)
        os.close(claim)
    found = open_cache(folder)
    assert found is not None
    yield found


def _claim(folder: Path) -> tuple[Path, int]:
    """A new folder in which to build a cache, and a descriptor with a lock on it, which shows other processes that this
    one is still alive. Removes what dead processes left of the same cache."""
    everything = os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.flock(everything, fcntl.LOCK_EX)  # until the new folder is locked too
        for left in folder.parent.glob(f".{folder.name}-*"):
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            except BlockingIOError:
                pass  # its process is alive
            finally:
                os.close(descriptor)
        if folder.is_dir() and open_cache(folder) is None:  # damaged
            shutil.rmtree(folder)
        filling = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        claim = os.open(filling, os.O_RDONLY)
        fcntl.flock(claim, fcntl.LOCK_EX)
        return filling, claim
    finally:
        os.close(everything)


def reserve(descriptor: int, count: int, folder: Path) -> None:
    """Allocates the disk space in advance, so that a disk that is too small is reported at once.

    Args:
      folder: of the cache, for the message.
    """
    try:
        if count and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, count)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; {readable(count)} are needed", str(folder)) from error
