"""Each private part of torch that ftrain uses still behaves as ftrain expects."""

import inspect
import multiprocessing
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ftrain import torch_private

FTRAIN = Path(torch_private.__file__).parent


def changed(part):
    return f"torch {torch.__version__} has changed {part}; adapt ftrain/torch_private.py"


def test_no_other_module_uses_private_parts_of_torch():
    private = re.compile(r"(?<![\w.\"'])(?:torch(?:\.\w+)*|F)\._[a-zA-Z]\w*|from torch[\w.]* import _\w+")
    found = {
        f"{path.relative_to(FTRAIN)}: {match}"
        for path in FTRAIN.rglob("*.py")
        if path.name != "torch_private.py"
        for match in private.findall(path.read_text())
    }
    assert found == set()


def test_under_functorch():
    message = changed("torch._C._functorch.peek_interpreter_stack")
    inside = []

    def look(x):
        inside.append(torch_private.under_functorch())
        return x.sum()

    look(torch.ones(2))
    torch.func.vmap(look)(torch.ones(2, 2))
    torch.func.grad(look)(torch.ones(2))
    torch.func.vmap(torch.func.grad(look))(torch.ones(2, 2))
    look(torch.ones(2))
    assert inside == [False, True, True, True, False], message


def test_a_constant_when_traced():
    message = changed("_dynamo_marked_constant, the mark of torch.compiler.assume_constant_result")

    def marked():
        return 3

    assert vars(torch.compiler.assume_constant_result(marked)) == vars(torch_private.under_functorch), message

    def step(x):
        return x + 1 if torch_private.under_functorch() else x + 2

    torch.compiler.reset()
    assert torch.compile(step, fullgraph=True, backend="eager")(torch.tensor(0)) == 2, message
    compiled = torch.compile(torch.func.vmap(step), fullgraph=True, backend="eager")
    assert compiled(torch.zeros(2)).tolist() == [1.0, 1.0], message


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_the_base_class_of_batch_norms(norm):
    assert issubclass(norm, torch_private.BatchNorm), changed("torch.nn.modules.batchnorm._BatchNorm")
    names = {"running_mean", "running_var", "num_batches_tracked", "momentum", "eps", "weight", "bias"}
    assert all(hasattr(norm(3), name) for name in names), changed(f"the attributes of {norm.__name__}")


def test_the_check_of_a_batch_norms_input():
    message = changed("_BatchNorm._check_input_dim")
    torch_private.check_batch_norm_input(nn.BatchNorm2d(3), torch.zeros(2, 3, 4, 4))
    try:
        torch_private.check_batch_norm_input(nn.BatchNorm2d(3), torch.zeros(2, 3))
    except ValueError:
        return
    pytest.fail(message)


COMPOSED = {
    "multi_head_attention_forward": F.multi_head_attention_forward,
    "gumbel_softmax": F.gumbel_softmax,
    "_fractional_max_pool2d": torch_private.FRACTIONAL_MAX_POOLS[F.fractional_max_pool2d],
    "_fractional_max_pool3d": torch_private.FRACTIONAL_MAX_POOLS[F.fractional_max_pool3d],
    "fractional_max_pool2d_with_indices": F.fractional_max_pool2d_with_indices,
    "fractional_max_pool3d_with_indices": F.fractional_max_pool3d_with_indices,
}


@pytest.mark.parametrize("name", COMPOSED)
def test_the_head_of_a_function_is_the_only_check_for_overrides(name):
    source = inspect.getsource(COMPOSED[name])
    checks = re.findall(r"has_torch_function\w*\(", source)
    assert len(checks) == 1, changed(f"the check for overrides in torch.nn.functional.{name}")
    assert set(re.findall(r"has_torch_function\w*", source)) <= set(torch_private._OVERRIDE_CHECKS), changed(name)


def test_a_function_without_its_override_check_calls_the_mode_for_its_parts():
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.gumbel_softmax:
                with self:
                    return torch_private.without_override_check(func)(*args, **kwargs or {})
            seen.append(func)
            return func(*args, **kwargs or {})

    with Mode():
        F.gumbel_softmax(torch.zeros(2, 3))
    assert torch.Tensor.exponential_ in seen, changed("how torch.nn.functional calls a TorchFunctionMode")


@pytest.mark.parametrize("dimensions", [2, 3])
def test_fractional_max_pools(dimensions):
    public = getattr(F, f"fractional_max_pool{dimensions}d")
    images = torch.arange(8.0**dimensions).reshape(1, 1, *[8] * dimensions)
    samples = torch.full((1, 1, dimensions), 0.5)
    found = torch_private.FRACTIONAL_MAX_POOLS[public](images, 2, output_size=3, _random_samples=samples)
    expected = public(images, 2, output_size=3, _random_samples=samples)
    assert torch.equal(found, expected), changed(f"torch.nn.functional._fractional_max_pool{dimensions}d")


def fill(tensor):
    tensor.fill_(7)


def test_shared_storage():
    message = changed("torch.UntypedStorage._new_shared")
    storage = torch_private.shared_storage(5)
    assert storage.is_shared(), message
    assert storage.nbytes() == 5, message
    tensor = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (5,))
    process = multiprocessing.get_context("fork").Process(target=fill, args=(tensor,))
    process.start()
    process.join()
    assert tensor.tolist() == [7] * 5, message


def test_the_errors_of_the_compiler():
    def broken(x):
        torch._dynamo.graph_break()
        return x

    def failing(graph, inputs):
        raise RuntimeError("no")

    torch.compiler.reset()
    message = changed("torch._dynamo.exc")
    for function, backend in ((broken, "eager"), (torch.sin, failing)):
        compiled = torch.compile(lambda x, function=function: function(x), fullgraph=True, backend=backend)
        try:
            compiled(torch.ones(2))
            pytest.fail(message)
        except torch_private.compile_errors():
            pass
        except Exception as error:
            pytest.fail(f"{message}: {error!r}")


def test_a_recompile_is_an_error():
    message = changed("torch._dynamo.config.error_on_recompile or torch._dynamo.exc.RecompileError")
    torch.compiler.reset()
    compiled = torch.compile(lambda x, n: x + n, fullgraph=True, dynamic=False, backend="eager")
    with torch_private.error_on_recompile():
        compiled(torch.ones(2), 1.5)
        try:
            compiled(torch.ones(3), 1.5)
        except torch_private.recompile_error():
            return
    pytest.fail(message)


def test_a_registered_pytree_goes_through_transforms():
    message = changed("torch.utils._pytree")

    class Box:
        def __init__(self, value):
            self.value = value

    torch_private.pytree.register_pytree_node(
        Box,
        lambda box: ([box.value], None),
        lambda children, _: Box(*children),
        serialized_type_name="tests.test_torch_private.Box",
        flatten_with_keys_fn=lambda box: ([(torch_private.pytree.GetAttrKey("value"), box.value)], None),
    )
    found = torch.func.vmap(lambda box: Box(2 * box.value))(Box(torch.ones(2)))
    assert found.value.tolist() == [2.0, 2.0], message
    [(path, _)] = torch_private.pytree.tree_flatten_with_path(Box(1))[0]
    assert torch_private.pytree.keystr(path) == ".value", message
