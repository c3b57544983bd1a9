"""Mixing the examples of a batch, on the device, inside the step, with draws from a key.

Every example is mixed with its partner, the one before it (the first with the last), all in the same way.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

import ftrain.random

__all__ = ["Mix", "cutmix", "either", "mixup"]


@runtime_checkable
class Mix(Protocol):
    """A pure function that mixes a batch; `mixup`, `cutmix` and `either` make one.

    Args:
      key: determines the mixing.
      images: in any range.
      labels: class numbers in [0, classes); or probabilities over the classes, which sum to one, or if an example may
        have several labels, are 1 for each class that applies.
      weights: how much each example counts. An example whose partner has weight 0 (is ignored) is not changed.

    Returns:
      The mixed images, with the range and dtype of the given ones (float32 for uint8), and the class probabilities of
      each.

    Raises:
      ValueError: for probabilities over a different number of classes.
    """

    def __call__(
        self,
        key: Int64[Tensor, "2"],
        images: UInt8[Tensor, "B C H W"] | Float[Tensor, "B C H W"],
        labels: Int64[Tensor, "B"] | Float[Tensor, "B classes"],
        weights: Float[Tensor, "B"],
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B classes"]]: ...


def mixup(alpha: float, *, classes: int) -> Mix:
    """Averages each image and label with its partner's, with weights l and 1 - l. There is one l ~ Beta(alpha, alpha)
    for the batch (Zhang et al., mixup: Beyond empirical risk minimization, 2018).

    Args:
      alpha: positive; the smaller it is, the nearer l is to 0 or 1. 0.2 is usual.
      classes: the number of classes.

    Raises:
      ValueError: for an argument out of range.

    >>> images, labels = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), torch.tensor([0, 1])
    >>> mixed, targets = mixup(1.0, classes=2)(ftrain.random.key(0), images, labels, torch.ones(2))
    >>> targets.sum(dim=1).tolist(), bool(mixed[0, 0, 0, 0] == targets[0, 1])
    ([1.0, 1.0], True)
    """
    _check(alpha, classes)

    def mix(key: Tensor, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        images, targets = _floats(images), _probabilities(labels, classes)
        own = ftrain.random.beta(key, alpha, alpha)
        return _blend(images, own, weights), _blend(targets, own, weights)

    return mix


def cutmix(alpha: float, *, classes: int) -> Mix:
    """Replaces a box of each image with its partner's pixels, and averages the labels by area (Yun et al., CutMix,
    2019, section 3). A box that extends past the edge is clipped, and its area is that of the clipped box.

    Args:
      alpha: positive; before clipping, the fraction of an image that is not replaced is l ~ Beta(alpha, alpha), one for
        the batch. 1, the uniform distribution, is usual.
      classes: the number of classes.

    Raises:
      ValueError: for an argument out of range.

    >>> images, labels = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8), torch.tensor([0, 1])
    >>> mixed, targets = cutmix(1.0, classes=2)(ftrain.random.key(1), images, labels, torch.ones(2))
    >>> bool((mixed[0].mean() - targets[0, 1]).abs() < 1e-6)
    True
    """
    _check(alpha, classes)

    def mix(key: Tensor, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        images, targets = _floats(images), _probabilities(labels, classes)
        height, width = images.shape[-2:]
        area_key, place_key = ftrain.random.split(key).unbind()
        # Half a side of the box, as a fraction of the image's.
        reach = 0.5 * torch.sqrt(1.0 - ftrain.random.beta(area_key, alpha, alpha))
        x, y = ftrain.random.uniform(place_key, (2,)).unbind()
        columns, box_width = _span(x, width, reach)
        rows, box_height = _span(y, height, reach)
        own = 1.0 - box_width * box_height / (height * width)
        inside = rows[:, None] & columns & _has_partner(images, weights)
        return torch.where(inside, images.roll(1, 0), images), _blend(targets, own, weights)

    return mix


def either(*mixes: Mix) -> Mix:
    """One of the mixes for each batch, all equally likely.

    Raises:
      ValueError: if there is no mix to choose from.

    >>> mix = either(mixup(0.2, classes=10), cutmix(1.0, classes=10))
    >>> mixed, targets = mix(ftrain.random.key(0), torch.zeros(4, 3, 8, 8), torch.arange(4), torch.ones(4))
    >>> mixed.shape, targets.shape
    (torch.Size([4, 3, 8, 8]), torch.Size([4, 10]))
    """
    if not mixes:
        raise ValueError("either needs at least one mix; got none")

    def mix(key: Tensor, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        choice_key, *keys = ftrain.random.split(key, 1 + len(mixes)).unbind()
        choice = ftrain.random.bits(choice_key) % len(mixes)
        # All are computed, because only the device knows the choice.
        mixed_images, targets = mixes[0](keys[0], images, labels, weights)
        for number in range(1, len(mixes)):
            other_images, other_targets = mixes[number](keys[number], images, labels, weights)
            mixed_images = torch.where(choice == number, other_images, mixed_images)
            targets = torch.where(choice == number, other_targets, targets)
        return mixed_images, targets

    return mix


def _check(alpha: float, classes: int) -> None:
    if not 0.0 < alpha < math.inf:
        raise ValueError(f"`alpha` must be positive and finite; got {alpha}")
    if classes < 1:
        raise ValueError(f"`classes` must be at least 1; got {classes}")


def _floats(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.float()


def _probabilities(labels: Tensor, classes: int) -> Tensor:
    if labels.is_floating_point():
        if labels.shape[-1] != classes:
            raise ValueError(f"labels that are probabilities must have {classes} classes; got {labels.shape[-1]}")
        return labels.float()
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def _has_partner(values: Tensor, weights: Tensor) -> Tensor:
    """Whether an example's partner has a weight above 0, bool [B, 1, ...] with the dimensions of `values`."""
    return (weights.roll(1) > 0).reshape(-1, *(1 for _ in values.shape[1:]))


def _blend(values: Tensor, own: Tensor, weights: Tensor) -> Tensor:
    own = own.to(values.dtype)
    mixed = own * values + (1.0 - own) * values.roll(1, 0)
    return torch.where(_has_partner(values, weights), mixed, values)


def _span(centre: Tensor, size: int, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Which of `size` pixels in a row are within reach * size of the one at centre * size, bool [size], and their
    number."""
    centre, half = (centre * size).long(), (reach * size).long()
    place = torch.arange(size, device=centre.device)
    inside = (place >= centre - half) & (place < centre + half)
    return inside, inside.sum()
