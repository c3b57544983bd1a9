"""timm's networks: names, construction, image sizes, data configuration and weights."""

import random
import sys

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

import ftrain
from ftrain import models
from ftrain.errors import CheckpointError
from ftrain.models import timm_networks


def built(name, classes=10, image_size=64, seed=0, **drops):
    return models.build(name, classes=classes, image_size=image_size, seed=seed, **drops)


def message(function, *args, **options):
    with pytest.raises(ValueError) as caught:
        function(*args, **options)
    return str(caught.value)


@pytest.fixture
def without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    timm_networks.names.cache_clear()
    yield
    timm_networks.names.cache_clear()


def test_names():
    found = models.names("timm/*")
    assert len(found) > 1000
    assert models.names("timm") == found
    assert all(name.startswith("timm/") for name in found)
    assert models.names("TIMM/resnet[13]?") == ["timm/resnet18", "timm/resnet34"]
    assert found.index("timm/resnet18") < found.index("timm/resnet101")
    assert "timm/mobilenetv5_300m" in found and "timm/mobilenetv5_300m_enc" not in found  # which has no classifier
    assert not [name for name in models.names() if "timm" in name]


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("timm/resnet18", "timm/resnet18"),
        ("TIMM/ResNet-18", "timm/resnet18"),
        (" timm/ViT Tiny Patch16 224 ", "timm/vit_tiny_patch16_224"),
        ("timm/TF-EfficientNet-Lite0", "timm/tf_efficientnet_lite0"),
        ("timm/ConvNeXtV2Atto", "timm/convnextv2_atto"),
    ],
)
def test_canonical(spelling, expected):
    assert models.canonical(spelling) == expected


def test_every_name_is_canonical():
    found = models.names("timm/*")
    assert [models.canonical(name.upper()) for name in found] == found


def test_canonical_suggests_the_closest_names():
    assert message(models.canonical, "timm/resnet35") == (
        f"`model` must be one of timm's {len(models.names('timm/*'))} classifiers, got 'timm/resnet35'; the closest "
        "names are timm/resnet50, timm/resnet34, timm/resnetrs350. The command ftrain models 'timm/*' lists all names"
    )
    assert "; no name is similar. The command ftrain models 'timm/*'" in message(models.canonical, "timm/???")
    assert message(models.canonical, "timm/ResNet50.a1_in1k") == (
        "`model` is timm/resnet50 without 'a1_in1k', which names weights: give them as `weights=a1_in1k`"
    )


def test_without_timm_the_message_says_how_to_install_it(without_timm):
    expected = "networks of timm need it; install ftrain with `pip install '.[timm]'`"
    assert message(models.canonical, "timm/resnet18") == expected
    assert message(models.build, "timm/resnet18", classes=2, image_size=32, seed=0) == expected
    assert message(models.names, "timm/*") == expected
    assert models.canonical("resnet18") == "resnet18"
    assert "timm has timm/convnextv2_atto" in message(models.canonical, "convnextv2_atto")  # from the table


def test_parameters_are_those_that_timm_makes_from_the_seed():
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())

    before = states()
    with torch.device("meta"):  # the caller's default device is ignored
        module = built("timm/test_vit", seed=7)
    assert states() == before
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = timm.create_model("test_vit", num_classes=10, img_size=64).state_dict()
    found = module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert module.training
    other = built("timm/test_vit", seed=8).state_dict()
    assert not torch.equal(found["patch_embed.proj.weight"], other["patch_embed.proj.weight"])


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("timm/test_vit", 65, "160 px, cannot be trained with `image_size=65`; use 64 or 80"),
        ("timm/test_vit", 1, "160 px, cannot be trained with `image_size=1`; use 16"),
        ("timm/levit_128s", 100, "224 px, cannot be trained with `image_size=100`; use 96 or 112"),
    ],
)
def test_sizes_that_a_network_cannot_be_trained_on(name, size, expected):
    expected = f"{name}, which was designed for images of {expected}"
    assert not models.fits(name, size)
    assert message(models.check_size, name, size) == expected
    assert message(models.build, name, classes=2, image_size=size, seed=0) == expected


@pytest.mark.parametrize(("name", "size"), [("timm/test_vit", 96), ("timm/test_resnet", 33), ("timm/test_vit2", 160)])
def test_sizes_that_a_network_can_be_trained_on(name, size):
    module = built(name, image_size=size)
    assert module(torch.zeros(2, 3, size, size)).shape == (2, 10)


def test_smallest_and_designed_sizes():
    assert message(models.smallest_size, "timm/test_vit") == "the smallest images of timm/test_vit are not known"
    assert models.input_size("timm/Test-ViT") == 160
    assert models.next_size("timm/test_vit", 70) == 160


