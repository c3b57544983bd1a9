"""The command, end to end, on small folders of images that the tests make."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import safetensors.torch
import torch
from ftrain_cli.main import app
from PIL import Image
from typer.testing import CliRunner

import ftrain
import ftrain.run.folder
from ftrain.data import heif
from ftrain.disk import sealed
from ftrain.run import api, curves

pytestmark = pytest.mark.usefixtures("without_curves")

MODEL = "shufflenet_v2_x0_5"
QUICK = ["--model", MODEL, "--epochs", "2", "--batch-size", "4", "--drop-last", "--workers", "0", "--device", "cpu"]
CLASSES = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (210, 40, 50)}


def make_images(folder, per_class, seed=0):
    """Noisy images, one colour per class."""
    noise = np.random.default_rng(seed)
    for name, color in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = np.clip(np.array(color) + noise.normal(0, 25, (36, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    make_images(root / "train", 6)
    make_images(root / "val", 3, seed=1)
    return root


def ftrain_command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    result = ftrain_command("fit", "--data", data, *QUICK, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n")


def params_of(folder):
    last = max((folder / "checkpoints").iterdir())
    return safetensors.torch.load_file(last / "state.safetensors")


def test_the_files_of_a_run(run, data):
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["model"] == MODEL
    assert config["settings"]["image_size"] == 32
    assert config["settings"]["crop_scale"] == 1.0
    assert config["settings"]["lr"] == 0.001
    assert config["settings"]["train_dir"] == str(data / "train")
    assert config["versions"]["torch"] == torch.__version__
    assert json.loads((run / "classes.json").read_text()) == ["blue", "green", "red"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["epoch"], line["step"]) for line in lines] == [
        ("step", 1, 4),
        ("epoch", 1, 4),
        ("step", 2, 8),
        ("epoch", 2, 8),
    ]
    assert lines[1]["val"]["count"] == 9
    assert lines[0]["count"] == 16
    assert is_png(run / "curves.png")
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert "step_00000008" in names
    assert names <= {"step_00000004", "step_00000008"}
    assert list(run.rglob(".*")) == []


def test_resumed_between_epochs_ends_with_the_same_bits(run, data, tmp_path):
    # The first epoch of a run is cut out of it, as if it had been stopped there.
    stopped = tmp_path / "stopped"
    code = (
        "import sys; from ftrain_cli.main import app; from ftrain.disk import checkpoint\n"
        "save = checkpoint.save\n"
        "def save_and_stop(*arguments):\n"
        "    save(*arguments); raise KeyboardInterrupt\n"
        "checkpoint.save = save_and_stop\n"
        "app()"
    )
    arguments = ["fit", "--data", str(data), *QUICK, "--out", str(stopped)]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 130, result.stderr
    assert "interrupted" in result.stderr
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["step_00000004"]
    result = ftrain_command("fit", "--resume", stopped, "--workers", 2)
    assert result.exit_code == 0, result.output
    assert "resuming from step 4 of 8" in result.output
    whole, resumed = params_of(run), params_of(stopped)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 4, 8, 8]


def test_resuming_a_complete_run_says_so(run):
    result = ftrain_command("fit", "--resume", run)
    assert result.exit_code == 0
    assert "is complete" in result.output


def test_resuming_with_another_learning_rate_is_refused(run):
    result = ftrain_command("fit", "--resume", run, "--lr", "0.5")
    assert result.exit_code == 2
    assert "its result would change: --lr was 0.001, is 0.5" in result.output


def stopped_after_an_epoch(run, folder):
    """A copy of a run with only the checkpoint of the first epoch."""
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "checkpoints" / "step_00000008")
    return folder


@pytest.fixture(scope="module")
def run_with_all_epochs(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "all"
    result = ftrain_command("fit", "--data", data, *QUICK, "--save-station", 1, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


def test_the_same_command_line_resumes_from_another_working_folder(run_with_all_epochs, data, tmp_path, monkeypatch):
    stopped = stopped_after_an_epoch(run_with_all_epochs, tmp_path / "stopped")
    monkeypatch.chdir(tmp_path)
    result = ftrain_command("fit", "--data", data, *QUICK, "--resume", "stopped", "--workers", "1")
    assert result.exit_code == 0, result.output
    whole, resumed = params_of(run_with_all_epochs), params_of(stopped)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    config = json.loads((stopped / "config.json").read_text())
    assert config["settings"]["workers"] == 1
    assert config["resumed"][0]["changes"] == []


def test_moved_data_are_the_same_data(run_with_all_epochs, data, tmp_path):
    stopped = stopped_after_an_epoch(run_with_all_epochs, tmp_path / "stopped")
    shutil.copytree(data, tmp_path / "elsewhere")
    result = ftrain_command("fit", "--resume", stopped, "--data", tmp_path / "elsewhere")
    assert result.exit_code == 0, result.output
    assert json.loads((stopped / "config.json").read_text())["settings"]["val_dir"] == str(tmp_path / "elsewhere/val")


def test_resuming_with_changed_data_needs_override(run_with_all_epochs, data, tmp_path):
    stopped = stopped_after_an_epoch(run_with_all_epochs, tmp_path / "stopped")
    shutil.copytree(data, tmp_path / "changed")
    (tmp_path / "changed" / "train" / "red" / "0.png").unlink()
    (tmp_path / "changed" / "train" / "blue" / "0.png").rename(tmp_path / "changed" / "train" / "blue" / "7.png")
    arguments = ("fit", "--resume", stopped, "--data", tmp_path / "changed")
    refused(2, '"blue" has images of other names or sizes, "red" had 6 images, has 5. Undo the changes,', *arguments)
    result = ftrain_command(*arguments, "--override")
    assert result.exit_code == 0, result.output
    config = json.loads((stopped / "config.json").read_text())
    assert '"red" had 6 images, has 5' in config["resumed"][0]["changes"][0]
    assert config["data"]["train"]["images"] == 17


def test_save_station_keeps_every_epoch_from_there(data, tmp_path):
    arguments = [*QUICK, "--epochs", "4", "--save-station", "2", "--out", tmp_path / "run"]
    result = ftrain_command("fit", "--data", data, *arguments)
    assert result.exit_code == 0, result.output
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert {"step_00000008", "step_00000012", "step_00000016"} <= kept


def test_evaluate(run, data, tmp_path):
    result = ftrain_command("evaluate", run, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "metrics.json").read_text())
    rows = list(csv.reader((tmp_path / "confusion.csv").read_text().splitlines()))
    assert rows[0] == ["label \\ prediction", "blue", "green", "red"]
    counts = np.array([[int(cell) for cell in row[1:]] for row in rows[1:]])
    assert counts.sum(axis=1).tolist() == [3, 3, 3]
    assert document["accuracy"] == pytest.approx(counts.trace() / 9)
    assert document["classes"]["red"]["recall"] == pytest.approx(counts[2, 2] / 3)
    assert is_png(tmp_path / "confusion.png")
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max((line["val"] for line in logged if line["kind"] == "epoch"), key=lambda val: val["accuracy"])
    assert document["loss"] == pytest.approx(best["loss"], rel=1e-6)
    assert "on 9 images" in ftrain_command("evaluate", run, "--data", data, "--out", tmp_path).output


def test_predict(run, data):
    files = [data / "val" / "red" / "0.png", data / "val" / "blue"]
    result = CliRunner().invoke(app, ["predict", str(run), *map(str, files), "--json", "--top", "2"])
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)
    assert [Path(answer["image"]).name for answer in answers] == ["0.png", "0.png", "1.png", "2.png"]
    assert all(len(answer["classes"]) == 2 for answer in answers)
    assert all(0.0 <= c["probability"] <= 1.0 for answer in answers for c in answer["classes"])
    table = CliRunner().invoke(app, ["predict", str(run), str(data / "val" / "*" / "1.png"), "--csv", "--top", "3"])
    rows = list(csv.DictReader(table.stdout.splitlines()))
    assert len(rows) == 9
    assert sum(float(row["probability"]) for row in rows[:3]) == pytest.approx(1.0, abs=1e-5)


def test_predict_names_bad_images_and_continues(run, data, tmp_path):
    shutil.copy(data / "val" / "red" / "0.png", tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "folder").mkdir()
    shutil.copy(data / "val" / "red" / "1.png", tmp_path / "folder" / "also.png")
    result = CliRunner().invoke(app, ["predict", str(run), str(tmp_path / "*")])
    assert result.exit_code == 65
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        str(tmp_path / "folder" / "also.png"),
        str(tmp_path / "good.png"),
    ]
    assert f"cannot read the image {tmp_path / 'bad.png'}" in result.stderr


def test_predict_names_every_bad_image_and_counts_other_files(run, data, tmp_path):
    shutil.copytree(data / "val" / "red", tmp_path / "new" / "deep")
    for name in ("1.png", "deep/2.png"):
        (tmp_path / "new" / name).write_text("nothing")
    for name in ("a.pdf", "deep/b.pdf", "deep/c.mov", "Thumbs.db"):
        (tmp_path / "new" / name).write_text("nothing")
    for names in ([tmp_path / "new"], [f"{tmp_path}/new/**"], [tmp_path / "new", tmp_path / "new" / "deep" / "0.png"]):
        result = CliRunner().invoke(app, ["predict", str(run), *map(str, names)])
        assert result.exit_code == 65
        assert [Path(line.split(":")[0]).name for line in result.stdout.splitlines()] == ["0.png", "1.png"]
        assert "skipped: 2 .pdf, 1 .mov\n" in result.stderr
        *_, first, second, last = result.stderr.splitlines()
        assert first.startswith(f"cannot read the image {tmp_path}/new/1.png: it is not a JPEG")
        assert second.startswith(f"cannot read the image {tmp_path}/new/deep/2.png: it is not a JPEG")
        assert last == "ftrain: 2 of 4 images cannot be read"
    refused(
        2, "matches no image; expected an image file, a folder of images or a glob", "predict", run, tmp_path / "no"
    )
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.pdf").write_text("nothing")
    refused(2, "a folder of images or a glob pattern; found 1 .pdf", "predict", run, tmp_path / "others")


def test_heic_photographs_are_used(run, data, tmp_path, monkeypatch):
    pillow_heif.register_heif_opener()
    for split in ("train", "val"):
        for path in sorted((data / split).rglob("*.png")):
            target = tmp_path / path.relative_to(data).with_suffix(".heic" if split == "train" else ".avif")
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                image.save(target)
    (tmp_path / "val" / "red" / "notes.pdf").write_text("nothing")
    result = ftrain_command("fit", "--data", tmp_path, *QUICK, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "skipped: 1 .pdf\n" in result.output
    assert ftrain_command("predict", run, tmp_path / "train").exit_code == 0
    monkeypatch.setattr(heif, "is_installed", lambda: False)
    shutil.copytree(data / "train", tmp_path / "train", dirs_exist_ok=True)
    result = ftrain_command("fit", "--data", tmp_path, *QUICK, "--dry-run")
    assert result.exit_code == 0, result.output
    install = "(reading .heic files needs pillow-heif, an extra: `pip install '.[heif]'`)"
    assert f"skipped: 18 .heic, 1 .pdf {install}\n" in result.output
    result = ftrain_command("predict", run, tmp_path / "train" / "red" / "0.heic")
    assert result.exit_code == 65
    assert "0.heic: reading .heic files needs pillow-heif, an extra: `pip install '.[heif]'`\n" in result.output


def test_names_that_are_neither_utf8_nor_formulas(data, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "draw_curves", curves.draw_curves)
    images = tmp_path / "images"
    shutil.copytree(data, images)
    for split in ("train", "val"):
        (images / split / "red").rename(images / split / os.fsdecode(b"caf\xe9 $_^$"))
    folder = tmp_path / os.fsdecode(b"r\xe9n$_^$")
    result = ftrain_command("fit", "--data", images, *QUICK, "--epochs", 1, "--out", folder)
    assert result.exit_code == 0, result.output
    assert is_png(folder / "curves.png")
    assert "r\\xe9n$_^$" in result.output
    result = ftrain_command("evaluate", folder)
    assert result.exit_code == 0, result.output
    assert "caf\\xe9 $_^$" in result.output
    result = CliRunner().invoke(app, ["predict", str(folder), str(images / "val"), "--csv"])
    assert result.exit_code == 0, result.output
    assert b"caf\xe9 $_^$" in result.stdout_bytes


def test_info(run):
    result = ftrain_command("info", run)
    assert result.exit_code == 0
    assert "2 of 2 epochs" in result.output
    assert MODEL in result.output


def test_dry_run_keeps_nothing(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = ftrain_command("fit", "--data", data, *QUICK, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "dry run: shufflenet_v2_x0_5 at 32 px, batch 4, on cpu; one step gave loss " in result.output
    assert list(tmp_path.iterdir()) == []


def test_the_default_batch_is_no_larger_than_the_data(data):
    result = ftrain_command("fit", "--data", data, "--model", MODEL, "--workers", 0, "--device", "cpu", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "shufflenet_v2_x0_5 at 32 px, batch 18, on cpu" in result.output


def test_data_of_the_working_folder_is_used(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(data)
    result = ftrain_command("fit", *QUICK, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "sample" not in result.output


def test_flags_override_the_config_file(data, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('batch-size = 4\nlr = 0.25\noptimizer = "sgd"\nmean = [0.5, 0.5, 0.5]\n')
    out = tmp_path / "run"
    arguments = ["--model", MODEL, "--epochs", 1, "--device", "cpu", "--workers", 0, "--lr", 0.5, "--out", out]
    result = ftrain_command("fit", "--data", data, "--config", config, *arguments)
    assert result.exit_code == 0, result.output
    settings = json.loads((out / "config.json").read_text())["settings"]
    assert (settings["batch_size"], settings["lr"], settings["optimizer"]) == (4, 0.5, "sgd")
    assert settings["mean"] == [0.5, 0.5, 0.5]


def test_weights_from_a_file_with_another_head(data, tmp_path):
    network = ftrain.models.build(MODEL, classes=7, image_size=32, seed=5)
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(network.state_dict(), weights)
    out = tmp_path / "run"
    result = ftrain_command("fit", "--data", data, *QUICK, "--epochs", 1, "--weights", weights, "--out", out)
    assert result.exit_code == 0, result.output
    assert (
        "skipped 2 (fc.bias: its shape is [7] instead of [3], fc.weight: its shape is [7, 1024] instead of [3, 1024])"
        in result.output
    )
    report = json.loads((out / "weights.json").read_text())
    assert report["at_random"] == ["fc.weight", "fc.bias"]
    assert "conv1.0.weight" in report["loaded"]


def test_weights_of_another_network(data, tmp_path):
    network = ftrain.models.build(MODEL, classes=3, image_size=32, seed=5)
    tensors = network.state_dict()
    fit = ("fit", "--data", data, *QUICK, "--epochs", 1, "--weights", tmp_path / "weights.safetensors")

    def saved(fraction):
        names = list(tensors)[: round(fraction * len(tensors))]
        safetensors.torch.save_file({name: tensors[name] for name in names}, tmp_path / "weights.safetensors")

    saved(0.4)
    refused(2, f"--weights {tmp_path / 'weights.safetensors'} are not those of {MODEL}: loaded ", *fit)
    saved(0.75)
    result = ftrain_command(*fit, "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert "warning: 25% of the network's tensors are not in these weights" in result.output


def refused(code, message, *arguments):
    result = ftrain_command(*arguments)
    text = " ".join(result.output.replace("│", " ").split())
    assert message in text, text
    assert result.exit_code == code
    assert "Traceback" not in text


def test_usage_errors(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit = ("fit", "--data", data, "--device", "cpu", "--workers", 0)
    refused(2, "No such option: --modle", "fit", "--modle", "resnet18")
    refused(2, "--model", "fit", "--modle", "resnet18")
    refused(2, "the closest names are resnet34", *fit, "--model", "resnet33")
    refused(2, "--lr must be a number > 0; got -1.0", *fit, "--lr", "-1")
    refused(2, "--epochs must be an integer >= 1; got 0", *fit, "--epochs", 0)
    refused(
        2,
        f"--batch-size is 19, but {data}/train has only 18 images; use a batch size of at most 18",
        *fit,
        "--batch-size",
        19,
    )
    refused(2, "--device must be auto, cpu, cuda, cuda:N or mps; got 'tpu'", *fit, "--device", "tpu")
    refused(2, f"no such folder: {tmp_path}/nowhere", "fit", "--train-dir", "nowhere", "--val-dir", data / "val")
    refused(2, "--data is nowhere, which does not exist", "fit", "--data", "nowhere")
    refused(2, "cifar10", "fit", "--dataset", "cifar11")
    refused(
        2, "give either --dataset, or --train-dir", "fit", "--dataset", "mnist", "--train-dir", "a", "--val-dir", "b"
    )
    refused(2, "--train-dir and --val-dir must be given together", "fit", "--train-dir", data / "train")
    refused(2, "--resume must be the folder of a run, or auto; there is no run in", "fit", "--resume", tmp_path)
    refused(
        2,
        "vit_b_16 needs images whose side is a multiple of 16 px, but --image-size is 40; use 32 or 48",
        *fit,
        *QUICK,
        "--model",
        "vit_b_16",
        "--image-size",
        40,
    )
    (tmp_path / "bad.toml").write_text("batch_sise = 3\n")
    refused(2, "there is no setting 'batch_sise'; did you mean 'batch_size'?", *fit, "--config", "bad.toml")
    (tmp_path / "worse.toml").write_text("batch_size = \n")
    refused(2, "cannot be read as TOML", *fit, "--config", "worse.toml")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    refused(2, "full is not empty", *fit, *QUICK, "--out", "full")
    refused(2, "full is not empty", *fit, *QUICK, "--out", "full", "--dry-run")
    refused(2, "--out must be a folder; full/thesis.txt is a file", *fit, *QUICK, "--out", "full/thesis.txt")
    refused(2, "there is no weights file no.pth", *fit, *QUICK, "--weights", "no.pth", "--out", "new")
    refused(2, "there is no weights file ~nosuchuser/no.pth", *fit, *QUICK, "--weights", "~nosuchuser/no.pth")
    refused(2, "--batch-size 1 is too small for resnet18", *fit, "--model", "resnet18", "--batch-size", 1)
    refused(
        2,
        "a batch must have equally many examples for each of its 3 parts, which follow from --accumulate 3; got "
        "--batch-size 4",
        *fit,
        *QUICK,
        "--accumulate",
        3,
    )
    refused(
        2,
        "--batch-size 4 in 4 parts is too small for resnet18 at --image-size 32",
        *fit,
        *QUICK,
        "--model",
        "resnet18",
        "--accumulate",
        4,
    )
    refused(2, "--warmup-epochs must be less than --epochs; got 2 of 2 epochs", *fit, *QUICK, "--warmup-epochs", 2)
    refused(2, "--override is for a run that resumes; give it with --resume RUN", *fit, "--override")
    refused(2, "--out is for a new run", *fit, "--resume", "full", "--out", "new")
    (tmp_path / "range.toml").write_text("epochs = 0\n")
    refused(2, "--config range.toml: --epochs must be an integer >= 1; got 0", *fit, "--config", "range.toml")
    for text, message in (
        (
            "7",
            "cannot read full/config.json: it is not a JSON object, and no checkpoint has a copy of it",
        ),
        (
            '{"settings": {}}',
            "cannot read full/config.json: it is damaged: its checksum does not match, and no checkpoint has",
        ),
        (sealed.dump({"settings": {}}).decode(), "it lacks asked, command, device, versions, data, classes"),
    ):
        (tmp_path / "full" / "config.json").write_text(text)
        refused(65, message, "info", "full")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_cuda_device(data):
    refused(2, "--device cuda is not available: torch finds no CUDA device", "fit", "--data", data, "--device", "cuda")


def test_data_errors(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    val = ("--val-dir", data / "val")
    make_images(tmp_path / "strange" / "train", 4)
    (tmp_path / "strange" / "train" / "red").rename(tmp_path / "strange" / "train" / "rot")
    refused(65, 'the class folder "red"', "fit", "--train-dir", "strange/train", *val)
    (tmp_path / "empty").mkdir()
    refused(65, f"no class folders in {tmp_path}/empty", "fit", "--train-dir", "empty", *val)
    (tmp_path / "one" / "cat").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "one" / "cat" / "a.png")
    refused(65, f"only one class folder in {tmp_path}/one", "fit", "--train-dir", "one", *val)
    (tmp_path / "one" / "dog").mkdir()
    refused(65, 'no images in the class folder "dog"', "fit", "--train-dir", "one", *val)
    make_images(tmp_path / "broken", 4)
    (tmp_path / "broken" / "red" / "2.png").write_bytes(b"no image")
    arguments = ["--train-dir", "broken", *val, *QUICK, "--workers", 2, "--out", "run"]
    refused(65, f"cannot read the image {tmp_path}/broken/red/2.png", "fit", *arguments)


def test_help_does_not_import_torch():
    code = (
        "import sys; from ftrain_cli.main import app\n"
        "try: app(['fit', '--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"}
    )
    assert result.stdout.splitlines()[-1] == "False"
    assert "--save-station" in result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell):
    code = "from ftrain_cli.main import app; app(prog_name='ftrain')"
    environment = {**os.environ, "_FTRAIN_COMPLETE": f"complete_{shell}"}
    asked = {"COMP_WORDS": "ftrain fit --save", "COMP_CWORD": "2", "_TYPER_COMPLETE_ARGS": "ftrain fit --save"}
    asked |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**environment, **asked}
    )
    assert "--save-station" in result.stdout
    assert "--epochs" not in result.stdout


def test_plain_lines_if_the_output_is_not_a_terminal(data, tmp_path):
    result = ftrain_command("fit", "--data", data, *QUICK, "--out", tmp_path / "run")
    lines = result.stdout.splitlines()
    assert lines[0] == f"run: {tmp_path / 'run'}"
    assert lines[1].startswith(
        "shufflenet_v2_x0_5 (0.3 M parameters) on 18 images of 3 classes, 9 for validation; 32 px"
    )
    assert lines[2] == (
        "training starts from random weights; --weights DEFAULT starts from pretrained ones, which usually gives a "
        "better network in fewer epochs"
    )
    assert [line.split("  ")[0] for line in lines[3:5]] == ["epoch 1/2", "epoch 2/2"]
    assert lines[5].startswith("done: validation accuracy ")
    assert "\x1b" not in result.stdout


def test_debug_shows_the_traceback(tmp_path):
    result = ftrain_command("--debug", "fit", "--data", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.output and "SettingsError: " in result.output
    result = ftrain_command("fit", "--data", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EACCES, 73), (errno.EROFS, 73), (errno.ENOSPC, 74), (errno.EIO, 74)]
)
def test_the_exit_codes_of_folders_that_cannot_be_written(data, tmp_path, monkeypatch, number, code):
    def fail(run):
        raise OSError(number, os.strerror(number), str(run.path))

    monkeypatch.setattr(ftrain.run.folder, "write", fail)
    out = tmp_path / "run"
    refused(code, f"{os.strerror(number)}: {out}", "fit", "--data", data, *QUICK, "--out", out)


def test_a_closed_pipe_ends_the_command_silently():
    # As if the versions were those of the table: with others, a note on standard error says so.
    code = "from ftrain.models import table; table.installed = lambda library: table.read().versions[library]; "
    code += "from ftrain_cli.main import app; app(prog_name='ftrain')"
    command = [sys.executable, "-c", code, "models"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr.strip() == ""
