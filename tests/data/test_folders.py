from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from ftrain.data import heif
from ftrain.data.folders import image_files, scan
from ftrain.data.skipped import described, skipped_line
from ftrain.errors import DataError
from ftrain.text import shown


def make(root: Path, *names: str) -> Path:
    """Files that contain their own names, so that their sizes are known."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    return root


def error_of(root: Path, **options: list[str]) -> str:
    with pytest.raises(DataError) as caught:
        scan(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(root), "ROOT")


def test_classes_and_images_are_sorted_by_their_bytes(tmp_path: Path) -> None:
    make(tmp_path, "b/2.png", "b/10.png", "B/x.jpg", "a-b/x.jpg", "a/x.jpg", "ä/x.jpg")
    index = scan(tmp_path)
    assert index.root == tmp_path
    assert index.classes == ("B", "a", "a-b", "b", "ä")
    assert index.paths == ("B/x.jpg", "a/x.jpg", "a-b/x.jpg", "b/10.png", "b/2.png", "ä/x.jpg")
    assert index.labels.tolist() == [0, 1, 2, 3, 3, 4]
    assert index.labels.dtype == np.int64
    assert len(index) == 6
    assert index.image_name(3) == str(tmp_path / "b" / "10.png")


def test_images_are_recognised_by_their_suffix_in_any_case(tmp_path: Path) -> None:
    suffixes = (
        "AVIF",
        "HEIC",
        "JPG",
        "Png",
        "bmp",
        "gif",
        "heif",
        "jpeg",
        "jpg",
        "pgm",
        "png",
        "ppm",
        "tIfF",
        "tif",
        "tiff",
        "webp",
    )
    make(tmp_path, *(f"a/x.{suffix}" for suffix in suffixes), "b/1.jpg")
    make(tmp_path, "a/x.txt", "a/jpg", "a/x.jpg.part", "a/x.npy")
    assert scan(tmp_path).paths == (*(f"a/x.{suffix}" for suffix in suffixes), "b/1.jpg")


def test_images_are_found_at_any_depth(tmp_path: Path) -> None:
    deep = "/".join("d" * 300)
    make(tmp_path, "a/z.png", "a/n/m/x.png", "a/folder.png/x.png", f"a/{deep}/x.png", "b/x.png")
    assert scan(tmp_path).paths == (f"a/{deep}/x.png", "a/folder.png/x.png", "a/n/m/x.png", "a/z.png", "b/x.png")


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    make(tmp_path, "a/x.png", "a/._x.png", "a/.thumbs/x.png", "b/x.png", ".git/x.png", "readme.txt")
    assert scan(tmp_path).paths == ("a/x.png", "b/x.png")


def test_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    make(tmp_path, "a/x.png", "b/x.png", "a/notes.PDF", "a/n/1.pdf", "b/2.mov", "b/LICENSE", "b/x.jpg.part")
    assert scan(tmp_path).skipped == {".pdf": 2, ".mov": 1, "without a suffix": 1, ".part": 1}
    assert skipped_line(scan(tmp_path), scan(tmp_path)) == "skipped: 4 .pdf, 2 .mov, 2 .part, 2 without a suffix"
    make(tmp_path, "1.png", "2.png", "readme.txt")
    assert scan(tmp_path).skipped["images outside of the class folders"] == 2
    files, kinds = image_files(tmp_path / "a")
    assert ([Path(file).name for file in files], kinds) == (["x.png"], {".pdf": 2})


def test_what_systems_put_into_folders_is_ignored(tmp_path: Path) -> None:
    make(tmp_path, "a/x.png", "b/x.png", "a/Thumbs.db", "a/desktop.ini", "b/.DS_Store", "b/@eaDir/x.png")
    make(tmp_path, "__MACOSX/a/._x.png")
    index = scan(tmp_path)
    assert (index.classes, index.paths, index.skipped) == (("a", "b"), ("a/x.png", "b/x.png"), {})
    assert skipped_line(index) is None


def test_heic_files_that_cannot_be_read_here_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *(f"a/{number}.HEIC" for number in range(3)), "a/x.png", "b/x.png", "b/y.pdf")
    assert len(scan(tmp_path)) == 5
    monkeypatch.setattr(heif, "is_installed", lambda: False)
    index = scan(tmp_path)
    assert index.paths == ("a/x.png", "b/x.png")
    install = "(reading .heic files needs pillow-heif, an extra: `pip install '.[heif]'`)"
    assert skipped_line(index) == f"skipped: 3 .heic, 1 .pdf {install}"
    (tmp_path / "a" / "x.png").unlink()
    assert error_of(tmp_path) == (
        'no images in the class folder "a" of ROOT; every class needs at least one training image; found 3 .heic, 1 '
        f".pdf {install}. Add images, or remove the folder"
    )


def test_many_kinds_of_files_are_counted_together() -> None:
    counts = {f".{letter}": number for number, letter in enumerate("abcdefghij", start=1)}
    assert described(counts) == "10 .j, 9 .i, 8 .h, 7 .g, 6 .f, 5 .e, 4 .d, 3 .c, 3 of 2 other kinds"
    assert described({".\x1b[0m": 1}) == r"1 .\x1b[0m"


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    root = make(tmp_path / "root", "a/x.png", "a/n/y.png", "b/x.png")
    make(tmp_path / "elsewhere", "one.png", "two.png")
    (root / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "file.png").symlink_to(tmp_path / "elsewhere" / "one.png")
    (root / "a" / "n" / "up").symlink_to(root / "a")
    (root / "a" / "top").symlink_to(root)
    (root / "a" / "nowhere.txt").symlink_to(tmp_path / "missing")
    (root / "c").symlink_to(root / "b")
    index = scan(root)
    assert index.paths == (
        "a/file.png",
        "a/linked/one.png",
        "a/linked/two.png",
        "a/n/y.png",
        "a/x.png",
        "b/x.png",
        "c/x.png",
    )
    assert index.labels.tolist() == [0, 0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize("target", ["missing", "x.png"])
def test_an_image_that_is_a_dead_link_is_an_error(tmp_path: Path, target: str) -> None:
    make(tmp_path, "a/y.png", "b/x.png")
    (tmp_path / "a" / "x.png").symlink_to(target)
    assert error_of(tmp_path).startswith("cannot read ROOT/a/x.png while looking for images: ")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, "a/x.png", "b/x.png")
    (tmp_path / "a").chmod(0)
    try:
        assert error_of(tmp_path).startswith("cannot read ROOT/a while looking for images: Permission denied")
    finally:
        (tmp_path / "a").chmod(0o700)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    make(tmp_path, "a/x.png", "b/é.png")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/b/caf\xe9.png")).write_bytes(b"")
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/b/caf\xff\xfe.png")).write_bytes(b"")
        make(tmp_path, "b/caf\U0001f600.png")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes only UTF-8")
    index = scan(tmp_path)
    assert index.paths == ("a/x.png", "b/caf\udce9.png", "b/caf\U0001f600.png", "b/caf\udcff\udcfe.png", "b/é.png")
    assert all(os.path.exists(index.image_name(position)) for position in range(len(index)))


def test_the_fingerprint_covers_classes_paths_and_sizes_only(tmp_path: Path) -> None:
    first = make(tmp_path / "1", "a/x.png", "b/y.png")
    # printf 'a\0b\0\0a/x.png\0005\0b/y.png\0005' | sha256sum
    expected = "41c756bc73cc01e2197061b1e78aafc21889a4038fbaf6591a1836d550cef781"
    assert scan(first).fingerprint == expected
    os.utime(first / "a" / "x.png", (0, 0))
    make(first, "b/notes.txt", "c.png")
    assert scan(first).fingerprint == expected
    assert scan(make(tmp_path / "2", "a/x.png", "b/y.png")).fingerprint == expected
    assert scan(make(tmp_path / "3", "a/x.png", "b/z.png")).fingerprint != expected
    assert scan(make(tmp_path / "4", "a/x.png", "c/y.png")).fingerprint != expected
    (first / "a" / "x.png").write_text("longer")
    assert scan(first).fingerprint != expected
    assert scan(first, classes=["a", "b"]).fingerprint == scan(first).fingerprint
    assert scan(first, classes=["b", "a"]).fingerprint != scan(first).fingerprint


def test_validation_data_shares_the_labels_of_the_training_data(tmp_path: Path) -> None:
    make(tmp_path, "dog/x.png", "cat/x.png", "cat/y.png")
    (tmp_path / "eel").mkdir()
    index = scan(tmp_path, classes=["ant", "cat", "dog", "eel"])
    assert index.classes == ("ant", "cat", "dog", "eel")
    assert index.paths == ("cat/x.png", "cat/y.png", "dog/x.png")
    assert index.labels.tolist() == [1, 1, 2]


def test_one_class_is_enough_for_validation(tmp_path: Path) -> None:
    assert scan(make(tmp_path, "dog/x.png"), classes=["cat", "dog"]).labels.tolist() == [1]


def test_an_unknown_class_in_the_validation_data(tmp_path: Path) -> None:
    make(tmp_path, "cat/x.png", "dogs/x.png")
    assert error_of(tmp_path, classes=["cat", "dog", "horse"]) == (
        'the class folder "dogs" of ROOT is not one of the 3 classes of the training data; the closest is "dog". '
        "Rename or remove it, or train on that class too"
    )
    make(tmp_path, "eel/x.png", "fox/x.png")
    assert error_of(tmp_path, classes=["cat", "dog", "horse"]).startswith(
        'the class folder "dogs" of ROOT (and 2 more: "eel", "fox") is not one of the 3 classes'
    )


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"no such folder: {tmp_path / 'missing'}")):
        scan(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=re.escape(f"not a folder: {tmp_path / 'file'}")):
        scan(tmp_path / "file")


def test_no_class_folders(tmp_path: Path) -> None:
    assert error_of(tmp_path) == (
        "no class folders in ROOT; expected one folder of images per class, named after the class. Create them or "
        "choose another folder"
    )
    make(tmp_path, "x.png", "y.JPG", "z.txt")
    assert error_of(tmp_path) == (
        "no class folders in ROOT, but 2 images directly in it. There must be one folder per class: move the images of "
        "each class to a folder that is named after it"
    )


@pytest.mark.parametrize("options", [{}, {"classes": ["a", "b"]}])
def test_no_images(tmp_path: Path, options: dict[str, list[str]]) -> None:
    make(tmp_path, "a/x.txt", "b/y.txt")
    assert error_of(tmp_path, **options) == (
        'no images in ROOT: none of its 2 class folders ("a", "b") has a file that ends in .jpg, .jpeg, .png, .bmp, '
        ".gif, .webp, .avif, .tif, .tiff, .ppm, .pgm, .heic, .heif; found 2 .txt"
    )


def test_empty_classes(tmp_path: Path) -> None:
    make(tmp_path, "a/x.png", "b/y.png")
    (tmp_path / "c").mkdir()
    assert error_of(tmp_path) == (
        'no images in the class folder "c" of ROOT; every class needs at least one training image. Add images, or '
        "remove the folder"
    )
    for name in "defghi":
        (tmp_path / name).mkdir()
    assert error_of(tmp_path).startswith('no images in the class folders "c", "d", "e", "f", "g" and 2 more of ROOT; ')


def test_one_class_only(tmp_path: Path) -> None:
    assert error_of(make(tmp_path, "a/x.png")) == (
        'only one class folder in ROOT: "a"; a classifier needs at least two. Put the images of each class in a folder '
        "of its own"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="names cannot hold control characters")
def test_names_are_escaped(tmp_path: Path) -> None:
    make(tmp_path, "a\x1b[31m\nb/x.png")
    assert r'only one class folder in ROOT: "a\x1b[31m\nb";' in error_of(tmp_path)


def test_shown() -> None:
    assert shown("plain näme/日本 [x].png") == "plain näme/日本 [x].png"
    assert shown("\x1b[0m\r\n\t\x7f\u202e\u200b\udcff") == r"\x1b[0m\r\n\t\x7f\u202e\u200b\xff"
    assert shown(b"caf\xe9") == r"caf\xe9"
    assert shown(Path("a\nb")) == r"a\nb"


def test_what_ftrain_wrote_is_no_class(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png", "runs/resnet18/auto/curves.png", "data-check/check.png", "mine/curves.png")
    make(tmp_path, "annotated/1.png")
    for name in (
        "runs/resnet18/auto/config.json",
        "data-check/check.json",
        "mine/config.json",
        "annotated/config.json",
    ):
        (tmp_path / name).write_text("{}")
    for name in ("runs/resnet18/auto", "mine"):
        (tmp_path / name / "checkpoints").mkdir()
    assert scan(tmp_path).classes == ("annotated", "cat", "dog")
