"""A step as one compiled graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from ftrain.state import check_valid, invalidate
from ftrain.steps import train_step
from ftrain.torch_private import pytree

__all__ = ["compile_step", "donating"]

Result = TypeVar("Result")
AnyStep = TypeVar("AnyStep", bound=Callable[..., Any])

_MARK = "_ftrain_donating"


def donating(step: AnyStep) -> AnyStep:
    """Declares that a step has an argument `donate`, as `train_step` has, which `compile_step` then sets.

    Args:
      step: a function, a method (of all instances of its class), or a callable object.

    Raises:
      TypeError: for an object that cannot have attributes.

    >>> @donating
    ... def step(state, batch, *, donate=False):
    ...     return state, batch
    """
    marked: Any = getattr(step, "__func__", step)  # a bound method has no attributes of its own
    try:
        # The mark is the function itself, because functools.wraps copies attributes to wrappers without `donate`.
        setattr(marked, _MARK, marked)
    except (AttributeError, TypeError):
        raise TypeError(
            f"`step` must be a function or an object that can have attributes; got a {type(step).__name__}. Pass a "
            "function that calls it"
        ) from None
    return step


donating(train_step)


def _is_donating(step: Any) -> bool:
    while True:
        function = getattr(step, "__func__", step)
        if getattr(function, _MARK, None) is function:
            return True
        if not isinstance(step, functools.partial):
            return False
        step = step.func


def compile_step(
    step: Callable[[Any, Any], Result], *, donate: bool = False, mode: str | None = None, backend: str = "inductor"
) -> Callable[[Any, Any], Result]:
    """The step as one graph: forward, backward, update and metrics, without a graph break, and without recompiling as
    long as the shapes stay the same.

    Args:
      step: `(state, batch) -> result`, its other arguments bound with `functools.partial`.
      donate: for a step that returns (state, metrics), where the state is an instance of a class made with
        `ftrain.frozen`, such as `TrainState`: the new state is written into the memory of the old one, as by JAX's
        donation. The numbers are the same; the old state is then invalid, and using it raises `DonatedError`.
        `train_step`, and a step decorated with `ftrain.compile.donating`, writes its results in place; the results of
        other steps are copied.
      mode: of `torch.compile`, such as "max-autotune-no-cudagraphs".
      backend: of `torch.compile`.

    Returns:
      The compiled step. It compiles at its first call, which takes minutes for a large network.

      If `donate`, it raises ValueError for a step that changes the dtype or shape of a tensor of its state.

    Raises:
      ValueError: for a mode with CUDA graphs, which write into the memory of earlier results.

    >>> step = compile_step(lambda state, batch: state + batch, backend="eager")
    >>> step(torch.tensor(1.0), torch.tensor(2.0))
    tensor(3.)
    """
    if mode in ("reduce-overhead", "max-autotune"):
        raise ValueError(
            f"`mode` {mode!r} uses CUDA graphs, which would overwrite states that are still in use; use "
            "'max-autotune-no-cudagraphs' or None"
        )
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend, "mode": mode}
    function: Any = step
    while isinstance(function, functools.partial):
        function = function.func
    if _is_donating(step):
        step = functools.partial(cast(Callable[..., Result], step), donate=donate)
    compiled = _compiled_donating(step, options) if donate else _compiled(step, options)
    return functools.wraps(function)(compiled)


def _compiled(step: Callable[[Any, Any], Any], options: dict[str, Any]) -> Callable[[Any, Any], Any]:
    compiled = torch.compile(step, **options)

    def run(state: Any, batch: Any) -> Any:
        check_valid(state)
        # Without no_grad the compiler would also build a backward pass of the whole step.
        with torch.no_grad():
            return compiled(state, batch)

    return run


def _compiled_donating(step: Callable[[Any, Any], Any], options: dict[str, Any]) -> Callable[[Any, Any], Any]:
    def step_in_place(state: Any, batch: Any, never: torch.Tensor) -> Any:
        new_state, metrics = step(state, batch)
        leaves, structure = pytree.tree_flatten(state)
        new_leaves, new_structure = pytree.tree_flatten(new_state)
        assert new_structure == structure, f"a step changed the structure of its state: {structure}, {new_structure}"
        pairs = list(zip(leaves, new_leaves, strict=True))
        misfits = [
            (number, str(new.dtype), list(new.shape))
            for number, (old, new) in enumerate(pairs)
            if new.dtype != old.dtype or new.shape != old.shape
        ]
        if misfits:  # raised by the caller, because an error in a graph arrives as one of the compiler
            return None, misfits
        # A new leaf may be the memory of another old leaf, so all are computed before any is written. A clone would
        # say so, but inductor before torch 2.15 drops clones of inputs that it writes into later. A condition that the
        # compiler cannot foresee stays, and is free: it is fused into the kernel that computes the new leaf.
        changed = [(old, torch.where(never, old, new)) for old, new in pairs if new is not old]
        for old, new in changed:
            old.copy_(new)
        return metrics, misfits

    compiled = torch.compile(step_in_place, **options)

    def run(state: Any, batch: Any) -> Any:
        check_valid(state)
        if isinstance(state, tuple | list | dict):
            raise TypeError(
                f"a {type(state).__name__} cannot be donated, because nothing could prevent its further use; make the "
                "state an instance of a class decorated with ftrain.frozen, or compile the step with donate=False"
            )
        step_number = getattr(state, "step", None)
        if isinstance(step_number, torch.Tensor):
            step_number = step_number + 1  # before the step writes into it
        leaves, structure = pytree.tree_flatten(state)
        never = torch.zeros((), dtype=torch.bool, device=leaves[0].device)
        with torch.no_grad():
            metrics, misfits = compiled(state, batch, never)
        if misfits:
            raise ValueError(_misfit(state, *misfits[0]))
        new_state = pytree.tree_unflatten(leaves, structure)
        invalidate(state, step_number)
        return new_state, metrics

    return run


def _misfit(state: Any, number: int, dtype: str, shape: list[int]) -> str:
    path, old = pytree.tree_flatten_with_path(state)[0][number]
    return (
        f"a donated state must keep its dtypes and shapes, but the step changed {pytree.keystr(path)} from {old.dtype} "
        f"{list(old.shape)} to {dtype} {shape}; convert it in the step, or compile the step with donate=False"
    )
