"""What a run decides by itself about training, from random weights and from pretrained ones."""

import numpy as np
import pytest
import torch

from ftrain import models
from ftrain.data import from_arrays
from ftrain.run.build import build
from ftrain.run.recipe import Recipe, recipe
from ftrain.run.resolve import resolve
from ftrain.run.settings import Settings, as_before

SCRATCH = Recipe(
    init="default", freeze="none", head_epochs=0, layer_decay=1.0, batch_size=32, lr=1e-3, weight_decay=0.05
)
TUNED = Recipe(
    init="small-head", freeze="batch-norm", head_epochs=1, layer_decay=0.85, batch_size=16, lr=1e-3, weight_decay=0.05
)


def of(images=300, batch_norm=True, **settings):
    return recipe(Settings(**settings), images=images, batch_norm=batch_norm)


def test_from_random_weights_everything_is_trained_in_one_stage():
    assert of() == SCRATCH
    assert of(batch_norm=False) == SCRATCH


def test_from_pretrained_weights_the_head_comes_first_and_rates_fall_with_depth():
    assert of(weights="DEFAULT") == TUNED


def test_a_network_without_batch_norm_learns_slower():
    found = of(weights="DEFAULT", batch_norm=False)
    assert (found.freeze, found.lr, found.layer_decay, found.head_epochs) == ("none", 2e-4, 0.85, 1)
    assert of(weights="DEFAULT", batch_norm=False, optimizer="sgd").lr == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("images", "scratch", "tuned"),
    [(5, 5, 5), (60, 32, 8), (199, 32, 8), (200, 32, 16), (999, 32, 16), (1_000, 32, 32), (4_999, 32, 32)]
    + [(5_000, 64, 64), (1_000_000, 64, 64)],
)
def test_fewer_images_make_smaller_batches(images, scratch, tuned):
    assert of(images).batch_size == scratch
    assert of(images, weights="DEFAULT").batch_size == tuned


@pytest.mark.parametrize(("epochs", "head_epochs"), [(1, 0), (2, 0), (3, 1), (100, 1)])
def test_a_short_run_has_no_epoch_for_the_head_alone(epochs, head_epochs):
    assert of(weights="DEFAULT", epochs=epochs).head_epochs == head_epochs


@pytest.mark.parametrize("freeze", ["backbone", "conv1,batch-norm"])
def test_with_layers_frozen_by_name_there_is_one_stage(freeze):
    assert of(weights="DEFAULT", freeze=freeze).head_epochs == 0


def test_layer_decay_is_for_a_backbone_that_is_trained():
    assert of(weights="DEFAULT", freeze="backbone").layer_decay == 1.0
    assert of(weights="DEFAULT", freeze="none").layer_decay == 0.85


def test_what_is_given_remains():
    given = {
        "init": "default",
        "freeze": "none",
        "head_epochs": 0,
        "layer_decay": 1.0,
        "batch_size": 7,
        "lr": 0.5,
        "weight_decay": 0.0,
    }
    assert of(weights="DEFAULT", **given) == Recipe(**given)


def test_a_run_with_a_file_of_weights_uses_the_recipe_and_records_it(tmp_path):
    path = tmp_path / "weights.pth"
    module = models.build("resnet18", classes=7, image_size=32, seed=3)
    torch.save(module.state_dict(), path)
    source = from_arrays(np.zeros((12, 32, 32, 3), np.uint8), [0, 1] * 6)
    settings = Settings(model="resnet18", weights=str(path), epochs=3, device="cpu", image_size=32)
    spec, _ = resolve(settings, sources=(source, source))
    assert (spec.freeze, spec.head_epochs, spec.layer_decay, spec.batch_size) == ("batch-norm", 1, 0.85, 8)
    assert {name: spec.recorded[name] for name in ("freeze", "head_epochs", "layer_decay", "batch_size", "lr")} == {
        "freeze": "batch-norm",
        "head_epochs": 1,
        "layer_decay": 0.85,
        "batch_size": 8,
        "lr": 1e-3,
    }
    program = build(spec)
    head, whole = program.stages
    assert head.trained == ("fc.weight", "fc.bias")
    assert "bn1.weight" in whole.frozen and "conv1.weight" in whole.trained
    params, buffers = program.initial_tensors()
    assert params["fc.weight"].abs().max().item() < 0.06 and params["fc.bias"].tolist() == [0.0, 0.0]
    assert torch.equal(buffers["conv1.weight"], module.conv1.weight)


def test_a_run_that_was_started_before_the_recipe_keeps_what_it_had():
    before = as_before(Settings(weights="DEFAULT"))
    assert (before.freeze, before.head_epochs, before.layer_decay) == ("none", 0, 1.0)
