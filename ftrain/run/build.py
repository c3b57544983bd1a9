"""From a run spec to a program: the network as a pure function, the optimizer, and the steps."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import attrs
import torch

import ftrain.losses
import ftrain.random
from ftrain import models, optim, schedules
from ftrain.compile import compile_step
from ftrain.errors import SettingsError, as_usage
from ftrain.losses import Loss
from ftrain.metrics import Metrics
from ftrain.mix import Mix, cutmix, either, mixup
from ftrain.module import Apply, Tensors, functionalize, normalized, to_module
from ftrain.run.custom import Custom, described, own_module
from ftrain.run.spec import RunSpec
from ftrain.state import TrainState, init_state
from ftrain.steps import Batch, eval_step, predict_step, train_step
from ftrain.text import shown

LOSSES: dict[str, Loss] = {
    "cross-entropy": ftrain.losses.cross_entropy,
    "binary-cross-entropy": ftrain.losses.binary_cross_entropy,
    "mean-squared-error": ftrain.losses.mean_squared_error,
}


@attrs.frozen(eq=False, slots=False)
class Program:
    """What a run computes: pure functions, made when they are first used.

    Attributes:
      apply: the network, for images uint8 [B, 3, S, S]; it normalises them.
      weights: what was loaded of the pretrained weights; None if there are none.
    """

    spec: RunSpec
    custom: Custom
    apply: Apply
    weights: models.WeightsReport | None
    _pretrained: bool
    _unused: list[tuple[Tensors, Tensors]]  # the tensors that `build` made; the first state takes them

    def initial_tensors(self) -> tuple[Tensors, Tensors]:
        """Parameters and buffers before training, on the device of the run. Every call returns new tensors."""
        if self._unused:
            return self._unused.pop()
        module, _ = make_module(self.spec, self.custom, pretrained=self._pretrained)
        _, params, buffers = functionalize(module)
        return _placed(params, self.spec), _placed(buffers, self.spec)

    def init(self) -> TrainState:
        """The state before the first step. No two states share memory."""
        params, buffers = self.initial_tensors()
        return init_state(params, buffers, self.optimizer, seed=self.spec.seed, ema=self.spec.ema_decay > 0.0)

    def module(self, params: Tensors, buffers: Tensors) -> torch.nn.Module:
        """The network as a module with these tensors, in evaluation mode. Its inputs are normalised images, float
        [B, 3, S, S]."""
        return to_module(make_module(self.spec, self.custom, pretrained=False)[0], params, buffers)

    @functools.cached_property
    def optimizer(self) -> optim.Optimizer:
        return make_optimizer(self.spec)

    @functools.cached_property
    def train_step(self) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """One training step. It donates its input state: the new state is written into the same memory."""
        return self.train_step_with(self.optimizer)

    def train_step_with(
        self, optimizer: optim.Optimizer, *, skip_nonfinite: bool = True
    ) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """The training step with another optimizer than the run's, for a closer look at a step."""
        spec, custom = self.spec, self.custom
        step = functools.partial(
            train_step,
            apply=self.apply,
            optimizer=optimizer,
            loss=custom.loss or _training_loss(spec),
            mix=_mix(spec),
            augment=custom.augment,
            metrics=custom.metrics,
            precision=spec.dtype,
            accumulate=spec.accumulate,
            skip_nonfinite=skip_nonfinite,
            ema_decay=spec.ema_decay or None,
        )
        return compile_step(step, donate=True) if spec.compile else functools.partial(step, donate=True)

    @functools.cached_property
    def eval_step(self) -> Callable[[TrainState, Batch], Metrics]:
        """The metrics of a batch in evaluation mode."""
        step = functools.partial(
            eval_step, apply=self.apply, loss=self.loss, metrics=self.custom.metrics, precision=self.spec.dtype
        )
        return compile_step(step) if self.spec.compile else step

    @functools.cached_property
    def predict_step(self) -> Callable[[TrainState, Any], torch.Tensor]:
        """The logits of images, [B, C]. Never compiled, since it is called a few times on batches of any size."""
        return functools.partial(predict_step, apply=self.apply, precision=self.spec.dtype)

    @property
    def loss(self) -> Loss:
        """The loss that evaluation reports: that of training without label smoothing."""
        return self.custom.loss or LOSSES[self.spec.loss]


