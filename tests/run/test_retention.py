"""Which epoch is the best, and which checkpoints are kept."""

import attrs
import pytest
import tiny_runs

from ftrain.disk import checkpoint, sealed
from ftrain.run import retention


def line(epoch, accuracy, loss=1.0, **val):
    return {"kind": "epoch", "epoch": epoch, "step": 4 * epoch, "val": {"accuracy": accuracy, "loss": loss, **val}}


@pytest.mark.parametrize(
    ("accuracies", "best"), [([0.5], 1), ([0.2, 0.7, 0.6], 2), ([0.7, 0.2, 0.7], 1), ([0.1, 0.2, 0.3], 3)]
)
def test_the_best_epoch_is_the_first_of_the_highest_accuracy(accuracies, best):
    lines = [{"kind": "step", "step": 1}, *(line(n, accuracy) for n, accuracy in enumerate(accuracies, start=1))]
    assert retention.best_epoch(lines, "accuracy")["epoch"] == best


def test_an_epoch_is_the_best_by_accuracy_by_loss_or_by_the_mean_over_the_classes():
    lines = [
        line(1, 0.9, 0.5, macro_accuracy=0.3),
        line(2, 0.8, 0.4, macro_accuracy=0.6),
        line(3, 0.7, 0.6, macro_accuracy=0.7),
        line(4, 0.6, float("nan"), macro_accuracy=0.7, map=0.1),
        line(5, 0.5, 9.0, macro_accuracy=float("nan"), map=float("nan")),
    ]
    assert retention.best_epoch(lines[::-1], "map")["epoch"] == 4
    assert retention.best_epoch(lines[::-1], "macro")["epoch"] == 4
    assert {by: retention.best_epoch(lines, by)["epoch"] for by in ("accuracy", "loss", "macro")} == {
        "accuracy": 1,
        "loss": 2,
        "macro": 3,
    }


def test_epochs_since_the_best_are_counted_and_not_numbered():
    """After a change of the batch size, the number of the next epoch may jump."""
    lines = [line(1, 0.5), line(2, 0.7), line(3, 0.6), line(8, 0.6)]
    assert retention.epochs_since_best(lines, "accuracy") == 2
    assert retention.epochs_since_best(lines, "accuracy", until=12) == 1
    assert retention.epochs_since_best(lines, "accuracy", until=4) == 0
    assert retention.epochs_since_best([], "accuracy") == 0


def test_there_is_no_best_epoch_before_the_first_one_ends():
    assert retention.best_epoch([{"kind": "step", "step": 1}], "accuracy") is None


def make(folder, step, *, accuracy=None, epoch=None):
    """A checkpoint without tensors, of the end of an epoch if it has an accuracy."""
    path = checkpoint.folder_of(folder, step)
    path.mkdir(parents=True)
    file = {"bytes": 0, "sha256": ""}
    manifest = {"format": 1, "step": step, "files": {"state.safetensors": file}, "epoch": epoch}
    if accuracy is not None:
        manifest["val"] = {"accuracy": accuracy}
    (path / "manifest.json").write_bytes(sealed.dump(manifest))
    return path


def test_the_order_in_which_checkpoints_are_tried_for_the_best(tmp_path):
    within = make(tmp_path, 2, epoch=1)
    good = make(tmp_path, 4, accuracy=0.7, epoch=1)
    damaged = make(tmp_path, 6, epoch=2)
    (damaged / "manifest.json").write_bytes(b"{}")
    worse = make(tmp_path, 8, accuracy=0.5, epoch=2)
    equal = make(tmp_path, 12, accuracy=0.7, epoch=3)
    later = make(tmp_path, 14, epoch=4)
    found = checkpoint.find(tmp_path)
    assert retention.best_first(found, "accuracy") == [damaged, good, equal, worse, later, within]


@pytest.mark.parametrize(
    ("keep_last", "save_station", "kept"),
    [
        (1, None, [4, 16]),  # the best and the last
        (2, None, [4, 14, 16]),
        (1, 3, [4, 12, 16]),  # and those of the epochs from 3 on
        (1, 1, [4, 8, 12, 16]),
        (9, None, [2, 4, 8, 12, 14, 16]),
    ],
)
def test_what_is_kept(tmp_path, keep_last, save_station, kept):
    make(tmp_path, 2, epoch=1)
    for epoch, accuracy in enumerate([0.9, 0.5, 0.9], start=1):
        make(tmp_path, 4 * epoch, accuracy=accuracy, epoch=epoch)
    make(tmp_path, 14, epoch=4)
    make(tmp_path, 16, accuracy=0.3, epoch=4)
    spec = tiny_runs.spec(epochs=4, keep_last=keep_last, save_station=save_station)
    retention.prune(tmp_path, spec)
    assert [checkpoint.step_of(path) for path in checkpoint.find(tmp_path)] == kept


def test_a_checkpoint_that_cannot_be_read_is_pruned_by_its_age(tmp_path):
    damaged = make(tmp_path, 2, accuracy=1.0, epoch=1)
    (damaged / "manifest.json").write_bytes(b"")
    for step in (4, 8):
        make(tmp_path, step, accuracy=0.5, epoch=step // 4)
    retention.prune(tmp_path, attrs.evolve(tiny_runs.spec(), keep_last=1))
    assert [checkpoint.step_of(path) for path in checkpoint.find(tmp_path)] == [4, 8]
