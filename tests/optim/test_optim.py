"""Each optimizer beside torch.optim, on every path that `update` may take: fused kernels and plain arithmetic."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Container, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils import _pytree as pytree

import ftrain
from ftrain import optim
from ftrain.optim import (
    Optimizer,
    Tensors,
    _fused,
    adagrad,
    adam,
    adamw,
    chain,
    clip_by_global_norm,
    matrices_only,
    sgd,
    starting_at,
)
from ftrain.schedules import warmup_cosine

STEPS = 50

# (ftrain's factory without its rate, torch's class without its rate, the names of its state in ftrain and in torch)
PAIRS: dict[str, tuple[Callable[..., Optimizer], Callable[..., torch.optim.Optimizer], dict[str, str]]] = {
    "sgd": (sgd, torch.optim.SGD, {}),
    "sgd_decay": (
        functools.partial(sgd, weight_decay=0.1),
        functools.partial(torch.optim.SGD, weight_decay=0.1),
        {},
    ),
    "sgd_momentum": (
        functools.partial(sgd, momentum=0.9, weight_decay=0.1),
        functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1),
        {"momentum": "momentum_buffer"},
    ),
    "sgd_nesterov": (
        functools.partial(sgd, momentum=0.9, nesterov=True, weight_decay=0.1),
        functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
        {"momentum": "momentum_buffer"},
    ),
    "adam": (adam, torch.optim.Adam, {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}),
    "adam_decay": (
        functools.partial(adam, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.1),
        functools.partial(torch.optim.Adam, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
        {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    ),
    "adam_forgetful": (
        functools.partial(adam, b1=0.0, b2=0.0),
        functools.partial(torch.optim.Adam, betas=(0.0, 0.0)),
        {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    ),
    "adamw": (adamw, torch.optim.AdamW, {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}),
    "adamw_decay": (
        functools.partial(adamw, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.3),
        functools.partial(torch.optim.AdamW, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3),
        {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    ),
    "adagrad": (adagrad, torch.optim.Adagrad, {"sum": "sum"}),
    "adagrad_decay": (
        functools.partial(adagrad, eps=1e-3, weight_decay=0.1),
        functools.partial(torch.optim.Adagrad, eps=1e-3, weight_decay=0.1),
        {"sum": "sum"},
    ),
}
# One of each algorithm, with all its terms.
FACTORIES = {
    name: PAIRS[name][0] for name in ("sgd_decay", "sgd_nesterov", "adam_decay", "adamw_decay", "adagrad_decay")
}


def problem(dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (4, 3, 2, 2), "head.weight": (5, 4), "head.bias": (5,), "scale": ()}
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def gradients(params: Tensors) -> Tensors:
    """A fixed function of the parameters, of both signs, nowhere zero."""

    def gradient(param: Tensor) -> Tensor:
        sign = 1.0 - 2.0 * (torch.arange(param.numel()).reshape(param.shape) % 2).to(param.dtype)
        return sign * (0.7 + 0.3 * torch.sin(3.0 * param))

    return {name: gradient(param) for name, param in params.items()}


def loss_of(params: Tensors) -> Tensor:
    return sum((param * param.cos()).sum() for param in params.values())


Updater = Callable[..., tuple[Tensors, Any]]


def eager(optimizer: Optimizer) -> Updater:
    return optimizer.update


def under_vmap(optimizer: Optimizer) -> Updater:
    def update(*args: Any) -> tuple[Tensors, Any]:
        stacked = pytree.tree_map(lambda tensor: tensor[None], args)
        return pytree.tree_map(lambda tensor: tensor[0], torch.func.vmap(optimizer.update)(*stacked))

    return update


def under_grad(optimizer: Optimizer) -> Updater:
    def update(*args: Any) -> tuple[Tensors, Any]:
        return torch.func.grad(lambda x: (x, optimizer.update(*args)), has_aux=True)(torch.tensor(1.0))[1]

    return update


def under_autograd(optimizer: Optimizer) -> Updater:
    def update(grads: Tensors, opt_state: Any, params: Tensors, step: Tensor) -> tuple[Tensors, Any]:
        leaves = pytree.tree_map(lambda tensor: tensor.detach().requires_grad_(), params)
        return pytree.tree_map(torch.detach, optimizer.update(grads, opt_state, leaves, step))

    return update


def compiled(optimizer: Optimizer) -> Updater:
    torch._dynamo.reset()
    return torch.compile(optimizer.update, fullgraph=True, dynamic=False, backend="aot_eager")


PATHS = [eager, under_vmap, under_grad, under_autograd, compiled]


def on_every_path(names: Iterable[str], quick: Container[str]) -> pytest.MarkDecorator:
    """Parametrizes a test with names and paths. Only those in `quick` are compiled without `-m long`."""
    return pytest.mark.parametrize(
        ("name", "path"),
        [
            pytest.param(name, path, marks=pytest.mark.long if path is compiled and name not in quick else [])
            for name in names
            for path in PATHS
        ],
    )


def run(
    optimizer: Optimizer, params: Tensors, steps: int = STEPS, path: Callable[[Optimizer], Updater] = eager
) -> tuple[Tensors, Any]:
    opt_state, update = optimizer.init(params), path(optimizer)
    for step in range(steps):
        params, opt_state = update(gradients(params), opt_state, params, torch.tensor(step))
    return params, opt_state


def run_torch(
    make: Callable[[list[Any]], torch.optim.Optimizer],
    params: Tensors,
    steps: int = STEPS,
    factor: Callable[[int], float] | None = None,
    max_norm: float | None = None,
) -> tuple[Tensors, torch.optim.Optimizer]:
    leaves = {name: torch.nn.Parameter(param.clone()) for name, param in params.items()}
    optimizer = make(list(leaves.values()))
    scheduler = LambdaLR(optimizer, factor) if factor else None
    for _ in range(steps):
        for name, grad in gradients({name: leaf.detach() for name, leaf in leaves.items()}).items():
            leaves[name].grad = grad
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(leaves.values(), max_norm)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}, optimizer


def assert_close(found: Any, expected: Any, dtype: torch.dtype = torch.float64) -> None:
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def assert_identical(found: Any, expected: Any) -> None:
    for ours, theirs in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert torch.equal(ours, theirs)


@on_every_path(PAIRS, quick=FACTORIES)
def test_equals_torch_in_float64(name: str, path: Callable[[Optimizer], Updater]) -> None:
    ours, theirs, state_names = PAIRS[name]
    params, opt_state = run(ours(0.01), problem(), path=path)
    expected, reference = run_torch(lambda leaves: theirs(leaves, lr=0.01, foreach=False), problem())
    assert_close(params, expected)
    assert opt_state.keys() == state_names.keys()
    states = reference.state.values()
    for key, torch_key in state_names.items():
        assert_close(list(opt_state[key].values()), [state[torch_key] for state in states])


@pytest.mark.parametrize("path", [eager, under_vmap])
@pytest.mark.parametrize("name", PAIRS)
def test_equals_torch_in_float32_to_rounding(name: str, path: Callable[[Optimizer], Updater]) -> None:
    ours, theirs, _ = PAIRS[name]
    params, _ = run(ours(0.01), problem(torch.float32), path=path)
    expected, _ = run_torch(lambda leaves: theirs(leaves, lr=0.01, foreach=False), problem(torch.float32))
    assert all(param.dtype == torch.float32 for param in params.values())
    assert_close(params, expected, torch.float32)


@pytest.mark.parametrize("path", [eager, under_vmap])
@pytest.mark.parametrize("name", FACTORIES)
def test_equals_torch_late_in_a_run(name: str, path: Callable[[Optimizer], Updater]) -> None:
    """The millionth step is not a first step: the counters follow `step`."""
    ours, theirs, state_names = PAIRS[name]
    params, optimizer = problem(), ours(0.01)
    opt_state = {key: pytree.tree_map(lambda p: 0.1 + p.abs(), params) for key in state_names}
    found, _ = path(optimizer)(gradients(params), opt_state, params, torch.tensor(999_999))

    def make(leaves: list[Any]) -> torch.optim.Optimizer:
        reference = theirs(leaves, lr=0.01, foreach=False)
        for index, leaf in enumerate(leaves):
            state = {
                theirs_key: list(opt_state[key].values())[index].clone() for key, theirs_key in state_names.items()
            }
            reference.state[leaf] = {"step": torch.tensor(999_999.0), **state}
        return reference

    assert_close(found, run_torch(make, params, steps=1)[0])


def test_sgd_by_hand() -> None:
    """p = 2, g = 1, weight decay 0.5, momentum 0.5, lr 0.1, two steps."""

    def two_steps(optimizer: Optimizer) -> tuple[float, float]:
        params, opt_state = {"p": torch.tensor(2.0, dtype=torch.float64)}, {}
        opt_state = optimizer.init(params)
        found = []
        for step in range(2):
            grads = {"p": torch.tensor(1.0, dtype=torch.float64)}
            params, opt_state = optimizer.update(grads, opt_state, params, torch.tensor(step))
            found.append(params["p"].item())
        return found[0], found[1]

    assert two_steps(sgd(0.1)) == pytest.approx((1.9, 1.8), abs=1e-15)
    # g = 1 + 0.5 x 2 = 2, p = 1.8; g = 1.9, p = 1.61
    assert two_steps(sgd(0.1, weight_decay=0.5)) == pytest.approx((1.8, 1.61), abs=1e-15)
    # v = 1, p = 1.9; v = 1.5, p = 1.75
    assert two_steps(sgd(0.1, momentum=0.5)) == pytest.approx((1.9, 1.75), abs=1e-15)
    # 1 + 0.5 x 1 = 1.5, p = 1.85; 1 + 0.5 x 1.5 = 1.75, p = 1.675
    assert two_steps(sgd(0.1, momentum=0.5, nesterov=True)) == pytest.approx((1.85, 1.675), abs=1e-15)


def test_the_first_step_of_adam_and_adagrad_is_the_rate() -> None:
    params, grads = {"p": torch.tensor([2.0, 2.0])}, {"p": torch.tensor([1e-3, -1e3])}
    for optimizer in (adam(0.1), adamw(0.1, weight_decay=0.0), adagrad(0.1)):
        found, _ = optimizer.update(grads, optimizer.init(params), params, torch.tensor(0))
        torch.testing.assert_close(found["p"], torch.tensor([1.9, 2.1]))


@pytest.mark.parametrize("path", [eager, under_vmap])
@pytest.mark.parametrize("name", FACTORIES)
def test_zero_rate_keeps_parameters_and_moves_the_state(name: str, path: Callable[[Optimizer], Updater]) -> None:
    optimizer, params = FACTORIES[name](0.0), problem()
    found, opt_state = run(optimizer, params, steps=2, path=path)
    assert_identical(found, params)
    assert all(bool((leaf != 0).all()) for leaf in pytree.tree_leaves(opt_state))


# --- the two paths


@pytest.mark.parametrize("name", FACTORIES)
def test_fused_kernels_are_used_only_without_transforms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class CalledError(Exception):
        pass

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise CalledError

    for kernel in ("torch_sgd", "torch_adam", "torch_adamw", "torch_adagrad"):
        monkeypatch.setattr(_fused, kernel, refuse)
    optimizer = FACTORIES[name](0.01)
    with pytest.raises(CalledError):
        run(optimizer, problem(), steps=1, path=eager)
    for path in (under_vmap, under_grad, under_autograd):
        run(optimizer, problem(), steps=1, path=path)


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("which", ["grads", "params", "opt_state"])
def test_memory_layout_does_not_matter(name: str, which: str) -> None:
    """A convolution gives channels_last gradients for channels_last images, and a contiguous parameter beside them.
    torch's fused kernels read memory in order, whatever the strides."""
    optimizer, params = FACTORIES[name](0.01), problem()
    params, opt_state = run(optimizer, params, steps=2)
    given = {"grads": gradients(params), "opt_state": opt_state, "params": params, "step": torch.tensor(2)}
    expected = optimizer.update(**given)

    def turned(tensor: Tensor) -> Tensor:
        """The same numbers, the last dimension the slowest."""
        return tensor.movedim(-1, 0).contiguous().movedim(0, -1) if tensor.ndim > 1 else tensor

    given[which] = pytree.tree_map(turned, given[which])
    assert which == "opt_state" or given[which]["head.weight"].stride() == (1, 5)
    assert_close(optimizer.update(**given), expected)


