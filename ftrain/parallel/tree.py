"""Sums over the logical shards of a batch by one fixed balanced tree, wherever the shards lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from ftrain.torch_private import pytree, under_functorch

__all__ = ["TreeSum", "tree_sum"]

T = TypeVar("T")


def tree_sum(parts: Sequence[T]) -> T:
    """The sum of pytrees of tensors: of neighbours, then of neighbours among the sums, and so on. What is left over
    without a neighbour waits for the next round.

    >>> tree_sum([{"a": torch.tensor(1.0)}, {"a": torch.tensor(2.0)}, {"a": torch.tensor(4.0)}])
    {'a': tensor(7.)}
    """
    sums = list(parts)
    while len(sums) > 1:
        pairs = zip(sums[::2], sums[1::2], strict=False)
        sums = [_added(one, other) for one, other in pairs] + sums[len(sums) - len(sums) % 2 :]
    return sums[0]


def _added(one: T, other: T) -> T:
    leaves, structure = pytree.tree_flatten(one)
    added: T = pytree.tree_unflatten([a + b for a, b in zip(leaves, pytree.tree_leaves(other), strict=True)], structure)
    return added


@attrs.frozen
class TreeSum:
    """The sum over all logical shards of a batch, for `train_step(reduce=)` and `eval_step(reduce=)`.

    The shards are the leaves of one balanced binary tree. A process sums its own shards, which are the lower levels of
    the tree; for each level above, it adds what the process at the other side of that level has. A sum of two numbers
    has one rounding whatever a library does, so the bits are the same for any number of processes.

    Attributes:
      shards: how many shards there are, a power of two.
      own: the numbers of this process's shards.
      pairs: for each level above a process, the group of this process and the one whose sum it needs there.
    """

    shards: int
    own: range
    pairs: tuple[dist.ProcessGroup, ...] = ()

    def __call__(self, parts: Sequence[T]) -> T:
        """The sum.

        Args:
          parts: a pytree of tensors for each of this process's shards, in their order. All processes must call with the
            same structure, shapes and dtypes.

        Raises:
          ValueError: if there is not a part for each shard.
          RuntimeError: under a transform of torch.func, or where autograd would record the call: torch would silently
            return sums, or gradients, that are not complete.
        """
        self._check(parts)
        total = tree_sum(parts)
        if not self.pairs:
            return total
        leaves, structure = pytree.tree_flatten(total)
        return pytree.tree_unflatten(self._over_processes(leaves), structure)  # type: ignore[no-any-return]

    def gathered(self, parts: Sequence[T]) -> list[T]:
        """The parts of all shards, in their order. Arguments and errors as for the sum."""
        self._check(parts)
        found = [[leaf.unsqueeze(0) for leaf in pytree.tree_leaves(part)] for part in parts]
        leaves = [torch.cat(each) for each in zip(*found, strict=True)]
        for pair in self.pairs:
            leaves = [_gathered_over(leaf, pair) for leaf in leaves]
        structure = pytree.tree_structure(parts[0])
        return [pytree.tree_unflatten([leaf[number] for leaf in leaves], structure) for number in range(self.shards)]

    def _check(self, parts: Sequence[T]) -> None:
        if len(parts) != len(self.own):
            raise ValueError(f"`parts` must have a part for each of {len(self.own)} shards; got {len(parts)}")
        leaves = pytree.tree_leaves(parts) if self.pairs else []
        if leaves and (under_functorch() or (torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves))):
            raise RuntimeError(
                "processes cannot exchange values under vmap or what is differentiated, where sums or gradients would "
                "silently be incomplete; differentiate a step without `reduce`, or use one process"
            )

    def _over_processes(self, leaves: list[Any]) -> list[Tensor]:
        """The sums over the processes, with one message for each dtype and level."""
        sums = list(leaves)
        for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
            places = [place for place, leaf in enumerate(leaves) if leaf.dtype == dtype]
            message = torch.cat([leaves[place].reshape(-1) for place in places])
            for pair in self.pairs:
                dist.all_reduce(message, group=pair)
            sizes = [leaves[place].numel() for place in places]
            for place, values in zip(places, torch.split(message, sizes), strict=True):
                # In the memory layout of one process, on which the bits of later sums depend.
                sums[place] = torch.empty_like(leaves[place]).copy_(values.view(leaves[place].shape))
        return sums


def _gathered_over(leaf: Tensor, pair: dist.ProcessGroup) -> Tensor:
    """The values of both processes of a pair, one after the other."""
    found = leaf.new_empty((2 * len(leaf), *leaf.shape[1:]))
    dist.all_gather_into_tensor(found, leaf.contiguous(), group=pair)
    return found
