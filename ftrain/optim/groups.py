"""Groups of parameters: which have weight decay, and by what factor the learning rate of each is multiplied."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from ftrain.optim.base import LrFactors, Mask, Tensors


def matrices_only(params: Tensors) -> dict[str, bool]:
    """A weight-decay mask that excludes norms, biases, class tokens and layer scales: true for parameters with more
    than one entry along at least two dimensions. (Position embeddings are among them, and are decayed.)

    >>> import torch
    >>> matrices_only({"weight": torch.zeros(3, 4), "bias": torch.zeros(3), "scale": torch.zeros(1, 3)})
    {'weight': True, 'bias': False, 'scale': False}
    """
    return {name: sum(side > 1 for side in param.shape) >= 2 for name, param in params.items()}


class Group(NamedTuple):
    """Parameters with the same weight decay and learning rate, which one call of a kernel updates."""

    weight_decay: float
    lr_factor: float
    names: list[str]

    def rate(self, rate: Tensor) -> Tensor:
        """The learning rate of the group."""
        return rate if self.lr_factor == 1.0 else rate * self.lr_factor


class Grouping(NamedTuple):
    """How an optimizer groups parameters.

    Attributes:
      weight_decay: of the parameters that have any.
      mask: which these are; None for all.
      lr_factors: by what the learning rate of a parameter is multiplied; None for 1.
    """

    weight_decay: float
    mask: Mask | None
    lr_factors: LrFactors | None

    def groups(self, params: Tensors) -> list[Group]:
        """The groups, each parameter in one of them.

        Raises:
          ValueError: for a factor that is negative or not finite.
        """
        decayed = self.mask(params) if self.mask and self.weight_decay else dict.fromkeys(params, True)
        factors = self.lr_factors(params) if self.lr_factors else dict.fromkeys(params, 1.0)
        found: dict[tuple[float, float], list[str]] = {}
        for name in params:
            if not 0.0 <= factors[name] < math.inf:
                raise ValueError(f"`lr_factors` must return numbers >= 0; got {factors[name]} for {name}")
            found.setdefault((self.weight_decay if decayed[name] else 0.0, factors[name]), []).append(name)
        return [Group(decay, factor, names) for (decay, factor), names in found.items()]

    def add_decay(self, grads: Tensors, params: Tensors) -> Tensors:
        """The gradients plus the weight decay times the parameters that have any."""
        decayed = [name for group in self.groups(params) if group.weight_decay for name in group.names]
        return {**grads, **{name: grads[name] + self.weight_decay * params[name] for name in decayed}}

    def descend(self, params: Tensors, direction: Tensors, rate: Tensor) -> Tensors:
        """The parameters minus their learning rates times a direction."""
        rates = {name: group.rate(rate) for group in self.groups(params) for name in group.names}
        return {name: param - rates[name].to(param.dtype) * direction[name] for name, param in params.items()}
