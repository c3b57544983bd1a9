"""How a batch lies over processes, and sums over all of it whose bits do not depend on the number of processes."""

from ftrain.parallel.ranks import Ranks, ranks
from ftrain.parallel.tree import TreeSum, tree_sum

__all__ = ["Ranks", "TreeSum", "ranks", "tree_sum"]
