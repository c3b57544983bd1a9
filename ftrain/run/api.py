"""The Python interface to runs: what the command can do, with the same settings by the same names."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from ftrain.data import as_source
from ftrain.data.source import Source
from ftrain.data.workers import worker_error
from ftrain.errors import SettingsError, as_usage
from ftrain.losses import Loss
from ftrain.metrics import Metric
from ftrain.run import folder as run_folder
from ftrain.run.curves import draw_curves
from ftrain.run.custom import Custom
from ftrain.run.events import EpochEnded, Event, Opened
from ftrain.run.folder import RunFolder
from ftrain.run.launch import Request, check_can_reopen, launch
from ftrain.run.opened import Run
from ftrain.run.progress import summary, with_progress
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
) -> Iterator[Event]:
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
    asked, custom = _asked(settings, model=model, loss=loss), Custom(metrics=metrics or {}, augment=augment)
    if isinstance(model, torch.nn.Module):
        custom = attrs.evolve(custom, module=model)
    if loss is not None and not isinstance(loss, str):
        custom = attrs.evolve(custom, loss=loss)
    sources = None
    if isinstance(data, str | os.PathLike):
        asked["data"] = os.fspath(data)
    elif data is not None:
        sources = _as_sources(data)
    request = Request(
        asked=asked,
        custom=custom,
        sources=sources,
        resume=os.fspath(resume or ""),
        override=override,
        command=("ftrain.fit", *(f"{name}={value}" for name, value in asked.items())),
    )
    yield from launch(request, stop=stop)


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
      data: a folder that contains train/ and val/, or a pair of training and validation images, each a folder of class
        folders, a pair (images, labels) of arrays, an indexable data set of (image, label), or a `Source`.
      loss: a name, or a function (logits [B, C], labels [B]) -> [B].
      metrics: by name, functions (logits [B, C], labels [B]) -> [B], averaged over the examples beside loss and
        accuracy.
      augment: a function (key, images [B, 3, S, S]) -> images that runs on the device in every training step; images
        are uint8 or float from 0 to 255.
      resume: the folder of a run to resume; "auto" to start the run in `out`, resume it, or find it complete.
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

    >>> import tempfile
    >>> images, labels = (torch.arange(512) % 256).to(torch.uint8).view(8, 8, 8), [0, 1] * 4
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     settings = {"epochs": 2, "batch_size": 4, "workers": 0, "out": folder + "/run", "progress": False}
    ...     run = fit(model=net, data=((images, labels), (images, labels)), **settings)
    ...     run.metrics["epoch"], len(run.predict([images[0]])[0]["classes"])
    ([1, 1, 2, 2], 2)
    """
    arguments = {"loss": loss, "metrics": metrics, "augment": augment, "resume": resume, "override": override}
    happening = with_curves(events(model=model, data=data, **arguments, **settings))  # type: ignore[arg-type]
    folder, last = Path(), None
    try:
        for event in with_progress(happening) if progress else happening:
            if isinstance(event, Opened):
                folder = event.folder
            if isinstance(event, EpochEnded):
                last = event
    except RuntimeError as error:  # torch may raise it between two events
        raise worker_error(error) or error from None
    if progress:
        print(summary(last, folder))
    own = model if isinstance(model, torch.nn.Module) else None
    return open_run(folder, model=own, loss=None if isinstance(loss, str) else loss, metrics=metrics)


def with_curves(happening: Iterator[Event]) -> Iterator[Event]:
    """The events of a run, which has its curves.png drawn whenever an epoch ends."""
    run = None
    for event in happening:
        if isinstance(event, Opened):
            run = RunFolder(event.folder, {"settings": dict(event.spec.recorded)})
        if isinstance(event, EpochEnded) and run is not None:
            try:
                draw_curves(run)
            except Exception as error:  # no picture is worth a run
                print(f"warning: curves.png was not drawn: {shown(str(error))}", file=sys.stderr)
        yield event


def open_run(
    folder: str | os.PathLike[str],
    *,
    model: torch.nn.Module | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    device: str = "auto",
) -> Run:
    """Opens a run, finished or not.

    Args:
      folder: of the run.
      model, loss, metrics: the module and the functions that were passed to `fit`, if any were.
      device: where to compute: auto, cpu, cuda, cuda:N or mps.

    Raises:
      SettingsError: if the folder is not a run's, the device is not available, or the run needs its `model` passed.
      CheckpointError: if the run is damaged beyond repair.

    >>> open_run("runs/no-such-run")
    Traceback (most recent call last):
      ...
    ftrain.errors.SettingsError: runs/no-such-run is not the folder of a run: it has no config.json
    """
    run = run_folder.read(Path(folder))
    custom = Custom(module=model, loss=loss, metrics=metrics or {})
    check_can_reopen(run, custom)
    spec = attrs.evolve(run.spec, device=str(resolve_device(device)))
    return Run(run, spec, custom)


def _asked(settings: Mapping[str, Any], **named: Any) -> dict[str, Any]:
    """The settings that were given, paths as strings."""
    known = {name: value for name, value in named.items() if isinstance(value, str)}
    if isinstance(named["model"], torch.nn.Module):
        known["model"] = type(named["model"]).__name__
    given = {**from_mapping(settings, source="ftrain.fit"), **known}
    return {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in given.items()}


def _as_sources(data: Any) -> tuple[Source, Source]:
    if not (isinstance(data, Sequence) and len(data) == 2):
        raise SettingsError(
            "`data` must be a folder, or a pair of training and validation images; got "
            f"{type(data).__name__}{f' of length {len(data)}' if isinstance(data, Sequence) else ''}"
        )
    train = as_usage(as_source, data[0], name="train")
    return train, as_usage(as_source, data[1], classes=train.classes, name="val")
