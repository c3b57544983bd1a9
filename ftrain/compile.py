"""A step as one compiled graph."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.utils import _pytree as pytree

from ftrain.state import bury, check_alive

Result = TypeVar("Result")


def compile_step(
    step: Callable[[Any, Any], Result], *, donate: bool = False, mode: str | None = None, backend: str = "inductor"
) -> Callable[[Any, Any], Result]:
    """The step as one graph: forward, backward, update and metrics, without a break and without a recompile while the
    shapes stay as they are.

    Args:
      step: `(state, batch) -> result`, its other arguments bound with `functools.partial`.
      donate: for a step that returns (state, metrics), where the state is an instance of a class such as `TrainState`:
        the new state is written into the memory of the old one, as by JAX's donation. The numbers are the same; the old
        state is gone, and touching it raises `DonatedError`. A step that takes an argument `donate`, as `train_step`
        does, writes where it stands; what others return is copied.
      mode: of `torch.compile`, such as "max-autotune-no-cudagraphs".
      backend: of `torch.compile`.

    Returns:
      The compiled step. It compiles at its first call, which takes minutes for a large network.

    Raises:
      ValueError: for a mode with CUDA graphs, which write into the memory of earlier results.
    """
    if mode in ("reduce-overhead", "max-autotune"):
        raise ValueError(
            f"mode {mode!r} uses CUDA graphs, which would write over states that are still in use; give "
            "'max-autotune-no-cudagraphs' or None"
        )
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend, "mode": mode}
    if "donate" in inspect.signature(step, follow_wrapped=False).parameters:
        step = functools.partial(cast(Callable[..., Result], step), donate=donate)
    if not donate:
        compiled = torch.compile(step, **options)

        @functools.wraps(_function(step))
        def run(state: Any, batch: Any) -> Result:
            check_alive(state)
            # Without no_grad the compiler would also build a backward pass of the whole step.
            with torch.no_grad():
                return compiled(state, batch)

        return run

    def step_into(state: Any, batch: Any, never: torch.Tensor) -> Any:
        result: Any = step(state, batch)
        new_state, metrics = result
        leaves, structure = pytree.tree_flatten(state)
        new_leaves, new_structure = pytree.tree_flatten(new_state)
        assert new_structure == structure, f"a donated state keeps its structure; {structure} became {new_structure}"
        pairs = zip(leaves, new_leaves, strict=True)
        # A new leaf may be the memory of another old leaf, so all are computed before any is written. A clone would say
        # so, but inductor before torch 2.15 drops clones of inputs that it writes into later. A choice that the
        # compiler cannot foresee stays, and costs nothing: it is fused into the kernel that computes the new leaf.
        changed = [(old, torch.where(never, old, new)) for old, new in pairs if new is not old]
        for old, new in changed:
            old.copy_(new)
        return metrics

    compiled_into = torch.compile(step_into, **options)

    @functools.wraps(_function(step))
    def run_into(state: Any, batch: Any) -> Any:
        check_alive(state)
        if isinstance(state, tuple | list | dict):
            raise TypeError(
                f"a {type(state).__name__} cannot be donated, since nothing could keep it from being used again; make "
                "the state a class with ftrain.pytree.frozen, or compile the step with donate=False"
            )
        step_number = getattr(state, "step", None)
        if isinstance(step_number, torch.Tensor):
            step_number = step_number + 1  # before the step writes into it
        leaves, structure = pytree.tree_flatten(state)
        never = torch.zeros((), dtype=torch.bool, device=leaves[0].device)
        with torch.no_grad():
            metrics = compiled_into(state, batch, never)
        new_state = pytree.tree_unflatten(leaves, structure)
        bury(state, step_number)
        return new_state, metrics

    return run_into


def _function(step: Any) -> Any:
    return step.func if isinstance(step, functools.partial) else step
