"""Showing the progress of a run: a bar on a terminal, a changing line in a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ftrain.data.cache import Caching
from ftrain.data.source import Preparing
from ftrain.run.events import (
    Compiled,
    Compiling,
    ComputingFeatures,
    Damaged,
    EndedEarly,
    EpochEnded,
    Evaluating,
    Event,
    FeaturesNotCached,
    ImageSkipped,
    Logged,
    Opened,
    Started,
    StatisticsRecomputed,
    StepTaken,
    Stopped,
)
from ftrain.run.findings import about_features, about_statistics
from ftrain.run.spec import RunSpec
from ftrain.text import readable, shown

PLAIN_INTERVAL = 15.0  # seconds between two plain lines within an epoch
NOTEBOOK_INTERVAL = 0.5  # seconds between two updates of the status line in a notebook
SLOW = 1.0  # seconds after which the search for images is shown
ALMOST_ALL = 0.9  # of a network's tensors, which its own weights have, without the head
LARGE_CACHE = 10_000_000  # bytes of decoded images from which building the cache is announced


def with_progress(
    events: Iterable[Event],
    *,
    words: Callable[[str], str] = lambda text: text,
    stopping: Callable[[], bool] = lambda: False,
) -> Generator[Event]:
    """The events of a run, each shown before it is passed on.

    Args:
      words: how to word notes and warnings, which name settings in backticks.
      stopping: whether the run has been asked to stop, which a progress bar shows at once.
    """
    yield from _on_terminal(events, words, stopping) if sys.stdout.isatty() else _in_lines(events, words)


def describe(event: Event, folder: Path, epochs: int, seconds: float, *, uneven: bool = False) -> str | None:
    """An event in words; None for those that are only shown in a progress bar.

    Args:
      folder: of the run.
      epochs: of the run.
      seconds: since the last epoch ended.
      uneven: whether the classes are, so that the macro-averaged accuracy tells more.
    """
    match event:
        case Started():
            return f"run: {shown(folder)}\n{_headline(event)}"
        case Preparing(note=text):
            return text or None
        case ImageSkipped(cause):
            return f"skipped: {cause}"
        case Damaged(cause):
            return f"warning: {cause}"
        case Compiled(what, took):
            return f"compiled the {what} step in {took:.0f} s"
        case EndedEarly(epoch, best_epoch):
            if epoch == best_epoch + 1:
                return f"ended early: epoch {epoch} was not better than epoch {best_epoch}"
            return f"ended early: no epoch from {best_epoch + 1} to {epoch} was better than epoch {best_epoch}"
        case FeaturesNotCached(why):
            return f"features are not computed once, because {why}"
        case StatisticsRecomputed():
            return about_statistics(event)
        case EpochEnded():
            best = "  best" if event.best_epoch == event.epoch else ""
            macro = f" macro {event.val['macro_accuracy']:6.1%}" if uneven and "macro_accuracy" in event.val else ""
            train, val = (_quality(values, pad=True) for values in (event.train, event.val))
            return (
                f"epoch {event.epoch:>{len(str(epochs))}}/{epochs}  "
                f"train loss {event.train['loss']:.4f} {train}   "
                f"val loss {event.val['loss']:.4f} {val}{macro}  {seconds:5.1f} s{best}"
            )
        case _:
            return None


def summary(last: EpochEnded | Stopped | None, folder: Path) -> str:
    """How a run ended.

    Args:
      last: the last event of its kinds; None if there was nothing left to do.
    """
    match last:
        case None:
            return f"the run in {shown(folder)} is complete; there is nothing left to do"
        case Stopped(0):
            return "stopped before the first step"
        case Stopped(step):
            return f"stopped after step {step}; the run in {shown(folder)} can be resumed"
        case EpochEnded():
            return f"done: validation {_best_of(last)} (epoch {last.best_epoch}); everything is in {shown(folder)}"


def _best_of(last: EpochEnded) -> str:
    if "map" in last.val:
        at_best = last.best_val.get("map", float("nan"))
        return f"mAP {last.val['map']:.1%} at the end, {at_best:.1%} at best"
    return f"accuracy {last.val['accuracy']:.1%} at the end, {last.best_accuracy:.1%} at best"


def _quality(values: Mapping[str, float], *, pad: bool = False) -> str:
    """How good metrics are: the accuracy, or if images may have several labels, mean average precision and F1."""
    names = {"map": "mAP", "macro_f1": "F1"} if "map" in values else {"micro_f1": "F1"}
    if "micro_f1" not in values:
        names = {"accuracy": "accuracy"}
    return " ".join(f"{title} {values[name]:{6 if pad else 0}.1%}" for name, title in names.items())


def _headline(event: Started) -> str:
    spec = event.spec
    trained = f", {event.trained / 1e6:.3g} M trained" if event.trained < event.parameters else ""
    if trained and event.step < spec.pace.steps(spec.head_epochs) and spec.freeze != "backbone":
        trained += " at first"
    several = ", any number per image" if spec.is_multi_label else ""
    lines = [
        f"{shown(spec.model)} ({event.parameters / 1e6:.1f} M parameters{trained}) on {spec.train_examples} images of "
        f"{len(spec.classes)} classes{several}, {event.val_examples} for validation; {spec.image_size} px, "
        f"batch {spec.batch_size}, {spec.optimizer}, {spec.precision}, {spec.device}"
    ]
    if event.weights is not None:
        lines.append(f"weights: {event.weights}; weights.json lists them by name")
        if event.weights.fraction < ALMOST_ALL:
            lines.append(
                f"warning: {1.0 - event.weights.fraction:.0%} of the network's tensors are not in these weights, which "
                "seem to belong to another network"
            )
    if recipe := _recipe(spec):
        lines.append(recipe)
    if event.could_be_pretrained:
        lines.append(
            "training starts from random weights; `weights=DEFAULT` starts from pretrained ones, which usually gives a "
            "better network in fewer epochs"
        )
    if 0 < event.step < spec.total_steps:
        lines.append(f"resuming from step {event.step} of {spec.total_steps}")
    return "\n".join(lines)


def _recipe(spec: RunSpec) -> str:
    """What is frozen and when, and how rates fall with depth; nothing if all is trained alike."""
    parts = []
    if spec.head_epochs and spec.freeze != "backbone":
        parts.append(f"the head alone for {spec.head_epochs} epoch{'s' * (spec.head_epochs > 1)}")
    if spec.freeze != "none":
        parts.append(f"frozen: {shown(spec.freeze)}")
    if spec.layer_decay < 1.0 and spec.freeze != "backbone":
        parts.append(f"learning rates fall with depth by {spec.layer_decay:g}")
    return f"training: {', '.join(parts)}" if parts else ""


def _numbers(line: Mapping[str, Any]) -> str:
    return (
        f"loss {line['loss']:.4f}  {_quality(line)}  lr {line.get('lr', float('nan')):.2e}  "
        f"{line['images_per_second']:.0f} images/s"
    )


def _in_lines(events: Iterable[Event], words: Callable[[str], str]) -> Generator[Event]:
    folder, epochs, uneven = Path(), 0, False
    epoch_start = last_line = last_status = time.monotonic()
    notebook, status, prepares = _in_notebook(), "", False
    for event in events:
        if isinstance(event, Opened):
            folder, epochs, uneven = event.run.path, event.spec.epochs, event.spec.uneven
            for note in event.spec.notes:
                print(words(note), file=sys.stderr, flush=True)
        text = describe(event, folder, epochs, time.monotonic() - epoch_start, uneven=uneven)
        may_print = time.monotonic() - last_line > PLAIN_INTERVAL
        match event:
            case Preparing() if may_print or (not prepares and time.monotonic() - epoch_start > SLOW):
                text, prepares = _status(event, epochs), True
            case Logged() if may_print:
                text = _status(event, epochs)
            case Compiling(what):
                text = f"compiling the {what} step, which can take minutes ..."
            case Caching(0, total, size, place) if size > LARGE_CACHE:
                text = f"caching {total} decoded images in {place}: {readable(size)}"
            case ComputingFeatures(0):
                text = about_features(event)
            case Caching() | ComputingFeatures() if may_print:
                text = _status(event, epochs)
            case EpochEnded():
                epoch_start = time.monotonic()
            case _:
                pass
        if notebook and time.monotonic() - last_status > NOTEBOOK_INTERVAL:
            last_status = time.monotonic()
            status = _status(event, epochs) or status
            print(f"\r{status:<110}", end="", flush=True)
        if text is not None:
            last_line = time.monotonic()
            if notebook:  # over the status
                print("\r" + " " * 110 + "\r", end="")
            print(words(text), file=sys.stderr if isinstance(event, Damaged) else sys.stdout, flush=True)
        yield event


def _in_notebook() -> bool:
    """Whether output goes to a notebook, which shows a line that begins with a carriage return in place of the last."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


