"""Splitting images into training and validation images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import platformdirs
import pytest
from PIL import Image

from ftrain.data import Index, scan
from ftrain.data.split import choose_validation, split_automatically, unusual
from ftrain.run.locate import to_end


def index_of(**counts: int) -> Index:
    """An index of images that need not exist: 0.png and so on for each class."""
    paths = [f"{name}/{number}.png" for name, count in counts.items() for number in range(count)]
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    zeros = np.zeros(len(paths), np.int64)
    return Index(Path("all"), tuple(counts), tuple(paths), labels, zeros, zeros, "fingerprint")


def chosen(index: Index, fraction: float = 0.2, seed: int = 0, groups: list[int] | None = None) -> list[str]:
    which = choose_validation(index, fraction=fraction, seed=seed, groups=None if groups is None else np.array(groups))
    return [path for path, is_chosen in zip(index.paths, which.tolist(), strict=True) if is_chosen]


def counts(index: Index, which: npt.NDArray[np.bool_]) -> list[int]:
    return [int(which[index.labels == label].sum()) for label in range(len(index.classes))]


def test_written_out() -> None:
    """The smallest of uniform(fold_in(purpose_key(seed, "split", 0), crc32(path)), (), torch.float64) in each class."""
    index = index_of(cat=10, dog=5)
    assert chosen(index) == ["cat/2.png", "cat/3.png", "dog/1.png"]
    assert chosen(index, seed=1) == ["cat/0.png", "cat/5.png", "dog/3.png"]


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.2, [20, 2, 1, 1, 0]), (0.5, [50, 5, 2, 1, 0]), (0.001, [1, 1, 1, 1, 0]), (0.999, [99, 9, 2, 1, 0])],
)
def test_each_class_gets_its_fraction_and_at_least_one_image_on_each_side(fraction: float, expected: list[int]) -> None:
    index = index_of(a=100, b=10, c=3, d=2, e=1)
    assert counts(index, choose_validation(index, fraction=fraction, seed=0)) == expected


def test_most_images_stay_where_they_are_when_others_are_added() -> None:
    before, after = chosen(index_of(a=100, b=50)), chosen(index_of(a=120, b=50))
    assert len(before) == 30
    assert len(after) == 34
    assert len(set(before) & set(after)) >= 27  # a fresh choice would share 6 or so


def test_groups_stay_together() -> None:
    index = index_of(a=12, b=12)
    groups = [0, 0, 0, 3, 3, 5, 6, 7, 8, 9, 10, 11, *(12 + 3 * (number // 3) for number in range(12))]
    for seed in range(20):
        which = choose_validation(index, fraction=0.25, seed=seed, groups=np.array(groups))
        assert counts(index, which) == [3, 3]
        for group in set(groups):
            assert len(set(which[np.array(groups) == group].tolist())) == 1


def test_a_group_over_two_classes_stays_together() -> None:
    index = index_of(a=5, b=5)
    for seed in range(10):
        which = choose_validation(index, fraction=0.2, seed=seed, groups=np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4]))
        assert which[:5].tolist() == which[5:].tolist()
        assert counts(index, which) == [1, 1]


def test_a_class_that_is_one_group_is_divided_and_named() -> None:
    index = index_of(a=10, b=10)
    groups = np.array([0] * 10 + list(range(10, 20)))
    which = choose_validation(index, fraction=0.2, seed=0, groups=groups)
    assert counts(index, which) == [2, 2]
    [text] = unusual(index, which, groups)
    assert text.startswith("1 group of near-duplicates had to be divided between training and validation, because")
    everything = choose_validation(index, fraction=0.2, seed=0, groups=np.zeros(20, np.int64))
    assert counts(index, everything) == [2, 2]


def test_classes_with_a_single_image_are_named() -> None:
    index = index_of(a=3, b=1, c=1, d=1, e=1, f=1, g=1)
    which = choose_validation(index, fraction=0.2, seed=0)
    assert list(unusual(index, which, np.arange(9))) == [
        'classes with a single image, which is not used for validation: "b", "c", "d", "e", "f" and 1 more'
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    noise = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "all" / name).mkdir(parents=True)
        for number in range(6):
            pixels = noise.integers(0, 256, (8, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "all" / name / f"{number}.png")
    return tmp_path / "all"


def test_the_parts_are_like_folders_with_these_images(folder: Path) -> None:
    index = scan(folder)
    split = to_end(split_automatically(index, fraction=0.34))
    assert (len(split.train), len(split.val), split.notes) == (8, 4, ())
    assert sorted(split.train.paths + split.val.paths) == sorted(index.paths)
    assert split.train.classes == split.val.classes == ("a", "b")
    for path in split.val.paths:
        (folder / path).unlink()
    assert scan(folder).fingerprint == split.train.fingerprint
    assert scan(folder).class_fingerprints() == split.train.class_fingerprints()
    assert scan(folder).labels.tolist() == split.train.labels.tolist()


def test_a_recorded_split_is_made_again_without_comparing_images(folder: Path) -> None:
    index = scan(folder)
    first = to_end(split_automatically(index, fraction=0.34, seed=5))
    recorded = json.loads(json.dumps(first.val.split))
    assert recorded["images"] == 12
    assert recorded["fingerprint"] == index.fingerprint
    assert first.train.split == first.val.split
    events = list(split_automatically(index, fraction=0.34, recorded=recorded))
    again = to_end(split_automatically(index, fraction=0.34, recorded=recorded))
    assert events == []
    assert (again.train.paths, again.val.paths) == (first.train.paths, first.val.paths)
    assert again.val.fingerprint == first.val.fingerprint
    assert len(to_end(split_automatically(index, fraction=0.5, recorded=recorded)).val) == 6
    (folder / "a" / "0.png").unlink()
    assert len(to_end(split_automatically(scan(folder), fraction=0.34, recorded=recorded)).val) == 4
