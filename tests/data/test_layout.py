"""How images lie in a folder, and what was meant if they lie otherwise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftrain.data.layout import intended, layout_of, similar_path


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    return root


def found(root: Path) -> tuple[str | None, str | None, list[str]]:
    layout = layout_of(root)
    names = [path.name if path else None for path in (layout.train, layout.val)]
    return names[0], names[1], [path.name for path in layout.unused]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ("train val", ("train", "val", [])),
        ("Train VALID", ("Train", "VALID", [])),
        ("train validation", ("train", "validation", [])),
        ("TRAIN Test", ("TRAIN", "Test", [])),
        ("train val valid validation test", ("train", "val", ["valid", "validation", "test"])),
        ("train valid test", ("train", "valid", ["test"])),
        ("train test validation", ("train", "validation", ["test"])),
        ("Training Testing", ("Training", "Testing", [])),
        ("train other", ("train", None, [])),
        ("test", (None, "test", [])),
        ("cat dog", (None, None, [])),
        ("trains vals", (None, None, [])),
    ],
)
def test_parts_are_recognised_by_their_names(tmp_path: Path, folders: str, expected: object) -> None:
    make(tmp_path, *(f"{part}/{name}/1.jpg" for part in folders.split() for name in ("cat", "dog")))
    assert found(tmp_path) == expected


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make(tmp_path, "bus/1.jpg", "train/1.jpg", "test/1.jpg", ".hidden/x/1.jpg")
    assert found(tmp_path) == (None, None, [])


def test_two_folders_of_one_name(tmp_path: Path) -> None:
    make(tmp_path, "Train/a/1.jpg", "train/a/1.jpg")
    if len(os.listdir(tmp_path)) == 1:
        pytest.skip("this file system ignores case")
    with pytest.raises(ValueError, match="contains both Train/ and train/; rename one of them"):
        layout_of(tmp_path)


@pytest.mark.parametrize(
    ("files", "given", "problem", "right"),
    [
        ("photos/train/a/1.jpg photos/val/a/1.jpg", "photos/train", "beside it is photos/val", "photos"),
        ("photos/Train/a/1.jpg photos/Valid/a/1.jpg", "photos/Valid", "beside it is photos/Train", "photos"),
        ("train/a/1.jpg test/a/1.jpg", "train", "is only a part of the images; beside it is test", "."),
        (
            "photos/train/a/1.jpg photos/val/a/1.jpg runs/x/y.png",
            ".",
            "contains photos/ with train/",
            "photos",
        ),
        ("photos/a/1.jpg photos/b/1.jpg", ".", "contains a single folder, photos/", "photos"),
        (
            "photos/a/1.jpg photos/b/1.jpg runs/net/1/config.json runs/net/1/checkpoints/1/x runs/net/1/x.png "
            "check/check.json check/check.png",
            ".",
            "contains a single folder, photos/",
            "photos",
        ),
        ("photos/a/1.jpg photos/b/1.jpg notes/x.txt", ".", "contains a single folder, photos/", "photos"),
        ("photos/a/1.jpg photos/b/1.jpg", "photos/a", "is the folder of one class", "photos"),
        ("photos/train/a/1.jpg photos/train/b/1.jpg photos/val/a/1.jpg", "photos/train/a", "of one class", "photos"),
    ],
)
def test_what_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: str, given: str, problem: str, right: str
) -> None:
    make(tmp_path, *files.split())
    monkeypatch.chdir(tmp_path)
    answer = intended(Path(given))
    assert answer is not None
    assert problem in answer[0]
    assert answer[1] == Path(right)
    if given == ".":
        monkeypatch.chdir(tmp_path.parent)
        assert intended(tmp_path) == (answer[0], tmp_path / right)


@pytest.mark.parametrize(
    ("files", "given"),
    [
        ("photos/a/1.jpg photos/b/1.jpg", "photos"),
        ("photos/a/x/1.jpg photos/b/y/1.jpg labels.csv", "photos"),
        ("train/a/1.jpg train/b/1.jpg", "train"),
        ("photos/a/1.jpg", "photos"),
        ("photos/1.jpg", "photos"),
        ("photos/1.txt", "photos"),
    ],
)
def test_nothing_else_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: str, given: str) -> None:
    make(tmp_path, *files.split())
    monkeypatch.chdir(tmp_path)
    assert intended(Path(given)) is None


def test_a_part_may_be_looked_at_by_itself(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg")
    assert intended(tmp_path / "train", whole=False) is None


def test_a_similar_path(tmp_path: Path) -> None:
    make(tmp_path, "photos/a/1.jpg")
    assert similar_path(tmp_path / "phtos") == tmp_path / "photos"
    assert similar_path(tmp_path / "xyz") is None
    assert similar_path(tmp_path / "no" / "photos") is None


def test_a_test_folder_without_classes_is_no_part(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "test/1.jpg")
    assert found(tmp_path) == ("train", None, [])
