"""Decoded images, kept: uint8 pixels of a whole data set in one file or in shared memory, mapped by every worker.

What is kept of an image depends on what training needs of it (`Form`). Where every epoch shows the same square of it,
that square is kept, and its pixels are those that decoding the file anew would give. Where each epoch crops it anew,
the whole image is kept at a reduced size; crops are then scaled from those pixels, and differ a little from crops of
the file.

On disk a store is a folder with pixels.bin, places.npy and store.json. It gets its name only when all in it is on the
disk; two runs that build the same one do not meet, and the second to finish takes the first one's.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import attrs
import numpy as np
import numpy.typing as npt
import PIL
import platformdirs
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ftrain.data.augment import Box, centre_pixels
from ftrain.data.decode import crop, oriented_size
from ftrain.data.folders import Index
from ftrain.data.source import Source
from ftrain.data.workers import shared_zeros, work
from ftrain.disk import durable
from ftrain.errors import DataError
from ftrain.text import readable, shown

FORMAT = 2
PIXELS, PLACES, ABOUT = "pixels.bin", "places.npy", "store.json"
CHUNK = 32  # images in a worker's job


class Form(NamedTuple):
    """What is kept of each image."""

    side: int  # in pixels: of the square, or of the whole image's shorter side at most
    share: float | None  # what the square at the centre is of the shorter side; None to keep the whole image

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width as kept of an image of that size."""
        if self.share is not None:
            return self.side, self.side
        scale = min(1.0, self.side / min(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


@attrs.frozen(eq=False)
class Plan:
    """What a store will hold.

    Attributes:
      places: int64 [N, 5], a row for each image: first byte, height and width as kept, height and width of the image
        itself. Both heights are 0 for an image that cannot be read.
      unreadable: why, for each such image by its position.
    """

    places: npt.NDArray[np.int64]
    unreadable: dict[int, str]

    @property
    def bytes(self) -> int:
        return int((self.places[:, 1] * self.places[:, 2]).sum()) * 3


@attrs.frozen(eq=False, slots=False)
class Store:
    """The kept images, by their positions in the source."""

    plan: Plan
    form: Form
    path: Path | None  # of the pixels, if they are in a file
    memory: Tensor | None  # uint8 [bytes], shared between processes, if they are not

    @functools.cached_property
    def _pixels(self) -> Tensor:
        if self.memory is not None:
            return self.memory
        return torch.from_file(str(self.path), shared=False, size=self.plan.bytes, dtype=torch.uint8)

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of the image itself.

        Raises:
          DataError: if it could not be read when the store was made.
        """
        if position in self.plan.unreadable:
            raise DataError(self.plan.unreadable[position])
        height, width = self.plan.places[position, 3:].tolist()
        return height, width

    def whole(self, position: int) -> Tensor:
        """What is kept of an image, uint8 [3, height, width], channels last in memory."""
        self.size(position)
        first, height, width = self.plan.places[position, :3].tolist()
        return self._pixels[first : first + height * width * 3].view(height, width, 3).permute(2, 0, 1)

    def crop(self, position: int, box: Box, size: int) -> Tensor:
        """A part of an image, given in pixels of the image itself, scaled to a square: uint8 [3, size, size].

        The box is rounded to whole pixels of what is kept; the scaling is bilinear and antialiased.
        """
        pixels = self.whole(position)
        full_height, full_width = self.size(position)
        left, top, width, height = box
        columns = _span(left, width, full_width, pixels.shape[2])
        rows = _span(top, height, full_height, pixels.shape[1])
        return scaled(pixels[:, rows, columns], size, size)


def scaled(pixels: Tensor, height: int, width: int) -> Tensor:
    """Pixels uint8 [3, rows, columns], channels last in memory, as [3, height, width]: bilinear and antialiased.

    torch does this in a fraction of Pillow's time, and differs from it by 1 of 255 at most.
    """
    return F.interpolate(pixels[None], (height, width), mode="bilinear", antialias=True)[0]


def _span(start: float, length: float, full: int, kept: int) -> slice:
    first = min(round(start * kept / full), kept - 1)
    return slice(first, max(first + 1, min(round((start + length) * kept / full), kept)))


class Caching(NamedTuple):
    """Images are being decoded and kept, `done` of `total`; they take `bytes` in `place`."""

    done: int
    total: int
    bytes: int
    place: str


def keep(source: Source, form: Form, kind: Literal["ram", "disk"], *, workers: int) -> Generator[Caching, None, Store]:
    """Decodes and keeps all images of a source, unless a store of them is on disk already: yields how far it is, and
    returns the store.

    Raises:
      DataError: if there is not enough memory.
      OSError: if the disk is full or cannot be written. Nothing is left behind then.
    """
    folder = store_folder(source, form) if kind == "disk" else None
    if folder and (store := open_store(folder)):
        return store
    place = shown(folder) if folder else "memory"
    *_, planned = plan(source, form, workers=workers)
    assert isinstance(planned, Plan)
    yield Caching(0, len(source), planned.bytes, place)
    building = (
        build_on_disk(source, planned, form, folder, workers=workers)
        if folder
        else build_in_memory(source, planned, form, workers=workers)
    )
    for event in building:
        if isinstance(event, Store):
            return event
        yield Caching(event, len(source), planned.bytes, place)
    raise AssertionError("a build ends with a store")


def plan(source: Source, form: Form, *, workers: int) -> Iterator[int | Plan]:
    """Reads the header of every image: yields how many are read, from time to time, and at the end the plan."""
    sizes = np.zeros((len(source), 2), dtype=np.int64)
    unreadable: dict[int, str] = {}
    for positions, found in work(_Headers(source), _chunks(len(source)), workers=workers):
        for position, size in zip(positions, found, strict=True):
            if isinstance(size, DataError):
                unreadable[position] = str(size)
            else:
                sizes[position] = size
        yield positions.stop
    kept = np.array([form.size(*size) if size[0] else (0, 0) for size in sizes.tolist()], dtype=np.int64).reshape(-1, 2)
    ends = np.cumsum(kept[:, 0] * kept[:, 1] * 3)
    starts = np.concatenate([[0], ends[:-1]])
    yield Plan(np.column_stack([starts, kept, sizes]), unreadable)


def build_in_memory(source: Source, planned: Plan, form: Form, *, workers: int) -> Iterator[int | Store]:
    """Keeps the images in memory that worker processes share: yields how many are kept, and at the end the store.

    Raises:
      DataError: if there is not enough shared memory.
    """
    free = free_memory()
    if 0 < free < planned.bytes:
        raise DataError(
            f"--cache ram needs {readable(planned.bytes)} of shared memory, and {readable(free)} are free; use --cache "
            "disk or none"
        )
    store = Store(planned, form, None, shared_zeros(planned.bytes))
    yield from _fill(source, store, workers)


def build_on_disk(source: Source, planned: Plan, form: Form, folder: Path, *, workers: int) -> Iterator[int | Store]:
    """Keeps the images in a folder: yields how many are kept, and at the end the store.

    Raises:
      OSError: if the disk is full or cannot be written. Nothing is left behind then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    filling, claim = _claim(folder)
    try:
        with open(filling / PIXELS, "wb") as file:
            _reserve(file.fileno(), planned.bytes, folder)
            partial = Store(planned, form, filling / PIXELS, None)
            for event in _fill(source, partial, workers):
                if isinstance(event, Store):
                    partial = event
                else:
                    yield event
            os.fsync(file.fileno())
            np.save(filling / PLACES, partial.plan.places)
            about = {"format": FORMAT, "form": form, "bytes": planned.bytes}
            unreadable = {str(position): cause for position, cause in partial.plan.unreadable.items()}
            (filling / ABOUT).write_text(json.dumps({**about, "unreadable": unreadable}, indent=1))
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
    found = open_store(folder)
    assert found is not None
    yield found


def _reserve(descriptor: int, count: int, folder: Path) -> None:
    """Takes the room on the disk beforehand, so that a disk that is too small says so here."""
    try:
        if count and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, count)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; {readable(count)} are needed", str(folder)) from error


def open_store(folder: Path) -> Store | None:
    """The store in a folder, or None if there is none that is whole."""
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        places = np.load(folder / PLACES, allow_pickle=False)
        kept = Plan(places, {int(position): cause for position, cause in about["unreadable"].items()})
        whole = about["format"] == FORMAT and os.path.getsize(folder / PIXELS) == about["bytes"] == kept.bytes
        return Store(kept, Form(*about["form"]), folder / PIXELS, None) if whole else None
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def store_folder(source: Source, form: Form) -> Path:
    """Where the store of a source is: in the user's cache folder, under a name that follows from the images' names,
    sizes and times, and from what is kept of them."""
    facts: list[Any] = [FORMAT, source.fingerprint, list(form), PIL.__version__, torch.__version__]
    if isinstance(source, Index):
        facts += [os.path.realpath(source.root), hashlib.sha256(source.modified.tobytes()).hexdigest()]
    name = hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return platformdirs.user_cache_path("ftrain") / "decoded" / name


def _fill(source: Source, store: Store, workers: int) -> Iterator[int | Store]:
    unreadable = dict(store.plan.unreadable)
    for positions, found in work(_Keeper(source, store), _chunks(len(source)), workers=workers):
        unreadable |= {p: str(error) for p, error in zip(positions, found, strict=True) if error is not None}
        yield positions.stop
    yield attrs.evolve(store, plan=attrs.evolve(store.plan, unreadable=unreadable))


class _Headers(Dataset[Any]):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, positions: range) -> tuple[range, list[Any]]:
        return positions, [self.size(position) for position in positions]

    def size(self, position: int) -> tuple[int, int] | DataError:
        try:
            with self.source.open(position) as image:
                return oriented_size(image)
        except DataError as error:
            return error


