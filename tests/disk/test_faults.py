"""Faults: after signals, kills, power loss, damage and full disks, a run resumes from its last intact checkpoint and
ends with the same bits."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from kill_runs import Calls, spread, watching
from tiny_runs import STEPS, images, network, result, spec, start_or_resume, tiny_network, train

import ftrain
from ftrain.data.order import Pace, train_examples
from ftrain.disk import checkpoint, durable, manifest, sealed
from ftrain.disk.snapshot import named
from ftrain.errors import BusyError, CheckpointError, DataError, TrainingError
from ftrain.losses import cross_entropy
from ftrain.run import events, provenance, stages
from ftrain.run import folder as run_folder
from ftrain.run.fit import fit


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(folder)
    return folder


def disturbed(script, folder, every):
    """Runs a script that disturbs runs at every Nth of its places, and returns its process and what it found."""
    command = [sys.executable, str(Path(__file__).parents[1] / script), str(folder), "--every", str(every)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) places and (\d+) moments tried, .*", done.stdout)
    assert found, done.stdout + done.stderr
    return done, int(found[1]), int(found[2])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(("every", "least"), [(12, 30), pytest.param(1, 300, marks=pytest.mark.long)])
def test_a_run_that_is_killed_anywhere_resumes_to_the_same_result(tmp_path, capsys, every, least):
    done, places, moments = disturbed("kill_runs.py", tmp_path / "runs", every)
    with capsys.disabled():
        print(f"\n{done.stdout.splitlines()[-1]}")
    assert done.stdout == f"{places} places and {moments} moments tried, 0 missed, 0 lost\n", done.stderr
    assert places >= least and moments == -(-40 // every)
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(
    ("every", "tried"),
    [(8, "11 places and 2 moments"), pytest.param(1, "33 places and 16 moments", marks=pytest.mark.long)],
)
def test_a_run_that_is_signalled_stops_between_steps_and_resumes(tmp_path, capsys, every, tried):
    done, _, _ = disturbed("signal_runs.py", tmp_path / "runs", every)
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert f"{tried} tried, 0 wrong, 0 lost" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


TRAIN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import attrs
from ftrain_cli import signals
from ftrain.run import folder as run_folder, provenance
from ftrain.run.events import StepTaken
from ftrain.run.fit import fit
from tiny_runs import images, spec, tiny_network

folder = Path(sys.argv[2])

def events(stop, batches, **settings):
    with tiny_network(), run_folder.lock(folder):
        stop.waits = True
        yield from fit(provenance.new_run(spec(**settings), images(), folder, []), spec(**settings), batches, stop=stop)
"""
HANGING_WORKER = (
    TRAIN
    + """
main_lives, writer = os.pipe()

class Hanging:
    def __init__(self, source): self.source = source
    def __getattr__(self, name): return getattr(self.source, name)
    def __len__(self): return len(self.source)
    def open(self, position):
        os.write(1, b".")
        os.close(writer)
        os.read(main_lives, 1)  # returns when the main process has ended
        os._exit(1)

batches = attrs.evolve(images(), train=Hanging(images().train))
with signals.watched() as stop:
    for event in events(stop, batches, workers=1):
        pass
sys.exit(stop.code)
"""
)
SIGNALLED_AT_A_STEP = (
    TRAIN
    + """
arrived, wakeup = os.pipe()  # of the numbers of the signals that have arrived
os.set_blocking(wakeup, False)
signal.set_wakeup_fd(wakeup)
with signals.watched() as stop:
    for event in events(stop, images()):
        if event == StepTaken(1, 1):
            os.write(1, b".")
            while os.read(arrived, 1) != bytes([signal.SIGTERM]):
                pass
sys.exit(stop.code)
"""
)


