"""What to do with the examples of a small data set that do not fill a batch: drop, pad or cross.

    python benchmarks/last_batch.py FOLDER [--photographs 60] [--batch 32] [--epochs 20] [--size 64] [--seeds 5]

FOLDER contains train/ and val/ with a folder per class. resnet18 is trained from random weights, with horizontal flips.
drop leaves the last examples of each epoch out; pad fills the last batch with empty images of weight 0; cross fills it
with the first examples of the next epoch, which is what ftrain does. The table has the validation accuracy after the
last epoch, for each seed, and the steps that were taken.
"""

import argparse
import functools
import hashlib
import statistics
from pathlib import Path

import torch
import torchvision
from torchvision.transforms import v2

import ftrain


def images(folder, size, count=None):
    """Images uint8 [N, 3, size, size] and their labels; with `count`, that many, evenly from the classes."""
    found = torchvision.datasets.ImageFolder(
        folder, v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    )
    chosen = range(len(found))
    if count:
        by_class = [[] for _ in found.classes]
        for index, (path, label) in enumerate(found.samples):
            by_class[label].append((hashlib.sha256(Path(path).name.encode()).digest(), index))
        parts = [max(1, round(len(each) * count / len(found))) for each in by_class]
        chosen = [index for each, size in zip(by_class, parts, strict=True) for _, index in sorted(each)[:size]]
    pixels, labels = zip(*(found[index] for index in chosen), strict=True)
    return torch.stack(pixels), torch.tensor(labels)


def order(way, examples, batch, epochs, generator):
    """The indices of each batch, [batch] or fewer."""
    passes = [torch.randperm(examples, generator=generator) for _ in range(epochs)]
    if way == "cross":
        return list(torch.cat(passes).split(batch)[: -(-examples * epochs // batch)])
    batches = [part for each in passes for part in each.split(batch)]
    return [part for part in batches if len(part) == batch] if way == "drop" else batches


def padded(pixels, labels, batch):
    missing = batch - len(labels)
    weights = torch.cat([torch.ones(len(labels)), torch.zeros(missing)])
    return (
        torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])]),
        torch.cat([labels, labels.new_zeros(missing)]),
        weights,
    )


def accuracy(way, seed, train, val, options):
    pixels, labels = train
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = torchvision.models.resnet18(num_classes=int(labels.max()) + 1)
    apply, params, buffers = ftrain.functionalize(network)
    apply = ftrain.normalized(apply, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    batches = order(way, len(labels), options.batch, options.epochs, generator)
    schedule = ftrain.warmup_cosine(1e-3, total_steps=len(batches), warmup_steps=len(batches) // 10)
    optimizer = ftrain.adamw(schedule, weight_decay=0.05)
    state = ftrain.init_state(params, buffers, optimizer, seed=seed)
    step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer)
    for indices in batches:
        flipped = torch.rand(len(indices), generator=generator) < 0.5
        inputs = torch.where(flipped[:, None, None, None], pixels[indices].flip(-1), pixels[indices])
        state, _ = step(state, padded(inputs, labels[indices], options.batch))
    metrics = [
        ftrain.eval_step(state, part, apply=apply) for part in zip(*(each.split(64) for each in val), strict=True)
    ]
    return sum(metrics[1:], start=metrics[0]).compute()["accuracy"], len(batches)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, default in {"photographs": 60, "batch": 32, "epochs": 20, "size": 64, "seeds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    train = images(options.folder / "train", options.size, options.photographs)
    val = images(options.folder / "val", options.size)
    print(f"{len(train[1])} images, batches of {options.batch}, {options.epochs} epochs, {options.size} px")
    for way in ("drop", "pad", "cross"):
        found = [accuracy(way, seed, train, val, options) for seed in range(options.seeds)]
        accuracies = [each for each, _ in found]
        print(
            f"{way:6} {found[0][1]:3} steps  {'  '.join(f'{each:.1%}' for each in accuracies)}  "
            f"mean {statistics.mean(accuracies):.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
