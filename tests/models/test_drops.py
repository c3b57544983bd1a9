"""Dropout and drop path (stochastic depth) of networks that are built by name."""

import pytest
import torch
import torchvision
from torchvision.ops import StochasticDepth

from ftrain import models

DROPOUT = ["alexnet", "densenet", "efficientnet", "googlenet", "inception", "maxvit", "mnasnet", "mobilenet"]
DROPOUT += ["squeezenet", "swin", "vgg", "vit"]
DROP_PATH = ["convnext", "efficientnet", "maxvit", "swin"]
NETWORKS = ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet"]
NETWORKS += ["inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf"]
NETWORKS += ["resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11"]
NETWORKS += ["vit_b_32", "wide_resnet50_2"]
# Slow to build, and with another of their family above, or in the tests below.
LARGER = ["efficientnet_v2_s", "inception_v3", "maxvit_t", "resnext50_32x4d", "swin_v2_t", "wide_resnet50_2"]


def built(name, **drops):
    return models.build(name, classes=2, image_size=models.input_size(name), seed=0, **drops)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LARGER else []) for name in NETWORKS]
)
@pytest.mark.parametrize(("kind", "having"), [("dropout", DROPOUT), ("drop_path", DROP_PATH)])
def test_networks_have_it_or_say_that_they_do_not(name, kind, having):
    if name.startswith(tuple(having)):
        built(name, **{kind: 0.25})
        return
    with pytest.raises(ValueError) as caught:
        built(name, **{kind: 0.25})
    what = {"dropout": "dropout", "drop_path": "drop path (stochastic depth)"}[kind]
    assert str(caught.value) == f"{name} has no {what}, so `{kind}` cannot be set"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vgg11", [0.25, 0.25]),
        ("efficientnet_b0", [0.25]),
        ("vit_b_32", [0.25] * (1 + 12 * 3)),
        ("googlenet", [0.7, 0.7, 0.25]),  # those of the auxiliary classifiers stay
    ],
)
def test_dropout(name, expected):
    layers = [layer for layer in built(name, dropout=0.25).modules() if isinstance(layer, torch.nn.Dropout)]
    assert [layer.p for layer in layers] == expected


def rates(module):
    return [layer.p for layer in module.modules() if isinstance(layer, StochasticDepth)]


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0"])
def test_drop_path_is_torchvisions(name):
    expected = torchvision.models.get_model(name, num_classes=2, stochastic_depth_prob=0.3)
    assert rates(built(name, drop_path=0.3)) == rates(expected)


@pytest.mark.parametrize(("name", "blocks"), [("swin_t", 12), ("swin_v2_t", 12), ("maxvit_t", 11)])
def test_drop_path_rises_with_depth_where_torchvision_sets_it(name, blocks):
    found = sorted(set(rates(built(name, drop_path=0.3))))
    assert found == pytest.approx([0.3 * block / (blocks - 1) for block in range(blocks)])
    assert set(rates(built(name, drop_path=0.0))) == {0.0}


def test_the_networks_own_by_default():
    assert max(rates(built("swin_t"))) == 0.2
    assert [layer.p for layer in built("vgg11").modules() if isinstance(layer, torch.nn.Dropout)] == [0.5, 0.5]


def test_the_parameters_do_not_depend_on_it():
    one, other = built("convnext_tiny", drop_path=0.3).state_dict(), built("convnext_tiny").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)
