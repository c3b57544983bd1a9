"""Cutting a network into its backbone and its head, so that features can be computed once."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from ftrain.module import Apply, Tensors, functionalize

_DROPOUTS = (
    torch.nn.Dropout
    | torch.nn.Dropout1d
    | torch.nn.Dropout2d
    | torch.nn.Dropout3d
    | torch.nn.AlphaDropout
    | torch.nn.FeatureAlphaDropout
)


class Cut(NamedTuple):
    """A network in two parts, each a pure function of the tensors of the whole network.

    Attributes:
      backbone: from the network's inputs to features.
      head: from features to logits. It needs only its own tensors, and returns all buffers that it is given.
      of_head: the names of the tensors of the head.
    """

    backbone: Apply
    head: Apply
    of_head: frozenset[str]


def cut(module: torch.nn.Module, head: Sequence[str], *, frozen: Collection[str]) -> Cut | None:
    """Cuts a network where its head begins: at the layer with these parameters and, in a sequence, at a dropout right
    before it. None if the parameters are not those of one layer inside of the network.

    Whether the output of the head is that of the network is not known here; see `is_faithful`.

    Args:
      module: is read, not changed.
      head: the names of the parameters of the head.
      frozen: the names of the parameters that are not trained.

    >>> module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(), torch.nn.Linear(4, 2))
    >>> found = cut(module, ["2.weight", "2.bias"], frozen=["0.weight", "0.bias"])
    >>> _, params, buffers = functionalize(module, frozen=["0.weight", "0.bias"])
    >>> features, _ = found.backbone(params, buffers, torch.ones(5, 3), train=True)
    >>> features.shape, found.head(params, buffers, features, train=False)[0].shape
    (torch.Size([5, 4]), torch.Size([5, 2]))
    """
    layers = {name.rpartition(".")[0] for name in head}
    path = layers.pop() if len(layers) == 1 else ""
    if not path:
        return None
    parent, _, name = path.rpartition(".")
    whole = copy.deepcopy(module)
    tail = _tail(whole.get_submodule(parent), name)
    last = copy.deepcopy(torch.nn.Sequential(OrderedDict(tail)))
    prefix = f"{parent}." if parent else ""
    owned = {prefix + each for each, _ in (*last.named_parameters(), *last.named_buffers())}
    if not owned >= set(head):
        return None
    apply, _, _ = functionalize(last, frozen=[each.removeprefix(prefix) for each in frozen if each in owned])
    for _, layer in tail:
        layer.forward = types.MethodType(_unchanged, layer)
    return Cut(functionalize(whole, frozen=frozen).apply, _in_whole(apply, prefix, owned), frozenset(owned))


def is_faithful(
    parts: Cut, apply: Apply, params: Tensors, buffers: Tensors, inputs: Tensor, *, key: Int64[Tensor, "2"]
) -> bool:
    """Whether a network can be trained on features that are computed once: they are the same in training as in
    evaluation, they do not depend on draws or on other examples, and the head makes of them what the network does.

    Args:
      parts: of the network `apply`.
      inputs: two different examples at least.
      key: for the head's draws.
    """
    with torch.no_grad():
        try:
            features, _ = parts.backbone(params, buffers, inputs, train=False)
            again, after = parts.backbone(params, buffers, inputs, train=True)  # without a key, a draw is an error
            alone, _ = parts.backbone(params, buffers, inputs[:1], train=False)
            pairs = [(features, again), (features[:1], alone)]
            for train in (False, True):
                expected, _ = apply(params, buffers, inputs, train=train, key=key)
                pairs.append((expected, parts.head(params, buffers, features, train=train, key=key)[0]))
            same = all(torch.equal(buffers[name], tensor) for name, tensor in after.items())
            return same and all(_close(one, other) for one, other in pairs)
        except Exception:  # a network may fail in any way when only a part of it runs
            return False


def _close(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape):
        return False
    scale = float(one.abs().max())
    return torch.allclose(one.float(), other.float(), rtol=0.0, atol=1e-4 * max(scale, 1e-3))


def _tail(parent: torch.nn.Module, name: str) -> list[tuple[str, torch.nn.Module]]:
    """The children of a block that make up the head: the named one and, in a sequence, those that follow it, and those
    before it from a dropout on, if no layer with tensors lies between."""
    children = list(parent.named_children())
    if not isinstance(parent, torch.nn.Sequential):
        return [child for child in children if child[0] == name]
    first = start = [each for each, _ in children].index(name)
    while start > 0 and not children[start - 1][1].state_dict():
        start -= 1
        if isinstance(children[start][1], _DROPOUTS):
            first = start
    return children[first:]


def _in_whole(apply: Apply, prefix: str, owned: Collection[str]) -> Apply:
    """The function of a part of a network, as one of all its tensors."""

    def in_whole(
        params: Tensors,
        buffers: Tensors,
        inputs: Any,
        *,
        train: bool,
        key: Int64[Tensor, "2"] | None = None,
    ) -> tuple[Any, Tensors]:
        own, others = (
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name in owned}
            for tensors in (params, buffers)
        )
        # A copy, since a dropout may write into its input, which is an intermediate result of the whole network.
        outputs, new = apply(own, others, inputs.clone(), train=train, key=key)
        return outputs, {**buffers, **{prefix + name: tensor for name, tensor in new.items()}}

    return in_whole


def _unchanged(self: torch.nn.Module, inputs: Any) -> Any:
    return inputs
