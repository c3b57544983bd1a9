"""`ftrain fit`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from ftrain.errors import SettingsError
from ftrain.run.settings import Settings, layered
from ftrain.text import shown

from .options import given, with_settings
from .report import BROKEN_PIPE, note, reported, silence, warn
from .signals import Stop, watched

if TYPE_CHECKING:
    from ftrain.data.batches import Images
    from ftrain.run.folder import Run

AUTO = Path("auto")


@reported
@with_settings
def fit(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file of settings, named as the options are.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN|auto",
            help="Go on with the run in this folder, under its settings. auto: begin the run in --out (by default "
            "runs/<model>/auto), go on with it, or say that it is complete, by one and the same command.",
        ),
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
    if resume and (dry_run or ("out" in asked and resume != AUTO)):
        raise SettingsError(f"{'--dry-run' if dry_run else '--out'} is for a new run; it does not go with --resume")
    if override and not resume:
        raise SettingsError("--override is for a run that goes on; give it with --resume RUN")
    with watched() as stop:
        note("loading torch ...")
        if dry_run:
            _try(asked)
        else:
            _train(asked, resume, override, stop)


def _try(asked: dict[str, Any]) -> None:
    from ftrain.run import folder as runs
    from ftrain.run import loop, prepare

    settings = Settings(**asked)
    if settings.out:
        runs.check_free(Path(settings.out))
    resolved, images, notes = prepare.resolve(settings)
    _say(notes)
    if resolved.compile:
        note("compiling the steps, which can take minutes ...")
    metrics = loop.try_once(resolved, images)
    typer.echo(
        f"dry run: {resolved.model} takes {images.image_size} px, batch {images.batch_size}, on {resolved.device}; one "
        f"step gave loss {metrics['loss']:.4f}. All is well; nothing was kept."
    )


def _train(asked: dict[str, Any], resume: Path | None, override: bool, stop: Stop) -> None:
    from ftrain.run import folder as runs
    from ftrain.run import loop

    from .display import show

    folder = _folder(asked, resume)
    with runs.hold(folder):
        if resume and (resume != AUTO or runs.is_begun(folder)):
            run, images = _resumed(folder, asked, auto=resume == AUTO, override=override)
        else:
            run, images = _new(folder, asked)
        stop.waits = True
        events = iter(loop.fit(run, images, stop=stop))
        try:
            for event in show(events, folder):
                if isinstance(event, loop.EpochEnded):
                    _draw(run)
        except BrokenPipeError:  # nobody reads on; what was trained is saved all the same
            silence()
            stop.code = stop.code or BROKEN_PIPE
            any(isinstance(event, loop.Stopped) for event in events)
    if stop.code:
        sys.exit(stop.code)


def _folder(asked: dict[str, Any], resume: Path | None) -> Path:
    from ftrain import models
    from ftrain.run import folder as runs
    from ftrain.run import prepare

    if resume and resume != AUTO:
        if not runs.is_begun(resume):
            raise SettingsError(f"--resume takes the folder of a run, or auto; {shown(resume)} is none")
        return resume
    settings = Settings(**asked)
    name = "auto" if resume else time.strftime("%Y%m%d-%H%M%S")
    return Path(settings.out or f"runs/{prepare.usage(models.canonical, settings.model)}/{name}")


def _new(folder: Path, asked: dict[str, Any]) -> tuple[Run, Images]:
    from ftrain.run import folder as runs
    from ftrain.run import prepare, provenance

    runs.check_free(folder)
    resolved, images, notes = prepare.resolve(Settings(**asked))
    _say(notes)
    return provenance.new_run(resolved, images, folder, _command(), asked=asked), images


def _resumed(folder: Path, asked: dict[str, Any], *, auto: bool, override: bool) -> tuple[Run, Images]:
    from ftrain.run import folder as runs
    from ftrain.run import prepare, provenance

    run = runs.open_run(folder)
    warn([run.damage] if run.damage else [])
    # What the run has stands where the command says nothing. But the command of `auto` says all that there is to say.
    before = {} if auto and override else attrs.asdict(run.settings, recurse=False)
    resolved, images, notes = prepare.resolve(Settings(**layered(before, asked)))
    _say(notes)
    return provenance.resumed_run(
        run, resolved, images, _command(), asked=asked, asked_in_full=auto, override=override
    ), images


def _say(notes: list[str]) -> None:
    for text in notes:
        note(text)


def _command() -> list[str]:
    return ["ftrain", *sys.argv[1:]]


def _draw(run: Run) -> None:
    from .pictures import draw_curves

    try:
        draw_curves(run)
    except Exception as error:  # no picture is worth a run
        note(f"curves.png could not be drawn ({type(error).__name__}: {shown(str(error))}); training goes on")
