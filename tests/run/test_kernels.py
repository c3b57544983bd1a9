"""Which kernels a run uses: chosen by rule, recorded, and with the same bits when it resumes."""

import json

import attrs
import pytest
import tiny_runs
import torch

import ftrain
from ftrain import models
from ftrain.disk import checkpoint
from ftrain.run import folder as run_folder
from ftrain.run import kernels, provenance
from ftrain.run.build import build
from ftrain.run.fit import fit


def spec(**changes):
    return attrs.evolve(tiny_runs.spec(), **changes)


def test_convolutions_are_counted():
    assert models.convolutions("resnet18") == models.Convolutions(count=20, depthwise=0, pointwise=3)
    assert models.convolutions("mobilenet_v3_small") == models.Convolutions(count=52, depthwise=11, pointwise=40)
    assert models.convolutions("vit_b_16") == models.Convolutions(count=1, depthwise=0, pointwise=0)


@pytest.mark.parametrize(
    ("model", "device", "expected"),
    [
        ("resnet18", "cpu", "contiguous"),
        ("mobilenet_v3_small", "cpu", "channels_last"),
        ("resnet50", "cpu", "channels_last"),
        ("convnext_tiny", "cpu", "contiguous"),
        ("vit_b_16", "cpu", "contiguous"),
        ("resnet18", "cuda", "channels_last"),
        ("vit_b_16", "cuda:1", "contiguous"),
        ("mobilenet_v3_small", "mps", "contiguous"),
    ],
)
def test_the_memory_format_by_model_and_device(model, device, expected):
    assert kernels.memory_format(models.convolutions(model), torch.device(device)) == expected


@pytest.mark.parametrize(
    ("model", "device", "steps", "pixels", "expected", "why"),
    [
        ("mobilenet_v3_small", "cpu", 499, 10**10, False, "this run has only 499 steps"),
        ("mobilenet_v3_small", "cuda", 499, 10**10, False, "this run has only 499 steps"),
        ("mobilenet_v3_small", "cuda:1", 500, 10**6, True, "makes every step faster"),
        ("mobilenet_v3_small", "mps", 10**6, 10**12, False, "has not been measured on mps"),
        ("resnet18", "cpu", 10**6, 10**12, False, "only pays off for networks of depthwise and 1 x 1 convolutions"),
        ("resnext50_32x4d", "cpu", 10**6, 10**12, False, "networks of depthwise and 1 x 1 convolutions"),
        ("mobilenet_v3_small", "cpu", 500, 6 * 10**9 - 1, False, "too short to repay compiling on a CPU"),
        ("mobilenet_v3_small", "cpu", 500, 6 * 10**9, True, "which a run of this length repays"),
    ],
)
def test_what_is_compiled_and_why(model, device, steps, pixels, expected, why):
    compiled, reason = kernels.pays_to_compile(
        models.convolutions(model), torch.device(device), steps=steps, pixels=pixels
    )
    assert compiled is expected
    assert why in reason


def test_nothing_is_compiled_on_a_cpu_without_a_compiler(monkeypatch):
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    convolutions, long = models.convolutions("mobilenet_v3_small"), {"steps": 10**6, "pixels": 10**12}
    assert kernels.pays_to_compile(convolutions, torch.device("cpu"), **long) == (
        False,
        "not compiled: no C++ compiler found on this machine",
    )
    assert kernels.pays_to_compile(convolutions, torch.device("cuda"), **long)[0]


def test_why_it_is_compiled_is_remembered_when_a_run_resumes(tmp_path):
    images = tiny_runs.images()
    run = provenance.new_run(spec(compile_because="the reason"), images, tmp_path / "run", ["ftrain"])
    assert run.config["kernels"]["compile_because"] == "the reason"
    longer = attrs.evolve(tiny_runs.spec(epochs=9), compile_because="it was asked for")
    again = provenance.resumed_run(run, longer, images, ["ftrain"], override=True)
    assert again.config["kernels"]["compile_because"] == "the reason"
    asked = provenance.resumed_run(run, longer, images, ["ftrain"], asked={"compile": False}, override=True)
    assert asked.config["kernels"]["compile_because"] == "it was asked for"


