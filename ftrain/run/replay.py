"""A step of a run taken again, to look into it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import attrs
import torch
from torch import Tensor

from ftrain.data.batches import ImageBatch, Images, Job, load, on_device
from ftrain.data.cache import Caching
from ftrain.disk import checkpoint
from ftrain.errors import SettingsError
from ftrain.module import Tensors
from ftrain.optim import Optimizer, State
from ftrain.run import kernels, loop, prepare
from ftrain.run.diagnose import memory_error
from ftrain.run.folder import Run
from ftrain.state import TrainState, keeping_averages
from ftrain.steps import train_step
from ftrain.text import shown


@attrs.frozen
class Replaying:
    """Steps are being taken on the way: `step`, from a checkpoint's or from 0, up to `last`."""

    step: int
    last: int


@attrs.frozen(eq=False)
class Replayed:
    """The step that was asked for.

    Attributes:
      metrics: of the step: loss, accuracy, lr, grad_norm, nonfinite ...
      gradients: the L2 norm of the loss's gradient with respect to the parameters of each layer, by its name.
      batch: on the host: the images as the step saw them, before any mixup or cutmix.
      names: of the batch's images.
    """

    step: int
    metrics: dict[str, float]
    gradients: dict[str, float]
    batch: ImageBatch
    names: list[str]


def replay(run: Run, images: Images, step: int) -> Iterator[Caching | loop.Damaged | Replaying | Replayed]:
    """Takes a step of a run again: from the nearest checkpoint before it that can be read, or from the beginning. The
    steps on the way are taken as the run takes them, the last one without compiling.

    Args:
      images: of the run, as `provenance.resumed_run` has checked.
      step: counted from 1.

    Raises:
      SettingsError: for a step that the run does not have.
      CheckpointError: if a checkpoint on the way cannot be read.
    """
    settings = run.settings
    total = settings.epochs * images.steps_per_epoch
    if not 1 <= step <= total:
        raise SettingsError(f"--step takes a step of {shown(run.folder)}, from 1 to {total}; got {step}")
    before = [path for path in checkpoint.find(run.checkpoints) if int(path.name[5:]) < step]
    with kernels.chosen(settings):
        net = prepare.network(settings, len(run.classes), weights=None if before else settings.weights)
        rule = prepare.optimizer(settings, images.steps_per_epoch)
        state = prepare.first_state(settings, net, rule)
        if before:
            loaded = checkpoint.load_first(before[::-1], state)
            state = keeping_averages(loaded.state, settings.ema_decay is not None)
            yield from (loop.Damaged(cause) for cause in loaded.damaged.values())
        images = yield from loop.with_caches(images, settings)
        try:
            yield from _taken(run, images, net, rule, state, step)
        except (RuntimeError, MemoryError) as error:
            raise memory_error(error, batch_size=images.batch_size, accumulate=settings.accumulate) or error from None


def _taken(
    run: Run, images: Images, net: prepare.Network, rule: Optimizer, state: TrainState, step: int
) -> Iterator[Replaying | Replayed]:
    settings = run.settings
    take, _ = prepare.steps(settings, net, rule, len(run.classes))
    first = int(state.step)
    jobs = [Job("train", number) for number in range(first, step)]
    with closing(load(images, jobs, workers=settings.workers or 0)) as loading:
        batches = on_device(loading, torch.device(settings.device))
        for taken in range(first, step - 1):
            yield Replaying(taken, step)
            state, _ = take(state, next(batches)[0])
        yield Replaying(step - 1, step)
        batch, host = next(batches)
        watched = functools.partial(
            train_step,
            apply=net.apply,
            optimizer=_recording(rule),
            loss=prepare.training_loss(settings),
            mix=prepare.mixing(settings, len(run.classes)),
            precision=prepare.dtype(settings),
        )
        recording = TrainState(**{**vars(state), "opt_state": (state.opt_state, {})})
        after, metrics = watched(recording, batch)
    yield Replayed(
        step=step,
        metrics=metrics.compute(),
        gradients=_by_layer(after.opt_state[1]),
        batch=host,
        names=[images.train.name(index) for index in host.indices.tolist()],
    )


def _recording(rule: Optimizer) -> Optimizer:
    """The optimizer, whose state also has the norm of each parameter's last gradient."""

    def init(params: Tensors) -> State:
        return rule.init(params), {name: torch.zeros((), device=param.device) for name, param in params.items()}

    def update(
        grads: Tensors, opt_state: State, params: Tensors, step: Tensor, **options: Any
    ) -> tuple[Tensors, State]:
        norms = {name: torch.linalg.vector_norm(grad) for name, grad in grads.items()}
        new_params, inner = rule.update(grads, opt_state[0], params, step, **options)
        return new_params, (inner, norms)

    return Optimizer(init, update, rule.learning_rate, rule.options)


def _by_layer(norms: Tensors) -> dict[str, float]:
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        layer = name.rpartition(".")[0] or name
        squares[layer] = squares.get(layer, 0.0) + float(norm) ** 2
    return {layer: math.sqrt(square) for layer, square in squares.items()}
