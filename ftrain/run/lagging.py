"""Validation far below training: whether BatchNorm's running statistics are to blame, and their repair."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, TypeVar

import attrs
import numpy as np
from attrs import validators as v
from torch import Tensor

import ftrain.random
from ftrain.data.batches import load
from ftrain.data.device import on_device
from ftrain.data.images import Images, Job
from ftrain.run import retention
from ftrain.run.build import Program
from ftrain.run.events import StatisticsRecomputed
from ftrain.run.settings import BestBy
from ftrain.state import TrainState, averaged
from ftrain.statistics import recompute_statistics

T = TypeVar("T")

IMAGES = 1_024  # training images that statistics are recomputed on, at most
STALE = 0.1  # weight of the steps before an epoch, from which statistics are said to lag
MOST_TRIES = 60  # in vain, after which the time to the next one stays as it is
PURPOSE = 2**32 - 3  # what the state's key is folded with in place of a step, which never gets this far


@attrs.frozen
class Repairs:
    """What was tried so far in a run. A checkpoint's manifest records it.

    Attributes:
      to_blame: whether statistics were found to be to blame, so that they are recomputed in every further epoch.
      failed: how often they were not.
      last: the epoch in which that was last so.
    """

    to_blame: bool = attrs.field(default=False, validator=v.instance_of(bool))
    failed: int = attrs.field(default=0, validator=[v.instance_of(int), v.ge(0), v.le(MOST_TRIES)])
    last: int = attrs.field(default=0, validator=[v.instance_of(int), v.ge(0)])

    def after(self, epoch: int, *, to_blame: bool) -> Repairs:
        """With a further try in this epoch."""
        if to_blame or self.to_blame:
            return attrs.evolve(self, to_blame=True)
        return Repairs(failed=min(self.failed + 1, MOST_TRIES), last=epoch)

    def due(self, epoch: int) -> bool:
        """Whether to try in this epoch: each time that it was in vain, the next try has to wait twice as long."""
        return self.to_blame or not self.failed or epoch >= self.last + 2**self.failed


@attrs.frozen(eq=False)
class Repaired:
    """Statistics recomputed on training images.

    Attributes:
      state: with the new statistics.
      val: metrics of the validation with it.
      images: how many they were recomputed on.
      before, after: the accuracy in evaluation on these images, with the old statistics and with the new ones.
    """

    state: TrainState
    val: dict[str, float]
    images: int
    before: float
    after: float


def staleness(program: Program, step: int) -> float:
    """The weight that the running statistics at the end of an epoch give to the steps before this epoch, at least in
    one layer of BatchNorm; 0 if the network has none that is trained."""
    pace, momentum = program.spec.pace, program.stage_at(step - 1).momentum
    if momentum is None:
        return 0.0
    epoch = pace.epoch_of(step)
    return (1.0 - momentum) ** (step - pace.steps(epoch - 1))


def is_far_below_training(train: Mapping[str, float], val: Mapping[str, float], images: Images) -> bool:
    """Whether the validation accuracy is nearer to chance than to the training accuracy, which is clearly above
    chance."""
    chance = _chance(images)
    learned = train["accuracy"] - chance
    # Three and two standard errors.
    clear = learned > 3.0 * math.sqrt(0.25 / max(1.0, train["count"]))
    apart = train["accuracy"] - val["accuracy"] > 2.0 * math.sqrt(0.25 / len(images.val))
    return clear and apart and val["accuracy"] - chance < learned / 2.0


def is_to_blame(train: Mapping[str, float], found: Repaired, images: Images) -> bool:
    """Whether evaluation shows much more of what training has learned with the new statistics than with the old ones.
    It is measured on training images, which a network that does not generalise recognises too."""
    learned = train["accuracy"] - _chance(images)
    return found.after - found.before > max(learned / 4.0, 2.0 * math.sqrt(0.25 / found.images))


def _chance(images: Images) -> float:
    """The frequency of the most frequent class among the validation images."""
    return float(np.bincount(images.val.labels).max()) / len(images.val)


def repaired(
    program: Program, images: Images, state: TrainState, step: int, stop: Callable[[], bool]
) -> Repaired | None:
    """Recomputes statistics on training images and validates again; None if `stop` returned True before the end.

    The images are those of the epoch's last batches, at most 1,024 in whole batches, read as evaluation reads them. If
    the state keeps averages, the statistics are those of the averaged network. Training itself goes on as without them,
    since it normalises with those of each batch.
    """
    spec = program.spec
    first = spec.pace.steps(spec.pace.epoch_of(step) - 1)
    jobs = [Job("train", number) for number in range(max(first, step - max(1, IMAGES // spec.batch_size)), step)]
    network = averaged(state)
    whole = attrs.evolve(images, unaugmented=True, part=0, parts=1)  # each process of a run computes the same
    with closing(_loaded(whole, program, jobs)) as batches:
        samples = list(_up_to_stop(stop, batches))
    buffers = recompute_statistics(
        network.params,
        network.buffers,
        _up_to_stop(stop, samples),
        apply=program.stage_at(step - 1).apply,
        key=ftrain.random.fold_in(ftrain.random.fold_in(state.key, PURPOSE), state.step),
        precision=spec.dtype,
    )
    changed = {name: tensor for name, tensor in buffers.items() if tensor is not network.buffers[name]}
    averages = {name: changed[name].clone() if name in changed else each for name, each in state.ema.items()}
    new = TrainState(**{**vars(state), "buffers": {**state.buffers, **changed}, "ema": averages})
    with closing(_loaded(images, program, images.val_jobs())) as batches:
        parts = [program.eval_step(averaged(new), batch) for batch in _up_to_stop(stop, batches)]
    before, after = (_accuracy(program, averaged(each), _up_to_stop(stop, samples)) for each in (state, new))
    if stop():
        return None
    return Repaired(new, functools.reduce(operator.add, parts).compute(), len(jobs) * spec.batch_size, before, after)


def _accuracy(program: Program, state: TrainState, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> float:
    """In evaluation, on batches with weights."""
    correct, count = 0.0, 0.0
    for inputs, labels, weights in batches:
        hits = program.predict_step(state, inputs).argmax(dim=-1) == labels
        correct, count = correct + float((hits * weights).sum()), count + float(weights.sum())
    return correct / max(1.0, count)


def is_better(one: Mapping[str, float], other: Mapping[str, float], by: BestBy) -> bool:
    """Whether the first of two validations is better, by accuracy: macro-averaged if that makes an epoch the best. The
    loss does not count, because its last bits depend on the size of the batches in evaluation, which may change when a
    run resumes."""
    kind: BestBy = "macro" if by == "macro" else "accuracy"
    return retention.score(one, kind) > retention.score(other, kind)


def record(event: StatisticsRecomputed) -> dict[str, Any]:
    """What the line of the epoch in metrics.jsonl records."""
    return {
        "images": event.images,
        "accuracy_on_them_before": event.fit_before,
        "accuracy_on_them_after": event.fit_after,
        "accuracy_before": event.before["accuracy"],
        "accuracy_after": event.after["accuracy"],
        "loss_before": event.before["loss"],
        "loss_after": event.after["loss"],
        "to_blame": event.to_blame,
        "kept": event.kept,
    }


def _up_to_stop(stop: Callable[[], bool], batches: Iterable[T]) -> Iterator[T]:
    """The batches up to one, at least, after which `stop` returns True."""
    for batch in batches:
        yield batch
        if stop():
            return


def _loaded(images: Images, program: Program, jobs: list[Job]) -> Generator[tuple[Tensor, Tensor, Tensor]]:
    spec = program.spec
    loading = load(images, jobs, workers=spec.workers, pin_memory=spec.torch_device.type == "cuda")
    with closing(loading):
        for batch, _ in on_device(loading, spec.torch_device):
            yield batch
