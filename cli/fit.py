"""`ftrain fit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftrain.errors import SettingsError
from ftrain.run.settings import Settings
from ftrain.text import shown

from .errors import BROKEN_PIPE, is_output_lost, reported
from .messages import as_flags, note, silence
from .options import given, resolved, with_settings
from .processes import end, in_processes, is_started, start
from .signals import Stop, watched

if TYPE_CHECKING:
    from ftrain.run.launch import Request


@in_processes
@reported
@with_settings
def fit(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file of settings, named like the options.")
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            "--resume",
            metavar="RUN|auto",
            help="Resume the run in this folder, with its settings. auto: start the run in --out (default: "
            "runs/<model>/auto), resume it, or report that it is complete, always with the same command.",
            show_default=False,
        ),
    ] = "",
    override: Annotated[
        bool,
        typer.Option("--override", help="With --resume: resume although changed settings or data change the result."),
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            min=1,
            metavar="N",
            help="Train in this many processes on this machine, a power of two, with the same result as in one with "
            "the same --shards. Default: one for each GPU.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and take one step, without saving anything.")
    ] = False,
    **settings: Any,
) -> None:
    """Train a network on folders of images, one folder per class, or on a table of images and labels."""
    asked = given(context, config, settings)
    if processes is not None and dry_run:
        raise SettingsError("`dry_run` tries one process; leave `processes` out")
    if resume and dry_run:
        raise SettingsError("`dry_run` is for a new run; it cannot be given with `resume`")
    with watched() as stop:
        if not is_started():
            note("loading torch ...")
        from ftrain.run.launch import Request

        command = ("ftrain", *sys.argv[1:])
        request = Request(asked=asked, resume=resume, override=override, command=command)
        if dry_run:
            _try(request)
        else:
            start(request, processes)
            _train(request, stop)


def _try(request: Request) -> None:
    from ftrain.run import folder as run_folder
    from ftrain.run.fit import try_once

    settings = Settings(**request.asked)
    if settings.out:
        run_folder.check_free(Path(settings.out))
    spec, images = resolved(settings)
    for text in spec.notes:
        note(text)
    if spec.compile:
        note("compiling the steps, which can take minutes ...")
    metrics = try_once(spec, images)
    typer.echo(
        f"dry run: {spec.model} at {spec.image_size} px, batch {spec.batch_size}, on {spec.device}; one step gave loss "
        f"{metrics['loss']:.4f}. Everything works; nothing was saved."
    )


def _train(request: Request, stop: Stop) -> None:
    from ftrain.run.api import with_curves
    from ftrain.run.events import EpochEnded, Opened, Stopped
    from ftrain.run.launch import launch
    from ftrain.run.progress import summary, with_progress

    events = launch(request, stop=stop, end=end)
    folder, last = Path(), None
    stop.announced = sys.stdout.isatty()
    try:
        for event in with_progress(with_curves(events), words=as_flags, stopping=stop):
            match event:
                case Opened():
                    folder, stop.waits = event.run.path, True
                case EpochEnded() | Stopped():
                    last = event
                case _:
                    pass
        typer.echo(summary(last, folder))
        if last is not None and last != Stopped(0):
            typer.echo(_next(folder, request, finished=isinstance(last, EpochEnded)))
    except OSError as error:
        if not is_output_lost(error):
            raise
        # What was trained is saved all the same.
        silence()
        stop.code = stop.code or BROKEN_PIPE
        for _ in events:
            pass
    if stop.code:
        sys.exit(stop.code)


def _next(folder: Path, request: Request, *, finished: bool) -> str:
    """The commands that a user may want next."""
    own = str(request.asked.get("model", ""))
    model = f" --model {shown(own)}" if ":" in own else ""
    if finished:
        return f"next: ftrain evaluate {shown(folder)}{model}, or ftrain predict {shown(folder)} IMAGE...{model}"
    return f"next: ftrain fit --resume {shown(folder)}{model}"
