"""`ftrain verify-resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ftrain.run.settings import Settings
from ftrain.text import shown

from .errors import reported
from .messages import as_flags, note
from .options import given, resolved, with_settings


@reported
@with_settings
def verify_resume(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file of settings, named like the options.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Training steps to take.")] = 6,
    **settings: Any,
) -> None:
    """Check that a run with these settings, stopped and resumed, ends with the same bits as one that was not stopped.

    Takes a few training steps without a stop, and again with one, each part in a new process. The options are those of
    fit. The exit code is 1 if a bit differs.
    """
    asked = given(context, config, settings)
    note("loading torch ...")
    from ftrain.run.verify import Part, Verdict, verify_resume

    spec, images = resolved(Settings(**asked))
    for text in spec.notes:
        note(text)
    for event in verify_resume(spec, images, steps=steps):
        match event:
            case Part(title, first, last):
                note(f"steps {first + 1} to {last}, {title} ...")
            case Verdict():
                verdict = event
    what = f"{spec.model}, {spec.image_size} px, batch {spec.batch_size}, {spec.precision}, {spec.device}, {last} steps"
    if not verdict.different:
        typer.echo(f"bit-exact: {what}: all {verdict.tensors} tensors have the same bits with and without a stop")
        return
    name, difference = next(iter(verdict.different.items()))
    advice = "; try `deterministic=True`" if spec.device.startswith("cuda") and not spec.deterministic else ""
    typer.echo(
        as_flags(
            f"not bit-exact: {what}: {len(verdict.different)} of {verdict.tensors} tensors differ; the first is "
            f"{shown(name)}, by up to {difference:.3g}{advice}"
        )
    )
    raise typer.Exit(1)
