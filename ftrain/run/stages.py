"""The stages of a run: the head alone, if it is trained first, and then the whole network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import attrs
import torch

import ftrain.losses
from ftrain import metrics, models, multi_label, optim, schedules
from ftrain.compile import compile_step
from ftrain.errors import SettingsError
from ftrain.losses import Loss
from ftrain.metrics import Measure, Metrics
from ftrain.mix import Mix, cutmix, either, mixup
from ftrain.module import Apply, Tensors, functionalize, normalized
from ftrain.run.custom import Custom
from ftrain.run.network import head_of, memory_format
from ftrain.run.settings import BATCH_NORM
from ftrain.run.spec import RunSpec
from ftrain.state import TrainState, restarted
from ftrain.statistics import smallest_momentum
from ftrain.steps import Batch, Reduce, train_step

LOSSES: dict[str, Loss] = {
    "cross-entropy": ftrain.losses.cross_entropy,
    "focal": ftrain.losses.focal,
    "binary-cross-entropy": ftrain.losses.binary_cross_entropy,
    "mean-squared-error": ftrain.losses.mean_squared_error,
}
_NO_HEAD = "the head, the layer whose size is the number of classes, and this network has none"
MULTI_LABEL_LOSSES: dict[str, Loss] = {
    "binary-cross-entropy": ftrain.losses.binary_cross_entropy,
    "focal": multi_label.focal,
}
CLASS_WEIGHTS = {"balanced": ftrain.losses.balanced_weights, "effective": ftrain.losses.effective_weights}


@attrs.frozen(eq=False, slots=False)
class Stage:
    """A part of a run in which the same parameters are trained.

    Attributes:
      first: training steps before it.
      trained: the names of the parameters that are trained in it, in the order of the module.
      frozen: the names of the other parameters.
      apply: the network, for images uint8 [B, 3, S, S]; it normalises them.
      peak, steps, warmup: of the learning-rate schedule.
      lr_factors: of the learning rates of the parameters; None if all have the same.
      tensors: the names of those that its steps need; None for all. The others stay as they are.
      reduce: the sum over the logical shards of a batch; None if there is one.
      momentum: the smallest of the BatchNorm layers whose statistics change in it; None if there are none.
    """

    spec: RunSpec
    custom: Custom
    first: int
    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    apply: Apply
    peak: float
    steps: int
    warmup: int
    lr_factors: optim.LrFactors | None = None
    momentum: float | None = None
    tensors: frozenset[str] | None = None
    reduce: Reduce | None = None

    @functools.cached_property
    def optimizer(self) -> optim.Optimizer:
        """The optimizer, with its schedule."""
        rate = _schedule(self.spec, self.peak, self.steps, self.warmup)
        optimizer = make_optimizer(self.spec, rate, self.lr_factors)
        return optim.starting_at(self.first, optimizer) if self.first else optimizer

    def enter(self, state: TrainState) -> TrainState:
        """The state with which the stage starts or continues."""
        if state.params.keys() == set(self.trained):
            return state
        return restarted(state, self.optimizer, self.trained)

    @functools.cached_property
    def train_step(self) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """One training step. It donates its input state: the new state is written into the same memory."""
        return self.train_step_with(self.optimizer)

    def train_step_with(
        self, optimizer: optim.Optimizer, *, skip_nonfinite: bool = True
    ) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """The training step with another optimizer than the run's, for a closer look at a step."""
        spec, custom = self.spec, self.custom
        step: Callable[..., tuple[TrainState, Metrics]] = functools.partial(
            train_step,
            apply=self.apply,
            optimizer=optimizer,
            loss=custom.loss or _training_loss(spec),
            mix=_mix(spec),
            augment=custom.augment,
            metrics=custom.metrics,
            measure=measure_of(spec),
            precision=spec.dtype,
            accumulate=spec.in_order,
            reduce=self.reduce,
            skip_nonfinite=skip_nonfinite,
            ema_decay=spec.ema_decay or None,
        )
        step = compile_step(step, donate=True) if spec.compile else functools.partial(step, donate=True)
        return step if self.tensors is None else _of_part(step, self.tensors)


