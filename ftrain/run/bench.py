"""How fast a run would be on this machine, what limits it, and what would make it faster."""

from __future__ import annotations

import hashlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils import _pytree as pytree

from ftrain.data.batches import Images, load, on_device
from ftrain.data.cache import Caching, available_memory, keep
from ftrain.data.source import Source
from ftrain.errors import DataError, TrainingError
from ftrain.run import kernels, prepare
from ftrain.run.diagnose import memory_error
from ftrain.run.settings import Settings, flag
from ftrain.state import TrainState

SAMPLED = 2_000  # training images that are decoded, at most
ROUNDS = 5  # in which two ways are taken in turn
WARM_UP = 2  # calls that are not timed
READ_AHEAD = 5  # batches that a worker may have made before anything is timed
PROBED = 8  # images in the batch whose memory is counted
ROOM = 0.8  # share of the free memory that a step may take: the rest goes to fragments, and to others

Step = Callable[[Any, Any], tuple[TrainState, Any]]


@attrs.frozen
class Measuring:
    """What is being measured now."""

    what: str


@attrs.frozen
class Memory:
    """What a training step needs, in bytes: a count, which leaves out what kernels need for themselves.

    Attributes:
      fixed: parameters, buffers, gradients and optimizer state.
      per_image: activations that an eager forward pass keeps for the backward pass.
      free: on the device before all that; 0 if nobody knows.
    """

    fixed: int
    per_image: int
    free: int

    def of(self, batch_size: int) -> int:
        """What a step on so many images at a time needs."""
        return self.fixed + self.per_image * batch_size

    @property
    def largest_batch(self) -> int:
        """The largest power of 2 that fits; 0 if none does, or if nobody knows what is free."""
        fitting = int((ROOM * self.free - self.fixed) / max(1, self.per_image))
        return 2 ** (fitting.bit_length() - 1) if fitting > 0 else 0


@attrs.frozen(kw_only=True)
class Report:
    """Images a second, and memory.

    Attributes:
      step: the training step on a batch in memory, as the settings have it.
      others: by the options that make it so, how many times as fast another such step is, taken in turn with this
        one; or why it could not be measured.
      decoding: the input pipeline from the files; as in a first epoch, or without a cache.
      cached: the input pipeline from decoded images in memory, if the settings have a cache and there is room.
      both: the two together.
      compiling: seconds of the first call of a compiled step.
      peak: bytes that a GPU held at most in such a step.
    """

    settings: Settings
    step: float
    others: dict[str, float | str]
    decoding: float
    cached: float | None
    both: float
    compiling: float | None
    memory: Memory
    peak: int | None

    @property
    def limit(self) -> str:
        """What a run waits for: "the step", "the input pipeline", or "both", which share the processor."""
        pipeline = self.decoding if self.cached is None else self.cached
        if pipeline < self.step:
            return "the input pipeline"
        return "the step" if self.both > 0.9 * self.step else "both"

    @property
    def advice(self) -> list[str]:
        """What made the step faster, the best first; then what may help and was not measured."""
        gains = {option: gain for option, gain in self.others.items() if not isinstance(gain, str)}
        faster = sorted((option for option in gains if gains[option] > 1.05), key=lambda option: -gains[option])
        found = [f"{option} makes the step {gains[option]:.2f} x as fast" for option in faster]
        if self.limit != "the step":
            if self.settings.cache == "none":
                found.append("--cache ram, or disk, may help: it keeps decoded images")
            if (self.settings.workers or 0) < (os.cpu_count() or 1):
                found.append(f"--workers {os.cpu_count()}, one per core, may help")
        if self.settings.device.startswith("cuda") and self.memory.largest_batch >= 2 * (self.settings.batch_size or 1):
            found.append(f"--batch-size {self.memory.largest_batch} may fit, and larger batches keep a GPU busier")
        return found


