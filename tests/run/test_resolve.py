"""From settings to a spec and a program."""

import re

import attrs
import numpy as np
import pytest
import tiny_runs
import torch
from signal_runs import make_images
from torchvision.ops import StochasticDepth

from ftrain import models
from ftrain.data import from_arrays, from_dataset
from ftrain.errors import SettingsError
from ftrain.run import kernels, network, stages
from ftrain.run.build import build
from ftrain.run.custom import Custom
from ftrain.run.notes import about_validation
from ftrain.run.resolve import resolve
from ftrain.run.settings import Settings, as_before
from ftrain.run.spec import Interval, RunSpec

MODEL = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    make_images(root)  # 13 to train on, 5 to validate on, in two classes, 16 px
    return root


def test_nothing_in_a_spec_is_none(data):
    spec, images = resolve(Settings(model=MODEL, data=str(data), device="cpu"))
    assert [field.name for field in attrs.fields(RunSpec) if getattr(spec, field.name) is None] == []
    assert (spec.model, spec.weights, spec.classes, spec.train_examples) == (MODEL, "", ("even", "odd"), 13)
    assert (spec.batch_size, spec.eval_batch_size, spec.image_size) == (13, 13, 32)
    assert (spec.lr, spec.weight_decay, spec.clip_norm, spec.ema_decay) == (0.001, 0.05, float("inf"), 0.0)
    assert (spec.init, spec.zero_init_residual, spec.drops) == ("default", False, {})
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (spec.augmentation.interpolation, spec.augmentation.centre_fraction) == ("bilinear", 1.0)
    assert (spec.save_station, spec.checkpoint_every, spec.warmup_epochs) == (11, Interval(), 1.0)
    assert (spec.precision, spec.memory_format, spec.compile) == ("float32", "channels_last", False)
    assert (spec.pace.steps(1), spec.total_steps) == (1, 10)
    assert spec.notes == (
        "with only 5 validation images, differences in accuracy of less than 36% may be chance; more validation images "
        "would tell more",
        "the training step is not compiled: this run has only 10 steps",
    )
    assert (images.batch_size, images.image_size, images.augmentation) == (13, 32, spec.augmentation)


def test_validation_images_that_tell_little_are_mentioned():
    def about(labels, classes=("a", "b", "c")):
        source = from_arrays(np.zeros((len(labels), 8, 8), np.uint8), labels, classes=classes)
        return about_validation(from_arrays(np.zeros((6, 8, 8), np.uint8), [0, 1, 2] * 2, classes=classes), source)

    assert about([0, 1, 2] * 34) == []
    assert about([0, 2] * 50) == ['there are no validation images of "b", so its accuracy will not be known']
    assert about([1] * 100) == ['there are no validation images of "a", "c", so their accuracy will not be known']
    assert about([0, 1, 2] * 33) == [
        "with only 99 validation images, differences in accuracy of less than 8% may be chance; more validation images "
        "would tell more"
    ]


