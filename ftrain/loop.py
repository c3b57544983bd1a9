"""Training as a generator of events; the only place that composes the parts."""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import attrs
import torch

from ftrain import checkpoint, prepare, runs
from ftrain.compile import compile_step
from ftrain.data.load import ImageBatch, Images, Job, load, on_device
from ftrain.data.store import Caching, keep
from ftrain.errors import DataError, worker_error
from ftrain.log import Log
from ftrain.metrics import Metrics
from ftrain.models import WeightsReport
from ftrain.runs import Run
from ftrain.settings import Settings
from ftrain.steps import eval_step, train_step


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
    """A line of metrics.jsonl: means over the last steps."""

    line: dict[str, Any]


@attrs.frozen
class LeftOut:
    """An image that cannot be read was left out for the first time."""

    cause: str


@attrs.frozen
class Saved:
    """The state is kept in the middle of an epoch."""

    checkpoint: Path


@attrs.frozen
class Evaluating:
    """The validation data is being gone through."""

    epoch: int


@attrs.frozen
class EpochEnded:
    """An epoch is over; its line is written and its checkpoint kept."""

    epoch: int
    train: dict[str, float]
    val: dict[str, float]
    left_out: int  # images of the run, so far
    checkpoint: Path
    best_epoch: int
    best_accuracy: float


Event = Caching | Started | StepTaken | Logged | LeftOut | Saved | Evaluating | EpochEnded


def fit(run: Run, images: Images) -> Iterator[Event]:
    """Trains a run from where it stands to its end.

    Every epoch ends with a pass over the validation data, a line in metrics.jsonl and a checkpoint. The last
    checkpoint, the best by validation accuracy, and those from `save_station` on are kept.

    Raises:
      TrainingError: when the loss is no longer finite.
      DataError: for an image that cannot be read, or too many of them.
      CheckpointError: if the checkpoint to go on from cannot be read.
      WorkerError: if a process that reads images is ended from outside.
    """
    try:
        yield from _fit(run, images)
    except RuntimeError as error:
        raise worker_error(error) or error from None


