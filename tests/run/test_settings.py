from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from ftrain.errors import SettingsError
from ftrain.run.settings import HARMLESS, Settings, flag, from_mapping, merge

ROOT = Path(__file__).parents[2]


def test_defaults() -> None:
    assert attrs.asdict(Settings()) == {
        "model": "resnet34",
        "weights": None,
        "init": None,
        "zero_init_residual": False,
        "dropout": None,
        "drop_path": None,
        "data": None,
        "val_fraction": 0.2,
        "dataset": None,
        "train_dir": None,
        "val_dir": None,
        "image_size": None,
        "fit": None,
        "interpolation": None,
        "crop_fraction": None,
        "crop_scale": None,
        "crop_ratio": 4 / 3,
        "flip": True,
        "auto_augment": "none",
        "color_jitter": (0.0, 0.0, 0.0, 0.0),
        "random_erasing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "mean": None,
        "std": None,
        "cache": "auto",
        "on_bad_image": "stop",
        "bad_image_cap": 0.01,
        "epochs": 10,
        "batch_size": None,
        "eval_batch_size": None,
        "drop_last": None,
        "sampler": "uniform",
        "accumulate": 1,
        "shards": None,
        "optimizer": "adamw",
        "lr": None,
        "weight_decay": None,
        "momentum": 0.9,
        "schedule": "cosine",
        "freeze": None,
        "head_epochs": None,
        "head_lr": None,
        "layer_decay": None,
        "feature_cache": None,
        "warmup_epochs": None,
        "task": "auto",
        "loss": None,
        "class_weights": "none",
        "logit_adjustment": 0.0,
        "label_smoothing": 0.1,
        "clip_norm": None,
        "ema_decay": None,
        "recompute_statistics": None,
        "seed": 0,
        "device": "auto",
        "workers": None,
        "threads": None,
        "timeout": "10m",
        "precision": "auto",
        "memory_format": "auto",
        "compile": None,
        "best_by": None,
        "patience": None,
        "max_time": None,
        "save_station": None,
        "keep_last": 2,
        "deterministic": False,
        "checkpoint_every": None,
        "log_every": 10,
        "out": None,
    }


