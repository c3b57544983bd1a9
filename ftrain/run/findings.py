"""What a run finds out about itself, in words."""

from __future__ import annotations

from ftrain.run.events import ComputingFeatures, StatisticsRecomputed
from ftrain.text import readable


def about_statistics(event: StatisticsRecomputed) -> str | None:
    """What recomputing the statistics of BatchNorm has shown; None if there is nothing new to say."""
    before, after = event.before["accuracy"], event.after["accuracy"]
    if not event.first:
        if not event.kept:
            return None
        return (
            f"epoch {event.epoch}: BatchNorm's running statistics recomputed; validation accuracy {after:.1%} instead "
            f"of {before:.1%}"
        )
    found = (
        f"epoch {event.epoch}: validation accuracy is {before:.1%}, far below the training accuracy of "
        f"{event.train['accuracy']:.1%}"
    )
    on_them = f"accuracy in evaluation is {event.fit_after:.1%} on these images instead of {event.fit_before:.1%}"
    if not event.to_blame:
        return (
            f"{found}; with BatchNorm's statistics recomputed on {event.images} training images, {on_them}, so they "
            "are not the cause"
        )
    use = "so they are used" if event.kept else "which is not better, so the old ones stay"
    return (
        f"{found}; BatchNorm's running statistics lag behind the weights ({event.stale:.0%} of them is from earlier "
        f"epochs): recomputed on {event.images} training images, {on_them}, and {after:.1%} on the validation "
        f"images, {use}"
    )


def about_features(event: ComputingFeatures) -> str:
    """That features are computed, and of how many images."""
    return (
        f"features of the frozen backbone are computed once ({event.total} images, {readable(event.bytes)}), and the "
        "head is trained on them by a step that is not compiled"
    )
