"""The gradients of the loss of a batch, which may be computed in parts, and over logical shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

import ftrain.random
from ftrain.losses import Loss
from ftrain.metrics import Metrics
from ftrain.module import Apply, Tensors
from ftrain.torch_private import pytree
from ftrain.tracing import first_derivative_only, tracing

__all__ = ["Reduce", "chunks", "contribution", "gradients", "over_shards", "split_outputs"]

T = TypeVar("T")


# (params, buffers, key, examples) -> (the loss to minimise, (the metrics, the new buffers))
LossFn = Callable[[Tensors, Tensors, Tensor, Any], tuple[Tensor, tuple[Metrics, Tensors]]]

# The weight of an auxiliary classifier's loss (Szegedy et al., Going deeper with convolutions, 2015).
AUXILIARY_WEIGHT = 0.3


@runtime_checkable
class Reduce(Protocol):
    """A sum over the logical shards of a batch, some of which may lie in other processes."""

    @property
    def shards(self) -> int:
        """The number of shards."""

    @property
    def own(self) -> range:
        """The numbers of those that lie in this process."""

    def __call__(self, parts: Sequence[T]) -> T:
        """The sum over all shards of a pytree of tensors, of which `parts` are those of this process's shards."""

    def gathered(self, parts: Sequence[T]) -> list[T]:
        """The pytrees of tensors of all shards in their order, of which `parts` are those of this process's shards."""


def contribution(
    apply: Apply, loss: Loss, measure: Callable[..., Metrics], precision: torch.dtype, total_weight: Tensor
) -> LossFn:
    """What is differentiated: the contribution of some examples to the weighted mean of the loss over the batch, whose
    weights sum to `total_weight`."""

    def loss_fn(
        params: Tensors, buffers: Tensors, key: Tensor, examples: Any
    ) -> tuple[Tensor, tuple[Metrics, Tensors]]:
        inputs, labels, weights = examples
        with torch.autocast(total_weight.device.type, precision, enabled=precision != torch.float32):
            outputs, buffers = apply(params, buffers, inputs, train=True, key=key)
        logits, auxiliary = split_outputs(outputs)
        losses = loss(logits, labels)
        total = _weighted_mean(losses, weights, total_weight)
        for other_logits in auxiliary:
            total = total + AUXILIARY_WEIGHT * _weighted_mean(loss(other_logits, labels), weights, total_weight)
        return total, (measure(logits, labels, losses, weights), buffers)

    return loss_fn


def split_outputs(outputs: Any) -> tuple[Tensor, list[Tensor]]:
    """The main logits and the auxiliary ones, at least float32."""
    named = getattr(outputs, "_asdict", None)
    fields = named() if named else {"logits": outputs}
    fields = {n: value.float() if value.itemsize < 4 else value for n, value in fields.items() if value is not None}
    return fields.pop("logits"), list(fields.values())


def _weighted_mean(losses: Tensor, weights: Tensor, total_weight: Tensor) -> Tensor:
    # torch.where, because nan times a weight of 0 is nan.
    total = torch.where(weights > 0, losses, 0.0).mul(weights.to(losses.dtype)).sum()
    return total / total_weight.to(losses.dtype).clamp_min(torch.finfo(losses.dtype).tiny)


def gradients(
    loss_fn: LossFn, params: Tensors, buffers: Tensors, key: Tensor, examples: Any, parts: int
) -> tuple[Tensors, Metrics, Tensors]:
    """Gradients and metrics summed over the parts of a batch, each of which starts from the buffers of the one before,
    and the buffers after the last."""
    grads: Tensors | None = None
    metrics: Metrics | None = None
    for number, part in enumerate(chunks(examples, parts)):
        part_key = key if parts == 1 else ftrain.random.fold_in(key, number)
        new_grads, (new_metrics, buffers) = _grad(loss_fn, params, buffers, part_key, part)
        grads = new_grads if grads is None else {name: grads[name] + grad for name, grad in new_grads.items()}
        metrics = new_metrics if metrics is None else metrics + new_metrics
    assert grads is not None and metrics is not None
    return grads, metrics, buffers


def chunks(examples: Any, parts: int) -> list[Any]:
    """Equal parts of the examples of a batch."""
    leaves, structure = pytree.tree_flatten(examples)
    chunks = zip(*(leaf.chunk(parts) for leaf in leaves), strict=True)
    return [pytree.tree_unflatten(chunk, structure) for chunk in chunks]


def over_shards(
    passes: Sequence[tuple[Tensors, Metrics, Tensors]], buffers: Tensors, reduce: Reduce
) -> tuple[Tensors, Metrics, Tensors]:
    """Gradients and metrics summed over all shards, and the mean of the floating-point buffers that the passes have
    changed. Other buffers are counts, which change in the same way in every pass."""
    first = passes[0][2]
    changed = [name for name, new in first.items() if new is not buffers[name] and new.is_floating_point()]
    parts = [(grads, measured, {name: new[name] for name in changed}) for grads, measured, new in passes]
    grads, measured, sums = reduce(parts)
    return grads, measured, {**first, **{name: total / reduce.shards for name, total in sums.items()}}


def _grad(
    loss_fn: LossFn, params: Tensors, buffers: Tensors, key: Tensor, examples: Any
) -> tuple[Tensors, tuple[Metrics, Tensors]]:
    """The gradient with respect to the parameters, and the metrics and buffers."""
    if tracing(params):
        grads, aux = torch.func.grad(lambda params: loss_fn(params, buffers, key, examples), has_aux=True)(params)
        return grads, aux
    # Eager autograd gives the same gradients without functorch's wrapping, which costs up to a fifth of the step.
    leaves = {name: param.detach().requires_grad_() for name, param in params.items()}
    with first_derivative_only(), torch.enable_grad():
        total, aux = loss_fn(leaves, buffers, key, examples)
        grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, grads, strict=True)), pytree.tree_map(torch.detach, aux)
