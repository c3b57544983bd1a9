"""torch's fused optimizer kernels, behind one call: `with_kernel`.

A kernel updates lists of tensors in place, in one pass over memory. In a compiled step it is a single node of the
graph, where the arithmetic on hundreds of tensors would keep the compiler busy for a minute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.optim.adagrad import adagrad as torch_adagrad
from torch.optim.adam import adam as torch_adam
from torch.optim.adamw import adamw as torch_adamw
from torch.optim.sgd import sgd as torch_sgd

from ftrain.optim.base import Optimizer, State, Tensors, select
from ftrain.optim.groups import Grouping
from ftrain.schedules import Schedule
from ftrain.torch_private import pytree
from ftrain.tracing import transformed

Arithmetic = Callable[[Tensors, State, Tensors, Tensor, Tensor], tuple[Tensors, State]]


class Run(Protocol):
    """Updates lists of parameters, and the lists of their state by name, in place."""

    def __call__(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        state: dict[str, list[Tensor]],
        *,
        rate: Tensor,
        step: Tensor,
        skip: Tensor | None,
        weight_decay: float,
    ) -> None: ...


class Kernel(NamedTuple):
    run: Run
    supports: Callable[[Tensor, Tensor | None], bool]  # of (rate, skip)


def with_kernel(
    init: Callable[[Tensors], State],
    arithmetic: Arithmetic,
    kernel: Kernel,
    *,
    schedule: Schedule,
    grouping: Grouping,
) -> Optimizer:
    """An optimizer that updates by a fused kernel where it can, and by its plain arithmetic elsewhere.

    Args:
      init: as in `Optimizer`; the state is a dict of dicts with the names of the parameters.
      arithmetic: `(grads, opt_state, params, step, rate) -> (new_params, new_opt_state)`.
      kernel: the same update in place.
      schedule, grouping: the optimizer's own.
    """

    def update(
        grads: Tensors,
        opt_state: State,
        params: Tensors,
        step: Int64[Tensor, ""],
        *,
        donate: bool = False,
        skip: Bool[Tensor, ""] | None = None,
    ) -> tuple[Tensors, State]:
        rate = schedule(step)
        if transformed(params, grads, rate) or not kernel.supports(rate, skip):
            return select(skip, (params, opt_state), arithmetic(grads, opt_state, params, step, rate))
        params, opt_state, grads = _writable(params, opt_state, grads, donate)
        for group in grouping.groups(params):
            kernel.run(
                _listed(params, group.names),
                _listed(grads, group.names),
                {key: _listed(tensors, group.names) for key, tensors in opt_state.items()},
                rate=group.rate(rate),
                step=step,
                skip=skip,
                weight_decay=group.weight_decay,
            )
        return params, opt_state

    return Optimizer(init, update, schedule, update)


def sgd(*, momentum: float, nesterov: bool) -> Kernel:
    def run(
        params: list[Tensor],
        grads: list[Tensor],
        state: dict[str, list[Tensor]],
        *,
        rate: Tensor,
        step: Tensor,
        skip: Tensor | None,
        weight_decay: float,
    ) -> None:
        kernel = _sgd_node if torch.compiler.is_compiling() else _sgd
        kernel(params, grads, state.get("momentum", []), rate, skip, momentum, weight_decay, nesterov)

    return Kernel(run, _can_skip)


def adam(*, b1: float, b2: float, eps: float, decoupled: bool) -> Kernel:
    def run(
        params: list[Tensor],
        grads: list[Tensor],
        state: dict[str, list[Tensor]],
        *,
        rate: Tensor,
        step: Tensor,
        skip: Tensor | None,
        weight_decay: float,
    ) -> None:
        kernel = _adam_node if torch.compiler.is_compiling() else _adam
        means, squares = state["exp_avg"], state["exp_avg_sq"]
        kernel(params, grads, means, squares, rate, step, skip, b1, b2, eps, weight_decay, decoupled)

    return Kernel(run, _can_skip)


def adagrad(*, eps: float) -> Kernel:
    def run(
        params: list[Tensor],
        grads: list[Tensor],
        state: dict[str, list[Tensor]],
        *,
        rate: Tensor,
        step: Tensor,
        skip: Tensor | None,
        weight_decay: float,
    ) -> None:
        torch_adagrad(
            params,
            grads,
            state["sum"],
            _step_counters(step, len(params)),
            foreach=True,
            lr=rate.item(),
            weight_decay=weight_decay,
            lr_decay=0.0,
            eps=eps,
            maximize=False,
        )

    def supports(rate: Tensor, skip: Tensor | None) -> bool:
        # torch's Adagrad needs the rate as a Python number, which only the CPU gives without waiting, and cannot skip.
        return not torch.compiler.is_compiling() and rate.device.type == "cpu" and skip is None

    return Kernel(run, supports)


def _can_skip(rate: Tensor, skip: Tensor | None) -> bool:
    return skip is None or skip.device.type != "mps"  # the kernels of Apple's GPUs ignore it


def _adam(
    params: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    rate: Tensor,
    step: Tensor,
    skip: Tensor | None,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    (torch_adamw if decoupled else torch_adam)(
        params,
        grads,
        means,
        squares,
        [],
        _step_counters(step, len(params)),
        fused=True,
        found_inf=_as_found_inf(skip),
        amsgrad=False,
        beta1=b1,
        beta2=b2,
        lr=_as_kernel_rate(rate),
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )


def _sgd(
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    rate: Tensor,
    skip: Tensor | None,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    torch_sgd(
        params,
        grads,
        [*velocities] if momentum else [None] * len(params),
        fused=True,
        found_inf=_as_found_inf(skip),
        weight_decay=weight_decay,
        momentum=momentum,
        lr=_as_kernel_rate(rate),
        dampening=0.0,
        nesterov=nesterov,
        maximize=False,
    )


# The same as nodes of a compiled graph, in which the compiler must not change the memory layout of the tensors.
_adam_node = torch.library.custom_op(
    "ftrain::adam_",
    _adam,
    mutates_args=("params", "means", "squares"),
    schema="(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] means, Tensor(c!)[] squares, Tensor rate, Tensor step, "
    "Tensor? skip, float b1, float b2, float eps, float weight_decay, bool decoupled) -> ()",
    tags=(torch.Tag.needs_exact_strides,),
)
_sgd_node = torch.library.custom_op(
    "ftrain::sgd_",
    _sgd,
    mutates_args=("params", "velocities"),
    schema="(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] velocities, Tensor rate, Tensor? skip, float momentum, "
    "float weight_decay, bool nesterov) -> ()",
    tags=(torch.Tag.needs_exact_strides,),
)


def _writable(params: Tensors, opt_state: State, grads: Tensors, donate: bool) -> tuple[Tensors, State, Tensors]:
    """Parameters and state that a kernel may write into, which are the caller's if donated and copies otherwise, and
    the gradients. All get the memory layout of the parameters, because the fused kernels walk through memory in order
    without looking at strides."""

    def laid_out(tensors: Tensors) -> Tensors:
        return {
            name: tensor if tensor.stride() == params[name].stride() else torch.empty_like(params[name]).copy_(tensor)
            for name, tensor in tensors.items()
        }

    if donate:
        params = {name: tensor if _is_dense(tensor) else tensor.clone() for name, tensor in params.items()}
    else:
        params, opt_state = pytree.tree_map(torch.clone, (params, opt_state))
    return params, {key: laid_out(tensors) for key, tensors in opt_state.items()}, laid_out(grads)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills its memory without gaps, in whatever order."""
    return tensor.is_contiguous() or tensor.stride() == torch.empty_like(tensor, device="meta").stride()


def _listed(tensors: Tensors, names: list[str]) -> list[Tensor]:
    return [tensors[name] for name in names]


def _as_kernel_rate(rate: Tensor) -> Any:  # float | Tensor, which the annotations of torch 2.11 do not allow
    return rate.item() if rate.device.type == "cpu" else rate.to(torch.float32)


def _step_counters(step: Tensor, count: int) -> list[Tensor]:
    """One counter per parameter, because torch's kernels increment each in place."""
    return list(step.to(torch.float32).repeat(count).unbind())


def _as_found_inf(skip: Tensor | None) -> Tensor | None:
    return None if skip is None else skip.to(torch.float32)
