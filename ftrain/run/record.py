"""What a run writes while it trains: lines of metrics.jsonl, and checkpoints in the background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from ftrain.disk import checkpoint
from ftrain.disk.saver import Saver
from ftrain.disk.snapshot import Snapshot
from ftrain.run import folder as run_folder
from ftrain.run import retention
from ftrain.run.folder import RunFolder
from ftrain.run.spec import RunSpec
from ftrain.state import TrainState


@attrs.frozen(eq=False)
class Record:
    """What a run writes.

    Attributes:
      writes: whether this process does, the first one of the run.
    """

    run: RunFolder
    spec: RunSpec
    saver: Saver
    writes: bool = True

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Appends lines to metrics.jsonl."""
        if self.writes:
            run_folder.append_metrics(self.run, lines)

    def save(self, state: TrainState, step: int, notes: Mapping[str, Any]) -> Path:
        """Copies the state and starts to write its checkpoint, then prunes old ones, in the background."""
        folder = self.run.checkpoints
        if self.writes:
            snapshot = Snapshot.of(state, step)
            manifest = {
                **notes,
                "metrics": run_folder.metrics_seal(self.run),
                "classes": self.run.classes,
                "config": self.run.config,
            }

            def write() -> None:
                checkpoint.save(folder, snapshot, manifest)
                retention.prune(folder, self.spec)

            self.saver.start(write)
        return checkpoint.folder_of(folder, step)
