"""Splitting labelled images into those to train on and those to validate with."""

from __future__ import annotations

import base64
import os
import shutil
import zlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
import numpy.typing as npt
import torch

import ftrain.random
from ftrain.data.index import Index
from ftrain.data.order import purpose_key
from ftrain.data.similar import near_duplicates
from ftrain.data.source import Preparing
from ftrain.disk import durable
from ftrain.errors import SettingsError
from ftrain.text import listed, shown

How = Literal["link", "copy"]


@attrs.frozen
class Split:
    """A split of an index.

    Attributes:
      train, val: its parts.
      notes: what is unusual about it, in words.
    """

    train: Index
    val: Index
    notes: tuple[str, ...] = ()


def split_automatically(
    index: Index, *, fraction: float, seed: int = 0, recorded: Mapping[str, Any] | None = None
) -> Generator[Preparing, None, Split]:
    """Splits an index as `choose_validation` does, with near-duplicates together. Yields its progress, and returns the
    parts.

    Args:
      recorded: `Index.split` of an earlier split. If it is of these images and this fraction, it is used again.
    """
    chosen = _read(recorded, index, fraction) if recorded else None
    notes: tuple[str, ...] = ()
    if chosen is None:
        groups = yield from near_duplicates(index)
        chosen = choose_validation(index, fraction=fraction, seed=seed, groups=groups)
        notes = tuple(unusual(index, chosen, groups))
    record = {
        "fraction": fraction,
        "images": len(index),
        "fingerprint": index.fingerprint,
        "val": base64.b64encode(np.packbits(chosen).tobytes()).decode(),
    }
    return Split(index.part(~chosen, split=record), index.part(chosen, split=record, skipped={}), notes)


def choose_validation(
    index: Index, *, fraction: float, seed: int, groups: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.bool_]:
    """Which images are for validation, bool [N].

    Of each class it is a fraction as close to `fraction` as whole groups allow, but of two images or more at least one
    for training and one for validation; for that, and only for that, a group is divided. Each image has a random number
    that depends on the seed and its path alone, and the groups with the smallest numbers are chosen. So most images
    stay where they are when others are added.

    Args:
      groups: int64 [N]; images with the same number stay together.
    """
    draws, chosen = _draws(index, seed), np.zeros(len(index), dtype=bool)
    _, first, group_of = np.unique(
        np.arange(len(index)) if groups is None else groups, return_index=True, return_inverse=True
    )
    members = np.split(np.argsort(group_of, kind="stable"), np.cumsum(np.bincount(group_of))[:-1])
    order = np.argsort(draws[first], kind="stable")
    for label in range(len(index.classes)):
        of_class = index.labels == label
        count = int(of_class.sum())
        if count < 2:
            continue
        wanted = min(max(1, round(fraction * count)), count - 1)
        taken = int((chosen & of_class).sum())  # with groups of earlier classes
        left = []
        for group in order[index.labels[first[order]] == label].tolist():
            more = int(of_class[members[group]].sum())
            if taken + more <= wanted:
                chosen[members[group]] = True
                taken += more
            else:
                left.append((abs(taken + more - wanted), group))
        if left and min(left)[0] < wanted - taken:
            chosen[members[min(left)[1]]] = True
        if int((chosen & of_class).sum()) in (0, count):
            positions = np.flatnonzero(of_class)
            chosen[positions] = False
            chosen[positions[np.argsort(draws[positions], kind="stable")[:wanted]]] = True
    return chosen


def split_into_folders(index: Index, out: Path, chosen: npt.NDArray[np.bool_], how: How) -> Generator[int]:
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


def _draws(index: Index, seed: int) -> npt.NDArray[np.float64]:
    """A number for each image, uniform in [0, 1)."""
    paths = torch.tensor([zlib.crc32(os.fsencode(path)) for path in index.paths])
    keys = ftrain.random.fold_in(purpose_key(seed, "split", 0), paths)
    draw = torch.func.vmap(lambda key: ftrain.random.uniform(key, (), torch.float64))
    numbers: npt.NDArray[np.float64] = draw(keys).numpy()
    return numbers


def _read(recorded: Mapping[str, Any], index: Index, fraction: float) -> npt.NDArray[np.bool_] | None:
    same = (recorded["fingerprint"], recorded["fraction"]) == (index.fingerprint, fraction)
    if not same:
        return None
    bits = np.frombuffer(base64.b64decode(recorded["val"]), np.uint8)
    return np.unpackbits(bits, count=len(index)).astype(bool)


def unusual(index: Index, chosen: npt.NDArray[np.bool_], groups: npt.NDArray[np.int64]) -> Generator[str]:
    """What is unusual about a split, in words."""
    counts = np.bincount(index.labels, minlength=len(index.classes))
    if alone := [index.classes[label] for label in np.flatnonzero(counts == 1).tolist()]:
        yield f"classes with a single image, which is not used for validation: {listed(alone)}"
    if divided := len(np.intersect1d(groups[chosen], groups[~chosen])):
        what = "1 group" if divided == 1 else f"{divided} groups"
        yield (
            f"{what} of near-duplicates had to be divided between training and validation, because nearly all images "
            "of a class look alike; the validation accuracy says little about new images of it"
        )
