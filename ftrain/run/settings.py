"""The settings of a training run as given: one table for the command line, the config file and config.json.

Imports no torch, so that `ftrain --help` is quick. `ftrain.run.resolve` turns settings into a `RunSpec`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import attrs
from attrs import validators as v

from ftrain.errors import SettingsError

OptimizerName = Literal["adamw", "adam", "sgd", "adagrad"]
ScheduleName = Literal["cosine", "linear", "step", "constant"]
WITH_WARMUP = ("cosine", "linear")  # the schedules that begin with a warm-up
LossName = Literal["cross-entropy", "focal", "binary-cross-entropy", "mean-squared-error"]
ClassWeights = Literal["none", "balanced", "effective"]
PolicyName = Literal["none", "rand-augment", "trivial-augment"]
FitName = Literal["crop", "pad", "stretch"]
CacheKind = Literal["auto", "none", "disk", "ram"]
SamplerName = Literal["uniform", "balanced"]
InitName = Literal["default", "small-head", "kaiming", "xavier", "orthogonal", "trunc-normal"]
InterpolationName = Literal["bilinear", "bicubic"]
OnBadImage = Literal["stop", "skip"]
BestBy = Literal["accuracy", "loss", "macro", "map"]
TaskName = Literal["auto", "single-label", "multi-label"]
Precision = Literal["auto", "float32", "bfloat16"]
MemoryFormat = Literal["auto", "contiguous", "channels_last"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The value of `freeze` for the BatchNorm layers, alone or among others.
BATCH_NORM = "batch-norm"
# How messages call the two splits of the data.
SPLITS = {"train": "training", "val": "validation"}
# Settings that may change when a run resumes, because the result does not depend on them.
HARMLESS = frozenset(
    {
        *("workers", "save_station", "keep_last", "eval_batch_size", "log_every", "checkpoint_every", "patience"),
        *("max_time", "timeout"),
    }
)
# Settings that locate the images. Their fingerprint identifies them.
LOCATIONS = ("data", "dataset", "train_dir", "val_dir")

Check = tuple[str, Any]  # what is expected, in words, and the attrs validator that tests it


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def _setting(
    default: Any, group: str, help: str, check: Check, *, converter: Callable[[Any], Any] | None = None
) -> Any:
    """A field with its help, and a check whose failure says what was expected."""
    expected, validator = check
    if default is None:
        validator = v.optional(validator)

    def validate(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        try:
            validator(instance, attribute, value)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"`{attribute.name}` must be {expected}; got {value!r}") from error

    metadata = {"group": group, "help": help}
    return attrs.field(default=default, validator=validate, converter=converter, metadata=metadata)


def _hue_in_range(_: Any, attribute: Any, value: Any) -> None:
    v.le(0.5)(None, attribute, value[3])


_NOT_A_BOOL: Any = v.not_(v.instance_of(bool), exc_types=(TypeError,))
_TEXT = ("a non-empty string", v.and_(v.instance_of(str), v.min_len(1)))
_TRUE_OR_FALSE = ("true or false", v.instance_of(bool))
_A_NUMBER: Any = v.and_(v.instance_of((int, float)), _NOT_A_BOOL)
_PROBABILITY: Check = ("a number >= 0 and <= 1", v.and_(_A_NUMBER, v.ge(0), v.le(1)))
_FRACTION: Check = ("a number > 0 and <= 1", v.and_(_A_NUMBER, v.gt(0), v.le(1)))
_DEVICE = (
    "auto, cpu, cuda, cuda:N or mps",
    v.and_(v.instance_of(str), v.matches_re("auto|cpu|cuda(:[0-9]+)?|mps")),
)
_INTERVAL = (
    "a number of steps such as 500, or of minutes such as 10m",
    v.and_(v.instance_of(str), v.matches_re("[1-9][0-9]*m?")),
)
_DURATION = ("a time such as 90s, 30m or 2h", v.and_(v.instance_of(str), v.matches_re("[1-9][0-9]*[smh]")))
_JITTER = (
    "four numbers >= 0, the last (hue) <= 0.5, such as 0.4,0.4,0.4,0.1",
    v.and_(
        v.deep_iterable(v.and_(_A_NUMBER, v.ge(0), v.lt(float("inf"))), v.instance_of(tuple)),
        v.min_len(4),
        v.max_len(4),
        _hue_in_range,
    ),
)


def _one_of(kind: Any) -> Check:
    return f"one of {', '.join(get_args(kind))}", v.in_(get_args(kind))


def _number(low: float, *, above: bool = False, below: float = float("inf")) -> Check:
    """A number >= low, or > low with `above`, and < below."""
    expected = f"a number {'>' if above else '>='} {low:g}" + (f" and < {below:g}" if below < float("inf") else "")
    bounds = v.gt(low) if above else v.ge(low)
    return expected, v.and_(_A_NUMBER, bounds, v.lt(below))


def _integer(low: int, high: int | None = None) -> Check:
    """An integer >= low and <= high."""
    expected = f"an integer >= {low}" + (f" and <= {high}" if high is not None else "")
    bounds = [v.ge(low)] + ([v.le(high)] if high is not None else [])
    return expected, v.and_(v.instance_of(int), _NOT_A_BOOL, *bounds)


def _per_channel(low: float, *, above: bool) -> Check:
    expected, number = _number(low, above=above)
    return (
        f"three numbers {expected.removeprefix('a number ')} and <= 1, one per channel, such as 0.5,0.5,0.5",
        v.and_(v.deep_iterable(v.and_(number, v.le(1)), v.instance_of(tuple)), v.min_len(3), v.max_len(3)),
    )


def _integer_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _numbers(value: Any) -> Any:
    """Numbers from a sequence, or from a string such as "0.5,0.5,0.5"; anything else unchanged, for the check to
    refuse."""
    parts = value.split(",") if isinstance(value, str) else value
    if parts is None:
        return None
    try:
        return tuple(part if isinstance(part, bool) else float(part) for part in parts)
    except (TypeError, ValueError):
        return value


@attrs.frozen(kw_only=True)
class Settings:
    """What a run is asked to do. None means that `resolve` decides from the data, the model or the device.

    Raises:
      SettingsError: if a value is out of range.
    """

    model: str = _setting(
        "resnet34",
        "Model",
        "A classification model of torchvision (`ftrain models` lists them), timm/NAME for one of timm's (`ftrain "
        "models 'timm/*'`), or FILE.py:FUNCTION, a function that takes num_classes and returns a torch.nn.Module.",
        _TEXT,
    )
    weights: str | None = _setting(
        None,
        "Model",
        "Pretrained weights to start from: a name of torchvision's (IMAGENET1K_V1) or a tag of timm's (a1_in1k), or "
        "DEFAULT, which are downloaded; or a local .safetensors or .pth file. Random initialisation by default.",
        _TEXT,
    )
    init: InitName | None = _setting(
        None,
        "Model",
        "Initialisation of the weights of convolutions and linear layers, whose biases become 0. default: as the "
        "network does it; small-head: likewise, with small weights in the head. Pretrained weights replace it. "
        "Default: small-head with --weights, otherwise default.",
        _one_of(InitName),
    )
    zero_init_residual: bool = _setting(
        False,
        "Model",
        "Initialise the last norm of each residual block with 0, so that the block starts as the identity. Default: as "
        "the network does.",
        _TRUE_OR_FALSE,
    )
    dropout: float | None = _setting(
        None,
        "Model",
        "Probability of dropout, in networks that have it. Default: the network's own.",
        _number(0.0, below=1.0),
    )
    drop_path: float | None = _setting(
        None,
        "Model",
        "Probability of skipping a residual block (stochastic depth), in networks that can; it rises with depth to "
        "this value. Default: the network's own.",
        _number(0.0, below=1.0),
    )
    data: str | None = _setting(
        None,
        "Data",
        "Folder that contains train/ and val/, each with one folder per class; or one folder per class, which is split "
        "automatically; or a table of images and labels (.csv, .tsv, .jsonl, .parquet). Default: ./data, or a sample "
        "of Fashion-MNIST if there is no such folder.",
        _TEXT,
    )
    task: TaskName = _setting(
        "auto",
        "Data",
        "Whether an image of a table has one label (single-label) or any number of them (multi-label). auto tells by "
        "the labels.",
        _one_of(TaskName),
    )
    val_fraction: float = _setting(
        0.2,
        "Data",
        "Fraction of each class for validation where images are split automatically. Near-duplicates stay together, "
        "and --seed does not change the split.",
        _number(0.0, above=True, below=1.0),
    )
    dataset: str | None = _setting(
        None,
        "Data",
        "One of torchvision's data sets instead of folders: cifar10, fashion-mnist, food101 ...; downloaded to --data "
        "(default: the user's cache folder) unless it is already there.",
        _TEXT,
    )
    train_dir: str | None = _setting(None, "Data", "Folder of training images, with one folder per class.", _TEXT)
    val_dir: str | None = _setting(None, "Data", "Folder of validation images, with one folder per class.", _TEXT)
    image_size: int | None = _setting(
        None,
        "Data",
        "Side of the network's square input images, in pixels. Default: the images' median shorter side, rounded "
        "to a multiple of 32, at most 224, or with weights for one of timm's networks at most what they were trained "
        "on.",
        _integer(1, 4096),
    )
    fit: FitName | None = _setting(
        None,
        "Data",
        "How an image that is not square becomes a square, in evaluate, predict and export, and in training without "
        "random crops: crop uses the square at its centre; pad adds bars of the colour --mean; stretch changes its "
        "ratio. Default: as the pretrained weights expect, otherwise crop.",
        _one_of(FitName),
    )
    interpolation: InterpolationName | None = _setting(
        None,
        "Data",
        "How images are scaled. Default: as the pretrained weights expect, otherwise bilinear.",
        _one_of(InterpolationName),
    )
    crop_fraction: float | None = _setting(
        None,
        "Data",
        "Side of the square that evaluation cuts from the centre, as a fraction of the image's shorter side. Default: "
        "as the pretrained weights expect, otherwise 0.875; 1 if training does not crop.",
        _FRACTION,
    )
    crop_scale: float | None = _setting(
        None,
        "Data",
        "Smallest fraction of an image's area that a random training crop covers; 1 for no cropping. Default: 0.35, or "
        "1 if the images are no larger than --image-size.",
        _FRACTION,
    )
    crop_ratio: float = _setting(
        4.0 / 3.0,
        "Data",
        "Largest aspect ratio (width / height) of a random crop; the smallest is its inverse.",
        _number(1.0),
    )
    flip: bool = _setting(True, "Data", "Flip half of the training images horizontally.", _TRUE_OR_FALSE)
    auto_augment: PolicyName = _setting(
        "none",
        "Data",
        "Automatic augmentation of training images.",
        _one_of(PolicyName),
    )
    color_jitter: tuple[float, float, float, float] = _setting(
        (0.0, 0.0, 0.0, 0.0),
        "Data",
        "Random changes in brightness, contrast, saturation and hue of training images, such as 0.4,0.4,0.4,0.1.",
        _JITTER,
        converter=_numbers,
    )
    random_erasing: float = _setting(
        0.0, "Data", "Probability of erasing a random rectangle of a training image.", _PROBABILITY
    )
    mixup: float = _setting(
        0.0,
        "Data",
        "Alpha of mixup, which blends pairs of training images, such as 0.2; 0 for none. With --cutmix, one of the two "
        "is chosen at random for each batch.",
        _number(0.0),
    )
    cutmix: float = _setting(
        0.0,
        "Data",
        "Alpha of cutmix, which pastes a rectangle of another training image, such as 1; 0 for none.",
        _number(0.0),
    )
    mean: tuple[float, ...] | None = _setting(
        None,
        "Data",
        "Mean of red, green and blue, in [0, 1], subtracted from the images. Default: as the pretrained weights "
        "expect, otherwise ImageNet's.",
        _per_channel(0.0, above=False),
        converter=_numbers,
    )
    std: tuple[float, ...] | None = _setting(
        None,
        "Data",
        "Standard deviation of red, green and blue by which the images are divided. Default: as for --mean.",
        _per_channel(0.0, above=True),
        converter=_numbers,
    )
    cache: CacheKind = _setting(
        "auto",
        "Data",
        "Where decoded images are cached before the first epoch: ram, disk or none. auto uses the first with enough "
        "room. Random crops are then taken from cached images of reduced size.",
        _one_of(CacheKind),
    )
    on_bad_image: OnBadImage = _setting(
        "stop",
        "Data",
        "What to do with an image that cannot be read: stop, or skip it.",
        _one_of(OnBadImage),
    )
    bad_image_cap: float = _setting(
        0.01, "Data", "Largest fraction of images that may be skipped; beyond it the run stops.", _FRACTION
    )
    epochs: int = _setting(10, "Training", "Passes over the training data.", _integer(1))
    batch_size: int | None = _setting(
        None,
        "Training",
        "Examples per training step. Default: 64, or 32 for fewer than 5,000 training images, which need more steps; "
        "with --weights also 16 for fewer than 1,000, and 8 for fewer than 200.",
        _integer(1),
    )
    eval_batch_size: int | None = _setting(
        None, "Training", "Examples per evaluation step. Default: --batch-size.", _integer(1)
    )
    drop_last: bool | None = _setting(
        None,
        "Training",
        "Drop the examples of an epoch that do not fill a batch, different ones in each epoch. Default: fill the last "
        "batch with the first examples of the next epoch.",
        _TRUE_OR_FALSE,
    )
    sampler: SamplerName = _setting(
        "uniform",
        "Training",
        "How training images are drawn: uniform, each once in an epoch; or balanced, every class equally often, for "
        "uneven classes. An epoch has as many draws either way.",
        _one_of(SamplerName),
    )
    accumulate: int = _setting(
        1,
        "Training",
        "Split what a process computes of each batch into this many equal parts, which follow one another, to save "
        "memory. The update is that of the whole batch, except that BatchNorm normalises over each part.",
        _integer(1),
    )
    shards: int | None = _setting(
        None,
        "Training",
        "Split each batch into this many equal parts, a power of two, each with its own BatchNorm statistics and "
        "random draws. The processes of a run compute equally many of them, and the result does not depend on the "
        "number of processes. Default: the number of processes that the run starts with, times --accumulate.",
        _integer(1),
    )
    optimizer: OptimizerName = _setting("adamw", "Training", "Optimizer.", _one_of(OptimizerName))
    lr: float | None = _setting(
        None,
        "Training",
        "Peak learning rate. Default: 0.001; 0.05 for sgd, 0.01 for adagrad. A fifth of that with --weights for a "
        "network without BatchNorm.",
        _number(0.0, above=True),
    )
    weight_decay: float | None = _setting(
        None,
        "Training",
        "Weight decay, applied to weights but not to norms or biases. Default: 0.05 for adamw, 0.0001 for sgd, else 0.",
        _number(0.0),
    )
    momentum: float = _setting(0.9, "Training", "Nesterov momentum of sgd; 0 for none.", _number(0.0, below=1.0))
    schedule: ScheduleName = _setting(
        "cosine",
        "Training",
        "Learning-rate schedule: cosine, linear, step (x 0.1 after each third) or constant.",
        _one_of(ScheduleName),
    )
    warmup_epochs: float | None = _setting(
        None,
        "Training",
        "Epochs of linear warm-up from 0 before a cosine or linear schedule. Default: 1, or a tenth of --epochs if "
        "that is less. With --head-epochs, of the epochs after them; the head's own warm-up is a tenth of its steps.",
        _number(0.0),
    )
    freeze: str | None = _setting(
        None,
        "Fine-tuning",
        "Parameters that are not trained: none, backbone (all but the head), batch-norm, or names such as "
        "'conv1,layer[12]', separated by commas. Frozen BatchNorm layers keep their statistics. Default: batch-norm "
        "with --weights for a network that has BatchNorm, otherwise none.",
        _TEXT,
    )
    head_epochs: int | None = _setting(
        None,
        "Fine-tuning",
        "How many of --epochs, from the first on, train only the head. Default: 1 with --weights and at least 3 "
        "epochs, unless --freeze is backbone or names layers; otherwise 0.",
        _integer(0),
    )
    head_lr: float | None = _setting(
        None,
        "Fine-tuning",
        "Peak learning rate of the head. Default: --lr.",
        _number(0.0, above=True),
    )
    layer_decay: float | None = _setting(
        None,
        "Fine-tuning",
        "Factor by which the learning rate falls from each of twelve groups of layers to the one below it; 1 for the "
        "same rate everywhere. Default: 0.85 with --weights unless --freeze is backbone, otherwise 1.",
        _FRACTION,
    )
    feature_cache: bool | None = _setting(
        None,
        "Fine-tuning",
        "If only the head is trained, on images that are not augmented, compute the features of the frozen backbone "
        "once and train the head on them. Default: wherever that gives the same result, up to rounding.",
        _TRUE_OR_FALSE,
    )
    loss: LossName | None = _setting(
        None,
        "Training",
        "Loss that training minimises. Default: cross-entropy, or binary-cross-entropy if images may have several "
        "labels.",
        _one_of(LossName),
    )
    class_weights: ClassWeights = _setting(
        "none",
        "Training",
        "Weights of the classes in the training loss, for uneven classes: balanced, inversely proportional to their "
        "numbers of images; or effective, which is milder.",
        _one_of(ClassWeights),
    )
    logit_adjustment: float = _setting(
        0.0,
        "Training",
        "Strength of logit adjustment, which trains for classes that are equally frequent although the training images "
        "are not; 1 for all of it, 0 for none.",
        _number(0.0),
    )
    label_smoothing: float = _setting(
        0.1,
        "Training",
        "Fraction of the target spread evenly over all classes (cross-entropy only).",
        _number(0.0, below=1.0),
    )
    clip_norm: float | None = _setting(
        None,
        "Training",
        "Clip the global L2 norm of the gradients to this value. Default: no clipping.",
        _number(0.0, above=True),
    )
    ema_decay: float | None = _setting(
        None,
        "Training",
        "Decay of an exponential moving average (EMA) of the weights, such as 0.999, which validation, evaluate, "
        "predict and export then use. Default: no average.",
        _number(0.0, below=1.0),
    )
    recompute_statistics: bool | None = _setting(
        None,
        "Training",
        "If validation accuracy is far below training accuracy, recompute the running statistics of BatchNorm on "
        "training images where they lag behind the weights, and use them where accuracy is higher. Default: yes.",
        _TRUE_OR_FALSE,
    )
    seed: int = _setting(0, "Run", "Seed for all random numbers.", _integer(0, 2**64 - 1))
    device: str = _setting("auto", "Run", "Device to train on: auto, cpu, cuda, cuda:N or mps.", _DEVICE)
    workers: int | None = _setting(
        None,
        "Run",
        "Processes that load images; 0 loads in the main process. Does not change the result. Default: by number of "
        "cores.",
        _integer(0),
    )
    threads: int | None = _setting(
        None,
        "Run",
        "Threads with which each process computes on a CPU, on which the last bits of the result depend; 0 for as many "
        "as torch chooses. Default: OMP_NUM_THREADS, or the cores of the machine, divided by its processes.",
        _integer(0),
    )
    timeout: str = _setting(
        "10m",
        "Run",
        "In a run of several processes, the time after which one that does not get further is said to hang, such as "
        "90s, 10m or 2h.",
        _DURATION,
    )
    precision: Precision = _setting(
        "auto",
        "Run",
        "float32, or bfloat16 for autocast; auto uses bfloat16 on GPUs that support it.",
        _one_of(Precision),
    )
    memory_format: MemoryFormat = _setting(
        "auto",
        "Run",
        "Memory layout of images and activations: contiguous or channels_last. auto uses channels_last for "
        "convolutional networks on a GPU, and for networks of mostly 1 x 1 convolutions on a CPU.",
        _one_of(MemoryFormat),
    )
    compile: bool | None = _setting(
        None,
        "Run",
        "Compile the training step into one graph. Default: in runs of at least 500 steps on CUDA, and on a CPU if it "
        "pays off within the run.",
        _TRUE_OR_FALSE,
    )
    deterministic: bool = _setting(
        False,
        "Run",
        "Use only deterministic kernels. Those of a CPU always are; those of a GPU are slower.",
        _TRUE_OR_FALSE,
    )
    best_by: BestBy | None = _setting(
        None,
        "Run",
        "What makes an epoch the best: the highest validation accuracy, the lowest validation loss, the highest "
        "macro-averaged accuracy (the mean over the classes), or the highest mean average precision (map). Default: "
        "accuracy, or map if images may have several labels.",
        _one_of(BestBy),
    )
    patience: int | None = _setting(
        None,
        "Run",
        "Stop after this many epochs in a row that are not better than the best. Default: train all epochs.",
        _integer(1),
    )
    max_time: str | None = _setting(
        None,
        "Run",
        "Save and stop after this time, such as 90s, 30m or 2h. Resuming continues, for as long again. Default: no "
        "limit.",
        _DURATION,
    )
    save_station: int | None = _setting(
        None,
        "Run",
        "First epoch, counted from 1, from which every epoch's checkpoint is kept. The last and the best are always "
        "kept.",
        _integer(1),
    )
    keep_last: int = _setting(
        2,
        "Run",
        "Number of most recent checkpoints to keep; with two, one remains if the other is damaged.",
        _integer(1),
    )
    checkpoint_every: str | None = _setting(
        None,
        "Run",
        "How often to save a checkpoint within an epoch: 500 for every 500 steps, 10m for every 10 minutes. One is "
        "always saved at the end of an epoch.",
        _INTERVAL,
        converter=_integer_as_text,
    )
    log_every: int = _setting(10, "Run", "Training steps per line of metrics.jsonl.", _integer(1))
    out: str | None = _setting(None, "Run", "Folder of the run. Default: runs/<model>/<date-time>.", _TEXT)


def from_mapping(values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Settings by name, with `-` or `_` in the names, as keyword arguments of `Settings`.

    Args:
      source: where the values come from, for messages.

    Raises:
      SettingsError: if a name is not a setting; the message suggests the nearest one.
    """
    known = [field.name for field in attrs.fields(Settings)]
    for name in values:
        if name.replace("-", "_") not in known:
            near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"{source}: there is no setting {name!r}{hint}")
    twice = [name for name in values if "-" in name and name.replace("-", "_") in values]
    if twice:
        raise SettingsError(f"{source}: {twice[0]!r} is given twice, with - and with _; remove one of them")
    return {name.replace("-", "_"): value for name, value in values.items()}


