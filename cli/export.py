"""`ftrain export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ftrain.errors import SettingsError
from ftrain.text import shown

from .errors import reported
from .messages import note, prepared, warn

FORMATS = ("safetensors", "onnx", "torch-export")


@reported
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="|".join(FORMATS),
            help="onnx and torch-export take uint8 images and include the normalisation; safetensors has the tensors, "
            "under the network's own names, and the normalisation as metadata. Default: by the suffix of --out, "
            "otherwise safetensors.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR|TABLE",
            help="Folder or table whose images the exported network is checked on. Default: the run's validation "
            "images.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Output file. Default: in RUN/export.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(metavar="FILE.py:FUNCTION", help="The network of the run, if it is made by a file of your own."),
    ] = "",
    last: Annotated[bool, typer.Option("--last", help="Use the last checkpoint instead of the best.")] = False,
) -> None:
    """Export a trained network to one file for other programs, with its normalisation and class names.

    The file is written only if its logits on validation images equal those of the run.
    """
    by_suffix = {".safetensors": "safetensors", ".onnx": "onnx", ".pt2": "torch-export"}.get(out.suffix if out else "")
    if out and format and by_suffix not in (None, format):
        raise SettingsError(f"{shown(out)} has the suffix of {by_suffix}; use `format={by_suffix}`, or another suffix")
    format = format or by_suffix or "safetensors"
    if format not in FORMATS:
        raise SettingsError(f"`format` must be one of {', '.join(FORMATS)}; got {format!r}")
    if out and out.exists():
        raise SettingsError(f"{shown(out)} already exists; give another name as `out`")
    note("loading torch ...")
    from ftrain.disk import durable
    from ftrain.run.api import open_run
    from ftrain.run.export import SUFFIXES
    from ftrain.run.export import export as write

    opened = open_run(run, model=model or None, device="cpu")
    images = prepared(opened.finding(data))
    restored = opened.restored(last=last)
    warn(opened.damage)
    name = Path(opened.spec.model.rpartition(":")[2]).name
    target = out or run / "export" / f"{name}{SUFFIXES[format]}"
    note(f"exporting {restored.checkpoint.name} of {shown(run)} as {format} ...")
    durable.make_folder(target.parent)
    count, difference = write(restored, images, format, target)  # type: ignore[arg-type]
    typer.echo(
        f"wrote {shown(target)}: on {count} validation images its logits equal those of the run to {difference:.1e}"
    )
