"""`ftrain replay`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import attrs
import typer

from ftrain.text import shown

from .errors import reported
from .messages import note, prepared, warn


@reported
def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    step: Annotated[int, typer.Option("--step", metavar="N", help="The training step to repeat, counted from 1.")],
    model: Annotated[
        str,
        typer.Option(metavar="FILE.py:FUNCTION", help="The network of the run, if it is made by a file of your own."),
    ] = "",
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Picture to write. Default: RUN/replay/step_N.png."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps. Default: as in the run.", show_default=False)
    ] = None,
) -> None:
    """Repeat a training step of a run to look into it: loss, gradient norms by layer, and the images of its batch."""
    note("loading torch ...")
    from rich.console import Console
    from rich.progress import Progress

    from ftrain.data.labels import label_names
    from ftrain.disk import durable
    from ftrain.run import folder as run_folder
    from ftrain.run import provenance
    from ftrain.run.events import ComputingFeatures, Damaged
    from ftrain.run.locate import locate_again
    from ftrain.run.reopen import reopened
    from ftrain.run.replay import Replayed, Replaying
    from ftrain.run.replay import replay as repeat
    from ftrain.run.resolve import resolve_device

    from .pictures import draw_batch

    opened = run_folder.read(run)
    spec, custom = reopened(opened, model=model or None)
    spec = attrs.evolve(spec, device=str(resolve_device(device or opened.settings.device)))
    located = prepared(locate_again(opened.settings, opened.split))
    images = spec.images(located.train, located.val)
    # Raises an error if the images have changed.
    provenance.resumed_run(opened, spec, images, ["ftrain", *sys.argv[1:]], custom=custom)
    found = None
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("repeating steps", total=step)
        if spec.compile:
            note("compiling the step, as the run did, which can take minutes ...")
        for event in repeat(opened, spec, images, step, custom):
            match event:
                case Replaying(done, last):
                    if done + 1 < last:
                        progress.update(task, description="repeating steps", completed=done, total=step)
                case Damaged(cause):
                    warn([cause])
                case Replayed():
                    found = event
                case ComputingFeatures(done, total):
                    progress.update(task, description="computing features", completed=done, total=total)
                case _:
                    progress.update(task, description="caching decoded images")
    assert isinstance(found, Replayed)
    values = found.metrics
    f1 = f", F1 {values['micro_f1']:.1%}" if "micro_f1" in values else ""
    typer.echo(
        f"step {step}: loss {values['loss']:.6g}, accuracy {values['accuracy']:.1%}{f1}, gradient norm "
        f"{values['grad_norm']:.6g}, learning rate {values.get('lr', float('nan')):.6g}"
    )
    typer.echo("gradient norm by layer")
    width = max(map(len, found.gradients))
    for layer, norm in found.gradients.items():
        typer.echo(f"  {shown(layer):<{width}}  {norm:.6g}")
    typer.echo("images of the batch")
    labels = [label_names(label, images.train.classes) for label in found.batch.labels.numpy()]
    for name, label in zip(found.names, labels, strict=True):
        typer.echo(f"  {shown(name)}  ({shown(label)})")
    target = file or run / "replay" / f"step_{step:08d}.png"
    durable.make_folder(target.parent)
    draw_batch(found.batch.images, [(Path(n).name, c) for n, c in zip(found.names, labels, strict=True)], target)
    typer.echo(f"wrote {shown(target)}")
