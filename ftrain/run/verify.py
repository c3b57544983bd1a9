"""Whether a run that was stopped and resumed ends with the bits of one that was not, tried on the user's own set-up."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import attrs
import torch

from ftrain.data.batches import Images
from ftrain.disk import checkpoint
from ftrain.disk.tensorfile import TensorFile
from ftrain.errors import SettingsError
from ftrain.run import folder as runs
from ftrain.run import loop, prepare, provenance
from ftrain.run.settings import Settings


@attrs.frozen
class Part:
    """A part of the trial that begins: the steps from one to another."""

    title: str
    first: int
    last: int


@attrs.frozen
class Verdict:
    """What came out.

    Attributes:
      tensors: how many were compared.
      different: those whose bits differ, in the order of the state, with the largest difference.
    """

    tensors: int
    different: dict[str, float]


def verify_resume(settings: Settings, images: Images, *, steps: int) -> Iterator[Part | Verdict]:
    """Takes the first `steps` steps of a run at once, and again with a stop in the middle; then compares the states.

    Each part has a process of its own, and the one after the stop another number of workers. At the end comes the
    verdict.

    Args:
      settings: resolved.
      steps: no more are taken than the run has.

    Raises:
      SettingsError: for a run of one step.
    """
    steps = min(steps, settings.epochs * images.steps_per_epoch)
    if steps < 2:
        raise SettingsError("a run of one step cannot be stopped and resumed; give more --epochs or a smaller batch")
    net = prepare.network(settings, len(images.train.classes))
    names = list(checkpoint.named(prepare.first_state(settings, net, prepare.optimizer(settings, steps))))
    del net
    stop = steps // 2
    other_workers = attrs.evolve(settings, workers=0 if settings.workers else 1)
    with tempfile.TemporaryDirectory(prefix="ftrain-") as name:
        whole, stopped = Path(name) / "whole", Path(name) / "stopped"
        yield Part("without a stop", 0, steps)
        _in_new_process(settings, images, whole, steps)
        yield Part("up to a stop", 0, stop)
        _in_new_process(settings, images, stopped, stop)
        yield Part("resumed from there", stop, steps)
        _in_new_process(other_workers, images, stopped, steps)
        one, other = (checkpoint.folder_of(folder / "checkpoints", steps) for folder in (whole, stopped))
        yield compare(one, other, names)


def compare(one: Path, other: Path, names: Sequence[str]) -> Verdict:
    """Compares these tensors of two checkpoints bit by bit."""
    with open(one / checkpoint.TENSORS, "rb") as first, open(other / checkpoint.TENSORS, "rb") as second:
        ours, theirs = TensorFile(first), TensorFile(second)
        different = {}
        for name in names:
            a, b = ours.read(name), theirs.read(name)
            if not torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)):
                different[name] = float((a.double() - b.double()).abs().max())
    return Verdict(len(names), different)


def _in_new_process(settings: Settings, images: Images, folder: Path, last: int) -> None:
    """Where nothing is left of the processes before: no cache, no tuned choice of a kernel."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        process.submit(_train, settings, images, folder, last).result()


def _train(settings: Settings, images: Images, folder: Path, last: int) -> None:
    multiprocessing.set_start_method(None, force=True)  # else the workers, too, would be spawned, unlike those of fit
    taken = [0]
    with runs.hold(folder):
        run = (
            attrs.evolve(runs.open_run(folder), settings=settings)
            if runs.is_begun(folder)
            else provenance.new_run(settings, images, folder, [])
        )
        for event in loop.fit(run, images, stop=lambda: taken[-1] >= last):
            if isinstance(event, loop.StepTaken | loop.Started):
                taken.append(event.step)
