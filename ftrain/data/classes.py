"""The names of the classes that labels stand for."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ftrain.text import shown


def class_names(labels: npt.NDArray[Any], classes: Sequence[str] | None, name: str) -> tuple[str, ...]:
    """The name of each class, checked against the labels.

    Args:
      labels: integers [N], N > 0.
      classes: the names by label; None names the classes "0", "1" and so on.
      name: of the source, for messages.

    Raises:
      ValueError: if a label is negative or has no name, if without `classes` the labels have gaps, if names are not
        distinct strings, or if there are fewer than two classes.

    >>> class_names(np.array([1, 0, 1]), ["cat", "dog"], "mine")
    ('cat', 'dog')
    """
    smallest, largest = int(labels.argmin()), int(labels.argmax())
    if labels[smallest] < 0:
        raise ValueError(f"labels must count from 0; {shown(name)}[{smallest}] has the label {labels[smallest]}")
    if classes is None:
        present = np.unique(labels)
        gaps = np.flatnonzero(present != np.arange(len(present)))
        if len(gaps):
            raise ValueError(
                f"no image of {shown(name)} has the label {gaps[0]}, but the largest label is {labels[largest]}; "
                "number the classes from 0 without gaps, or name all of them with `classes`"
            )
        known = tuple(str(label) for label in present.tolist())
    elif isinstance(classes, str) or not all(isinstance(each, str) for each in classes):
        raise ValueError(f"`classes` must be a list of names, one for each label; got {reprlib.repr(classes)}")
    else:
        known = tuple(classes)
        repeated = [each for each, count in Counter(known).items() if count > 1]
        if repeated:
            raise ValueError(f'`classes` must be distinct names; got "{shown(repeated[0])}" more than once')
        if labels[largest] >= len(known):
            raise ValueError(
                f"{shown(name)}[{largest}] has the label {labels[largest]}, but the labels of the {len(known)} classes "
                f"are 0 to {len(known) - 1}"
            )
    if len(known) < 2:
        raise ValueError(f"a classifier needs at least two classes; {shown(name)} has {len(known)}")
    return known
