"""Splitting labelled images into those to train on and those to validate with."""

from __future__ import annotations

import base64
import os
import shutil
import zlib
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
import numpy.typing as npt
import torch

import ftrain.random
from ftrain.data.index import Index
from ftrain.data.labels import images_of_class, is_multi_label, is_of_class
from ftrain.data.order import purpose_key
from ftrain.data.similar import near_duplicates
from ftrain.data.source import Preparing
from ftrain.disk import durable
from ftrain.errors import DataError, SettingsError
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
        groups = joined((yield from near_duplicates(index)), index.groups)
        chosen = choose_validation(index, fraction=fraction, seed=seed, groups=groups)
        if not chosen.any():
            raise DataError(
                f"the images of {shown(index.name)} cannot be split, because each class has too few images that do not "
                f"belong together{' as groups' * (index.groups is not None)} or look alike: at least one is needed for "
                "training and one for validation. Add images, or say which are for validation, by a column `split` or "
                "a folder val/"
            )
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
    for training and one for validation; for that, and only for that, a group is divided. Groups that a table names, and
    those of images that may have several labels, are never divided; then it is at least one for training. Each image
    has a random number that depends on the seed and its path alone, and the groups with the smallest numbers are
    chosen. So most images stay where they are when others are added.

    If images may have several labels, the classes are served from the rarest on, each with the groups that have not
    been decided for a rarer one; images without labels are a class of their own, the last (Sechidis et al., On the
    stratification of multi-label data, 2011).

    Args:
      groups: int64 [N]; images with the same number stay together.
    """
    draws, chosen = _draws(index, seed), np.zeros(len(index), dtype=bool)
    _, first, group_of = np.unique(
        np.arange(len(index)) if groups is None else groups, return_index=True, return_inverse=True
    )
    members = np.split(np.argsort(group_of, kind="stable"), np.cumsum(np.bincount(group_of))[:-1])
    order = np.argsort(draws[first], kind="stable")
    multi_label = is_multi_label(index.labels)
    whole = multi_label or index.groups is not None
    decided = np.zeros(len(members), dtype=bool)
    for of_class in _by_rarity(index) if multi_label else _by_label(index):
        count = int(of_class.sum())
        if count < 2:
            continue
        wanted = min(max(1, round(fraction * count)), count - 1)
        taken = int((chosen & of_class).sum())  # with groups of earlier classes
        left = []
        of_groups = of_class[first]  # in a group of several classes, its first image counts
        if multi_label:
            of_groups = (np.bincount(group_of, weights=of_class, minlength=len(members)) > 0) & ~decided
            decided |= of_groups
        for group in order[of_groups[order]].tolist():
            more = int(of_class[members[group]].sum())
            if taken + more <= wanted:
                chosen[members[group]] = True
                taken += more
            else:
                left.append((abs(taken + more - wanted), group))
        if left and min(left)[0] < wanted - taken:
            chosen[members[min(left)[1]]] = True
        if not whole and int((chosen & of_class).sum()) in (0, count):
            positions = np.flatnonzero(of_class)
            chosen[positions] = False
            chosen[positions[np.argsort(draws[positions], kind="stable")[:wanted]]] = True
    for of_class in _by_label(index) if whole else ():
        if of_class.any() and chosen[of_class].all():
            last = [group for group in order.tolist() if of_class[members[group]].any()][-1]
            chosen[members[last]] = False
    return chosen


def joined(groups: npt.NDArray[np.int64], others: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    """Groups such that images that are together in one of the two are together: int64 [N], the position of the first
    image of each group.

    >>> joined(np.array([0, 0, 2, 3, 4]), np.array([0, 1, 1, 3, 4])).tolist()
    [0, 0, 0, 3, 4]
    """
    if others is None:
        return groups
    parents = list(range(len(groups)))

    def root(position: int) -> int:
        while parents[position] != position:
            parents[position] = parents[parents[position]]
            position = parents[position]
        return position

    for numbers in (groups, others):
        _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        for position, number in enumerate(first[inverse].tolist()):
            one, other = sorted((root(position), root(number)))
            parents[other] = one
    return np.array([root(position) for position in range(len(groups))], dtype=np.int64)


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


def _by_label(index: Index) -> Iterator[npt.NDArray[np.bool_]]:
    """Which images each class has, in the order of the labels."""
    return (is_of_class(index.labels, label) for label in range(len(index.classes)))


def _by_rarity(index: Index) -> Iterator[npt.NDArray[np.bool_]]:
    """Which images each class has, the rarest first, and finally the images without labels."""
    counts = images_of_class(index.labels, len(index.classes))
    for label in sorted(range(len(counts)), key=lambda label: counts[label]):
        yield is_of_class(index.labels, label)
    yield index.labels.sum(axis=1) == 0


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
    counts = images_of_class(index.labels, len(index.classes))
    if alone := [name for name, count in zip(index.classes, counts, strict=True) if count == 1]:
        yield f"classes with a single image, which is not used for validation: {listed(alone)}"
    if divided := len(np.intersect1d(groups[chosen], groups[~chosen])):
        what = "1 group" if divided == 1 else f"{divided} groups"
        yield (
            f"{what} of near-duplicates had to be divided between training and validation, because nearly all images "
            "of a class look alike; the validation accuracy says little about new images of it"
        )
