"""Runs over several processes, which are forked from this one. A script, so that it can fork:
`python runs.py FOLDER all|few` writes what it found to FOLDER/found.json."""

import functools
import json
import os
import signal
import socket
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from signal_runs import make_images
from tiny_runs import result, tiny_network

from ftrain.disk import checkpoint
from ftrain.errors import ProcessError
from ftrain.run.events import StepTaken
from ftrain.run.launch import Request, launch

torch.set_num_threads(1)
OPTIONS = {
    "model": "shufflenet_v2_x0_5",  # by name; the network is a tiny one
    "epochs": 2,
    "batch_size": 4,
    "image_size": 8,
    "crop_scale": 0.5,
    "device": "cpu",
    "cache": "none",
    "log_every": 3,
    "checkpoint_every": "2",
    "shards": 4,
    "threads": 1,
    "workers": 0,
    "timeout": "60s",
}
STEPS = 7  # two epochs of 13 images in batches of 4


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def fork(work, world, log):
    """Does `work()` in processes with the environment of a launcher; returns them, by rank. What they write is appended
    to a file."""
    place = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            os.environ.update({name: str(value) for name, value in place.items()}, RANK=str(rank), LOCAL_RANK=str(rank))
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            code = 1
            try:
                with tiny_network():
                    code = work() or 0
            except SystemExit as end:
                code = end.code
            except ProcessError:
                code = 75
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", flush=True)
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    return children


def forked(work, world, log, *, kill_stopped=False):
    """As `fork`; returns the exit statuses of the processes, by rank.

    Args:
      kill_stopped: whether to kill a process that a signal has stopped when the one before it has ended.
    """
    first, *others = fork(work, world, log)
    statuses = [os.waitpid(first, 0)[1]]
    for child in others:
        if kill_stopped and is_stopped(child):
            os.kill(child, signal.SIGKILL)
        statuses.append(os.waitpid(child, 0)[1])
    return statuses


def is_stopped(process):
    """Whether a signal has stopped a process, which a launcher would kill in the end."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def train(folder, data, *, until=None, **changes):
    """Starts or resumes a run as `ftrain fit --resume auto` does; asks it to stop after some steps."""
    asked = {**OPTIONS, "data": str(data), "out": str(folder), **changes}
    asked = {name: value for name, value in asked.items() if value is not None}
    taken = [0]
    for event in launch(Request(asked=asked, resume="auto"), stop=lambda: until is not None and taken[0] >= until):
        if isinstance(event, StepTaken):
            taken[0] = event.step


def steps_of(folder):
    return checkpoint.step_of(checkpoint.find(folder / "checkpoints")[-1])


def trained(folder, data, world, **changes):
    statuses = forked(functools.partial(train, folder, data, **changes), world, f"{folder}.log")
    if statuses != [0] * world:
        raise RuntimeError(f"{folder}: {statuses}: {Path(f'{folder}.log').read_text()}")


SETTINGS = {
    "plain": {},
    "all at once": {"ema_decay": 0.9, "clip_norm": 0.5, "mixup": 0.2, "cutmix": 0.5, "optimizer": "adamw"},
    "cached, balanced": {"cache": "disk", "sampler": "balanced", "optimizer": "sgd", "lr": 0.01},
    "in bfloat16, with workers": {"precision": "bfloat16", "workers": 2},
    "a frozen layer": {"freeze": "0", "class_weights": "balanced"},
    "accumulated": {"shards": None, "eval_batch_size": 4},  # four shards, which follow from --accumulate
}


def numbers_of_processes(root, data, names):
    """By settings, the results of runs in one, two and four processes."""
    found = {}
    for name in names:
        changes, results = SETTINGS[name], []
        for world in (1, 2, 4):
            folder = root / f"{name}-{world}"
            accumulated = {"accumulate": 4 // world} if name == "accumulated" else {}
            trained(folder, data, world, **changes, **accumulated)
            results.append(result(folder))
        found[name] = results
    return found


def changes_of_number(root, data, steps):
    """By the step of the first change, the results of runs whose number of processes changes from 1 to 2 to 4 to 1, and
    the steps at which they stopped."""
    found = {}
    for step in steps:
        folder, stops = root / f"changes-{step}", []
        for world, until in ((1, step), (2, step + 1), (4, step + 2), (1, None)):
            trained(folder, data, world, until=until)
            stops.append(steps_of(folder))
        found[step] = {"result": result(folder), "stops": stops}
    return found


def main(root, which):
    data = root / "images"
    make_images(data)
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    names, steps = (SETTINGS, range(1, STEPS)) if which == "all" else (("plain", "all at once"), (2,))
    found = {"numbers": numbers_of_processes(root, data, names), "changes": changes_of_number(root, data, steps)}
    (root / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    main(Path(sys.argv[1]), sys.argv[2])
