"""Whether an image has one label or may have several, and what follows from it for the settings of a run."""

from __future__ import annotations

import attrs

from ftrain.data.labels import is_multi_label
from ftrain.data.source import Source
from ftrain.errors import SettingsError
from ftrain.run.settings import Settings
from ftrain.text import shown

MULTI_LABEL_LOSSES = ("binary-cross-entropy", "focal")


def with_task(settings: Settings, train: Source, val: Source) -> Settings:
    """The settings with `task`, `loss` and `best_by` decided by the labels.

    Raises:
      SettingsError: if they conflict with the labels.
    """
    several = is_multi_label(train.labels)
    if several != is_multi_label(val.labels):
        one, other = (val, train) if several else (train, val)
        raise SettingsError(
            f"images must have one label each, or any number of them, in both splits; {shown(one.name)} has one each, "
            f"and {shown(other.name)} any number. Of tables, `task=multi-label` reads both in the same way"
        )
    if settings.task not in ("auto", "multi-label" if several else "single-label"):
        found = "may have several labels" if several else "have one label each"
        need = "class numbers of shape [N]" if several else "a table of labels, or arrays of 0 and 1 of shape [N, C]"
        raise SettingsError(
            f"the images of {shown(train.name)} {found}, so `task={settings.task}` cannot be done with them; it needs "
            f"{need}"
        )
    if several:
        _check_multi_label(settings)
    elif settings.best_by == "map":
        raise SettingsError(
            "`best_by=map` is for images that may have several labels; use accuracy, macro or loss, or a table with "
            "several labels per image"
        )
    return attrs.evolve(
        settings,
        task="multi-label" if several else "single-label",
        loss=settings.loss or ("binary-cross-entropy" if several else "cross-entropy"),
        best_by=settings.best_by or ("map" if several else "accuracy"),
    )


def _check_multi_label(settings: Settings) -> None:
    if settings.loss is not None and settings.loss not in MULTI_LABEL_LOSSES:
        raise SettingsError(
            f"`loss={settings.loss}` is for one label per image, and these images may have several; use one of "
            f"{', '.join(MULTI_LABEL_LOSSES)}"
        )
    if settings.best_by == "macro":
        raise SettingsError(
            "`best_by=macro` is for one label per image, and these images may have several; use map, which is a mean "
            "over the classes too"
        )
    if settings.sampler == "balanced":
        raise SettingsError(
            "`sampler=balanced` is for one label per image, and these images may have several; leave it out, or use a "
            "column `weight` in the table"
        )
    for name in ("class_weights", "logit_adjustment"):
        if getattr(settings, name) not in ("none", 0.0):
            raise SettingsError(
                f"`{name}` is for one label per image, and these images may have several; leave it out, or use "
                "`loss=focal`, or a column `weight` in the table"
            )
