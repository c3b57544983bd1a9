"""Initialising weights anew, and the last norms of residual blocks."""

import math

import pytest
import torch
import torchvision
from torch import nn

from ftrain import models

INITS = ["kaiming", "xavier", "orthogonal", "trunc-normal"]


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64, 10), nn.LayerNorm(10))


def initialized(init, seed=0):
    module = network()
    models.initialize(module, init, seed=seed)
    return module.state_dict()


@pytest.mark.parametrize("init", INITS)
def test_weights_follow_from_the_seed_biases_are_zero_and_norms_stay(init):
    before, random_state = network().state_dict(), torch.get_rng_state()
    first, again, other = initialized(init), initialized(init), initialized(init, seed=1)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("0.weight", "3.weight"):
        assert not torch.equal(first[name], before[name])
        assert not torch.equal(first[name], other[name])
    for name in ("0.bias", "3.bias"):
        assert before[name].ne(0).any()
        assert first[name].eq(0).all()
    for name in before:
        if name.startswith(("1.", "4.")):
            assert torch.equal(first[name], before[name])


def test_default_changes_nothing():
    before = network().state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in initialized("default").items())


def test_a_new_layer_of_a_pretrained_network_starts_small():
    before, random_state = network().state_dict(), torch.get_rng_state()
    first, again, other = network(), network(), network()
    names = ["3.weight", "3.bias", "1.weight"]
    for module, seed in ((first, 0), (again, 0), (other, 1)):
        models.start_small(module, names, seed=seed)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(first[3].weight, again[3].weight) and not torch.equal(first[3].weight, other[3].weight)
    assert first[3].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert first[3].bias.eq(0).all()
    changed = {name for name, tensor in first.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"3.weight", "3.bias"}  # a norm keeps its values


def test_a_single_layer_starts_small():
    layer = nn.Linear(4, 3)
    models.start_small(layer, ["weight", "bias"], seed=0)
    assert layer.weight.abs().max().item() < 0.05 and layer.bias.tolist() == [0.0, 0.0, 0.0]


def test_the_spread_of_each_initialisation():
    layer = nn.Linear(300, 500)

    def weight(init):
        models.initialize(layer, init, seed=0)
        return layer.weight.detach().clone()

    assert weight("kaiming").std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.01)
    xavier = weight("xavier")
    assert xavier.std().item() == pytest.approx(math.sqrt(2 / 800), rel=0.01)
    assert xavier.abs().max().item() <= math.sqrt(6 / 800)
    assert weight("trunc-normal").std().item() == pytest.approx(0.02, rel=0.01)
    orthogonal = weight("orthogonal")
    assert torch.allclose(orthogonal.T @ orthogonal, torch.eye(300), atol=1e-5)


def test_a_depthwise_convolution_counts_its_own_inputs():
    layer = nn.Conv2d(512, 512, 3, groups=512)
    models.initialize(layer, "kaiming", seed=0)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.05)


def test_query_key_and_value_are_three_layers():
    attention = nn.MultiheadAttention(64, 4)
    nn.init.ones_(attention.in_proj_bias)
    models.initialize(attention, "orthogonal", seed=0)
    for part in attention.in_proj_weight.detach().chunk(3):
        assert torch.allclose(part @ part.T, torch.eye(64), atol=1e-5)
    assert attention.in_proj_bias.eq(0).all()
    apart = nn.MultiheadAttention(64, 4, kdim=32)
    before = {name: tensor.clone() for name, tensor in apart.state_dict().items()}
    models.initialize(apart, "xavier", seed=0)
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"):
        assert not torch.equal(apart.state_dict()[name], before[name])


def test_a_parametrized_weight_stays():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    before = layer.weight.detach().clone()
    models.initialize(layer, "kaiming", seed=0)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_zero_init_residual_is_torchvisions(name):
    module = models.build(name, classes=10, image_size=32, seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = torchvision.models.get_model(name, num_classes=10, zero_init_residual=True).state_dict()
    names = models.zero_init_residual(module, 32)
    assert len(names) == {"resnet18": 8}.get(name, 16)
    found = module.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert all(layer.training for layer in module.modules())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "regnet_y_400mf",  # the shortcut of the first block ends with a norm, too
            ["trunk_output.block1.block1-0.f.c.1.weight", "trunk_output.block2.block2-0.f.c.1.weight"],
        ),
        ("mobilenet_v2", ["features.3.conv.3.weight", "features.5.conv.3.weight"]),
        ("mobilenet_v3_small", ["features.3.block.2.1.weight", "features.5.block.3.1.weight"]),
        ("efficientnet_b0", ["features.2.1.block.3.1.weight", "features.3.1.block.3.1.weight"]),
        ("swin_v2_t", ["features.1.0.norm1.weight", "features.1.0.norm2.weight"]),
    ],
)
def test_the_last_norms_of_other_networks(name, expected):
    module = models.build(name, classes=10, image_size=32, seed=0)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    names = models.zero_init_residual(module, 32)
    assert names[:2] == expected
    for key, tensor in module.state_dict().items():
        assert tensor.eq(0).all() if key in names else torch.equal(tensor, before[key])


class Block(nn.Module):
    """A block of a network of one's own: the norm is scaled and dropped before the sum."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.gate, self.drop = nn.Parameter(torch.ones(3, 1, 1)), nn.Dropout(0.5)
        self.shortcut = nn.BatchNorm2d(3)

    def forward(self, inputs):
        outputs = self.drop(self.norm(self.conv(inputs)) * self.gate)
        outputs += self.shortcut(inputs)
        return outputs.mean((2, 3))


def test_the_last_norm_of_a_network_of_ones_own():
    block = Block().eval()
    assert models.zero_init_residual(block, 8) == ["norm.weight"]
    assert block.norm.weight.eq(0).all() and block.shortcut.weight.eq(1).all()
    assert not block.training


@pytest.mark.parametrize("name", ["vgg11_bn", "vit_b_32", "squeezenet1_1"])
def test_a_network_without_such_a_norm_is_refused(name):
    module = models.build(name, classes=10, image_size=32, seed=0)
    with pytest.raises(ValueError) as caught:
        models.zero_init_residual(module, 32)
    assert str(caught.value) == (
        "`zero_init_residual` has no effect: no residual block of the network ends with a norm"
    )
