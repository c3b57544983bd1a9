"""Training as a generator of events: the one place that composes the parts of a run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import TypeVar

import attrs

from ftrain.data.batches import load
from ftrain.data.cache import Caching, build_cache
from ftrain.data.device import on_device
from ftrain.data.images import Images, Job
from ftrain.disk import checkpoint
from ftrain.disk.checkpoint import Loaded
from ftrain.disk.manifest import MANIFEST
from ftrain.disk.saver import Saver
from ftrain.errors import CheckpointError
from ftrain.parallel import Processes, Ranks
from ftrain.run import folder as run_folder
from ftrain.run import kernels, retention
from ftrain.run.build import Program, build
from ftrain.run.check import check
from ftrain.run.custom import Custom
from ftrain.run.diagnose import diagnosed
from ftrain.run.events import Damaged, EndedEarly, Evaluating, Event, FeaturesNotCached, Started, Stopped
from ftrain.run.features import Features, with_features
from ftrain.run.folder import RunFolder
from ftrain.run.lagging import Repairs
from ftrain.run.log import Log
from ftrain.run.network import could_be_pretrained
from ftrain.run.record import Record
from ftrain.run.session import Session
from ftrain.run.skipped import SkippedImages
from ftrain.run.spec import RunSpec
from ftrain.state import TrainState, averaged, keeping_averages
from ftrain.text import shown

E = TypeVar("E")
T = TypeVar("T")
NOTHING, SAVE, STOP = 0, 1, 2  # what a process may wish, by urgency


def fit(
    run: RunFolder,
    spec: RunSpec,
    images: Images,
    custom: Custom | None = None,
    *,
    stop: Callable[[], bool] = lambda: False,
    processes: Processes | None = None,
) -> Generator[Event]:
    """Trains a run to its end, from its last checkpoint if there is one.

    Every epoch ends with an evaluation on the validation images, a line in metrics.jsonl and a checkpoint. The last
    checkpoints, the best by `best_by`, and those of the epochs from `save_station` on are kept.

    Args:
      run: whose folder the caller has locked (`ftrain.run.folder.lock`).
      stop: asked between steps; when it returns True, the state is saved and the run stops.
      processes: of the run, which all make the same call; by default there is only this one.

    Raises:
      TrainingError: if the loss is no longer finite, or memory runs out.
      DataError: if an image cannot be read, or too many of them.
      CheckpointError: if there are checkpoints and none of them can be read.
      WorkerError: if a process that loads images is killed.
      OSError: if the run's folder cannot be written; the checkpoints before are intact.
    """
    deadline = time.monotonic() + spec.max_seconds
    asked, stop = stop, lambda: asked() or time.monotonic() >= deadline
    processes = processes or Processes()
    layout = processes.ranks(spec.shards)
    images = attrs.evolve(images, part=layout.rank, parts=layout.world)
    with diagnosed(spec, resumable=True), kernels.using(spec), Saver() as saver:
        # Until training starts, the first process decides alone whether to stop.
        stop_early = stop if processes.is_first else _never
        record = Record(run, spec, saver, writes=processes.is_first)
        ready = yield from processes.first_then_all(
            lambda: _ready(record, images, custom, processes, layout, stop_early)
        )
        if ready is None:
            return
        session = ready.session
        _check_same_position(ready, processes)
        session.state = processes.tensors_of_first(session.state)
        yield from _train(ready, processes, lambda wish: processes.agree(STOP if stop() else wish))


def _train(ready: Ready, processes: Processes, agreed: Callable[[int], int]) -> Generator[Event]:
    """Training and evaluation, up to the end of the run.

    Args:
      agreed: the wish of all processes, from that of this one; STOP if one of them was asked to stop.
    """
    session, images, features = ready.session, ready.images, ready.features
    spec = session.program.spec
    jobs = functools.partial(_jobs, images, spec, session.step, evaluated=ready.evaluated)
    loading = load(images, jobs(), workers=spec.workers, pin_memory=spec.torch_device.type == "cuda")
    batches = features.batches(jobs()) if features else on_device(loading, spec.torch_device)
    session.restart_clock()

    def stop() -> bool:
        processes.doing("recomputing statistics")
        return agreed(NOTHING) == STOP

    with closing(loading):  # ends the workers immediately, however the run ends
        for job in jobs():
            train = job.split == "train"
            save = train and processes.is_first and session.timer.has_elapsed()
            wish = agreed(SAVE if save else NOTHING)
            if wish == STOP:
                yield from session.stop()
                return
            what = f"training step {job.number + 1}" if train else f"validation batch {job.number + 1}"
            processes.doing(f"loading the images of {what}")
            batch, on_host = next(batches)
            yield from session.skipped.found(job.split, on_host.skipped)
            processes.doing(what, may_take_long=session.compiles(job.split))
            if train:
                yield from session.train(batch, save=wish == SAVE)
            else:
                yield from session.evaluate(batch)
                last = job.number == images.eval_batches - 1
                if last and not (yield from session.end_epoch(stop)):
                    yield from session.stop()
                    return
                if last and session.is_over and session.step < spec.total_steps:
                    yield EndedEarly(session.epoch, session.best_epoch)
                    return


def _check_same_position(ready: Ready, processes: Processes) -> None:
    """Raises CheckpointError if processes have found different checkpoints or metrics in the run's folder."""
    session = ready.session
    position = session.step, ready.evaluated, session.best, session.since_best, session.repairs
    first, *others = processes.gathered(position)
    for rank, theirs in enumerate(others, 1):
        if theirs != first:
            raise CheckpointError(
                f"process {rank} finds step {theirs[0]} in {shown(session.record.run.path)}, and process 0 another "
                "state of the run; a shared file system may need a minute until all machines see the same, so try again"
            )


