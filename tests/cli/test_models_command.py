"""`ftrain models`, which takes its numbers from a table."""

import subprocess
import sys

import pytest
from ftrain_cli.main import app
from typer.testing import CliRunner

from ftrain.models import table

VERSIONS = dict(table.read().versions)


@pytest.fixture(autouse=True)
def versions(monkeypatch):
    """The versions that are installed, by default those of the table."""
    found = dict(VERSIONS)
    monkeypatch.setattr(table, "installed", found.get)
    return found


def listed(*arguments):
    result = CliRunner().invoke(app, ["models", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines(), result.stderr


def refused(*arguments):
    result = CliRunner().invoke(app, ["models", *arguments])
    assert result.exit_code == 2
    return result.stderr.strip()


def test_without_a_pattern_all_of_torchvision():
    lines, notes = listed()
    assert len(lines) == 81
    assert lines[0] == "model                     parameters  smallest image"
    assert lines[1] == "alexnet                       61.1 M  63 px"
    names = [line.split()[0] for line in lines]
    assert names[names.index("resnet18") :][:5] == ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    assert notes == "timm has 1364 more: ftrain models 'timm/*'\n"


def test_a_pattern():
    assert listed("ResNet1?") == (
        ["model                     parameters  smallest image", "resnet18                      11.7 M  1 px"],
        "timm has 1 more: ftrain models 'timm/ResNet1?'\n",
    )


def test_the_networks_of_timm():
    lines, notes = listed("timm/resnet1[08]*")
    assert [line.split() for line in lines] == [
        ["model", "parameters", "input", "size"],
        ["timm/resnet10t", "5.4", "M", "176", "px"],
        ["timm/resnet18", "11.7", "M", "224", "px"],
        ["timm/resnet18d", "11.7", "M", "224", "px"],
        ["timm/resnet101", "44.5", "M", "224", "px"],
        ["timm/resnet101_clip", "57.3", "M", "224", "px"],
        ["timm/resnet101_clip_gap", "44.6", "M", "224", "px"],
        ["timm/resnet101c", "44.6", "M", "224", "px"],
        ["timm/resnet101d", "44.6", "M", "256", "px"],
        ["timm/resnet101s", "44.7", "M", "224", "px"],
    ]
    assert notes == ""
    assert len({line.rindex("px") for line in lines[1:]}) == 1  # in columns
    assert len(listed("timm/*")[0]) == len(listed("timm")[0]) == 1365


def test_a_pattern_that_nothing_matches():
    assert refused("lstm") == "ftrain: no model's name matches 'lstm'; `ftrain models` lists them all"
    assert (
        refused("timm/lstm") == "ftrain: no model's name matches 'timm/lstm'; `ftrain models 'timm/*'` lists them all"
    )
    assert refused("EfficientNet_Lite") == (
        "ftrain: no model's name matches 'EfficientNet_Lite'; timm has 10: ftrain models 'timm/*EfficientNet_Lite*'"
    )


def test_other_versions_than_the_tables_are_named(versions):
    versions["timm"] = "1.0.99"
    assert listed("timm/resnet18")[1] == (
        f"this is the list of timm {VERSIONS['timm']}; timm 1.0.99 is installed and may have other networks\n"
    )
    assert "1.0.99 is installed and may have other networks\nftrain: no model's name" in refused("timm/lstm")
    del versions["timm"]
    assert listed("timm/resnet18")[1] == "timm is not installed; `pip install '.[timm]'` installs it with ftrain\n"
    versions["torchvision"] = "0.99"
    assert f"this is the list of torchvision {VERSIONS['torchvision']}; torchvision 0.99 is" in listed("resnet18")[1]


def test_neither_torch_nor_the_libraries_are_imported():
    code = (
        "import sys; from ftrain_cli.main import app\n"
        "try: app(['models', 'timm/*'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'torchvision', 'timm', 'numpy', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 1366
    assert lines[-1] == "[]"
