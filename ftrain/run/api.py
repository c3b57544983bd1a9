"""The Python interface to runs: what the command can do, with the same settings by the same names."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from ftrain.data import as_source
from ftrain.data.labels import is_multi_label
from ftrain.data.source import Source
from ftrain.data.workers import worker_error
from ftrain.errors import SettingsError, as_usage
from ftrain.losses import Loss
from ftrain.metrics import Metric
from ftrain.parallel import place
from ftrain.run import folder as run_folder
from ftrain.run.curves import draw_curves
from ftrain.run.custom import Custom
from ftrain.run.events import EpochEnded, Event, Opened, Stopped
from ftrain.run.launch import Request, launch
from ftrain.run.opened import Run
from ftrain.run.progress import summary, with_progress
from ftrain.run.reopen import reopened
from ftrain.run.resolve import resolve_device
from ftrain.run.settings import from_mapping
from ftrain.steps import Augment
from ftrain.text import shown


def events(
    *,
    model: str | torch.nn.Module | None = None,
    data: Any = None,
    loss: str | Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    augment: Augment | None = None,
    resume: str | os.PathLike[str] | None = None,
    override: bool = False,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Generator[Event]:
    """Trains a run and yields what happens in it; `ftrain.fit` is this, shown. Arguments and errors as for `fit`.

    Args:
      stop: asked between steps; when it returns True, the state is saved and the run stops.

    Yields:
      The values of `ftrain.run.events`, such as `StepTaken`, `Logged` and `EpochEnded`.

    >>> import tempfile
    >>> images, labels = (torch.arange(512) % 256).to(torch.uint8).view(8, 8, 8), [0, 1] * 4
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
    >>> folder = tempfile.TemporaryDirectory()
    >>> data = (images, labels), (images, labels)
    >>> for event in events(model=net, data=data, epochs=1, batch_size=4, workers=0, out=folder.name + "/run"):
    ...     if type(event).__name__ in ("StepTaken", "Evaluating", "EpochEnded"):
    ...         print(type(event).__name__, event.epoch)
    StepTaken 1
    StepTaken 1
    Evaluating 1
    EpochEnded 1
    >>> folder.cleanup()
    """
    request = _request(model, data, loss, metrics, augment, resume, override, settings)
    with closing(launch(request, stop=stop)) as happening:
        yield from happening


def fit(
    *,
    model: str | torch.nn.Module | None = None,
    data: Any = None,
    loss: str | Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    augment: Augment | None = None,
    resume: str | os.PathLike[str] | None = None,
    override: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Trains an image classifier, as `ftrain fit` does.

    Args:
      model: a name of `ftrain models`, FILE.py:FUNCTION, or a `torch.nn.Module` for float images [B, 3, S, S] with
        logits [B, C], whose parameters are where training starts. The module itself is not changed.
      data: a folder that contains train/ and val/; a folder of class folders, which is split automatically; a table
        of images and labels; or a pair of training and validation images, each a folder of class folders, a table, a
        pair (images, labels) of arrays, an indexable data set of (image, label), or a `Source`.
      loss: a name, or a function (logits [B, C], labels [B]) -> [B].
      metrics: by name, functions (logits [B, C], labels [B]) -> [B], averaged over the examples beside loss and
        accuracy.
      augment: a function (key, images [B, 3, S, S]) -> images that runs on the device in every training step; images
        are uint8 or float from 0 to 255.
      resume: the folder of a run to resume; "auto" to start the run in `out`, resume it, or return it if it is
        complete.
      override: with `resume`, whether to resume although changed settings or data change the result.
      progress: whether to show progress.
      settings: every other setting of `ftrain fit --help`, with underscores: epochs=10, batch_size=64, out="runs/a" ...

    Returns:
      The finished run.

    Raises:
      SettingsError: if a setting is unknown, out of range, or conflicts with another, the data or this machine.
      DataError: if images cannot be used for training.
      CheckpointError: if the run to resume is damaged beyond its last intact checkpoint.
      TrainingError: if the loss is no longer finite, or memory runs out.
      BusyError: if another process has locked the run's folder.
      KeyboardInterrupt: after Ctrl-C, once the step that was under way is saved.

    >>> import tempfile
    >>> images, labels = (torch.arange(512) % 256).to(torch.uint8).view(8, 8, 8), [0, 1] * 4
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     settings = {"epochs": 2, "batch_size": 4, "workers": 0, "out": folder + "/run", "progress": False}
    ...     run = fit(model=net, data=((images, labels), (images, labels)), **settings)
    ...     run.metrics["epoch"], len(run.predict([images[0]])[0]["classes"])
    ([1, 1, 2, 2], 2)
    """
    request = _request(model, data, loss, metrics, augment, resume, override, settings)
    progress = progress and place().rank == 0
    opened: Opened | None = None
    last: EpochEnded | Stopped | None = None
    with interruptible() as stop, ExitStack() as stack:
        # Closed in any case, since a traceback would keep a generator, and with it the lock of the run, alive.
        happening = stack.enter_context(closing(launch(request, stop=stop)))
        happening = stack.enter_context(closing(with_curves(happening)))
        if progress:
            happening = stack.enter_context(closing(with_progress(happening)))
        try:
            for event in happening:
                match event:
                    case Opened():
                        opened = event
                    case EpochEnded() | Stopped():
                        last = event
                    case _:
                        pass
        except RuntimeError as error:  # torch may raise it between two events
            raise worker_error(error) or error from None
    assert opened is not None
    if progress:
        print(summary(last, opened.run.path))
    if isinstance(last, Stopped):
        raise KeyboardInterrupt(f"the run in {opened.run.path} stopped after step {last.step}, and can be resumed")
    return Run(opened.run, opened.spec, request.custom, request.sources[1] if request.sources else None)


