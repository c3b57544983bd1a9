"""Where this process stands among those that a launcher has started."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

import attrs

from ftrain.errors import SettingsError

__all__ = ["Place", "place"]

FIRST_PORT, PORTS = 20_000, 20_000  # of Slurm's jobs, which choose one by their number


@attrs.frozen
class Place:
    """The place of a process.

    Attributes:
      world: how many processes there are.
      rank: its number among all, from 0.
      local_world: how many of them this machine has.
      local_rank: its number among these.
      address, port: of the store through which the processes find each other.
    """

    world: int = 1
    rank: int = 0
    local_world: int = 1
    local_rank: int = 0
    address: str = "localhost"
    port: int = 0


def place(environment: Mapping[str, str] | None = None) -> Place:
    """The place of this process, from the environment that torchrun, `ftrain fit --processes` or Slurm's srun gives it;
    without any of them, that of the only process.

    Raises:
      SettingsError: if the environment is incomplete, or the nodes of a Slurm job cannot be found out.

    >>> place({"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"})
    Place(world=4, rank=3, local_world=1, local_rank=0, address='node0', port=29500)
    >>> place({})
    Place(world=1, rank=0, local_world=1, local_rank=0, address='localhost', port=0)
    """
    found = os.environ if environment is None else environment
    try:
        if "RANK" in found and "WORLD_SIZE" in found:
            return Place(
                int(found["WORLD_SIZE"]),
                int(found["RANK"]),
                int(found.get("LOCAL_WORLD_SIZE", 1)),
                int(found.get("LOCAL_RANK", 0)),
                found["MASTER_ADDR"],
                int(found["MASTER_PORT"]),
            )
        # Only srun sets it; a batch script that was not started by srun is one process, whatever its job has.
        if int(found.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            return Place(
                int(found["SLURM_STEP_NUM_TASKS"]),
                int(found["SLURM_PROCID"]),
                int(re.split(r"[,(]", found["SLURM_STEP_TASKS_PER_NODE"])[0]),
                int(found["SLURM_LOCALID"]),
                found.get("MASTER_ADDR") or _first_node(found["SLURM_STEP_NODELIST"]),
                int(found.get("MASTER_PORT") or FIRST_PORT + int(found["SLURM_JOB_ID"]) % PORTS),
            )
    except KeyError as error:
        raise SettingsError(
            f"this process was started as one of several, but {error.args[0]} is not set in its environment; start it "
            "with torchrun, srun or `ftrain fit --processes`"
        ) from error
    return Place()


def _first_node(nodes: str) -> str:
    """The name of the first node of a list as Slurm writes it, such as node[03-05,08]."""
    if not re.search(r"[\[,]", nodes):
        return nodes
    try:
        names = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SettingsError(
            f"cannot find out the first node of {nodes}: {error}; set MASTER_ADDR to its name"
        ) from error
    return names.stdout.split()[0]
