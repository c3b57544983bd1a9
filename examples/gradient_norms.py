"""The norm of the gradient of each example: the images that a trained network could still learn most from."""

import torch
from torch import nn

import ftrain
from ftrain.data import Images, load, sample_folder, scan

torch.manual_seed(0)
network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 64), nn.ReLU(), nn.Linear(64, 10))
train = scan(sample_folder() / "train")
val = scan(sample_folder() / "val", classes=train.classes)
images = Images(train=train, val=val, batch_size=50, image_size=28)

apply, params, buffers = ftrain.functionalize(network)
apply = ftrain.normalized(apply, mean=(0.29, 0.29, 0.29), std=(0.35, 0.35, 0.35))
optimizer = ftrain.adamw(2e-3)
state = ftrain.init_state(params, buffers, optimizer, seed=0)
for epoch in range(3):
    for batch in load(images, images.train_jobs(epoch)):
        state, _ = ftrain.train_step(state, batch[:3], apply=apply, optimizer=optimizer)


def loss_of_one(params, image, label):
    logits, _ = apply(params, state.buffers, image[None], train=False)
    return ftrain.cross_entropy(logits, label[None])[0]


per_example = torch.func.vmap(torch.func.grad(loss_of_one), in_dims=(None, 0, 0))
norms = []
for batch in load(images, images.val_jobs()):
    gradients = per_example(state.params, batch.images, batch.labels)
    norms.append(torch.func.vmap(ftrain.global_norm)(gradients)[batch.weights > 0])
norms = torch.cat(norms)

print("class        median norm  largest norm")
for label, name in enumerate(val.classes):
    own = norms[torch.from_numpy(val.labels == label)]
    print(f"{name:<11}  {own.median().item():11.3f}  {own.max().item():12.3f}")
print("the five images with the largest gradients:")
for position in norms.topk(5).indices.tolist():
    print(f"  {val.paths[position]}  {norms[position].item():.3f}")