def bench(settings: Settings, images: Images, *, seconds: float = 3.0) -> Iterator[Measuring | Caching | Report]:
    """Measures a run with resolved settings; at the end comes the report.

    Args:
      seconds: how long each part is measured, at least.

    Raises:
      TrainingError: if memory is too small for the batch.
      DataError: for an image that cannot be read.
    """
    try:
        yield from _bench(settings, images, seconds)
    except (RuntimeError, MemoryError) as error:
        if memory_error(error, batch_size=images.batch_size):
            raise TrainingError(
                f"there is too little memory for a step of {images.batch_size} images; give a smaller --batch-size, or "
                "--accumulate"
            ) from None
        raise


def _bench(settings: Settings, images: Images, seconds: float) -> Iterator[Measuring | Caching | Report]:
    sample = attrs.evolve(images, train=Sample.of(images.train, max(SAMPLED, images.batch_size)))
    classes = len(images.train.classes)
    workers = settings.workers or 0
    yield Measuring("memory")
    prepare.check_batch(settings, prepare.network(settings, classes))
    memory = _memory(settings, classes)
    yield Measuring("the compiler and the step" if settings.compile else "the step")
    way = Way.of(settings, classes)
    compiling = way.first_call if settings.compile else None
    step = way.rate(seconds)
    peak = torch.cuda.max_memory_allocated(settings.device) if way.on_gpu else None
    others: dict[str, float | str] = {}
    for option, other in alternatives(settings).items():
        yield Measuring(f"the step with {option}")
        try:
            others[option] = _compare(way, Way.of(other, classes), seconds)
        except (RuntimeError, MemoryError) as error:  # too much memory, or a network without such kernels
            others[option] = str(error).partition("\n")[0]
    yield Measuring("the input pipeline")
    decoding = _pipeline_rate(sample, workers, seconds)
    cached = None
    if settings.cache != "none":
        yield Measuring("the input pipeline with a cache")
        with suppress(DataError):  # there is no room for so many
            store = yield from keep(sample.train, sample.train_form, "ram", workers=workers)
            sample = attrs.evolve(sample, train_store=store)
            cached = _pipeline_rate(sample, workers, seconds)
    yield Measuring("both together")
    both = way.rate(seconds, sample)
    yield Report(
        settings=settings,
        step=step,
        others=others,
        decoding=decoding,
        cached=cached,
        both=both,
        compiling=compiling,
        memory=memory,
        peak=peak,
    )


def alternatives(settings: Settings) -> dict[str, Settings]:
    """Settings with which the step may be faster, by the options that lead to them. Each that is compiled would take
    minutes more, so beside a compiled step only an eager one is tried, and with a GPU's other kernels."""
    changes: list[dict[str, Any]] = [
        {"memory_format": "contiguous" if settings.memory_format == "channels_last" else "channels_last"},
        {"precision": "float32" if settings.precision == "bfloat16" else "bfloat16"},
    ]
    if settings.compile:
        changes = [{"compile": False}]
    if settings.device.startswith("cuda"):
        changes.append({"deterministic": not settings.deterministic})

    def option(name: str, value: Any) -> str:
        return f"{flag(name)} {value}" if isinstance(value, str) else flag(name if value else f"no_{name}")

    return {option(*next(iter(change.items()))): attrs.evolve(settings, **change) for change in changes}


