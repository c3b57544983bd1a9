"""Building a network whose initial parameters depend on a seed alone."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torchvision

from ftrain.models.catalogue import canonical, check_size


def build(name: str, *, classes: int, image_size: int, seed: int) -> torch.nn.Module:
    """One of torchvision's classifiers with freshly initialised float32 parameters, on the CPU and in train mode.

    The parameters depend on the arguments alone. The global random state is neither read nor changed.

    Args:
      name: of a model, in any spelling that `canonical` accepts.
      classes: the number of logits, at least 1.
      image_size: the side in pixels of the square images. A vision transformer is built for this size and no other.
      seed: an integer in [0, 2**64).

    Raises:
      ValueError: if no model has this name, if it cannot be trained on images of this size, or if `classes` or `seed`
        is out of range.

    >>> module = build("resnet18", classes=10, image_size=32, seed=0)
    >>> module(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    with seeded(seed):
        return construct(name, classes, image_size)


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Within it, torch makes tensors on the CPU and draws random numbers from `seed`. Afterwards, the global random
    state is what it was before.

    Raises:
      ValueError: if `seed` is not in [0, 2**64).
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"`seed` must be an integer from 0 to 2**64 - 1, got {seed}")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed, which would also seed the GPUs' generators, and fork_rng(devices=[]) does not restore
        # those.
        torch.default_generator.manual_seed(seed)
        yield


def construct(name: str, classes: int, image_size: int) -> torch.nn.Module:
    """The model as `build` makes it, on the device and with the random numbers of the context."""
    name = canonical(name)
    check_size(name, image_size)
    if classes < 1:
        raise ValueError(f"`classes` must be at least 1, got {classes}")
    options: dict[str, Any] = {}
    if name.startswith("vit"):
        options["image_size"] = image_size
    if name.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # the default, but torchvision warns if it is not given
        options["transform_input"] = True  # from ImageNet's mean and std to those of the pretrained weights
    module: torch.nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    return module