def _status(event: Event, epochs: int) -> str | None:
    """How far a run is, in one line; None for events that do not tell."""
    match event:
        case StepTaken(step, epoch):
            return f"epoch {epoch}/{epochs}  step {step}"
        case Logged(line):
            return f"epoch {line['epoch']}/{epochs}  step {line['step']}  {_numbers(line)}"
        case Evaluating(epoch):
            return f"epoch {epoch}/{epochs}  validating"
        case Preparing(what, done, total):
            return f"{what}: {done} of {total}"
        case Caching(done, total):
            return f"caching decoded images: {done / total:.0%}"
        case ComputingFeatures(done, total):
            return f"computing features: {done} of {total} images"
        case _:
            return None


class _Console(Console):
    """A console that leaves four columns free at the right. There the terminal shows the ^C of Ctrl-C; at the end of a
    full line it would begin a new line, and the progress bar would stand there twice."""

    @property  # type: ignore[misc]  # the base class also lets it be set
    def size(self) -> ConsoleDimensions:
        width, height = super().size
        return ConsoleDimensions(max(1, width - 4), height)


class _Stopping(TextColumn):
    """Says that the run is stopping. The progress bar redraws itself even while a step takes long."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        super().__init__("")
        self.stopping = stopping

    def render(self, task: Task) -> Text:
        return Text("stopping after this step; a second signal stops immediately" if self.stopping() else "")


def _on_terminal(
    events: Iterable[Event], words: Callable[[str], str], stopping: Callable[[], bool]
) -> Generator[Event]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(compact=True),
        _Stopping(stopping),
    )
    with Progress(*columns, console=_Console(), transient=True) as progress:
        task = progress.add_task("starting", total=None, numbers="")
        folder, epochs, uneven, epoch_start = Path(), 0, False, time.monotonic()
        for event in events:
            if isinstance(event, Opened):
                folder, epochs, uneven = event.run.path, event.spec.epochs, event.spec.uneven
                for note in event.spec.notes:
                    progress.console.print(words(note), markup=False, highlight=False)
            if (text := describe(event, folder, epochs, time.monotonic() - epoch_start, uneven=uneven)) is not None:
                progress.console.print(words(text), markup=False, highlight=False)
            match event:
                case Preparing(what, done, total):
                    progress.update(task, description=what, total=total, completed=done)
                case Started():
                    total, step = event.spec.total_steps, event.step
                    progress.update(task, description="starting", total=total, completed=step, numbers="")
                case StepTaken(step, epoch):
                    progress.update(task, completed=step, description=f"epoch {epoch}/{epochs}")
                case Logged(line):
                    progress.update(task, numbers=_numbers(line))
                case Compiling(what):
                    progress.update(task, description=f"compiling the {what} step, which can take minutes")
                case Compiled(what):
                    progress.update(task, description="training" if what == "training" else "validating")
                case Caching(done, total, size, place):
                    progress.update(task, description="caching decoded images", total=total, completed=done)
                    progress.update(task, numbers=f"{readable(size)} in {place}")
                case ComputingFeatures(done, total):
                    if done == 0:
                        progress.console.print(about_features(event), markup=False, highlight=False)
                    progress.update(task, description="computing features", total=total, completed=done)
                case Evaluating(epoch):
                    progress.update(task, description=f"epoch {epoch}/{epochs} validating")
                case EpochEnded():
                    epoch_start = time.monotonic()
                case _:
                    pass
            yield event
