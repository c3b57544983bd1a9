"""What a run notes about itself, and whether it may go on under other settings, over other data."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import PIL
import torch
import torchvision

import ftrain
from ftrain.data.batches import Images
from ftrain.data.folders import Index
from ftrain.data.source import Source
from ftrain.errors import SettingsError
from ftrain.run import folder as runs
from ftrain.run import kernels
from ftrain.run.folder import Run
from ftrain.run.settings import HARMLESS, PLACES, Settings, flag
from ftrain.text import shown


def new_run(
    settings: Settings, images: Images, folder: Path, command: Sequence[str], *, asked: Mapping[str, Any] | None = None
) -> Run:
    """A new run with resolved settings. `loop.fit` writes into its folder when all is ready.

    Args:
      asked: the settings that the user gave.

    Raises:
      SettingsError: if the folder is there and not empty.
    """
    runs.check_free(folder)
    config = {
        "settings": attrs.asdict(settings),
        "asked": dict(asked or {}),
        "command": list(command),
        "device": describe_device(torch.device(settings.device)),
        "kernels": kernels.report(settings, len(images.train), asked="compile" in (asked or {})),
        "versions": _versions(),
        "data": _data(images),
        "classes": list(images.train.classes),
    }
    return Run(folder, settings, images.train.classes, config)


def resumed_run(
    run: Run,
    settings: Settings,
    images: Images,
    command: Sequence[str],
    *,
    asked: Mapping[str, Any] | None = None,
    asked_in_full: bool = False,
    override: bool = False,
) -> Run:
    """The run with the settings to go on under.

    Args:
      asked: the settings that the user gave.
      asked_in_full: whether a setting that was given when the run began, and now is not, counts as changed.
      override: whether to go on although the result changes.

    Raises:
      SettingsError: if a setting that the result depends on, or the data, is not what it was.
    """
    asked = dict(asked or {})
    names = [field.name for field in attrs.fields(Settings) if field.name not in HARMLESS | {"out", *PLACES}]
    was, now = _that_matter(run.settings), _that_matter(settings)
    changes = [f"{flag(name)} was {was[name]}, is {now[name]}" for name in names if was[name] != now[name]]
    if asked_in_full:
        gone = [name for name in names if name in run.config["asked"] and name not in asked and was[name] == now[name]]
        changes += [f"{flag(name)} was given as {was[name]}, and is not given" for name in gone]
    for name, source in _sources(images).items():
        noted = run.config["data"][name]
        if source.fingerprint != noted["fingerprint"]:
            changes.append(f"the {name} images are others than when the run began: {_changes(noted, source)}")
    if changes and not override:
        raise SettingsError(
            f"{shown(run.folder)} cannot go on, because its result would change: {'; '.join(changes)}. Give them as "
            "they were, begin a new run, or go on all the same with --override"
        )
    if len(images.train.classes) != len(run.classes):
        raise SettingsError(
            f"{shown(run.folder)} was begun with {len(run.classes)} classes, and there are {len(images.train.classes)} "
            "now, for which its network has no outputs; begin a new run"
        )
    why = run.config.get("kernels", {}).get("compile_because")
    decided = {"compile_because": why} if why and "compile" not in asked else {}  # when the run began
    again = {"command": list(command), "versions": _versions(), "changes": changes}
    config = {
        **run.config,
        "settings": attrs.asdict(settings),
        "asked": asked if asked_in_full else {**run.config["asked"], **asked},
        "kernels": {**kernels.report(settings, len(images.train), asked="compile" in asked), **decided},
        "data": _data(images),
        "classes": list(images.train.classes),
        "resumed": [*run.config.get("resumed", []), again],
    }
    return attrs.evolve(run, settings=settings, classes=images.train.classes, config=config)


def describe_device(device: torch.device) -> str:
    """The device as a person would name it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def _that_matter(settings: Settings) -> dict[str, Any]:
    """The settings by name, with one value for those that give the same result."""
    values = attrs.asdict(settings)
    exact = settings.crop_scale == 1.0  # a cache then keeps just what the network sees
    if settings.schedule == "constant":  # no step depends on how many follow
        values["epochs"] = "any"
    values["cache"] = "any" if exact else "none" if settings.cache == "none" else "disk or ram"
    return values


def _sources(images: Images) -> dict[str, Source]:
    return {"train": images.train, "val": images.val}


def _data(images: Images) -> dict[str, Any]:
    return {
        name: {
            "from": source.title,
            "images": len(source),
            "fingerprint": source.fingerprint,
            "classes": _by_class(source),
        }
        for name, source in _sources(images).items()
    }


def _by_class(source: Source) -> dict[str, Any]:
    if isinstance(source, Index):
        return source.class_fingerprints()
    counts = np.bincount(source.labels, minlength=len(source.classes)).tolist()
    return {name: {"images": count} for name, count in zip(source.classes, counts, strict=True)}


def _changes(noted: Mapping[str, Any], source: Source) -> str:
    was, now = noted["classes"], _by_class(source)
    counted = [
        f'"{shown(name)}" had {was[name]["images"]} images, has {now[name]["images"]}'
        if was[name]["images"] != now[name]["images"]
        else f'"{shown(name)}" has images of other names or sizes'
        for name in was
        if name in now and was[name] != now[name]
    ]
    gone = [f'"{shown(name)}" is gone' for name in was if name not in now]
    new = [f'"{shown(name)}" is new' for name in now if name not in was]
    return ", ".join(counted + gone + new) or "their pixels differ"


def _versions() -> dict[str, str]:
    return {
        "ftrain": ftrain.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
    }
