"""What a model is made of, found without allocating its parameters."""

from __future__ import annotations

import attrs
import torch

from ftrain.models.catalogue import canonical, input_size
from ftrain.models.sizes import check_size
from ftrain.models.skeleton import skeleton


@attrs.frozen
class Convolutions:
    """The number of 2-d convolutions in a model.

    Attributes:
      count: all of them.
      depthwise: those with one group for each input channel.
      pointwise: those with a kernel of 1 x 1.
    """

    count: int
    depthwise: int
    pointwise: int


def parameter_count(name: str, classes: int = 1000, image_size: int | None = None) -> int:
    """The number of parameters of a model.

    Args:
      name: of a model, in any spelling that `canonical` accepts.
      classes: the number of logits.
      image_size: the side in pixels of the square images, which matters for vision transformers. None means the size
        that the model was designed for.

    Raises:
      ValueError: as for `build`.

    >>> parameter_count("resnet34"), parameter_count("resnet34", classes=10)
    (21797672, 21289802)
    """
    module = without_data(name, classes, image_size)
    return sum(parameter.numel() for parameter in module.parameters())


def convolutions(name: str) -> Convolutions:
    """The number of convolutions of a model.

    Raises:
      ValueError: if no model has this name.

    >>> convolutions("resnet18")
    Convolutions(count=20, depthwise=0, pointwise=3)
    """
    return convolutions_of(without_data(name, 1))


def convolutions_of(module: torch.nn.Module) -> Convolutions:
    """The number of convolutions of a module.

    >>> convolutions_of(torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=8), torch.nn.Conv2d(8, 4, 1)))
    Convolutions(count=2, depthwise=1, pointwise=1)
    """
    found = [layer for layer in module.modules() if isinstance(layer, torch.nn.Conv2d)]
    depthwise = sum(layer.groups == layer.in_channels > 1 for layer in found)
    return Convolutions(len(found), depthwise, sum(layer.kernel_size == (1, 1) for layer in found))


def without_data(name: str, classes: int, image_size: int | None = None) -> torch.nn.Module:
    """A model whose parameters have shapes but no data. Arguments and errors as for `parameter_count`.

    >>> without_data("resnet18", 10).fc.weight.device
    device(type='meta')
    """
    name = canonical(name)
    if image_size is not None:
        check_size(name, image_size)
    return skeleton(name, classes, image_size or input_size(name))
