"""`ftrain export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from ftrain.errors import SettingsError
from ftrain.text import shown

from .report import note, reported, warn

FORMATS = ("safetensors", "onnx", "torch-export")


@reported
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="|".join(FORMATS),
            help="onnx and torch-export take uint8 images and hold the normalisation; safetensors holds the tensors, "
            "under torchvision's names, and says the normalisation beside them.",
        ),
    ] = "safetensors",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The file to write. By default in RUN/export.")
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="Use the last checkpoint instead of the best.")] = False,
) -> None:
    """Write a trained network to one file for other programs, with its normalisation and class names.

    The file gets its name only if its answers on validation images are those of the run.
    """
    if format not in FORMATS:
        raise SettingsError(f"--format takes one of {', '.join(FORMATS)}; got {format!r}")
    if out and out.exists():
        raise SettingsError(f"{shown(out)} is there already; give another name as --out, or remove it")
    note("loading torch ...")
    from ftrain.disk import durable
    from ftrain.run import folder as runs
    from ftrain.run import inference, prepare
    from ftrain.run.export import SUFFIXES
    from ftrain.run.export import export as write

    opened = runs.open_run(run)
    opened = attrs.evolve(opened, settings=attrs.evolve(opened.settings, device="cpu", precision="float32"))
    val = prepare.sources(opened.settings)[1]
    images = prepare.images(opened.settings, val, val)
    state, net, chosen, damaged = inference.restore(opened, best=not last)
    warn(damaged)
    target = out or run / "export" / f"{opened.settings.model}{SUFFIXES[format]}"
    note(f"exporting {chosen.name} of {shown(run)} as {format} ...")
    durable.make_folder(target.parent)
    count, difference = write(opened, state, net, images, format, target)  # type: ignore[arg-type]
    typer.echo(
        f"wrote {shown(target)}: on {count} validation images its logits are those of the run, to {difference:.1e}"
    )