@pytest.mark.parametrize("name", FACTORIES)
def test_compiled_once_while_the_step_moves(name: str) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    optimizer = FACTORIES[name](warmup_cosine(0.1, total_steps=6, warmup_steps=2))
    update = torch.compile(optimizer.update, fullgraph=True, dynamic=False, backend=backend)
    found, _ = run(optimizer, problem(), steps=6, path=lambda _: update)
    assert len(graphs) == 1
    assert_close(found, run(optimizer, problem(), steps=6)[0])


def with_mean(lr: Any) -> Optimizer:
    """SGD on the running mean of gradients, which a transform keeps."""

    def update(grads: Tensors, mean: Tensors, params: Tensors, step: Tensor) -> tuple[Tensors, Tensors]:
        mean = {name: 0.5 * mean[name] + grad for name, grad in grads.items()}
        return mean, mean

    zeros = optim.Transform(lambda params: {name: torch.zeros_like(p) for name, p in params.items()}, update)
    return optim.chain(zeros, optim.sgd(lr, momentum=0.9))


@on_every_path([*FACTORIES, "with_mean"], quick=("adamw_decay", "with_mean"))
def test_a_skipped_update_changes_nothing(name: str, path: Callable[[Optimizer], Updater]) -> None:
    optimizer = {**FACTORIES, "with_mean": with_mean}[name](0.01)
    params, opt_state = run(optimizer, problem(), steps=2)
    bad = {name: grad * float("nan") for name, grad in gradients(params).items()}
    args = opt_state, params, torch.tensor(2)

    def skipping(skip: bool) -> Updater:
        return path(optimizer._replace(update=functools.partial(optimizer.update, skip=torch.tensor(skip))))

    assert_identical(skipping(True)(bad, *args), (params, opt_state))
    assert_close(skipping(False)(gradients(params), *args), path(optimizer)(gradients(params), *args))


