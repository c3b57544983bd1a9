"""A hypergradient: the derivative of the loss after ten steps of training with respect to the learning rate."""

import math

import torch
from torch import nn

import ftrain
from ftrain.data import Augmentation, Images, load, sample_folder, scan

torch.manual_seed(0)
network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 64), nn.Tanh(), nn.Linear(64, 10))
train = scan(sample_folder() / "train")
images = Images(train=train, val=train, batch_size=50, image_size=28, augmentation=Augmentation(flip=False))
batches = [batch[:3] for batch in load(images, images.train_jobs(0)[:11])]

apply, params, buffers = ftrain.functionalize(network)
apply = ftrain.normalized(apply, mean=(0.29, 0.29, 0.29), std=(0.35, 0.35, 0.35))


def later_loss(log_rate):
    """The loss on an eleventh batch, after ten steps of Adam from the same start."""
    optimizer = ftrain.adam(torch.exp(log_rate))
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    for batch in batches[:10]:
        state, _ = ftrain.train_step(state, batch, apply=apply, optimizer=optimizer)
    metrics = ftrain.eval_step(state, batches[10], apply=apply)
    return metrics.loss / metrics.count


log_rate = torch.tensor(math.log(1e-5))
print("learning rate  loss after ten steps  d loss / d log(rate)")
for _ in range(12):
    slope, loss = torch.func.grad_and_value(later_loss)(log_rate)
    print(f"{log_rate.exp().item():13.2e}  {loss.item():20.4f}  {slope.item():20.4f}")
    log_rate = log_rate - 2.0 * slope.clamp(-0.5, 0.5)
