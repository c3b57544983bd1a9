"""All of training as one immutable value."""

from __future__ import annotations

from typing import Any, NoReturn

import attrs
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils import _pytree as pytree

import ftrain.random
from ftrain.module import Tensors
from ftrain.optim import Optimizer
from ftrain.pytree import frozen


@frozen
class TrainState:
    """Everything that a training step reads and writes. Data only, and a pytree."""

    step: Int64[Tensor, ""]  # steps taken
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    opt_state: Any  # a pytree of tensors, the optimizer's own
    key: Int64[Tensor, "2"]  # never advances: draws fold the step into it
    # Averages over the steps, of the parameters and the floating-point buffers, by name; empty where none are kept.
    ema: dict[str, Tensor] = attrs.field(factory=dict)


def init_state(params: Tensors, buffers: Tensors, optimizer: Optimizer, *, seed: int, ema: bool = False) -> TrainState:
    """The state before the first step, on the device of the parameters, whose tensors it holds without copying.

    Args:
      params, buffers: as `functionalize` gives them.
      optimizer: its `init` makes the optimizer state.
      seed: an integer in [0, 2**64), from which every draw of the training steps follows.
      ema: whether the state keeps averages, which a step with `ema_decay` brings up to date.

    Raises:
      ValueError: for a network without parameters to train, or a seed out of range.
    """
    if not params:
        raise ValueError("there is nothing to train: the network has no parameters that require gradients")
    device = next(iter(params.values())).device
    opt_state = optimizer.init(params)
    shared = {id(param) for param in params.values()}
    # An optimizer that begins with the parameters themselves, such as an average of them, gets its own: a donated step
    # writes into both.
    opt_state = pytree.tree_map(lambda leaf: leaf.clone() if id(leaf) in shared else leaf, opt_state)
    state = TrainState(
        step=torch.zeros((), dtype=torch.int64, device=device),
        params=params,
        buffers=buffers,
        opt_state=opt_state,
        key=ftrain.random.key(seed, device=device),
    )
    return keeping_averages(state, ema)


def keeping_averages(state: TrainState, keep: bool) -> TrainState:
    """The state with averages, which start from what it has now if it had none; or without."""
    if keep == bool(state.ema):
        return state
    latest = _averageable(state.params, state.buffers) if keep else {}
    ema = {name: tensor.clone() for name, tensor in latest.items()}
    return TrainState(state.step, state.params, state.buffers, state.opt_state, state.key, ema)


def averaged(state: TrainState) -> TrainState:
    """The state with its averages in the place of the parameters and buffers that they are of, without copying, and
    without averages of its own. What is evaluated and used of a run that keeps averages; not what goes on training."""
    return TrainState(
        state.step,
        {name: state.ema.get(name, param) for name, param in state.params.items()},
        {name: state.ema.get(name, buffer) for name, buffer in state.buffers.items()},
        state.opt_state,
        state.key,
    )


def with_ema(state: TrainState, weight: Tensor, *, in_place: bool) -> TrainState:
    """The state with its averages moved towards its parameters and buffers.

    Args:
      weight: 0-d, in [0, 1], the share of the way.
      in_place: whether the averages' own memory is written into.

    Raises:
      ValueError: for a state that keeps no averages.
    """
    if not state.ema:
        raise ValueError("ema_decay needs a state that keeps averages; make it with init_state(..., ema=True)")
    lerp = Tensor.lerp_ if in_place else torch.lerp
    latest = _averageable(state.params, state.buffers)
    ema = {name: lerp(average, latest[name], weight.to(average.dtype)) for name, average in state.ema.items()}
    return TrainState(state.step, state.params, state.buffers, state.opt_state, state.key, ema)


def _averageable(params: Tensors, buffers: Tensors) -> Tensors:
    return {**params, **{name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}}


class DonatedError(RuntimeError):
    """A state was used after a step had written the next state into its memory."""


def bury(state: Any, step: Tensor | None) -> None:
    """Makes a donated state raise `DonatedError` when it is touched.

    Args:
      step: 0-d, the step that it was donated to, if it counts steps; in memory that nothing writes into.
    """
    vars(state).clear()
    vars(state)["_step"] = step
    object.__setattr__(state, "__class__", _Donated)


def check_alive(state: Any) -> None:
    """Raises `DonatedError` for a donated state, which inside a compiled step would come wrapped in another error."""
    if isinstance(state, _Donated):
        raise DonatedError(_gone(state))


class _Donated:
    """What a donated state becomes."""

    _step: Tensor | None

    def __getattr__(self, name: str) -> NoReturn:
        raise DonatedError(_gone(self))


def _gone(state: _Donated) -> str:
    # Read only now, since a device would have to be waited for.
    step = "a step" if state._step is None else f"step {state._step.tolist()}"
    return (
        f"this state was donated to {step}, which wrote the next state into its memory; go on with the state that the "
        "step returned, or take the step with donate=False"
    )
