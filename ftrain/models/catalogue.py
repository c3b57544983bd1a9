"""The names of torchvision's classification models, and the image sizes that each of them can be trained on."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import re

import torchvision

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


def names(pattern: str | None = None) -> list[str]:
    """The names of torchvision's classification models, in alphabetical order.

    Args:
      pattern: lists only the names that contain it or, if it has a `*`, `?` or `[`, the names that it matches in full.
        Case does not matter.

    >>> names("vit_?_32")
    ['vit_b_32', 'vit_l_32']
    """
    found = sorted(torchvision.models.list_models(module=torchvision.models))
    if pattern is None:
        return found
    wanted = pattern.lower()
    if any(sign in wanted for sign in "*?["):
        return [name for name in found if fnmatch.fnmatchcase(name, wanted)]
    return [name for name in found if wanted in name]


def canonical(name: str) -> str:
    """torchvision's spelling of a model's name.

    Args:
      name: in any case, with `-`, `.`, `_`, spaces or nothing between its parts.

    Raises:
      ValueError: if no model has this name, or more than one does.

    >>> canonical("ResNet-34"), canonical("ViT_B_16")
    ('resnet34', 'vit_b_16')
    """
    known = names()
    spelled = re.sub(r"[-. ]", "_", name.strip().lower())
    if spelled in known:
        return spelled
    # Without separators two models can share a name: regnet_x_16gf and regnet_x_1_6gf.
    same = [other for other in known if _squashed(other) == _squashed(spelled)]
    if len(same) == 1:
        return same[0]
    near = same or difflib.get_close_matches(spelled, known, n=3)
    hint = f"the closest names are {', '.join(near)}" if near else "no name is similar"
    raise ValueError(
        f"`model` must be one of torchvision's {len(known)} classifiers, got {name!r}; {hint}. "
        "The command ftrain models lists all names"
    )


def has_pretrained(name: str) -> bool:
    """Whether there are pretrained weights of a model, which `weights="DEFAULT"` downloads.

    Args:
      name: of a model, in any spelling that `canonical` accepts.

    Raises:
      ValueError: if no model has this name.

    >>> has_pretrained("resnet34"), has_pretrained("mnasnet0_5")
    (True, True)
    """
    return len(torchvision.models.get_model_weights(canonical(name))) > 0


def smallest_size(name: str) -> int:
    """The side in pixels of the smallest square images that a model can be trained on.

    On smaller images some layer runs out of pixels. With small batches, a model with BatchNorm needs more than this:
    images of up to 32 px usually shrink to feature maps of one pixel, where a batch of 2 leaves two values to normalise
    over, and gradients explode.

    Args:
      name: of a model, in any spelling that `canonical` accepts.

    Raises:
      ValueError: if no model has this name.

    >>> smallest_size("resnet34"), smallest_size("vgg11")
    (1, 32)
    """
    name = canonical(name)
    return next((size for family, size in _SMALLEST.items() if name.startswith(family)), 1)


def fits(name: str, size: int) -> bool:
    """Whether a model can be trained on square images of `size` px.

    Args:
      name: of the model, as `canonical` returns it.
      size: the side of the images in pixels.

    Raises:
      ValueError: if no model has this name.

    >>> fits("vit_b_16", 224), fits("vit_b_16", 100)
    (True, False)
    """
    smallest = smallest_size(name)
    if name.startswith("maxvit"):
        # Five strides of 2, each rounding up, must leave a multiple of 7 from the second on.
        return size >= smallest and -(-size // 4) % 56 == 0
    if name.startswith("vit"):
        return size >= smallest and size % smallest == 0  # the smallest image is one patch
    return size >= smallest


def check_size(name: str, image_size: int) -> None:
    """Raises an error unless a model can be trained on square images of this size.

    Args:
      name: of a model, in any spelling that `canonical` accepts.
      image_size: the side of the images in pixels.

    Raises:
      ValueError: if it cannot, with the closest sizes that are possible; or if no model has this name.

    >>> check_size("vit_b_16", 100)
    Traceback (most recent call last):
    ValueError: vit_b_16 needs images whose side is a multiple of 16 px, but `image_size` is 100; use 96 or 112
    """
    name = canonical(name)
    if fits(name, image_size):
        return
    smallest = smallest_size(name)
    below = next((size for size in range(image_size - 1, smallest - 1, -1) if fits(name, size)), None)
    above = next(size for size in itertools.count(max(image_size + 1, smallest)) if fits(name, size))
    nearest = f"{above}" if below is None else f"{below} or {above}"
    raise ValueError(f"{name} needs images {_requirement(name)}, but `image_size` is {image_size}; use {nearest}")


def _requirement(name: str) -> str:
    if name.startswith("maxvit"):
        return "whose side is a multiple of 224 px, or up to 3 px less"
    if name.startswith("vit"):
        return f"whose side is a multiple of {smallest_size(name)} px"
    return f"of at least {smallest_size(name)} px"


def _squashed(name: str) -> str:
    return name.replace("_", "")
