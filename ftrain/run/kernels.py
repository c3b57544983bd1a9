"""Which of torch's kernels a run takes on its device, and why: what benchmarks/layout.py and benchmarks/step.py found.

A choice changes the last bits of a result, so none is made by timing at the start of a run, but for what cuDNN and the
compiler try on a GPU: on a CPU, and on a GPU with --deterministic, the same command gives the same bits. `ftrain bench`
measures on the machine at hand what other choices would give.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs
import torch

from ftrain import models
from ftrain.run.settings import MemoryFormat, Precision, Settings

FEWEST_STEPS = 500  # of a run for which compiling is worth a thought
# Pixels that a run on a CPU must see for compiling to pay: mobilenet_v3_small takes 96 s to compile and then saves a
# quarter of 69 ms in a step of 64 images of 64 px (benchmarks/results/step.txt), so 1.5e9; mnasnet1_0 needs 5.4e9.
FEWEST_PIXELS = 6_000_000_000


def precision(device: torch.device) -> Precision:
    """bfloat16 on a GPU that has it, for its matrix units; a CPU without such units would be slower for it."""
    return (
        "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    )


def memory_format(model: str, device: torch.device) -> MemoryFormat:
    """How images and activations lie in memory.

    On a GPU the matrix units take convolutions channels last. On a CPU networks of mostly pointwise convolutions, which
    are matrix products over the channels, need up to half less time for a step so; others need as much, or more.
    """
    convolutions = models.convolutions(model)
    if device.type == "cuda":
        return "channels_last" if convolutions.count > 1 else "contiguous"  # one alone cuts a transformer's patches
    mostly_pointwise = convolutions.pointwise > 0 and 2 * convolutions.pointwise >= convolutions.count
    return "channels_last" if device.type == "cpu" and mostly_pointwise else "contiguous"


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
    convolutions = models.convolutions(settings.model)
    if not (convolutions.depthwise and convolutions.pointwise):
        paid = "networks of depthwise and 1 x 1 convolutions"
        return False, f"the step is not compiled: on a CPU that has paid for {paid} alone"
    if not (compiler := _cpp_compiler()) or not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        missing = "Python's header files" if compiler else "C++ compiler"
        return False, f"the step is not compiled: there is no {missing} here"
    pixels = settings.epochs * examples * settings.image_size**2
    if pixels < FEWEST_PIXELS:
        share = pixels / FEWEST_PIXELS
        return False, f"the step is not compiled: this run is {share:.1g} of the work from which that pays on a CPU"
    return True, "the step is compiled, which takes minutes, and pays on a CPU in a run as long as this"


def _cpp_compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "cl"))), None)


def cost_of_determinism(device: torch.device) -> str:
    """What --deterministic costs, in words."""
    if device.type == "cpu":
        return "--deterministic changes nothing on a CPU, whose kernels give the same bits in any case"
    return (
        "--deterministic takes only kernels that give the same bits every time, of which some are slower, and leaves "
        "out cuDNN's search for the fastest; `ftrain bench --deterministic` says by how much here"
    )


def report(settings: Settings, examples: int, *, asked: bool) -> dict[str, Any]:
    """What the kernels of resolved settings are, as config.json keeps it.

    Args:
      asked: whether the user said if the step is compiled.
    """
    cuda = settings.device.startswith("cuda")
    return {
        "precision": settings.precision,
        "float32_matmul": "high" if cuda else "highest",
        "memory_format": settings.memory_format,
        "compile": settings.compile,
        "compile_because": "it was asked for" if asked else compiles(settings, examples)[1],
        "cudnn_search": cuda and not settings.deterministic,
        "deterministic": settings.deterministic or settings.device == "cpu",
        "threads": torch.get_num_threads(),
    }


@contextmanager
def chosen(settings: Settings) -> Iterator[None]:
    """Has torch take the kernels of resolved settings, and puts its own settings back at the end. What is compiled is
    kept in the user's cache folder, unless TORCHINDUCTOR_CACHE_DIR names another, or it cannot be made."""
    if settings.compile and "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        with suppress(OSError):  # torch has a folder of its own
            folder = platformdirs.user_cache_path("ftrain") / "compiled"
            folder.mkdir(parents=True, exist_ok=True)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    if settings.device == "cpu":
        yield
        return
    exact = settings.deterministic or torch.are_deterministic_algorithms_enabled()
    if exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    cudnn = torch.backends.cudnn
    before = torch.get_deterministic_debug_mode(), torch.get_float32_matmul_precision()
    cudnn_before = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(exact)
    torch.set_float32_matmul_precision("high")
    cudnn.deterministic, cudnn.benchmark = exact, not exact
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.set_float32_matmul_precision(before[1])
        cudnn.deterministic, cudnn.benchmark = cudnn_before
