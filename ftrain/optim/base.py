"""The types of optimizers and gradient transforms, and the one call by which a training step updates parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ftrain.schedules import Schedule
from ftrain.torch_private import pytree

T = TypeVar("T")
Tensors = dict[str, Tensor]
State = Any  # a pytree of tensors
Mask = Callable[[Tensors], dict[str, bool]]
LrFactors = Callable[[Tensors], dict[str, float]]
Update = Callable[[Tensors, State, Tensors, Tensor], tuple[Tensors, State]]


@runtime_checkable
class ExtendedUpdate(Protocol):
    """An update that can also write in place, and be skipped on the device.

    Args:
      grads, opt_state, params, step: as for any update.
      donate: whether the result may be written into the memory of `params` and `opt_state`, whose contents are then
        lost.
      skip: 0-d bool; where it is true, the result is `params` and `opt_state` unchanged. None never skips.
    """

    def __call__(
        self,
        grads: Tensors,
        opt_state: State,
        params: Tensors,
        step: Int64[Tensor, ""],
        *,
        donate: bool = False,
        skip: Bool[Tensor, ""] | None = None,
    ) -> tuple[Tensors, State]: ...


class Optimizer(NamedTuple):
    """An optimizer. Your own needs only `init` and `update`.

    Attributes:
      init: `init(params) -> opt_state`, a pytree of tensors.
      update: `update(grads, opt_state, params, step) -> (new_params, new_opt_state)`, all dicts of tensors with the
        names of `params`, and `step` 0-d int64, the number of steps taken before. It changes none of its arguments.
      learning_rate: the schedule that it follows, which the training metrics report; None if it has none.
      extended_update: the same update with the arguments `donate` and `skip`; None if the optimizer does not support
        them. Steps then use `update` and select between its result and the old values.

    >>> def descend(grads, opt_state, params, step):
    ...     return {name: param - 0.5 * grads[name] for name, param in params.items()}, opt_state
    >>> optimizer = Optimizer(init=lambda params: {}, update=descend)
    >>> params, opt_state = optimizer.update({"w": torch.ones(2)}, {}, {"w": torch.zeros(2)}, torch.tensor(0))
    >>> params["w"].tolist()
    [-0.5, -0.5]
    """

    init: Callable[[Tensors], State]
    update: Update
    learning_rate: Schedule | None = None
    extended_update: ExtendedUpdate | None = None


class Transform(NamedTuple):
    """A transform of the gradients, applied before the optimizer. See `chain`.

    Attributes:
      init: `init(params) -> state`; None for a transform without state, whose `update` receives {}.
      update: `update(grads, state, params, step) -> (new_grads, new_state)`.

    >>> halve = Transform(None, lambda grads, state, params, step: ({n: g / 2 for n, g in grads.items()}, state))
    >>> halve.update({"w": torch.tensor(1.0)}, {}, {"w": torch.tensor(0.0)}, torch.tensor(0))
    ({'w': tensor(0.5000)}, {})
    """

    init: Callable[[Tensors], State] | None
    update: Update


def apply_update(
    optimizer: Optimizer,
    grads: Tensors,
    opt_state: State,
    params: Tensors,
    step: Int64[Tensor, ""],
    *,
    donate: bool = False,
    skip: Bool[Tensor, ""] | None = None,
) -> tuple[Tensors, State]:
    """The update of any optimizer, with `donate` and `skip` as for `ExtendedUpdate`. Where the optimizer has no
    extended update, nothing is written in place.

    >>> optimizer = Optimizer(lambda params: {}, lambda grads, opt_state, params, step: (grads, opt_state))
    >>> old, new = {"w": torch.tensor(1.0)}, {"w": torch.tensor(2.0)}
    >>> apply_update(optimizer, new, {}, old, torch.tensor(0), skip=torch.tensor(True))
    ({'w': tensor(1.)}, {})
    """
    if optimizer.extended_update is not None:
        return optimizer.extended_update(grads, opt_state, params, step, donate=donate, skip=skip)
    return select(skip, (params, opt_state), optimizer.update(grads, opt_state, params, step))


def select(skip: Bool[Tensor, ""] | None, old: T, new: T) -> T:
    """The pytree `old` where `skip` is true, else `new`."""
    if skip is None:
        return new
    return pytree.tree_map(  # type: ignore[no-any-return]
        lambda old_leaf, new_leaf: new_leaf if new_leaf is old_leaf else torch.where(skip, old_leaf, new_leaf), old, new
    )
