"""Sends signals to `ftrain fit`, resumes with the same command, and compares the result with that of an undisturbed
run. A script, so that it can fork: `python tests/signal_runs.py FOLDER [--seed N] [--every N]`."""

import math
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from ftrain_cli import pictures, signals  # noqa: F401  `pictures` is imported now, so that the forks need not
from ftrain_cli.main import app
from kill_runs import in_child, parsed, spread
from PIL import Image
from tiny_runs import result, tiny_network

from ftrain.disk import checkpoint
from ftrain.run import api, build, launch, stages

torch.set_num_threads(1)
RANDOM_MOMENTS = 16
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def make_images(root):
    """Thirteen training and five validation images in two classes, so that the runs have two epochs of four steps."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 13), ("val", 5)):
        for number in range(count):
            path = root / split / ("odd" if number % 2 else "even") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def command(data, folder, workers=0):
    options = {
        "--model": "shufflenet_v2_x0_5",  # by name; the network is a tiny one
        "--data": data,
        "--out": folder,
        "--resume": "auto",
        "--epochs": 2,
        "--batch-size": 3,
        "--image-size": 8,
        "--crop-scale": 0.5,
        "--device": "cpu",
        "--cache": "none",
        "--log-every": 3,
        "--checkpoint-every": 2,
    }
    words = [str(word) for pair in options.items() for word in pair]
    return ["fit", *words, "--drop-last", "--workers", str(workers)]


def run(arguments, log=None, *, curves=True):
    """Runs `ftrain` in this process and ends the process. The output is appended to a file. Without curves.png a run
    takes a third of the time."""
    if not curves:
        api.draw_curves = lambda run: None
    sys.argv = ["ftrain", *arguments]
    log = log or f"{arguments[arguments.index('--out') + 1]}.log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        with tiny_network():
            app(prog_name="ftrain")
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)
    os._exit(0)


def signalling(owner, name, calls, number):
    """Makes the process send itself a signal at each of these calls of a function, counted from 1. A second signal at
    the same call waits until the first has been handled, because two that are pending become one."""
    function, count = getattr(owner, name), 0
    reader, writer = os.pipe()

    class Stop(signals.Stop):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "code" and value is not None:
                os.write(writer, b".")

    def wrapped(*args, **kwargs):
        nonlocal count
        count += 1
        for earlier in range(calls.count(count)):
            if earlier:
                os.read(reader, 1)
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    signals.Stop = Stop
    setattr(owner, name, wrapped)


# Where signals arrive, and the possible steps of the last checkpoint then: 0 for none. Several are possible where a
# background thread saves step 2: step 2 may be incomplete when the process ends immediately, and meanwhile training
# continues to step 4 at most, because the checkpoint at the end of the epoch waits for the one before.
PLACES = {
    "while the settings are resolved": ((launch, "resolve", [1]), {0}),
    "while the network is built": ((build, "make_module", [1]), {0}),
    "in the first step": ((stages, "train_step", [1]), {1}),
    "in a step": ((stages, "train_step", [3]), {3}),
    "in the last step of an epoch": ((stages, "train_step", [4]), {4}),
    "while evaluating": ((build, "eval_step", [1]), {4}),
    "at the end of evaluating": ((build, "eval_step", [2]), {4}),
    "while saving": ((checkpoint, "save", [1]), {2, 3, 4}),
    "twice in a step": ((stages, "train_step", [3, 3]), {0, 2}),
    "in two steps": ((stages, "train_step", [6, 7]), {6}),
    "twice while saving": ((checkpoint, "save", [1, 1]), {0, 2}),
}


def last_step(folder):
    found = checkpoint.find(folder / "checkpoints")
    return int(found[-1].name[5:]) if found else 0


def main(root, seed, every):
    # Turn by turn, so that the places that are chosen have different signals.
    places = [(SIGNALS[(turn + at) % 3], what) for turn in range(3) for at, what in enumerate(PLACES)]
    places, moments = spread(places, lambda place: place[1], every), range(math.ceil(RANDOM_MOMENTS / every))
    for number in SIGNALS:  # outside of `ftrain fit` a signal ends the process, even if the caller ignores it
        signal.signal(number, signal.SIG_DFL)
    make_images(root / "images")
    draw = random.Random(seed)
    statuses, lost = [], []

    def resume_and_compare(what, folder, *, curves):
        status = in_child(lambda: run(command(root / "images", folder), curves=curves))
        log = Path(f"{folder}.log").read_text()
        if status != 0 or result(folder) != expected or "Traceback" in log or "KeyboardInterrupt" in log:
            lost.append(what)
            print(log, flush=True)

    seconds = []
    for name in ("undisturbed", "timed"):
        start_time = time.monotonic()
        in_child(lambda name=name: run(command(root / "images", root / name)))
        seconds.append(time.monotonic() - start_time)
    expected = result(root / "undisturbed")
    wrong = []
    for number, what in places:
        (owner, name, calls), steps = PLACES[what]
        folder = root / f"{number} {what}"

        def signalled(folder=folder, place=(owner, name, calls), number=number):
            signalling(*place, number)
            run(command(root / "images", folder), curves=False)

        status = os.waitstatus_to_exitcode(in_child(signalled))
        immediately = "stopped immediately" in Path(f"{folder}.log").read_text()
        expected_end = 128 + number, what.startswith("twice")
        if (status, immediately) != expected_end or last_step(folder) not in steps:
            wrong.append((what, signal.Signals(number).name, status, last_step(folder)))
        resume_and_compare(what, folder, curves=False)
    # The moments are random, but what is checked holds at each of them: before ftrain handles signals, while it trains,
    # after its last step, and after its end.
    for moment in moments:
        folder = root / f"moment {moment}"
        number = SIGNALS[moment % 3]
        arguments = command(root / "images", folder, workers=moment // 3 % 3)
        status = in_child(lambda arguments=arguments: run(arguments), draw.uniform(0, seconds[-1]), number)
        statuses.append(os.waitstatus_to_exitcode(status))
        if statuses[-1] not in (0, 128 + number, -number):  # -number: when ftrain did not handle signals
            wrong.append((moment, statuses[-1]))
        resume_and_compare(moment, folder, curves=True)
    print(f"exit codes at random moments: {sorted(statuses)}")
    print(f"{len(places)} places and {len(moments)} moments tried, {len(wrong)} wrong, {len(lost)} lost")
    print(*wrong, *lost, sep="\n")
    return 1 if wrong or lost else 0


if __name__ == "__main__":
    given = parsed()
    shutil.rmtree(given.folder, ignore_errors=True)
    sys.exit(main(given.folder, given.seed, given.every))