@pytest.mark.parametrize("name", ["sgd_decay", "sgd_nesterov", "adam_decay", "adamw_decay"])
def test_a_compiled_donated_update_writes_where_the_state_is(name: str) -> None:
    optimizer = FACTORIES[name](0.01)
    params, opt_state = run(optimizer, problem(), steps=2)
    expected = optimizer.update(gradients(params), opt_state, params, torch.tensor(2))
    before = pytree.tree_leaves((params, opt_state))
    update = compiled(optimizer._replace(update=functools.partial(optimizer.update, donate=True)))
    with torch.no_grad():
        found = update(gradients(params), opt_state, params, torch.tensor(2))
    assert all(new is old for new, old in zip(pytree.tree_leaves(found), before, strict=True))
    assert_identical(found, expected)


@pytest.mark.parametrize(("name", "kernel"), [("adamw_decay", "ftrain.adam_"), ("sgd_nesterov", "ftrain.sgd_")])
def test_a_compiled_update_is_one_kernel_for_each_group(name: str, kernel: str) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    optimizer, params = FACTORIES[name](0.01), problem()
    torch._dynamo.reset()
    with torch.no_grad():
        update = torch.compile(optimizer.update, fullgraph=True, backend=backend)
        update(gradients(params), optimizer.init(params), params, torch.tensor(0))
    targets = [str(node.target) for node in graphs[0].graph.nodes]
    assert [target.removesuffix(".default") for target in targets].count(kernel) == 1
    assert not any("sqrt" in target for target in targets)


