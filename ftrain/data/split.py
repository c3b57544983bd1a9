"""Splitting a folder of class folders into train/ and val/."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

import ftrain.random
from ftrain.data.index import Index
from ftrain.data.order import purpose_key
from ftrain.disk import durable
from ftrain.errors import SettingsError
from ftrain.text import shown

How = Literal["link", "copy"]


def choose_validation(index: Index, *, fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which images are for validation, bool [N]: of each class a fraction as close to `fraction` as whole images allow,
    but at least one image for training and one for validation. The choice depends on the seed and the order alone.

    Raises:
      SettingsError: for a class with fewer than two images.
    """
    chosen = np.zeros(len(index), dtype=bool)
    for label, name in enumerate(index.classes):
        members = np.flatnonzero(index.labels == label)
        if len(members) < 2:
            raise SettingsError(
                f'the class "{shown(name)}" has {len(members)} image; it needs at least two, one for training and one '
                "for validation"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        order = ftrain.random.permutation(purpose_key(seed, "split", label), len(members)).numpy()
        chosen[members[order[:count]]] = True
    return chosen


def split(index: Index, out: Path, chosen: npt.NDArray[np.bool_], how: How) -> Generator[int]:
    """Creates the folder `out` with train/ and val/, as links to the images or as copies. Yields the number of images
    done. `out` appears only when it is complete.

    Raises:
      SettingsError: if `out` exists.
    """
    if out.exists():
        raise SettingsError(f"{shown(out)} already exists; choose another folder for `out`, or remove it")
    with durable.new_folder(out) as filling:
        for position, path in enumerate(index.paths):
            target = filling / ("val" if chosen[position] else "train") / path
            target.parent.mkdir(parents=True, exist_ok=True)
            source = os.path.abspath(index.image_name(position))
            if how == "copy":
                shutil.copy2(source, target)
            else:
                target.symlink_to(source)
            yield position + 1
