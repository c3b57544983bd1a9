"""functionalize: pure functions of modules, draws from keys, and skeletons that forget nothing silently."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import ftrain
from ftrain.draws import UNKNOWN_RANDOM

KEY = ftrain.random.key(7)
INPUTS = ftrain.random.normal(ftrain.random.key(1), (4, 3, 8, 8))


class Calls(nn.Module):
    """A module that calls one function in its forward pass."""

    def __init__(self, function):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.function = function

    def forward(self, x):
        return self.function(x * self.scale, self.training)


def run(module, inputs=INPUTS, *, train=True, key=KEY):
    apply, params, buffers = ftrain.functionalize(module)
    return apply(params, buffers, inputs, train=train, key=key)


def test_evaluation_equals_the_module():
    module = torchvision.models.resnet18(num_classes=5).eval()
    inputs = ftrain.random.normal(KEY, (2, 3, 32, 32))
    outputs, _ = run(module, inputs, train=False, key=None)
    assert torch.equal(outputs, module(inputs))


def test_training_gives_new_buffers_and_leaves_the_module_alone():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    apply, params, buffers = ftrain.functionalize(module)
    outputs, new_buffers = apply(params, buffers, INPUTS, train=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not module.training
    assert buffers["1.num_batches_tracked"].item() == 0
    assert new_buffers["1.num_batches_tracked"].item() == 1
    module.train()
    assert torch.equal(outputs, module(INPUTS))
    assert torch.equal(new_buffers["1.running_mean"], module[1].running_mean)


def test_parameters_are_copies():
    module = nn.Linear(2, 2)
    _, params, _ = ftrain.functionalize(module)
    params["weight"].zero_()
    assert module.weight.abs().sum() > 0


def test_skeletons_hold_no_data_and_a_forgotten_tensor_fails():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    apply, params, buffers = ftrain.functionalize(module)
    for name in params:
        rest = {other: tensor for other, tensor in params.items() if other != name}
        with pytest.raises(
            ValueError, match=rf"the parameters do not fit the module; missing: \['{name}'\], unexpected: none"
        ):
            apply(rest, buffers, INPUTS, train=True)
    with pytest.raises(ValueError, match=r"the buffers do not fit the module; missing: none, unexpected: \['other'\]"):
        apply(params, {**buffers, "other": torch.zeros(())}, INPUTS, train=True)
    skeletons = [cell.cell_contents for cell in apply.__closure__ if isinstance(cell.cell_contents, dict)]
    held = [
        tensor.numel()
        for each in skeletons
        for m in each.values()
        if isinstance(m, nn.Module)
        for tensor in m.state_dict().values()
    ]
    assert len(held) == 2 * len(module.state_dict())
    assert sum(held) == 0


def test_tied_parameters_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    apply, params, buffers = ftrain.functionalize(Tied())
    assert list(params) == ["first.weight"]
    assert buffers == {}
    doubled = {"first.weight": 2.0 * torch.eye(3)}
    outputs, _ = apply(doubled, {}, torch.tensor([[1.0, 2.0, 3.0]]), train=True)
    assert outputs.tolist() == [[4.0, 8.0, 12.0]]


def test_parameters_without_gradients_are_buffers():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    _, params, buffers = ftrain.functionalize(module)
    assert list(params) == ["weight"]
    assert list(buffers) == ["bias"]


def test_reassigned_buffers_come_back():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1.0
            return x * self.weight

    _, buffers = run(Counter())
    assert buffers["calls"].item() == 1.0


def test_batch_norm_with_cumulative_average():
    module = nn.BatchNorm2d(3, momentum=None)
    apply, params, buffers = ftrain.functionalize(module)
    batches = [ftrain.random.normal(ftrain.random.key(n), (4, 3, 5, 5)) for n in range(3)]
    module.train()
    for batch in batches:
        expected = module(batch)
        outputs, buffers = apply(params, buffers, batch, train=True)
        torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(buffers["running_mean"], module.running_mean)
    torch.testing.assert_close(buffers["running_var"], module.running_var)
    compiled = torch.compile(lambda b, x: apply(params, b, x, train=True)[1], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(buffers, batches[0])["running_mean"], apply(params, buffers, batches[0], train=True)[1]["running_mean"]
    )
    torch.testing.assert_close(apply(params, buffers, batches[0], train=False)[0], module.eval()(batches[0]))


def test_a_module_that_communicates_by_itself_is_an_error():
    synced = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.SyncBatchNorm(2))
    with pytest.raises(
        ValueError, match=r"`1` is a SyncBatchNorm, which communicates .* train over processes with `re"
    ):
        ftrain.functionalize(synced)


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
@pytest.mark.slow
def test_auxiliary_outputs(name):
    size = {"inception_v3": 299, "googlenet": 32}[name]
    network = ftrain.models.build(name, classes=6, image_size=size, seed=0)
    apply, params, buffers = ftrain.functionalize(network)
    optimizer = ftrain.sgd(0.01)
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    images = ftrain.random.normal(KEY, (2, 3, size, size))
    labels = torch.tensor([1, 5])
    key = ftrain.random.fold_in(state.key, state.step)
    outputs, _ = apply(params, buffers, images, train=True, key=key)
    extra = [value for field, value in outputs._asdict().items() if field != "logits"]
    expected = F.cross_entropy(outputs.logits, labels) + 0.3 * sum(F.cross_entropy(value, labels) for value in extra)
    assert len(extra) == {"inception_v3": 1, "googlenet": 2}[name]

    seen = []

    def loss(logits, labels):
        seen.append(ftrain.cross_entropy(logits, labels))
        return seen[-1]

    new, metrics = ftrain.train_step(state, (images, labels), apply=apply, optimizer=optimizer, loss=loss)
    total = seen[0].mean() + 0.3 * sum(value.mean() for value in seen[1:])
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics.compute()["loss"] == pytest.approx(F.cross_entropy(outputs.logits, labels).item(), rel=1e-5)
    auxiliary = next(n for n in params if "aux" in n.lower() and n.endswith("weight"))
    assert not torch.equal(params[auxiliary], new.params[auxiliary])


RANDOM = {
    "dropout": lambda x, training: F.dropout(x, 0.4, training),
    "dropout in place": lambda x, training: F.dropout(x.clone(), 0.4, training, inplace=True),
    "torch.dropout": lambda x, training: torch.dropout(x, 0.4, training),
    "dropout1d": lambda x, training: F.dropout1d(x[:, :, 0], 0.4, training),
    "dropout2d": lambda x, training: F.dropout2d(x, 0.4, training),
    "dropout3d": lambda x, training: F.dropout3d(x[:, :, None], 0.4, training),
    "alpha dropout": lambda x, training: F.alpha_dropout(x, 0.4, training),
    "feature alpha dropout": lambda x, training: F.feature_alpha_dropout(x, 0.4, training),
    "rrelu": lambda x, training: F.rrelu(x, training=training),
    "stochastic depth": lambda x, training: torchvision.ops.stochastic_depth(x, 0.4, "row", training),
    "bernoulli": lambda x, training: torch.bernoulli(torch.sigmoid(x)) if training else x,
    "attention dropout": lambda x, training: F.scaled_dot_product_attention(
        x, x, x, dropout_p=0.4 if training else 0.0
    ),
}


@pytest.mark.parametrize("name", RANDOM)
def test_draws_come_from_the_key(name):
    module = Calls(RANDOM[name])
    generator = torch.get_rng_state()
    first, again, other = run(module)[0], run(module)[0], run(module, key=ftrain.random.key(8))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), generator)
    with pytest.raises(ValueError, match=r"the network draws random numbers \(.*\) but was given no key"):
        run(module, key=None)
    assert torch.equal(run(module, train=False, key=None)[0], module.eval()(INPUTS))


def drawing(name):
    apply, params, buffers = ftrain.functionalize(Calls(RANDOM[name]))
    return lambda key: apply(params, buffers, INPUTS, train=True, key=key)[0]


@pytest.mark.parametrize(
    "name", sorted(RANDOM.keys() - {"dropout in place"})
)  # vmap writes no batch into a single tensor
def test_draws_under_vmap(name):
    draw = drawing(name)
    keys = ftrain.random.split(KEY, 3)
    together = torch.func.vmap(draw)(keys)
    for key, member in zip(keys, together, strict=True):
        torch.testing.assert_close(member, draw(key))


OFTEN = ("dropout", "stochastic depth", "attention dropout")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in OFTEN else pytest.mark.long)
        for name in sorted(RANDOM.keys() - {"dropout in place"})
    ],
)
def test_draws_in_one_graph(name):
    draw = drawing(name)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(draw, fullgraph=True, backend="aot_eager")(KEY), draw(KEY))


@pytest.mark.parametrize("name", ["dropout", "dropout2d", "alpha dropout", "feature alpha dropout"])
def test_dropout_keeps_the_mean_and_drops_the_right_fraction(name):
    inputs = ftrain.random.normal(ftrain.random.key(2), (500, 40, 4, 4)) + 1.0
    outputs, _ = run(Calls(RANDOM[name]), inputs)
    if "alpha" in name:  # for standard normal inputs, keeps mean and variance
        outputs, _ = run(Calls(RANDOM[name]), inputs - 1.0)
        assert outputs.mean().item() == pytest.approx(0.0, abs=0.03)
        assert outputs.var().item() == pytest.approx(1.0, abs=0.05)
        return
    dropped = (outputs == 0).float().mean().item()
    assert dropped == pytest.approx(0.4, abs=0.01)
    assert outputs.mean().item() == pytest.approx(1.0, abs=0.03)
    assert torch.allclose(outputs[outputs != 0], (inputs / 0.6)[outputs != 0])


def test_feature_dropout_drops_whole_channels():
    outputs, _ = run(Calls(RANDOM["dropout2d"]), torch.ones(50, 20, 3, 3))
    channels = outputs.flatten(2)
    assert torch.equal(channels.amin(dim=2), channels.amax(dim=2))


def test_rrelu_slopes_lie_in_their_range():
    outputs, _ = run(Calls(RANDOM["rrelu"]), -torch.ones(10_000))
    assert -1 / 3 <= outputs.min().item() < -0.32
    assert -0.13 < outputs.max().item() <= -1 / 8


def test_attention_without_dropout_is_torchs_and_with_it_keeps_the_mean():
    q, k, v = (ftrain.random.normal(key, (2, 3, 6, 4)) for key in ftrain.random.split(KEY, 3))
    causal = Calls(lambda x, training: F.scaled_dot_product_attention(x, k, v, is_causal=True, dropout_p=1e-9))
    outputs, _ = run(causal, q)
    torch.testing.assert_close(outputs, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    mask = torch.tensor([[True] * 5 + [False]] * 6)
    masked = Calls(lambda x, training: F.scaled_dot_product_attention(x, k, v, mask, dropout_p=1e-9))
    torch.testing.assert_close(run(masked, q)[0], F.scaled_dot_product_attention(q, k, v, mask))


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_inside_multihead_attention(need_weights):
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=need_weights)[0]

    inputs = ftrain.random.normal(KEY, (2, 5, 8))
    generator = torch.get_rng_state()
    module = Attend()
    torch.set_rng_state(generator)
    assert torch.equal(run(module, inputs)[0], run(module, inputs)[0])
    assert not torch.equal(run(module, inputs)[0], run(module, inputs, key=ftrain.random.key(8))[0])
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("rand_like", lambda x, _: torch.rand_like(x)),
        ("randn", lambda x, _: x + torch.randn(8)),
        ("normal_", lambda x, _: x.clone().normal_()),
        ("multinomial", lambda x, _: torch.multinomial(x.flatten(1).abs(), 2)),
        ("exponential_", lambda x, _: F.gumbel_softmax(x)),
        ("rand", lambda x, _: F.fractional_max_pool2d(x, 2, output_size=3)),
    ],
)
def test_unknown_random_operations_are_errors_that_name_them(name, function):
    generator = torch.get_rng_state()
    with pytest.raises(NotImplementedError, match=f"calls the random operation {name}, which"):
        run(Calls(function))
    assert torch.equal(torch.get_rng_state(), generator)


def test_recurrent_dropout_is_rejected_and_recurrence_without_it_works():
    class Recurrent(nn.Module):
        def __init__(self, dropout):
            super().__init__()
            self.lstm = nn.LSTM(8, 4, num_layers=2, dropout=dropout, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    inputs = ftrain.random.normal(KEY, (2, 5, 8))
    with pytest.raises(NotImplementedError, match="lstm applies dropout between its layers"):
        run(Recurrent(0.5), inputs)
    module = Recurrent(0.0)
    torch.testing.assert_close(run(module, inputs)[0], module(inputs))
    assert run(Recurrent(0.5), inputs, train=False)[0].shape == (2, 5, 4)


def test_the_list_of_random_operations_is_torchs():
    marked = set()
    for schema in torch._C._jit_get_all_schemas():
        name = schema.name.removeprefix("aten::")
        operation = getattr(getattr(torch.ops.aten, name, None), schema.overload_name or "default", None)
        if schema.name.startswith("aten::") and operation and torch.Tag.nondeterministic_seeded in operation.tags:
            marked.add(name)
    private = {name for name in marked if name.startswith("_") or name == "miopen_rnn"}
    answered = {"lstm", "gru", "rnn_tanh", "rnn_relu", "scaled_dot_product_attention"}
    assert marked - private - answered - UNKNOWN_RANDOM == set()


def test_lazy_modules_are_rejected():
    with pytest.raises(ValueError, match="lazy parameters without a shape"):
        ftrain.functionalize(nn.LazyLinear(3))


def test_normalized_takes_uint8():
    module = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(module.weight)
    apply, params, buffers = ftrain.functionalize(module)
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    scaled = ftrain.normalized(apply, mean=(0.5, 0.1, 0.0), std=(0.5, 0.1, 2.0))
    outputs, _ = scaled(params, buffers, images, train=True)
    assert outputs.flatten().tolist() == pytest.approx([-1.0, 1.0, 0.5])
