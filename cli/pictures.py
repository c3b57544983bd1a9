"""Pictures: a confusion matrix, a data set, and images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ftrain.data.check import Report
from ftrain.data.images import Images
from ftrain.data.labels import label_names
from ftrain.data.order import epoch_order
from ftrain.data.pixels import train_pixels_in_epoch, train_pixels_unaugmented
from ftrain.run.curves import save_figure
from ftrain.text import shown


def draw_confusion(confusion: Any, classes: Sequence[str], path: Path) -> None:
    """Writes a picture of counts [C, C]: a row for each label, a column for each prediction, shaded by its fraction of
    the row."""
    size = max(4.0, 0.55 * len(classes) + 2.0)
    figure = Figure(figsize=(size + 1.0, size), layout="constrained")
    axes = figure.subplots()
    fractions = confusion / confusion.sum(axis=1, keepdims=True).clip(min=1)
    axes.imshow(fractions, cmap="Blues", vmin=0.0, vmax=1.0)
    ticks = range(len(classes))
    names = [shown(name) for name in classes]
    axes.set_xticks(ticks, names, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    axes.set(xlabel="prediction", ylabel="label")
    if len(classes) <= 40:
        for row in ticks:
            for column in ticks:
                color = "white" if fractions[row, column] > 0.5 else "black"
                axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=color, fontsize=8)
    save_figure(figure, path)


def draw_check(report: Report, path: Path) -> None:
    """Writes a picture of how many images each class has and how large they are."""
    names = list(dict.fromkeys(name for counts in report.classes.values() for name in counts))
    figure = Figure(figsize=(12, max(4.0, 0.22 * len(names) + 1.5)), layout="constrained")
    balance, sizes = figure.subplots(1, 2)
    left = [0] * len(names)
    for part, counts in report.classes.items():
        widths = [counts.get(name, 0) for name in names]
        balance.barh(range(len(names)), widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    balance.set_yticks(range(len(names)), [shown(name) for name in names], parse_math=False)
    balance.invert_yaxis()
    balance.legend()
    balance.set(title="images of each class", xlabel="images")
    sizes.scatter(report.sizes[:, 1], report.sizes[:, 0], s=8, alpha=0.3)
    sizes.set(title="sizes", xlabel="width in pixels", ylabel="height in pixels", xlim=(0, None), ylim=(0, None))
    sizes.grid(alpha=0.3)
    save_figure(figure, path)


def draw_preview(images: Images, path: Path, *, rows: int = 8, epochs: int = 6) -> None:
    """Writes a picture of training images: a row for each, as in evaluation and as augmented in each epoch."""
    positions = epoch_order(images.seed, 0, len(images.train))[:rows].tolist()
    figure = Figure(figsize=(1.5 * (epochs + 1) + 1.5, 1.5 * len(positions) + 0.4), layout="constrained")
    axes = figure.subplots(len(positions), epochs + 1, squeeze=False)
    for row, position in zip(axes, positions, strict=True):
        views = [
            train_pixels_unaugmented(images, position),
            *(train_pixels_in_epoch(images, position, e) for e in range(epochs)),
        ]
        for cell, pixels in zip(row, views, strict=True):
            cell.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
            cell.set_xticks([])
            cell.set_yticks([])
        name = shown(label_names(images.train.labels[position], images.train.classes))
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", parse_math=False)
    for column, cell in enumerate(axes[0]):
        cell.set_title("evaluation" if column == 0 else f"epoch {column}", fontsize=9)
    save_figure(figure, path)


def draw_batch(pixels: Any, titles: Sequence[Sequence[str]], path: Path) -> None:
    """Writes a picture of a batch of images uint8 [B, 3, S, S], each under the lines of its title; only the first
    64."""
    count = min(64, len(pixels))
    columns = min(8, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(1.7 * columns, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for cell in axes:
        cell.set_axis_off()
    for cell, image, title in zip(axes, pixels[:count], titles, strict=False):
        cell.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        cell.set_title("\n".join(map(shown, title)), fontsize=7, parse_math=False)
    save_figure(figure, path)
