"""Which of torch's kernels a run uses on its device, by the rules that benchmarks/layout.py and benchmarks/step.py
found.

The choice changes the last bits of a result, so nothing is chosen by timing at the start of a run, except what cuDNN
and the compiler try on a GPU: on a CPU, and on a GPU with `deterministic`, the same command gives the same bits.
`ftrain bench` measures the alternatives on the machine at hand.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import platformdirs
import torch

from ftrain.models import Convolutions
from ftrain.parallel import Place
from ftrain.run.spec import RunSpec

MIN_STEPS = 500  # shorter runs are not worth compiling for
# Pixels that a run on a CPU must process to repay compiling: mobilenet_v3_small compiles in 96 s and then saves a
# quarter of 69 ms per step of 64 images of 64 px (benchmarks/results/step.txt), hence 1.5e9; mnasnet1_0 needs 5.4e9.
MIN_PIXELS = 6_000_000_000


def default_threads(here: Place) -> int:
    """The threads of a process: those that torch has, which are one for each core, or what OMP_NUM_THREADS says; of
    several processes on a machine, each has its part."""
    if here.local_world == 1 or "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return max(1, torch.get_num_threads() // here.local_world)


def precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """bfloat16 on a GPU that has it, for its matrix units; a CPU without such units would be slower."""
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bfloat16 else "float32"


def memory_format(convolutions: Convolutions, device: torch.device) -> Literal["contiguous", "channels_last"]:
    """The memory layout of images and activations.

    A GPU's matrix units need convolutions in channels-last layout. On a CPU, networks of mostly pointwise convolutions,
    which are matrix products over the channels, take up to half less time per step that way; others gain nothing.
    """
    if device.type == "cuda":
        return "channels_last" if convolutions.count > 1 else "contiguous"  # one alone cuts a transformer's patches
    mostly_pointwise = convolutions.pointwise > 0 and 2 * convolutions.pointwise >= convolutions.count
    return "channels_last" if device.type == "cpu" and mostly_pointwise else "contiguous"


def pays_to_compile(convolutions: Convolutions, device: torch.device, *, steps: int, pixels: int) -> tuple[bool, str]:
    """Whether to compile the training step, and why, in words.

    Args:
      steps: training steps of the run.
      pixels: pixels of all training images over all epochs of the run.
    """
    if device.type not in ("cuda", "cpu"):
        return False, f"not compiled: compiling has not been measured on {device.type}"
    if steps < MIN_STEPS:
        return False, f"not compiled: this run has only {steps} step{'s' * (steps != 1)}"
    if device.type == "cuda":
        return True, "compiled: this takes a minute or two at the start and makes every step faster"
    if not (convolutions.depthwise and convolutions.pointwise):
        return False, "not compiled: on a CPU this only pays off for networks of depthwise and 1 x 1 convolutions"
    if not (compiler := _cpp_compiler()) or not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        missing = "header files of Python" if compiler else "C++ compiler"
        return False, f"not compiled: no {missing} found on this machine"
    if pixels < MIN_PIXELS:
        return False, "not compiled: this run is too short to repay compiling on a CPU"
    return True, "compiled: this takes minutes at the start, which a run of this length repays"


def _cpp_compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "cl"))), None)


def cost_of_determinism(device: torch.device) -> str:
    """What `deterministic` costs on a device, in words."""
    if device.type == "cpu":
        return "`deterministic=True` changes nothing on a CPU, whose kernels are always deterministic"
    return (
        "`deterministic=True` excludes the faster, nondeterministic kernels and cuDNN's search for the fastest; "
        "`ftrain bench --deterministic` measures by how much that slows a step down"
    )


def report(spec: RunSpec) -> dict[str, Any]:
    """The kernels of a run, as config.json records them."""
    cuda = spec.device.startswith("cuda")
    return {
        "precision": spec.precision,
        "float32_matmul": "high" if cuda else "highest",
        "memory_format": spec.memory_format,
        "compile": spec.compile,
        "compile_because": spec.compile_because,
        "cudnn_search": cuda and not spec.deterministic,
        "deterministic": spec.deterministic or spec.device == "cpu",
        "threads": spec.threads or torch.get_num_threads(),
    }


@contextmanager
def using(spec: RunSpec) -> Iterator[None]:
    """Sets torch's global choice of kernels to that of a run, and restores it at the end. Compiled code is cached in
    the user's cache folder, unless TORCHINDUCTOR_CACHE_DIR names another or that folder cannot be made."""
    if spec.compile and "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        with suppress(OSError):  # torch has a folder of its own
            folder = platformdirs.user_cache_path("ftrain") / "compiled"
            folder.mkdir(parents=True, exist_ok=True)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    threads = torch.get_num_threads()
    if spec.threads:
        torch.set_num_threads(spec.threads)
    if spec.device == "cpu":
        try:
            yield
        finally:
            torch.set_num_threads(threads)
        return
    exact = spec.deterministic or torch.are_deterministic_algorithms_enabled()
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
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(before[0])
        torch.set_float32_matmul_precision(before[1])
        cudnn.deterministic, cudnn.benchmark = cudnn_before
