"""A run in progress: one method each for a step, an evaluation, a save and a stop."""

from __future__ import annotations

import functools
import operator
import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs
import torch

from ftrain.data.images import Images
from ftrain.data.order import train_examples
from ftrain.errors import TrainingError
from ftrain.metrics import Metrics
from ftrain.parallel import Processes
from ftrain.run import lagging, retention
from ftrain.run.build import Program
from ftrain.run.events import (
    Compiled,
    Compiling,
    EpochEnded,
    Evaluating,
    Event,
    Logged,
    Saving,
    StatisticsRecomputed,
    StepTaken,
    Stopped,
)
from ftrain.run.log import Log
from ftrain.run.record import Record
from ftrain.run.skipped import SkippedImages
from ftrain.run.spec import Interval
from ftrain.run.stages import Stage
from ftrain.state import TrainState, averaged
from ftrain.steps import Batch
from ftrain.text import shown

T = TypeVar("T")


class Timer:
    """When to save a checkpoint within an epoch."""

    def __init__(self, interval: Interval) -> None:
        self.interval = interval
        self.last = time.monotonic()

    def is_due(self, *, step: int) -> bool:
        """Whether one is due after a step because of its number."""
        return self.interval.steps > 0 and step % self.interval.steps == 0

    def has_elapsed(self) -> bool:
        """Whether one is due because of the time; if so, the time starts anew."""
        now = time.monotonic()
        if not self.interval.minutes or now - self.last < 60 * self.interval.minutes:
            return False
        self.last = now
        return True


