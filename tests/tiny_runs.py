"""Short runs: two epochs of four steps over images of 8 px, with a network that has everything a state can contain.
A checkpoint is saved every second step and at the end of every epoch."""

import contextlib
import hashlib
import json

import numpy as np
import torch

from ftrain import models
from ftrain.data import from_arrays
from ftrain.data.augment import Augmentation
from ftrain.data.images import Images
from ftrain.disk import checkpoint
from ftrain.run import folder as run_folder
from ftrain.run import provenance
from ftrain.run.fit import fit
from ftrain.run.settings import Settings
from ftrain.run.spec import RunSpec

STEPS = 8


def network(name, *, classes, image_size, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, stride=2),
            torch.nn.BatchNorm2d(4),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(4 * 3 * 3, classes),
        )


@contextlib.contextmanager
def tiny_network():
    """Replaces torchvision's models with `network`."""
    build, models.build = models.build, network
    try:
        yield
    finally:
        models.build = build


def images(multi_label=False, **changes):
    noise = np.random.default_rng(0)
    pixels = noise.integers(0, 256, (18, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(18) % 2
    if multi_label:
        labels = np.stack([labels, np.arange(18) % 3 == 0], axis=1)
    classes = ("even", "odd")
    return Images(
        train=from_arrays(pixels[:13], labels[:13], classes=classes),
        val=from_arrays(pixels[13:], labels[13:], classes=classes),
        batch_size=3,
        eval_batch_size=3,
        image_size=8,
        augmentation=Augmentation(crop_scale=0.5),
        **{"drop_last": True, **changes},
    )


def settings(**changes):
    options = {
        "epochs": 2,
        "batch_size": 3,
        "eval_batch_size": 3,
        "image_size": 8,
        "crop_scale": 0.5,
        "lr": 0.01,
        "weight_decay": 0.05,
        "warmup_epochs": 1,
        "workers": 0,
        "device": "cpu",
        "precision": "float32",
        "compile": False,
        "cache": "none",
        "log_every": 3,
        "checkpoint_every": 2,
    }
    return Settings(**{**options, **changes})


def spec(**changes):
    return RunSpec.of(settings(**changes), classes=("even", "odd"), class_counts=(7, 6))


def start_or_resume(folder, **changes):
    """The run in a folder, its spec and its images, as `ftrain fit --resume auto` opens them. Lock the folder first."""
    wanted, batches = spec(**changes), images()
    if run_folder.is_started(folder):
        return provenance.resumed_run(run_folder.read(folder), wanted, batches, ["ftrain"]), wanted, batches
    return provenance.new_run(wanted, batches, folder, ["ftrain"]), wanted, batches


def train(folder, **changes):
    """Starts or resumes a run, trains it to its end, and returns all its events."""
    with tiny_network(), run_folder.lock(folder):
        return list(fit(*start_or_resume(folder, **changes)))


def result(folder):
    """The SHA-256 of the result of a run: its last state to the bit, and the lines of its metrics without times."""
    digest = hashlib.sha256()
    last = checkpoint.find(folder / "checkpoints")[-1]
    digest.update(last.name.encode())
    digest.update((last / "state.safetensors").read_bytes())
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        digest.update(json.dumps({k: v for k, v in values.items() if k not in CLOCKED}, sort_keys=True).encode())
    return digest.hexdigest()


CLOCKED = ("seconds", "images_per_second")
