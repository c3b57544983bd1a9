"""The hash of a function changes with its source and with what it captures, and is the same in every process."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import ftrain
from ftrain.models import function_hash


def without_source(expression):
    """A function that inspect finds no source of."""
    names = {"torch": torch}
    exec(f"def loss(logits, labels): return {expression}", names)
    return names["loss"]


def test_the_bytecode_takes_the_place_of_a_missing_source():
    double, again, triple = (without_source(f"logits * {factor}") for factor in (2, 2, 3))
    assert function_hash(double) == function_hash(again)
    assert function_hash(double) != function_hash(triple)
    assert function_hash(without_source("logits.sum()")) != function_hash(without_source("logits.mean()"))
    nested = [without_source(f"(lambda: logits * {factor})()") for factor in (2, 3)]
    assert function_hash(nested[0]) != function_hash(nested[1])


def captures(value):
    def loss(logits, labels):
        return logits, value

    return loss


class Holder:
    """Its repr contains an address."""


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, logits, labels):
        return logits * self.factor

    def method(self, logits, labels):
        return logits + self.factor


PAIRS = {
    "number": lambda: (2, 3),
    "kinds of number": lambda: (1, 1.0),
    "text": lambda: ("a", "b"),
    "tuple": lambda: ((1, 2), (2, 1)),
    "dict": lambda: ({"a": 1}, {"a": 2}),
    "set": lambda: ({"a", "b"}, {"a", "c"}),
    "dtype": lambda: (torch.float32, torch.float64),
    "tensor": lambda: (torch.arange(3), torch.arange(3) + 1),
    "bfloat16 tensor": lambda: (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)),
    "large tensor": lambda: (torch.zeros(5000), torch.zeros(5000).index_fill(0, torch.tensor(2500), 1.0)),
    "shape": lambda: (torch.zeros(2, 3), torch.zeros(3, 2)),
    "array": lambda: (np.arange(3), np.arange(3) + 1),
    "function": lambda: (captures(1), captures(2)),
    "function of a library": lambda: (torch.relu, torch.sigmoid),
    "function of ftrain": lambda: (ftrain.cross_entropy, ftrain.binary_cross_entropy),
    "closure of ftrain": lambda: (ftrain.mixup(0.2, classes=3), ftrain.mixup(0.4, classes=3)),
    "object": lambda: (Scaled(2), Scaled(3)),
    "method": lambda: (Scaled(2).method, Scaled(3).method),
    "class": lambda: (Scaled, Holder),
    "module": lambda: (nn.ReLU(), nn.GELU()),
    "attribute of a module": lambda: (nn.CrossEntropyLoss(label_smoothing=0.3), nn.CrossEntropyLoss()),
    "tensor of a module": lambda: (
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.CrossEntropyLoss(weight=torch.zeros(3)),
    ),
    "lambdas of one line": lambda: (lambda x: 2 * x, lambda x: 3 * x),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_captured_value_counts(name):
    (first, second), (again, _) = PAIRS[name](), PAIRS[name]()
    for make in (captures, lambda value: functools.partial(captures(1), value), Scaled):
        assert function_hash(make(first)) == function_hash(make(again))
        assert function_hash(make(first)) != function_hash(make(second))
    if callable(first):
        assert function_hash(first) == function_hash(again)
        assert function_hash(first) != function_hash(second)


def test_defaults_and_keywords_count():
    def make(default):
        def loss(logits, labels, *, factor=default):
            return logits * factor

        return loss

    assert function_hash(make(1)) != function_hash(make(2))
    keywords = [functools.partial(captures(1), a=1, b=b) for b in (2, 2, 3)]
    assert function_hash(keywords[0]) == function_hash(keywords[1])
    assert function_hash(keywords[0]) != function_hash(keywords[2])
    reordered = functools.partial(captures(1), b=2, a=1)
    assert function_hash(keywords[0]) == function_hash(reordered)


def test_a_wrapped_function_and_its_wrapper_both_count():
    def doubled(function):
        @functools.wraps(function)
        def wrapper(*args):
            return 2 * function(*args)

        return wrapper

    hashes = {function_hash(each) for each in (captures(1), doubled(captures(1)), doubled(captures(2)))}
    assert len(hashes) == 3


def test_an_object_with_an_address_counts_by_its_type():
    assert function_hash(captures(Holder())) == function_hash(captures(Holder()))
    assert function_hash(captures(Holder())) != function_hash(captures(object()))


def test_a_function_that_contains_itself_has_a_hash():
    def make(factor):
        def loss(depth):
            return factor * loss(depth - 1)

        return loss

    assert function_hash(make(1)) == function_hash(make(1))
    assert function_hash(make(1)) != function_hash(make(2))


SCRIPT = """
import functools, torch, ftrain
from ftrain.models import function_hash
def mixed(logits, labels, base, names): return base(logits, labels)
class Loss:
    def __init__(self): self.base, self.extra = torch.nn.CrossEntropyLoss(), object()
    def __call__(self, logits, labels): return self.base(logits, labels)
names = {"cat", "dog", "horse", "ship"}
print(function_hash(functools.partial(mixed, base=ftrain.cross_entropy, names=names)), function_hash(Loss()))
"""


def test_the_hash_is_the_same_in_every_process():
    def run(seed):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        return done.stdout.split()

    first, second = run("1"), run("2")
    assert first == second
    assert [len(each) for each in first] == [64, 64]
