"""Which kernels a run takes: chosen by rule, written down, and the same bits when it goes on."""

import json

import pytest
import tiny_runs
import torch

import ftrain
from ftrain import models
from ftrain.disk import checkpoint
from ftrain.run import folder as runs
from ftrain.run import kernels, loop, prepare, provenance
from ftrain.run.settings import Settings


def resolved(**changes):
    options = {"model": "mobilenet_v3_small", "device": "cpu", "batch_size": 64, "image_size": 64, "epochs": 10}
    return Settings(**{**options, **changes})


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
    assert kernels.memory_format(model, torch.device(device)) == expected


@pytest.mark.parametrize(
    ("changes", "examples", "expected", "why"),
    [
        # 10 epochs of 46 steps
        ({}, 2_990, False, "the run is over in 460 steps"),
        ({"device": "cuda"}, 2_990, False, "the run is over in 460 steps"),
        ({"device": "cuda:1"}, 6_400, True, "pays in every step of a GPU"),
        ({"device": "mps"}, 6_400, False, "on mps nobody has measured"),
        ({"model": "resnet18"}, 10**6, False, "that has paid for networks of depthwise and 1 x 1 convolutions alone"),
        ({"model": "resnext50_32x4d"}, 10**6, False, "networks of depthwise and 1 x 1 convolutions alone"),
        # 10 epochs x 73,000 images x 64 x 64 pixels = 3e9, of 6e9
        ({}, 73_000, False, "this run is 0.5 of the work from which that pays on a CPU"),
        ({}, 150_000, True, "pays on a CPU in a run as long as this"),
    ],
)
def test_what_is_compiled_and_why(changes, examples, expected, why):
    compiled, reason = kernels.compiles(resolved(**changes), examples)
    assert compiled is expected
    assert why in reason


def test_nothing_is_compiled_on_a_cpu_without_a_compiler(monkeypatch):
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    assert kernels.compiles(resolved(), 150_000) == (False, "the step is not compiled: there is no C++ compiler here")
    assert kernels.compiles(resolved(device="cuda"), 150_000)[0]


def test_why_it_is_compiled_stays_when_a_run_goes_on(tmp_path):
    settings, images = tiny_runs.settings(), tiny_runs.images()
    run = provenance.new_run(settings, images, tmp_path / "run", ["ftrain"])
    why = "the step is not compiled: the run is over in 8 steps"
    assert run.config["kernels"]["compile_because"] == why
    longer = tiny_runs.settings(epochs=9)
    again = provenance.resumed_run(run, longer, images, ["ftrain"], override=True)
    assert again.config["kernels"]["compile_because"] == why
    asked = provenance.resumed_run(run, longer, images, ["ftrain"], asked={"compile": False}, override=True)
    assert asked.config["kernels"]["compile_because"] == "it was asked for"


def test_the_kernels_are_written_down(tmp_path):
    settings = tiny_runs.settings(memory_format="channels_last")
    with tiny_runs.tiny_network():
        images = tiny_runs.images()
        run = provenance.new_run(settings, images, tmp_path / "run", ["ftrain"], asked={"compile": False})
        list(loop.fit(run, images))
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
    asked = kernels.report(resolved(compile=True), 2_990, asked=True)
    assert (asked["compile"], asked["compile_because"]) == (True, "it was asked for")


def test_what_determinism_costs_is_said():
    assert "changes nothing on a CPU" in kernels.cost_of_determinism(torch.device("cpu"))
    assert "some are slower" in kernels.cost_of_determinism(torch.device("cuda"))


def test_what_is_compiled_is_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    mine = {"TORCHINDUCTOR_CACHE_DIR": "mine"}
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "ftrain" / "compiled")}
    for before, compiled, after in (({}, False, {}), (mine, True, mine), ({}, True, kept)):
        monkeypatch.setattr(kernels.os, "environ", environment := dict(before))
        with kernels.chosen(resolved(compile=compiled)):
            assert environment == after
    assert (tmp_path / "ftrain" / "compiled").is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(kernels.platformdirs, "user_cache_path", lambda name: tmp_path / "file" / name)
    monkeypatch.setattr(kernels.os, "environ", environment := {})
    with kernels.chosen(resolved(compile=True)):
        assert environment == {}  # torch's own folder


def test_torchs_own_settings_come_back():
    def now():
        cudnn = torch.backends.cudnn
        deterministic = torch.are_deterministic_algorithms_enabled()
        return cudnn.benchmark, cudnn.deterministic, deterministic, torch.get_float32_matmul_precision()

    before = now()
    with kernels.chosen(resolved(device="cuda")):
        assert now() == (True, False, False, "high")
    with kernels.chosen(resolved(device="cuda", deterministic=True)):
        assert now() == (False, True, True, "high")
    for deterministic in (False, True):
        with kernels.chosen(resolved(deterministic=deterministic)):
            assert now() == before
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with kernels.chosen(resolved(device="cuda")):
            assert now() == (False, True, True, "high")
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert now() == before


def test_channels_last_goes_through_the_step_and_through_a_checkpoint(tmp_path):
    """A run that is stopped and goes on in that format ends with the bits of one that was not."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tiny_runs.train(whole, memory_format="channels_last")
    stops = iter(range(100))
    with tiny_runs.tiny_network(), runs.hold(parts):
        run, images = tiny_runs.begin_or_go_on(parts, memory_format="channels_last")
        list(loop.fit(run, images, stop=lambda: next(stops) == 5))
    tiny_runs.train(parts, memory_format="channels_last")
    assert tiny_runs.result(parts) == tiny_runs.result(whole)

    with tiny_runs.tiny_network():
        settings = tiny_runs.settings(memory_format="channels_last")
        net = prepare.network(settings, 2)
        template = prepare.first_state(settings, net, prepare.optimizer(settings, 4))
        state = checkpoint.load(checkpoint.find(whole / "checkpoints")[-1], template)
    for tensors in (state.params, state.opt_state["exp_avg"]):
        assert tensors["0.weight"].shape == (4, 3, 3, 3)
        assert tensors["0.weight"].stride() == (27, 1, 9, 3)
    outputs, _ = net.apply(state.params, state.buffers, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), train=False)
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
