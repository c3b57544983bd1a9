"""Validation far below training: the statistics of BatchNorm are recomputed, and only where they help.

The network's momentum is 0.01, so that after the six steps of an epoch its statistics are still 94 % those it started
with. The classes differ in which half of the image is brighter, which is learned within an epoch.
"""

import json

import numpy as np
import pytest
import tiny_runs
import torch
from safetensors.torch import load_file

from ftrain.data import from_arrays, image_pixels
from ftrain.disk import checkpoint
from ftrain.errors import SettingsError
from ftrain.parallel import Place
from ftrain.run import folder as run_folder
from ftrain.run import inference, lagging, provenance, verify
from ftrain.run.build import build
from ftrain.run.custom import Custom
from ftrain.run.events import EpochEnded, StatisticsRecomputed, StepTaken, Stopped
from ftrain.run.fit import fit, with_caches
from ftrain.run.lagging import Repairs
from ftrain.run.locate import to_end
from ftrain.run.progress import describe
from ftrain.run.settings import Settings, as_before
from ftrain.run.spec import RunSpec

NETWORK = """
import torch

def make_network(num_classes, momentum=0.01):
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2),
        torch.nn.BatchNorm2d(8, momentum=momentum),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3),
        torch.nn.BatchNorm2d(8, momentum=momentum),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, num_classes),
    )
"""
CLASSES = ("left", "right")


def network(momentum=0.01):
    names = {}
    exec(NETWORK, names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return names["make_network"](2, momentum)


def source(count, seed, learnable=True):
    noise = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = noise.integers(100, 140, (count, 8, 8, 3), dtype=np.uint8)
    brighter = labels if learnable else noise.permutation(labels)
    pixels[brighter == 0, :, :4] += 50
    pixels[brighter == 1, :, 4:] += 50
    return from_arrays(pixels, labels, classes=CLASSES)


def spec_of(**changes):
    settings = {
        "epochs": 3,
        "batch_size": 8,
        "eval_batch_size": 16,
        "lr": 0.05,
        "crop_scale": 1.0,
        "warmup_epochs": 0,
        "flip": False,
        "recompute_statistics": True,
    }
    return RunSpec.of(tiny_runs.settings(**{**settings, **changes}), classes=CLASSES, class_counts=(24, 24))


def train(folder, module=None, val=None, stop=None, stop_after=None, override=False, **changes):
    spec, own = spec_of(**changes), Custom(module=module or network())
    images = spec.images(source(48, 0), val or source(40, 1))
    events = []

    def stopped():
        steps = [event.step for event in events if isinstance(event, StepTaken)]
        return bool(stop and stop()) or (stop_after is not None and steps[-1:] >= [stop_after])

    with run_folder.lock(folder):
        if run_folder.is_started(folder):
            run = provenance.resumed_run(run_folder.read(folder), spec, images, [], custom=own, override=override)
        else:
            run = provenance.new_run(spec, images, folder, [], custom=own)
        for event in fit(run, spec, images, own, stop=stopped):
            events.append(event)
    return events


def epochs(events):
    return [event for event in events if isinstance(event, EpochEnded)]


def repairs(events):
    return [event for event in events if isinstance(event, StatisticsRecomputed)]


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == "epoch"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, train(folder)


def test_without_it_validation_stays_at_chance(tmp_path, whole):
    events = train(tmp_path, recompute_statistics=False)
    assert [event.val["accuracy"] for event in epochs(events)] == [0.5, 0.5, 0.5]
    assert epochs(events)[-1].train["accuracy"] > 0.95
    assert not repairs(events) and "statistics" not in lines(tmp_path)[0]
    # Training itself is the same.
    assert [each.train for each in epochs(events)] == [each.train for each in epochs(whole[1])]


def test_it_is_diagnosed_and_repaired(whole):
    folder, events = whole
    assert [event.val["accuracy"] for event in epochs(events)] == [1.0, 1.0, 1.0]
    first = repairs(events)[0]
    assert (first.epoch, first.images, first.kept, first.first) == (1, 48, True, True)
    assert first.stale == pytest.approx(0.99**6)
    assert (first.before["accuracy"], first.after["accuracy"]) == (0.5, 1.0)
    accuracy = f"{first.train['accuracy']:.1%}"
    assert describe(first, folder, 3, 0.0) == (
        f"epoch 1: validation accuracy is 50.0%, far below the training accuracy of {accuracy}; BatchNorm's running "
        "statistics lag behind the weights (94% of them is from earlier epochs): recomputed on 48 training images, "
        "accuracy in evaluation is 100.0% on these images instead of 50.0%, and 100.0% on the validation "
        "images, so they are used"
    )


def test_the_log_and_the_manifest_record_it(whole):
    folder, events = whole
    line = lines(folder)[0]
    assert line["val"]["accuracy"] == 1.0
    first = repairs(events)[0]
    assert line["statistics"] == {
        "images": 48,
        "accuracy_on_them_before": 0.5,
        "accuracy_on_them_after": 1.0,
        "accuracy_before": 0.5,
        "accuracy_after": 1.0,
        "loss_before": first.before["loss"],
        "loss_after": first.after["loss"],
        "to_blame": True,
        "kept": True,
    }
    last = checkpoint.find(folder / "checkpoints")[-1]
    manifest = json.loads((last / "manifest.json").read_text())
    assert manifest["statistics"] == {"to_blame": True, "failed": 0, "last": 0}


def test_evaluation_uses_the_recomputed_statistics(whole):
    folder, _ = whole
    run = run_folder.read(folder)
    restored = inference.restore(run, run.spec, Custom(module=network()), last=True)
    found = to_end(inference.evaluation(restored, run.spec.images(source(48, 0), source(40, 1))))
    assert found.metrics["accuracy"] == 1.0


AROUND_THE_REPAIR = (1, 5, 6, 7, 11)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(AROUND_THE_REPAIR, id="around the repair"),
        pytest.param(range(1, 12), id="all", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.5, "drop_last": False}], ids=["plain", "averages"])
