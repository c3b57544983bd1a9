"""Fine-tuning in a run: the head first, frozen layers, and rates that fall with depth."""

import json

import pytest
import tiny_runs
import torch
from safetensors.torch import load_file

from ftrain.disk import checkpoint
from ftrain.errors import SettingsError
from ftrain.run import folder as run_folder
from ftrain.run import inference, provenance
from ftrain.run.build import build
from ftrain.run.custom import Custom
from ftrain.run.events import Started, StepTaken
from ftrain.run.fit import fit
from ftrain.run.replay import Replayed, replay

HEAD = ["5.weight", "5.bias"]
BACKBONE = ["0.weight", "0.bias", "1.weight", "1.bias"]
# Four steps an epoch.
SETTINGS = {
    "head first": {"head_epochs": 1, "warmup_epochs": 0},
    "head first, then by layer": {"head_epochs": 1, "warmup_epochs": 0, "layer_decay": 0.8, "head_lr": 0.02},
    "frozen backbone": {"freeze": "backbone"},
    "frozen norms": {"freeze": "batch-norm", "head_epochs": 1, "warmup_epochs": 0, "layer_decay": 0.8},
    "frozen pattern": {"freeze": "0,1.bias", "ema_decay": 0.9},
    "head first, then frozen": {"head_epochs": 1, "warmup_epochs": 0, "freeze": "0", "ema_decay": 0.9, "accumulate": 3},
    "nothing dropped": {"drop_last": False, "head_epochs": 1, "warmup_epochs": 0},
    "balanced": {"sampler": "balanced", "drop_last": False},
    "features": {"freeze": "backbone", "crop_scale": 1.0, "flip": False, "feature_cache": True, "ema_decay": 0.9},
    "uneven classes": {"class_weights": "effective", "logit_adjustment": 0.5, "loss": "focal"},
    "several labels": {"task": "multi-label", "loss": "focal", "best_by": "map", "mixup": 0.5, "ema_decay": 0.9},
    "compiled": {"head_epochs": 1, "warmup_epochs": 0, "layer_decay": 0.5, "compile": True},
}


def custom():
    return Custom(module=tiny_runs.network("", classes=2, image_size=8, seed=0))


def train(folder, stop_after=None, override=False, **changes):
    """Starts or resumes a run, and stops it after a step."""
    spec, own = tiny_runs.spec(**changes), custom()
    found = tiny_runs.images(multi_label=spec.is_multi_label)
    images = spec.images(found.train, found.val)
    with run_folder.lock(folder):
        if run_folder.is_started(folder):
            run = provenance.resumed_run(run_folder.read(folder), spec, images, [], custom=own, override=override)
        else:
            run = provenance.new_run(spec, images, folder, [], custom=own)
        last = [0]
        for event in fit(run, spec, images, own, stop=lambda: stop_after is not None and last[-1] >= stop_after):
            if isinstance(event, StepTaken):
                last.append(event.step)
    return run


def tensors(folder, step):
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / "state.safetensors")


def params_in(found):
    return [name.removeprefix("params/") for name in found if name.startswith("params/")]


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *(pytest.param(name, None, id=name) for name in SETTINGS if name != "compiled"),
        pytest.param("compiled", (3,), id="compiled, in the first stage", marks=pytest.mark.long),
        pytest.param("compiled", None, id="compiled", marks=pytest.mark.long),
    ],
)
def test_a_run_resumes_to_the_same_bits_after_any_step(name, steps, tmp_path, monkeypatch):
    if "compiled" in name:
        monkeypatch.setattr(torch, "compile", lambda step, **options: _aot(step))
    train(tmp_path / "whole", **SETTINGS[name])
    expected = tiny_runs.result(tmp_path / "whole")
    for step in steps or range(1, tiny_runs.spec(**SETTINGS[name]).total_steps):
        folder = tmp_path / str(step)
        train(folder, stop_after=step, **SETTINGS[name])
        train(folder, **SETTINGS[name])
        assert tiny_runs.result(folder) == expected, step


def _aot(step, compile=torch.compile):
    return compile(step, fullgraph=True, dynamic=False, backend="aot_eager")


def test_the_head_is_trained_first_and_then_everything(tmp_path):
    train(tmp_path, head_epochs=1, warmup_epochs=0, keep_last=9)
    start = tensors_at_start()
    middle, end = tensors(tmp_path, 4), tensors(tmp_path, 8)
    assert sorted(params_in(middle)) == sorted(HEAD)
    assert sorted(params_in(end)) == sorted(HEAD + BACKBONE)
    assert all(torch.equal(middle[f"buffers/{name}"], start[name]) for name in BACKBONE)
    assert middle["buffers/1.num_batches_tracked"].item() == 0
    assert end["buffers/1.num_batches_tracked"].item() == 4
    assert not any(torch.equal(end[f"params/{name}"], start[name]) for name in BACKBONE)


def tensors_at_start():
    return {name: tensor.detach() for name, tensor in custom().module.state_dict().items()}


