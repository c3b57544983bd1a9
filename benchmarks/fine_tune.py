"""ftrain's fine-tuning by default against fastai's `fine_tune` and timm's training script, for equal epochs.

    python benchmarks/fine_tune.py FOLDER --weights FILE [--photographs 300] [--epochs 6] [--seeds 0,1,2] [--size 128]
        [--trainers ftrain,fastai,timm] [--timm-lr 5e-4] [--set NAME=VALUE ...]

FOLDER contains train/ and val/ with a folder per class. FILE has weights of timm's tf_efficientnet_lite0, which all
start from. With --photographs, all train on the same part of train/, drawn evenly from its classes. For each seed, the
trainers run in turn, each in a process of its own; the table has the validation accuracy after the last epoch, and the
time of the whole process.

- ftrain: `ftrain.fit` with its defaults; --set changes settings, for an ablation.
- fastai: `vision_learner` and `fine_tune(epochs - 1)` (one epoch of the head, the rest of everything) with its default
  settings; items resized to twice the size, then `aug_transforms(size, min_scale=0.75)`, as its book recommends.
- timm: the parts and defaults of its train.py (random resized crops, flips, colour jitter, smoothing 0.1) with the
  usual settings for fine-tuning: AdamW, weight decay 0.05, layer decay 0.75, a cosine with one epoch of warm-up,
  batches of 32. The learning rate is --timm-lr, the best of some at 300 photographs.

Targets: at 300 and at 3,068 photographs a higher mean accuracy than both, with a smaller spread over the seeds, in at
most two thirds of the time.
"""

import argparse
import ast
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

MODEL = "tf_efficientnet_lite0"
WORKERS = 2


def by_ftrain(options, folder):
    import ftrain

    settings = dict(pair.split("=", 1) for pair in options.set)
    with tempfile.TemporaryDirectory() as out:
        run = ftrain.fit(
            out=Path(out) / "run",
            **{
                "data": folder,
                "model": f"timm/{MODEL}",
                "weights": options.weights,
                "image_size": options.size,
                "workers": WORKERS,
                "epochs": options.epochs,
                "seed": options.seed,
                **{name: literal(value) for name, value in settings.items()},
            },
        )
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [line["val"]["accuracy"] for line in lines if line["kind"] == "epoch"]


def literal(value):
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def by_fastai(options, folder):
    from fastai.vision.all import ImageDataLoaders, Resize, accuracy, aug_transforms, set_seed, vision_learner

    set_seed(options.seed, reproducible=True)
    data = ImageDataLoaders.from_folder(
        folder,
        train="train",
        valid="val",
        item_tfms=Resize(2 * options.size),
        batch_tfms=aug_transforms(size=options.size, min_scale=0.75),
        num_workers=WORKERS,
    )
    with tempfile.TemporaryDirectory() as out:
        source = {"file": options.weights}
        learner = vision_learner(data, MODEL, metrics=accuracy, path=out, pretrained_cfg_overlay=source)
        with learner.no_bar(), learner.no_logging():
            learner.fine_tune(options.epochs - 1)
        return [values[-1] for values in learner.recorder.values]


def by_timm(options, folder):
    import timm
    import torch
    import torchvision
    from timm.data import create_dataset, create_loader, resolve_model_data_config
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import random_seed

    random_seed(options.seed)
    classes = len(torchvision.datasets.ImageFolder(folder / "train").classes)
    network = timm.create_model(
        MODEL, pretrained=True, pretrained_cfg_overlay={"file": options.weights}, num_classes=classes
    )
    config = resolve_model_data_config(network)
    shared = {
        "input_size": (3, options.size, options.size),
        "mean": config["mean"],
        "std": config["std"],
        "interpolation": config["interpolation"],
        "num_workers": WORKERS,
        "use_prefetcher": False,
        "device": torch.device("cpu"),
    }
    train = create_loader(
        create_dataset("", folder / "train"), batch_size=32, is_training=True, **{**shared, "interpolation": "random"}
    )
    val = create_loader(create_dataset("", folder / "val"), batch_size=64, crop_pct=config["crop_pct"], **shared)
    optimizer = create_optimizer_v2(network, "adamw", lr=options.timm_lr, weight_decay=0.05, layer_decay=0.75)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=options.epochs,
        warmup_epochs=1,
        warmup_lr=1e-6,
        warmup_prefix=False,
        step_on_epochs=False,
        updates_per_epoch=len(train),
    )
    loss = LabelSmoothingCrossEntropy(0.1)
    accuracies, step = [], 0
    for _ in range(options.epochs):
        network.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss(network(images), labels).backward()
            optimizer.step()
            step += 1
            scheduler.step_update(step)
        network.eval()
        with torch.no_grad():
            right = torch.cat([network(images).argmax(1) == labels for images, labels in val])
        accuracies.append(right.float().mean().item())
    return accuracies


TRAINERS = {"ftrain": by_ftrain, "fastai": by_fastai, "timm": by_timm}


def part(source, count, folder):
    """Links to `count` of the training images, evenly from the classes and always the same, and to all of val/."""
    by_class = {each.name: sorted(each.iterdir()) for each in sorted((source / "train").iterdir())}
    total = sum(map(len, by_class.values()))
    for name, files in by_class.items():
        files.sort(key=lambda file: hashlib.sha256(file.name.encode()).digest())
        target = folder / "train" / name
        target.mkdir(parents=True)
        for file in files[: max(1, round(len(files) * count / total))] if count else files:
            (target / file.name).symlink_to(file)
    (folder / "val").symlink_to(source / "val", target_is_directory=True)
    return sum(1 for _ in folder.glob("train/*/*"))


def measured(trainer, seed, folder, arguments):
    command = [sys.executable, __file__, *arguments, "--one", trainer, "--seed", str(seed), "--part", str(folder)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{trainer} failed:\n{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.splitlines()[-1])[-1], seconds, cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--photographs", type=int, default=0, help="train on that many; 0 for all")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--trainers", default="ftrain,fastai,timm")
    parser.add_argument("--timm-lr", type=float, default=5e-4)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    for hidden in ("--one", "--seed", "--part"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        options.seed = int(options.seed)
        print(json.dumps(TRAINERS[options.one](options, Path(options.part))))
        return
    import torch

    found = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        count = part(Path(options.folder).resolve(), options.photographs, Path(temporary))
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
        settings = " ".join(options.set) or "defaults"
        print(f"{count} photographs, {options.size} px, {options.epochs} epochs; ftrain: {settings}", flush=True)
        for seed in map(int, options.seeds.split(",")):
            for trainer in options.trainers.split(","):
                accuracy, seconds, cpu = measured(trainer, seed, temporary, sys.argv[1:])
                found[trainer].append((accuracy, seconds, cpu))
                print(f"  seed {seed}  {trainer:7} {accuracy:6.1%}  {seconds:5.0f} s  (CPU {cpu:.0f} s)", flush=True)
    for trainer, rows in found.items():
        accuracies, seconds, cpu = zip(*rows, strict=True)
        spread = max(accuracies) - min(accuracies)
        print(
            f"{trainer:7} mean {statistics.mean(accuracies):.1%}, spread {spread:.1%}, "
            f"{statistics.mean(seconds):.0f} s, CPU {statistics.mean(cpu):.0f} s"
        )


if __name__ == "__main__":
    main()
