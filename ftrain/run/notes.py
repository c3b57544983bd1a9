"""What a user should know about a run before it starts."""

from __future__ import annotations

import attrs
import numpy as np

from ftrain.data.labels import images_of_class, is_multi_label
from ftrain.data.source import Source
from ftrain.run.settings import WITH_WARMUP, Settings
from ftrain.text import listed

NOTABLE_UNCERTAINTY = 0.08  # of the validation accuracy, which 100 images give


def about_validation(train: Source, val: Source) -> list[str]:
    """Notes on validation images from which little can be concluded."""
    notes = []
    # A class with a single image has been mentioned where the images were split.
    of_train, of_val = (np.array(images_of_class(source.labels, len(train.classes))) for source in (train, val))
    several = is_multi_label(val.labels)
    missing = [train.classes[label] for label in np.flatnonzero((of_val == 0) & (of_train > 1)).tolist()]
    if several and not of_val.any():
        notes.append("no validation image has a label, so mAP and F1 will not be known, nor the best epoch by them")
    elif missing:
        whose = "its" if len(missing) == 1 else "their"
        notes.append(f"there are no validation images of {listed(missing)}, so {whose} accuracy will not be known")
    # Twice the standard error of an accuracy of 80 %.
    uncertainty = 2.0 * (0.8 * 0.2 / len(val)) ** 0.5
    if uncertainty > NOTABLE_UNCERTAINTY and not several:  # which are judged by mAP, with another error
        images = f"{len(val)} validation image{'s' * (len(val) != 1)}"
        notes.append(
            f"with only {images}, differences in accuracy of less than {uncertainty:.0%} may be chance; more "
            "validation images would tell more"
        )
    return notes


def about_training(settings: Settings, *, named: bool) -> list[str]:
    """Notes on how a run trains that a user may not want.

    Args:
      settings: with the recipe.
      named: whether ftrain builds the network by its name.
    """
    notes = []
    small_batch = settings.batch_size is not None and settings.batch_size < 8
    small_images = settings.image_size is not None and settings.image_size <= 32
    if small_batch and small_images and settings.freeze == "none":
        notes.append(
            f"a batch of {settings.batch_size} images of {settings.image_size} px gives BatchNorm few values to "
            "normalise over, and training may diverge; 16 or more is usual"
        )
    if named and not settings.weights and (settings.freeze != "none" or settings.head_epochs):
        freezing = "head_epochs" if settings.freeze == "none" else "freeze"
        notes.append(f"`{freezing}` without `weights` leaves layers at their random initial values")
    return notes


def unused(settings: Settings) -> list[str]:
    """Notes on settings that were given and have no effect."""
    used = {
        "momentum": settings.optimizer == "sgd",
        "warmup_epochs": settings.schedule in WITH_WARMUP,
        "label_smoothing": settings.loss in (None, "cross-entropy"),
        "head_epochs": settings.freeze != "backbone",
        "layer_decay": settings.freeze != "backbone",
    }
    choices = {
        "momentum": "optimizer",
        "warmup_epochs": "schedule",
        "label_smoothing": "loss",
        "head_epochs": "freeze",
        "layer_decay": "freeze",
    }
    fields = attrs.fields_dict(Settings)
    without_effect = {name: field.default for name, field in fields.items()} | {"head_epochs": 0, "layer_decay": 1.0}
    return [
        f"`{name}` has no effect with `{choices[name]}={getattr(settings, choices[name])}`"
        for name, is_used in used.items()
        if not is_used and getattr(settings, name) not in (fields[name].default, without_effect[name])
    ]
