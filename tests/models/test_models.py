"""Names, sizes and seeds of models, and a training step with each of torchvision's models."""

import random

import numpy as np
import pytest
import torch
import torchvision
from networks import OF_EACH_FAMILY

import ftrain
from ftrain import models
from ftrain.models import table

LARGE = 40e6  # parameters
GIANT = 150e6
# A second table, by model instead of by family, so that a mistake in one of them fails here.
SMALLEST = dict.fromkeys(models.names(), 1) | {
    "alexnet": 63,
    "convnext_base": 32,
    "convnext_large": 32,
    "convnext_small": 32,
    "convnext_tiny": 32,
    "densenet121": 29,
    "densenet161": 29,
    "densenet169": 29,
    "densenet201": 29,
    "googlenet": 15,
    "inception_v3": 299,
    "maxvit_t": 221,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "swin_b": 4,
    "swin_s": 4,
    "swin_t": 4,
    "swin_v2_b": 4,
    "swin_v2_s": 4,
    "swin_v2_t": 4,
    "vgg11": 32,
    "vgg11_bn": 32,
    "vgg13": 32,
    "vgg13_bn": 32,
    "vgg16": 32,
    "vgg16_bn": 32,
    "vgg19": 32,
    "vgg19_bn": 32,
    "vit_b_16": 16,
    "vit_b_32": 32,
    "vit_h_14": 14,
    "vit_l_16": 16,
    "vit_l_32": 32,
}
PARAMETERS = {name: entry.parameters for name, entry in table.read().entries.items() if name in SMALLEST}


def test_names_are_the_classifiers():
    found = models.names()
    assert len(found) >= 80
    assert found[found.index("resnet18") :][:5] == ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    assert found[0] == "alexnet" and found[-1] == "wide_resnet101_2"
    assert {"alexnet", "resnet34", "vit_b_16", "wide_resnet50_2"} <= set(found)
    assert not {"quantized_resnet18", "raft_small", "fasterrcnn_resnet50_fpn", "fcn_resnet50", "r3d_18"} & set(found)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("maxvit", ["maxvit_t"]),
        ("WIDE_", ["wide_resnet50_2", "wide_resnet101_2"]),
        ("vit_?_32", ["vit_b_32", "vit_l_32"]),
        ("ResNet[13]*", ["resnet18", "resnet34", "resnet101", "resnet152"]),
        ("net9", []),
        ("mobilenet_v?", ["mobilenet_v2"]),
    ],
)
def test_names_by_pattern(pattern, expected):
    assert models.names(pattern) == expected


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("resnet34", "resnet34"),
        ("ResNet34", "resnet34"),
        ("RESNET34", "resnet34"),
        ("resnet-34", "resnet34"),
        (" ResNet 34 ", "resnet34"),
        ("ViT_B_16", "vit_b_16"),
        ("vit-b16", "vit_b_16"),
        ("EfficientNet-B0", "efficientnet_b0"),
        ("squeezenet1.1", "squeezenet1_1"),
        ("MobileNetV3_Small", "mobilenet_v3_small"),
        ("regnet_x_16gf", "regnet_x_16gf"),
        ("RegNet_X_1.6GF", "regnet_x_1_6gf"),
    ],
)
def test_canonical(spelling, expected):
    assert models.canonical(spelling) == expected


def test_every_name_is_canonical():
    assert [models.canonical(name.upper()) for name in models.names()] == models.names()


def test_canonical_suggests_the_closest_names():
    with pytest.raises(ValueError) as caught:
        models.canonical("ResNet35")
    assert str(caught.value) == (
        f"`model` must be one of torchvision's {len(models.names())} classifiers, got 'ResNet35'; the closest names "
        "are resnet50, resnet34, resnet152. The command ftrain models lists all names"
    )


def test_canonical_names_the_network_of_timm_with_that_name():
    with pytest.raises(ValueError, match="got 'ConvNeXtV2-Atto'; timm has timm/convnextv2_atto. The command ftrain"):
        models.canonical("ConvNeXtV2-Atto")


def test_canonical_refuses_an_ambiguous_name():
    with pytest.raises(ValueError, match="the closest names are regnet_x_16gf, regnet_x_1_6gf. "):
        models.canonical("RegNetX16GF")


@pytest.mark.parametrize("name", ["", "???", "fasterrcnn"])
def test_canonical_refuses(name):
    with pytest.raises(ValueError, match="The command ftrain models lists all names"):
        models.canonical(name)


@pytest.mark.parametrize("function", [models.smallest_size, models.parameter_count])
def test_any_spelling_works_and_unknown_names_are_refused(function):
    assert function("ResNet-18") == function("resnet18")
    with pytest.raises(ValueError, match="the closest names are"):
        function("resnet19")


