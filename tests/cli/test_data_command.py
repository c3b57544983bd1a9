"""`ftrain data`: check, preview, split and cache."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from ftrain_cli.main import app
from PIL import Image
from typer.testing import CliRunner

from ftrain.data.folders import scan
from ftrain.data.split import choose_validation


def ftrain_command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def picture(path, seed, size=(40, 36)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data(tmp_path):
    """Two classes: a with six and b with four training images, and two validation images of each."""
    root = tmp_path / "data"
    seed = 0
    for split, counts in (("train", {"a": 6, "b": 4}), ("val", {"a": 2, "b": 2})):
        for name, count in counts.items():
            for number in range(count):
                picture(root / split / name / f"{number}.png", seed := seed + 1)
    return root


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n")


def test_check_of_sound_data(data, tmp_path):
    result = ftrain_command("data", "check", data, "--out", tmp_path / "out", "--workers", 0)
    assert result.exit_code == 0, result.output
    assert "train: 10 images of 2 classes, 4 to 6 images per class" in result.output
    assert "val: 4 images of 2 classes, 2 to 2 images per class" in result.output
    assert "sizes: 40 to 40 px wide (median 40), 36 to 36 px high (median 36)" in result.output
    assert "exact duplicates: 0 groups" in result.output
    report = json.loads((tmp_path / "out" / "check.json").read_text())
    assert report["classes"] == {"train": {"a": 6, "b": 4}, "val": {"a": 2, "b": 2}}
    assert report["unreadable"] == report["duplicates"] == []
    assert is_png(tmp_path / "out" / "check.png")


@pytest.mark.parametrize("workers", [0, 2])
def test_check_finds_duplicates_leaks_conflicts_and_broken_files(data, tmp_path, workers):
    shutil.copy(data / "train" / "a" / "0.png", data / "train" / "a" / "again.png")
    shutil.copy(data / "train" / "b" / "0.png", data / "val" / "b" / "leak.png")
    shutil.copy(data / "train" / "a" / "1.png", data / "train" / "b" / "conflict.png")
    broken = data / "train" / "a" / "2.png"
    broken.write_bytes(broken.read_bytes()[:800])
    result = ftrain_command("data", "check", data, "--out", tmp_path / "out", "--workers", workers)
    assert result.exit_code == 65
    assert (
        "exact duplicates: 3 groups, of which 1 are in both train and val, and 1 have several labels" in result.output
    )
    assert f"{data / 'train' / 'b' / '0.png'} = {data / 'val' / 'b' / 'leak.png'}" in result.output
    assert f"cannot read the image {broken}" in result.output
    report = json.loads((tmp_path / "out" / "check.json").read_text())
    assert [entry["path"] for entry in report["unreadable"]] == [str(broken)]
    groups = [[(place["part"], place["label"], Path(place["path"]).name) for place in g] for g in report["duplicates"]]
    assert sorted(groups) == [
        [("train", "a", "0.png"), ("train", "a", "again.png")],
        [("train", "a", "1.png"), ("train", "b", "conflict.png")],
        [("train", "b", "0.png"), ("val", "b", "leak.png")],
    ]


def test_check_of_one_folder_of_classes(data, tmp_path):
    result = ftrain_command("data", "check", data / "train", "--out", tmp_path / "out", "--workers", 0)
    assert result.exit_code == 0, result.output
    assert "all: 10 images of 2 classes" in result.output


def test_check_counts_other_files(data, tmp_path):
    for name in ("train/a/1.pdf", "train/b/2.pdf", "val/a/3.mov", "train/a/Thumbs.db", "train/a/.DS_Store"):
        (data / name).write_text("nothing")
    result = ftrain_command("data", "check", data, "--out", tmp_path / "out", "--workers", 0)
    assert result.exit_code == 0, result.output
    assert "skipped: 2 .pdf, 1 .mov\n" in result.output


def test_preview(data, tmp_path):
    file = tmp_path / "seen.png"
    result = ftrain_command(
        "data", "preview", data, "--file", file, "--auto-augment", "trivial-augment", "--crop-scale", 0.5
    )
    assert result.exit_code == 0, result.output
    assert is_png(file)
    with Image.open(file) as seen:
        assert seen.size[0] > 800


def test_split_takes_the_same_fraction_of_each_class(tmp_path):
    seed = 0
    for name, count in (("a", 10), ("b", 5), ("c", 2)):
        for number in range(count):
            picture(tmp_path / "all" / name / "deep" / f"{number}.png", seed := seed + 1)
    index = scan(tmp_path / "all")
    chosen = choose_validation(index, fraction=0.2, seed=0)
    assert [int(chosen[index.labels == label].sum()) for label in range(3)] == [2, 1, 1]
    assert chosen.tolist() == choose_validation(index, fraction=0.2, seed=0).tolist()
    assert chosen.tolist() != choose_validation(index, fraction=0.2, seed=1).tolist()
    most = choose_validation(index, fraction=0.99, seed=0)
    assert [int(most[index.labels == label].sum()) for label in range(3)] == [9, 4, 1]

    out = tmp_path / "data"
    result = ftrain_command("data", "split", tmp_path / "all", "--out", out)
    assert result.exit_code == 0, result.output
    assert f"{out}: 13 images in train, 4 in val" in result.output
    train, val = scan(out / "train"), scan(out / "val")
    assert sorted(train.paths + val.paths) == sorted(index.paths)
    assert val.paths == tuple(path for path, is_val in zip(index.paths, chosen, strict=True) if is_val)
    assert all(os.readlink(train.image_name(p)) == str(tmp_path / "all" / train.paths[p]) for p in range(len(train)))
    assert ftrain_command("data", "split", tmp_path / "all", "--out", out).exit_code == 2


def test_split_into_copies(tmp_path):
    for name in ("a", "b"):
        for number in range(3):
            picture(tmp_path / "all" / name / f"{number}.png", number)
    result = ftrain_command("data", "split", tmp_path / "all", "--out", tmp_path / "data", "--how", "copy")
    assert result.exit_code == 0, result.output
    shutil.rmtree(tmp_path / "all")
    assert len(scan(tmp_path / "data" / "train")) == 4
    assert not any(path.is_symlink() for path in (tmp_path / "data").rglob("*"))


def test_split_leaves_a_single_image_to_training_and_says_so(tmp_path):
    for name, seeds in (("a", (1, 2, 3)), ("b", (4,))):
        for number in seeds:
            picture(tmp_path / "all" / name / f"{number}.png", number)
    result = ftrain_command("data", "split", tmp_path / "all", "--out", tmp_path / "data")
    assert result.exit_code == 0, result.output
    assert 'warning: classes with a single image, which is not used for validation: "b"' in result.output
    assert [len(list((tmp_path / "data" / part).rglob("*.png"))) for part in ("train", "val")] == [3, 1]
    result = ftrain_command("data", "split", tmp_path / "all", "--fraction", 1)
    assert result.exit_code == 2
    assert "ftrain: --fraction must be a number > 0 and < 1; got 1" in result.output


def test_split_keeps_near_duplicates_together(tmp_path):
    seed = 0
    for name in ("a", "b"):
        (tmp_path / "all" / name).mkdir(parents=True)
        for number in range(6):
            seed += 1
            noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
            soft = Image.fromarray(noise).resize((60, 60), Image.Resampling.BICUBIC)
            soft.save(tmp_path / "all" / name / f"{number}.png")
            soft.resize((40, 50)).save(tmp_path / "all" / name / f"{number} copy.jpg", quality=90)
    result = ftrain_command("data", "split", tmp_path / "all", "--out", tmp_path / "data", "--fraction", 0.34)
    assert f"{tmp_path / 'data'}: 16 images in train, 8 in val" in result.output
    for path in (tmp_path / "data").rglob("*.png"):
        assert path.with_name(f"{path.stem} copy.jpg").exists()


def test_check_warns_when_classes_are_uneven(tmp_path):
    for name, count in (("many", 100), ("few", 3)):
        for number in range(count):
            picture(tmp_path / "all" / name / f"{number}.png", number)
    result = ftrain_command("data", "check", tmp_path / "all", "--out", tmp_path / "out", "--workers", 0)
    assert result.exit_code == 0, result.output
    assert 'warning: the classes are uneven: "few" has 3 images and "many" has 100. A high accuracy' in result.output


def test_check_of_the_folder_above_suggests_the_right_one(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = ftrain_command("data", "check", ".")
    assert result.exit_code == 2
    assert "--data is ., which contains data/ with train/ and val/; use --data data" in result.output


def test_cache_is_found_by_a_run_with_the_same_settings(data, tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    settings = ["--image-size", 32, "--crop-scale", 0.5, "--model", "shufflenet_v2_x0_5", "--workers", 0]
    result = ftrain_command("data", "cache", data, *settings)
    assert result.exit_code == 0, result.output
    assert f"train: 10 images take 43.2 kB in {tmp_path / 'cache' / 'decoded'}" in result.output
    assert "val: 4 images take 12.3 kB in " in result.output
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("pixels.bin")}
    assert len(kept) == 2
    again = ftrain_command("data", "cache", data, *settings)
    assert "train: already cached in " in again.output
    run = [*settings, "--data", data, "--cache", "disk", "--epochs", 1, "--device", "cpu", "--out", tmp_path / "run"]
    result = ftrain_command("fit", *run)
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("pixels.bin")} == kept


def test_check_of_a_table_leaves_out_what_training_does(tmp_path):
    for number in range(5):
        picture(tmp_path / f"{number}.png", number)
    rows = ["0.png,a,train", "1.png,b|c,train", "2.png,a,val", "3.png,b|c,test", "4.png,new,test"]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    words = ["data", "check", tmp_path / "labels.csv", "--out", tmp_path / "out", "--workers", 0]
    result = ftrain_command(*words, "--task", "single-label")
    assert result.exit_code == 0, result.output
    assert "test: 1 images of 2 classes" in result.output
    assert "left out 1 image for testing in" in result.output
    report = json.loads((tmp_path / "out" / "check.json").read_text())
    assert report["classes"]["train"] == {"a": 1, "b|c": 1}
