"""`ftrain bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftrain.run.settings import Settings
from ftrain.text import readable, shown

from .options import given, with_settings
from .report import note, reported

if TYPE_CHECKING:
    from ftrain.run.bench import Report


@reported
@with_settings
def bench(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file of settings, named as the options are.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long each part is measured.")] = 3.0,
    **settings: Any,
) -> None:
    """Measure how fast a run with these settings would be here, what limits it, and what would make it faster.

    The options are those of fit. No run is kept. With --compile the step is compiled, which can take minutes.
    """
    asked = given(context, config, settings)
    note("loading torch ...")
    from ftrain.run import prepare
    from ftrain.run.bench import Measuring, Report
    from ftrain.run.bench import bench as measure

    resolved, images, notes = prepare.resolve(Settings(**asked))
    for text in notes:
        note(text)
    for event in measure(resolved, images, seconds=seconds):
        match event:
            case Measuring(what):
                note(f"measuring {what} ...")
            case Report():
                typer.echo(_told(event))


def _told(report: Report) -> str:
    settings = report.settings
    assert settings.batch_size
    compiled = "compiled" if settings.compile else "not compiled"
    lines = [
        f"{settings.model}, {settings.image_size} px, batch {settings.batch_size}, {settings.precision}, "
        f"{settings.memory_format}, {compiled}, on {settings.device}, with {settings.workers} workers",
        "",
        f"{'images/s':>48}",
    ]

    def line(what: str, rate: float, more: str = "") -> None:
        lines.append(f"{what:<38}{rate:>10,.0f}{more}")

    line("training step, on a batch in memory", report.step)
    for option, found in report.others.items():
        if isinstance(found, str):
            lines.append(f"  with {option}: not measured: {shown(found)}")
        else:
            line(f"  with {option}", found * report.step, f"   {found:.2f} x")
    line("input pipeline, decoding", report.decoding)
    if report.cached is not None:
        line("input pipeline, from the cache", report.cached)
    line("both together", report.both)
    memory = report.memory
    part = settings.batch_size // settings.accumulate
    lines += ["", f"limit: {report.limit if report.limit != 'both' else 'the step and the input pipeline share cores'}"]
    if report.compiling is not None:
        lines.append(f"compiling: {report.compiling:.0f} s, less when the cache knows the step")
    fits = f"; {readable(memory.free)} are free, for batches of about {memory.largest_batch}" if memory.free else ""
    lines.append(
        f"memory of a step: about {readable(memory.of(part))}: {readable(memory.fixed)}, and "
        f"{readable(memory.per_image)} an image{fits}"
    )
    if report.peak is not None:
        lines.append(f"peak on the device: {readable(report.peak)}")
    lines += [f"to change: {advice}" for advice in report.advice] or ["to change: nothing that was measured"]
    return "\n".join(lines)
