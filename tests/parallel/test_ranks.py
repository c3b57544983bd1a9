"""Steps over the logical shards of a batch: the same bits for any number of processes."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import made
from parallel import sharded_steps

import ftrain
from ftrain.parallel import TreeSum, ranks, tree_sum

TESTS = Path(__file__).parents[1]


def in_one_process(cases):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: the bits depend on it
    try:
        return sharded_steps.digests(ranks(shards=sharded_steps.SHARDS), cases)
    finally:
        torch.set_num_threads(threads)


def in_processes(world, cases, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [sys.executable, str(TESTS / "parallel" / "sharded_steps.py"), str(world), str(tmp_path), cases]
    subprocess.run(command, env=environment, check=True)
    return json.loads((tmp_path / "digests.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.long)])
def test_the_number_of_processes_does_not_change_a_bit(tmp_path, world):
    assert in_processes(world, "eager", tmp_path) == in_one_process(sharded_steps.EAGER)


@pytest.mark.long
def test_the_number_of_processes_does_not_change_a_bit_of_a_compiled_step(tmp_path):
    assert in_processes(2, "compiled", tmp_path) == in_one_process(sharded_steps.COMPILED)


def test_one_shard_is_the_step_without_shards():
    module, size = made("convnet")
    apply, params, buffers = ftrain.functionalize(module)
    optimizer = ftrain.adamw(0.01)
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    batch = sharded_steps.batch(0, size, False)
    step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer)
    found = sharded_steps.digest(step(state, batch, reduce=ranks().sum))
    assert found == sharded_steps.digest(step(state, batch))


def test_without_batch_norm_and_dropout_shards_are_the_whole_batch():
    module, size = made("linear")
    apply, params, buffers = ftrain.functionalize(module.double())
    optimizer = ftrain.sgd(0.1)
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    images, labels, weights = sharded_steps.batch(0, size, False)
    weights[:4] = 0.0  # the whole first shard
    step = functools.partial(ftrain.train_step, state, (images.double(), labels, weights.double()), apply=apply)
    whole, metrics = step(optimizer=optimizer)
    sharded, sharded_metrics = step(optimizer=optimizer, reduce=ranks(shards=4).sum)
    for name, value in whole.params.items():
        torch.testing.assert_close(sharded.params[name], value, rtol=1e-12, atol=1e-14)
    assert sharded_metrics.compute() == pytest.approx(metrics.compute(), rel=1e-9)


def test_each_shard_is_a_batch_of_its_own_for_batch_norm_and_the_buffers_are_their_mean():
    apply, params, buffers = ftrain.functionalize(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(2)))
    optimizer = ftrain.sgd(0.0)
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    images = torch.tensor([[0.0, 0.0], [2.0, 4.0], [10.0, 10.0], [10.0, 14.0]])
    state, _ = ftrain.train_step(
        state, (images, torch.zeros(4, dtype=torch.int64)), apply=apply, optimizer=optimizer, reduce=ranks(shards=2).sum
    )
    # 0.9 * 0 + 0.1 * the mean of the means 1, 2 and 10, 12; 0.9 * 1 + 0.1 * the mean of the variances 2, 8 and 0, 8
    torch.testing.assert_close(state.buffers["1.running_mean"], torch.tensor([0.55, 0.7]))
    torch.testing.assert_close(state.buffers["1.running_var"], torch.tensor([1.0, 1.7]))
    assert state.buffers["1.num_batches_tracked"].item() == 1


def test_shards_draw_different_numbers():
    apply, params, buffers = ftrain.functionalize(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2), torch.nn.Dropout(0.5))
    )
    seen = []

    def loss(logits, labels):
        seen.append(logits.detach().eq(0.0).tolist())
        return logits.sum(dim=-1)

    optimizer = ftrain.sgd(0.0)
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    batch = torch.ones(32, 4), torch.zeros(32, dtype=torch.int64)
    ftrain.train_step(state, batch, apply=apply, optimizer=optimizer, loss=loss, reduce=ranks(shards=2).sum)
    assert len(seen) == 2 and seen[0] != seen[1]


def test_a_sum_is_a_balanced_tree():
    big, one = torch.tensor(2.0**24), torch.tensor(1.0)
    # float32 cannot add 1 to 2**24: from left to right, both ones would be lost.
    assert tree_sum([big, torch.tensor(0.0), one, one]).item() == 2.0**24 + 2.0
    assert tree_sum([one] * 5).item() == 5.0
    assert tree_sum([{"a": one, "b": [one]}, {"a": one, "b": [big]}])["b"][0].item() == 2.0**24


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranks(shards=3), "`shards` must be a power of two; got 3"),
        (lambda: ranks(shards=0), "`shards` must be a power of two; got 0"),
        (lambda: ranks(shards=4).rows(6), "`batch_size` must be a multiple of `shards`, which is 4; got 6"),
        (lambda: ranks(shards=2).sum([torch.ones(1)]), "`parts` must have a part for each of 2 shards; got 1"),
    ],
)
def test_what_cannot_be_laid_out(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_each_shard_is_accumulated_in_parts():
    module, size = made("linear")
    apply, params, buffers = ftrain.functionalize(module)
    optimizer = ftrain.sgd(0.1)
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer, reduce=ranks(shards=2).sum)
    images, labels, weights = sharded_steps.batch(0, size, False)
    assert step(state, (images, labels, weights), accumulate=4)[0].step.item() == 1  # parts of 2
    with pytest.raises(ValueError, match="divisor of the number of examples of a shard, which is 6; got 4"):
        step(state, (images[:12], labels[:12], weights[:12]), accumulate=4)


def test_several_labels_are_evaluated_over_shards_as_without_shards():
    apply, params, buffers = ftrain.functionalize(torch.nn.Linear(3, 2))
    state = ftrain.init_state(params, buffers, ftrain.sgd(0.1), seed=0)
    images = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    batch = images, (images[:, :2] > 0).float()
    options = {"apply": apply, "loss": ftrain.binary_cross_entropy, "measure": ftrain.multi_label.measure}
    one = ftrain.eval_step(state, batch, **options)
    sharded = ftrain.eval_step(state, batch, reduce=ranks(shards=4).sum, **options)
    assert len(sharded.examples) == 4
    for ours, theirs in zip(one.gathered(), sharded.gathered(), strict=True):
        assert torch.equal(ours, theirs)
    assert sharded.compute() == pytest.approx(one.compute())


@pytest.mark.parametrize("transform", ["vmap", "grad", "autograd"])
def test_a_sum_over_processes_is_not_differentiated_or_vmapped(transform):
    total = TreeSum(shards=2, own=range(1), pairs=(None,))  # a group that would be used
    values = torch.ones(3)
    calls = {
        "vmap": lambda: torch.func.vmap(lambda row: total([row]))(values),
        "grad": lambda: torch.func.grad(lambda row: total([row]).sum())(values),
        "autograd": lambda: total([values.requires_grad_()]),
    }
    with pytest.raises(RuntimeError, match="cannot exchange values under vmap or what is differentiated"):
        calls[transform]()


def test_a_batch_that_does_not_fill_the_shards():
    apply, params, buffers = ftrain.functionalize(torch.nn.Linear(3, 2))
    optimizer = ftrain.sgd(0.1)
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    batch = torch.ones(6, 3), torch.zeros(6, dtype=torch.int64)
    options = {"apply": apply, "reduce": ranks(shards=4).sum}
    for step in (functools.partial(ftrain.train_step, optimizer=optimizer), ftrain.eval_step):
        with pytest.raises(ValueError, match="the same number of examples for each of its 4 shards; got 6 examples"):
            step(state, batch, **options)
