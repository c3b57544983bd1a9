"""How images lie in a folder: in train/ and val/, or in one folder per class; and which folder was meant if they lie
otherwise."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import attrs

from ftrain.data.folders import is_ignored, is_output, suffixes
from ftrain.text import shown

TRAINING = "train"
VALIDATION = ("val", "valid", "validation", "test")  # the first of these that a folder contains is used
_ALIASES = {"training": "train", "testing": "test"}


@attrs.frozen
class Layout:
    """The parts of a folder, recognised by their names in any case.

    Attributes:
      train: the folder of training images, or None.
      val: the folder of validation images, or None.
      unused: further folders with names of validation images.
    """

    train: Path | None = None
    val: Path | None = None
    unused: tuple[Path, ...] = ()


def layout_of(folder: Path) -> Layout:
    """The parts of a folder. A folder of classes, of which one happens to be called train, say, has none. A test folder
    without class folders, as of a competition, is no part.

    Raises:
      ValueError: if two of its folders have the same name but for the case.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     for part in ("Train/cat", "valid/cat", "test/cat"):
    ...         (Path(name) / part).mkdir(parents=True)
    ...     found = layout_of(Path(name))
    >>> found.train.name, found.val.name, [path.name for path in found.unused]
    ('Train', 'valid', ['test'])
    """
    parts: dict[str, Path] = {}
    others = []
    for path in folders_in(folder):
        name = _part(path)
        if name not in (TRAINING, *VALIDATION):
            others.append(path)
        elif name in parts:
            raise ValueError(f"{shown(folder)} contains both {parts[name].name}/ and {path.name}/; rename one of them")
        else:
            parts[name] = path
    if others and not any(folders_in(path) for path in parts.values()):
        return Layout()
    if TRAINING in parts and "test" in parts and folders_in(parts[TRAINING]) and not folders_in(parts["test"]):
        del parts["test"]  # images without labels, as in a competition
    validation = [parts[name] for name in VALIDATION if name in parts]
    return Layout(parts.get(TRAINING), validation[0] if validation else None, tuple(validation[1:]))


def intended(folder: Path, *, whole: bool = True) -> tuple[str, Path] | None:
    """What is wrong with a folder that is given as one of classes, and the folder that was probably meant; None if
    nothing is.

    Args:
      whole: whether it should hold all images, and not only those of train/, say.
    """
    above = folder.parent if folder.name not in ("", "..") else Path(os.path.abspath(folder)).parent
    if whole and _part(folder) in (TRAINING, *VALIDATION):
        around = layout_of(above)
        if around.train and around.val:
            other = around.val if folder.name == around.train.name else around.train
            return f"is only a part of the images; beside it is {shown(other)}", above
    inside = folders_in(folder)
    for path in inside:
        found = layout_of(path)
        if found.train and found.val:
            return f"contains {shown(path.name)}/ with {shown(found.train.name)}/ and {shown(found.val.name)}/", path
    with_images = [path for path in inside if _has_images(path, depth=2) and not is_output(path)]
    if len(with_images) > 1:
        return None
    if with_images:
        if len(folders_in(with_images[0])) > 1:
            return f"contains a single folder, {shown(with_images[0].name)}/", with_images[0]
        return None
    if not _has_images(folder, depth=1):
        return None
    classes = [path for path in folders_in(above) if _has_images(path, depth=1)]
    if len(classes) > 1:
        around = layout_of(Path(os.path.abspath(above)).parent) if _part(above) == TRAINING else Layout()
        return "is the folder of one class", above.parent if around.train and around.val else above
    return None


def similar_path(path: Path) -> Path | None:
    """An existing file or folder beside a path that does not exist, with nearly the same name."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1)
    return path.with_name(near[0]) if near else None


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden, sorted by their bytes; none if it cannot be read."""
    try:
        found = [path for path in folder.iterdir() if not is_ignored(os.fsencode(path.name)) and path.is_dir()]
    except OSError:
        return []
    return sorted(found, key=lambda path: os.fsencode(path.name))


def _part(folder: Path) -> str:
    """The name of a folder, by which it is recognised as a part of the images."""
    name = folder.name.lower()
    return _ALIASES.get(name, name)


def _has_images(folder: Path, *, depth: int) -> bool:
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    if any(name.lower().endswith(suffixes()) for name in names):
        return True
    return depth > 1 and any(_has_images(path, depth=depth - 1) for path in folders_in(folder))
