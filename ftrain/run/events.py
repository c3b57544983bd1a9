"""What happens in a run, as values: `ftrain.events` yields them, and everything that shows or records a run reads
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs

from ftrain.data.cache import Caching
from ftrain.data.source import Preparing
from ftrain.models import WeightsReport
from ftrain.run.folder import RunFolder
from ftrain.run.spec import RunSpec


@attrs.frozen
class Opened:
    """The settings are resolved and the run's folder is locked. From here on, stopping saves progress."""

    run: RunFolder
    spec: RunSpec


@attrs.frozen
class ComputingFeatures:
    """Features of the frozen backbone are computed, once, and the head is trained on them.

    Attributes:
      done: images so far.
      total: all images, for training and for validation.
      bytes: the size of all features.
    """

    done: int
    total: int
    bytes: int


@attrs.frozen
class FeaturesNotCached:
    """Features are not computed once although that was asked for, and why not, in words."""

    why: str


@attrs.frozen
class Started:
    """Training starts, or resumes at `step`.

    Attributes:
      val_examples: images to validate on.
      parameters: numbers in the network's parameters.
      trained: those of them that are trained in the stage that starts or continues.
      step: training steps done before.
      weights: what was loaded of pretrained weights, if the run starts from any.
      could_be_pretrained: whether it starts from random weights although there are pretrained ones of its network.
    """

    spec: RunSpec
    val_examples: int
    parameters: int
    trained: int
    step: int
    weights: WeightsReport | None
    could_be_pretrained: bool = False


@attrs.frozen
class Compiling:
    """The first call of a step compiles it."""

    what: Literal["training", "evaluation"]


@attrs.frozen
class Compiled:
    """A step was compiled: in seconds if the compiler's cache has it, in minutes otherwise."""

    what: Literal["training", "evaluation"]
    seconds: float


@attrs.frozen
class StepTaken:
    """A training step was queued on the device. It may not have finished."""

    step: int
    epoch: int


@attrs.frozen
class Logged:
    """A line of metrics.jsonl: means over the training steps since the line before."""

    line: dict[str, Any]


@attrs.frozen
class ImageSkipped:
    """A bad image was skipped, for the first time in this run."""

    cause: str


@attrs.frozen
class Damaged:
    """A damaged file was found in the run's folder; the run resumes without it."""

    cause: str


@attrs.frozen
class Saving:
    """The state was copied and is being written in the background."""

    checkpoint: Path


@attrs.frozen
class Evaluating:
    """Evaluation on the validation images starts."""

    epoch: int


@attrs.frozen(kw_only=True)
class StatisticsRecomputed:
    """The running statistics of BatchNorm were recomputed on training images, because they lag behind the weights, and
    the network was validated again.

    Attributes:
      stale: the weight that the old ones gave to the steps before this epoch.
      train: metrics of the epoch.
      before, after: validation metrics with the old statistics and with the new ones.
      images: training images that they were recomputed on.
      fit_before, fit_after: accuracy in evaluation on these images, with the old statistics and with the new ones.
      to_blame: whether the old ones explain, in this epoch or one before, why accuracy in evaluation is so low.
      kept: whether the new ones replace the old ones, because they are to blame and validation is better.
      first: whether they were not found to be to blame before.
    """

    epoch: int
    stale: float
    train: dict[str, float]
    before: dict[str, float]
    after: dict[str, float]
    images: int
    fit_before: float
    fit_after: float
    to_blame: bool
    kept: bool
    first: bool


@attrs.frozen
class EpochEnded:
    """An epoch ended: its line is in metrics.jsonl, and its checkpoint is being written.

    Attributes:
      train, val: metrics of the epoch, as in metrics.jsonl.
      skipped: bad images skipped in the run so far.
      best_epoch: the best epoch so far by the setting `best_by`, the first of several.
      best_accuracy: its validation accuracy.
      best_val: all of its validation metrics.
    """

    epoch: int
    train: dict[str, float]
    val: dict[str, float]
    skipped: int
    checkpoint: Path
    best_epoch: int
    best_accuracy: float
    best_val: dict[str, float] = attrs.field(factory=dict)


@attrs.frozen
class EndedEarly:
    """The run is over before its last epoch, because `patience` epochs in a row were not better than the best."""

    epoch: int
    best_epoch: int


@attrs.frozen
class Stopped:
    """The run stopped before its end, on request or because its time was over. Its last checkpoint holds everything up
    to `step`."""

    step: int


Event = (
    Preparing
    | Opened
    | Caching
    | ComputingFeatures
    | FeaturesNotCached
    | Started
    | Compiling
    | Compiled
    | StepTaken
    | Logged
    | ImageSkipped
    | Damaged
    | Saving
    | Evaluating
    | StatisticsRecomputed
    | EpochEnded
    | EndedEarly
    | Stopped
)
