"""Opening a run whose network a caller made: it has to be passed again, because a run's folder must not run code."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch

from ftrain import models
from ftrain.errors import SettingsError
from ftrain.losses import Loss
from ftrain.metrics import Metric
from ftrain.run.custom import Custom, differences
from ftrain.run.folder import RunFolder
from ftrain.run.spec import RunSpec
from ftrain.text import shown


def reopened(
    run: RunFolder,
    *,
    model: torch.nn.Module | str | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> tuple[RunSpec, Custom]:
    """The spec of a run and the caller's parts of it.

    Args:
      model: the module, or the reference FILE.py:FUNCTION, that the run was trained with; None for a network of the
        catalogue.
      loss, metrics: the functions that the run was trained with.

    Raises:
      SettingsError: if the run needs its own `model`, or the source of a part has changed.
    """
    module = model if isinstance(model, torch.nn.Module) else None
    custom = Custom(module=module, loss=loss, metrics=metrics or {})
    spec = run.spec
    if model is not None and not isinstance(model, torch.nn.Module | str):
        what = f"the class {model.__name__}; call it first" if isinstance(model, type) else type(model).__name__
        raise SettingsError(f"`model` must be a torch.nn.Module or FILE.py:FUNCTION; got {what}")
    check_model(run, model)
    if model is not None and "model" not in run.config.get("custom", {}):
        raise SettingsError(f"{shown(run.path)} was trained with {shown(spec.model)}; leave `model` out")
    if isinstance(model, str) and models.is_own(model):
        spec = attrs.evolve(spec, model=models.absolute(model))
    given = custom.record(spec.model)
    recorded = {name: part for name, part in run.config.get("custom", {}).items() if name in given}
    if changes := differences(recorded, given):
        raise SettingsError(
            f"{shown(run.path)} was trained with another network or other functions: {'; '.join(changes)}. Pass those "
            "that it was trained with"
        )
    return spec, custom


def check_model(run: RunFolder, model: torch.nn.Module | str | None) -> None:
    """Raises SettingsError if the network of a run was a caller's own and is not passed again."""
    name = str(run.config["settings"]["model"])
    recorded = run.config.get("custom", {}).get("model")
    if models.is_own(name):
        if not (isinstance(model, torch.nn.Module) or (isinstance(model, str) and models.is_own(model))):
            raise SettingsError(
                f"the network of {shown(run.path)} is made by {shown(name)}. Opening the run would run that file, so "
                f"pass it again if you trust it: `model={shown(name)}`"
            )
    elif recorded and not isinstance(model, torch.nn.Module):
        raise SettingsError(
            f"the network of {shown(run.path)} is {shown(recorded['name'])}, a module that was passed from Python; "
            "pass it again: ftrain.fit(model=module, ...) or ftrain.open_run(folder, model=module)"
        )