def test_a_transform_may_keep_what_a_donated_update_writes_into() -> None:
    keeping = optim.Transform(lambda params: params, lambda grads, state, params, step: (grads, params))
    optimizer, params = optim.chain(keeping, optim.sgd(0.5)), problem()
    state = ftrain.init_state(params, {}, optimizer, seed=0)
    before = {name: param.clone() for name, param in params.items()}
    _, (kept, _) = optimizer.update(gradients(params), state.opt_state, params, torch.tensor(0), donate=True)
    assert_identical(kept, before)
    assert not any(torch.equal(params[name], before[name]) for name in params)


def test_a_state_shares_no_memory_with_its_parameters() -> None:
    optimizer = Optimizer(lambda params: {"average": params}, lambda grads, state, params, step: (params, state))
    params = problem()
    state = ftrain.init_state(params, {}, optimizer, seed=0)
    assert state.params is params
    for name, average in state.opt_state["average"].items():
        assert torch.equal(average, params[name])
        assert average.data_ptr() != params[name].data_ptr()


# --- the learning rate


@pytest.mark.parametrize("path", [eager, under_vmap])
@pytest.mark.parametrize("name", FACTORIES)
def test_schedule_equals_torchs_lambda(name: str, path: Callable[[Optimizer], Updater]) -> None:
    ours, theirs, _ = PAIRS[name]

    def factor(step: int) -> float:
        return (step + 1) / 5 if step < 5 else (1 + math.cos(math.pi * min(1.0, (step - 5) / 35))) / 2

    schedule = warmup_cosine(0.05, total_steps=40, warmup_steps=5)
    found, _ = run(ours(schedule), problem(), path=path)
    expected, _ = run_torch(lambda leaves: theirs(leaves, lr=0.05, foreach=False), problem(), factor=factor)
    assert_close(found, expected)


