"""The networks that are built by name: torchvision's, and timm's under names that begin with `timm/`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torchvision

from ftrain.models import table, timm_networks, torchvision_networks
from ftrain.models.spelling import TIMM, is_timm, matching, spelled


def names(pattern: str | None = None) -> list[str]:
    """The names of the classification models of torchvision, or of timm, with their numbers in natural order.

    Args:
      pattern: lists only the names that contain it or, if it has a `*`, `?` or `[`, the names that it matches in full.
        Case does not matter. One that begins with `timm/` lists timm's models.

    Raises:
      ValueError: if timm's are asked for, and timm is not installed.

    >>> names("vit_?_32"), names("timm/resnet18*")
    (['vit_b_32', 'vit_l_32'], ['timm/resnet18', 'timm/resnet18d'])
    """
    return matching(_known(in_timm=pattern is not None and is_timm(pattern)), pattern)


def canonical(name: str) -> str:
    """The spelling of a model's name in torchvision or timm.

    Args:
      name: in any case, with `-`, `.`, `_`, spaces or nothing between its parts. Those of timm begin with `timm/`.

    Raises:
      ValueError: if no model has this name, or more than one does; or if it is timm's, and timm is not installed.

    >>> canonical("ResNet-34"), canonical("ViT_B_16"), canonical("timm/ConvNeXt-Atto")
    ('resnet34', 'vit_b_16', 'timm/convnext_atto')
    """
    in_timm = is_timm(name)
    known = [each.removeprefix(TIMM) for each in _known(in_timm)]
    bare = name.strip()[len(TIMM) :] if in_timm else name
    found, near = spelled(bare, known)
    prefix = TIMM if in_timm else ""
    if found is not None:
        return prefix + found
    if in_timm and "." in bare and (model := spelled(bare.partition(".")[0], known)[0]):
        tag = bare.partition(".")[2]
        raise ValueError(f"`model` is {TIMM}{model} without {tag!r}, which names weights: give them as `weights={tag}`")
    hint = f"the closest names are {', '.join(prefix + each for each in near)}" if near else "no name is similar"
    if not in_timm and (same := spelled(name, [each.removeprefix(TIMM) for each in table.read().of("timm")])[0]):
        hint = f"timm has {TIMM}{same}"
    library, listed = ("timm", " 'timm/*'") if in_timm else ("torchvision", "")
    raise ValueError(
        f"`model` must be one of {library}'s {len(known)} classifiers, got {name!r}; {hint}. "
        f"The command ftrain models{listed} lists all names"
    )


def has_pretrained(name: str) -> bool:
    """Whether there are pretrained weights of a model, which `weights="DEFAULT"` downloads.

    Args:
      name: of a model, in any spelling that `canonical` accepts.

    Raises:
      ValueError: as for `canonical`.

    >>> has_pretrained("resnet34"), has_pretrained("mnasnet0_5"), has_pretrained("timm/tf_efficientnet_lite0")
    (True, True, True)
    """
    name = canonical(name)
    if is_timm(name):
        return bool(timm_networks.weights(name))
    return len(torchvision.models.get_model_weights(name)) > 0


def smallest_size(name: str) -> int:
    """The side in pixels of the smallest square images that a model of torchvision can be trained on.

    On smaller images some layer runs out of pixels. With small batches, a model with BatchNorm needs more than this:
    images of up to 32 px usually shrink to feature maps of one pixel, where a batch of 2 leaves two values to normalise
    over, and gradients explode.

    Args:
      name: of a model, in any spelling that `canonical` accepts.

    Raises:
      ValueError: if no model has this name, or it is one of timm's, for which `fits` tells whether a size is possible.

    >>> smallest_size("resnet34"), smallest_size("vgg11")
    (1, 32)
    """
    name = canonical(name)
    if is_timm(name):
        raise ValueError(f"the smallest images of {name} are not known")
    return torchvision_networks.smallest_size(name)


def input_size(name: str) -> int:
    """The side in pixels of the square images that a model was designed for.

    Args:
      name: of a model, in any spelling that `canonical` accepts.

    Raises:
      ValueError: as for `canonical`.

    >>> input_size("resnet34"), input_size("inception_v3"), input_size("timm/test_vit")
    (224, 299, 160)
    """
    name = canonical(name)
    return timm_networks.input_size(name) if is_timm(name) else torchvision_networks.input_size(name)


def construct(name: str, classes: int, image_size: int, drops: Mapping[str, float]) -> torch.nn.Module:
    """The model as its library builds it, on the device and with the random numbers of the context.

    Args:
      name: as `canonical` returns it.
      drops: `dropout` and `drop_path`, where they are not to be the network's own.
    """
    if is_timm(name):
        return timm_networks.construct(name, classes, image_size, drops)
    return torchvision_networks.construct(name, classes, image_size, drops)


def _known(in_timm: bool) -> list[str]:
    return [TIMM + name for name in timm_networks.names()] if in_timm else torchvision_networks.names()