def as_before(settings: Settings) -> Settings:
    """The settings of a run, in which those that its config.json lacks, because they did not exist when it started,
    have the values that ftrain used then."""
    return attrs.evolve(
        settings,
        init=settings.init or "default",
        fit=settings.fit or "crop",
        interpolation=settings.interpolation or "bilinear",
        crop_fraction=settings.crop_fraction or (1.0 if settings.crop_scale == 1.0 else 0.875),
        mean=settings.mean or IMAGENET_MEAN,
        std=settings.std or IMAGENET_STD,
        drop_last=True if settings.drop_last is None else settings.drop_last,
        freeze="none" if settings.freeze is None else settings.freeze,
        head_epochs=0 if settings.head_epochs is None else settings.head_epochs,
        layer_decay=1.0 if settings.layer_decay is None else settings.layer_decay,
        task="single-label" if settings.task == "auto" else settings.task,
        loss=settings.loss or "cross-entropy",
        best_by=settings.best_by or "accuracy",
        recompute_statistics=bool(settings.recompute_statistics),
        feature_cache=bool(settings.feature_cache),
        shards=settings.shards or 1,
        threads=settings.threads or 0,
    )


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `below`, overridden by those of `above`. The images are located either by `train_dir` and
    `val_dir` or by `data` and `dataset`; giving one pair removes the other. Another `accumulate` removes `shards`,
    which follows from it."""
    one, other = {"train_dir", "val_dir"}, {"data", "dataset"}
    hidden = (other if one & above.keys() else set()) | (one if other & above.keys() else set())
    if "accumulate" in above and above["accumulate"] != below.get("accumulate", above["accumulate"]):
        hidden |= {"shards"}
    return {**{name: value for name, value in below.items() if name not in hidden}, **above}
