"""`ftrain fit` end to end against a hand-written script, and against Lightning where it is installed.

    python benchmarks/fit.py FOLDER [--epochs 3] [--size 64] [--batch 64] [--rounds 3]

FOLDER contains train/ and val/ with a folder per class. All train resnet18 with AdamW on random resized crops with
horizontal flips, normalized, with two worker processes. Each round runs all in turn, each in its own process. Images
per second are those of the training part of an epoch: the first, and the mean of the others. The bare step is ftrain's
on a batch in memory, measured before and after ftrain's run. Targets: 1.3 times the script in the first epoch, and 0.95
of the bare step from the second on.
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
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORKERS = 2


def loader(options):
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(options.size, scale=(0.35, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    images = torchvision.datasets.ImageFolder(Path(options.folder) / "train", transform)
    return images, torch.utils.data.DataLoader(
        images, options.batch, shuffle=True, num_workers=WORKERS, drop_last=True, persistent_workers=True
    )


def by_script(options):
    images, batches = loader(options)
    network = torchvision.models.resnet18(num_classes=len(images.classes))
    optimizer = torch.optim.AdamW(network.parameters())
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    rates = []
    for _ in range(options.epochs):
        start = time.perf_counter()
        for inputs, labels in batches:
            optimizer.zero_grad()
            loss(network(inputs), labels).backward()
            optimizer.step()
        rates.append(len(batches) * options.batch / (time.perf_counter() - start))
    return rates


def by_lightning(options):
    import lightning

    images, batches = loader(options)
    rates = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = torchvision.models.resnet18(num_classes=len(images.classes))

        def training_step(self, batch, _):
            return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1], label_smoothing=0.1)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

        def on_train_epoch_start(self):
            self.start = time.perf_counter()

        def on_train_epoch_end(self):
            rates.append(len(batches) * options.batch / (time.perf_counter() - self.start))

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    lightning.Trainer(max_epochs=options.epochs, accelerator=options.device, **quiet).fit(Module(), batches)
    return rates


def by_ftrain(options):
    from ftrain.run import provenance
    from ftrain.run.events import EpochEnded, Evaluating
    from ftrain.run.fit import fit
    from ftrain.run.resolve import resolve
    from ftrain.run.settings import Settings

    settings = Settings(
        drop_last=True,
        model="resnet18",
        data=options.folder,
        epochs=options.epochs,
        image_size=options.size,
        batch_size=options.batch,
        workers=WORKERS,
        device=options.device,
        cache=options.cache,
    )
    spec, images = resolve(settings)
    with tempfile.TemporaryDirectory() as folder:
        run = provenance.new_run(spec, images, Path(folder) / "run", [])
        start = time.perf_counter()  # so that what decodes into the cache counts in the first epoch
        rates = []
        for event in fit(run, spec, images):
            if isinstance(event, Evaluating):
                steps = images.pace.steps(1)
                rates.append(steps * options.batch / (time.perf_counter() - start))
            elif isinstance(event, EpochEnded):
                start = time.perf_counter()
    return rates


def by_bare_step(options):
    import ftrain

    classes = len(os.listdir(Path(options.folder) / "train"))
    apply, params, buffers = ftrain.functionalize(torchvision.models.resnet18(num_classes=classes).to(options.device))
    apply = ftrain.normalized(apply, mean=MEAN, std=STD)
    optimizer = ftrain.adamw(1e-3)
    step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer, skip_nonfinite=True, donate=True)
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    shape = (options.batch, 3, options.size, options.size)
    images = torch.randint(256, shape, dtype=torch.uint8, device=options.device)
    batch = images, torch.randint(classes, shape[:1], device=options.device)
    rates = []
    for _ in range(2):
        start = time.perf_counter()
        for _ in range(options.steps):
            state, _ = step(state, batch)
        state.step.item()
        rates.append(options.steps * options.batch / (time.perf_counter() - start))
    return rates


WAYS = {
    "script": by_script,
    "bare step": by_bare_step,
    "ftrain": by_ftrain,
    "bare step again": by_bare_step,
    "lightning": by_lightning,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    for name, default in (("epochs", 3), ("size", 64), ("batch", 64), ("rounds", 3), ("steps", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", default="ram")
    parser.add_argument("--way")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(WAYS[options.way](options)))
        return
    ways = [way for way in WAYS if way != "lightning" or _has("lightning")]
    print(f"torch {torch.__version__}, {options.device}, {os.cpu_count()} cores, {platform.machine()}")
    print(f"resnet18, {options.size} px, batch {options.batch}, {WORKERS} workers, {options.rounds} rounds")
    rounds = []
    for number in range(options.rounds):
        found = {}
        for way in ways:
            done = subprocess.run(
                [sys.executable, *sys.argv, "--way", way], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
            )
            rates = json.loads(done.stdout.splitlines()[-1])
            found[way] = rates[0], statistics.mean(rates[1:])
        found["bare"] = tuple(map(statistics.mean, zip(found["bare step"], found["bare step again"], strict=True)))
        rounds.append(found)
        print(f"round {number + 1}: " + "  ".join(f"{w} {a:.1f} {b:.1f}" for w, (a, b) in found.items()), flush=True)

    def ratio(way, other, part, other_part):
        return statistics.median(found[way][part] / found[other][other_part] for found in rounds)

    print(f"first epoch:   {ratio('ftrain', 'script', 0, 0):.2f} x the script")
    print(f"later epochs:  {ratio('ftrain', 'script', 1, 1):.2f} x the script")
    print(f"later epochs:  {ratio('ftrain', 'bare', 1, 1):.2f} x the bare step")
    if "lightning" in ways:
        print(f"first epoch:   {ratio('ftrain', 'lightning', 0, 0):.2f} x Lightning")
        print(f"later epochs:  {ratio('ftrain', 'lightning', 1, 1):.2f} x Lightning")


def _has(package):
    import importlib.util

    return importlib.util.find_spec(package) is not None


if __name__ == "__main__":
    main()
