"""What a model is made of, found without allocating its parameters."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch.overrides import TorchFunctionMode

from ftrain.models.catalogue import smallest_size
from ftrain.models.construct import construct


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
      image_size: the side in pixels of the square images, which matters for vision transformers. None means 224, or the
        smallest possible size of a model that needs more.

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
    return convolutions_of(without_data(name, 1, None))


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
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _EmptyOnMeta():
        return construct(name, classes, image_size or max(224, smallest_size(name)))


class _EmptyOnMeta(TorchFunctionMode):
    """Moves `torch.empty`, with which layers allocate their parameters, to the meta device.

    `torch.device("meta")` would move all tensors there, even those from whose values regnet computes its widths.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})
