"""Checks that a step is pure, for ftrain's steps and for your own: one for each of the six meanings of "pure"."""

from __future__ import annotations

import copy
import functools
import random
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ftrain.random
from ftrain.errors import FtrainError
from ftrain.optim import global_norm
from ftrain.torch_private import compile_errors, error_on_recompile, pytree, recompile_error

__all__ = ["MEANINGS", "ImpureStepError", "Step", "assert_pure"]

Step = Callable[[Any, Any], Any]

STEPS = 5  # consecutive steps that one compiled graph must serve
TOLERANCE = 1e-8  # between float64 results that are equal except for rounding
SLOPE_TOLERANCE = 1e-4  # between a derivative and finite differences, relative
SLOPE_DISTANCE = 1e-8  # small enough that there is hardly ever a kink, such as ReLU's, in between
SLOPE_NOISE = 50 * 2.0**-52 / SLOPE_DISTANCE  # rounding error of finite differences, relative to the loss


class ImpureStepError(FtrainError, AssertionError):
    """A step is not pure. The message says which meaning of "pure" does not hold, and for which tensor.

    >>> issubclass(ImpureStepError, ftrain.FtrainError), issubclass(ImpureStepError, AssertionError)
    (True, True)
    """


def assert_pure(step: Step, state: Any, batch: Any, *, meanings: Iterable[str] | None = None) -> None:
    """Checks that a step is a pure function, in the six meanings of `MEANINGS`.

    Args:
      step: `(state, batch) -> (new_state, metrics)`, or `(state, batch) -> metrics`; its other arguments bound, for
        instance with `functools.partial`.
      state: a pytree of tensors with the fields `key` and `params`, such as a `TrainState`. The checks of graphs, vmap
        and derivatives use a float64 copy of it, so that rounding neither hides a difference nor looks like one.
      batch: a pytree of tensors.
      meanings: names of the meanings to check; None for all.

    Raises:
      ImpureStepError: for the first meaning that does not hold.
      ValueError: for an unknown meaning.

    >>> apply, params, buffers = ftrain.module.functionalize(torch.nn.Linear(3, 2))
    >>> state = ftrain.state.init_state(params, buffers, ftrain.optim.sgd(0.1), seed=0)
    >>> step = functools.partial(ftrain.steps.train_step, apply=apply, optimizer=ftrain.optim.sgd(0.1))
    >>> assert_pure(step, state, (torch.ones(4, 3), torch.tensor([0, 1, 1, 0])), meanings=["repeatable", "vmap"])
    """
    for meaning in MEANINGS if meanings is None else meanings:
        if meaning not in MEANINGS:
            raise ValueError(f"the meanings of pure are {', '.join(MEANINGS)}; got {meaning!r}")
        MEANINGS[meaning](step, state, batch)


def check_inputs_unchanged(step: Step, state: Any, batch: Any) -> None:
    """1. No input changes: neither the state nor the batch, a module behind the step or a global random generator."""

    def watched() -> dict[str, Any]:
        return {"state": state, "batch": batch, **_modules_behind(step)}

    before, generators = _snapshot(watched()), _generators()
    with torch.random.fork_rng():
        step(state, batch)
        moved = [
            name
            for name, was, now in zip(generators, generators.values(), _generators().values(), strict=True)
            if was != now
        ]
    _compare("inputs unchanged", before, watched(), "the input before the step", "the input after it", exact=True)
    if moved:
        _fail(
            "inputs unchanged",
            f"the step advanced {' and '.join(moved)}; draw from state.key with ftrain.random instead",
        )


