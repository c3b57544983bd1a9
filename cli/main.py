"""The command `ftrain`. Modules that import torch are imported inside the commands, so that --help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

import ftrain

from . import bench, data, errors, evaluate, export, fit, info, list_models, predict, replay, verify

app = typer.Typer(
    name="ftrain",
    help="Train image classifiers. Start with: ftrain fit --model resnet34 --epochs 10",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("fit")(fit.fit)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("replay")(replay.replay)
app.command("verify-resume")(verify.verify_resume)
app.command("bench")(bench.bench)
app.command("models")(list_models.models)
app.command("info")(info.info)
app.add_typer(data.app, name="data")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ftrain {ftrain.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of all commands."""
    errors.tracebacks_wanted = debug
