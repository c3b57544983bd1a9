"""The running statistics of BatchNorm, computed anew from data."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor
from torch.overrides import TorchFunctionMode

import ftrain.random
from ftrain.checks import check_apply, unpack_batch
from ftrain.module import Apply, Tensors
from ftrain.torch_private import BatchNorm

__all__ = ["recompute_statistics", "smallest_momentum"]

_COUNT = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var", _COUNT)
_MOMENTUM = 6  # its place among the arguments of F.batch_norm and F.instance_norm


def recompute_statistics(
    params: Tensors,
    buffers: Tensors,
    batches: Iterable[tuple[Any, ...]],
    *,
    apply: Apply,
    key: Int64[Tensor, "2"] | None = None,
    precision: torch.dtype = torch.float32,
) -> Tensors:
    """Buffers whose running statistics of BatchNorm are those of the network as it is, over these batches.

    Training keeps running averages of the statistics, in which those of earlier parameters fade only slowly if the
    momentum is small (0.01 in MobileNetV3). Evaluation then normalises with statistics of a network that no longer
    exists. Here, each batch passes once through the network with the given parameters. The results are the means over
    the batches, each with the same weight, of the batch's mean and of its unbiased variance, whatever the momentum: the
    numbers of `torch.optim.swa_utils.update_bn`.

    Args:
      params: the parameters, which do not change; `averaged(state).params` if averages are to be evaluated.
      buffers: the buffers; the old statistics have no influence.
      batches: at least one; (inputs, labels) or (inputs, labels, weights), of which only the inputs are used.
      apply: the network, from `functionalize`, which runs as in training. Layers that are frozen keep their statistics.
      key: for a network that draws random numbers in training, such as dropout's.
      precision: as for `train_step`.

    Returns:
      The buffers, of which only the statistics differ and are new tensors.

    Raises:
      ValueError: if there is no batch.

    >>> apply, params, buffers = ftrain.module.functionalize(torch.nn.BatchNorm1d(1, momentum=0.01))
    >>> batches = [(torch.tensor([[x], [x + 2.0]]), torch.tensor([0, 1])) for x in (0.0, 4.0)]
    >>> found = recompute_statistics(params, buffers, batches, apply=apply)
    >>> found["running_mean"].tolist(), found["running_var"].tolist(), found["num_batches_tracked"].item()
    ([3.0], [2.0], 2)
    """
    check_apply(apply)
    owner = {name: name.rpartition(".")[0] for name in buffers if name.rpartition(".")[2] in _STATISTICS}
    # Counted from 0, so that a layer whose count remains 0 is known to be frozen. The weight of the old statistics is
    # 0, but 0 times a nan is nan.
    counts = {name: torch.zeros_like(buffers[name]) for name in owner if name.endswith(_COUNT)}
    finite = {name: torch.nan_to_num(buffers[name]) for name in owner if name not in counts}
    found, number = {**buffers, **finite, **counts}, 0
    for number, batch in enumerate(batches, start=1):
        inputs = unpack_batch(batch)[0]
        batch_key = None if key is None else ftrain.random.fold_in(key, number)
        device = next(iter(params.values())).device.type
        with (
            torch.no_grad(),
            torch.autocast(device, precision, enabled=precision != torch.float32),
            _Averaging(number),
        ):
            _, new = apply(params, found, inputs, train=True, key=batch_key)
        found = {**buffers, **{name: new[name] for name in owner}}
    if not number:
        raise ValueError("`batches` must have at least one batch; got none")
    frozen = {owner[name] for name in counts if not found[name].any()}
    return {name: buffers[name] if owner.get(name) in frozen else tensor for name, tensor in found.items()}


def smallest_momentum(module: torch.nn.Module, *, frozen: Collection[str] = ()) -> float | None:
    """The smallest momentum of the BatchNorm layers of a module that keep running statistics in training; 0 for layers
    that average over all batches, and None if there is no such layer.

    Args:
      frozen: names of parameters that are not trained, as for `functionalize`.

    >>> smallest_momentum(torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2, momentum=0.01)))
    0.01
    >>> smallest_momentum(torch.nn.BatchNorm1d(2), frozen=["weight", "bias"]) is None
    True
    """
    trained = [name for name, param in module.named_parameters() if param.requires_grad and name not in frozen]
    owned = [name for name, _ in module.named_parameters()]

    def is_frozen(block: str) -> bool:
        prefix = f"{block}." if block else ""
        return any(name.startswith(prefix) for name in owned) and not any(name.startswith(prefix) for name in trained)

    def runs(name: str) -> bool:
        parts = name.split(".") if name else []
        return not frozen or not any(is_frozen(".".join(parts[:end])) for end in range(len(parts) + 1))

    layers = [(n, layer) for n, layer in module.named_modules() if isinstance(layer, BatchNorm)]
    found = [layer.momentum or 0.0 for name, layer in layers if layer.track_running_stats and runs(name)]
    return min(found, default=None)


class _Averaging(TorchFunctionMode):
    """Makes layers update their statistics with the weight that gives the mean over batches: 1 / number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (F.batch_norm, F.instance_norm):
            return func(*args, **kwargs)
        before, after = args[:_MOMENTUM], args[_MOMENTUM + 1 :]
        if len(before) == _MOMENTUM:
            return func(*before, 1.0 / self.number, *after, **{n: v for n, v in kwargs.items() if n != "momentum"})
        return func(*before, **{**kwargs, "momentum": 1.0 / self.number})
