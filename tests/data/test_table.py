"""Tables of images and labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from ftrain.data import Images, from_table, load
from ftrain.data import rows as rows_of_tables
from ftrain.data.columns import PEEK, is_table_of_labels
from ftrain.data.rows import is_table
from ftrain.data.split import choose_validation, joined, split_automatically
from ftrain.data.table import Table, read_table
from ftrain.errors import DataError
from ftrain.run.locate import parts, to_end

NAMES = ("a.png", "b.png", "sub/c.png", "d.png")
ROWS = [("a.png", "red"), ("b.png", "blue"), ("sub/c.png", "red"), ("d.png", "green")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images."""
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(tmp_path / name)
    return tmp_path


def table(folder: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(path: Path, **options: Any) -> Table:
    found: Table = to_end(read_table(path, **options))
    return found


def message(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path.parent), "DIR")


def test_the_same_table_in_every_format(folder: Path) -> None:
    paths, labels = zip(*ROWS, strict=True)
    columns = {"path": list(paths), "label": list(labels)}
    parquet.write_table(pyarrow.table(columns), folder / "labels.parquet")
    written = [
        table(folder, "path,label\n" + "".join(f"{path},{label}\n" for path, label in ROWS)),
        table(folder, "\ufeffLabel\t Image Path \r\n" + "".join(f"{b}\t{a}\r\n" for a, b in ROWS), "labels.tsv"),
        table(folder, 'note,class,"FILE"\n\n' + "".join(f'"x, y",{b},"./{a}"\n' for a, b in ROWS), "labels.CSV"),
        table(folder, "path;label;note\n" + "".join(f"{a};{b};1,5\n" for a, b in ROWS), "semicolons.csv"),
        table(folder, "".join(json.dumps({"tags": b, "img": a}) + "\n" for a, b in ROWS[::-1]), "labels.jsonl"),
        folder / "labels.parquet",
    ]
    for path in written:
        index = from_table(path)
        assert index.classes == ("blue", "green", "red")
        assert index.paths == ("a.png", "b.png", "d.png", "sub/c.png")  # sorted, whatever the order of the rows
        assert index.labels.tolist() == [2, 0, 1, 2]
        assert (index.weights, index.groups, index.files) == (None, None, None)
        assert index.name == str(path)
        assert index.fingerprint == from_table(written[0]).fingerprint
        with index.open(3) as image:
            assert image.size == (8, 8)


MULTI_LABEL = {
    "cells with |": ("labels.csv", "path,labels\na.png,red|round\nb.png,\nd.png,red\n"),
    "cells with ;": ("labels.csv", "path,labels\na.png,round; red\nb.png, \nd.png,red;;red\n"),
    "rows": ("labels.tsv", "path\tlabel\na.png\tred\na.png\tround\nd.png\tred\nb.png\t\n"),
    "lists": (
        "labels.jsonl",
        '{"path": "a.png", "labels": ["red", "round"]}\n{"path": "b.png", "labels": []}\n'
        '{"path": "d.png", "labels": "red"}\n',
    ),
    "missing": (
        "labels.jsonl",
        '{"path": "a.png", "labels": ["red", "round"]}\n{"path": "b.png"}\n{"path": "d.png", "labels": ["red"]}\n',
    ),
}


@pytest.mark.parametrize("how", MULTI_LABEL)
def test_an_image_with_several_labels(folder: Path, how: str) -> None:
    index = from_table(table(folder, MULTI_LABEL[how][1], MULTI_LABEL[how][0]))
    assert index.classes == ("red", "round")
    assert index.paths == ("a.png", "b.png", "d.png")
    assert index.labels.dtype == np.uint8
    assert index.labels.tolist() == [[1, 1], [0, 0], [1, 0]]
    counts = {name: each["images"] for name, each in index.class_fingerprints().items()}
    assert counts == {"red": 2, "round": 1}


def test_lists_in_parquet(folder: Path) -> None:
    rows = {"image": ["a.png", "b.png"], "tags": [["red", "round"], []]}
    parquet.write_table(pyarrow.table(rows), folder / "labels.parquet")
    assert from_table(folder / "labels.parquet").labels.tolist() == [[1, 1], [0, 0]]


def test_the_task_can_be_given(folder: Path) -> None:
    path = table(folder, "path,label\n" + "".join(f"{path},{label}\n" for path, label in ROWS))
    assert from_table(path, task="multi-label").labels.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    path = table(folder, "path,label\na.png,AC|DC\nb.png,ABBA\n")
    assert from_table(path, task="single-label").classes == ("ABBA", "AC|DC")
    assert from_table(path).classes == ("ABBA", "AC", "DC")


