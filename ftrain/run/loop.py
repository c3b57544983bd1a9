"""Training as a generator of events; the only place that composes the parts."""

from __future__ import annotations

import functools
import operator
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs
import torch

from ftrain.data.batches import ImageBatch, Images, Job, load, on_device
from ftrain.data.cache import Caching, keep
from ftrain.data.order import train_indices
from ftrain.data.workers import worker_error
from ftrain.disk import checkpoint
from ftrain.disk.checkpoint import Loaded, Saver, Snapshot
from ftrain.errors import CheckpointError, DataError, TrainingError
from ftrain.metrics import Metrics
from ftrain.models import WeightsReport
from ftrain.optim import Optimizer
from ftrain.run import folder as runs
from ftrain.run import kernels, prepare
from ftrain.run.diagnose import memory_error
from ftrain.run.folder import Run
from ftrain.run.log import Log
from ftrain.run.settings import Settings
from ftrain.state import averaged, keeping_averages
from ftrain.text import shown

E = TypeVar("E")
T = TypeVar("T")


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
class Compiling:
    """A step is being compiled, at its first call."""

    what: Literal["training", "evaluation"]


@attrs.frozen
class Compiled:
    """It was compiled; few seconds, where the cache knew it."""

    what: Literal["training", "evaluation"]
    seconds: float


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
class Damaged:
    """Something in the run's folder could not be read, and the run goes on without it."""

    cause: str


@attrs.frozen
class Saving:
    """The state was copied, and is being written in the background."""

    checkpoint: Path


@attrs.frozen
class Stopped:
    """The run ends before its end, as it was asked to; the last checkpoint has all that was done."""

    step: int


@attrs.frozen
class Evaluating:
    """The validation data is being gone through."""

    epoch: int


@attrs.frozen
class EpochEnded:
    """An epoch is over; its line is written, and its checkpoint is being written."""

    epoch: int
    train: dict[str, float]
    val: dict[str, float]
    left_out: int  # images of the run, so far
    checkpoint: Path
    best_epoch: int
    best_accuracy: float


Event = (
    Caching
    | Started
    | Compiling
    | Compiled
    | StepTaken
    | Logged
    | LeftOut
    | Damaged
    | Saving
    | Evaluating
    | EpochEnded
    | Stopped
)


