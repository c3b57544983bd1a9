"""A few small images, a data set of them, and what tests of sources share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ftrain.data.decode import crop_and_resize, oriented_size

COLOUR = np.arange(4 * 6 * 5 * 3, dtype=np.uint8).reshape(4, 6, 5, 3)  # 4 images, 6 high, 5 wide
GREY = COLOUR[..., 0]
LABELS = [0, 1, 2, 1]


class Pictures:
    """A data set that makes its images anew each time."""

    classes = ("cat", "dog", "eel")

    def __init__(self, images: Any = COLOUR, given: Any = LABELS, **attributes: Any) -> None:
        self.images, self.given = images, given
        self.reads = 0
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, position: int) -> Any:
        self.reads += 1
        image = self.images[position]
        if isinstance(image, Exception):
            raise image
        return image, self.given[position]


def pixels(source: Any, position: int) -> npt.NDArray[np.uint8]:
    """The whole image as the pipeline gets it, [height, width, 3], if it is square."""
    with source.open(position) as image:
        height, width = oriented_size(image)
        assert height == width
        return crop_and_resize(image, (0, 0, width, height), height).transpose(1, 2, 0)


def message(error: type[Exception], function: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
