"""The steps of training and evaluation: pure functions of a state and a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

import ftrain.random
from ftrain.losses import Loss, cross_entropy
from ftrain.metrics import Metrics, measure
from ftrain.mix import Mix
from ftrain.module import Apply, Tensors
from ftrain.optim import Optimizer, global_norm
from ftrain.state import TrainState, bury, with_ema
from ftrain.tracing import differentiated_once, tracing

Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]
Part = Callable[..., tuple[Tensor, tuple[Metrics, Tensors]]]

# What an auxiliary classifier's loss counts beside the main one (Szegedy et al., Going deeper with convolutions, 2015).
AUXILIARY_WEIGHT = 0.3

# What the step's key is folded with for mixing: the forward pass counts its draws from 0 and never gets this far.
MIXING_DRAW = 2**32 - 1


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    apply: Apply,
    optimizer: Optimizer,
    loss: Loss = cross_entropy,
    mix: Mix | None = None,
    precision: torch.dtype = torch.float32,
    accumulate: int = 1,
    skip_nonfinite: bool = False,
    ema_decay: float | None = None,
    donate: bool = False,
) -> tuple[TrainState, Metrics]:
    """One step of training.

    Args:
      state: where training stands.
      batch: (inputs, labels) or (inputs, labels, weights): inputs as `apply` takes them, B of them; labels as `loss`
        takes them; weights float [B], what each example counts in the mean that is minimised. A weight of 0 leaves it
        out, even a nan; the network, and so BatchNorm, sees zeros in place of its floats.
      apply: the network, from `functionalize`. A named tuple of outputs with a field `logits` is that and auxiliary
        logits, whose losses count 0.3 each (inception_v3, googlenet).
      optimizer: from `ftrain.optim`.
      loss: (logits [B, C], labels) -> [B].
      mix: from `ftrain.mix`; mixes the examples of the batch, images [B, C, H, W], before the forward pass. Loss and
        metrics are then of the mixed examples, whose label is the most probable class.
      precision: float32, or bfloat16 to run the network under autocast; parameters and loss stay float32.
      accumulate: into how many equal parts the batch is split for the forward and backward passes, which then follow
        each other and need less memory. The update is that of the whole batch, but for BatchNorm, which sees the parts,
        and for draws such as dropout's, which are others.
      skip_nonfinite: a batch whose loss or gradient is not finite leaves the state as it is, its step too; the metrics
        count it. Where the state is on a GPU, or the step is traced, that needs no look at the numbers by the host.
      ema_decay: in [0, 1), to bring the averages up to date that the state keeps (`init_state(..., ema=True)`):
        ema = d ema + (1 - d) new, with d = min(ema_decay, (1 + step) / (10 + step)), so that the first steps of a run
        are soon forgotten (tf.train.ExponentialMovingAverage with num_updates). `averaged(state)` is the state with the
        averages in place.
      donate: the new state may be written into the memory of the old one, which then raises `DonatedError` when it is
        touched.

    Returns:
      The state after the step, and the metrics of the batch: loss, correct, count, nonfinite; lr and grad_norm (L2 norm
      of all gradients, before any clipping).
    """
    if precision not in (torch.float32, torch.bfloat16):
        raise ValueError(f"precision is torch.float32 or torch.bfloat16; got {precision}")
    if ema_decay is not None and not 0.0 <= ema_decay < 1.0:
        raise ValueError(f"ema_decay is a number >= 0 and < 1; got {ema_decay}")
    inputs, labels, weights = _unpack(batch)
    if accumulate < 1 or len(weights) % accumulate:
        raise ValueError(f"accumulate splits a batch of {len(weights)} into equal parts; got {accumulate}")
    if len(batch) == 3:
        inputs = pytree.tree_map(lambda values: _without_left_out(values, weights), inputs)
    key = ftrain.random.fold_in(state.key, state.step)
    if mix is not None:
        inputs, labels = mix(ftrain.random.fold_in(key, MIXING_DRAW), inputs, labels, weights)

    total_weight = weights.sum()

    def part(params: Tensors, buffers: Tensors, key: Tensor, batch: Any) -> tuple[Tensor, tuple[Metrics, Tensors]]:
        inputs, labels, weights = batch
        with torch.autocast(state.step.device.type, precision, enabled=precision != torch.float32):
            outputs, buffers = apply(params, buffers, inputs, train=True, key=key)
        logits, auxiliary = _split_outputs(outputs)
        losses = loss(logits, labels)
        total = _weighted_mean(losses, weights, total_weight)
        for extra in auxiliary:
            total = total + AUXILIARY_WEIGHT * _weighted_mean(loss(extra, labels), weights, total_weight)
        return total, (measure(logits, labels, losses, weights), buffers)

    grads, metrics, buffers = _accumulated(part, state, key, (inputs, labels, weights), accumulate)
    metrics = _with_step_sums(metrics, grads, optimizer, state.step)
    traced = tracing(state, grads)
    looks = skip_nonfinite and not traced and state.step.device.type == "cpu"
    if looks and metrics.nonfinite.item():
        new_state = TrainState(**vars(state))
    else:
        skip = metrics.nonfinite > 0 if skip_nonfinite and not looks else None
        options: dict[str, Any] = {}
        if skip is not None and "skip" in optimizer.options:
            options["skip"] = skip
        if donate and "donate" in optimizer.options and (skip is None or options):
            options["donate"] = True
        params, opt_state = optimizer.update(grads, state.opt_state, state.params, state.step, **options)
        new_state = TrainState(state.step + 1, params, buffers, opt_state, state.key, state.ema)
        if skip is not None:
            new_state = _unless(skip, state, new_state, updated="skip" in options)
        if ema_decay is not None:
            weight = _ema_weight(ema_decay, state.step)
            weight = weight if skip is None else torch.where(skip, 0.0, weight)
            new_state = with_ema(new_state, weight, in_place=donate and not traced)
    if donate and not traced:
        bury(state, state.step + 1)
    return new_state, metrics


def eval_step(
    state: TrainState,
    batch: Batch,
    *,
    apply: Apply,
    loss: Loss = cross_entropy,
    precision: torch.dtype = torch.float32,
) -> Metrics:
    """The metrics of a batch under the state's network in evaluation mode. Arguments as for `train_step`."""
    inputs, labels, weights = _unpack(batch)
    logits = predict_step(state, inputs, apply=apply, precision=precision)
    return measure(logits, labels, loss(logits, labels), weights)


