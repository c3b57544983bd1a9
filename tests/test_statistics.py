"""The running statistics of BatchNorm, recomputed."""

import copy

import networks
import pytest
import torch

import ftrain
from ftrain.statistics import recompute_statistics, smallest_momentum


def batches(size, count=3):
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(4, dtype=torch.int64)
    return [(torch.randn(4, 3, size, size, generator=generator), labels) for _ in range(count)]


def without_dropout(module):
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    return module


@pytest.mark.parametrize("name", ["convnet", "resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("momentum", ["own", None])
def test_the_statistics_are_those_of_update_bn(name, momentum):
    module, size = networks.made(name)
    without_dropout(module)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.fill_(float("nan"))  # the old statistics have no influence
            layer.num_batches_tracked.fill_(7)
            if momentum is None:
                layer.momentum = None
    apply, params, buffers = ftrain.functionalize(module)
    key = ftrain.random.key(0)  # a Dropout of probability 0 still draws
    found = recompute_statistics(params, buffers, batches(size), apply=apply, key=key)
    expected = copy.deepcopy(module)
    torch.optim.swa_utils.update_bn(batches(size), expected)
    for buffer, value in expected.named_buffers():
        # ftrain computes the average of momentum None itself.
        tolerance = {"rtol": 0.0, "atol": 0.0} if momentum == "own" else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(found[buffer], value, **tolerance)


def test_it_is_pure():
    module, size = networks.made("convnet")
    apply, params, buffers = ftrain.functionalize(module)
    before = {name: tensor.clone() for name, tensor in {**params, **buffers}.items()}
    generator = torch.get_rng_state()
    one, other = (
        recompute_statistics(params, buffers, batches(size), apply=apply, key=ftrain.random.key(3)) for _ in range(2)
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in {**params, **buffers}.items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(one[name], other[name]) for name in buffers)
    assert not torch.equal(one["1.running_mean"], buffers["1.running_mean"])
    assert one["1.num_batches_tracked"].item() == 3


def test_what_is_frozen_keeps_its_statistics_and_other_buffers_stay():
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    module.register_buffer("mine", torch.tensor(5.0))
    apply, params, buffers = ftrain.functionalize(module, frozen=["0.weight", "0.bias"])
    batch = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 1])
    found = recompute_statistics(params, buffers, [batch], apply=apply)
    unchanged = ["mine", "0.weight", "0.bias", "0.running_mean", "0.running_var", "0.num_batches_tracked"]
    assert all(found[name] is buffers[name] for name in unchanged)
    assert found["2.num_batches_tracked"].item() == 1
    assert not torch.equal(found["2.running_mean"], buffers["2.running_mean"])


def test_a_network_without_statistics_stays_as_it_is():
    apply, params, buffers = ftrain.functionalize(torch.nn.Linear(2, 2))
    batch = torch.ones(2, 2), torch.tensor([0, 1])
    assert recompute_statistics(params, buffers, [batch], apply=apply) == {}


def test_no_batch_is_an_error():
    apply, params, buffers = ftrain.functionalize(torch.nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="`batches` must have at least one batch; got none"):
        recompute_statistics(params, buffers, [], apply=apply)


def test_the_smallest_momentum_is_that_of_layers_that_are_trained():
    inner = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2, momentum=0.02, affine=False))
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(2, momentum=0.3), inner)
    assert smallest_momentum(module) == 0.02
    assert smallest_momentum(module, frozen=["0.weight", "0.bias"]) == 0.02
    assert smallest_momentum(module, frozen=["1.0.weight"]) == 0.02
    assert (
        smallest_momentum(module, frozen=["1.0.weight", "1.0.bias"]) == 0.3
    )  # the whole block then runs as in evaluation
    assert smallest_momentum(torch.nn.BatchNorm1d(2, momentum=None)) == 0.0
    assert smallest_momentum(torch.nn.BatchNorm1d(2, track_running_stats=False)) is None
    assert smallest_momentum(networks.made("mobilenet_v3_small")[0]) == 0.01
