"""Where the images of a run are: a folder or two, a table, a data set by name, or the sample."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import platformdirs

from ftrain.data.folders import scan
from ftrain.data.index import Index
from ftrain.data.layout import intended, layout_of, similar_path
from ftrain.data.merged import Task
from ftrain.data.rows import SUFFIXES, is_table
from ftrain.data.sample import sample_folder
from ftrain.data.source import Preparing, Source
from ftrain.data.split import split_automatically
from ftrain.data.table import ALL, read_table
from ftrain.data.torchvision_datasets import by_name
from ftrain.errors import DataError, SettingsError, as_usage
from ftrain.run.settings import LOCATIONS, Settings
from ftrain.text import listed, shown

T = TypeVar("T")


@attrs.frozen(eq=False)
class Located:
    """The images of a run.

    Attributes:
      settings: with absolute paths in `train_dir` and `val_dir`, in `dataset` and `data`, or, for a table and for
        images that are split automatically, in `data` alone.
      notes: about the images, for the user.
    """

    settings: Settings
    train: Source
    val: Source
    notes: tuple[str, ...] = ()


def locate(settings: Settings, recorded: Mapping[str, Any] | None = None) -> Generator[Preparing, None, Located]:
    """Finds the images that settings locate. Yields its progress, and returns them.

    Args:
      recorded: what config.json records of an automatic split, which is then made again.

    Raises:
      SettingsError, DataError: if there are none, or they cannot be used.
    """
    settings, notes = _with_whole_paths(settings)
    if settings.dataset:
        train, val = as_usage(by_name, settings.dataset, settings.data or default_dataset_folder())
        return _already_split(settings, train, val, notes)
    if settings.train_dir and settings.val_dir:
        images = as_usage(scan, Path(settings.train_dir))
        others = as_usage(scan, Path(settings.val_dir), classes=images.classes)
        return _already_split(settings, images, others, notes)
    assert settings.data is not None
    root = Path(settings.data)
    if is_table(root):
        return (yield from _of_table(settings, root, recorded))
    index = as_usage(scan, as_usage(layout_of, root).train or root)
    fraction = settings.val_fraction
    split = yield from split_automatically(index, fraction=fraction, recorded=recorded)
    notes.append(
        f"{shown(root)} has no val/ folder, so it is split automatically: {len(split.train)} images for training, "
        f"{len(split.val)} for validation (`val_fraction={fraction:g}`)"
    )
    return Located(settings, split.train, split.val, (*notes, *split.notes))


def _of_table(
    settings: Settings, path: Path, recorded: Mapping[str, Any] | None
) -> Generator[Preparing, None, Located]:
    table = yield from read_table(path, task=settings.task)
    notes = list(table.notes)
    if tests := table.others.get("test"):
        images = "1 image" if tests == 1 else f"{tests} images"
        notes.append(f"{images} for testing in {shown(path)}, used neither for training nor for validation")
    train = table.parts.get("train") or table.parts.get(ALL)
    if train is None:
        raise DataError(
            f"the table {shown(path)} has no images for training; expected rows whose split is train, found only "
            f"{listed([*table.parts, *table.others])}"
        )
    if "val" in table.parts:
        return _already_split(settings, train, table.parts["val"], notes)
    fraction = settings.val_fraction
    split = yield from split_automatically(train, fraction=fraction, recorded=recorded)
    notes.append(
        f"{shown(path)} does not say which images are for validation, so they are split automatically: "
        f"{len(split.train)} images for training, {len(split.val)} for validation (`val_fraction={fraction:g}`)"
    )
    return Located(settings, split.train, split.val, (*notes, *split.notes))


def locate_again(settings: Settings, recorded: Mapping[str, Any] | None = None) -> Generator[Preparing, None, Located]:
    """Finds the images of a run that has been started. Arguments and errors as for `locate`."""
    if not any(getattr(settings, name) for name in LOCATIONS):
        raise SettingsError(
            "the images of this run were passed from Python, so config.json does not locate them; pass images as `data`"
        )
    return (yield from locate(settings, recorded))


def parts(path: Path, *, task: Task = "auto") -> Generator[Preparing, None, dict[str, Index]]:
    """Finds the images in a folder: by "train" and "val", or "all" of them if it is one folder of classes. Those in a
    table by its splits. Yields its progress.

    Args:
      task: whether an image of a table has one label or any number of them; auto tells by the labels.

    Raises:
      SettingsError, DataError: if there are none, or they cannot be used.
    """
    _check_is_there(path)
    if is_table(path):
        table = yield from read_table(path, splits=("train", "val", "test", ALL), task=task)
        if table.notes:
            yield Preparing("reading the table", 0, 1, "\n".join(table.notes))
        return table.parts
    found = as_usage(layout_of, path)
    if found.train is None:
        _check_is_intended(path, whole=False)
        return {"all": as_usage(scan, found.val or path)}
    images = {"train": as_usage(scan, found.train)}
    if found.val:
        images["val"] = as_usage(scan, found.val, classes=images["train"].classes)
    return images


def to_end(work: Generator[Any, None, T]) -> T:
    """The result of a generator."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


