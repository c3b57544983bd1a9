"""Every check of assert_pure can fail, and names the tensor."""

import functools
import random

import numpy as np
import pytest
import torch

import ftrain
from ftrain.pytree import frozen
from ftrain.testing import ImpureStepError, assert_pure
from ftrain.torch_private import under_functorch


@frozen
class State:
    step: torch.Tensor
    params: dict
    key: torch.Tensor


@frozen
class Result:
    loss: torch.Tensor


def state():
    return State(torch.zeros((), dtype=torch.int64), {"w": torch.ones(3)}, ftrain.random.key(0))


BATCH = (torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2.0]))


def pure(state, batch):
    inputs, targets = batch
    grads, loss = torch.func.grad_and_value(lambda w: ((inputs @ w - targets) ** 2).mean())(state.params["w"])
    noise = ftrain.random.normal(ftrain.random.fold_in(state.key, state.step), (3,)).to(grads.dtype)
    return State(state.step + 1, {"w": state.params["w"] - 0.01 * grads + 0.001 * noise}, state.key), Result(loss)


def test_a_pure_step_passes():
    assert_pure(pure, state(), BATCH)


def test_bits_of_bfloat16_are_compared():
    narrow = State(torch.zeros((), dtype=torch.int64), {"w": torch.ones(3, dtype=torch.bfloat16)}, ftrain.random.key(0))
    batch = tuple(part.bfloat16() for part in BATCH)
    assert_pure(pure, narrow, batch, meanings=["inputs unchanged", "repeatable"])


def test_unknown_meaning():
    with pytest.raises(ValueError, match="the meanings of pure are inputs unchanged, repeatable, .*; got 'nice'"):
        assert_pure(pure, state(), BATCH, meanings=["nice"])


def changes_state(state, batch):
    state.params["w"].add_(1.0)
    return pure(state, batch)


def changes_batch(state, batch):
    result = pure(state, batch)
    batch[0].mul_(2.0)
    return result


def moves_torch(state, batch):
    torch.rand(1)
    return pure(state, batch)


def moves_python(state, batch):
    random.random()
    return pure(state, batch)


def moves_numpy(state, batch):
    np.random.rand()
    return pure(state, batch)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            changes_state,
            r"meaning 1, inputs unchanged: \['state'\]\.params\['w'\] differs between .* by up to 1$",
        ),
        (changes_batch, r"meaning 1, inputs unchanged: \['batch'\]\[0\] differs between"),
        (moves_torch, "the step advanced torch's global generator"),
        (moves_python, "the step advanced Python's random"),
        (moves_numpy, "the step advanced numpy's global generator"),
    ],
)
def test_inputs_unchanged_can_fail(step, message):
    with pytest.raises(ImpureStepError, match=message):
        assert_pure(step, state(), BATCH, meanings=["inputs unchanged"])


def test_inputs_unchanged_watches_modules_behind_the_step():
    module = torch.nn.BatchNorm1d(3)

    def step(state, batch, *, network):
        network(batch[0].repeat(2, 1))
        return pure(state, batch)

    with pytest.raises(ImpureStepError, match=r"module 0 \(BatchNorm1d\)'\]\['running_mean'\] differs between"):
        assert_pure(functools.partial(step, network=module), state(), BATCH, meanings=["inputs unchanged"])


def test_inputs_unchanged_watches_the_mode_of_modules_behind_a_callable_object():
    class Step:
        def __init__(self):
            self.network = torch.nn.Dropout()

        def __call__(self, state, batch):
            self.network.eval()
            return pure(state, batch)

    with pytest.raises(ImpureStepError, match=r"module 0 \(Dropout\)'\]\['.training'\] differs between"):
        assert_pure(Step(), state(), BATCH, meanings=["inputs unchanged"])


