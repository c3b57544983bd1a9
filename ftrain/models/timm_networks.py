"""timm's classifiers: names, construction, and weights. timm is an extra, and is imported when it is first needed."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ftrain.models.spelling import TIMM
from ftrain.text import shown


def library() -> Any:
    """The module timm.

    Raises:
      ValueError: if it is not installed.
    """
    try:
        with _quiet():
            return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ValueError("networks of timm need it; install ftrain with `pip install '.[timm]'`") from None


@functools.cache
def names() -> tuple[str, ...]:
    """The names of the classifiers of the timm that is installed, without `timm/`.

    Raises:
      ValueError: if it is not installed.
    """
    return tuple(name for name in library().list_models() if not name.endswith("_enc"))  # encoders without a classifier


def input_size(name: str) -> int:
    """The side in pixels of the images that a network was designed for.

    Args:
      name: as `canonical` returns it.
    """
    return int(min(_config(name)["input_size"][1:]))


def construct(name: str, classes: int, image_size: int, drops: Mapping[str, float]) -> torch.nn.Module:
    """A network as timm builds it, on the device and with the random numbers of the context.

    Args:
      name: as `canonical` returns it.
      drops: `dropout` and `drop_path`, where they are not to be the network's own.

    Raises:
      ValueError: if the network cannot be built for these images, or has no such dropout.
    """
    options: dict[str, Any] = {"num_classes": classes}
    if _config(name)["fixed_input_size"]:  # as timm's own scripts decide it
        options["img_size"] = image_size
    options |= {{"dropout": "drop_rate", "drop_path": "drop_path_rate"}[drop]: rate for drop, rate in drops.items()}
    with _quiet():
        module: torch.nn.Module = library().create_model(name.removeprefix(TIMM), pretrained=False, **options)
    return module


def weights(name: str) -> dict[str, str]:
    """The pretrained weights that timm has for a network: their full names by their tags, the default first.

    Args:
      name: as `canonical` returns it.
    """
    configs = library().models.get_arch_pretrained_cfgs(name.removeprefix(TIMM))
    return {full.partition(".")[2]: full for full, config in configs.items() if config.has_weights}


def find_weights(name: str, asked: str) -> str:
    """The full name of the weights that a user asks for, such as `resnet18.a1_in1k`.

    Args:
      name: as `canonical` returns it.
      asked: a tag, the full name, or DEFAULT.

    Raises:
      ValueError: if timm has no such weights.
    """
    known = weights(name)
    tag = asked.removeprefix(f"{name.removeprefix(TIMM)}.")
    if known and tag.upper() == "DEFAULT":
        return next(iter(known.values()))
    same = [full for other, full in known.items() if other.lower() == tag.lower()]
    if len(same) == 1:
        return same[0]
    named = f"{', '.join(known)}, DEFAULT, or " if known else ""
    raise ValueError(
        f"`weights` for {name} must be {named}the path of a file (.safetensors, .pth, .pt)"
        f"{'' if known else ', since timm has none'}; got {asked!r}"
    )


def download(full_name: str) -> dict[str, torch.Tensor]:
    """The tensors of pretrained weights by name, downloaded (once) by timm.

    Args:
      full_name: from `find_weights`.
    """
    with _quiet():
        module = library().create_model(full_name, pretrained=True)
    tensors: dict[str, torch.Tensor] = module.state_dict()
    return tensors


def made(module: torch.nn.Module) -> bool:
    """Whether a module is one of timm's networks."""
    return type(module).__module__.partition(".")[0] == "timm"


def converted(tensors: dict[str, Any], module: torch.nn.Module) -> dict[str, Any]:
    """The tensors of a file under the names, and with the shapes, that a network has now.

    timm converts older checkpoints, and those of the networks' authors, by a function `checkpoint_filter_fn` of the
    network's module. It also interpolates position embeddings to the network's image size.

    Raises:
      ValueError: if the function fails, because the file is of another network.
    """
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        found: dict[str, Any] = convert(dict(tensors), module)
    except Exception as error:  # of any kind: it expects the names of the networks it knows
        raise ValueError(f"timm cannot convert its tensors ({type(error).__name__}: {shown(str(error))})") from error
    return found


def data_config(name: str, full_name: str | None) -> dict[str, Any]:
    """timm's data configuration: mean, std, interpolation, crop_pct, crop_mode, input_size.

    Args:
      name: as `canonical` returns it.
      full_name: of the weights, from `find_weights`; None for those that are the network's default.
    """
    config: dict[str, Any] = library().data.resolve_data_config({}, pretrained_cfg=_config(full_name or name))
    return config


@functools.cache
def _config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = library().models.get_pretrained_cfg(name.removeprefix(TIMM)).to_dict()
    return config


@contextmanager
def _quiet() -> Generator[None]:
    """Without the warnings of timm, about which a user can do nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
