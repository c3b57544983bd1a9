"""The head of a frozen backbone is trained on features that are computed once, with the result of the whole network."""

import json

import numpy as np
import platformdirs
import pytest
import tiny_runs
import torch
from safetensors.torch import load_file

from ftrain.data import from_arrays
from ftrain.disk import checkpoint
from ftrain.errors import DataError
from ftrain.parallel import Place
from ftrain.run import export, features, inference, provenance, verify
from ftrain.run import fit as fit_module
from ftrain.run import folder as run_folder
from ftrain.run.api import open_run
from ftrain.run.custom import Custom
from ftrain.run.events import ComputingFeatures, EpochEnded, FeaturesNotCached, StepTaken
from ftrain.run.findings import about_features
from ftrain.run.fit import fit
from ftrain.run.progress import describe
from ftrain.run.replay import Replayed, replay
from ftrain.run.settings import Settings, as_before

CACHED = {"freeze": "backbone", "crop_scale": 1.0, "flip": False, "feature_cache": True, "drop_last": False}


NETWORK = """
import tiny_runs

def make(num_classes):
    return tiny_runs.network("", classes=num_classes, image_size=8, seed=0)
"""


def network():
    return tiny_runs.network("", classes=2, image_size=8, seed=0)


class Scaled(torch.nn.Module):
    """A layer whose result depends on what is neither a tensor nor in its source."""

    def __init__(self, factor):
        super().__init__()
        self.factors = [factor]

    def forward(self, x):
        return x * self.factors[0]


def scaled(factor):
    first, *others = network()
    return torch.nn.Sequential(first, Scaled(factor), *others)


class Flipped(torch.nn.Module):
    """A layer after the head that depends on the other examples of the batch."""

    def forward(self, x):
        return x + x.flip(0)


def train(folder, stop_after=None, override=False, source=None, augment=None, module=None, asked=None, **changes):
    spec, own = tiny_runs.spec(**{**CACHED, **changes}), Custom(module=module or network(), augment=augment)
    made = tiny_runs.images(multi_label=spec.is_multi_label)
    images = spec.images(source or made.train, made.val)
    events = []
    with run_folder.lock(folder):
        if run_folder.is_started(folder):
            run = provenance.resumed_run(run_folder.read(folder), spec, images, [], custom=own, override=override)
        else:
            run = provenance.new_run(spec, images, folder, [], custom=own, asked=asked)
        steps = [0]
        for event in fit(run, spec, images, own, stop=lambda: stop_after is not None and steps[-1] >= stop_after):
            events.append(event)
            if isinstance(event, StepTaken):
                steps.append(event.step)
    return events


class Weighted:
    """The images of short runs, which count 0.5 and 2 in turn."""

    def __init__(self):
        self.source = tiny_runs.images().train
        self.weights = np.array([0.5, 2.0] * 7, dtype=np.float32)[:13]

    def __getattr__(self, name):
        return getattr(self.source, name)

    def __len__(self):
        return len(self.source)


SEVERAL = {"task": "multi-label", "loss": "binary-cross-entropy", "best_by": "map"}


def computed(events):
    return [event for event in events if isinstance(event, ComputingFeatures)]


def state_of(folder):
    return load_file(checkpoint.find(folder / "checkpoints")[-1] / "state.safetensors")


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in tiny_runs.CLOCKED} for line in found]


def assert_same_result(one, other):
    """Equal states and metrics, up to rounding."""
    ours, theirs = state_of(one), state_of(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if name.startswith("buffers/"):
            assert torch.equal(tensor, theirs[name]), name
        else:
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)
    for mine, expected in zip(lines(one), lines(other), strict=True):
        assert _flat(mine) == pytest.approx(_flat(expected), rel=1e-5)


def _flat(line):
    parts = {"": {name: value for name, value in line.items() if isinstance(value, int | float)}}
    parts |= {name: line.get(name) or {} for name in ("train", "val")}
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema_decay": 0.9, "accumulate": 3, "clip_norm": 1.0},
        {"sampler": "balanced", "eval_batch_size": 2},
        {"freeze": "0,1", "optimizer": "sgd", "class_weights": "balanced", "drop_last": True},
        {"source": Weighted(), "drop_last": True},
        SEVERAL,
    ],
    ids=["plain", "averages", "balanced", "by name", "weights", "several labels"],
)
def test_the_result_is_that_of_the_whole_network(tmp_path, changes):
    events = train(tmp_path / "cached", **changes)
    assert computed(events)[0] == ComputingFeatures(0, 18, 18 * 36 * 4) and computed(events)[-1].done == 18
    assert not computed(train(tmp_path / "whole", feature_cache=False, **changes))
    assert_same_result(tmp_path / "cached", tmp_path / "whole")
    assert about_features(computed(events)[0]) == (
        "features of the frozen backbone are computed once (18 images, 2.6 kB), and the head is trained on them by a "
        "step that is not compiled"
    )