def test_smallest_sizes():
    assert {name: models.smallest_size(name) for name in models.names()} == SMALLEST


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet18", 0, "resnet18 needs images of at least 1 px, but `image_size` is 0; use 1"),
        ("resnet18", -5, "resnet18 needs images of at least 1 px, but `image_size` is -5; use 1"),
        ("VGG11", 31, "vgg11 needs images of at least 32 px, but `image_size` is 31; use 32"),
        ("inception_v3", 224, "inception_v3 needs images of at least 299 px, but `image_size` is 224; use 299"),
        ("vit_b_16", 8, "vit_b_16 needs images whose side is a multiple of 16 px, but `image_size` is 8; use 16"),
        (
            "vit_b_16",
            100,
            "vit_b_16 needs images whose side is a multiple of 16 px, but `image_size` is 100; use 96 or 112",
        ),
        (
            "vit_h_14",
            32,
            "vit_h_14 needs images whose side is a multiple of 14 px, but `image_size` is 32; use 28 or 42",
        ),
        (
            "maxvit_t",
            64,
            "maxvit_t needs images whose side is a multiple of 224 px, or up to 3 px less, but `image_size` is 64; "
            "use 221",
        ),
        (
            "maxvit_t",
            256,
            "maxvit_t needs images whose side is a multiple of 224 px, or up to 3 px less, but `image_size` is 256; "
            "use 224 or 445",
        ),
    ],
)
def test_check_size_refuses(name, size, message):
    with pytest.raises(ValueError) as caught:
        models.check_size(name, size)
    assert str(caught.value) == message
    with pytest.raises(ValueError) as caught:
        models.build(name, classes=10, image_size=size, seed=0)
    assert str(caught.value) == message


def test_check_size_agrees_with_torchvision_on_maxvit():
    # A forward pass at every size would take too long. The constructor enforces the constraint.
    accepted, built = [], []
    for size in range(200, 460):
        try:
            models.check_size("maxvit_t", size)
            accepted.append(size)
        except ValueError:
            pass
        try:
            with torch.device("meta"):
                torchvision.models.maxvit_t(input_size=(size, size))
            built.append(size)
        except ValueError:
            pass
    assert accepted == built == [221, 222, 223, 224, 445, 446, 447, 448]


@pytest.mark.parametrize("size", [221, 222, 448])
def test_maxvit_runs_at_the_sizes_it_accepts(size):
    with torch.device("meta"):
        model = torchvision.models.maxvit_t(num_classes=10, input_size=(size, size))
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 10)


@pytest.mark.parametrize("more", [range(0, 10, 3), pytest.param(range(10), marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name", ["alexnet", "convnext_tiny", "densenet121", "googlenet", "resnet18", "squeezenet1_0", "swin_t", "vgg11"]
)
def test_every_size_from_the_smallest_up_works(name, more):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=10, **_warned(name)).train()
        for size in (SMALLEST[name] + pixels for pixels in more):
            models.check_size(name, size)
            assert _logits(model(torch.zeros(2, 3, size, size))).shape == (2, 10)


@pytest.mark.parametrize("name", [name for name, size in SMALLEST.items() if size > 1])
def test_a_smaller_size_does_not_work(name):
    size = SMALLEST[name] - 1
    with pytest.raises(ValueError, match=f"`image_size` is {size};"):
        models.check_size(name, size)
    with torch.device("meta"), pytest.raises((RuntimeError, ValueError, AssertionError)):
        torchvision.models.get_model(name, num_classes=10, **_warned(name), **_sized(name, size))(
            torch.zeros(2, 3, size, size)
        )


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "vit_b_16", "swin_t", "shufflenet_v2_x0_5"])
def test_parameters_are_a_function_of_the_seed(name):
    size = max(32, SMALLEST[name])
    first = models.build(name, classes=10, image_size=size, seed=7).state_dict()
    torch.randn(3)
    again = models.build(name.upper(), classes=10, image_size=size, seed=7).state_dict()
    other = models.build(name, classes=10, image_size=size, seed=8).state_dict()
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_parameters_are_those_that_torch_manual_seed_gives():
    built = models.build("resnet18", classes=10, image_size=32, seed=7).state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = torchvision.models.resnet18(num_classes=10).state_dict()
    assert all(torch.equal(built[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", models.names("*0_5") + ["googlenet", "regnet_x_400mf", "swin_v2_t", "vit_b_32"])
def test_global_random_state_does_not_change(name):
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())

    before = states()
    models.build(name, classes=10, image_size=max(32, SMALLEST[name]), seed=3)
    models.parameter_count(name)
    assert states() == before


def test_global_random_state_does_not_change_on_error():
    before = torch.get_rng_state()
    with pytest.raises(ValueError):
        models.build("vit_b_16", classes=10, image_size=17, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_generators_are_not_seeded(monkeypatch):
    # torch.manual_seed would also seed the GPUs' generators, which fork_rng(devices=[]) does not restore.
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded the GPUs"))
    models.build("mnasnet0_5", classes=10, image_size=32, seed=3)


def test_the_largest_seed_and_the_default_device():
    with torch.device("meta"):  # the caller's default device is ignored
        module = models.build("mnasnet0_5", classes=10, image_size=32, seed=2**64 - 1)
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"cpu"}
    assert module.training


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": 0}, "`classes` must be at least 1, got 0"),
        ({"seed": -1}, "from 0 to 2\\*\\*64 - 1, got -1"),
        ({"seed": 2**64}, "from 0 to 2\\*\\*64 - 1, got 18446744073709551616"),
    ],
)
def test_build_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        models.build("resnet18", **{"classes": 10, "image_size": 32, "seed": 0, **changed})


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("resnet18", {}, 11_689_512),
        ("resnet18", {"classes": 10}, 11_181_642),
        ("ResNet34", {}, 21_797_672),
        ("vit_b_16", {}, 86_567_656),
        ("vit_b_16", {"image_size": 32}, 86_567_656 - (196 - 4) * 768),
        ("regnet_y_128gf", {}, 644_812_894),
        ("inception_v3", {}, 27_161_264),
        ("googlenet", {}, 13_004_888),  # with its auxiliary classifiers
        ("maxvit_t", {}, 30_919_624),
    ],
)
def test_parameter_count(name, arguments, expected):
    assert models.parameter_count(name, **arguments) == expected


