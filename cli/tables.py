"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftrain.text import shown


def score_table(classes: Sequence[str], scores: Mapping[str, Any]) -> str:
    """A line for each class, and their mean."""
    names = [shown(name) for name in classes]
    width = max(len("class"), len("mean"), *map(len, names))
    lines = [f"{'class':<{width}}  precision  recall      f1  images"]
    for position, name in enumerate(names):
        p, r, f, n = (float(scores[score][position]) for score in ("precision", "recall", "f1", "images"))
        lines.append(f"{name:<{width}}  {p:9.3f}  {r:6.3f}  {f:6.3f}  {n:6.0f}")
    there = scores["images"] > 0  # nothing can be said of a class without images
    p, r, f = (float(scores[score][there].mean()) for score in ("precision", "recall", "f1"))
    lines.append(f"{'mean':<{width}}  {p:9.3f}  {r:6.3f}  {f:6.3f}  {float(scores['images'].sum()):6.0f}")
    return "\n".join(lines)
