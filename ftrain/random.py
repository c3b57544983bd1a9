"""Random numbers as functions of a key: threefry2x32 in plain tensor arithmetic, with the bits of `jax.random`.

A key is an int64 tensor [2] that holds two 32-bit words. Nothing here reads or moves torch's global generators. Every
function runs under `torch.func.vmap` (a key per member) and `torch.compile`. Integers and uniform floats are the same
on every device; `normal` and `beta` go through the device's own logarithm and inverse error function and may differ in
the last bits.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), with the counter layout that JAX uses
when `jax_threefry_partitionable` is on (its default).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ftrain.tracing import tracing

__all__ = ["bernoulli", "beta", "bits", "fold_in", "key", "normal", "permutation", "randint", "split", "uniform"]

Words = TypeVar("Words", int, Tensor)
_WORD = 0xFFFFFFFF
_CANDIDATES = 8
_GILES_CENTRE = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_GILES_TAIL = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def key(seed: int, *, device: torch.device | str | None = None) -> Int64[Tensor, "2"]:
    """The key of a seed. `jax.random.key(seed)` has the same words for seeds below 2**32, and with x64 for all.

    Args:
      seed: an integer in [0, 2**64).
      device: the device of the key; torch's default device if None.

    Raises:
      ValueError: for a seed outside that range.

    >>> key(2**32 + 5)
    tensor([1, 5])
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"`seed` must be an integer from 0 to 2**64 - 1; got {seed}")
    return torch.tensor([seed >> 32, seed & _WORD], dtype=torch.int64, device=device)


def split(key: Int64[Tensor, "2"], num: int = 2) -> Int64[Tensor, "num 2"]:
    """`num` new keys, independent of each other. They are fold_in(key, 0), fold_in(key, 1), ...

    >>> split(key(0)).shape
    torch.Size([2, 2])
    """
    return fold_in(key, torch.arange(num, device=key.device))


def fold_in(key: Int64[Tensor, "2"], data: int | Int64[Tensor, "*n"]) -> Int64[Tensor, "*n 2"]:
    """A new key for the purpose that `data` numbers: a step, an epoch, the index of an example.

    Args:
      key: the key to derive the new one from.
      data: an integer in [0, 2**32), or a tensor of them, which gives a key for each.

    >>> fold_in(key(0), torch.arange(3)).shape
    torch.Size([3, 2])
    """
    is_one = isinstance(data, int) or (data.ndim == 0 and data.device.type == "cpu")
    if is_one and key.ndim == 1 and key.device.type == "cpu" and not tracing(key):
        # Python integers take a tenth of the time of tensors with one element.
        k0, k1, number = *key.tolist(), int(data)
        return torch.tensor(_threefry(k0, k1, number >> 32 & _WORD, number & _WORD), dtype=torch.int64)
    if isinstance(data, int):
        data = torch.full((), data, dtype=torch.int64, device=key.device)
    return torch.stack(_threefry(key[..., 0], key[..., 1], data >> 32 & _WORD, data & _WORD), dim=-1)


def bits(key: Int64[Tensor, "2"], shape: Sequence[int] = ()) -> Int64[Tensor, "..."]:
    """Integers uniform in [0, 2**32), as int64 because torch's uint32 has little arithmetic.

    >>> bits(key(0)).item()  # as jax.random.bits gives
    4070199207
    """
    high, low = _draw(key, shape)
    return high ^ low


