"""Which of torch's kernels a run takes on its device, and why: what benchmarks/layout.py and benchmarks/step.py found.

A choice changes the last bits of a result, so none is made by timing at the start of a run, but for cuDNN's own search:
on a CPU, and on a GPU with --deterministic, the same command gives the same bits. `ftrain bench` measures on the
machine at hand what the other choices would give.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import platformdirs
import torch

from ftrain import models
from ftrain.settings import MemoryFormat, Precision, Settings

FEWEST_STEPS = 500  # of a run for which compiling is worth a thought
# Pixels that a run on a CPU must see for compiling to pay: mobilenet_v3_small takes 94 s to compile and then saves a
# fifth of 62 ms in a step of 64 images of 64 px, so twice 2e9.
FEWEST_PIXELS = 4_000_000_000


def precision(device: torch.device) -> Precision:
    """bfloat16 on a GPU that has it, for its matrix units; a CPU without such units would be slower for it."""
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def memory_format(model: str, device: torch.device) -> MemoryFormat:
    """How images and activations lie in memory.

    On a GPU the matrix units take convolutions channels last. On a CPU that helps grouped convolutions, by up to half
    of a step; it makes no difference to others, and some of them are slower for it.
    """
    convolutions = models.convolutions(model)
    if device.type == "cuda":
        return "channels_last" if convolutions.count > 1 else "contiguous"  # one alone cuts a transformer's patches
    return "channels_last" if device.type == "cpu" and convolutions.grouped else "contiguous"


def compiles(settings: Settings, examples: int) -> tuple[bool, str]:
    """Whether to compile the step of a run over so many training examples, and why, in words. The settings are resolved
    but for `compile`."""
    assert settings.batch_size and settings.image_size
    device = settings.device.partition(":")[0]
    steps = settings.epochs * (examples // settings.batch_size)
    if device not in ("cuda", "cpu"):
        return False, f"the step is not compiled: on {device} nobody has measured what that gives"
    if steps < FEWEST_STEPS:
        return False, f"the step is not compiled: the run is over in {steps} steps"
    if device == "cuda":
        return True, "the step is compiled, which takes a minute or two at the start and pays in every step of a GPU"
    if not models.convolutions(settings.model).grouped:
        return False, f"the step is not compiled: {settings.model} is no faster for it on a CPU"
    pixels = settings.epochs * examples * settings.image_size**2
    if pixels < FEWEST_PIXELS:
        share = pixels / FEWEST_PIXELS
        return False, f"the step is not compiled: this run is {share:.1g} of the work from which that pays on a CPU"
    return True, f"the step is compiled, which takes minutes, and pays in a run as long as this for {settings.model}"


def cost_of_determinism(device: torch.device) -> str:
    """What --deterministic costs, in words."""
    if device.type == "cpu":
        return "--deterministic costs nothing on a CPU, whose kernels give the same bits in any case"
    return (
        "--deterministic takes only kernels that give the same bits every time, of which some are slower, and leaves "
        "out cuDNN's search for the fastest; `ftrain bench --deterministic` says by how much here"
    )


def report(settings: Settings, examples: int) -> dict[str, Any]:
    """What the kernels of resolved settings are, as config.json keeps it."""
    compiled, why = compiles(settings, examples)
    cuda = settings.device.startswith("cuda")
    return {
        "precision": settings.precision,
        "float32_matmul": "tf32" if cuda else "float32",
        "memory_format": settings.memory_format,
        "compile": settings.compile,
        "compile_because": why if settings.compile == compiled else "it was asked for",
        "cudnn_search": cuda and not settings.deterministic,
        "deterministic": settings.deterministic or settings.device == "cpu",
        "threads": torch.get_num_threads(),
    }


@contextmanager
def chosen(settings: Settings) -> Iterator[None]:
    """Has torch take the kernels of resolved settings, and puts its own settings back at the end. What is compiled is
    kept in the user's cache folder, unless TORCHINDUCTOR_CACHE_DIR names another."""
    if settings.compile:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(platformdirs.user_cache_path("ftrain") / "compiled"))
    cuda, exact = settings.device.startswith("cuda"), settings.deterministic
    if not (cuda or exact):
        yield
        return
    if exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    precision_before = torch.get_float32_matmul_precision()
    torch.use_deterministic_algorithms(exact)
    cudnn.deterministic, cudnn.benchmark = exact, not exact
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
        torch.set_float32_matmul_precision(precision_before)