class _Keeper(Dataset[Any]):
    """Writes images into a store."""

    def __init__(self, source: Source, store: Store) -> None:
        self.source, self.store = source, store

    def __getitem__(self, positions: range) -> tuple[range, list[Any]]:
        return positions, [self.keep(position) for position in positions]

    def keep(self, position: int) -> Exception | None:
        plan = self.store.plan
        if position in plan.unreadable:
            return None
        first, height, width = plan.places[position, :3].tolist()
        try:
            with self.source.open(position) as image:
                pixels = kept_pixels(image, self.store.form, height, width)
        except DataError as error:
            return error
        if self.store.memory is not None:
            self.store.memory[first : first + pixels.size].copy_(torch.from_numpy(pixels.reshape(-1)))
        else:
            with open(str(self.store.path), "rb+") as file:
                file.seek(first)
                file.write(pixels.tobytes())
        return None


def kept_pixels(image: Any, form: Form, height: int, width: int) -> npt.NDArray[np.uint8]:
    """What is kept of an image: uint8 [height, width, 3]."""
    if form.share is None:
        rows, columns = oriented_size(image)
        pixels = crop(image, (0, 0, columns, rows), min(height, width))
        return scaled(torch.from_numpy(pixels).permute(2, 0, 1), height, width).permute(1, 2, 0).contiguous().numpy()
    return np.ascontiguousarray(centre_pixels(image, form.side, share=form.share).transpose(1, 2, 0))


