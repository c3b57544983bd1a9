"""What a caller passes as Python objects, which settings cannot express: a network, a loss, metrics, augmentation."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

from ftrain import models
from ftrain.errors import SettingsError
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
    """

    module: torch.nn.Module | None = None
    loss: Loss | None = None
    metrics: Mapping[str, Metric] = attrs.field(factory=dict)
    augment: Augment | None = None

    def record(self, model: str) -> dict[str, Any]:
        """What config.json records of them: names, and a SHA-256 of their source, by which another is noticed.

        Args:
          model: the setting, which may name a file of source.
        """
        parts: dict[str, Any] = {}
        if self.module is not None:
            parts["model"] = {"name": type(self.module).__qualname__, "sha256": models.source_hash(self.module)}
        elif models.is_own(model):
            parts["model"] = {"name": model, "sha256": models.source_hash(model)}
        functions = {"loss": self.loss, "augment": self.augment}
        functions |= {f"metrics.{name}": metric for name, metric in self.metrics.items()}
        parts |= {
            name: {"name": _name(function), "sha256": _function_hash(function)}
            for name, function in functions.items()
            if function is not None
        }
        return parts


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two records, in words."""
    changes = []
    for name in sorted({*was, *now}):
        if name not in now:
            changes.append(f"`{name}` was {shown(was[name]['name'])}, passed from Python, and is not given now")
        elif name not in was:
            changes.append(f"`{name}` is {shown(now[name]['name'])}, passed from Python, and was not given before")
        elif was[name]["sha256"] != now[name]["sha256"]:
            changes.append(f"the source of `{name}` has changed ({shown(now[name]['name'])})")
    return changes


def check_functions(custom: Custom) -> None:
    """Raises SettingsError for something that cannot be called, or is not a module."""
    if custom.module is not None and not isinstance(custom.module, torch.nn.Module):
        raise SettingsError(f"`model` must be a name or a torch.nn.Module; got {type(custom.module).__name__}")
    for name, function in (("loss", custom.loss), ("augment", custom.augment), *custom.metrics.items()):
        if function is not None and not callable(function):
            raise SettingsError(f"`{name}` must be a function; got {type(function).__name__}")


def _name(function: Any) -> str:
    function = function.func if isinstance(function, functools.partial) else function
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _function_hash(function: Callable[..., Any]) -> str:
    """SHA-256 of the source of a function or of a callable object's class, or of the bytecode where there is no source;
    and of what `functools.partial` binds."""
    digest = hashlib.sha256()
    while isinstance(function, functools.partial):
        digest.update(repr((function.args, sorted(function.keywords.items()))).encode())
        function = function.func
    plain = function if inspect.isroutine(function) else type(function)
    try:
        digest.update(inspect.getsource(plain).encode())
    except (OSError, TypeError):
        code = getattr(plain, "__code__", None)
        digest.update(code.co_code if code else plain.__qualname__.encode())
    return digest.hexdigest()