def build(spec: RunSpec, custom: Custom | None = None, *, pretrained: bool = True) -> Program:
    """The program of a run.

    Args:
      custom: the caller's own network, loss, metrics and augmentation.
      pretrained: whether to load the spec's pretrained weights; a run that resumes does without.

    Raises:
      SettingsError: if the network cannot be built or its pretrained weights cannot be loaded.
      CheckpointError: if a file of weights is damaged.
    """
    custom = custom or Custom()
    module, weights = make_module(spec, custom, pretrained=pretrained)
    apply, params, buffers = functionalize(module)
    apply = normalized(apply, mean=spec.mean, std=spec.std, memory_format=_memory_format(spec))
    return Program(spec, custom, apply, weights, pretrained, [(_placed(params, spec), _placed(buffers, spec))])


def make_module(
    spec: RunSpec, custom: Custom, *, pretrained: bool = True
) -> tuple[torch.nn.Module, models.WeightsReport | None]:
    """The network of a run on the CPU with its parameters before training, and what was loaded of pretrained weights. A
    caller's own module is returned unchanged."""
    if custom.module is not None:
        return custom.module, None
    if models.is_own(spec.model):
        if spec.weights and not os.path.isfile(spec.weights):
            raise SettingsError(
                f"`weights` for your own network must be a file; there is no file {shown(spec.weights)}"
            )
        module = own_module(spec.model, classes=len(spec.classes), seed=spec.seed)
    else:
        module = models.build(spec.model, classes=len(spec.classes), image_size=spec.image_size, seed=spec.seed)
    if not (pretrained and spec.weights):
        return module, None
    return module, as_usage(models.load_weights, module, spec.weights, name=spec.model)


def make_optimizer(spec: RunSpec) -> optim.Optimizer:
    """The optimizer of a run, with its schedule."""
    rate = _schedule(spec)
    mask = optim.matrices_only
    match spec.optimizer:
        case "adamw":
            optimizer = optim.adamw(rate, weight_decay=spec.weight_decay, mask=mask)
        case "adam":
            optimizer = optim.adam(rate, weight_decay=spec.weight_decay, mask=mask)
        case "sgd":
            optimizer = optim.sgd(
                rate,
                momentum=spec.momentum,
                nesterov=spec.momentum > 0.0,
                weight_decay=spec.weight_decay,
                mask=mask,
            )
        case "adagrad":
            optimizer = optim.adagrad(rate, weight_decay=spec.weight_decay, mask=mask)
    if spec.clip_norm == float("inf"):
        return optimizer
    return optim.chain(optim.clip_by_global_norm(spec.clip_norm), optimizer)


def check(program: Program) -> None:
    """Tries the parts that may not fit together before anything is written.

    Raises:
      SettingsError: if a caller's own network, loss, metric or augmentation fails or returns another shape than
        expected; or if the network cannot be trained on single examples and sees them one at a time, because BatchNorm
        cannot normalise over one example whose feature maps have shrunk to one pixel.
    """
    spec = program.spec
    if not program.custom.is_empty or models.is_own(spec.model):
        _check_custom(program)
    if spec.batch_size != spec.accumulate:
        return
    example = torch.zeros((1, 3, spec.image_size, spec.image_size), dtype=torch.uint8, device=spec.device)
    params, buffers = program.initial_tensors()
    try:
        program.apply(params, buffers, example, train=True, key=ftrain.random.key(0, device=spec.device))
    except ValueError as error:
        parts = f" in {spec.accumulate} parts" if spec.accumulate > 1 else ""
        raise SettingsError(
            f"`batch_size={spec.batch_size}`{parts} is too small for {shown(spec.model)} at "
            f"`image_size={spec.image_size}`: {error}; use a batch size of at least {2 * spec.accumulate}"
        ) from error