def test_labels_that_are_integers_are_sorted_by_value(folder: Path) -> None:
    path = table(folder, "path,label\na.png,10\nb.png,9\nd.png,0\n")
    assert from_table(path).classes == ("0", "9", "10")
    path = table(folder, '{"path": "a.png", "label": 10}\n{"path": "b.png", "label": "09"}\n', "labels.jsonl")
    assert from_table(path).classes == ("09", "10")


def test_paths_may_leave_the_folder_and_be_absolute(folder: Path) -> None:
    (folder / "tables").mkdir()
    path = table(folder / "tables", f"path,label\n../a.png,x\n{folder / 'b.png'},y\n")
    index = from_table(path)
    assert index.paths == ("../a.png", str(folder / "b.png"))
    assert Path(index.image_name(0)).samefile(folder / "a.png")


def test_splits(folder: Path) -> None:
    path = table(folder, "path,label,Split\na.png,x,train\nb.png,y,TRAINING\nsub/c.png,x,valid\nd.png,z,test\n")
    found = read(path)
    assert {name: part.paths for name, part in found.parts.items()} == {
        "train": ("a.png", "b.png"),
        "val": ("sub/c.png",),
    }
    assert found.parts["val"].classes == ("x", "y")  # what only test images have is no class
    assert (found.others, found.notes) == ({"test": 1}, ())
    assert message(path, splits=("test",)) == (
        'DIR/labels.csv, row 5: the label "z" is not one of the 2 classes of the training data; the closest is "y". '
        "Correct it, or train on that class too"
    )
    with pytest.raises(DataError, match="has a column for the split; pass it as `data` itself"):
        from_table(path)


def test_weights_are_relative_and_reach_the_batches(folder: Path) -> None:
    path = table(folder, "path,label,weight\na.png,x,1\nb.png,y,3\nsub/c.png,x,0\nd.png,y,4e0\n")
    index = from_table(path)
    assert index.weights is not None
    assert index.weights.tolist() == [0.5, 1.5, 2.0, 0.0]  # divided by their mean; in the order of the paths
    images = Images(train=index, val=index, batch_size=4, image_size=8, eval_batch_size=6)
    [batch] = load(images, images.val_jobs())
    assert batch.weights.tolist() == [0.5, 1.5, 2.0, 0.0, 0.0, 0.0]
    [train] = load(images, images.train_jobs(0))
    assert train.weights.tolist() == index.weights[train.indices.numpy()].tolist()
    part = index.part(np.array([True, True, False, False]))  # also in a part they are divided by their mean
    assert part.weights is not None
    assert part.weights.tolist() == [0.5, 1.5]
    assert index.part(np.array([False, False, True, False])).weights is None
    with pytest.raises(DataError, match=r"all weights in .* are 0; expected at least one above 0 in each split"):
        index.part(np.array([False, False, False, True]))
    equal = table(folder, "path,label,weight\na.png,x,7\nb.png,y,7\n")
    assert from_table(equal).weights is None


def test_the_fingerprint_covers_labels_and_weights(folder: Path) -> None:
    texts = [
        "path,label\na.png,x\nb.png,y\n",
        "path,label\na.png,y\nb.png,x\n",
        "path,label,weight\na.png,x,1\nb.png,y,2\n",
        "path,label\na.png,x|y\nb.png,y\n",
    ]
    prints = [from_table(table(folder, text)).fingerprint for text in texts]
    assert len(set(prints)) == 4
    index = from_table(table(folder, texts[2]))
    whole = index.part(np.array([True, True]))
    assert whole.fingerprint == index.fingerprint
    assert index.part(np.array([False, True])).paths == ("b.png",)