def predict_step(
    state: TrainState, inputs: Any, *, apply: Apply, precision: torch.dtype = torch.float32
) -> Float[Tensor, "B C"]:
    """The logits of the state's network in evaluation mode."""
    with torch.autocast(state.step.device.type, precision, enabled=precision != torch.float32):
        outputs, _ = apply(state.params, state.buffers, inputs, train=False)
    return _split_outputs(outputs)[0]


def _unpack(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    inputs, labels, *rest = batch
    weights = rest[0] if rest else torch.ones(labels.shape[:1], device=labels.device)
    return inputs, labels, weights


def _split_outputs(outputs: Any) -> tuple[Tensor, list[Tensor]]:
    """The main logits and the auxiliary ones, in float32 or wider."""
    named = getattr(outputs, "_asdict", None)
    fields = named() if named else {"logits": outputs}
    wide = {name: value.float() if value.itemsize < 4 else value for name, value in fields.items() if value is not None}
    return wide.pop("logits"), list(wide.values())


def _without_left_out(values: Tensor, weights: Tensor) -> Tensor:
    if not values.is_floating_point() or values.shape[:1] != weights.shape:
        return values
    kept = (weights > 0).reshape(-1, *(1 for _ in values.shape[1:]))
    return torch.where(kept, values, 0.0)


def _weighted_mean(losses: Tensor, weights: Tensor, total_weight: Tensor) -> Tensor:
    """What these examples contribute to the mean over all that the total weight is of."""
    # Left out means left out: not even a nan times 0.
    total = torch.where(weights > 0, losses, 0.0).mul(weights.to(losses.dtype)).sum()
    return total / total_weight.to(losses.dtype).clamp_min(torch.finfo(losses.dtype).tiny)


def _accumulated(
    part: Part, state: TrainState, key: Tensor, batch: Any, parts: int
) -> tuple[Tensors, Metrics, Tensors]:
    """Gradients and metrics summed over the parts of a batch, each of which starts from the buffers of the one
    before."""
    leaves, structure = pytree.tree_flatten(batch)
    pieces = zip(*(leaf.chunk(parts) for leaf in leaves), strict=True)
    grads: Tensors | None = None
    metrics: Metrics | None = None
    buffers = state.buffers
    for number, piece in enumerate(pieces):
        own = functools.partial(
            part,
            buffers=buffers,
            key=key if parts == 1 else ftrain.random.fold_in(key, number),
            batch=pytree.tree_unflatten(piece, structure),
        )
        new_grads, (new_metrics, buffers) = _grad(own, state.params)
        grads = new_grads if grads is None else {name: grads[name] + grad for name, grad in new_grads.items()}
        metrics = new_metrics if metrics is None else metrics + new_metrics
    assert grads is not None and metrics is not None
    return grads, metrics, buffers


def _grad(
    objective: Callable[[Tensors], tuple[Tensor, tuple[Metrics, Tensors]]], params: Tensors
) -> tuple[Tensors, tuple[Metrics, Tensors]]:
    if tracing(params):
        grads, (_, aux) = torch.func.grad_and_value(objective, has_aux=True)(params)
        return grads, aux
    # Eager autograd gives the same gradients without functorch's wrapping, which costs up to a fifth of the step.
    leaves = {name: param.detach().requires_grad_() for name, param in params.items()}
    with differentiated_once(), torch.enable_grad():
        total, aux = objective(leaves)
        grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, grads, strict=True)), pytree.tree_map(torch.detach, aux)


def _unless(skip: Tensor, old: TrainState, new: TrainState, *, updated: bool) -> TrainState:
    """The new state, or the old one where `skip` is true, which the optimizer may have seen to for what it updates."""

    def select(old: Any, new: Any) -> Any:
        return pytree.tree_map(lambda old, new: new if new is old else torch.where(skip, old, new), old, new)

    return TrainState(
        step=select(old.step, new.step),
        params=new.params if updated else select(old.params, new.params),
        buffers=select(old.buffers, new.buffers),
        opt_state=new.opt_state if updated else select(old.opt_state, new.opt_state),
        key=new.key,
        ema=new.ema,
    )


def _ema_weight(decay: float, step: Tensor) -> Tensor:
    time = step.to(torch.float32)
    return 1.0 - ((1.0 + time) / (10.0 + time)).clamp_max(decay)


def _with_step_sums(metrics: Metrics, grads: Tensors, optimizer: Optimizer, step: Tensor) -> Metrics:
    wide = metrics.loss.dtype
    norm = global_norm(grads).to(wide)
    sums = {"steps": torch.ones_like(metrics.loss), "grad_norm": norm}
    if optimizer.learning_rate is not None:
        sums["lr"] = optimizer.learning_rate(step).to(wide)
    return Metrics(
        loss=metrics.loss,
        correct=metrics.correct,
        count=metrics.count,
        nonfinite=torch.maximum(metrics.nonfinite.clamp_max(1.0), (~torch.isfinite(norm)).to(wide)),
        per_example=metrics.per_example,
        per_step=sums,
    )
