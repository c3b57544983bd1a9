"""`ftrain evaluate`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Annotated, Any

import attrs
import typer

from ftrain.errors import SettingsError
from ftrain.text import shown

from .report import note, reported, warn


@reported
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Folder with a folder per class, or with val/ in it. By default the run's validation data.",
        ),
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="Use the last checkpoint instead of the best.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read images. By default as in the run.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write. By default RUN/evaluation.")] = None,
) -> None:
    """Measure a trained network: loss, top-1, top-5, precision, recall and F1 of each class, and the confusion
    matrix."""
    note("loading torch ...")
    from rich.progress import track

    from ftrain.data.folders import scan
    from ftrain.disk.durable import write_file
    from ftrain.metrics import class_scores
    from ftrain.run import folder as runs
    from ftrain.run import inference, prepare

    from .pictures import draw_confusion
    from .tables import score_table

    target = out or run / "evaluation"
    if target.exists() and not target.is_dir():
        raise SettingsError(f"--out takes a folder; {shown(target)} is a file")
    opened = runs.open_run(run)
    settings = attrs.evolve(opened.settings, device=str(prepare.resolve_device(device)))
    if workers is not None:
        settings = attrs.evolve(settings, workers=workers)
    opened = attrs.evolve(opened, settings=settings)
    if data is None:
        val = prepare.sources(settings)[1]
    else:
        inner = "val" not in opened.classes and (data / "val").is_dir()  # as `fit --data` takes it
        val = prepare.usage(scan, data / "val" if inner else data, classes=opened.classes)
    images = prepare.images(settings, val, val)
    state, net, chosen, damaged = inference.restore(opened, best=not last)
    warn(damaged)
    note(f"{chosen.name} of {shown(run)} on {len(val)} images in {shown(val.title)}")

    events = inference.evaluate(opened, state, net, images)
    *_, result = track(events, "evaluating", images.eval_batches + 1, console=_stderr(), transient=True)
    assert isinstance(result, inference.Evaluation)
    for cause in result.left_out:
        note(f"left out: {cause}")
    confusion = result.confusion.numpy()
    scores = class_scores(result.confusion)
    metrics: dict[str, Any] = {
        name: result.metrics[name] for name in ("loss", "accuracy", "top5", "count") if name in result.metrics
    }
    typer.echo(
        "  ".join(
            f"{name} {value:.4f}" if name != "count" else f"{value:.0f} images" for name, value in metrics.items()
        )
    )
    typer.echo(score_table(opened.classes, scores))

    target.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "checkpoint": chosen.name,
        "data": val.title,
        **metrics,
        "classes": _by_class(opened.classes, scores),
    }
    draw_confusion(confusion, opened.classes, target / "confusion.png")
    write_file(target / "confusion.csv", _confusion_csv(opened.classes, confusion))
    write_file(target / "metrics.json", json.dumps(document, indent=1).encode())
    typer.echo(f"wrote metrics.json, confusion.csv and confusion.png to {shown(target)}")


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _by_class(classes: tuple[str, ...], scores: Any) -> dict[str, dict[str, float]]:
    return {
        name: {score: float(values[position]) for score, values in scores.items()}
        for position, name in enumerate(classes)
    }


def _confusion_csv(classes: tuple[str, ...], confusion: Any) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label \\ answer", *classes])
    writer.writerows([name, *row] for name, row in zip(classes, confusion.tolist(), strict=True))
    return text.getvalue().encode("utf-8", "surrogateescape")
