"""`ftrain fit`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import attrs
import typer

from ftrain.errors import SettingsError
from ftrain.settings import Settings

from .options import given, with_settings
from .report import note, reported


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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and take one step; keep nothing.")
    ] = False,
    **settings: Any,
) -> None:
    """Train a network on folders of images, one folder per class."""
    asked = given(context, config, settings)
    note("loading torch ...")
    from ftrain import loop, prepare, runs

    from .display import show
    from .pictures import draw_curves

    if resume:
        run = runs.open_run(resume)
        resolved, images, _ = prepare.resolve(attrs.evolve(run.settings, **asked))
        run = loop.check_resume(run, resolved, images)
    else:
        resolved, images, notes = prepare.resolve(Settings(**asked))
        for text in notes:
            note(text)
        if dry_run:
            metrics = loop.try_once(resolved, images)
            typer.echo(
                f"dry run: {resolved.model} takes {images.image_size} px, batch {images.batch_size}, on "
                f"{resolved.device}; one step gave loss {metrics['loss']:.4f}. All is well; nothing was kept."
            )
            return
        folder = Path(resolved.out or f"runs/{resolved.model}/{time.strftime('%Y%m%d-%H%M%S')}")
        run = loop.start(resolved, images, folder, ["ftrain", *sys.argv[1:]])
    if dry_run:
        raise SettingsError("--dry-run checks a new run; it does not go with --resume")
    for _ in show(loop.fit(run, images), run.folder):
        draw_curves(run)
