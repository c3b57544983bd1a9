"""Adagrad."""

from __future__ import annotations

from torch import Tensor

from ftrain.optim import _fused
from ftrain.optim.arithmetic import as_schedule, check_eps, check_range, sqrt, zeros
from ftrain.optim.base import LrFactors, Mask, Optimizer, State, Tensors
from ftrain.optim.groups import Grouping
from ftrain.schedules import Schedule


def adagrad(
    lr: float | Tensor | Schedule,
    *,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    lr_factors: LrFactors | None = None,
) -> Optimizer:
    """Adagrad (Duchi, Hazan and Singer, 2011), with weight decay added to the gradient.

        g = g + weight_decay p;   s = s + g^2;   p = p - lr g / (sqrt(s) + eps)

    Args:
      lr: learning rate: a number >= 0, a 0-d float tensor (to differentiate or vmap over), or a schedule.
      eps: > 0; keeps the quotient finite.
      weight_decay: >= 0.
      mask: which parameters to decay; None for all. See `matrices_only`.
      lr_factors: `params -> {name: factor}`: numbers >= 0 by which the learning rate of each parameter is multiplied;
        None for 1.

    Returns:
      An optimizer with one tensor of state for each parameter.

    Raises:
      ValueError: for a hyperparameter out of range.

    >>> import torch
    >>> optimizer, params = adagrad(0.1), {"w": torch.tensor(1.0)}
    >>> params, _ = optimizer.update({"w": torch.tensor(2.0)}, optimizer.init(params), params, torch.tensor(0))
    >>> round(params["w"].item(), 4)
    0.9
    """
    schedule = as_schedule(lr)
    check_range("weight_decay", weight_decay, 0.0)
    grouping = Grouping(weight_decay, mask, lr_factors)
    check_eps(eps)

    def init(params: Tensors) -> State:
        return {"sum": zeros(params)}

    def arithmetic(
        grads: Tensors, opt_state: State, params: Tensors, step: Tensor, rate: Tensor
    ) -> tuple[Tensors, State]:
        grads = grouping.add_decay(grads, params)
        total = {name: opt_state["sum"][name] + grad * grad for name, grad in grads.items()}
        direction = {name: grad / (sqrt(total[name]) + eps) for name, grad in grads.items()}
        return grouping.descend(params, direction, rate), {"sum": total}

    kernel = _fused.adagrad(eps=eps)
    return _fused.with_kernel(init, arithmetic, kernel, schedule=schedule, grouping=grouping)
