"""Every example runs and shows what its docstring says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def output_of(name):
    result = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)], capture_output=True, text=True, check=False, timeout=900
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "own_loop.py",
        "sweep.py",
        "hypergradient.py",
        "gradient_norms.py",
    }


@pytest.mark.slow
def test_own_loop():
    accuracies = [float(text) for text in re.findall(r"accuracy ([\d.]+)%", output_of("own_loop.py"))]
    assert len(accuracies) == 5
    assert accuracies[-1] > 75.0


@pytest.mark.slow
def test_sweep():
    rows = [line.split() for line in output_of("sweep.py").splitlines()[2:]]
    means = {row[0]: float(row[-1].rstrip("%")) for row in rows}
    assert list(means) == ["0.0003", "0.003", "0.03", "0.3"]
    assert means["0.003"] > 75.0 > 50.0 > means["0.3"]


@pytest.mark.slow
def test_hypergradient():
    rows = [[float(cell) for cell in line.split()] for line in output_of("hypergradient.py").splitlines()[1:]]
    assert len(rows) == 12
    assert rows[0][0] == 1e-5
    assert rows[-1][0] > 1e-4  # the slope leads to a larger rate,
    assert rows[-1][1] < 0.6 * rows[0][1]  # and to a smaller loss


@pytest.mark.slow
def test_gradient_norms():
    lines = output_of("gradient_norms.py").splitlines()
    assert len(lines) == 1 + 10 + 1 + 5
    largest = [float(line.split()[1]) for line in lines[-5:]]
    assert largest == sorted(largest, reverse=True)
