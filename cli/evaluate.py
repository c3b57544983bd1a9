"""`ftrain evaluate`."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from ftrain.errors import SettingsError
from ftrain.text import shown

from .errors import reported
from .messages import note, prepared, warn, with_bar


@reported
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR|TABLE",
            help="Folder with one folder per class, or one that contains val/; or a table. Default: the run's "
            "validation images.",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(metavar="FILE.py:FUNCTION", help="The network of the run, if it is made by a file of your own."),
    ] = "",
    last: Annotated[bool, typer.Option("--last", help="Use the last checkpoint instead of the best.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that load images. Default: as in the run.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Output folder. Default: RUN/evaluation.")] = None,
) -> None:
    """Evaluate a trained network: loss, top-1, top-5, precision, recall and F1 of each class, and the confusion
    matrix. Of images that may have several labels: mAP and F1, and average precision and F1 of each class."""
    note("loading torch ...")
    from ftrain.data.skipped import skipped_line
    from ftrain.disk.durable import write_file
    from ftrain.run.api import open_run

    from .pictures import draw_confusion
    from .tables import score_table

    target = out or run / "evaluation"
    if target.exists() and not target.is_dir():
        raise SettingsError(f"`out` must be a folder; {shown(target)} is a file")
    opened = open_run(run, model=model or None, device=device)
    images = prepared(opened.finding(data))
    restored = opened.restored(last=last)
    warn(opened.damage)
    if line := skipped_line(images.val):
        note(line)
    note(f"{restored.checkpoint.name} of {shown(run)} on {len(images.val)} images in {shown(images.val.name)}")
    work = opened.evaluation(images, last=last, workers=workers)
    result = with_bar(work, "evaluating", images.eval_batches)
    for cause in result.skipped:
        note(f"skipped: {cause}")
    scores = result.class_scores
    others = [name for name in result.metrics if name not in ("loss", "accuracy", "count", "nonfinite")]
    metrics = {name: result.metrics[name] for name in ("loss", "accuracy", *others, "count") if name in result.metrics}
    typer.echo(
        "  ".join(
            f"{name} {value:.4f}" if name != "count" else f"{value:.0f} images" for name, value in metrics.items()
        )
    )
    typer.echo(score_table(opened.classes, scores))

    target.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "checkpoint": restored.checkpoint.name,
        "data": images.val.name,
        **{name: _or_none(value) for name, value in metrics.items()},
        "classes": _by_class(opened.classes, scores),
    }
    wrote = "metrics.json"
    if result.confusion is not None:
        wrote = "metrics.json, confusion.csv and confusion.png"
        confusion = result.confusion.numpy()
        draw_confusion(confusion, opened.classes, target / "confusion.png")
        write_file(target / "confusion.csv", _confusion_csv(opened.classes, confusion))
    write_file(target / "metrics.json", json.dumps(document, indent=1).encode())
    typer.echo(f"wrote {wrote} to {shown(target)}")


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value  # nan is no JSON


def _by_class(classes: tuple[str, ...], scores: Any) -> dict[str, dict[str, float | None]]:
    return {
        name: {score: _or_none(float(values[position])) for score, values in scores.items()}
        for position, name in enumerate(classes)
    }


def _confusion_csv(classes: tuple[str, ...], confusion: Any) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label \\ prediction", *classes])
    writer.writerows([name, *row] for name, row in zip(classes, confusion.tolist(), strict=True))
    return text.getvalue().encode("utf-8", "surrogateescape")
