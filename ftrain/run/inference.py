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
from ftrain import multi_label
from ftrain.data.batches import load
from ftrain.data.device import on_device
from ftrain.data.images import Images
from ftrain.data.pixels import image_pixels
from ftrain.disk import checkpoint, manifest
from ftrain.errors import CheckpointError, DataError
from ftrain.metrics import class_scores
from ftrain.run import kernels, retention
from ftrain.run.build import Program, build
from ftrain.run.custom import Custom
from ftrain.run.diagnose import diagnosed
from ftrain.run.folder import RunFolder
from ftrain.run.spec import RunSpec
from ftrain.run.stages import measure_of
from ftrain.state import TrainState
from ftrain.text import shown

Ranking = list[tuple[str, float]]  # classes and their probabilities, the most probable first
DEFAULT_TOP = 3
UNKNOWN_THRESHOLD = 0.5  # before the first evaluation


@attrs.frozen(eq=False)
class Evaluation:
    """The result of an evaluation.

    Attributes:
      metrics: loss (nats), accuracy, macro_accuracy (the mean over the classes), top5 (of more than five classes), and
        the caller's own, all weighted; and count, the number of images with a weight above 0. If images may have
        several labels: map, macro_f1 and micro_f1, and accuracy is the fraction of images all of whose labels are
        right.
      confusion: int64 [C, C], how many images with a weight above 0 have each label (row) and prediction (column); None
        if images may have several labels.
      skipped: why images were skipped.
      class_scores: precision, recall and f1 of each class, weighted, and the number of its images, float64 [C] each;
        if images may have several labels, also ap (average precision) and threshold.
    """

    metrics: dict[str, float]
    confusion: Tensor | None
    skipped: tuple[str, ...]
    class_scores: dict[str, Tensor]


class Restored(NamedTuple):
    """A trained network.

    Attributes:
      state: parameters and buffers of the network, or their averages if the run has any; without optimizer state.
      checkpoint: the folder that it was read from.
      damaged: why better or later checkpoints could not be read.
      thresholds: if images may have several labels, the probability of each class from which on it applies: the best
        on the validation images of the last epoch that had ended.
    """

    program: Program
    state: TrainState
    checkpoint: Path
    damaged: tuple[str, ...]
    thresholds: tuple[float, ...] = ()


def candidates(run: RunFolder, *, last: bool = False) -> list[Path]:
    """The checkpoints of a run in the order in which to try them: the best first, or the last.

    Raises:
      CheckpointError: if there is none.
    """
    found = checkpoint.find(run.checkpoints)
    if not found:
        raise CheckpointError(f"{shown(run.path)} has no checkpoint yet")
    return found[::-1] if last else retention.best_first(found, run.spec.best_by)


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
    thresholds = _thresholds(run, spec, loaded.folder) if spec.is_multi_label else ()
    return Restored(program, state, loaded.folder, tuple(loaded.damaged.values()), thresholds)


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
    confusion = torch.zeros(2, classes * classes, dtype=torch.float64)  # images, and their weights
    with diagnosed(spec):
        workers = spec.workers if workers is None else workers
        batches = load(images, images.val_jobs(), workers=workers, pin_memory=device.type == "cuda")
        for done, ((inputs, labels, weights), on_host) in enumerate(on_device(batches, device), start=1):
            with kernels.using(spec):
                logits = program.predict_step(state, inputs)
            losses = program.loss(logits, labels)
            measured = measure_of(spec)(logits, labels, losses, weights, program.custom.metrics, by_class=True)
            parts.append(measured)
            if not spec.is_multi_label:
                cells = (labels * classes + logits.argmax(dim=-1)).cpu()
                for sums, each in zip(confusion, (weights > 0, weights), strict=True):
                    sums.index_add_(0, cells, each.cpu().double())
            skipped.extend(on_host.skipped.values())
            yield done
    total = functools.reduce(operator.add, parts)
    metrics = total.compute()
    if not spec.is_multi_label:
        counts, weighted = confusion.reshape(2, classes, classes)
        by_class = {**class_scores(weighted), "images": counts.sum(dim=1)}
        return Evaluation({**metrics, "count": float(counts.sum())}, counts.long(), tuple(skipped), by_class)
    logits, labels, weights = total.gathered()
    metrics["count"] = float(len(weights))
    metrics |= multi_label.summary(logits, labels, weights, restored.thresholds)
    by_class = multi_label.label_scores(logits, labels, weights, restored.thresholds)
    by_class["images"] = (labels >= 0.5).sum(dim=0, dtype=torch.float64)
    return Evaluation(metrics, None, tuple(skipped), by_class)


def predict(restored: Restored, images: Sequence[Any], *, top: int | None = None) -> Iterator[Ranking | DataError]:
    """The most probable classes of each image, in order; for an image that cannot be read, the error instead.

    Args:
      images: paths of image files, PIL images, or uint8 arrays or tensors.
      top: how many classes; by default 3, or if images may have several labels, all that apply.
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
            rankings = iter(_rankings(_probabilities(logits, spec), spec.classes, top, restored.thresholds))
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


def _rankings(
    probabilities: Tensor, classes: Sequence[str], top: int | None, thresholds: Sequence[float]
) -> list[Ranking]:
    limits = dict(zip(classes, thresholds, strict=True)) if thresholds and top is None else {}
    count = len(classes) if limits else min(DEFAULT_TOP if top is None else top, len(classes))
    values, columns = probabilities.topk(count, dim=-1)
    rankings = [
        [(classes[column], value) for column, value in zip(*row, strict=True)]
        for row in zip(columns.tolist(), values.tolist(), strict=True)
    ]
    return [[each for each in ranking if each[1] >= limits.get(each[0], 0.0)] for ranking in rankings]


def _thresholds(run: RunFolder, spec: RunSpec, chosen: Path) -> tuple[float, ...]:
    """Those of the last epoch that had ended at a checkpoint."""
    step = checkpoint.step_of(chosen)
    before = [path for path in checkpoint.find(run.checkpoints) if checkpoint.step_of(path) <= step]
    manifests = manifest.read_all(before)
    found = [manifests[path]["thresholds"] for path in before if "thresholds" in manifests.get(path, {})]
    last = found[-1] if found else [UNKNOWN_THRESHOLD] * len(spec.classes)
    if len(last) != len(spec.classes):
        raise CheckpointError(
            f"{shown(chosen)} belongs to a different network: it has thresholds for {len(last)} classes, and the run "
            f"has {len(spec.classes)}"
        )
    return tuple(map(float, last))


def _probabilities(logits: Tensor, spec: RunSpec) -> Tensor:
    if spec.is_multi_label:
        return torch.sigmoid(logits.double() if logits.device.type != "mps" else logits)
    if spec.loss == "binary-cross-entropy":
        return torch.sigmoid(logits)
    if spec.loss == "mean-squared-error":  # the outputs themselves were fitted to 0 and 1
        return logits.clamp(0.0, 1.0)
    return torch.softmax(logits, dim=-1)
