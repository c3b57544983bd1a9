"""Copying weights from torchvision, timm or a file into a network."""

from __future__ import annotations

import argparse
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
import torchvision
from torch import Tensor

from ftrain.disk.tensorfile import TensorFile
from ftrain.errors import CheckpointError
from ftrain.models import timm_networks
from ftrain.models.catalogue import canonical
from ftrain.models.spelling import is_timm
from ftrain.text import shown

SUFFIXES = (".safetensors", ".pth", ".pt")
# Tensor names in torchvision's older files, and what its models call these tensors now.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
_FEW = 4  # names that a summary lists


@attrs.frozen
class WeightsReport:
    """What `load_weights` did with each tensor. As a string, a summary that is safe to print.

    Attributes:
      loaded: the names of the tensors that were copied.
      skipped: the tensors in the file that were not used, each as its name and the reason.
      at_random: the names of the network's tensors that keep their initial values.

    >>> print(WeightsReport(loaded=("conv1.weight",), skipped=(), at_random=("fc.weight", "fc.bias")))
    loaded 1 tensor; left as initialised: 2 (fc.weight, fc.bias)
    """

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    at_random: tuple[str, ...]

    @property
    def fraction(self) -> float:
        """Which fraction of the network's tensors was copied."""
        return len(self.loaded) / (len(self.loaded) + len(self.at_random))

    def __str__(self) -> str:
        parts = [f"loaded {len(self.loaded)} tensor{'' if len(self.loaded) == 1 else 's'}"]
        if self.skipped:
            parts.append(f"skipped {_some(self.skipped)}")
        if self.at_random:
            parts.append(f"left as initialised: {_some(self.at_random)}")
        return "; ".join(parts)


def load_weights(module: torch.nn.Module, source: str | Path, *, name: str) -> WeightsReport:
    """Copies weights into a network, in place. Use it on a freshly built module, before `functionalize`.

    Every tensor whose name and shape match is copied, and converted to the network's dtype. The others keep their
    initial values; where the number of classes differs, these are the tensors of the head.

    Args:
      module: the network to change.
      source: the name of torchvision's weights (`DEFAULT`, `IMAGENET1K_V1`, `ResNet34_Weights.IMAGENET1K_V1`) or a tag
        of timm's (`DEFAULT`, `a1_in1k`), which are downloaded once; or the path of a file with tensors by name:
        .safetensors, or .pth or .pt with a state dict, alone or under `state_dict` or `model`. Code in a file is never
        run. If the module is one of timm's, position embeddings are interpolated to its image size.
      name: of the model. To download weights, it must be in the catalogue, in any spelling that `canonical` accepts.

    Raises:
      ValueError: if the model has no such weights, if they cannot be downloaded, if there is no such file or it does
        not hold tensors by name, or if none of its tensors matches.
      CheckpointError: if the file is damaged or holds more than tensors.

    After an error the module is unchanged.

    >>> import pathlib, tempfile
    >>> from ftrain import models
    >>> module = models.build("resnet18", classes=10, image_size=32, seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "weights.pth"
    ...     torch.save({"fc.bias": torch.ones(10)}, path)
    ...     report = load_weights(module, path, name="resnet18")
    >>> report.loaded, module.fc.bias[0].item()
    (('fc.bias',), 1.0)
    """
    tensors = _tensors_by_name(_found(source, name), source)
    if timm_networks.made(module):
        tensors = _converted(tensors, module, source, name)
    else:
        tensors = {_current_name(key): value for key, value in tensors.items()}
    targets = module.state_dict()
    reasons = {key: _mismatch(value, targets.get(key)) for key, value in tensors.items()}
    loaded = tuple(key for key, reason in reasons.items() if reason is None)
    if not loaded:
        raise ValueError(
            f"none of the tensors in {shown(source)} fits {name}: it needs tensors such as {_some(tuple(targets))}, "
            f"but the file has {_some(tuple(tensors)) if tensors else 'none'}. Use weights of {name}"
        )
    with torch.no_grad():
        for key in loaded:
            targets[key].copy_(tensors[key])
    return WeightsReport(
        loaded=loaded,
        skipped=tuple(f"{key}: {reason}" for key, reason in reasons.items() if reason is not None),
        at_random=tuple(key for key in targets if key not in loaded),
    )


