"""ftrain's training step against a hand-written PyTorch loop, on the same numbers.

    python benchmarks/step.py [--models resnet18,...] [--rounds 7] [--compile]

The loop ("hand"): zero_grad, forward, backward, torch.optim.AdamW with its defaults. ftrain: `train_step` with
donate=True ("donated") and, for memory only, with donate=False ("kept"). All take the same steps from the same weights
on float images in memory, each in its own process, so that none reuses memory that another has freed. Each round runs
them in turn, STEPS steps of each. The ratio is the median over the rounds of ftrain's time divided by the loop's. The
loop uses the default contiguous layout, and ftrain the layout that `ftrain fit` chooses; where that is channels last,
the loop is also measured with it. With --compile the compiled step is measured too, with the time of its first call:
cold with an empty cache, warm in a new process with a filled one. Memory is the peak of a separate process, above what
it uses with all code loaded but before it builds the network. Targets, for the better of eager and compiled: 0.95, and
0.55 for mobilenet_v3_small compiled; memory 1.05 with donation. --models accepts any other torchvision model, which
runs at 64 px in batches of 32.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision

import ftrain
from ftrain import models
from ftrain.run import kernels

OTHERS = 64, 32, {}
CASES = {  # side in pixels, batch, options of the model
    "resnet18": (64, 32, {}),
    "resnet34": (32, 64, {}),
    "mobilenet_v3_small": (64, 64, {}),
    "vit_b_16": (64, 8, {"image_size": 64}),
}
STEPS = 4


def parts(name):
    side, batch, options = CASES.get(name, OTHERS)
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    return network, (torch.randn(batch, 3, side, side), torch.randint(10, (batch,)))


def channels_last(network, batch):
    images, labels = batch
    return network.to(memory_format=torch.channels_last), (images.to(memory_format=torch.channels_last), labels)


def by_hand(network, batch, *, last=False):
    network, (images, labels) = channels_last(network, batch) if last else (network, batch)
    optimizer = torch.optim.AdamW(network.parameters())
    loss = torch.nn.CrossEntropyLoss()

    def step():
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()

    return step


def by_ftrain(network, batch, *, last=False, donate=True, compile=False):
    network, batch = channels_last(network, batch) if last else (network, batch)
    apply, params, buffers = ftrain.functionalize(network)
    del network
    optimizer = ftrain.adamw(1e-3)
    train = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer)
    train = ftrain.compile_step(train, donate=donate) if compile else functools.partial(train, donate=donate)
    states = [ftrain.init_state(params, buffers, optimizer, seed=0)]
    del params, buffers

    def step():
        state, metrics = train(states.pop(), batch)
        states.append(state)
        return metrics

    return step


WAYS = {
    "hand": by_hand,
    "hand, last": functools.partial(by_hand, last=True),
    "donated": by_ftrain,
    "kept": functools.partial(by_ftrain, donate=False),
    "compiled": functools.partial(by_ftrain, compile=True),
}


def timed(step, count):
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3


def made(name, way):
    """A step of a network."""
    last = kernels.memory_format(models.convolutions(name), torch.device("cpu")) == "channels_last"
    options = {"last": last} if WAYS[way] is not by_hand else {}
    return WAYS[way](*parts(name), **options)


def serve(name, way):
    """In its own process: for each line with a number, takes that many steps and prints the seconds per step."""
    step = made(name, way)
    for line in sys.stdin:
        print(timed(step, int(line)), flush=True)


class Served:
    """Steps taken in another process."""

    def __init__(self, name, way):
        command = [sys.executable, __file__, "--serve", name, way]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def timed(self, count):
        print(count, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def probe(name, way):
    """In its own process: peak memory in MB, and seconds of the first call."""
    for either in (by_hand, by_ftrain):  # loads the code that is loaded on first use
        small = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(8, 2)
        )
        either(small, (torch.randn(2, 3, 3, 3), torch.arange(2)))()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    step = made(name, way)
    first = timed(step, 1)
    timed(step, 3)
    print(json.dumps({"memory": status("VmHWM") - before, "first": first}))


def probed(name, way, **environment):
    command = [sys.executable, __file__, "--probe", name, way]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--probe", nargs=2)
    parser.add_argument("--serve", nargs=2)
    options = parser.parse_args()
    if options.probe:
        probe(*options.probe)
        return
    if options.serve:
        serve(*options.serve)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    print(f"{options.rounds} rounds of {STEPS} steps; milliseconds a step, MB at the peak")
    for name in options.models.split(","):
        side, batch, _ = CASES.get(name, OTHERS)
        layout = kernels.memory_format(models.convolutions(name), torch.device("cpu"))
        ways = ["hand", *(["hand, last"] if layout == "channels_last" else []), "donated"]
        ways += ["compiled"] if options.compile else []
        print(f"{name}, {side} px, batch {batch}; ftrain {layout.replace('_', ' ')}", flush=True)
        with tempfile.TemporaryDirectory() as cache:
            if options.compile:
                # Its own cache, so that the first call is cold.
                cold = probed(name, "compiled", TORCHINDUCTOR_CACHE_DIR=cache)["first"]
                warm = probed(name, "compiled", TORCHINDUCTOR_CACHE_DIR=cache)["first"]
                print(f"  compiling: {cold:.0f} s cold, {warm:.0f} s warm", flush=True)
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            served = {way: Served(name, way) for way in ways}
            for steps in served.values():
                steps.timed(3)
            rounds = [{way: steps.timed(STEPS) for way, steps in served.items()} for _ in range(options.rounds)]
            for steps in served.values():
                steps.end()
        for way in ways:
            ratio = statistics.median(times[way] / times["hand"] for times in rounds)
            middle = statistics.median(times[way] for times in rounds)
            print(f"  {way:<10} {1e3 * middle:8.1f} ms   {ratio:5.2f} x the loop", flush=True)
        memory = {way: probed(name, way)["memory"] for way in ("hand", "donated", "kept")}
        for way, peak in memory.items():
            print(f"  {way:<10} {peak:8.0f} MB   {peak / memory['hand']:5.2f} x the loop", flush=True)


if __name__ == "__main__":
    main()
