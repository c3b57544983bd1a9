"""`ftrain predict`."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from ftrain.errors import DataError, SettingsError
from ftrain.text import shown

from .errors import reported
from .messages import note, warn


@reported
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Image files, folders of them, or patterns such as 'new/*.jpg'."),
    ],
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Classes to show for each image. Default: 3, or if images may have several labels, all whose "
            "probability is at least their threshold.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: image, rank, class, probability.")] = False,
    model: Annotated[
        str,
        typer.Option(metavar="FILE.py:FUNCTION", help="The network of the run, if it is made by a file of your own."),
    ] = "",
    last: Annotated[bool, typer.Option("--last", help="Use the last checkpoint instead of the best.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Show the most probable classes of images.

    An image that cannot be read is named, and the exit code is then 65 when the others are done.
    """
    if as_json and as_csv:
        raise SettingsError("give either `json` or `csv`, not both")
    note("loading torch ...")
    from rich.console import Console
    from rich.progress import track

    from ftrain.data.skipped import described
    from ftrain.run import inference
    from ftrain.run.api import open_run
    from ftrain.run.opened import prediction

    opened = open_run(run, model=model or None, device=device)
    paths, others = _images(images)
    restored = opened.restored(last=last)
    warn(opened.damage)
    if others:
        note(f"skipped: {described(others)}")
    documents, failures = [], []
    rankings = track(
        zip(paths, inference.predict(restored, paths, top=top), strict=True),
        "predicting",
        len(paths),
        console=Console(stderr=True),
        transient=True,
    )
    for position, (path, ranking) in enumerate(rankings):
        try:
            documents.append(prediction(path, position, ranking))
        except DataError as error:
            failures.append(str(error))
    if as_json:
        typer.echo(json.dumps(documents, indent=1))
    elif as_csv:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "rank", "class", "probability"])
        for document in documents:
            if not document["classes"]:
                writer.writerow([document["image"], "", "", ""])
            writer.writerows(
                [document["image"], rank, each["class"], f"{each['probability']:.6f}"]
                for rank, each in enumerate(document["classes"], start=1)
            )
        typer.echo(text.getvalue().encode("utf-8", "surrogateescape"), nl=False)
    else:
        for document in documents:
            ranked = ", ".join(f"{shown(each['class'])} {each['probability']:.1%}" for each in document["classes"])
            typer.echo(f"{shown(document['image'])}: {ranked or 'no label'}")
    for failure in failures:
        note(failure)
    if failures:
        raise DataError(f"{len(failures)} of {len(paths)} images cannot be read")


def _images(names: list[str]) -> tuple[list[str], Counter[str]]:
    """The images that arguments name, each once, and how many other files there are in folders, by kind.

    Raises:
      SettingsError: if an argument names no image.
    """
    from ftrain.data.folders import image_files
    from ftrain.data.skipped import described

    found: list[str] = []
    skipped: Counter[str] = Counter()
    for name in names:
        matches = [name] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
        before, others, folders = len(found), Counter[str](), list[str]()
        for match in matches:
            if match.startswith(tuple(folders)):  # `**` matches folders and what is in them
                continue
            if Path(match).is_dir():
                folders.append(os.path.join(match, ""))
                inside, kinds = image_files(match)
                found += inside
                others.update(kinds)
            else:
                found.append(match)
        if len(found) == before:
            instead = f"; found {described(others)}" if others else ""
            raise SettingsError(
                f"{shown(name)} matches no image; expected an image file, a folder of images or a glob pattern{instead}"
            )
        skipped += others
    return list(dict.fromkeys(found)), skipped
