"""The settings of a run as command-line options, from the table in ftrain.run.settings."""

from __future__ import annotations

import functools
import inspect
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from ftrain.errors import SettingsError
from ftrain.run.settings import Settings, flag, from_mapping, merge
from ftrain.text import shown

from .messages import prepared

if TYPE_CHECKING:
    from ftrain.data.images import Images
    from ftrain.parallel import Place
    from ftrain.run.spec import RunSpec

OwnModel = Annotated[
    str,
    typer.Option(metavar="FILE.py:FUNCTION", help="The network of the run, if a file of your own makes it."),
]


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with an option for every setting, passed as **settings, beside its own parameters."""
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = _options()
    hints = {**typing.get_type_hints(command, include_extras=True), **{p.name: p.annotation for p in options}}
    parameters = [p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY) for p in own] + options
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def given(context: typer.Context, config: Path | None, values: dict[str, Any]) -> dict[str, Any]:
    """The settings that the user gave: those of the config file, overridden by those of the command line.

    Raises:
      SettingsError: if the config file cannot be read, or has an unknown name in it.
    """
    named = {
        name: value
        for name, value in values.items()
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    }
    return merge(_read_config(config), named) if config else named


def resolved(settings: Settings, here: Place | None = None) -> tuple[RunSpec, Images]:
    """What `ftrain.run.resolve` makes of settings; the progress of finding the images is shown."""
    from ftrain.run.locate import locate
    from ftrain.run.resolve import resolve

    return resolve(settings, sources=prepared(locate(settings)), here=here)


def _read_config(path: Path) -> dict[str, Any]:
    source = f"--config {shown(path)}"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{source} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{source} cannot be read as TOML: {error}") from error
    if tables := [name for name, value in table.items() if isinstance(value, dict)]:
        raise SettingsError(f"{source}: [{tables[0]}] is a table; write all settings at the top level, without tables")
    values = from_mapping(table, source=source)
    try:
        Settings(**values)
    except SettingsError as error:
        raise SettingsError(f"{source}: {error}") from error
    return values


@functools.cache  # several commands have them, and --help waits until they are made
def _options() -> list[inspect.Parameter]:
    kinds = typing.get_type_hints(Settings)
    return [_option(field, kinds[field.name]) for field in attrs.fields(Settings)]


def _option(field: attrs.Attribute[Any], kind: Any) -> inspect.Parameter:
    default: Any = field.default
    if tuple in [typing.get_origin(each) for each in (kind, *typing.get_args(kind))]:  # numbers, which Settings splits
        kind = str if default is not None else str | None
        default = ",".join(f"{value:g}" for value in default) if default is not None else None
    names = [flag(field.name)]
    if bool in (kind, *typing.get_args(kind)):
        names = [f"{names[0]}/--no-{names[0][2:]}"]
    option = typer.Option(
        *names,
        help=field.metadata["help"],
        rich_help_panel=field.metadata["group"],
        metavar=_metavar(field.name),
        show_default=f"{default:g}" if isinstance(default, float) else default is not None,
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, option],
    )


def _metavar(name: str) -> str | None:
    if name in ("mean", "std"):
        return "R,G,B"
    if name == "color_jitter":
        return "B,C,S,H"
    if name == "checkpoint_every":
        return "STEPS|MINUTESm"
    if name in ("train_dir", "val_dir", "out"):
        return "DIR"
    return {"data": "DIR|TABLE", "model": "NAME", "weights": "NAME|FILE", "device": "DEVICE", "dataset": "NAME"}.get(
        name
    )
