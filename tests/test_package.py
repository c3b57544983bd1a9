"""The package as it is installed."""

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

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


def test_the_names_for_type_checkers_are_the_names_at_run_time():
    import ast

    tree = ast.parse((ROOT / "ftrain" / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    names = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert names == set(ftrain.__all__)


def test_the_version_is_the_changelogs():
    assert f"## {ftrain.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert importlib.metadata.version("ftrain") == ftrain.__version__
