"""What a run records about itself, and whether it may resume with other settings, data or source."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import PIL
import torch
import torchvision

import ftrain
from ftrain.data.images import Images
from ftrain.data.index import Index
from ftrain.data.labels import images_of_class
from ftrain.data.source import Source
from ftrain.errors import SettingsError
from ftrain.run import folder as run_folder
from ftrain.run import kernels
from ftrain.run.custom import Custom, differences
from ftrain.run.folder import RunFolder
from ftrain.run.settings import HARMLESS, LOCATIONS, SPLITS, Settings
from ftrain.run.spec import RunSpec
from ftrain.text import shown


def new_run(
    spec: RunSpec,
    images: Images,
    folder: Path,
    command: Sequence[str],
    *,
    custom: Custom | None = None,
    asked: Mapping[str, Any] | None = None,
    processes: int = 1,
) -> RunFolder:
    """A new run. Nothing is written: `fit` writes into the folder when everything is ready.

    Args:
      command: the command line, or the call, that started the run.
      asked: the settings that the user gave.
      processes: how many train the run.

    Raises:
      SettingsError: if the folder exists and is not empty.
    """
    run_folder.check_free(folder)
    return RunFolder(folder, _config(spec, images, command, custom or Custom(), dict(asked or {}), processes))


def resumed_run(
    run: RunFolder,
    spec: RunSpec,
    images: Images,
    command: Sequence[str],
    *,
    custom: Custom | None = None,
    asked: Mapping[str, Any] | None = None,
    asked_in_full: bool = False,
    override: bool = False,
    processes: int = 1,
) -> RunFolder:
    """The run as it resumes with a spec.

    Args:
      asked: the settings that the user gave.
      asked_in_full: whether a setting that was given when the run started, and is not given now, counts as changed.
      override: whether to resume although the result changes.
      processes: how many train the run from now on.

    Raises:
      SettingsError: if a setting that the result depends on, the data, or the source of the caller's own network or
        functions has changed.
    """
    asked = dict(asked or {})
    names = [field.name for field in attrs.fields(Settings) if field.name not in HARMLESS | {"out", *LOCATIONS}]
    was, now = _relevant(attrs.asdict(run.settings)), _relevant(spec.recorded)
    changes = [f"`{name}` was {was[name]}, is {now[name]}" for name in names if was[name] != now[name]]
    if asked_in_full:
        gone = [name for name in names if name in run.config["asked"] and name not in asked and was[name] == now[name]]
        changes += [f"`{name}` was given as {was[name]}, and is not given now" for name in gone]
    custom_record = (custom or Custom()).record(spec.model)
    changes += differences(run.config.get("custom", {}), custom_record)
    for name, source in _sources(images).items():
        recorded = run.config["data"][name]
        if source.fingerprint != recorded["fingerprint"]:
            changes.append(
                f"the {SPLITS[name]} images have changed since the run started: {_changes(recorded, source)}"
            )
    if changes and not override:
        raise SettingsError(
            f"{shown(run.path)} cannot resume, because its result would change: {'; '.join(changes)}. Undo the "
            "changes, start a new run, or resume anyway with `override=True`"
        )
    if len(images.train.classes) != len(run.classes):
        raise SettingsError(
            f"{shown(run.path)} was started with {len(run.classes)} classes, and there are now "
            f"{len(images.train.classes)}, for which its network has no outputs; start a new run"
        )
    config = _config(spec, images, command, custom or Custom(), asked, processes)
    because = run.config.get("kernels", {}).get("compile_because")
    if because and "compile" not in asked:
        config["kernels"]["compile_because"] = because  # decided when the run started
    this = {name: config[name] for name in ("command", "versions", "processes")} | {"changes": changes}
    config |= {
        "asked": asked if asked_in_full else {**run.config["asked"], **asked},
        "resumed": [*run.config.get("resumed", []), this],
    }
    started = {name: run.config[name] for name in ("command", "device", "versions")}
    started["processes"] = run.config.get("processes", 1)
    return attrs.evolve(run, config={**run.config, **config, **started})


def describe_device(device: torch.device, threads: int = 0) -> str:
    """The device in words.

    Args:
      threads: with which a CPU computes; 0 for as many as torch chooses.
    """
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({threads or torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def _config(
    spec: RunSpec, images: Images, command: Sequence[str], custom: Custom, asked: dict[str, Any], processes: int
) -> dict[str, Any]:
    record = custom.record(spec.model)
    return {
        "settings": dict(spec.recorded),
        "asked": asked,
        "command": list(command),
        "processes": processes,
        "device": describe_device(spec.torch_device, spec.threads),
        "kernels": kernels.report(spec),
        "versions": _versions(spec),
        "data": _data(images),
        "classes": list(images.train.classes),
        **({"custom": record} if record else {}),
    }


def _relevant(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with one value for those that give the same result."""
    values = dict(settings)
    if values["schedule"] == "constant":  # no step depends on how many follow
        values["epochs"] = "any"
    exact = values["crop_scale"] == 1.0  # the cache then holds exactly the network's input
    values["cache"] = "any" if exact else "none" if values["cache"] == "none" else "disk or ram"
    return values


def _sources(images: Images) -> dict[str, Source]:
    return {"train": images.train, "val": images.val}


def _data(images: Images) -> dict[str, Any]:
    record: dict[str, Any] = {
        name: {
            "from": source.name,
            "images": len(source),
            "fingerprint": source.fingerprint,
            "classes": _by_class(source),
        }
        for name, source in _sources(images).items()
    }
    if isinstance(images.val, Index) and images.val.split is not None:
        record["split"] = dict(images.val.split)
    return record


def _by_class(source: Source) -> dict[str, Any]:
    if isinstance(source, Index):
        return source.class_fingerprints()
    counts = images_of_class(source.labels, len(source.classes))
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
    others = "their labels or weights differ" if isinstance(source, Index) else "their pixels differ"
    return ", ".join(counted + gone + new) or others


def _versions(spec: RunSpec) -> dict[str, str]:
    timm = {"timm": importlib.metadata.version("timm")} if spec.model.startswith("timm/") else {}
    return {
        "ftrain": ftrain.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        **timm,
        "pillow": PIL.__version__,
    }