def test_batches_of_several_labels(folder: Path) -> None:
    index = from_table(table(folder, "path,label\na.png,x|y\nb.png,y\nd.png,\n"))
    images = Images(train=index, val=index, batch_size=2, image_size=8, eval_batch_size=4)
    [batch] = load(images, images.val_jobs())
    assert batch.labels.tolist() == [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert str(batch.labels.dtype) == "torch.float32"


WRONG = {
    "": "the table DIR/labels.csv is empty; expected a row of column names, and a row for each image",
    "path,label\n": "the table DIR/labels.csv has no rows; expected one for each image",
    "name,label\na.png,x\n": "the table DIR/labels.csv has no column for the path; expected one called path, file, ",
    "path,notes\na.png,x\n": "the table DIR/labels.csv has no column for the label; expected one called label, ",
    "path,file,label\na.png,a.png,x\n": 'the table DIR/labels.csv has two columns for the path, "path", "file"; rename '
    "or remove one of them",
    "path,label\na.png\n": "DIR/labels.csv, row 2: expected 2 cells, one for each column; found 1. A cell that "
    "contains the separator must be in double quotes",
    'path,label\na.png,"x\n': "cannot read the table DIR/labels.csv as CSV: row 2: unexpected end of data",
    "path,label\n,x\n": "DIR/labels.csv, row 2: expected the path or the URL of an image; found an empty cell",
    "path,label\na.png,x\nb.png, \n": "DIR/labels.csv, row 3: b.png has no label. Give it one or remove the row; if it "
    "means that no class applies, use `task=multi-label`",
    "path,label\na.png,x\nb.png,x\n": 'the table DIR/labels.csv has only the label "x"; a classifier needs at least',
    "path,label,set\na.png,x,train\nb.png,y,dev\n": "DIR/labels.csv, row 3: expected a split, one of train, val (or "
    'valid, validation) and test; found "dev"',
    "path,label,set\na.png,x,train\nb.png,y,train\nd.png,z,val\n": 'DIR/labels.csv, row 4: the label "z" is not one of '
    'the 2 classes of the training data; the closest is "y". Correct it, or train on that class too',
    "path,label,fold\na.png,x,0\n": 'found "0". If the numbers are folds of a cross-validation, rename the column, to '
    "cv_fold for example",
    "path,label,weight\na.png,x,-1\n": "DIR/labels.csv, row 2: expected a weight, a finite number >= 0; found ",
    "path,label,weight\na.png,x,nan\n": "DIR/labels.csv, row 2: expected a weight, a finite number >= 0; found ",
    "path,label,weight\na.png,x,inf\n": "DIR/labels.csv, row 2: expected a weight, a finite number >= 0; found ",
    "path,label,weight\na.png,x,\n": 'DIR/labels.csv, row 2: expected a weight, a finite number >= 0; found ""',
    "path,label,weight\na.png,x,0\nb.png,y,0\n": "all weights in DIR/labels.csv are 0; expected at least one above 0",
    "path,label\na.png,x\nb,y\nmissing/1.png,y\n2.png,x\n3.png,x\n": "4 of the 5 images in the table DIR/labels.csv do "
    "not exist: 2.png (row 5), 3.png (row 6), b (row 3) and 1 more. Paths are relative to the folder of the table, and "
    "need the suffix of the file; correct them, or move the table",
    "path,label\na.png,x\nsub,y\n": "DIR/labels.csv, row 3: expected an image; DIR/sub is not a file",
    "path,label\nfile:///etc/passwd,x\n": "DIR/labels.csv, row 2: file:///etc/passwd cannot be downloaded; expected a "
    "URL that begins with http:// or https://",
    "path,label,split\na.png,x,train\na.png,x,val\n": "DIR/labels.csv, row 3: a.png has the split val, but in row 2 "
    "train; give it the same in all of its rows",
    b"path,label\na.png,x\nb\xff.png,y\n": "cannot read the table DIR/labels.csv: row 3 is not UTF-8 (invalid start "
    "byte); save it as UTF-8",
    b"path,label\na\0.png,x\n": "cannot read the table DIR/labels.csv: row 2 contains a NUL character",
    "path,label\na.png,x\n".encode("utf-16"): "cannot read the table DIR/labels.csv: it is in UTF-16 or UTF-32; save",
    "path,label\na.png," + 200_000 * "x" + "\n": "cannot read the table DIR/labels.csv as CSV: row 2: field larger",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: repr(text[:30]))
def test_what_cannot_be_used(folder: Path, text: str | bytes) -> None:
    assert WRONG[text] in message(table(folder, text))


WRONG_LINES = {
    '{"path": "a.png"': "cannot read the table DIR/labels.jsonl: row 1 is not JSON: ",
    "[" * 100_000: "cannot read the table DIR/labels.jsonl: row 1 is not JSON: ",
    "7": 'DIR/labels.jsonl, row 1: expected a JSON object such as {"path": "1.jpg", "label": "cat"}; found a int',
    '{"path": {"bytes": ""}, "label": 1}': "DIR/labels.jsonl, row 1: expected the path or the URL of an image; found "
    "a dict",
    '{"path": "a.png", "label": 0.5}': "DIR/labels.jsonl, row 1: expected a label, a string or an integer, or a list "
    "of labels; found 0.5",
    '{"path": "a.png", "label": ["x", null]}': "DIR/labels.jsonl, row 1: expected a label, a string or an integer, or "
    "a list of labels; found ['x', None]",
    '{"path": "a.png", "label": "' + 131_073 * "x" + '"}': "DIR/labels.jsonl, row 1: expected at most 131072 "
    "characters in a cell; found 131073 for the label",
    '{"path": "a.png", "label": "\\ud800"}': "DIR/labels.jsonl, row 1: expected a label, a string or an integer, or ",
    '{"path": "a\\u0000.png", "label": "x"}': "DIR/labels.jsonl, row 1: a\\x00.png is not the name of a file",
}


@pytest.mark.parametrize("text", WRONG_LINES, ids=lambda text: repr(text[:30]))
def test_lines_that_cannot_be_used(folder: Path, text: str) -> None:
    assert WRONG_LINES[text] in message(table(folder, text + "\n", "labels.jsonl"))


def test_parquet_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(folder, "path,label\n", "labels.parquet")
    assert message(path).startswith("cannot read the table DIR/labels.parquet as Parquet: ")
    monkeypatch.setattr(rows_of_tables.importlib.util, "find_spec", lambda name: None)
    assert message(path) == (
        "cannot read the table DIR/labels.parquet: reading .parquet files needs pyarrow, an extra: `pip install "
        "'.[parquet]'`"
    )


def test_only_the_columns_of_a_parquet_file_that_mean_something_are_read(folder: Path) -> None:
    """An unused time that Python cannot represent is no error, and text that is not UTF-8 is one with a message."""
    names, labels = ["a.png", "b.png"], ["red", "blue"]
    columns = {"path": names, "label": labels, "when": pyarrow.array([2**62, 0], pyarrow.timestamp("us"))}
    path = folder / "labels.parquet"
    parquet.write_table(pyarrow.table(columns), path, use_dictionary=False, compression="none")
    assert from_table(path).classes == ("blue", "red")
    path.write_bytes(path.read_bytes().replace(b"\4\0\0\0blue", b"\4\0\0\0b\xffue"))
    assert message(path).startswith("cannot read the table DIR/labels.parquet as Parquet: 'utf-8' codec can't decode")
    path.write_bytes(path.read_bytes().replace(b"\5\0\0\0a.png", b"\xff\xff\xff\x7fa.png"))
    assert message(path).startswith("cannot read the table DIR/labels.parquet as Parquet: ")


def test_one_file_spelled_in_two_ways_is_one_image(folder: Path) -> None:
    path = table(folder, f"path,label\n{folder}/a.png,x\nb.png,y\na.png,x\n")
    found = read(path)
    assert found.parts["all"].paths == (f"{folder}/a.png", "b.png")
    assert found.notes == (f"1 row of {path} repeats another, and is not counted again",)


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / "photos.csv" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "photos.csv" / name / "1.png")
    assert not is_table(tmp_path / "photos.csv")
    assert len(to_end(parts(tmp_path / "photos.csv"))["all"]) == 2


