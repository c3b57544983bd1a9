"""How a global batch lies over processes."""

from __future__ import annotations

import attrs
import torch.distributed as dist

from ftrain.parallel.tree import TreeSum

__all__ = ["Ranks", "one_process", "ranks"]


@attrs.frozen
class Ranks:
    """A global batch is cut into logical shards of equal size; each process owns as many consecutive ones.

    Attributes:
      sum: the sum over all shards.
      world: the number of processes.
      rank: the number of this process, from 0.
    """

    sum: TreeSum
    world: int = 1
    rank: int = 0

    @property
    def shards(self) -> int:
        """The number of logical shards."""
        return self.sum.shards

    def rows(self, batch_size: int) -> slice:
        """The rows of a global batch that this process needs.

        Raises:
          ValueError: if the batch cannot be cut into shards of equal size.

        >>> ranks(shards=4).rows(32)
        slice(0, 32, None)
        """
        if batch_size % self.shards:
            raise ValueError(f"`batch_size` must be a multiple of `shards`, which is {self.shards}; got {batch_size}")
        size = batch_size // self.shards
        return slice(size * self.sum.own.start, size * self.sum.own.stop)


def ranks(shards: int = 1) -> Ranks:
    """How a batch lies over the processes of torch.distributed's default group, or over one process if there is none.

    Every process must call it, and equally often, since it makes groups of pairs of processes.

    Args:
      shards: into how many logical shards the batch is cut: a power of two, and a multiple of the number of processes.
        The result of training depends on it, but not on the number of processes.

    Raises:
      ValueError: if `shards` is not a power of two, or is less than the number of processes, or if that is not a power
        of two.

    >>> ranks(shards=4).sum.own
    range(0, 4)
    """
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_available() and dist.is_initialized() else (1, 0)
    if shards < 1 or shards & (shards - 1):
        raise ValueError(f"`shards` must be a power of two; got {shards}")
    if shards % world:
        raise ValueError(
            f"`shards` must be a multiple of the number of processes; got {shards} shards for {world} processes"
        )
    each = shards // world
    own = range(rank * each, (rank + 1) * each)
    return Ranks(TreeSum(shards, own, _pairs(world, rank)), world, rank)


def one_process(shards: int = 1) -> Ranks:
    """How a batch lies over one process, whatever others there are. Here the number of shards need not be a power of
    two.

    >>> one_process(shards=3).sum.own
    range(0, 3)
    """
    return Ranks(TreeSum(shards, range(shards)))


def _pairs(world: int, rank: int) -> tuple[dist.ProcessGroup, ...]:
    """For each level of the tree above the processes, the group of this process and its neighbour there."""
    own = []
    for level in range(world.bit_length() - 1):
        for low in range(world):
            if not low & 1 << level:
                members = [low, low | 1 << level]
                group = dist.new_group(members)  # all processes make all groups, in the same order
                if isinstance(group, dist.ProcessGroup) and rank in members:
                    own.append(group)
    return tuple(own)
