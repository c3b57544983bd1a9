"""Where the images of a run are: a folder of folders, two folders, a data set by name, or the sample."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import platformdirs

from ftrain.data.folders import scan
from ftrain.data.sample import sample_folder
from ftrain.data.source import Source
from ftrain.data.torchvision_datasets import by_name
from ftrain.errors import SettingsError, as_usage
from ftrain.run.settings import Settings
from ftrain.text import shown


def located(settings: Settings) -> tuple[Settings, list[str]]:
    """The settings with absolute paths in either `train_dir` and `val_dir`, or `dataset` and `data`; and notes."""
    if (settings.train_dir is None) != (settings.val_dir is None):
        raise SettingsError(
            "`train_dir` and `val_dir` must be given together; give both, or `data` for a folder that contains train/ "
            "and val/"
        )
    if settings.train_dir and settings.val_dir:
        if settings.data or settings.dataset:
            other = "dataset" if settings.dataset else "data"
            raise SettingsError(f"give either `{other}`, or `train_dir` and `val_dir`; got all of them")
        return _in_folders(settings, settings.train_dir, settings.val_dir), []
    if settings.dataset:
        return attrs.evolve(settings, data=os.path.abspath(settings.data or default_dataset_folder())), []
    root = Path(settings.data or "data")
    train, val = root / "train", root / "val"
    if settings.data:
        missing = [shown(folder) for folder in (train, val) if not folder.is_dir()]
        if missing:
            raise SettingsError(
                f"`data` must be a folder that contains train/ and val/; there is no {' and no '.join(missing)}"
            )
    elif not (train.is_dir() and val.is_dir()):
        root = sample_folder()
        note = f"no data/train and data/val in this folder: training on the Fashion-MNIST sample in {shown(root)}"
        return _in_folders(settings, root / "train", root / "val"), [note]
    return _in_folders(settings, train, val), []


def _in_folders(settings: Settings, train: str | Path, val: str | Path) -> Settings:
    return attrs.evolve(settings, data=None, train_dir=os.path.abspath(train), val_dir=os.path.abspath(val))


def open_sources(settings: Settings) -> tuple[Source, Source]:
    """The training and validation images that settings with whole paths locate.

    Raises:
      SettingsError, DataError: if there are none, or they cannot be used.
    """
    if settings.dataset:
        return as_usage(by_name, settings.dataset, settings.data or default_dataset_folder())
    if not (settings.train_dir and settings.val_dir):
        raise SettingsError(
            "the images of this run were passed from Python, so config.json does not locate them; pass images as `data`"
        )
    train = as_usage(scan, Path(settings.train_dir))
    return train, as_usage(scan, Path(settings.val_dir), classes=train.classes)


def default_dataset_folder() -> str:
    """Where torchvision's data sets are downloaded to, if no folder is given."""
    return str(platformdirs.user_cache_path("ftrain") / "datasets")