def _check_custom(program: Program) -> None:
    spec, custom = program.spec, program.custom
    classes, size = len(spec.classes), spec.image_size
    images = torch.zeros((2, 3, size, size), dtype=torch.uint8, device=spec.device)
    labels = torch.zeros(2, dtype=torch.int64, device=spec.device)
    key = ftrain.random.key(0, device=spec.device)
    params, buffers = program.initial_tensors()
    if custom.augment is not None:
        images = _tried("augment", custom.augment, key, images)
        _check_shape("augment", "images", images, (2, 3, size, size))
    if not params:
        raise SettingsError("`model` has no parameters that require gradients, so there is nothing to train")
    with torch.no_grad():
        outputs, _ = _tried("model", program.apply, params, buffers, images, train=False)
    logits = getattr(outputs, "logits", outputs)
    _check_shape("model", f"logits for {classes} classes", logits, (2, classes))
    logits = logits.detach().float().requires_grad_()
    if custom.loss is not None:
        losses = _tried("loss", custom.loss, logits, labels)
        _check_shape("loss", "one value per example", losses, (2,))
        if not losses.requires_grad:
            raise SettingsError("`loss` does not depend on the logits in a way that can be differentiated")
    for name, metric in custom.metrics.items():
        _check_shape(name, "one value per example", _tried(name, metric, logits.detach(), labels), (2,))


def _tried(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:  # of any kind, from a caller's code
        raise SettingsError(f"`{name}` failed on a batch of two examples: {described(error)}") from error


def _check_shape(name: str, what: str, value: Any, expected: tuple[int, ...]) -> None:
    if not isinstance(value, torch.Tensor) or value.shape != expected:
        found = f"shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise SettingsError(
            f"`{name}` must return {what}, a tensor of shape {list(expected)} for a batch of two examples; got {found}"
        )


def _schedule(spec: RunSpec) -> schedules.Schedule:
    total = spec.total_steps
    warmup = min(round(spec.warmup_epochs * spec.steps_per_epoch), total - 1)
    match spec.schedule:
        case "cosine":
            return schedules.warmup_cosine(spec.lr, total_steps=total, warmup_steps=warmup)
        case "linear":
            return schedules.warmup_linear(spec.lr, total_steps=total, warmup_steps=warmup)
        case "step":
            return schedules.step_decay(spec.lr, every=max(1, -(-total // 3)))
        case "constant":
            return schedules.constant(spec.lr)


def _training_loss(spec: RunSpec) -> Loss:
    if spec.loss == "cross-entropy":
        return functools.partial(ftrain.losses.cross_entropy, label_smoothing=spec.label_smoothing)
    return LOSSES[spec.loss]


def _mix(spec: RunSpec) -> Mix | None:
    mixes = []
    if spec.mixup:
        mixes.append(mixup(spec.mixup, classes=len(spec.classes)))
    if spec.cutmix:
        mixes.append(cutmix(spec.cutmix, classes=len(spec.classes)))
    return either(*mixes) if len(mixes) > 1 else (mixes[0] if mixes else None)


def _placed(tensors: Tensors, spec: RunSpec) -> Tensors:
    """The tensors on the device of the run, 4-d ones in its memory format."""
    layout = _memory_format(spec)
    return {
        name: tensor.to(spec.device, memory_format=layout) if tensor.ndim == 4 else tensor.to(spec.device)
        for name, tensor in tensors.items()
    }


def _memory_format(spec: RunSpec) -> torch.memory_format:
    return torch.channels_last if spec.memory_format == "channels_last" else torch.contiguous_format
