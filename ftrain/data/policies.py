"""RandAugment, TrivialAugment, colour jitter and random erasing as functions of an image and of random numbers.

Each takes an image uint8 [3, S, S] and a row of random numbers uniform in [0, 1), changes neither, and returns an image
uint8 [3, S, S]. The operations are torchvision's, on Pillow images, because there they are faster than on tensors.
torchvision is imported when one of them is first used.
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

BINS = 31  # magnitudes, from no effect to the strongest
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
    """How many random numbers `rand_augment` needs: for each operation, one to choose it and one for its sign."""
    return 2 * ops


def rand_augment(pixels: Pixels, draws: Draws, *, fill: Colour, ops: int = 2, magnitude: int = 9) -> Pixels:
    """A few operations out of 14, each equally likely, all of the same magnitude (Cubuk et al., RandAugment, 2020). The
    magnitudes are those of torchvision's RandAugment.

    Args:
      draws: float64 [rand_augment_draws(ops)], in [0, 1).
      fill: the colour of pixels from outside the image.
      ops: how many operations.
      magnitude: from 0 (no effect, for operations that have a magnitude) to 30.
    """
    image = _to_image(pixels)
    for choice, sign in draws.reshape(ops, 2):
        name = OPERATIONS[int(choice * len(OPERATIONS))]
        level = _levels(name, pixels.shape[-1], trivial=False)[magnitude]
        image = operate(image, name, _signed(name, level, sign), fill=fill)
    return _to_pixels(image)


def trivial_augment_wide(pixels: Pixels, draws: Draws, *, fill: Colour) -> Pixels:
    """One operation out of 14, each equally likely, with a magnitude uniform over 31 bins (Müller and Hutter,
    TrivialAugment, 2021). The magnitudes are those of torchvision's TrivialAugmentWide.

    Args:
      draws: float64 [TRIVIAL_AUGMENT_DRAWS], in [0, 1).
      fill: the colour of pixels from outside the image.
    """
    choice, magnitude, sign = draws
    name = OPERATIONS[int(choice * len(OPERATIONS))]
    level = _levels(name, pixels.shape[-1], trivial=True)[int(magnitude * BINS)]
    return _to_pixels(operate(_to_image(pixels), name, _signed(name, level, sign), fill=fill))


def color_jitter(
    pixels: Pixels, draws: Draws, *, brightness: float, contrast: float, saturation: float, hue: float
) -> Pixels:
    """Changes brightness, contrast, saturation and hue in a random order, as torchvision's ColorJitter does.

    Args:
      draws: float64 [COLOR_JITTER_DRAWS], in [0, 1): the order, and the four changes.
      brightness, contrast, saturation: at least 0; the factor is uniform in [max(0, 1 - x), 1 + x].
      hue: in [0, 0.5]; the shift is uniform in [-hue, hue], where 1 is a full turn of the colour circle.
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
    """Erases a rectangle of the image, with the distribution of torchvision's RandomErasing.

    Its area is uniform in [0.02, 0.33] times the image's, and the logarithm of height / width is uniform between those
    of 0.3 and 3.3. The first of ten such draws that is smaller than the image in both directions is used, at a uniform
    position. If there is none, nothing is erased (Zhong et al., Random erasing data augmentation, 2017).

    Args:
      draws: float64 [ERASING_DRAWS], in [0, 1): whether to erase, two for the position, ten areas, ten ratios.
      probability: of erasing, in [0, 1].
      fill: the colour of erased pixels. Normalisation maps the mean of the data to 0.

    >>> draws = np.full(ERASING_DRAWS, 0.5)
    >>> erased = random_erasing(np.zeros((3, 8, 8), np.uint8), draws, probability=1.0, fill=(1, 1, 1))
    >>> int(erased[0].sum())
    9
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
      level: for ShearX and ShearY a slope, for TranslateX and TranslateY pixels, for Rotate degrees, for Brightness,
        Color, Contrast and Sharpness the factor minus 1, for Posterize the bits that remain, for Solarize the fraction
        of 255 above which values are inverted. The others ignore it.
    """
    from torchvision.transforms.v2 import functional as F

    move = functools.partial(F.affine, image, angle=0.0, scale=1.0, fill=list(fill))
    slope = math.degrees(math.atan(level))
    results: dict[str, Callable[[], Image.Image]] = {
        "Identity": lambda: image,
        # Shears leave the top left corner in place, not the centre.
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
def _levels(name: str, size: int, *, trivial: bool) -> tuple[float, ...]:
    """The level of each magnitude of an operation on images of `size` x `size` pixels, in TrivialAugmentWide if
    `trivial`, else in RandAugment."""
    if name == "Posterize":
        cut = 6 if trivial else 4
        return tuple(float(8 - round(bin * cut / (BINS - 1))) for bin in range(BINS))
    # float32 as in torchvision, because some of these are compared with integers.
    if name == "Solarize":
        return tuple(torch.linspace(1.0, 0.0, BINS).tolist())
    if name.startswith("Shear"):
        most = 0.99 if trivial else 0.3
    elif name.startswith("Translate"):
        most = 32.0 if trivial else 150.0 / 331.0 * size
    elif name == "Rotate":
        most = 135.0 if trivial else 30.0
    elif name in _SIGNED:
        most = 0.99 if trivial else 0.9
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
