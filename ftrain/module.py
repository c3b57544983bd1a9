"""From a `torch.nn.Module` to a pure function of its parameters and buffers."""

from __future__ import annotations

import copy
import types
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor
from torch.func import functional_call

from ftrain.draws import keyed_draws
from ftrain.tracing import tracing, transformed

Tensors = dict[str, Tensor]


@runtime_checkable
class Apply(Protocol):
    """A network as a pure function; `functionalize` makes one."""

    def __call__(
        self,
        params: Tensors,
        buffers: Tensors,
        inputs: Any,
        *,
        train: bool,
        key: Int64[Tensor, "2"] | None = None,
    ) -> tuple[Any, Tensors]: ...


class Functional(NamedTuple):
    """What `functionalize` returns: a function, and the tensors that it starts from."""

    apply: Apply
    params: Tensors
    buffers: Tensors


def functionalize(module: torch.nn.Module) -> Functional:
    """Splits a module into a pure function and its tensors.

    Args:
      module: any module. It is read, never changed: not its tensors, not its mode.

    Returns:
      apply: `apply(params, buffers, inputs, *, train, key=None) -> (outputs, new_buffers)`. `inputs` is the module's
        one argument, or a tuple of its arguments. With train=True the module runs as after `module.train()`, else as
        after `module.eval()`. Every draw (dropout and its kin, stochastic depth, RReLU, attention dropout) comes from
        `key`. `new_buffers` are new tensors, also where nothing changed (parameters among them come back as they are).
      params: the parameters that require gradients, copied, each once however many modules share it.
      buffers: the buffers, copied, and with them the parameters that do not require gradients: read, not trained.

    Raises:
      ValueError: from `apply`, for a missing or unexpected tensor, or a draw without a key.
      NotImplementedError: from `apply`, for a random operation that cannot be drawn from a key.
    """
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in module.parameters()):
        raise ValueError(
            "the module has lazy parameters without a shape; call it once on an example before functionalize"
        )
    params = {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}
    frozen = {name: tensor for name, tensor in module.named_parameters() if not tensor.requires_grad}
    buffers = dict(module.named_buffers())
    mutable = tuple(buffers)
    skeletons = {train: _skeleton(module, train) for train in (True, False)}
    tied = _has_ties(module)

    def apply(
        params: Tensors,
        buffers: Tensors,
        inputs: Any,
        *,
        train: bool,
        key: Int64[Tensor, "2"] | None = None,
    ) -> tuple[Any, Tensors]:
        _check_names("parameters", params, param_names)
        _check_names("buffers", buffers, buffer_names)
        # One dict, because functional_call loses buffers that a module reassigns when it is given several.
        tensors = {**params, **buffers, **{name: buffers[name].clone() for name in mutable}}
        with keyed_draws(key):
            outputs = functional_call(skeletons[train], tensors, inputs, tie_weights=tied)
        return outputs, {name: tensors[name] for name in buffers}

    param_names, buffer_names = frozenset(params), frozenset([*buffers, *frozen])
    return Functional(apply, _copies(params), _copies({**buffers, **frozen}))


def normalized(
    apply: Apply,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    memory_format: torch.memory_format | None = None,
) -> Apply:
    """`apply` for images from 0 to 255: (image / 255 - mean) / std per channel, in the dtype of the parameters, then
    the network.

    Args:
      apply: takes float images [B, C, H, W].
      mean, std: C numbers each, in units of the full range of the image.
      memory_format: how the images are laid out for the network, as its parameters are; None to leave them as they
        are. It is for speed alone, and under a transform of torch.func nothing is done.

    Returns:
      The same function of images [B, C, H, W] from 0 to 255: uint8, or float where they have been mixed.
    """
    scale = tuple(1.0 / (255.0 * s) for s in std)
    offset = tuple(-m / s for m, s in zip(mean, std, strict=True))

    def normalized_apply(
        params: Tensors,
        buffers: Tensors,
        inputs: Any,
        *,
        train: bool,
        key: Int64[Tensor, "2"] | None = None,
    ) -> tuple[Any, Tensors]:
        dtype = next(iter(params.values())).dtype

        def per_channel(values: tuple[float, ...]) -> Tensor:
            # Filled on the device: numbers copied from the host would make it wait in every step.
            return torch.stack([torch.full((1, 1), value, dtype=dtype, device=inputs.device) for value in values])

        images = inputs.to(dtype) * per_channel(scale) + per_channel(offset)
        if memory_format is not None and not transformed():
            images = images.contiguous(memory_format=memory_format)
        return apply(params, buffers, images, train=train, key=key)

    return normalized_apply


def _copies(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _has_ties(module: torch.nn.Module) -> bool:
    """Whether a tensor has several names, which functional_call looks for at every call unless it is told."""
    names = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return len(names) > len({id(tensor) for _, tensor in names})


def _skeleton(module: torch.nn.Module, train: bool) -> torch.nn.Module:
    """A copy of the module without its data: every parameter and buffer has no elements, so that one which is not
    supplied fails by its shape. (On the meta device some operations return uninitialised memory instead.)"""
    # What deepcopy finds in its memo it does not copy: no data moves, and tied tensors stay tied.
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    skeleton = copy.deepcopy(module, memo).train(train)
    for child in skeleton.modules():
        if isinstance(child, torch.nn.modules.batchnorm._BatchNorm) and child.momentum is None:
            child.forward = types.MethodType(_cumulative_batch_norm, child)  # type: ignore[method-assign]
        if isinstance(child, torch.nn.Hardsigmoid):
            child.forward = types.MethodType(_hardsigmoid, child)  # type: ignore[method-assign]
    return skeleton


def _cumulative_batch_norm(self: torch.nn.modules.batchnorm._BatchNorm, input: Tensor) -> Tensor:
    """BatchNorm with momentum=None, a running average with equal weights, without reading its count back to the
    host."""
    self._check_input_dim(input)  # type: ignore[no-untyped-call]
    if not self.training or self.running_mean is None or self.running_var is None:
        use_batch = self.training or self.running_mean is None
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, use_batch, 0.0, self.eps
        )
    assert self.num_batches_tracked is not None
    self.num_batches_tracked.add_(1)
    weight = 1.0 / self.num_batches_tracked.to(self.running_mean.dtype)
    axes = [axis for axis in range(input.ndim) if axis != 1]
    var, mean = torch.var_mean(input.detach(), dim=axes, correction=1)
    self.running_mean += weight * (mean - self.running_mean)
    self.running_var += weight * (var - self.running_var)
    return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)


def _hardsigmoid(self: torch.nn.Hardsigmoid, input: Tensor) -> Tensor:
    """torch's kernel has no second derivative, which a hypergradient needs."""
    return torch.clamp(input / 6.0 + 0.5, 0.0, 1.0) if tracing(input) else F.hardsigmoid(input, self.inplace)


def _check_names(kind: str, given: Mapping[str, Tensor], expected: Any) -> None:
    if given.keys() != expected:
        missing, unexpected = sorted(expected - given.keys()), sorted(given.keys() - expected)
        raise ValueError(
            f"{kind} do not fit the module; missing: {missing or 'none'}, unexpected: {unexpected or 'none'}"
        )
