"""`ftrain info`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ftrain.text import shown

from .errors import reported


@reported
def info(run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]) -> None:
    """Show what a run is, how far it has come, and how good it is."""
    from ftrain.disk import checkpoint
    from ftrain.run import folder as run_folder
    from ftrain.run import retention

    opened = run_folder.read(run)
    settings, config = opened.settings, opened.config
    data = config["data"]
    typer.echo(f"run          {shown(run)}")
    typer.echo(f"command      {shown(shlex.join(config['command']))}")
    typer.echo(f"model        {shown(settings.model)}, {settings.image_size} px, {len(opened.classes)} classes")
    typer.echo(
        f"data         {shown(data['train']['from'])} ({data['train']['images']} images), "
        f"{shown(data['val']['from'])} ({data['val']['images']})"
    )
    average = "" if not settings.ema_decay else f", averaged with ema decay {settings.ema_decay:g}"
    typer.echo(
        f"training     epochs {settings.epochs}, batch {settings.batch_size}, {settings.optimizer}, lr "
        f"{settings.lr:g}, seed {settings.seed}{average}"
    )
    typer.echo(
        f"device       {shown(str(config['device']))}, {settings.precision}; "
        + ", ".join(f"{shown(str(k))} {shown(str(v))}" for k, v in config["versions"].items())
    )
    history = [int(each.get("processes", 1)) for each in (config, *config.get("resumed", []))]
    if max(history) > 1:
        typer.echo(f"processes    {', then '.join(str(count) for count in history)}; {settings.shards} logical shards")
    epochs = [line for line in run_folder.read_metrics(opened)[0] if line["kind"] == "epoch"]
    best = retention.best_epoch(epochs, settings.best_by or "accuracy")
    if best is None:
        typer.echo("progress     no epoch is complete yet")
    else:
        typer.echo(f"progress     {len(epochs)} of {settings.epochs} epochs")
        for title, line in (("last", epochs[-1]), ("best", best)):
            typer.echo(
                f"{title:<12} epoch {line['epoch']}: validation {_quality(line['val'])}, loss {line['val']['loss']:.4f}"
            )
    typer.echo("checkpoints  " + (", ".join(path.name for path in checkpoint.find(opened.checkpoints)) or "none yet"))


def _quality(val: dict[str, float]) -> str:
    if "map" in val:
        return f"mAP {val['map']:.1%}, F1 {val['macro_f1']:.1%}"
    return f"accuracy {val['accuracy']:.1%}"
