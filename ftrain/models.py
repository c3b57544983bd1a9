"""From names to torchvision's classification models, with the head that the data needs, and weights to start from."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
import torchvision
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ftrain.disk.tensorfile import TensorFile
from ftrain.errors import CheckpointError
from ftrain.text import shown

# The smallest image, in pixels, that the models of a family can be trained on; the others can on a single pixel.
# tests/test_models.py trains each model on an image of this size, and sees the size below it fail.
_SMALLEST = {
    "alexnet": 63,
    "convnext": 32,
    "densenet": 29,
    "googlenet": 15,
    "inception_v3": 299,  # by its auxiliary classifier, which only training runs
    "maxvit": 221,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "swin": 4,
    "vgg": 32,
    "vit_b_16": 16,
    "vit_b_32": 32,
    "vit_h_14": 14,
    "vit_l_16": 16,
    "vit_l_32": 32,
}
_SUFFIXES = (".safetensors", ".pth", ".pt")
# Names in torchvision's older files, and what the models call these tensors now.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)
_FEW = 4


@attrs.frozen
class WeightsReport:
    """What `load_weights` did with each tensor."""

    loaded: tuple[str, ...]  # names of the tensors that were copied
    skipped: tuple[str, ...]  # in the file but not used, each with the reason
    at_random: tuple[str, ...]  # names in the model into which nothing was copied: as they were initialised

    def __str__(self) -> str:
        parts = [f"loaded {len(self.loaded)} tensor{'' if len(self.loaded) == 1 else 's'}"]
        if self.skipped:
            parts.append(f"skipped {_some(self.skipped)}")
        if self.at_random:
            parts.append(f"left as initialised: {_some(self.at_random)}")
        return "; ".join(parts)


def names(pattern: str | None = None) -> list[str]:
    """The names of torchvision's classification models, in alphabetical order.

    Args:
      pattern: only names that contain it, or, where it holds `*`, `?` or `[`, match it as a whole. In any case.
    """
    found = sorted(torchvision.models.list_models(module=torchvision.models))
    if pattern is None:
        return found
    wanted = pattern.lower()
    if any(sign in wanted for sign in "*?["):
        return [name for name in found if fnmatch.fnmatchcase(name, wanted)]
    return [name for name in found if wanted in name]


def canonical(name: str) -> str:
    """The name of a model as torchvision spells it, from any spelling: `ResNet34`, `resnet-34`, `ViT_B_16`.

    Raises:
      ValueError: for a name of no model, or of several.
    """
    known = names()
    spelled = re.sub(r"[-. ]", "_", name.strip().lower())
    if spelled in known:
        return spelled
    # Without separators two models can share a name: regnet_x_16gf and regnet_x_1_6gf.
    same = [other for other in known if _squashed(other) == _squashed(spelled)]
    if len(same) == 1:
        return same[0]
    near = same or difflib.get_close_matches(spelled, known, n=3)
    hint = f"the nearest are {', '.join(near)}" if near else "none is near"
    raise ValueError(
        f"a model is one of torchvision's {len(known)} classifiers; got {name!r}, {hint}; "
        "run `ftrain models` for all names"
    )


def smallest_size(name: str) -> int:
    """The side in pixels of the smallest square image that a model can be trained on.

    Below it, a layer finds fewer pixels than it needs. In small batches, a model with BatchNorm wants more: images up
    to 32 px mostly end in maps of one pixel, where a batch of 2 leaves two values to normalise over, and gradients grow
    without bound.

    Raises:
      ValueError: for a name of no model.
    """
    name = canonical(name)
    return next((size for family, size in _SMALLEST.items() if name.startswith(family)), 1)


def check_size(name: str, image_size: int) -> None:
    """Checks that a model can be trained on square images of a size.

    Args:
      name: of the model.
      image_size: the side of the images, in pixels.

    Raises:
      ValueError: if it cannot, with the nearest sizes that it can be trained on; or for a name of no model.
    """
    name = canonical(name)
    if fits(name, image_size):
        return
    smallest = smallest_size(name)
    below = next((size for size in range(image_size - 1, smallest - 1, -1) if fits(name, size)), None)
    above = next(size for size in itertools.count(max(image_size + 1, smallest)) if fits(name, size))
    nearest = f"{above}" if below is None else f"{below} or {above}"
    raise ValueError(f"{name} trains on {_rule(name)}; got an image size of {image_size}; use {nearest}")


def build(name: str, *, classes: int, image_size: int, seed: int) -> torch.nn.Module:
    """A model with freshly drawn parameters, on the CPU and in train mode.

    The parameters are a function of the arguments alone. No global random state is read or moved.

    Args:
      name: of the model.
      classes: how many logits it gives.
      image_size: the side of the square images, in pixels; what vision transformers are built for.
      seed: an integer in [0, 2**64).

    Raises:
      ValueError: for a name of no model, or a size that it cannot take, or a number of classes or a seed out of range.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"a seed is an integer from 0 to 2**64 - 1; got {seed}")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would also seed the GPUs' generators, which nobody puts back.
        torch.default_generator.manual_seed(seed)
        return _construct(name, classes, image_size)


