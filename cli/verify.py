"""`ftrain verify-resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ftrain.run.settings import Settings

from .options import given, with_settings
from .report import note, reported


@reported
@with_settings
def verify_resume(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file of settings, named as the options are.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Steps to take.")] = 6,
    **settings: Any,
) -> None:
    """Try whether a run with these settings, stopped and resumed, ends with the same bits as one that was not.

    It takes a few steps at once, and again with a stop in the middle, each part in a new process; the options are those
    of fit. Ends with exit code 1 if a bit differs.
    """
    asked = given(context, config, settings)
    note("loading torch ...")
    from ftrain.run import prepare
    from ftrain.run.verify import Part, Verdict, verify_resume

    resolved, images, notes = prepare.resolve(Settings(**asked))
    for text in notes:
        note(text)
    for event in verify_resume(resolved, images, steps=steps):
        match event:
            case Part(title, first, last):
                note(f"steps {first + 1} to {last}, {title} ...")
            case Verdict():
                verdict = event
    what = f"{resolved.model}, {resolved.image_size} px, batch {resolved.batch_size}, {resolved.precision}, "
    what += f"{resolved.device}, {last} steps"
    if not verdict.different:
        typer.echo(f"bit-exact: {what}: all {verdict.tensors} tensors are the same bits with a stop and without")
        return
    name, difference = next(iter(verdict.different.items()))
    advice = "; add --deterministic" if resolved.device.startswith("cuda") and not resolved.deterministic else ""
    typer.echo(
        f"not bit-exact: {what}: {name} differs first, by up to {difference:.3g}, as do "
        f"{len(verdict.different) - 1} more of {verdict.tensors} tensors{advice}"
    )
    raise typer.Exit(1)
