"""One command that starts a run, resumes it, or reports that it is complete; and what it refuses."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys

import pytest
import safetensors.torch
from ftrain_cli.main import app
from signal_runs import command, make_images
from tiny_runs import result, tiny_network
from typer.testing import CliRunner

from ftrain.disk import checkpoint
from ftrain.disk.lock import LOCK
from ftrain.disk.manifest import TENSORS
from ftrain.run import folder as run_folder
from ftrain.run import launch

pytestmark = pytest.mark.usefixtures("without_curves")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    make_images(root)
    return root


def ftrain_command(*arguments):
    with tiny_network():
        found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return found.exit_code, " ".join(found.output.split())


@pytest.fixture(scope="module")
def complete(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    code, said = ftrain_command(*command(data, folder))
    assert code == 0, said
    return folder


def partial(complete, target, *, steps):
    """A copy of a run as it was after some steps."""
    shutil.copytree(complete, target)
    for path in checkpoint.find(target / "checkpoints"):
        if int(path.name[5:]) > steps:
            shutil.rmtree(path)
    return target


def test_auto_starts_resumes_and_reports_a_complete_run(complete, data, tmp_path):
    folder = partial(complete, tmp_path / "run", steps=6)
    code, said = ftrain_command(*command(data, folder))
    assert code == 0, said
    assert "resuming from step 6 of 8" in said
    assert result(folder) == result(complete)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "config.json"}
    code, said = ftrain_command(*command(data, folder))
    assert code == 0, said
    assert f"the run in {folder} is complete; there is nothing left to do" in said
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "config.json"}
    assert after == before


def test_auto_without_out_uses_a_folder_named_after_the_model(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = command(data, "OUT")
    at = words.index("--out")
    code, said = ftrain_command(*words[:at], *words[at + 2 :])
    assert code == 0, said
    assert (tmp_path / "runs" / "shufflenet_v2_x0_5" / "auto" / "config.json").is_file()


def test_a_run_with_accumulation(data, tmp_path):
    code, said = ftrain_command(*command(data, tmp_path / "run"), "--batch-size", 4, "--accumulate", 2)
    assert code == 0, said
    assert run_folder.read(tmp_path / "run").settings.accumulate == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--lr", "0.5"], "--lr was 0.001, is 0.5"),
        (["--seed", "1"], "--seed was 0, is 1"),
        (["--batch-size", "4"], "--batch-size was 3, is 4"),
        (["--epochs", "3"], "--epochs was 2, is 3"),
        (["--optimizer", "sgd"], "--optimizer was adamw, is sgd"),
    ],
)
def test_auto_refuses_changes_that_change_the_result(complete, data, tmp_path, changed, message):
    folder = partial(complete, tmp_path / "run", steps=6)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, said = ftrain_command(*command(data, folder), *changed)
    assert code == 2
    assert f"cannot resume, because its result would change: {message}" in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_auto_refuses_the_omission_of_a_setting(data, tmp_path):
    folder = tmp_path / "run"
    assert ftrain_command(*command(data, folder), "--lr", "0.5")[0] == 0
    code, said = ftrain_command(*command(data, folder))
    assert code == 2
    assert "its result would change: --lr was given as 0.5, and is not given" in said
    code, said = ftrain_command("fit", "--resume", folder)  # with the settings of the run
    assert code == 0, said


def test_overridden_settings_apply_from_then_on(data, tmp_path):
    folder = tmp_path / "run"
    assert ftrain_command(*command(data, folder), "--lr", "0.5")[0] == 0
    assert ftrain_command(*command(data, folder), "--override")[0] == 0
    assert run_folder.read(folder).settings.lr == 0.001
    code, said = ftrain_command(*command(data, folder))
    assert code == 0, said


@pytest.mark.parametrize("option", [["--clip-norm", "0.1"], ["--ema-decay", "0.9"]])
@pytest.mark.parametrize("added", [True, False])
def test_an_override_adds_and_removes_clipping_and_averages(data, tmp_path, option, added):
    first, second = ([], option) if added else (option, [])
    assert ftrain_command(*command(data, tmp_path / "whole"), *first)[0] == 0
    folder = partial(tmp_path / "whole", tmp_path / "run", steps=6)
    code, said = ftrain_command(*command(data, folder), *second, "--override")
    assert code == 0, said
    assert "resuming from step 6 of 8" in said
    names = safetensors.torch.load_file(folder / "checkpoints" / "step_00000008" / TENSORS)
    assert any(name.startswith("ema/") for name in names) == ("--ema-decay" in second)
    for which in ([], ["--last"]):  # the best may be older than the override
        code, said = ftrain_command("evaluate", folder, *which)
        assert code == 0, said
    code, said = ftrain_command("replay", folder, "--step", 7)
    assert code == 0, said


def test_a_run_that_diverged_names_the_images_and_resumes_with_a_lower_rate(data, tmp_path):
    folder = tmp_path / "run"
    rising = ["--optimizer", "sgd", "--lr", "1e30", "--warmup-epochs", "1.5"]
    code, said = ftrain_command(*command(data, folder), *rising)
    assert code == 1, said
    assert f"The images of the batch, in {data / 'train'}: " in said
    assert str(data / "train" / "even") not in said
    code, said = ftrain_command(*command(data, folder), *rising[:2], "--lr", "1e-3", "--clip-norm", "1", "--override")
    assert code == 0, said


def test_other_classes(complete, data, tmp_path):
    renamed, added = tmp_path / "renamed", tmp_path / "added"
    for other in (renamed, added):
        shutil.copytree(data, other)
    for split in ("train", "val"):
        (renamed / split / "odd").rename(renamed / split / "strange")
        shutil.copytree(added / split / "odd", added / split / "third")
    folder = partial(complete, tmp_path / "run", steps=6)
    code, said = ftrain_command(*command(added, folder), "--override")
    assert code == 2
    assert "was started with 2 classes, and there are now 3, for which its network has no outputs" in said
    code, said = ftrain_command(*command(renamed, folder), "--override")
    assert code == 0, said
    assert json.loads((folder / "classes.json").read_text()) == ["even", "strange"]
    assert run_folder.read(folder).classes == ("even", "strange")


def test_harmless_changes_are_accepted(complete, data, tmp_path):
    folder = partial(complete, tmp_path / "run", steps=6)
    changes = ["--workers", 1, "--keep-last", 5, "--checkpoint-every", "1", "--save-station", 1]
    code, said = ftrain_command(*command(data, folder), *changes)
    assert code == 0, said
    assert (checkpoint.find(folder / "checkpoints")[-1] / "state.safetensors").read_bytes() == (
        checkpoint.find(complete / "checkpoints")[-1] / "state.safetensors"
    ).read_bytes()
    assert json.loads((folder / "config.json").read_text())["settings"]["keep_last"] == 5


def test_more_epochs_are_accepted_if_no_step_depends_on_their_number(data, tmp_path):
    short, long = tmp_path / "short", tmp_path / "long"
    assert ftrain_command(*command(data, short), "--schedule", "constant")[0] == 0
    code, said = ftrain_command(*command(data, short), "--schedule", "constant", "--epochs", 3)
    assert code == 0, said
    assert "resuming from step 8 of 12" in said
    assert ftrain_command(*command(data, long), "--schedule", "constant", "--epochs", 3)[0] == 0
    assert result(short) == result(long)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_loading_recommends_nothing(data, tmp_path, monkeypatch, number, code):
    """There is no run to resume yet."""

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), number)

    monkeypatch.setattr(launch, "resolve", interrupted)
    assert ftrain_command(*command(data, tmp_path / "run")) == (code, "loading torch ... ftrain: interrupted")
    assert not (tmp_path / "run").exists()


def test_a_terminal_that_closes_saves_the_run(complete, data, tmp_path):
    """SIGHUP arrives, and printing fails. The second step waits until the signal has arrived."""
    folder, ours = tmp_path / "run", os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, ours, str(data), str(folder)],
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        start_new_session=True,
    )
    os.close(other_end)
    shown = b""
    while b"waiting for SIGHUP" not in shown:
        shown += os.read(terminal, 1000)
    os.close(terminal)
    assert process.wait(timeout=900) == 129
    [saved] = checkpoint.find(folder / "checkpoints")
    assert checkpoint.step_of(saved) == 2  # within the epoch, where only a stop saves
    code, said = ftrain_command(*command(data, folder))
    assert code == 0, said
    assert result(folder) == result(complete)


IN_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # even if the tests run under nohup
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.path.insert(0, sys.argv[1])
from ftrain_cli.main import app
from signal_runs import command
from tiny_runs import tiny_network
from ftrain.run.session import Session

arrived, wakeup = os.pipe()  # of the numbers of the signals that have arrived
os.set_blocking(wakeup, False)
signal.set_wakeup_fd(wakeup)
train = Session.train

def train_once_hung_up(session, batch, **options):
    if session.step == 1:
        os.write(1, b"waiting for SIGHUP")
        while os.read(arrived, 1) != bytes([signal.SIGHUP]):
            pass
    return train(session, batch, **options)

Session.train = train_once_hung_up
sys.argv = ["ftrain", *command(sys.argv[2], sys.argv[3]), "--checkpoint-every", "1000"]
with tiny_network():
    app(prog_name="ftrain")
"""


