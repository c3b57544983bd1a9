"""How much faster an epoch is on features of a frozen backbone that are computed once, in turns with the whole network.

    python benchmarks/feature_cache.py FOLDER WEIGHTS [--sizes 128,224] [--rounds 3] [--per-class N]

FOLDER contains train/ and val/ with a folder per class. WEIGHTS are those of timm's tf_efficientnet_lite0. Both runs
are `ftrain fit --freeze backbone --no-flip --crop-scale 1 --device cpu` in batches of 32 with one thread, and end each
epoch with a validation and a checkpoint; the other one has --no-feature-cache, and decoded images in memory. An epoch
is timed from the end of the one before, or from the start of training; computing the features comes before, and is
timed for itself. A round runs one epoch of the whole network and 10 epochs on features, of which the median counts; the
results are medians over the rounds. --per-class takes only so many images of each class for training.

Target: 50 x.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

import ftrain
from ftrain.run.events import ComputingFeatures, EpochEnded, Started

torch.set_num_threads(1)


def seconds_of_epochs(folder, weights, size, epochs, feature_cache):
    """Seconds of computing features, and of each epoch; and the last event."""
    with tempfile.TemporaryDirectory() as out:
        settings = {
            "model": "timm/tf_efficientnet_lite0",
            "weights": weights,
            "data": str(folder),
            "image_size": size,
            "epochs": epochs,
            "warmup_epochs": 0,
            "batch_size": 32,
            "freeze": "backbone",
            "flip": False,
            "crop_scale": 1.0,
            "cache": "ram",
            "workers": 1,
            "device": "cpu",
            "feature_cache": feature_cache,
            "out": f"{out}/run",
        }
        times, began, computing = [], 0.0, 0.0
        for event in ftrain.events(**settings):
            match event:
                case ComputingFeatures(0):
                    computing -= time.perf_counter()
                case Started():
                    began = time.perf_counter()
                    computing += began if computing else 0.0
                case EpochEnded():
                    times.append(time.perf_counter() - began)
                    began, last = time.perf_counter(), event
    return computing, times, last


def some_of(folder, per_class, target):
    """A folder with links to all validation images, and to the first training images of each class."""
    (target / "train").mkdir()
    (target / "val").symlink_to(folder / "val")
    for label in sorted((folder / "train").iterdir()):
        (target / "train" / label.name).mkdir()
        for image in sorted(label.iterdir())[:per_class]:
            (target / "train" / label.name / image.name).symlink_to(image)
    return target


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--sizes", default="128,224")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=0)
    options = parser.parse_args()
    print(
        f"ftrain {ftrain.__version__}, torch {torch.__version__}, Python {platform.python_version()}, one thread, "
        f"{options.rounds} rounds"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder.resolve()
        if options.per_class:
            folder = some_of(folder, options.per_class, Path(name))
        count = sum(1 for split in ("train", "val") for _ in (folder / split).glob("*/*"))
        print(f"{count} images, for training and for validation")
        for size in map(int, options.sizes.split(",")):
            whole, cached, computing = [], [], []
            for _ in range(options.rounds):
                _, [seconds], one = seconds_of_epochs(folder, options.weights, size, 1, False)
                whole.append(seconds)
                seconds, epochs, _ = seconds_of_epochs(folder, options.weights, size, 10, True)
                cached.append(statistics.median(epochs))
                computing.append(seconds)
            _, _, other = seconds_of_epochs(folder, options.weights, size, 1, True)
            difference = abs(one.val["loss"] - other.val["loss"])
            print(f"\n{size} px")
            print(f"  an epoch of the whole network   {statistics.median(whole):8.2f} s")
            print(f"  computing the features once     {statistics.median(computing):8.2f} s")
            print(f"  an epoch on features            {statistics.median(cached):8.3f} s")
            ratio = statistics.median(one / two for one, two in zip(whole, cached, strict=True))
            print(f"  ratio                           {ratio:8.0f} x")
            print(f"  validation loss after one epoch {one.val['loss']:.6f}, on features {difference:.1e} away from it")


if __name__ == "__main__":
    main()
