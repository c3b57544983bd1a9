"""A folder of class folders, split into train/ and val/."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

import ftrain.random
from ftrain.data.folders import Index
from ftrain.data.order import purpose_key
from ftrain.disk import durable
from ftrain.errors import SettingsError
from ftrain.text import shown

How = Literal["link", "copy"]


def chosen_for_val(index: Index, *, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which images are for validation: of each class, as near to `share` of them as whole images allow, but at least
    one on either side. Which ones follows from the seed and their order.

    Raises:
      SettingsError: for a class with fewer than two images.
    """
    chosen = np.zeros(len(index), dtype=bool)
    for label, name in enumerate(index.classes):
        members = np.flatnonzero(index.labels == label)
        if len(members) < 2:
            raise SettingsError(
                f'the class "{shown(name)}" has {len(members)} image; at least two are needed, one to train on and one '
                "to validate with"
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        order = ftrain.random.permutation(purpose_key(seed, "split", label), len(members)).numpy()
        chosen[members[order[:count]]] = True
    return chosen


def split(index: Index, out: Path, chosen: npt.NDArray[np.bool_], how: How) -> Generator[int]:
    """Makes `out` with train/ and val/, as links to the images or as copies: yields how many are made. `out` is there
    completely or not at all.

    Raises:
      SettingsError: if `out` is there already.
    """
    if out.exists():
        raise SettingsError(f"{shown(out)} is there already; name another folder with --out, or remove it")
    with durable.new_folder(out) as filling:
        for position, path in enumerate(index.paths):
            target = filling / ("val" if chosen[position] else "train") / path
            target.parent.mkdir(parents=True, exist_ok=True)
            source = os.path.abspath(index.name(position))
            if how == "copy":
                shutil.copy2(source, target)
            else:
                target.symlink_to(source)
            yield position + 1
