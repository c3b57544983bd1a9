"""Data in whatever form the user has it, as a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from example_images import COLOUR, LABELS, Pictures, message
from PIL import Image

from ftrain.data import Arrays, Examples, Index, as_source, from_arrays, from_dataset, scan
from ftrain.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / name / "1.png")
    return tmp_path


def test_a_folder(folder: Path) -> None:
    for data in (folder, str(folder)):
        source = as_source(data)
        assert isinstance(source, Index)
        assert source.classes == ("cat", "dog")
        assert source.fingerprint == scan(folder).fingerprint
    assert as_source(folder, classes=["ape", "cat", "dog"]).labels.tolist() == [1, 2]


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("pair", [tuple, list])
def test_a_pair_of_arrays(convert: Any, pair: Any) -> None:
    source = as_source(pair((convert(COLOUR), convert(LABELS))), name="mine")
    assert isinstance(source, Arrays)
    assert (source.name, source.classes) == ("mine", ("0", "1", "2"))
    assert source.fingerprint == from_arrays(COLOUR, LABELS).fingerprint
    assert as_source((COLOUR, LABELS)).name == "data"
    assert as_source((COLOUR, [0, 0, 0, 1]), classes=["cat", "dog", "eel"]).classes == ("cat", "dog", "eel")


def test_a_data_set() -> None:
    source = as_source(Pictures(), name="mine")
    assert isinstance(source, Examples)
    assert source.fingerprint == from_dataset(Pictures(), name="mine").fingerprint
    two = ((COLOUR[0], 0), (COLOUR[1], 1))  # two examples, not a pair of arrays
    assert as_source(two).labels.tolist() == [0, 1]
    assert as_source(list(two), classes=["cat", "dog"]).classes == ("cat", "dog")


def test_a_source_is_returned_as_it_is() -> None:
    source = from_arrays(COLOUR, LABELS, classes=["cat", "dog", "eel"], name="mine")
    assert as_source(source) is source
    assert as_source(source, classes=("cat", "dog", "eel")) is source

    class Own:
        name, classes, fingerprint, labels = "own", ("a", "b"), "0", np.array([0, 1])
        __len__ = open = image_name = None

    own = Own()
    assert as_source(own) is own


def test_a_source_with_other_classes_is_refused() -> None:
    source = from_arrays(COLOUR, LABELS, classes=["cat", "dog", "eel"], name="mine")
    assert message(ValueError, as_source, source, classes=["dog", "cat", "eel"]) == (
        "mine has the classes ['cat', 'dog', 'eel']; expected ['dog', 'cat', 'eel'], in this order"
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (COLOUR, "mine is an array of shape [4, 6, 5, 3] without labels; pass a pair (images, labels)"),
        (torch.zeros(2, 3), "mine is an array of shape [2, 3] without labels; pass a pair (images, labels)"),
        (
            {"images": COLOUR},
            "mine must be a folder, a table, a pair (images, labels) of arrays, an indexable data set of (image, "
            "label), or a source; got dict",
        ),
        (7, "mine must be a folder, a table, a pair (images, labels) of arrays, an indexable data set of (image, "),
        (None, "mine must be a folder"),
        (iter([1]), "mine must be a folder"),
        (["a.png", "b.png"], "a data set must consist of pairs (image, label); mine[0] is 'a.png'"),
        ("/no/such/folder", "no such folder: /no/such/folder"),
        ((COLOUR / 255, LABELS), "images must be uint8 from 0 to 255, got float64 for mine"),
    ],
)
def test_other_data_is_refused(data: Any, expected: str) -> None:
    assert message(ValueError, as_source, data, name="mine").startswith(expected)


def test_a_folder_with_other_classes_is_refused(folder: Path) -> None:
    assert message(DataError, as_source, folder, classes=["cat", "eel"]).startswith('the class folder "dog" of ')