def test_each_stage_has_its_own_schedule(tmp_path):
    run = train(tmp_path, head_epochs=1, warmup_epochs=0, head_lr=0.5, log_every=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if line["kind"] == "step"]
    cosine = [1.0, 0.8535534, 0.5, 0.1464466]
    assert rates == pytest.approx([0.5 * part for part in cosine] + [0.01 * part for part in cosine])
    assert run.spec.head_lr == 0.5


def test_the_headline_tells_how_much_is_trained(tmp_path):
    # Weights 108 + 4 of the convolution, 4 + 4 of the norm, 72 + 2 of the head.
    found = {}
    for name, settings in {"all": {}, "frozen": {"freeze": "backbone"}, "head first": SETTINGS["head first"]}.items():
        spec, own = tiny_runs.spec(**settings), custom()
        run = provenance.new_run(spec, tiny_runs.images(), tmp_path / name, [], custom=own)
        started = next(e for e in fit(run, spec, tiny_runs.images(), own) if isinstance(e, Started))
        found[name] = started.parameters, started.trained
    assert found == {"all": (194, 194), "frozen": (194, 74), "head first": (194, 74)}


def test_frozen_layers_keep_their_bits(tmp_path):
    train(tmp_path, freeze="0,1.bias")
    start, end = tensors_at_start(), tensors(tmp_path, 8)
    assert sorted(params_in(end)) == sorted(["1.weight", *HEAD])
    assert all(torch.equal(end[f"buffers/{name}"], start[name]) for name in ("0.weight", "0.bias", "1.bias"))
    assert end["buffers/1.num_batches_tracked"].item() == 8  # 1.weight is trained, so the layer is not frozen


@pytest.mark.parametrize(("freeze", "frozen"), [("batch-norm", ["1.weight", "1.bias"]), ("0, batch-norm", BACKBONE)])
def test_frozen_batch_norms_keep_their_statistics(freeze, frozen, tmp_path):
    train(tmp_path, freeze=freeze)
    start, end = tensors_at_start(), tensors(tmp_path, 8)
    assert sorted(params_in(end)) == sorted({*HEAD, *BACKBONE} - set(frozen))
    kept = [*frozen, "1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert all(torch.equal(end[f"buffers/{name}"], start[name]) for name in kept)


def test_a_network_trained_in_stages_is_evaluated_and_replayed_in_each(tmp_path):
    settings = {"head_epochs": 1, "warmup_epochs": 0, "keep_last": 9}
    run = train(tmp_path, **settings)
    spec, images = run.spec, tiny_runs.images()
    logits = {}
    for step in (4, 8):
        program = build(spec, custom(), pretrained=False)
        params, buffers = program.initial_tensors()
        found = checkpoint.load_network(checkpoint.folder_of(run.checkpoints, step), params, buffers)
        logits[step] = program.apply(*found, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), train=False)[0]
    assert not torch.equal(logits[4], logits[8])
    restored = inference.restore(run, spec, custom(), last=True)
    assert restored.state.step.item() == 8
    layers = {}
    for step in (4, 5, 7):
        *_, last = replay(run, spec, images, step, custom())
        assert isinstance(last, Replayed)
        layers[step] = list(last.gradients)
    assert layers == {4: ["5"], 5: ["0", "1", "5"], 7: ["0", "1", "5"]}


def test_what_is_trained_can_be_changed_in_the_middle(tmp_path):
    train(tmp_path, stop_after=3)
    before = tensors(tmp_path, 3)
    with pytest.raises(SettingsError, match="`freeze` was none, is backbone"):
        train(tmp_path, freeze="backbone")
    train(tmp_path, override=True, freeze="backbone")
    after = tensors(tmp_path, 8)
    assert sorted(params_in(after)) == sorted(HEAD)
    assert all(torch.equal(after[f"buffers/{name}"], before[f"params/{name}"]) for name in BACKBONE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": "9"}, "no parameter matches '9'; the network has the layers 0, 1, 5"),
        ({"freeze": "*"}, r"`freeze=\*` leaves no parameter to train"),
        ({"freeze": "batch-norm,9"}, "no parameter matches '9'; the network has the layers 0, 1, 5"),
        ({"freeze": "5", "head_epochs": 1}, "`freeze=5` freezes the head, so `head_epochs` cannot train it"),
    ],
)
def test_what_cannot_be_frozen_is_an_error(changes, message):
    with pytest.raises(SettingsError, match=message):
        build(tiny_runs.spec(**changes), custom())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_epochs": 1}, "`head_epochs` trains the head, .* and this network has none; use `head_epochs=0`"),
        ({"freeze": "batch-norm"}, "`freeze=batch-norm` names batch-norm, and this network has no BatchNorm layer; le"),
        ({"freeze": "backbone"}, "`freeze=backbone` trains the head, .* and this network has none; name the layers"),
    ],
)
def test_a_network_without_a_head_has_no_stage_for_it(changes, message):
    headless = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8), torch.nn.Flatten(), torch.nn.Softmax(dim=-1))
    with pytest.raises(SettingsError, match=message):
        build(tiny_runs.spec(**changes), Custom(module=headless))