def test_uneven_classes_weigh_what_the_settings_say():
    def loss(**settings):
        spec = tiny_runs.spec(label_smoothing=0.0, **settings)  # 7 images of one class, 6 of the other
        return stages._training_loss(spec)(torch.zeros(2, 2), torch.tensor([0, 1])).tolist()

    log2 = 0.6931472
    assert loss() == pytest.approx([log2, log2])
    assert loss(class_weights="balanced") == pytest.approx([13 / 14 * log2, 13 / 12 * log2])
    assert loss(logit_adjustment=1.0) == pytest.approx([0.6190392, 0.7731899])  # -log 7/13, -log 6/13
    assert loss(loss="focal", class_weights="balanced") == pytest.approx([13 / 56 * log2, 13 / 48 * log2])
    assert loss(class_weights="effective")[0] == pytest.approx(loss(class_weights="balanced")[0], rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"class_weights": "balanced"},
            '`class_weights` needs training images of every class; there are none of "c"',
        ),
        ({"logit_adjustment": 1.0}, '`logit_adjustment` needs training images of every class; there are none of "c"'),
        (
            {"logit_adjustment": 1.0, "loss": "mean-squared-error"},
            "`logit_adjustment` needs a loss with a softmax; `loss=mean-squared-error` has none",
        ),
        (
            {"sampler": "balanced", "class_weights": "effective"},
            "`sampler=balanced` draws every class equally often already, so that `class_weights` would favour rare "
            "classes twice; leave one out",
        ),
        (
            {"sampler": "balanced", "logit_adjustment": 1.0},
            "`sampler=balanced` draws every class equally often already, so that `logit_adjustment` would favour rare",
        ),
    ],
)
def test_what_cannot_be_done_about_uneven_classes(settings, message):
    source = from_arrays(np.zeros((9, 8, 8), np.uint8), [0, 1] * 4 + [0], classes=("a", "b", "c"))
    with pytest.raises(SettingsError, match=message):
        resolve(Settings(model=MODEL, device="cpu", image_size=32, **settings), sources=(source, source))


def test_class_weights_do_not_change_a_loss_of_ones_own():
    source = from_arrays(np.zeros((8, 8, 8), np.uint8), [0, 1] * 4)
    settings = Settings(model=MODEL, device="cpu", image_size=32, class_weights="balanced")
    with pytest.raises(SettingsError, match="`class_weights` changes ftrain's own losses; apply it inside your `loss`"):
        resolve(settings, Custom(loss=lambda logits, labels: logits.sum(dim=-1)), (source, source))


def test_the_head_cannot_be_trained_alone_for_all_epochs(data):
    with pytest.raises(
        SettingsError, match=r"`head_epochs` must be less than `epochs`; got 3 of 3 epochs\. To train the"
    ):
        resolve(Settings(model=MODEL, data=str(data), device="cpu", epochs=3, head_epochs=3))
    with pytest.raises(SettingsError, match="`warmup_epochs` must be less than `epochs`; got 1 of the 1 after `head_e"):
        resolve(Settings(model=MODEL, data=str(data), device="cpu", epochs=3, head_epochs=2, warmup_epochs=1.0))
    spec, _ = resolve(Settings(model=MODEL, data=str(data), device="cpu", epochs=3, head_epochs=2))
    assert spec.warmup_epochs == 0.1


def test_freezing_random_layers_is_mentioned(data):
    def notes(**settings):
        return resolve(Settings(model=MODEL, data=str(data), device="cpu", epochs=3, **settings))[0].notes

    assert "`freeze` without `weights` leaves layers at their random initial values" in notes(freeze="backbone")
    assert "`head_epochs` without `weights` leaves layers at their random initial values" in notes(head_epochs=1)
    assert "`layer_decay` has no effect with `freeze=backbone`" in notes(freeze="backbone", layer_decay=0.5)
    assert not any("without `weights`" in note for note in notes())


def test_a_head_on_features_is_not_compiled(data, monkeypatch):
    monkeypatch.setattr(kernels, "pays_to_compile", lambda *_, **__: (True, "compiled: it is long"))
    options = {"model": MODEL, "data": str(data), "device": "cpu", "freeze": "backbone"}
    fixed = {"flip": False, "crop_scale": 1.0}
    spec, _ = resolve(Settings(**options, **fixed))
    because = "not compiled: only the head is trained, on features that do not change"
    assert (spec.compile, spec.compile_because, spec.recorded["compile"]) == (False, because, False)
    assert spec.notes[-1] == f"the training step is {because}"
    for others in (options, {**options, **fixed, "feature_cache": False}, {**options, **fixed, "freeze": "none"}):
        spec, _ = resolve(Settings(**others))
        assert (spec.compile, spec.compile_because, spec.recorded["compile"]) == (True, "compiled: it is long", True)
        assert spec.notes[-1] == "the training step is compiled: it is long"
    spec, _ = resolve(Settings(**options, **fixed, compile=True))
    assert (spec.compile, spec.compile_because) == (True, "it was asked for")


