"""The head, frozen layers and depths of networks, by the names of their parameters."""

import pytest
import torch

from ftrain.models import batch_norms, head, last_layer, layer_decay, matching, without_data

HEADS = {
    "alexnet": ["classifier.6.weight", "classifier.6.bias"],
    "convnext_tiny": ["classifier.2.weight", "classifier.2.bias"],
    "densenet121": ["classifier.weight", "classifier.bias"],
    "efficientnet_b0": ["classifier.1.weight", "classifier.1.bias"],
    "googlenet": ["aux1.fc2.weight", "aux1.fc2.bias", "aux2.fc2.weight", "aux2.fc2.bias", "fc.weight", "fc.bias"],
    "inception_v3": ["AuxLogits.fc.weight", "AuxLogits.fc.bias", "fc.weight", "fc.bias"],
    "maxvit_t": ["classifier.5.weight"],
    "mobilenet_v3_small": ["classifier.3.weight", "classifier.3.bias"],
    "resnet18": ["fc.weight", "fc.bias"],
    "squeezenet1_1": ["classifier.1.weight", "classifier.1.bias"],
    "swin_t": ["head.weight", "head.bias"],
    "vgg11": ["classifier.6.weight", "classifier.6.bias"],
    "vit_b_16": ["heads.head.weight", "heads.head.bias"],
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_what_depends_on_the_number_of_classes(name):
    # 64 is also a number of channels in many of these networks.
    assert list(head(without_data(name, 64), without_data(name, 65))) == HEADS[name]


def test_the_head_of_a_module_is_its_last_layer_with_an_output_for_each_class():
    class Reversed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(8, 3)
            self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))

    assert last_layer(Reversed(), 3) == ("head.weight", "head.bias")
    assert last_layer(Reversed(), 5) == ()
    assert last_layer(torch.nn.Linear(4, 3, bias=False), 3) == ("weight",)


@pytest.mark.parametrize(("name", "layers"), [("resnet18", 20), ("timm/resnet18", 20), ("vit_b_16", 0), ("vgg11", 0)])
def test_the_batch_norms_of_a_network(name, layers):
    found = batch_norms(without_data(name, 10))
    assert len(found) == 2 * layers  # a weight and a bias each
    assert {each.rpartition(".")[2] for each in found} == ({"weight", "bias"} if layers else set())
    assert layers == 0 or {"bn1.weight", "layer2.0.downsample.1.bias"} <= set(found)


def test_patterns_match_parameters_layers_and_blocks():
    names = ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight", "fc.weight", "fc.bias"]
    assert matching(names, ["conv1"]) == ("conv1.weight",)
    assert matching(names, ["*.bias"]) == ("fc.bias",)
    assert matching(names, ["layer1", "bn1"]) == ("bn1.weight", "layer1.0.conv1.weight")
    assert matching(names, ["layer?"]) == ("layer1.0.conv1.weight", "layer2.0.conv1.weight")


def test_a_pattern_that_matches_nothing_is_an_error_that_lists_the_layers():
    names = ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.weight", "fc.weight"]
    with pytest.raises(
        ValueError, match=r"no parameter matches 'stem'; the network has the layers conv1, layer1\.0, fc"
    ):
        matching(names, ["conv1", "stem"])


def test_rates_fall_by_twelfths_of_the_depth():
    names = [f"blocks.{number}.weight" for number in range(24)] + ["head.weight"]
    factors = layer_decay(names, 0.5, head=["head.weight"], head_factor=10.0)(dict.fromkeys(names))
    assert [factors[f"blocks.{number}.weight"] for number in range(0, 24, 2)] == [
        0.5**depth for depth in range(12, 0, -1)
    ]
    assert [factors[f"blocks.{number}.weight"] for number in range(1, 24, 2)] == [
        0.5**depth for depth in range(12, 0, -1)
    ]
    assert factors["head.weight"] == 10.0


def test_depths_are_those_of_the_whole_network_whatever_is_trained():
    names = ["stem.weight", "blocks.0.weight", "blocks.1.weight", "head.weight"]
    factors = layer_decay(names, 0.5, head=["head.weight"])
    assert factors({"blocks.1.weight": None, "head.weight": None}) == {"blocks.1.weight": 0.5**4, "head.weight": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 0.0}, "`layer_decay` must be a number > 0 and <= 1; got 0.0"),
        ({"decay": 1.5}, "`layer_decay` must be a number > 0 and <= 1; got 1.5"),
        ({"decay": 0.5, "head_factor": 0.0}, "`head_factor` must be a number > 0; got 0.0"),
    ],
)
def test_factors_out_of_range_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        layer_decay(["a.weight"], **options)
