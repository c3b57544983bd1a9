"""Images per second of ftrain's input pipeline and of torchvision's, in turn, on the same folder with the same workers.

    python benchmarks/input_pipeline.py FOLDER [--workers 2] [--rounds 3] [--sizes 64,128,224]

FOLDER contains train/ with a folder per class. torchvision's pipeline is ImageFolder, RandomResizedCrop,
RandomHorizontalFlip, ToImage, ToDtype, Normalize and a DataLoader with persistent workers. Both crop 0.35 to 1 of the
area, in batches of 64. "first" is an epoch from the files, including the start of the workers; "cached" is a later
epoch of decoded images in a cache on disk. A round runs each once; the results are medians over the rounds. Every file
is read once before, so that it is in the page cache.

Targets with 2 workers on 2 cores, on images of about 400 x 533 px: first 1.5 x torchvision's at 224 px, 2 x at 128,
2.5 x at 64; cached 5 x; memory constant over epochs.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import PIL
import platformdirs
import torch
import torchvision
from torchvision.transforms import v2

import ftrain
from ftrain.data import Augmentation, Images, load, scan
from ftrain.data.cache import build_cache

BATCH, CROP, EPOCHS = 64, 0.35, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def reference_loader(folder, size, workers):
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(CROP, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    data = torchvision.datasets.ImageFolder(folder, transform)
    return torch.utils.data.DataLoader(
        data, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )


def seconds_of(batches):
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def resident():
    """Memory of this process and its workers without pages of files, in bytes."""
    pids = [os.getpid(), *map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]
    total = 0
    for pid in pids:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        total += 1024 * int(fields["RssAnon"].split()[0])
    return total


def later_epochs(images, workers):
    """Seconds of each epoch after the first of one run of the loader, and the memory at the end of each."""
    jobs = [job for epoch in range(EPOCHS) for job in images.train_jobs(epoch)]
    times, memory = [], []
    start = time.perf_counter()
    for number, _ in enumerate(load(images, jobs, workers=workers), start=1):
        if number % images.pace.steps(1) == 0:
            times.append(time.perf_counter() - start)
            memory.append(resident())
            start = time.perf_counter()
    return times[1:], memory


def measure(folder, size, workers, rounds):
    train = scan(folder / "train")
    augmentation = Augmentation(crop_scale=CROP)
    images = Images(
        train=train, val=train, batch_size=BATCH, image_size=size, augmentation=augmentation, drop_last=True
    )
    count = images.pace.steps(1) * BATCH
    rates = {"reference, first": [], "reference, later": [], "ftrain, first": [], "ftrain, cached": []}
    cache = None
    for _ in range(rounds):
        reference = reference_loader(folder / "train", size, workers)
        rates["reference, first"].append(count / seconds_of(reference))
        rates["reference, later"].append(count / seconds_of(reference))
        del reference
        rates["ftrain, first"].append(count / seconds_of(load(images, images.train_jobs(0), workers=workers)))
        if cache is None:
            start = time.perf_counter()
            building = build_cache(train, images.train_cache_format, "disk", workers=workers)
            while cache is None:
                try:
                    next(building)
                except StopIteration as end:
                    cache = end.value
            build = time.perf_counter() - start
        cached = Images(
            train=train, val=train, batch_size=BATCH, image_size=size, augmentation=augmentation, train_cache=cache
        )
        times, memory = later_epochs(cached, workers)
        rates["ftrain, cached"].extend(count / seconds for seconds in times)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"\n{size} px                images/s   x torchvision's")
    for name, rate in medians.items():
        other = medians["reference, later" if name in ("ftrain, cached", "reference, later") else "reference, first"]
        print(f"  {name:<18} {rate:9.0f}   {rate / other:6.2f}")
    print(f"  caching {len(train)} images: {build:.1f} s, {cache.plan.bytes / 1e6:.0f} MB")
    print("  memory after each epoch, MB:", *(f"{value / 1e6:.0f}" for value in memory))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("--workers", type=int, default=2)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--sizes", default="64,128,224")
options = parser.parse_args()
print(
    f"ftrain {ftrain.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow "
    f"{PIL.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, {options.workers} workers, "
    f"{options.rounds} rounds"
)
with tempfile.TemporaryDirectory() as cache_folder:
    platformdirs.user_cache_path = lambda _: Path(cache_folder)
    files = scan(options.folder / "train")
    total = sum(len(Path(files.image_name(position)).read_bytes()) for position in range(len(files)))
    print(f"{len(files)} images, {total / 1e6:.0f} MB")
    for size in map(int, options.sizes.split(",")):
        measure(options.folder, size, options.workers, options.rounds)