def many(folder: Path, clashes: int) -> Path:
    """A hundred images, some of them in two rows with different labels."""
    for number in range(100):
        Image.new("L", (2, 2)).save(folder / f"{number}.png")
    rows = [f"{number}.png,{'xy'[number % 2]}" for number in range(100)]
    rows += [f"{number}.png,{'yx'[number % 2]}" for number in range(clashes)]
    return table(folder, "path,label\n" + "\n".join(rows))


def test_a_few_images_with_two_labels_are_a_mistake_and_many_are_not(tmp_path: Path) -> None:
    assert message(many(tmp_path, 2)) == (
        'DIR/labels.csv, row 102: 0.png has the label "y", but in row 2 "x" (2 images of 100 have different labels in '
        "several rows). Correct the rows; if images may have several labels, use `task=multi-label`"
    )
    assert from_table(tmp_path / "labels.csv", task="multi-label").labels.sum() == 102
    assert from_table(many(tmp_path, 20)).labels.sum() == 120
    assert "use `task=multi-label`" not in message(many(tmp_path, 20), task="single-label")


def test_a_few_cells_with_several_labels_are_a_mistake_and_many_are_not(tmp_path: Path) -> None:
    path = many(tmp_path, 0)
    text = path.read_text().replace("0.png,x\n", "0.png,x|z\n", 1)
    assert message(table(tmp_path, text)) == (
        'DIR/labels.csv, row 2: 0.png has the labels "x", "z", but only 1 image of 100 has other than one label in a '
        "cell, which may be a mistake. Correct the rows; if | and ; are part of names, use `task=single-label`; if "
        "images may have several labels, use `task=multi-label`"
    )
    assert from_table(path, task="multi-label").labels.sum() == 101
    assert from_table(path, task="single-label").classes == ("x", "x|z", "y")
    assert from_table(table(tmp_path, text.replace(",y\n", ",x|y\n"))).labels.ndim == 2


