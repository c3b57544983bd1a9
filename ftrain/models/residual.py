"""The last norms of residual blocks, found by watching the network compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ftrain.torch_private import pytree

_NORMS = frozenset(("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"))
_LAYERS = frozenset(("conv1d", "conv2d", "conv3d", "linear", "matmul", "multi_head_attention_forward"))
_ADD = frozenset(("add", "add_", "__add__", "__iadd__", "__radd__"))
# What may follow the norm: scaling, as by squeeze-and-excitation, and what changes no value in evaluation.
_AFTER = frozenset(("mul", "mul_", "__mul__", "__imul__", "__rmul__", "dropout", "permute", "contiguous"))


def zero_init_residual(module: torch.nn.Module, image_size: int) -> list[str]:
    """Sets the scale of the last norm of each residual block to 0, in place, so that the block starts as the identity
    (Goyal et al., Accurate, large minibatch SGD, 2017, section 5.1).

    A residual block is where two tensors are added, one of which has passed through more layers than the other. Its
    last norm is the one whose output, possibly scaled, is the tensor from more layers. If that is not the output of a
    norm, as in most transformers, the block is left as it is.

    Args:
      module: the network, for images float [B, 3, S, S].
      image_size: the side in pixels of the square images.

    Returns:
      The names of the parameters that are now 0.

    Raises:
      ValueError: if no residual block ends with a norm.

    >>> from ftrain import models
    >>> zero_init_residual(models.build("resnet18", classes=10, image_size=32, seed=0), 32)[:2]
    ['layer1.0.bn2.weight', 'layer1.1.bn2.weight']
    """
    modes = {layer: layer.training for layer in module.modules()}
    watch = _Watch()
    try:
        with torch.no_grad(), watch:
            module.eval()(torch.zeros(1, 3, image_size, image_size))
    finally:
        for layer, mode in modes.items():
            layer.training = mode
    found = {name: parameter for name, parameter in module.named_parameters() if id(parameter) in watch.last}
    if not found:
        raise ValueError("`zero_init_residual` has no effect: no residual block of the network ends with a norm")
    with torch.no_grad():
        for parameter in found.values():
            parameter.zero_()
    return list(found)


class _Watch(TorchFunctionMode):
    """Follows how many layers each tensor has passed through, and which norm made it.

    Attributes:
      last: the ids of the scales of the norms that end a residual block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last: set[int] = set()
        self._layers: dict[int, int] = {}
        self._norm: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no other tensor gets the id of one that is gone

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = list(_tensors((args, kwargs)))
        name = getattr(func, "__name__", "")
        layers = max((self._layers.get(id(each), 0) for each in inputs), default=0) + (name in _LAYERS)
        norm = None
        if name in _NORMS:
            norm = _scale(name, args, kwargs)
        elif name in _AFTER:
            norms = {self._norm[id(each)] for each in inputs if id(each) in self._norm}
            norm = norms.pop() if len(norms) == 1 else None
        elif name in _ADD and len(inputs) == 2:
            self._add(*inputs)
        for output in _tensors(result):
            self._alive.append(output)
            self._layers[id(output)] = layers
            self._norm.pop(id(output), None)  # of a tensor that was changed in place
            if norm is not None:
                self._norm[id(output)] = norm
        return result

    def _add(self, one: Tensor, other: Tensor) -> None:
        short, long = sorted((one, other), key=lambda each: self._layers.get(id(each), 0))
        if self._layers.get(id(long), 0) > self._layers.get(id(short), 0) and id(long) in self._norm:
            self.last.add(self._norm[id(long)])


def _tensors(values: Any) -> Iterator[Tensor]:
    return (each for each in pytree.tree_leaves(values) if isinstance(each, Tensor))


def _scale(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """The id of a norm's scale."""
    place = 3 if name in ("batch_norm", "instance_norm") else 2
    weight = kwargs.get("weight", args[place] if len(args) > place else None)
    return None if weight is None else id(weight)
