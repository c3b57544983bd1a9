"""A run with everything decided: what `resolve` makes of settings, and what `build` makes a program of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import attrs
import torch

from ftrain.data.augment import Augmentation
from ftrain.data.images import Images
from ftrain.data.order import Balance, Pace
from ftrain.data.source import Source
from ftrain.errors import SettingsError
from ftrain.run.settings import (
    BestBy,
    ClassWeights,
    InitName,
    LossName,
    OptimizerName,
    SamplerName,
    ScheduleName,
    Settings,
    as_before,
)

T = TypeVar("T")
UNEVEN = 3


@attrs.frozen
class Interval:
    """How often to save a checkpoint within an epoch: every `steps` steps or `minutes` minutes; never if both are 0."""

    steps: int = 0
    minutes: int = 0

    @classmethod
    def parse(cls, text: str | None) -> Interval:
        """An interval from a setting: 500 for every 500 steps, 10m for every 10 minutes, None for never."""
        if text is None:
            return cls()
        return cls(minutes=int(text[:-1])) if text.endswith("m") else cls(steps=int(text))


def seconds(duration: str | None) -> float:
    """A time such as 90s, 30m or 2h in seconds; infinity for None."""
    return math.inf if duration is None else int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


@attrs.frozen(kw_only=True)
class RunSpec:
    """Every decision about a run. Nothing is None; the fields without a comment are as in `Settings`.

    Raises:
      SettingsError: from `of`, if a setting is not decided.
    """

    recorded: Mapping[str, Any]  # the settings as config.json records them
    model: str  # a name of the catalogue, FILE.py:FUNCTION, or the class of a module that a caller passed
    weights: str  # "" for random initialisation
    init: InitName
    zero_init_residual: bool
    drops: Mapping[str, float]  # dropout and drop_path, if they are not the network's own
    classes: tuple[str, ...]  # their names, by label
    task: Literal["single-label", "multi-label"]
    class_counts: tuple[int, ...]  # how many images to train on each class has
    train_examples: int  # how many images there are to train on
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    mixup: float
    cutmix: float
    cache: Literal["none", "disk", "ram"]
    skip_bad_images: bool
    bad_image_cap: float
    epochs: int
    batch_size: int
    eval_batch_size: int
    drop_last: bool
    sampler: SamplerName
    accumulate: int
    shards: int  # how many parts of a batch have a pass, BatchNorm statistics and draws of their own
    in_order: int  # parts of a shard that follow one another; 1 but for runs that started before there were shards
    optimizer: OptimizerName
    lr: float
    weight_decay: float
    momentum: float
    schedule: ScheduleName
    warmup_epochs: float
    freeze: str
    head_epochs: int
    head_lr: float
    layer_decay: float
    feature_cache: bool
    loss: LossName
    class_weights: ClassWeights
    logit_adjustment: float
    label_smoothing: float
    clip_norm: float  # infinity for no clipping
    ema_decay: float  # 0 for no average
    recompute_statistics: bool
    seed: int
    device: str  # as torch names it: cpu, cuda, cuda:1, mps
    workers: int
    threads: int  # 0 for as many as torch chooses
    timeout: float  # in seconds
    precision: Literal["float32", "bfloat16"]
    memory_format: Literal["contiguous", "channels_last"]
    compile: bool
    compile_because: str  # in words
    deterministic: bool
    best_by: BestBy
    patience: int  # 0 to train all epochs
    max_seconds: float  # infinity for no limit
    save_station: int  # later than the last epoch if no epoch's checkpoint is kept for its number
    keep_last: int
    checkpoint_every: Interval
    log_every: int
    notes: tuple[str, ...] = ()  # about the decisions, for the user

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        classes: tuple[str, ...],
        class_counts: tuple[int, ...],
        train_examples: int | None = None,
        compile_because: str = "",
        notes: tuple[str, ...] = (),
    ) -> RunSpec:
        """The spec of settings in which everything is decided, such as those that config.json records.

        Args:
          train_examples: how many images there are to train on; None if each has one label, so that the counts add up.
        """

        def decided(name: str, value: T | None) -> T:
            if value is None:
                raise SettingsError(f"`{name}` has no value, and there is no image to take one from")
            return value

        settings = as_before(settings)
        mean, std = decided("mean", settings.mean), decided("std", settings.std)
        red, green, blue = (round(255 * each) for each in mean)
        drops = {"dropout": settings.dropout, "drop_path": settings.drop_path}
        return cls(
            recorded=attrs.asdict(settings),
            model=settings.model,
            weights=settings.weights or "",
            init=decided("init", settings.init),
            zero_init_residual=settings.zero_init_residual,
            drops={name: value for name, value in drops.items() if value is not None},
            classes=classes,
            task="multi-label" if settings.task == "multi-label" else "single-label",
            class_counts=class_counts,
            train_examples=sum(class_counts) if train_examples is None else train_examples,
            image_size=decided("image_size", settings.image_size),
            mean=mean,
            std=std,
            augmentation=Augmentation(
                crop_scale=decided("crop_scale", settings.crop_scale),
                crop_ratio=settings.crop_ratio,
                flip=settings.flip,
                policy=settings.auto_augment,
                jitter=settings.color_jitter,
                erasing=settings.random_erasing,
                fill=(red, green, blue),
                fit=decided("fit", settings.fit),
                interpolation=decided("interpolation", settings.interpolation),
                centre_fraction=decided("crop_fraction", settings.crop_fraction),
            ),
            mixup=settings.mixup,
            cutmix=settings.cutmix,
            cache="none" if settings.cache == "none" else "disk" if settings.cache == "disk" else "ram",
            skip_bad_images=settings.on_bad_image == "skip",
            bad_image_cap=settings.bad_image_cap,
            epochs=settings.epochs,
            batch_size=decided("batch_size", settings.batch_size),
            eval_batch_size=decided("eval_batch_size", settings.eval_batch_size),
            drop_last=decided("drop_last", settings.drop_last),
            sampler=settings.sampler,
            accumulate=settings.accumulate,
            shards=decided("shards", settings.shards),
            in_order=settings.accumulate if decided("shards", settings.shards) % settings.accumulate else 1,
            optimizer=settings.optimizer,
            lr=decided("lr", settings.lr),
            weight_decay=decided("weight_decay", settings.weight_decay),
            momentum=settings.momentum,
            schedule=settings.schedule,
            warmup_epochs=decided("warmup_epochs", settings.warmup_epochs),
            freeze=decided("freeze", settings.freeze),
            head_epochs=decided("head_epochs", settings.head_epochs),
            head_lr=settings.head_lr or decided("lr", settings.lr),
            layer_decay=decided("layer_decay", settings.layer_decay),
            feature_cache=bool(settings.feature_cache),
            loss=decided("loss", settings.loss),
            class_weights=settings.class_weights,
            logit_adjustment=settings.logit_adjustment,
            label_smoothing=settings.label_smoothing,
            clip_norm=math.inf if settings.clip_norm is None else settings.clip_norm,
            ema_decay=settings.ema_decay or 0.0,
            recompute_statistics=bool(settings.recompute_statistics),
            seed=settings.seed,
            device=settings.device,
            workers=decided("workers", settings.workers),
            threads=settings.threads or 0,
            timeout=seconds(settings.timeout),
            precision="bfloat16" if settings.precision == "bfloat16" else "float32",
            memory_format="channels_last" if settings.memory_format == "channels_last" else "contiguous",
            compile=bool(settings.compile),
            compile_because=compile_because,
            deterministic=settings.deterministic,
            best_by=decided("best_by", settings.best_by),
            patience=settings.patience or 0,
            max_seconds=seconds(settings.max_time),
            save_station=settings.save_station or settings.epochs + 1,
            keep_last=settings.keep_last,
            checkpoint_every=Interval.parse(settings.checkpoint_every),
            log_every=settings.log_every,
            notes=notes,
        )

    @property
    def pace(self) -> Pace:
        """How training steps and epochs follow from the number of training images."""
        return Pace(self.train_examples, self.batch_size, self.drop_last)

    @property
    def parts(self) -> int:
        """How many parts of a batch follow one another where one process computes all of it."""
        return self.shards * self.in_order

    @property
    def total_steps(self) -> int:
        return self.pace.steps(self.epochs)

    @property
    def varying(self) -> tuple[str, ...]:
        """The settings by which an image has other pixels in each epoch of training."""
        shape = self.augmentation
        used = {
            "crop_scale": shape.crop_scale < 1.0,
            "flip": shape.flip,
            "auto_augment": shape.policy != "none",
            "color_jitter": any(shape.jitter),
            "random_erasing": shape.erasing > 0.0,
            "mixup": self.mixup > 0.0,
            "cutmix": self.cutmix > 0.0,
        }
        return tuple(name for name, is_used in used.items() if is_used)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.task == "multi-label"

    @property
    def uneven(self) -> bool:
        """Whether some class has several times as many images to train on as another, so that accuracy says little
        about the small ones."""
        return max(self.class_counts) >= UNEVEN * min(self.class_counts)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the forward pass."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    def images(self, train: Source, val: Source) -> Images:
        """How the images of two sources become batches of this run."""
        return Images(
            train=train,
            val=val,
            seed=self.seed,
            batch_size=self.batch_size,
            eval_batch_size=self.eval_batch_size,
            drop_last=self.drop_last,
            image_size=self.image_size,
            augmentation=self.augmentation,
            skip_bad_images=self.skip_bad_images,
            balance=Balance.of(train.labels) if self.sampler == "balanced" else None,
        )
