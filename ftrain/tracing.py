"""Detecting torch.func transforms, tracing and autograd: some kernels are for eager mode only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ftrain.torch_private import pytree, under_functorch

_first_derivative_only: ContextVar[bool] = ContextVar("first_derivative_only", default=False)


@contextmanager
def first_derivative_only() -> Iterator[None]:
    """A context for a forward pass that autograd differentiates once, so that kernels without a second derivative may
    be used."""
    token = _first_derivative_only.set(True)
    try:
        yield
    finally:
        _first_derivative_only.reset(token)


def tracing(*trees: Any) -> bool:
    """Whether the call is being compiled, traced or transformed."""
    return torch.compiler.is_compiling() or transformed(*trees)


def transformed(*trees: Any) -> bool:
    """Whether in-place kernels are ruled out: the call runs under vmap, grad or another transform of torch.func, or
    autograd would record it because a tensor of `trees` requires gradients."""
    if under_functorch():
        return True
    if not torch.is_grad_enabled() or (not torch.compiler.is_compiling() and _first_derivative_only.get()):
        return False
    return _requires_grad(trees)


def _requires_grad(tree: Any) -> bool:
    if isinstance(tree, Tensor):
        return tree.requires_grad
    if isinstance(tree, dict):  # first, because this runs over hundreds of tensors in every step
        return any(map(_requires_grad, tree.values()))
    leaves = pytree.tree_leaves(tree, is_leaf=lambda node: isinstance(node, dict))
    return any(_requires_grad(leaf) for leaf in leaves if isinstance(leaf, Tensor | dict))
