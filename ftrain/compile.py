"""A step as one compiled graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch.utils import _pytree as pytree

Result = TypeVar("Result")


def compile_step(
    step: Callable[[Any, Any], Result], *, donate: bool = False, backend: str = "inductor"
) -> Callable[[Any, Any], Result]:
    """The step as one graph: forward, backward, update and metrics, without a break and without a recompile while the
    shapes stay as they are.

    Args:
      step: `(state, batch) -> result`, its other arguments bound with `functools.partial`.
      donate: for a step that returns (state, metrics): the new state is written into the memory of the old one, as by
        JAX's donation. The numbers are the same; the old state is gone, and touching it raises `DonatedError`.
      backend: of `torch.compile`.

    Returns:
      The compiled step. It compiles at its first call, which takes minutes for a large network.
    """
    if not donate:
        compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)

        @functools.wraps(_function(step))
        def run(state: Any, batch: Any) -> Result:
            _check_alive(state)
            # Without no_grad the compiler would also build a backward pass of the whole step.
            with torch.no_grad():
                return compiled(state, batch)

        return run

    def step_into(state: Any, batch: Any) -> Any:
        result: Any = step(state, batch)
        new_state, metrics = result
        for old, new in zip(pytree.tree_leaves(state), pytree.tree_leaves(new_state), strict=True):
            if new is not old:
                old.copy_(new)
        return metrics

    compiled_into = torch.compile(step_into, fullgraph=True, dynamic=False, backend=backend)

    @functools.wraps(_function(step))
    def run_into(state: Any, batch: Any) -> Any:
        _check_alive(state)
        with torch.no_grad():
            metrics = compiled_into(state, batch)
        leaves, structure = pytree.tree_flatten(state)
        new_state = pytree.tree_unflatten(leaves, structure)
        _bury(state)
        return new_state, metrics

    return run_into


class DonatedError(RuntimeError):
    """A state was used after a step had written the next state into its memory."""


class _Donated:
    """What a donated state becomes."""

    def __getattr__(self, name: str) -> NoReturn:
        raise DonatedError(_GONE)


_GONE = (
    "this state was donated to a step, which wrote the next state into its memory; go on with the state that the step "
    "returned, or compile the step with donate=False"
)


def _check_alive(state: Any) -> None:
    """Dynamo would wrap the error in one of its own."""
    if isinstance(state, _Donated):
        raise DonatedError(_GONE)


def _bury(state: Any) -> None:
    vars(state).clear()
    object.__setattr__(state, "__class__", _Donated)


def _function(step: Any) -> Any:
    return step.func if isinstance(step, functools.partial) else step
