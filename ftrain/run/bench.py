"""How fast a run would be on this machine, what limits it, and what would make it faster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import attrs
import torch

from ftrain.data.cache import Caching, build_cache
from ftrain.data.images import Images
from ftrain.data.order import Balance
from ftrain.errors import DataError
from ftrain.run.build import build
from ftrain.run.candidate import Candidate, Memory, Sample, input_rate, memory_of_step
from ftrain.run.check import check
from ftrain.run.custom import Custom
from ftrain.run.diagnose import diagnosed
from ftrain.run.spec import RunSpec

MAX_SAMPLE = 2_000  # training images that are decoded, at most
FASTER = 1.05  # gains below this are noise


@attrs.frozen
class Measuring:
    """A measurement starts."""

    what: str


@attrs.frozen(kw_only=True)
class Report:
    """Images per second, and memory.

    Attributes:
      step: the training step alone, on a batch in memory.
      alternatives: for each setting that was tried, how many times as fast the step is with it, timed in turn; or why
        it could not be measured.
      decoding: the input pipeline from the files, as in a first epoch or without a cache.
      cached: the input pipeline from decoded images in memory; None without a cache, or without room for one.
      both: the two together.
      compiling: seconds of the first call of a compiled step; None if it is not compiled.
      peak: bytes of a GPU's memory in use at the peak of such a step; None on a CPU.
    """

    spec: RunSpec
    step: float
    alternatives: dict[str, float | str]
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
        gains = {setting: gain for setting, gain in self.alternatives.items() if not isinstance(gain, str)}
        faster = sorted((setting for setting in gains if gains[setting] > FASTER), key=lambda each: -gains[each])
        advice = [f"`{setting}` makes the step {gains[setting]:.2f} x as fast" for setting in faster]
        if self.limit != "the step":
            if self.spec.cache == "none":
                advice.append("`cache=ram` or `cache=disk` may help, because it keeps decoded images")
            if self.spec.workers < (os.cpu_count() or 1):
                advice.append(f"`workers={os.cpu_count()}`, one per core, may help")
        if self.spec.device.startswith("cuda") and self.memory.largest_batch >= 2 * self.spec.batch_size:
            advice.append(f"`batch_size={self.memory.largest_batch}` may fit, and larger batches use a GPU better")
        return advice


def bench(
    spec: RunSpec, images: Images, custom: Custom | None = None, *, seconds: float = 3.0
) -> Iterator[Measuring | Caching | Report]:
    """Measures a run; the report comes last.

    Args:
      seconds: how long each part is measured, at least.

    Raises:
      TrainingError: if there is not enough memory for the batch.
      DataError: if an image cannot be read.
    """
    custom = custom or Custom()
    some = Sample.of(images.train, max(MAX_SAMPLE, images.batch_size))
    sample = attrs.evolve(images, train=some, balance=images.balance and Balance.of(some.labels))
    with diagnosed(spec):
        yield Measuring("memory")
        check(build(spec, custom, pretrained=False))
        memory = memory_of_step(spec, custom)
        yield Measuring("the compiler and the step" if spec.compile else "the step")
        candidate = Candidate.of(spec, custom)
        step = candidate.rate(seconds)
        peak = torch.cuda.max_memory_allocated(spec.device) if spec.device.startswith("cuda") else None
        found: dict[str, float | str] = {}
        for setting, other in alternatives(spec).items():
            yield Measuring(f"the step with `{setting}`")
            try:
                found[setting] = candidate.speed_of(Candidate.of(other, custom), seconds)
            except (RuntimeError, MemoryError) as error:  # too much memory, or a network without such kernels
                found[setting] = str(error).partition("\n")[0]
        yield Measuring("the input pipeline")
        decoding = input_rate(sample, spec.workers, seconds)
        cached = None
        if spec.cache != "none":
            yield Measuring("the input pipeline with a cache")
            with suppress(DataError):  # there is not enough memory for a cache
                store = yield from build_cache(sample.train, sample.train_cache_format, "ram", workers=spec.workers)
                sample = attrs.evolve(sample, train_cache=store)
                cached = input_rate(sample, spec.workers, seconds)
        yield Measuring("both together")
        both = candidate.rate_with_input(sample, seconds)
    yield Report(
        spec=spec,
        step=step,
        alternatives=found,
        decoding=decoding,
        cached=cached,
        both=both,
        compiling=candidate.first_call if spec.compile else None,
        memory=memory,
        peak=peak,
    )


def alternatives(spec: RunSpec) -> dict[str, RunSpec]:
    """Specs whose step may be faster, by the setting that leads to each. Compiling each would take minutes more, so the
    only alternatives to a compiled step are an eager one and, on a GPU, other kernels."""
    changes: list[dict[str, Any]] = [
        {"memory_format": "contiguous" if spec.memory_format == "channels_last" else "channels_last"},
        {"precision": "float32" if spec.precision == "bfloat16" else "bfloat16"},
    ]
    if spec.compile:
        changes = [{"compile": False}]
    if spec.device.startswith("cuda"):
        changes.append({"deterministic": not spec.deterministic})
    return {f"{name}={value}": attrs.evolve(spec, **{name: value}) for [(name, value)] in map(dict.items, changes)}
