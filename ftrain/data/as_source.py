"""Data in whatever form the user has it, as a source."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from ftrain.data.arrays import from_arrays
from ftrain.data.datasets import from_dataset
from ftrain.data.folders import scan
from ftrain.data.merged import Task
from ftrain.data.rows import is_table
from ftrain.data.source import Source
from ftrain.data.table import from_table
from ftrain.text import shown

_ATTRIBUTES = ("name", "classes", "labels", "fingerprint", "__len__", "open", "image_name")  # of a Source


def as_source(data: Any, *, classes: Sequence[str] | None = None, name: str = "data", task: Task = "auto") -> Source:
    """A source from a folder, a table, a pair of arrays, a data set, or a source.

    Args:
      data: one of
        - a `Source`, which is returned unchanged;
        - the path of a folder with one folder of images per class, as for `scan`;
        - the path of a table (.csv, .tsv, .jsonl or .parquet) without a column for the split, as for `from_table`;
        - a pair (images, labels) of arrays or tensors, as for `from_arrays`;
        - an indexable data set of (image, label), as for `from_dataset`.
      classes: the names of the classes, by label; for validation data, those of the training data.
      name: of arrays and data sets, in messages. It is part of the fingerprint of a data set.
      task: whether an image of a table has one label or any number of them; auto tells by the labels.

    Raises:
      ValueError: if `data` is none of these or does not fit together, or if the classes of a source are not `classes`.
      DataError: if images cannot be read, or if a folder has no classes or other classes than `classes`.

    >>> train = as_source((np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1]), classes=["cat", "dog"], name="train")
    >>> val = as_source([(np.zeros((8, 8), np.uint8), 1)], classes=train.classes, name="val")
    >>> len(train), len(val), val.classes
    (4, 1, ('cat', 'dog'))
    """
    if all(hasattr(data, attribute) for attribute in _ATTRIBUTES):
        source = cast(Source, data)
        if classes is not None and tuple(source.classes) != tuple(classes):
            raise ValueError(
                f"{shown(source.name)} has the classes {_listed(source.classes)}; expected {_listed(classes)}, in this "
                "order"
            )
        return source
    if isinstance(data, str | os.PathLike):
        if is_table(data):
            return from_table(Path(data), classes=classes, task=task)
        return scan(Path(data), classes=classes)
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], np.ndarray | Tensor):
        return from_arrays(data[0], data[1], classes=classes, name=name)
    if isinstance(data, np.ndarray | Tensor):
        raise ValueError(
            f"{shown(name)} is an array of shape {list(data.shape)} without labels; pass a pair (images, labels)"
        )
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, Mapping | bytes):
        return from_dataset(data, classes=classes, name=name)
    raise ValueError(
        f"{shown(name)} must be a folder, a table, a pair (images, labels) of arrays, an indexable data set of (image, "
        f"label), or a source; got {type(data).__name__}"
    )


def _listed(classes: Sequence[str]) -> str:
    return shown(reprlib.repr(list(classes)))