@attrs.define(eq=False)
class Session:
    """A run in progress.

    Attributes:
      step: training steps done, known without waiting for the device.
      saved_step: that of the last checkpoint.
      best: the best epoch so far and its validation metrics.
      since_best: epochs evaluated after it.
      repairs: of the running statistics of BatchNorm.
      processes: of the run.
    """

    record: Record
    program: Program
    images: Images
    state: TrainState
    step: int
    log: Log
    skipped: SkippedImages
    best: tuple[int, dict[str, float]] | None = None
    since_best: int = 0
    repairs: lagging.Repairs = lagging.Repairs()
    processes: Processes = attrs.field(factory=Processes)
    saved_step: int = attrs.field(default=attrs.Factory(lambda self: self.step, takes_self=True))
    timer: Timer = attrs.field(
        default=attrs.Factory(lambda self: Timer(self.program.spec.checkpoint_every), takes_self=True)
    )
    _stage: Stage | None = None
    _uncompiled: set[str] = attrs.field(
        default=attrs.Factory(lambda self: {"evaluation"} if self.program.spec.compile else set(), takes_self=True)
    )
    _evaluated: list[Metrics] = attrs.field(factory=list)  # of the batches of the current evaluation
    _epoch_start: float = attrs.field(factory=time.monotonic)

    @property
    def epoch(self) -> int:
        """The epoch of the last training step, counted from 1."""
        return self.program.spec.pace.epoch_of(self.step)

    @property
    def epoch_is_over(self) -> bool:
        """Whether all training steps of the epoch are done."""
        return self.program.spec.pace.ends_epoch(self.step)

    @property
    def best_epoch(self) -> int:
        """The best epoch so far; 0 before the first evaluation."""
        return self.best[0] if self.best else 0

    @property
    def is_over(self) -> bool:
        """Whether the run ends after this epoch, which has been evaluated."""
        return retention.patience_is_over(self.program.spec, self.since_best)

    def train(self, batch: Batch, *, save: bool = False) -> Iterator[Event]:
        """One training step, with what follows from it: lines of metrics, and a checkpoint if one is due.

        Args:
          save: whether a checkpoint is due although the number of steps does not say so.
        """
        self.record.saver.check()
        stage = self._enter_stage()
        call = functools.partial(stage.train_step, self.state, batch)
        self.state, metrics = yield from self._announce_compile("training", call)
        self.step += 1
        yield StepTaken(self.step, self.epoch)
        self.log.add(self.step, metrics)
        save = (save or self.timer.is_due(step=self.step)) and not self.epoch_is_over
        if self.log.due or save or self.epoch_is_over:
            yield from self.read_log()
        if save:
            yield from self.skipped.merge()
            yield Saving(self._save(epoch=self.epoch, log=self.log.save()))
        if self.epoch_is_over:
            yield Evaluating(self.epoch)

    def compiles(self, split: Literal["train", "val"]) -> bool:
        """Whether the next step of this kind may be compiled first."""
        kind = "training" if split == "train" else "evaluation"
        new_stage = self.program.stage_at(self.step) is not self._stage
        return self.program.spec.compile and (kind in self._uncompiled or (split == "train" and new_stage))

    def _enter_stage(self) -> Stage:
        """The stage of the next training step. When it changes, so does what there is to compile."""
        stage = self.program.stage_at(self.step)
        if stage is not self._stage:
            if self.program.spec.compile:
                self._uncompiled |= {"training"} if self._stage is None else {"training", "evaluation"}
            self._stage = stage
            self.state = stage.enter(self.state)
        return stage

    def evaluate(self, batch: Batch) -> Iterator[Event]:
        """One batch of validation images."""
        call = functools.partial(self.program.eval_step, averaged(self.state), batch)
        self._evaluated.append((yield from self._announce_compile("evaluation", call)))

    def stop(self) -> Iterator[Event]:
        """Saves what was done since the last checkpoint."""
        yield from self.read_log()
        yield from self.skipped.merge()
        if self.step > self.saved_step:
            yield Saving(self._save(epoch=self.epoch, log=self.log.save(), to_evaluate=self.epoch_is_over))
        self.record.saver.finish()  # before `Stopped` announces that everything is saved
        yield Stopped(self.step)

    def restart_clock(self) -> None:
        """Starts to time an epoch."""
        self._epoch_start = time.monotonic()
        self.log.restart_clock()

    def read_log(self) -> Iterator[Logged]:
        """Reads the metrics that wait on the device, and writes their lines.

        Raises:
          TrainingError: if a loss or gradient was not finite.
        """
        lines, nonfinite_step = self.log.read()
        self.record.append(lines)
        yield from (Logged(line) for line in lines)
        if nonfinite_step is not None:
            raise _nonfinite(nonfinite_step, self.images, self.program)

    def end_epoch(self, stop: Callable[[], bool]) -> Generator[Event, None, bool]:
        """Ends an epoch whose validation images have all been evaluated. Returns False if `stop` returned True before
        that was possible."""
        epoch, train = self.epoch, self.log.of_epoch()
        total = functools.reduce(operator.add, self._evaluated)
        val = total.compute()
        statistics: dict[str, Any] = {}
        stale = lagging.staleness(self.program, self.step)
        if self._lags(stale, train, val):
            repaired = lagging.repaired(self.program, self.images, self.state, self.step, stop)
            if repaired is None:
                return False
            repaired = self._as_first_process(repaired)
            to_blame = self.repairs.to_blame or lagging.is_to_blame(train, repaired, self.images)
            kept = to_blame and lagging.is_better(repaired.val, val, self.program.spec.best_by)
            event = StatisticsRecomputed(
                epoch=epoch,
                stale=stale,
                train=train,
                before=val,
                after=repaired.val,
                images=repaired.images,
                fit_before=repaired.before,
                fit_after=repaired.after,
                to_blame=to_blame,
                kept=kept,
                first=not self.repairs.to_blame,
            )
            yield event
            self.repairs = self.repairs.after(epoch, to_blame=to_blame)
            statistics = {"statistics": lagging.record(event)}
            if kept:
                self.state, val = repaired.state, repaired.val
        yield from self.skipped.merge()
        self.log.end_epoch()
        found = {"thresholds": total.best_thresholds()} if total.examples else {}
        line = {
            "kind": "epoch",
            "epoch": epoch,
            "step": self.step,
            "train": train,
            "val": val,
            **statistics,
            "left_out": self.skipped.count,
            "seconds": round(time.monotonic() - self._epoch_start, 3),
        }
        self.record.append([line])
        epochs = [self.best] if self.best else []
        by = self.program.spec.best_by
        self.best = retention.ranked([*epochs, (epoch, val)], lambda each: retention.score(each[1], by))[0]
        saved = self._save(epoch=epoch, val=val, **found)
        self._evaluated = []
        self.restart_clock()
        best, best_val = self.best
        self.since_best = 0 if best == epoch else self.since_best + 1
        yield EpochEnded(epoch, train, val, self.skipped.count, saved, best, best_val["accuracy"], best_val)
        return True

    def _as_first_process(self, repaired: lagging.Repaired) -> lagging.Repaired:
        """What the first process has computed, so that all decide alike."""
        state = self.processes.tensors_of_first(repaired.state)
        numbers = self.processes.from_first((repaired.val, repaired.before, repaired.after))
        return lagging.Repaired(state, numbers[0], repaired.images, *numbers[1:])

    def _lags(self, stale: float, train: dict[str, float], val: dict[str, float]) -> bool:
        """Whether statistics are to be recomputed after an epoch with these metrics."""
        spec = self.program.spec
        if (
            not spec.recompute_statistics
            or spec.is_multi_label
            or stale < lagging.STALE
            or not self.repairs.due(self.epoch)
        ):
            return False
        return self.repairs.to_blame or lagging.is_far_below_training(train, val, self.images)

    def _save(self, **notes: Any) -> Path:
        """Starts to save the state, with what else a run needs to resume."""
        self.saved_step = self.step
        statistics = {"statistics": attrs.asdict(self.repairs)} if self.program.spec.recompute_statistics else {}
        notes = {"log": None, "to_evaluate": False, **notes, "left_out": self.skipped.save(), **statistics}
        return self.record.save(self.state, self.step, notes)

    def _announce_compile(
        self, what: Literal["training", "evaluation"], call: Callable[[], T]
    ) -> Generator[Event, None, T]:
        """Makes the call; if it is the first of a compiled step, with events before and after."""
        if what not in self._uncompiled:
            return call()
        self._uncompiled.discard(what)
        yield Compiling(what)
        start = time.monotonic()
        result = call()
        yield Compiled(what, time.monotonic() - start)
        return result


def _nonfinite(step: int, images: Images, program: Program) -> TrainingError:
    schedule = program.stage_at(step - 1).optimizer.learning_rate
    rate = float(schedule(torch.tensor(step - 1))) if schedule else float("nan")
    rows = train_examples(images.seed, step - 1, images.pace, images.balance).indices
    names = [images.train.image_name(row).removeprefix(f"{images.train.name}{os.sep}") for row in rows.tolist()]
    return TrainingError(
        f"the loss or its gradient became infinite or nan at step {step} (learning rate {rate:.3g}). The update was "
        "not "
        "applied, and the last checkpoint is intact. `ftrain replay` shows the step; a lower `lr`, more "
        "`warmup_epochs` or `clip_norm=1` may help, in a new run or in this one with `resume=RUN` and `override=True`. "
        f"The images of the batch, in {shown(images.train.name)}: {', '.join(map(shown, names))}"
    )
