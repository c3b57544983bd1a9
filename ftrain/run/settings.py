"""The settings of a training run: one table that the command line, the config file and config.json are read off.

Imports no torch, so that `ftrain --help` is quick.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import attrs

from ftrain.errors import SettingsError

OptimizerName = Literal["adamw", "adam", "sgd", "adagrad"]
ScheduleName = Literal["cosine", "linear", "step", "constant"]
LossName = Literal["cross-entropy", "binary-cross-entropy", "mean-squared-error"]
PolicyName = Literal["none", "rand-augment", "trivial-augment"]
CacheKind = Literal["auto", "none", "disk", "ram"]
OnBadImage = Literal["stop", "skip"]
Precision = Literal["auto", "float32", "bfloat16"]
MemoryFormat = Literal["auto", "contiguous", "channels_last"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# What may differ between the parts of a resumed run, because the result does not depend on it.
HARMLESS = frozenset({"workers", "save_station", "keep_last", "eval_batch_size", "log_every", "checkpoint_every"})
# Where the images are; which they are shows in their fingerprint.
PLACES = ("data", "dataset", "train_dir", "val_dir")


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def _setting(
    default: Any,
    group: str,
    help: str,
    check: Callable[[Any], str | None],
    *,
    converter: Callable[[Any], Any] | None = None,
) -> Any:
    """A field whose `check` says what was expected of a value that it refuses."""

    def validate(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        optional = value is None and default is None
        if expected := None if optional else check(value):
            raise SettingsError(f"{flag(attribute.name)} takes {expected}; got {value!r}")

    metadata = {"group": group, "help": help}
    return attrs.field(default=default, validator=validate, converter=converter, metadata=metadata)


def _one_of(kind: Any) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        return None if value in get_args(kind) else f"one of {', '.join(get_args(kind))}"

    return check


def _number(low: float, *, above: bool = False, below: float | None = None) -> Callable[[Any], str | None]:
    bounds = f"a number {'>' if above else '>='} {low:g}" + (f" and < {below:g}" if below is not None else "")

    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return bounds
        fits = (value > low if above else value >= low) and (
            value < below if below is not None else value < float("inf")
        )
        return None if fits else bounds

    return check


def _whole(low: int, high: int | None = None) -> Callable[[Any], str | None]:
    bounds = f"a whole number >= {low}" + (f" and <= {high}" if high is not None else "")

    def check(value: Any) -> str | None:
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= (high or value)
        return None if fits else bounds

    return check


def _pace(value: Any) -> str | None:
    fits = isinstance(value, str) and re.fullmatch("[1-9][0-9]*m?", value)
    return None if fits else "a number of steps such as 500, or of minutes such as 10m"


def _whole_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "a text"


def _yes_or_no(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _three(low: float, *, above: bool) -> Callable[[Any], str | None]:
    number = _number(low, above=above)
    bounds = f"three numbers {'>' if above else '>='} {low:g} and <= 1, one per channel, such as 0.5,0.5,0.5"

    def check(value: Any) -> str | None:
        fits = isinstance(value, tuple) and len(value) == 3 and not any(number(v) or v > 1.0 for v in value)
        return None if fits else bounds

    return check


def _jitter(value: Any) -> str | None:
    number = _number(0.0)
    fits = isinstance(value, tuple) and len(value) == 4 and not any(number(v) for v in value) and value[3] <= 0.5
    return None if fits else "four numbers >= 0, the last (hue) <= 0.5, such as 0.4,0.4,0.4,0.1"


def _probability(value: Any) -> str | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return None if fits else "a number >= 0 and <= 1"


def _numbers(value: Any) -> Any:
    """Numbers from a list, or from a text such as "0.5,0.5,0.5"; anything else as it is, for the check to refuse."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(part if isinstance(part, bool) else float(part) for part in parts)
    except (TypeError, ValueError):
        return value


def _share(value: Any) -> str | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
    return None if fits else "a number > 0 and <= 1"


def _device(value: Any) -> str | None:
    fits = isinstance(value, str) and re.fullmatch("auto|cpu|cuda(:[0-9]+)?|mps", value)
    return None if fits else "auto, cpu, cuda, cuda:N or mps"


