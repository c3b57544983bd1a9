"""A run as it is seen: a rich progress display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ftrain.data.cache import Caching
from ftrain.run.loop import (
    Compiled,
    Compiling,
    Damaged,
    EpochEnded,
    Evaluating,
    Event,
    LeftOut,
    Logged,
    Started,
    StepTaken,
    Stopped,
)
from ftrain.text import readable, shown

PLAIN_INTERVAL = 15.0  # seconds between two plain lines within an epoch
WORTH_SAYING = 10_000_000  # bytes of decoded images


def show(events: Iterable[Event], folder: Path) -> Iterator[EpochEnded | Stopped]:
    """Shows the events of a run, and hands on the end of every epoch, and of the run if it is stopped."""
    display = _on_terminal if sys.stdout.isatty() else _in_lines
    last = None
    for event in display(events, folder):
        if isinstance(event, Stopped):
            went_on = f"; `ftrain fit --resume {shown(folder)}` goes on from there"
            typer.echo(f"stopped after step {event.step}{went_on}" if event.step else "stopped before the first step")
            yield event
            return
        last = event
        yield event
    if last is None:
        typer.echo(f"the run in {shown(folder)} is complete; nothing is left to do")
    else:
        typer.echo(
            f"done: validation accuracy {last.val['accuracy']:.1%} at the end, {last.best_accuracy:.1%} at best "
            f"(epoch {last.best_epoch}); everything is in {shown(folder)}"
        )
        typer.echo(f"next: ftrain evaluate {shown(folder)}, or ftrain predict {shown(folder)} IMAGE...")


def _headline(event: Started) -> str:
    settings = event.settings
    lines = [
        f"{settings.model} ({event.parameters / 1e6:.1f} M parameters) on {event.train_examples} images of "
        f"{event.classes} classes, {event.val_examples} to validate; {settings.image_size} px, "
        f"batch {settings.batch_size}, {settings.optimizer}, {settings.precision}, {settings.device}"
    ]
    if event.weights is not None:
        lines.append(f"weights: {event.weights}; all of them by name in weights.json")
    if event.step:
        lines.append(f"going on from step {event.step} of {event.total_steps}")
    return "\n".join(lines)


def _epoch_line(event: EpochEnded, epochs: int, seconds: float) -> str:
    train, val = event.train, event.val
    best = "  best" if event.best_epoch == event.epoch else ""
    return (
        f"epoch {event.epoch:>{len(str(epochs))}}/{epochs}  "
        f"train loss {train['loss']:.4f} accuracy {train['accuracy']:6.1%}   "
        f"val loss {val['loss']:.4f} accuracy {val['accuracy']:6.1%}  {seconds:5.1f} s{best}"
    )


def _in_lines(events: Iterable[Event], folder: Path) -> Iterator[EpochEnded | Stopped]:
    epochs = 0
    epoch_began = last_line = time.monotonic()
    for event in events:
        match event:
            case Started():
                epochs = event.settings.epochs
                typer.echo(f"run: {shown(folder)}\n{_headline(event)}")
            case Logged(line) if time.monotonic() - last_line > PLAIN_INTERVAL:
                last_line = time.monotonic()
                typer.echo(
                    f"epoch {line['epoch']}/{epochs}  step {line['step']}  loss {line['loss']:.4f}  accuracy "
                    f"{line['accuracy']:.1%}  lr {line.get('lr', float('nan')):.2e}  "
                    f"{line['images_per_second']:.0f} images/s"
                )
            case LeftOut(cause):
                typer.echo(f"left out: {cause}")
            case Damaged(cause):
                typer.echo(f"warning: {cause}", err=True)
            case Compiling(what):
                typer.echo(f"compiling the {what} step, which can take minutes ...")
            case Compiled(what, seconds):
                typer.echo(f"compiled the {what} step in {seconds:.0f} s")
            case Stopped():
                yield event
            case Caching(0, total, size, place) if size > WORTH_SAYING:
                typer.echo(f"keeping {total} decoded images in {place}: {readable(size)}")
            case Caching(done, total) if time.monotonic() - last_line > PLAIN_INTERVAL:
                last_line = time.monotonic()
                typer.echo(f"keeping decoded images: {done / total:.0%}")
            case EpochEnded():
                typer.echo(_epoch_line(event, epochs, time.monotonic() - epoch_began))
                epoch_began = last_line = time.monotonic()
                yield event
            case _:
                pass


def _on_terminal(events: Iterable[Event], folder: Path) -> Iterator[EpochEnded | Stopped]:
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None, numbers="")
        epochs, epoch_began = 0, time.monotonic()
        for event in events:
            match event:
                case Started():
                    epochs = event.settings.epochs
                    progress.console.print(f"run: {shown(folder)}\n{_headline(event)}", markup=False, highlight=False)
                    progress.update(
                        task, description="starting", total=event.total_steps, completed=event.step, numbers=""
                    )
                case StepTaken(step, epoch):
                    progress.update(task, completed=step, description=f"epoch {epoch}/{epochs}")
                case Logged(line):
                    numbers = (
                        f"loss {line['loss']:.3f}  acc {line['accuracy']:.1%}  lr {line.get('lr', float('nan')):.1e}  "
                        f"{line['images_per_second']:.0f} img/s"
                    )
                    progress.update(task, numbers=numbers)
                case LeftOut(cause):
                    progress.console.print(f"left out: {cause}", markup=False, highlight=False)
                case Damaged(cause):
                    progress.console.print(f"warning: {cause}", markup=False, highlight=False)
                case Compiling(what):
                    progress.update(task, description=f"compiling the {what} step, which can take minutes")
                case Compiled(what, seconds):
                    text = f"compiled the {what} step in {seconds:.0f} s"
                    progress.update(task, description="training" if what == "training" else "validating")
                    progress.console.print(text, markup=False, highlight=False)
                case Stopped():
                    yield event
                case Caching(done, total, size, place):
                    progress.update(task, description="keeping decoded images", total=total, completed=done)
                    progress.update(task, numbers=f"{readable(size)} in {place}")
                case Evaluating(epoch):
                    progress.update(task, description=f"epoch {epoch}/{epochs} validating")
                case EpochEnded():
                    text = _epoch_line(event, epochs, time.monotonic() - epoch_began)
                    progress.console.print(text, markup=False, highlight=False)
                    epoch_began = time.monotonic()
                    yield event
