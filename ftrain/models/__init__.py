"""Networks: torchvision's and timm's classifiers by name, networks of one's own, and weights to start from."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftrain.models.catalogue import canonical, has_pretrained, input_size, names, smallest_size
    from ftrain.models.construct import build
    from ftrain.models.groups import batch_norms, head, last_layer, layer_decay, matching
    from ftrain.models.hashing import function_hash
    from ftrain.models.init import initialize, start_small
    from ftrain.models.own import absolute, build_own, is_own, load_factory, source_hash
    from ftrain.models.preprocess import Preprocessing, preprocessing
    from ftrain.models.residual import zero_init_residual
    from ftrain.models.sizes import check_size, fits, next_size
    from ftrain.models.structure import Convolutions, convolutions, convolutions_of, parameter_count, without_data
    from ftrain.models.weights import WeightsReport, load_weights

_NAMES_IN = {
    "catalogue": ["canonical", "has_pretrained", "input_size", "names", "smallest_size"],
    "construct": ["build"],
    "groups": ["batch_norms", "head", "last_layer", "layer_decay", "matching"],
    "hashing": ["function_hash"],
    "init": ["initialize", "start_small"],
    "own": ["absolute", "build_own", "is_own", "load_factory", "source_hash"],
    "preprocess": ["Preprocessing", "preprocessing"],
    "residual": ["zero_init_residual"],
    "sizes": ["check_size", "fits", "next_size"],
    "structure": ["Convolutions", "convolutions", "convolutions_of", "parameter_count", "without_data"],
    "weights": ["WeightsReport", "load_weights"],
}
_MODULE_OF = {name: module for module, names in _NAMES_IN.items() for name in names}

__all__ = [
    "Convolutions",
    "Preprocessing",
    "WeightsReport",
    "absolute",
    "batch_norms",
    "build",
    "build_own",
    "canonical",
    "check_size",
    "convolutions",
    "convolutions_of",
    "fits",
    "function_hash",
    "has_pretrained",
    "head",
    "initialize",
    "input_size",
    "is_own",
    "last_layer",
    "layer_decay",
    "load_factory",
    "load_weights",
    "matching",
    "names",
    "next_size",
    "parameter_count",
    "preprocessing",
    "smallest_size",
    "source_hash",
    "start_small",
    "without_data",
    "zero_init_residual",
]


def __getattr__(name: str) -> Any:
    # Names are imported when they are first used, because `ftrain models` reads the table of networks without torch.
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"ftrain.models.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'ftrain.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