@attrs.define
class Way:
    """A training step that goes on from its own last state."""

    settings: Settings
    take: Step
    state: TrainState
    batch: tuple[Tensor, Tensor, Tensor]
    first_call: float = 0.0  # seconds

    @classmethod
    def of(cls, settings: Settings, classes: int) -> Way:
        net = prepare.network(settings, classes)
        rule = prepare.optimizer(settings, 100)
        take, _ = prepare.steps(settings, net, rule, classes)
        way = cls(settings, take, prepare.first_state(settings, net, rule), _batch(settings, classes))
        way.first_call = way.seconds(1)
        way.seconds(WARM_UP)
        return way

    def seconds(self, calls: int) -> float:
        """Of so many steps."""
        with kernels.chosen(self.settings):
            began = time.perf_counter()
            for _ in range(calls):
                self.state, _ = self.take(self.state, self.batch)
            self.state.step.item()  # waits for the device
            return time.perf_counter() - began

    def rate(self, seconds: float, images: Images | None = None) -> float:
        """Images a second: on one batch, or on those of an input pipeline."""
        if images is None:
            calls = max(1, int(seconds / ROUNDS / self.seconds(1)))
            return calls * len(self.batch[1]) / statistics.median(self.seconds(calls) for _ in range(ROUNDS))
        workers = self.settings.workers or 0
        loading = load(images, _train_jobs(images), workers=workers, pin_memory=self.on_gpu)
        batches = on_device(loading, torch.device(self.settings.device))
        with closing(loading), kernels.chosen(self.settings):
            for batch, _ in itertools.islice(batches, max(WARM_UP, workers * READ_AHEAD)):
                self.state, _ = self.take(self.state, batch)
            self.state.step.item()
            began, done = time.perf_counter(), 0
            while time.perf_counter() - began < seconds or done < 3 * len(self.batch[1]):
                batch, _ = next(batches)
                self.state, _ = self.take(self.state, batch)
                done += len(batch[1])
            self.state.step.item()
            return done / (time.perf_counter() - began)

    @property
    def on_gpu(self) -> bool:
        return self.settings.device.startswith("cuda")


@attrs.frozen(eq=False)
class Sample:
    """Some images of a source, evenly spread over it."""

    source: Source
    positions: npt.NDArray[np.int64]

    @classmethod
    def of(cls, source: Source, count: int) -> Sample:
        return cls(source, np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(np.int64)))

    @property
    def title(self) -> str:
        return self.source.title

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self.source.labels[self.positions]

    @property
    def fingerprint(self) -> str:
        facts = self.source.fingerprint.encode() + self.positions.tobytes()
        return hashlib.sha256(facts).hexdigest()

    def __len__(self) -> int:
        return len(self.positions)

    def open(self, position: int) -> Image.Image:
        return self.source.open(int(self.positions[position]))

    def name(self, position: int) -> str:
        return self.source.name(int(self.positions[position]))


def _batch(settings: Settings, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    assert settings.batch_size and settings.image_size
    draw = torch.Generator().manual_seed(settings.seed)
    shape = (settings.batch_size, 3, settings.image_size, settings.image_size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
    labels = torch.randint(classes, shape[:1], generator=draw)
    return images.to(settings.device), labels.to(settings.device), torch.ones(shape[:1], device=settings.device)


def _compare(way: Way, other: Way, seconds: float) -> float:
    """How many times as fast the other way is: the median of rounds in which both are taken in turn."""
    calls = max(1, int(seconds / ROUNDS / (way.seconds(1) + other.seconds(1))))
    return statistics.median(way.seconds(calls) / other.seconds(calls) for _ in range(ROUNDS))


def _memory(settings: Settings, classes: int) -> Memory:
    assert settings.batch_size
    probed = min(PROBED, settings.batch_size)
    free = torch.cuda.mem_get_info(settings.device)[0] if settings.device.startswith("cuda") else available_memory()
    small = attrs.evolve(settings, batch_size=probed, compile=False, accumulate=1)
    net = prepare.network(small, classes)
    rule = prepare.optimizer(small, 100)
    state = prepare.first_state(small, net, rule)
    take, _ = prepare.steps(small, net, rule, classes)
    held = {leaf.untyped_storage().data_ptr() for leaf in pytree.tree_leaves(state)}
    fixed = _bytes(state) + _bytes(state.params)  # and a gradient for each parameter
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        take(state, _batch(small, classes))
    activations = sum(size for address, size in kept.items() if address not in held)
    return Memory(fixed, -(-activations // probed), free)


def _bytes(tree: Any) -> int:
    return sum(leaf.untyped_storage().nbytes() for leaf in pytree.tree_leaves(tree))


def _train_jobs(images: Images) -> Iterator[Any]:
    for epoch in itertools.count():
        yield from images.train_jobs(epoch)


def _pipeline_rate(images: Images, workers: int, seconds: float) -> float:
    with closing(load(images, _train_jobs(images), workers=workers)) as batches:
        for _ in range(workers * READ_AHEAD + 1):
            next(batches)
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            done += len(next(batches).labels)
        return done / (time.perf_counter() - began)
