"""Training the head of a frozen backbone on features that are computed once.

Where only the head is trained, and every epoch shows the same pixels, the backbone makes the same features of an image
each time. The head's training step then is what it would be with the whole network: the same batches in the same order,
and a state of the whole network, so that checkpoints, evaluation and export do not know the difference.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

import ftrain.random
from ftrain.data.batches import ImageBatch, batch_examples, labels_and_weights, load
from ftrain.data.cache import FeatureTable, available_memory, cache_folder
from ftrain.data.cache.table import new_table, open_table, table_folder
from ftrain.data.device import on_device
from ftrain.data.images import Images, Job
from ftrain.errors import DataError
from ftrain.models.cut import Cut, cut, is_faithful
from ftrain.module import normalized
from ftrain.run.build import Program
from ftrain.run.events import ComputingFeatures
from ftrain.run.network import head_of, make_module, memory_format
from ftrain.state import TrainState
from ftrain.steps import predict_step

MORE_TRAINED = "more than the head is trained; `freeze=backbone` freezes the rest"
NOT_APART = "the network is not its head after a backbone that treats every image alike"
ROOM = 0.5  # of the free memory, which features may take


@attrs.frozen(eq=False)
class Features:
    """A run on features.

    Attributes:
      program: its steps take features in place of images.
      images: of the run.
      train, val: the features of all images.
    """

    program: Program
    images: Images
    train: FeatureTable
    val: FeatureTable

    def batches(self, jobs: Iterable[Job]) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor], ImageBatch]]:
        """(features, labels, weights) on the device, each with the batch on the host, whose images are the features; as
        `load` and `on_device` give images."""
        device = self.program.spec.torch_device
        for job in jobs:
            train = job.split == "train"
            source, table = (self.images.train, self.train) if train else (self.images.val, self.val)
            rows = self.images.rows(job)
            indices = batch_examples(self.images, job).indices[rows]
            padding = rows.stop - rows.start - len(indices)
            positions = torch.from_numpy(np.pad(indices, (0, padding)))
            labels, weights = labels_and_weights(source, indices, len(positions))
            features, readable, skipped = table.rows(positions)
            batch = ImageBatch(features, labels, weights * readable, positions, skipped)
            yield (features.to(device), batch.labels.to(device), batch.weights.to(device)), batch


def with_features(
    program: Program, images: Images, state: TrainState
) -> Generator[ComputingFeatures, None, Features | str]:
    """The features of all images; or why the run cannot be trained on them, in words.

    Args:
      state: of the run, whose backbone does not change any more.

    Raises:
      DataError: for an image that cannot be read, unless bad images are skipped.
    """
    parts = _parts(program, state)
    if isinstance(parts, str):
        return parts
    spec = program.spec
    examples = _features(program, parts, state, _example(program))
    one = examples[:1]
    total, size = len(images.train) + len(images.val), one.numel() * one.element_size()
    # Evaluation uses a part of an image; training that does not crop uses all of it. The size of these batches is one
    # with which a run resumes, because the last bits depend on it.
    whole = attrs.evolve(images.augmentation, centre_fraction=1.0)
    val = attrs.evolve(images, eval_batch_size=spec.batch_size, part=0, parts=1)
    train = attrs.evolve(val, val=images.train, val_cache=images.train_cache, augmentation=whole)
    on_disk = spec.cache == "disk" or total * size > ROOM * available_memory()
    tables, done = [], 0
    for each in (train, val):
        shape = (len(each.val), *one.shape[1:])
        folder = table_folder(_facts(program, state, each, examples)) if on_disk else None
        table = open_table(folder) if folder else None
        if table is not None and table.bad_images and not spec.skip_bad_images:
            raise DataError(next(iter(table.bad_images.values())))
        if table is None:
            yield ComputingFeatures(done, total, total * size)
            with new_table(folder, shape) if folder else nullcontext(_in_memory(program, shape)) as table:
                for count in _fill(table, program, parts, state, each):
                    yield ComputingFeatures(done + count, total, total * size)
            table = open_table(folder) if folder else table
            assert table is not None
        done += len(each.val)
        tables.append(table)
    return Features(_on_features(program, parts), images, *tables)


def _fill(table: FeatureTable, program: Program, parts: Cut, state: TrainState, images: Images) -> Generator[int]:
    """Computes the features of the validation images of `images`. Yields how many are done."""
    spec = program.spec
    loading = load(images, images.val_jobs(), workers=spec.workers, pin_memory=spec.torch_device.type == "cuda")
    done = 0
    with closing(loading):
        for (pixels, *_), batch in on_device(loading, spec.torch_device):
            rows = min(len(pixels), len(images.val) - done)  # the rest is padding
            table.features[done : done + rows] = _features(program, parts, state, pixels)[:rows]
            table.bad_images.update(batch.skipped)
            done += rows
            yield done


def _in_memory(program: Program, shape: tuple[int, ...]) -> FeatureTable:
    """An empty table: on the GPU if it is small enough, so that no batch has to be copied."""
    device = program.spec.torch_device
    if device.type == "cuda" and 4 * math.prod(shape) > ROOM * torch.cuda.mem_get_info(device)[0]:
        device = torch.device("cpu")
    return FeatureTable(torch.empty(shape, device=device), {})


def _facts(program: Program, state: TrainState, images: Images, examples: Tensor) -> list[Any]:
    """All that the features of the validation images of `images` depend on.

    Args:
      examples: the features of `_example`, which show a change of the network that neither its tensors nor the source
        of its class does.
    """
    spec = program.spec
    digest = hashlib.sha256()
    for name, tensor in [*sorted(state.buffers.items()), ("examples", examples)]:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    own = program.custom.record(spec.model).get("model")
    source = cache_folder(images.val, images.val_cache_format).name
    numbers = [*spec.mean, *spec.std, images.image_size, images.eval_batch_size, torch.get_num_threads()]
    return [source, digest.hexdigest(), own, spec.model, spec.device, spec.precision, spec.memory_format, *numbers]


def _parts(program: Program, state: TrainState) -> Cut | str:
    """The backbone, for images, and the head of a run's network; or why it cannot be trained on features, in words."""
    spec, custom = program.spec, program.custom
    if not spec.feature_cache:
        return "`feature_cache` is off"
    if spec.varying or custom.augment is not None:
        names = [*spec.varying, *(["augment"] if custom.augment is not None else [])]
        return f"training images vary from epoch to epoch, by {', '.join(f'`{name}`' for name in names)}"
    if len(program.stages) > 1 or not program.stages[0].frozen:
        return MORE_TRAINED
    [stage] = program.stages
    module, _ = make_module(spec, custom, pretrained=False)
    head = head_of(spec, custom, module)
    # After a change of settings, the averages of what is frozen may differ from it.
    settled = all(torch.equal(tensor, state.ema.get(name, tensor)) for name, tensor in state.buffers.items())
    if not set(stage.trained) <= set(head):
        return MORE_TRAINED
    if not settled:
        return "the averages of what is frozen differ from it"
    found = cut(module, head, frozen=stage.frozen)
    if found is None:
        return NOT_APART
    backbone = normalized(found.backbone, mean=spec.mean, std=spec.std, memory_format=memory_format(spec))
    parts = found._replace(backbone=backbone)
    key = ftrain.random.key(spec.seed, device=spec.device)
    faithful = is_faithful(parts, stage.apply, state.params, state.buffers, _example(program), key=key)
    return parts if faithful else NOT_APART


def _example(program: Program) -> Tensor:
    """Two images of noise, uint8 [2, 3, S, S]."""
    spec = program.spec
    noise = torch.Generator().manual_seed(0)
    shape = (2, 3, spec.image_size, spec.image_size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=noise).to(spec.device)


def _features(program: Program, parts: Cut, state: TrainState, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return predict_step(state, pixels, apply=parts.backbone, precision=program.spec.dtype)


def _on_features(program: Program, parts: Cut) -> Program:
    """The program of a run whose batches are features. A step on them is too short to be compiled."""
    spec = attrs.evolve(program.spec, compile=False)
    [stage] = program.stages
    stage = attrs.evolve(stage, spec=spec, apply=parts.head, tensors=parts.of_head)
    return attrs.evolve(program, spec=spec, stages=(stage,))