def test_rows_that_repeat_others_are_counted_once(folder: Path) -> None:
    path = table(folder, "path,label\na.png,x\nb.png,y\n./a.png,x\n")
    found = read(path)
    assert found.parts["all"].paths == ("a.png", "b.png")
    assert found.notes == (f"1 row of {path} repeats another, and is not counted again",)


def test_a_group_in_two_splits_is_mentioned(folder: Path) -> None:
    path = table(folder, "path,label,split,group\na.png,x,train,1\nb.png,y,train,2\nd.png,x,val,1\n")
    assert read(path).notes == (
        f"1 group of {path} has both training and validation images, so that the validation metrics may be too good to "
        "be true",
    )


def test_groups_stay_together_when_a_table_is_split(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    rows = []
    for number in range(40):
        Image.fromarray(noise.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'xy'[number % 2]},patient {number // 4}")
    index = from_table(table(tmp_path, "file,label,group\n" + "\n".join(rows)))
    assert index.groups is not None
    split = to_end(split_automatically(index, fraction=0.2))
    patients = [{int(path[:-4]) // 4 for path in part.paths} for part in (split.train, split.val)]
    assert [len(each) for each in patients] == [8, 2]
    assert not patients[0] & patients[1]
    one_group = table(tmp_path, "file,label,group\n0.png,x,1\n1.png,y,1\n")
    with pytest.raises(DataError, match="too few images that do not belong together as groups or look alike"):
        to_end(split_automatically(from_table(one_group), fraction=0.2))
    Image.new("L", (9, 9)).save(tmp_path / "black.png")
    alike = table(tmp_path, "file,label\nblack.png,x|y\n./black.png,x|y\n")
    with pytest.raises(DataError, match="too few images that do not belong together or look alike"):
        to_end(split_automatically(from_table(alike, task="multi-label"), fraction=0.2))


def test_a_separator_at_the_end_is_read_in_the_same_way_whatever_the_task(folder: Path) -> None:
    path = table(folder, "path,label\na.png,cat;\nb.png,dog\nd.png,| cat\n")
    for task in ("auto", "single-label"):
        index = from_table(path, task=task)
        assert (index.classes, index.labels.tolist()) == (("cat", "dog"), [0, 1, 0])


def test_groups_are_joined() -> None:
    assert joined(np.array([0, 0, 2, 3, 3, 5]), np.array([7, 8, 8, 1, 2, 2])).tolist() == [0, 0, 0, 3, 3, 3]


def test_each_of_several_labels_gets_its_fraction(tmp_path: Path) -> None:
    """Of 100 images 100 have a, every second b, every tenth c, every fiftieth d; one alone has e."""
    for number in range(101):
        Image.new("L", (2, 2)).save(tmp_path / f"{number}.png")
    rows = []
    for number in range(100):
        names = [name for name, every in (("a", 1), ("b", 2), ("c", 10), ("d", 50)) if number % every == 0]
        rows.append(f"{number}.png,{'|'.join(names)}")
    rows.append("100.png,a|e")
    index = from_table(table(tmp_path, "path,labels\n" + "\n".join(rows)))
    chosen = choose_validation(index, fraction=0.2, seed=0)
    assert index.labels[chosen].sum(axis=0).tolist() == [20, 10, 2, 1, 0]


def test_a_table_of_labels_is_recognised(folder: Path) -> None:
    assert is_table_of_labels(table(folder, "File Name,Category\n"))
    assert not is_table_of_labels(table(folder, "price,date\n"))
    assert not is_table_of_labels(table(folder, b"\xff\xfe"))
    # Only the first lines are read: what is wrong after them does not matter.
    assert is_table_of_labels(table(folder, b"path,label\n" + PEEK * b"a.png,x\n" + b"\xff"))
    assert is_table_of_labels(table(folder, b'{"path": "", "label": 1}\n' + PEEK * b" " + b"\xff", "labels.jsonl"))
    assert not is_table_of_labels(table(folder, PEEK * b" "))
