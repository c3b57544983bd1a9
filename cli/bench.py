"""`ftrain bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftrain.run.settings import Settings
from ftrain.text import readable, shown

from .errors import reported
from .messages import as_flags, note
from .options import given, resolved, with_settings

if TYPE_CHECKING:
    from ftrain.run.bench import Report


@reported
@with_settings
def bench(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file of settings, named like the options.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time for which each part is measured.")] = 3.0,
    **settings: Any,
) -> None:
    """Measure how fast a run with these settings would be on this machine, what limits it, and what makes it faster.

    The options are those of fit. Nothing is saved. With --compile the step is compiled, which can take minutes.
    """
    asked = given(context, config, settings)
    note("loading torch ...")
    from ftrain.run.bench import Measuring, Report
    from ftrain.run.bench import bench as measure

    spec, images = resolved(Settings(**asked))
    for text in spec.notes:
        note(text)
    for event in measure(spec, images, seconds=seconds):
        match event:
            case Measuring(what):
                note(f"measuring {what} ...")
            case Report():
                typer.echo(as_flags(_table(event)))


def _table(report: Report) -> str:
    spec, memory = report.spec, report.memory
    compiled = "compiled" if spec.compile else "not compiled"
    lines = [
        f"{spec.model}, {spec.image_size} px, batch {spec.batch_size}, {spec.precision}, {spec.memory_format}, "
        f"{compiled}, on {spec.device}, with {spec.workers} workers",
        "",
        f"{'images/s':>48}",
    ]

    def line(what: str, rate: float, more: str = "") -> None:
        lines.append(f"{what:<38}{rate:>10,.0f}{more}")

    line("training step, on a batch in memory", report.step)
    for setting, found in report.alternatives.items():
        with_setting = as_flags(f"  with `{setting}`")
        if isinstance(found, str):
            lines.append(f"{with_setting}: not measured: {shown(found)}")
        else:
            line(with_setting, found * report.step, f"   {found:.2f} x")
    line("input pipeline, decoding", report.decoding)
    if report.cached is not None:
        line("input pipeline, from the cache", report.cached)
    line("both together", report.both)
    lines += ["", f"limit: {report.limit if report.limit != 'both' else 'the step and the input pipeline share cores'}"]
    if report.compiling is not None:
        lines.append(f"compiling: {report.compiling:.0f} s, less if the step is in the compiler's cache")
    fits = (
        f"; {readable(memory.free)} are free, enough for batches of about {memory.largest_batch}" if memory.free else ""
    )
    lines.append(
        f"memory of a step: about {readable(memory.of(spec.batch_size // spec.parts))}: {readable(memory.fixed)}, "
        f"and {readable(memory.per_image)} per image{fits}"
    )
    if report.peak is not None:
        lines.append(f"peak on the device: {readable(report.peak)}")
    lines += [f"advice: {advice}" for advice in report.advice] or [
        "advice: none of the alternatives measured is faster"
    ]
    return "\n".join(lines)