@attrs.frozen(eq=False)
class Ready:
    """A run that is ready to train.

    Attributes:
      images: with caches, if there are any.
      features: of the images, if the run is trained on them.
      evaluated: whether the epoch that ends at this step, if one does, has been evaluated.
    """

    session: Session
    images: Images
    features: Features | None
    evaluated: bool


def _ready(
    record: Record,
    images: Images,
    custom: Custom | None,
    processes: Processes,
    layout: Ranks,
    stop: Callable[[], bool],
) -> Generator[Event, None, Ready | None]:
    """Everything that training needs; None if the run was stopped before, or ended early when it was last trained."""
    run, spec = record.run, record.spec
    program = build(spec, custom, pretrained=not checkpoint.find(run.checkpoints), layout=layout)
    check(program)
    skipped = SkippedImages(images, spec.bad_image_cap, processes if spec.skip_bad_images else None)
    position = yield from _find_position(run, program, skipped)
    over = _ended_early(run, spec, position)
    features = None
    if position.step < spec.total_steps and not over:
        found = yield from _until(stop, with_features(program, images, position.state))
        # Several processes share a cache on disk, which gives the same pixels.
        shared = spec.cache == "ram" and layout.world > 1
        kind = attrs.evolve(spec, cache="disk") if shared else spec
        cached = (yield from _until(stop, with_caches(images, kind))) if isinstance(found, str) else images
        if found is None or cached is None:
            yield Stopped(position.step)
            return None
        images = cached
        if isinstance(found, Features):
            features, program = found, found.program
        elif run.config["asked"].get("feature_cache"):
            yield FeaturesNotCached(found)
        yield from position.skipped.add_cached(images)
    session = yield from _start(record, program, images, position, processes)
    return None if over else Ready(session, images, features, position.evaluated)


@attrs.frozen(eq=False)
class Position:
    """The position of a run before it starts or resumes.

    Attributes:
      evaluated: whether the epoch that ends at this step, if one does, has been evaluated.
      metrics_seal: size and SHA-256 of metrics.jsonl when the checkpoint was written; None for a new run.
      repairs: of the running statistics of BatchNorm.
    """

    state: TrainState
    step: int
    log: Log
    skipped: SkippedImages
    evaluated: bool
    metrics_seal: tuple[int, str] | None
    repairs: Repairs = Repairs()


def _find_position(run: RunFolder, program: Program, skipped: SkippedImages) -> Generator[Event, None, Position]:
    """The state before the first step, or that of the last intact checkpoint; damaged ones are quarantined."""
    spec = program.spec
    log = Log(spec.log_every, spec.pace)
    found = checkpoint.find(run.checkpoints)
    if not found:
        run_folder.check_not_lost(run)
        return Position(program.init(), 0, log, skipped, True, None)
    loaded = checkpoint.load_first(found[::-1], program.template)
    state = keeping_averages(loaded.state, spec.ema_decay > 0.0)
    evaluated, seal, repairs = _restore(loaded, log, skipped, spec)
    for path, cause in loaded.damaged.items():
        yield Damaged(f"{cause}; it has been renamed to {checkpoint.quarantine(path).name}")
    return Position(state, int(state.step), log, skipped, evaluated, seal, repairs)


