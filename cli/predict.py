"""`ftrain predict`."""

from __future__ import annotations

import csv
import glob
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import attrs
import typer

from ftrain.errors import DataError, SettingsError
from ftrain.text import shown

from .report import note, reported, warn


@reported
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Image files, folders of them, or patterns such as 'new/*.jpg'."),
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes to name for each image.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: image, rank, class, probability.")] = False,
    last: Annotated[bool, typer.Option("--last", help="Use the last checkpoint instead of the best.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Name the most probable classes of images."""
    if as_json and as_csv:
        raise SettingsError("give --json or --csv, not both")
    note("loading torch ...")
    from rich.console import Console
    from rich.progress import track

    from ftrain.run import folder as runs
    from ftrain.run import inference, prepare

    opened = runs.open_run(run)
    settings = attrs.evolve(opened.settings, device=str(prepare.resolve_device(device)))
    opened = attrs.evolve(opened, settings=settings)
    paths = [path for name in images for path in _expand(name)]
    state, net, _, damaged = inference.restore(opened, best=not last)
    warn(damaged)
    answers, failures = [], []
    predictions = inference.predict(opened, state, net, paths, top=top)
    for path, found in track(predictions, "predicting", len(paths), console=Console(stderr=True), transient=True):
        if isinstance(found, DataError):
            failures.append(str(found))
        else:
            answers.append((path, found))
    if as_json:
        document = [
            {"image": path, "classes": [{"class": name, "probability": p} for name, p in ranked]}
            for path, ranked in answers
        ]
        typer.echo(json.dumps(document, indent=1))
    elif as_csv:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "rank", "class", "probability"])
        for path, ranked in answers:
            writer.writerows([path, rank, name, f"{p:.6f}"] for rank, (name, p) in enumerate(ranked, start=1))
        typer.echo(text.getvalue().encode("utf-8", "surrogateescape"), nl=False)
    else:
        for path, ranked in answers:
            typer.echo(f"{shown(path)}: " + ", ".join(f"{shown(name)} {p:.1%}" for name, p in ranked))
    for text_of_failure in failures[1:]:
        note(text_of_failure)
    if failures:
        raise DataError(failures[0])


def _expand(name: str) -> Iterator[str]:
    from ftrain.data.folders import image_files

    if Path(name).is_file():
        yield name
        return
    matches = [name] if Path(name).is_dir() else sorted(glob.glob(name, recursive=True))
    found = [path for match in matches for path in (image_files(match) if Path(match).is_dir() else [match])]
    if not found:
        raise SettingsError(f"no image is called {shown(name)}, nor does a folder or pattern of that name hold any")
    yield from found
