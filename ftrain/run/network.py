"""The network of a run as a module, and the parts of it that fine-tuning tells apart."""

from __future__ import annotations

import copy
import os

import torch

from ftrain import models
from ftrain.errors import SettingsError, as_usage
from ftrain.module import Tensors
from ftrain.run.custom import Custom, own_module
from ftrain.run.spec import RunSpec
from ftrain.text import shown


def make_module(
    spec: RunSpec, custom: Custom, *, pretrained: bool = True
) -> tuple[torch.nn.Module, models.WeightsReport | None]:
    """The network of a run on the CPU with its parameters before training, and what was loaded of pretrained weights. A
    caller's own module is not changed.

    Args:
      pretrained: whether to initialise the network as the spec asks, and to load its pretrained weights.
    """
    if custom.module is not None:
        if not pretrained or (spec.init == "default" and not spec.zero_init_residual):
            return custom.module, None
        module = copy.deepcopy(custom.module)
        _initialize(module, spec)
        _start_small(module, spec, custom, None)
        return module, None
    if models.is_own(spec.model):
        if spec.weights and not os.path.isfile(spec.weights):
            raise SettingsError(
                f"`weights` for your own network must be a file; there is no file {shown(spec.weights)}"
            )
        module = own_module(spec.model, classes=len(spec.classes), seed=spec.seed)
    else:
        module = as_usage(
            models.build,
            spec.model,
            classes=len(spec.classes),
            image_size=spec.image_size,
            seed=spec.seed,
            **spec.drops,
        )
    if not pretrained:
        return module, None
    _initialize(module, spec)
    report = as_usage(models.load_weights, module, spec.weights, name=spec.model) if spec.weights else None
    if report and report.fraction < 0.5:
        raise SettingsError(
            f"`weights={shown(spec.weights)}` are not those of {shown(spec.model)}: {report}. Use weights of "
            f"{shown(spec.model)}, or the network that they belong to"
        )
    _start_small(module, spec, custom, report)
    return module, report


def _initialize(module: torch.nn.Module, spec: RunSpec) -> None:
    if spec.init != "small-head":
        models.initialize(module, spec.init, seed=spec.seed)
    if spec.zero_init_residual:
        as_usage(models.zero_init_residual, module, spec.image_size)


def _start_small(module: torch.nn.Module, spec: RunSpec, custom: Custom, report: models.WeightsReport | None) -> None:
    """Initialises what pretrained weights leave of the head, if the spec asks for it."""
    if spec.init == "small-head":
        head = set(head_of(spec, custom, module))
        models.start_small(module, head & set(report.at_random) if report else head, seed=spec.seed)


def head_of(spec: RunSpec, custom: Custom, module: torch.nn.Module) -> tuple[str, ...]:
    """The names of the parameters of the head of a run's network."""
    more = len(spec.classes) + 1
    if custom.module is not None:
        return models.last_layer(module, len(spec.classes))
    if models.is_own(spec.model):
        return models.head(module, own_module(spec.model, classes=more, seed=spec.seed))
    return models.head(module, models.without_data(spec.model, more, spec.image_size))


def could_be_pretrained(spec: RunSpec, custom: Custom) -> bool:
    """Whether the network starts from random weights although there are pretrained ones."""
    own = custom.module is not None or models.is_own(spec.model)
    return not own and not spec.weights and models.has_pretrained(spec.model)


def placed(tensors: Tensors, spec: RunSpec) -> Tensors:
    """The tensors on the device of the run, 4-d ones in its memory format."""
    layout = memory_format(spec)
    return {
        name: tensor.to(spec.device, memory_format=layout) if tensor.ndim == 4 else tensor.to(spec.device)
        for name, tensor in tensors.items()
    }


def memory_format(spec: RunSpec) -> torch.memory_format:
    return torch.channels_last if spec.memory_format == "channels_last" else torch.contiguous_format
