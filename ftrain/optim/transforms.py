"""Transforms of the gradients, and chains of them that end in an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ftrain.optim.base import Optimizer, State, Tensors, Transform, apply_update, select
from ftrain.torch_private import pytree
from ftrain.tracing import tracing

T = TypeVar("T")


def clip_by_global_norm(max_norm: float) -> Transform:
    """Scales all gradients by min(1, max_norm / (norm + 1e-6)), where norm is the L2 norm over all of them together
    (Pascanu, Mikolov and Bengio, 2013, algorithm 1, in the form of `torch.nn.utils.clip_grad_norm_`).

    Raises:
      ValueError: unless max_norm > 0.

    >>> grads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    >>> clipped, _ = clip_by_global_norm(1.0).update(grads, {}, grads, torch.tensor(0))
    >>> [round(grad.item(), 4) for grad in clipped.values()]
    [0.6, 0.8]
    """
    if not max_norm > 0.0:
        raise ValueError(f"`max_norm` of clip_by_global_norm must be > 0; got {max_norm}")

    def update(grads: Tensors, state: State, params: Tensors, step: Tensor) -> tuple[Tensors, State]:
        factor = torch.clamp(max_norm / (global_norm(grads) + 1e-6), max=1.0)
        return {name: grad * factor.to(grad.dtype) for name, grad in grads.items()}, state

    return Transform(None, update)


def chain(*parts: Transform | Optimizer) -> Optimizer:
    """Transforms, applied in order, and the optimizer at the end, as one optimizer.

    Its state is the optimizer's if no transform has state, and otherwise a tuple of the states of the transforms that
    have one and of the optimizer. So clipping can be added or removed in the middle of a run.

    Raises:
      ValueError: unless the last part, and only the last, is an optimizer.

    >>> from ftrain.optim import sgd
    >>> optimizer, params = chain(clip_by_global_norm(1.0), sgd(0.1)), {"w": torch.tensor(1.0)}
    >>> params, _ = optimizer.update({"w": torch.tensor(20.0)}, optimizer.init(params), params, torch.tensor(0))
    >>> round(params["w"].item(), 4)
    0.9
    """
    *transforms, optimizer = parts or (None,)
    if not isinstance(optimizer, Optimizer) or not all(isinstance(part, Transform) for part in transforms):
        kinds = ", ".join(type(part).__name__ for part in parts) or "nothing"
        raise ValueError(
            "chain expects transforms of the gradients, such as clip_by_global_norm(1.0), followed by one optimizer; "
            f"got {kinds}"
        )
    inits = [transform.init for transform in transforms if transform.init]

    def init(params: Tensors) -> State:
        last = optimizer.init(params)
        return (*(init_one(params) for init_one in inits), last) if inits else last

    def update(
        grads: Tensors,
        opt_state: State,
        params: Tensors,
        step: Int64[Tensor, ""],
        *,
        donate: bool = False,
        skip: Bool[Tensor, ""] | None = None,
    ) -> tuple[Tensors, State]:
        states, last = (opt_state[:-1], opt_state[-1]) if inits else ((), opt_state)
        new_states: list[State] = []
        for transform in transforms:
            state = states[len(new_states)] if transform.init else {}
            grads, new_state = transform.update(grads, state, params, step)
            if transform.init:
                new_states.append(select(skip, state, new_state))
        if donate:
            # A transform may keep a tensor that the optimizer is about to write into. (Tensors hash by identity.)
            written = set(pytree.tree_leaves((params, last)))
            new_states = pytree.tree_map(lambda leaf: leaf.clone() if leaf in written else leaf, new_states)
        new_params, last = apply_update(optimizer, grads, last, params, step, donate=donate, skip=skip)
        return new_params, (*new_states, last) if inits else last

    return Optimizer(init, update, optimizer.learning_rate, update)


def starting_at(start: int, optimizer: Optimizer) -> Optimizer:
    """The optimizer in a later part of a run: its schedule and its bias correction count the steps from `start` on.

    Args:
      start: the number of steps taken before its first one. Its state must come from its `init`.

    Raises:
      ValueError: for a negative number.

    >>> from ftrain.optim import sgd
    >>> from ftrain.schedules import warmup_cosine
    >>> optimizer = starting_at(100, sgd(warmup_cosine(0.2, total_steps=50, warmup_steps=10)))
    >>> [round(float(optimizer.learning_rate(torch.tensor(step))), 4) for step in (100, 105, 110)]
    [0.02, 0.12, 0.2]
    """
    if start < 0:
        raise ValueError(f"`start` must be >= 0; got {start}")

    def later(update: Callable[..., T]) -> Callable[..., T]:
        return lambda grads, opt_state, params, step, **options: update(
            grads, opt_state, params, step - start, **options
        )

    extended, schedule = optimizer.extended_update, optimizer.learning_rate
    return Optimizer(
        optimizer.init,
        later(optimizer.update),
        None if schedule is None else lambda step: schedule(step - start),
        None if extended is None else later(extended),
    )


def global_norm(tensors: Tensors) -> Float[Tensor, ""]:
    """The L2 norm of all tensors together, in their dtype.

    >>> global_norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}).item()
    5.0
    """
    if not tracing(tensors):
        return torch.nn.utils.get_total_norm(tensors.values())  # the same in fewer calls
    norms = [torch.linalg.vector_norm(tensor) for tensor in tensors.values()]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm
