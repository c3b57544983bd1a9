"""Whether a transform watches: some kernels are for eager mode alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_once: ContextVar[bool] = ContextVar("once", default=False)


@contextmanager
def differentiated_once() -> Iterator[None]:
    """A context for what autograd records for a first derivative alone, in which kernels need no second one."""
    token = _once.set(True)
    try:
        yield
    finally:
        _once.reset(token)


def tracing(*trees: Any) -> bool:
    """Whether the call is being compiled or traced, or transformed."""
    return torch.compiler.is_compiling() or transformed(*trees)


def transformed(*trees: Any) -> bool:
    """Whether the call runs under vmap, grad or another transform of torch.func, or would be recorded by autograd, for
    any derivative, because a tensor of `trees` requires gradients. In-place kernels are then out of place."""
    if _under_functorch():
        return True
    if not torch.is_grad_enabled() or (not torch.compiler.is_compiling() and _once.get()):
        return False
    return _requires_grad(trees)


def _under_functorch() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


# What torch.compiler.assume_constant_result does, without its import of the compiler: the stack while tracing is that
# of the traced call.
_under_functorch._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _requires_grad(tree: Any) -> bool:
    if isinstance(tree, Tensor):
        return tree.requires_grad
    if isinstance(tree, dict):  # before all else, since a look through hundreds of tensors at every step adds up
        return any(map(_requires_grad, tree.values()))
    leaves = pytree.tree_leaves(tree, is_leaf=lambda node: isinstance(node, dict))
    return any(_requires_grad(leaf) for leaf in leaves if isinstance(leaf, Tensor | dict))
