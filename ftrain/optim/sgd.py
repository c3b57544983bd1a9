"""Stochastic gradient descent."""

from __future__ import annotations

from torch import Tensor

from ftrain.optim import _fused
from ftrain.optim.arithmetic import as_schedule, check_range, zeros
from ftrain.optim.base import LrFactors, Mask, Optimizer, State, Tensors
from ftrain.optim.groups import Grouping
from ftrain.schedules import Schedule


def sgd(
    lr: float | Tensor | Schedule,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    lr_factors: LrFactors | None = None,
) -> Optimizer:
    """Stochastic gradient descent with momentum (Sutskever et al., 2013, in torch's form, without dampening).

        g = g + weight_decay p;   v = momentum v + g;   p = p - lr (g + momentum v if nesterov else v)

    Args:
      lr: learning rate: a number >= 0, a 0-d float tensor (to differentiate or vmap over), or a schedule.
      momentum: in [0, 1).
      nesterov: whether to use Nesterov's momentum, which needs momentum > 0.
      weight_decay: >= 0.
      mask: which parameters to decay; None for all. See `matrices_only`.
      lr_factors: `params -> {name: factor}`: numbers >= 0 by which the learning rate of each parameter is multiplied;
        None for 1.

    Returns:
      An optimizer with one tensor of state for each parameter, or none if momentum is 0.

    Raises:
      ValueError: for a hyperparameter out of range.

    >>> import torch
    >>> optimizer, params = sgd(0.1, momentum=0.9), {"w": torch.tensor(1.0)}
    >>> params, _ = optimizer.update({"w": torch.tensor(2.0)}, optimizer.init(params), params, torch.tensor(0))
    >>> round(params["w"].item(), 4)
    0.8
    """
    schedule = as_schedule(lr)
    check_range("momentum", momentum, 0.0, 1.0)
    check_range("weight_decay", weight_decay, 0.0)
    grouping = Grouping(weight_decay, mask, lr_factors)
    if nesterov and momentum == 0.0:
        raise ValueError("`nesterov=True` needs `momentum` > 0; got 0")

    def init(params: Tensors) -> State:
        return {"momentum": zeros(params)} if momentum else {}

    def arithmetic(
        grads: Tensors, opt_state: State, params: Tensors, step: Tensor, rate: Tensor
    ) -> tuple[Tensors, State]:
        grads = grouping.add_decay(grads, params)
        if not momentum:
            return grouping.descend(params, grads, rate), opt_state
        velocities = {name: momentum * opt_state["momentum"][name] + grad for name, grad in grads.items()}
        ahead = {name: grads[name] + momentum * v for name, v in velocities.items()} if nesterov else velocities
        return grouping.descend(params, ahead, rate), {"momentum": velocities}

    kernel = _fused.sgd(momentum=momentum, nesterov=nesterov)
    return _fused.with_kernel(init, arithmetic, kernel, schedule=schedule, grouping=grouping)
