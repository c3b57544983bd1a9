"""What is done to the pixels of a view: augmentations as functions of an image and of numbers drawn beforehand.

Each takes an image uint8 [3, S, S] and one row of uniform numbers in [0, 1), and returns an image uint8 [3, S, S]; it
draws nothing itself and changes neither. The operations are torchvision's, on Pillow images, on which they are faster
than on tensors. torchvision is imported when one is first used.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Draws = npt.NDArray[np.float64]
Colour = tuple[int, int, int]

BINS = 31  # of a magnitude, from none to the most
OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
_SIGNED = frozenset(OPERATIONS[1:10])

TRIVIAL_AUGMENT_DRAWS = 3
COLOR_JITTER_DRAWS = 5
ERASING_ATTEMPTS = 10
ERASING_AREA = (0.02, 0.33)
ERASING_RATIO = (0.3, 3.3)
ERASING_DRAWS = 3 + 2 * ERASING_ATTEMPTS


def rand_augment_draws(ops: int) -> int:
    """How many numbers `rand_augment` needs: for each operation, which it is and its sign."""
    return 2 * ops


def rand_augment(pixels: Pixels, draws: Draws, *, fill: Colour, ops: int = 2, magnitude: int = 9) -> Pixels:
    """Some of 14 operations in turn, each as likely, all of one magnitude (Cubuk et al., RandAugment, 2020), with the
    magnitudes of torchvision's RandAugment.

    Args:
      draws: float64 [rand_augment_draws(ops)], in [0, 1).
      fill: the colour of what is moved in from outside of the image.
      ops: how many operations.
      magnitude: a bin, from 0 (nothing is done, where an operation has a magnitude) to 30.
    """
    image = _to_image(pixels)
    for choice, sign in draws.reshape(ops, 2):
        name = OPERATIONS[int(choice * len(OPERATIONS))]
        level = _levels(name, pixels.shape[-1], wide=False)[magnitude]
        image = operate(image, name, _signed(name, level, sign), fill=fill)
    return _to_pixels(image)


def trivial_augment_wide(pixels: Pixels, draws: Draws, *, fill: Colour) -> Pixels:
    """One of 14 operations, each as likely, of a magnitude uniform over 31 bins (Müller and Hutter, TrivialAugment,
    2021), with the magnitudes of torchvision's TrivialAugmentWide.

    Args:
      draws: float64 [TRIVIAL_AUGMENT_DRAWS], in [0, 1).
      fill: the colour of what is moved in from outside of the image.
    """
    choice, magnitude, sign = draws
    name = OPERATIONS[int(choice * len(OPERATIONS))]
    level = _levels(name, pixels.shape[-1], wide=True)[int(magnitude * BINS)]
    return _to_pixels(operate(_to_image(pixels), name, _signed(name, level, sign), fill=fill))


def color_jitter(
    pixels: Pixels, draws: Draws, *, brightness: float, contrast: float, saturation: float, hue: float
) -> Pixels:
    """Brightness, contrast, saturation and hue changed in a random order, by the rule of torchvision's ColorJitter.

    Args:
      draws: float64 [COLOR_JITTER_DRAWS], in [0, 1): the order, and the four changes.
      brightness, contrast, saturation: at least 0; the factor is uniform in [max(0, 1 - x), 1 + x].
      hue: in [0, 0.5]; the shift is uniform in [-hue, hue], in turns of the colour circle.
    """
    from torchvision.transforms.v2 import functional as F

    def factor(strength: float, draw: float) -> float:
        low = max(0.0, 1.0 - strength)
        return low + (1.0 + strength - low) * draw

    changes: list[tuple[float, float, Callable[[Image.Image, float], Image.Image]]] = [
        (brightness, factor(brightness, draws[1]), F.adjust_brightness),
        (contrast, factor(contrast, draws[2]), F.adjust_contrast),
        (saturation, factor(saturation, draws[3]), F.adjust_saturation),
        (hue, hue * (2.0 * draws[4] - 1.0), F.adjust_hue),
    ]
    orders = list(itertools.permutations(changes))
    image = _to_image(pixels)
    for strength, amount, change in orders[int(draws[0] * len(orders))]:
        if strength > 0.0:
            image = change(image, float(amount))
    return _to_pixels(image)


def random_erasing(pixels: Pixels, draws: Draws, *, probability: float, fill: Colour) -> Pixels:
    """A rectangle of the image is hidden, by the rule of torchvision's RandomErasing.

    The area is uniform in [0.02, 0.33] of the image's, the logarithm of height / width uniform in that of [0.3, 3.3];
    of ten such draws the first that is smaller than the image in both directions is taken, at a uniform place. If none
    is, nothing is hidden (Zhong et al., Random erasing data augmentation, 2017).

    Args:
      draws: float64 [ERASING_DRAWS], in [0, 1): whether, two for the place, ten areas, ten ratios.
      probability: of hiding anything, in [0, 1].
      fill: the colour that hides; the mean of the data becomes 0 by normalisation.
    """
    if draws[0] >= probability:
        return pixels
    height, width = pixels.shape[1:]
    areas = height * width * _between(ERASING_AREA, draws[3 : 3 + ERASING_ATTEMPTS])
    low, high = ERASING_RATIO
    ratios = np.exp(_between((math.log(low), math.log(high)), draws[3 + ERASING_ATTEMPTS : ERASING_DRAWS]))
    heights, widths = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (heights < height) & (widths < width)
    if not fits.any():
        return pixels
    first = int(fits.argmax())
    rows, columns = int(heights[first]), int(widths[first])
    top, left = int(draws[1] * (height - rows + 1)), int(draws[2] * (width - columns + 1))
    erased = pixels.copy()
    erased[:, top : top + rows, left : left + columns] = np.array(fill, np.uint8)[:, None, None]
    return erased


def operate(image: Image.Image, name: str, level: float, *, fill: Colour) -> Image.Image:
    """One of `OPERATIONS`, on an RGB image.

    Args:
      level: a slope for ShearX and ShearY, pixels for TranslateX and TranslateY, degrees for Rotate, what is added to a
        factor of 1 for Brightness, Color, Contrast and Sharpness, bits kept for Posterize, the share of 255 above which
        Solarize inverts; without meaning for the others.
    """
    from torchvision.transforms.v2 import functional as F

    move = functools.partial(F.affine, image, angle=0.0, scale=1.0, fill=list(fill))
    slope = math.degrees(math.atan(level))
    results: dict[str, Callable[[], Image.Image]] = {
        "Identity": lambda: image,
        # Shears keep the corner at the top left where it is, not the centre.
        "ShearX": lambda: move(translate=[0, 0], shear=[slope, 0.0], center=[0, 0]),
        "ShearY": lambda: move(translate=[0, 0], shear=[0.0, slope], center=[0, 0]),
        "TranslateX": lambda: move(translate=[int(level), 0], shear=[0.0, 0.0]),
        "TranslateY": lambda: move(translate=[0, int(level)], shear=[0.0, 0.0]),
        "Rotate": lambda: F.rotate(image, level, fill=list(fill)),
        "Brightness": lambda: F.adjust_brightness(image, 1.0 + level),
        "Color": lambda: F.adjust_saturation(image, 1.0 + level),
        "Contrast": lambda: F.adjust_contrast(image, 1.0 + level),
        "Sharpness": lambda: F.adjust_sharpness(image, 1.0 + level),
        "Posterize": lambda: F.posterize(image, int(level)),
        "Solarize": lambda: F.solarize(image, 255.0 * level),
        "AutoContrast": lambda: F.autocontrast(image),
        "Equalize": lambda: F.equalize(image),
    }
    return results[name]()


@functools.lru_cache(maxsize=256)
def _levels(name: str, size: int, *, wide: bool) -> tuple[float, ...]:
    """What each magnitude bin means for an operation on images of `size` pixels a side, in RandAugment or, if wide, in
    TrivialAugmentWide."""
    if name == "Posterize":
        cut = 6 if wide else 4
        return tuple(float(8 - round(bin * cut / (BINS - 1))) for bin in range(BINS))
    # float32, as torchvision's, because some of these are compared with whole numbers.
    if name == "Solarize":
        return tuple(torch.linspace(1.0, 0.0, BINS).tolist())
    if name.startswith("Shear"):
        most = 0.99 if wide else 0.3
    elif name.startswith("Translate"):
        most = 32.0 if wide else 150.0 / 331.0 * size
    elif name == "Rotate":
        most = 135.0 if wide else 30.0
    elif name in _SIGNED:
        most = 0.99 if wide else 0.9
    else:
        most = 0.0
    return tuple(torch.linspace(0.0, most, BINS).tolist())


def _signed(name: str, level: float, draw: float) -> float:
    return -level if name in _SIGNED and draw < 0.5 else level


def _between(ends: tuple[float, float], draws: Draws) -> Draws:
    low, high = ends
    return low + (high - low) * draws


def _to_image(pixels: Pixels) -> Image.Image:
    return Image.merge("RGB", [Image.fromarray(plane) for plane in pixels])


def _to_pixels(image: Image.Image) -> Pixels:
    return np.stack([np.asarray(plane) for plane in image.split()])