def test_parameter_count_is_that_of_the_built_model():
    built = models.build("swin_t", classes=7, image_size=32, seed=0)
    assert models.parameter_count("swin_t", classes=7) == sum(tensor.numel() for tensor in built.parameters())


def _marked(names):
    is_long = {name: PARAMETERS[name] > LARGE and name not in OF_EACH_FAMILY for name in names}
    return [pytest.param(name, marks=pytest.mark.long if is_long[name] else []) for name in names]


@pytest.mark.parametrize("name", _marked([name for name in PARAMETERS if PARAMETERS[name] <= GIANT]))
def test_train_step(name):
    size = SMALLEST[name]
    # The module itself is not kept, because memory has room for few copies of the larger ones.
    apply, params, buffers = ftrain.functionalize(models.build(name, classes=10, image_size=size, seed=1))
    optimizer = ftrain.sgd(0.01)
    state = ftrain.init_state(params, buffers, optimizer, seed=1)
    shapes = []

    def loss(logits, labels):
        shapes.append(logits.shape)
        return ftrain.cross_entropy(logits, labels)

    def step(batch):
        return ftrain.train_step(state, batch, apply=apply, optimizer=optimizer, loss=loss)

    new_state, metrics = step(_batch(2, size))
    assert shapes == [(2, 10)] * {"googlenet": 3, "inception_v3": 2}.get(name, 1)
    assert 0 < metrics.compute()["loss"] < 50
    if size < 32:
        # BatchNorm over two values (one pixel of two images) can make gradients overflow.
        new_state, metrics = step(_batch(16, size))
        assert 0 < metrics.compute()["loss"] < 50
    assert 0 < metrics.compute()["grad_norm"] < 1e9
    assert all(bool(tensor.isfinite().all()) for tensor in new_state.params.values())


# The giants donated, because parameters, gradients and new parameters side by side would take more than 8 GB.
@pytest.mark.parametrize("name", _marked(["convnext_tiny", *(name for name in PARAMETERS if PARAMETERS[name] > GIANT)]))
def test_train_step_donates_its_state(name):
    size = SMALLEST[name]
    apply, params, buffers = ftrain.functionalize(models.build(name, classes=10, image_size=size, seed=1))
    optimizer = ftrain.sgd(1e-4)
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    head = list(params)[-1]  # the only layer that has a gradient even where it starts at zero, as in vit
    before = params[head].clone()
    new_state, metrics = ftrain.train_step(state, _batch(16, size), apply=apply, optimizer=optimizer, donate=True)
    assert 0 < metrics.compute()["loss"] < 50
    assert metrics.compute()["nonfinite"] == 0.0
    assert not torch.equal(new_state.params[head], before)
    assert all(bool(tensor.isfinite().all()) for tensor in new_state.params.values())


def _batch(count, size):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, size, size, generator=generator), torch.arange(3, count + 3) % 10


def _warned(name):
    return {"init_weights": True} if name in ("googlenet", "inception_v3") else {}


def _sized(name, size):
    if name.startswith("vit"):
        return {"image_size": size}
    return {"input_size": (size, size)} if name.startswith("maxvit") else {}


def _logits(outputs):
    return outputs if isinstance(outputs, torch.Tensor) else outputs.logits
