"""train_step in your own loop: no trainer, only a function and a value."""

import torch
from torch import nn

import ftrain
from ftrain.data import Images, load, sample_folder, scan

torch.manual_seed(0)
network = nn.Sequential(
    *[nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()],
    *[nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()],
    *[nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.BatchNorm2d(128), nn.ReLU()],
    *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 10)],
)
train = scan(sample_folder() / "train")
val = scan(sample_folder() / "val", classes=train.classes)
images = Images(train=train, val=val, batch_size=50, image_size=32)

apply, params, buffers = ftrain.functionalize(network)
apply = ftrain.normalized(apply, mean=(0.29, 0.29, 0.29), std=(0.35, 0.35, 0.35))
optimizer = ftrain.adamw(ftrain.warmup_cosine(5e-3, total_steps=images.pace.steps(5), warmup_steps=20))
state = ftrain.init_state(params, buffers, optimizer, seed=0)

for epoch in range(5):
    for batch in load(images, images.train_jobs(epoch)):
        state, metrics = ftrain.train_step(state, batch[:3], apply=apply, optimizer=optimizer)
    first, *rest = [ftrain.eval_step(state, batch[:3], apply=apply) for batch in load(images, images.val_jobs())]
    result = sum(rest, start=first).compute()
    print(f"epoch {epoch + 1}: validation loss {result['loss']:.3f}, accuracy {result['accuracy']:.1%}")
