"""Checks on the user's own set-up that a run which is stopped and resumed ends with the same bits."""

from __future__ import annotations

import math
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import attrs
import torch

from ftrain.data.images import Images
from ftrain.disk import checkpoint
from ftrain.disk.manifest import TENSORS
from ftrain.disk.snapshot import named
from ftrain.disk.tensorfile import TensorFile
from ftrain.errors import SettingsError
from ftrain.run import folder as run_folder
from ftrain.run import provenance
from ftrain.run.build import build
from ftrain.run.events import Started, StepTaken
from ftrain.run.fit import fit
from ftrain.run.spec import RunSpec


@attrs.frozen
class Part:
    """A part of the check starts: the training steps after `first`, up to `last`."""

    title: str
    first: int
    last: int


@attrs.frozen
class Verdict:
    """The result of the check.

    Attributes:
      tensors: how many were compared.
      different: the tensors whose bits differ, in the order of the state, with the largest difference of each.
    """

    tensors: int
    different: dict[str, float]


def verify_resume(spec: RunSpec, images: Images, *, steps: int) -> Iterator[Part | Verdict]:
    """Takes the first `steps` training steps of a run without a stop, and again with a stop in the middle; then
    compares the states. The verdict comes last.

    Each part has a process of its own, and the one after the stop another number of workers.

    Args:
      steps: at most as many as the run has.

    Raises:
      SettingsError: if the run has only one step.
    """
    steps = min(steps, spec.total_steps)
    if steps < 2:
        raise SettingsError(
            "a run of one step cannot be stopped and resumed; give more `epochs` or a smaller `batch_size`"
        )
    spec = attrs.evolve(spec, patience=0, max_seconds=math.inf)
    program = build(spec)
    names = list(named(program.stage_at(steps - 1).enter(program.init())))
    stop = steps // 2
    other_workers = attrs.evolve(spec, workers=0 if spec.workers else 1)
    with tempfile.TemporaryDirectory(prefix="ftrain-") as name:
        whole, stopped = Path(name) / "whole", Path(name) / "stopped"
        yield Part("without a stop", 0, steps)
        _in_new_process(spec, images, whole, steps)
        yield Part("before a stop", 0, stop)
        _in_new_process(spec, images, stopped, stop)
        yield Part("after the stop", stop, steps)
        _in_new_process(other_workers, images, stopped, steps)
        one, other = (checkpoint.folder_of(folder / "checkpoints", steps) for folder in (whole, stopped))
        yield compare(one, other, names)


def compare(one: Path, other: Path, names: Sequence[str]) -> Verdict:
    """Compares tensors of two checkpoints bit by bit."""
    with open(one / TENSORS, "rb") as first, open(other / TENSORS, "rb") as second:
        ours, theirs = TensorFile(first), TensorFile(second)
        different = {}
        for name in names:
            a, b = ours.read(name), theirs.read(name)
            if not torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)):
                different[name] = float((a.double() - b.double()).abs().max())
    return Verdict(len(names), different)


def _in_new_process(spec: RunSpec, images: Images, folder: Path, last: int) -> None:
    """In a process that has nothing of those before: no cache, no kernels chosen by timing."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        process.submit(_train, spec, images, folder, last).result()


def _train(spec: RunSpec, images: Images, folder: Path, last: int) -> None:
    multiprocessing.set_start_method(None, force=True)  # otherwise the workers, too, would be spawned, unlike fit's
    done = [0]
    with run_folder.lock(folder):
        started = run_folder.is_started(folder)
        run = run_folder.read(folder) if started else provenance.new_run(spec, images, folder, [])
        for event in fit(run, spec, images, stop=lambda: done[-1] >= last):
            if isinstance(event, StepTaken | Started):
                done.append(event.step)