def test_no_image_is_loaded_after_the_features(tmp_path, monkeypatch):
    def load(images, jobs, **options):
        raise AssertionError("an image is loaded")
        yield

    monkeypatch.setattr(fit_module, "load", load)
    assert len([event for event in train(tmp_path) if isinstance(event, EpochEnded)]) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_cache": False},
        {"freeze": "none"},
        {"freeze": "0"},  # the norm is trained
        {"freeze": "none", "head_epochs": 1, "warmup_epochs": 0},
        {"flip": True},
        {"crop_scale": 0.5},
        {"auto_augment": "trivial-augment"},
        {"color_jitter": (0.1, 0.0, 0.0, 0.0)},
        {"random_erasing": 0.5},
        {"mixup": 0.2},
        {"cutmix": 1.0},
        {"augment": lambda key, images: images},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_features_that_change_are_not_kept(tmp_path, changes):
    events = train(tmp_path, stop_after=1, **changes)
    assert not computed(events) and not [event for event in events if isinstance(event, FeaturesNotCached)]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"flip": True, "mixup": 0.2}, "training images vary from epoch to epoch, by `flip`, `mixup`"),
        ({"augment": lambda key, images: images}, "training images vary from epoch to epoch, by `augment`"),
        ({"freeze": "none"}, "more than the head is trained; `freeze=backbone` freezes the rest"),
        ({"freeze": "0"}, "more than the head is trained; `freeze=backbone` freezes the rest"),
        (
            {"module": torch.nn.Sequential(scaled(1.0), Flipped())},
            "the network is not its head after a backbone that treats every image alike",
        ),
    ],
)
def test_it_is_said_why_features_that_were_asked_for_are_not_kept(tmp_path, changes, why):
    events = train(tmp_path, stop_after=1, asked={"feature_cache": True}, **changes)
    [event] = [event for event in events if isinstance(event, FeaturesNotCached)]
    assert event.why == why and not computed(events)
    assert describe(event, tmp_path, 2, 0.0) == f"features are not computed once, because {why}"


@pytest.mark.parametrize(
    "changes", [{}, {"ema_decay": 0.9, "accumulate": 3, "sampler": "balanced"}], ids=["plain", "all"]
)
def test_a_run_resumes_to_the_same_bits_after_any_step(tmp_path, changes):
    train(tmp_path / "whole", **changes)
    expected = tiny_runs.result(tmp_path / "whole")
    for step in range(1, 9):
        folder = tmp_path / str(step)
        train(folder, stop_after=step, **changes)
        # What may be changed without changing the result.
        events = train(folder, eval_batch_size=3, workers=int(step == 3), **changes)
        assert computed(events) and tiny_runs.result(folder) == expected, step


def test_verify_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "_in_new_processes", lambda *arguments: verify._train(*arguments[:-1], Place()))
    monkeypatch.setattr(verify.multiprocessing, "set_start_method", lambda *_, **__: None)
    file = tmp_path / "network.py"
    file.write_text(NETWORK)
    spec = tiny_runs.spec(model=f"{file}:make", **CACHED)
    *_, verdict = verify.verify_resume(spec, spec.images(tiny_runs.images().train, tiny_runs.images().val), steps=6)
    assert verdict.tensors > 10 and verdict.different == {}


def test_a_network_trained_on_features_is_used_like_any_other(tmp_path):
    events = train(tmp_path / "run")
    last = [event for event in events if isinstance(event, EpochEnded)][-1]
    source = tiny_runs.images().val
    run = open_run(tmp_path / "run", model=network())
    pixels = [np.asarray(source.open(position)) for position in range(5)]
    val = np.stack(pixels), source.labels
    found = run.evaluate(val, last=True)
    assert found.metrics["loss"] == pytest.approx(last.val["loss"], rel=1e-5)
    assert found.metrics["accuracy"] == last.val["accuracy"]
    predictions = run.predict(pixels, top=1, last=True)
    found_classes = [source.classes.index(each["classes"][0]["class"]) for each in predictions]
    hits = [one == label for one, label in zip(found_classes, source.labels, strict=True)]
    assert np.mean(hits) == last.val["accuracy"]
    restored = inference.restore(run_folder.read(tmp_path / "run"), run.spec, Custom(module=network()), last=True)
    compared, difference = export.export(restored, run.images(val), "safetensors", tmp_path / "network.safetensors")
    assert (compared, difference) == (5, 0.0)
    assert load_file(tmp_path / "network.safetensors").keys() == network().state_dict().keys()


def test_replay_repeats_the_step_on_features(tmp_path):
    train(tmp_path, log_every=1, keep_last=9)
    run = run_folder.read(tmp_path)
    images = run.spec.images(tiny_runs.images().train, tiny_runs.images().val)
    *events, last = replay(run, run.spec, images, 6, Custom(module=network()))
    assert computed(events)[-1].done == 18
    assert isinstance(last, Replayed) and list(last.gradients) == ["5"]
    line = next(line for line in lines(tmp_path) if line["kind"] == "step" and line["step"] == 6)
    assert last.metrics["loss"] == line["loss"]
    assert last.batch.images.shape == (3, 3, 8, 8) and last.batch.images.dtype == torch.uint8


