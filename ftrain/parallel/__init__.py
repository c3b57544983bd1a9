"""How a batch lies over processes, and sums over all of it whose bits do not depend on the number of processes."""

from ftrain.parallel.place import Place, place
from ftrain.parallel.processes import Processes, end_process, joined
from ftrain.parallel.ranks import Ranks, one_process, ranks
from ftrain.parallel.tree import TreeSum, tree_sum

__all__ = [
    "Place",
    "Processes",
    "Ranks",
    "TreeSum",
    "end_process",
    "joined",
    "one_process",
    "place",
    "ranks",
    "tree_sum",
]
