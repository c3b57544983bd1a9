"""`ftrain data`: look at images before training on them, and get them ready."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ftrain.errors import DataError, SettingsError
from ftrain.run.settings import Settings
from ftrain.text import readable, shown

from .options import given, with_settings
from .report import note, reported, with_progress

app = typer.Typer(help="Look at images before training on them, and get them ready.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that holds train/ and val/.")]
AnyFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder that holds train/ and val/, or a folder per class.")
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read images.")]


@app.command()
@reported
def check(
    folder: AnyFolder,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write check.json and check.png.")] = Path(
        "data-check"
    ),
    workers: Workers = 2,
) -> None:
    """Read every image: what cannot be read, exact duplicates (also between train and val), classes and sizes.

    Ends with exit code 65 if an image cannot be read.
    """
    note("loading ...")
    from ftrain.data.check import check as look
    from ftrain.data.folders import scan
    from ftrain.disk.durable import write_file
    from ftrain.run import prepare

    from .pictures import draw_check

    if out.exists() and not out.is_dir():
        raise SettingsError(f"--out takes a folder; {shown(out)} is a file")
    if (folder / "train").is_dir():
        train = prepare.usage(scan, folder / "train")
        parts = {"train": train}
        if (folder / "val").is_dir():
            parts["val"] = prepare.usage(scan, folder / "val", classes=train.classes)
    else:
        parts = {"all": prepare.usage(scan, folder)}
    report = with_progress(look(parts, workers=workers), "reading", sum(map(len, parts.values())))
    for part, counts in report.classes.items():
        numbers = sorted(counts.values())
        typer.echo(
            f"{part}: {sum(numbers)} images of {len(numbers)} classes, {numbers[0]} to {numbers[-1]} images a class"
        )
    document = report.as_json()
    if document["sizes"]:
        height, width = document["sizes"]["height"], document["sizes"]["width"]
        typer.echo(
            f"sizes: {width['smallest']} to {width['largest']} px wide (median {width['median']}), "
            f"{height['smallest']} to {height['largest']} px high (median {height['median']})"
        )
    typer.echo(
        f"exact duplicates: {len(report.duplicates)} groups, of which {len(report.leaks)} are in train and in val, and "
        f"{len(report.conflicts)} have several labels"
    )
    for group in (report.leaks + report.conflicts)[:10]:
        typer.echo("  " + " = ".join(shown(place.path) for place in group))
    for _, cause in report.unreadable:
        typer.echo(cause)
    out.mkdir(parents=True, exist_ok=True)
    draw_check(report, out / "check.png")
    write_file(out / "check.json", json.dumps(document, indent=1).encode())
    typer.echo(f"wrote check.json and check.png to {shown(out)}")
    if report.unreadable:
        raise DataError(
            f"{len(report.unreadable)} images cannot be read; mend or remove them, or train with --on-bad-image skip"
        )


@app.command()
@reported
@with_settings
def preview(
    context: typer.Context,
    folder: Folder,
    file: Annotated[Path, typer.Option("--file", metavar="FILE", help="The picture to write.")] = Path("preview.png"),
    **settings: Any,
) -> None:
    """Draw what the network will see: some training images, each as evaluation shows it and as six epochs show it."""
    asked = given(context, None, settings)
    note("loading torch ...")
    from ftrain.run import prepare

    from .pictures import draw_preview

    _, images, _ = prepare.resolve(Settings(**{**asked, "data": str(folder)}))
    draw_preview(images, file)
    typer.echo(f"wrote {shown(file)}")


@app.command()
@reported
@with_settings
def cache(context: typer.Context, folder: Folder, **settings: Any) -> None:
    """Decode and keep all images on disk ahead of time, for `ftrain fit --cache disk` with the same settings."""
    asked = given(context, None, settings)
    note("loading torch ...")
    from ftrain.data.cache import keep, store_folder
    from ftrain.run import prepare

    resolved, images, _ = prepare.resolve(Settings(**{**asked, "data": str(folder), "cache": "disk"}))
    for name, source, form in (("train", images.train, images.train_form), ("val", images.val, images.val_form)):
        building = keep(source, form, "disk", workers=resolved.workers or 0)
        first = next(building, None)
        if first is None:
            typer.echo(f"{name}: kept already in {shown(store_folder(source, form))}")
            continue
        typer.echo(f"{name}: {first.total} images take {readable(first.bytes)} in {first.place}")
        with_progress(building, "decoding", first.total, done=lambda event: event.done)


@app.command()
@reported
def split(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with a folder of images per class.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make, with train/ and val/ in it.")] = Path(
        "data"
    ),
    share: Annotated[float, typer.Option(help="Share of each class that is for validation.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="What the choice follows from.")] = 0,
    how: Annotated[
        Literal["link", "copy"], typer.Option(help="link (symbolic, to where the images are) or copy.")
    ] = "link",
) -> None:
    """Make train/ and val/ from one folder: of each class the same share, chosen by the seed."""
    if not 0.0 < share < 1.0:
        raise SettingsError(f"--share takes a number > 0 and < 1; got {share:g}")
    note("loading ...")
    from ftrain.data.folders import scan
    from ftrain.data.split import chosen_for_val
    from ftrain.data.split import split as make
    from ftrain.run import prepare

    index = prepare.usage(scan, folder)
    chosen = chosen_for_val(index, share=share, seed=seed)
    with_progress(make(index, out, chosen, how), "linking" if how == "link" else "copying", len(index))
    typer.echo(f"{shown(out)}: {int((~chosen).sum())} images in train, {int(chosen.sum())} in val")