def check_repeatable(step: Step, state: Any, batch: Any) -> None:
    """2. The same inputs give the same outputs, bit for bit, however often and in whatever order the step is called."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = _snapshot(step(state, batch))
        torch.manual_seed(2)
        _compare("repeatable", first, step(state, batch), "the first call", "the second call", exact=True)
        step(_advanced(step, state, batch), batch)
        _compare("repeatable", first, step(state, batch), "the first call", "a call after another step", exact=True)


def check_one_graph(step: Step, state: Any, batch: Any, *, backend: str = "aot_eager") -> None:
    """3. It compiles as one graph that serves every step: no recompile when the step or the learning rate changes."""
    state, batch = _as_float64(state), _as_float64(batch)
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)
    try:
        with torch.no_grad(), error_on_recompile():
            for _ in range(STEPS):
                result = compiled(state, batch)
                state = _next_state(result, state)
    except recompile_error() as error:
        _fail("one graph", f"the step was recompiled in one of {STEPS} calls: {_first_lines(error)}")
    except compile_errors() as error:
        _fail("one graph", f"the step does not compile as one graph: {_first_lines(error)}")


def check_vmap(step: Step, state: Any, batch: Any) -> None:
    """4. Under vmap over stacked states, each with its own key, it equals a loop over the single states."""
    first, batch = _as_float64(state), _as_float64(batch)
    second = _with_key(_advanced(step, first, batch), ftrain.random.fold_in(first.key, 1))
    stacked = pytree.tree_map(lambda *leaves: torch.stack(leaves), first, second)
    try:
        together = torch.func.vmap(step, in_dims=(0, None))(stacked, batch)
    except Exception as error:
        _fail("vmap", f"the step does not run under vmap: {_first_lines(error)}")
    for member, single in enumerate((first, second)):
        alone = step(single, batch)
        mine = pytree.tree_map(lambda leaf: leaf[member], together)  # noqa: B023
        _compare("vmap", alone, mine, "the step alone", f"member {member} under vmap")


def check_differentiable(step: Step, state: Any, batch: Any) -> None:
    """5. The derivative of a later loss through two steps, along a direction in the parameters, agrees with finite
    differences."""
    state, batch = _as_float64(state), _as_float64(batch)
    keys = ftrain.random.split(ftrain.random.key(0), len(state.params))
    direction = {
        name: ftrain.random.normal(key, param.shape, torch.float64).to(param.device)
        for (name, param), key in zip(state.params.items(), keys, strict=True)
    }
    length = global_norm(direction)
    direction = {name: component / length for name, component in direction.items()}

    def later_loss(distance: Tensor) -> Tensor:
        moved = {name: param + distance * direction[name] for name, param in state.params.items()}
        current = _replace(state, params=moved)
        result = None
        for _ in range(2):
            result = step(current, batch)
            current = _next_state(result, current)
        return _loss(result)

    here = torch.zeros((), dtype=torch.float64, device=state.key.device)
    try:
        slope = torch.func.grad(later_loss)(here).item()
    except Exception as error:
        _fail("differentiable", f"torch.func.grad of a later loss failed: {_first_lines(error)}")
    ahead, behind = later_loss(here + SLOPE_DISTANCE).item(), later_loss(here - SLOPE_DISTANCE).item()
    expected = (ahead - behind) / (2 * SLOPE_DISTANCE)
    if not abs(slope - expected) <= SLOPE_TOLERANCE * abs(expected) + SLOPE_NOISE * abs(ahead):
        _fail(
            "differentiable",
            f"the derivative of the later loss is {slope:.8g}, but finite differences give {expected:.8g}",
        )


def check_draws(step: Step, state: Any, batch: Any) -> None:
    """6. Every draw depends only on the state's key and step, differs from step to step, and is the same eager and
    compiled."""
    state, batch = _as_float64(state), _as_float64(batch)
    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        eager = step(state, batch)
        torch.manual_seed(2)
        try:
            graph = compiled(state, batch)
        except compile_errors() as error:
            _fail("draws", f"the step does not compile: {_first_lines(error)}")
        _compare("draws", eager, graph, "the eager step", "the compiled step")
        if not hasattr(state, "step"):
            return
        loss = _loss(eager)
        other_key = _loss(step(_with_key(state, ftrain.random.fold_in(state.key, 1)), batch))
        other_step = _loss(step(_replace(state, step=state.step + 1), batch))
        if not _same_bits(loss, other_key) and _same_bits(loss, other_step):
            _fail("draws", "the step draws the same numbers in every step; fold state.step into the key")


MEANINGS: dict[str, Callable[[Step, Any, Any], None]] = {
    "inputs unchanged": check_inputs_unchanged,
    "repeatable": check_repeatable,
    "one graph": check_one_graph,
    "vmap": check_vmap,
    "differentiable": check_differentiable,
    "draws": check_draws,
}


def _fail(meaning: str, found: str) -> None:
    number = list(MEANINGS).index(meaning) + 1
    raise ImpureStepError(f"the step is not pure in meaning {number}, {meaning}: {found}")


def _compare(meaning: str, expected: Any, found: Any, one: str, other: str, *, exact: bool = False) -> None:
    wanted, got = _named(expected), _named(found)
    if wanted.keys() != got.keys():
        _fail(meaning, f"only one of {one} and {other} has {', '.join(sorted(wanted.keys() ^ got.keys())[:3])}")
    for name, a in wanted.items():
        b = got[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            _fail(meaning, f"{name} is {a.dtype} {list(a.shape)} in {one} and {b.dtype} {list(b.shape)} in {other}")
        near = (
            _same_bits(a, b) if exact else torch.allclose(a.double(), b.double(), TOLERANCE, TOLERANCE, equal_nan=True)
        )
        if not near:
            distance = (a.double() - b.double()).abs().max().item()
            _fail(meaning, f"{name} differs between {one} and {other} by up to {distance:.3g}")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(*(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _named(tree: Any) -> dict[str, Tensor]:
    leaves, _ = pytree.tree_flatten_with_path(tree)
    return {pytree.keystr(path) or "the result": leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


def _snapshot(tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, tree)


def _as_float64(tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tree)


def _replace(state: Any, **changes: Any) -> Any:
    changed = copy.copy(state)
    for name, value in changes.items():
        object.__setattr__(changed, name, value)
    return changed


def _with_key(state: Any, key: Tensor) -> Any:
    return _replace(state, key=key)


def _next_state(result: Any, state: Any) -> Any:
    """The state for the next step: the one that the step returned, if any."""
    is_state = isinstance(result, tuple) and isinstance(result[0], type(state))
    return result[0] if is_state else state


def _advanced(step: Step, state: Any, batch: Any) -> Any:
    return _next_state(step(state, batch), state)


def _loss(result: Any) -> Tensor:
    """The field `loss` of the metrics that a step returned, or else the sum of all floats in them."""
    metrics = result[-1] if isinstance(result, tuple) else result
    if hasattr(metrics, "loss"):
        return metrics.loss  # type: ignore[no-any-return]
    floats = [leaf.sum().double() for leaf in pytree.tree_leaves(metrics) if leaf.is_floating_point()]
    return torch.stack(floats).sum()


def _generators() -> dict[str, Any]:
    states = {
        "torch's global generator": torch.get_rng_state().numpy().tobytes(),
        "Python's random": random.getstate(),
        "numpy's global generator": str(np.random.get_state()),
    }
    if torch.cuda.is_available():
        states["torch's generators on CUDA"] = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    return states


def _modules_behind(step: Any) -> dict[str, dict[str, Tensor]]:
    """The tensors and modes of the modules that a step reaches through bound arguments, closures and attributes."""
    modules = [value for value in _reachable(step, set()) if isinstance(value, torch.nn.Module)]
    return {
        f"module {number} ({type(module).__name__})": {
            **dict(module.named_parameters()),
            **dict(module.named_buffers()),
            **{f"{name}.training": torch.tensor(child.training) for name, child in module.named_modules()},
        }
        for number, module in enumerate(modules)
    }


def _reachable(value: Any, seen: set[int]) -> Iterator[Any]:
    if id(value) in seen:
        return
    seen.add(id(value))
    yield value
    members: Sequence[Any] = ()
    if isinstance(value, functools.partial):
        members = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, types.FunctionType):
        members = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    elif isinstance(value, types.MethodType):
        members = [value.__self__, value.__func__]
    elif isinstance(value, tuple | list):
        members = value
    elif isinstance(value, dict):
        members = list(value.values())
    elif callable(value) and not isinstance(value, torch.nn.Module | type):
        members = list(getattr(value, "__dict__", {}).values())
    for member in members:
        yield from _reachable(member, seen)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:600]
