"""A copy of a training state on the host, to be written while training continues."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from ftrain.state import TrainState
from ftrain.torch_private import pytree


@attrs.frozen(eq=False)
class Snapshot:
    """A state copied to the host. Later steps do not change it.

    Attributes:
      step: training steps taken.
      tensors: by their paths in the state, contiguous, on the CPU.
      copied: recorded on the GPU's stream after the copies; None if they are already complete.
    """

    step: int
    tensors: dict[str, Tensor]
    copied: torch.cuda.Event | None

    @classmethod
    def of(cls, state: TrainState, step: int) -> Snapshot:
        """A snapshot of a state after `step` steps. Copies from a GPU are queued on its stream, and this does not wait
        for them."""
        cuda = state.step.device.type == "cuda"
        tensors = {}
        for path, tensor in named(state).items():
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=cuda)
            tensors[path] = host.copy_(tensor, non_blocking=cuda)
        return cls(step, tensors, torch.cuda.current_stream(state.step.device).record_event() if cuda else None)

    def wait(self) -> None:
        """Waits until the copies are complete."""
        if self.copied is not None:
            self.copied.synchronize()


def named(state: TrainState) -> dict[str, Tensor]:
    """The tensors of a state by their paths in it, such as `params/conv1.weight`."""
    leaves, _ = pytree.tree_flatten_with_path(state)
    return {"/".join(_name(entry) for entry in path): leaf for path, leaf in leaves}


def _name(entry: Any) -> str:
    if isinstance(entry, pytree.GetAttrKey):
        return entry.name
    return str(entry.key if isinstance(entry, pytree.MappingKey) else entry.idx)