def test_the_optimizer_reports_its_learning_rate() -> None:
    schedule = warmup_cosine(0.1, total_steps=4)
    for factory in FACTORIES.values():
        assert factory(0.3).learning_rate(torch.tensor(5)).item() == 0.3
        assert factory(schedule).learning_rate is schedule
        assert chain(clip_by_global_norm(1.0), factory(schedule)).learning_rate is schedule


@pytest.mark.parametrize("name", FACTORIES)
def test_a_rate_may_be_a_number_a_tensor_or_a_schedule(name: str) -> None:
    factory = FACTORIES[name]
    expected = run(factory(0.01), problem(), steps=3)
    assert_identical(run(factory(torch.tensor(0.01, dtype=torch.float64)), problem(), steps=3), expected)
    schedule = lambda step: torch.full((), 0.01, dtype=torch.float64)  # noqa: E731
    assert_identical(run(factory(schedule), problem(), steps=3), expected)


@pytest.mark.parametrize("name", FACTORIES)
def test_vmap_over_learning_rates_and_parameters_equals_the_loop(name: str) -> None:
    rates = torch.tensor([0.001, 0.01, 0.1], dtype=torch.float64)
    starts = [problem(seed=seed) for seed in range(3)]
    stacked = {key: torch.stack([start[key] for start in starts]) for key in starts[0]}

    def train(rate: Tensor, params: Tensors) -> tuple[Tensors, Any]:
        return run(FACTORIES[name](rate), params, steps=10)

    mapped = torch.func.vmap(train)(rates, stacked)
    for member, (rate, start) in enumerate(zip((0.001, 0.01, 0.1), starts, strict=True)):
        found = pytree.tree_map(lambda tensor, member=member: tensor[member], mapped)
        assert_close(found, run(FACTORIES[name](rate), start, steps=10))


def after_training(name: str, rate: Tensor, idle: bool) -> Tensor:
    """The loss after five steps; with `idle`, a parameter whose gradients are all zero takes part."""
    params = problem() | ({"idle": torch.ones(2, dtype=torch.float64)} if idle else {})
    optimizer = FACTORIES[name](rate)
    opt_state = optimizer.init(params)
    for step in range(5):
        grads = gradients(params)
        if idle:
            grads["idle"] = torch.zeros(2, dtype=torch.float64)
        params, opt_state = optimizer.update(grads, opt_state, params, torch.tensor(step))
    return loss_of(params)


@pytest.mark.parametrize("idle", [False, True])
@pytest.mark.parametrize("name", FACTORIES)
def test_hypergradient_equals_finite_differences(name: str, idle: bool) -> None:
    rate, h = torch.tensor(0.03, dtype=torch.float64), 1e-4

    def slope(h: float) -> Tensor:
        return (after_training(name, rate + h, idle) - after_training(name, rate - h, idle)) / (2 * h)

    difference = (4 * slope(h / 2) - slope(h)) / 3  # the error is of order h^4
    found = torch.func.grad(lambda lr: after_training(name, lr, idle))(rate)
    torch.testing.assert_close(found, difference, rtol=1e-8, atol=1e-8)
    leaf = rate.clone().requires_grad_()
    after_training(name, leaf, idle).backward()
    torch.testing.assert_close(leaf.grad, found, rtol=1e-13, atol=0)


@pytest.mark.parametrize("factory", [sgd, adam, functools.partial(adamw, weight_decay=0.0), adagrad])
def test_hypergradient_of_a_parameter_that_never_moved_is_zero(factory: Callable[..., Optimizer]) -> None:
    params = {"idle": torch.ones(2, dtype=torch.float64)}
    grads = {"idle": torch.zeros(2, dtype=torch.float64)}

    def loss(rate: Tensor, grads: Tensors) -> Tensor:
        optimizer = factory(rate)
        return optimizer.update(grads, optimizer.init(params), params, torch.tensor(0))[0]["idle"].sum()

    by_rate, by_grads = torch.func.grad(loss, argnums=(0, 1))(torch.tensor(0.1, dtype=torch.float64), grads)
    assert by_rate.item() == 0.0
    assert torch.isfinite(by_grads["idle"]).all()


# --- clipping, chains, masks


@pytest.mark.parametrize("path", [eager, under_vmap])
@pytest.mark.parametrize("max_norm", [0.5, 5.7, 1e6])
def test_clipping_equals_torch(max_norm: float, path: Callable[[Optimizer], Updater]) -> None:
    optimizer = chain(clip_by_global_norm(max_norm), sgd(0.01, momentum=0.9))
    found, _ = run(optimizer, problem(), path=path)
    expected, _ = run_torch(
        lambda leaves: torch.optim.SGD(leaves, lr=0.01, momentum=0.9, foreach=False), problem(), max_norm=max_norm
    )
    assert_close(found, expected)


