"""Optimizers as pairs of pure functions, equal to `torch.optim` step for step.

`update` is plain tensor arithmetic under `vmap` and `grad`. Where no transform is active it calls torch's fused
kernels, which say the same to rounding in a fraction of the time. In a compiled step such a kernel (but for Adagrad's)
is one node of the graph, where the arithmetic of hundreds of tensors would keep the compiler busy for a minute.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.optim.adagrad import adagrad as torch_adagrad
from torch.optim.adam import adam as torch_adam
from torch.optim.adamw import adamw as torch_adamw
from torch.optim.sgd import sgd as torch_sgd
from torch.utils import _pytree as pytree

from ftrain.schedules import Schedule, constant
from ftrain.tracing import tracing, transformed

T = TypeVar("T")
Tensors = dict[str, Tensor]
State = Any  # a pytree of tensors
Mask = Callable[[Tensors], dict[str, bool]]


class Optimizer(NamedTuple):
    """An optimizer.

    Attributes:
      init: `init(params)` gives its state.
      update: `update(grads, opt_state, params, step) -> (new_params, new_opt_state)`.
      learning_rate: the schedule it follows.
      options: which of two options `update` takes too. With donate=True the result may be written into the memory of
        `params` and `opt_state`, which are then gone. Where `skip`, a 0-d bool tensor, is true, the result is `params`
        and `opt_state` as they are.
    """

    init: Callable[[Tensors], State]
    update: Callable[..., tuple[Tensors, State]]
    learning_rate: Schedule | None = None
    options: tuple[str, ...] = ()


class Transform(NamedTuple):
    """What happens to the gradients before the optimizer.

    Attributes:
      init: `init(params)` gives its state; None for a transform without state, whose `update` gets {} for it.
      update: `update(grads, state, params, step) -> (grads, state)`.
    """

    init: Callable[[Tensors], State] | None
    update: Callable[[Tensors, State, Tensors, Tensor], tuple[Tensors, State]]


def sgd(
    lr: float | Tensor | Schedule,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
) -> Optimizer:
    """Stochastic gradient descent with momentum (Sutskever et al., 2013, in torch's form, without dampening).

        g = g + weight_decay p;   v = momentum v + g;   p = p - lr (g + momentum v if nesterov else v)

    Args:
      lr: learning rate: a number >= 0, a 0-d tensor (to differentiate or vmap over), or a schedule.
      momentum: in [0, 1).
      nesterov: needs momentum > 0.
      weight_decay: >= 0.
      mask: which parameters to decay; all if None. See `matrices_only`.

    Raises:
      ValueError: for a hyperparameter out of range.
    """
    schedule = _schedule(lr)
    _check_range("momentum", momentum, 0.0, 1.0)
    _check_range("weight_decay", weight_decay, 0.0)
    if nesterov and momentum == 0.0:
        raise ValueError("nesterov needs momentum > 0; got momentum 0")

    def init(params: Tensors) -> State:
        return {"momentum": _zeros(params)} if momentum else {}

    def update(
        grads: Tensors,
        opt_state: State,
        params: Tensors,
        step: Int64[Tensor, ""],
        *,
        donate: bool = False,
        skip: Bool[Tensor, ""] | None = None,
    ) -> tuple[Tensors, State]:
        rate = schedule(step)
        if not transformed(params, grads, rate) and not _ignored(skip):
            params, opt_state, grads = _owned(params, opt_state, grads, donate)
            for decay, names in _groups(params, weight_decay, mask):
                velocity = _listed(opt_state["momentum"], names) if momentum else []
                kernel = _sgd_kernel if torch.compiler.is_compiling() else _fused_sgd
                kernel(_listed(params, names), _listed(grads, names), velocity, rate, skip, momentum, decay, nesterov)
            return params, opt_state
        grads = _decayed(grads, params, weight_decay, mask)
        if not momentum:
            return _unless(skip, params, _descend(params, grads, rate)), opt_state
        velocities = {name: momentum * opt_state["momentum"][name] + grad for name, grad in grads.items()}
        ahead = {name: grads[name] + momentum * v for name, v in velocities.items()} if nesterov else velocities
        return _unless(skip, (params, opt_state), (_descend(params, ahead, rate), {"momentum": velocities}))

    return Optimizer(init, update, schedule, ("donate", "skip"))


def adam(
    lr: float | Tensor | Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
) -> Optimizer:
    """Adam (Kingma and Ba, 2015, algorithm 1). Weight decay, if any, is added to the gradient, as in
    `torch.optim.Adam`.

    Arguments and errors as for `adamw`.
    """
    return _adam(lr, b1, b2, eps, weight_decay, mask, decoupled=False)


def adamw(
    lr: float | Tensor | Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    mask: Mask | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2, in torch's form).

        p = p - lr weight_decay p
        m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2;   t = step + 1
        p = p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Args:
      lr: learning rate: a number >= 0, a 0-d tensor (to differentiate or vmap over), or a schedule.
      b1, b2: decay rates of the moments, in [0, 1).
      eps: > 0, keeps the quotient finite.
      weight_decay: >= 0.
      mask: which parameters to decay; all if None. See `matrices_only`.

    Raises:
      ValueError: for a hyperparameter out of range.
    """
    return _adam(lr, b1, b2, eps, weight_decay, mask, decoupled=True)


def adagrad(
    lr: float | Tensor | Schedule,
    *,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
) -> Optimizer:
    """Adagrad (Duchi, Hazan and Singer, 2011): s = s + g^2;   p = p - lr g / (sqrt(s) + eps).

    Arguments and errors as for `adam`.
    """
    schedule = _schedule(lr)
    _check_range("weight_decay", weight_decay, 0.0)
    _check_eps(eps)

    def init(params: Tensors) -> State:
        return {"sum": _zeros(params)}

    def update(
        grads: Tensors,
        opt_state: State,
        params: Tensors,
        step: Int64[Tensor, ""],
        *,
        donate: bool = False,
        skip: Bool[Tensor, ""] | None = None,
    ) -> tuple[Tensors, State]:
        rate = schedule(step)
        # torch's Adagrad takes the rate as a Python number, which only the CPU gives without waiting.
        if not tracing(params, grads, rate) and rate.device.type == "cpu" and skip is None:
            params, opt_state, grads = _owned(params, opt_state, grads, donate)
            for decay, names in _groups(params, weight_decay, mask):
                torch_adagrad(
                    _listed(params, names),
                    _listed(grads, names),
                    _listed(opt_state["sum"], names),
                    _torch_steps(step, len(names)),
                    foreach=True,
                    lr=rate.item(),
                    weight_decay=decay,
                    lr_decay=0.0,
                    eps=eps,
                    maximize=False,
                )
            return params, opt_state
        grads = _decayed(grads, params, weight_decay, mask)
        total = {name: opt_state["sum"][name] + grad * grad for name, grad in grads.items()}
        direction = {name: grad / (_sqrt(total[name]) + eps) for name, grad in grads.items()}
        return _unless(skip, (params, opt_state), (_descend(params, direction, rate), {"sum": total}))

    return Optimizer(init, update, schedule, ("donate", "skip"))


def clip_by_global_norm(max_norm: float) -> Transform:
    """Scales all gradients by min(1, max_norm / (norm + 1e-6)), with the L2 norm over all of them together (Pascanu,
    Mikolov and Bengio, 2013, algorithm 1, in the form of `torch.nn.utils.clip_grad_norm_`).

    Raises:
      ValueError: unless max_norm > 0.
    """
    if not max_norm > 0.0:
        raise ValueError(f"clip_by_global_norm needs max_norm > 0; got {max_norm}")

    def update(grads: Tensors, state: State, params: Tensors, step: Tensor) -> tuple[Tensors, State]:
        factor = torch.clamp(max_norm / (global_norm(grads) + 1e-6), max=1.0)
        return {name: grad * factor.to(grad.dtype) for name, grad in grads.items()}, state

    return Transform(None, update)


def chain(*parts: Transform | Optimizer) -> Optimizer:
    """Transforms in order, and an optimizer at the end, as one optimizer.

    Its state is that of the optimizer, where no transform has one; else a tuple of those of the transforms that have
    one and of the optimizer. So clipping can begin, or end, within a run.

    Raises:
      ValueError: unless the last part, and only the last, is an optimizer.
    """
    *transforms, optimizer = parts or (None,)
    if not isinstance(optimizer, Optimizer) or not all(isinstance(part, Transform) for part in transforms):
        raise ValueError(
            "chain takes transforms of the gradients, such as clip_by_global_norm, and one optimizer, last"
        )

    inits = [transform.init for transform in transforms if transform.init]

    def init(params: Tensors) -> State:
        last = optimizer.init(params)
        return (*(own(params) for own in inits), last) if inits else last

    def update(
        grads: Tensors,
        opt_state: State,
        params: Tensors,
        step: Int64[Tensor, ""],
        *,
        donate: bool = False,
        skip: Bool[Tensor, ""] | None = None,
    ) -> tuple[Tensors, State]:
        *states, last = opt_state if inits else (opt_state,)
        new_states = []
        for transform in transforms:
            state = states.pop(0) if transform.init else {}
            grads, new_state = transform.update(grads, state, params, step)
            if transform.init:
                new_states.append(_unless(skip, state, new_state))
        options: dict[str, Any] = {}
        if donate:
            options["donate"] = True
            # A transform may keep what the optimizer is about to write into.
            written = set(pytree.tree_leaves((params, last)))  # tensors hash by identity
            new_states = pytree.tree_map(lambda leaf: leaf.clone() if leaf in written else leaf, new_states)
        if skip is not None:
            options["skip"] = skip
        new_params, last = optimizer.update(grads, last, params, step, **options)
        return new_params, (*new_states, last) if inits else last

    return Optimizer(init, update, optimizer.learning_rate, optimizer.options)


def matrices_only(params: Tensors) -> dict[str, bool]:
    """A weight-decay mask that leaves out norms, biases, class tokens and layer scales: true for parameters with more
    than one entry along at least two of their dimensions. (Position embeddings are such, and are decayed.)"""
    return {name: sum(side > 1 for side in param.shape) >= 2 for name, param in params.items()}


def global_norm(tensors: Tensors) -> Float[Tensor, ""]:
    """The L2 norm of all tensors together."""
    if not tracing(tensors):
        return torch.nn.utils.get_total_norm(tensors.values())  # the same in fewer calls
    norms = [torch.linalg.vector_norm(tensor) for tensor in tensors.values()]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def _adam(
    lr: float | Tensor | Schedule,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    mask: Mask | None,
    decoupled: bool,
) -> Optimizer:
    schedule = _schedule(lr)
    _check_range("b1", b1, 0.0, 1.0)
    _check_range("b2", b2, 0.0, 1.0)
    _check_range("weight_decay", weight_decay, 0.0)
    _check_eps(eps)

    def init(params: Tensors) -> State:
        return {"exp_avg": _zeros(params), "exp_avg_sq": _zeros(params)}

    def update(
        grads: Tensors,
        opt_state: State,
        params: Tensors,
        step: Int64[Tensor, ""],
        *,
        donate: bool = False,
        skip: Bool[Tensor, ""] | None = None,
    ) -> tuple[Tensors, State]:
        rate = schedule(step)
        if not transformed(params, grads, rate) and not _ignored(skip):
            params, opt_state, grads = _owned(params, opt_state, grads, donate)
            for decay, names in _groups(params, weight_decay, mask):
                kernel = _adam_kernel if torch.compiler.is_compiling() else _fused_adam
                kernel(
                    _listed(params, names),
                    _listed(grads, names),
                    _listed(opt_state["exp_avg"], names),
                    _listed(opt_state["exp_avg_sq"], names),
                    rate,
                    step,
                    skip,
                    b1,
                    b2,
                    eps,
                    decay,
                    decoupled,
                )
            return params, opt_state
        before = params, opt_state
        if decoupled:
            params = (
                _descend(params, _decayed(_zeros(params), params, weight_decay, mask), rate) if weight_decay else params
            )
        else:
            grads = _decayed(grads, params, weight_decay, mask)
        mean = {name: b1 * opt_state["exp_avg"][name] + (1.0 - b1) * grad for name, grad in grads.items()}
        square = {name: b2 * opt_state["exp_avg_sq"][name] + (1.0 - b2) * grad * grad for name, grad in grads.items()}
        bias1, bias2 = _bias_correction(b1, step), torch.sqrt(_bias_correction(b2, step))
        direction = {
            name: mean[name] / (_sqrt(square[name]) / bias2.to(grad.dtype) + eps) for name, grad in grads.items()
        }
        after = _descend(params, direction, rate / bias1), {"exp_avg": mean, "exp_avg_sq": square}
        return _unless(skip, before, after)

    return Optimizer(init, update, schedule, ("donate", "skip"))


def _fused_adam(
    params: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    rate: Tensor,
    step: Tensor,
    skip: Tensor | None,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """A step of Adam in place; the tensors of a parameter are laid out in memory alike."""
    (torch_adamw if decoupled else torch_adam)(
        params,
        grads,
        means,
        squares,
        [],
        _torch_steps(step, len(params)),
        fused=True,
        found_inf=_as_found_inf(skip),
        amsgrad=False,
        beta1=b1,
        beta2=b2,
        lr=_fused_rate(rate),
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )


def _fused_sgd(
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    rate: Tensor,
    skip: Tensor | None,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """A step of gradient descent in place; the tensors of a parameter are laid out in memory alike."""
    torch_sgd(
        params,
        grads,
        [*velocities] if momentum else [None] * len(params),
        fused=True,
        found_inf=_as_found_inf(skip),
        weight_decay=weight_decay,
        momentum=momentum,
        lr=_fused_rate(rate),
        dampening=0.0,
        nesterov=nesterov,
        maximize=False,
    )


# The same as nodes of a compiled graph, in which the compiler must not lay out the tensors otherwise.
_adam_kernel = torch.library.custom_op(
    "ftrain::adam_",
    _fused_adam,
    mutates_args=("params", "means", "squares"),
    schema="(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] means, Tensor(c!)[] squares, Tensor rate, Tensor step, "
    "Tensor? skip, float b1, float b2, float eps, float weight_decay, bool decoupled) -> ()",
    tags=(torch.Tag.needs_exact_strides,),
)
_sgd_kernel = torch.library.custom_op(
    "ftrain::sgd_",
    _fused_sgd,
    mutates_args=("params", "velocities"),
    schema="(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] velocities, Tensor rate, Tensor? skip, float momentum, "
    "float weight_decay, bool nesterov) -> ()",
    tags=(torch.Tag.needs_exact_strides,),
)


def _ignored(skip: Tensor | None) -> bool:
    """Whether the fused kernels would not look at `skip`, as those of Apple's GPUs do not."""
    return skip is not None and skip.device.type == "mps"


def _unless(skip: Tensor | None, before: T, after: T) -> T:
    if skip is None:
        return after
    return pytree.tree_map(lambda old, new: torch.where(skip, old, new), before, after)  # type: ignore[no-any-return]


def _bias_correction(decay: float, step: Tensor) -> Tensor:
    """1 - decay ** (step + 1), without the cancellation that the plain form suffers in float32."""
    time = (step + 1).to(torch.float32 if step.device.type == "mps" else torch.float64)
    return -torch.expm1(time * math.log(decay)) if decay else torch.ones_like(time)


def _sqrt(square: Tensor) -> Tensor:
    """The square root, with the derivative 0 at 0 instead of infinity: a parameter whose gradients were all zero so far
    has second moment 0, and must not turn a hypergradient into nan."""
    positive = square > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, square, 1.0)), square)


