"""How `ftrain fit` ends in one process and in two when something goes wrong in one of them. A script, so that it can
fork: `python ends.py FOLDER all|few` writes what it found to FOLDER/found.json."""

import errno
import functools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from ftrain_cli import pictures  # noqa: F401  imported now, so that the forks need not
from ftrain_cli.main import app
from parallel.runs import OPTIONS, forked, steps_of
from signal_runs import make_images

from ftrain.disk import checkpoint
from ftrain.parallel import processes
from ftrain.run import stages
from ftrain.run.settings import flag

torch.set_num_threads(1)


def fit(folder, data, in_rank=None, before=lambda: None, patience=60.0, **changes):
    """`ftrain fit`, where one process does something before. Processes wait for each other for some seconds when the
    run has failed: long, so that a busy machine does not matter, except where one of them never answers."""
    processes.LOST = patience
    if int(os.environ["RANK"]) == in_rank:
        before()
    options = {**OPTIONS, "data": data, "out": folder, "shards": 2, **changes}
    words = [str(word) for name, value in options.items() for word in (flag(name), value)]
    sys.argv = ["ftrain", "fit", *words]
    app(prog_name="ftrain")


def at_step(number, action):
    """Does something when a training step is taken."""
    step, calls = stages.train_step, [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number:
            action()
        return step(*args, **kwargs)

    stages.train_step = counted


def full_disk():
    def save(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "state.safetensors")

    checkpoint.save = save


def signalled(number):
    at_step(3, lambda: os.kill(os.getpid(), number))


def out_of_memory():
    def fail():
        raise MemoryError

    at_step(3, fail)


def ended(root, name, world, **options):
    """The exit codes, negative for a signal; what was said of an error; and the step of the last checkpoint."""
    folder = root / f"{name}-{world}"
    log = Path(f"{folder}.log")
    statuses = forked(functools.partial(fit, folder, **options), world, log, kill_stopped=True)
    said = [line.removeprefix("ftrain: ") for line in log.read_text().splitlines() if line.startswith("ftrain: ")]
    saved = steps_of(folder) if checkpoint.find(folder / "checkpoints") else 0
    return {"codes": [os.waitstatus_to_exitcode(status) for status in statuses], "said": said, "saved": saved}


def main(root, which):
    data, bad = root / "images", root / "bad"
    make_images(data)
    shutil.copytree(data, bad)
    image = bad / "train" / "odd" / "5.png"
    image.write_bytes(image.read_bytes()[:-40])  # its header is intact
    cases = {
        "an image cannot be read": {"data": bad},
        "the loss is not finite": {"data": data, "lr": 1e38, "optimizer": "sgd", "warmup_epochs": 0},
        "a setting is wrong": {"data": data, "batch_size": 5},
        "the disk is full": {"data": data, "in_rank": 0, "before": full_disk},
    }
    found = {name: [ended(root, name, world, **case) for world in (1, 2)] for name, case in cases.items()}
    of_one = {
        "one runs out of memory": out_of_memory,
        "one is asked to stop": functools.partial(signalled, signal.SIGTERM),
        "one is killed": functools.partial(signalled, signal.SIGKILL),
    }
    for name, before in of_one.items():
        patience = 2.0 if name == "one is killed" else 60.0
        found[name] = ended(root, name, 2, data=data, in_rank=1, before=before, patience=patience)
    if which == "all":
        before = functools.partial(signalled, signal.SIGSTOP)
        found["one hangs"] = ended(root, "hangs", 2, data=data, in_rank=1, before=before, patience=2.0, timeout="20s")
    (root / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    main(Path(sys.argv[1]), sys.argv[2])