def test_the_kernels_are_recorded(tmp_path):
    wanted = spec(memory_format="channels_last", compile_because="it was asked for")
    with tiny_runs.tiny_network():
        images = tiny_runs.images()
        run = provenance.new_run(wanted, images, tmp_path / "run", ["ftrain"], asked={"compile": False})
        list(fit(run, wanted, images))
    noted = json.loads((tmp_path / "run" / "config.json").read_text())["kernels"]
    assert noted.pop("threads") == torch.get_num_threads()
    assert noted == {
        "precision": "float32",
        "float32_matmul": "highest",
        "memory_format": "channels_last",
        "compile": False,
        "compile_because": "it was asked for",
        "cudnn_search": False,
        "deterministic": True,
    }


def test_the_cost_of_determinism_is_reported():
    assert "changes nothing on a CPU" in kernels.cost_of_determinism(torch.device("cpu"))
    assert "slows a step down" in kernels.cost_of_determinism(torch.device("cuda"))


def test_compiled_code_is_cached_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    mine = {"TORCHINDUCTOR_CACHE_DIR": "mine"}
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "ftrain" / "compiled")}
    for before, compiled, after in (({}, False, {}), (mine, True, mine), ({}, True, kept)):
        monkeypatch.setattr(kernels.os, "environ", environment := dict(before))
        with kernels.using(spec(compile=compiled)):
            assert environment == after
    assert (tmp_path / "ftrain" / "compiled").is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(kernels.platformdirs, "user_cache_path", lambda name: tmp_path / "file" / name)
    monkeypatch.setattr(kernels.os, "environ", environment := {})
    with kernels.using(spec(compile=True)):
        assert environment == {}  # torch's own folder


def test_torchs_own_settings_come_back():
    def now():
        cudnn = torch.backends.cudnn
        deterministic = torch.are_deterministic_algorithms_enabled()
        return cudnn.benchmark, cudnn.deterministic, deterministic, torch.get_float32_matmul_precision()

    before = now()
    with kernels.using(spec(device="cuda")):
        assert now() == (True, False, False, "high")
    with kernels.using(spec(device="cuda", deterministic=True)):
        assert now() == (False, True, True, "high")
    for deterministic in (False, True):
        with kernels.using(spec(deterministic=deterministic)):
            assert now() == before
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with kernels.using(spec(device="cuda")):
            assert now() == (False, True, True, "high")
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert now() == before


def test_channels_last_survives_the_step_and_a_checkpoint(tmp_path):
    """A run in that format that is stopped and resumed ends with the bits of one that was not stopped."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tiny_runs.train(whole, memory_format="channels_last")
    stops = iter(range(100))
    with tiny_runs.tiny_network(), run_folder.lock(parts):
        run = tiny_runs.start_or_resume(parts, memory_format="channels_last")
        list(fit(*run, stop=lambda: next(stops) == 5))
    tiny_runs.train(parts, memory_format="channels_last")
    assert tiny_runs.result(parts) == tiny_runs.result(whole)

    with tiny_runs.tiny_network():
        program = build(spec(memory_format="channels_last"))
        state = checkpoint.load(checkpoint.find(whole / "checkpoints")[-1], program.init())
    for tensors in (state.params, state.opt_state["exp_avg"]):
        assert tensors["0.weight"].shape == (4, 3, 3, 3)
        assert tensors["0.weight"].stride() == (27, 1, 9, 3)
    outputs, _ = program.apply(state.params, state.buffers, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), train=False)
    assert outputs.shape == (2, 2)


def test_the_images_are_laid_out_as_the_network_wants_them():
    seen = []

    def apply(params, buffers, inputs, *, train, key=None):
        seen.append(inputs.stride())
        return inputs, buffers

    for memory_format in (torch.contiguous_format, torch.channels_last):
        normalized = ftrain.normalized(apply, mean=(0.0,) * 3, std=(1.0,) * 3, memory_format=memory_format)
        normalized({"weight": torch.zeros(1)}, {}, torch.zeros(2, 3, 4, 5, dtype=torch.uint8), train=True)
    assert seen == [(60, 20, 5, 1), (60, 1, 15, 3)]
    stacked = torch.zeros(2, 2, 3, 4, 5, dtype=torch.uint8)
    found, _ = torch.vmap(lambda images: normalized({"weight": torch.zeros(1)}, {}, images, train=True))(stacked)
    assert found.shape == (2, 2, 3, 4, 5)
