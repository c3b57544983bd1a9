"""ftrain.random beside golden/jax_random.json, whose values are from JAX (golden/make_jax_random.py wrote them)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ftrain import random

GOLDEN = json.loads((Path(__file__).parent / "golden" / "jax_random.json").read_text())
SEEDS = [0, 1, 42, 2**31 + 7, 2**32 - 1]

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "split": lambda key: random.split(key, 3),
    "fold_in": lambda key: random.fold_in(key, 7),
    "bits": lambda key: random.bits(key, (2, 3)),
    "uniform": lambda key: random.uniform(key, (5,)),
    "uniform_range": lambda key: random.uniform(key, (5,), minval=-2.0, maxval=3.0),
    "uniform_float64": lambda key: random.uniform(key, (5,), torch.float64),
    "normal": lambda key: random.normal(key, (64,)),
    "normal_float64": lambda key: random.normal(key, (64,), torch.float64),
    "beta": lambda key: random.beta(key, 0.2, 3.0, (16,)),
    "beta_float64": lambda key: random.beta(key, 0.2, 3.0, (16,), torch.float64),
    "bernoulli": lambda key: random.bernoulli(key, 0.3, (16,)),
    "randint": lambda key: random.randint(key, (8,), -5, 1_000_003),
    "permutation": lambda key: random.permutation(key, 300),
}


@pytest.fixture(params=SEEDS)
def golden(request: pytest.FixtureRequest) -> tuple[Tensor, dict[str, Any]]:
    """A key, and what JAX draws from it."""
    return random.key(request.param), GOLDEN["seeds"][str(request.param)]


def ulps(found: Tensor, expected: Tensor) -> int:
    """The largest distance between two tensors of floats, in floats that lie between them."""
    assert found.dtype == expected.dtype
    integer, low = {torch.float32: (torch.int32, -(2**31)), torch.float64: (torch.int64, -(2**63))}[found.dtype]

    def place(values: Tensor) -> Tensor:
        raw = values.view(integer)
        return torch.where(raw < 0, low - raw, raw)

    return int((place(found) - place(expected)).abs().max())


def test_ulps_counts_floats() -> None:
    one = torch.tensor([1.0, 0.0, -1.0])
    assert ulps(one, one) == 0
    assert ulps(one, torch.tensor([1.0 + 2**-23, -0.0, -1.0])) == 1
    assert ulps(one, torch.tensor([1.0, -(2.0**-149), -1.0 - 2 * 2**-23])) == 2


def test_golden_values_are_of_the_layout_that_ftrain_follows() -> None:
    assert GOLDEN["jax"] == "0.10.2"
    assert GOLDEN["threefry_partitionable"] is True
    assert list(GOLDEN["seeds"]) == [str(seed) for seed in SEEDS]


def test_key_holds_the_seed_in_two_words() -> None:
    assert random.key(0).tolist() == [0, 0]
    assert random.key(42).tolist() == [0, 42]
    assert random.key(2**32 - 1).tolist() == [0, 4294967295]
    assert random.key(2**32 + 5).tolist() == [1, 5]
    assert random.key(2**64 - 1).tolist() == [4294967295, 4294967295]
    assert random.key(0).dtype == torch.int64


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_key_rejects_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"`seed` must be an integer from 0 to 2\*\*64 - 1; got {seed}"):
        random.key(seed)


def test_published_values_of_jax() -> None:
    """Written out here too, in case the golden file and the code are wrong together."""
    assert random.split(random.key(0)).tolist() == [[1797259609, 2579123966], [928981903, 3453687069]]
    assert random.bits(random.key(42), (3,)).tolist() == [2098992034, 2919706841, 2646866425]
    assert random.permutation(random.key(42), 10).tolist() == [7, 4, 2, 5, 3, 6, 8, 9, 0, 1]


def test_keys_equal_jax(golden: tuple[Tensor, dict[str, Any]]) -> None:
    key, expected = golden
    assert key.tolist() == expected["key"]
    assert random.split(key, 3).tolist() == expected["split"]
    for data, words in expected["fold_in"].items():
        assert random.fold_in(key, int(data)).tolist() == words
        assert random.fold_in(key, torch.tensor(int(data))).tolist() == words


def test_integers_equal_jax(golden: tuple[Tensor, dict[str, Any]]) -> None:
    key, expected = golden
    assert random.bits(key, (5,)).tolist() == expected["bits"]
    assert random.bits(key, (2, 3)).tolist() == expected["bits_matrix"]
    assert random.bits(key).tolist() == expected["bits_scalar"]
    assert random.randint(key, (8,), 0, 10).tolist() == expected["randint_0_10"]
    assert random.randint(key, (8,), -5, 1_000_003).tolist() == expected["randint_minus5_1000003"]
    assert random.bernoulli(key, 0.3, (16,)).tolist() == expected["bernoulli_0.3"]
    assert random.bernoulli(key, torch.full((16,), 0.3)).tolist() == expected["bernoulli_0.3"]


def test_uniform_equals_jax_to_the_bit(golden: tuple[Tensor, dict[str, Any]]) -> None:
    key, expected = golden
    assert random.uniform(key, (5,)).tolist() == expected["uniform"]
    assert random.uniform(key, (5,), minval=-2.0, maxval=3.0).tolist() == expected["uniform_minus2_to_3"]
    assert random.uniform(key, (5,), torch.float64).tolist() == expected["uniform_float64"]


def test_normal_equals_jax_to_a_few_units_in_the_last_place(golden: tuple[Tensor, dict[str, Any]]) -> None:
    key, expected = golden
    assert ulps(random.normal(key, (64,)), torch.tensor(expected["normal"], dtype=torch.float32)) <= 2
    found = random.normal(key, (64,), torch.float64)
    assert ulps(found, torch.tensor(expected["normal_float64"], dtype=torch.float64)) <= 24


def test_permutation_equals_jax(golden: tuple[Tensor, dict[str, Any]]) -> None:
    key, expected = golden
    assert random.permutation(key, 1).tolist() == expected["permutation_1"]
    assert random.permutation(key, 10).tolist() == expected["permutation_10"]
    assert random.permutation(key, 3000)[:20].tolist() == expected["permutation_3000_head"]


@pytest.mark.parametrize("n", [0, 1, 2, 3000])
def test_permutation_holds_each_number_once(n: int) -> None:
    order = random.permutation(random.key(3), n)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(n))


def test_both_orders_of_two_occur() -> None:
    orders = torch.func.vmap(lambda key: random.permutation(key, 2))(random.split(random.key(0), 1000))
    assert 430 < int((orders[:, 0] == 0).sum()) < 570


def test_dtypes_and_shapes() -> None:
    key = random.key(0)
    assert random.bits(key).shape == ()
    assert random.bits(key, (2, 0)).shape == (2, 0)
    assert random.split(key).shape == (2, 2)
    assert random.fold_in(key, torch.arange(6).reshape(2, 3)).shape == (2, 3, 2)
    assert random.uniform(key).dtype == torch.float32
    assert random.uniform(key, (2,), torch.float64).dtype == torch.float64
    assert random.normal(key, (2,)).dtype == torch.float32
    assert random.normal(key, (2,), torch.float64).dtype == torch.float64
    assert random.beta(key, 1.0, 2.0).shape == ()
    assert random.beta(key, 1.0, 2.0).dtype == torch.float32
    assert random.beta(key, 1.0, 2.0, (2, 0), torch.float64).dtype == torch.float64
    assert random.bernoulli(key, shape=(4, 1)).shape == (4, 1)
    assert random.bernoulli(key).dtype == torch.bool
    assert random.randint(key, (3, 2), 0, 5).shape == (3, 2)


def test_split_and_fold_in_give_the_same_children() -> None:
    key = random.key(42)
    assert torch.equal(random.fold_in(key, torch.arange(3)), random.split(key, 3))


def test_bernoulli_accepts_a_probability_per_element() -> None:
    p = torch.tensor([0.0, 1.0]).expand(500, 2)
    drawn = random.bernoulli(random.key(5), p, (500, 2))
    assert drawn[:, 0].sum() == 0
    assert drawn[:, 1].sum() == 500


def test_uniform_stays_below_its_upper_end() -> None:
    drawn = random.uniform(random.key(0), (100_000,), minval=1.0, maxval=1.0 + 2**-22)
    assert drawn.min() >= 1.0
    assert drawn.max() <= 1.0 + 2**-22
    unit = random.uniform(random.key(0), (100_000,))
    assert unit.min() >= 0.0
    assert unit.max() < 1.0


def test_uniform_rejects_dtypes_it_does_not_draw() -> None:
    with pytest.raises(TypeError, match=r"`dtype` must be torch\.float32 or torch\.float64; got torch\.float16"):
        random.uniform(random.key(0), (2,), torch.float16)
    with pytest.raises(TypeError, match=r"`dtype` must be torch\.float32 or torch\.float64; got torch\.bfloat16"):
        random.normal(random.key(0), (2,), torch.bfloat16)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0)])
def test_beta_rejects_parameters_that_are_not_positive(a: float, b: float) -> None:
    with pytest.raises(ValueError, match=f"`a` and `b` must be positive; got {a} and {b}"):
        random.beta(random.key(0), a, b)


@pytest.mark.parametrize(("minval", "maxval"), [(3, 3), (4, 3), (-(2**31) - 1, 0), (0, 2**31)])
def test_randint_rejects_ranges_out_of_int32(minval: int, maxval: int) -> None:
    with pytest.raises(ValueError, match=f"minval < maxval .* must hold; got `minval` {minval} and `maxval` {maxval}"):
        random.randint(random.key(0), (2,), minval, maxval)


def test_randint_reaches_both_ends_and_no_further() -> None:
    drawn = random.randint(random.key(1), (1000,), -2, 3)
    assert drawn.unique().tolist() == [-2, -1, 0, 1, 2]
    wide = random.randint(random.key(1), (1000,), -(2**31), 2**31 - 1)
    assert wide.min() < -(2**30)
    assert wide.max() > 2**30


@pytest.mark.parametrize("name", DRAWS)
def test_vmap_over_keys_equals_the_loop(name: str) -> None:
    draw = DRAWS[name]
    keys = random.split(random.key(7), 4)
    assert torch.equal(torch.func.vmap(draw)(keys), torch.stack([draw(key) for key in keys]))


def test_vmap_over_steps_equals_the_loop() -> None:
    key, steps = random.key(7), torch.arange(5)
    mapped = torch.func.vmap(random.fold_in, in_dims=(None, 0))(key, steps)
    assert torch.equal(mapped, torch.stack([random.fold_in(key, step) for step in steps]))


IN_STEPS = ["fold_in", "uniform", "normal", "beta", "bernoulli"]


@pytest.mark.parametrize(
    "names", [IN_STEPS, pytest.param(list(DRAWS), marks=pytest.mark.long)], ids=["in steps", "all"]
)
def test_compiled_as_one_graph_equals_eager(names: list[str]) -> None:
    def draw_all(key: Tensor) -> dict[str, Tensor]:
        return {name: DRAWS[name](key) for name in names}

    torch._dynamo.reset()
    compiled = torch.compile(draw_all, fullgraph=True, dynamic=False, backend="aot_eager")
    for seed in (0, 2**32 - 1):
        found, expected = compiled(random.key(seed)), draw_all(random.key(seed))
        assert [name for name in names if not torch.equal(found[name], expected[name])] == []


def test_the_global_generator_neither_moves_nor_matters() -> None:
    key = random.key(9)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = {name: draw(key) for name, draw in DRAWS.items()}
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert all(torch.equal(draw(key), first[name]) for name, draw in DRAWS.items())


def test_the_key_is_not_changed() -> None:
    key = random.key(9)
    for draw in DRAWS.values():
        draw(key)
    assert key.tolist() == [0, 9]


# Bounds are 5 standard errors wide on either side: one in 1.7 million seeds falls outside.
def test_uniform_has_the_mean_and_variance_of_the_unit_interval() -> None:
    drawn = random.uniform(random.key(11), (100_000,), torch.float64)
    assert 0.4954 < drawn.mean() < 0.5046  # 1/2, and 5 times sqrt(1/12 / 100,000)
    assert 0.0821 < drawn.var() < 0.0846  # 1/12, and 5 times sqrt(1/180 / 100,000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_has_mean_0_variance_1_and_tails(dtype: torch.dtype) -> None:
    drawn = random.normal(random.key(12), (100_000,), dtype)
    assert -0.0159 < drawn.mean() < 0.0159
    assert 0.9776 < drawn.var() < 1.0224
    assert 4655 < (drawn.abs() > 1.959964).sum() < 5345  # a twentieth, and 5 times sqrt(0.05 x 0.95 x 100,000)
    assert torch.isfinite(drawn).all()
    assert 3.5 < drawn.abs().max() < 6.0


BETA_PLACES = [1e-6, 1e-3, 0.05, 0.2, 0.5, 0.8, 0.95, 0.999]


# Mean, variance and the distribution function at BETA_PLACES, from scipy.stats.beta (scipy 1.17.1).
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("a", "b", "mean", "variance", "below"),
    [
        (0.1, 0.1, 1 / 2, 0.208333, [0.127412, 0.254242, 0.377508, 0.439709, 0.5, 0.560291, 0.622492, 0.745758]),
        (0.2, 0.2, 1 / 2, 0.178571, [0.033203, 0.132201, 0.291025, 0.392722, 0.5, 0.607278, 0.708975, 0.867799]),
        (1.0, 1.0, 1 / 2, 0.083333, [0.000001, 0.001, 0.05, 0.2, 0.5, 0.8, 0.95, 0.999]),
        (2.0, 5.0, 2 / 7, 0.025510, [0.0, 0.000015, 0.032774, 0.34464, 0.890625, 0.9984, 0.999998, 1.0]),
        (8.0, 8.0, 1 / 2, 0.014706, [0.0, 0.0, 0.0, 0.00424, 0.5, 0.99576, 1.0, 1.0]),
    ],
)
def test_beta_has_its_distribution(
    a: float, b: float, mean: float, variance: float, below: list[float], dtype: torch.dtype
) -> None:
    draws = 100_000
    drawn = random.beta(random.key(16), a, b, (draws,), dtype).double()
    assert drawn.min() >= 0.0
    assert drawn.max() <= 1.0
    found = (drawn[:, None] <= torch.tensor(BETA_PLACES, dtype=torch.float64)).double().mean(dim=0)
    # Kolmogorov's bound: 2 exp(-2 x 2.7^2) is one in a million.
    assert (found - torch.tensor(below, dtype=torch.float64)).abs().max() < 2.7 / math.sqrt(draws)
    assert abs(drawn.mean() - mean) < 5 * math.sqrt(variance / draws)
    assert abs(drawn.var() - variance) < 5 * variance * math.sqrt(2 / draws)  # a normal's fourth moment is larger


def test_beta_draws_do_not_underflow() -> None:
    """A gamma draw with the shape 0.01 is 0 in float32 for a third of the uniform numbers, and 0 / 0 would be nan."""
    drawn = random.beta(random.key(17), 0.01, 0.01, (40_000,))
    assert not drawn.isnan().any()
    assert 0.2398 < (drawn < 1e-30).double().mean() < 0.2615  # 0.250634, by scipy
    assert 0.4875 < (drawn < 0.5).double().mean() < 0.5125


def test_bernoulli_has_its_mean() -> None:
    assert 0.2927 < random.bernoulli(random.key(13), 0.3, (100_000,)).double().mean() < 0.3073


def test_randint_is_uniform() -> None:
    counts = torch.bincount(random.randint(random.key(14), (100_000,), 0, 10))
    assert len(counts) == 10
    assert counts.min() > 9525
    assert counts.max() < 10475


def test_children_are_uncorrelated() -> None:
    left, right = (random.normal(key, (100_000,), torch.float64) for key in random.split(random.key(15)))
    assert abs(torch.dot(left, right).item() / 100_000) < 5 / math.sqrt(100_000)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_gpu_equals_cpu() -> None:
    for seed in SEEDS:
        key = random.key(seed)
        for name, draw in DRAWS.items():
            found, expected = draw(key.cuda()).cpu(), draw(key)
            if name.startswith(("normal", "beta")):  # goes through the device's own logarithm or inverse error function
                torch.testing.assert_close(found, expected)
            else:
                assert torch.equal(found, expected), name
        assert torch.equal(random.key(seed, device="cuda").cpu(), key)
