"""Export, replay and verify-resume."""

import json
import pickle
import shutil

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from ftrain_cli.main import app
from PIL import Image
from signal_runs import make_images
from tiny_runs import train
from typer.testing import CliRunner

import ftrain.run.export
from ftrain import models
from ftrain.data.pixels import val_pixels
from ftrain.disk import checkpoint
from ftrain.disk.snapshot import named
from ftrain.errors import ExportError
from ftrain.parallel import Place
from ftrain.run import folder as run_folder
from ftrain.run import inference, replay, verify
from ftrain.run.api import open_run
from ftrain.run.build import build

MODEL = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    make_images(root)
    return root


def ftrain_command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = [
        "--model",
        MODEL,
        "--epochs",
        2,
        "--batch-size",
        4,
        "--drop-last",
        "--device",
        "cpu",
        "--workers",
        0,
        "--log-every",
        1,
    ]
    options += ["--checkpoint-every", 2, "--keep-last", 9, "--cache", "none", "--mean", "0.4,0.5,0.6"]
    result = ftrain_command("fit", "--data", data, *options, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def predictions(run):
    """Validation images uint8 [5, 3, 32, 32] and the logits of the run."""
    opened = open_run(run, device="cpu")
    images, state = opened.images(), opened.restored().state
    pixels = torch.stack([val_pixels(images, position) for position in range(5)])
    return pixels, opened.apply(state.params, state.buffers, pixels, train=False)[0]


def test_the_suffix_tells_the_format_and_must_not_contradict_it(run, tmp_path):
    result = ftrain_command("export", run, "--format", "onnx", "--out", tmp_path / "model.pt2")
    assert result.exit_code == 2
    assert "model.pt2 has the suffix of torch-export; use --format torch-export, or another suffix" in result.output
    assert not (tmp_path / "model.pt2").exists()


def test_onnx(run, predictions, tmp_path):
    target = tmp_path / "model.onnx"
    result = ftrain_command("export", run, "--out", target)
    assert result.exit_code == 0, result.output
    assert "on 5 validation images its logits equal those of the run to " in result.output
    session = onnxruntime.InferenceSession(target)
    pixels, logits = predictions
    for count in (1, 5):
        found = session.run(["logits"], {"images": pixels[:count].numpy()})[0]
        assert np.allclose(found, logits[:count].numpy(), atol=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == ["even", "odd"]
    assert json.loads(facts["mean"]) == [0.4, 0.5, 0.6]
    assert (facts["fit"], facts["centre_fraction"]) == ("crop", "1.0")


def test_torch_export(run, predictions, tmp_path):
    target = tmp_path / "model.pt2"
    assert ftrain_command("export", run, "--format", "torch-export", "--out", target).exit_code == 0
    facts = {"classes.txt": "", "std.txt": "", "model.txt": ""}
    program = torch.export.load(target, extra_files=facts)
    pixels, logits = predictions
    assert torch.allclose(program.module()(pixels), logits, atol=1e-5)
    assert json.loads(facts["classes.txt"]) == ["even", "odd"]
    assert json.loads(facts["std.txt"]) == [0.229, 0.224, 0.225]
    assert facts["model.txt"] == MODEL


def test_safetensors_loads_into_torchvisions_model(run, predictions):
    result = ftrain_command("export", run)
    assert result.exit_code == 0, result.output
    target = run / "export" / f"{MODEL}.safetensors"
    module = models.build(MODEL, classes=2, image_size=32, seed=9).eval()
    module.load_state_dict(safetensors.torch.load_file(target))
    pixels, logits = predictions
    mean, std = torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    assert torch.allclose(module((pixels / 255 - mean) / std), logits, atol=1e-4)
    with safetensors.safe_open(target, framework="pt") as file:
        facts = file.metadata()
    assert json.loads(facts["classes"]) == ["even", "odd"]
    assert facts["input"] == "float RGB images [batch, 3, height, width]: (pixel / 255 - mean) / std"


def test_an_export_whose_logits_differ_is_not_written(run, tmp_path, monkeypatch):
    wrong = lambda run, path: lambda images: torch.ones(len(images), 2)  # noqa: E731
    monkeypatch.setitem(ftrain.run.export._READERS, "safetensors", wrong)
    result = ftrain_command("export", run, "--out", tmp_path / "model.safetensors")
    assert result.exit_code == 1
    assert "the exported network's logits differ from the run's by up to" in result.output
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_impossible_is_reported(run, tmp_path, monkeypatch):
    with pytest.raises(
        ExportError, match=r"^`format=onnx` needs no_such_package; install ftrain with `pip install '\.\[onnx\]'`$"
    ):
        ftrain.run.export._needed("no_such_package", "torch")
    (tmp_path / "there").write_text("precious")
    for arguments, message in (
        (["--out", tmp_path / "there"], "already exists"),
        (["--format", "pickle"], "--format must be one of safetensors, onnx, torch-export; got 'pickle'"),
    ):
        result = ftrain_command("export", run, *arguments)
        assert result.exit_code == 2
        assert message in result.output
    assert (tmp_path / "there").read_text() == "precious"


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_replayed_step_has_the_same_numbers(run, data, step):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    line = next(line for line in lines if line["kind"] == "step" and line["step"] == step)
    result = ftrain_command("replay", run, "--step", step)
    assert result.exit_code == 0, result.output
    shown = f"step {step}: loss {line['loss']:.6g}, accuracy {line['accuracy']:.1%}, gradient norm "
    shown += f"{line['grad_norm']:.6g}, learning rate {line['lr']:.6g}"
    assert shown in result.output
    assert result.output.count(f"{data}/train/") == 4
    with Image.open(run / "replay" / f"step_{step:08d}.png") as picture:
        assert picture.size[0] > 4 * 100


def test_a_replayed_step_has_the_gradient_of_every_layer(tmp_path):
    from tiny_runs import images, spec, tiny_network

    folder = tmp_path / "run"
    train(folder)
    with tiny_network():
        *_, found = replay.replay(run_folder.read(folder), spec(), images(), 5)
    assert list(found.gradients) == ["0", "1", "5"]
    total = sum(norm**2 for norm in found.gradients.values()) ** 0.5
    assert total == pytest.approx(found.metrics["grad_norm"], rel=1e-5)
    assert len(found.names) == 3


def test_a_replayed_step_of_an_accumulated_batch_is_that_of_the_run(tmp_path):
    from tiny_runs import images, spec, tiny_network

    folder = tmp_path / "run"
    train(folder, accumulate=3, log_every=1)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    line = next(line for line in lines if line["kind"] == "step" and line["step"] == 6)
    with tiny_network():
        *_, found = replay.replay(run_folder.read(folder), spec(accumulate=3, log_every=1), images(), 6)
        *_, whole = replay.replay(run_folder.read(folder), spec(log_every=1), images(), 6)
    assert [found.metrics[name] for name in ("loss", "grad_norm", "lr")] == [
        line[n] for n in ("loss", "grad_norm", "lr")
    ]
    assert whole.metrics["grad_norm"] != line["grad_norm"]  # dropout and BatchNorm see the parts


def test_damage_is_named_and_another_checkpoint_is_used(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    found = checkpoint.find(folder / "checkpoints")
    assert [path.name for path in found] == ["step_00000002", "step_00000003", "step_00000004", "step_00000006"]
    for path in (found[1], found[3]):
        (path / "state.safetensors").write_bytes(b"")
    for arguments in (["export", folder, "--last"], ["evaluate", folder, "--last"], ["replay", folder, "--step", 4]):
        result = ftrain_command(*arguments)
        assert result.exit_code == 0, result.output
        damaged = found[1] if "replay" in arguments else found[3]
        assert f"warning: {damaged / 'state.safetensors'} is damaged" in result.output
    assert checkpoint.find(folder / "checkpoints") == found


def test_the_best_checkpoint_comes_first_and_damage_in_it_is_named(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    opened = run_folder.read(folder)
    best = inference.restore(opened, opened.spec).checkpoint
    (best / "manifest.json").write_bytes(b"")
    restored = inference.restore(opened, opened.spec)
    assert restored.checkpoint != best
    assert len(restored.damaged) == 1 and best.name in restored.damaged[0]


def test_a_step_that_a_run_does_not_have(run):
    result = ftrain_command("replay", run, "--step", 99)
    assert result.exit_code == 2
    assert "--step must be a training step of " in result.output and "from 1 to 6; got 99" in result.output


def in_this_process(*arguments):
    """Without another import of torch, but with what a process of its own would be given."""
    *arguments, world = pickle.loads(pickle.dumps(arguments))
    assert world == 1
    verify._train(*arguments, Place())


@pytest.mark.parametrize("processes", ["one", pytest.param("of their own", marks=pytest.mark.long)])
def test_verify_resume_reports_that_a_run_is_bit_exact(data, processes, monkeypatch):
    if processes == "one":
        monkeypatch.setattr(verify, "_in_new_processes", in_this_process)
    options = ["--model", MODEL, "--epochs", 2, "--batch-size", 4, "--drop-last", "--device", "cpu", "--workers", 0]
    result = ftrain_command("verify-resume", "--data", data, *options, "--steps", 4)
    assert result.exit_code == 0, result.output
    expected = f"bit-exact: {MODEL}, 32 px, batch 4, float32, cpu, 4 steps: all 680 tensors have the same bits"
    assert expected in result.output


def test_verify_resume_names_the_tensor_that_differs_first(data, tmp_path, monkeypatch):
    for name, lr in (("whole", 0.01), ("stopped", 0.01000001)):
        train(tmp_path / name, lr=lr)

    def compared(spec, images, *, steps, processes):
        last = [checkpoint.find(tmp_path / name / "checkpoints")[-1] for name in ("whole", "stopped")]
        yield verify.Part("without a stop", 0, 6)
        yield verify.compare(*last, names)

    names = list(named(state_of(tmp_path / "whole")))
    monkeypatch.setattr(verify, "verify_resume", compared)
    result = ftrain_command("verify-resume", "--data", data, "--model", MODEL, "--device", "cpu", "--batch-size", 4)
    assert result.exit_code == 1
    assert "tensors differ; the first is params/0.weight, by up to " in result.output
    last = checkpoint.find(tmp_path / "whole" / "checkpoints")[-1]
    assert verify.compare(last, last, names) == verify.Verdict(len(names), {})


def state_of(folder):
    from tiny_runs import spec, tiny_network

    with tiny_network():
        return build(spec()).init()
