"""Weights from files and from torchvision: what is copied, skipped and refused."""

import pickle
import re
import urllib.error

import attrs
import pytest
import safetensors.torch
import torch
import torchvision

from ftrain import models
from ftrain.errors import CheckpointError


def _net(classes=10, seed=0, name="squeezenet1_1"):
    return models.build(name, classes=classes, image_size=32, seed=seed)


def _equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def _copy(tensors):
    return {key: tensor.clone() for key, tensor in tensors.items()}


def _save(kind, tensors, folder):
    path = folder / f"weights.{kind}"
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "pth", "pt"])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_complete_file(kind, as_text, tmp_path):
    source, target = _net(seed=1, name="resnet18"), _net(seed=2, name="resnet18")
    path = _save(kind, source.state_dict(), tmp_path)
    report = models.load_weights(target, str(path) if as_text else path, name="ResNet18")
    assert _equal(target.state_dict(), source.state_dict())
    assert sorted(report.loaded) == sorted(source.state_dict())
    assert (report.skipped, report.at_random) == ((), ())
    assert str(report) == "loaded 122 tensors"


def test_the_head_is_left_as_initialised_if_the_classes_differ(tmp_path):
    source, target = _net(1000, seed=1, name="resnet18"), _net(10, seed=2, name="resnet18")
    drawn = _copy(target.state_dict())
    report = models.load_weights(target, _save("pth", source.state_dict(), tmp_path), name="resnet18")
    assert report.skipped == (
        "fc.weight: its shape is [1000, 512] instead of [10, 512]",
        "fc.bias: its shape is [1000] instead of [10]",
    )
    assert report.at_random == ("fc.weight", "fc.bias")
    assert len(report.loaded) == 120
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, drawn[key] if key.startswith("fc.") else source.state_dict()[key])
    assert str(report) == (
        "loaded 120 tensors; skipped 2 (fc.weight: its shape is [1000, 512] instead of [10, 512], "
        "fc.bias: its shape is [1000] instead of [10]); left as initialised: 2 (fc.weight, fc.bias)"
    )


def test_tensors_missing_from_the_file_or_the_network(tmp_path):
    source = _copy(_net(seed=1).state_dict())
    del source["features.0.weight"], source["features.0.bias"]
    source["extra"] = torch.zeros(3)
    target = _net(seed=2)
    drawn = _copy(target.state_dict())
    report = models.load_weights(target, _save("safetensors", source, tmp_path), name="squeezenet1_1")
    assert report.skipped == ("extra: not in the network",)
    assert report.at_random == ("features.0.weight", "features.0.bias")
    assert torch.equal(target.state_dict()["features.0.weight"], drawn["features.0.weight"])
    assert str(report) == (
        "loaded 50 tensors; skipped 1 (extra: not in the network); "
        "left as initialised: 2 (features.0.weight, features.0.bias)"
    )


def test_the_summary_lists_the_first_few():
    report = models.WeightsReport(loaded=("a",), skipped=(), at_random=tuple("bcdefgh"))
    assert str(report) == "loaded 1 tensor; left as initialised: 7 (b, c, d, e, ...)"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        report.loaded = ()


def test_the_summary_escapes_names_from_the_file():
    report = models.WeightsReport(("a",), ("\x1b[2Jx: not in the network",), ("y\n\u202e",))
    assert str(report) == (
        r"loaded 1 tensor; skipped 1 (\x1b[2Jx: not in the network); left as initialised: 1 (y\n\u202e)"
    )


