"""How a run trains if the settings leave it open: from random weights, or from pretrained ones.

What is different with pretrained weights was found by measurement; docs/fine-tuning.md has the figures.
"""

from __future__ import annotations

from typing import TypeVar

import attrs

from ftrain.run.settings import BATCH_NORM, InitName, Settings

T = TypeVar("T")

DEFAULT_LR = {"adamw": 1e-3, "adam": 1e-3, "sgd": 0.05, "adagrad": 0.01}
DEFAULT_WEIGHT_DECAY = {"adamw": 0.05, "adam": 0.0, "sgd": 1e-4, "adagrad": 0.0}
LAYER_DECAY = 0.85
LOWER_WITHOUT_BATCH_NORM = 5  # times
# Batch sizes by the number of training images below which they are used.
FROM_SCRATCH = {5_000: 32}
FINE_TUNING = {200: 8, 1_000: 16, 5_000: 32}
FOR_MANY = 64


@attrs.frozen(kw_only=True)
class Recipe:
    """What decides how parameters are trained. The fields are as in `Settings`."""

    init: InitName
    freeze: str
    head_epochs: int
    layer_decay: float
    batch_size: int
    lr: float
    weight_decay: float


def recipe(settings: Settings, *, images: int, batch_norm: bool) -> Recipe:
    """What is given in the settings, and the rest as it suits the run.

    Args:
      images: how many there are to train on.
      batch_norm: whether the network has BatchNorm layers.

    >>> recipe(Settings(), images=300, batch_norm=True)
    Recipe(init='default', freeze='none', head_epochs=0, layer_decay=1.0, batch_size=32, lr=0.001, weight_decay=0.05)
    >>> recipe(Settings(weights="DEFAULT"), images=300, batch_norm=True)
    Recipe(init='small-head', freeze='batch-norm', head_epochs=1, layer_decay=0.85, batch_size=16, lr=0.001, \
weight_decay=0.05)
    """
    fine_tuning = settings.weights is not None
    lr = DEFAULT_LR[settings.optimizer]
    if fine_tuning and not batch_norm:
        lr /= LOWER_WITHOUT_BATCH_NORM
    freeze = _or(settings.freeze, BATCH_NORM if fine_tuning and batch_norm else "none")
    head_first = fine_tuning and settings.epochs > 2 and freeze in ("none", BATCH_NORM)  # names may freeze the head
    return Recipe(
        init=_or(settings.init, "small-head" if fine_tuning else "default"),
        freeze=freeze,
        head_epochs=_or(settings.head_epochs, int(head_first)),
        layer_decay=_or(settings.layer_decay, LAYER_DECAY if fine_tuning and freeze != "backbone" else 1.0),
        batch_size=_or(settings.batch_size, min(_batch_size(images, fine_tuning), images)),
        lr=_or(settings.lr, lr),
        weight_decay=_or(settings.weight_decay, DEFAULT_WEIGHT_DECAY[settings.optimizer]),
    )


def _batch_size(images: int, fine_tuning: bool) -> int:
    sizes = FINE_TUNING if fine_tuning else FROM_SCRATCH
    return next((size for below, size in sizes.items() if images < below), FOR_MANY)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
