"""The Python interface to runs."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from ftrain_cli.main import app
from PIL import Image
from signal_runs import make_images
from typer.testing import CliRunner

import ftrain
from ftrain.errors import BusyError, DataError, SettingsError
from ftrain.run.events import EpochEnded, Opened, Started, StepTaken, Stopped

pytestmark = pytest.mark.usefixtures("without_curves")

MODEL = "shufflenet_v2_x0_5"
OPTIONS = {
    "epochs": 2,
    "batch_size": 4,
    "drop_last": True,
    "device": "cpu",
    "workers": 0,
    "cache": "none",
    "log_every": 1,
}


class Net(torch.nn.Module):
    """Three layers that a caller could have written."""

    def __init__(self, classes=2):
        super().__init__()
        self.features = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.BatchNorm2d(4))
        self.head = torch.nn.Linear(4, classes)

    def forward(self, images):
        return self.head(self.features(images).relu().mean(dim=(2, 3)))


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


def arrays(count=24):
    """Dark images of class 0 and light images of class 1."""
    noise = np.random.default_rng(0)
    labels = np.arange(count) % 2
    pixels = noise.integers(0, 128, (count, 16, 16, 3)) + 127 * labels[:, None, None, None]
    return pixels.astype(np.uint8), labels


def pair():
    pixels, labels = arrays()
    return (pixels[:16], labels[:16]), (pixels[16:], labels[16:])


def squared(logits, labels):
    return (logits - torch.nn.functional.one_hot(labels, 2)).square().mean(dim=-1)


def confidence(logits, labels):
    return logits.softmax(dim=-1).amax(dim=-1)


def brighter(key, images):
    return images.float() + 10.0 * ftrain.random.uniform(key, (len(images), 1, 1, 1))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    make_images(root)
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return ftrain.fit(model=MODEL, data=data, out=tmp_path_factory.mktemp("runs") / "run", progress=False, **OPTIONS)


def test_fit_gives_the_bits_of_the_command(run, data, tmp_path):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items() if name != "drop_last"]
    flags.append("--drop-last")
    result = CliRunner().invoke(app, ["fit", f"--model={MODEL}", f"--data={data}", f"--out={tmp_path / 'run'}", *flags])
    assert result.exit_code == 0, result.output
    last = Path("checkpoints") / "step_00000006" / "state.safetensors"
    assert (run.folder / last).read_bytes() == (tmp_path / "run" / last).read_bytes()
    assert (run.folder / "curves.png").is_file()
    assert run.config["command"] == ["ftrain.fit", *(f"{name}={value}" for name, value in run.config["asked"].items())]


def test_metrics_are_columns_of_equal_length(run):
    columns = run.metrics
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {len(column) for column in columns.values()} == {len(lines)} == {8}
    assert columns["kind"] == ["step"] * 3 + ["epoch"] + ["step"] * 3 + ["epoch"]
    assert columns["step"] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert columns["val_accuracy"][3] == lines[3]["val"]["accuracy"]
    assert columns["loss"][0] == lines[0]["loss"]
    assert np.isnan(columns["val_accuracy"][0]) and np.isnan(columns["loss"][3])


def test_images_of_every_kind_are_predicted_like_their_file(run, data, tmp_path):
    path = sorted((data / "val").rglob("*.png"))[0]
    pixels = np.asarray(Image.open(path).convert("RGB"))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    with Image.open(path) as opened:
        found = run.predict([path, opened, pixels, tensor])
    assert [each["image"] for each in found] == [str(path), 1, 2, 3]
    assert all(each["classes"] == found[0]["classes"] for each in found)
    assert sum(each["probability"] for each in found[0]["classes"]) == pytest.approx(1.0)
    result = CliRunner().invoke(app, ["predict", str(run.folder), str(path), "--json", "--device", "cpu"])
    assert json.loads(result.stdout) == found[:1]
    assert [len(each["classes"]) for each in run.predict([pixels], top=1)] == [1]
    with pytest.raises(DataError, match="missing.png"):
        run.predict([tmp_path / "missing.png"])
    image = Image.fromarray(pixels)
    for single, what in ((path, "path"), (pixels, "image"), (tensor, "image"), (image, "image")):
        with pytest.raises(SettingsError, match=f"`images` must be a list of images; got a single {what}"):
            run.predict(single)
    with pytest.raises(SettingsError, match="`top` must be at least 1; got 0"):
        run.predict([pixels], top=0)


def test_evaluate_takes_folders_and_arrays(run, data):
    whole = run.evaluate()
    assert whole.metrics["count"] == 5
    assert whole.confusion.sum() == 5
    for folder in (data, data / "val"):
        assert run.evaluate(folder).metrics == whole.metrics
    spec = run.spec
    assert run.evaluate(workers=2).metrics == whole.metrics
    assert run.spec is spec
    pixels, labels = arrays(6)
    found = run.evaluate((pixels, labels))
    assert found.metrics["count"] == 6
    assert found.class_scores["images"].tolist() == [3, 3]


def test_module_state_and_apply_are_the_same_network(run):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
    state, network = run.state(), run.module()
    logits, _ = run.apply(state.params, state.buffers, images, train=False)
    assert not network.training
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (run.spec.mean, run.spec.std))
    assert torch.allclose(network((images / 255 - mean) / std), logits, atol=1e-4)
    assert int(run.state(last=True).step) == 6
    assert set(state.opt_state) == {"exp_avg", "exp_avg_sq"}


def test_events_can_be_stopped_and_resumed_to_the_same_bits(run, data, tmp_path):
    options = {"model": MODEL, "data": str(data), **OPTIONS}
    taken = [0]
    kinds = []
    for event in ftrain.events(out=tmp_path / "run", stop=lambda: taken[-1] >= 4, **options):
        kinds.append(type(event))
        if isinstance(event, StepTaken):
            taken.append(event.step)
    assert kinds[0] is Opened
    assert kinds[-1] is Stopped
    assert [kinds.count(kind) for kind in (Started, StepTaken, EpochEnded)] == [1, 4, 1]
    again = ftrain.fit(resume=tmp_path / "run", progress=False)
    last = Path("checkpoints") / "step_00000006" / "state.safetensors"
    assert (again.folder / last).read_bytes() == (run.folder / last).read_bytes()


def test_progress_is_shown(data, tmp_path, capsys):
    ftrain.fit(model=MODEL, data=data, out=tmp_path / "run", **{**OPTIONS, "epochs": 1})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"run: {tmp_path / 'run'}"
    assert lines[1].startswith(
        f"{MODEL} (0.3 M parameters) on 13 images of 2 classes, 5 for validation; 32 px, batch 4"
    )
    assert any(line.startswith("epoch 1/1  train loss ") and line.endswith(" s  best") for line in lines)
    assert lines[-1].startswith("done: validation accuracy ")


def test_numbers_and_devices_of_other_packages_are_settings(data, tmp_path):
    options = {
        "epochs": np.int64(1),
        "batch_size": torch.tensor(4),
        "lr": np.float32(0.5),
        "device": torch.device("cpu"),
    }
    run = ftrain.fit(model=MODEL, data=data, out=tmp_path / "run", workers=0, progress=False, **options)
    recorded = run.config["settings"]
    assert [recorded[name] for name in options] == [1, 4, 0.5, "cpu"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run of a network, arrays, loss, metric and augmentation of one's own; and the network."""
    network = net()
    folder = tmp_path_factory.mktemp("own") / "run"
    parts = {"loss": squared, "metrics": {"confidence": confidence}, "augment": brighter}
    return ftrain.fit(model=network, data=pair(), out=folder, progress=False, **parts, **OPTIONS), network


