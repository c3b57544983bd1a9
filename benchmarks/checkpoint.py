"""How long a checkpoint interrupts training: only for the copy of the state when it is saved in the background, against
saving in line. `python benchmarks/checkpoint.py [--models resnet34,vit_b_16] [--rounds 5]`.

Each round measures both in turn, on a state with AdamW's moments. The results are medians over the rounds.
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

import ftrain
from ftrain import models
from ftrain.disk import checkpoint
from ftrain.disk.saver import Saver
from ftrain.disk.snapshot import Snapshot, named


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="mobilenet_v3_small,resnet34,vit_b_16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, {platform.machine()}")
    print(f"median of {options.rounds} rounds, milliseconds")
    print(f"{'model':<20} {'state MB':>9} {'in line':>9} {'stall':>9} {'background':>11} {'stall / in line':>16}")
    for name in options.models.split(","):
        module = models.build(name, classes=1000, image_size=224, seed=0).to(options.device)
        _, params, buffers = ftrain.functionalize(module)
        state = ftrain.init_state(params, buffers, ftrain.adamw(1e-3), seed=0)
        size = sum(tensor.nbytes for tensor in named(state).values())
        times: dict[str, list[float]] = {"in line": [], "stall": [], "background": []}
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                checkpoint.save(Path(folder), state, {})
                times["in line"].append(time.perf_counter() - start)
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                with Saver() as saver:
                    snapshot = Snapshot.of(state, number)
                    saver.start(lambda at=Path(folder), what=snapshot: checkpoint.save(at, what, {}))
                    times["stall"].append(time.perf_counter() - start)
                times["background"].append(time.perf_counter() - start)
        in_line, stall, background = (1e3 * statistics.median(values) for values in times.values())
        print(
            f"{name:<20} {size / 1e6:>9.1f} {in_line:>9.1f} {stall:>9.1f} {background:>11.1f} {stall / in_line:>16.3f}"
        )


if __name__ == "__main__":
    main()
