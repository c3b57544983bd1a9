from __future__ import annotations

import doctest
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, StepLR

from ftrain import schedules
from ftrain.schedules import Schedule, constant, step_decay, warmup_cosine, warmup_linear

SCHEDULES = {
    "constant": constant(0.1),
    "warmup_cosine": warmup_cosine(0.3, total_steps=20, warmup_steps=5, floor=0.01),
    "warmup_cosine_cold": warmup_cosine(0.3, total_steps=20),
    "warmup_linear": warmup_linear(0.3, total_steps=20, warmup_steps=5, floor=0.01),
    "step_decay": step_decay(0.3, every=4, factor=0.5),
}


@pytest.fixture(params=[torch.float32, torch.float64, torch.bfloat16])
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def rates(schedule: Schedule, *steps: int) -> list[float]:
    return [schedule(torch.tensor(step)).item() for step in steps]


def torch_rates(initial: float, count: int, make: Callable[[torch.optim.Optimizer], LRScheduler]) -> list[float]:
    """The rates that a scheduler of torch sets for the steps 0 to count - 1."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=initial)
    scheduler = make(optimizer)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_doctests(default_dtype: torch.dtype) -> None:
    """Whatever torch's default dtype: the rate is always float64."""
    result = doctest.testmod(schedules)
    assert result.failed == 0
    assert result.attempted > 0


@pytest.mark.parametrize("name", ["constant", "warmup_cosine", "warmup_linear", "step_decay"])
def test_each_schedule_has_a_doctest(name: str) -> None:
    assert ">>>" in getattr(schedules, name).__doc__


def test_constant() -> None:
    assert rates(constant(0.1), 0, 1, 10**12) == [0.1, 0.1, 0.1]
    assert rates(constant(0.0), 5) == [0.0]


def test_warmup_cosine_at_its_corners() -> None:
    schedule = warmup_cosine(1.0, total_steps=12, warmup_steps=4, floor=0.2)
    assert rates(schedule, 0, 1, 2, 3, 4) == [0.25, 0.5, 0.75, 1.0, 1.0]
    # cos(pi / 4) = 0.7071067811865476: 0.2 + 0.4 x 1.7071..., 0.2 + 0.4 x 1, 0.2 + 0.4 x 0.2928...
    assert rates(schedule, 6, 8, 10) == pytest.approx([0.8828427124746191, 0.6, 0.3171572875253810], abs=1e-15)
    assert rates(schedule, 12, 13, 10**9) == [0.2, 0.2, 0.2]


def test_warmup_linear_at_its_corners() -> None:
    schedule = warmup_linear(1.0, total_steps=12, warmup_steps=4, floor=0.5)
    assert rates(schedule, 0, 1, 2, 3, 4) == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(schedule, 6, 8, 10) == [0.875, 0.75, 0.625]
    assert rates(schedule, 12, 13, 10**9) == [0.5, 0.5, 0.5]


def test_no_warmup_starts_at_the_peak() -> None:
    assert rates(warmup_cosine(0.3, total_steps=2), 0, 1, 2) == pytest.approx([0.3, 0.15, 0.0], abs=1e-16)
    assert rates(warmup_linear(0.5, total_steps=2), 0, 1, 2) == [0.5, 0.25, 0.0]


def test_the_last_step_of_a_run_has_a_rate_above_the_floor() -> None:
    """Step total_steps - 1 is the last that is taken, and its rate is not yet the floor."""
    assert rates(warmup_linear(1.0, total_steps=4), 3) == [0.25]
    assert rates(warmup_cosine(1.0, total_steps=4), 3)[0] == pytest.approx(0.1464466094067262, abs=1e-15)