def test_clipping_by_hand() -> None:
    grads = {"a": torch.tensor([3.0], dtype=torch.float64), "b": torch.tensor([[4.0]], dtype=torch.float64)}

    def clipped(max_norm: float) -> list[float]:
        found, state = clip_by_global_norm(max_norm).update(grads, {}, grads, torch.tensor(0))
        assert state == {}
        return [found["a"].item(), found["b"].item()]

    assert clipped(1.0) == pytest.approx([0.59999988, 0.79999984], abs=1e-12)  # times 1 / (5 + 1e-6)
    assert clipped(10.0) == [3.0, 4.0]
    assert optim.global_norm(grads).item() == 5.0


def test_clipping_leaves_zero_gradients_alone() -> None:
    zero = {"a": torch.zeros(3)}
    found, _ = clip_by_global_norm(1.0).update(zero, {}, zero, torch.tensor(0))
    assert found["a"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_clipping_rejects_norms_out_of_range(max_norm: float) -> None:
    with pytest.raises(ValueError, match=f"`max_norm` of clip_by_global_norm must be > 0; got {max_norm}"):
        clip_by_global_norm(max_norm)


def test_chain_passes_gradients_on_in_order() -> None:
    """Double, then clip, is not clip, then double."""

    def double(grads: Tensors, state: Any, params: Tensors, step: Tensor) -> tuple[Tensors, Any]:
        return {name: 2.0 * grad for name, grad in grads.items()}, {"calls": state["calls"] + 1}

    doubling = optim.Transform(lambda params: {"calls": torch.tensor(0)}, double)
    clip = clip_by_global_norm(1.0)
    params, grads = {"p": torch.zeros(1, dtype=torch.float64)}, {"p": torch.full((1,), 3.0, dtype=torch.float64)}
    for parts, expected in (((doubling, clip), -1.0), ((clip, doubling), -2.0)):
        optimizer = chain(*parts, sgd(1.0))
        found, (counted, last) = optimizer.update(grads, optimizer.init(params), params, torch.tensor(0))
        assert found["p"].item() == pytest.approx(expected, abs=1e-6)
        assert counted["calls"].item() == 1
        assert last == {}


def test_chain_of_one_is_that_one() -> None:
    assert_identical(run(chain(adamw(0.01)), problem(), steps=3), run(adamw(0.01), problem(), steps=3))


def test_transforms_without_state_keep_the_state_of_the_optimizer() -> None:
    plain = adamw(0.01)
    clipped = chain(clip_by_global_norm(1e6), plain)  # which clips nothing
    assert_identical(run(clipped, problem(), steps=3), run(plain, problem(), steps=3))


def test_a_chain_may_end_in_a_chain() -> None:
    inner = chain(clip_by_global_norm(0.5), sgd(0.1))
    found, _ = run(chain(clip_by_global_norm(2.0), inner), problem(), steps=3)
    # The norm is 0.5 / (1 + 2e-7) after the first clipping too, by the 1e-6 beside the norm.
    torch.testing.assert_close(found, run(inner, problem(), steps=3)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ((clip_by_global_norm(1.0),), "Transform"),
        ((sgd(0.1), clip_by_global_norm(1.0)), "Optimizer, Transform"),
        ((sgd(0.1),) * 2, "Optimizer, Optimizer"),
        ((), "nothing"),
    ],
)
def test_chain_rejects_parts_that_do_not_fit(parts: Any, found: str) -> None:
    with pytest.raises(ValueError, match=f"chain expects transforms .* followed by one optimizer; got {found}$"):
        chain(*parts)


def test_matrices_only_excludes_norms_and_biases() -> None:
    expected = {"conv.weight": True, "head.weight": True, "head.bias": False, "scale": False}
    assert matrices_only(problem()) == expected


@pytest.mark.parametrize("path", [eager, under_vmap])
@pytest.mark.parametrize("name", FACTORIES)
def test_masked_decay_equals_torchs_parameter_groups(name: str, path: Callable[[Optimizer], Updater]) -> None:
    ours, theirs, _ = PAIRS[name]

    def make(leaves: list[Tensor]) -> torch.optim.Optimizer:
        flat = [leaf for leaf in leaves if leaf.ndim < 2]
        matrices = [leaf for leaf in leaves if leaf.ndim >= 2]
        return theirs([{"params": matrices}, {"params": flat, "weight_decay": 0.0}], lr=0.01, foreach=False)

    found, opt_state = run(ours(0.01, mask=matrices_only), problem(), path=path)
    assert_close(found, run_torch(make, problem())[0])
    assert list(found) == list(problem())
    assert all(list(tensors) == list(problem()) for tensors in opt_state.values())