AN_INTEGER = "must be an integer >= 1; got"
PER_CHANNEL = "one per channel, such as 0.5,0.5,0.5; got"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model", "", "`model` must be a non-empty string; got ''"),
        ("model", None, "`model` must be a non-empty string; got None"),
        ("model", 34, "`model` must be a non-empty string; got 34"),
        ("weights", "", "`weights` must be a non-empty string; got ''"),
        ("data", 1, "`data` must be a non-empty string; got 1"),
        ("train_dir", "", "`train_dir` must be a non-empty string; got ''"),
        ("val_dir", False, "`val_dir` must be a non-empty string; got False"),
        ("image_size", 0, "`image_size` must be an integer >= 1 and <= 4096; got 0"),
        ("image_size", 4097, "`image_size` must be an integer >= 1 and <= 4096; got 4097"),
        ("image_size", 64.0, "`image_size` must be an integer >= 1 and <= 4096; got 64.0"),
        (
            "init",
            "he",
            "`init` must be one of default, small-head, kaiming, xavier, orthogonal, trunc-normal; got 'he'",
        ),
        ("zero_init_residual", 1, "`zero_init_residual` must be true or false; got 1"),
        ("dropout", 1.0, "`dropout` must be a number >= 0 and < 1; got 1.0"),
        ("drop_path", -0.1, "`drop_path` must be a number >= 0 and < 1; got -0.1"),
        ("interpolation", "nearest", "`interpolation` must be one of bilinear, bicubic; got 'nearest'"),
        ("crop_fraction", 0.0, "`crop_fraction` must be a number > 0 and <= 1; got 0.0"),
        ("crop_scale", 0.0, "`crop_scale` must be a number > 0 and <= 1; got 0.0"),
        ("crop_scale", 1.1, "`crop_scale` must be a number > 0 and <= 1; got 1.1"),
        ("crop_scale", math.nan, "`crop_scale` must be a number > 0 and <= 1; got nan"),
        ("crop_scale", "half", "`crop_scale` must be a number > 0 and <= 1; got 'half'"),
        ("flip", "yes", "`flip` must be true or false; got 'yes'"),
        ("flip", 1, "`flip` must be true or false; got 1"),
        ("flip", None, "`flip` must be true or false; got None"),
        ("mean", (0.5, 0.5), f"`mean` must be three numbers >= 0 and <= 1, {PER_CHANNEL} (0.5, 0.5)"),
        ("mean", (0.5, 0.5, -0.5), f"`mean` must be three numbers >= 0 and <= 1, {PER_CHANNEL} (0.5, 0.5, -0.5)"),
        ("mean", (0.5, 123.7, 0.5), f"`mean` must be three numbers >= 0 and <= 1, {PER_CHANNEL} (0.5, 123.7, 0.5)"),
        ("mean", [True, False, True], f"`mean` must be three numbers >= 0 and <= 1, {PER_CHANNEL} (True, False, True)"),
        ("mean", "a,b,c", f"`mean` must be three numbers >= 0 and <= 1, {PER_CHANNEL} 'a,b,c'"),
        ("mean", 0.5, f"`mean` must be three numbers >= 0 and <= 1, {PER_CHANNEL} 0.5"),
        ("std", "0.5,0,0.5", f"`std` must be three numbers > 0 and <= 1, {PER_CHANNEL} (0.5, 0.0, 0.5)"),
        ("std", (0.5, 0.5, math.inf), f"`std` must be three numbers > 0 and <= 1, {PER_CHANNEL} (0.5, 0.5, inf)"),
        ("std", "0.5,0.5,nan", f"`std` must be three numbers > 0 and <= 1, {PER_CHANNEL} (0.5, 0.5, nan)"),
        ("val_fraction", 0, "`val_fraction` must be a number > 0 and < 1; got 0"),
        ("val_fraction", 1, "`val_fraction` must be a number > 0 and < 1; got 1"),
        ("fit", "cut", "`fit` must be one of crop, pad, stretch; got 'cut'"),
        ("epochs", 0, f"`epochs` {AN_INTEGER} 0"),
        ("epochs", -1, f"`epochs` {AN_INTEGER} -1"),
        ("epochs", 1.5, f"`epochs` {AN_INTEGER} 1.5"),
        ("epochs", "3", f"`epochs` {AN_INTEGER} '3'"),
        ("epochs", True, f"`epochs` {AN_INTEGER} True"),
        ("epochs", None, f"`epochs` {AN_INTEGER} None"),
        ("batch_size", 0, f"`batch_size` {AN_INTEGER} 0"),
        ("eval_batch_size", 0, f"`eval_batch_size` {AN_INTEGER} 0"),
        ("optimizer", "lamb", "`optimizer` must be one of adamw, adam, sgd, adagrad; got 'lamb'"),
        ("optimizer", "AdamW", "`optimizer` must be one of adamw, adam, sgd, adagrad; got 'AdamW'"),
        ("optimizer", ["sgd"], "`optimizer` must be one of adamw, adam, sgd, adagrad; got ['sgd']"),
        ("lr", 0.0, "`lr` must be a number > 0; got 0.0"),
        ("lr", -0.1, "`lr` must be a number > 0; got -0.1"),
        ("lr", math.inf, "`lr` must be a number > 0; got inf"),
        ("lr", math.nan, "`lr` must be a number > 0; got nan"),
        ("lr", "fast", "`lr` must be a number > 0; got 'fast'"),
        ("lr", True, "`lr` must be a number > 0; got True"),
        ("weight_decay", -1e-4, "`weight_decay` must be a number >= 0; got -0.0001"),
        ("momentum", 1.0, "`momentum` must be a number >= 0 and < 1; got 1.0"),
        ("momentum", -0.1, "`momentum` must be a number >= 0 and < 1; got -0.1"),
        ("momentum", None, "`momentum` must be a number >= 0 and < 1; got None"),
        ("schedule", "cyclic", "`schedule` must be one of cosine, linear, step, constant; got 'cyclic'"),
        ("warmup_epochs", -1.0, "`warmup_epochs` must be a number >= 0; got -1.0"),
        (
            "loss",
            "hinge",
            "`loss` must be one of cross-entropy, focal, binary-cross-entropy, mean-squared-error; got 'hinge'",
        ),
        ("label_smoothing", 1.0, "`label_smoothing` must be a number >= 0 and < 1; got 1.0"),
        ("label_smoothing", -0.1, "`label_smoothing` must be a number >= 0 and < 1; got -0.1"),
        ("clip_norm", 0.0, "`clip_norm` must be a number > 0; got 0.0"),
        ("ema_decay", 1.0, "`ema_decay` must be a number >= 0 and < 1; got 1.0"),
        ("seed", -1, "`seed` must be an integer >= 0 and <= 18446744073709551615; got -1"),
        ("seed", 2**64, "`seed` must be an integer >= 0 and <= 18446744073709551615; got 18446744073709551616"),
        ("device", "gpu", "`device` must be auto, cpu, cuda, cuda:N or mps; got 'gpu'"),
        ("device", "cuda:x", "`device` must be auto, cpu, cuda, cuda:N or mps; got 'cuda:x'"),
        ("device", "cuda:-1", "`device` must be auto, cpu, cuda, cuda:N or mps; got 'cuda:-1'"),
        ("device", "cpu:0", "`device` must be auto, cpu, cuda, cuda:N or mps; got 'cpu:0'"),
        ("device", "", "`device` must be auto, cpu, cuda, cuda:N or mps; got ''"),
        ("device", 0, "`device` must be auto, cpu, cuda, cuda:N or mps; got 0"),
        ("workers", -1, "`workers` must be an integer >= 0; got -1"),
        ("precision", "float16", "`precision` must be one of auto, float32, bfloat16; got 'float16'"),
        ("compile", "no", "`compile` must be true or false; got 'no'"),
        ("save_station", 0, f"`save_station` {AN_INTEGER} 0"),
        ("log_every", 0, f"`log_every` {AN_INTEGER} 0"),
        ("out", "", "`out` must be a non-empty string; got ''"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(**{name: value})
    assert str(caught.value) == message


# Failed when it was written: `cuda:` was taken, and str.isdigit takes ².
@pytest.mark.parametrize("name", ["cuda:", "cuda:²"])
def test_device_numbers_are_numbers(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(device=name)
    assert str(caught.value) == f"`device` must be auto, cpu, cuda, cuda:N or mps; got {name!r}"


# Failed when it was written: True is an int.
def test_yes_is_no_number() -> None:
    """As everywhere else: `crop_scale = true` in a config file is a slip."""
    with pytest.raises(SettingsError, match="`crop_scale` must be a number > 0 and <= 1; got True"):
        Settings(crop_scale=True)


@pytest.mark.parametrize(
    "values",
    [
        {"image_size": 1},
        {"image_size": 4096},
        {"crop_scale": 1},
        {"crop_scale": 0.08},
        {"mean": (0, 0, 0)},
        {"epochs": 1, "batch_size": 1, "eval_batch_size": 1, "log_every": 1, "save_station": 1},
        {"lr": 1e-12, "clip_norm": 1e-12},
        {"lr": 1},
        {"weight_decay": 0.0, "momentum": 0.0, "warmup_epochs": 0.0, "label_smoothing": 0.0},
        {"weight_decay": 0, "momentum": 0, "warmup_epochs": 0, "label_smoothing": 0},
        {"warmup_epochs": 0.5},
        {"seed": 2**64 - 1},
        {"workers": 0},
        {"compile": True},
        {"compile": False, "flip": False},
        *({"device": name} for name in ("auto", "cpu", "cuda", "cuda:0", "cuda:17", "mps")),
        *({"optimizer": name} for name in ("adamw", "adam", "sgd", "adagrad")),
        *({"schedule": name} for name in ("cosine", "linear", "step", "constant")),
        *({"loss": name} for name in ("cross-entropy", "binary-cross-entropy", "mean-squared-error")),
        *({"precision": name} for name in ("auto", "float32", "bfloat16")),
    ],
)
def test_values_at_the_ends_of_their_range_are_taken(values: dict[str, Any]) -> None:
    settings = Settings(**values)
    assert {name: getattr(settings, name) for name in values} == values


def test_channels_come_as_text_or_list() -> None:
    assert Settings(mean="0.5, 0.25,1").mean == (0.5, 0.25, 1.0)
    assert Settings(std=[0.5, 0.25, 1]).std == (0.5, 0.25, 1.0)


def test_settings_do_not_change() -> None:
    settings = Settings()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        settings.epochs = 3
    changed = attrs.evolve(settings, epochs=3)
    assert (settings.epochs, changed.epochs) == (10, 3)
    with pytest.raises(SettingsError, match="`epochs` must be an integer >= 1; got 0"):
        attrs.evolve(settings, epochs=0)


def test_settings_are_given_by_name() -> None:
    with pytest.raises(TypeError):
        Settings("resnet18")


def test_settings_are_compared_by_value() -> None:
    assert Settings(mean="0.5,0.5,0.5") == Settings(mean=[0.5, 0.5, 0.5])
    assert Settings() != Settings(seed=1)


def test_flags_are_spelt_with_hyphens() -> None:
    assert flag("epochs") == "--epochs"
    assert flag("eval_batch_size") == "--eval-batch-size"


def test_every_setting_has_a_group_and_a_help_text() -> None:
    for field in attrs.fields(Settings):
        assert field.metadata["group"] in ("Model", "Data", "Training", "Fine-tuning", "Run"), field.name
        assert field.metadata["help"].endswith("."), field.name


def test_harmless_settings_exist() -> None:
    assert {field.name for field in attrs.fields(Settings)} >= HARMLESS
    assert "batch_size" not in HARMLESS


def test_names_of_a_mapping_take_hyphens_and_underscores() -> None:
    values = {"batch-size": 8, "eval_batch_size": 4, "lr": 0.5, "warmup-epochs": 2}
    found = from_mapping(values, source="run.toml")
    assert found == {"batch_size": 8, "eval_batch_size": 4, "lr": 0.5, "warmup_epochs": 2}
    assert Settings(**found).batch_size == 8
    assert values == {"batch-size": 8, "eval_batch_size": 4, "lr": 0.5, "warmup-epochs": 2}
    assert from_mapping({}, source="run.toml") == {}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("epoch", "; did you mean 'epochs'?"),
        ("batchsize", "; did you mean 'batch_size'?"),
        ("batch-sise", "; did you mean 'batch_size'?"),
        ("label_smothing", "; did you mean 'label_smoothing'?"),
        ("learning-rate", ""),
        ("xyz", ""),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_mapping({"epochs": 1, name: 2}, source="run.toml")
    assert str(caught.value) == f"run.toml: there is no setting {name!r}{hint}"


# Failed when it was written: the second silently won.
def test_the_same_setting_under_two_names_is_refused() -> None:
    with pytest.raises(SettingsError, match="batch"):
        from_mapping({"batch-size": 8, "batch_size": 9}, source="run.toml")


def heavy_modules_after(code: str) -> str:
    """Which of the slow imports a fresh process has made after some code."""
    heavy = "{'torch', 'torchvision', 'numpy', 'matplotlib', 'PIL', 'safetensors'}"
    code += f"; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_settings_import_no_torch() -> None:
    assert heavy_modules_after("import sys, ftrain, ftrain.run.settings, ftrain.errors") == "[]"


def test_the_command_line_imports_no_torch() -> None:
    """The folder cli/ is installed as ftrain_cli; here it is loaded as that, installed or not."""
    code = (
        "import sys, importlib, importlib.util as util; "
        "spec = util.spec_from_file_location('ftrain_cli', 'cli/__init__.py', submodule_search_locations=['cli']); "
        "sys.modules['ftrain_cli'] = util.module_from_spec(spec); "
        "importlib.import_module('ftrain_cli.main')"
    )
    assert heavy_modules_after(code) == "[]"


def test_the_check_for_torch_can_fail() -> None:
    assert "'torch'" in heavy_modules_after("import sys, torch")


def test_where_the_images_are_is_one_setting() -> None:
    below = {"train_dir": "a", "val_dir": "b", "lr": 0.1}
    assert merge(below, {"data": "c"}) == {"lr": 0.1, "data": "c"}
    assert merge(below, {"lr": 0.2}) == {"train_dir": "a", "val_dir": "b", "lr": 0.2}
    assert merge({"dataset": "mnist", "data": "c"}, {"data": "d"}) == {"dataset": "mnist", "data": "d"}
    assert merge(below, {"dataset": "mnist"}) == {"lr": 0.1, "dataset": "mnist"}
    assert merge({"data": "c"}, {"train_dir": "a", "val_dir": "b"}) == {"train_dir": "a", "val_dir": "b"}
