"""Names of networks: their order, patterns, and spellings. Imports no torch, so that `ftrain models` is quick."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterable

TIMM = "timm/"  # with which the names of timm's networks begin


def is_timm(name: str) -> bool:
    """Whether a name, or a pattern, is of timm's networks and not of torchvision's.

    >>> is_timm("TIMM/ResNet18"), is_timm("timm"), is_timm("resnet18")
    (True, True, False)
    """
    return f"{name.strip().lower()}/".startswith(TIMM)


def matching(names: Iterable[str], pattern: str | None) -> list[str]:
    """The names that a pattern selects, with their numbers in natural order.

    Args:
      pattern: selects the names that contain it or, if it has a `*`, `?` or `[`, the names that it matches in full.
        Case does not matter. None selects all.

    >>> matching(["resnet101", "resnet18", "vgg11"], "ResNet"), matching(["resnet18", "vgg11"], "*11")
    (['resnet18', 'resnet101'], ['vgg11'])
    """
    found = sorted(names, key=_natural)
    if pattern is None:
        return found
    wanted = pattern.strip().lower()
    if any(sign in wanted for sign in "*?["):
        return [name for name in found if fnmatch.fnmatchcase(name.lower(), wanted)]
    return [name for name in found if wanted in name.lower()]


def spelled(name: str, known: Collection[str]) -> tuple[str | None, list[str]]:
    """The known name that is meant, and the closest known names if there is no or more than one such name.

    Args:
      name: in any case, with `-`, `.`, `_`, spaces or nothing between its parts.

    >>> spelled("ResNet-34", ["resnet18", "resnet34"]), spelled("resnet_43", ["resnet34", "vgg11"])
    (('resnet34', []), (None, ['resnet34']))
    """
    wanted = re.sub(r"[-. ]", "_", name.strip().lower())
    if wanted in known:
        return wanted, []
    # Without separators two names can be the same: regnet_x_16gf and regnet_x_1_6gf.
    same = [other for other in known if _squashed(other) == _squashed(wanted)]
    if len(same) == 1:
        return same[0], []
    return None, same or difflib.get_close_matches(wanted, known, n=3)


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name.lower())]


def _squashed(name: str) -> str:
    return name.replace("_", "").lower()
