"""The package as it is installed."""

import importlib
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ftrain

ROOT = Path(__file__).parent.parent


def test_the_command_line_is_no_package_called_cli(tmp_path):
    """In an isolated interpreter, which sees what is installed and not the checkout."""
    code = "from importlib.util import find_spec; print(find_spec('cli'), find_spec('ftrain_cli') is not None)"
    result = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["None", "True"]


def test_the_top_level_packages_are_two():
    [top] = [f for f in importlib.metadata.files("ftrain") or [] if f.name == "top_level.txt"]
    assert top.read_text().split() == ["ftrain", "ftrain_cli"]


def test_every_public_name_is_there():
    missing = [name for name in ftrain.__all__ if getattr(ftrain, name, None) is None]
    assert missing == []
    assert set(ftrain.__all__) <= set(dir(ftrain))


PUBLIC_MODULES = [
    "compile",
    "errors",
    "losses",
    "metrics",
    "mix",
    "models",
    "module",
    "multi_label",
    "optim",
    "pytree",
    "random",
    "schedules",
    "scores",
    "state",
    "statistics",
    "steps",
    "testing",
]


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_a_public_module_lists_its_names_and_shows_an_example_of_each_function(name):
    module = importlib.import_module(f"ftrain.{name}")
    public = {each: getattr(module, each) for each in module.__all__}
    functions = {each: value for each, value in public.items() if inspect.isfunction(value)}
    assert [each for each, function in functions.items() if ">>> " not in (function.__doc__ or "")] == []
    assert [each for each in ftrain._NAMES_IN.get(name, []) if each not in public] == []


def test_every_error_of_ftrain_is_an_ftrain_error():
    errors = [ftrain.DonatedError, ftrain.testing.ImpureStepError]
    errors += [getattr(ftrain.errors, name) for name in ftrain.errors.__all__ if name != "Interrupted"]
    assert [error for error in errors if not issubclass(error, ftrain.FtrainError)] == []
    assert issubclass(ftrain.DonatedError, RuntimeError)
    assert issubclass(ftrain.testing.ImpureStepError, AssertionError)
    assert issubclass(ftrain.errors.SettingsError, ValueError)


def test_the_names_for_type_checkers_are_the_names_at_run_time():
    import ast

    tree = ast.parse((ROOT / "ftrain" / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    names = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert names == set(ftrain.__all__)


def test_the_version_is_the_changelogs():
    assert f"## {ftrain.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert importlib.metadata.version("ftrain") == ftrain.__version__
