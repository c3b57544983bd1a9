"""A sweep over learning rates and seeds as one vmapped step: twelve networks trained at once."""

import torch
from torch import nn

import ftrain
from ftrain.data import Images, load, sample_folder, scan

RATES = [0.0003, 0.003, 0.03, 0.3]
SEEDS = [0, 1, 2]

train = scan(sample_folder() / "train")
val = scan(sample_folder() / "val", classes=train.classes)
images = Images(train=train, val=val, batch_size=50, image_size=28)


def first_state(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 64), nn.ReLU(), nn.Linear(64, 10))
    apply, params, buffers = ftrain.functionalize(network)
    apply = ftrain.normalized(apply, mean=(0.29, 0.29, 0.29), std=(0.35, 0.35, 0.35))
    return apply, ftrain.init_state(params, buffers, ftrain.sgd(0.0, momentum=0.9), seed=seed)


def step(state, rate, batch):
    return ftrain.train_step(state, batch, apply=apply, optimizer=ftrain.sgd(rate, momentum=0.9))


members = [(rate, seed) for rate in RATES for seed in SEEDS]
apply = first_state(0)[0]
states = torch.utils._pytree.tree_map(
    lambda *leaves: torch.stack(leaves), *[first_state(seed)[1] for _, seed in members]
)
rates = torch.tensor([rate for rate, _ in members])

for epoch in range(3):
    for batch in load(images, images.train_jobs(epoch)):
        states, _ = torch.func.vmap(step, in_dims=(0, 0, None))(states, rates, batch[:3])

evaluate = torch.func.vmap(lambda state, batch: ftrain.eval_step(state, batch, apply=apply), in_dims=(0, None))
first, *rest = [evaluate(states, batch[:3]) for batch in load(images, images.val_jobs())]
total = sum(rest, start=first)
accuracy = (total.correct / total.count).reshape(len(RATES), len(SEEDS))
print("validation accuracy after 3 epochs")
print("learning rate  " + "  ".join(f"seed {seed}" for seed in SEEDS) + "    mean")
for rate, row in zip(RATES, accuracy, strict=True):
    print(f"{rate:13g}  " + "  ".join(f"{value:6.1%}" for value in row.tolist()) + f"  {row.mean().item():6.1%}")
