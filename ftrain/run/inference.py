"""A trained network at work: evaluated on a data set, and asked about single images."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ftrain.data.batches import Images, load, on_device, read_centre
from ftrain.disk import checkpoint
from ftrain.errors import CheckpointError, DataError
from ftrain.metrics import measure
from ftrain.run import kernels, prepare
from ftrain.run.folder import Run
from ftrain.run.settings import Settings
from ftrain.state import TrainState, averaged
from ftrain.steps import predict_step
from ftrain.text import shown

Ranking = list[tuple[str, float]]  # classes with their probabilities, the most probable first


@attrs.frozen
class Evaluation:
    """The metrics of a data set under a network, counts int64 [C, C] (row the label, column the answer), and why images
    were left out."""

    metrics: dict[str, float]
    confusion: Tensor
    left_out: tuple[str, ...]


class Restored(NamedTuple):
    """A state with its network, the checkpoint that it is from, and why better or later ones could not be read."""

    state: TrainState
    net: prepare.Network
    folder: Path
    damaged: tuple[str, ...]


def restore(run: Run, *, best: bool = True) -> Restored:
    """The state of a run's best checkpoint, or its last; of those that can be read. Where the run keeps averages, with
    those in place.

    Raises:
      CheckpointError: if there is none, or it cannot be read.
    """
    found = checkpoint.find(run.checkpoints)[::-1]
    if not found:
        raise CheckpointError(f"{shown(run.folder)} has no checkpoint yet")
    if best:
        found = _best_first(found)
    net = prepare.network(run.settings, len(run.classes))
    template = prepare.first_state(run.settings, net, prepare.optimizer(run.settings, 1))
    loaded = checkpoint.load_first(found, template)
    return Restored(averaged(loaded.state), net, loaded.folder, tuple(loaded.damaged.values()))


def _best_first(newest_first: list[Path]) -> list[Path]:
    """Checkpoints by validation accuracy, the earliest of several; then those that have none, the newest first. Those
    whose manifest cannot be read come before all, since they may have been the best."""
    about = checkpoint.manifests(newest_first)
    judged = [path for path in reversed(newest_first) if "val" in about.get(path, {})]
    judged.sort(key=lambda path: -float(about[path]["val"]["accuracy"]))
    unread = [path for path in newest_first if path not in about]
    return [*unread, *judged, *(path for path in newest_first if path in about and "val" not in about[path])]


def evaluate(run: Run, state: TrainState, net: prepare.Network, images: Images) -> Iterator[int | Evaluation]:
    """Goes through the validation data of `images`: yields the number of batches done after each, and at the end the
    evaluation."""
    settings = run.settings
    device = torch.device(settings.device)
    loss = prepare.LOSSES[settings.loss]
    forward = functools.partial(predict_step, apply=net.apply, precision=prepare.dtype(settings))
    classes = len(run.classes)
    parts = []
    left_out: list[str] = []
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    batches = load(images, images.val_jobs(), workers=settings.workers or 0, pin_memory=device.type == "cuda")
    for done, ((inputs, labels, weights), host) in enumerate(on_device(batches, device), start=1):
        with kernels.chosen(settings):
            logits = forward(state, inputs)
        parts.append(measure(logits, labels, loss(logits, labels), weights))
        cells = labels * classes + logits.argmax(dim=-1)
        confusion += torch.bincount(cells[weights > 0], minlength=classes * classes)
        left_out.extend(host.left_out.values())
        yield done
    total = functools.reduce(operator.add, parts)
    yield Evaluation(total.compute(), confusion.reshape(classes, classes).cpu(), tuple(left_out))


def predict(
    run: Run, state: TrainState, net: prepare.Network, paths: Sequence[str], *, top: int
) -> Iterator[tuple[str, Ranking | DataError]]:
    """The `top` most probable classes of each image file, with their probabilities, in the order of `paths`; for an
    image that cannot be read, the error instead."""
    settings = run.settings
    assert settings.image_size and settings.eval_batch_size
    forward = functools.partial(predict_step, apply=net.apply, precision=prepare.dtype(settings))
    share = prepare.augmentation(settings).centre_share
    for first in range(0, len(paths), settings.eval_batch_size):
        group = paths[first : first + settings.eval_batch_size]
        found = [_centre_or_error(path, settings.image_size, share) for path in group]
        pixels = [pixels for pixels in found if not isinstance(pixels, DataError)]
        answers: Iterator[Ranking] = iter(())
        if pixels:
            with kernels.chosen(settings):
                logits = forward(state, torch.from_numpy(np.stack(pixels)).to(settings.device))
            values, classes = _probabilities(logits, settings).topk(min(top, len(run.classes)), dim=-1)
            names = [[run.classes[column] for column in row] for row in classes.tolist()]
            answers = (list(zip(*row, strict=True)) for row in zip(names, values.tolist(), strict=True))
        for path, pixel in zip(group, found, strict=True):
            yield path, pixel if isinstance(pixel, DataError) else next(answers)


def _centre_or_error(path: str, size: int, share: float) -> npt.NDArray[np.uint8] | DataError:
    try:
        return read_centre(path, size, share=share)
    except DataError as error:
        return error


def _probabilities(logits: Tensor, settings: Settings) -> Tensor:
    if settings.loss == "binary-cross-entropy":
        return torch.sigmoid(logits)
    if settings.loss == "mean-squared-error":  # the outputs themselves were fitted to 0 and 1
        return logits.clamp(0.0, 1.0)
    return torch.softmax(logits, dim=-1)
