"""The Python interface to runs: what the command can do, with the same settings by the same names."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
import torch

from ftrain.data import as_source
from ftrain.data.folders import scan
from ftrain.data.images import Images
from ftrain.data.source import Source
from ftrain.data.workers import worker_error
from ftrain.disk import checkpoint
from ftrain.errors import DataError, SettingsError
from ftrain.losses import Loss
from ftrain.metrics import Metric
from ftrain.module import Apply
from ftrain.run import folder as run_folder
from ftrain.run import inference
from ftrain.run.build import build
from ftrain.run.curves import draw_curves
from ftrain.run.custom import Custom
from ftrain.run.events import EpochEnded, Event, Opened
from ftrain.run.folder import RunFolder
from ftrain.run.inference import Evaluation, Restored
from ftrain.run.launch import Request, check_can_reopen, launch
from ftrain.run.progress import summary, with_progress
from ftrain.run.resolve import as_usage, open_sources, resolve_device
from ftrain.run.settings import from_mapping
from ftrain.run.spec import RunSpec
from ftrain.state import TrainState
from ftrain.steps import Augment
from ftrain.text import shown

T = TypeVar("T")


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


class Run:
    """A run, opened by `open_run`. What needs a network takes the checkpoint of the best epoch, unless last=True."""

    def __init__(self, run: RunFolder, spec: RunSpec, custom: Custom) -> None:
        self._run, self._custom = run, custom
        self.spec = spec
        self._restored: dict[bool, Restored] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, model={self.spec.model!r}, classes={len(self.classes)})"

    @property
    def folder(self) -> Path:
        """Where the run is."""
        return self._run.path

    @property
    def config(self) -> Mapping[str, Any]:
        """What config.json records: settings, versions, device, data."""
        return self._run.config

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        return self._run.classes

    @property
    def damage(self) -> tuple[str, ...]:
        """What was found damaged so far, and what was used instead."""
        found = [self._run.damage] if self._run.damage else []
        return (*found, *(cause for restored in self._restored.values() for cause in restored.damaged))

    @property
    def metrics(self) -> dict[str, list[Any]]:
        """The lines of metrics.jsonl as columns of equal length, ready for `pandas.DataFrame(run.metrics)`. A line of
        kind "step" has loss, accuracy, lr ...; one of kind "epoch" has train_loss, val_loss, val_accuracy ...; what a
        line does not have is nan."""
        lines = [_flat(line) for line in run_folder.read_metrics(self._run)[0]]
        names = list(dict.fromkeys(name for line in lines for name in line))
        return {name: [line.get(name, float("nan")) for line in lines] for name in names}

    @property
    def apply(self) -> Apply:
        """The network as a pure function of parameters, buffers and images uint8 [B, 3, S, S], which it normalises."""
        return self.restored().program.apply

    def restored(self, *, last: bool = False) -> Restored:
        """The network with its parameters and the checkpoint that they are from."""
        if last not in self._restored:
            self._restored[last] = inference.restore(self._run, self.spec, self._custom, last=last)
        return self._restored[last]

    def state(self, *, last: bool = False) -> TrainState:
        """The whole training state of a checkpoint, with optimizer state, and averages if the run keeps any.

        Raises:
          CheckpointError: if there is no checkpoint, or none can be read.
        """
        template = build(self.spec, self._custom, pretrained=False).init()
        return checkpoint.load_first(inference.candidates(self._run, last=last), template).state

    def module(self, *, last: bool = False) -> torch.nn.Module:
        """The trained network as a module in evaluation mode. Its inputs are float images [B, 3, S, S], normalised:
        (pixel / 255 - mean) / std, with `run.spec.mean` and `run.spec.std`."""
        restored = self.restored(last=last)
        return restored.program.module(restored.state.params, restored.state.buffers)

    def predict(self, images: Sequence[Any], *, top: int = 3, last: bool = False) -> list[dict[str, Any]]:
        """The most probable classes of images.

        Args:
          images: paths of image files, PIL images, and uint8 arrays or tensors ([H, W, 3], [3, H, W] or [H, W]), in any
            mixture.
          top: classes per image.

        Returns:
          For each image {"image": path or position, "classes": [{"class": name, "probability": p}, ...]}, the most
          probable class first, as `ftrain predict --json` prints them.

        Raises:
          DataError: if an image cannot be read.
        """
        if isinstance(images, str | os.PathLike):
            raise SettingsError("`images` must be a list of images; got a single path. Put it in a list")
        rankings = inference.predict(self.restored(last=last), images, top=top)
        return [
            as_json(image, position, ranking)
            for position, (image, ranking) in enumerate(zip(images, rankings, strict=True))
        ]

    def evaluate(self, data: Any = None, *, last: bool = False, workers: int | None = None) -> Evaluation:
        """Evaluates the network on labelled images.

        Args:
          data: a folder of class folders or one that contains val/, or whatever `fit` takes as one of its pair; by
            default the run's validation images.
          workers: processes that load images; by default as in the run.

        Raises:
          SettingsError, DataError: if the images cannot be used.
        """
        return to_end(inference.evaluation(self.restored(last=last), self.images(data, workers=workers)))

    def images(self, data: Any = None, *, workers: int | None = None) -> Images:
        """Labelled images as batches for evaluation; arguments as for `evaluate`."""
        if workers is not None:
            self.spec = attrs.evolve(self.spec, workers=workers)
        val = self._source(data)
        return self.spec.images(val, val)

    def _source(self, data: Any) -> Source:
        if data is None:
            return open_sources(self._run.settings)[1]
        if not isinstance(data, str | os.PathLike):
            return as_usage(as_source, data, classes=self.classes)
        folder = Path(data)
        has_val = "val" not in self.classes and (folder / "val").is_dir()  # as for fit
        return as_usage(scan, folder / "val" if has_val else folder, classes=self.classes)


def to_end(work: Generator[Any, None, T]) -> T:
    """The result of a generator."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


def as_json(image: Any, position: int, ranking: inference.Ranking | DataError) -> dict[str, Any]:
    """The classes of an image as JSON values.

    Raises:
      DataError: if the image could not be read.
    """
    if isinstance(ranking, DataError):
        raise ranking
    name = os.fsdecode(image) if isinstance(image, str | os.PathLike) else position
    return {"image": name, "classes": [{"class": each, "probability": p} for each, p in ranking]}


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


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in line.items():
        flat |= {f"{name}_{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return flat
