"""Building a network whose initial parameters depend on a seed alone."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from ftrain.models.catalogue import canonical, construct
from ftrain.models.sizes import check_size
from ftrain.models.skeleton import has_drop


def build(
    name: str,
    *,
    classes: int,
    image_size: int,
    seed: int,
    dropout: float | None = None,
    drop_path: float | None = None,
) -> torch.nn.Module:
    """A classifier of torchvision or timm with freshly initialised float32 parameters, on the CPU and in train mode.

    The parameters depend on the arguments alone. The global random state is neither read nor changed.

    Args:
      name: of a model, in any spelling that `canonical` accepts.
      classes: the number of logits, at least 1.
      image_size: the side in pixels of the square images. A vision transformer is built for this size and no other.
      seed: an integer in [0, 2**64).
      dropout: the probability of dropout, in [0, 1); None for the model's own.
      drop_path: the probability of skipping a residual block (stochastic depth; Huang et al., 2016), in [0, 1). It
        rises with depth to this value. None for the model's own.

    Raises:
      ValueError: if no model has this name, if it cannot be trained on images of this size, if it has no such dropout,
        or if `classes` or `seed` is out of range.

    >>> module = build("resnet18", classes=10, image_size=32, seed=0)
    >>> module(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    name = canonical(name)
    check_size(name, image_size)
    if classes < 1:
        raise ValueError(f"`classes` must be at least 1, got {classes}")
    drops = {kind: rate for kind, rate in (("dropout", dropout), ("drop_path", drop_path)) if rate is not None}
    for kind in drops:
        if not has_drop(name, kind, image_size):
            what = {"dropout": "dropout", "drop_path": "drop path (stochastic depth)"}[kind]
            raise ValueError(f"{name} has no {what}, so `{kind}` cannot be set")
    with seeded(seed):
        return construct(name, classes, image_size, drops)


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