def test_everything_of_ones_own_is_used(own):
    run, network = own
    assert (run.spec.model, run.classes) == ("Net", ("0", "1"))
    assert torch.equal(network.head.weight, net().head.weight), "the caller's module was changed"
    line = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()][-1]
    assert 0.5 <= line["val"]["confidence"] <= 1.0
    assert 0.5 <= line["train"]["confidence"] <= 1.0
    pixels, labels = pair()[1]
    state = run.restored(last=True).state
    logits, _ = run.apply(state.params, state.buffers, _resized(pixels), train=False)
    expected = squared(logits, torch.from_numpy(labels)).mean()
    assert line["val"]["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert {name: part["name"] for name, part in run.config["custom"].items()} == {
        "model": "Net",
        "loss": "squared",
        "metrics.confidence": "confidence",
        "augment": "brighter",
    }


def _resized(pixels):
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    size = (32, 32)
    return torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)


def test_a_run_on_arrays_is_evaluated_on_them(own):
    run, network = own
    found = run.evaluate()
    assert found.metrics["count"] == 8
    best = int(np.nanargmax(run.metrics["val_accuracy"]))
    assert found.metrics["loss"] == pytest.approx(run.metrics["val_loss"][best], rel=1e-5)
    opened = ftrain.open_run(run.folder, model=network)
    with pytest.raises(SettingsError, match="were passed from Python, .*; pass images as `data`"):
        opened.evaluate()
    without_loss = opened.evaluate(pair()[1])
    assert "loss" not in without_loss.metrics, "the run's own loss was not passed, and another is not its loss"
    assert without_loss.metrics["accuracy"] == found.metrics["accuracy"]
    with pytest.raises(SettingsError, match=r"the source or structure of `loss` has changed \(confidence\)"):
        ftrain.open_run(run.folder, model=network, loss=confidence)


