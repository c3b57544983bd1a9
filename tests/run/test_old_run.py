"""A run that an earlier ftrain (commit 01a2af5) started and stopped in its second epoch resumes to the result of its
undisturbed run."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_runs
import torch
from safetensors.torch import load_file

from ftrain.disk import checkpoint
from ftrain.run.launch import Request, launch

OLD = Path(__file__).parent / "old_run"
OPTIONS = {"ema_decay": 0.9, "clip_norm": 1.0, "mixup": 0.2, "accumulate": 3, "memory_format": "contiguous"}


def by_the_loop(folder):
    tiny_runs.train(folder, **OPTIONS)


def as_the_command_resumes(folder):
    """Its settings are decided anew, where config.json lacks them because they did not exist."""
    images = tiny_runs.images()
    with tiny_runs.tiny_network():
        list(launch(Request(asked={}, sources=(images.train, images.val), resume=str(folder))))


@pytest.mark.parametrize("resume", [by_the_loop, as_the_command_resumes])
def test_a_run_of_an_earlier_ftrain_resumes_to_the_same_bits(tmp_path, resume):
    shutil.copytree(OLD / "stopped", tmp_path / "run")
    resume(tmp_path / "run")
    last = checkpoint.find(tmp_path / "run" / "checkpoints")[-1]
    assert last.name == "step_00000008"
    found, expected = load_file(last / "state.safetensors"), load_file(OLD / "finished" / "state.safetensors")
    # Another version of torch or another kind of CPU uses kernels that round differently.
    made_with = json.loads((OLD / "finished" / "made_with.json").read_text())
    exact = (made_with["torch"], made_with["cpu"]) == (torch.__version__, torch.backends.cpu.get_cpu_capability())
    assert found.keys() == expected.keys()
    # The gradient of a bias before BatchNorm is only rounding error, which Adam scales up to whole steps.
    noise = ("0.bias", "1.running_mean")
    for name in [name for name in expected if exact or not name.endswith(noise)]:
        tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(
            found[name], expected[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
    lines, expected_lines = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "run", OLD / "finished")
    )
    assert [(line["kind"], line["step"], line.keys()) for line in lines] == [
        (line["kind"], line["step"], line.keys()) for line in expected_lines
    ]
    for line in lines:
        line.get("val", {}).pop("macro_accuracy", None)  # which the earlier ftrain did not measure
    if exact:
        timeless = [
            [{name: value for name, value in line.items() if name not in tiny_runs.CLOCKED} for line in each]
            for each in (lines, expected_lines)
        ]
        assert timeless[0] == timeless[1]
