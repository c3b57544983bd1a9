"""A run with a network of timm, from its weights to its export."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

import ftrain
from ftrain.disk import checkpoint
from ftrain.run.folder import RunFolder

pytestmark = pytest.mark.usefixtures("without_curves")

SETTINGS = {"model": "timm/Test-ViT", "image_size": 32, "epochs": 2, "batch_size": 4, "workers": 0, "device": "cpu"}
SETTINGS |= {"drop_path": 0.2, "dropout": 0.3, "cache": "none", "progress": False, "compile": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for name in ("even", "odd"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (60, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    safetensors.torch.save_file(timm.create_model("test_vit", num_classes=7).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def run(data, weights, tmp_path_factory):
    return ftrain.fit(data=data, weights=weights, out=tmp_path_factory.mktemp("runs") / "run", **SETTINGS)


def last_state(folder):
    return (checkpoint.find(Path(folder) / "checkpoints")[-1] / "state.safetensors").read_bytes()


def test_what_is_recorded(run, weights):
    config = json.loads((Path(run.folder) / "config.json").read_text())
    settings = config["settings"]
    assert settings["model"] == "timm/test_vit" and settings["weights"] == str(weights)
    assert (settings["mean"], settings["std"]) == ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    assert (settings["interpolation"], settings["crop_fraction"]) == ("bicubic", 0.95)
    assert (settings["dropout"], settings["drop_path"], settings["init"]) == (0.3, 0.2, "small-head")
    assert config["versions"]["timm"] == timm.__version__
    report = json.loads((Path(run.folder) / "weights.json").read_text())
    assert report["at_random"] == ["head.weight", "head.bias"]


def test_a_run_resumes_to_the_same_bits_and_reopens(run, data, weights, tmp_path):
    stops = iter([False] * 5 + [True] * 9)
    options = {name: value for name, value in SETTINGS.items() if name != "progress"}
    list(ftrain.events(data=data, weights=weights, out=tmp_path / "run", stop=lambda: next(stops), **options))
    assert len(checkpoint.find(tmp_path / "run" / "checkpoints")) > 0
    assert hashlib.sha256(last_state(tmp_path / "run")).digest() != hashlib.sha256(last_state(run.folder)).digest()
    ftrain.fit(resume=tmp_path / "run", progress=False)
    assert last_state(tmp_path / "run") == last_state(run.folder)
    assert ftrain.open_run(run.folder, device="cpu").evaluate().metrics == run.evaluate().metrics


def test_prediction_prepares_images_as_evaluation_does(run, data):
    paths = sorted((data / "val").rglob("*.png"))
    predicted = [row["classes"][0]["class"] for row in run.predict(paths)]
    confusion = run.evaluate().confusion
    assert predicted.count("even") == int(confusion[:, 0].sum())
    # The square at the centre is 0.95 of the shorter side, scaled bicubically.
    with Image.open(paths[0]) as image:
        square = image.resize((32, 32), Image.Resampling.BICUBIC, box=(1.25, 6.25, 48.75, 53.75))
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in (run.spec.mean, run.spec.std))
    expected = torch.softmax(run.module()((pixels / 255 - mean) / std), dim=-1)[0].tolist()
    found = {each["class"]: each["probability"] for each in run.predict(paths[:1])[0]["classes"]}
    assert [found["even"], found["odd"]] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["safetensors", pytest.param("onnx", marks=pytest.mark.long)])
def test_export(run, kind, tmp_path):
    from ftrain.run.export import export

    target = tmp_path / f"network.{kind}"
    count, difference = export(run.restored(), run.images(), kind, target)
    assert count == 6 and difference < 1e-3
    if kind == "onnx":
        facts = onnxruntime.InferenceSession(target).get_modelmeta().custom_metadata_map
    else:
        with safetensors.safe_open(target, framework="pt") as file:
            facts = file.metadata()
        network = timm.create_model("test_vit", num_classes=2, img_size=32)
        network.load_state_dict(safetensors.torch.load_file(target))
    assert (facts["model"], facts["interpolation"], facts["centre_fraction"]) == ("timm/test_vit", "bicubic", "0.95")


def test_the_default_folder_is_named_after_the_network(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ftrain.fit(data=data, **{**SETTINGS, "epochs": 1})
    assert Path(run.folder).parent == Path("runs/timm/test_vit")


def test_a_run_of_an_earlier_version_with_weights_of_torchvisions_keeps_its_preprocessing(run):
    recorded = dict(run.config["settings"], model="resnet50", weights="IMAGENET1K_V2", crop_scale=0.35)
    for name in ("interpolation", "crop_fraction", "init", "zero_init_residual", "dropout", "drop_path"):
        del recorded[name]
    found = RunFolder(Path("run"), {"settings": recorded}).settings
    assert (found.interpolation, found.crop_fraction) == ("bilinear", 0.875)
    assert (found.init, found.zero_init_residual, found.dropout, found.drop_path) == ("default", False, None, None)