def test_augmentation_of_ones_own_changes_the_training(own, tmp_path):
    run, network = own
    parts = {"loss": squared, "metrics": {"confidence": confidence}}
    plain = ftrain.fit(model=network, data=pair(), out=tmp_path / "run", progress=False, **parts, **OPTIONS)
    assert plain.metrics["loss"][0] != run.metrics["loss"][0]


def test_a_run_of_ones_own_resumes_with_the_same_parts_alone(own, tmp_path):
    run, network = own
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    shutil.rmtree(folder / "checkpoints" / "step_00000008")
    parts = {"loss": squared, "metrics": {"confidence": confidence}, "augment": brighter}
    again = ftrain.fit(model=network, data=pair(), resume=folder, progress=False, **parts)
    last = Path("checkpoints") / "step_00000008" / "state.safetensors"
    assert (again.folder / last).read_bytes() == (run.folder / last).read_bytes()
    for changes, message in (
        ({"loss": None}, "`loss` was squared, passed from Python, and is not given now"),
        ({"loss": confidence}, r"the source or structure of `loss` has changed \(confidence\)"),
        ({"model": torch.nn.Sequential(Net())}, r"the source or structure of `model` has changed \(Sequential\)"),
        ({"model": None}, r"is Net, a module that was passed from Python; pass it again: ftrain.fit\(model=module"),
        ({"data": None}, "were passed from Python; pass the same images as `data`"),
        ({"data": (pair()[0], (pair()[1][0][::-1], pair()[1][1]))}, "the validation images have changed"),
    ):
        arguments = {"model": network, "data": pair(), "resume": folder, **parts, **changes}
        with pytest.raises(SettingsError, match=message):
            ftrain.fit(progress=False, **arguments)


def test_a_run_of_ones_own_module_opens_with_that_module(own):
    run, network = own
    with pytest.raises(SettingsError, match=r"pass it again: ftrain.fit\(model=module"):
        ftrain.open_run(run.folder)
    with pytest.raises(SettingsError, match="got the class Net; call it first"):
        ftrain.open_run(run.folder, model=Net)
    opened = ftrain.open_run(run.folder, model=network)
    pixels, _ = arrays(3)
    assert opened.predict(pixels) == run.predict(pixels)


FILE = """
import torch

def make_network(num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, num_classes))
"""


def test_the_command_takes_a_network_from_a_file(data, tmp_path):
    (tmp_path / "net.py").write_text(FILE)
    flags = ["--epochs=1", "--batch-size=4", "--drop-last", "--device=cpu", "--workers=0", f"--out={tmp_path / 'run'}"]
    command = ["fit", f"--model={tmp_path / 'net.py'}:make_network", f"--data={data}", *flags]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    reference = f"{tmp_path / 'net.py'}:make_network"
    assert int(ftrain.open_run(tmp_path / "run", model=reference).state().step) == 3
    exported = CliRunner().invoke(
        app, ["export", str(tmp_path / "run"), f"--model={reference}", f"--out={tmp_path / 'net.safetensors'}"]
    )
    assert exported.exit_code == 0, exported.output
    for command in (["evaluate"], ["predict", "x.png"], ["export"], ["replay", "--step=1"], ["fit", "--resume"]):
        name, *more = command
        arguments = (
            [name, f"{more.pop()}={tmp_path / 'run'}"] if name == "fit" else [name, str(tmp_path / "run"), *more]
        )
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, result.output
        assert f"pass it again if you trust it: --model {reference}" in result.output

    (tmp_path / "net.py").write_text(FILE + "# changed\n")
    result = CliRunner().invoke(app, ["fit", f"--resume={tmp_path / 'run'}", f"--model={reference}"])
    assert result.exit_code == 2
    assert f"the source or structure of --model has changed ({reference})" in result.output
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), f"--model={reference}"])
    assert result.exit_code == 2
    result = CliRunner().invoke(app, ["fit", f"--resume={tmp_path / 'run'}", f"--model={reference}", "--override"])
    assert result.exit_code == 0, result.output

    result = CliRunner().invoke(app, ["fit", f"--model={tmp_path / 'net.py'}:make_netwrok", f"--data={data}"])
    assert result.exit_code == 2
    assert "make_network" in result.output


def test_a_runs_folder_runs_no_code(data, tmp_path):
    """Whatever config.json names as the network."""
    (tmp_path / "net.py").write_text(FILE)
    ftrain.fit(model=f"{tmp_path / 'net.py'}:make_network", data=data, out=tmp_path / "run", progress=False, **OPTIONS)
    (tmp_path / "net.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')\n{FILE}")
    with pytest.raises(SettingsError, match="Opening the run would run that file"):
        ftrain.open_run(tmp_path / "run")
    assert not (tmp_path / "proof").exists()