def _restore(loaded: Loaded, log: Log, skipped: SkippedImages, spec: RunSpec) -> tuple[bool, tuple[int, str], Repairs]:
    """Restores what a manifest records beside the state; returns whether the epoch that ends at its step, if one does,
    has been evaluated, the seal of metrics.jsonl, and the repairs of statistics.

    Raises:
      CheckpointError: if the manifest lacks something.
    """
    try:
        manifest = loaded.manifest
        skipped.restore(manifest["left_out"])
        if sums := manifest["log"]:
            log.restore(sums, spec.torch_device)
        # After a change of batch size the step may lie in the middle of an epoch.
        evaluated = not (manifest["to_evaluate"] and spec.pace.ends_epoch(manifest["step"]))
        seal = int(manifest["metrics"]["bytes"]), str(manifest["metrics"]["sha256"])
        return evaluated, seal, Repairs(**manifest.get("statistics", {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        where = shown(loaded.folder / MANIFEST)
        raise CheckpointError(f"{where} lacks what a run needs to resume: {shown(str(error))}") from error


def _ended_early(run: RunFolder, spec: RunSpec, position: Position) -> bool:
    """Whether the run ended before its last epoch because no further epoch was better."""
    if not (spec.patience and position.evaluated and spec.pace.ends_epoch(position.step)):
        return False
    lines = run_folder.read_metrics(run)[0]
    since_best = retention.epochs_since_best(lines, spec.best_by, until=position.step)
    return retention.patience_is_over(spec, since_best)


def _start(
    record: Record, program: Program, images: Images, position: Position, processes: Processes
) -> Generator[Event, None, Session]:
    """Writes the run's files, once everything has been checked, and announces the run."""
    run, spec = record.run, program.spec
    if record.writes:
        run_folder.write(run)
        if program.weights:
            run_folder.write_weights_report(run, program.weights)
        if damage := run_folder.rewind_metrics(run, position.metrics_seal, position.step):
            yield Damaged(damage)
    lines = run_folder.read_metrics(run)[0]
    best = retention.best_epoch(lines, spec.best_by)
    session = Session(
        record,
        program,
        images,
        position.state,
        position.step,
        position.log,
        position.skipped,
        best=(best["epoch"], best["val"]) if best else None,
        since_best=retention.epochs_since_best(lines, spec.best_by),
        repairs=position.repairs,
        processes=processes,
    )
    stage, tensors = program.stage_at(position.step), {**position.state.params, **position.state.buffers}
    yield Started(
        spec=spec,
        val_examples=len(images.val),
        parameters=sum(tensor.numel() for name, tensor in tensors.items() if name in stage.trained + stage.frozen),
        trained=sum(tensors[name].numel() for name in stage.trained),
        step=position.step,
        weights=program.weights,
        could_be_pretrained=position.step == 0 and could_be_pretrained(spec, program.custom),
    )
    if not position.evaluated:
        yield Evaluating(session.epoch)
    return session


def try_once(spec: RunSpec, images: Images, custom: Custom | None = None) -> dict[str, float]:
    """Takes one training step and evaluates one batch, without keeping anything. Returns the metrics of the step."""
    with diagnosed(spec), kernels.using(spec):
        program = build(spec, custom)
        check(program)
        jobs = [images.train_jobs(0)[0], images.val_jobs()[0]]
        batches = on_device(load(images, jobs), spec.torch_device)
        state, metrics = program.stage_at(0).train_step(program.init(), next(batches)[0])
        program.eval_step(averaged(state), next(batches)[0]).compute()
        values: dict[str, float] = metrics.compute()
    return values


def with_caches(images: Images, spec: RunSpec) -> Generator[Caching, None, Images]:
    """The images with caches of the kind that the spec names, which are built if they do not exist."""
    if spec.cache == "none":
        return images
    train = yield from build_cache(images.train, images.train_cache_format, spec.cache, workers=spec.workers)
    val = yield from build_cache(images.val, images.val_cache_format, spec.cache, workers=spec.workers)
    return attrs.evolve(images, train_cache=train, val_cache=val)


def _jobs(images: Images, spec: RunSpec, step: int, *, evaluated: bool) -> Iterator[Job]:
    """The batches of a run from a step on: those of the training steps of an epoch, then the validation images."""
    done = spec.pace.epochs(step) - (0 if evaluated else 1)  # epochs that are over, with their evaluation
    for epoch in range(done, spec.epochs):
        yield from images.train_jobs(epoch, skip=max(0, step - spec.pace.steps(epoch)))
        yield from images.val_jobs()


def _never() -> bool:
    return False


def _until(stop: Callable[[], bool], events: Generator[E, None, T]) -> Generator[E, None, T | None]:
    """The events and their result; None if `stop` returned True before they ended."""
    while not stop():
        try:
            event = next(events)
        except StopIteration as end:
            result: T = end.value
            return result
        yield event
    events.close()
    return None
