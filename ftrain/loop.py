"""Training and evaluation as generators of events; the only place that composes the parts."""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import PIL
import torch
import torchvision
from torch import Tensor

import ftrain
from ftrain import checkpoint, prepare, runs
from ftrain.compile import compile_step
from ftrain.data.index import Index
from ftrain.data.load import ImageBatch, Images, centre_share, load, read_centre
from ftrain.errors import CheckpointError, DataError, SettingsError, TrainingError, shown
from ftrain.metrics import Metrics, measure
from ftrain.models import WeightsReport
from ftrain.runs import Run
from ftrain.settings import HARMLESS, PLACES, Settings, flag
from ftrain.state import TrainState
from ftrain.steps import eval_step, predict_step, train_step

READ_INTERVAL = 0.5  # seconds between two reads of metrics off the device, which waits for it


@attrs.frozen
class Started:
    """What is about to be trained."""

    settings: Settings
    classes: int
    train_examples: int
    val_examples: int
    parameters: int
    steps_per_epoch: int
    step: int
    total_steps: int
    weights: WeightsReport | None


@attrs.frozen
class StepTaken:
    """A step was handed to the device; it need not have finished."""

    step: int
    epoch: int


@attrs.frozen
class Logged:
    """A line of metrics.jsonl: means over the last steps, or an epoch's training and validation metrics."""

    line: dict[str, Any]


@attrs.frozen
class Evaluating:
    """The validation data is being gone through."""

    epoch: int


@attrs.frozen
class EpochEnded:
    """An epoch is over; its line is written and its checkpoint kept in `checkpoint`."""

    epoch: int
    train: dict[str, float]
    val: dict[str, float]
    checkpoint: Path
    best_epoch: int
    best_accuracy: float


Ranking = list[tuple[str, float]]  # classes with their probabilities, the most probable first
Event = Started | StepTaken | Logged | Evaluating | EpochEnded


@attrs.frozen
class Evaluation:
    """The metrics of a data set under a network, and counts int64 [C, C]: row the label, column the answer."""

    metrics: dict[str, float]
    confusion: Tensor


def start(settings: Settings, images: Images, folder: Path, command: Sequence[str]) -> Run:
    """A new run with resolved settings. `fit` makes its folder when all is ready.

    Raises:
      SettingsError: if the folder is there and not empty.
    """
    facts = {
        "command": list(command),
        "device": describe_device(torch.device(settings.device)),
        "versions": _versions(),
        "data": _data_facts(images),
    }
    return runs.new_run(folder, settings, images.train.classes, facts)


def resume(run: Run, settings: Settings, images: Images, command: Sequence[str], *, override: bool = False) -> Run:
    """The run with the settings to go on under.

    Args:
      override: whether to go on although the result changes.

    Raises:
      SettingsError: if a setting that the result depends on, or the data, is not what it was.
    """
    harmless = HARMLESS | {"out", *PLACES}
    changes = [
        f"{flag(field.name)} was {getattr(run.settings, field.name)}, is {getattr(settings, field.name)}"
        for field in attrs.fields(Settings)
        if field.name not in harmless and getattr(run.settings, field.name) != getattr(settings, field.name)
    ]
    for name, index in (("train", images.train), ("val", images.val)):
        if index.fingerprint != run.config["data"][name]["fingerprint"]:
            changes.append(_changes_of_data(run.config["data"][name], index))
    if changes and not override:
        raise SettingsError(
            f"{shown(run.folder)} cannot go on, because its result would change: {'; '.join(changes)}. Give them as "
            "they were, begin a new run, or go on all the same with --override"
        )
    again = {"command": list(command), "versions": _versions(), "changes": changes}
    config = {
        **run.config,
        "settings": attrs.asdict(settings),
        "data": _data_facts(images),
        "resumed": [*run.config.get("resumed", []), again],
    }
    return attrs.evolve(run, settings=settings, config=config)