def _fit(run: Run, images: Images) -> Iterator[Event]:
    settings = run.settings
    per_epoch = images.steps_per_epoch
    device = torch.device(settings.device)
    found = checkpoint.find(run.checkpoints)
    net = prepare.network(settings, len(run.classes), weights=None if found else settings.weights)
    prepare.check_batch(settings, net)
    rule = prepare.optimizer(settings, per_epoch)
    state = prepare.first_state(settings, net, rule)
    log = Log(settings.log_every, per_epoch)
    if found:
        state = checkpoint.load(found[-1], state)
        if saved := checkpoint.read_manifest(found[-1]).get("log"):
            log.restore(saved, device)
    step = int(state.step)
    total = settings.epochs * per_epoch
    left_out = LeftOutImages(images, settings.bad_image_cap)
    if step < total:
        images = yield from _with_caches(images, settings)
        yield from left_out.found_while_caching(images)
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
    take, judge = _steps(settings, net, rule, len(run.classes))
    jobs = _jobs(images, step, settings.epochs)
    loaded = load(images, jobs, workers=settings.workers or 0, pin_memory=device.type == "cuda")
    batches = on_device(loaded, device)
    between = Pace(settings.checkpoint_every)
    noted = {"data": {"train": images.train.fingerprint, "val": images.val.fingerprint}}
    with closing(loaded):  # ends the workers at once, whatever ends the run
        for epoch in range(step // per_epoch + 1, settings.epochs + 1):
            began = time.monotonic()
            log.restart_clock()
            while step < epoch * per_epoch:
                batch, host = next(batches)
                yield from left_out.of(host, "train")
                state, metrics = take(state, batch)
                step += 1
                yield StepTaken(step, epoch)
                log.add(step, metrics)
                is_time = between.is_time(step) and step < epoch * per_epoch
                if log.due or is_time:
                    yield from _read(log, run)
                if is_time:
                    saved_to = checkpoint.save(run.checkpoints, state, {"epoch": epoch, "log": log.save(), **noted})
                    _prune(run, saved_to)
                    yield Saved(saved_to)
            yield from _read(log, run)
            train = log.end_epoch()
            yield Evaluating(epoch)
            parts: list[Metrics] = []
            for _ in range(images.eval_batches):
                batch, host = next(batches)
                yield from left_out.of(host, "val")
                parts.append(judge(state, batch))
            val = functools.reduce(operator.add, parts).compute()
            line = {
                "kind": "epoch",
                "epoch": epoch,
                "step": step,
                "train": train,
                "val": val,
                "left_out": left_out.count,
            }
            runs.append_metrics(run, [{**line, "seconds": round(time.monotonic() - began, 3)}])
            saved_to = checkpoint.save(run.checkpoints, state, {"epoch": epoch, "val": val, **noted})
            best = _prune(run, saved_to)
            yield EpochEnded(epoch, train, val, left_out.count, saved_to, best["epoch"], best["val"]["accuracy"])


def try_once(settings: Settings, images: Images) -> dict[str, float]:
    """One training step and one batch of evaluation, of which nothing is kept: the metrics of the step."""
    device = torch.device(settings.device)
    net = prepare.network(settings, len(images.train.classes), weights=settings.weights)
    prepare.check_batch(settings, net)
    rule = prepare.optimizer(settings, images.steps_per_epoch)
    take, judge = _steps(settings, net, rule, len(images.train.classes))
    batches = on_device(load(images, [images.train_jobs(0)[0], images.val_jobs()[0]]), device)
    state, metrics = take(prepare.first_state(settings, net, rule), next(batches)[0])
    judge(state, next(batches)[0]).compute()
    values: dict[str, float] = metrics.compute()
    return values


class LeftOutImages:
    """Counts the images that cannot be read, each once, up to a cap."""

    def __init__(self, images: Images, cap: float) -> None:
        self.sizes = {"train": len(images.train), "val": len(images.val)}
        self.cap = cap
        self.causes: dict[str, dict[int, str]] = {"train": {}, "val": {}}

    @property
    def count(self) -> int:
        return sum(len(causes) for causes in self.causes.values())

    def of(self, batch: ImageBatch, split: str) -> Iterator[LeftOut]:
        """The images of a batch that were left out for the first time.

        Raises:
          DataError: when they are too many.
        """
        yield from self.add(split, batch.left_out)

    def found_while_caching(self, images: Images) -> Iterator[LeftOut]:
        for split, store in (("train", images.train_store), ("val", images.val_store)):
            if store is not None and store.plan.unreadable:
                if not images.skip_unreadable:
                    raise DataError(next(iter(store.plan.unreadable.values())))
                yield from self.add(split, store.plan.unreadable)

    def add(self, split: str, causes: dict[int, str]) -> Iterator[LeftOut]:
        known = self.causes[split]
        new = {position: cause for position, cause in causes.items() if position not in known}
        known.update(new)
        if len(known) > self.cap * self.sizes[split]:
            some = "; ".join(list(known.values())[:3])
            raise DataError(
                f"{len(known)} of {self.sizes[split]} {split} images cannot be read, more than --bad-image-cap "
                f"{self.cap:g} allows: {some}{'; ...' if len(known) > 3 else ''}. Mend or remove them, or raise the cap"
            )
        yield from (LeftOut(cause) for cause in new.values())


class Pace:
    """When to save in the middle of an epoch: every so many steps, or minutes."""

    def __init__(self, every: str | None) -> None:
        self.minutes = every is not None and every.endswith("m")
        self.every = int(every.removesuffix("m")) if every else 0
        self.last = time.monotonic()

    def is_time(self, step: int) -> bool:
        if not self.minutes:
            return self.every > 0 and step % self.every == 0
        now = time.monotonic()
        if now - self.last < 60 * self.every:
            return False
        self.last = now
        return True


def _jobs(images: Images, step: int, epochs: int) -> Iterator[Job]:
    """The batches from a step to the end of a run, one after the other."""
    begun, skip = divmod(step, images.steps_per_epoch)
    for epoch in range(begun, epochs):
        yield from images.train_jobs(epoch, skip=skip if epoch == begun else 0)
        yield from images.val_jobs()


def _with_caches(images: Images, settings: Settings) -> Generator[Event, None, Images]:
    if settings.cache == "none":
        return images
    kind: Literal["ram", "disk"] = "disk" if settings.cache == "disk" else "ram"
    workers = settings.workers or 0
    train = yield from keep(images.train, images.train_form, kind, workers=workers)
    val = yield from keep(images.val, images.val_form, kind, workers=workers)
    return attrs.evolve(images, train_store=train, val_store=val)


def _read(log: Log, run: Run) -> Iterator[Logged]:
    lines, failure = log.read()
    runs.append_metrics(run, lines)
    yield from (Logged(line) for line in lines)
    if failure:
        raise failure


def _steps(
    settings: Settings, net: prepare.Network, rule: Any, classes: int
) -> tuple[Callable[..., Any], Callable[..., Metrics]]:
    """The training step, which writes into the memory of the state that it is given, and the evaluation step."""
    dtype = prepare.dtype(settings)
    train = functools.partial(
        train_step,
        apply=net.apply,
        optimizer=rule,
        loss=prepare.training_loss(settings),
        mix=prepare.mixing(settings, classes),
        precision=dtype,
    )
    judge = functools.partial(eval_step, apply=net.apply, loss=prepare.LOSSES[settings.loss], precision=dtype)
    if settings.compile:
        return compile_step(train, donate=True), compile_step(judge)
    return functools.partial(train, donate=True), judge


def _prune(run: Run, last: Path) -> dict[str, Any]:
    """Removes the checkpoints that need not be kept, and returns the manifest of the best."""
    station = run.settings.save_station
    manifests = {path: checkpoint.read_manifest(path) for path in checkpoint.find(run.checkpoints)}
    best = checkpoint.best(list(manifests))
    ended = {path for path, about in manifests.items() if station and "val" in about and about["epoch"] >= station}
    checkpoint.prune(run.checkpoints, ended | {last} | ({best} if best else set()))
    return manifests[best] if best else {}