def with_curves(happening: Iterable[Event]) -> Generator[Event]:
    """The events of a run, whose curves.png is drawn whenever an epoch ends."""
    run = None
    for event in happening:
        if isinstance(event, Opened):
            run = event.run
        if isinstance(event, EpochEnded) and run is not None:
            try:
                draw_curves(run)
            except Exception as error:  # no picture is worth a run
                print(f"warning: curves.png was not drawn: {shown(str(error))}", file=sys.stderr)
        yield event


def open_run(
    folder: str | os.PathLike[str],
    *,
    model: torch.nn.Module | str | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    device: str = "auto",
) -> Run:
    """Opens a run, finished or not.

    Args:
      folder: of the run.
      model: for a network of your own, the module or the reference FILE.py:FUNCTION that the run was trained with. It
        has to be passed again, because opening a run never runs code that its folder names.
      loss, metrics: the functions that were passed to `fit`. Without its own loss, a run is evaluated without a loss.
      device: where to compute: auto, cpu, cuda, cuda:N or mps.

    Raises:
      SettingsError: if the folder is not a run's, the device is not available, the run needs its `model` passed, or the
        source of a part has changed.
      CheckpointError: if the run is damaged beyond repair.

    >>> open_run("runs/no-such-run")
    Traceback (most recent call last):
      ...
    ftrain.errors.SettingsError: runs/no-such-run is not the folder of a run: it has no config.json
    """
    run = run_folder.read(Path(folder))
    spec, custom = reopened(run, model=model, loss=loss, metrics=metrics)
    return Run(run, attrs.evolve(spec, device=str(resolve_device(device))), custom)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Lets Ctrl-C, or a notebook's interrupt, stop a run after its current step instead of in the middle of it. A
    second one interrupts immediately. Only the main thread can handle signals; elsewhere nothing changes."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def handle(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _request(
    model: Any,
    data: Any,
    loss: Any,
    metrics: Any,
    augment: Any,
    resume: Any,
    override: bool,
    settings: Mapping[str, Any],
) -> Request:
    """What the arguments of `fit` ask for."""
    asked = _asked(settings, model=model, data=data, loss=loss)
    return Request(
        asked=asked,
        custom=Custom(
            module=model if isinstance(model, torch.nn.Module) else None,
            loss=None if isinstance(loss, str) else loss,
            metrics={} if metrics is None else metrics,
            augment=augment,
        ),
        sources=_sources(data, asked.get("task", "auto")),
        resume=os.fspath(resume or ""),
        override=override,
        command=("ftrain.fit", *(f"{name}={value}" for name, value in asked.items())),
    )


def _asked(settings: Mapping[str, Any], *, model: Any, data: Any, loss: Any) -> dict[str, Any]:
    """The settings that were given, with paths as strings.

    Raises:
      SettingsError: if a setting is unknown, or `model`, `data` or `loss` has a wrong type.
    """
    asked = from_mapping(settings, source="ftrain")
    if isinstance(model, torch.nn.Module):
        asked["model"] = type(model).__name__
    elif isinstance(model, str | os.PathLike):
        asked["model"] = model
    elif model is not None:
        what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        call = f"; call it first, such as {model.__name__}(num_classes=10)" if callable(model) else ""
        raise SettingsError(f"`model` must be a name, FILE.py:FUNCTION or a torch.nn.Module; got {what}{call}")
    if isinstance(data, str | os.PathLike):
        asked["data"] = data
    if isinstance(loss, str):
        asked["loss"] = loss
    return {name: _plain(value) for name, value in asked.items()}


def _plain(value: Any) -> Any:
    """Paths, devices and numbers of NumPy or torch as the strings and numbers that config.json can hold."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, torch.device):
        return str(value)
    return (
        value.item()
        if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.ndim == 0)
        else value
    )


def _sources(data: Any, task: Any) -> tuple[Source, Source] | None:
    """A pair of sources, unless `data` is a folder, a table or nothing."""
    if data is None or isinstance(data, str | os.PathLike):
        return None
    if not (isinstance(data, Sequence) and len(data) == 2):
        raise SettingsError(
            "`data` must be a folder, a table, or a pair of training and validation images; got "
            f"{type(data).__name__}{f' of length {len(data)}' if isinstance(data, Sequence) else ''}"
        )
    train = as_usage(as_source, data[0], name="train", task=task)
    if is_multi_label(train.labels):
        task = "multi-label"
    return train, as_usage(as_source, data[1], classes=train.classes, name="val", task=task)
