"""`ftrain fit`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from ftrain.errors import SettingsError
from ftrain.settings import Settings, layered

from .options import given, with_settings
from .report import note, reported

if TYPE_CHECKING:
    from ftrain.runs import Run


@reported
@with_settings
def fit(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file of settings, named as the options are.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Go on with the run in this folder, under its settings."),
    ] = None,
    override: Annotated[
        bool,
        typer.Option("--override", help="With --resume: go on although changed settings or data change the result."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and take one step; keep nothing.")
    ] = False,
    **settings: Any,
) -> None:
    """Train a network on folders of images, one folder per class."""
    asked = given(context, config, settings)
    if resume and (dry_run or "out" in asked):
        raise SettingsError(f"{'--dry-run' if dry_run else '--out'} is for a new run; it does not go with --resume")
    if override and not resume:
        raise SettingsError("--override is for a run that goes on; give it with --resume RUN")
    note("loading torch ...")
    from ftrain import loop, prepare, provenance, runs

    from .display import show

    command = ["ftrain", *sys.argv[1:]]
    if resume:
        run = runs.open_run(resume)
        before = attrs.asdict(run.settings, recurse=False)
        resolved, images, notes = prepare.resolve(Settings(**layered(before, asked)))
        run = provenance.resumed_run(run, resolved, images, command, override=override)
    else:
        resolved, images, notes = prepare.resolve(Settings(**asked))
        folder = Path(resolved.out or f"runs/{resolved.model}/{time.strftime('%Y%m%d-%H%M%S')}")
        run = provenance.new_run(resolved, images, folder, command)
        if dry_run:
            metrics = loop.try_once(resolved, images)
            typer.echo(
                f"dry run: {resolved.model} takes {images.image_size} px, batch {images.batch_size}, on "
                f"{resolved.device}; one step gave loss {metrics['loss']:.4f}. All is well; nothing was kept."
            )
            return
    for text in notes:
        note(text)
    for _ in show(loop.fit(run, images), run.folder):
        _draw(run)


def _draw(run: Run) -> None:
    from .pictures import draw_curves

    try:
        draw_curves(run)
    except Exception as error:  # no picture is worth a run
        note(f"curves.png could not be drawn ({type(error).__name__}: {error}); training goes on")
