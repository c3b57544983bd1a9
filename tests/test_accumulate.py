"""A batch in parts: the same update as the whole, in one graph."""

import functools

import pytest
import torch
from networks import made
from torch.utils import _pytree as pytree

import ftrain


def parts(name, optimizer):
    module, size = made(name)
    apply, params, buffers = ftrain.functionalize(module.double())
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, size, size, generator=generator, dtype=torch.float64)
    labels = torch.arange(12) % 5
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0, 1.0, 0.5, 1.0, 0.0, 0.0, 0.0, 3.0])
    step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer)
    return step, state, (images, labels, weights)


def assert_close(one, other):
    for a, b in zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4, 12])
@pytest.mark.parametrize("optimizer", [ftrain.sgd(0.1, momentum=0.9), ftrain.adamw(0.01)])
def test_the_update_is_that_of_the_whole_batch(count, optimizer):
    """Also where a part has no example that counts."""
    step, state, batch = parts("linear", optimizer)
    whole, whole_metrics = step(state, batch)
    split, split_metrics = step(state, batch, accumulate=count)
    assert_close(split, whole)
    assert_close(split_metrics, whole_metrics)


def test_batch_norm_sees_one_part_after_the_other():
    optimizer = ftrain.sgd(0.0)
    step, state, (images, labels, _) = parts("convnet", optimizer)
    weights = torch.ones(12)
    split, _ = step(state, (images, labels, weights), accumulate=3)
    for rows in (slice(0, 4), slice(4, 8), slice(8, 12)):
        state, _ = step(state, (images[rows], labels[rows], weights[rows]))
    assert split.buffers["1.num_batches_tracked"] == 3
    assert_close(split.buffers, state.buffers)


def test_every_part_has_draws_of_its_own():
    step, state, (images, labels, _) = parts("convnet", ftrain.sgd(0.1))
    same = images[:1].repeat(12, 1, 1, 1), labels[:1].repeat(12), torch.ones(12)
    seen = []

    def keeping(params, buffers, inputs, *, train, key):
        seen.append(key)
        return step.keywords["apply"](params, buffers, inputs, train=train, key=key)

    ftrain.train_step(state, same, apply=keeping, optimizer=ftrain.sgd(0.1), accumulate=3)
    assert len({tuple(key.tolist()) for key in seen}) == 3


@pytest.mark.parametrize(
    ("count", "donate"),
    [(2, True), pytest.param(3, True, marks=pytest.mark.long), pytest.param(3, False, marks=pytest.mark.long)],
)
def test_one_graph_gives_the_same_numbers(count, donate):
    step, state, batch = parts("convnet", ftrain.adamw(0.01))
    step = functools.partial(step, accumulate=count)
    eager, _ = step(state, batch)
    compiled, _ = ftrain.compile_step(step, donate=donate, backend="aot_eager")(state, batch)
    assert_close(compiled, eager)


def test_under_vmap():
    step, state, batch = parts("linear", ftrain.sgd(0.1))
    states = pytree.tree_map(lambda leaf: torch.stack([leaf, leaf]), state)
    many, _ = torch.func.vmap(lambda state: step(state, batch, accumulate=2))(states)
    one, _ = step(state, batch, accumulate=2)
    assert_close(pytree.tree_map(lambda leaf: leaf[1], many), one)


def test_a_part_that_is_not_finite_counts_once():
    step, state, (images, labels, weights) = parts("linear", ftrain.sgd(0.1))
    images[[2, 11]] = float("nan")
    after, metrics = step(state, (images, labels, weights), accumulate=3, skip_nonfinite=True)
    assert metrics.nonfinite == 1.0
    assert_close(after, state)


@pytest.mark.parametrize("count", [0, 5, -1])
def test_parts_that_are_not_equal_are_rejected(count):
    step, state, batch = parts("linear", ftrain.sgd(0.1))
    expected = f"`accumulate` must be a positive divisor of the batch size, which is 12; got {count}"
    with pytest.raises(ValueError, match=expected):
        step(state, batch, accumulate=count)
