"""torchvision's classifiers: names, construction, and the image sizes that each can be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torchvision.ops import StochasticDepth

# The smallest image, in pixels, that the models of a family can be trained on. All others accept a single pixel.
# tests/models/test_models.py trains each model on images of this size, and checks that one pixel less fails.
_SMALLEST = {
    "alexnet": 63,
    "convnext": 32,
    "densenet": 29,
    "googlenet": 15,
    "inception_v3": 299,  # because of its auxiliary classifier, which only runs in training
    "maxvit": 221,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "swin": 4,
    "vgg": 32,
    "vit_b_16": 16,
    "vit_b_32": 32,
    "vit_h_14": 14,
    "vit_l_16": 16,
    "vit_l_32": 32,
}
# What the constructors of a family call the probability of dropout.
_DROPOUT = {
    "alexnet": "dropout",
    "densenet": "drop_rate",
    "efficientnet": "dropout",
    "googlenet": "dropout",
    "inception_v3": "dropout",
    "maxvit": "mlp_dropout",
    "mnasnet": "dropout",
    "mobilenet": "dropout",
    "squeezenet": "dropout",
    "swin": "dropout",
    "vgg": "dropout",
    "vit": "dropout",
}
_DROP_PATH = ("convnext", "efficientnet")  # whose constructors have an option for it
_FIXED_DROP_PATH = ("maxvit", "swin")  # whose constructors set it


def names() -> list[str]:
    """The names of the classifiers of the torchvision that is installed."""
    return list(torchvision.models.list_models(module=torchvision.models))


def smallest_size(name: str) -> int:
    """The side in pixels of the smallest square images that a model can be trained on; see `ftrain.models`."""
    return next((size for family, size in _SMALLEST.items() if name.startswith(family)), 1)


def input_size(name: str) -> int:
    """The side in pixels of the images that a model is usually trained on."""
    return max(224, smallest_size(name))


def fits(name: str, size: int) -> bool:
    """Whether a model can be trained on square images of `size` px."""
    smallest = smallest_size(name)
    if name.startswith("maxvit"):
        # Five strides of 2, each rounding up, must leave a multiple of 7 from the second on.
        return size >= smallest and -(-size // 4) % 56 == 0
    if name.startswith("vit"):
        return size >= smallest and size % smallest == 0  # the smallest image is one patch
    return size >= smallest


def requirement(name: str) -> str:
    """The images that a model can be trained on, in words."""
    if name.startswith("maxvit"):
        return "whose side is a multiple of 224 px, or up to 3 px less"
    if name.startswith("vit"):
        return f"whose side is a multiple of {smallest_size(name)} px"
    return f"of at least {smallest_size(name)} px"


def construct(name: str, classes: int, image_size: int, drops: Mapping[str, float]) -> torch.nn.Module:
    """A model as torchvision builds it, on the device and with the random numbers of the context.

    Args:
      drops: `dropout` and `drop_path`, where they are not to be the network's own. One that the network does not have
        is ignored.
    """
    options: dict[str, Any] = {}
    if name.startswith("vit"):
        options["image_size"] = image_size
    if name.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # the default, but torchvision warns if it is not given
        options["transform_input"] = True  # from ImageNet's mean and std to those of the pretrained weights
    dropout = next((option for family, option in _DROPOUT.items() if name.startswith(family)), None)
    if dropout and "dropout" in drops:
        options[dropout] = drops["dropout"]
    if name.startswith(_DROP_PATH) and "drop_path" in drops:
        options["stochastic_depth_prob"] = drops["drop_path"]
    module: torch.nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    if name.startswith(_FIXED_DROP_PATH) and "drop_path" in drops:
        _scale_drop_path(module, drops["drop_path"])
    return module


def _scale_drop_path(module: torch.nn.Module, rate: float) -> None:
    """Gives the last block this probability of being skipped, and the others the same fraction of it as before."""
    layers = [layer for layer in module.modules() if isinstance(layer, StochasticDepth)]
    largest = max(layer.p for layer in layers)
    for layer in layers:
        layer.p *= rate / largest
