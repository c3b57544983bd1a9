"""`ftrain data`: inspect images before training on them, and prepare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ftrain.errors import DataError, SettingsError
from ftrain.run.settings import Settings
from ftrain.text import readable, shown

from .errors import reported
from .messages import note, prepared, warn, with_bar
from .options import given, resolved, with_settings

app = typer.Typer(help="Inspect images before training on them, and prepare them.", no_args_is_help=True)
Folder = Annotated[
    Path,
    typer.Argument(metavar="DIR|TABLE", help="Folder with train/ and val/, or with one folder per class; or a table."),
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that load images.")]


@app.command()
@reported
def check(
    folder: Folder,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for check.json and check.png.")] = Path("data-check"),
    workers: Workers = 2,
    task: Annotated[
        Literal["auto", "single-label", "multi-label"],
        typer.Option(help="Whether an image of a table has one label or any number of them; auto tells by the labels."),
    ] = "auto",
) -> None:
    """Read every image: report bad images, exact duplicates (also between train and val), classes and sizes.

    The exit code is 65 if an image cannot be read.
    """
    note("loading ...")
    from ftrain.data.check import check as look
    from ftrain.data.check import uneven
    from ftrain.data.skipped import skipped_line
    from ftrain.disk.durable import write_file
    from ftrain.run.locate import parts as parts_of

    from .pictures import draw_check

    if out.exists() and not out.is_dir():
        raise SettingsError(f"`out` must be a folder; {shown(out)} is a file")
    parts = prepared(parts_of(folder, task=task))
    if line := skipped_line(*parts.values()):
        typer.echo(line)
    report = with_bar(look(parts, workers=workers), "reading", sum(map(len, parts.values())))
    for part, counts in report.classes.items():
        numbers = sorted(counts.values())
        typer.echo(
            f"{part}: {len(parts[part])} images of {len(numbers)} classes, {numbers[0]} to {numbers[-1]} images per "
            "class"
        )
    warn(line for part, counts in report.classes.items() if part != "val" and (line := uneven(counts)))
    document = report.as_json()
    if document["sizes"]:
        height, width = document["sizes"]["height"], document["sizes"]["width"]
        typer.echo(
            f"sizes: {width['smallest']} to {width['largest']} px wide (median {width['median']}), "
            f"{height['smallest']} to {height['largest']} px high (median {height['median']})"
        )
    typer.echo(
        f"exact duplicates: {len(report.duplicates)} groups, of which {len(report.leaks)} are in both train and val, "
        "and "
        f"{len(report.conflicts)} have several labels"
    )
    for group in (report.leaks + report.conflicts)[:10]:
        typer.echo("  " + " = ".join(shown(place.path) for place in group))
    for _, cause in report.bad_images:
        typer.echo(cause)
    out.mkdir(parents=True, exist_ok=True)
    draw_check(report, out / "check.png")
    write_file(out / "check.json", json.dumps(document, indent=1).encode())
    typer.echo(f"wrote check.json and check.png to {shown(out)}")
    if report.bad_images:
        raise DataError(
            f"{len(report.bad_images)} of the images cannot be read; repair or remove them, or train with "
            "`on_bad_image=skip`"
        )


@app.command()
@reported
@with_settings
def preview(
    context: typer.Context,
    folder: Folder,
    file: Annotated[Path, typer.Option("--file", metavar="FILE", help="Picture to write.")] = Path("preview.png"),
    **settings: Any,
) -> None:
    """Draw what the network will see: some training images, each as in evaluation and as augmented in six epochs."""
    asked = given(context, None, settings)
    note("loading torch ...")

    from .pictures import draw_preview

    _, images = resolved(Settings(**{**asked, "data": str(folder)}))
    draw_preview(images, file)
    typer.echo(f"wrote {shown(file)}")


@app.command()
@reported
@with_settings
def cache(context: typer.Context, folder: Folder, **settings: Any) -> None:
    """Build the cache of decoded images on disk ahead of time, for `ftrain fit --cache disk` with the same settings."""
    asked = given(context, None, settings)
    note("loading torch ...")
    from ftrain.data.cache import build_cache, cache_folder

    spec, images = resolved(Settings(**{**asked, "data": str(folder), "cache": "disk"}))
    splits = {
        "train": (images.train, images.train_cache_format),
        "val": (images.val, images.val_cache_format),
    }
    for name, (source, form) in splits.items():
        building = build_cache(source, form, "disk", workers=spec.workers)
        first = next(building, None)
        if first is None:
            typer.echo(f"{name}: already cached in {shown(cache_folder(source, form))}")
            continue
        typer.echo(f"{name}: {first.total} images take {readable(first.bytes)} in {first.place}")
        with_bar(building, "decoding", first.total, done=lambda event: event.done)


@app.command()
@reported
def split(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with a folder of images per class.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder, which will contain train/ and val/.")] = Path(
        "data"
    ),
    fraction: Annotated[float, typer.Option(help="Fraction of each class for validation.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random choice.")] = 0,
    how: Annotated[Literal["link", "copy"], typer.Option(help="link (symbolic links to the images) or copy.")] = "link",
) -> None:
    """Split one folder into train/ and val/: the same fraction of each class, chosen at random by the seed, with
    near-duplicates together. `ftrain fit` does the same, without folders, if there is no val/."""
    if not 0.0 < fraction < 1.0:
        raise SettingsError(f"`fraction` must be a number > 0 and < 1; got {fraction:g}")
    note("loading ...")
    from ftrain.data.rows import is_table
    from ftrain.data.similar import near_duplicates
    from ftrain.data.split import choose_validation, split_into_folders, unusual
    from ftrain.run.locate import parts

    if is_table(folder):
        raise SettingsError(
            f"{shown(folder)} is a table, and only a folder of class folders can be split into folders; `ftrain fit` "
            "splits a table itself, by its column for the split or automatically"
        )
    found = prepared(parts(folder))
    if len(found) > 1:
        raise SettingsError(f"{shown(folder)} is split already: it contains train/ and val/")
    [index] = found.values()
    groups = prepared(near_duplicates(index))
    chosen = choose_validation(index, fraction=fraction, seed=seed, groups=groups)
    warn(unusual(index, chosen, groups))
    making = split_into_folders(index, out, chosen, how)
    with_bar(making, "linking" if how == "link" else "copying", len(index))
    typer.echo(f"{shown(out)}: {int((~chosen).sum())} images in train, {int(chosen.sum())} in val")
