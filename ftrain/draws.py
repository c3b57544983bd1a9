"""The random operations of a network, drawn from a key instead of torch's global generators.

A forward pass runs inside `keyed_draws(key)`. Its n-th draw uses `fold_in(key, n)`, so a draw depends only on the key
and on its position in the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import ftrain.random
from ftrain.torch_private import FRACTIONAL_MAX_POOLS, without_override_check
from ftrain.tracing import tracing

# The public operations that torch tags as seeded by a generator; tests/test_module.py compares the list with the tags.
UNKNOWN_RANDOM = frozenset(
    [
        "alpha_dropout",
        "alpha_dropout_",
        "bernoulli",
        "bernoulli_",
        "binomial",
        "cauchy",
        "cauchy_",
        "dropout",
        "dropout_",
        "exponential",
        "exponential_",
        "feature_alpha_dropout",
        "feature_alpha_dropout_",
        "feature_dropout",
        "feature_dropout_",
        "geometric",
        "geometric_",
        "log_normal",
        "log_normal_",
        "multinomial",
        "native_dropout",
        "normal",
        "normal_",
        "normal_functional",
        "poisson",
        "rand",
        "rand_like",
        "randint",
        "randint_like",
        "randn",
        "randn_like",
        "random",
        "random_",
        "randperm",
        "rrelu",
        "rrelu_",
        "rrelu_with_noise",
        "rrelu_with_noise_",
        "rrelu_with_noise_functional",
        "uniform",
        "uniform_",
        "_sample_dirichlet",
        "_standard_gamma",
    ]
)
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


class keyed_draws(TorchFunctionMode):
    """A context in which all kinds of dropout draw from `key`, and other random operations are errors."""

    def __init__(self, key: Tensor | None) -> None:
        super().__init__()
        self.key = key
        self.count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.unflatten:
            func = torch.unflatten  # torch 2.11 cannot trace the method, a Python function that calls super()
        if func in _KEYED:
            return _KEYED[func](self, *args, **kwargs)
        if func in _COMPOSED:
            with self:
                return _COMPOSED[func](*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in UNKNOWN_RANDOM:
            raise NotImplementedError(
                f"the network calls the random operation {name}, which ftrain cannot draw from a key; use dropout, "
                "alpha or feature dropout, stochastic depth (bernoulli), rrelu or attention dropout, or draw the "
                "numbers outside the network and pass them in as inputs"
            )
        if name in RECURRENT:
            _refuse_recurrent_dropout(name, args)
        return func(*args, **kwargs)

    def next_key(self, purpose: str) -> Tensor:
        if self.key is None:
            raise ValueError(
                f"the network draws random numbers ({purpose}) but was given no key to draw them from; pass "
                "key=ftrain.random.key(seed) to apply"
            )
        self.count += 1
        return ftrain.random.fold_in(self.key, self.count - 1)


def _kept(mode: keyed_draws, purpose: str, p: float, shape: Sequence[int], like: Tensor) -> Tensor:
    """1 with probability 1 - p, else 0, in the dtype of `like`."""
    return ftrain.random.bernoulli(mode.next_key(purpose), 1.0 - p, shape).to(like.dtype)


def _scaled(mode: keyed_draws, purpose: str, input: Tensor, p: float, shape: Sequence[int], inplace: bool) -> Tensor:
    factor = _kept(mode, purpose, p, shape, input) * (1.0 / (1.0 - p) if p < 1.0 else 0.0)
    return input.mul_(factor) if inplace else input * factor


def _dropout(mode: keyed_draws, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0.0:
        return input
    return _scaled(mode, "dropout", input, p, input.shape, inplace)


def _torch_dropout(mode: keyed_draws, input: Tensor, p: float, train: bool) -> Tensor:
    return _dropout(mode, input, p, train)


def _feature_dropout(unbatched_ndim: int | None) -> Callable[..., Tensor]:
    """Dropout of whole channels. The first dimension of an input is the channels if it has `unbatched_ndim` dimensions,
    and the batch otherwise."""

    def dropout(
        mode: keyed_draws, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0.0:
            return input
        leading = 1 if input.ndim == unbatched_ndim else 2
        shape = (*input.shape[:leading], *(1 for _ in input.shape[leading:]))
        return _scaled(mode, "feature dropout", input, p, shape, inplace)

    return dropout


def _alpha_dropout(feature: bool) -> Callable[..., Tensor]:
    """Klambauer et al., Self-normalizing neural networks (2017), section 3: dropped units get the value at which SELU
    saturates, and an affine map preserves mean and variance."""
    saturation = -1.7580993408473766  # -(scale * alpha) of SELU

    def dropout(
        mode: keyed_draws, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0.0:
            return input
        shape = (*input.shape[:2], *(1 for _ in input.shape[2:])) if feature else input.shape
        kept = _kept(mode, "alpha dropout", p, shape, input)
        scale = 1.0 / math.sqrt((saturation**2 * p + 1.0) * (1.0 - p)) if p < 1.0 else 0.0
        output = scale * (input * kept + saturation * (1.0 - kept) - p * saturation)
        return input.copy_(output) if inplace else output

    return dropout


def _rrelu(
    mode: keyed_draws,
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    if training:
        slope = ftrain.random.uniform(mode.next_key("rrelu"), input.shape, minval=lower, maxval=upper).to(input.dtype)
        output = torch.where(input >= 0, input, input * slope)
    else:
        output = F.leaky_relu(input, (lower + upper) / 2)
    return input.copy_(output) if inplace else output


def _bernoulli_(mode: keyed_draws, input: Tensor, p: float | Tensor = 0.5, *, generator: None = None) -> Tensor:
    return input.copy_(ftrain.random.bernoulli(mode.next_key("bernoulli_"), p, input.shape))


def _bernoulli(mode: keyed_draws, input: Tensor, p: float | None = None, *, generator: None = None) -> Tensor:
    probability = input if p is None else p
    return ftrain.random.bernoulli(mode.next_key("bernoulli"), probability, input.shape).to(input.dtype)


def _empty(mode: keyed_draws, *args: Any, **kwargs: Any) -> Tensor:
    # The network may create a tensor to write draws into. Under vmap over keys it needs the batch dimension too.
    simple = mode.key is not None and kwargs.keys() <= {"dtype", "device"}
    if not simple or mode.key is None:
        return torch.empty(*args, **kwargs)
    shape = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
    kwargs.setdefault("dtype", torch.get_default_dtype())
    return mode.key.new_empty(shape, **kwargs)


def _attention(
    mode: keyed_draws,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    # torch's fused kernels have no second derivative, and the CPU's has no rule for vmap. Compiled graphs on other
    # devices keep them for their speed.
    plain = tracing(query) and (query.device.type == "cpu" or not torch.compiler.is_compiling())
    if dropout_p == 0.0 and not plain:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal, **kwargs)
    scale = kwargs.get("scale")
    if kwargs.get("enable_gqa"):
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = torch.softmax(scores, dim=-1)
    if dropout_p == 0.0:
        return weights @ value
    return _scaled(mode, "attention dropout", weights, dropout_p, weights.shape, False) @ value


def _refuse_recurrent_dropout(name: str, args: Sequence[Any]) -> None:
    # The arguments are ..., has_biases, num_layers, dropout, train, ...; has_biases is the first bool of both variants.
    has_biases = next(position for position, value in enumerate(args) if isinstance(value, bool))
    dropout, train = args[has_biases + 2 : has_biases + 4]
    if train and dropout > 0:
        raise NotImplementedError(
            f"the network's {name} applies dropout between its layers inside one fused operation, which ftrain cannot "
            "draw from a key; set its dropout to 0 and put nn.Dropout between single-layer modules"
        )


_KEYED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.dropout: _dropout,
    torch.dropout: _torch_dropout,
    F.dropout1d: _feature_dropout(unbatched_ndim=2),
    F.dropout2d: _feature_dropout(unbatched_ndim=None),
    F.dropout3d: _feature_dropout(unbatched_ndim=4),
    F.alpha_dropout: _alpha_dropout(feature=False),
    F.feature_alpha_dropout: _alpha_dropout(feature=True),
    F.rrelu: _rrelu,
    F.scaled_dot_product_attention: _attention,
    torch.Tensor.bernoulli_: _bernoulli_,
    torch.bernoulli: _bernoulli,
    torch.empty: _empty,
}
# Functions made of several operations, which are drawn from the key one by one.
_COMPOSED: dict[Callable[..., Any], Callable[..., Any]] = {
    function: without_override_check(FRACTIONAL_MAX_POOLS.get(function, function))
    for function in (
        F.multi_head_attention_forward,
        F.gumbel_softmax,
        F.fractional_max_pool2d,
        F.fractional_max_pool3d,
        F.fractional_max_pool2d_with_indices,
        F.fractional_max_pool3d_with_indices,
    )
}
