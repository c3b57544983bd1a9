"""The six meanings of "pure", for every step that ftrain ships and a table of networks."""

import functools

import networks
import pytest
import torch
from torch import Tensor

import ftrain
from ftrain.compile import donating
from ftrain.pytree import frozen
from ftrain.testing import MEANINGS, assert_pure

LARGER = ("resnet18", "mobilenet_v3_small", "small_vit")
COMPILED = ("one graph", "draws")


def marked(name, meaning):
    if name not in LARGER:
        return []
    return [pytest.mark.slow, *([pytest.mark.long] if meaning in COMPILED or name == "resnet18" else [])]


CASES = [
    pytest.param(name, meaning, marks=marked(name, meaning), id=f"{name}-{meaning}")
    for name in networks.ALL
    for meaning in MEANINGS
]


@functools.cache
def parts(name):
    network, size = networks.made(name)
    apply, params, buffers = ftrain.functionalize(network)
    optimizer = ftrain.sgd(
        ftrain.warmup_cosine(0.05, total_steps=10, warmup_steps=2), momentum=0.9, nesterov=True, weight_decay=1e-3
    )
    state = ftrain.init_state(params, buffers, optimizer, seed=3)
    images = ftrain.random.normal(ftrain.random.key(1), (4, 3, size, size))
    batch = (images, torch.tensor([0, 1, 2, 4]), torch.tensor([1.0, 1.0, 0.5, 0.0]))
    return apply, optimizer, state, batch


@functools.cache
def bound_train_step(name):
    apply, optimizer, _, _ = parts(name)
    return functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer)


@functools.cache
def bound_eval_step(name):
    return functools.partial(ftrain.eval_step, apply=parts(name)[0])


@pytest.mark.parametrize(("name", "meaning"), CASES)
def test_train_step_is_pure(name, meaning):
    _, _, state, batch = parts(name)
    assert_pure(bound_train_step(name), state, batch, meanings=[meaning])


@pytest.mark.parametrize(("name", "meaning"), CASES)
def test_eval_step_is_pure(name, meaning):
    _, _, state, batch = parts(name)
    assert_pure(bound_eval_step(name), state, batch, meanings=[meaning])


OPTIMIZERS = {
    "adamw": ftrain.adamw(1e-3),
    "adam": ftrain.adam(1e-3, weight_decay=1e-2),
    "adagrad": ftrain.adagrad(1e-2),
    "clipped adamw": ftrain.chain(ftrain.clip_by_global_norm(0.5), ftrain.adamw(1e-3, mask=ftrain.matrices_only)),
}


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        ("adam", "linear"),
        ("adagrad", "linear"),
        ("clipped adamw", "convnet"),
        *(pytest.param(optimizer, "convnet", marks=pytest.mark.long) for optimizer in ("adamw", "adam", "adagrad")),
        *(pytest.param(optimizer, "linear", marks=pytest.mark.long) for optimizer in ("adamw", "clipped adamw")),
    ],
)
def test_train_step_is_pure_with_every_optimizer(name, optimizer):
    apply, _, state, batch = parts(name)
    optimizer = OPTIMIZERS[optimizer]
    state = ftrain.init_state(state.params, state.buffers, optimizer, seed=3)
    assert_pure(functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer), state, batch)


@pytest.mark.parametrize("name", [pytest.param("linear", marks=pytest.mark.long), "convnet"])
def test_train_step_is_pure_under_autocast(name):
    apply, optimizer, state, batch = parts(name)
    step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer, precision=torch.bfloat16)
    assert_pure(step, state, batch, meanings=["inputs unchanged", "repeatable", "one graph"])


def test_inductor_compiles_one_graph_with_the_same_results():
    _, _, state, batch = parts("convnet")
    step = bound_train_step("convnet")
    torch._dynamo.reset()
    compiled = ftrain.compile_step(step)
    eager_state = state
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(5):
            state, metrics = compiled(state, batch)
            eager_state, eager_metrics = step(eager_state, batch)
            assert metrics.compute() == pytest.approx(eager_metrics.compute(), rel=1e-4)
    assert int(state.step) == 5