def test_step_decay_at_its_corners() -> None:
    assert rates(step_decay(1.0, every=3, factor=0.5), 0, 2, 3, 5, 6, 9) == [1.0, 1.0, 0.5, 0.5, 0.25, 0.125]
    assert rates(step_decay(2.0, every=1), 0, 1, 2) == pytest.approx([2.0, 0.2, 0.02], rel=1e-15)
    assert rates(step_decay(1.0, every=2, factor=2.0), 0, 2, 4) == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_the_rate_is_a_0d_float64_tensor(name: str, dtype: torch.dtype) -> None:
    rate = SCHEDULES[name](torch.tensor(3, dtype=dtype))
    assert rate.shape == ()
    assert rate.dtype == torch.float64


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_step_is_not_changed(name: str) -> None:
    step = torch.tensor(3)
    SCHEDULES[name](step)
    assert step.item() == 3


def test_warmup_cosine_equals_torch() -> None:
    expected = torch_rates(0.3, 101, lambda optimizer: CosineAnnealingLR(optimizer, 100, eta_min=0.01))
    assert rates(warmup_cosine(0.3, total_steps=100, floor=0.01), *range(101)) == pytest.approx(expected, rel=1e-12)


def test_warmup_cosine_equals_torchs_lambda() -> None:
    def factor(step: int) -> float:
        return (step + 1) / 10 if step < 10 else (1 + math.cos(math.pi * min(1.0, (step - 10) / 40))) / 2

    expected = torch_rates(0.3, 60, lambda optimizer: LambdaLR(optimizer, factor))
    found = rates(warmup_cosine(0.3, total_steps=50, warmup_steps=10), *range(60))
    assert found == pytest.approx(expected, rel=1e-14, abs=1e-16)


def test_warmup_linear_equals_torch() -> None:
    expected = torch_rates(0.3, 50, lambda optimizer: LinearLR(optimizer, 1.0, 0.1, total_iters=40))
    assert rates(warmup_linear(0.3, total_steps=40, floor=0.03), *range(50)) == pytest.approx(expected, rel=1e-12)


def test_step_decay_equals_torch() -> None:
    expected = torch_rates(0.3, 50, lambda optimizer: StepLR(optimizer, 7, gamma=0.1))
    assert rates(step_decay(0.3, every=7), *range(50)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", [warmup_cosine, warmup_linear])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "`warmup_steps` must be >= 0 and < `total_steps`; got 0 and 0"),
        ({"total_steps": 5, "warmup_steps": 5}, "`warmup_steps` must be >= 0 and < `total_steps`; got 5 and 5"),
        ({"total_steps": 5, "warmup_steps": -1}, "`warmup_steps` must be >= 0 and < `total_steps`; got -1 and 5"),
        ({"total_steps": 5, "floor": -0.1}, "`floor` must be >= 0 and <= `peak`; got -0.1 and 0.1"),
        ({"total_steps": 5, "floor": 0.2}, "`floor` must be >= 0 and <= `peak`; got 0.2 and 0.1"),
    ],
)
def test_impossible_schedules_are_rejected(make: Callable[..., Schedule], options: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(0.1, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("peak", [-0.1, math.nan])
def test_impossible_peaks_are_rejected(peak: float) -> None:
    with pytest.raises(ValueError, match="`floor` must be >= 0 and <= `peak`; got 0.0 and"):
        warmup_cosine(peak, total_steps=5)


@pytest.mark.parametrize(("every", "factor"), [(0, 0.1), (-1, 0.1), (1, 0.0), (1, -0.5)])
def test_impossible_staircases_are_rejected(every: int, factor: float) -> None:
    with pytest.raises(ValueError, match=f"`every` must be >= 1 and `factor` > 0; got {every} and {factor}"):
        step_decay(0.1, every=every, factor=factor)


@pytest.mark.parametrize("name", SCHEDULES)
def test_vmap_over_steps_equals_the_loop(name: str) -> None:
    steps = torch.arange(25)
    expected = torch.stack([SCHEDULES[name](step) for step in steps])
    torch.testing.assert_close(torch.func.vmap(SCHEDULES[name])(steps), expected, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("name", SCHEDULES)
def test_compiled_as_one_graph_while_the_step_moves(name: str) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(SCHEDULES[name], fullgraph=True, dynamic=False, backend=backend)
    for step in (0, 1, 4, 5, 19, 20, 1000):
        assert compiled(torch.tensor(step)).item() == SCHEDULES[name](torch.tensor(step)).item()
    assert len(graphs) == 1