def uniform(
    key: Int64[Tensor, "2"],
    shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    minval: float = 0.0,
    maxval: float = 1.0,
) -> Float[Tensor, "..."]:
    """Floats uniform in [minval, maxval): 23 random bits each, or 52 for float64.

    Raises:
      TypeError: for a dtype other than float32 and float64. Draw in float32 and convert for the smaller ones.

    >>> uniform(key(0), (2, 3), minval=-1.0).shape
    torch.Size([2, 3])
    """
    if dtype == torch.float64:
        high, low = _draw(key, shape)
        unit = (high << 20 | low >> 12).to(dtype) * 2.0**-52
    elif dtype == torch.float32:
        unit = (bits(key, shape) >> 9).to(dtype) * 2.0**-23
    else:
        raise TypeError(f"`dtype` must be torch.float32 or torch.float64; got {dtype}")
    if (minval, maxval) == (0.0, 1.0):
        return unit
    # Scaled in float64 and rounded once, as by the fused multiply-add that XLA uses.
    span = torch.full((), maxval - minval, dtype=dtype, device=unit.device)
    scaled = unit.to(_accumulation_dtype(unit)) * span + minval
    return torch.clamp_min(scaled.to(dtype), minval)


def normal(
    key: Int64[Tensor, "2"], shape: Sequence[int] = (), dtype: torch.dtype = torch.float32
) -> Float[Tensor, "..."]:
    """Standard normal floats: sqrt(2) * erfinv(u) of a uniform draw u in (-1, 1).

    In float32 the inverse error function is the polynomial of Giles, "Approximating the erfinv function" (2012), which
    XLA uses too, so the values are those of `jax.random.normal` to 2 units in the last place. In float64 it is torch's,
    within 2 units of the true value, while XLA's is off by up to 24.

    >>> normal(key(0), (2, 3)).shape
    torch.Size([2, 3])
    """
    draw = uniform(key, shape, dtype, -1.0 + torch.finfo(dtype).eps / 2, 1.0)
    return math.sqrt(2.0) * (torch.erfinv(draw) if dtype == torch.float64 else _giles_erfinv(draw))


def beta(
    key: Int64[Tensor, "2"], a: float, b: float, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32
) -> Float[Tensor, "..."]:
    """Floats in [0, 1] from the beta distribution; not the bits of `jax.random.beta`.

    The draw is x / (x + y) of two gamma draws, computed from their logarithms, which do not underflow if a or b is
    small. A gamma draw is the first accepted of 8 candidates (Marsaglia and Tsang, A simple method for generating gamma
    variables, 2000). With a probability below 3e-11 none is accepted; the draw is then that of a candidate whose normal
    deviate is 0.

    Args:
      a, b: positive.
      dtype: float32 or float64.

    Raises:
      ValueError: unless a and b are positive.

    >>> draws = beta(key(0), 2.0, 6.0, (1000,))
    >>> abs(draws.mean().item() - 0.25) < 0.02
    True
    """
    if not (a > 0.0 and b > 0.0):
        raise ValueError(f"`a` and `b` must be positive; got {a} and {b}")
    # One draw for everything, because each draw adds about 170 operations to a graph.
    draws = uniform(key, (2, 2 * _CANDIDATES + 1, *shape), dtype)
    # In float64, so that rounding hardly ever decides which candidate is accepted, and never exactly 0 or 1.
    draws = draws.to(_accumulation_dtype(draws)) + torch.finfo(dtype).eps / 2
    return torch.sigmoid(_log_gamma(draws[0], a) - _log_gamma(draws[1], b)).to(dtype)


def bernoulli(
    key: Int64[Tensor, "2"], p: float | Float[Tensor, "..."] = 0.5, shape: Sequence[int] | None = None
) -> Bool[Tensor, "..."]:
    """True with probability `p`, in [0, 1]; a tensor `p` must broadcast to `shape`, whose default is the shape of `p`.

    >>> bernoulli(key(0), torch.tensor([0.0, 1.0])).tolist()
    [False, True]
    """
    if shape is None:
        shape = p.shape if isinstance(p, Tensor) else ()
    return uniform(key, shape) < p


