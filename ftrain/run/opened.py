"""A run that has been opened, as a notebook or a script uses it."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from ftrain.data import as_source
from ftrain.data.folders import scan
from ftrain.data.images import Images
from ftrain.data.index import Index
from ftrain.data.labels import is_multi_label
from ftrain.data.layout import layout_of
from ftrain.data.rows import is_table
from ftrain.data.source import Preparing, Source
from ftrain.data.table import ALL, read_table
from ftrain.disk import checkpoint
from ftrain.errors import DataError, SettingsError, as_usage
from ftrain.module import Apply
from ftrain.run import folder as run_folder
from ftrain.run import inference
from ftrain.run.build import build
from ftrain.run.custom import Custom
from ftrain.run.folder import RunFolder
from ftrain.run.inference import Evaluation, Restored
from ftrain.run.locate import locate_again, to_end
from ftrain.run.spec import RunSpec
from ftrain.state import TrainState
from ftrain.text import shown


class Run:
    """A run, opened by `open_run`. What needs a network takes the checkpoint of the best epoch, unless last=True."""

    def __init__(self, run: RunFolder, spec: RunSpec, custom: Custom, val: Source | None = None) -> None:
        self._run, self._spec, self._custom, self._val = run, spec, custom, val
        self._restored: dict[bool, Restored] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, model={self._spec.model!r}, classes={len(self.classes)})"

    @property
    def folder(self) -> Path:
        """Where the run is."""
        return self._run.path

    @property
    def spec(self) -> RunSpec:
        """Every decision about the run, such as `image_size`, `mean` and `std`; `device` is where this object
        computes."""
        return self._spec

    @property
    def config(self) -> Mapping[str, Any]:
        """What config.json records: settings, versions, device, data."""
        return self._run.config

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        return self._run.classes

    @property
    def thresholds(self) -> dict[str, float]:
        """If images may have several labels, the probability of each class from which on it applies; otherwise empty.
        They are of the best epoch, chosen on its validation images."""
        thresholds = self.restored().thresholds
        return dict(zip(self.classes, thresholds, strict=True)) if thresholds else {}

    @property
    def damage(self) -> tuple[str, ...]:
        """What was found damaged so far, and what was used instead."""
        found = [self._run.damage] if self._run.damage else []
        return (*found, *(cause for restored in self._restored.values() for cause in restored.damaged))

    @property
    def metrics(self) -> dict[str, list[Any]]:
        """The lines of metrics.jsonl as columns of equal length, ready for `pandas.DataFrame(run.metrics)`. A line of
        kind "step" has loss, accuracy, lr ...; one of kind "epoch" has train_loss, val_loss, val_accuracy ...; what a
        line does not have is nan."""
        lines = [_flat(line) for line in run_folder.read_metrics(self._run)[0]]
        names = list(dict.fromkeys(name for line in lines for name in line))
        return {name: [line.get(name, float("nan")) for line in lines] for name in names}

    @property
    def apply(self) -> Apply:
        """The network as a pure function of parameters, buffers and images uint8 [B, 3, S, S], which it normalises."""
        return self.restored().program.apply

    def restored(self, *, last: bool = False) -> Restored:
        """The network with its parameters and the checkpoint that they are from."""
        if last not in self._restored:
            self._restored[last] = inference.restore(self._run, self._spec, self._custom, last=last)
        return self._restored[last]

    def state(self, *, last: bool = False) -> TrainState:
        """The whole training state of a checkpoint, with optimizer state, and averages if the run keeps any.

        Raises:
          CheckpointError: if there is no checkpoint, or none can be read.
        """
        template = build(self._spec, self._custom, pretrained=False).template
        return checkpoint.load_first(inference.candidates(self._run, last=last), template).state

    def module(self, *, last: bool = False) -> torch.nn.Module:
        """The trained network as a module in evaluation mode. Its inputs are float images [B, 3, S, S], normalised:
        (pixel / 255 - mean) / std, with `run.spec.mean` and `run.spec.std`."""
        restored = self.restored(last=last)
        return restored.program.module(restored.state.params, restored.state.buffers)

    def predict(self, images: Sequence[Any], *, top: int | None = None, last: bool = False) -> list[dict[str, Any]]:
        """The most probable classes of images.

        Args:
          images: paths of image files, PIL images, uint8 arrays [H, W, 3] or [H, W], and uint8 tensors [3, H, W], in
            any combination.
          top: classes per image. Default: 3, or if images may have several labels, all whose probability is at least
            their threshold, which may be none.

        Returns:
          For each image {"image": path or position, "classes": [{"class": name, "probability": p}, ...]}, the most
          probable class first, as `ftrain predict --json` prints them.

        Raises:
          DataError: if an image cannot be read.
        """
        single = isinstance(images, str | os.PathLike) or not hasattr(images, "__len__")
        if single or getattr(images, "ndim", 4) == 3:
            what = "path" if isinstance(images, str | os.PathLike) else "image"
            raise SettingsError(f"`images` must be a list of images; got a single {what}. Put it in a list")
        if top is not None and top < 1:
            raise SettingsError(f"`top` must be at least 1; got {top}")
        rankings = inference.predict(self.restored(last=last), images, top=top)
        return [
            prediction(image, position, ranking)
            for position, (image, ranking) in enumerate(zip(images, rankings, strict=True))
        ]

    def evaluate(self, data: Any = None, *, last: bool = False, workers: int | None = None) -> Evaluation:
        """Evaluates the network on labelled images.

        Args:
          data: a folder of class folders or one that contains val/, a table, or whatever `fit` takes as one of its
            pair; by default, and for the folder or table that the run was trained on, the run's validation images. Of
            another table, the images for validation are used, or else those for testing, or else all.
          workers: processes that load images; by default as in the run.

        Raises:
          SettingsError, DataError: if the images cannot be used.
        """
        return to_end(self.evaluation(self.images(data), last=last, workers=workers))

    def evaluation(
        self, images: Images, *, last: bool = False, workers: int | None = None
    ) -> Generator[int, None, Evaluation]:
        """Evaluates the network on the validation images of `images`: yields how many batches are done, and returns the
        result. Arguments as for `evaluate`."""
        result = yield from inference.evaluation(self.restored(last=last), images, workers=workers)
        if "loss" in self.config.get("custom", {}) and self._custom.loss is None:
            del result.metrics["loss"]  # of another loss than the run's own, which was not passed to `open_run`
        return result

    def images(self, data: Any = None) -> Images:
        """Labelled images as batches for evaluation; arguments and errors as for `evaluate`."""
        return to_end(self.finding(data))

    def finding(self, data: Any = None) -> Generator[Preparing, None, Images]:
        """Finds what `images` returns. Yields its progress."""
        val = yield from self._source(data)
        return self._spec.images(val, val)

    def _source(self, data: Any) -> Generator[Preparing, None, Source]:
        several = self._spec.is_multi_label
        source = yield from self._found(data)
        if is_multi_label(source.labels) == several:
            return source
        if several and isinstance(source, Index):  # a folder, which names the one label of each image
            return attrs.evolve(source, labels=np.eye(len(source.classes), dtype=np.uint8)[source.labels])
        expected = "0 or 1 for each class, of shape [N, C]" if several else "class numbers of shape [N]"
        raise SettingsError(
            f"the run is {self._spec.task}, so the labels of images to evaluate it on must be {expected}; those of "
            f"{shown(source.name)} have the shape {list(source.labels.shape)}"
        )

    def _found(self, data: Any) -> Generator[Preparing, None, Source]:
        if data is None:
            return self._val or (yield from self._own_validation())
        if not isinstance(data, str | os.PathLike):
            return as_usage(as_source, data, classes=self.classes)
        own = self._run.settings.data
        if is_table(data):
            if own is not None and os.path.realpath(data) == os.path.realpath(own):
                return (yield from self._own_validation())
            return (yield from self._of_table(Path(data)))
        if self._run.split is not None and own is not None and os.path.realpath(data) == os.path.realpath(own):
            return (yield from self._own_validation())  # the rest has been trained on
        val = as_usage(layout_of, Path(data)).val  # as for fit
        has_val = val is not None and val.name not in self.classes
        return as_usage(scan, val if val and has_val else Path(data), classes=self.classes)

    def _of_table(self, path: Path) -> Generator[Preparing, None, Source]:
        for splits in (("val", ALL), ("test",), ("train",)):
            table = yield from read_table(path, splits=splits, classes=self.classes, task=self._spec.task)
            if table.parts:
                return next(iter(table.parts.values()))
        raise AssertionError("a table without rows")

    def _own_validation(self) -> Generator[Preparing, None, Source]:
        val = (yield from locate_again(self._run.settings, self._run.split)).val
        if self._run.split is not None and val.fingerprint != self.config["data"]["val"]["fingerprint"]:
            raise SettingsError(
                f"the images in {shown(val.name)}, of which a part was chosen for validation, have changed since the "
                "run started, so that this part is no longer known. Undo the changes, or pass other images as `data`"
            )
        return val


def prediction(image: Any, position: int, ranking: inference.Ranking | DataError) -> dict[str, Any]:
    """The classes of an image as JSON values.

    Raises:
      DataError: if the image could not be read.
    """
    if isinstance(ranking, DataError):
        raise ranking
    name = os.fsdecode(image) if isinstance(image, str | os.PathLike) else position
    return {"image": name, "classes": [{"class": each, "probability": p} for each, p in ranking]}


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in line.items():
        flat |= {f"{name}_{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return flat
