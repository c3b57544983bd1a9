"""Whether a transform watches: some kernels are for eager mode alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def tracing(*trees: Any) -> bool:
    """Whether the call is being compiled or traced, runs under vmap, grad or another transform of torch.func, or would
    be recorded by autograd because a tensor of `trees` requires gradients. In-place kernels are then out of place."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in pytree.tree_leaves(trees))
