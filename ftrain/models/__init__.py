"""Networks: torchvision's classifiers by name, networks of one's own, and weights to start from."""

from ftrain.models.catalogue import canonical, check_size, fits, has_pretrained, names, smallest_size
from ftrain.models.construct import build
from ftrain.models.groups import head, layer_decay, matching
from ftrain.models.hashing import function_hash
from ftrain.models.own import absolute, build_own, is_own, load_factory, source_hash
from ftrain.models.structure import Convolutions, convolutions, convolutions_of, parameter_count, without_data
from ftrain.models.weights import WeightsReport, load_weights

__all__ = [
    "Convolutions",
    "WeightsReport",
    "absolute",
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
    "is_own",
    "layer_decay",
    "load_factory",
    "load_weights",
    "matching",
    "names",
    "parameter_count",
    "smallest_size",
    "source_hash",
    "without_data",
]
