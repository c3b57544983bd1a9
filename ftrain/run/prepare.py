"""From settings to the parts of a run: data, network, optimizer, steps. What the settings leave open is decided
here."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import attrs
import numpy as np
import numpy.typing as npt
import platformdirs
import torch

import ftrain.losses
import ftrain.random
from ftrain import models, optim, schedules
from ftrain.compile import compile_step
from ftrain.data import cache as store
from ftrain.data.augment import Augmentation
from ftrain.data.batches import Images
from ftrain.data.decode import oriented_size
from ftrain.data.folders import Index, scan
from ftrain.data.sample import sample_folder
from ftrain.data.source import Source
from ftrain.data.sources import by_name
from ftrain.errors import DataError, SettingsError
from ftrain.losses import Loss
from ftrain.metrics import Metrics
from ftrain.mix import Mix, cutmix, either, mixup
from ftrain.module import Apply, Tensors, functionalize, normalized
from ftrain.run import kernels
from ftrain.run.settings import CacheKind, Settings, flag
from ftrain.state import TrainState, init_state
from ftrain.steps import eval_step, train_step
from ftrain.text import shown

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

LARGEST_DEFAULT_SIZE = 224
LARGEST_DEFAULT_CACHE = 64e9  # bytes on disk that are taken without being asked for
SMALLEST_CROP = 0.35
SAMPLED = 256  # images whose headers are read before anything else
FEW_IMAGES = 5_000
WARMED_UP = ("cosine", "linear")
DEFAULT_LR = {"adamw": 1e-3, "adam": 1e-3, "sgd": 0.05, "adagrad": 0.01}
DEFAULT_WEIGHT_DECAY = {"adamw": 0.05, "adam": 0.0, "sgd": 1e-4, "adagrad": 0.0}
LOSSES: dict[str, Loss] = {
    "cross-entropy": ftrain.losses.cross_entropy,
    "binary-cross-entropy": ftrain.losses.binary_cross_entropy,
    "mean-squared-error": ftrain.losses.mean_squared_error,
}


@attrs.frozen
class Network:
    """A network ready to apply to uint8 images, its tensors on their device."""

    apply: Apply
    params: Tensors
    buffers: Tensors
    report: models.WeightsReport | None


def resolve(settings: Settings) -> tuple[Settings, Images, list[str]]:
    """Settles what the settings leave open, from the data, the model and the device.

    Returns:
      The settings without None where a run needs a value, what the batches hold, and what to tell the user.

    Raises:
      SettingsError: for settings that do not fit each other, the model or this machine.
      DataError: for folders that cannot be trained on.
    """
    model = usage(models.canonical, settings.model)
    device = resolve_device(settings.device)
    settings, notes = _placed(settings)
    train, val = sources(settings)
    batch_size = settings.batch_size or min(64 if len(train) >= FEW_IMAGES else 32, len(train))
    if batch_size > len(train):
        raise SettingsError(
            f"--batch-size is {batch_size}, but {shown(train.title)} holds only {len(train)} images; "
            f"give a batch size of at most {len(train)}"
        )
    if batch_size % settings.accumulate:
        raise SettingsError(
            f"--accumulate splits a batch into equal parts; got {settings.accumulate} for a batch of {batch_size}"
        )
    sizes = _quick_check(train, settings)
    _quick_check(val, settings)
    short_side = int(np.median(sizes.min(axis=1)))
    image_size = settings.image_size or _default_size(model, short_side)
    usage(models.check_size, model, image_size)
    if batch_size < 8 and image_size <= 32:
        notes.append(
            f"a batch of {batch_size} images of {image_size} px leaves BatchNorm little to normalise "
            "over, and the loss may grow without bound; 16 or more is usual"
        )
    whole = short_side <= 1.15 * image_size
    warmup_epochs = _default(settings.warmup_epochs, min(1.0, settings.epochs / 10))
    if warmup_epochs >= settings.epochs and settings.schedule in WARMED_UP:
        raise SettingsError(
            f"--warmup-epochs must be fewer than --epochs; got {warmup_epochs:g} of {settings.epochs} epochs"
        )
    notes.extend(_without_effect(settings))
    if settings.deterministic:
        notes.append(kernels.cost_of_determinism(device))
    settings = attrs.evolve(
        settings,
        model=model,
        weights=_weights(settings.weights),
        image_size=image_size,
        crop_scale=settings.crop_scale or (1.0 if whole else SMALLEST_CROP),
        batch_size=batch_size,
        eval_batch_size=settings.eval_batch_size or batch_size,
        lr=settings.lr or DEFAULT_LR[settings.optimizer],
        warmup_epochs=warmup_epochs,
        weight_decay=_default(settings.weight_decay, DEFAULT_WEIGHT_DECAY[settings.optimizer]),
        device=str(device),
        workers=_default(
            settings.workers, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
        ),
        precision=kernels.precision(device) if settings.precision == "auto" else settings.precision,
        memory_format=(
            kernels.memory_format(model, device) if settings.memory_format == "auto" else settings.memory_format
        ),
    )
    if settings.compile is None:
        compiles, why = kernels.compiles(settings, len(train))
        settings = attrs.evolve(settings, compile=compiles)
        notes.append(why)
    made = images(settings, train, val)
    if settings.cache == "auto":
        settings = attrs.evolve(settings, cache=_cache_with_room(made, sizes))
    return settings, made, notes


def sources(settings: Settings) -> tuple[Source, Source]:
    """The training and the validation images, by settings that say where they are."""
    if settings.dataset:
        assert settings.data
        return usage(by_name, settings.dataset, settings.data)
    assert settings.train_dir and settings.val_dir
    train = usage(scan, Path(settings.train_dir))
    return train, usage(scan, Path(settings.val_dir), classes=train.classes)


def images(settings: Settings, train: Source, val: Source) -> Images:
    """What the batches of a run hold, by its resolved settings."""
    assert settings.batch_size and settings.eval_batch_size and settings.image_size
    return Images(
        train=train,
        val=val,
        seed=settings.seed,
        batch_size=settings.batch_size,
        eval_batch_size=settings.eval_batch_size,
        image_size=settings.image_size,
        augmentation=augmentation(settings),
        skip_unreadable=settings.on_bad_image == "skip",
    )


def augmentation(settings: Settings) -> Augmentation:
    """How training shows images, by resolved settings."""
    assert settings.crop_scale
    red, green, blue = (round(255 * mean) for mean in settings.mean)
    return Augmentation(
        crop_scale=settings.crop_scale,
        crop_ratio=settings.crop_ratio,
        mirror=settings.flip,
        policy=settings.auto_augment,
        jitter=settings.color_jitter,
        erasing=settings.random_erasing,
        fill=(red, green, blue),
    )


def dtype(settings: Settings) -> torch.dtype:
    """What the network computes in."""
    return torch.bfloat16 if settings.precision == "bfloat16" else torch.float32


def _quick_check(source: Source, settings: Settings) -> npt.NDArray[np.int64]:
    """Looks for images that cannot be read where that is quick: empty files, and the headers of up to SAMPLED images,
    evenly spread over the data. Returns their height and width, int64 [images, 2].

    Raises:
      DataError: for such an image, unless they are to be left out.
    """
    skip = settings.on_bad_image == "skip"
    if isinstance(source, Index) and not skip:
        empty = np.flatnonzero(source.sizes == 0)
        if len(empty):
            more = f" (and {len(empty) - 1} more such files)" if len(empty) > 1 else ""
            raise DataError(f"cannot read the image {shown(source.name(int(empty[0])))}: the file is empty{more}")
    sizes = []
    for position in np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(int)).tolist():
        try:
            with source.open(position) as image:
                sizes.append(oriented_size(image))
        except DataError:
            if not skip:
                raise
    if not sizes:
        raise DataError(f"none of the images that were tried can be read; the first of them is {shown(source.name(0))}")
    return np.array(sizes)


def resolve_device(name: str) -> torch.device:
    """The device of a setting.

    Raises:
      SettingsError: for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = f"{count} such device(s)" if count else "no CUDA device"
            raise SettingsError(
                f"--device {name} is not there: torch finds {found} on this machine; use --device cpu or auto"
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError(
            "--device mps is not there: torch finds no Apple GPU on this machine; use --device cpu or auto"
        )
    return device


def network(settings: Settings, classes: int, *, weights: str | None = None) -> Network:
    """The network of resolved settings, freshly initialised from their seed.

    Args:
      weights: what to load into it, if anything.
    """
    assert settings.image_size
    module = models.build(settings.model, classes=classes, image_size=settings.image_size, seed=settings.seed)
    report = None
    if weights:
        report = usage(models.load_weights, module, weights, name=settings.model)
    last = settings.memory_format == "channels_last"
    memory_format = torch.channels_last if last else torch.contiguous_format
    apply, params, buffers = functionalize(module.to(settings.device).to(memory_format=memory_format))
    apply = normalized(apply, mean=settings.mean, std=settings.std, memory_format=memory_format)
    return Network(apply, params, buffers, report)


def optimizer(settings: Settings, steps_per_epoch: int) -> optim.Optimizer:
    """The optimizer of resolved settings."""
    assert settings.lr and settings.weight_decay is not None and settings.warmup_epochs is not None
    total = settings.epochs * steps_per_epoch
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total - 1)
    rate: schedules.Schedule
    if settings.schedule == "cosine":
        rate = schedules.warmup_cosine(settings.lr, total_steps=total, warmup_steps=warmup)
    elif settings.schedule == "linear":
        rate = schedules.warmup_linear(settings.lr, total_steps=total, warmup_steps=warmup)
    elif settings.schedule == "step":
        rate = schedules.step_decay(settings.lr, every=max(1, -(-total // 3)))
    else:
        rate = schedules.constant(settings.lr)
    decay, mask = settings.weight_decay, optim.matrices_only
    if settings.optimizer == "adamw":
        base = optim.adamw(rate, weight_decay=decay, mask=mask)
    elif settings.optimizer == "adam":
        base = optim.adam(rate, weight_decay=decay, mask=mask)
    elif settings.optimizer == "sgd":
        nesterov = settings.momentum > 0
        base = optim.sgd(rate, momentum=settings.momentum, nesterov=nesterov, weight_decay=decay, mask=mask)
    else:
        base = optim.adagrad(rate, weight_decay=decay, mask=mask)
    if settings.clip_norm is None:
        return base
    return optim.chain(optim.clip_by_global_norm(settings.clip_norm), base)


def mixing(settings: Settings, classes: int) -> Mix | None:
    """How the examples of a batch are mixed, if they are."""
    mixes = []
    if settings.mixup:
        mixes.append(mixup(settings.mixup, classes=classes))
    if settings.cutmix:
        mixes.append(cutmix(settings.cutmix, classes=classes))
    return either(*mixes) if len(mixes) > 1 else (mixes[0] if mixes else None)


def training_loss(settings: Settings) -> Loss:
    """The loss that training minimises."""
    if settings.loss == "cross-entropy":
        return functools.partial(ftrain.losses.cross_entropy, label_smoothing=settings.label_smoothing)
    return LOSSES[settings.loss]


def steps(
    settings: Settings, net: Network, rule: optim.Optimizer, classes: int
) -> tuple[Callable[..., Any], Callable[..., Metrics]]:
    """The training step, which writes into the memory of the state that it is given, and the evaluation step."""
    precision = dtype(settings)
    train = functools.partial(
        train_step,
        apply=net.apply,
        optimizer=rule,
        loss=training_loss(settings),
        mix=mixing(settings, classes),
        precision=precision,
        accumulate=settings.accumulate,
        skip_nonfinite=True,
        ema_decay=settings.ema_decay,
    )
    judge = functools.partial(eval_step, apply=net.apply, loss=LOSSES[settings.loss], precision=precision)
    if settings.compile:
        return compile_step(train, donate=True), compile_step(judge)
    return functools.partial(train, donate=True), judge


def check_batch(settings: Settings, net: Network) -> None:
    """Tries one example where the network sees them one by one, over which BatchNorm cannot normalise where only one
    pixel is left.

    Raises:
      SettingsError: if the network cannot be trained on it.
    """
    if settings.batch_size != settings.accumulate or not settings.image_size:
        return
    size = settings.image_size
    example = torch.zeros((1, 3, size, size), dtype=torch.uint8, device=settings.device)
    try:
        net.apply(net.params, net.buffers, example, train=True, key=ftrain.random.key(0, device=settings.device))
    except ValueError as error:
        parts = f" in {settings.accumulate} parts" if settings.accumulate > 1 else ""
        raise SettingsError(
            f"--batch-size {settings.batch_size} is too small for {settings.model} at --image-size {size}{parts}: "
            f"{error}; give a batch size of at least {2 * settings.accumulate}"
        ) from error


def first_state(settings: Settings, net: Network, rule: optim.Optimizer) -> TrainState:
    """The state before the first step."""
    return init_state(net.params, net.buffers, rule, seed=settings.seed, ema=settings.ema_decay is not None)


def _placed(settings: Settings) -> tuple[Settings, list[str]]:
    """The settings with whole paths in either `train_dir` and `val_dir`, or `dataset` and `data`; and notes."""
    if (settings.train_dir is None) != (settings.val_dir is None):
        raise SettingsError(
            "--train-dir and --val-dir go together; give both, or --data for a folder that holds train/ and val/"
        )
    if settings.train_dir and settings.val_dir:
        if settings.data or settings.dataset:
            other = "--dataset" if settings.dataset else "--data"
            raise SettingsError(f"give either {other}, or --train-dir and --val-dir; got all of them")
        return _in_folders(settings, settings.train_dir, settings.val_dir), []
    if settings.dataset:
        folder = settings.data or platformdirs.user_cache_path("ftrain") / "datasets"
        return attrs.evolve(settings, data=os.path.abspath(folder)), []
    root = Path(settings.data or "data")
    train, val = root / "train", root / "val"
    if settings.data:
        missing = [shown(folder) for folder in (train, val) if not folder.is_dir()]
        if missing:
            raise SettingsError(
                f"--data takes a folder that holds train/ and val/; there is no {' and no '.join(missing)}"
            )
    elif not (train.is_dir() and val.is_dir()):
        root = sample_folder()
        note = f"no data/train and data/val here: training on the sample of Fashion-MNIST in {shown(root)}"
        return _in_folders(settings, root / "train", root / "val"), [note]
    return _in_folders(settings, train, val), []


def _in_folders(settings: Settings, train: str | Path, val: str | Path) -> Settings:
    return attrs.evolve(settings, data=None, train_dir=os.path.abspath(train), val_dir=os.path.abspath(val))


def _without_effect(settings: Settings) -> list[str]:
    """Notes on settings that were given and that nothing reads."""
    read = {
        "momentum": settings.optimizer == "sgd",
        "warmup_epochs": settings.schedule in WARMED_UP,
        "label_smoothing": settings.loss == "cross-entropy",
    }
    choices = {"momentum": "optimizer", "warmup_epochs": "schedule", "label_smoothing": "loss"}
    fields = attrs.fields_dict(Settings)
    return [
        f"{flag(name)} has no effect with {flag(choices[name])} {getattr(settings, choices[name])}"
        for name, is_read in read.items()
        if not is_read and getattr(settings, name) != fields[name].default
    ]


def _weights(source: str | None) -> str | None:
    """A file by its whole path; a name as it is."""
    return os.path.abspath(source) if source and os.path.isfile(source) else source


def usage(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Calls a function whose ValueError is about a setting."""
    try:
        return function(*args, **kwargs)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _default(value: T | None, default: T) -> T:
    return default if value is None else value


def _cache_with_room(images: Images, sizes: npt.NDArray[np.int64]) -> CacheKind:
    """ram, disk or none: the first that has room for the decoded images, by the sizes of some."""
    kept = np.array([images.train_form.size(*size) for size in sizes.tolist()])
    needed = float(kept.prod(axis=1).mean()) * 3 * len(images.train) + 3 * images.image_size**2 * len(images.val)
    if needed < store.free_memory() / 4:
        return "ram"
    return "disk" if needed < min(store.free_disk() / 2, LARGEST_DEFAULT_CACHE) else "none"


def _default_size(model: str, short_side: int) -> int:
    """A multiple of 32 near the images' own size, at most 224 except for a model that needs more."""
    start = min(LARGEST_DEFAULT_SIZE, max(32, round(short_side / 32) * 32))
    size = start
    while not models.fits(model, size):
        size += 32
    return size
