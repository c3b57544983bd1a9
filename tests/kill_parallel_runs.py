"""Kills processes of parallel runs with SIGKILL at random moments and wherever the first process writes, resumes the
runs with another number of processes, and compares the results with that of an undisturbed run. A script, so that it
can fork: `python tests/kill_parallel_runs.py FOLDER [SEED] [EVERY]` tries every EVERYth call that writes."""

import contextlib
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from kill_runs import killer, recorded_calls, watching
from parallel.runs import OPTIONS, fork, train, trained
from signal_runs import make_images
from tiny_runs import result, tiny_network

from ftrain.parallel import processes
from ftrain.run.settings import flag

torch.set_num_threads(1)
processes.LOST = 1.0
RANDOM_MOMENTS = 40
LAUNCHERS = 4
LONGEST = 300.0  # seconds until a process that has not ended counts as hanging

NETWORK = """
import torch

def make(num_classes):
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Dropout(0.2),
        torch.nn.Linear(144, num_classes),
    )
"""


def ended(children):
    """The exit codes of processes, negative for a signal; None for one that hangs, which is killed."""
    codes, deadline = [], time.monotonic() + LONGEST
    for child in children:
        while (found := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        if found == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        codes.append(os.waitstatus_to_exitcode(found[1]) if found != (0, 0) else None)
    return codes


def left_by_launcher(folder, data, network, moment):
    """Kills the launcher of `ftrain fit --processes 2`. Returns how many processes it leaves."""
    options = {**OPTIONS, "model": f"{network}:make", "data": data, "out": folder, "resume": "auto", "processes": 2}
    words = [str(word) for name, value in options.items() for word in (flag(name), value)]
    with open(f"{folder}.log", "a") as log:
        launcher = subprocess.Popen([sys.executable, "-m", "ftrain", "fit", *words], stdout=log, stderr=log)
    workers = []
    while len(workers) < 2 and launcher.poll() is None:
        workers = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
        time.sleep(0.05)
    time.sleep(moment)
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + LONGEST
    while (alive := sum(is_alive(worker) for worker in workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def main(root, seed, every):
    root.mkdir(exist_ok=True)
    data = root / "images"
    make_images(data)
    undisturbed, start = root / "undisturbed", time.monotonic()
    trained(undisturbed, data, 2)
    seconds = time.monotonic() - start
    expected = result(undisturbed)
    draw = random.Random(seed)
    with tiny_network():
        calls = recorded_calls(lambda: train(root / "recorded", data))
    wrong, hung, left, missed = [], [], 0, 0

    def check(name, folder, worlds):
        try:
            trained(folder, data, draw.choice(worlds))
            fine = result(folder) == expected
        except RuntimeError as error:
            print(error)
            fine = False
        if not fine:
            wrong.append(name)
        shutil.rmtree(folder)

    for number in range(RANDOM_MOMENTS):
        folder, world = root / f"moment-{number}", draw.choice((2, 4))
        children = fork(functools.partial(train, folder, data), world, f"{folder}.log")
        victims = children if number % 4 == 0 else [draw.choice(children)]
        time.sleep(draw.uniform(0.0, seconds))
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        codes = ended(children)
        if None in codes or not {*codes} <= {0, 75, -signal.SIGKILL}:
            hung.append((number, codes))
        check(number, folder, (1, 2, 4))
    places = range(0, len(calls), every)
    for place in places:
        folder = root / f"call-{place}"

        def disturbed(folder=folder, place=place):
            with watching(killer(place, "before")) if os.environ["RANK"] == "0" else contextlib.nullcontext():
                train(folder, data)

        codes = ended(fork(disturbed, 2, f"{folder}.log"))
        missed += codes[0] != -signal.SIGKILL
        if None in codes or codes[1] not in (0, 75):
            hung.append((place, codes))
        check(place, folder, (1, 2, 4))
    network = root / "network.py"
    network.write_text(NETWORK)
    for number in range(LAUNCHERS):
        folder = root / f"launcher-{number}"
        left += left_by_launcher(folder, data, network, draw.uniform(0.0, 8.0))
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{RANDOM_MOMENTS} moments, {len(places)} of {len(calls)} calls that write and {LAUNCHERS} launchers tried: "
        f"{missed} missed, {len(wrong)} wrong or lost, {len(hung)} hung or ended otherwise, {left} left behind",
        *wrong,
        *hung,
    )
    return 1 if wrong or hung or left or missed else 0


if __name__ == "__main__":
    seed, every = (int(word) for word in [*sys.argv[2:], *("0", "1")[len(sys.argv) - 2 :]])
    sys.exit(main(Path(sys.argv[1]), seed, every))
