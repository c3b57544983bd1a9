"""Adam, with coupled and with decoupled weight decay."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ftrain.optim import _fused
from ftrain.optim.arithmetic import as_schedule, check_eps, check_range, sqrt, zeros
from ftrain.optim.base import LrFactors, Mask, Optimizer, State, Tensors
from ftrain.optim.groups import Grouping
from ftrain.schedules import Schedule


def adam(
    lr: float | Tensor | Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    lr_factors: LrFactors | None = None,
) -> Optimizer:
    """Adam (Kingma and Ba, 2015, algorithm 1). Weight decay, if any, is added to the gradient, as in
    `torch.optim.Adam`.

    Args, Returns and Raises as for `adamw`.

    >>> optimizer, params = adam(0.1), {"w": torch.tensor(1.0)}
    >>> params, _ = optimizer.update({"w": torch.tensor(2.0)}, optimizer.init(params), params, torch.tensor(0))
    >>> round(params["w"].item(), 4)
    0.9
    """
    return _adam(lr, b1, b2, eps, Grouping(weight_decay, mask, lr_factors), decoupled=False)


def adamw(
    lr: float | Tensor | Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    mask: Mask | None = None,
    lr_factors: LrFactors | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2, in torch's form).

        p = p - lr weight_decay p
        m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2;   t = step + 1
        p = p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Args:
      lr: learning rate: a number >= 0, a 0-d float tensor (to differentiate or vmap over), or a schedule.
      b1, b2: decay rates of the moments, in [0, 1).
      eps: > 0; keeps the quotient finite.
      weight_decay: >= 0.
      mask: which parameters to decay; None for all. See `matrices_only`.
      lr_factors: `params -> {name: factor}`: numbers >= 0 by which the learning rate of each parameter is multiplied;
        None for 1.

    Returns:
      An optimizer with two tensors of state for each parameter.

    Raises:
      ValueError: for a hyperparameter out of range.

    >>> optimizer, params = adamw(0.1, weight_decay=0.5), {"w": torch.tensor(1.0)}
    >>> params, _ = optimizer.update({"w": torch.tensor(2.0)}, optimizer.init(params), params, torch.tensor(0))
    >>> round(params["w"].item(), 4)  # 1 - 0.1 x 0.5 - 0.1
    0.85
    """
    return _adam(lr, b1, b2, eps, Grouping(weight_decay, mask, lr_factors), decoupled=True)


def _adam(
    lr: float | Tensor | Schedule,
    b1: float,
    b2: float,
    eps: float,
    grouping: Grouping,
    *,
    decoupled: bool,
) -> Optimizer:
    schedule = as_schedule(lr)
    check_range("b1", b1, 0.0, 1.0)
    check_range("b2", b2, 0.0, 1.0)
    check_range("weight_decay", grouping.weight_decay, 0.0)
    check_eps(eps)

    def init(params: Tensors) -> State:
        return {"exp_avg": zeros(params), "exp_avg_sq": zeros(params)}

    def arithmetic(
        grads: Tensors, opt_state: State, params: Tensors, step: Tensor, rate: Tensor
    ) -> tuple[Tensors, State]:
        if not decoupled:
            grads = grouping.add_decay(grads, params)
        elif grouping.weight_decay:
            params = grouping.descend(params, grouping.add_decay(zeros(params), params), rate)
        mean = {name: b1 * opt_state["exp_avg"][name] + (1.0 - b1) * grad for name, grad in grads.items()}
        square = {name: b2 * opt_state["exp_avg_sq"][name] + (1.0 - b2) * grad * grad for name, grad in grads.items()}
        bias1, bias2 = _bias_correction(b1, step), torch.sqrt(_bias_correction(b2, step))
        direction = {
            name: mean[name] / (sqrt(square[name]) / bias2.to(grad.dtype) + eps) for name, grad in grads.items()
        }
        return grouping.descend(params, direction, rate / bias1), {"exp_avg": mean, "exp_avg_sq": square}

    kernel = _fused.adam(b1=b1, b2=b2, eps=eps, decoupled=decoupled)
    return _fused.with_kernel(init, arithmetic, kernel, schedule=schedule, grouping=grouping)


def _bias_correction(decay: float, step: Tensor) -> Tensor:
    """1 - decay ** (step + 1), without the cancellation that the plain form suffers in float32."""
    time = (step + 1).to(torch.float32 if step.device.type == "mps" else torch.float64)
    return -torch.expm1(time * math.log(decay)) if decay else torch.ones_like(time)