def test_the_last_checkpoints_are_kept_and_the_best(data, tmp_path):
    folder = tmp_path / "run"
    assert ftrain_command(*command(data, folder), "--keep-last", 3, "--checkpoint-every", "1")[0] == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = {line["step"]: line["val"]["accuracy"] for line in lines if line["kind"] == "epoch"}
    best = max(epochs, key=lambda step: (epochs[step], -step))
    kept = {int(path.name[5:]) for path in checkpoint.find(folder / "checkpoints")}
    assert kept == {6, 7, 8, best}


def test_a_folder_in_use_ends_the_command_with_75(complete, data, tmp_path):
    folder = partial(complete, tmp_path / "run", steps=6)
    with run_folder.lock(folder):
        code, said = ftrain_command(*command(data, folder))
        assert code == 75
        assert f"ftrain: {folder} is locked by another run in this process" in said
        assert ftrain_command("fit", "--resume", folder)[0] == 75
        assert ftrain_command("fit", "--data", data, "--out", folder)[0] == 75
    assert ftrain_command(*command(data, folder))[0] == 0
    assert not (folder / LOCK).exists()


def test_damage_is_reported_and_the_checkpoint_before_is_used(complete, data, tmp_path):
    folder = partial(complete, tmp_path / "run", steps=8)
    damaged = folder / "checkpoints" / "step_00000008" / "state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, said = ftrain_command(*command(data, folder))
    assert code == 0, said
    assert (
        f"warning: {damaged} is damaged: its size or checksum differs from the one in manifest.json; it has been "
        "renamed to quarantined_step_00000008 "
    ) in said
    assert "resuming from step 6 of 8" in said
    assert result(folder) == result(complete)


def test_a_run_without_an_intact_checkpoint_ends_with_65(complete, data, tmp_path):
    folder = partial(complete, tmp_path / "run", steps=8)
    for path in (folder / "checkpoints").rglob("manifest.json"):
        path.write_bytes(b"")
    code, said = ftrain_command(*command(data, folder))
    assert code == 65
    assert "checkpoints can be read" in said.replace("none of the 3 ", "")
    assert len(checkpoint.find(folder / "checkpoints")) == 3
