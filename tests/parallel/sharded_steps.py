"""Steps over processes: `python sharded_steps.py WORLD FOLDER CASES` forks WORLD processes, which take part in the
eager or the compiled cases, and process 0 writes their digests."""

import functools
import hashlib
import json
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from networks import made
from torch.utils import _pytree as pytree

import ftrain
from ftrain import multi_label
from ftrain.parallel import ranks

SHARDS = 4
BATCH = 16
EAGER = {
    "sgd": {"network": "linear", "optimizer": ftrain.sgd(0.1, momentum=0.9)},
    "BatchNorm and dropout": {"network": "convnet"},
    "transformer": {"network": "small_vit"},
    "bfloat16": {"network": "convnet", "precision": torch.bfloat16},
    "mixed": {"network": "convnet", "mix": ftrain.mixup(0.5, classes=5)},
    "averaged, clipped": {
        "network": "convnet",
        "ema_decay": 0.9,
        "optimizer": ftrain.chain(ftrain.clip_by_global_norm(0.01), ftrain.adamw(0.01)),
    },
    "accumulated": {"network": "convnet", "accumulate": 2},
    "donated": {"network": "convnet", "donate": True},
    "several labels": {"network": "convnet", "loss": ftrain.binary_cross_entropy, "measure": multi_label.measure},
    "a step is skipped": {"network": "convnet", "skip_nonfinite": True},
}
COMPILED = {"one graph": {"network": "convnet", "compile": "aot_eager"}}


def batch(step, size, broken):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 3, size, size, generator=generator)
    labels = torch.randint(5, (BATCH,), generator=generator)
    weights = torch.rand(BATCH, generator=generator)
    if broken and step == 1:
        images[11] = float("nan")  # in the third shard
    return images, labels, weights


def parts(rows, step, size, *, broken=False, several=False):
    """The rows of a batch, with several labels per image if asked to."""
    images, labels, weights = batch(step, size, broken)
    if several:
        labels = torch.stack([labels % divisor == 0 for divisor in range(1, 6)], dim=1).float()
    return images[rows], labels[rows], weights[rows]


def trained(layout, *, network, optimizer=None, compile=None, **options):
    """The state after three steps, their metrics, and those of evaluation."""
    several = {name: options[name] for name in ("loss", "measure") if name in options}
    module, size = made(network)
    apply, params, buffers = ftrain.functionalize(module)
    optimizer = optimizer or ftrain.adamw(0.01)
    state = ftrain.init_state(params, buffers, optimizer, seed=0, ema="ema_decay" in options)
    step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer, reduce=layout.sum, **options)
    if compile:
        step = ftrain.compile_step(step, backend=compile)
    rows, lines = layout.rows(BATCH), []
    for number in range(3):
        part = parts(rows, number, size, broken="skip_nonfinite" in options, several=bool(several))
        state, metrics = step(state, part)
        lines.append(metrics)
    part = parts(rows, 9, size, several=bool(several))
    lines.append(ftrain.eval_step(state, part, apply=apply, reduce=layout.sum, **several))
    return state, lines


def digest(tree):
    found = hashlib.sha256()
    for leaf in pytree.tree_leaves(tree):
        found.update(leaf.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def digests(layout, cases):
    return {name: digest(trained(layout, **options)) for name, options in cases.items()}


def take_part(rank, world, folder, cases):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    found = digests(ranks(shards=SHARDS), {"eager": EAGER, "compiled": COMPILED}[cases])
    if rank == 0:
        (folder / "digests.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that ends in the usual way


def main(world, folder, cases):
    """Forks, so that torch is imported once, and returns whether all processes have ended well."""
    workers = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            try:
                take_part(rank, world, folder, cases)
            finally:
                traceback.print_exc()
                os._exit(1)
        workers.append(pid)
    return [os.waitpid(pid, 0)[1] for pid in workers] == [0] * world


if __name__ == "__main__":
    sys.exit(0 if main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]) else 1)
