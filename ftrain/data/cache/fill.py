"""Worker processes that decode images and write them into a cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset

from ftrain.data.augment import centre_pixels
from ftrain.data.cache.format import CacheFormat
from ftrain.data.cache.images import ImageCache
from ftrain.data.cache.plan import chunks
from ftrain.data.decode import crop, oriented_size
from ftrain.data.resize import resized
from ftrain.data.source import Source
from ftrain.data.workers import run_jobs
from ftrain.disk.durable import naming
from ftrain.errors import DataError


def fill(source: Source, cache: ImageCache, workers: int) -> Iterator[int | ImageCache]:
    """Writes all images into the cache. Yields the number of images done, after each chunk, and finally the cache with
    all bad images in its plan."""
    bad_images = dict(cache.plan.bad_images)
    for positions, found in run_jobs(_Writer(source, cache), chunks(len(source)), workers=workers):
        bad_images |= {p: str(error) for p, error in zip(positions, found, strict=True) if error is not None}
        yield positions.stop
    yield attrs.evolve(cache, plan=attrs.evolve(cache.plan, bad_images=bad_images))


class _Writer(Dataset[Any]):
    def __init__(self, source: Source, cache: ImageCache) -> None:
        self.source, self.cache = source, cache

    def __getitem__(self, positions: range) -> tuple[range, list[Any]]:
        return positions, [self.write(position) for position in positions]

    def write(self, position: int) -> Exception | None:
        plan = self.cache.plan
        if position in plan.bad_images:
            return None
        first, height, width = plan.places[position, :3].tolist()
        try:
            with self.source.open(position) as image:
                pixels = cached_pixels(image, self.cache.form, height, width)
        except DataError as error:
            return error
        if self.cache.memory is not None:
            self.cache.memory[first : first + pixels.size].copy_(torch.from_numpy(pixels.reshape(-1)))
        else:
            assert self.cache.path is not None
            with naming(self.cache.path), open(self.cache.path, "rb+") as file:
                file.seek(first)
                file.write(pixels.tobytes())
        return None


def cached_pixels(image: Image.Image, form: CacheFormat, height: int, width: int) -> npt.NDArray[np.uint8]:
    """What a cache stores for an image: uint8 [height, width, 3]."""
    if form.fraction is None:
        rows, columns = oriented_size(image)
        pixels = crop(image, (0, 0, columns, rows), min(height, width))
        whole = resized(torch.from_numpy(pixels).permute(2, 0, 1), height, width, form.interpolation)
        return whole.permute(1, 2, 0).contiguous().numpy()
    square = centre_pixels(
        image,
        form.side,
        fraction=form.fraction,
        fit=form.fit,
        bars=form.bars,
        interpolation=form.interpolation,
    )
    return np.ascontiguousarray(square.transpose(1, 2, 0))