def test_dropout_differs_from_step_to_step_and_with_the_key():
    apply, _, params_buffers, (images, *_) = parts("convnet")
    state = params_buffers

    def outputs(step, seed):
        key = ftrain.random.fold_in(ftrain.random.key(seed), step)
        return apply(state.params, state.buffers, images, train=True, key=key)[0]

    assert torch.equal(outputs(0, 3), outputs(0, 3))
    assert not torch.equal(outputs(0, 3), outputs(1, 3))
    assert not torch.equal(outputs(0, 3), outputs(0, 4))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("linear", lambda lr: ftrain.sgd(lr, momentum=0.9)),
        ("convnet", lambda lr: ftrain.sgd(lr, momentum=0.9, nesterov=True)),
        ("convnet", ftrain.adamw),
        pytest.param("small_vit", ftrain.adamw, marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", ftrain.sgd, marks=pytest.mark.slow),
        pytest.param("resnet18", ftrain.sgd, marks=pytest.mark.long),
    ],
)
def test_hypergradient_of_the_learning_rate_equals_finite_differences(name, make):
    apply, _, state, (images, labels, _) = parts(name)
    wide = lambda tree: {name: t.double() if t.is_floating_point() else t for name, t in tree.items()}  # noqa: E731
    params, buffers, batch = wide(state.params), wide(state.buffers), (images.double(), labels)

    def later_loss(lr):
        optimizer = make(lr)
        current = ftrain.init_state(params, buffers, optimizer, seed=3)
        for _ in range(3):
            current, metrics = ftrain.train_step(current, batch, apply=apply, optimizer=optimizer)
        return metrics.loss / metrics.count

    lr = torch.tensor(0.01, dtype=torch.float64)
    slope = torch.func.grad(later_loss)(lr).item()
    distance = 1e-8
    expected = ((later_loss(lr + distance) - later_loss(lr - distance)) / (2 * distance)).item()
    assert abs(expected) > 1e-3
    assert slope == pytest.approx(expected, rel=1e-4)


def test_eager_and_traced_paths_agree_to_rounding():
    apply, optimizer, state, batch = parts("convnet")
    alone, metrics = ftrain.train_step(state, batch, apply=apply, optimizer=optimizer)
    add_axis = functools.partial(torch.utils._pytree.tree_map, lambda leaf: leaf[None])
    step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer)
    traced, traced_metrics = torch.func.vmap(step, in_dims=(0, None))(add_axis(state), batch)
    assert metrics.loss.item() == pytest.approx(traced_metrics.loss.item(), rel=1e-6)
    for name, param in alone.params.items():
        torch.testing.assert_close(param, traced.params[name][0], rtol=1e-5, atol=1e-6)


def test_an_example_with_weight_0_is_ignored_even_if_it_is_nan():
    apply, optimizer, state, (images, labels, _) = parts("linear")
    spoilt = images.clone()
    spoilt[3] = torch.nan
    full, full_metrics = ftrain.train_step(state, (images[:3], labels[:3]), apply=apply, optimizer=optimizer)
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0])
    masked, metrics = ftrain.train_step(state, (spoilt, labels, weights), apply=apply, optimizer=optimizer)
    for name, param in full.params.items():
        torch.testing.assert_close(param, masked.params[name], rtol=1e-6, atol=1e-7)
    assert metrics.count.item() == 3.0
    assert metrics.nonfinite.item() == 0.0
    evaluated = ftrain.eval_step(state, (spoilt, labels, weights), apply=apply)
    assert evaluated.compute()["loss"] == pytest.approx(full_metrics.compute()["loss"], rel=1e-6)


def test_a_donated_state_is_overwritten_and_raises_when_used():
    _, _, state, batch = parts("linear")
    step = bound_train_step("linear")
    expected, _ = step(state, batch)
    torch._dynamo.reset()
    copy = torch.utils._pytree.tree_map(torch.clone, state)
    memory = {name: param.data_ptr() for name, param in copy.params.items()}
    donating = ftrain.compile_step(step, donate=True, backend="aot_eager")
    new, _ = donating(copy, batch)
    assert {name: param.data_ptr() for name, param in new.params.items()} == memory
    for name, param in expected.params.items():
        torch.testing.assert_close(param, new.params[name], rtol=1e-6, atol=1e-7)
    newest, _ = donating(new, batch)
    for _ in range(15):
        newest, _ = donating(newest, batch)
    # Whatever has been written into its memory since.
    with pytest.raises(ftrain.DonatedError, match="this state was donated to step 1, which wrote"):
        _ = copy.params
    with pytest.raises(ftrain.DonatedError, match="this state was donated to step 2, "):
        donating(new, batch)
    assert newest.step == 17


