"""Averages of the network over the steps."""

import functools
import shutil

import pytest
import torch
from networks import made
from tiny_runs import images, result, spec, tiny_network, train
from torch.utils import _pytree as pytree

import ftrain
from ftrain.data.batches import load
from ftrain.data.device import on_device
from ftrain.disk import checkpoint
from ftrain.run import folder as run_folder
from ftrain.run import inference
from ftrain.testing import assert_pure


def parts(name="convnet", **options):
    module, size = made(name)
    apply, params, buffers = ftrain.functionalize(module)
    optimizer = ftrain.adamw(0.01)
    state = ftrain.init_state(params, buffers, optimizer, seed=0, ema=True)
    pixels = torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(0))
    step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer, ema_decay=0.9, **options)
    return step, state, (pixels, torch.arange(6) % 5)


def leaves(state):
    return [leaf.clone() for leaf in pytree.tree_leaves(state)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_three_steps_by_hand():
    """A parameter that each step moves from 0 to -1, -2, -3, and a buffer that counts in floats and in integers."""
    params, buffers = {"w": torch.zeros(1)}, {"seen": torch.zeros(()), "count": torch.zeros((), dtype=torch.int64)}

    def apply(params, buffers, inputs, *, train, key=None):
        return params["w"] * inputs, {name: buffer + 1 for name, buffer in buffers.items()}

    optimizer = ftrain.sgd(1.0)
    state = ftrain.init_state(params, buffers, optimizer, seed=0, ema=True)
    assert sorted(state.ema) == ["seen", "w"]
    step = functools.partial(
        ftrain.train_step, apply=apply, optimizer=optimizer, loss=lambda logits, labels: logits[:, 0], ema_decay=0.15
    )
    found = []
    for _ in range(3):
        state, _ = step(state, (torch.ones(1, 1), torch.zeros(1, dtype=torch.int64)))
        found.append((state.params["w"].item(), state.ema["w"].item(), state.ema["seen"].item()))
    # The decay is 1/10, then 2/11 and 3/12, but never over 0.15.
    assert found[0] == pytest.approx((-1.0, -0.9, 0.9))
    assert found[1] == pytest.approx((-2.0, 0.15 * -0.9 + 0.85 * -2.0, 0.15 * 0.9 + 0.85 * 2.0))
    assert found[2] == pytest.approx((-3.0, 0.15 * -1.835 + 0.85 * -3.0, 0.15 * 1.835 + 0.85 * 3.0))
    used = ftrain.averaged(state)
    assert used.params["w"] is state.ema["w"]
    assert used.buffers["seen"] is state.ema["seen"]
    assert used.buffers["count"].item() == 3
    assert used.ema == {}


def test_training_itself_is_the_same_with_averages_and_without():
    step, state, batch = parts()
    plain = ftrain.init_state(state.params, state.buffers, ftrain.adamw(0.01), seed=0)
    for _ in range(2):
        state, _ = step(state, batch)
        plain, _ = step(plain, batch, ema_decay=None)
    assert same(leaves(state)[: len(leaves(plain))], leaves(plain))
    assert ftrain.averaged(plain).params == plain.params


LONG = ({"accumulate": 2}, {"skip_nonfinite": True})


@pytest.mark.parametrize("options", [{}, *(pytest.param(options, marks=pytest.mark.long) for options in LONG)])
def test_a_step_with_averages_is_pure(options):
    assert_pure(*parts("convnet", **options))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)])
def test_donated_averages_are_written_in_place_with_the_same_bits(compiled):
    step, kept, batch = parts()
    donated = pytree.tree_map(torch.clone, kept)
    memory = [average.data_ptr() for average in donated.ema.values()]
    compiled_step = ftrain.compile_step(step, backend="aot_eager") if compiled else step
    donating_step = (
        ftrain.compile_step(step, donate=True, backend="aot_eager")
        if compiled
        else functools.partial(step, donate=True)
    )
    for _ in range(3):
        before, old = leaves(kept), donated
        after, _ = compiled_step(kept, batch)
        donated, _ = donating_step(donated, batch)
        assert same(leaves(kept), before)
        assert same(leaves(after), leaves(donated))
        with pytest.raises(ftrain.DonatedError):
            ftrain.averaged(old)
        kept = after
    assert [average.data_ptr() for average in donated.ema.values()] == memory


@pytest.mark.parametrize(
    ("compiled", "donate"),
    [(False, False), (False, True), (True, True), pytest.param(True, False, marks=pytest.mark.long)],
)
def test_a_skipped_step_leaves_the_averages_unchanged(compiled, donate):
    step, state, (pixels, labels) = parts(skip_nonfinite=True)
    state, _ = step(state, (pixels, labels))
    before = leaves(state)
    compiled_step = ftrain.compile_step(step, backend="aot_eager", donate=donate) if compiled else step
    after, metrics = compiled_step(state, (pixels * float("inf"), labels))
    assert metrics.compute()["nonfinite"] == 1.0
    assert same(leaves(after), before)


@pytest.mark.parametrize(
    ("decay", "ema", "message"),
    [
        (1.0, True, "`ema_decay` must be a number >= 0 and < 1; got 1.0"),
        (-0.1, True, "`ema_decay` must be a number >= 0 and < 1; got -0.1"),
        (0.9, False, "`ema_decay` needs a state that keeps averages; make it with init_state(..., ema=True)"),
    ],
)
def test_errors(decay, ema, message):
    step, state, batch = parts()
    state = state if ema else ftrain.init_state(state.params, state.buffers, ftrain.adamw(0.01), seed=0)
    with pytest.raises(ValueError) as caught:
        step(state, batch, ema_decay=decay)
    assert str(caught.value) == message


def evaluated(program, state):
    """The metrics of the run's validation images under a state."""
    batches = on_device(load(images(), images().val_jobs()), state.step.device)
    first, *rest = [program.eval_step(state, batch) for batch, _ in batches]
    return sum(rest, start=first).compute()


def test_a_run_is_evaluated_and_used_with_its_averages(tmp_path):
    folder = tmp_path / "run"
    train(folder, ema_decay=0.9)
    run = run_folder.read(folder)
    reported = [line["val"] for line in run_folder.read_metrics(run)[0] if line["kind"] == "epoch"]
    with tiny_network():
        restored = inference.restore(run, spec(ema_decay=0.9), last=True)
        last = checkpoint.load(checkpoint.find(run.checkpoints)[-1], restored.program.init())
        assert evaluated(restored.program, restored.state) == reported[-1]
        assert evaluated(restored.program, last) != reported[-1]
    assert same(restored.state.params.values(), [last.ema[name] for name in restored.state.params])
    assert not same(restored.state.params.values(), last.params.values())


def test_a_run_with_averages_resumes_to_the_same_bits(tmp_path):
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    train(whole, ema_decay=0.9)
    train(interrupted, ema_decay=0.9)
    shutil.rmtree(checkpoint.find(interrupted / "checkpoints")[-1])
    train(interrupted, ema_decay=0.9)
    assert result(interrupted) == result(whole)
