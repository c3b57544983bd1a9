"""Models without the data of their parameters, to find out quickly what they are made of and what they accept."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ftrain.models.catalogue import construct, input_size

_DRAWS = frozenset(
    ("alpha_dropout", "bernoulli_", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout")
    + ("multi_head_attention_forward", "scaled_dot_product_attention")
)
Draw = tuple[Any, ...]  # the name of a random operation, and its probabilities


def skeleton(name: str, classes: int, image_size: int, drops: Mapping[str, float] | None = None) -> torch.nn.Module:
    """A model whose parameters are on the meta device. The global random state is neither read nor changed.

    Args:
      name: as `canonical` returns it.
      drops: `dropout` and `drop_path`, where they are not to be the network's own.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        try:
            with _EmptyOnMeta():
                return construct(name, classes, image_size, drops or {})
        except RuntimeError:
            # Some of timm's constructors run a layer, for which all tensors must be on the same device.
            with torch.device("meta"):
                return construct(name, classes, image_size, drops or {})


def traced(module: torch.nn.Module, image_size: int) -> tuple[Tensor, list[Draw]]:
    """What a skeleton does in training with two images: the shape of its logits, as a tensor without data, and its
    random operations in order."""
    module = module.to("meta").train()
    draws = _Draws()
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad(), draws:
        outputs = module(torch.zeros(2, 3, image_size, image_size))
    return getattr(outputs, "logits", outputs), draws.found


def runs_at(name: str, image_size: int) -> bool:
    """Whether a model can be built for square images of this size and returns logits for them in training.

    Args:
      name: as `canonical` returns it.
    """
    # A model that fails without data on the very images that it was designed for cannot be tried in this way.
    return _is_traceable(name, image_size) or not _is_traceable(name, input_size(name))


@functools.lru_cache(maxsize=64)
def _is_traceable(name: str, image_size: int) -> bool:
    try:
        logits, _ = traced(skeleton(name, 2, image_size), image_size)
    except Exception:  # a network may fail in any way on images that it is not made for
        return False
    return logits.shape == (2, 2)


@functools.lru_cache(maxsize=64)
def has_drop(name: str, kind: str, image_size: int) -> bool:
    """Whether the random operations of a model in training depend on its `dropout` or `drop_path`.

    Args:
      name: as `canonical` returns it.
      kind: which of the two.
      image_size: a size that the model can be trained on.
    """
    try:
        none, half = (traced(skeleton(name, 2, image_size, {kind: rate}), image_size)[1] for rate in (0.0, 0.5))
    except TypeError:  # its constructor has no such option
        return False
    except Exception:  # it does not run without data; its constructor has the option, at least
        return True
    return none != half


class _EmptyOnMeta(TorchFunctionMode):
    """Moves `torch.empty`, with which layers allocate their parameters, to the meta device.

    `torch.device("meta")` would move all tensors there, even those from whose values torchvision's regnet computes its
    widths.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})


class _Draws(TorchFunctionMode):
    """Records random operations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Draw] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (name := getattr(func, "__name__", "")) in _DRAWS:
            self.found.append((name, *(each for each in (*args, *kwargs.values()) if isinstance(each, float))))
        return func(*args, **kwargs)
