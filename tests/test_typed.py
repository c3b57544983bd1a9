"""The shapes and dtypes in the annotations of the pure core, checked at every call in its tests.

In a process of its own, because Dynamo cannot trace the checks and beartype moves Python's random.
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
UNCOMPILED = "not compile and not graph and not pure and not vmap and not donated and not cumulative and not skeletons"


def run(*arguments):
    environment = {**os.environ, "FTRAIN_CHECK_SHAPES": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False)


def test_the_core_keeps_its_annotations():
    names = ("module", "losses", "metrics", "mix", "schedules", "optim", "pure", "statistics")
    files = [str(TESTS / ("optim/test_optim.py" if name == "optim" else f"test_{name}.py")) for name in names]
    result = run("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-m", "not slow", "-k", UNCOMPILED, *files)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


def test_the_checks_can_fail():
    code = "import conftest, torch, ftrain; ftrain.cross_entropy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))"
    environment_path = f"import sys; sys.path.insert(0, {str(TESTS)!r}); "
    result = run("-c", environment_path + code)
    assert result.returncode == 1
    assert "jaxtyping.TypeCheckError" in result.stderr