def parameter_count(name: str, classes: int = 1000, image_size: int | None = None) -> int:
    """How many parameters a model has. Allocates none of them.

    Args:
      name: of the model.
      classes: how many logits it gives.
      image_size: the side of the square images, in pixels, on which the count of a vision transformer depends; if None,
        224, or the smallest size of a model that needs more.

    Raises:
      ValueError: as for `build`.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _WithoutData():
        module = _construct(name, classes, image_size or max(224, smallest_size(name)))
    return sum(parameter.numel() for parameter in module.parameters())


@attrs.frozen
class Convolutions:
    """How many convolutions over images a model has, and how many of them are depthwise (a group for each input
    channel), or pointwise (1 x 1)."""

    count: int
    depthwise: int
    pointwise: int


def convolutions(name: str) -> Convolutions:
    """The convolutions of a model. Allocates no parameters.

    Raises:
      ValueError: for a name of no model.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _WithoutData():
        module = _construct(name, 1, max(224, smallest_size(name)))
    found = [layer for layer in module.modules() if isinstance(layer, torch.nn.Conv2d)]
    depthwise = sum(layer.groups == layer.in_channels > 1 for layer in found)
    return Convolutions(len(found), depthwise, sum(layer.kernel_size == (1, 1) for layer in found))


def load_weights(module: torch.nn.Module, source: str | Path, *, name: str) -> WeightsReport:
    """Copies weights into a model, in place: for a module that was just built, before `functionalize`.

    Every tensor whose name and shape fit is copied. The others stay as they were initialised; where the number of
    classes differs, that is the head.

    Args:
      module: changed. From `build`.
      source: the name of weights of torchvision (`DEFAULT`, `IMAGENET1K_V1`, `ResNet34_Weights.IMAGENET1K_V1`), which
        are downloaded once, or a file of tensors by name: .safetensors, or .pth or .pt with a state dict, alone or
        under `state_dict` or `model`. No code in a file is run.
      name: of the model.

    Raises:
      ValueError: for weights that the model does not have or that cannot be downloaded, a file that is missing or holds
        no tensors by name, or tensors of which none fits.
      CheckpointError: for a file that is damaged or holds more than tensors. The module is then, too, as it was.
    """
    name = canonical(name)
    path = Path(os.path.expanduser(source))
    found = _read(path) if path.suffix.lower() in _SUFFIXES or path.is_file() else _download(str(source), name)
    tensors = _tensors_by_name(found, source)
    targets = module.state_dict()
    reasons = {key: _misfit(value, targets.get(key)) for key, value in tensors.items()}
    loaded = tuple(key for key, reason in reasons.items() if reason is None)
    if not loaded:
        raise ValueError(
            f"no tensor in {source} fits {name}; it needs tensors such as {_some(tuple(targets))}, and found "
            f"{_some(tuple(tensors)) if tensors else 'none'}; give weights of {name}"
        )
    with torch.no_grad():
        for key in loaded:
            targets[key].copy_(tensors[key])
    return WeightsReport(
        loaded=loaded,
        skipped=tuple(f"{key}: {reason}" for key, reason in reasons.items() if reason is not None),
        at_random=tuple(key for key in targets if key not in loaded),
    )