def test_repeatable_can_fail_by_a_counter():
    calls = []

    def step(state, batch):
        calls.append(1)
        new, result = pure(state, batch)
        return new, Result(result.loss + len(calls))

    with pytest.raises(
        ImpureStepError, match=r"meaning 2, repeatable: .*\.loss differs between the first call and the second call"
    ):
        assert_pure(step, state(), BATCH, meanings=["repeatable"])


def test_repeatable_can_fail_by_global_randomness():
    def step(state, batch):
        new, result = pure(state, batch)
        return new, Result(result.loss + torch.rand(()))

    with pytest.raises(ImpureStepError, match="meaning 2, repeatable"):
        assert_pure(step, state(), BATCH, meanings=["repeatable"])


def test_one_graph_can_fail_by_a_break():
    def step(state, batch):
        torch._dynamo.graph_break()
        return pure(state, batch)

    with pytest.raises(ImpureStepError, match="meaning 3, one graph: the step does not compile as one graph"):
        assert_pure(step, state(), BATCH, meanings=["one graph"])


def test_one_graph_can_fail_by_a_recompile():
    calls = {"n": 0}

    def step(state, batch):
        calls["n"] += 1
        new, result = pure(state, batch)
        return new, Result(result.loss * calls["n"])

    with pytest.raises(ImpureStepError, match="meaning 3, one graph: the step was recompiled in one of 5 calls"):
        assert_pure(step, state(), BATCH, meanings=["one graph"])


def test_vmap_can_fail_by_a_host_read():
    def step(state, batch):
        new, result = pure(state, batch)
        return new, Result(result.loss + float(state.params["w"][0]))

    with pytest.raises(ImpureStepError, match="meaning 4, vmap: the step does not run under vmap"):
        assert_pure(step, state(), BATCH, meanings=["vmap"])


def test_vmap_can_fail_by_members_that_see_each_other():
    def step(state, batch):
        new, result = pure(state, batch)
        inside = under_functorch()
        return new, Result(result.loss + (1.0 if inside else 0.0))

    with pytest.raises(ImpureStepError, match=r"meaning 4, vmap: .*\.loss differs between the step alone and member 0"):
        assert_pure(step, state(), BATCH, meanings=["vmap"])


def test_differentiable_can_fail_by_a_cut_graph():
    def step(state, batch):
        new, result = pure(state, batch)
        return State(new.step, {"w": new.params["w"].detach()}, new.key), result

    with pytest.raises(
        ImpureStepError,
        match="meaning 5, differentiable: the derivative of the later loss is 0, but finite differences give",
    ):
        assert_pure(step, state(), BATCH, meanings=["differentiable"])


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1.0, 1e5)])
def test_the_tolerance_of_a_derivative_follows_the_size_of_the_loss(scale, shift):
    def scaled(state, batch):
        new, result = pure(state, batch)
        return new, Result(result.loss * scale + shift)

    def cut(state, batch):
        new, result = scaled(state, batch)
        return State(new.step, {"w": new.params["w"].detach()}, new.key), result

    assert_pure(scaled, state(), BATCH, meanings=["differentiable"])
    with pytest.raises(ImpureStepError, match="meaning 5, differentiable"):
        assert_pure(cut, state(), BATCH, meanings=["differentiable"])


def test_draws_can_fail_by_the_same_draw_in_every_step():
    def step(state, batch):
        new, result = pure(state, batch)
        return new, Result(result.loss + ftrain.random.uniform(state.key))

    with pytest.raises(
        ImpureStepError, match="meaning 6, draws: the step draws the same numbers in every step; fold state.step into"
    ):
        assert_pure(step, state(), BATCH, meanings=["draws"])


def test_draws_can_fail_by_a_global_draw():
    def step(state, batch):
        new, result = pure(state, batch)
        return new, Result(result.loss + torch.rand(()))

    with pytest.raises(ImpureStepError, match=r"meaning 6, draws: .*\.loss differs between the eager step and"):
        assert_pure(step, state(), BATCH, meanings=["draws"])
