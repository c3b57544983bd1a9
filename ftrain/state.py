"""The state of training as one immutable value, and what becomes of it in a step: averages and donation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import attrs
import torch
from jaxtyping import Int64
from torch import Tensor

import ftrain.random
from ftrain.errors import FtrainError
from ftrain.module import Tensors
from ftrain.optim import Optimizer
from ftrain.optim.base import select
from ftrain.pytree import frozen
from ftrain.torch_private import pytree

__all__ = ["DonatedError", "TrainState", "averaged", "init_state", "restarted"]


@frozen
class TrainState:
    """Everything that a training step reads and writes. Data only, and a pytree. `init_state` makes the first one.

    Attributes:
      step: the number of steps taken, 0-d int64.
      params: the parameters that are trained, by name.
      buffers: the buffers, and the parameters that are not trained, by name.
      opt_state: a pytree of tensors that belongs to the optimizer.
      key: int64 [2]; it never changes, because draws fold the step into it.
      ema: exponential moving averages of the parameters and floating-point buffers, by name; empty if none are kept.

    >>> optimizer = ftrain.optim.sgd(0.1)
    >>> state = init_state({"w": torch.ones(2)}, {}, optimizer, seed=0)
    >>> int(state.step), state.key.tolist()
    (0, [0, 0])
    """

    step: Int64[Tensor, ""]
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    opt_state: Any
    key: Int64[Tensor, "2"]
    ema: dict[str, Tensor] = attrs.field(factory=dict)


def init_state(params: Tensors, buffers: Tensors, optimizer: Optimizer, *, seed: int, ema: bool = False) -> TrainState:
    """The state before the first step, on the device of the parameters, whose tensors it holds without copying.

    Args:
      params, buffers: from `functionalize`.
      optimizer: its `init` makes the optimizer state.
      seed: an integer in [0, 2**64) that determines every draw of the training steps.
      ema: whether the state keeps averages, which steps with `ema_decay` update.

    Raises:
      ValueError: for a network without parameters to train, or a seed out of range.

    >>> state = init_state({"w": torch.ones(2)}, {}, ftrain.optim.adam(0.1), seed=0, ema=True)
    >>> list(state.opt_state), state.ema["w"].tolist()
    (['exp_avg', 'exp_avg_sq'], [1.0, 1.0])
    """
    if not params:
        raise ValueError("there is nothing to train: the network has no parameters that require gradients")
    device = next(iter(params.values())).device
    state = TrainState(
        step=torch.zeros((), dtype=torch.int64, device=device),
        params=params,
        buffers=buffers,
        opt_state=_init_optimizer(optimizer, params),
        key=ftrain.random.key(seed, device=device),
    )
    return keeping_averages(state, ema)


def keeping_averages(state: TrainState, keep: bool) -> TrainState:
    """The state with averages, which start from its current values if it had none; or without averages."""
    if keep == bool(state.ema):
        return state
    current = _averageable(state.params, state.buffers) if keep else {}
    ema = {name: tensor.clone() for name, tensor in current.items()}
    return TrainState(state.step, state.params, state.buffers, state.opt_state, state.key, ema)


def restarted(state: TrainState, optimizer: Optimizer, trained: Iterable[str]) -> TrainState:
    """The state at the start of a part of training in which other parameters are trained. Step, key and averages
    continue; the optimizer starts anew. The tensors of the network are not copied.

    Args:
      optimizer: of the part that starts, such as `ftrain.optim.starting_at` makes.
      trained: the names of the parameters that are trained from now on. All others lie among the buffers.

    Raises:
      ValueError: if there are none, or the state has no tensor of such a name.

    >>> optimizer = ftrain.optim.sgd(0.1, momentum=0.9)
    >>> state = init_state({"head": torch.ones(2)}, {"backbone": torch.ones(3)}, optimizer, seed=0)
    >>> state = restarted(state, optimizer, ("backbone", "head"))
    >>> list(state.params), list(state.buffers), list(state.opt_state["momentum"])
    (['backbone', 'head'], [], ['backbone', 'head'])
    """
    tensors, names = {**state.params, **state.buffers}, list(trained)
    if not names or (missing := [name for name in names if name not in tensors]):
        found = f"no tensor {', '.join(missing)}" if names else "no names"
        raise ValueError(f"`trained` must be names of tensors of the state; got {found}")
    params = {name: tensors[name] for name in names}
    buffers = {name: tensor for name, tensor in tensors.items() if name not in params}
    return TrainState(state.step, params, buffers, _init_optimizer(optimizer, params), state.key, state.ema)


def _init_optimizer(optimizer: Optimizer, params: Tensors) -> Any:
    # An optimizer whose state starts as the parameters themselves, such as an average of them, gets copies: a donated
    # step writes into both.
    shared = {id(param) for param in params.values()}
    return pytree.tree_map(lambda leaf: leaf.clone() if id(leaf) in shared else leaf, optimizer.init(params))


def averaged(state: TrainState) -> TrainState:
    """The state with each parameter and buffer replaced by its average, if it has one. Nothing is copied. This is the
    state to evaluate and use if averages are kept; training continues from the original.

    >>> state = init_state({"w": torch.ones(2)}, {}, ftrain.optim.sgd(0.1), seed=0, ema=True)
    >>> averaged(state).params["w"] is state.ema["w"]
    True
    """
    return TrainState(
        state.step,
        {name: state.ema.get(name, param) for name, param in state.params.items()},
        {name: state.ema.get(name, buffer) for name, buffer in state.buffers.items()},
        state.opt_state,
        state.key,
    )


def commit(
    old: TrainState, new: TrainState, *, skip: Tensor | bool, ema_decay: float | None, donate: bool
) -> TrainState:
    """Decides what the state is after a step: skips the step if asked to, updates the averages, and invalidates the old
    state if it was donated.

    Args:
      old: the state before the step.
      new: the candidate. Where `skip` is a tensor, its parameters and optimizer state are already selected by
        `apply_update`; where it is True, the candidate is ignored.
      skip: whether to keep the old state; a 0-d bool tensor where only the device knows.
      ema_decay: the decay of the averages; None leaves them unchanged.
      donate: whether the memory of the old state, which is then invalid, may be written into.
    """
    if skip is True:
        new = TrainState(**vars(old))
    else:
        step, buffers, ema = new.step, new.buffers, old.ema
        if isinstance(skip, Tensor):
            step, buffers = select(skip, (old.step, old.buffers), (step, buffers))
        if ema_decay is not None:
            weight = _ema_weight(ema_decay, old.step)
            weight = torch.where(skip, 0.0, weight) if isinstance(skip, Tensor) else weight
            ema = _updated_averages(ema, new.params, buffers, weight, in_place=donate)
        new = TrainState(step, new.params, buffers, new.opt_state, new.key, ema)
    if donate:
        invalidate(old, old.step + 1)
    return new


def _ema_weight(decay: float, step: Tensor) -> Tensor:
    """1 - d, the weight of the current values in the averages, where d = min(decay, (1 + step) / (10 + step))."""
    time = step.to(torch.float32)
    return 1.0 - ((1.0 + time) / (10.0 + time)).clamp_max(decay)


def _updated_averages(ema: Tensors, params: Tensors, buffers: Tensors, weight: Tensor, *, in_place: bool) -> Tensors:
    lerp = Tensor.lerp_ if in_place else torch.lerp
    current = _averageable(params, buffers)
    return {name: lerp(average, current[name], weight.to(average.dtype)) for name, average in ema.items()}


def _averageable(params: Tensors, buffers: Tensors) -> Tensors:
    return {**params, **{name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}}


class DonatedError(FtrainError, RuntimeError):
    """A state was used after it had been donated to a step, which wrote the next state into its memory.

    >>> step = torch.tensor(1)
    >>> state = init_state({"w": torch.ones(2)}, {}, ftrain.optim.sgd(0.1), seed=0)
    >>> invalidate(state, step)
    >>> state.params
    Traceback (most recent call last):
    ...
    ftrain.state.DonatedError: this state was donated to step 1, which wrote the next state into its memory; continue \
with the state that the step returned, or call the step with donate=False
    """


def invalidate(state: Any, step: Tensor | None) -> None:
    """Makes a donated state raise `DonatedError` when it is used.

    Args:
      state: an instance of a class made with `ftrain.frozen`.
      step: 0-d, the step that it was donated to, in memory that nothing writes into; None if it counts no steps.
    """
    vars(state).clear()
    vars(state)["_step"] = step
    object.__setattr__(state, "__class__", _Donated)


def check_valid(state: Any) -> None:
    """Raises `DonatedError` for a donated state. Inside a compiled step the error would arrive wrapped in another."""
    if isinstance(state, _Donated):
        raise DonatedError(_message(state))


class _Donated:
    """The class of a state after its donation."""

    _step: Tensor | None

    def __getattr__(self, name: str) -> NoReturn:
        raise DonatedError(_message(self))


def _message(state: _Donated) -> str:
    # The step is read only now, because reading it earlier would wait for the device.
    step = "a step" if state._step is None else f"step {state._step.tolist()}"
    return (
        f"this state was donated to {step}, which wrote the next state into its memory; continue with the state that "
        "the step returned, or call the step with donate=False"
    )