def test_a_run_resumes_to_the_same_bits_after_any_step(tmp_path, changes, steps):
    changes = {**changes, "epochs": 2}
    expected_events = train(tmp_path / "whole", **changes)
    assert repairs(expected_events)[0].kept
    expected = tiny_runs.result(tmp_path / "whole")
    for step in steps:
        folder = tmp_path / str(step)
        train(folder, stop_after=step, **changes)
        train(folder, **changes)
        assert tiny_runs.result(folder) == expected, step


def test_a_run_that_is_stopped_while_it_recomputes_evaluates_the_epoch_again(tmp_path, whole):
    calls = []
    repaired = lagging.repaired

    def stopping(*args):
        *rest, stop = args
        calls.append(len(calls))
        return repaired(*rest, (lambda: True) if len(calls) == 1 else stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lagging, "repaired", stopping)
        events = train(tmp_path)
    assert isinstance(events[-1], Stopped) and events[-1].step == 6 and not epochs(events)
    train(tmp_path)
    assert tiny_runs.result(tmp_path) == tiny_runs.result(whole[0])


@pytest.mark.parametrize("last", [StatisticsRecomputed, EpochEnded])
def test_a_run_that_is_killed_around_a_repair_repeats_it(tmp_path, whole, last):
    spec, own = spec_of(), Custom(module=network())
    images = spec.images(source(48, 0), source(40, 1))
    killed = fit(provenance.new_run(spec, images, tmp_path, [], custom=own), spec, images, own)
    next(event for event in killed if isinstance(event, last))
    killed.close()  # saves nothing more
    saved = [checkpoint.step_of(path) for path in checkpoint.find(tmp_path / "checkpoints")]
    assert (6 in saved) is (last is EpochEnded)
    train(tmp_path)
    assert tiny_runs.result(tmp_path) == tiny_runs.result(whole[0])


def test_averages_get_statistics_of_the_averaged_network(tmp_path, monkeypatch):
    monkeypatch.setattr(lagging, "IMAGES", 32)  # four batches, in an epoch of six steps
    events = train(tmp_path, ema_decay=0.5, epochs=1)
    assert repairs(events)[0].kept and epochs(events)[0].val["accuracy"] > 0.9
    state = load_file(checkpoint.find(tmp_path / "checkpoints")[-1] / "state.safetensors")
    for name in ("1.running_mean", "1.running_var", "4.running_mean", "4.running_var"):
        assert torch.equal(state[f"ema/{name}"], state[f"buffers/{name}"])
    assert state["buffers/4.num_batches_tracked"].item() == 4


def test_the_settings_can_be_changed_across_a_repair(tmp_path, whole):
    train(tmp_path, stop_after=8)
    with pytest.raises(SettingsError, match="`recompute_statistics` was True, is False"):
        train(tmp_path, recompute_statistics=False)
    events = train(tmp_path, override=True, recompute_statistics=False)
    assert not repairs(events)
    assert epochs(events)[-1].train == epochs(whole[1])[-1].train


def test_verify_resume_across_a_repair(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "_in_new_processes", lambda *arguments: verify._train(*arguments[:-1], Place()))
    file = tmp_path / "network.py"
    file.write_text(NETWORK)
    spec = spec_of(model=f"{file}:make_network")
    images = spec.images(source(48, 0), source(40, 1))
    *_, verdict = verify.verify_resume(spec, images, steps=13)  # stopped after the first repair, before the second
    assert verdict.tensors > 20 and verdict.different == {}


def test_they_are_to_blame_although_the_network_does_not_generalise(tmp_path):
    # The network learns the training images; the labels of the validation images are chance.
    events = train(tmp_path, val=source(40, 1, learnable=False))
    found = repairs(events)
    assert (found[0].epoch, found[0].to_blame) == (1, True)
    assert (found[0].fit_before, found[0].fit_after) == (0.5, 1.0)
    assert [each.first for each in found] == [True, False, False]
    assert found[0].kept and found[0].after["accuracy"] < 0.7
    assert [describe(each, tmp_path, 3, 0.0) is None for each in found] == [not each.kept for each in found]