def _of_part(
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]], names: frozenset[str]
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A training step that gets only some tensors of the state, because each tensor costs it time."""

    def step_of_part(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        buffers, ema = ({n: each for n, each in part.items() if n in names} for part in (state.buffers, state.ema))
        part = TrainState(state.step, state.params, buffers, state.opt_state, state.key, ema)
        new, metrics = step(part, batch)
        buffers, ema = {**state.buffers, **new.buffers}, {**state.ema, **new.ema}
        return TrainState(new.step, new.params, buffers, new.opt_state, new.key, ema), metrics

    return step_of_part


def make_stages(
    spec: RunSpec, custom: Custom, module: torch.nn.Module, reduce: Reduce | None = None
) -> tuple[tuple[Stage, ...], tuple[Tensors, Tensors]]:
    """The stages of a run, by their first steps; and copies of the parameters and buffers, as the first one has them.

    Args:
      module: the network of the run. It is read, not changed.
      reduce: the sum over the logical shards of a batch.

    Raises:
      SettingsError: if a part of `freeze` matches nothing, or no parameter is left to train.
    """
    names = tuple(name for name, param in module.named_parameters() if param.requires_grad)
    by_layer = spec.layer_decay < 1.0 or spec.head_lr != spec.lr
    head = head_of(spec, custom, module) if by_layer or spec.head_epochs or spec.freeze == "backbone" else ()
    frozen = _frozen(spec, module, names, head)
    trained = tuple(name for name in names if name not in frozen)
    trained_head = tuple(name for name in trained if name in head)
    head_alone = trained_head == trained
    factors = None
    if by_layer and not head_alone:
        factors = models.layer_decay(names, spec.layer_decay, head=head, head_factor=spec.head_lr / spec.lr)
    head_steps = 0 if head_alone else spec.pace.steps(spec.head_epochs)
    if head_steps and not trained_head:
        if not head:
            raise SettingsError(f"`head_epochs` trains {_NO_HEAD}; use `head_epochs=0`")
        raise SettingsError(f"`freeze={spec.freeze}` freezes the head, so `head_epochs` cannot train it; leave one out")

    def stage(first: int, trained: tuple[str, ...], **schedule: Any) -> tuple[Stage, tuple[Tensors, Tensors]]:
        frozen = tuple(name for name in names if name not in trained)
        apply, params, buffers = functionalize(module, frozen=frozen)
        apply = normalized(apply, mean=spec.mean, std=spec.std, memory_format=memory_format(spec))
        momentum = smallest_momentum(module, frozen=frozen)
        made = Stage(spec, custom, first, trained, frozen, apply, momentum=momentum, reduce=reduce, **schedule)
        return made, (params, buffers)

    whole, tensors = stage(
        head_steps,
        trained,
        peak=spec.head_lr if head_alone else spec.lr,
        steps=spec.total_steps - head_steps,
        warmup=round(spec.warmup_epochs * spec.pace.per_epoch),
        lr_factors=factors,
    )
    if not head_steps:
        return (whole,), tensors
    first, tensors = stage(0, trained_head, peak=spec.head_lr, steps=head_steps, warmup=head_steps // 10)
    return (first, whole), tensors


def _frozen(spec: RunSpec, module: torch.nn.Module, names: tuple[str, ...], head: tuple[str, ...]) -> frozenset[str]:
    if spec.freeze == "none":
        return frozenset()
    if spec.freeze == "backbone":
        if not set(head) & set(names):
            raise SettingsError(f"`freeze=backbone` trains {_NO_HEAD}; name the layers to freeze instead")
        return frozenset(names) - frozenset(head)
    patterns = [each.strip() for each in spec.freeze.split(",")]
    if BATCH_NORM in patterns and not models.batch_norms(module):
        raise SettingsError(
            f"`freeze={spec.freeze}` names {BATCH_NORM}, and this network has no BatchNorm layer; leave {BATCH_NORM} "
            "out, or use `freeze=none` to freeze nothing"
        )
    frozen = frozenset(models.batch_norms(module)) & set(names) if BATCH_NORM in patterns else frozenset()
    try:
        frozen |= set(models.matching(names, [each for each in patterns if each != BATCH_NORM]))
    except ValueError as error:
        raise SettingsError(f"`freeze`: {error}; or use backbone, {BATCH_NORM} or none") from error
    if frozen == frozenset(names):
        raise SettingsError(f"`freeze={spec.freeze}` leaves no parameter to train")
    return frozen


def make_optimizer(spec: RunSpec, rate: schedules.Schedule, factors: optim.LrFactors | None = None) -> optim.Optimizer:
    """The optimizer of a run with a schedule, and with factors of the learning rate by parameter."""
    mask = optim.matrices_only
    match spec.optimizer:
        case "adamw":
            optimizer = optim.adamw(rate, weight_decay=spec.weight_decay, mask=mask, lr_factors=factors)
        case "adam":
            optimizer = optim.adam(rate, weight_decay=spec.weight_decay, mask=mask, lr_factors=factors)
        case "sgd":
            optimizer = optim.sgd(
                rate,
                momentum=spec.momentum,
                nesterov=spec.momentum > 0.0,
                weight_decay=spec.weight_decay,
                mask=mask,
                lr_factors=factors,
            )
        case "adagrad":
            optimizer = optim.adagrad(rate, weight_decay=spec.weight_decay, mask=mask, lr_factors=factors)
    if spec.clip_norm == float("inf"):
        return optimizer
    return optim.chain(optim.clip_by_global_norm(spec.clip_norm), optimizer)


def _schedule(spec: RunSpec, peak: float, steps: int, warmup: int) -> schedules.Schedule:
    warmup = min(warmup, steps - 1)
    match spec.schedule:
        case "cosine":
            return schedules.warmup_cosine(peak, total_steps=steps, warmup_steps=warmup)
        case "linear":
            return schedules.warmup_linear(peak, total_steps=steps, warmup_steps=warmup)
        case "step":
            return schedules.step_decay(peak, every=max(1, -(-steps // 3)))
        case "constant":
            return schedules.constant(peak)


def loss_of(spec: RunSpec) -> Loss:
    """The loss that a spec names, without what changes it in training."""
    return (MULTI_LABEL_LOSSES if spec.is_multi_label else LOSSES)[spec.loss]


def measure_of(spec: RunSpec) -> Measure:
    """How batches of a run are measured."""
    return multi_label.measure if spec.is_multi_label else metrics.measure


def _training_loss(spec: RunSpec) -> Loss:
    loss = loss_of(spec)
    if spec.loss == "cross-entropy":
        loss = functools.partial(ftrain.losses.cross_entropy, label_smoothing=spec.label_smoothing)
    if spec.logit_adjustment:
        counts = torch.tensor(spec.class_counts, device=spec.device)
        loss = ftrain.losses.logit_adjusted(loss, counts, tau=spec.logit_adjustment)
    if spec.class_weights == "none":
        return loss
    weights = CLASS_WEIGHTS[spec.class_weights](spec.class_counts)
    return ftrain.losses.class_weighted(loss, torch.tensor(weights, device=spec.device))


def _mix(spec: RunSpec) -> Mix | None:
    mixes = []
    if spec.mixup:
        mixes.append(mixup(spec.mixup, classes=len(spec.classes)))
    if spec.cutmix:
        mixes.append(cutmix(spec.cutmix, classes=len(spec.classes)))
    return either(*mixes) if len(mixes) > 1 else (mixes[0] if mixes else None)
