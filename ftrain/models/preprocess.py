"""How the images were prepared that pretrained weights were trained on."""

from __future__ import annotations

from typing import Literal

import attrs

from ftrain.models import timm_networks
from ftrain.models.catalogue import canonical
from ftrain.models.spelling import is_timm
from ftrain.models.weights import is_file, of_torchvision

_FIT: dict[str, Literal["crop", "pad", "stretch"]] = {"center": "crop", "border": "pad", "squash": "stretch"}  # timm's


@attrs.frozen
class Preprocessing:
    """How images become the inputs of a network. The defaults are those without pretrained weights.

    Attributes:
      mean, std: of red, green and blue in [0, 1], by which images are normalised.
      interpolation: how images are scaled.
      crop_fraction: the side of the square at the centre that evaluation uses, as a fraction of the image's shorter
        side.
      fit: how an image that is not square becomes a square.
      image_size: the side of the inputs in pixels; None if the network works as well at any size.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop_fraction: float = 0.875
    fit: Literal["crop", "pad", "stretch"] = "crop"
    image_size: int | None = None


def preprocessing(name: str, weights: str | None) -> Preprocessing:
    """The preprocessing that pretrained weights expect.

    For a name of torchvision's weights, it is that of their `transforms()`, without the image size; for a file, what
    torchvision's first weights used. For a tag of timm's, it is timm's data configuration; for a file, that of the
    network's default weights.

    Args:
      name: of a model, in any spelling that `canonical` accepts.
      weights: a name, a tag, or a file; None for none.

    Raises:
      ValueError: if no model has this name, or it has no such weights.

    >>> preprocessing("swin_t", "DEFAULT")
    Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation='bicubic', \
crop_fraction=0.9655172413793104, fit='crop', image_size=None)
    """
    name = canonical(name)
    if not weights:
        return Preprocessing()
    if is_timm(name):
        config = timm_networks.data_config(
            name, None if is_file(weights) else timm_networks.find_weights(name, weights)
        )
        return Preprocessing(
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
            crop_fraction=config["crop_pct"],
            fit=_FIT.get(config["crop_mode"], "crop"),
            image_size=min(config["input_size"][1:]),
        )
    if is_file(weights):
        return Preprocessing()
    transforms = of_torchvision(weights, name).transforms()
    return Preprocessing(
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation="bilinear" if transforms.interpolation.value == "bilinear" else "bicubic",
        crop_fraction=transforms.crop_size[0] / transforms.resize_size[0],
    )