def randint(key: Int64[Tensor, "2"], shape: Sequence[int], minval: int, maxval: int) -> Int64[Tensor, "..."]:
    """Integers uniform in [minval, maxval), both within int32; biased by less than 2**-32 * (maxval - minval).

    Raises:
      ValueError: unless -2**31 <= minval < maxval <= 2**31 - 1.

    >>> bool((randint(key(0), (100,), 3, 6) >= 3).all())
    True
    """
    if not -(2**31) <= minval < maxval <= 2**31 - 1:
        raise ValueError(
            f"-2**31 <= minval < maxval <= 2**31 - 1 must hold; got `minval` {minval} and `maxval` {maxval}"
        )
    span = maxval - minval
    high_key, low_key = split(key)
    wrap = (2**16 % span) ** 2 % 2**32 % span  # as JAX computes 2**32 % span in 32-bit words
    offset = (bits(high_key, shape) % span * wrap + bits(low_key, shape) % span) & _WORD
    return minval + offset % span


def permutation(key: Int64[Tensor, "2"], n: int) -> Int64[Tensor, "n"]:
    """The integers 0 to n - 1 in random order, by repeated stable sorts on random 32-bit keys.

    Two rounds are enough up to about 1.6 million (the chance that a pair of elements ties in every round is
    negligible).

    >>> sorted(permutation(key(0), 5).tolist())
    [0, 1, 2, 3, 4]
    """
    order = torch.arange(n, device=key.device)
    for _ in range(math.ceil(3 * math.log(max(1, n)) / math.log(_WORD))):
        key, round_key = split(key).unbind()
        order = order[torch.sort(bits(round_key, (n,)), stable=True).indices]
    return order


def _draw(key: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Two 32-bit words for each element of `shape`."""
    position = torch.arange(math.prod(shape), device=key.device).reshape(tuple(shape))
    return _threefry(key[..., 0], key[..., 1], position >> 32, position & _WORD)


def _threefry(k0: Words, k1: Words, x0: Words, x1: Words) -> tuple[Words, Words]:
    """Threefry-2x32 with 20 rounds, on 32-bit words in int64 tensors or Python integers."""
    schedule = (k0, k1, k0 ^ k1 ^ 0x1BD11BDA)
    x0 = x0 + k0 & _WORD
    x1 = x1 + k1 & _WORD
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1 & _WORD
            x1 = (x1 << rotation | x1 >> 32 - rotation) & _WORD ^ x0
        x0 = x0 + schedule[(group + 1) % 3] & _WORD
        x1 = x1 + schedule[(group + 2) % 3] + group + 1 & _WORD
    return x0, x1


def _log_gamma(draws: Tensor, a: float) -> Tensor:
    """The logarithm of a draw from the gamma distribution with the shape parameter `a`.

    Args:
      draws: uniform numbers in (0, 1), [1 + 2 candidates, ...]: one for the whole draw, then a deviate for each
        candidate, then a height for each.
    """
    d = (a if a >= 1.0 else a + 1.0) - 1.0 / 3.0
    deviate, height = draws[1 : 1 + _CANDIDATES], draws[1 + _CANDIDATES :]
    x = math.sqrt(2.0) * torch.erfinv(2.0 * deviate - 1.0)
    root = 1.0 + x / math.sqrt(9.0 * d)
    log_v = 3.0 * torch.log(root)  # nan for a negative root, which is therefore rejected
    accepted = torch.log(height) < 0.5 * x.square() + d * (1.0 - root**3 + log_v)
    first = accepted & (accepted.cumsum(dim=0) == 1)
    log_draw = math.log(d) + torch.where(first, log_v, 0.0).sum(dim=0)
    return log_draw + torch.log(draws[0]) / a if a < 1.0 else log_draw


def _giles_erfinv(x: Tensor) -> Tensor:
    """The inverse error function of float32 values in (-1, 1): the logarithm in float32, as in XLA, the rest in
    float64."""
    w = -torch.log1p(-x * x).to(_accumulation_dtype(x))
    centre, tail = torch.zeros_like(w), torch.zeros_like(w)
    for centre_coefficient, tail_coefficient in zip(_GILES_CENTRE, _GILES_TAIL, strict=True):
        centre = centre * (w - 2.5) + centre_coefficient
        tail = tail * (w.sqrt() - 3.0) + tail_coefficient
    return (torch.where(w < 5.0, centre, tail) * x).to(x.dtype)


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
