"""A training step with the smallest network of every family of timm."""

import functools
import random

import numpy as np
import pytest
import timm
import torch

import ftrain
from ftrain import models
from ftrain.models import table
from ftrain.models.skeleton import has_drop

LARGEST = 60e6  # parameters; larger networks would take most of the time of this test
SIZES = (32, 64, 96, 128, 160, 192, 224, 256)  # px


def smallest(family):
    """The smallest network of a family and its number of parameters."""
    known = table.read().entries
    names = [f"timm/{name}" for name in timm.list_models(module=family) if not name.startswith("test_")]
    counts = {
        name: known[name].parameters if name in known else models.parameter_count(name)
        for name in names
        if not name.endswith("_enc")
    }
    return min(counts.items(), key=lambda item: item[1])


def random_state():
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())


ALWAYS = ("convnext", "efficientnet", "resnet", "swin_transformer", "vision_transformer")
FAMILIES = [pytest.param(each, marks=[] if each in ALWAYS else pytest.mark.long) for each in timm.list_modules()]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_a_function_of_state_and_batch(family):
    name, parameters = smallest(family)
    if parameters > LARGEST:
        pytest.skip(f"the smallest network, {name}, has {parameters / 1e6:.0f} M parameters")
    size = next((size for size in SIZES if models.fits(name, size)), models.input_size(name))
    before = random_state()
    drops = {kind: 0.5 for kind in ("dropout", "drop_path") if has_drop(name, kind, size)}
    module = models.build(name, classes=2, image_size=size, seed=0, **drops)
    apply, params, buffers = ftrain.functionalize(module)
    optimizer = ftrain.sgd(0.01)
    batch = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])

    def stepped(seed):
        state = ftrain.init_state(params, buffers, optimizer, seed=seed)
        new, metrics = ftrain.train_step(state, batch, apply=apply, optimizer=optimizer)
        assert metrics.compute()["count"] == 2.0
        return {**new.params, **new.buffers}

    def equal(one, other):
        return all(torch.equal(one[name], other[name]) for name in one)

    first = stepped(0)
    assert equal(first, stepped(0))
    assert any(not torch.equal(first[name], params[name]) for name in params)
    others = (stepped(seed) for seed in range(1, 9))
    assert any(not equal(first, other) for other in others) if drops else equal(first, next(others))
    assert random_state() == before


@pytest.mark.long
def test_a_step_is_pure_in_every_meaning():
    module = models.build("timm/test_vit", classes=2, image_size=32, seed=0, dropout=0.2, drop_path=0.2)
    apply, params, buffers = ftrain.functionalize(module)
    optimizer = ftrain.adamw(1e-3)
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    batch = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer)
    ftrain.testing.assert_pure(step, state, batch)