def fit(run: Run, images: Images, *, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Trains a run from where it stands to its end.

    Every epoch ends with a pass over the validation data, a line in metrics.jsonl and a checkpoint. The last
    checkpoints, the best by validation accuracy, and those from `save_station` on are kept.

    Args:
      run: whose folder the caller holds (`runs.hold`).
      stop: asked between steps; when it says yes, the state is saved and the run ends there.

    Raises:
      TrainingError: when the loss is no longer finite, or memory is too small.
      DataError: for an image that cannot be read, or too many of them.
      CheckpointError: if there are checkpoints and none of them can be read.
      WorkerError: if a process that reads images is ended from outside.
      OSError: if the run's folder cannot be written; the checkpoints before are whole.
    """
    try:
        with kernels.chosen(run.settings), Saver() as saver:
            yield from _fit(run, images, saver, stop)
    except (RuntimeError, MemoryError) as error:
        sizes = {"batch_size": images.batch_size, "accumulate": run.settings.accumulate}
        raise memory_error(error, **sizes) or worker_error(error) or error from None


def _fit(run: Run, images: Images, saver: Saver, stop: Callable[[], bool]) -> Iterator[Event]:
    settings = run.settings
    per_epoch = images.steps_per_epoch
    device = torch.device(settings.device)
    found = checkpoint.find(run.checkpoints)
    net = prepare.network(settings, len(run.classes), weights=None if found else settings.weights)
    prepare.check_batch(settings, net)
    rule = prepare.optimizer(settings, per_epoch)
    state = prepare.first_state(settings, net, rule)
    log = Log(settings.log_every, per_epoch)
    left_out = LeftOutImages(images, settings.bad_image_cap)
    evaluated, metrics_file = True, None
    if found:
        loaded = checkpoint.load_first(found[::-1], state)
        state = keeping_averages(loaded.state, settings.ema_decay is not None)
        evaluated, metrics_file = _restore(loaded, log, left_out, device)
        for path, cause in loaded.damaged.items():
            yield Damaged(f"{cause}; it is kept as {checkpoint.set_aside(path).name}")
    else:
        runs.check_not_lost(run)
    step = int(state.step)
    total = settings.epochs * per_epoch
    if step < total:
        cached = yield from _unless(stop, with_caches(images, settings))
        if cached is None:
            yield Stopped(step)
            return
        images = cached
        yield from left_out.found_while_caching(images)
    runs.write(run)
    if net.report:
        runs.write_weights_report(run, net.report)
    if damage := runs.rewind_metrics(run, metrics_file, step):
        yield Damaged(damage)
    best = runs.best_epoch(run)
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
    begun = step // per_epoch - (0 if evaluated else 1)  # epochs that are over, with their evaluation
    take, judge = prepare.steps(settings, net, rule, len(run.classes))
    jobs = _jobs(images, begun, settings.epochs, skip=step - begun * per_epoch)
    loading = load(images, jobs, workers=settings.workers or 0, pin_memory=device.type == "cuda")
    batches = on_device(loading, device)
    between = Pace(settings.checkpoint_every)
    saved_step = step
    uncompiled = {"training", "evaluation"} if settings.compile else set()

    def compiling(what: Literal["training", "evaluation"], call: Callable[[], T]) -> Generator[Event, None, T]:
        """The call, and what there is to say of it if it is the first of a compiled step."""
        if what not in uncompiled:
            return call()
        uncompiled.discard(what)
        yield Compiling(what)
        began = time.monotonic()
        result = call()
        yield Compiled(what, time.monotonic() - began)
        return result

    def save(**notes: Any) -> Path:
        nonlocal saved_step
        snapshot, saved_step = Snapshot.of(state, step), step
        facts = {
            "log": None,
            "to_evaluate": False,
            **notes,
            "left_out": left_out.save(),
            "metrics": runs.metrics_file(run),
            "classes": run.classes,
            "config": run.config,
        }
        saver.start(functools.partial(_save, run, snapshot, facts))
        return checkpoint.folder_of(run.checkpoints, step)

    def read() -> Iterator[Logged]:
        lines, bad = log.read()
        runs.append_metrics(run, lines)
        yield from (Logged(line) for line in lines)
        if bad is not None:
            raise _nonfinite(bad, images, rule)

    def stopped() -> Iterator[Event]:
        yield from read()
        if step > saved_step:
            yield Saving(save(epoch=-(-step // per_epoch), log=log.save(), to_evaluate=step % per_epoch == 0))
        saver.finish()  # said only when it is so
        yield Stopped(step)

    with closing(loading):  # ends the workers at once, whatever ends the run
        for epoch in range(begun + 1, settings.epochs + 1):
            began = time.monotonic()
            log.restart_clock()
            while step < epoch * per_epoch:
                if stop():
                    yield from stopped()
                    return
                saver.check()
                batch, host = next(batches)
                yield from left_out.of(host, "train")
                state, metrics = yield from compiling("training", functools.partial(take, state, batch))
                step += 1
                yield StepTaken(step, epoch)
                log.add(step, metrics)
                is_time = between.is_time(step) and step < epoch * per_epoch
                if log.due or is_time:
                    yield from read()
                if is_time:
                    yield Saving(save(epoch=epoch, log=log.save()))
            yield from read()
            yield Evaluating(epoch)
            parts: list[Metrics] = []
            for _ in range(images.eval_batches):
                if stop():
                    yield from stopped()
                    return
                batch, host = next(batches)
                yield from left_out.of(host, "val")
                parts.append((yield from compiling("evaluation", functools.partial(judge, averaged(state), batch))))
            val = functools.reduce(operator.add, parts).compute()
            train = log.end_epoch()
            line = {
                "kind": "epoch",
                "epoch": epoch,
                "step": step,
                "train": train,
                "val": val,
                "left_out": left_out.count,
            }
            runs.append_metrics(run, [{**line, "seconds": round(time.monotonic() - began, 3)}])
            best = max(best or (epoch, val["accuracy"]), (epoch, val["accuracy"]), key=lambda pair: pair[1])
            kept = save(epoch=epoch, val=val)
            yield EpochEnded(epoch, train, val, left_out.count, kept, *best)


def _restore(loaded: Loaded, log: Log, left_out: LeftOutImages, device: torch.device) -> tuple[bool, tuple[int, str]]:
    """Takes up what a manifest notes, and returns whether the epoch that ends with its step, if one does, has been
    evaluated, and what metrics.jsonl was.

    Raises:
      CheckpointError: if it does not say these things.
    """
    try:
        notes = loaded.manifest
        left_out.restore(notes["left_out"])
        if sums := notes["log"]:
            log.restore(sums, device)
        # Under another batch size the step may be in the middle of an epoch.
        evaluated = not (notes["to_evaluate"] and notes["step"] % log.per_epoch == 0)
        return evaluated, (int(notes["metrics"]["bytes"]), str(notes["metrics"]["sha256"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        where = shown(loaded.folder / checkpoint.MANIFEST)
        raise CheckpointError(f"{where} does not say what a run goes on from: {shown(str(error))}") from error


def try_once(settings: Settings, images: Images) -> dict[str, float]:
    """One training step and one batch of evaluation, of which nothing is kept: the metrics of the step."""
    device = torch.device(settings.device)
    net = prepare.network(settings, len(images.train.classes), weights=settings.weights)
    prepare.check_batch(settings, net)
    rule = prepare.optimizer(settings, images.steps_per_epoch)
    take, judge = prepare.steps(settings, net, rule, len(images.train.classes))
    batches = on_device(load(images, [images.train_jobs(0)[0], images.val_jobs()[0]]), device)
    with kernels.chosen(settings):
        state, metrics = take(prepare.first_state(settings, net, rule), next(batches)[0])
        judge(averaged(state), next(batches)[0]).compute()
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

    def save(self) -> dict[str, dict[int, str]]:
        """What a checkpoint must keep."""
        return {split: dict(causes) for split, causes in self.causes.items()}

    def restore(self, causes: dict[str, dict[str, str]]) -> None:
        """Goes on from what `save` gave, back from JSON."""
        for split in self.causes:
            self.causes[split] = {int(position): str(cause) for position, cause in causes[split].items()}

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


def _jobs(images: Images, begun: int, epochs: int, *, skip: int) -> Iterator[Job]:
    """The batches of a run after its first `begun` epochs and `skip` steps, one after the other."""
    for epoch in range(begun, epochs):
        yield from images.train_jobs(epoch, skip=skip if epoch == begun else 0)
        yield from images.val_jobs()


def with_caches(images: Images, settings: Settings) -> Generator[Caching, None, Images]:
    """The images, decoded and kept as the settings say."""
    if settings.cache == "none":
        return images
    kind: Literal["ram", "disk"] = "disk" if settings.cache == "disk" else "ram"
    workers = settings.workers or 0
    train = yield from keep(images.train, images.train_form, kind, workers=workers)
    val = yield from keep(images.val, images.val_form, kind, workers=workers)
    return attrs.evolve(images, train_store=train, val_store=val)


def _unless(stop: Callable[[], bool], events: Generator[E, None, T]) -> Generator[E, None, T | None]:
    """The events and their result, or None if they were ended because `stop` said so."""
    while not stop():
        try:
            event = next(events)
        except StopIteration as end:
            result: T = end.value
            return result
        yield event
    events.close()
    return None


def _nonfinite(step: int, images: Images, rule: Optimizer) -> TrainingError:
    rate = float(rule.learning_rate(torch.tensor(step - 1))) if rule.learning_rate else float("nan")
    rows = train_indices(images.seed, step - 1, examples=len(images.train), batch_size=images.batch_size)
    names = [images.train.name(row).removeprefix(f"{images.train.title}{os.sep}") for row in rows.tolist()]
    return TrainingError(
        f"the loss or its gradient is no longer finite at step {step} (learning rate {rate:.3g}); its update was not "
        "made, and the last checkpoint stands. `ftrain replay` looks into the step; a lower --lr, more --warmup-epochs "
        "or --clip-norm 1 may help, in a new run or from here with --resume RUN --override. The images of its batch, "
        f"of {shown(images.train.title)}: {', '.join(map(shown, names))}"
    )


def _save(run: Run, snapshot: Snapshot, notes: dict[str, Any]) -> None:
    """Saves a checkpoint, and then removes those that need not be kept."""
    checkpoint.save(run.checkpoints, snapshot, notes)
    found = checkpoint.find(run.checkpoints)
    about = checkpoint.manifests(found)
    best = checkpoint.best(about)
    station = run.settings.save_station
    ended = {path for path, notes in about.items() if station and "val" in notes and notes["epoch"] >= station}
    checkpoint.prune(run.checkpoints, ended | set(found[-run.settings.keep_last :]) | ({best} if best else set()))