def test_structure():
    assert models.parameter_count("timm/ResNet-18") == 11_689_512
    assert models.parameter_count("timm/test_vit", classes=10, image_size=32) == sum(
        parameter.numel() for parameter in built("timm/test_vit", image_size=32).parameters()
    )
    assert models.convolutions("timm/resnet18") == models.convolutions("resnet18")


def test_dropout_and_drop_path():
    resnet = built("timm/test_resnet", dropout=0.25, drop_path=0.1)
    assert resnet.drop_rate == 0.25
    paths = [layer.drop_prob for layer in resnet.modules() if isinstance(layer, timm.layers.DropPath)]
    assert max(paths) == pytest.approx(0.1)
    assert message(built, "timm/vgg11", image_size=32, drop_path=0.1) == (
        "timm/vgg11 has no drop path (stochastic depth), so `drop_path` cannot be set"
    )


def step(name, size, seed=0, key_seed=0, **drops):
    """The state and gradient norm after a step, as values that can be compared."""
    apply, params, buffers = ftrain.functionalize(built(name, image_size=size, **drops))
    optimizer = ftrain.sgd(0.01)
    state = ftrain.init_state(params, buffers, optimizer, seed=key_seed)
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(2, 3, size, size, generator=generator), torch.tensor([0, 1])
    new, _ = ftrain.train_step(state, batch, apply=apply, optimizer=optimizer)
    return torch.cat([parameter.flatten() for parameter in new.params.values()])


@pytest.mark.parametrize("drops", [{"dropout": 0.5}, {"drop_path": 0.5}])
@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "timm/test_convnext"])
def test_dropout_and_drop_path_are_drawn_from_the_key(name, drops):
    before = torch.get_rng_state()
    one = step(name, 32, **drops)
    torch.randn(3)
    assert torch.equal(step(name, 32, **drops), one)
    assert any(not torch.equal(step(name, 32, key_seed=seed, **drops), one) for seed in (1, 2, 3))
    torch.set_rng_state(before)
    none = dict.fromkeys(("dropout", "drop_path"), 0.0)
    assert torch.equal(step(name, 32, key_seed=0, **none), step(name, 32, key_seed=1, **none))


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("resnet18", None, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.875, None)),
        ("resnet18", "IMAGENET1K_V1", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.875, None)),
        ("resnet50", "default", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 224 / 232, None)),
        ("resnet50", "mine.pth", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.875, None)),
        ("efficientnet_v2_l", "DEFAULT", ((0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, None)),
        ("timm/tf_efficientnet_lite0", None, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.875, None)),
        ("timm/tf_efficientnet_lite0", "in1k", ((0.5,) * 3, (0.5,) * 3, "bicubic", 0.875, 224)),
        ("timm/tf_efficientnet_lite0", "mine.safetensors", ((0.5,) * 3, (0.5,) * 3, "bicubic", 0.875, 224)),
        ("timm/resnet50", "DEFAULT", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.95, 224)),
        ("timm/resnet50", "tv_in1k", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 0.875, 224)),
        ("timm/resnet50", "A3_IN1K", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.95, 160)),
    ],
)
def test_the_preprocessing_that_weights_expect(name, weights, expected):
    mean, std, interpolation, crop_fraction, image_size = expected
    assert models.preprocessing(name, weights) == models.Preprocessing(
        mean, std, interpolation, pytest.approx(crop_fraction), "crop", image_size
    )


def test_weights_for_squashed_images_stretch_them():
    found = models.preprocessing("timm/tiny_vit_21m_512", "DEFAULT")
    assert (found.fit, found.image_size) == ("stretch", 512)