def _descend(params: Tensors, direction: Tensors, rate: Tensor) -> Tensors:
    return {name: param - rate.to(param.dtype) * direction[name] for name, param in params.items()}


def _decayed(grads: Tensors, params: Tensors, weight_decay: float, mask: Mask | None) -> Tensors:
    decays = {name: decay for decay, names in _groups(params, weight_decay, mask) for name in names}
    return {name: grads[name] + decays[name] * params[name] if decays[name] else grads[name] for name in params}


def _groups(params: Tensors, weight_decay: float, mask: Mask | None) -> list[tuple[float, list[str]]]:
    """The names of the parameters with weight decay and without."""
    if weight_decay == 0.0 or mask is None:
        return [(weight_decay, list(params))]
    decays = mask(params)
    groups = [(weight_decay, [n for n in params if decays[n]]), (0.0, [n for n in params if not decays[n]])]
    return [(decay, names) for decay, names in groups if names]


def _owned(params: Tensors, opt_state: State, grads: Tensors, donate: bool) -> tuple[Tensors, State, Tensors]:
    """Tensors for the in-place kernels: parameters and state that they may write into, the caller's if donated, else
    copies; and the gradients. All laid out in memory as the parameters, because the fused kernels walk their lists in
    memory order without a check."""

    def laid_out(tensors: Tensors) -> Tensors:
        return {
            name: tensor if tensor.stride() == params[name].stride() else torch.empty_like(params[name]).copy_(tensor)
            for name, tensor in tensors.items()
        }

    if donate:
        params = {name: tensor if _is_dense(tensor) else tensor.clone() for name, tensor in params.items()}
    else:
        params, opt_state = pytree.tree_map(torch.clone, (params, opt_state))
    return params, {key: laid_out(tensors) for key, tensors in opt_state.items()}, laid_out(grads)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills its memory without gaps, in whatever order."""
    return tensor.is_contiguous() or tensor.stride() == torch.empty_like(tensor, device="meta").stride()


def _listed(tensors: Tensors, names: list[str]) -> list[Tensor]:
    return [tensors[name] for name in names]


def _fused_rate(rate: Tensor) -> float | Tensor:
    return rate.item() if rate.device.type == "cpu" else rate.to(torch.float32)


def _torch_steps(step: Tensor, count: int) -> list[Tensor]:
    """One counter per parameter, because torch's kernels increment each in place."""
    return list(step.to(torch.float32).repeat(count).unbind())


def _as_found_inf(skip: Tensor | None) -> Tensor | None:
    return None if skip is None else skip.to(torch.float32)


def _zeros(params: Tensors) -> Tensors:
    return {name: torch.zeros_like(param) for name, param in params.items()}


def _schedule(lr: float | Tensor | Schedule) -> Schedule:
    if isinstance(lr, Tensor):
        return lambda step: lr
    if callable(lr):
        return lr
    _check_range("lr", lr, 0.0)
    return constant(lr)


def _check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value < high:
        raise ValueError(f"{name} is a number >= {low:g}{f' and < {high:g}' if high < math.inf else ''}; got {value}")


def _check_eps(eps: float) -> None:
    if not eps > 0.0:
        raise ValueError(f"eps is a number > 0; got {eps}")
