"""curves.png: loss, accuracy, the caller's own metrics and the learning rate of a run."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ftrain.disk.durable import write_file
from ftrain.metrics import RESERVED_NAMES
from ftrain.run import folder as run_folder
from ftrain.run.folder import RunFolder
from ftrain.text import shown

TITLES = {"micro_f1": "F1 of all labels", "map": "mean average precision"}


def draw_curves(run: RunFolder) -> None:
    """Writes curves.png into the run's folder, from its metrics.jsonl so far."""
    lines, _ = run_folder.read_metrics(run)
    steps = [line for line in lines if line["kind"] == "step"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    middles = middle_steps(steps)
    quality = "micro_f1" if any("micro_f1" in line for line in steps) else "accuracy"
    own = [name for name in (epochs[-1]["val"] if epochs else {}) if name not in RESERVED_NAMES]
    own += ["map"] if epochs and "map" in epochs[-1]["val"] else []
    figure = Figure(figsize=(4 * (3 + len(own)), 3.6), layout="constrained")
    loss, accuracy, *own_axes, rate = figure.subplots(1, 3 + len(own))
    for axes, name in ((loss, "loss"), (accuracy, quality), *zip(own_axes, own, strict=True)):
        axes.plot(middles, [line.get(name, float("nan")) for line in steps], color="0.75", lw=1, label="train, logged")
        for split, label in (("train", "train, epoch"), ("val", "validation")):
            axes.plot(
                [line["step"] for line in epochs],
                [line[split].get(name, float("nan")) for line in epochs],
                "o-",
                ms=3,
                label=label,
            )
        axes.set(title=TITLES.get(name, name), xlabel="step")
        axes.grid(alpha=0.3)
    loss.legend()
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    rate.plot(middles, [line.get("lr", float("nan")) for line in steps])
    rate.set(title="learning rate", xlabel="step")
    rate.grid(alpha=0.3)
    figure.suptitle(shown(f"{run.settings.model}: {run.path.name}"), parse_math=False)
    save_figure(figure, run.path / "curves.png")


def middle_steps(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """The middle of the training steps that each line averages over. The last line of an epoch may average over fewer
    than the others; at its last step, a mean of the learning rate would look like a kink."""
    ends = [int(line["step"]) for line in lines]
    return [(before + 1 + end) / 2 for before, end in zip([0, *ends], ends, strict=False)]


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure to a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box is drawn instead
        figure.savefig(buffer, format="png", dpi=110)
    write_file(path, buffer.getvalue())