class _WithoutData(TorchFunctionMode):
    """Sends `torch.empty`, with which layers make their parameters, to the meta device. `torch.device("meta")` would
    send all tensors there, also those from whose values regnet computes its widths."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})


def _construct(name: str, classes: int, image_size: int) -> torch.nn.Module:
    """The model on the device, and with the random numbers, of the context."""
    name = canonical(name)
    check_size(name, image_size)
    if classes < 1:
        raise ValueError(f"a model needs at least 1 class; got {classes}")
    options: dict[str, Any] = {}
    if name.startswith("vit"):
        options["image_size"] = image_size
    if name.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # the default, but torchvision warns where it is left to that
        options["transform_input"] = True  # from ImageNet's mean and std to what the pretrained weights were made with
    module: torch.nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    return module


def fits(name: str, size: int) -> bool:
    """Whether a model, by its canonical name, can be trained on square images of `size` px."""
    smallest = smallest_size(name)
    if name.startswith("maxvit"):
        # Five strides of 2, each rounding up, must leave a multiple of 7 from the second on.
        return size >= smallest and -(-size // 4) % 56 == 0
    if name.startswith("vit"):
        return size >= smallest and size % smallest == 0  # the smallest image is one patch
    return size >= smallest


def _rule(name: str) -> str:
    """The sizes that fit, in words."""
    if name.startswith("maxvit"):
        return "images of a multiple of 224 px, or up to 3 px less"
    if name.startswith("vit"):
        return f"images of a multiple of {smallest_size(name)} px"
    return f"images of at least {smallest_size(name)} px"


def _squashed(name: str) -> str:
    return name.replace("_", "")


def _download(weights: str, name: str) -> Any:
    known = torchvision.models.get_model_weights(name)
    owner, _, member = weights.rpartition(".")
    if owner not in ("", known.__name__) or member.upper() not in known.__members__:
        raise ValueError(
            f"{name} starts from {', '.join(known.__members__)}, or a file ({', '.join(_SUFFIXES)}); got {weights!r}"
        )
    try:
        return known[member.upper()].get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:
        raise ValueError(
            f"could not get {known.__name__}.{member.upper()}: {_first_line(error)}; "
            "check the connection, or give a file of weights"
        ) from error


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"there is no file of weights at {path}")
    try:
        if path.suffix.lower() == ".safetensors":
            with path.open("rb") as file:
                found = TensorFile(file)
                return {name: found.read(name) for name in found.kinds()}
        _check_stored(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(
            f"{shown(path)} was refused: it is damaged, or holds more than tensors, such as code, which is never run "
            f"({shown(_first_line(error))}); save it anew with torch.save(model.state_dict(), path) or as safetensors"
        ) from error


def _check_stored(path: Path) -> None:
    """torch saves without compression; a file that would unfold to more than it is was made for that."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unfolded = sum(entry.file_size for entry in archive.infolist())
        if unfolded > path.stat().st_size:
            raise ValueError(f"it unfolds to {unfolded} bytes")


def _tensors_by_name(found: Any, source: str | Path) -> dict[str, Any]:
    """What a file holds by name, without the wrappings of training scripts, under the names that models use now."""
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping):
        raise ValueError(f"weights are tensors by name, a state dict; {source} holds a {type(found).__name__}")
    return {_current_name(str(key)): value for key, value in found.items()}


def _current_name(key: str) -> str:
    key = key.removeprefix("module.")  # DataParallel's
    for pattern, now in _RENAMED:
        key = pattern.sub(now, key)
    return key


def _misfit(value: Any, target: Tensor | None) -> str | None:
    """Why a tensor of a file cannot be copied into the model, or None if it can."""
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}, not a tensor"
    if target is None:
        return "not in the model"
    if value.shape != target.shape:
        return f"{list(value.shape)} does not fit {list(target.shape)}"
    return None


def _some(items: tuple[str, ...]) -> str:
    """How many, and which if they are few."""
    shown = ", ".join(items[:_FEW])
    return f"{len(items)} ({shown}{', ...' if len(items) > _FEW else ''})"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
