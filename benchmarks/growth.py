"""Whether the time or memory of `ftrain fit` per image grows with the number of images or the length of a run.

    python benchmarks/growth.py [--epochs 20]

MODEL trains at 32 px, batch 64, without a cache, on folders of 1,000, 10,000 and 100,000 images (hard links to a few
JPEG files of 48 px, in ten classes), each in its own process, until it has seen the same number of images. Then come 20
epochs of 5,000 images. Images per second are those of the training part of an epoch, the median over the epochs;
resident memory is the peak of the main process. Target: both are equal to within 5 %.
"""

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

MODEL = "shufflenet_v2_x0_5"
SIZES = (1_000, 10_000, 100_000)
SEEN = 100_000  # images, whatever the folder's size
LONG = 5_000  # images of an epoch in the long run
AHEAD = 5  # steps of an epoch that are not timed, because their batches were made while the one before was evaluated


def make(folder, count):
    noise = np.random.default_rng(0)
    pictures = []
    for _ in range(64):
        file = io.BytesIO()
        coarse = noise.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC).save(file, "JPEG")
        pictures.append(file.getvalue())
    for split, number in (("train", count), ("val", 100)):
        first = {}
        for position in range(number):
            path = Path(folder, split, str(position % 10), f"{position}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            which = position % 64
            if which in first:
                os.link(first[which], path)
            else:
                path.write_bytes(pictures[which])
                first[which] = path


def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3


def measure(folder, epochs):
    """In its own process: images per second of every epoch, and resident MB at its end."""
    from ftrain.run import provenance
    from ftrain.run.events import EpochEnded, Evaluating, StepTaken
    from ftrain.run.fit import fit
    from ftrain.run.resolve import resolve
    from ftrain.run.settings import Settings

    settings = Settings(
        drop_last=True,
        model=MODEL,
        data=folder,
        epochs=epochs,
        image_size=32,
        batch_size=64,
        device="cpu",
        cache="none",
        workers=1,
    )
    spec, images = resolve(settings)
    rates, memory = [], []
    with tempfile.TemporaryDirectory() as runs:
        run = provenance.new_run(spec, images, Path(runs) / "run", [])
        for event in fit(run, spec, images):
            if isinstance(event, StepTaken) and (event.step - 1) % images.pace.steps(1) == AHEAD:
                start = time.perf_counter()
            elif isinstance(event, Evaluating):
                rates.append((images.pace.steps(1) - 1 - AHEAD) * 64 / (time.perf_counter() - start))
            elif isinstance(event, EpochEnded):
                memory.append(status("VmRSS"))
    print(json.dumps({"rates": rates, "memory": memory, "peak": status("VmHWM")}))


def measured(count, epochs):
    with tempfile.TemporaryDirectory() as folder:
        make(folder, count)
        command = [sys.executable, __file__, "--measure", folder, "--epochs", str(epochs)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20, help="2 or more")
    parser.add_argument("--measure")
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.epochs)
        return
    print(f"torch {torch.__version__}, cpu, {os.cpu_count()} cores, {platform.machine()}")
    print(f"{MODEL}, 32 px, batch 64, one worker, no cache")
    first = None
    for count in SIZES:
        found = measured(count, max(1, SEEN // count))
        rate, peak = statistics.median(found["rates"]), found["peak"]
        first = first or (rate, peak)
        growth = f"{rate / first[0]:.2f} x images/s, {peak / first[1]:.2f} x memory"
        print(f"{count:>7} images: {rate:6.0f} images/s   {peak:5.0f} MB   {growth}", flush=True)
    found = measured(LONG, options.epochs)
    rates, memory = found["rates"], found["memory"]
    half = len(rates) // 2
    for epoch in sorted({1, 2, half, len(rates)}):
        print(f"  epoch {epoch:>3}: {rates[epoch - 1]:6.0f} images/s   {memory[epoch - 1]:5.0f} MB")
    early, late = statistics.median(rates[:half]), statistics.median(rates[half:])
    print(f"second half of {len(rates)} epochs by the first: {late / early:.2f} x images/s")
    print(f"last epoch by the second: {memory[-1] / memory[1]:.2f} x memory")


if __name__ == "__main__":
    main()
