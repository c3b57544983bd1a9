"""Optimizers as pairs of pure functions, equal to `torch.optim` step for step.

`update` is plain tensor arithmetic under `vmap` and `grad`. Elsewhere it calls torch's fused kernels, which give the
same result to rounding in a fraction of the time.
"""

from ftrain.optim.adagrad import adagrad
from ftrain.optim.adam import adam, adamw
from ftrain.optim.base import (
    ExtendedUpdate,
    LrFactors,
    Mask,
    Optimizer,
    State,
    Tensors,
    Transform,
    Update,
    apply_update,
)
from ftrain.optim.groups import matrices_only
from ftrain.optim.sgd import sgd
from ftrain.optim.transforms import chain, clip_by_global_norm, global_norm, starting_at

__all__ = [
    "ExtendedUpdate",
    "LrFactors",
    "Mask",
    "Optimizer",
    "State",
    "Tensors",
    "Transform",
    "Update",
    "adagrad",
    "adam",
    "adamw",
    "apply_update",
    "chain",
    "clip_by_global_norm",
    "global_norm",
    "matrices_only",
    "sgd",
    "starting_at",
]