def _data_facts(images: Images) -> dict[str, Any]:
    return {
        name: {
            "folder": os.path.abspath(index.root),
            "images": len(index),
            "fingerprint": index.fingerprint,
            "classes": index.class_fingerprints(),
        }
        for name, index in (("train", images.train), ("val", images.val))
    }


def _versions() -> dict[str, str]:
    return {
        "ftrain": ftrain.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }


def _changes_of_data(noted: Mapping[str, Any], index: Index) -> str:
    was, now = noted["classes"], index.class_fingerprints()
    changes = [
        f'"{shown(name)}" had {was[name]["images"]} images, has {now[name]["images"]}'
        if was[name]["images"] != now[name]["images"]
        else f'"{shown(name)}" has images of other names or sizes'
        for name in was
        if name in now and was[name] != now[name]
    ]
    gone = [f'"{shown(name)}" is gone' for name in was if name not in now]
    new = [f'"{shown(name)}" is new' for name in now if name not in was]
    return f"the images in {shown(index.root)} are others than when the run began: {', '.join(changes + gone + new)}"


def fit(run: Run, images: Images) -> Iterator[Event]:
    """Trains a run from where it stands to its end.

    Every epoch ends with a pass over the validation data, a line in metrics.jsonl and a checkpoint. The last
    checkpoint, the best by validation accuracy, and those from `save_station` on are kept.

    Raises:
      TrainingError: when the loss is no longer finite.
      DataError: for an image that cannot be read.
      CheckpointError: if the checkpoint to go on from cannot be read.
    """
    settings = run.settings
    per_epoch = images.steps_per_epoch
    total = settings.epochs * per_epoch
    device = torch.device(settings.device)
    found = checkpoint.find(run.checkpoints)
    net = prepare.network(settings, len(run.classes), weights=None if found else settings.weights)
    prepare.check_batch(settings, net)
    rule = prepare.optimizer(settings, per_epoch)
    state = prepare.first_state(settings, net, rule)
    if found:
        state = checkpoint.load(found[-1], state)
    step = int(state.step)
    runs.write(run)
    if net.report:
        runs.write_weights_report(run, net.report)
    runs.forget_metrics_after(run, step)
    yield Started(
        settings=settings,
        classes=len(run.classes),
        train_examples=len(images.train),
        val_examples=len(images.val),
        parameters=sum(param.numel() for param in net.params.values()),
        steps_per_epoch=per_epoch,
        step=step,
        total_steps=total,
        weights=net.report,
    )
    take, judge = _steps(settings, net, rule)
    epochs = range(step // per_epoch, settings.epochs)
    jobs = [job for epoch in epochs for job in images.train_jobs(epoch) + images.val_jobs()]
    batches = load(images, jobs, workers=settings.workers or 0, pin_memory=device.type == "cuda")
    log = _Log(run, settings.log_every, per_epoch)
    for epoch in range(epochs.start + 1, epochs.stop + 1):
        began = time.monotonic()
        for _ in range(per_epoch):
            state, metrics = take(state, _on(device, next(batches)))
            step += 1
            yield StepTaken(step, epoch)
            yield from log.add(step, metrics)
        yield from log.flush()
        train = log.epoch_metrics()
        yield Evaluating(epoch)
        val = _total([judge(state, _on(device, next(batches))) for _ in images.val_jobs()]).compute()
        line = {"kind": "epoch", "epoch": epoch, "step": step, "train": train, "val": val}
        runs.append_metrics(run, [{**line, "seconds": round(time.monotonic() - began, 3)}])
        saved = checkpoint.save(run.checkpoints, state, {"epoch": epoch, "val": val})
        best = _best(checkpoint.find(run.checkpoints)) or saved
        _prune(run, saved, best)
        noted = checkpoint.read_manifest(best)
        yield EpochEnded(epoch, train, val, saved, noted["epoch"], noted["val"]["accuracy"])


def try_once(settings: Settings, images: Images) -> dict[str, float]:
    """One training step and one batch of evaluation, of which nothing is kept: the metrics of the step."""
    device = torch.device(settings.device)
    net = prepare.network(settings, len(images.train.classes), weights=settings.weights)
    prepare.check_batch(settings, net)
    rule = prepare.optimizer(settings, images.steps_per_epoch)
    take, judge = _steps(settings, net, rule)
    batches = load(images, [images.train_jobs(0)[0], images.val_jobs()[0]])
    state, metrics = take(prepare.first_state(settings, net, rule), _on(device, next(batches)))
    judge(state, _on(device, next(batches))).compute()
    values: dict[str, float] = metrics.compute()
    return values


def restore(run: Run, *, best: bool = True) -> tuple[TrainState, prepare.Network, Path]:
    """The state of a run's best checkpoint, or its last, with its network.

    Raises:
      CheckpointError: if there is none, or it cannot be read.
    """
    found = checkpoint.find(run.checkpoints)
    chosen = _best(found) if best else (found[-1] if found else None)
    if chosen is None:
        raise CheckpointError(f"{shown(run.folder)} has no checkpoint yet")
    net = prepare.network(run.settings, len(run.classes))
    template = prepare.first_state(run.settings, net, prepare.optimizer(run.settings, 1))
    return checkpoint.load(chosen, template), net, chosen


def evaluate(run: Run, state: TrainState, net: prepare.Network, images: Images) -> Iterator[int | Evaluation]:
    """Goes through the validation data of `images`: yields the number of batches done after each, and at the end the
    evaluation."""
    settings = run.settings
    device = torch.device(settings.device)
    loss = prepare.LOSSES[settings.loss]
    predict = functools.partial(predict_step, apply=net.apply, precision=_dtype(settings))
    classes = len(run.classes)
    parts = []
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    jobs = images.val_jobs()
    for done, batch in enumerate(load(images, jobs, workers=settings.workers or 0), start=1):
        inputs, labels, weights = _on(device, batch)
        logits = predict(state, inputs)
        parts.append(measure(logits, labels, loss(logits, labels), weights))
        cells = labels * classes + logits.argmax(dim=-1)
        confusion += torch.bincount(cells[weights > 0], minlength=classes * classes)
        yield done
    yield Evaluation(_total(parts).compute(), confusion.reshape(classes, classes).cpu())


def predict(
    run: Run, state: TrainState, net: prepare.Network, paths: Sequence[str], *, top: int
) -> Iterator[tuple[str, Ranking | DataError]]:
    """The `top` most probable classes of each image file, with their probabilities, in the order of `paths`; for an
    image that cannot be read, the error instead."""
    settings = run.settings
    assert settings.image_size and settings.eval_batch_size and settings.crop_scale
    forward = functools.partial(predict_step, apply=net.apply, precision=_dtype(settings))
    share = centre_share(settings.crop_scale)
    for first in range(0, len(paths), settings.eval_batch_size):
        group = paths[first : first + settings.eval_batch_size]
        found = [_centre_or_error(path, settings.image_size, share) for path in group]
        pixels = [pixels for pixels in found if not isinstance(pixels, DataError)]
        answers: Iterator[Ranking] = iter(())
        if pixels:
            logits = forward(state, torch.from_numpy(np.stack(pixels)).to(settings.device))
            values, classes = _probabilities(logits, settings).topk(min(top, len(run.classes)), dim=-1)
            names = [[run.classes[column] for column in row] for row in classes.tolist()]
            answers = (list(zip(*row, strict=True)) for row in zip(names, values.tolist(), strict=True))
        for path, pixel in zip(group, found, strict=True):
            yield path, pixel if isinstance(pixel, DataError) else next(answers)


def _centre_or_error(path: str, size: int, share: float) -> npt.NDArray[np.uint8] | DataError:
    try:
        return read_centre(path, size, share=share)
    except DataError as error:
        return error


def _probabilities(logits: Tensor, settings: Settings) -> Tensor:
    if settings.loss == "binary-cross-entropy":
        return torch.sigmoid(logits)
    if settings.loss == "mean-squared-error":  # the outputs themselves were fitted to 0 and 1
        return logits.clamp(0.0, 1.0)
    return torch.softmax(logits, dim=-1)


def describe_device(device: torch.device) -> str:
    """The device as a person would name it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


class _Log:
    """Collects the metrics of steps on the device, and reads them a few times a second."""

    def __init__(self, run: Run, every: int, per_epoch: int) -> None:
        self.run, self.every, self.per_epoch = run, every, per_epoch
        self.gathered: list[Metrics] = []  # of the line that is being gathered
        self.waiting: list[tuple[int, Metrics, float]] = []  # lines to read: last step, sums, when
        self.epoch: list[Metrics] = []
        self.line_began = self.last_read = time.monotonic()

    def add(self, step: int, metrics: Metrics) -> Iterator[Logged]:
        self.gathered.append(metrics)
        if step % self.every == 0 or step % self.per_epoch == 0:
            total = _total(self.gathered)
            self.gathered = []
            self.epoch.append(total)
            self.waiting.append((step, total, time.monotonic()))
        if self.waiting and time.monotonic() - self.last_read > READ_INTERVAL:
            yield from self.flush()

    def flush(self) -> Iterator[Logged]:
        lines: list[dict[str, Any]] = []
        failure = None
        for step, total, when in self.waiting:
            values = total.compute()
            if values["nonfinite"]:
                failure = TrainingError(
                    f"the loss or its gradient is no longer finite at step {step} or up to {self.every - 1} before "
                    f"(learning rate {values['lr']:.3g}); begin a new run with a lower --lr, more --warmup-epochs, or "
                    "--clip-norm 1"
                )
                break
            rate = values["count"] / max(when - self.line_began, 1e-9)
            self.line_began = when
            epoch = -(-step // self.per_epoch)
            lines.append({"kind": "step", "epoch": epoch, "step": step, **values, "images_per_second": round(rate, 2)})
        self.waiting, self.last_read = [], time.monotonic()
        runs.append_metrics(self.run, lines)
        yield from (Logged(line) for line in lines)
        if failure:
            raise failure

    def epoch_metrics(self) -> dict[str, float]:
        values = _total(self.epoch).compute()
        self.epoch = []
        self.line_began = time.monotonic()
        return values


def _steps(settings: Settings, net: prepare.Network, rule: Any) -> tuple[Callable[..., Any], Callable[..., Metrics]]:
    """The training step, which writes into the memory of the state that it is given, and the evaluation step."""
    dtype = _dtype(settings)
    train = functools.partial(
        train_step, apply=net.apply, optimizer=rule, loss=prepare.training_loss(settings), precision=dtype
    )
    judge = functools.partial(eval_step, apply=net.apply, loss=prepare.LOSSES[settings.loss], precision=dtype)
    if settings.compile:
        return compile_step(train, donate=True), compile_step(judge)
    return functools.partial(train, donate=True), judge


def _on(device: torch.device, batch: ImageBatch) -> tuple[Tensor, Tensor, Tensor]:
    images, labels, weights = (tensor.to(device, non_blocking=True) for tensor in batch[:3])
    return images, labels, weights


def _total(parts: Sequence[Metrics]) -> Metrics:
    return functools.reduce(lambda total, part: total + part, parts)


def _dtype(settings: Settings) -> torch.dtype:
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32


def _best(found: Sequence[Path]) -> Path | None:
    """The checkpoint with the highest validation accuracy, the earliest of several."""
    return max(found, key=lambda path: checkpoint.read_manifest(path)["val"]["accuracy"], default=None)


def _prune(run: Run, last: Path, best: Path) -> None:
    station = run.settings.save_station
    found = checkpoint.find(run.checkpoints)
    kept = {path for path in found if station and checkpoint.read_manifest(path)["epoch"] >= station}
    checkpoint.prune(run.checkpoints, kept | {last, best})
