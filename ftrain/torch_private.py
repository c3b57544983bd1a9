"""Every private part of torch that ftrain uses, with the reason and the public alternative that was tried.

tests/test_torch_private.py fails with a message that names the part when a release of torch changes one.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

# Classes must be registered with the pytrees that vmap, grad and torch.compile use, and torch has no public name for
# those. The package optree keeps a registry of its own, which they do not read.
from torch.utils import _pytree as pytree

__all__ = [
    "FRACTIONAL_MAX_POOLS",
    "BatchNorm",
    "check_batch_norm_input",
    "compile_errors",
    "constant_when_traced",
    "error_on_recompile",
    "pytree",
    "recompile_error",
    "shared_storage",
    "under_functorch",
    "without_override_check",
]

F_ = TypeVar("F_", bound=Callable[..., Any])


def constant_when_traced(function: F_) -> F_:
    """Makes Dynamo call `function` while tracing, and put its result into the graph as a constant.

    `torch.compiler.assume_constant_result` is public and sets the same mark, but imports torch's compiler, which
    takes seconds that an eager step need not spend.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_traced
def under_functorch() -> bool:
    """Whether the call runs under vmap, grad or another transform of torch.func.

    torch.func has no public function that says so. Looking at the tensors for wrappers is private as well, and misses
    a transform over none of them.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


# The base class of all batch norms. The public classes (BatchNorm1d, 2d and 3d, SyncBatchNorm) miss the subclasses that
# libraries derive directly from it.
BatchNorm = torch.nn.modules.batchnorm._BatchNorm


def check_batch_norm_input(module: BatchNorm, input: Tensor) -> None:
    """Raises ValueError for an input with the wrong number of dimensions for this batch norm.

    The check is reachable in public only through `forward`, which ftrain replaces.
    """
    module._check_input_dim(input)  # type: ignore[no-untyped-call]


# The functions behind F.fractional_max_pool2d and 3d, which are themselves dispatchers without code of their own to
# copy (`without_override_check`). The public variants `..._with_indices` return two values.
FRACTIONAL_MAX_POOLS: dict[Any, Any] = {
    F.fractional_max_pool2d: F._fractional_max_pool2d,  # type: ignore[attr-defined]
    F.fractional_max_pool3d: F._fractional_max_pool3d,  # type: ignore[attr-defined]
}

_OVERRIDE_CHECKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def without_override_check(function: Any) -> Any:
    """A copy of a function of torch.nn.functional without the check for `__torch_function__` at its head.

    A TorchFunctionMode is off inside its own handler. Re-entered there, it would receive the same function again,
    forever; the copy lets only the calls that the function makes reach the mode. There is no public way to say so
    (`torch.overrides` can only switch the mode off for these calls too), and rewriting the functions would duplicate
    hundreds of lines of torch.
    """
    names = {**function.__globals__, **dict.fromkeys(_OVERRIDE_CHECKS, _has_no_override)}
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _has_no_override(*_: Any) -> bool:
    return False


def shared_storage(size: int) -> torch.UntypedStorage:
    """`size` bytes of memory that processes share.

    The public `share_memory_()` first allocates the same amount of ordinary memory, and copies it;
    `UntypedStorage.from_file` needs a file with a name, which a killed process leaves behind.
    """
    return torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call, no-any-return]


# The compiler's errors have no public names. The public stance "fail_on_recompile" also refuses the first compilation,
# and raises a bare RuntimeError. (Functions, because naming torch._dynamo imports the compiler.)


def compile_errors() -> tuple[type[Exception], ...]:
    """What torch.compile raises for a function that it cannot compile."""
    return torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.BackendCompilerFailed


def recompile_error() -> type[Exception]:
    """What a compiled function raises inside `error_on_recompile` when it would compile a second time."""
    return torch._dynamo.exc.RecompileError


def error_on_recompile() -> AbstractContextManager[None]:
    """A context in which a compiled function must not compile a second time."""
    return torch._dynamo.config.patch(error_on_recompile=True)  # type: ignore[no-any-return]
