"""Initialising a network's weights anew, from a seed and not from the global random state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

Init = Literal["default", "kaiming", "xavier", "orthogonal", "trunc-normal"]

NEW_LAYER_STD = 0.01
_WEIGHTED = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def initialize(module: torch.nn.Module, init: Init, *, seed: int) -> None:
    """Initialises the weights of convolutions and linear layers, in place; their biases become 0.

    Norms, embeddings and other parameters keep their values. The query, key and value of `nn.MultiheadAttention` count
    as three linear layers.

    Args:
      module: the network.
      init: `default` changes nothing. `kaiming` is normal with variance 2 / fan_in (He et al., Delving deep into
        rectifiers, 2015, equation 10); `xavier` is uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio,
        2010, equation 16); `orthogonal` makes the weight, with all but its first dimension flattened, a random
        orthogonal matrix (Saxe et al., 2014); `trunc-normal` is normal with standard deviation 0.02, as in vision
        transformers.
      seed: an integer in [0, 2**64).

    >>> layer = torch.nn.Conv2d(3, 8, 3)
    >>> initialize(layer, "orthogonal", seed=0)
    >>> torch.allclose(layer.weight.flatten(1) @ layer.weight.flatten(1).T, torch.eye(8), atol=1e-5), layer.bias.sum()
    (True, tensor(0., grad_fn=<SumBackward0>))
    """
    if init == "default":
        return
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            for weight in _weights(layer):
                _FILL[init](weight, generator)
            for bias in _biases(layer):
                bias.zero_()


def start_small(module: torch.nn.Module, names: Collection[str], *, seed: int) -> None:
    """Initialises new linear and convolutional layers of a pretrained network, in place: their weights are normal with
    standard deviation 0.01, and their biases 0.

    A head that starts so predicts every class with nearly the same probability, whatever the scale of the features.
    Its first gradients are then small, and those of the backbone smaller still. (Girshick, Fast R-CNN, 2015, section
    3.2, initialises the layers on top of a pretrained network in this way.)

    Args:
      names: of the parameters to initialise; those of other kinds of layers keep their values.
      seed: an integer in [0, 2**64).

    >>> module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
    >>> start_small(module, ["1.weight", "1.bias"], seed=0)
    >>> bool(module[1].weight.abs().max() < 0.05), module[1].bias.tolist()
    (True, [0.0, 0.0, 0.0])
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = set(names)
    with torch.no_grad():
        for prefix, layer in module.named_modules():
            if not isinstance(layer, _WEIGHTED):
                continue
            for name, param in layer.named_parameters(recurse=False):
                if f"{prefix}.{name}".lstrip(".") not in chosen:
                    continue
                if name == "weight":
                    nn.init.normal_(param, std=NEW_LAYER_STD, generator=generator)
                elif name == "bias":
                    param.zero_()


def _kaiming(weight: Tensor, generator: torch.Generator) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)


def _xavier(weight: Tensor, generator: torch.Generator) -> None:
    nn.init.xavier_uniform_(weight, generator=generator)


def _orthogonal(weight: Tensor, generator: torch.Generator) -> None:
    nn.init.orthogonal_(weight, generator=generator)


def _trunc_normal(weight: Tensor, generator: torch.Generator) -> None:
    nn.init.trunc_normal_(weight, std=0.02, generator=generator)


_FILL: dict[str, Callable[[Tensor, torch.Generator], None]] = {
    "kaiming": _kaiming,
    "xavier": _xavier,
    "orthogonal": _orthogonal,
    "trunc-normal": _trunc_normal,
}


def _weights(layer: torch.nn.Module) -> Iterator[Tensor]:
    own = dict(layer.named_parameters(recurse=False))  # without a weight that a parametrization computes
    if isinstance(layer, _WEIGHTED) and "weight" in own:
        yield own["weight"]
    if isinstance(layer, nn.MultiheadAttention):
        if "in_proj_weight" in own:
            yield from own["in_proj_weight"].chunk(3)
        yield from (own[name] for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight") if name in own)


def _biases(layer: torch.nn.Module) -> Iterator[Tensor]:
    own = dict(layer.named_parameters(recurse=False))
    if isinstance(layer, _WEIGHTED) and "bias" in own:
        yield own["bias"]
    if isinstance(layer, nn.MultiheadAttention) and "in_proj_bias" in own:
        yield own["in_proj_bias"]
