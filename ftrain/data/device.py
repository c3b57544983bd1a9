"""Copying batches to the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ftrain.data.batches import ImageBatch

_Parts = tuple[Tensor, Tensor, Tensor]


def on_device(batches: Iterable[ImageBatch], device: torch.device) -> Iterator[tuple[_Parts, ImageBatch]]:
    """(images, labels, weights) on the device, each with the host's batch. On a GPU, the next batch is copied while
    this one is in use.

    Args:
      batches: from `load`, with `pin_memory=True` for a GPU.
      device: where to copy them.

    >>> import numpy as np
    >>> from ftrain.data import Images, from_arrays, load
    >>> source = from_arrays(np.zeros((8, 8, 8), np.uint8), [0, 1] * 4)
    >>> images = Images(train=source, val=source, batch_size=4, image_size=8)
    >>> for (pixels, labels, weights), batch in on_device(load(images, images.train_jobs(0)), torch.device("cpu")):
    ...     print(pixels.shape, len(labels), weights.tolist())
    torch.Size([4, 3, 8, 8]) 4 [1.0, 1.0, 1.0, 1.0]
    torch.Size([4, 3, 8, 8]) 4 [1.0, 1.0, 1.0, 1.0]
    """
    if device.type != "cuda":
        for batch in batches:
            yield (batch.images.to(device), batch.labels.to(device), batch.weights.to(device)), batch
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[_Parts, ImageBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            images, labels, weights = (part.to(device, non_blocking=True) for part in batch[:3])
        copied = stream.record_event()
        if ahead is not None:
            yield _after_copy(*ahead, device)
        ahead = (images, labels, weights), batch, copied
    if ahead is not None:
        yield _after_copy(*ahead, device)


def _after_copy(
    parts: _Parts, batch: ImageBatch, copied: torch.cuda.Event, device: torch.device
) -> tuple[_Parts, ImageBatch]:
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)
    for part in parts:
        part.record_stream(current)  # or else its memory could be reused for the next copy while it is being read
    return parts, batch
