"""The bad images that a run has skipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ftrain.data.images import Images
from ftrain.errors import DataError
from ftrain.parallel import Processes
from ftrain.run.events import ImageSkipped
from ftrain.run.settings import SPLITS


class SkippedImages:
    """Counts the bad images that were skipped, each once, up to a cap.

    Args:
      cap: the fraction of the images of a split that may be skipped.
      processes: of the run, each of which sees only some images; `merge` tells all what each has found.
    """

    def __init__(self, images: Images, cap: float, processes: Processes | None = None) -> None:
        self.processes = processes or Processes()
        self.own: list[tuple[str, Mapping[int, str]]] = []  # found in this process and not told to the others
        self.sizes = {"train": len(images.train), "val": len(images.val)}
        self.cap = cap
        self.causes: dict[str, dict[int, str]] = {"train": {}, "val": {}}

    @property
    def count(self) -> int:
        return sum(len(causes) for causes in self.causes.values())

    def found(self, split: str, causes: Mapping[int, str]) -> Iterator[ImageSkipped]:
        """Adds images by their positions that this process has found: at once if it is the only one, otherwise at the
        next `merge`. Yields those that are new.

        Raises:
          DataError: if there are more than the cap allows.
        """
        if self.processes.world == 1:
            yield from self.add(split, causes)
        elif causes:
            self.own.append((split, causes))

    def merge(self) -> Iterator[ImageSkipped]:
        """Adds what each process has found; all of them call it. Yields and raises as `found`."""
        if self.processes.world > 1:
            everything, self.own = self.processes.gathered(self.own), []
            for split, causes in (each for found in everything for each in found):
                yield from self.add(split, causes)

    def add(self, split: str, causes: Mapping[int, str]) -> Iterator[ImageSkipped]:
        """Adds images that all processes know of. Yields and raises as `found`."""
        known = self.causes[split]
        new = {position: cause for position, cause in causes.items() if position not in known}
        known.update(new)
        if len(known) > self.cap * self.sizes[split]:
            some = "; ".join(list(known.values())[:3])
            raise DataError(
                f"{len(known)} of {self.sizes[split]} {SPLITS[split]} images cannot be read, more than "
                f"`bad_image_cap={self.cap:g}` allows: {some}{'; ...' if len(known) > 3 else ''}. Repair or remove "
                "them, or raise the cap"
            )
        yield from (ImageSkipped(cause) for cause in new.values())

    def add_cached(self, images: Images) -> Iterator[ImageSkipped]:
        """Adds the images that could not be read while the cache was built.

        Raises:
          DataError: if bad images are not to be skipped, or there are too many.
        """
        for split, cache in (("train", images.train_cache), ("val", images.val_cache)):
            if cache is not None and cache.plan.bad_images:
                if not images.skip_bad_images:
                    raise DataError(next(iter(cache.plan.bad_images.values())))
                yield from self.add(split, cache.plan.bad_images)

    def save(self) -> dict[str, dict[int, str]]:
        """What a checkpoint records of them."""
        return {split: dict(causes) for split, causes in self.causes.items()}

    def restore(self, causes: Mapping[str, Mapping[str, str]]) -> None:
        """Restores what `save` returned, after a round trip through JSON."""
        for split in self.causes:
            self.causes[split] = {int(position): str(cause) for position, cause in causes[split].items()}
