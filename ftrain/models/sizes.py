"""The image sizes that a model can be trained on."""

from __future__ import annotations

import itertools

from ftrain.models import torchvision_networks
from ftrain.models.catalogue import canonical, input_size
from ftrain.models.skeleton import runs_at
from ftrain.models.spelling import is_timm

_STEPS = (8, 14, 16, 32)  # px, of which networks usually need a multiple


def fits(name: str, size: int) -> bool:
    """Whether a model can be trained on square images of `size` px.

    A model of timm is tried, without data, which takes about a second.

    Args:
      name: of the model, as `canonical` returns it.
      size: the side of the images in pixels.

    Raises:
      ValueError: if no model has this name.

    >>> fits("vit_b_16", 224), fits("vit_b_16", 100), fits("timm/test_vit", 64), fits("timm/test_vit", 65)
    (True, False, True, False)
    """
    name = canonical(name)
    return runs_at(name, size) if is_timm(name) else torchvision_networks.fits(name, size)


def next_size(name: str, size: int) -> int:
    """The first of `size`, `size` + 32, `size` + 64 ... px that a model can be trained on; for a model of timm, at the
    latest the size that it was designed for.

    Args:
      name: of the model, as `canonical` returns it.
      size: the side of square images in pixels.

    Raises:
      ValueError: if no model has this name.

    >>> next_size("vgg11", 8), next_size("maxvit_t", 160), next_size("timm/test_vit", 48)
    (40, 224, 48)
    """
    designed = input_size(name)
    sizes = itertools.takewhile(lambda each: each < designed or not is_timm(name), itertools.count(size, 32))
    return next((each for each in sizes if fits(name, each)), designed)


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
    if is_timm(name):
        near = _near(name, image_size)
        raise ValueError(
            f"{name}, which was designed for images of {input_size(name)} px, cannot be trained with "
            f"`image_size={image_size}`; use {' or '.join(map(str, near))}"
        )
    smallest = torchvision_networks.smallest_size(name)
    below = next((size for size in range(image_size - 1, smallest - 1, -1) if fits(name, size)), None)
    above = next(size for size in itertools.count(max(image_size + 1, smallest)) if fits(name, size))
    nearest = f"{above}" if below is None else f"{below} or {above}"
    needed = torchvision_networks.requirement(name)
    raise ValueError(f"{name} needs images {needed}, but `image_size` is {image_size}; use {nearest}")


def _near(name: str, image_size: int) -> list[int]:
    """Sizes near `image_size` that a model of timm can be trained on: at most one below it and one above, or only that
    which it was designed for."""
    below = {image_size // step * step for step in _STEPS} - {0}
    above = {(image_size // step + 1) * step for step in _STEPS}
    found = [
        next((size for size in sizes if runs_at(name, size)), None)
        for sizes in (sorted(below, reverse=True), sorted(above))
    ]
    return [size for size in found if size is not None] or [input_size(name)]
