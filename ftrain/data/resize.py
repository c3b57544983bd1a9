"""Resizing decoded pixels."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]


def resized(pixels: Tensor, height: int, width: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Pixels uint8 [3, rows, columns], channels last in memory, as [3, height, width], antialiased.

    torch takes a fraction of Pillow's time for this, and differs from it by at most 1 of 255.
    """
    return F.interpolate(pixels[None], (height, width), mode=interpolation, antialias=True)[0]
