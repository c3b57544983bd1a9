"""Groups of a network's parameters, found by their names: the head, what is frozen, and how deep each layer lies."""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ftrain.optim import LrFactors
from ftrain.torch_private import BatchNorm

# How many layers `layer_decay` counts in every network: as many as ViT-B has, for which the usual values were found.
LAYERS = 12
_CONTAINERS = ("blocks", "layers")  # between the number of a stage and that of a block in it


def head(module: torch.nn.Module, other: torch.nn.Module) -> tuple[str, ...]:
    """The names of the parameters of the head, which maps features to logits.

    Args:
      other: the same network for another number of classes. The head is where the shapes differ.

    >>> make = lambda classes: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, classes))
    >>> head(make(2), make(3))
    ('1.weight', '1.bias')
    """
    shapes = {name: param.shape for name, param in module.named_parameters()}
    others = {name: param.shape for name, param in other.named_parameters()}
    return tuple(name for name, shape in shapes.items() if others.get(name, shape) != shape)


def last_layer(module: torch.nn.Module, classes: int) -> tuple[str, ...]:
    """The names of the parameters of the last linear or convolutional layer that has one output for each class: the
    head of a network that cannot be built for another number of classes. Empty if there is no such layer.

    >>> last_layer(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3), torch.nn.LayerNorm(3)), 3)
    ('1.weight', '1.bias')
    """
    kinds = torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d
    layers = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, kinds) and layer.weight.shape[0] == classes
    ]
    if not layers:
        return ()
    name, layer = layers[-1]
    return tuple(f"{name}.{each}" if name else each for each, _ in layer.named_parameters())


def batch_norms(module: torch.nn.Module) -> tuple[str, ...]:
    """The names of the parameters of BatchNorm layers.

    >>> batch_norms(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.LayerNorm(8)))
    ('1.weight', '1.bias')
    """
    return tuple(
        f"{name}.{each}" if name else each
        for name, layer in module.named_modules()
        if isinstance(layer, BatchNorm)
        for each, _ in layer.named_parameters(recurse=False)
    )


def matching(names: Collection[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """The names of parameters that match one of several patterns.

    Args:
      patterns: each matches whole names of parameters, or of a layer or block with everything in it. `*`, `?` and
        `[...]` have their usual meaning.

    Raises:
      ValueError: if a pattern matches none of the names.

    >>> matching(["conv1.weight", "layer1.0.conv1.weight", "fc.weight", "fc.bias"], ["conv1", "layer[12]"])
    ('conv1.weight', 'layer1.0.conv1.weight')
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = [n for n in names if fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(n, f"{pattern}.*")]
        if not found:
            tops = list(dict.fromkeys(block(name) or name.partition(".")[0] for name in names))
            raise ValueError(f"no parameter matches {pattern!r}; the network has the layers {', '.join(tops)}")
        chosen.update(found)
    return tuple(name for name in names if name in chosen)


def layer_decay(
    names: Sequence[str], decay: float, *, head: Collection[str] = (), head_factor: float = 1.0
) -> LrFactors:
    """Learning rates that fall from the head to the first layer: the factor of a layer is decay ** depth.

    Depth is counted in twelfths of the network, rounded up: 1 for the blocks next to the head, 12 for the first. So a
    value means the same in every network. (Layer-wise learning-rate decay: Bao et al., BEiT, 2022; Clark et al.,
    ELECTRA, 2020.)

    Args:
      names: of all parameters of the network, in the order of their definition, whether they are trained or not.
      decay: > 0 and <= 1; 1 for no decay.
      head: the names of the parameters of the head, whose depth is 0.
      head_factor: the factor of the head.

    Raises:
      ValueError: if `decay` or `head_factor` is out of range.

    >>> names = ["conv1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight", "fc.weight"]
    >>> factors = layer_decay(names, 0.5, head=["fc.weight"])
    >>> factors(dict.fromkeys(names, torch.zeros(())))
    {'conv1.weight': 0.000244140625, 'layer1.0.conv1.weight': 0.00390625, 'layer1.1.conv1.weight': 0.0625, \
'fc.weight': 1.0}
    """
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"`layer_decay` must be a number > 0 and <= 1; got {decay}")
    if not 0.0 < head_factor < math.inf:
        raise ValueError(f"`head_factor` must be a number > 0; got {head_factor}")
    backbone = [name for name in names if name not in head]
    blocks = [list(group) for _, group in itertools.groupby(backbone, block)]
    factors = dict.fromkeys(head, head_factor)
    for position, group in enumerate(blocks):
        depth = math.ceil(LAYERS * (len(blocks) - position) / len(blocks))
        factors |= dict.fromkeys(group, decay**depth)

    def lr_factors(params: Mapping[str, Tensor]) -> dict[str, float]:
        return {name: factors[name] for name in params}

    return lr_factors


def block(name: str) -> str:
    """The name of the numbered block of a network that a parameter belongs to; "" outside of all blocks.

    >>> [block(name) for name in ("layer1.0.conv1.weight", "blocks.2.norm.bias", "features.3.weight", "conv1.weight")]
    ['layer1.0', 'blocks.2', 'features.3', '']
    >>> block("encoder.layers.encoder_layer_11.mlp.0.weight"), block("stages.2.blocks.8.conv_dw.weight")
    ('encoder.layers.encoder_layer_11', 'stages.2.blocks.8')
    >>> block("stage2.0.branch1.2.weight"), block("inception3a.branch2.0.conv.weight")
    ('stage2.0', 'inception3a')
    """
    *outer, leaf = name.split(".")[:-1] or [""]
    end = 0  # of the name of the block
    for at, part in enumerate(outer):
        if _is_numbered(part):
            end = at + 1
        elif end and part not in _CONTAINERS:
            break
    if not end and leaf.isdecimal():  # in a network that is one sequence of layers
        return ".".join([*outer, leaf])
    return ".".join(outer[:end])


def _is_numbered(part: str) -> bool:
    return re.search(r"\d[a-z]?$", part) is not None and not part.startswith("branch")
