"""Whether a step is pure: a check for each thing that "pure" means here, for ftrain's steps and for your own."""

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
from torch.utils import _pytree as pytree

import ftrain.random
from ftrain.optim import global_norm

Step = Callable[[Any, Any], Any]

STEPS = 5  # taken in a row with one compiled graph
TOLERANCE = 1e-8  # of float64 results that are equal but for rounding
SLOPE_TOLERANCE = 1e-4  # of a derivative against finite differences, relative
SLOPE_DISTANCE = 1e-8  # so near that hardly ever a kink, such as ReLU's, lies between
SLOPE_NOISE = 50 * 2.0**-52 / SLOPE_DISTANCE  # of finite differences from rounding, relative to the loss


class ImpureStepError(AssertionError):
    """A step that is not pure. The message says which meaning of "pure" is broken, and by which tensor."""


def assert_pure(step: Step, state: Any, batch: Any, *, meanings: Iterable[str] | None = None) -> None:
    """Checks that a step is a pure function, in the six meanings of `MEANINGS`.

    Args:
      step: `(state, batch) -> (new_state, metrics)`, or `(state, batch) -> metrics`; its other arguments bound.
      state: a pytree of tensors with the fields `key` and `params`, such as a `TrainState`. The checks of graphs, vmap
        and derivatives run on a float64 copy of it, where rounding cannot hide or feign a difference.
      batch: a pytree of tensors.
      meanings: which to check; all if None.

    Raises:
      ImpureStepError: for the first meaning that does not hold.
      ValueError: for a meaning that there is not.
    """
    for meaning in MEANINGS if meanings is None else meanings:
        if meaning not in MEANINGS:
            raise ValueError(f"a meaning of pure is one of {', '.join(MEANINGS)}; got {meaning!r}")
        MEANINGS[meaning](step, state, batch)


def check_inputs_unchanged(step: Step, state: Any, batch: Any) -> None:
    """1. No input changes: not the state, not the batch, not a module behind the step, not a global generator."""

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
    _compare("inputs unchanged", before, watched(), "before the step", "after it", exact=True)
    if moved:
        _fail(
            "inputs unchanged", f"the step moved {' and '.join(moved)}; draw from state.key with ftrain.random instead"
        )