@attrs.frozen(kw_only=True)
class Settings:
    """What a run is asked to do. None means: decided from the data, the model or the device, and written down.

    Raises:
      SettingsError: for a value out of range.
    """

    model: str = _setting(
        "resnet34", "Model", "Any classification model of torchvision; `ftrain models` lists them.", _text
    )
    weights: str | None = _setting(
        None,
        "Model",
        "What to start from: a torchvision weights name (IMAGENET1K_V1, DEFAULT; downloaded), or a local "
        ".safetensors or .pth file. Random if not given.",
        _text,
    )
    data: str | None = _setting(
        None,
        "Data",
        "Folder that holds train/ and val/, each with a folder per class. If no folder is given: ./data if it "
        "has both, else a sample of Fashion-MNIST.",
        _text,
    )
    dataset: str | None = _setting(
        None,
        "Data",
        "A data set of torchvision instead of folders: cifar10, fashion-mnist, food101 ...; downloaded to --data, or "
        "to the user's cache folder, unless it is there.",
        _text,
    )
    train_dir: str | None = _setting(None, "Data", "Folder of training images, one folder per class.", _text)
    val_dir: str | None = _setting(None, "Data", "Folder of validation images, one folder per class.", _text)
    image_size: int | None = _setting(
        None,
        "Data",
        "Side of the square images that the network sees, in pixels. By default from the images: a multiple of "
        "32, at most 224.",
        _whole(1, 4096),
    )
    crop_scale: float | None = _setting(
        None,
        "Data",
        "Smallest share of an image's area that a random training crop shows; 1 for no crops. By default 0.35, or 1 "
        "where images are no larger than what the network sees.",
        _share,
    )
    crop_ratio: float = _setting(
        4.0 / 3.0,
        "Data",
        "Widest ratio of a crop's width to its height; its inverse is the narrowest.",
        _number(1.0),
    )
    flip: bool = _setting(True, "Data", "Mirror half of the training images left to right.", _yes_or_no)
    auto_augment: PolicyName = _setting(
        "none",
        "Data",
        "What else is done to training images: rand-augment, trivial-augment or none.",
        _one_of(PolicyName),
    )
    color_jitter: tuple[float, float, float, float] = _setting(
        (0.0, 0.0, 0.0, 0.0),
        "Data",
        "How far brightness, contrast, saturation and hue of training images vary, such as 0.4,0.4,0.4,0.1.",
        _jitter,
        converter=_numbers,
    )
    random_erasing: float = _setting(
        0.0, "Data", "Probability that a rectangle of a training image is hidden.", _probability
    )
    mixup: float = _setting(
        0.0,
        "Data",
        "Alpha of mixup, which blends pairs of training images, 0.2 for example; 0 for none. With --cutmix one of the "
        "two is chosen for each batch.",
        _number(0.0),
    )
    cutmix: float = _setting(
        0.0,
        "Data",
        "Alpha of cutmix, which pastes a part of another training image, 1 for example; 0 for none.",
        _number(0.0),
    )
    mean: tuple[float, ...] = _setting(
        IMAGENET_MEAN,
        "Data",
        "Mean of red, green and blue, in [0, 1], taken off the images.",
        _three(0.0, above=False),
        converter=_numbers,
    )
    std: tuple[float, ...] = _setting(
        IMAGENET_STD,
        "Data",
        "Standard deviation of red, green and blue that the images are divided by.",
        _three(0.0, above=True),
        converter=_numbers,
    )
    cache: CacheKind = _setting(
        "auto",
        "Data",
        "Where decoded images are kept, from before the first epoch: ram, disk or none. auto takes the first of them "
        "that has room. Crops are then scaled from images of a reduced size.",
        _one_of(CacheKind),
    )
    on_bad_image: OnBadImage = _setting(
        "stop",
        "Data",
        "What to do with an image that cannot be read: stop, or skip to leave it out.",
        _one_of(OnBadImage),
    )
    bad_image_cap: float = _setting(
        0.01, "Data", "Share of the images that may be left out before a run stops all the same.", _share
    )
    epochs: int = _setting(10, "Training", "Times to go through the training data.", _whole(1))
    batch_size: int | None = _setting(
        None,
        "Training",
        "Examples in a training step. By default 64; 32 for fewer than 5,000 training images, which need the steps.",
        _whole(1),
    )
    eval_batch_size: int | None = _setting(
        None, "Training", "Examples in an evaluation step. By default as --batch-size.", _whole(1)
    )
    accumulate: int = _setting(
        1,
        "Training",
        "Equal parts into which a batch is split, one after the other on the device, for less memory. The update is "
        "that of the whole batch, but for BatchNorm, which sees the parts.",
        _whole(1),
    )
    optimizer: OptimizerName = _setting("adamw", "Training", "adamw, adam, sgd or adagrad.", _one_of(OptimizerName))
    lr: float | None = _setting(
        None,
        "Training",
        "Peak learning rate. By default 0.001; for sgd 0.05, for adagrad 0.01.",
        _number(0.0, above=True),
    )
    weight_decay: float | None = _setting(
        None,
        "Training",
        "Weight decay, of weights but not of norms and biases. By default 0.05 for adamw, 0.0001 for sgd, else 0.",
        _number(0.0),
    )
    momentum: float = _setting(
        0.9, "Training", "Momentum of sgd, in Nesterov's form; 0 for none.", _number(0.0, below=1.0)
    )
    schedule: ScheduleName = _setting(
        "cosine",
        "Training",
        "How the learning rate falls: cosine, linear, step (x 0.1 each third), constant.",
        _one_of(ScheduleName),
    )
    warmup_epochs: float | None = _setting(
        None,
        "Training",
        "Epochs in which the learning rate rises from 0, before it falls by the schedule cosine or linear. By default "
        "1, or a tenth of --epochs if that is less.",
        _number(0.0),
    )
    loss: LossName = _setting(
        "cross-entropy", "Training", "cross-entropy, binary-cross-entropy or mean-squared-error.", _one_of(LossName)
    )
    label_smoothing: float = _setting(
        0.1, "Training", "Share of the target spread over all classes (cross-entropy only).", _number(0.0, below=1.0)
    )
    clip_norm: float | None = _setting(
        None, "Training", "Largest L2 norm of the gradients; larger ones are scaled down.", _number(0.0, above=True)
    )
    ema_decay: float | None = _setting(
        None,
        "Training",
        "Decay of an exponential moving average of the network over the steps, 0.999 for example, which is then what "
        "validation, evaluate, predict and export take. None is kept if not given.",
        _number(0.0, below=1.0),
    )
    seed: int = _setting(0, "Run", "What every random number follows from.", _whole(0, 2**64 - 1))
    device: str = _setting("auto", "Run", "auto, cpu, cuda, cuda:N or mps.", _device)
    workers: int | None = _setting(
        None,
        "Run",
        "Processes that read images; 0 for none. Does not change the result. By default from the cores.",
        _whole(0),
    )
    precision: Precision = _setting(
        "auto", "Run", "float32, or bfloat16 for autocast; auto is bfloat16 on a GPU that has it.", _one_of(Precision)
    )
    memory_format: MemoryFormat = _setting(
        "auto",
        "Run",
        "How images and activations lie in memory: contiguous or channels_last. auto takes channels_last for "
        "convolutions on a GPU, and for networks of mostly 1 x 1 convolutions on a CPU.",
        _one_of(MemoryFormat),
    )
    compile: bool | None = _setting(
        None,
        "Run",
        "Compile the training step into one graph. By default in runs of 500 steps or more on CUDA, and on a CPU where "
        "it pays within the run.",
        _yes_or_no,
    )
    deterministic: bool = _setting(
        False,
        "Run",
        "Only kernels that give the same bits every time. A CPU's do in any case; a GPU's are slower for it.",
        _yes_or_no,
    )
    save_station: int | None = _setting(
        None,
        "Run",
        "Epoch, counted from 1, from which on every epoch's checkpoint is kept. The last and the best are always kept.",
        _whole(1),
    )
    keep_last: int = _setting(
        2, "Run", "How many of the last checkpoints are kept; of two, one is there if the other is damaged.", _whole(1)
    )
    checkpoint_every: str | None = _setting(
        None,
        "Run",
        "How often to keep the state within an epoch: 500 for every 500 steps, 10m for every 10 minutes. It is always "
        "kept at the end of an epoch.",
        _pace,
        converter=_whole_as_text,
    )
    log_every: int = _setting(10, "Run", "Training steps between two lines of metrics.jsonl.", _whole(1))
    out: str | None = _setting(None, "Run", "Folder of the run. By default runs/<model>/<date-time>.", _text)


def from_mapping(values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Settings by name, with `-` or `_` in the names, as keyword arguments of `Settings`.

    Args:
      source: where the values are from, for messages.

    Raises:
      SettingsError: for a name that is no setting, with the nearest one.
    """
    known = [field.name for field in attrs.fields(Settings)]
    for name in values:
        if name.replace("-", "_") not in known:
            near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
            hint = f"; did you mean {near[0].replace('_', '-')!r}?" if near else ""
            raise SettingsError(f"{source}: no setting is called {name!r}{hint}")
    twice = [name for name in values if "-" in name and name.replace("-", "_") in values]
    if twice:
        raise SettingsError(f"{source}: {twice[0]!r} is given twice, with - and with _")
    return {name.replace("-", "_"): value for name, value in values.items()}


def layered(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `below` with those of `above` in their place. Where the images are is said in one of two ways,
    `train_dir` and `val_dir` or `data` and `dataset`, of which one replaces the other."""
    one, other = {"train_dir", "val_dir"}, {"data", "dataset"}
    hidden = (other if one & above.keys() else set()) | (one if other & above.keys() else set())
    return {**{name: value for name, value in below.items() if name not in hidden}, **above}