def test_donation_changes_no_bit_of_a_compiled_step():
    _, _, kept, batch = parts("convnet")
    donated = torch.utils._pytree.tree_map(torch.clone, kept)
    steps = [
        ftrain.compile_step(bound_train_step("convnet"), donate=donate, backend="aot_eager") for donate in (False, True)
    ]
    for _ in range(3):
        kept, expected = steps[0](kept, batch)
        donated, metrics = steps[1](donated, batch)
        for one, other in zip(
            *map(torch.utils._pytree.tree_leaves, ((kept, expected), (donated, metrics))), strict=True
        ):
            assert torch.equal(one, other)


def test_without_donation_a_compiled_step_overwrites_nothing_even_if_donate_was_bound():
    _, _, state, batch = parts("linear")
    step = functools.partial(bound_train_step("linear"), donate=True)
    before = torch.utils._pytree.tree_map(torch.clone, state)
    ftrain.compile_step(step, backend="aot_eager")(state, batch)
    for old, was in zip(*map(torch.utils._pytree.tree_leaves, (state, before)), strict=True):
        assert torch.equal(old, was)


def test_a_donated_state_with_a_mask_keeps_its_order():
    apply, _, state, batch = parts("convnet")
    optimizer = ftrain.adagrad(0.1, weight_decay=0.1, mask=ftrain.matrices_only)
    state = ftrain.init_state(state.params, state.buffers, optimizer, seed=0)
    step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer)
    expected, _ = step(state, batch)
    donated = torch.utils._pytree.tree_map(torch.clone, state)
    found, _ = ftrain.compile_step(step, donate=True, backend="aot_eager")(donated, batch)
    for name in state.params:
        torch.testing.assert_close(found.opt_state["sum"][name], expected.opt_state["sum"][name])


