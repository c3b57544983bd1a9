"""Errors of torch become errors that say what to do."""

import attrs
import pytest
import tiny_runs
import torch

from ftrain.errors import TrainingError, WorkerError
from ftrain.run.diagnose import diagnosed

SPEC = attrs.evolve(tiny_runs.spec(), batch_size=64)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out(error):
    expected = (
        r"^memory ran out at `batch_size=64`; use `accumulate=2`, which splits .*, or `batch_size=32`\. The original"
    )
    with pytest.raises(TrainingError, match=expected), diagnosed(SPEC):
        raise error


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "remedy"),
    [
        (64, 2, "use `accumulate=4`, which splits the batch into smaller parts, or `batch_size=32`."),
        (7, 1, "use `batch_size=3`."),
        (1, 1, "use a smaller `image_size` or a smaller network."),
    ],
)
def test_the_remedy_fits_the_batch(batch_size, accumulate, remedy):
    spec = attrs.evolve(SPEC, batch_size=batch_size, accumulate=accumulate)
    with pytest.raises(TrainingError) as caught, diagnosed(spec):
        raise MemoryError
    assert remedy in str(caught.value)


def test_a_run_that_can_resume_is_told_so():
    expected = "`resume=RUN` and `override=True`.*its last checkpoint is intact"
    with pytest.raises(TrainingError, match=expected), diagnosed(SPEC, resumable=True):
        raise MemoryError


def test_a_worker_that_was_killed():
    with pytest.raises(WorkerError, match=r"was killed \(signal: Killed\)"), diagnosed(SPEC):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")


def test_other_errors_stay_as_they_are():
    error = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError) as caught, diagnosed(SPEC):
        raise error
    assert caught.value is error
