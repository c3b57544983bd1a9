"""The shapes and dtypes in the annotations of the pure core, checked at every call in its tests.

In a process of its own, because Dynamo cannot trace the checks and beartype moves Python's random.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LEFT_OUT = ("compile", "graph", "is_pure", "vmap", "donated", "eager_donation", "cumulative", "skeletons")
# Arguments that do not fit, whose errors are ftrain's own, and inputs that are a tuple, which no annotation covers.
LEFT_OUT += ("no_function", "wrong_form", "several_arguments")
FILES = [f"test_{name}.py" for name in ("module", "losses", "metrics", "mix", "schedules", "statistics", "extensions")]
OPTIMIZERS = [
    f"optim/test_optim.py::test_{name}"
    for name in (
        "sgd_by_hand",
        "the_first_step_of_adam_and_adagrad_is_the_rate",
        "clipping_by_hand",
        "chain_passes_gradients_on_in_order",
        "masked_decay_equals_torchs_parameter_groups",
        "an_optimizer_that_starts_later_counts_its_own_steps",
    )
]


def run(*arguments):
    environment = {**os.environ, "FTRAIN_CHECK_SHAPES": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("tests", "left_out"),
    [
        pytest.param([*FILES, *OPTIMIZERS], [*LEFT_OUT, "exact_whatever"], id="some"),
        pytest.param([*FILES, "optim/test_optim.py", "test_pure.py"], LEFT_OUT, id="all", marks=pytest.mark.long),
    ],
)
def test_the_core_keeps_its_annotations(tests, left_out):
    chosen = ["-m", "not slow and not long", "-k", " and ".join(f"not {word}" for word in left_out)]
    result = run("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *chosen, *(str(TESTS / name) for name in tests))
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


def test_the_checks_can_fail():
    code = "import conftest, torch, ftrain; ftrain.cross_entropy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))"
    environment_path = f"import sys; sys.path.insert(0, {str(TESTS)!r}); "
    result = run("-c", environment_path + code)
    assert result.returncode == 1
    assert "jaxtyping.TypeCheckError" in result.stderr
