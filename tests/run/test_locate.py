"""Where the images of a run are, and runs on images that are split automatically."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import tiny_runs
from ftrain_cli.main import app
from PIL import Image
from signal_runs import command
from typer.testing import CliRunner

import ftrain
from ftrain.disk import checkpoint
from ftrain.errors import SettingsError
from ftrain.run.locate import Located, locate, to_end
from ftrain.run.settings import Settings

pytestmark = pytest.mark.usefixtures("without_curves")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: folder)


def fill(root: Path, count: int = 8, seed: int = 0) -> Path:
    """Images of noise in two classes."""
    noise = np.random.default_rng(seed)
    for name in ("even", "odd"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def located(**settings: object) -> Located:
    return to_end(locate(Settings(**settings)))


def places(found: Located) -> tuple[str | None, str | None, str | None]:
    return found.settings.data, found.settings.train_dir, found.settings.val_dir


def test_train_and_val_in_any_spelling(tmp_path: Path) -> None:
    for train, val in (("train", "val"), ("Train", "valid"), ("train", "VALIDATION"), ("TRAIN", "Test")):
        root = tmp_path / f"{train} {val}"
        fill(root / train)
        fill(root / val, count=2)
        found = located(data=str(root))
        assert places(found) == (None, str(root / train), str(root / val))
        assert (len(found.train), len(found.val)) == (16, 4)
        assert found.notes == ((f"validating on {root / val}",) if val == "Test" else ())


def test_of_several_validation_folders_one_is_used(tmp_path: Path) -> None:
    for name in ("train", "test", "valid", "validation"):
        fill(tmp_path / name)
    found = located(data=str(tmp_path))
    assert places(found)[2] == str(tmp_path / "valid")
    assert found.notes == (f"{tmp_path / 'validation'} is not used",)  # a test set is for later


def test_a_folder_of_classes_is_split(tmp_path: Path) -> None:
    fill(tmp_path / "photos")
    found = located(data=str(tmp_path / "photos"), seed=3)
    assert places(found) == (str(tmp_path / "photos"), None, None)
    assert (len(found.train), len(found.val)) == (12, 4)
    assert found.notes == (
        f"{tmp_path / 'photos'} has no val/ folder, so it is split automatically: 12 images for training, 4 for "
        "validation (`val_fraction=0.2`)",
    )
    assert to_end(locate(Settings(data=str(tmp_path / "photos"), seed=4))).val.fingerprint == found.val.fingerprint
    assert len(located(data=str(tmp_path / "photos"), val_fraction=0.5).val) == 8
    fill(tmp_path / "other" / "train")
    found = located(data=str(tmp_path / "other"))
    assert (places(found)[0], len(found.val)) == (str(tmp_path / "other"), 4)
    assert found.train.name == str(tmp_path / "other" / "train")


def test_the_folder_data_is_used_and_the_sample_only_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = located()
    assert found.train.classes[0] == "ankle-boot"
    assert found.notes[0].startswith("there is no ./data here: training on the Fashion-MNIST sample in ")
    fill(tmp_path / "data")
    assert located().train.classes == ("even", "odd")
    shutil.rmtree(tmp_path / "data")
    fill(tmp_path / "data" / "Train")
    fill(tmp_path / "data" / "valid")
    assert places(located()) == (None, str(tmp_path / "data" / "Train"), str(tmp_path / "data" / "valid"))
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "data").mkdir()
    with pytest.raises(ftrain.errors.DataError, match="no class folders in"):
        located()
    (tmp_path / "data").rmdir()
    (tmp_path / "data").write_text("")
    with pytest.raises(SettingsError, match="`data` must be a folder, or a table .*; data is a file"):
        located()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("photos/train", "`data` is photos/train, which is only a part of the images; beside it is photos/val; use "),
        (".", "`data` is ., which contains photos/ with train/ and val/; use `data=photos`"),
        ("photos/train/even", "`data` is photos/train/even, which is the folder of one class; use `data=photos`"),
        ("Photo", "`data` is Photo, which does not exist; did you mean `data=photos`?"),
        ("nothing", "`data` is nothing, which does not exist"),
        ("lonely", "`data` must contain train/ beside val/; there is no train/ in lonely"),
    ],
)
def test_the_right_folder_is_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, message: str
) -> None:
    fill(tmp_path / "photos" / "train")
    fill(tmp_path / "photos" / "val")
    fill(tmp_path / "lonely" / "val")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as caught:
        located(data=given)
    assert str(caught.value).startswith(message)


def test_a_fraction_without_effect_is_mentioned_and_not_recorded(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    fill(tmp_path / "val")
    found = located(data=str(tmp_path), val_fraction=0.3)
    assert found.notes == ("`val_fraction` has no effect, because the images are split already",)
    assert found.settings.val_fraction == 0.2
    with pytest.raises(SettingsError, match="give either a pair of images as `data`, or `val_fraction`; got both"):
        ftrain.fit(data=(tmp_path / "train", tmp_path / "val"), val_fraction=0.3)


def ftrain_command(*arguments: object) -> tuple[int, str]:
    with tiny_runs.tiny_network():
        found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return found.exit_code, " ".join(found.output.split())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    code, said = ftrain_command(*command(photos, folder), "--save-station", 1)
    assert code == 0, said
    assert "12 images for training, 4 for validation (--val-fraction 0.2)" in said
    return folder


def stopped_at(run: Path, target: Path, step: int) -> Path:
    shutil.copytree(run, target)
    for path in checkpoint.find(target / "checkpoints"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    return target


def test_the_split_is_recorded(run: Path, photos: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert (config["settings"]["data"], config["settings"]["val_fraction"]) == (str(photos), 0.2)
    assert {name: config["data"][name]["images"] for name in ("train", "val", "split")} == {
        "train": 12,
        "val": 4,
        "split": 16,
    }


@pytest.mark.parametrize(("step", "workers"), [(2, 0), (4, 1), (6, 2)])
def test_a_run_resumes_with_the_same_split(run: Path, tmp_path: Path, step: int, workers: int) -> None:
    code, said = ftrain_command("fit", "--resume", stopped_at(run, tmp_path / "run", step), "--workers", workers)
    assert code == 0, said
    assert tiny_runs.result(tmp_path / "run") == tiny_runs.result(run)


def test_the_recorded_split_is_used_even_if_images_would_be_compared_otherwise(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("images were compared")

    monkeypatch.setattr("ftrain.data.split.near_duplicates", fail)
    names = set()
    with tiny_runs.tiny_network():
        opened = ftrain.open_run(run)
        images = opened.images()
        names = {images.val.image_name(position) for position in range(len(images.val))}
        assert (len(names), opened.evaluate().metrics["count"]) == (4, 4)
        assert opened.evaluate(photos).metrics == opened.evaluate().metrics  # not of the images to train on
    code, said = ftrain_command("replay", run, "--step", 3)
    assert code == 0, said
    assert not any(f"{name} " in said for name in names)  # no validation image is in a training batch
    code, said = ftrain_command("export", run, "--out", tmp_path / "network.safetensors")
    assert "on 4 validation images its logits equal" in said
    assert ftrain_command("fit", "--resume", stopped_at(run, tmp_path / "run", 6))[0] == 0


def test_a_changed_folder_is_noticed(run: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    stopped = stopped_at(run, tmp_path / "run", 4)
    moved = stopped_at(run, tmp_path / "moved", 4)
    assert ftrain_command("fit", "--resume", moved, "--data", tmp_path / "photos")[0] == 0
    shutil.copy(photos / "even" / "0.png", tmp_path / "photos" / "even" / "8.png")
    code, said = ftrain_command("fit", "--resume", stopped, "--data", tmp_path / "photos")
    assert code == 2
    assert "cannot resume, because its result would change: the training images have changed since the run" in said
    code, said = ftrain_command("fit", "--resume", stopped, "--val-fraction", 0.4)
    assert code == 2
    assert "--val-fraction was 0.2, is 0.4; the training images have changed" in said
    code, said = ftrain_command("fit", "--resume", stopped, "--data", tmp_path / "photos", "--override")
    assert code == 0, said
    assert json.loads((stopped / "config.json").read_text())["data"]["split"]["images"] == 17
    with tiny_runs.tiny_network():
        opened = ftrain.open_run(stopped)
        (tmp_path / "photos" / "even" / "8.png").unlink()  # an image to train on: those for validation are the same
        assert opened.evaluate().metrics["count"] == 4
        Path(opened.images().val.image_name(0)).unlink()
        with pytest.raises(SettingsError, match="of which a part was chosen for validation, have changed since the"):
            opened.evaluate()
        with pytest.raises(SettingsError, match="of which a part was chosen for validation, have changed since the"):
            opened.evaluate(tmp_path / "photos")  # most of which it was trained on
        assert opened.evaluate(photos).metrics["count"] == 16


def test_python_splits_the_same_images(run: Path, photos: Path, tmp_path: Path) -> None:
    asked = json.loads((run / "config.json").read_text())["asked"]
    asked = {name: value for name, value in asked.items() if name not in ("out", "data", "save_station")}
    with tiny_runs.tiny_network():
        ftrain.fit(data=photos, out=tmp_path / "run", progress=False, save_station=1, **asked)
    assert tiny_runs.result(tmp_path / "run") == tiny_runs.result(run)
