"""Kills runs with SIGKILL wherever they write, resumes them, and compares the results with that of an undisturbed run.
A script, so that it can fork: `python tests/kill_runs.py FOLDER [--seed N] [--every N]`."""

import argparse
import collections
import contextlib
import functools
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from tiny_runs import result, train

from ftrain.disk import durable
from ftrain.disk.saver import Saver

torch.set_num_threads(1)
RANDOM_PLACES = 200
RANDOM_MOMENTS = 40
CALLS = ("write", "fsync", "rename", "mkdir", "ftruncate")


class Calls:
    """The os module as `durable` sees it, whose calls go through `at_call`."""

    def __init__(self, at_call):
        self.at_call = at_call

    def __getattr__(self, name):
        function = getattr(os, name)
        if name not in CALLS:
            return function
        return lambda *arguments: self.at_call(name, function, *arguments)


class Removal:
    """The shutil module as `durable` sees it."""

    def __init__(self, at_call):
        self.at_call = at_call

    def rmtree(self, path, **options):
        if not os.path.isdir(path):
            return None
        return self.at_call("rmtree", lambda path: shutil.rmtree(path, **options), path)


@contextlib.contextmanager
def watching(at_call):
    """Passes every call to `at_call`, and saves in the main thread, so that all runs make their calls in one order."""
    durable.os, durable.shutil = Calls(at_call), Removal(at_call)
    start, Saver.start = Saver.start, lambda saver, work: work()
    try:
        yield
    finally:
        durable.os, durable.shutil, Saver.start = os, shutil, start


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def recorded_calls(work):
    """All calls of some work, such as an undisturbed run: (name, bytes written)."""
    calls = []

    def at_call(name, function, *arguments):
        calls.append((name, len(arguments[1]) if name == "write" else 0))
        return function(*arguments)

    with watching(at_call):
        work()
    return calls


def killer(call, how):
    """Kills the process before call number `call`, or within it, after `how` bytes."""
    count = 0

    def at_call(name, function, *arguments):
        nonlocal count
        here, count = count == call, count + 1
        if here and how == "before":
            die()
        if here and isinstance(how, int):
            if name == "write":
                function(arguments[0], arguments[1][:how])
            else:  # a folder of which one file is removed
                os.unlink(next(os.scandir(arguments[0])))
            die()
        return function(*arguments)

    return at_call


def in_child(work, signalled_after=None, number=signal.SIGKILL):
    """Does `work` in a forked process and returns its wait status.

    Args:
      signalled_after: seconds until a signal is sent to it; None for no signal.
      number: of the signal.
    """
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    if signalled_after is not None:
        time.sleep(signalled_after)
        os.kill(pid, number)
    return os.waitpid(pid, 0)[1]


def was_killed(status):
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def parsed():
    """The arguments of a script that disturbs runs at many places."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth place of each kind")
    return parser.parse_args()


def spread(places, kind, every):
    """The first of each kind of place, and every `every`th of the kind after it."""
    seen = collections.Counter()
    chosen = []
    for place in places:
        if seen[kind(place)] % every == 0:
            chosen.append(place)
        seen[kind(place)] += 1
    return chosen


def kind_of(place, calls):
    """The name of the call, and where in it: before it, after nothing or one byte of it, or later."""
    call, how = place
    return calls[call][0], how if how in ("before", 0, 1) else "later"


def main(root, seed, every):
    root.mkdir(exist_ok=True)
    calls = recorded_calls(lambda: train(root / "undisturbed"))
    expected = result(root / "undisturbed")
    draw = random.Random(seed)
    writes = [(call, size) for call, (name, size) in enumerate(calls) if name == "write"]
    # Every call but writes; of a checkpoint in the middle every write too: before it, after one byte, before the last.
    folders = [call for call, (name, _) in enumerate(calls) if name == "mkdir"]
    middle = range(folders[-4], folders[-3])
    places = [(call, "before") for call, (name, _) in enumerate(calls) if name != "write" or call in middle]
    places += [(call, cut) for call, size in writes for cut in {1, size - 1} if call in middle and 0 < cut < size]
    weights = [size for _, size in writes]
    places += [(call, draw.randrange(size)) for call, size in draw.choices(writes, weights, k=RANDOM_PLACES)]
    places += [(call, 0) for call, (name, _) in enumerate(calls) if name == "rmtree"]
    places = spread(places, lambda place: kind_of(place, calls), every)
    moments = range(0, RANDOM_MOMENTS, every)
    lost, missed, seconds = [], [], 0.0
    for number, place in enumerate([*places, *moments]):
        folder = root / str(number)

        def disturbed(folder=folder, place=place):
            with watching(killer(*place)):
                train(folder)

        if isinstance(place, tuple):
            if not was_killed(in_child(disturbed)):
                missed.append(place)
        else:
            # A random moment, with saving in the background. What is checked holds at any moment, even after the end.
            in_child(lambda folder=folder: train(folder), signalled_after=draw.uniform(0, seconds))
        if number % 4 == 0:  # killed once more, unless the run ends before
            in_child(functools.partial(disturbed, place=(draw.randrange(len(calls)), "before")))
        start_time = time.monotonic()
        ended = in_child(lambda folder=folder: train(folder))
        left = [path for path in folder.rglob(".*") if path.name != ".lock"]
        if ended != 0 or result(folder) != expected or left:
            lost.append(place)
        seconds = max(seconds, time.monotonic() - start_time)
        shutil.rmtree(folder)
    print(f"{len(places)} places and {len(moments)} moments tried, {len(missed)} missed, {len(lost)} lost", *lost)
    return 1 if lost or missed else 0


if __name__ == "__main__":
    given = parsed()
    sys.exit(main(given.folder, given.seed, given.every))
