"""`ftrain models`."""

from __future__ import annotations

from typing import Annotated

import typer

from ftrain.errors import SettingsError
from ftrain.models import table
from ftrain.models.spelling import TIMM, is_timm, matching
from ftrain.text import shown

from .errors import reported
from .messages import note


@reported
def models(
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="PATTERN", help="Part of a name, or a pattern such as 'resnet*'; 'timm/*' for timm's."),
    ] = None,
) -> None:
    """List the models: name, parameters (for 1,000 classes), and the smallest image that each can be trained on.

    Those of timm, whose names begin with timm/, have the size of the images that they were designed for instead.
    """
    library: table.Library = "timm" if pattern is not None and is_timm(pattern) else "torchvision"
    networks = table.read()
    names = matching(networks.of(library), pattern)
    in_timm = [] if library == "timm" else matching(networks.of("timm"), _in_timm(pattern))
    _note_version(library, networks.versions[library])
    if not names:
        hint = "`ftrain models 'timm/*'` lists them all" if library == "timm" else "`ftrain models` lists them all"
        if in_timm:
            hint = f"timm has {len(in_timm)}: ftrain models {_quoted(pattern)}"
        raise SettingsError(f"no model's name matches {shown(pattern or '')!r}; {hint}")
    width = max(24, *map(len, names))
    typer.echo(f"{'model':<{width}}  parameters  {'input size' if library == 'timm' else 'smallest image'}")
    for name in names:
        entry = networks.entries[name]
        size = entry.input_size if entry.smallest_size is None else entry.smallest_size
        typer.echo(f"{name:<{width}}  {entry.parameters / 1e6:8.1f} M  {size} px")
    if in_timm:
        note(f"timm has {len(in_timm)} more: ftrain models {_quoted(pattern)}")


def _in_timm(pattern: str | None) -> str:
    """The pattern with which timm's networks are searched for the same."""
    if pattern is None:
        return f"{TIMM}*"
    return TIMM + (pattern if any(sign in pattern for sign in "*?[") else f"*{pattern.strip()}*")


def _quoted(pattern: str | None) -> str:
    return f"'{shown(_in_timm(pattern))}'"


def _note_version(library: table.Library, version: str) -> None:
    found = table.installed(library)
    if found is None:
        note(f"{library} is not installed; `pip install '.[{library}]'` installs it with ftrain")
    elif found != version:
        note(f"this is the list of {library} {version}; {library} {found} is installed and may have other networks")