def check_repeatable(step: Step, state: Any, batch: Any) -> None:
    """2. The same inputs give the same outputs, bit for bit, however often and in whatever order the step is called."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = _snapshot(step(state, batch))
        torch.manual_seed(2)
        _compare("repeatable", first, step(state, batch), "the first call", "the second", exact=True)
        step(_advanced(step, state, batch), batch)
        _compare("repeatable", first, step(state, batch), "the first call", "a call after another step", exact=True)


def check_one_graph(step: Step, state: Any, batch: Any, *, backend: str = "aot_eager") -> None:
    """3. It compiles as one graph, which serves every step: no recompile when the step or the learning rate moves."""
    state, batch = _wide(state), _wide(batch)
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)
    try:
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(STEPS):
                result = compiled(state, batch)
                state = _next_state(result, state)
    except torch._dynamo.exc.RecompileError as error:
        _fail("one graph", f"the step compiled again in one of {STEPS} calls: {_first_lines(error)}")
    except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.BackendCompilerFailed) as error:
        _fail("one graph", f"the step does not compile as one graph: {_first_lines(error)}")


def check_vmap(step: Step, state: Any, batch: Any) -> None:
    """4. Under vmap over stacked states, each with its own key, it equals the loop over the single states."""
    first, batch = _wide(state), _wide(batch)
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
    state, batch = _wide(state), _wide(batch)
    keys = ftrain.random.split(ftrain.random.key(0), len(state.params))
    direction = {
        name: ftrain.random.normal(key, param.shape, torch.float64).to(param.device)
        for (name, param), key in zip(state.params.items(), keys, strict=True)
    }
    length = global_norm(direction)
    direction = {name: part / length for name, part in direction.items()}

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
            "differentiable", f"the later loss has the derivative {slope:.8g}; finite differences give {expected:.8g}"
        )


def check_draws(step: Step, state: Any, batch: Any) -> None:
    """6. Every draw comes from the state's key and step alone, differs from step to step, and is the same eager and
    compiled."""
    state, batch = _wide(state), _wide(batch)
    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        eager = step(state, batch)
        torch.manual_seed(2)
        try:
            graph = compiled(state, batch)
        except torch._dynamo.exc.TorchDynamoException as error:
            _fail("draws", f"the step does not compile: {_first_lines(error)}")
        _compare("draws", eager, graph, "the step in eager mode", "the step compiled")
        if not hasattr(state, "step"):
            return
        loss = _loss(eager)
        other_key = _loss(step(_with_key(state, ftrain.random.fold_in(state.key, 1)), batch))
        other_step = _loss(step(_replace(state, step=state.step + 1), batch))
        if not _same_bits(loss, other_key) and _same_bits(loss, other_step):
            _fail("draws", "the step draws from its key, but the same in every step; fold state.step into the key")


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
    raise ImpureStepError(f"the step is not pure: meaning {number}, {meaning}, does not hold. {found}")


def _compare(meaning: str, expected: Any, found: Any, one: str, other: str, *, exact: bool = False) -> None:
    wanted, got = _named(expected), _named(found)
    if wanted.keys() != got.keys():
        _fail(meaning, f"{one} and {other} differ in structure: {sorted(wanted.keys() ^ got.keys())[:3]}")
    for name, a in wanted.items():
        b = got[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            _fail(meaning, f"{name} is {a.dtype} {list(a.shape)} by {one} and {b.dtype} {list(b.shape)} by {other}")
        near = (
            _same_bits(a, b) if exact else torch.allclose(a.double(), b.double(), TOLERANCE, TOLERANCE, equal_nan=True)
        )
        if not near:
            distance = (a.double() - b.double()).abs().max().item()
            _fail(meaning, f"{name} is not the same by {one} and {other}: the largest difference is {distance:.3g}")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(*(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _named(tree: Any) -> dict[str, Tensor]:
    leaves, _ = pytree.tree_flatten_with_path(tree)
    return {pytree.keystr(path) or "the result": leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


def _snapshot(tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, tree)


def _wide(tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tree)


def _replace(state: Any, **changes: Any) -> Any:
    changed = copy.copy(state)
    for name, value in changes.items():
        object.__setattr__(changed, name, value)
    return changed


def _with_key(state: Any, key: Tensor) -> Any:
    return _replace(state, key=key)


def _next_state(result: Any, state: Any) -> Any:
    """The state to go on from: the step's, if it returns one."""
    is_state = isinstance(result, tuple) and isinstance(result[0], type(state))
    return result[0] if is_state else state


def _advanced(step: Step, state: Any, batch: Any) -> Any:
    return _next_state(step(state, batch), state)


def _loss(result: Any) -> Tensor:
    """The loss of what a step returned: its metrics' field `loss`, else the sum of all floats in it."""
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
    """The tensors of the modules that a step can reach through bound arguments and closures."""
    modules = [value for value in _reachable(step, set()) if isinstance(value, torch.nn.Module)]
    return {
        f"module {number} ({type(module).__name__})": {
            **dict(module.named_parameters()),
            **dict(module.named_buffers()),
            **{f"{name}.training": torch.tensor(part.training) for name, part in module.named_modules()},
        }
        for number, module in enumerate(modules)
    }


def _reachable(value: Any, seen: set[int]) -> Iterator[Any]:
    if id(value) in seen:
        return
    seen.add(id(value))
    yield value
    parts: Sequence[Any] = ()
    if isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, types.FunctionType):
        parts = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    elif isinstance(value, types.MethodType):
        parts = [value.__self__, value.__func__]
    elif isinstance(value, tuple | list):
        parts = value
    elif isinstance(value, dict):
        parts = list(value.values())
    elif callable(value) and not isinstance(value, torch.nn.Module | type):
        parts = list(getattr(value, "__dict__", {}).values())
    for part in parts:
        yield from _reachable(part, seen)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:600]