@pytest.mark.parametrize("name", FACTORIES)
def test_a_mask_may_exclude_all_or_nothing(name: str) -> None:
    factory = FACTORIES[name]
    nothing = factory(0.01, mask=lambda params: dict.fromkeys(params, False))
    all_of_them = factory(0.01, mask=lambda params: dict.fromkeys(params, True))
    assert_identical(run(nothing, problem(), 3), run(factory(0.01, weight_decay=0.0), problem(), 3))
    assert_identical(run(all_of_them, problem(), 3), run(factory(0.01), problem(), 3))


# --- purity and donation


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("clip", [False, True])
def test_donation_writes_the_same_into_the_given_memory(name: str, clip: bool) -> None:
    plain = FACTORIES[name](0.01, mask=matrices_only)
    optimizer = chain(clip_by_global_norm(1.0), plain) if clip else plain
    params, opt_state = run(optimizer, problem(torch.float32), steps=2)
    step = torch.tensor(2)
    expected = optimizer.update(gradients(params), opt_state, params, step)
    addresses = [tensor.data_ptr() for tensor in pytree.tree_leaves((params, opt_state))]
    found = optimizer.update(gradients(params), opt_state, params, step, donate=True)
    assert_identical(found, expected)
    assert [tensor.data_ptr() for tensor in pytree.tree_leaves(found)] == addresses
    assert not set(addresses) & {tensor.data_ptr() for tensor in pytree.tree_leaves(expected)}
    assert step.item() == 2


@pytest.mark.parametrize("path", [eager, under_vmap, under_grad])
@pytest.mark.parametrize("name", FACTORIES)
def test_no_input_changes_and_the_result_repeats(name: str, path: Callable[[Optimizer], Updater]) -> None:
    optimizer = FACTORIES[name](0.01)
    params, opt_state = run(optimizer, problem(), steps=2)
    inputs = (gradients(params), opt_state, params, torch.tensor(2))
    copies = pytree.tree_map(torch.clone, inputs)
    update = path(optimizer)
    first = update(*inputs)
    assert_identical(inputs, copies)
    assert_identical(update(*inputs), first)


@pytest.mark.parametrize("name", FACTORIES)
def test_init_gives_zeros_and_leaves_the_parameters(name: str) -> None:
    params = problem(torch.float32)
    copies = pytree.tree_map(torch.clone, params)
    for tensors in FACTORIES[name](0.01).init(params).values():
        assert list(tensors) == list(params)
        for key, tensor in tensors.items():
            assert (tensor.shape, tensor.dtype, tensor.count_nonzero()) == (params[key].shape, torch.float32, 0)
    assert_identical(params, copies)


def test_sgd_without_momentum_keeps_no_state() -> None:
    assert sgd(0.1).init(problem()) == {}


