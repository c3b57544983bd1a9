"""Every example runs and shows what its docstring says."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from small_sample import small_sample

import ftrain.data

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def output_of(capsys):
    """Runs an example, and returns what it prints."""

    def run(name):
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "own_loop.py",
        "sweep.py",
        "hypergradient.py",
        "gradient_norms.py",
    }


def accuracies(output):
    return [
        float(text) for text in re.findall(r"^epoch \d: validation loss \d\.\d{3}, accuracy ([\d.]+)%$", output, re.M)
    ]


def test_own_loop_on_a_part_of_the_sample(output_of, tmp_path, monkeypatch):
    folder = small_sample(tmp_path)
    monkeypatch.setattr(ftrain.data, "sample_folder", lambda: folder)
    found = accuracies(output_of("own_loop.py"))
    assert len(found) == 5
    assert found[-1] > 20.0  # chance is 10


@pytest.mark.long
def test_own_loop(output_of):
    found = accuracies(output_of("own_loop.py"))
    assert len(found) == 5
    assert found[-1] > 75.0


@pytest.mark.slow
def test_sweep(output_of):
    rows = [line.split() for line in output_of("sweep.py").splitlines()[2:]]
    means = {row[0]: float(row[-1].rstrip("%")) for row in rows}
    assert list(means) == ["0.0003", "0.003", "0.03", "0.3"]
    assert means["0.003"] > 75.0 > 50.0 > means["0.3"]


@pytest.mark.slow
def test_hypergradient(output_of):
    rows = [[float(cell) for cell in line.split()] for line in output_of("hypergradient.py").splitlines()[1:]]
    assert len(rows) == 12
    assert rows[0][0] == 1e-5
    assert rows[-1][0] > 1e-4  # the slope leads to a larger rate,
    assert rows[-1][1] < 0.6 * rows[0][1]  # and to a smaller loss


@pytest.mark.slow
def test_gradient_norms(output_of):
    lines = output_of("gradient_norms.py").splitlines()
    assert len(lines) == 1 + 10 + 1 + 5
    largest = [float(line.split()[1]) for line in lines[-5:]]
    assert largest == sorted(largest, reverse=True)