def is_file(source: str | Path) -> bool:
    """Whether weights are a file, by its suffix or because there is one, and not a name."""
    path = Path(os.path.expanduser(source))
    return path.suffix.lower() in SUFFIXES or path.is_file()


def of_torchvision(weights: str, name: str) -> Any:
    """The member of torchvision's enumeration of weights for a model.

    Args:
      name: as `canonical` returns it.

    Raises:
      ValueError: if the model has no such weights.
    """
    known = torchvision.models.get_model_weights(name)
    owner, _, member = weights.rpartition(".")
    if owner not in ("", known.__name__) or member.upper() not in known.__members__:
        raise ValueError(
            f"`weights` for {name} must be {', '.join(known.__members__)}, or the path of a file "
            f"({', '.join(SUFFIXES)}); got {weights!r}"
        )
    return known[member.upper()]


def _found(source: str | Path, name: str) -> Any:
    """What a file holds, or what is downloaded."""
    if is_file(source):
        return _read(Path(os.path.expanduser(source)))
    name = canonical(name)
    if is_timm(name):
        full_name = timm_networks.find_weights(name, str(source))
        return _downloaded(lambda: timm_networks.download(full_name), full_name)
    weights = of_torchvision(str(source), name)
    options = {"progress": True, "check_hash": True, "map_location": "cpu", "weights_only": True}
    return _downloaded(lambda: weights.get_state_dict(**options), str(weights))


def _downloaded(download: Callable[[], Any], what: str) -> Any:
    try:
        return download()
    except Exception as error:
        raise ValueError(
            f"cannot download {what}: {shown(_first_line(error)).rstrip('.')}. "
            "Check the network connection, or use a file of weights"
        ) from error


def _converted(tensors: dict[str, Any], module: torch.nn.Module, source: str | Path, name: str) -> dict[str, Any]:
    try:
        return timm_networks.converted(tensors, module)
    except ValueError as error:
        raise ValueError(f"cannot load {shown(source)} into {name}: {error}. Use weights of {name}") from error


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"there is no weights file {shown(path)}")
    try:
        if path.suffix.lower() == ".safetensors":
            with path.open("rb") as file:
                found = TensorFile(file)
                return {name: found.read(name) for name in found.signatures()}
        _check_uncompressed(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options of a training script
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(
            f"cannot load {shown(path)}: it is damaged, or holds more than tensors, such as code, which is never run "
            f"({shown(_first_line(error))}). Save it again with torch.save(model.state_dict(), path) or as safetensors"
        ) from error


def _check_uncompressed(path: Path) -> None:
    """torch saves without compression, so a file that unpacks to more than its size is a zip bomb."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"it unpacks to {unpacked} bytes")


def _tensors_by_name(found: Any, source: str | Path) -> dict[str, Any]:
    """The content of a file by name, without the wrappers of training scripts."""
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping):
        raise ValueError(
            f"weights must be tensors by name, as in a state dict; {shown(source)} holds a {type(found).__name__}"
        )
    return {str(key).removeprefix("module."): value for key, value in found.items()}  # added by DataParallel


def _current_name(key: str) -> str:
    """The name that torchvision's models use now."""
    for pattern, now in _RENAMED:
        key = pattern.sub(now, key)
    return key


def _mismatch(value: Any, target: Tensor | None) -> str | None:
    """Why a value from a file cannot be copied into the network, or None if it can."""
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}, not a tensor"
    if target is None:
        return "not in the network"
    if value.shape != target.shape:
        return f"its shape is {list(value.shape)} instead of {list(target.shape)}"
    return None


def _some(items: tuple[str, ...]) -> str:
    """How many there are, and the first few."""
    return f"{len(items)} ({', '.join(map(shown, items[:_FEW]))}{', ...' if len(items) > _FEW else ''})"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