def test_errors_escape_names_from_the_file(tmp_path):
    path = _save("pth", {"\x1b[2Jx": torch.zeros(2)}, tmp_path)
    with pytest.raises(ValueError) as caught:
        models.load_weights(_net(), path, name="squeezenet1_1")
    assert r"but the file has 1 (\x1b[2Jx)" in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("wrapping", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_the_wrappings_of_training_scripts(wrapping, prefix, tmp_path):
    source, target = _net(seed=1), _net(seed=2)
    tensors = {prefix + key: tensor for key, tensor in source.state_dict().items()}
    found = {wrapping: tensors, "epoch": 3, "optimizer": {"lr": 0.1}} if wrapping else tensors
    report = models.load_weights(target, _save("pth", found, tmp_path), name="squeezenet1_1")
    assert _equal(target.state_dict(), source.state_dict())
    assert len(report.loaded) == 52


def test_values_that_are_not_tensors_are_skipped(tmp_path):
    found = {**_net(seed=1).state_dict(), "epoch": 3}
    report = models.load_weights(_net(seed=2), _save("pth", found, tmp_path), name="squeezenet1_1")
    assert report.skipped == ("epoch: of type int, not a tensor",)


def test_half_precision_is_converted(tmp_path):
    source, target = _net(seed=1), _net(seed=2)
    halves = {key: tensor.half() for key, tensor in source.state_dict().items()}
    models.load_weights(target, _save("safetensors", halves, tmp_path), name="squeezenet1_1")
    assert _equal(target.state_dict(), {key: tensor.float() for key, tensor in halves.items()})


@pytest.mark.parametrize(
    ("name", "pattern", "replacement", "renamed"),
    [
        ("densenet121", r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", 58 * 12),
        ("vit_b_32", r"mlp\.0\.", "mlp.linear_1.", 24),
        pytest.param("vit_b_32", r"mlp\.3\.", "mlp.linear_2.", 24, marks=pytest.mark.long),
    ],
)
def test_names_in_older_files_of_torchvision(name, pattern, replacement, renamed, tmp_path):
    source, target = _net(seed=1, name=name), _net(seed=2, name=name)
    old = {re.sub(pattern, replacement, key): tensor for key, tensor in source.state_dict().items()}
    assert len(old.keys() - source.state_dict().keys()) == renamed
    report = models.load_weights(target, _save("safetensors", old, tmp_path), name=name)
    assert (report.skipped, report.at_random) == ((), ())
    assert _equal(target.state_dict(), source.state_dict())


def test_a_file_of_another_model(tmp_path):
    target = _net(seed=2)
    drawn = _copy(target.state_dict())
    path = _save("safetensors", {"a.weight": torch.zeros(2), "b.weight": torch.zeros(2)}, tmp_path)
    with pytest.raises(
        ValueError, match=r"none of the tensors in .*safetensors fits squeezenet1_1: .* the file has 2 \(a.weight,"
    ):
        models.load_weights(target, path, name="squeezenet1_1")
    assert _equal(target.state_dict(), drawn)


def test_an_empty_file_of_weights(tmp_path):
    with pytest.raises(ValueError, match="but the file has none"):
        models.load_weights(_net(), _save("pth", {}, tmp_path), name="squeezenet1_1")


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
@pytest.mark.parametrize("save", [torch.save, lambda found, path: path.write_bytes(pickle.dumps(found))])
def test_code_in_a_file_is_refused_and_never_run(suffix, save, tmp_path):
    proof, path = tmp_path / "proof", tmp_path / f"weights.{suffix}"
    save({**_net(seed=1).state_dict(), "code": Malicious(proof)}, path)
    target = _net(seed=2)
    drawn = _copy(target.state_dict())
    with pytest.raises(
        CheckpointError, match="cannot load .*: it is damaged, or holds more than tensors, such as code"
    ):
        models.load_weights(target, path, name="squeezenet1_1")
    assert not proof.exists()
    assert _equal(target.state_dict(), drawn)


def test_the_malicious_file_is_malicious(tmp_path):
    proof = tmp_path / "proof"
    torch.save(Malicious(proof), tmp_path / "weights.pth")
    torch.load(tmp_path / "weights.pth", weights_only=False).close()
    assert proof.exists()


def test_a_whole_module_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"torch.save\(model.state_dict\(\), path\)"):
        models.load_weights(_net(), _save("pth", _net(), tmp_path), name="squeezenet1_1")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("content", [b"", b"no tensors", b"\x00" * 100])
def test_a_damaged_file(suffix, content, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot load .*: it is damaged"):
        models.load_weights(_net(), path, name="squeezenet1_1")


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_half_a_file(kind, tmp_path):
    path = _save(kind, _net().state_dict(), tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="cannot load .*: it is damaged"):
        models.load_weights(_net(), path, name="squeezenet1_1")


def test_a_file_that_is_no_state_dict(tmp_path):
    path = _save("pth", [torch.zeros(2)], tmp_path)
    with pytest.raises(ValueError, match=r"a state dict; .*weights.pth holds a list"):
        models.load_weights(_net(), path, name="squeezenet1_1")


@pytest.mark.parametrize("file", ["absent.pth", "absent.safetensors", "absent/absent.pt"])
def test_a_missing_file(file, tmp_path):
    with pytest.raises(ValueError, match=f"there is no weights file .*{file}"):
        models.load_weights(_net(), tmp_path / file, name="squeezenet1_1")


@pytest.mark.parametrize(
    "source", ["IMAGENET1K_V3", "ResNet34_Weights.IMAGENET1K_V1", "ResNet50_Weights.", "x.y.DEFAULT", "", "weights.bin"]
)
def test_unknown_weights_list_the_known(source):
    with pytest.raises(ValueError) as caught:
        models.load_weights(_net(), source, name="resnet50")
    assert str(caught.value) == (
        "`weights` for resnet50 must be IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT, or the path of a file "
        "(.safetensors, .pth, .pt); "
        f"got {source!r}"
    )


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("DEFAULT", "resnet50-11ad3fa6.pth"),
        ("default", "resnet50-11ad3fa6.pth"),
        ("IMAGENET1K_V1", "resnet50-0676ba61.pth"),
        ("ResNet50_Weights.IMAGENET1K_V1", "resnet50-0676ba61.pth"),
    ],
)
def test_weights_of_torchvision(source, url, monkeypatch):
    origin, asked = _net(1000, seed=1, name="resnet50").state_dict(), []

    def served(url, **options):
        asked.append((url, options))
        return origin

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", served)
    target = _net(10, seed=2, name="resnet50")
    report = models.load_weights(target, source, name="resnet50")
    options = {"progress": True, "check_hash": True, "map_location": "cpu", "weights_only": True}
    assert asked == [(f"https://download.pytorch.org/models/{url}", options)]
    assert report.skipped == (
        "fc.weight: its shape is [1000, 2048] instead of [10, 2048]",
        "fc.bias: its shape is [1000] instead of [10]",
    )
    assert torch.equal(target.state_dict()["conv1.weight"], origin["conv1.weight"])


def test_downloaded_weights_are_cached_and_read_safely(monkeypatch, tmp_path):
    # torch.hub finds a file of this name in its cache, and so downloads nothing.
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_: pytest.fail("went to the network"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    cache.parent.mkdir(parents=True)
    origin, target = _net(1000, seed=1), _net(1000, seed=2)
    torch.save(origin.state_dict(), cache)
    models.load_weights(target, "IMAGENET1K_V1", name="squeezenet1_1")
    assert _equal(target.state_dict(), origin.state_dict())

    torch.save({"code": Malicious(tmp_path / "proof")}, cache)
    with pytest.raises(ValueError, match=r"cannot download SqueezeNet1_1_Weights\.IMAGENET1K_V1: "):
        models.load_weights(target, "IMAGENET1K_V1", name="squeezenet1_1")
    assert not (tmp_path / "proof").exists()


def test_a_download_that_fails(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    with pytest.raises(ValueError, match=r"no route to host.*\. Check the network connection, or use a file"):
        models.load_weights(_net(), "DEFAULT", name="squeezenet1_1")


@pytest.mark.parametrize("name", models.names())
def test_every_model_has_weights_to_start_from(name):
    assert "DEFAULT" in torchvision.models.get_model_weights(name).__members__
