"""Writes jax_random.json, the values that tests/test_random.py compares ftrain.random with.

Run where JAX is installed (it is no dependency of ftrain): python tests/golden/make_jax_random.py
"""

import json
from pathlib import Path

import jax
import numpy as np

SEEDS = [0, 1, 42, 2**31 + 7, 2**32 - 1]


def values(seed):
    key = jax.random.wrap_key_data(np.array([0, seed], np.uint32))
    data = jax.random.key_data
    return {
        "key": data(key),
        "split": data(jax.random.split(key, 3)),
        "fold_in": {str(n): data(jax.random.fold_in(key, n)) for n in (0, 1, 7, 2**32 - 1)},
        "bits": jax.random.bits(key, (5,)),
        "bits_matrix": jax.random.bits(key, (2, 3)),
        "bits_scalar": jax.random.bits(key),
        "uniform": jax.random.uniform(key, (5,)),
        "uniform_minus2_to_3": jax.random.uniform(key, (5,), minval=-2.0, maxval=3.0),
        "normal": jax.random.normal(key, (64,)),
        "bernoulli_0.3": jax.random.bernoulli(key, 0.3, (16,)),
        "randint_0_10": jax.random.randint(key, (8,), 0, 10),
        "randint_minus5_1000003": jax.random.randint(key, (8,), -5, 1_000_003),
        "permutation_1": jax.random.permutation(key, 1),
        "permutation_10": jax.random.permutation(key, 10),
        "permutation_3000_head": jax.random.permutation(key, 3000)[:20],
    }


def float64_values(seed):
    with jax.enable_x64(True):
        key = jax.random.wrap_key_data(np.array([0, seed], np.uint32))
        return {
            "uniform_float64": jax.random.uniform(key, (5,), dtype="float64"),
            "normal_float64": jax.random.normal(key, (64,), dtype="float64"),
        }


def plain(value):
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return np.asarray(value).tolist()


document = {"jax": jax.__version__, "threefry_partitionable": jax.config.jax_threefry_partitionable}
document["seeds"] = {str(seed): plain(values(seed) | float64_values(seed)) for seed in SEEDS}
Path(__file__).with_name("jax_random.json").write_text(json.dumps(document, indent=1) + "\n")
