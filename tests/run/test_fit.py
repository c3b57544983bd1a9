"""The events of a run, and what it writes while it trains."""

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from ftrain.data import Job, load
from ftrain.data.cache import Caching
from ftrain.data.folders import scan
from ftrain.data.pixels import train_pixels_in_epoch, train_pixels_unaugmented
from ftrain.errors import DataError, TrainingError
from ftrain.metrics import Metrics
from ftrain.run import build, inference, provenance, session, stages
from ftrain.run import events as kinds
from ftrain.run.fit import fit
from ftrain.run.opened import to_end
from ftrain.run.resolve import resolve
from ftrain.run.session import Timer
from ftrain.run.settings import Settings
from ftrain.run.spec import Interval


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


def start(data, folder, **settings):
    options = {
        "model": "shufflenet_v2_x0_5",
        "batch_size": 3,
        "drop_last": True,
        "workers": 0,
        "device": "cpu",
    } | settings
    asked = Settings(data=str(data), out=str(folder), **options)
    spec, images = resolve(asked)
    return provenance.new_run(spec, images, folder, ["ftrain", "fit"]), spec, images


def lines_of(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_the_events_of_an_epoch_come_in_order(data, tmp_path):
    run, spec, images = start(data, tmp_path / "run", epochs=1)
    events = [event for event in fit(run, spec, images) if not isinstance(event, kinds.Logged | Caching)]
    names = [type(event).__name__ for event in events]
    assert names == ["Started", "StepTaken", "StepTaken", "StepTaken", "Evaluating", "EpochEnded"]
    assert (len(events[0].spec.classes), events[0].spec.train_examples, events[0].val_examples) == (2, 10, 4)
    assert (events[0].step, events[0].spec.pace.steps(1), events[0].spec.total_steps) == (0, 3, 3)
    assert [event.step for event in events[1:4]] == [1, 2, 3]
    assert events[-1].best_epoch == 1
    assert events[-1].best_accuracy == events[-1].val["accuracy"]
    assert events[-1].checkpoint.name == "step_00000003"


def test_the_compilation_of_each_step_is_announced_once(data, tmp_path, monkeypatch):
    """Without compiling, which test_pure.py tests; a call takes three seconds by the clock of the session."""
    now = [0.0]
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def not_compiled(step, *, donate=False):
        def call(*arguments, **options):
            now[0] += 3.0
            return step(*arguments, **options, **({"donate": True} if donate else {}))

        return call

    for module in (build, stages):
        monkeypatch.setattr(module, "compile_step", not_compiled)
    run, spec, images = start(data, tmp_path / "run", epochs=2, compile=True)
    events = list(fit(run, spec, images))
    about = [event for event in events if isinstance(event, kinds.Compiling | kinds.Compiled)]
    assert [(type(event).__name__, event.what) for event in about] == [
        ("Compiling", "training"),
        ("Compiled", "training"),
        ("Compiling", "evaluation"),
        ("Compiled", "evaluation"),
    ]
    assert [event.seconds for event in about[1::2]] == [3.0, 3.0]
    assert isinstance(events[events.index(about[1]) + 1], kinds.StepTaken)


def test_a_line_is_logged_every_log_every_steps_and_at_the_end_of_an_epoch(data, tmp_path):
    run, spec, images = start(data, tmp_path / "run", epochs=2, log_every=2)
    logged = [event.line for event in fit(run, spec, images) if isinstance(event, kinds.Logged)]
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
    run, spec, images = start(data, tmp_path / "run", epochs=2, log_every=3, lr=0.3, schedule="linear", warmup_epochs=1)
    list(fit(run, spec, images))
    rates = [line["lr"] for line in lines_of(run) if line["kind"] == "step"]
    # Up from 0.1 to 0.3 in the first three steps, then down from 0.3 towards 0 in three.
    assert rates == pytest.approx([(0.1 + 0.2 + 0.3) / 3, (0.3 + 0.2 + 0.1) / 3], rel=1e-6)


def with_accuracies(monkeypatch, values):
    """Makes the validation accuracy of epoch n values[n - 1]."""
    found = iter(values)
    compute = Metrics.compute

    def scripted(metrics):
        values = compute(metrics)
        return values if metrics.per_step else {**values, "accuracy": next(found)}

    monkeypatch.setattr(Metrics, "compute", scripted)


def test_the_best_checkpoint_outlives_worse_ones_after_it(data, tmp_path, monkeypatch):
    run, spec, images = start(data, tmp_path / "run", epochs=4, keep_last=1)
    with_accuracies(monkeypatch, [0.25, 0.75, 0.75, 0.5])
    ends = [event for event in fit(run, spec, images) if isinstance(event, kinds.EpochEnded)]
    assert [(end.best_epoch, end.best_accuracy) for end in ends] == [(1, 0.25), (2, 0.75), (2, 0.75), (2, 0.75)]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step_00000006", "step_00000012"]
    assert inference.restore(run, spec).checkpoint.name == "step_00000006"


def test_patience_ends_a_run_after_epochs_that_are_not_better(data, tmp_path, monkeypatch):
    with_accuracies(monkeypatch, [0.2, 0.6, 0.5, 0.6, 0.9])
    run, spec, images = start(data, tmp_path / "run", epochs=5, patience=2)
    events = list(fit(run, spec, images))
    assert events[-1] == kinds.EndedEarly(epoch=4, best_epoch=2)
    assert [event.epoch for event in events if isinstance(event, kinds.EpochEnded)] == [1, 2, 3, 4]
    again = list(fit(run, spec, images))  # which finds nothing left to do
    assert [type(event).__name__ for event in again] == ["Started"]
    more = attrs.evolve(spec, patience=3)
    assert [event.epoch for event in fit(run, more, images) if isinstance(event, kinds.EpochEnded)] == [5]


def test_patience_does_not_end_a_run_after_its_last_epoch(data, tmp_path, monkeypatch):
    with_accuracies(monkeypatch, [0.6, 0.5])
    run, spec, images = start(data, tmp_path / "run", epochs=2, patience=1)
    assert isinstance(list(fit(run, spec, images))[-1], kinds.EpochEnded)


def test_a_run_stops_when_its_time_is_over_and_can_resume(data, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ftrain.run.fit.time", SimpleNamespace(monotonic=lambda: now[0]))
    run, spec, images = start(data, tmp_path / "run", epochs=2, max_time="2m")
    assert spec.max_seconds == 120.0
    steps = []
    for event in fit(run, spec, images):
        if isinstance(event, kinds.StepTaken):
            steps.append(event.step)
            now[0] += 30.0
    assert (steps, event) == ([1, 2, 3, 4], kinds.Stopped(4))
    rest = [event.step for event in fit(run, spec, images) if isinstance(event, kinds.StepTaken)]
    assert rest == [5, 6]


def test_a_loss_that_is_no_longer_finite_ends_the_run_and_leaves_the_last_checkpoint(data, tmp_path):
    run, spec, images = start(data, tmp_path / "run", epochs=3)
    events = fit(run, spec, images)
    while not isinstance(next(events), kinds.EpochEnded):
        pass
    events.close()
    wild = attrs.evolve(spec, optimizer="sgd", momentum=0.0, lr=1e30)
    for path in run.checkpoints.iterdir():  # of adamw, whose state sgd would refuse
        path.rename(tmp_path / path.name)
    with pytest.raises(TrainingError, match=r"became infinite or nan at step \d.*a lower `lr`"):
        list(fit(run, wild, images))
    assert all(np.isfinite(line["loss"]) for line in lines_of(run) if line["kind"] == "step")


def test_an_evaluation_counts_every_example_once_whatever_the_batch(data, tmp_path):
    run, spec, images = start(data, tmp_path / "run", epochs=1)
    list(fit(run, spec, images))
    restored = inference.restore(run, spec)
    results = [
        to_end(inference.evaluation(restored, attrs.evolve(images, eval_batch_size=size))) for size in (1, 3, 4, 64)
    ]
    assert [result.metrics["count"] for result in results] == [4, 4, 4, 4]
    assert all(torch.equal(result.confusion, results[0].confusion) for result in results)
    assert results[0].confusion.sum(dim=1).tolist() == [2, 2]
    assert [result.metrics["loss"] for result in results] == pytest.approx([results[0].metrics["loss"]] * 4, rel=1e-5)


@pytest.mark.parametrize("fit_name", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("crop_scale", [0.5, 1.0])
def test_an_image_reaches_the_network_in_the_same_way_everywhere(tmp_path, fit_name, crop_scale):
    """In validation with and without a cache, in predict and in training without crops."""
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = noise.integers(0, 256, (40, 70), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{number}.png")
    options = {"epochs": 1, "fit": fit_name, "crop_scale": crop_scale, "flip": False, "image_size": 32}
    run, spec, images = start(tmp_path / "images", tmp_path / "run", mean=(0.2, 0.4, 0.6), **options)
    list(fit(run, spec, images))
    restored = inference.restore(run, run.spec)
    paths = [images.val.image_name(position) for position in range(6)]
    [seen] = load(attrs.evolve(images, eval_batch_size=6), [Job("val", 0)])
    bars = (seen.images[:, :, 0, 0] == torch.tensor([51, 102, 153], dtype=torch.uint8)).all()
    assert bool(bars) == (fit_name == "pad")
    logits = restored.program.predict_step(restored.state, seen.images)
    expected = torch.softmax(logits, dim=-1).amax(dim=-1)
    predicted = [ranking[0][1] for ranking in inference.predict(restored, paths, top=1)]
    assert predicted == pytest.approx(expected.tolist(), rel=1e-6)
    if crop_scale == 1.0:
        for position in range(6):
            trained = train_pixels_in_epoch(images, position, 0)
            assert torch.equal(trained, train_pixels_unaugmented(images, position))


def state_of(run):
    last = max(run.checkpoints.iterdir())
    return (last / "state.safetensors").read_bytes()


def untimed(run):
    """The lines of metrics.jsonl without what a clock measured."""
    return [
        {name: value for name, value in line.items() if name not in ("seconds", "images_per_second")}
        for line in lines_of(run)
    ]


RESUMED = {"epochs": 2, "log_every": 2, "checkpoint_every": 1, "image_size": 28}
TABLE = [
    {"cache": "none", "crop_scale": 0.5},
    {"cache": "ram", "crop_scale": 0.5},
    {"cache": "ram", "crop_scale": 1.0, "fit": "pad"},
]


@pytest.fixture(scope="module")
def undisturbed(request, data, tmp_path_factory):
    run, spec, images = start(data, tmp_path_factory.mktemp("runs") / "whole", **TABLE[request.param], **RESUMED)
    list(fit(run, spec, images))
    return run


STOPS = [(1, 0), (1, 2), (2, 0), (2, 4), (3, 1), (3, 2), (4, 0), (4, 2), (5, 4)]  # after a step, with other workers


# Without -m long each of the stops is tried with one row of the table.
@pytest.mark.parametrize(
    ("undisturbed", "stop", "workers"),
    [
        pytest.param(row, *stop, marks=[] if number % len(TABLE) == row else pytest.mark.long)
        for row in range(len(TABLE))
        for number, stop in enumerate(STOPS)
    ],
    indirect=["undisturbed"],
)
def test_a_run_stopped_after_any_step_ends_like_an_undisturbed_run(undisturbed, data, tmp_path, stop, workers):
    asked = {name: getattr(undisturbed.settings, name) for name in ("cache", "crop_scale", "fit")}
    run, spec, images = start(data, tmp_path / "run", **asked, **RESUMED)
    events = fit(run, spec, images)
    for event in events:
        at_step = isinstance(event, kinds.Saving) and event.checkpoint.name == f"step_{stop:08d}"
        if at_step or (isinstance(event, kinds.EpochEnded) and 3 * event.epoch == stop):
            break
    events.close()
    again = attrs.evolve(spec, workers=workers, checkpoint_every=Interval())
    started = next(event for event in fit(run, again, images) if isinstance(event, kinds.Started))
    assert started.step == stop
    list(fit(run, again, images))
    assert state_of(run) == state_of(undisturbed)
    assert untimed(run) == untimed(undisturbed)


def test_checkpoints_are_saved_at_the_given_interval(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: now[0]))
    timer = Timer(Interval(minutes=2))
    times = []
    for step in range(1, 8):
        now[0] += 50.0
        if timer.has_elapsed():
            times.append(step)
    assert times == [3, 6]
    assert [step for step in range(1, 8) if Timer(Interval(steps=3)).is_due(step=step)] == [3, 6]
    assert [Interval.parse(text) for text in (None, "500", "10m")] == [Interval(), Interval(500), Interval(0, 10)]
    assert not any(Timer(Interval()).is_due(step=step) for step in range(1, 8))


@pytest.fixture
def damaged(data, tmp_path):
    """The data with one training image cut off behind its header."""
    shutil.copytree(data, tmp_path / "damaged")
    path = tmp_path / "damaged" / "train" / "dark" / "1.png"
    path.write_bytes(path.read_bytes()[:600])
    return tmp_path / "damaged", path


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_a_bad_image_ends_the_run(data, damaged, tmp_path, cache):
    folder, path = damaged
    run, spec, images = start(data, tmp_path / "run", epochs=1, batch_size=10, cache=cache)
    images = attrs.evolve(images, train=scan(folder / "train"))  # after the quick check, which would have found it
    with pytest.raises(DataError, match=re.escape(f"cannot read the image {path}: ")):
        list(fit(run, spec, images))


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_a_bad_image_is_skipped_on_request(damaged, tmp_path, cache):
    folder, path = damaged
    options = {"epochs": 2, "batch_size": 10, "cache": cache, "on_bad_image": "skip", "bad_image_cap": 0.1}
    run, spec, images = start(folder, tmp_path / "run", **options)
    events = list(fit(run, spec, images))
    causes = [event.cause for event in events if isinstance(event, kinds.ImageSkipped)]
    assert len(causes) == 1
    assert causes[0].startswith(f"cannot read the image {path}: ")
    epochs = [line for line in lines_of(run) if line["kind"] == "epoch"]
    assert [(line["train"]["count"], line["left_out"]) for line in epochs] == [(9, 1), (9, 1)]


def test_too_many_bad_images_end_the_run(damaged, tmp_path):
    folder, _ = damaged
    run, spec, images = start(folder, tmp_path / "run", epochs=1, batch_size=10, cache="none", on_bad_image="skip")
    expected = r"1 of 10 training images cannot be read, more than `bad_image_cap=0\.01` allows"
    with pytest.raises(DataError, match=expected):
        list(fit(run, spec, images))


def test_an_empty_file_is_found_before_anything_else(data, tmp_path):
    shutil.copytree(data, tmp_path / "images")
    (tmp_path / "images" / "train" / "light" / "2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"light/2\.png: the file is empty"):
        start(tmp_path / "images", tmp_path / "run", epochs=1)


KILLED_WORKER = """
import multiprocessing
from ftrain_cli.main import app
from ftrain.run.session import Session

train = Session.train

def train_after_the_kill(session, batch, **options):
    if session.step == 1:
        [worker] = multiprocessing.active_children()
        worker.kill()
    return train(session, batch, **options)

Session.train = train_after_the_kill
app(prog_name="ftrain")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_a_worker_that_is_killed_ends_the_run_with_a_message(data, tmp_path):
    """The worker is at most four batches ahead, and the run needs at least 16."""
    settings = ["--model", "shufflenet_v2_x0_5", "--epochs", "4", "--workers", "1", "--cache", "none"]
    places = ["--data", str(data), "--out", str(tmp_path / "run"), "--device", "cpu", "--batch-size", "3"]
    command = [sys.executable, "-c", KILLED_WORKER, "fit", *settings, *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    # torch notices the death in one of two ways, one of which does not tell the signal.
    killed = (
        r"ftrain: a worker process that loads images was killed( \(signal: Killed\))?, usually because memory ran out"
    )
    assert re.match(killed, done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