def test_weights_that_do_not_exist():
    for function in (models.preprocessing, lambda name, weights: models.load_weights(built(name), weights, name=name)):
        assert message(function, "timm/tf_efficientnet_lite0", "a1") == (
            "`weights` for timm/tf_efficientnet_lite0 must be in1k, DEFAULT, or the path of a file (.safetensors, "
            ".pth, .pt); got 'a1'"
        )
        assert message(function, "timm/resnet26t", "IMAGENET1K_V1").startswith(
            "`weights` for timm/resnet26t must be ra2_in1k, DEFAULT, or the path"
        )
    without = next(name for name in models.names("timm/*") if not timm_networks.weights(name))
    assert message(models.preprocessing, without, "DEFAULT") == (
        f"`weights` for {without} must be the path of a file (.safetensors, .pth, .pt), since timm has none; got "
        "'DEFAULT'"
    )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of one file, in place of the one that timm downloads from. Returns what is asked for, and the tensors."""
    network = timm.create_model("test_vit", num_classes=1000)
    path, asked = tmp_path / "model.safetensors", []
    safetensors.torch.save_file(network.state_dict(), path)

    def served(repo_id, filename, **options):
        asked.append((repo_id, filename))
        return str(path)

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", served)
    return asked, network.state_dict()


@pytest.mark.parametrize("weights", ["DEFAULT", "r160_in1k", "test_vit.r160_in1k", "R160_IN1K"])
def test_weights_are_downloaded_by_timm(hub, weights):
    asked, origin = hub
    module = built("timm/test_vit", image_size=160)
    report = models.load_weights(module, weights, name="timm/test-vit")
    assert asked == [("timm/test_vit.r160_in1k", "model.safetensors")]
    assert report.skipped == (
        "head.weight: its shape is [1000, 64] instead of [10, 64]",
        "head.bias: its shape is [1000] instead of [10]",
    )
    assert report.at_random == ("head.weight", "head.bias")
    assert all(torch.equal(module.state_dict()[name], origin[name]) for name in report.loaded)


def test_the_head_is_loaded_if_the_classes_are_as_many(hub):
    module = built("timm/test_vit", classes=1000, image_size=160)
    assert models.load_weights(module, "DEFAULT", name="timm/test_vit").at_random == ()
    assert torch.equal(module.head.weight, hub[1]["head.weight"])


def test_a_download_that_fails(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", refuse)
    assert message(models.load_weights, built("timm/test_vit"), "DEFAULT", name="timm/test_vit") == (
        "cannot download test_vit.r160_in1k: no route to host. Check the network connection, or use a file of weights"
    )


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_of_weights_for_another_size(suffix, tmp_path):
    source = built("timm/test_vit", classes=5, image_size=160, seed=1).state_dict()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": source}, path)
    else:
        safetensors.torch.save_file(source, path)
    module = built("timm/test_vit", classes=5, image_size=64, seed=2)
    report = models.load_weights(module, path, name="timm/test_vit")
    assert (report.skipped, report.at_random) == ((), ())
    found = module.state_dict()
    assert source["pos_embed"].shape == (1, 101, 64) and found["pos_embed"].shape == (1, 17, 64)
    assert torch.equal(found["pos_embed"][:, :1], source["pos_embed"][:, :1])  # of the class token
    assert all(torch.equal(found[name], source[name]) for name in source if name != "pos_embed")


def test_names_of_older_files(tmp_path):
    """Files of the networks' authors have other names, which timm knows."""
    source = built("timm/convnext_atto", image_size=32, seed=1).state_dict()
    old = dict(source)
    for now, then in (("stem.", "downsample_layers.0."), ("head.norm.", "norm."), ("head.fc.", "head.")):
        old = {name.replace(now, then): tensor for name, tensor in old.items()}
    assert len(old.keys() - source.keys()) == 8
    torch.save({"model": old}, tmp_path / "old.pth")
    module = built("timm/convnext_atto", image_size=32, seed=2)
    report = models.load_weights(module, tmp_path / "old.pth", name="timm/convnext_atto")
    assert (report.skipped, report.at_random) == ((), ())
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in source.items())


def test_a_checkpoint_of_timms_training_script(tmp_path):
    import argparse

    source = built("timm/test_resnet", seed=1).state_dict()
    found = {"epoch": 3, "arch": "test_resnet", "state_dict": source, "args": argparse.Namespace(lr=0.1)}
    torch.save(found, tmp_path / "model_best.pth.tar")
    module = built("timm/test_resnet", seed=2)
    report = models.load_weights(module, tmp_path / "model_best.pth.tar", name="timm/test_resnet")
    assert (report.skipped, report.at_random) == ((), ())


def test_a_file_of_another_network(tmp_path):
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "other.pth")
    for name in ("timm/test_resnet", "timm/test_vit"):
        found = message(models.load_weights, built(name), tmp_path / "other.pth", name=name)
        assert found.startswith(
            f"none of the tensors in {tmp_path / 'other.pth'} fits {name}: it needs tensors such as"
        )
    safetensors.torch.save_file({"pos_embed": torch.zeros(3)}, tmp_path / "other.safetensors")
    found = message(models.load_weights, built("timm/test_vit"), tmp_path / "other.safetensors", name="timm/test_vit")
    assert found.startswith(f"cannot load {tmp_path / 'other.safetensors'} into timm/test_vit: timm cannot convert its")
    assert found.endswith("Use weights of timm/test_vit")


def test_code_in_a_file_is_refused_and_never_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return open, (str(tmp_path / "proof"), "w")

    torch.save({"head.bias": Malicious()}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="it is damaged, or holds more than tensors, such as code"):
        models.load_weights(built("timm/test_vit"), tmp_path / "weights.pth", name="timm/test_vit")
    assert not (tmp_path / "proof").exists()