def _chunks(count: int) -> Iterator[range]:
    return (range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK))


def _claim(folder: Path) -> tuple[Path, int]:
    """A new folder in which to fill a store, and a descriptor whose lock says that a process is at it, as long as it
    lives. What ended processes left of the same store is removed."""
    everything = os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.flock(everything, fcntl.LOCK_EX)  # until the new folder is locked too
        for left in folder.parent.glob(f".{folder.name}-*"):
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            except BlockingIOError:
                pass  # its process lives
            finally:
                os.close(descriptor)
        if folder.is_dir() and open_store(folder) is None:  # damaged
            shutil.rmtree(folder)
        filling = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        claim = os.open(filling, os.O_RDONLY)
        fcntl.flock(claim, fcntl.LOCK_EX)
        return filling, claim
    finally:
        os.close(everything)


def available_memory() -> int:
    """Bytes of memory that are free, or can be made so; 0 where the system does not say."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not on Linux
        return 0


def free_memory() -> int:
    """Bytes of memory that processes can share; 0 where the system does not say."""
    try:
        return min(available_memory(), shutil.disk_usage("/dev/shm").free)
    except OSError:  # not on Linux
        return 0


def free_disk() -> int:
    """Bytes on the disk of the cache folder."""
    folder = platformdirs.user_cache_path("ftrain")
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
