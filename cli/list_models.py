"""`ftrain models`."""

from __future__ import annotations

from typing import Annotated

import typer

from ftrain.errors import SettingsError

from .errors import reported
from .messages import note


@reported
def models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="PATTERN", help="Part of a name, or a pattern such as 'resnet*'.")
    ] = None,
) -> None:
    """List the models: name, parameters, and the smallest image that each can be trained on."""
    note("loading torchvision ...")
    from ftrain import models as catalogue

    names = catalogue.names(pattern)
    if not names:
        raise SettingsError(f"no model's name matches {pattern!r}; `ftrain models` lists them all")
    typer.echo(f"{'model':<24}  parameters  smallest image")
    for name in names:
        size = catalogue.smallest_size(name)
        typer.echo(f"{name:<24}  {catalogue.parameter_count(name) / 1e6:8.1f} M  {size} px")
