"""Makes ftrain/data/fashion_mnist_sample.tar.xz from the original files of Fashion-MNIST.

    python tools/make_sample.py FOLDER_WITH_IDX_GZ

The folder has the four *-ubyte.gz files, which Debian's package dataset-fashion-mnist installs in
/usr/share/datasets/fashion-mnist. The same files give the same archive to the byte, with the same liblzma.
"""

from __future__ import annotations

import gzip
import io
import lzma
import sys
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

ARCHIVE = Path(__file__).parent.parent / "ftrain" / "data" / "fashion_mnist_sample.tar.xz"
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
SPLITS = (("train", "train", 200), ("val", "t10k", 50))  # folder, prefix of the original files, images per class
LICENSE = """\
The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
SOURCE = """\
# A sample of Fashion-MNIST

2,500 of the 70,000 greyscale images (28 x 28 pixels, 10 classes of clothing) of Fashion-MNIST: in train/ the first 200
images of each class of its training set, in val/ the first 50 of each class of its test set, in their original order
and with their original pixels, as PNG. The licence is in LICENSE.

Source: https://github.com/zalandoresearch/fashion-mnist
Han Xiao, Kashif Rasul, Roland Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", 2017, https://arxiv.org/abs/1708.07747
"""


def main(originals: Path) -> None:
    files = {"LICENSE": LICENSE.encode(), "SOURCE.md": SOURCE.encode()}
    for folder, prefix, per_class in SPLITS:
        images = _idx(originals / f"{prefix}-images-idx3-ubyte.gz", offset=16).reshape(-1, 28, 28)
        labels = _idx(originals / f"{prefix}-labels-idx1-ubyte.gz", offset=8)
        for label, name in enumerate(CLASSES):
            for number, position in enumerate(np.flatnonzero(labels == label)[:per_class]):
                files[f"{folder}/{name}/{number:05d}.png"] = _png(images[position])
    ARCHIVE.write_bytes(_tar_xz(files))
    print(f"{ARCHIVE}: {len(files)} files, {ARCHIVE.stat().st_size} bytes")


def _idx(path: Path, *, offset: int) -> npt.NDArray[np.uint8]:
    """The values of an idx file, whose header is `offset` bytes long."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=offset)


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    # Uncompressed, because xz packs raw pixels into a sixth less space than compressed ones.
    Image.fromarray(pixels).save(stream, "PNG", compress_level=0)
    return stream.getvalue()


def _tar_xz(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)  # owned by root, dated 1970
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return lzma.compress(stream.getvalue(), preset=9 | lzma.PRESET_EXTREME)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
