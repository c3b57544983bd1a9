"""benchmarks/gpu.py where there is no GPU: that it runs, and what it counts. What it measures there means nothing."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
NOT_NEEDED = ("jaxtyping", "beartype", "safetensors", "rich", "platformdirs", "simplejpeg", "matplotlib")


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments, **environment):
    command = [sys.executable, str(SCRIPT), *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)


def rows(output):
    return {line[2:13].strip(): line[13:] for line in output.splitlines() if line.startswith("  ")}


def has_ratio(row):
    return re.search(r"\d\.\d+ x", row) is not None


def test_without_a_gpu_it_says_what_to_do():
    result = run()
    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(
        r"expected an NVIDIA GPU, but torch \S+ finds none; run this where one is, or try --smoke --device cpu\n",
        result.stderr,
    )


@pytest.mark.long
def test_every_way_has_its_row_with_little_else_installed(tmp_path):
    blocker = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in NOT_NEEDED)
    (tmp_path / "sitecustomize.py").write_text(blocker)
    result = run("--smoke", "--device", "cpu", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    found = rows(result.stdout)
    assert list(found) == [
        *("hand", "timm", "lightning", "flax", "ftrain", "kept"),
        *("one by one", "vmapped"),
        *("bare step", "fit", "trace"),
    ]
    assert [way for way in ("hand", "timm", "ftrain", "kept", "vmapped") if not has_ratio(found[way])] == []
    assert has_ratio(found["lightning"]) or re.fullmatch(r"\w+ is not installed", found["lightning"])
    assert found["flax"] == "NotImplementedError: no small_cnn in flax here"
    for way in ("timm", "ftrain"):
        assert re.search(r"\d+ s cold, \d+ s warm$", found[way])
    assert has_ratio(found["fit"])
    assert found["trace"] == "3 steps: no CUDA calls, so none that wait"


def test_waits_counts_the_calls_of_the_loop_between_its_steps(gpu):
    def event(cat, name, ts, tid=1, dur=1.0, **args):
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "tid": tid, "dur": dur, "args": args}

    trace = [
        {"ph": "M", "name": "process_name", "ts": 0.0},
        event("user_annotation", gpu.STEP, 10.0),
        event("user_annotation", gpu.STEP, 20.0),
        event("user_annotation", gpu.STEP, 30.0),
        event("gpu_user_annotation", gpu.STEP, 40.0, tid=7),
        event("cuda_runtime", "cudaStreamSynchronize", 5.0, correlation=1),  # before the first step
        event("cuda_runtime", "cudaLaunchKernel", 11.0, correlation=2),
        event("cuda_driver", "cuLaunchKernel", 12.0, correlation=3),
        event("cuda_runtime", "cudaStreamWaitEvent", 13.0, correlation=4),  # the device waits, not the loop
        event("cuda_runtime", "cudaMemcpyAsync", 14.0, correlation=5),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 15.0, tid=7, correlation=5),
        event("cuda_runtime", "cudaEventSynchronize", 16.0, tid=2, correlation=6),  # of another thread
        event("user_annotation", gpu.READING, 20.5, dur=4.0),
        event("cuda_runtime", "cudaMemcpyAsync", 21.0, correlation=7),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 22.0, tid=7, correlation=7),
        event("cuda_runtime", "cudaStreamSynchronize", 23.0, correlation=8),
        event("cuda_runtime", "cudaDeviceSynchronize", 26.0, correlation=9),
        event("cuda_runtime", "cudaMemcpy", 27.0, correlation=10),
        event("cuda_runtime", "cudaDeviceSynchronize", 31.0, correlation=11),  # after the last
    ]
    assert gpu.waits(trace) == {"steps": 2, "calls": 8, "waiting": 4, "reading": 2}


@pytest.mark.parametrize(
    ("model", "multiply_adds", "params"),  # as torchvision's documentation has them
    [("resnet34", 3.66e9, 21_797_672), ("resnet50", 4.09e9, 25_557_032), ("vit_b_16", 17.56e9, 86_567_656)],
)
def test_counts_of_known_networks(gpu, model, multiply_adds, params):
    flops, per_image, per_step = gpu.counts(model, 224)
    assert flops == pytest.approx(2 * multiply_adds, rel=2e-3)
    assert per_image > 1e7
    assert per_step == 32 * params


def test_counts_of_the_small_network(gpu):
    flops, per_image, _ = gpu.counts("small_cnn", 32)
    areas = 16 * 16, 8 * 8, 4 * 4
    assert flops == 2 * (sum(9 * 32 * before * area for before, area in zip((3, 32, 32), areas, strict=True)) + 320)
    assert per_image == 4 * (3 * 32 * sum(areas) + 10)


def test_a_way_whose_process_ends_leaves_the_others_going(gpu):
    class Ended:
        def turn(self, steps):
            raise ChildProcessError("out of memory")

        def end(self):
            pass

    class Going(Ended):
        def turn(self, steps):
            return {"seconds": 1.0}

    options = gpu.argparse.Namespace(rounds=2, steps=1)
    answers, failed = gpu.in_turn({"hand": Ended(), "ftrain": Going()}, options)
    assert answers == {"ftrain": [{"seconds": 1.0}] * 2}
    assert failed == {"hand": "out of memory"}