def test_a_file_whose_code_fails_is_reported(data, tmp_path):
    (tmp_path / "net.py").write_text("def make_network(num_classes):\n    raise KeyError('no such layer')\n")
    command = ["fit", f"--model={tmp_path / 'net.py'}:make_network", f"--data={data}", f"--out={tmp_path / 'run'}"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "make_network failed: KeyError: 'no such layer'" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"model": Net(5)},
            "`model` must return logits for 2 classes, a tensor of shape [2, 2] for a batch of two examples; got shape "
            "[2, 5]",
        ),
        ({"model": torch.nn.Linear(2, 2)}, "`model` failed on a batch of two examples: RuntimeError: "),
        (
            {"loss": torch.nn.functional.cross_entropy},
            "`loss` must return one value per example, a tensor of shape [2] for a batch of two examples; got shape []",
        ),
        ({"metrics": {"f": lambda logits, labels: logits}}, "`f` must return one value per example"),
        ({"metrics": {"step": confidence}}, "step"),
        ({"metrics": [confidence]}, "`metrics` must be functions by name"),
        (
            {"augment": lambda key, images: images[:, :1]},
            "`augment` must return images, a tensor of shape [2, 3, 32, 32]",
        ),
        ({"weights": "DEFAULT"}, "`weights` are for a network that ftrain builds"),
        ({"train_dir": "a", "val_dir": "b"}, "give either a pair of images as `data`, or `train_dir`; got both"),
        ({"model": net().requires_grad_(False)}, "`model` has no parameters that require gradients"),
        (
            {"loss": torch.nn.CrossEntropyLoss},
            "`loss` must be a function; got the class CrossEntropyLoss; call it first",
        ),
        (
            {
                "loss": lambda logits, labels: torch.nn.functional.cross_entropy(
                    logits.detach(), labels, reduction="none"
                )
            },
            "`loss` does not depend on the logits in a way that can be differentiated",
        ),
        ({"model": Net}, "got the class Net; call it first, such as Net(num_classes=10)"),
        ({"model": 42}, "`model` must be a name, FILE.py:FUNCTION or a torch.nn.Module; got int"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_written(parts, message, tmp_path):
    arguments = {"model": net(), "data": pair(), "out": tmp_path / "run", "epochs": 1, "batch_size": 4, "workers": 0}
    with pytest.raises(SettingsError) as caught:
        ftrain.fit(progress=False, **{**arguments, **parts})
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


CALLS = []


def interrupting(logits, labels):
    """A metric that interrupts, as a notebook does, in a training step."""
    CALLS.append(len(CALLS))
    if len(CALLS) == 4:  # one call checks the metric before the run starts
        signal.raise_signal(signal.SIGINT)
    return logits[:, 0]


def test_an_interrupt_saves_the_step_and_the_run_resumes_to_the_same_bits(run, data, tmp_path):
    options = {"data": data, "metrics": {"first": interrupting}, "progress": False, **OPTIONS}
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3, and can be resumed"):
        ftrain.fit(model=MODEL, out=tmp_path / "run", **options)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = ftrain.fit(resume=tmp_path / "run", metrics={"first": interrupting}, progress=False)
    last = Path("checkpoints") / "step_00000006" / "state.safetensors"
    assert (resumed.folder / last).read_bytes() == (run.folder / last).read_bytes()


def test_an_error_in_the_callers_loop_unlocks_the_run(run, data, tmp_path):
    options = {"model": MODEL, "data": str(data), "out": tmp_path / "run", **OPTIONS}
    events = ftrain.events(**options)
    for event in events:
        if isinstance(event, StepTaken):
            break
    with pytest.raises(BusyError, match="another run in this process"):
        ftrain.fit(progress=False, **{**options, "resume": "auto"})
    events.close()
    again = ftrain.fit(progress=False, **{**options, "resume": "auto"})
    assert again.metrics["step"][-1] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epoch": 3}, "ftrain: there is no setting 'epoch'; did you mean 'epochs'?"),
        (
            {"data": [1, 2, 3]},
            "`data` must be a folder, a table, or a pair of training and validation images; got list of length 3",
        ),
        ({"augment": 3}, "`augment` must be a function; got int"),
        ({"metrics": {"f": 0.5}}, "`f` must be a function; got float"),
        ({"override": True}, "`override=True` is for a run that resumes"),
        ({"epochs": 0}, "`epochs` must be an integer >= 1; got 0"),
        ({"resume": "nowhere"}, "`resume` must be the folder of a run, or auto; there is no run in nowhere"),
        ({"model": "resnet35"}, "resnet"),
    ],
)
def test_mistakes_are_reported_in_the_words_of_python(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as caught:
        ftrain.fit(progress=False, **arguments)
    assert message in str(caught.value)
    assert "--" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