# --- hyperparameters


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sgd(-0.1), "`lr` must be a number >= 0; got -0.1"),
        (lambda: sgd(math.inf), "`lr` must be a number >= 0; got inf"),
        (lambda: adagrad(math.nan), "`lr` must be a number >= 0; got nan"),
        (lambda: adam(-1.0), "`lr` must be a number >= 0; got -1.0"),
        (lambda: sgd(0.1, momentum=1.0), "`momentum` must be a number >= 0 and < 1; got 1.0"),
        (lambda: sgd(0.1, momentum=-0.1), "`momentum` must be a number >= 0 and < 1; got -0.1"),
        (lambda: sgd(0.1, nesterov=True), "`nesterov=True` needs `momentum` > 0; got 0"),
        (lambda: sgd(0.1, weight_decay=-1.0), "`weight_decay` must be a number >= 0; got -1.0"),
        (lambda: adam(0.1, b1=1.0), "`b1` must be a number >= 0 and < 1; got 1.0"),
        (lambda: adamw(0.1, b2=-0.5), "`b2` must be a number >= 0 and < 1; got -0.5"),
        (lambda: adamw(0.1, eps=0.0), "`eps` must be a number > 0; got 0.0"),
        (lambda: adamw(0.1, weight_decay=math.nan), "`weight_decay` must be a number >= 0; got nan"),
        (lambda: adagrad(0.1, eps=-1e-8), "`eps` must be a number > 0; got -1e-08"),
        (lambda: adagrad(0.1, weight_decay=-0.1), "`weight_decay` must be a number >= 0; got -0.1"),
    ],
)
def test_hyperparameters_out_of_range_are_rejected(make: Callable[[], Optimizer], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


# --- learning-rate factors, and optimizers that start later

FACTORS = {0: 1.0, 1: 0.25, 2: 3.0}


def factors(params: Tensors) -> dict[str, float]:
    return {name: FACTORS[position % 3] for position, name in enumerate(params)}


@on_every_path(FACTORIES, quick=("adamw_decay",))
def test_factors_equal_torchs_parameter_groups(name: str, path: Callable[[Optimizer], Updater]) -> None:
    ours, theirs, _ = PAIRS[name]

    def make(leaves: list[Any]) -> torch.optim.Optimizer:
        return theirs([{"params": [leaf], "lr": 0.01 * FACTORS[at % 3]} for at, leaf in enumerate(leaves)])

    found, _ = run(ours(0.01, lr_factors=factors), problem(), steps=10, path=path)
    expected, _ = run_torch(make, problem(), steps=10)
    assert_close(found, expected)


def test_one_call_of_the_kernel_updates_all_parameters_with_the_same_decay_and_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[int, float, float]] = []
    adam = _fused.torch_adamw

    def counted(params: Any, *args: Any, lr: Any, weight_decay: float, **kwargs: Any) -> None:
        calls.append((len(params), round(float(lr), 6), weight_decay))
        adam(params, *args, lr=lr, weight_decay=weight_decay, **kwargs)

    monkeypatch.setattr(_fused, "torch_adamw", counted)
    params = {"w1": torch.ones(2, 2), "b1": torch.ones(2), "w2": torch.ones(2, 2), "b2": torch.ones(2)}
    half_of_first = {"w1": 0.5, "b1": 0.5, "w2": 1.0, "b2": 1.0}
    optimizer = adamw(0.1, weight_decay=0.3, mask=matrices_only, lr_factors=lambda params: half_of_first)
    optimizer.update(gradients(params), optimizer.init(params), params, torch.tensor(0))
    assert calls == [(1, 0.05, 0.3), (1, 0.05, 0.0), (1, 0.1, 0.3), (1, 0.1, 0.0)]
    calls.clear()
    optimizer = adamw(0.1, weight_decay=0.3, lr_factors=lambda params: half_of_first)
    optimizer.update(gradients(params), optimizer.init(params), params, torch.tensor(0))
    assert calls == [(2, 0.05, 0.3), (2, 0.1, 0.3)]


def test_a_factor_of_zero_leaves_a_parameter_unchanged() -> None:
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    optimizer = sgd(0.5, weight_decay=0.1, lr_factors=lambda params: {"a": 0.0, "b": 1.0})
    params, _ = optimizer.update({"a": torch.ones(2), "b": torch.ones(2)}, {}, params, torch.tensor(0))
    assert params["a"].tolist() == [1.0, 1.0]
    assert params["b"].tolist() == pytest.approx([0.45, 0.45])


@pytest.mark.parametrize("factor", [-1.0, math.inf, math.nan])
def test_factors_out_of_range_are_rejected(factor: float) -> None:
    params = {"w": torch.ones(2)}
    optimizer = sgd(0.5, lr_factors=lambda params: {"w": factor})
    with pytest.raises(ValueError, match=f"`lr_factors` must return numbers >= 0; got {factor} for w"):
        optimizer.update({"w": torch.ones(2)}, {}, params, torch.tensor(0))


def test_an_optimizer_that_starts_later_counts_its_own_steps() -> None:
    plain = adamw(warmup_cosine(0.1, total_steps=20, warmup_steps=5), weight_decay=0.1)
    later = starting_at(100, plain)
    found = expected = problem()
    states = [plain.init(found), plain.init(found)]
    for step in range(10):
        expected, states[0] = plain.update(gradients(expected), states[0], expected, torch.tensor(step))
        found, states[1] = later.update(gradients(found), states[1], found, torch.tensor(100 + step))
    assert_identical((found, states[1]), (expected, states[0]))
    assert later.learning_rate is not None
    assert float(later.learning_rate(torch.tensor(102))) == pytest.approx(0.06)


def test_an_optimizer_cannot_start_before_the_run() -> None:
    with pytest.raises(ValueError, match="`start` must be >= 0; got -1"):
        starting_at(-1, sgd(0.1))
