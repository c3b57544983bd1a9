"""The labels of images: the class of each, or, if an image may have several, for each class whether it applies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[Any]  # int64 [N], or of multi-label data uint8 [N, C] of 0 and 1


def is_multi_label(labels: Labels) -> bool:
    """Whether an image may have several labels, or none.

    >>> is_multi_label(np.array([0, 2])), is_multi_label(np.array([[1, 0, 1], [0, 0, 0]]))
    (False, True)
    """
    return labels.ndim == 2


def images_of_class(labels: Labels, classes: int) -> list[int]:
    """How many images each class has.

    >>> images_of_class(np.array([0, 2, 2]), 3), images_of_class(np.array([[1, 0, 1], [0, 0, 1]]), 3)
    ([1, 0, 2], [1, 0, 2])
    """
    counts: list[int]
    if is_multi_label(labels):
        counts = labels.sum(axis=0, dtype=np.int64).tolist()
    else:
        counts = np.bincount(labels, minlength=classes).tolist()
    return counts


def is_of_class(labels: Labels, label: int) -> npt.NDArray[np.bool_]:
    """Which images have a label, bool [N].

    >>> is_of_class(np.array([0, 2]), 2).tolist(), is_of_class(np.array([[1, 0, 1], [0, 0, 0]]), 2).tolist()
    ([False, True], [True, False])
    """
    found: npt.NDArray[np.bool_] = labels[:, label] > 0 if is_multi_label(labels) else labels == label
    return found


def label_names(label: Any, classes: Sequence[str]) -> str:
    """The label of an image in words; several are separated by |.

    Args:
      label: an element of labels: a class number, or 0 or 1 for each class.

    >>> label_names(1, ["cat", "dog"]), label_names(np.array([1, 1]), ["cat", "dog"]), label_names([0, 0], ["a", "b"])
    ('dog', 'cat|dog', 'no label')
    """
    if np.ndim(label) == 0:
        return classes[int(label)]
    return "|".join(name for name, applies in zip(classes, label, strict=True) if applies) or "no label"