def test_what_is_not_due_to_statistics_is_said_and_left_alone(tmp_path, monkeypatch):
    # Training and evaluation use the same statistics, so that recomputing them changes nothing.
    monkeypatch.setattr(lagging, "recompute_statistics", lambda params, buffers, batches, **_: buffers)
    events = train(tmp_path, epochs=6)
    found = repairs(events)
    assert [(event.epoch, event.to_blame, event.kept) for event in found] == [(1, False, False), (3, False, False)]
    assert describe(found[0], tmp_path, 6, 0.0).endswith(
        "; with BatchNorm's statistics recomputed on 48 training images, accuracy in evaluation is 50.0% on these "
        "images instead of 50.0%, so they are not the cause"
    )
    assert "statistics" not in lines(tmp_path)[1]
    last = checkpoint.find(tmp_path / "checkpoints")[-1]
    assert load_file(last / "state.safetensors")["buffers/1.num_batches_tracked"].item() == 36
    assert json.loads((last / "manifest.json").read_text())["statistics"] == {"to_blame": False, "failed": 2, "last": 3}


def test_statistics_that_keep_up_are_not_suspected(tmp_path):
    # Of a momentum of 0.5, 0.016 is from before an epoch of 6 steps.
    events = train(tmp_path, module=network(0.5), val=source(40, 1, learnable=False))
    assert epochs(events)[-1].train["accuracy"] > 0.9 and not repairs(events)


def test_frozen_statistics_are_not_suspected(tmp_path):
    options = {"freeze": "batch-norm", "epochs": 6}
    val = source(40, 1, learnable=False)
    events = train(tmp_path, val=val, **options)
    last = epochs(events)[-1]
    assert lagging.is_far_below_training(last.train, last.val, spec_of(**options).images(source(48, 0), val))
    assert not repairs(events)


@pytest.mark.parametrize("fit_", ["pad", "stretch"])
def test_images_are_read_as_in_evaluation(tmp_path, monkeypatch, fit_):
    noise = np.random.default_rng(0)
    pixels = noise.integers(0, 256, (48, 8, 12, 3), dtype=np.uint8)
    wide = from_arrays(pixels, np.arange(48) % 2, classes=CLASSES)
    spec = spec_of(fit=fit_, crop_fraction=0.875, cache="ram", auto_augment="rand-augment", flip=True)
    cached = to_end(with_caches(spec.images(wide, wide), spec))
    program = build(spec, Custom(module=network()))
    loaded, load = [], lagging.load

    def recording(images, jobs, **options):
        for batch in load(images, jobs, **options):
            loaded.append(batch)
            yield batch

    monkeypatch.setattr(lagging, "load", recording)
    lagging.repaired(program, cached, program.init(), 6, lambda: False)
    bars = spec.augmentation.bars
    for batch in loaded[:6]:
        for image, position in zip(batch.images, batch.indices.tolist(), strict=True):
            expected = image_pixels(pixels[position], 8, fraction=0.875, fit=fit_, bars=bars)
            assert image.tolist() == expected.tolist()


def test_the_loss_does_not_decide_which_statistics_are_kept():
    one, other = ({"accuracy": 0.5, "macro_accuracy": macro, "loss": loss} for macro, loss in ((0.6, 1.0), (0.5, 2.0)))
    assert not lagging.is_better(one, other, "accuracy") and not lagging.is_better(one, other, "loss")
    assert lagging.is_better(one, other, "macro") and not lagging.is_better(other, one, "macro")


@pytest.mark.parametrize(
    ("train_accuracy", "val_accuracy", "suspected"),
    [
        (0.9, 0.5, True),
        (0.9, 0.65, True),
        (0.9, 0.75, False),  # nearer to the training accuracy
        (0.6, 0.5, False),  # within what may be chance of 40 validation images
        (0.5, 0.5, False),  # nothing is learned
    ],
)
def test_what_counts_as_far_below(train_accuracy, val_accuracy, suspected):
    images = spec_of().images(source(48, 0), source(40, 1))
    found = lagging.is_far_below_training(
        {"accuracy": train_accuracy, "count": 480.0}, {"accuracy": val_accuracy}, images
    )
    assert found is suspected


def test_tries_that_do_not_help_become_rare():
    repairs, tried = Repairs(), []
    for epoch in range(1, 32):
        if repairs.due(epoch):
            tried.append(epoch)
            repairs = repairs.after(epoch, to_blame=False)
    assert tried == [1, 3, 7, 15, 31]
    assert repairs.after(40, to_blame=True).after(41, to_blame=False) == Repairs(to_blame=True, failed=5, last=31)


def test_a_run_that_does_not_know_the_setting_does_without():
    assert as_before(Settings()).recompute_statistics is False


@pytest.mark.parametrize("wrong", [{"failed": 10**9}, {"failed": -1}, {"to_blame": 1}, {"last": "2"}, {"other": 1}])
def test_a_manifest_that_makes_no_sense_is_refused(wrong):
    with pytest.raises((TypeError, ValueError)):
        Repairs(**wrong)
