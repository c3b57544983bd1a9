"""Mixing of the examples of a batch, drawn from a key, on the device and inside the step.

Every example is mixed with the one before it (the first with the last), all in the same way.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

import ftrain.random


@runtime_checkable
class Mix(Protocol):
    """A pure function that mixes a batch; `mixup`, `cutmix` and `either` make one.

    Args:
      key: what the mixing follows from.
      images: of any range.
      labels: class numbers in [0, classes), or probabilities that sum to one over the classes.
      weights: what each example counts. An example whose partner has weight 0 (is left out) stays as it is.

    Returns:
      The mixed images, in the range and dtype they came in (float32 for uint8), and for each the probabilities of the
      classes.

    Raises:
      ValueError: for probabilities over another number of classes.
    """

    def __call__(
        self,
        key: Int64[Tensor, "2"],
        images: UInt8[Tensor, "B C H W"] | Float[Tensor, "B C H W"],
        labels: Int64[Tensor, "B"] | Float[Tensor, "B classes"],
        weights: Float[Tensor, "B"],
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B classes"]]: ...


def mixup(alpha: float, *, classes: int) -> Mix:
    """Images and labels are l times the example's and 1 - l times its partner's, with l ~ Beta(alpha, alpha), one for
    the batch (Zhang et al., mixup: Beyond empirical risk minimization, 2018).

    Args:
      alpha: positive; the smaller, the nearer l is to 0 or 1. 0.2 is usual.
      classes: how many there are.
    """
    _check(alpha, classes)

    def mix(key: Tensor, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        images, targets = _floats(images), _probabilities(labels, classes)
        own = ftrain.random.beta(key, alpha, alpha)
        return _blend(images, own, weights), _blend(targets, own, weights)

    return mix


def cutmix(alpha: float, *, classes: int) -> Mix:
    """A box of the image is the partner's, and the labels are mixed by its share of the area (Yun et al., CutMix, 2019,
    section 3). Where the box reaches over the edge it is cut off, and the share is that of what is left.

    Args:
      alpha: positive; before that cut the share of the image that stays its own is l ~ Beta(alpha, alpha), one for the
        batch. 1, all shares alike, is usual.
      classes: how many there are.
    """
    _check(alpha, classes)

    def mix(key: Tensor, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        images, targets = _floats(images), _probabilities(labels, classes)
        height, width = images.shape[-2:]
        share_key, place_key = ftrain.random.split(key).unbind()
        reach = 0.5 * torch.sqrt(1.0 - ftrain.random.beta(share_key, alpha, alpha))  # half a side, of the image's
        x, y = ftrain.random.uniform(place_key, (2,)).unbind()
        columns, box_width = _span(x, width, reach)
        rows, box_height = _span(y, height, reach)
        own = 1.0 - box_width * box_height / (height * width)
        inside = rows[:, None] & columns & _has_partner(images, weights)
        return torch.where(inside, images.roll(1, 0), images), _blend(targets, own, weights)

    return mix


def either(*mixes: Mix) -> Mix:
    """One of the mixes for each batch, each as likely.

    Raises:
      ValueError: without a mix to choose from.
    """
    if not mixes:
        raise ValueError("either needs at least one mix to choose from; got none")

    def mix(key: Tensor, images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        choice_key, *keys = ftrain.random.split(key, 1 + len(mixes)).unbind()
        choice = ftrain.random.bits(choice_key) % len(mixes)
        # All are computed, for the choice is known only on the device.
        mixed_images, targets = mixes[0](keys[0], images, labels, weights)
        for number in range(1, len(mixes)):
            other_images, other_targets = mixes[number](keys[number], images, labels, weights)
            mixed_images = torch.where(choice == number, other_images, mixed_images)
            targets = torch.where(choice == number, other_targets, targets)
        return mixed_images, targets

    return mix


def _check(alpha: float, classes: int) -> None:
    if not 0.0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive and finite; got {alpha}")
    if classes < 1:
        raise ValueError(f"classes must be at least 1; got {classes}")


def _floats(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.float()


def _probabilities(labels: Tensor, classes: int) -> Tensor:
    if labels.is_floating_point():
        if labels.shape[-1] != classes:
            raise ValueError(f"the labels must be probabilities of {classes} classes; got {labels.shape[-1]}")
        return labels.float()
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def _has_partner(values: Tensor, weights: Tensor) -> Tensor:
    """Whether an example's partner counts, bool [B, 1, ...] with the dimensions of `values`."""
    return (weights.roll(1) > 0).reshape(-1, *(1 for _ in values.shape[1:]))


def _blend(values: Tensor, own: Tensor, weights: Tensor) -> Tensor:
    own = own.to(values.dtype)
    mixed = own * values + (1.0 - own) * values.roll(1, 0)
    return torch.where(_has_partner(values, weights), mixed, values)


def _span(centre: Tensor, size: int, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Which of `size` pixels in a row lie within reach * size of that at centre * size, bool [size], and how many."""
    centre, half = (centre * size).long(), (reach * size).long()
    place = torch.arange(size, device=centre.device)
    inside = (place >= centre - half) & (place < centre + half)
    return inside, inside.sum()
