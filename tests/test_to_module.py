"""to_module is the inverse of functionalize."""

import pytest
import torch
import torchvision
from networks import OF_EACH_FAMILY
from torch import nn
from torch.overrides import TorchFunctionMode

import ftrain

INPUTS = ftrain.random.normal(ftrain.random.key(1), (4, 3))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


class SharedBuffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("shared", torch.arange(3.0))
        self.register_buffer("temporary", torch.full((3,), 2.0), persistent=False)
        self.child = nn.Identity()
        self.child.register_buffer("shared", self.shared)

    def forward(self, x):
        return x * self.weight + self.shared * self.child.shared + self.temporary


class SharedModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))})
        self.layers["b"] = self.layers["a"]

    def forward(self, x):
        return self.layers["b"](self.layers["a"](x))


def frozen_in_part():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module[0].weight.requires_grad_(False)
    module[1].requires_grad_(False)
    return module


MODULES = {
    "linear": lambda: nn.Linear(3, 2),
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout()),
    "cumulative batch norm": lambda: nn.BatchNorm1d(3, momentum=None),
    "tied parameters": Tied,
    "shared and non-persistent buffers": SharedBuffers,
    "a module used twice": SharedModule,
    "frozen in part": frozen_in_part,
    "frozen": lambda: nn.Linear(3, 2).requires_grad_(False),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
    "double": lambda: nn.Linear(3, 2).double(),
}


def made(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODULES[name]()


def moved(tensors):
    return {name: tensor + 1 if tensor.ndim else tensor + 3 for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", MODULES)
def test_the_round_trip(name):
    module = made(name)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    apply, params, buffers = ftrain.functionalize(module)
    params, buffers = moved(params), moved(buffers)
    inputs = INPUTS.to(next(module.parameters()).dtype)
    net = ftrain.to_module(module, params, buffers)
    assert type(net) is type(module)
    assert not any(child.training for child in net.modules())
    assert torch.equal(net(inputs), apply(params, buffers, inputs, train=False)[0])
    again = ftrain.functionalize(net)
    for ours, theirs in ((again.params, params), (again.buffers, buffers)):
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    assert all(child.training for child in module.modules())


@pytest.mark.parametrize("name", MODULES)
def test_the_structure_stays(name):
    module = made(name)
    net = ftrain.to_module(module, *ftrain.functionalize(module)[1:])

    def structure(module):
        first = {}
        for key, tensor in (
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ):
            first.setdefault(id(tensor), []).append((key, type(tensor), tensor.requires_grad, tensor.is_leaf))
        return list(first.values())

    assert structure(net) == structure(module)
    assert list(net.state_dict()) == list(module.state_dict())


def test_the_tensors_are_copies():
    module = nn.Linear(3, 2)
    _, params, buffers = ftrain.functionalize(module)
    net = ftrain.to_module(module, params, buffers)
    with torch.no_grad():
        net.weight.zero_()
    assert params["weight"].abs().sum() > 0
    assert module.weight.abs().sum() > 0


def test_the_memory_layout_and_the_dtype_are_those_of_the_tensors():
    module = nn.Conv2d(3, 4, 3)
    _, params, buffers = ftrain.functionalize(module)
    params["weight"] = params["weight"].double().to(memory_format=torch.channels_last)
    net = ftrain.to_module(module, params, buffers)
    assert net.weight.dtype == torch.float64
    assert net.weight.stride() == params["weight"].stride()


def test_a_module_is_trained_further_after_the_round_trip():
    module = made("tied parameters")
    net = ftrain.to_module(module, *ftrain.functionalize(module)[1:]).train()
    net(INPUTS).sum().backward()
    assert net.first.weight is net.second.weight
    assert net.first.weight.grad is not None


def test_tensors_that_do_not_fit_are_rejected():
    module = nn.BatchNorm1d(3)
    _, params, buffers = ftrain.functionalize(module)
    with pytest.raises(ValueError, match=r"the tensors do not fit the module; missing: \['bias'\]"):
        ftrain.to_module(module, {"weight": params["weight"]}, buffers)
    with pytest.raises(ValueError, match=r"the tensors do not fit the module; missing: none, unexpected: \['other'\]"):
        ftrain.to_module(module, params, {**buffers, "other": torch.zeros(())})
    with pytest.raises(ValueError, match=r"weight must have the shape \[3\], as in the module; got \[1\]"):
        ftrain.to_module(module, {**params, "weight": torch.zeros(1)}, buffers)
    with pytest.raises(ValueError, match="lazy parameters without a shape"):
        ftrain.to_module(nn.LazyLinear(3), {}, {})


CLASSIFIERS = [
    pytest.param(name, marks=[] if name in OF_EACH_FAMILY else pytest.mark.long)
    for name in torchvision.models.list_models(module=torchvision.models)
]


class WithoutData(TorchFunctionMode):
    """Layers make their parameters on the meta device, where even the largest network has no data."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})


def numbered(tensors):
    return {
        name: torch.full(tensor.shape, number % 97, dtype=tensor.dtype)
        for number, (name, tensor) in enumerate(tensors.items())
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_torchvisions_classifiers(name):
    """Every tensor arrives under its name: each has a value of its own in the networks that fit into memory."""
    options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    with WithoutData():
        module = torchvision.models.get_model(name, weights=None, **options)
    _, params, buffers = ftrain.functionalize(module)
    if sum(tensor.numel() for tensor in params.values()) < 3e7:
        params, buffers = (
            {
                key: torch.full(tensor.shape, number % 97, dtype=tensor.dtype)
                for number, (key, tensor) in enumerate(t.items())
            }
            for t in (params, buffers)
        )
    found, expected = ftrain.to_module(module, params, buffers).state_dict(), module.state_dict()
    assert list(found) == list(expected)
    assert found.keys() == {**params, **buffers}.keys()
    for key, tensor in {**params, **buffers}.items():
        assert (found[key].shape, found[key].dtype) == (expected[key].shape, expected[key].dtype)
        assert found[key].is_meta or torch.equal(found[key], tensor)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0", "squeezenet1_1", "swin_v2_t"]
)
def test_the_outputs_of_some_classifiers(name):
    module = torchvision.models.get_model(name, weights=None, num_classes=5)
    apply, params, buffers = ftrain.functionalize(module)
    net = ftrain.to_module(module, params, buffers)
    assert all(torch.equal(tensor, module.state_dict()[key]) for key, tensor in net.state_dict().items())
    images = ftrain.random.normal(ftrain.random.key(2), (2, 3, 64, 64))
    with torch.no_grad():
        assert torch.equal(net(images), apply(params, buffers, images, train=False)[0])
        assert torch.equal(net(images), module.eval()(images))
