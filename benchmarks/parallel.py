"""What it costs that several processes train together: ftrain's exact sums against DistributedDataParallel, and against
no communication at all.

    python benchmarks/parallel.py [--processes 2] [--model resnet18] [--size 32] [--batch 16] [--rounds 5]

Every process computes a batch of --batch images in memory, with one thread, AdamW and gloo on a CPU. The ways take
STEPS steps each in turn, in the same processes; the table has the median time of a step over the rounds, and the median
over the rounds of its ratio to DDP. "exact" is `train_step(reduce=)` with one shard for each process, and "exact, 2
shards" with two, of half the size, which is the same training in more processes. "alone" is a step without any
communication, which is not the same training.
"""

import argparse
import functools
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing
import torchvision

import ftrain

STEPS = 4
WAYS = ["alone", "DDP", "exact", "exact, 2 shards"]


def by_ddp(network, batch):
    model = torch.nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    loss = torch.nn.CrossEntropyLoss()
    images, labels = batch

    def step():
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()

    return step


def by_ftrain(network, batch, reduce):
    apply, params, buffers = ftrain.functionalize(network)
    optimizer = ftrain.adamw(1e-3)
    train_step = functools.partial(
        ftrain.train_step, apply=apply, optimizer=optimizer, reduce=reduce, donate=True, skip_nonfinite=True
    )
    state = [ftrain.init_state(params, buffers, optimizer, seed=0)]

    def step():
        state[0], _ = train_step(state[0], batch)

    return step


def work(rank, options, port):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=options.processes)

    def network():
        torch.manual_seed(0)
        return torchvision.models.get_model(options.model, weights=None, num_classes=10)

    torch.manual_seed(rank)
    shape = (options.batch, 3, options.size, options.size)
    batch = torch.randn(shape), torch.randint(10, shape[:1])
    exact = {shards: ftrain.parallel.ranks(shards * options.processes).sum for shards in (1, 2)}
    ways = [
        by_ftrain(network(), batch, None),
        by_ddp(network(), batch),
        by_ftrain(network(), batch, exact[1]),
        by_ftrain(network(), batch, exact[2]),
    ]
    times = [[] for _ in ways]
    for number in range(options.rounds + 1):
        for way, found in zip(ways, times, strict=True):
            dist.barrier()
            start = time.perf_counter()
            for _ in range(STEPS):
                way()
            dist.barrier()
            if number:  # the first round is a warm-up
                found.append((time.perf_counter() - start) / STEPS)
    if rank == 0:
        print(
            f"{options.model}, {options.size} px, {options.batch} images for each of {options.processes} processes; "
            f"torch {torch.__version__}, {os.cpu_count()} cores"
        )
        for name, found in zip(WAYS, times, strict=True):
            ratio = statistics.median(a / b for a, b in zip(found, times[1], strict=True))
            print(f"{name:<16} {1e3 * statistics.median(found):7.0f} ms a step   {ratio:.2f} x DDP")
    sys.stdout.flush()
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that ends in the usual way


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=29_511)
    options = parser.parse_args()
    torch.multiprocessing.spawn(work, (options, options.port), nprocs=options.processes)


if __name__ == "__main__":
    main()