def default_dataset_folder() -> str:
    """Where torchvision's data sets are downloaded to, if no folder is given."""
    return str(platformdirs.user_cache_path("ftrain") / "datasets")


def _with_whole_paths(settings: Settings) -> tuple[Settings, list[str]]:
    """The settings of `Located`, and notes.

    Raises:
      SettingsError: if they name no images.
    """
    if (settings.train_dir is None) != (settings.val_dir is None):
        raise SettingsError(
            "`train_dir` and `val_dir` must be given together; give both, or `data` for a folder that contains train/ "
            "and val/, or that is to be split"
        )
    if settings.train_dir and settings.val_dir:
        if settings.data or settings.dataset:
            other = "dataset" if settings.dataset else "data"
            raise SettingsError(f"give either `{other}`, or `train_dir` and `val_dir`; got all of them")
        return _in_folders(settings, settings.train_dir, settings.val_dir), []
    if settings.dataset:
        return attrs.evolve(settings, data=os.path.abspath(settings.data or default_dataset_folder())), []
    root = Path(settings.data or "data")
    if settings.data is None and not root.exists():
        root = sample_folder()
        note = f"there is no ./data here: training on the Fashion-MNIST sample in {shown(root)}"
        return _in_folders(settings, root / "train", root / "val"), [note]
    _check_is_there(root)
    if is_table(root):
        return attrs.evolve(settings, data=os.path.abspath(root)), []
    found = as_usage(layout_of, root)
    if found.train and found.val:
        notes = [f"validating on {shown(found.val)}"] if found.val.name.lower() == "test" else []
        notes += [f"{shown(path)} is not used" for path in found.unused if path.name.lower() != "test"]
        return _in_folders(settings, found.train, found.val), notes
    if found.val:
        raise SettingsError(
            f"`data` must contain train/ beside {shown(found.val.name)}/; there is no train/ in {shown(root)}"
        )
    if found.train is None:
        _check_is_intended(root)
    return attrs.evolve(settings, data=os.path.abspath(root)), []


def _already_split(settings: Settings, train: Source, val: Source, notes: list[str]) -> Located:
    default = Settings().val_fraction
    if settings.val_fraction != default:
        notes = [*notes, "`val_fraction` has no effect, because the images are split already"]
    return Located(attrs.evolve(settings, val_fraction=default), train, val, tuple(notes))


def _check_is_intended(folder: Path, *, whole: bool = True) -> None:
    if found := as_usage(intended, folder, whole=whole):
        problem, right = found
        raise SettingsError(f"`data` is {shown(folder)}, which {problem}; use `data={shown(right)}`")


def _check_is_there(root: Path) -> None:
    if root.is_dir() or (is_table(root) and root.is_file()):
        return
    if root.exists():
        raise SettingsError(f"`data` must be a folder, or a table ({', '.join(SUFFIXES)}); {shown(root)} is a file")
    near = similar_path(root)
    hint = f"; did you mean `data={shown(near)}`?" if near else ""
    raise SettingsError(f"`data` is {shown(root)}, which does not exist{hint}")


def _in_folders(settings: Settings, train: str | Path, val: str | Path) -> Settings:
    return attrs.evolve(settings, data=None, train_dir=os.path.abspath(train), val_dir=os.path.abspath(val))