@contextlib.contextmanager
def running(code, folder):
    """A process that runs `code` and has written its first byte."""
    command = [sys.executable, "-c", code, str(Path(__file__).parents[1]), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout.read(1) == b".", process.stderr.read().decode()
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_second_signal_does_not_wait_for_workers_that_hang(tmp_path):
    with running(HANGING_WORKER, tmp_path / "run") as process:
        process.send_signal(signal.SIGTERM)
        # Only once the first has been handled: two that are pending become one.
        assert any(b"stopping after this step" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert b"stopped immediately" in process.stderr.read()
        assert process.wait(timeout=900) == 143
    with run_folder.lock(tmp_path / "run"):
        pass


def test_a_signal_saves_even_if_nobody_reads_the_output(tmp_path):
    with running(SIGNALLED_AT_A_STEP, tmp_path / "run") as process:
        process.stderr.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=900) == 143
    assert [path.name for path in checkpoint.find(tmp_path / "run" / "checkpoints")] == ["step_00000001"]


def test_a_save_that_fails_during_a_stop_is_an_error(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(OSError, match="No space left"):
        stopped_at(tmp_path / "run", is_step(1))


# --- stopped and resumed


def stopped_at(folder, is_place, run=None):
    """Starts or resumes a run, asks it to stop once `is_place` is true of an event, and returns all its events."""
    asked, found = [], []
    with tiny_network(), run_folder.lock(folder):
        for event in fit(*(run or start_or_resume(folder)), stop=lambda: bool(asked)):
            found.append(event)
            if is_place(event):
                asked.append(event)
    return found


def is_step(number):
    return lambda event: isinstance(event, events.StepTaken) and event.step == number


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_run_stopped_after_any_step_ends_with_the_same_bits_and_lines(undisturbed, tmp_path, step, workers):
    folder = tmp_path / "run"
    found = stopped_at(folder, is_step(step))
    assert found[-1] == events.Stopped(step)
    assert checkpoint.find(folder / "checkpoints")[-1].name == f"step_{step:08d}"
    started = next(event for event in train(folder, workers=workers) if isinstance(event, events.Started))
    assert started.step == step
    assert result(folder) == result(undisturbed)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_stopped_during_evaluation_repeats_the_evaluation(undisturbed, tmp_path, epoch):
    folder = tmp_path / "run"
    found = stopped_at(folder, lambda event: isinstance(event, events.Evaluating) and event.epoch == epoch)
    assert found[-1] == events.Stopped(4 * epoch)
    document = manifest.read(checkpoint.find(folder / "checkpoints")[-1])
    assert "val" not in document
    assert stopped_at(folder, lambda event: isinstance(event, events.Started))[-1] == events.Stopped(4 * epoch)
    train(folder)
    assert result(folder) == result(undisturbed)
    assert manifest.read(folder / "checkpoints" / f"step_{4 * epoch:08d}")["val"]["count"] == 5


def test_a_run_stopped_after_every_step_in_turn(undisturbed, tmp_path):
    folder = tmp_path / "run"
    for _ in range(STEPS):
        stopped_at(folder, lambda event: isinstance(event, events.StepTaken))
    train(folder)
    assert result(folder) == result(undisturbed)


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


def test_images_skipped_before_a_stop_are_counted_after_it(tmp_path):
    batches = attrs.evolve(images(), train=WithBadImages(images().train), skip_bad_images=True)
    wanted = spec(on_bad_image="skip", bad_image_cap=0.5)
    run = provenance.new_run(wanted, batches, tmp_path / "run", ["ftrain"])
    assert stopped_at(run.path, is_step(3), (run, wanted, batches))[-1] == events.Stopped(3)
    rest = stopped_at(run.path, is_step(0), (run, wanted, batches))
    assert [event.skipped for event in rest if isinstance(event, events.EpochEnded)] == [2, 2]


def test_an_overridden_batch_size_resumes_within_an_epoch(tmp_path):
    folder = tmp_path / "run"
    stopped_at(folder, is_step(2))
    run = run_folder.read(folder)
    batches = attrs.evolve(images(), batch_size=6)  # of which step 2 ends an epoch
    wanted = spec(batch_size=6)
    other = provenance.resumed_run(run, wanted, batches, ["ftrain"], override=True)
    rest = stopped_at(folder, is_step(0), (other, wanted, batches))
    assert [event.epoch for event in rest if isinstance(event, events.EpochEnded)] == [2]


# --- one process at a time


def test_a_folder_that_this_process_has_locked_is_refused(tmp_path):
    with run_folder.lock(tmp_path / "run"), pytest.raises(BusyError) as caught, run_folder.lock(tmp_path / "run"):
        pass
    assert str(caught.value) == (f"{tmp_path}/run is locked by another run in this process; finish or close it first")
    assert not (tmp_path / "run").exists()
    with run_folder.lock(tmp_path / "run"):
        pass


HOLD = """
import os, sys
from pathlib import Path
from ftrain.run import folder as run_folder
with run_folder.lock(Path(sys.argv[1])):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    sys.stdin.read()  # returns when the test ends
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_lock_is_free_when_its_holder_is_killed_even_if_its_workers_live(tmp_path):
    folder = tmp_path / "run"
    command, pipe = [sys.executable, "-c", HOLD, str(folder)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        worker = int(process.stdout.readline())
        with pytest.raises(BusyError) as caught, run_folder.lock(folder):
            pass
        holder = re.escape(f"{folder} is in use by process {process.pid} on {socket.gethostname()} since ")
        rest = "[-0-9]+ [:0-9]+; wait until it ends, or choose another folder as `out`"
        assert re.fullmatch(holder + rest, str(caught.value))
        process.kill()
        process.wait()
        os.kill(worker, 0)  # still alive
        with run_folder.lock(folder):
            pass


def test_a_lock_file_that_its_holder_removes_meanwhile_is_not_locked(tmp_path, monkeypatch):
    """The holder removes the file of its lock at the end; a lock on a removed file excludes nobody."""
    path, flock = tmp_path / "run" / ".lock", fcntl.flock
    late = []

    def lock_late(descriptor, how):
        if not late:
            late.append(descriptor)
            path.unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with run_folder.lock(tmp_path / "run"):
        assert path.read_text().startswith(f"process {os.getpid()} on ")


# --- power loss: what was not flushed is lost, or partly written


class File:
    def __init__(self):
        self.data, self.flushed = b"", b""


class Folder:
    def __init__(self):
        self.entries, self.flushed = {}, {}


class Disk:
    """A model of a disk that repeats the calls of `durable` and knows what is flushed."""

    def __init__(self):
        self.root = Folder()

    def at(self, path):
        node = self.root
        for name in path.parts:
            node = node.entries[name]
        return node

    def do(self, call, path, *rest):
        parent = self.at(path.parent) if path.parts else self.root
        if call == "mkdir":
            parent.entries[path.name] = Folder()
        elif call == "create":
            parent.entries[path.name] = File()
        elif call == "write":
            self.at(path).data += rest[0]
        elif call == "fsync":
            node = self.at(path)
            node.flushed = node.data if isinstance(node, File) else dict(node.entries)
        elif call == "rename":
            parent.entries[rest[0].name] = parent.entries.pop(path.name)
        elif call == "rmtree":
            del parent.entries[path.name]
        else:
            raise AssertionError(call)

    def after_loss(self, names, content):
        """The files by path, and the folders as None, after a power loss.

        Args:
          names: whether unflushed names are "kept" or "lost".
          content: what remains of unflushed bytes: "kept", "lost", "half" or "zeros".
        """
        found = {}

        def walk(folder, path):
            for name, node in (folder.entries if names == "kept" else folder.flushed).items():
                if isinstance(node, Folder):
                    found[path / name] = None
                    walk(node, path / name)
                else:
                    new = node.data[len(node.flushed) :]
                    left = {"kept": new, "lost": b"", "half": new[: len(new) // 2], "zeros": bytes(len(new))}
                    found[path / name] = node.flushed + left[content]

        walk(self.root, Path())
        return found


def recorded(root, folder, monkeypatch):
    """The calls of an undisturbed run, with paths relative to `root`, and when each step was committed."""
    calls, opened, committed = [], {}, []
    save = checkpoint.save

    def save_and_note(*arguments):
        target = save(*arguments)
        committed.append((len(calls), arguments[1].step))
        return target

    def at_call(name, function, *arguments):
        value = function(*arguments)
        if name in ("write", "fsync"):
            path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}")).relative_to(root)
            if path not in opened and (root / path).is_file():
                opened[path] = True
                calls.append(("create", path))
            data = [bytes(arguments[1][:value])] if name == "write" else []
            calls.append((name, path, *data))
        elif name == "rename":
            source, target = (Path(path).relative_to(root) for path in arguments)
            opened.pop(source, None)
            opened[target] = True
            calls.append((name, source, target))
        else:
            calls.append((name, Path(arguments[0]).relative_to(root)))
        return value

    monkeypatch.setattr(checkpoint, "save", save_and_note)
    with watching(at_call):
        train(folder)
    return calls, committed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the names of open files in /proc")
@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.long)])
def test_a_run_whose_machine_loses_power_anywhere_resumes_to_the_same_result(undisturbed, tmp_path, monkeypatch, every):
    root = tmp_path.resolve() / "recorded"
    root.mkdir()
    disk, tried, expected = Disk(), {}, result(undisturbed)
    calls, committed = recorded(root, root / "run", monkeypatch)
    assert [step for _, step in committed] == [2, 4, 6, 8]
    for number, call in enumerate(calls):
        disk.do(*call)
        step = max((step for at, step in committed if at <= number), default=0)
        for names in ("kept", "lost"):
            for content in ("kept", "lost", "half", "zeros"):
                left = disk.after_loss(names, content)
                tried[hashlib.sha256(repr(sorted(left.items())).encode()).hexdigest()] = (call, step, left)
    assert len(tried) > 150
    chosen = spread(tried.values(), lambda found: (found[0][0], found[1]), every)  # by the call and the step before it
    assert {step for _, step, _ in chosen} == {0, 2, 4, 6}
    lost = []
    for number, (call, step, left) in enumerate(chosen):
        base = tmp_path / str(number)
        base.mkdir()
        for path, content in left.items():
            if content is None:
                (base / path).mkdir()
            else:
                (base / path).write_bytes(content)
        resumed_from = next(event.step for event in train(base / "run") if isinstance(event, events.Started))
        if result(base / "run") != expected or resumed_from < step:
            lost.append((call[:2], resumed_from, step))
        shutil.rmtree(base)
    assert lost == []


# --- damage


def copied(folder, target):
    shutil.copytree(folder, target)
    return target


def committed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


COMMITTED = [
    "checkpoints/step_00000004/manifest.json",
    "checkpoints/step_00000004/state.safetensors",
    "checkpoints/step_00000006/manifest.json",
    "checkpoints/step_00000006/state.safetensors",
    "checkpoints/step_00000008/manifest.json",
    "checkpoints/step_00000008/state.safetensors",
    "classes.json",
    "config.json",
    "metrics.jsonl",
]


def test_what_a_run_commits(undisturbed):
    assert committed(undisturbed) == COMMITTED


@pytest.mark.parametrize("name", COMMITTED)
@pytest.mark.parametrize("how", ["empty", "cut", "first", "middle", "last", "gone"])
def test_a_run_with_a_damaged_file_resumes_to_the_same_result(undisturbed, tmp_path, name, how):
    folder = copied(undisturbed, tmp_path / "run")
    data = bytearray((folder / name).read_bytes())
    place = {"first": 0, "middle": len(data) // 2, "last": len(data) - 2}
    if how == "gone":
        (folder / name).unlink()
    elif how in place:
        data[place[how]] ^= 4
        (folder / name).write_bytes(data)
    else:
        (folder / name).write_bytes(b"" if how == "empty" else data[: len(data) // 2])
    step = Path(name).parent.name
    for path in checkpoint.find(folder / "checkpoints"):
        if path.name > step.ljust(1, "~"):  # so that the damaged one is the newest
            shutil.rmtree(path)
    damage = run_folder.read(folder).damage
    assert (damage is None) == (name != "config.json")
    if step == "step_00000004":
        with pytest.raises(CheckpointError, match="none of the 1 checkpoints in .*step_00000004"):
            train(folder)
        return
    said = [event.cause for event in train(folder) if isinstance(event, events.Damaged)]
    if step:
        assert len(said) == 1
        assert step in said[0] and said[0].endswith(f"; it has been renamed to quarantined_{step}")
        assert (folder / "checkpoints" / f"quarantined_{step}").is_dir()
    if name == "metrics.jsonl":
        assert len(said) == 1
        assert re.fullmatch(
            r"metrics\.jsonl has been damaged: \d+ of its lines cannot be read; "
            r"a copy of it is in metrics\.jsonl\.damaged",
            said[0],
        )
        assert (checkpoint.find(folder / "checkpoints")[-1] / "state.safetensors").is_file()
    else:
        assert result(folder) == result(undisturbed)


@pytest.mark.parametrize("offset", range(0, 2600, 97))
def test_a_bit_that_flips_in_the_newest_manifest_or_the_settings_is_found(undisturbed, tmp_path, offset):
    folder = copied(undisturbed, tmp_path / "run")
    for name in ("checkpoints/step_00000008/manifest.json", "config.json"):
        data = bytearray((folder / name).read_bytes())
        data[offset % len(data)] ^= 1
        (folder / name).write_bytes(data)
    assert f"cannot read {folder}/config.json: " in run_folder.read(folder).damage
    [said] = [event.cause for event in train(folder) if isinstance(event, events.Damaged)]
    assert said.startswith(f"cannot read {folder}/checkpoints/step_00000008/manifest.json: ")
    assert result(folder) == result(undisturbed)


def test_a_damaged_config_is_replaced_by_the_copy_in_a_checkpoint(undisturbed, tmp_path):
    folder = copied(undisturbed, tmp_path / "run")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"lr": 0.01', '"lr": 0.02'))
    opened = run_folder.read(folder)
    assert opened.settings.lr == 0.01
    assert opened.damage == (
        f"cannot read {folder}/config.json: it is damaged: its checksum does not match; using the copy in step_00000008"
    )


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again(undisturbed, tmp_path):
    folder = copied(undisturbed, tmp_path / "run")
    for path in checkpoint.find(folder / "checkpoints"):
        (path / "state.safetensors").write_bytes(b"")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    message = "none of the 3 checkpoints in .* can be read: .*step_00000008.* is damaged"
    with pytest.raises(CheckpointError, match=message):
        train(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_damaged_line_of_metrics_is_reported_and_a_copy_kept(undisturbed, tmp_path):
    folder = copied(undisturbed, tmp_path / "run")
    data = (folder / "metrics.jsonl").read_bytes()
    first = data.index(b"\n")
    damaged = b"\x00" * first + data[first:]
    (folder / "metrics.jsonl").write_bytes(damaged)
    said = [event.cause for event in train(folder) if isinstance(event, events.Damaged)]
    assert said == [
        "metrics.jsonl has been damaged: 1 of its lines cannot be read; a copy of it is in metrics.jsonl.damaged"
    ]
    assert (folder / "metrics.jsonl.damaged").read_bytes() == damaged
    assert (folder / "metrics.jsonl").read_bytes() == data[first + 1 :]


def test_a_changed_number_in_metrics_is_reported(undisturbed, tmp_path):
    folder = copied(undisturbed, tmp_path / "run")
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace('"loss": 0.', '"loss": 7.', 1))
    said = [event.cause for event in train(folder) if isinstance(event, events.Damaged)]
    assert said == [
        "metrics.jsonl has been damaged: 0 of its lines cannot be read; a copy of it is in metrics.jsonl.damaged"
    ]


def test_a_run_whose_checkpoints_are_missing_does_not_start_again(undisturbed, tmp_path):
    folder = copied(undisturbed, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    lines = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="the checkpoints of .* are missing; put them back, or start a new run"):
        train(folder)
    assert (folder / "metrics.jsonl").read_bytes() == lines


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOMEM])
def test_a_checkpoint_that_cannot_be_opened_for_other_reasons_is_not_damaged(
    undisturbed, tmp_path, monkeypatch, number
):
    folder = copied(undisturbed, tmp_path / "run")

    def refuse(path, *arguments):
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(sealed, "read", refuse)
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            manifest.read(checkpoint.find(folder / "checkpoints")[-1])
    assert len(checkpoint.find(folder / "checkpoints")) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"left_out": {"train": 7, "val": {}}},
        {"left_out": None},
        {"log": {"line": 7, "epoch": None}},
        {"log": {"line": {"loss": "x"}, "epoch": None}},
        {"to_evaluate": None, "metrics": None, "left_out": 7},
        {"metrics": {"bytes": "all"}},
        {"val": {}},
        {"thresholds": [0.5, 2.0]},
        {"thresholds": [-0.5, 0.5]},
    ],
)
def test_a_manifest_with_values_of_the_wrong_type_is_refused(undisturbed, tmp_path, changes):
    folder = copied(undisturbed, tmp_path / "run")
    for path in checkpoint.find(folder / "checkpoints"):
        document = {**sealed.read(path / "manifest.json"), **changes}
        (path / "manifest.json").write_bytes(sealed.dump(document))
    with pytest.raises(CheckpointError, match="manifest.json"):
        train(folder)


@pytest.mark.parametrize("changes", [{"data": 7}, {"asked": 7}, {"classes": 7}, {"command": [7]}, {"settings": []}])
def test_a_config_with_values_of_the_wrong_type_is_refused(undisturbed, tmp_path, changes):
    folder = copied(undisturbed, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    document = {**sealed.read(folder / "config.json"), **changes}
    (folder / "config.json").write_bytes(sealed.dump(document))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        run_folder.read(folder)


def test_order_comes_from_step_numbers_and_not_from_clocks(undisturbed, tmp_path):
    folder = copied(undisturbed, tmp_path / "run")
    for age, path in enumerate(checkpoint.find(folder / "checkpoints")):
        for file in (path, *path.iterdir()):
            os.utime(file, (10**9 - age, 10**9 - age))  # the newest step looks oldest
    assert [type(event) for event in train(folder)] == [events.Started]
    assert result(folder) == result(undisturbed)


# --- a full disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_disk_that_fills_up_anywhere_leaves_the_earlier_checkpoints_intact(undisturbed, tmp_path, number):
    calls = 0

    def count(name, function, *arguments):
        nonlocal calls
        calls += name == "write"
        return function(*arguments)

    with watching(count):
        train(tmp_path / "counted")
    expected = result(undisturbed)
    for full_at in range(0, calls, 7):
        writes = 0

        def fill(name, function, *arguments, full_at=full_at):
            nonlocal writes
            if name == "write":
                writes += 1
                if writes == full_at + 1:
                    function(arguments[0], arguments[1][:1])
                if writes > full_at:
                    raise OSError(number, os.strerror(number))
            return function(*arguments)

        folder = tmp_path / str(full_at)
        with watching(fill), pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
            train(folder)
        assert re.search("; [0-9.]+ (bytes|kB) are needed$", caught.value.strerror)
        assert caught.value.filename.startswith(str(folder))
        assert ".partial" not in caught.value.filename
        assert [path for path in folder.rglob("*") if durable.is_leftover(path)] == []
        train(folder)
        assert result(folder) == expected


def test_an_error_while_saving_in_the_background_ends_the_run(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = provenance.new_run(spec(), images(), tmp_path / "run", ["ftrain"])
    monkeypatch.setattr(checkpoint, "save", full)
    with tiny_network(), run_folder.lock(run.path), pytest.raises(OSError, match="No space left"):
        list(fit(run, spec(), images()))
    assert checkpoint.find(run.checkpoints) == []


def test_one_save_is_in_flight_at_a_time_and_none_is_lost(tmp_path, monkeypatch):
    save, running, most = checkpoint.save, 0, 0

    def watched(*arguments):
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return save(*arguments)
        finally:
            running -= 1

    monkeypatch.setattr(checkpoint, "save", watched)
    train(tmp_path / "run", checkpoint_every=1, keep_last=100)
    assert most == 1
    assert [path.name for path in checkpoint.find(tmp_path / "run" / "checkpoints")] == [
        f"step_{step:08d}" for step in range(1, STEPS + 1)
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_folder_that_cannot_be_written_ends_the_run_before_it_starts():
    script = Path(__file__).parents[1] / "unwritable_run.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "new 73 ftrain: Permission denied: ROOT/forbidden/run",
        "existing 73 ftrain: Permission denied: ROOT/existing/.lock",
    ]


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kill_runs import in_child
from signal_runs import command, make_images, run
folder = Path(sys.argv[2])
make_images(folder / "images")
in_child(lambda: run(command(folder / "images", folder / "one")))
# Enough for config.json, and too little for a checkpoint, whose manifest contains the same.
limit = (folder / "one" / "config.json").stat().st_size + 50
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
run(command(folder / "images", folder / "run"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_limit_on_the_size_of_files_ends_the_command_with_74(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(Path(__file__).parents[1]), str(tmp_path)], check=False)
    assert done.returncode == 74
    said = (tmp_path / "run.log").read_text().splitlines()[-1]
    where = re.escape(f"{tmp_path}/run/")
    assert re.fullmatch(rf"ftrain: File too large; [0-9.]+ kB are needed: {where}checkpoints/step_0000000\d", said)
    assert [path for path in (tmp_path / "run").rglob("*") if durable.is_leftover(path)] == []


# --- nonfinite losses, and running out of memory


def test_a_nonfinite_loss_stops_the_run_before_the_update(tmp_path, monkeypatch):
    def measured(logits, labels, **options):
        steps.append(None)
        return cross_entropy(logits, labels) * (float("nan") if len(steps) == 6 else 1.0)

    steps = []
    folder = tmp_path / "run"
    monkeypatch.setattr(stages, "_training_loss", lambda spec: measured)
    with pytest.raises(TrainingError) as caught:
        train(folder, checkpoint_every=1)
    rows = train_examples(0, 5, Pace(13, 3, drop_last=True)).indices
    names = ", ".join(images().train.image_name(row) for row in rows)
    assert str(caught.value) == (
        "the loss or its gradient became infinite or nan at step 6 (learning rate 0.00854). The update was not "
        "applied, and the last checkpoint is intact. `ftrain replay` shows the step; a lower `lr`, more "
        "`warmup_epochs` or `clip_norm=1` may help, in a new run or in this one with `resume=RUN` and "
        f"`override=True`. The images of the batch, in {images().train.name}: {names}"
    )
    assert checkpoint.find(folder / "checkpoints")[-1].name == "step_00000005"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4, 4]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 2 bytes"),
        RuntimeError("not enough memory: you tried to allocate 2 bytes"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_reported_with_a_smaller_batch_size(undisturbed, tmp_path, monkeypatch, error):
    def too_large(logits, labels, **options):
        steps.append(None)
        if len(steps) == 6:
            raise error
        return loss(logits, labels)

    steps, loss = [], stages._training_loss(spec())
    folder = tmp_path / "run"
    monkeypatch.setattr(stages, "_training_loss", lambda spec: too_large)
    with pytest.raises(
        TrainingError,
        match="memory ran out at `batch_size=3`; use `batch_size=1` in a new run, or in this one with `resume=RUN`",
    ) as caught:
        train(folder)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    train(folder)
    assert result(folder) == result(undisturbed)


@pytest.mark.parametrize("donate", [False, True])
def test_a_step_that_runs_out_of_memory_leaves_its_state_unchanged(donate):
    apply, params, buffers = ftrain.functionalize(network("", classes=2, image_size=8, seed=1))
    optimizer = ftrain.adamw(0.01)
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    before = {name: tensor.clone() for name, tensor in named(state).items()}

    def too_large(logits, labels):
        raise torch.OutOfMemoryError

    batch = (torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 0]))
    with pytest.raises(torch.OutOfMemoryError):
        ftrain.train_step(state, batch, apply=apply, optimizer=optimizer, loss=too_large, donate=donate)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named(state).items())


def test_calls_stands_for_the_os_module():
    """The fault tests depend on this."""
    seen = []
    calls = Calls(lambda name, function, *arguments: seen.append(name) or function(*arguments))
    calls.mkdir  # noqa: B018
    assert calls.getpid() == os.getpid()
    assert seen == []
