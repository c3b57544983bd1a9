"""Checks on the user's own set-up that a run which is stopped and resumed ends with the same bits."""

from __future__ import annotations

import math
import multiprocessing
import socket
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path

import attrs
import torch

from ftrain.data.images import Images
from ftrain.disk import checkpoint
from ftrain.disk.manifest import TENSORS
from ftrain.disk.snapshot import named
from ftrain.disk.tensorfile import TensorFile
from ftrain.errors import SettingsError
from ftrain.parallel import Place, joined
from ftrain.run import folder as run_folder
from ftrain.run import provenance
from ftrain.run.build import build
from ftrain.run.events import Started, StepTaken
from ftrain.run.fit import fit
from ftrain.run.folder import RunFolder
from ftrain.run.spec import Interval, RunSpec


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


def verify_resume(
    spec: RunSpec, images: Images, *, steps: int, processes: Sequence[int] = (1,)
) -> Iterator[Part | Verdict]:
    """Takes the first `steps` training steps of a run without a stop, and again with stops between; then compares the
    states. The verdict comes last.

    Each part has new processes, and the one after a stop another number of workers.

    Args:
      steps: at most as many as the run has.
      processes: their number without a stop, which is the first, and between the stops, all of them in turn.

    Raises:
      SettingsError: if the run has too few steps.
    """
    steps = min(steps, spec.total_steps)
    numbers = list(processes) if len(processes) > 1 else 2 * list(processes)
    if steps < len(numbers):
        raise SettingsError(
            f"a run of {steps} step{'s' * (steps > 1)} cannot be stopped and resumed; give more `epochs` or a smaller "
            "`batch_size`"
        )
    spec = attrs.evolve(spec, patience=0, max_seconds=math.inf)
    if max(numbers) > 1:  # a checkpoint of each step, because all may take one more step before they stop
        spec = attrs.evolve(spec, checkpoint_every=Interval(steps=1), keep_last=spec.total_steps)
    program = build(spec)
    names = list(named(program.stage_at(steps - 1).enter(program.init())))
    with tempfile.TemporaryDirectory(prefix="ftrain-") as name:
        whole, stopped = Path(name) / "whole", Path(name) / "stopped"
        yield Part(f"without a stop{_in(numbers[0], numbers)}", 0, steps)
        _in_new_processes(spec, images, whole, steps, numbers[0])
        for number, world in enumerate(numbers):
            first, last = steps * number // len(numbers), steps * (number + 1) // len(numbers)
            yield Part(f"{'after' if number else 'before'} a stop{_in(world, numbers)}", first, last)
            workers = spec.workers if number % 2 == 0 else 0 if spec.workers else 1
            _in_new_processes(attrs.evolve(spec, workers=workers), images, stopped, last, world)
        one, other = (checkpoint.folder_of(folder / "checkpoints", steps) for folder in (whole, stopped))
        yield compare(one, other, names)


def _in(world: int, numbers: Sequence[int]) -> str:
    return f" in {world} process{'es' * (world > 1)}" if max(numbers) > 1 else ""


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


def _in_new_processes(spec: RunSpec, images: Images, folder: Path, last: int, world: int) -> None:
    """In processes that have nothing of those before: no cache, no kernels chosen by timing."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    places = [Place(world, rank, world, rank, "localhost", port) for rank in range(world)]
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        executors = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in places]
        ended = [
            executor.submit(_train, spec, images, folder, last, place)
            for executor, place in zip(executors, places, strict=True)
        ]
        for each in ended:
            each.result()


def _train(spec: RunSpec, images: Images, folder: Path, last: int, here: Place) -> None:
    multiprocessing.set_start_method(None, force=True)  # otherwise the workers, too, would be spawned, unlike fit's
    done = [0]
    with (
        joined(timeout=spec.timeout, device=spec.torch_device.type, here=here) as processes,
        run_folder.lock(folder) if processes.is_first else nullcontext(),
    ):
        run = processes.from_first(_opened(spec, images, folder) if processes.is_first else None)
        assert run is not None
        for event in fit(run, spec, images, stop=lambda: done[-1] >= last, processes=processes):
            if isinstance(event, StepTaken | Started):
                done.append(event.step)


def _opened(spec: RunSpec, images: Images, folder: Path) -> RunFolder:
    started = run_folder.is_started(folder)
    return run_folder.read(folder) if started else provenance.new_run(spec, images, folder, [])
