"""The steps of training and evaluation: pure functions of a state and a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

import ftrain.random
from ftrain.checks import check_apply, unpack_batch
from ftrain.gradients import Reduce, chunks, contribution, gradients, over_shards, split_outputs
from ftrain.losses import Loss, cross_entropy
from ftrain.metrics import Measure, Metric, Metrics, with_examples
from ftrain.metrics import measure as measure_one_label
from ftrain.mix import Mix
from ftrain.module import Apply, Tensors
from ftrain.optim import Optimizer, apply_update, global_norm
from ftrain.state import TrainState, commit
from ftrain.torch_private import pytree
from ftrain.tracing import tracing

__all__ = ["Augment", "Batch", "Reduce", "eval_step", "predict_step", "train_step"]

Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]
Augment = Callable[[Int64[Tensor, "2"], Float[Tensor, "B C H W"]], Tensor]
# What the step's key is folded with for each purpose outside of the network, whose draws count up from 0 and never get
# this far.
MIXING_DRAW = 2**32 - 1
AUGMENT_DRAW = 2**32 - 2


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    apply: Apply,
    optimizer: Optimizer,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
    mix: Mix | None = None,
    metrics: Mapping[str, Metric] | None = None,
    measure: Measure = measure_one_label,
    precision: torch.dtype = torch.float32,
    accumulate: int = 1,
    reduce: Reduce | None = None,
    skip_nonfinite: bool = False,
    ema_decay: float | None = None,
    donate: bool = False,
) -> tuple[TrainState, Metrics]:
    """One step of training: the gradient of the loss on a batch, and the optimizer's update.

    Args:
      state: the state before the step.
      batch: (inputs, labels) or (inputs, labels, weights): B inputs as `apply` expects them; labels as `loss` expects
        them; weights float [B], how much each example counts in the mean that is minimised. An example with weight 0 is
        ignored, even if it is nan; the network, and so BatchNorm, sees zeros in place of its floats.
      apply: the network, from `functionalize`. If it returns a named tuple with a field `logits`, the other fields are
        auxiliary logits, whose losses are added with weight 0.3 (inception_v3, googlenet).
      optimizer: from `ftrain.optim`.
      loss: `(logits [B, C], labels) -> [B]`.
      augment: data augmentation on the device, before `mix`: `(key, images [B, C, H, W]) -> images [B, C, H', W']`. A
        pure function that draws from the key, which is different in every step. The images are the batch's, with its
        dtype and range; they come as one batch whatever `accumulate` is.
      mix: from `ftrain.mix`; mixes the examples of the batch, images [B, C, H, W]. Loss and metrics are then of the
        mixed examples, whose label is the most probable class.
      metrics: your own, by name: `(logits [B, C], labels) -> [B]`, with the same labels as `loss` (probabilities
        [B, C] after mixing). Their weighted means are reported by `Metrics.compute` under their names.
      measure: how the batch is measured: `ftrain.metrics.measure`, or `ftrain.multi_label.measure` if examples may have
        several labels.
      precision: torch.float32, or torch.bfloat16 to run the network under autocast. Parameters and loss stay float32.
      accumulate: into how many equal parts the batch is split for the forward and backward passes, which then run one
        after the other and need less memory. The update is that of the whole batch, except that BatchNorm sees the
        parts, and that draws such as dropout's are different.
      reduce: how a global batch lies over processes, such as `ftrain.parallel.ranks(shards=4).sum`. `batch` is then
        this process's part, the rows of its shards. Each shard has its own forward and backward pass, its own
        BatchNorm batch and mixing, and its own draws; the gradients, the metrics and the new buffers are summed or
        averaged over all shards. The result is the same, to the bit, for any number of processes.
      skip_nonfinite: whether a batch whose loss or gradient is not finite leaves the state, and its step, unchanged.
        The metrics count such batches. On a GPU and under a transform this happens without waiting for the device.
      ema_decay: in [0, 1), updates the averages that the state keeps (`init_state(..., ema=True)`):
        ema = d ema + (1 - d) new, where d = min(ema_decay, (1 + step) / (10 + step)) lets the first steps of a run fade
        quickly (tf.train.ExponentialMovingAverage with num_updates). `averaged(state)` is the state to evaluate.
      donate: whether the new state may be written into the memory of the old one, which then raises `DonatedError`
        when it is used.

    Returns:
      The state after the step, and the metrics of the batch: loss, correct, count, nonfinite; lr and grad_norm (the L2
      norm of all gradients, before any clipping); your own.

    Raises:
      TypeError: if `apply` is a module or a tuple, or `batch` not a tuple.
      ValueError: for an argument out of range, or one that does not fit the state or the batch.

    >>> apply, params, buffers = ftrain.module.functionalize(torch.nn.Linear(3, 2))
    >>> optimizer = ftrain.optim.sgd(0.1)
    >>> state = ftrain.state.init_state(params, buffers, optimizer, seed=0)
    >>> batch = torch.ones(4, 3), torch.tensor([0, 1, 1, 0])
    >>> state, metrics = train_step(state, batch, apply=apply, optimizer=optimizer)
    >>> int(state.step), sorted(metrics.compute())
    (1, ['accuracy', 'count', 'grad_norm', 'loss', 'lr', 'nonfinite'])
    """
    check_apply(apply)
    _check_options(state, precision, ema_decay)
    inputs, labels, weights = unpack_batch(batch)
    _check_parts(len(weights), accumulate, reduce)
    if len(batch) == 3:
        inputs = pytree.tree_map(lambda values: _zeroed_where_ignored(values, weights), inputs)
    key = ftrain.random.fold_in(state.key, state.step)

    def pass_of(examples: Any, key: Tensor, total_weight: Tensor) -> tuple[Tensors, Metrics, Tensors]:
        inputs, labels, weights = examples
        if augment is not None:
            inputs = _augmented(augment, ftrain.random.fold_in(key, AUGMENT_DRAW), inputs)
        if mix is not None:
            inputs, labels = mix(ftrain.random.fold_in(key, MIXING_DRAW), inputs, labels, weights)
        loss_fn = contribution(apply, loss, functools.partial(measure, metrics=metrics), precision, total_weight)
        return gradients(loss_fn, state.params, state.buffers, key, (inputs, labels, weights), accumulate)

    examples = (inputs, labels, weights)
    if reduce is None or reduce.shards == 1:
        grads, measured, buffers = pass_of(examples, key, weights.sum())
    else:
        parts = _own_parts(examples, reduce)
        total_weight = reduce([weights.sum() for _, _, weights in parts])
        passes = [
            pass_of(part, ftrain.random.fold_in(key, number), total_weight)
            for part, number in zip(parts, reduce.own, strict=True)
        ]
        grads, measured, buffers = over_shards(passes, state.buffers, reduce)
    measured = _with_step_sums(measured, grads, optimizer, state.step)

    traced = tracing(state, grads)
    skip = _skip(measured.nonfinite, traced) if skip_nonfinite else False
    new = state if skip is True else _updated(state, grads, buffers, optimizer, skip, donate)
    return commit(state, new, skip=skip, ema_decay=ema_decay, donate=donate and not traced), measured


def eval_step(
    state: TrainState,
    batch: Batch,
    *,
    apply: Apply,
    loss: Loss = cross_entropy,
    metrics: Mapping[str, Metric] | None = None,
    measure: Measure = measure_one_label,
    precision: torch.dtype = torch.float32,
    reduce: Reduce | None = None,
) -> Metrics:
    """The metrics of a batch under the state's network in evaluation mode. Arguments and errors as for `train_step`.

    >>> apply, params, buffers = ftrain.module.functionalize(torch.nn.Linear(3, 2))
    >>> state = ftrain.state.init_state(params, buffers, ftrain.optim.sgd(0.1), seed=0)
    >>> sorted(eval_step(state, (torch.ones(4, 3), torch.tensor([0, 1, 1, 0])), apply=apply).compute())
    ['accuracy', 'count', 'loss', 'macro_accuracy', 'nonfinite']
    """

    def metrics_of(examples: Any) -> Metrics:
        inputs, labels, weights = examples
        logits = predict_step(state, inputs, apply=apply, precision=precision)
        return measure(logits, labels, loss(logits, labels), weights, metrics, by_class=True)

    examples = unpack_batch(batch)
    _check_parts(len(examples[2]), 1, reduce)
    if reduce is None or reduce.shards == 1:
        return metrics_of(examples)
    parts = [metrics_of(part) for part in _own_parts(examples, reduce)]
    sums = reduce([with_examples(part, ()) for part in parts])
    of_shards = reduce.gathered([part.examples for part in parts]) if parts[0].examples else []
    return with_examples(sums, tuple(each for shard in of_shards for each in shard))


def predict_step(
    state: TrainState, inputs: Any, *, apply: Apply, precision: torch.dtype = torch.float32
) -> Float[Tensor, "B C"]:
    """The logits of the state's network in evaluation mode, at least float32. Arguments as for `train_step`.

    >>> apply, params, buffers = ftrain.module.functionalize(torch.nn.Linear(3, 2))
    >>> state = ftrain.state.init_state(params, buffers, ftrain.optim.sgd(0.1), seed=0)
    >>> predict_step(state, torch.ones(4, 3), apply=apply).shape
    torch.Size([4, 2])
    """
    check_apply(apply)
    with torch.autocast(state.step.device.type, precision, enabled=precision != torch.float32):
        outputs, _ = apply(state.params, state.buffers, inputs, train=False)
    return split_outputs(outputs)[0]


def _own_parts(examples: Any, reduce: Reduce) -> list[Any]:
    """The examples of each shard of this process, in memory of their own: where a view begins can change the bits."""
    return [pytree.tree_map(torch.clone, part) for part in chunks(examples, len(reduce.own))]


def _check_options(state: TrainState, precision: torch.dtype, ema_decay: float | None) -> None:
    if precision not in (torch.float32, torch.bfloat16):
        raise ValueError(f"`precision` must be torch.float32 or torch.bfloat16; got {precision}")
    if ema_decay is None:
        return
    if not 0.0 <= ema_decay < 1.0:
        raise ValueError(f"`ema_decay` must be a number >= 0 and < 1; got {ema_decay}")
    if not state.ema:
        raise ValueError("`ema_decay` needs a state that keeps averages; make it with init_state(..., ema=True)")


def _check_parts(examples: int, accumulate: int, reduce: Reduce | None) -> None:
    shards = 1 if reduce is None else len(reduce.own)
    if examples % shards:
        raise ValueError(
            f"the batch of this process must have the same number of examples for each of its {shards} shards; got "
            f"{examples} examples"
        )
    if accumulate < 1 or examples // shards % accumulate:
        what = "the batch size" if reduce is None else "the number of examples of a shard"
        raise ValueError(
            f"`accumulate` must be a positive divisor of {what}, which is {examples // shards}; got {accumulate}"
        )


def _zeroed_where_ignored(values: Tensor, weights: Tensor) -> Tensor:
    if not values.is_floating_point() or values.shape[:1] != weights.shape:
        return values
    counts = (weights > 0).reshape(-1, *(1 for _ in values.shape[1:]))
    return torch.where(counts, values, 0.0)


def _augmented(augment: Augment, key: Tensor, images: Any) -> Tensor:
    if not isinstance(images, Tensor):
        raise TypeError(f"`augment` needs a batch whose inputs are one tensor of images; got a {type(images).__name__}")
    found = augment(key, images)
    if not isinstance(found, Tensor) or found.shape[:1] != images.shape[:1]:
        shape = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(f"`augment` must return a tensor of {len(images)} images; got {shape}")
    return found


def _with_step_sums(metrics: Metrics, grads: Tensors, optimizer: Optimizer, step: Tensor) -> Metrics:
    dtype = metrics.loss.dtype
    norm = global_norm(grads).to(dtype)
    sums = {"steps": torch.ones_like(metrics.loss), "grad_norm": norm}
    if optimizer.learning_rate is not None:
        sums["lr"] = optimizer.learning_rate(step).to(dtype)
    return Metrics(
        loss=metrics.loss,
        correct=metrics.correct,
        count=metrics.count,
        nonfinite=torch.maximum(metrics.nonfinite.clamp_max(1.0), (~torch.isfinite(norm)).to(dtype)),
        per_example=metrics.per_example,
        per_step=sums,
        per_label=metrics.per_label,
    )


def _skip(nonfinite: Tensor, traced: bool) -> Tensor | bool:
    """Whether to skip the step: a bool where the host knows it for free, else a 0-d bool tensor."""
    if traced or nonfinite.device.type != "cpu":
        return nonfinite > 0
    return nonfinite.item() > 0


def _updated(
    state: TrainState, grads: Tensors, buffers: Tensors, optimizer: Optimizer, skip: Tensor | bool, donate: bool
) -> TrainState:
    flag = skip if isinstance(skip, Tensor) else None
    params, opt_state = apply_update(
        optimizer, grads, state.opt_state, state.params, state.step, donate=donate, skip=flag
    )
    return TrainState(state.step + 1, params, buffers, opt_state, state.key, state.ema)
