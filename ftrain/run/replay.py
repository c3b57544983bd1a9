"""One training step of a run, repeated to look into it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing

import attrs
import torch
from torch import Tensor

from ftrain.data.batches import ImageBatch, load, read_batch
from ftrain.data.cache import Caching
from ftrain.data.device import on_device
from ftrain.data.images import Images, Job
from ftrain.disk import checkpoint
from ftrain.errors import SettingsError
from ftrain.module import Tensors
from ftrain.optim import Optimizer, State
from ftrain.run import kernels
from ftrain.run.build import Program, build
from ftrain.run.custom import Custom
from ftrain.run.diagnose import diagnosed
from ftrain.run.events import ComputingFeatures, Damaged
from ftrain.run.features import Features, with_features
from ftrain.run.fit import with_caches
from ftrain.run.folder import RunFolder
from ftrain.run.spec import RunSpec
from ftrain.state import TrainState, keeping_averages
from ftrain.text import shown


@attrs.frozen
class Replaying:
    """Steps are repeated on the way to `last`; `step` of them are done, counting those before the checkpoint."""

    step: int
    last: int


@attrs.frozen(eq=False)
class Replayed:
    """A step of a run, repeated.

    Attributes:
      metrics: of the step: loss, accuracy, lr, grad_norm, nonfinite ...
      gradients: for each layer by its name, the L2 norm of the gradient of the loss with respect to its parameters.
      batch: on the host, as it was before any mixup or cutmix.
      names: of the images of the batch.
    """

    step: int
    metrics: dict[str, float]
    gradients: dict[str, float]
    batch: ImageBatch
    names: list[str]


def replay(
    run: RunFolder, spec: RunSpec, images: Images, step: int, custom: Custom | None = None
) -> Iterator[Caching | ComputingFeatures | Damaged | Replaying | Replayed]:
    """Repeats a training step of a run, from the nearest checkpoint before it that can be read, or from the start. The
    steps on the way are those of the run; the last one is not compiled.

    Args:
      images: of the run, as `provenance.resumed_run` has checked.
      step: counted from 1.

    Raises:
      SettingsError: if the run has no such step.
      CheckpointError: if a checkpoint on the way cannot be read.
    """
    if not 1 <= step <= spec.total_steps:
        raise SettingsError(
            f"`step` must be a training step of {shown(run.path)}, from 1 to {spec.total_steps}; got {step}"
        )
    before = [path for path in checkpoint.find(run.checkpoints) if checkpoint.step_of(path) < step]
    with diagnosed(spec), kernels.using(spec):
        program = build(spec, custom, pretrained=not before)
        if before:
            loaded = checkpoint.load_first(before[::-1], program.template)
            state = keeping_averages(loaded.state, spec.ema_decay > 0.0)
            yield from (Damaged(cause) for cause in loaded.damaged.values())
        else:
            state = program.init()
        found = yield from with_features(program, images, state)
        features = found if isinstance(found, Features) else None
        if features is None:
            images = yield from with_caches(images, spec)
        yield from _repeat(features.program if features else program, images, state, step, features)


def _repeat(
    program: Program, images: Images, state: TrainState, step: int, features: Features | None
) -> Iterator[Replaying | Replayed]:
    spec = program.spec
    first = int(state.step)
    jobs = [Job("train", number) for number in range(first, step)]
    with closing(load(images, jobs, workers=spec.workers)) as loading:
        batches = features.batches(jobs) if features else on_device(loading, spec.torch_device)
        for done in range(first, step - 1):
            yield Replaying(done, step)
            stage = program.stage_at(done)
            state, _ = stage.train_step(stage.enter(state), next(batches)[0])
        yield Replaying(step - 1, step)
        batch, on_host = next(batches)
        if features is not None:
            on_host = read_batch(images, jobs[-1])
        stage = program.stage_at(step - 1)
        state = stage.enter(state)
        eager = attrs.evolve(stage, spec=attrs.evolve(spec, compile=False))
        # A step that is not finite is not skipped, because its gradients are what one wants to see.
        train_step = eager.train_step_with(_recording(stage.optimizer), skip_nonfinite=False)
        recording = TrainState(**{**vars(state), "opt_state": (state.opt_state, {})})
        after, metrics = train_step(recording, batch)
    yield Replayed(
        step=step,
        metrics=metrics.compute(),
        gradients=_by_layer(after.opt_state[1]),
        batch=on_host,
        names=[images.train.image_name(index) for index in on_host.indices.tolist()],
    )


def _recording(optimizer: Optimizer) -> Optimizer:
    """The optimizer, with the norm of each parameter's last gradient in its state."""

    def init(params: Tensors) -> State:
        return optimizer.init(params), {name: torch.zeros((), device=param.device) for name, param in params.items()}

    def update(grads: Tensors, opt_state: State, params: Tensors, step: Tensor) -> tuple[Tensors, State]:
        norms = {name: torch.linalg.vector_norm(grad) for name, grad in grads.items()}
        new_params, inner = optimizer.update(grads, opt_state[0], params, step)
        return new_params, (inner, norms)

    return optimizer._replace(init=init, update=update, extended_update=None)


def _by_layer(norms: Tensors) -> dict[str, float]:
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        layer = name.rpartition(".")[0] or name
        squares[layer] = squares.get(layer, 0.0) + float(norm) ** 2
    return {layer: math.sqrt(square) for layer, square in squares.items()}
