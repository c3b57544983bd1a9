"""Runs on tables of images and labels, with one label per image or several."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import platformdirs
import pytest
import safetensors
import tiny_runs
import torch
from click.testing import Result
from ftrain_cli.main import app
from PIL import Image
from typer.testing import CliRunner

import ftrain
from ftrain.data.pixels import val_pixels
from ftrain.disk import manifest
from ftrain.errors import DataError, SettingsError
from ftrain.run.candidate import random_batch
from ftrain.run.events import StepTaken
from ftrain.run.locate import locate, to_end
from ftrain.run.resolve import resolve
from ftrain.run.settings import Settings

pytestmark = pytest.mark.usefixtures("without_curves")

NAMES = ("dark", "light", "red")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen images and tables of them."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    rows = []
    for number in range(18):
        level, red = (40, 200)[number % 2], number % 3 == 0
        pixels = np.clip(noise.normal(level, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
        if red:
            pixels[..., 1:] //= 4
        Image.fromarray(pixels).save(folder / f"{number}.png")
        labels = [NAMES[number % 2]] * (number != 5) + ["red"] * red
        split = "test" if number == 17 else "val" if number % 4 == 3 else "train"
        rows.append([f"{number}.png", "|".join(labels), NAMES[number % 2], split, 1 + number % 3, f"g{number // 2}"])
    tables = {
        "several": {"path": 0, "labels": 1, "split": 3},
        "several, weighted": {"path": 0, "labels": 1, "split": 3, "weight": 4},
        "several, to split": {"path": 0, "labels": 1, "group": 5},
        "one": {"path": 0, "label": 2, "split": 3, "weight": 4},
        "one, to split": {"path": 0, "label": 2, "weight": 4},
    }
    for name, columns in tables.items():
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([columns, *([row[at] for at in columns.values()] for row in rows)])
    return folder


def module(classes: int = 3) -> torch.nn.Module:
    return tiny_runs.network("", classes=classes, image_size=8, seed=0)


QUICK: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 4,
    "image_size": 8,
    "crop_scale": 0.5,
    "lr": 0.01,
    "workers": 0,
    "device": "cpu",
    "compile": False,
    "cache": "none",
    "log_every": 3,
    "checkpoint_every": 2,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "several labels": {"data": "several.csv"},
    "several labels, everything at once": {
        "data": "several, weighted.csv",
        "loss": "focal",
        "mixup": 0.4,
        "cutmix": 1.0,
        "ema_decay": 0.9,
        "accumulate": 2,
        "clip_norm": 1,
    },
    "several labels, split automatically": {"data": "several, to split.csv", "head_epochs": 1, "warmup_epochs": 0},
    "one label": {"data": "one.csv", "class_weights": "balanced"},
    "one label, drawn equally often": {"data": "one.csv", "sampler": "balanced"},
    "one label, split automatically": {"data": "one, to split.csv"},
    "several labels, on features": {
        "data": "several, weighted.csv",
        "freeze": "backbone",
        "crop_scale": 1.0,
        "flip": False,
    },
}


def start(root: Path, out: Path, stop_after: int, **settings: Any) -> None:
    """Trains until a step has been taken."""
    last = 0
    chosen = {**QUICK, **settings, "data": str(root / settings["data"])}
    net = module(2 if settings["data"] in ("one.csv", "one, to split.csv", "labels.csv") else 3)

    def stop() -> bool:
        return last >= stop_after

    with closing(ftrain.events(model=net, out=str(out), resume="auto", stop=stop, **chosen)) as happening:
        for event in happening:
            if isinstance(event, StepTaken):
                last = event.step


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_resumes_to_the_same_bits_after_any_step_with_any_workers(name: str, root: Path, tmp_path: Path) -> None:
    settings = SETTINGS[name]
    start(root, tmp_path / "whole", 99, **settings)
    expected = tiny_runs.result(tmp_path / "whole")
    steps = ftrain.open_run(tmp_path / "whole", model=module(2 if "one" in name else 3)).spec.total_steps
    assert steps > 5
    for step in range(1, steps):
        folder = tmp_path / str(step)
        start(root, folder, step, **settings)
        start(root, folder, 99, **{**settings, "workers": 2 if step == 2 else 0})
        assert tiny_runs.result(folder) == expected, step


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with tiny_runs.tiny_network():
        words = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items() if name != "compile"]
        result = command(
            "fit",
            "--model",
            "resnet18",
            "--no-compile",
            "--data",
            root / "several, weighted.csv",
            "--out",
            folder,
            *words,
            "--epochs",
            6,
            "--keep-last",
            9,
        )
        assert result.exit_code == 0, result.output
        yield folder


def command(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_settings_and_the_output_of_a_run(run: Path, root: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert {name: config["settings"][name] for name in ("task", "loss", "best_by", "data")} == {
        "task": "multi-label",
        "loss": "binary-cross-entropy",
        "best_by": "map",
        "data": str(root / "several, weighted.csv"),
    }
    assert config["classes"] == ["dark", "light", "red"]
    assert {name: part["images"] for name, part in config["data"]["train"]["classes"].items()} == {
        "dark": 9,
        "light": 3,
        "red": 4,
    }
    assert config["data"]["train"]["images"] == 13
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epoch = [line for line in lines if line["kind"] == "epoch"][-1]
    assert set(epoch["val"]) == {"loss", "accuracy", "count", "nonfinite", "map", "macro_f1", "micro_f1"}
    assert epoch["val"]["count"] == pytest.approx(4.0)
    assert {"loss", "accuracy", "micro_f1"} <= set(epoch["train"])
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "validation mAP" in command("info", run).stdout


def test_thresholds_are_found_on_the_validation_images_of_an_epoch(run: Path) -> None:
    opened = ftrain.open_run(run, device="cpu")
    document = manifest.read(opened.restored().checkpoint)
    assert list(opened.thresholds) == ["dark", "light", "red"]
    assert list(opened.thresholds.values()) == document["thresholds"]
    assert all(0.0 < threshold < 1.0 for threshold in document["thresholds"])
    result = opened.evaluate(workers=0)
    for name in ("loss", "accuracy", "map", "macro_f1", "micro_f1"):  # as when the epoch ended
        assert result.metrics[name] == pytest.approx(document["val"][name], rel=1e-6)
    assert result.confusion is None
    assert result.class_scores["threshold"].tolist() == document["thresholds"]
    assert result.class_scores["images"].sum() == pytest.approx(4.0 * 1.5, rel=0.5)


def test_the_best_epoch_is_that_of_the_largest_map(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["val"]["map"] for line in lines if line["kind"] == "epoch"}
    best = int(ftrain.open_run(run, device="cpu").restored().checkpoint.name.removeprefix("step_"))
    assert scores[best] == max(scores.values())


def test_within_an_epoch_the_thresholds_are_those_of_the_epoch_before(root: Path, tmp_path: Path) -> None:
    def opened(step: int) -> ftrain.Run:
        start(root, tmp_path / str(step), step, data="several.csv")
        return ftrain.open_run(tmp_path / str(step), model=module(), device="cpu")

    assert opened(2).restored(last=True).thresholds == (0.5, 0.5, 0.5)
    found = opened(6)
    last = found.restored(last=True)
    assert last.checkpoint.name == "step_00000006"
    before = manifest.read(last.checkpoint.with_name("step_00000004"))
    assert list(last.thresholds) == before["thresholds"]


def test_evaluate_writes_the_scores_of_each_class(run: Path, root: Path, tmp_path: Path) -> None:
    result = command("evaluate", run, "--workers", 0, "--device", "cpu", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[1].split() == ["class", "ap", "precision", "recall", "f1", "threshold", "images"]
    assert [line.split()[0] for line in lines[2:]] == ["dark", "light", "red", "mean", "wrote"]
    assert lines[-1] == f"wrote metrics.json to {tmp_path / 'out'}"
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(document["classes"]) == ["dark", "light", "red"]
    assert list(document["classes"]["red"]) == ["ap", "precision", "recall", "f1", "threshold", "images"]
    own = command("evaluate", run, "--data", root / "several, weighted.csv", "--workers", 0, "--device", "cpu")
    assert "on 4 images in" in own.output
    other = command("evaluate", run, "--data", root / "several, to split.csv", "--workers", 0, "--device", "cpu")
    assert "on 18 images in" in other.output
    wrong = command("evaluate", run, "--data", root / "nothing.csv")
    assert wrong.exit_code == 65
    assert "cannot read the table" in wrong.output


def test_predict_lists_the_labels_that_apply(run: Path, root: Path) -> None:
    opened = ftrain.open_run(run, device="cpu")
    images = [str(root / f"{number}.png") for number in range(18)]
    every = opened.predict(images, top=3)
    assert all(len(each["classes"]) == 3 for each in every)
    expected = [
        [each for each in document["classes"] if each["probability"] >= opened.thresholds[each["class"]]]
        for document in every
    ]
    assert [document["classes"] for document in opened.predict(images)] == expected
    counts = {len(each) for each in expected}
    assert len(counts) > 1
    result = command("predict", run, *images, "--csv", "--device", "cpu")
    rows = list(csv.reader(result.stdout.splitlines()))[1:]
    assert len(rows) == sum(max(1, len(each)) for each in expected)
    for document in json.loads(command("predict", run, *images, "--json", "--device", "cpu").stdout):
        found = [row for row in rows if row[0] == document["image"]]
        if document["classes"]:
            assert [(row[2], row[3]) for row in found] == [
                (each["class"], f"{each['probability']:.6f}") for each in document["classes"]
            ]
        else:
            assert found == [[document["image"], "", "", ""]]
    lines = command("predict", run, *images, "--device", "cpu").stdout.splitlines()
    assert [line.endswith(": no label") for line in lines] == [not each for each in expected]


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_an_exported_network_has_thresholds(run: Path, kind: str, tmp_path: Path) -> None:
    target = tmp_path / "network"
    result = command("export", run, "--format", kind, "--out", target)
    assert result.exit_code == 0, result.output
    opened = ftrain.open_run(run, device="cpu")
    if kind == "safetensors":
        with safetensors.safe_open(target, "pt") as file:
            facts = file.metadata()
    else:
        session = onnxruntime.InferenceSession(target.read_bytes(), providers=["CPUExecutionProvider"])
        facts = session.get_modelmeta().custom_metadata_map
        images = opened.images()
        pixels = np.stack([val_pixels(images, position) for position in range(4)])
        logits = session.run(["logits"], {"images": pixels})[0]
        found = 1.0 / (1.0 + np.exp(-logits.astype(np.float64))) >= json.loads(facts["thresholds"])
        names = [
            [each["class"] for each in document["classes"]]
            for document in opened.predict([images.val.image_name(position) for position in range(4)])
        ]
        assert [sorted(each) for each in names] == [[NAMES[label] for label in np.flatnonzero(row)] for row in found]
    assert facts["task"] == "multi-label"
    assert json.loads(facts["thresholds"]) == list(opened.thresholds.values())
    assert facts["output"] == "logits [batch, classes]; a class applies where sigmoid(logit) is at least its threshold"


def test_replay_check_and_preview_know_several_labels(run: Path, root: Path, tmp_path: Path) -> None:
    result = command("replay", run, "--step", 2, "--file", tmp_path / "batch.png")
    assert result.exit_code == 0, result.output
    assert "(dark|red)" in result.stdout
    assert ", F1 " in result.stdout
    result = command("data", "check", root / "several.csv", "--out", tmp_path / "check", "--workers", 0)
    assert result.exit_code == 0, result.output
    assert "train: 13 images of 3 classes, 3 to 9 images per class" in result.stdout
    assert "test: 1 images of" in result.stdout
    result = command("data", "preview", root / "several.csv", "--file", tmp_path / "preview.png")
    assert result.exit_code == 0, result.output
    result = command("data", "split", root / "several.csv", "--out", tmp_path / "split")
    assert result.exit_code == 2
    assert "several.csv is a table, and only a folder of class folders can be split into folders" in result.stderr


def test_one_label_per_image(root: Path, tmp_path: Path) -> None:
    start(root, tmp_path / "run", 99, data="one.csv")
    opened = ftrain.open_run(tmp_path / "run", model=module(2), device="cpu")
    assert (opened.spec.task, opened.spec.loss, opened.spec.best_by) == ("single-label", "cross-entropy", "accuracy")
    assert opened.thresholds == {}
    assert opened.evaluate(workers=0).confusion is not None
    assert len(opened.predict([root / "0.png"])[0]["classes"]) == 2


def test_what_a_table_says_of_splits(root: Path) -> None:
    found = to_end(locate(Settings(data=str(root / "several.csv"), val_fraction=0.3)))
    assert (len(found.train), len(found.val), found.settings.val_fraction) == (13, 4, 0.2)
    assert found.settings.data == str(root / "several.csv")
    assert found.notes == (
        f"1 image for testing in {root / 'several.csv'}, used neither for training nor for validation",
        "`val_fraction` has no effect, because the images are split already",
    )
    found = to_end(locate(Settings(data=str(root / "several, to split.csv"))))
    assert (len(found.train), len(found.val)) == (14, 4)
    assert found.notes[0] == (
        f"{root / 'several, to split.csv'} does not say which images are for validation, so they are split "
        "automatically: 14 images for training, 4 for validation (`val_fraction=0.2`)"
    )
    only_val = root / "only-val.csv"
    only_val.write_text("path,label,split\n0.png,x,val\n1.png,y,test\n")
    with pytest.raises(
        DataError, match=r'has no images for training; expected rows whose split is train, found only "va'
    ):
        to_end(locate(Settings(data=str(only_val))))


def test_a_table_that_has_changed_is_noticed(root: Path, tmp_path: Path) -> None:
    for name in ("0.png", "1.png", "2.png", "3.png"):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    table = tmp_path / "labels.csv"
    table.write_text("path,label,split,weight\n0.png,x,train,1\n1.png,y,train,2\n2.png,x,train,1\n3.png,y,val,1\n")
    start(tmp_path, tmp_path / "run", 1, data="labels.csv", batch_size=2)
    for row in ("0.png,x,train,3", "0.png,y,train,1", "0.png,x|y,train,1"):
        table.write_text(f"path,label,split,weight\n{row}\n1.png,y,train,2\n2.png,x,train,1\n3.png,y,val,1\n")
        with pytest.raises(SettingsError, match="the training images have changed since the run started: "):
            start(tmp_path, tmp_path / "run", 99, data="labels.csv", batch_size=2)
    table.write_text("path,label,split,weight\n3.png,y,val,1\n2.png,x,train,1\n1.png,y,train,2\n0.png,x,train,1\n")
    start(tmp_path, tmp_path / "run", 99, data="labels.csv", batch_size=2)  # the order of the rows does not matter


REFUSED = {
    "`loss=cross-entropy` is for one label per image": {"data": "several.csv", "loss": "cross-entropy"},
    "`best_by=macro` is for one label per image": {"data": "several.csv", "best_by": "macro"},
    "`class_weights` is for one label per image": {"data": "several.csv", "class_weights": "balanced"},
    "`sampler=balanced` is for one label per image": {"data": "several.csv", "sampler": "balanced"},
    "`logit_adjustment` is for one label per image": {"data": "several.csv", "logit_adjustment": 1.0},
    "`best_by=map` is for images that may have several labels": {"data": "one.csv", "best_by": "map"},
    "so `task=multi-label` cannot be done with them; it needs a table": {"data": "folders", "task": "multi-label"},
    "expected one label, because of `task=single-label`; found": {"data": "lists.jsonl", "task": "single-label"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_go_with_the_labels(message: str, root: Path, tmp_path: Path) -> None:
    for name in ("dark", "light"):
        (root / "folders" / name).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            image = Image.new("L", (8, 8), 40 * number + (name == "light"))
            image.save(root / "folders" / name / f"{number}.png")
    (root / "lists.jsonl").write_text('{"path": "0.png", "label": ["x", "y"]}\n')
    with pytest.raises((SettingsError, DataError), match=message):
        start(root, tmp_path / "run", 1, **REFUSED[message])


def test_arrays_of_zeros_and_ones(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    labels = np.stack([np.arange(12) % 2, np.arange(12) % 3 == 0], axis=1)
    settings = {**QUICK, "epochs": 1, "progress": False, "out": tmp_path / "run"}
    run = ftrain.fit(model=module(2), data=((pixels, labels), (pixels, labels)), **settings)
    assert run.spec.task == "multi-label"
    assert set(run.evaluate(workers=0).class_scores) == {"ap", "precision", "recall", "f1", "threshold", "images"}
    with pytest.raises(SettingsError, match=r"labels of shape \[N, C\] must be 0 or 1, whether each class applies"):
        ftrain.fit(model=module(2), data=((pixels, 2 * labels), (pixels, labels)), **settings)
    with pytest.raises(SettingsError, match="images must have one label each, or any number of them, in both splits"):
        ftrain.fit(
            model=module(2), data=((pixels, labels), (pixels, labels[:, 0])), **{**settings, "out": tmp_path / "b"}
        )


def test_labels_of_the_other_kind_are_refused_in_evaluation(run: Path, root: Path, tmp_path: Path) -> None:
    pixels, several = np.zeros((4, 8, 8, 3), np.uint8), np.eye(3, dtype=np.int64)[[0, 1, 2, 0]]
    opened = ftrain.open_run(run, device="cpu")
    with pytest.raises(SettingsError, match=r"run is multi-label.* must be 0 or 1 for each class, of shape \[N, C\]"):
        opened.evaluate((pixels, several.argmax(axis=1)), workers=0)
    for name in NAMES:
        (tmp_path / "folder" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "folder" / name / "1.png")
    result = opened.evaluate(tmp_path / "folder", workers=0)  # the label of each image is the name of its folder
    assert result.class_scores["images"].tolist() == [1.0, 1.0, 1.0]
    start(root, tmp_path / "one", 1, data="one.csv")
    single = ftrain.open_run(tmp_path / "one", model=module(2), device="cpu")
    with pytest.raises(SettingsError, match=r"run is single-label.* must be class numbers of shape \[N\]; .* \[4, 2\]"):
        single.evaluate((pixels, several[:, :2]), workers=0)


def test_evaluation_without_labels_and_with_weights(run: Path, root: Path, tmp_path: Path) -> None:
    """Numbers of images count images; what is not known is null in JSON."""
    (root / "none.csv").write_text("path,labels,weight\n0.png,,1\n1.png,,2.5\n2.png,,0\n")
    words = ["--data", root / "none.csv", "--workers", 0, "--device", "cpu", "--out", tmp_path / "out"]
    result = command("evaluate", run, *words)
    assert result.exit_code == 0, result.output
    assert "2 images" in result.stdout
    text = (tmp_path / "out" / "metrics.json").read_text()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (document["count"], document["map"], document["classes"]["red"]["images"]) == (2.0, None, 0.0)
    start(root, tmp_path / "one", 1, data="one.csv")
    opened = ftrain.open_run(tmp_path / "one", model=module(2), device="cpu")
    single = opened.evaluate(workers=0)
    assert single.confusion is not None
    assert single.class_scores["images"].tolist() == single.confusion.sum(dim=1).tolist()
    assert single.metrics["count"] == 4.0
    val = opened.images().val
    first = opened.predict([root / path for path in val.paths], top=1)
    assert val.labels.tolist() == [1, 1, 1, 1]
    right = np.array([each["classes"][0]["class"] == "light" for each in first])
    assert single.class_scores["recall"][1].item() == pytest.approx(val.weights[right].sum() / val.weights.sum())


def test_notes_on_several_labels(root: Path) -> None:
    rows = ["0.png,x|y,train", "1.png,y,train", "2.png,,val", "3.png,,val"]
    (root / "unlabelled.csv").write_text("\n".join(["path,labels,split", *rows]))
    settings = Settings(model="resnet18", data=str(root / "unlabelled.csv"), label_smoothing=0.2, device="cpu")
    notes = resolve(settings)[0].notes
    assert "no validation image has a label, so mAP and F1 will not be known, nor the best epoch by them" in notes
    assert "`label_smoothing` has no effect with `loss=binary-cross-entropy`" in notes
    assert not any("may be chance" in note for note in notes)  # which would be of the accuracy


def test_a_pair_of_tables(root: Path, tmp_path: Path) -> None:
    (root / "train.csv").write_text("path,label\n0.png,x|y\n1.png,y\n2.png,x\n3.png,\n")
    (root / "val.csv").write_text("path,label\n4.png,x\n5.png,y\n")
    pair = root / "train.csv", root / "val.csv"
    run = ftrain.fit(model=module(2), data=pair, progress=False, out=tmp_path / "run", **{**QUICK, "epochs": 1})
    assert run.spec.task == "multi-label"
    assert run.evaluate(workers=0).metrics["count"] == 2.0
    with pytest.raises(DataError, match=r"row 5: 3\.png has no label"):
        ftrain.fit(model=module(2), data=pair, task="single-label", out=tmp_path / "other", **QUICK)


def test_a_random_batch_has_labels_of_the_run() -> None:
    spec = tiny_runs.spec(task="multi-label", loss="binary-cross-entropy", best_by="map")
    _, labels, weights = random_batch(spec)
    assert (labels.shape, labels.dtype, labels.sum(dim=1).tolist()) == ((3, 2), torch.float32, [1.0, 1.0, 1.0])
    assert weights.tolist() == [1.0, 1.0, 1.0]


def test_the_loss_and_the_metrics_may_be_your_own(root: Path, tmp_path: Path) -> None:
    def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return ((2.0 * labels - 1.0) * logits).mean(dim=-1)

    def hinge(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (1.0 - (2.0 * labels - 1.0) * logits).clamp_min(0.0).mean(dim=-1)

    settings = {**QUICK, "epochs": 1, "progress": False, "out": tmp_path / "run", "data": root / "several.csv"}
    run = ftrain.fit(model=module(), loss=hinge, metrics={"margin": margin}, **settings)
    found = run.evaluate(workers=0).metrics
    assert {"loss", "margin", "map"} <= set(found)
    assert found["loss"] >= 1.0 - found["margin"]


def test_a_flat_folder_with_a_table_names_the_option(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos" / "images").mkdir(parents=True)
    for number in range(2):
        (tmp_path / "photos" / "images" / f"{number}.png").write_bytes((root / f"{number}.png").read_bytes())
    (tmp_path / "photos" / "prices.csv").write_text("price,date\n")
    (tmp_path / "photos" / "train.csv").write_text("path,label\nimages/0.png,x\nimages/1.png,y\n")
    monkeypatch.chdir(tmp_path)
    ends = {
        "photos/images": "move the images of each class to a folder that is named after it; or train on the labels in "
        f"train.csv: --data {tmp_path}/photos/train.csv",
        "photos": "Put the images of each class in a folder of its own; or train on the labels in train.csv: --data "
        f"{tmp_path}/photos/train.csv",
    }
    for given, end in ends.items():
        result = command("fit", "--data", given, "--model", "resnet18")
        assert result.exit_code == 65
        assert " ".join(result.stderr.split()).endswith(end)
    monkeypatch.chdir(tmp_path / "photos" / "images")
    result = command("fit", "--data", ".", "--model", "resnet18")
    assert f"--data {tmp_path}/photos/train.csv" in result.stderr
    assert command("fit", "--data", "../train", "--model", "resnet18").exit_code == 2


def test_the_headline_and_the_lines_of_a_run(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ftrain.fit(model=module(), data=root / "several.csv", out=tmp_path / "run", **{**QUICK, "epochs": 1})
    shown = capsys.readouterr().out
    assert "on 13 images of 3 classes, any number per image, 4 for validation" in shown
    epoch = next(line for line in shown.splitlines() if line.startswith("epoch 1/1  train loss"))
    assert " F1 " in epoch
    assert " mAP " in epoch
    assert "done: validation mAP " in shown
