"""Near-duplicates: images that show the same picture, scaled, compressed or retouched differently.

Two images are compared by thumbnails of 9 x 8 pixels. Their difference hashes (is a pixel brighter than its right
neighbour?) must differ in at most 4 of 64 bits, and the thumbnails themselves by little: apart from a shift of their
mean colour, and the less, the less contrast they have. The hash is that of N. Krawetz, "Kind of Like That", The Hacker
Factor Blog, 2013.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import platformdirs

from ftrain.data.decode import crop_and_resize, oriented_size
from ftrain.data.fingerprint import digest_of
from ftrain.data.index import Index
from ftrain.data.source import Preparing
from ftrain.disk import durable
from ftrain.errors import DataError

FORMAT = 1  # raised when the result changes
ROWS, COLUMNS = 8, 9
MAX_BITS = 4  # of 64 in which the hashes of near-duplicates differ
# By how much mean colours, and pixels apart from that, may differ (of 255): without any contrast, and what full
# contrast adds, which is that of most photographs.
SHIFT, MORE_SHIFT = 4.0, 28.0
RESIDUAL, MORE_RESIDUAL = 1.0, 7.0
FULL_CONTRAST = 40.0  # of 255: the mean absolute deviation of the pixels from the mean colour
CHUNK = 256  # images between two reports of progress

_BITS_SET = np.array([number.bit_count() for number in range(1 << 16)], dtype=np.uint8)
Thumbnails = npt.NDArray[np.uint8]


def near_duplicates(index: Index) -> Generator[Preparing, None, npt.NDArray[np.int64]]:
    """Finds near-duplicates. Yields its progress, and returns the group of each image, int64 [N]: the position of the
    first of the images that look like it, directly or through others. An image that cannot be read is alone.

    The result is kept in the user's cache folder, under a name that depends on the images' names, sizes and times.
    """
    remembered = _place(index)
    with suppress(OSError, ValueError):
        groups: npt.NDArray[np.int64] = np.load(remembered, allow_pickle=False)
        if len(groups) == len(index):
            return groups
    groups = yield from _compared(index)
    content = io.BytesIO()
    np.save(content, groups)
    with suppress(OSError):  # then they are compared again next time
        durable.make_folder(remembered.parent)
        durable.write_file(remembered, content.getvalue())
    return groups


def grouped(thumbnails: Thumbnails) -> npt.NDArray[np.int64]:
    """The group of each thumbnail uint8 [N, 8, 9, 3]: the position of the first that looks like it, int64 [N]."""
    hashes = difference_hashes(thumbnails)
    pixels = thumbnails.reshape(len(thumbnails), -1, 3).astype(np.float32)
    means = pixels.mean(axis=1)
    shapes = (pixels - means[:, None]).reshape(len(pixels), -1)
    contrasts = np.minimum(1.0, np.abs(shapes).mean(axis=1) / FULL_CONTRAST)
    groups = np.arange(len(hashes))
    for bucket in _buckets(hashes):
        for at, position in enumerate(bucket[:-1].tolist()):
            others = bucket[at + 1 :]
            others = others[groups[others] != groups[position]]
            others = others[_differing_bits(hashes[others] ^ hashes[position]) <= MAX_BITS]
            shift = np.abs(means[others] - means[position]).max(axis=1, initial=0.0)
            others = others[shift <= SHIFT + MORE_SHIFT * np.minimum(contrasts[others], contrasts[position])]
            residual = np.abs(shapes[others] - shapes[position]).mean(axis=1)
            others = others[residual <= RESIDUAL + MORE_RESIDUAL * np.minimum(contrasts[others], contrasts[position])]
            for group in np.unique(groups[others]).tolist():
                one, other = sorted((group, int(groups[position])))
                groups[groups == other] = one
    return groups


def difference_hashes(thumbnails: Thumbnails) -> npt.NDArray[np.uint64]:
    """64 bits for each thumbnail uint8 [N, 8, 9, 3], uint64 [N]: for each pixel but the last of a row, whether it is
    brighter than the next one.

    >>> from_left = np.broadcast_to(np.arange(9, dtype=np.uint8)[::-1, None], (1, 8, 9, 3))
    >>> hex(difference_hashes(from_left)[0]), hex(difference_hashes(from_left[:, :, ::-1])[0])
    ('0xffffffffffffffff', '0x0')
    """
    grey = thumbnails.astype(np.int64) @ np.array([299, 587, 114])  # ITU-R BT.601
    bits = np.packbits((grey[:, :, :-1] > grey[:, :, 1:]).reshape(len(grey), -1), axis=1)
    hashes: npt.NDArray[np.uint64] = bits.copy().view(np.uint64).reshape(-1)
    return hashes


def _compared(index: Index) -> Generator[Preparing, None, npt.NDArray[np.int64]]:
    thumbnails = np.zeros((len(index), ROWS, COLUMNS, 3), np.uint8)
    is_read = np.zeros(len(index), bool)
    with ThreadPoolExecutor(_threads()) as threads:
        for first in range(0, len(index), CHUNK):
            yield Preparing("comparing images", first, len(index))
            positions = range(first, min(first + CHUNK, len(index)))
            found = threads.map(functools.partial(_thumbnail, index), positions)
            for position, thumbnail in zip(positions, found, strict=True):
                if thumbnail is not None:
                    thumbnails[position], is_read[position] = thumbnail, True
    yield Preparing("comparing images", len(index), len(index))
    readable = np.flatnonzero(is_read)
    groups = np.arange(len(index))
    groups[readable] = readable[grouped(thumbnails[readable])]
    return groups


def _place(index: Index) -> Path:
    facts = [FORMAT, index.fingerprint, os.path.realpath(index.root), PIL.__version__]
    name = digest_of(*facts, index.modified).hexdigest()[:24]
    return platformdirs.user_cache_path("ftrain") / "near-duplicates" / f"{name}.npy"


def _buckets(hashes: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.int64]]:
    """Sets of positions such that any two hashes that differ in at most MAX_BITS bits are in one of them: those that
    agree in one of MAX_BITS + 1 bands of bits (the pigeonhole principle). The bits of a band come from all over the
    image, since consecutive ones are equal in all images with a plain border."""
    for first in range(MAX_BITS + 1):
        mask = sum(1 << bit for bit in range(first, 64, MAX_BITS + 1))
        band = hashes & np.uint64(mask)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order])) + 1
        yield from (bucket for bucket in np.split(order, starts) if len(bucket) > 1)


def _differing_bits(differences: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    counts: npt.NDArray[Any] = _BITS_SET[differences.view(np.uint16)].reshape(-1, 4).sum(axis=1)
    return counts


def _thumbnail(index: Index, position: int) -> Thumbnails | None:
    try:
        with index.open(position) as image:
            height, width = oriented_size(image)
            return crop_and_resize(image, (0, 0, width, height), (ROWS, COLUMNS)).transpose(1, 2, 0)
    except DataError:
        return None


def _threads() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
