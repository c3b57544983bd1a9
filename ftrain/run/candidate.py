"""A training step that is being timed, and the memory that it needs."""

from __future__ import annotations

import hashlib
import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ftrain.data.batches import load
from ftrain.data.cache import available_memory
from ftrain.data.device import on_device
from ftrain.data.images import Images
from ftrain.data.labels import Labels
from ftrain.data.source import Source
from ftrain.run import kernels
from ftrain.run.build import build
from ftrain.run.custom import Custom
from ftrain.run.spec import RunSpec
from ftrain.run.stages import Stage
from ftrain.state import TrainState
from ftrain.torch_private import pytree

ROUNDS = 5  # in which two candidates are timed in turn
WARM_UP = 2  # calls that are not timed
PREFETCHED = 5  # batches that a worker may have made before timing starts
PROBED = 8  # images in the batch whose memory is counted
USABLE = 0.8  # fraction of the free memory that a step may use; the rest is for fragmentation, and for other processes


@attrs.define(eq=False)
class Candidate:
    """A training step that continues from its own last state.

    Attributes:
      first_call: seconds that the first call took, which compiles the step if it is to be compiled.
    """

    stage: Stage
    state: TrainState
    batch: tuple[Tensor, Tensor, Tensor]
    first_call: float = 0.0

    @classmethod
    def of(cls, spec: RunSpec, custom: Custom) -> Candidate:
        program = build(spec, custom, pretrained=False)
        stage = program.stages[-1]
        candidate = cls(stage, stage.enter(program.init()), random_batch(spec))
        candidate.first_call = candidate.seconds(1)
        candidate.seconds(WARM_UP)
        return candidate

    @property
    def spec(self) -> RunSpec:
        return self.stage.spec

    def seconds(self, calls: int) -> float:
        """The time that this number of steps takes."""
        with kernels.using(self.spec):
            start = time.perf_counter()
            for _ in range(calls):
                self._step(self.batch)
            self.state.step.item()  # waits for the device
            return time.perf_counter() - start

    def rate(self, seconds: float) -> float:
        """Images per second on a batch in memory."""
        calls = max(1, int(seconds / ROUNDS / self.seconds(1)))
        return calls * self.spec.batch_size / statistics.median(self.seconds(calls) for _ in range(ROUNDS))

    def rate_with_input(self, images: Images, seconds: float) -> float:
        """Images per second on the batches of an input pipeline."""
        loading = load(images, train_jobs(images), workers=self.spec.workers, pin_memory=self.spec.device != "cpu")
        batches = on_device(loading, self.spec.torch_device)
        with closing(loading), kernels.using(self.spec):
            for batch, _ in itertools.islice(batches, max(WARM_UP, self.spec.workers * PREFETCHED)):
                self._step(batch)
            self.state.step.item()
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < seconds or done < 3 * self.spec.batch_size:
                self._step(next(batches)[0])
                done += self.spec.batch_size
            self.state.step.item()
            return done / (time.perf_counter() - start)

    def speed_of(self, other: Candidate, seconds: float) -> float:
        """How many times as fast the other candidate is: the median of rounds in which both are timed in turn."""
        calls = max(1, int(seconds / ROUNDS / (self.seconds(1) + other.seconds(1))))
        return statistics.median(self.seconds(calls) / other.seconds(calls) for _ in range(ROUNDS))

    def _step(self, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        self.state, _ = self.stage.train_step(self.state, batch)


@attrs.frozen
class Memory:
    """The memory of a training step, in bytes, counted from its tensors; kernels may need more for themselves.

    Attributes:
      fixed: parameters, buffers, gradients and optimizer state.
      per_image: activations that an eager forward pass saves for the backward pass.
      free: on the device before the step; 0 if unknown.
    """

    fixed: int
    per_image: int
    free: int

    def of(self, batch_size: int) -> int:
        """The memory of a step on a batch of this size."""
        return self.fixed + self.per_image * batch_size

    @property
    def largest_batch(self) -> int:
        """The largest power of 2 that fits as a batch; 0 if none does, or if the free memory is unknown."""
        fitting = int((USABLE * self.free - self.fixed) / max(1, self.per_image))
        return 2 ** (fitting.bit_length() - 1) if fitting > 0 else 0


def memory_of_step(spec: RunSpec, custom: Custom) -> Memory:
    """The memory of a training step, from one on a few images."""
    cuda = spec.device.startswith("cuda")
    free = torch.cuda.mem_get_info(spec.device)[0] if cuda else available_memory()
    probed = min(PROBED, spec.batch_size)
    small = attrs.evolve(spec, batch_size=probed, compile=False, shards=1, in_order=1)
    program = build(small, custom, pretrained=False)
    stage = program.stages[-1]
    state = stage.enter(program.init())
    held = {leaf.untyped_storage().data_ptr() for leaf in pytree.tree_leaves(state)}
    fixed = _bytes(state) + _bytes(state.params)  # and a gradient for each parameter
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        stage.train_step(state, random_batch(small))
    activations = sum(size for address, size in saved.items() if address not in held)
    return Memory(fixed, -(-activations // probed), free)


def random_batch(spec: RunSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 [B, 3, S, S], labels and weights, on the device."""
    generator = torch.Generator().manual_seed(spec.seed)
    shape = (spec.batch_size, 3, spec.image_size, spec.image_size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(len(spec.classes), shape[:1], generator=generator)
    if spec.is_multi_label:
        labels = torch.eye(len(spec.classes))[labels]
    return images.to(spec.device), labels.to(spec.device), torch.ones(shape[:1], device=spec.device)


def train_jobs(images: Images) -> Iterator[Any]:
    """The batches of all epochs, without end."""
    for epoch in itertools.count():
        yield from images.train_jobs(epoch)


def input_rate(images: Images, workers: int, seconds: float) -> float:
    """Images per second of the input pipeline alone."""
    with closing(load(images, train_jobs(images), workers=workers)) as batches:
        for _ in range(workers * PREFETCHED + 1):
            next(batches)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            done += len(next(batches).labels)
        return done / (time.perf_counter() - start)


def _bytes(tree: Any) -> int:
    return sum(leaf.untyped_storage().nbytes() for leaf in pytree.tree_leaves(tree))


@attrs.frozen(eq=False)
class Sample:
    """Some images of a source, evenly spread over it."""

    source: Source
    positions: npt.NDArray[np.int64]

    @classmethod
    def of(cls, source: Source, count: int) -> Sample:
        return cls(source, np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(np.int64)))

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def labels(self) -> Labels:
        return self.source.labels[self.positions]

    @property
    def fingerprint(self) -> str:
        facts = self.source.fingerprint.encode() + self.positions.tobytes()
        return hashlib.sha256(facts).hexdigest()

    def __len__(self) -> int:
        return len(self.positions)

    def open(self, position: int) -> Image.Image:
        return self.source.open(int(self.positions[position]))

    def image_name(self, position: int) -> str:
        return self.source.image_name(int(self.positions[position]))