@frozen
class Pair:
    older: Tensor
    newer: Tensor


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(
    "of_old",
    [lambda old: old, torch.clone, torch.detach, lambda old: old.view(-1), lambda old: old[:]],
    ids=["itself", "clone", "detach", "view", "slice"],
)
def test_donation_is_right_where_a_new_leaf_is_another_old_one(backend, of_old):
    def shift(state, batch):
        return Pair(of_old(state.newer), state.newer.flip(0) + batch), batch.sum()

    torch._dynamo.reset()
    donating = ftrain.compile_step(shift, donate=True, backend=backend)
    state = Pair(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    state, _ = donating(state, torch.tensor(10.0))
    assert (state.older.tolist(), state.newer.tolist()) == ([3.0, 4.0], [14.0, 13.0])
    state, _ = donating(state, torch.tensor(10.0))
    assert (state.older.tolist(), state.newer.tolist()) == ([14.0, 13.0], [23.0, 24.0])


def test_a_state_that_cannot_be_invalidated_is_not_donated():
    donating = ftrain.compile_step(lambda state, batch: (state, batch), donate=True, backend="aot_eager")
    with pytest.raises(TypeError, match=r"a dict cannot be donated.*decorated with ftrain\.frozen"):
        donating({"a": torch.zeros(2)}, torch.zeros(2))


def test_only_a_step_declared_as_donating_is_given_donate():
    given = []

    def step(state, batch, *, donate=None):
        given.append(donate)
        return Pair(state.older + batch, state.newer), batch

    @donating
    def donating_step(state, batch, *, donate=None):
        return step(state, batch, donate=donate)

    @functools.wraps(donating_step)
    def wrapper(state, batch):
        return donating_step(state, batch)

    for function in (step, donating_step, functools.partial(donating_step, donate=None), wrapper):
        for donate in (False, True):
            state = Pair(torch.tensor([1.0]), torch.tensor([2.0]))
            new, _ = ftrain.compile_step(function, donate=donate, backend="eager")(state, torch.tensor(1.0))
            assert new.older.item() == 2.0
    expected = [None, None, False, True, False, True, None, None]
    assert given[: len(expected)] == expected


class Steps:
    """Steps that are methods, and an object that is a step and cannot be hashed."""

    __hash__ = None

    def __init__(self):
        self.given = []

    def method(self, state, batch, *, donate=None):
        self.given.append(donate)
        return Pair(state.older + batch, state.newer), batch

    __call__ = method


def test_a_method_and_an_object_that_cannot_be_hashed_can_be_declared_as_donating():
    steps = Steps()
    donating(steps.method)
    other = donating(Steps())
    bound = functools.partial(functools.partial(steps.method), donate=False)
    for step, given in ((steps.method, steps.given), (bound, steps.given), (other, other.given)):
        given.clear()
        state = Pair(torch.tensor([1.0]), torch.tensor([2.0]))
        new, _ = ftrain.compile_step(step, donate=True, backend="eager")(state, torch.tensor(1.0))
        assert new.older.item() == 2.0
        assert given[0] is True


def test_what_cannot_have_attributes_cannot_be_declared_as_donating():
    with pytest.raises(TypeError, match="`step` must be a function or an object that can have attributes; got a buil"):
        donating(len)


@pytest.mark.parametrize(
    ("change", "found"),
    [(torch.Tensor.double, r"torch\.float64 \[2\]"), (lambda old: old[:, None] + old, r"torch\.float32 \[2, 2\]")],
)
@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_a_donated_step_that_changes_a_dtype_or_shape_is_an_error(backend, change, found):
    torch._dynamo.reset()
    state = Pair(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    step = ftrain.compile_step(
        lambda state, batch: (Pair(state.older + 1.0, change(state.newer)), batch), donate=True, backend=backend
    )
    with pytest.raises(ValueError, match=rf"the step changed \.newer from torch\.float32 \[2\] to {found}"):
        step(state, torch.tensor(1.0))
    assert state.older.tolist() == [1.0, 2.0]  # still valid, and unchanged


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_a_mode_that_overwrites_older_states_is_rejected(mode):
    with pytest.raises(
        ValueError, match=f"`mode` '{mode}' uses CUDA graphs, .*use 'max-autotune-no-cudagraphs' or None"
    ):
        ftrain.compile_step(lambda state, batch: state, mode=mode)


def test_a_mode_reaches_the_compiler(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda step, **options: seen.append(options["mode"]) or step)
    for donate in (False, True):
        ftrain.compile_step(lambda state, batch: state, donate=donate, mode="max-autotune-no-cudagraphs")
    assert seen == ["max-autotune-no-cudagraphs"] * 2


def test_eager_donation_gives_the_same_bits_in_the_same_memory():
    apply, optimizer, state, batch = parts("convnet")
    expected, _ = ftrain.train_step(state, batch, apply=apply, optimizer=optimizer)
    copy = torch.utils._pytree.tree_map(torch.clone, state)
    memory = {name: param.data_ptr() for name, param in copy.params.items()}
    new, _ = ftrain.train_step(copy, batch, apply=apply, optimizer=optimizer, donate=True)
    assert {name: param.data_ptr() for name, param in new.params.items()} == memory
    assert all(torch.equal(param, new.params[name]) for name, param in expected.params.items())
    with pytest.raises(ftrain.DonatedError, match="this state was donated to step 1, "):
        _ = copy.step


def test_a_module_of_several_arguments_is_trained_on_a_tuple_of_them():
    class Product(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)

        def forward(self, left, right):
            return self.linear(left * right)

    apply, params, buffers = ftrain.functionalize(Product())
    optimizer = ftrain.sgd(0.1)
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    batch = ((torch.ones(4, 3), torch.full((4, 3), 2.0)), torch.tensor([0, 1, 1, 0]), torch.ones(4))
    state, metrics = ftrain.train_step(state, batch, apply=apply, optimizer=optimizer)
    assert metrics.compute()["count"] == 4.0
    assert int(state.step) == 1


def test_the_draws_of_train_step_differ_from_step_to_step():
    apply, optimizer, state, batch = parts("convnet")
    _, first = ftrain.train_step(state, batch, apply=apply, optimizer=optimizer)
    later = ftrain.TrainState(state.step + 1, state.params, state.buffers, state.opt_state, state.key)
    _, second = ftrain.train_step(later, batch, apply=apply, optimizer=optimizer)
    assert first.loss.item() != second.loss.item()


def test_float16_is_rejected():
    apply, optimizer, state, batch = parts("linear")
    with pytest.raises(ValueError, match=r"`precision` must be torch\.float32 or torch\.bfloat16; got torch\.float16"):
        ftrain.train_step(state, batch, apply=apply, optimizer=optimizer, precision=torch.float16)
