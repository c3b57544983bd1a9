"""The code and the names in the documentation."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
HANGING = 900  # seconds after which a script counts as hanging, however busy the machine is


def blocks(page):
    """The code of a page, joined for each file that the titles of its blocks name."""
    files = {}
    for title, code in re.findall(r'```python title="([^"]+)"\n(.*?)```', page.read_text(), re.DOTALL):
        files[title] = files.get(title, "") + code + "\n"
    return files


def make_data(folder):
    """Dark and light images: 64 to train on, 16 to validate on."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 8)):
        for name, level in (("dark", 60), ("light", 190)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(level + noise.normal(0, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


# Scripts and tests in one process, so that torch is imported once.
IN_TURN = """
import runpy, sys
import pytest
for name in sys.argv[1:]:
    if name.startswith("test_"):
        pytest.main(["-p", "no:cacheprovider", "-q", name])
    else:
        runpy.run_path(name, run_name="__main__")
    print("--- end", flush=True)
"""


@pytest.mark.slow
def test_the_code_of_the_tutorial_runs(tmp_path):
    """That of the English one; the other has the same code, as the next test finds."""
    files = blocks(ROOT / "docs" / "tutorial.md")
    assert list(files) == ["net.py", "train.py", "pure.py", "test_step.py", "extras.py"]
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    make_data(tmp_path / "data")

    command = [sys.executable, "-c", IN_TURN, "train.py", "pure.py", "test_step.py", "extras.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=HANGING)
    assert done.returncode == 0, done.stderr
    train, pure, tested, extras = done.stdout.split("--- end\n")[:4]
    epochs = [r"epoch 1: \d\.\d{3} \d+\.\d%", r"epoch 2: \d\.\d{3} \d+\.\d%", r"epoch 3: \d\.\d{3} \d+\.\d%"]
    for output in (train, pure):
        lines = output.splitlines()
        assert len(lines) == 3
        assert all(re.fullmatch(pattern, line) for pattern, line in zip(epochs, lines, strict=True)), lines
    assert "1 passed" in tested
    assert extras.splitlines()[-1].startswith("tensor([")


def program(code):
    """What Python runs: the code without comments and docstrings."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def test_the_two_tutorials_have_the_same_code():
    english, chinese = (
        {name: program(code) for name, code in blocks(ROOT / page).items()}
        for page in ("docs/tutorial.md", "docs/zh/tutorial.md")
    )
    assert english == chinese
    assert program("x = 1  # one") == program('"""One."""\nx = 1') != program("x = 2")


def test_every_test_that_the_documentation_names_exists():
    tests = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    names = set(re.findall(r"^def (test_\w+)", "\n".join(tests.values()), re.MULTILINE))
    pages = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    checked = 0
    for page in pages:
        text = page.read_text()
        for reference in re.findall(r"`(?:[\w/]+\.py::)?(test_\w+?)(?:_?\.\.\.)?`", text):
            assert any(name.startswith(reference) for name in names), f"{page.name} names the test {reference}"
            checked += 1
        for reference in re.findall(r"`((?:tests|ftrain|cli|benchmarks|examples|docs)/[\w/.]+\.\w+)(?:::\w+)?`", text):
            assert (ROOT / reference).exists(), f"{page.name} names the file {reference}"
            checked += 1
    assert checked > 30


def test_every_public_name_is_in_the_reference():
    import ftrain

    reference = "\n".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    missing = [name for name in ftrain.__all__ if not re.search(rf"::: ftrain\.{name}\b", reference)]
    assert missing == []
