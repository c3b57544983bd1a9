"""`ftrain verify-resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ftrain.errors import SettingsError
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
    processes: Annotated[
        str,
        typer.Option(
            "--processes",
            metavar="N,...",
            help="Numbers of processes, such as 1,2,4: the first without a stop, all of them in turn between stops.",
        ),
    ] = "1",
    **settings: Any,
) -> None:
    """Check that a run with these settings, stopped and resumed, ends with the same bits as one that was not stopped.

    Takes a few training steps without a stop, and again with stops, each part in new processes. The options are those
    of fit. The exit code is 1 if a bit differs.
    """
    asked = given(context, config, settings)
    numbers = _numbers(processes)
    note("loading torch ...")
    from ftrain.parallel import Place
    from ftrain.run.verify import Part, Verdict, verify_resume

    most = max(numbers)
    spec, images = resolved(Settings(**asked), here=Place(world=most, local_world=most))
    for text in spec.notes:
        note(text)
    for event in verify_resume(spec, images, steps=steps, processes=numbers):
        match event:
            case Part(title, first, last):
                note(f"steps {first + 1} to {last}, {title} ...")
            case Verdict():
                verdict = event
    what = f"{spec.model}, {spec.image_size} px, batch {spec.batch_size}, {spec.precision}, {spec.device}, {last} steps"
    if most > 1:
        what += f", processes {', '.join(map(str, numbers))}"
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


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise SettingsError(f"`processes` must be numbers of processes, such as 1,2,4; got {shown(text)}")
    return numbers
