"""Using a trained network: evaluation and prediction."""

from __future__ import annotations

import functools
import operator
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import ftrain.random
from ftrain.data.batches import load
from ftrain.data.device import on_device
from ftrain.data.images import Images
from ftrain.data.pixels import image_pixels
from ftrain.disk import checkpoint
from ftrain.errors import CheckpointError, DataError
from ftrain.metrics import class_scores, measure
from ftrain.run import kernels, retention
from ftrain.run.build import Program, build
from ftrain.run.custom import Custom
from ftrain.run.diagnose import diagnosed
from ftrain.run.folder import RunFolder
from ftrain.run.spec import RunSpec
from ftrain.state import TrainState
from ftrain.text import shown

Ranking = list[tuple[str, float]]  # classes and their probabilities, the most probable first


@attrs.frozen(eq=False)
class Evaluation:
    """The result of an evaluation.

    Attributes:
      metrics: loss (nats), accuracy, macro_accuracy (the mean over the classes), top5 (of more than five classes),
        count, and the caller's own.
      confusion: int64 [C, C], how many images of each label (row) got each prediction (column).
      skipped: why images were skipped.
    """

    metrics: dict[str, float]
    confusion: Tensor
    skipped: tuple[str, ...]

    @property
    def class_scores(self) -> dict[str, Tensor]:
        """Precision, recall, f1 and number of images of each class, float64 [C] each."""
        return class_scores(self.confusion)


class Restored(NamedTuple):
    """A trained network.

    Attributes:
      state: parameters and buffers of the network, or their averages if the run has any; without optimizer state.
      checkpoint: the folder that it was read from.
      damaged: why better or later checkpoints could not be read.
    """

    program: Program
    state: TrainState
    checkpoint: Path
    damaged: tuple[str, ...]


def candidates(run: RunFolder, *, last: bool = False) -> list[Path]:
    """The checkpoints of a run in the order in which to try them: the best first, or the last.

    Raises:
      CheckpointError: if there is none.
    """
    found = checkpoint.find(run.checkpoints)
    if not found:
        raise CheckpointError(f"{shown(run.path)} has no checkpoint yet")
    return found[::-1] if last else retention.best_first(found, run.settings.best_by)


def restore(run: RunFolder, spec: RunSpec, custom: Custom | None = None, *, last: bool = False) -> Restored:
    """The network of a run's best checkpoint that can be read, or of its last.

    Raises:
      CheckpointError: if there is none, or none can be read.
    """
    program = build(spec, custom, pretrained=False)
    params, buffers = program.initial_tensors()
    loaded = checkpoint.load_network_first(candidates(run, last=last), params, buffers)
    state = TrainState(
        step=torch.tensor(loaded.step, device=spec.device),
        params=loaded.params,
        buffers=loaded.buffers,
        opt_state={},
        key=ftrain.random.key(spec.seed, device=spec.device),
    )
    return Restored(program, state, loaded.folder, tuple(loaded.damaged.values()))


def evaluation(restored: Restored, images: Images, *, workers: int | None = None) -> Generator[int, None, Evaluation]:
    """Evaluates a network on the validation images of `images`: yields how many batches are done, and returns the
    result.

    Args:
      workers: processes that load images; by default as in the run.
    """
    program, state = restored.program, restored.state
    spec, device = program.spec, program.spec.torch_device
    classes = len(spec.classes)
    parts = []
    skipped: list[str] = []
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    with diagnosed(spec):
        workers = spec.workers if workers is None else workers
        batches = load(images, images.val_jobs(), workers=workers, pin_memory=device.type == "cuda")
        for done, ((inputs, labels, weights), on_host) in enumerate(on_device(batches, device), start=1):
            with kernels.using(spec):
                logits = program.predict_step(state, inputs)
            losses = program.loss(logits, labels)
            parts.append(measure(logits, labels, losses, weights, program.custom.metrics, by_class=True))
            cells = labels * classes + logits.argmax(dim=-1)
            confusion += torch.bincount(cells[weights > 0], minlength=classes * classes)
            skipped.extend(on_host.skipped.values())
            yield done
    total = functools.reduce(operator.add, parts)
    return Evaluation(total.compute(), confusion.reshape(classes, classes).cpu(), tuple(skipped))


def predict(restored: Restored, images: Sequence[Any], *, top: int) -> Iterator[Ranking | DataError]:
    """The `top` most probable classes of each image, in order; for an image that cannot be read, the error instead.

    Args:
      images: paths of image files, PIL images, or uint8 arrays or tensors.
    """
    program = restored.program
    spec = program.spec
    for first in range(0, len(images), spec.eval_batch_size):
        group = images[first : first + spec.eval_batch_size]
        found = [
            _pixels_or_error(image, spec, f"images[{position}]") for position, image in enumerate(group, start=first)
        ]
        pixels = [each for each in found if not isinstance(each, DataError)]
        rankings: Iterator[Ranking] = iter(())
        if pixels:
            with diagnosed(spec), kernels.using(spec):
                logits = program.predict_step(restored.state, torch.from_numpy(np.stack(pixels)).to(spec.device))
            rankings = iter(_rankings(_probabilities(logits, spec), spec.classes, top))
        for each in found:
            yield each if isinstance(each, DataError) else next(rankings)


def _pixels_or_error(image: Any, spec: RunSpec, name: str) -> npt.NDArray[np.uint8] | DataError:
    shape = spec.augmentation
    try:
        return image_pixels(
            image,
            spec.image_size,
            fraction=shape.centre_fraction,
            fit=shape.fit,
            bars=shape.bars,
            interpolation=shape.interpolation,
            name=name,
        )
    except DataError as error:
        return error
    except ValueError as error:  # what was passed is no image
        return DataError(str(error))


def _rankings(probabilities: Tensor, classes: Sequence[str], top: int) -> list[Ranking]:
    values, columns = probabilities.topk(min(top, len(classes)), dim=-1)
    return [
        [(classes[column], value) for column, value in zip(*row, strict=True)]
        for row in zip(columns.tolist(), values.tolist(), strict=True)
    ]


def _probabilities(logits: Tensor, spec: RunSpec) -> Tensor:
    if spec.loss == "binary-cross-entropy":
        return torch.sigmoid(logits)
    if spec.loss == "mean-squared-error":  # the outputs themselves were fitted to 0 and 1
        return logits.clamp(0.0, 1.0)
    return torch.softmax(logits, dim=-1)
