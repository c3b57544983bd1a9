"""With skip_nonfinite, a step whose loss or gradient is not finite leaves the state unchanged."""

import functools

import pytest
import torch
from networks import made
from torch.utils import _pytree as pytree

import ftrain


def parts(name="convnet", optimizer=None):
    module, size = made(name)
    apply, params, buffers = ftrain.functionalize(module)
    optimizer = optimizer or ftrain.adamw(0.01)
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    images = torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(0))
    step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer, skip_nonfinite=True)
    return step, state, (images, torch.arange(6) % 5)


def leaves(state):
    return [leaf.clone() for leaf in pytree.tree_leaves(state)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def bad(batch):
    images = batch[0].clone()
    images[2, 0, 0, 0] = float("inf")
    return images, batch[1]


@pytest.mark.parametrize("optimizer", [ftrain.adamw(0.01), ftrain.sgd(0.01, momentum=0.9)])
@pytest.mark.parametrize("donate", [False, True])
def test_eager(donate, optimizer):
    step, state, batch = parts(optimizer=optimizer)
    before = leaves(state)
    after, metrics = step(state, bad(batch), donate=donate)
    assert metrics.compute()["nonfinite"] == 1.0
    assert same(leaves(after), before)
    if not donate:
        assert same(leaves(state), before)
    after, metrics = step(after, batch)
    assert metrics.compute()["nonfinite"] == 0.0
    assert after.step == 1


def test_a_finite_step_is_the_same_with_and_without():
    step, state, batch = parts()
    skipping, _ = step(state, batch)
    plain, _ = functools.partial(step, skip_nonfinite=False)(state, batch)
    assert same(leaves(skipping), leaves(plain))


def test_without_skipping_nonfinite_numbers_spread():
    step, state, batch = parts()
    after, _ = step(state, bad(batch), skip_nonfinite=False)
    assert after.step == 1
    assert not all(leaf.isfinite().all() for leaf in leaves(after))


@pytest.mark.parametrize("donate", [pytest.param(False, marks=pytest.mark.long), True])
def test_compiled(donate):
    step, state, batch = parts()
    compiled = ftrain.compile_step(step, donate=donate, backend="aot_eager")
    before = leaves(state)
    state, metrics = compiled(state, bad(batch))
    assert metrics.compute()["nonfinite"] == 1.0
    assert same(leaves(state), before)
    state, metrics = compiled(state, batch)
    assert metrics.compute()["nonfinite"] == 0.0
    assert state.step == 1


@pytest.mark.parametrize(
    ("extended", "donate"),
    [
        (False, True),
        *(pytest.param(*case, marks=pytest.mark.long) for case in ((False, False), (True, False), (True, True))),
    ],
)
def test_your_own_optimizer_needs_no_extended_update(extended, donate):
    plain = ftrain.adagrad(0.01)  # whose compiled update is plain arithmetic

    def update(grads, opt_state, params, step):
        return plain.update(grads, opt_state, params, step)

    def extended_update(grads, opt_state, params, step, *, donate, skip):
        return plain.extended_update(grads, opt_state, params, step, donate=donate, skip=skip)

    own = ftrain.Optimizer(plain.init, update, extended_update=extended_update if extended else None)
    step, state, batch = parts(optimizer=own)
    before = leaves(state)
    compiled = ftrain.compile_step(step, donate=donate, backend="aot_eager")
    state, _ = compiled(state, bad(batch))
    assert same(leaves(state), before)
    state, _ = compiled(state, batch)
    assert state.step == 1
    assert not same(leaves(state), before)


def test_the_state_of_a_transform_is_unchanged_too():
    mean = ftrain.Transform(
        lambda params: {name: torch.zeros_like(param) for name, param in params.items()},
        lambda grads, state, params, step: ({name: 0.5 * state[name] + grad for name, grad in grads.items()},) * 2,
    )
    step, state, batch = parts(optimizer=ftrain.chain(mean, ftrain.sgd(0.1)))
    compiled = ftrain.compile_step(step, donate=True, backend="aot_eager")
    before = leaves(state)
    state, _ = compiled(state, bad(batch))
    assert same(leaves(state), before)
    state, _ = compiled(state, batch)
    assert all(leaf.isfinite().all() for leaf in leaves(state))


@pytest.mark.slow
def test_inductor_writes_the_same_bits_donated_and_skips():
    step, kept, batch = parts("linear")
    donated = pytree.tree_map(torch.clone, kept)
    compiled = [ftrain.compile_step(step, donate=donate) for donate in (False, True)]
    memory = [param.data_ptr() for param in donated.params.values()]
    before = leaves(kept)
    for spoilt in (True, False, False):
        given = bad(batch) if spoilt else batch
        (kept, _), (donated, _) = compiled[0](kept, given), compiled[1](donated, given)
        assert same(leaves(kept), leaves(donated))
        assert same(leaves(kept), before) == spoilt
    assert [param.data_ptr() for param in donated.params.values()] == memory
    assert kept.step == 2


def test_under_vmap_only_states_with_nonfinite_numbers_are_unchanged():
    step, state, (images, labels) = parts("linear")
    states = pytree.tree_map(lambda leaf: torch.stack([leaf, leaf]), state)
    both = torch.stack([images, bad((images, labels))[0]])
    after, metrics = torch.func.vmap(lambda state, images: step(state, (images, labels)))(states, both)
    assert metrics.nonfinite.tolist() == [0.0, 1.0]
    assert after.step.tolist() == [1, 0]
    single, _ = step(state, (images, labels))
    assert torch.allclose(after.params["1.weight"][0], single.params["1.weight"], atol=1e-6)
    assert torch.equal(after.params["1.weight"][1], state.params["1.weight"])
