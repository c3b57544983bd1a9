"""Which parameters have weight decay."""

from __future__ import annotations

from ftrain.optim.base import Mask, Tensors


def matrices_only(params: Tensors) -> dict[str, bool]:
    """A weight-decay mask that excludes norms, biases, class tokens and layer scales: true for parameters with more
    than one entry along at least two dimensions. (Position embeddings are among them, and are decayed.)

    >>> import torch
    >>> matrices_only({"weight": torch.zeros(3, 4), "bias": torch.zeros(3), "scale": torch.zeros(1, 3)})
    {'weight': True, 'bias': False, 'scale': False}
    """
    return {name: sum(side > 1 for side in param.shape) >= 2 for name, param in params.items()}


def decay_groups(params: Tensors, weight_decay: float, mask: Mask | None) -> list[tuple[float, list[str]]]:
    """The names of the parameters, in groups of equal weight decay."""
    if weight_decay == 0.0 or mask is None:
        return [(weight_decay, list(params))]
    decayed = mask(params)
    groups = [
        (weight_decay, [name for name in params if decayed[name]]),
        (0.0, [name for name in params if not decayed[name]]),
    ]
    return [(decay, names) for decay, names in groups if names]


def add_decay(grads: Tensors, params: Tensors, weight_decay: float, mask: Mask | None) -> Tensors:
    """The gradients plus the weight decay times the parameters, where the mask is true."""
    decays = {name: decay for decay, names in decay_groups(params, weight_decay, mask) for name in names}
    return {name: grads[name] + decays[name] * params[name] if decays[name] else grads[name] for name in params}
