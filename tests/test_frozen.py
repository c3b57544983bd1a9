"""Frozen parameters: they lie among the buffers, and the layers that have only such ones run as in evaluation."""

import functools

import pytest
import torch

import ftrain
from ftrain.testing import MEANINGS, assert_pure

BACKBONE = ("0.weight", "0.bias", "1.weight", "1.bias")


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 6 * 6, 3),
    )


def made(frozen):
    apply, params, buffers = ftrain.functionalize(network(), frozen=frozen)
    optimizer = ftrain.adamw(0.05, lr_factors=lambda params: {n: 0.5 if n.endswith("bias") else 1.0 for n in params})
    return apply, optimizer, ftrain.init_state(params, buffers, optimizer, seed=3)


def batch():
    return ftrain.random.normal(ftrain.random.key(1), (4, 3, 8, 8)), torch.tensor([0, 1, 2, 2])


def test_frozen_parameters_are_buffers_and_do_not_change():
    apply, optimizer, state = made(BACKBONE)
    assert list(state.params) == ["5.weight", "5.bias"]
    assert list(state.opt_state["exp_avg"]) == ["5.weight", "5.bias"]
    new, _ = ftrain.train_step(state, batch(), apply=apply, optimizer=optimizer)
    assert all(torch.equal(new.buffers[name], state.buffers[name]) for name in state.buffers)
    assert not any(torch.equal(new.params[name], state.params[name]) for name in state.params)


def test_a_frozen_layer_normalises_with_its_running_statistics():
    module = torch.nn.Sequential(*network()[:3])  # nothing is dropped
    apply, params, buffers = ftrain.functionalize(module, frozen=("1.weight", "1.bias"))
    images, _ = batch()
    outputs, new = apply(params, buffers, images, train=True)
    assert torch.equal(outputs, module.eval()(images))
    assert new["1.num_batches_tracked"].item() == 0


def test_a_layer_with_one_trained_parameter_is_trained_as_usual():
    apply, params, buffers = ftrain.functionalize(network(), frozen=("0.weight", "0.bias", "1.weight"))
    _, new = apply(params, buffers, batch()[0], train=True, key=ftrain.random.key(0))
    assert new["1.num_batches_tracked"].item() == 1


def test_nothing_is_dropped_in_a_frozen_block():
    block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    module = torch.nn.Sequential(block, torch.nn.Linear(4, 2))
    apply, params, buffers = ftrain.functionalize(module, frozen=("0.0.weight", "0.0.bias"))
    inputs = torch.randn(3, 4)
    outputs, _ = apply(params, buffers, inputs, train=True)  # and no key is needed
    assert torch.equal(outputs, module.eval()(inputs))


@pytest.mark.parametrize(
    ("frozen", "meaning"),
    [
        pytest.param(
            frozen,
            meaning,
            marks=pytest.mark.long if meaning in ("one graph", "draws") and frozen != BACKBONE else [],
            id=f"{', '.join(frozen)}-{meaning}",
        )
        for frozen in (BACKBONE, BACKBONE[:2], BACKBONE[2:])
        for meaning in MEANINGS
    ],
)
def test_steps_with_frozen_parameters_are_pure(frozen, meaning):
    apply, optimizer, state = made(frozen)
    step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer)
    assert_pure(step, state, batch(), meanings=[meaning])


def test_evaluation_does_not_ask_which_parameters_were_trained():
    _, _, state = made(BACKBONE)
    whole = ftrain.functionalize(network())[0]
    images, _ = batch()
    assert torch.equal(ftrain.predict_step(state, images, apply=whole), network().eval()(images))
    with pytest.raises(ValueError, match=r"the parameters do not fit the module; missing: \['0.bias'"):
        whole(state.params, state.buffers, images, train=True)


def test_the_inverse_takes_frozen_parameters_from_the_buffers():
    _, _, state = made(BACKBONE)
    module = ftrain.to_module(network(), state.params, state.buffers)
    assert torch.equal(module[0].weight, network()[0].weight)
    assert all(param.requires_grad for param in module.parameters())


def test_unknown_names_are_rejected():
    with pytest.raises(ValueError, match="`frozen` must be names of parameters of the module; it has no 9.weight"):
        ftrain.functionalize(network(), frozen=("0.weight", "9.weight"))


@pytest.mark.parametrize("donate", [False, True])
def test_training_continues_with_other_parameters(donate):
    head, optimizer, state = made(BACKBONE)
    for _ in range(2):
        state, _ = ftrain.train_step(state, batch(), apply=head, optimizer=optimizer, donate=donate)
    whole, params, _ = ftrain.functionalize(network())
    later = ftrain.starting_at(2, optimizer)
    state = ftrain.restarted(state, later, params)
    assert list(state.params) == list(params)
    assert int(state.step) == 2
    assert state.opt_state["exp_avg"]["5.weight"].abs().sum() == 0.0
    before = {name: param.clone() for name, param in state.params.items()}
    new, _ = ftrain.train_step(state, batch(), apply=whole, optimizer=later, donate=donate)
    assert not any(torch.equal(new.params[name], before[name]) for name in params)
    # Adam's first step is as long as the rate, so it counts its own steps.
    assert (new.params["5.bias"] - before["5.bias"]).abs().max().item() == pytest.approx(0.025, rel=1e-3)
    assert new.buffers["1.num_batches_tracked"].item() == 1


def test_restarting_needs_parameters_that_the_state_has():
    _, optimizer, state = made(BACKBONE)
    with pytest.raises(ValueError, match="`trained` must be names of tensors of the state; got no names"):
        ftrain.restarted(state, optimizer, ())
    with pytest.raises(ValueError, match="`trained` must be names of tensors of the state; got no tensor 9.weight"):
        ftrain.restarted(state, optimizer, ("0.weight", "9.weight"))
