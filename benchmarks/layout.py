"""The training step with images and activations in channels-last layout, against contiguous.

    python benchmarks/layout.py [--models resnet18,...] [--side 64] [--batch 32] [--rounds 5] [--device cpu]

`ftrain.run.kernels.memory_format` is based on these measurements. Each round runs both in turn, STEPS steps of each.
The ratio is the median over the rounds of the channels-last time divided by the contiguous time: below 1, channels last
is faster. The column "rule" is the layout that ftrain chooses.
"""

import argparse
import functools
import platform
import statistics
import time

import torch
import torchvision

import ftrain
from ftrain import models
from ftrain.run import kernels

STEPS = 3
NAMES = (
    "alexnet vgg11_bn resnet18 resnet34 resnet50 densenet121 googlenet squeezenet1_1 resnext50_32x4d regnet_y_400mf "
    "shufflenet_v2_x1_0 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet1_0 efficientnet_b0 convnext_tiny "
    "swin_t vit_b_16"
)


class Candidate:
    """A training step in one layout, with the state that it has reached."""

    def __init__(self, options, name, memory_format):
        torch.manual_seed(0)
        size = {"image_size": options.side} if name.startswith("vit") else {}
        network = torchvision.models.get_model(name, weights=None, num_classes=10, **size)
        network = network.to(options.device).to(memory_format=memory_format)
        shape = (options.batch, 3, options.side, options.side)
        images = torch.randn(shape, device=options.device).to(memory_format=memory_format)
        apply, params, buffers = ftrain.functionalize(network)
        optimizer = ftrain.adamw(1e-3)
        self.step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer, donate=True)
        self.state = ftrain.init_state(params, buffers, optimizer, seed=0)
        self.batch = images, torch.randint(10, shape[:1], device=options.device)

    def seconds(self):
        start = time.perf_counter()
        for _ in range(STEPS):
            self.state, _ = self.step(self.state, self.batch)
        self.state.step.item()
        return (time.perf_counter() - start) / STEPS


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=",".join(NAMES.split()))
    parser.add_argument("--device", default="cpu")
    for name, default in (("side", 64), ("batch", 32), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, {platform.machine()}")
    print(f"{options.side} px, batch {options.batch}, float32, eager, {options.rounds} rounds of {STEPS} steps")
    print(f"{'':20}{'convolutions':>13}{'depthwise':>11}{'1 x 1':>7}{'contiguous':>12}{'last':>9}{'ratio':>7}  rule")
    for name in options.models.split(","):
        candidates = [Candidate(options, name, layout) for layout in (torch.contiguous_format, torch.channels_last)]
        for candidate in candidates:
            candidate.seconds()
        rounds = [[candidate.seconds() for candidate in candidates] for _ in range(options.rounds)]
        contiguous, last = (1e3 * statistics.median(times) for times in zip(*rounds, strict=True))
        ratio = statistics.median(after / before for before, after in rounds)
        counted = models.convolutions(name)
        chosen = kernels.memory_format(counted, torch.device(options.device))
        measured = f"{contiguous:>9.0f} ms{last:>6.0f} ms{ratio:>7.2f}"
        kinds = f"{counted.count:>13}{counted.depthwise:>11}{counted.pointwise:>7}"
        print(f"{name:20}{kinds}{measured}  {chosen}", flush=True)


if __name__ == "__main__":
    main()
