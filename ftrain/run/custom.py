"""What a caller passes as Python objects, which settings cannot express: a network, a loss, metrics, augmentation."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import attrs
import torch

from ftrain import metrics, models
from ftrain.errors import SettingsError, as_usage
from ftrain.losses import Loss
from ftrain.metrics import Metric
from ftrain.steps import Augment
from ftrain.text import shown


@attrs.frozen(eq=False, kw_only=True)
class Custom:
    """A caller's own parts of a run.

    Attributes:
      module: the network, with the parameters to start from; None to build the one that the settings name.
      loss: (logits [B, C], labels [B]) -> [B]; None for the one that the settings name.
      metrics: by name, functions (logits [B, C], labels [B]) -> [B] to average beside loss and accuracy.
      augment: (key, images [B, 3, H, W]) -> images, on the device, in training steps only.

    Raises:
      SettingsError: if a part has the wrong type, or a metric has a reserved name.
    """

    module: torch.nn.Module | None = None
    loss: Loss | None = None
    metrics: Mapping[str, Metric] = attrs.field(factory=dict)
    augment: Augment | None = None

    def __attrs_post_init__(self) -> None:
        if self.module is not None and not isinstance(self.module, torch.nn.Module):
            raise SettingsError(f"`model` must be a name or a torch.nn.Module; got {type(self.module).__name__}")
        if not isinstance(self.metrics, Mapping):
            raise SettingsError(
                f"`metrics` must be functions by name, such as {{'margin': margin}}; got {type(self.metrics).__name__}"
            )
        as_usage(metrics.check_names, self.metrics)
        for name, function in {"loss": self.loss, "augment": self.augment, **self.metrics}.items():
            if isinstance(function, type):
                raise SettingsError(f"`{name}` must be a function; got the class {function.__name__}; call it first")
            if function is not None and not callable(function):
                raise SettingsError(f"`{name}` must be a function; got {type(function).__name__}")

    @property
    def is_empty(self) -> bool:
        """Whether the caller passed nothing."""
        return self.module is None and self.loss is None and self.augment is None and not self.metrics

    def record(self, model: str) -> dict[str, dict[str, str]]:
        """What config.json records of the parts: their names, and a SHA-256 of their source, by which a change is
        noticed.

        Args:
          model: the setting, which may name a file with the source of the network.
        """
        parts: dict[str, dict[str, str]] = {}
        if self.module is not None:
            parts["model"] = {"name": type(self.module).__qualname__, "sha256": models.source_hash(self.module)}
        elif models.is_own(model):
            parts["model"] = {"name": model, "sha256": models.source_hash(model)}
        functions = {"loss": self.loss, "augment": self.augment}
        functions |= {f"metrics.{name}": metric for name, metric in self.metrics.items()}
        for name, function in functions.items():
            if function is not None:
                parts[name] = {"name": _name(function), "sha256": models.function_hash(function)}
        return parts


def own_module(reference: str, *, classes: int, seed: int) -> torch.nn.Module:
    """The network that FILE.py:FUNCTION makes, on the CPU.

    Raises:
      SettingsError: if there is no such function, or it fails.
    """
    factory = models.load_factory(reference)
    try:
        return as_usage(models.build_own, factory, classes=classes, seed=seed)
    except SettingsError:
        raise
    except Exception as error:  # of any kind, from a caller's code
        raise SettingsError(f"{shown(reference)} failed: {described(error)}") from error


def described(error: Exception) -> str:
    """An error from a caller's code, in one line."""
    return f"{type(error).__name__}: {shown(str(error))}"


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two records, in words."""
    changes = []
    for name in sorted({*was, *now}):
        if name not in now:
            changes.append(f"`{name}` was {shown(was[name]['name'])}, passed from Python, and is not given now")
        elif name not in was:
            changes.append(f"`{name}` is {shown(now[name]['name'])}, passed from Python, and was not given before")
        elif was[name]["sha256"] != now[name]["sha256"]:
            changes.append(f"the source or structure of `{name}` has changed ({shown(now[name]['name'])})")
    return changes


def _name(function: Any) -> str:
    function = function.func if isinstance(function, functools.partial) else function
    return str(getattr(function, "__qualname__", type(function).__qualname__))