def test_what_is_recorded_makes_the_same_spec_again(data):
    options = {"ema_decay": 0.9, "clip_norm": 1.0, "checkpoint_every": "10m", "save_station": 2, "batch_size": 4}
    spec, _ = resolve(Settings(model=MODEL, data=str(data), device="cpu", **options))
    again = RunSpec.of(
        Settings(**spec.recorded),
        classes=spec.classes,
        class_counts=spec.class_counts,
        compile_because=spec.compile_because,
        notes=spec.notes,
    )
    assert again == spec
    assert (again.ema_decay, again.clip_norm, again.checkpoint_every) == (0.9, 1.0, Interval(minutes=10))


def test_a_setting_without_a_value_is_refused():
    with pytest.raises(SettingsError, match="`image_size` has no value"):
        RunSpec.of(tiny_runs.settings(image_size=None), classes=("a", "b"), class_counts=(7, 6))


def test_states_of_a_program_share_no_memory():
    with tiny_runs.tiny_network():
        program = build(tiny_runs.spec(ema_decay=0.9))
        one, other = program.init(), program.init()
    leaves, others = (torch.utils._pytree.tree_leaves(state) for state in (one, other))
    assert len(leaves) == len(others)
    assert {leaf.data_ptr() for leaf in leaves}.isdisjoint(leaf.data_ptr() for leaf in others)
    for leaf, copy in zip(leaves, others, strict=True):
        assert torch.equal(leaf, copy)


def test_evaluation_builds_no_optimizer(monkeypatch):
    def fail(*args):
        raise AssertionError("an optimizer was built")

    monkeypatch.setattr(stages, "make_optimizer", fail)
    with tiny_runs.tiny_network():
        program = build(tiny_runs.spec())
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    params, buffers = program.initial_tensors()
    assert program.apply(params, buffers, images, train=False)[0].shape == (2, 2)
    with pytest.raises(AssertionError, match="an optimizer was built"):
        program.init()


def test_the_module_of_a_caller_is_neither_changed_nor_shared():
    module = tiny_runs.network("", classes=2, image_size=8, seed=3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    program = build(tiny_runs.spec(memory_format="channels_last"), Custom(module=module))
    state = program.init()
    program.stage_at(0).train_step(state, (torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0])))
    assert module.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.is_contiguous()


def resolved(sizes, **settings):
    """What `resolve` decides for images of these heights and widths."""
    pixels = [np.zeros((*size, 3), np.uint8) for size in sizes]
    source = from_dataset([(image, number % 2) for number, image in enumerate(pixels)], classes=("even", "odd"))
    spec, _ = resolve(Settings(device="cpu", workers=0, cache="none", **settings), sources=(source, source))
    crop_fraction = round(spec.augmentation.centre_fraction, 4)
    return spec.image_size, spec.mean[0], spec.std[0], spec.augmentation.interpolation, crop_fraction


LARGE, SMALL = [(300, 400)] * 4, [(100, 96)] * 4


