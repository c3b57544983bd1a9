"""ftrain: a pure-functional image-classification trainer for PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftrain import (
        data,
        errors,
        losses,
        metrics,
        mix,
        models,
        multi_label,
        optim,
        parallel,
        random,
        schedules,
        testing,
    )
    from ftrain.compile import compile_step
    from ftrain.errors import FtrainError
    from ftrain.losses import binary_cross_entropy, cross_entropy, mean_squared_error
    from ftrain.metrics import Metrics
    from ftrain.mix import cutmix, mixup
    from ftrain.module import functionalize, normalized, to_module
    from ftrain.optim import (
        Optimizer,
        Transform,
        adagrad,
        adam,
        adamw,
        chain,
        clip_by_global_norm,
        global_norm,
        matrices_only,
        sgd,
        starting_at,
    )
    from ftrain.pytree import frozen
    from ftrain.run.api import events, fit, open_run
    from ftrain.run.opened import Run
    from ftrain.schedules import constant, step_decay, warmup_cosine, warmup_linear
    from ftrain.state import DonatedError, TrainState, averaged, init_state, restarted
    from ftrain.statistics import recompute_statistics
    from ftrain.steps import eval_step, predict_step, train_step

_NAMES_IN = {
    "compile": ["compile_step"],
    "errors": ["FtrainError"],
    "losses": ["binary_cross_entropy", "cross_entropy", "mean_squared_error"],
    "metrics": ["Metrics"],
    "mix": ["cutmix", "mixup"],
    "module": ["functionalize", "normalized", "to_module"],
    "optim": [
        "Optimizer",
        "Transform",
        "adagrad",
        "adam",
        "adamw",
        "chain",
        "clip_by_global_norm",
        "global_norm",
        "matrices_only",
        "sgd",
        "starting_at",
    ],
    "pytree": ["frozen"],
    "run.api": ["events", "fit", "open_run"],
    "run.opened": ["Run"],
    "schedules": ["constant", "step_decay", "warmup_cosine", "warmup_linear"],
    "state": ["DonatedError", "TrainState", "averaged", "init_state", "restarted"],
    "statistics": ["recompute_statistics"],
    "steps": ["eval_step", "predict_step", "train_step"],
}
_MODULES = [
    "data",
    "errors",
    "losses",
    "metrics",
    "mix",
    "models",
    "multi_label",
    "optim",
    "parallel",
    "random",
    "schedules",
    "testing",
]
_MODULE_OF = {name: module for module, names in _NAMES_IN.items() for name in names}

__all__ = sorted([*_MODULE_OF, *_MODULES])
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Names are imported when they are first used, because `import ftrain` must not import torch: `ftrain --help` is
    # quick. (lazy_loader does the same; this is as short, and the core then needs no package beside torch and attrs.)
    if name in _MODULES:
        return importlib.import_module(f"ftrain.{name}")
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"ftrain.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'ftrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
