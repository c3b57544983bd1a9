"""The sample that ships with ftrain: 2,000 training and 500 validation images of Fashion-MNIST, as class folders."""

from __future__ import annotations

import hashlib
import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import platformdirs

from ftrain.disk import durable
from ftrain.text import shown

_ARCHIVE = "fashion_mnist_sample.tar.xz"


def sample_folder() -> Path:
    """The folder with train/ and val/ of the sample. The first call unpacks it to the user's cache folder.

    The folder appears only when it is complete, whatever other processes do and whenever this one is stopped.

    Raises:
      OSError: if the cache folder cannot be written.

    >>> sorted(path.name for path in sample_folder().iterdir())
    ['LICENSE', 'SOURCE.md', 'train', 'val']
    """
    packed = resources.files("ftrain.data").joinpath(_ARCHIVE).read_bytes()
    cache = platformdirs.user_cache_path("ftrain")
    folder = cache / f"fashion-mnist-sample-{hashlib.sha256(packed).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    try:
        _unpack(packed, folder)
    except OSError as error:
        raise OSError(
            f"cannot unpack the sample images to {shown(folder)}: {error.strerror or error}. Free space there or "
            "make it writable, set XDG_CACHE_HOME to a folder that is writable, or train on images of your own"
        ) from error
    return folder


def _unpack(packed: bytes, folder: Path) -> None:
    try:
        with durable.new_folder(folder) as filling:
            written = []
            with tarfile.open(fileobj=io.BytesIO(packed), mode="r:xz") as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    assert content is not None, member.name
                    path = filling / member.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.read())
                    written.append(path)
            # In threads, since disks flush many files at once.
            with ThreadPoolExecutor(16) as threads:
                list(threads.map(durable.sync, written))
    except OSError:
        if not folder.is_dir():  # otherwise another process was first
            raise