class WithBadImages:
    """Images; the third and the sixth are bad."""

    def __init__(self, source):
        self.source = source

    def __getattr__(self, name):
        return getattr(self.source, name)

    def __len__(self):
        return len(self.source)

    def open(self, position):
        if position in (2, 5):
            raise DataError(f"cannot read image {position}")
        return self.source.open(position)


def test_bad_images_are_skipped_as_without_features(tmp_path):
    options = {"on_bad_image": "skip", "bad_image_cap": 0.5, "source": WithBadImages(tiny_runs.images().train)}
    train(tmp_path / "cached", **options)
    train(tmp_path / "whole", feature_cache=False, **options)
    assert_same_result(tmp_path / "cached", tmp_path / "whole")
    assert [line["left_out"] for line in lines(tmp_path / "cached") if line["kind"] == "epoch"] == [2, 2]
    with pytest.raises(DataError, match="cannot read image 2"):
        train(tmp_path / "stopped", source=options["source"])


def test_the_setting_can_be_changed_in_the_middle(tmp_path):
    train(tmp_path / "run", stop_after=3, feature_cache=False)
    assert computed(train(tmp_path / "run", override=True))
    train(tmp_path / "whole", feature_cache=False)
    ours, theirs = state_of(tmp_path / "run"), state_of(tmp_path / "whole")
    assert all(torch.allclose(tensor, theirs[name], rtol=1e-5, atol=1e-6) for name, tensor in ours.items())


def test_features_on_disk_are_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path / "cache")
    train(tmp_path / "memory")
    assert not (tmp_path / "cache" / "features").exists()
    assert computed(train(tmp_path / "one", cache="disk"))
    assert not computed(train(tmp_path / "other", cache="disk"))
    results = {tiny_runs.result(tmp_path / name) for name in ("memory", "one", "other")}
    assert len(results) == 1
    # Another backbone has other features; what is damaged is computed again.
    folders = sorted((tmp_path / "cache" / "features").iterdir())
    assert len(folders) == 2
    (folders[0] / "features.bin").write_bytes(b"")
    assert computed(train(tmp_path / "again", cache="disk"))
    assert tiny_runs.result(tmp_path / "again") in results
    assert computed(train(tmp_path / "third", cache="disk", mean=(0.1, 0.2, 0.3)))


def test_a_changed_forward_pass_has_other_features_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path / "cache")
    options = {"cache": "disk", "module": scaled(1.0)}
    assert computed(train(tmp_path / "one", **options))
    assert not computed(train(tmp_path / "same", **options))
    assert computed(train(tmp_path / "other", cache="disk", module=scaled(3.0)))
    train(tmp_path / "whole", feature_cache=False, module=scaled(3.0))
    assert_same_result(tmp_path / "other", tmp_path / "whole")
    assert state_of(tmp_path / "one")["params/6.weight"].ne(state_of(tmp_path / "other")["params/6.weight"]).any()


def test_bad_images_that_another_run_skipped_stop_this_one(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path / "cache")
    options = {"cache": "disk", "bad_image_cap": 0.5, "source": WithBadImages(tiny_runs.images().train)}
    train(tmp_path / "skipping", on_bad_image="skip", **options)
    with pytest.raises(DataError, match="cannot read image 2"):
        train(tmp_path / "stopped", **options)


def test_features_whose_content_is_damaged_are_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path / "cache")
    train(tmp_path / "one", cache="disk")
    for folder in (tmp_path / "cache" / "features").iterdir():
        content = bytearray((folder / "features.bin").read_bytes())
        content[100] ^= 1
        (folder / "features.bin").write_bytes(content)
    assert computed(train(tmp_path / "other", cache="disk"))[-1].done == 18
    assert tiny_runs.result(tmp_path / "one") == tiny_runs.result(tmp_path / "other")


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_images_that_are_not_square(tmp_path, fit):
    noise = np.random.default_rng(1)
    pixels = noise.integers(0, 256, (13, 8, 14, 3), dtype=np.uint8)
    source = from_arrays(pixels, np.arange(13) % 2, classes=("even", "odd"))
    assert computed(train(tmp_path / "cached", source=source, fit=fit, crop_fraction=0.875))
    train(tmp_path / "whole", source=source, fit=fit, crop_fraction=0.875, feature_cache=False)
    assert_same_result(tmp_path / "cached", tmp_path / "whole")


def test_where_memory_is_short_features_are_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path / "cache")
    monkeypatch.setattr(features, "available_memory", lambda: 1000)
    assert computed(train(tmp_path / "run"))
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2


def test_a_stop_while_features_are_computed_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path / "cache")
    spec, own = tiny_runs.spec(**CACHED, cache="disk"), Custom(module=network())
    images = spec.images(tiny_runs.images().train, tiny_runs.images().val)
    run = provenance.new_run(spec, images, tmp_path / "run", [], custom=own)
    events = []
    for event in fit(run, spec, images, own, stop=lambda: len(computed(events)) == 3):
        events.append(event)
    assert len(computed(events)) == 3
    assert list((tmp_path / "cache" / "features").iterdir()) == []


def test_runs_that_do_not_know_the_setting_do_without():
    assert as_before(Settings()).feature_cache is False