@pytest.mark.parametrize(
    ("sizes", "model", "weights", "expected"),
    [
        (LARGE, "resnet50", None, (224, 0.485, 0.229, "bilinear", 0.875)),
        (LARGE, "resnet50", "IMAGENET1K_V1", (224, 0.485, 0.229, "bilinear", 0.875)),
        (LARGE, "resnet50", "IMAGENET1K_V2", (224, 0.485, 0.229, "bilinear", 0.9655)),
        (LARGE, "resnet50", "mine.pth", (224, 0.485, 0.229, "bilinear", 0.875)),
        (LARGE, "efficientnet_v2_l", "DEFAULT", (224, 0.5, 0.5, "bicubic", 1.0)),
        (LARGE, "timm/tf_efficientnet_lite0", None, (224, 0.485, 0.229, "bilinear", 0.875)),
        (LARGE, "timm/tf_efficientnet_lite0", "DEFAULT", (224, 0.5, 0.5, "bicubic", 0.875)),
        (LARGE, "timm/tf_efficientnet_lite0", "mine.safetensors", (224, 0.5, 0.5, "bicubic", 0.875)),
        (LARGE, "timm/test_vit", "DEFAULT", (160, 0.5, 0.5, "bicubic", 0.95)),
        (LARGE, "timm/resnet50", "a1_in1k", (224, 0.485, 0.229, "bicubic", 0.95)),
        (LARGE, "timm/tf_efficientnet_b3", "DEFAULT", (300, 0.485, 0.229, "bicubic", 1.0)),  # not cropped in training
        (SMALL, "timm/tf_efficientnet_lite0", "DEFAULT", (96, 0.5, 0.5, "bicubic", 1.0)),  # likewise
        ([(208, 208)] * 4, "timm/levit_128s", "DEFAULT", (192, 0.485, 0.229, "bicubic", 1.0)),
    ],
)
def test_what_pretrained_weights_expect_is_the_default(sizes, model, weights, expected):
    assert resolved(sizes, model=model, weights=weights) == expected


