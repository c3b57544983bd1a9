"""Cutting a network into its backbone and its head."""

import networks
import pytest
import torch
import torch.nn.functional as F

import ftrain
from ftrain import models
from ftrain.models.cut import cut, is_faithful


def parts_of(module, head, size=8):
    """The cut, and whether it is faithful."""
    frozen = [name for name, _ in module.named_parameters() if name not in head]
    apply, params, buffers = ftrain.functionalize(module, frozen=frozen)
    found = cut(module, head, frozen=frozen)
    inputs = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    key = ftrain.random.key(0)
    return (
        found,
        found and is_faithful(found, apply, params, buffers, inputs, key=key),
        (apply, params, buffers, inputs),
    )


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("convnet", (8, 6, 6)),  # before the dropout, which comes before the pooling
        ("resnet18", (512,)),
        ("mobilenet_v3_small", (1024,)),
        ("small_vit", (16,)),
    ],
)
def test_the_head_makes_of_features_what_the_network_makes_of_images(name, features):
    module, size = networks.made(name)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.fill_(0.1)
    head = models.last_layer(module, networks.CLASSES)
    found, faithful, (apply, params, buffers, inputs) = parts_of(module, head, size)
    assert faithful
    made, _ = found.backbone(params, buffers, inputs, train=True)  # needs no key, since nothing in it is drawn
    assert made.shape == (2, *features)
    before = made.clone()
    for train in (False, True):
        key = ftrain.random.key(7)  # of the dropout in the head of the convnet and the mobilenet
        expected, _ = apply(params, buffers, inputs, train=train, key=key)
        logits, after = found.head(params, buffers, made, train=train, key=key)
        assert torch.equal(logits, expected)
        assert after.keys() == buffers.keys() and torch.equal(made, before)
    # The head needs no other tensors than its own.
    own = {name: tensor for name, tensor in buffers.items() if name in found.of_head}
    assert torch.equal(found.head(params, own, made, train=False)[0], apply(params, buffers, inputs, train=False)[0])
    assert set(head) <= found.of_head


def test_a_cut_leaves_the_module_as_it_was():
    module, size = networks.made("resnet18")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    _, faithful, _ = parts_of(module, ("fc.weight", "fc.bias"), size)
    assert faithful and module.training and module(torch.zeros(2, 3, size, size)).shape == (2, networks.CLASSES)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.named_parameters())


class Base(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(3, 4)
        self.fc = torch.nn.Linear(4, 2)

    def forward(self, images):
        return self.fc(self.features(images.mean(dim=(2, 3))))

    def features(self, pooled):
        return self.body(pooled)


class Dropping(Base):
    def features(self, pooled):
        return F.dropout(self.body(pooled), 0.01, self.training)


class WithStatistics(Base):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4, affine=False)  # has no parameters that could be frozen

    def features(self, pooled):
        return self.norm(self.body(pooled))


class Mixing(Base):
    def features(self, pooled):
        features = self.body(pooled)
        return features - features.mean(dim=0)


class Scaling(Base):
    def forward(self, images):
        return 2.0 * super().forward(images)


class Twice(Base):
    def forward(self, images):
        return super().forward(images) + self.fc(torch.ones(4))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(Base, True), (Dropping, False), (WithStatistics, False), (Mixing, False), (Scaling, False), (Twice, False)],
)
def test_only_what_can_be_computed_once_is_faithful(kind, expected):
    assert parts_of(kind(), ("fc.weight", "fc.bias"))[1] is expected


def test_a_head_that_is_not_one_layer_cannot_be_cut_off():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    assert cut(module, ["0.weight", "1.weight"], frozen=[]) is None
    assert cut(torch.nn.Linear(3, 2), ["weight", "bias"], frozen=[]) is None
    assert cut(module, [], frozen=[]) is None
