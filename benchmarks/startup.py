"""The startup time of ftrain, against that of the work that cannot be avoided: medians of runs in turn, and ratios.

    python benchmarks/startup.py [--runs 10]

`ftrain --help` is compared with the help of an empty Typer app. `ftrain fit` on 500 small images, up to the end of its
first step, is compared with importing torch and torchvision, building the same network and one step of a hand-written
loop on a batch in memory (resnet18, 64 px, batch 32, on the CPU). ftrain must be installed in the interpreter that runs
this. Target: at most 1.5 for both.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

EMPTY = "import typer; app = typer.Typer(); app.command()(lambda: None); app(prog_name='empty')"
HELP = "from ftrain_cli.main import app; app(prog_name='ftrain')"
BARE = """
import torch, torchvision
network = torchvision.models.resnet18(num_classes=10)
optimizer = torch.optim.AdamW(network.parameters())
loss = torch.nn.functional.cross_entropy(network(torch.randn(32, 3, 64, 64)), torch.randint(10, (32,)))
loss.backward()
optimizer.step()
"""
FIT = """
import os
from ftrain.run import session

def first(*_):
    os._exit(0)

session.StepTaken = first
from ftrain_cli.main import app
app(prog_name='ftrain')
"""


def seconds(code, *arguments, folder=None):
    start = time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def make_images(folder):
    noise = np.random.default_rng(0)
    for split, count in (("train", 450), ("val", 50)):
        for number in range(count):
            path = Path(folder, split, str(number % 10), f"{number}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(noise.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            coarse.resize((320, 240), Image.Resampling.BICUBIC).save(path)


def compare(runs, *pair):
    """Prints the medians of both, run in turn, and their ratio. The first turn fills the caches and does not count."""
    times = [[one() for one in pair] for _ in range(runs + 1)][1:]
    names = ("without ftrain", "ftrain")
    middles = [statistics.median(column) for column in zip(*times, strict=True)]
    for name, middle in zip(names, middles, strict=True):
        print(f"  {name:16}{middle * 1e3:8.0f} ms")
    print(f"  {'ratio':16}{statistics.median(ours / bare for bare, ours in times):8.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    print(f"Python {platform.python_version()}, {platform.machine()}, {runs} runs in turn")
    print("--help")
    compare(runs, lambda: seconds(EMPTY, "--help"), lambda: seconds(HELP, "--help"))
    print("the first step")
    with tempfile.TemporaryDirectory() as folder:
        make_images(folder)
        sizes = ["--model", "resnet18", "--image-size", "64", "--batch-size", "32", "--device", "cpu"]
        sizes += ["--workers", "0"]  # workers would outlive the process, which ends abruptly
        options = ["fit", "--data", folder, *sizes]
        compare(runs, lambda: seconds(BARE), lambda: seconds(FIT, *options, folder=folder))


if __name__ == "__main__":
    main()
