"""The events of a run, and what it writes while it goes on."""

import json

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from ftrain import checkpoint, loop, prepare
from ftrain.errors import TrainingError
from ftrain.settings import Settings


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten training and four validation images in two classes."""
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for name, level in (("dark", 60), ("light", 190)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(level + noise.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def begin(data, folder, **settings):
    asked = Settings(
        model="shufflenet_v2_x0_5", data=str(data), batch_size=3, workers=0, device="cpu", out=str(folder), **settings
    )
    resolved, images, _ = prepare.resolve(asked)
    return loop.start(resolved, images, folder, ["ftrain", "fit"]), images


def lines_of(run):
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_the_events_of_an_epoch_come_in_order(data, tmp_path):
    run, images = begin(data, tmp_path / "run", epochs=1)
    events = [event for event in loop.fit(run, images) if not isinstance(event, loop.Logged)]
    kinds = [type(event).__name__ for event in events]
    assert kinds == ["Started", "StepTaken", "StepTaken", "StepTaken", "Evaluating", "EpochEnded"]
    assert (events[0].classes, events[0].train_examples, events[0].val_examples) == (2, 10, 4)
    assert (events[0].step, events[0].steps_per_epoch, events[0].total_steps) == (0, 3, 3)
    assert [event.step for event in events[1:4]] == [1, 2, 3]
    assert events[-1].best_epoch == 1
    assert events[-1].best_accuracy == events[-1].val["accuracy"]
    assert events[-1].checkpoint.name == "step_00000003"


def test_a_line_is_logged_every_so_many_steps_and_at_the_end_of_an_epoch(data, tmp_path):
    run, images = begin(data, tmp_path / "run", epochs=2, log_every=2)
    logged = [event.line for event in loop.fit(run, images) if isinstance(event, loop.Logged)]
    lines = lines_of(run)
    assert [(line["kind"], line["step"], line["epoch"]) for line in lines] == [
        ("step", 2, 1),
        ("step", 3, 1),
        ("epoch", 3, 1),
        ("step", 4, 2),
        ("step", 6, 2),
        ("epoch", 6, 2),
    ]
    steps = [line for line in lines if line["kind"] == "step"]
    assert logged == steps
    assert [line["count"] for line in steps] == [6, 3, 3, 6]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["train"]["count"] for line in epochs] == [9, 9]
    assert [line["val"]["count"] for line in epochs] == [4, 4]
    whole = (6 * steps[0]["loss"] + 3 * steps[1]["loss"]) / 9
    assert epochs[0]["train"]["loss"] == pytest.approx(whole, rel=1e-12)


def test_the_learning_rate_of_a_line_is_the_mean_over_its_steps(data, tmp_path):
    run, images = begin(data, tmp_path / "run", epochs=2, log_every=3, lr=0.3, schedule="linear", warmup_epochs=1)
    list(loop.fit(run, images))
    rates = [line["lr"] for line in lines_of(run) if line["kind"] == "step"]
    # Up from 0.1 to 0.3 in the first three steps, then down from 0.3 towards 0 in three.
    assert rates == pytest.approx([(0.1 + 0.2 + 0.3) / 3, (0.3 + 0.2 + 0.1) / 3], rel=1e-6)


def test_the_best_checkpoint_outlives_worse_ones_after_it(data, tmp_path, monkeypatch):
    run, images = begin(data, tmp_path / "run", epochs=4)
    accuracies = iter([0.25, 0.75, 0.75, 0.5])
    save = checkpoint.save

    def save_with_accuracy(folder, state, manifest):
        return save(folder, state, {**manifest, "val": {**manifest["val"], "accuracy": next(accuracies)}})

    monkeypatch.setattr(checkpoint, "save", save_with_accuracy)
    ends = [event for event in loop.fit(run, images) if isinstance(event, loop.EpochEnded)]
    assert [(end.best_epoch, end.best_accuracy) for end in ends] == [(1, 0.25), (2, 0.75), (2, 0.75), (2, 0.75)]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step_00000006", "step_00000012"]
    _, _, chosen = loop.restore(run)
    assert chosen.name == "step_00000006"


def test_a_loss_that_is_no_longer_finite_ends_the_run_and_leaves_the_last_checkpoint(data, tmp_path):
    run, images = begin(data, tmp_path / "run", epochs=3)
    events = loop.fit(run, images)
    while not isinstance(next(events), loop.EpochEnded):
        pass
    events.close()
    wild = attrs.evolve(run, settings=attrs.evolve(run.settings, optimizer="sgd", momentum=0.0, lr=1e30))
    for path in run.checkpoints.iterdir():  # of adamw, whose state sgd would refuse
        path.rename(tmp_path / path.name)
    with pytest.raises(TrainingError, match=r"no longer finite at step \d.*lower --lr"):
        list(loop.fit(wild, images))
    assert all(np.isfinite(line["loss"]) for line in lines_of(run) if line["kind"] == "step")


def test_an_evaluation_counts_every_example_once_whatever_the_batch(data, tmp_path):
    run, images = begin(data, tmp_path / "run", epochs=1)
    list(loop.fit(run, images))
    state, net, _ = loop.restore(run)
    results = [
        list(loop.evaluate(run, state, net, attrs.evolve(images, eval_batch_size=size)))[-1] for size in (1, 3, 4, 64)
    ]
    assert [result.metrics["count"] for result in results] == [4, 4, 4, 4]
    assert all(torch.equal(result.confusion, results[0].confusion) for result in results)
    assert results[0].confusion.sum(dim=1).tolist() == [2, 2]
    assert [result.metrics["loss"] for result in results] == pytest.approx([results[0].metrics["loss"]] * 4, rel=1e-5)