def test_what_is_given_overrides_what_the_weights_expect():
    asked = {"image_size": 64, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    asked |= {"interpolation": "bilinear", "crop_fraction": 0.9}
    found = resolved(LARGE, model="timm/tf_efficientnet_lite0", weights="DEFAULT", **asked)
    assert found == (64, 0.1, 0.4, "bilinear", 0.9)


def test_the_size_of_a_network_that_cannot_be_trained_on_the_images_own():
    assert resolved(SMALL, model="timm/crossvit_tiny_240")[0] == 240
    with pytest.raises(
        SettingsError, match="timm/test_vit, which was designed for images of 160 px, cannot be trained"
    ):
        resolved(SMALL, model="timm/test_vit", image_size=65)


def test_a_run_that_recorded_no_interpolation_keeps_what_was_used_then():
    recorded = attrs.asdict(tiny_runs.spec(), recurse=False)["recorded"]
    assert (recorded["interpolation"], recorded["crop_fraction"]) == ("bilinear", 0.875)
    before = as_before(Settings(crop_scale=1.0, mean=(0.5, 0.5, 0.5)))
    assert (before.interpolation, before.crop_fraction, before.mean) == ("bilinear", 1.0, (0.5, 0.5, 0.5))
    assert before.drop_last is True
    assert as_before(before) == before


def test_weights_that_do_not_exist_are_refused_before_anything_is_read():
    with pytest.raises(
        SettingsError, match=r"^`weights` for resnet50 must be IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT, or"
    ):
        resolve(Settings(model="resnet50", weights="V3", data="no/such/folder"))


@pytest.mark.parametrize("name", ["dropout", "drop_path"])
def test_drop_rates_are_for_networks_that_are_built_by_name(name, tmp_path):
    expected = f"`{name}` is for a network that ftrain builds by name; set it in your own network"
    with pytest.raises(SettingsError, match=re.escape(expected)):
        resolve(Settings(**{name: 0.1}), Custom(module=torch.nn.Linear(2, 2)))
    with pytest.raises(SettingsError, match=re.escape(expected)):
        resolve(Settings(model="my_file.py:make", **{name: 0.1}))


def tensors(**changes):
    """The parameters of a tiny run before training."""
    with tiny_runs.tiny_network():
        return build(tiny_runs.spec(**changes)).initial_tensors()[0]


def test_initialisation_follows_the_seed():
    first, again, other = (tensors(init="orthogonal", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert first["0.bias"].eq(0).all() and first["5.bias"].eq(0).all()
    weight = first["0.weight"].flatten(1)
    assert torch.allclose(weight @ weight.T, torch.eye(4), atol=1e-5)


def test_initialisation_of_the_module_of_a_caller_leaves_the_module_alone():
    module = tiny_runs.network("", classes=2, image_size=8, seed=3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    params, _ = build(tiny_runs.spec(init="kaiming"), Custom(module=module)).initial_tensors()
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())
    assert not torch.equal(params["0.weight"], before["0.weight"])
    assert params["0.bias"].eq(0).all()
    assert torch.equal(params["1.weight"], before["1.weight"])


def test_initialisation_matters_only_for_what_pretrained_weights_do_not_supply(tmp_path):
    source = models.build(MODEL, classes=5, image_size=32, seed=9).state_dict()
    torch.save(source, tmp_path / "weights.pth")
    options = {"model": MODEL, "image_size": 32, "weights": str(tmp_path / "weights.pth"), "init": "xavier"}
    params, _ = build(tiny_runs.spec(**options)).initial_tensors()
    assert torch.equal(params["conv1.0.weight"], source["conv1.0.weight"])
    assert params["fc.weight"].shape == (2, 1024) and params["fc.bias"].eq(0).all()
    assert params["fc.weight"].abs().max() <= (6 / 1026) ** 0.5


def test_a_new_head_starts_small_except_in_runs_from_before_it_did(tmp_path, data):
    torch.save(models.build(MODEL, classes=5, image_size=32, seed=9).state_dict(), tmp_path / "weights.pth")
    options = {"model": MODEL, "image_size": 32, "weights": str(tmp_path / "weights.pth")}
    spec, _ = resolve(Settings(data=str(data), device="cpu", **options))
    assert (spec.init, spec.recorded["init"]) == ("small-head", "small-head")
    small, _ = build(spec).initial_tensors()
    assert 0.008 < small["fc.weight"].std() < 0.012 and small["fc.bias"].eq(0).all()
    built = models.build(MODEL, classes=2, image_size=32, seed=0).state_dict()
    for recorded in ({}, {"init": "default"}):  # in config.json
        before, _ = build(tiny_runs.spec(**options, **recorded)).initial_tensors()
        assert torch.equal(before["fc.weight"], built["fc.weight"])
        assert torch.equal(before["fc.bias"], built["fc.bias"])


def test_a_small_head_without_weights():
    own = Custom(module=tiny_runs.network("", classes=2, image_size=8, seed=0))
    small, default = (build(tiny_runs.spec(init=init), own).initial_tensors()[0] for init in ("small-head", "default"))
    assert 0.005 < small["5.weight"].std() < 0.015 and small["5.bias"].eq(0).all()
    assert [name for name in small if not torch.equal(small[name], default[name])] == ["5.weight", "5.bias"]


def test_zero_initialised_residual_blocks():
    options = {"model": "resnet18", "image_size": 32}
    zeroed, plain = (
        build(tiny_runs.spec(**options, zero_init_residual=flag)).initial_tensors()[0] for flag in (True, False)
    )
    differing = [name for name in plain if not torch.equal(zeroed[name], plain[name])]
    assert differing == [f"layer{stage}.{block}.bn2.weight" for stage in (1, 2, 3, 4) for block in (0, 1)]
    with tiny_runs.tiny_network(), pytest.raises(SettingsError, match="^`zero_init_residual` has no effect: no "):
        build(tiny_runs.spec(zero_init_residual=True))


def test_drop_rates_reach_the_network():
    options = {"model": "swin_t", "image_size": 32, "dropout": 0.25, "drop_path": 0.3}
    module, _ = network.make_module(tiny_runs.spec(**options), Custom())
    assert {layer.p for layer in module.modules() if isinstance(layer, torch.nn.Dropout)} == {0.25}
    assert max(layer.p for layer in module.modules() if isinstance(layer, StochasticDepth)) == pytest.approx(0.3)
    with pytest.raises(SettingsError, match="^resnet18 has no dropout, so `dropout` cannot be set$"):
        build(tiny_runs.spec(model="resnet18", image_size=32, dropout=0.1))
