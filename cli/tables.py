"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftrain.text import shown

WIDTHS = {"ap": 6, "precision": 9, "recall": 6, "f1": 6, "threshold": 9, "images": 6}


def score_table(classes: Sequence[str], scores: Mapping[str, Any]) -> str:
    """A line for each class, and their mean; of classes of which an image may have several, also average precision and
    threshold."""
    names = [shown(name) for name in classes]
    width = max(len("class"), len("mean"), *map(len, names))
    columns = [name for name in WIDTHS if name in scores]

    def line(name: str, values: Mapping[str, float]) -> str:
        cells = [f"{values[each]:{WIDTHS[each]}.{0 if each == 'images' else 3}f}" for each in columns if each in values]
        return "  ".join([f"{name:<{width}}", *cells])

    there = scores["images"] > 0  # nothing can be said of a class without images
    means = {each: float(scores[each][there].mean()) for each in columns if each != "images"}
    total = {"images": float(scores["images"].sum())}
    return "\n".join(
        [
            "  ".join([f"{'class':<{width}}", *(f"{each:>{WIDTHS[each]}}" for each in columns)]),
            *(
                line(name, {each: float(scores[each][position]) for each in columns})
                for position, name in enumerate(names)
            ),
            line("mean", means | total),
        ]
    )
