"""From a `torch.nn.Module` to a pure function of its parameters and buffers."""

from __future__ import annotations

import copy
import types
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor
from torch.func import functional_call

from ftrain.draws import keyed_draws
from ftrain.torch_private import BatchNorm, check_batch_norm_input
from ftrain.tracing import tracing, transformed

__all__ = ["Apply", "Functional", "Tensors", "functionalize", "normalized", "to_module"]

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
    """The result of `functionalize`: a function, and the tensors that it starts from."""

    apply: Apply
    params: Tensors
    buffers: Tensors


def functionalize(module: torch.nn.Module, *, frozen: Collection[str] = ()) -> Functional:
    """Splits a module into a pure function and its tensors.

    Args:
      module: any module. It is read, never changed: not its tensors, not its mode.
      frozen: names of parameters that are not to be trained. They are returned among the buffers. A layer or block all
        of whose parameters are frozen always runs as in evaluation mode: its BatchNorm layers keep their statistics,
        and nothing in it is dropped.

    Returns:
      apply: `apply(params, buffers, inputs, *, train, key=None) -> (outputs, new_buffers)`. `inputs` is the module's
        one argument, or a tuple of its arguments. With train=True the module runs as after `module.train()`, else as
        after `module.eval()`. Every draw (all kinds of dropout, stochastic depth, RReLU) comes from `key`, int64 [2],
        which is needed only if there are any. `new_buffers` are new tensors even where nothing changed, except for the
        parameters among them, which are returned as they were given. With train=False it does not matter which
        parameters are given among the buffers.
      params: copies of the parameters that require gradients and are not frozen. A parameter that modules share is in
        it once.
      buffers: copies of the buffers, and of the parameters that are not trained.

    Raises:
      ValueError: for a lazy module, a module that communicates with other processes by itself
        (DistributedDataParallel, SyncBatchNorm), or a name in `frozen` that no parameter has; from `apply`, for a
        missing or unexpected tensor, or a draw without a key.
      NotImplementedError: from `apply`, for a random operation that cannot be drawn from a key.

    >>> apply, params, buffers = functionalize(torch.nn.BatchNorm1d(3))
    >>> outputs, new_buffers = apply(params, buffers, torch.ones(2, 3), train=True)
    >>> outputs.shape, buffers["num_batches_tracked"].item(), new_buffers["num_batches_tracked"].item()
    (torch.Size([2, 3]), 0, 1)
    """
    params, buffers, untrained = _tensors(module, frozen)
    mutable = tuple(buffers)
    skeletons = {True: _skeleton(module, True, frozen), False: _skeleton(module, False)}
    tied = _has_ties(module)

    def apply(
        params: Tensors,
        buffers: Tensors,
        inputs: Any,
        *,
        train: bool,
        key: Int64[Tensor, "2"] | None = None,
    ) -> tuple[Any, Tensors]:
        if train:
            _check_names("parameters", params, param_names)
            _check_names("buffers", buffers, buffer_names)
        # One dict, because functional_call loses buffers that a module reassigns when it is given several.
        tensors = {**params, **buffers}
        _check_names("tensors", tensors, param_names | buffer_names)
        tensors |= {name: buffers[name].clone() for name in mutable}
        with keyed_draws(key):
            outputs = functional_call(skeletons[train], tensors, inputs, tie_weights=tied)
        return outputs, {name: tensors[name] for name in buffers}

    # Sets of names, not views of the dicts, which would keep the tensors of the module alive.
    param_names, buffer_names = frozenset(params), frozenset([*buffers, *untrained])
    return Functional(apply, _copies(params), _copies({**buffers, **untrained}))


def to_module(module: torch.nn.Module, params: Tensors, buffers: Tensors) -> torch.nn.Module:
    """The inverse of `functionalize`: a copy of a module, in evaluation mode, that has these tensors.

    Args:
      module: the module that was given to `functionalize`, or one built in the same way. It is not changed.
      params: the trained parameters, by name, such as `state.params`.
      buffers: the buffers and the parameters that are not trained, by name, such as `state.buffers`.

    Returns:
      A module of the same class. Its tensors are copies, with the dtype, device and memory layout of the given ones;
      tensors that modules share stay shared, and parameters that were frozen stay frozen.

    Raises:
      ValueError: for a lazy module, or for tensors that are missing, unexpected, or of another shape.

    >>> linear = torch.nn.Linear(3, 2)
    >>> _, params, buffers = functionalize(linear)
    >>> trained = to_module(linear, {name: param + 1.0 for name, param in params.items()}, buffers)
    >>> torch.equal(trained.bias, linear.bias + 1.0), trained.training
    (True, False)
    """
    owned = {name: tensor for tensors in _tensors(module, ()) for name, tensor in tensors.items()}
    given = {**params, **buffers}
    _check_names("tensors", given, owned.keys())
    copies = {}
    for name, own in owned.items():
        if given[name].shape != own.shape:
            raise ValueError(
                f"{name} must have the shape {list(own.shape)}, as in the module; got {list(given[name].shape)}"
            )
        copy_of_given = given[name].detach().clone()
        is_parameter = isinstance(own, torch.nn.Parameter)
        copies[id(own)] = torch.nn.Parameter(copy_of_given, own.requires_grad) if is_parameter else copy_of_given
    return _copy_with(module, copies).eval()


def normalized(
    apply: Apply,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    memory_format: torch.memory_format | None = None,
) -> Apply:
    """`apply` for images from 0 to 255: computes (image / 255 - mean) / std per channel, in the dtype of the
    parameters, and then the network.

    Args:
      apply: a network for float images [B, C, H, W], from `functionalize`.
      mean, std: C numbers each, as fractions of the full range of an image.
      memory_format: the memory layout of the images for the network, which should be that of its parameters; None to
        leave it unchanged. It only affects speed, and is ignored under a transform of torch.func.

    Returns:
      The same function of images [B, C, H, W] from 0 to 255: uint8, or float if they have been mixed or augmented.

    >>> apply, params, buffers = functionalize(torch.nn.Conv2d(3, 1, 1))
    >>> apply = normalized(apply, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    >>> apply(params, buffers, torch.zeros(2, 3, 4, 4, dtype=torch.uint8), train=False)[0].shape
    torch.Size([2, 1, 4, 4])
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


def _tensors(module: torch.nn.Module, frozen: Collection[str]) -> tuple[Tensors, Tensors, Tensors]:
    """The module's own trained parameters, buffers and untrained parameters, each tensor under its first name."""
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in module.parameters()):
        raise ValueError("the module has lazy parameters without a shape; call it once on an example first")
    for name, child in module.named_modules():
        if isinstance(child, torch.nn.parallel.DistributedDataParallel | torch.nn.SyncBatchNorm):
            # Under torch.func their gradients would differ between processes without an error.
            where = f"`{name}`" if name else "the module"
            raise ValueError(
                f"{where} is a {type(child).__name__}, which communicates with other processes by itself; pass the "
                "module without it, and train over processes with `reduce`"
            )
    parameters = dict(module.named_parameters())
    if unknown := sorted(set(frozen) - parameters.keys()):
        raise ValueError(f"`frozen` must be names of parameters of the module; it has no {', '.join(unknown)}")
    params: Tensors = {n: tensor for n, tensor in parameters.items() if tensor.requires_grad and n not in frozen}
    untrained: Tensors = {name: tensor for name, tensor in parameters.items() if name not in params}
    return params, dict(module.named_buffers()), untrained


def _copies(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _has_ties(module: torch.nn.Module) -> bool:
    """Whether a tensor has several names. Found once, since functional_call would otherwise search at every call."""
    names = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return len(names) > len({id(tensor) for _, tensor in names})


def _skeleton(module: torch.nn.Module, train: bool, frozen: Collection[str] = ()) -> torch.nn.Module:
    """A copy of the module without its data: every parameter and buffer has no elements, so that a tensor which is not
    supplied raises an error because of its shape. (On the meta device some operations return uninitialised memory
    instead.) Where all parameters of a part are frozen, it is in evaluation mode."""
    empty: dict[int, Tensor] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        empty[id(tensor)] = torch.nn.Parameter(data, tensor.requires_grad) if is_parameter else data
    skeleton = _copy_with(module, empty).train(train)
    trained = {id(each) for name, each in skeleton.named_parameters() if each.requires_grad and name not in frozen}
    for child in skeleton.modules():
        if frozen and (own := list(child.parameters())) and not any(id(tensor) in trained for tensor in own):
            child.eval()
        if isinstance(child, BatchNorm) and child.momentum is None:
            child.forward = types.MethodType(_cumulative_batch_norm, child)  # type: ignore[method-assign]
        if isinstance(child, torch.nn.Hardsigmoid):
            child.forward = types.MethodType(_hardsigmoid, child)  # type: ignore[method-assign]
    return skeleton


def _copy_with(module: torch.nn.Module, tensors: Mapping[int, Tensor]) -> torch.nn.Module:
    """A copy of the module in which other tensors replace its own, by the id of the tensor that they replace."""
    # deepcopy does not copy what it finds in its memo, so no data moves, and tied tensors stay tied.
    return copy.deepcopy(module, dict[int, Any](tensors))


def _cumulative_batch_norm(self: BatchNorm, input: Tensor) -> Tensor:
    """BatchNorm with momentum=None, a running average with equal weights, without reading its count back to the
    host."""
    check_batch_norm_input(self, input)
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
    """Hardsigmoid in plain arithmetic under transforms: torch's kernel lacks the second derivative that a hypergradient
    needs."""
    return torch.clamp(input / 6.0 + 0.5, 0.0, 1.0) if tracing(input) else F.hardsigmoid(input, self.inplace)


def _check_names(kind: str, given: Mapping[str, Tensor], expected: Any) -> None:
    if given.keys() != expected:
        missing, unexpected = sorted(expected - given.keys()), sorted(given.keys() - expected)
        raise ValueError(
            f"the {kind} do not fit the module; missing: {missing or 'none'}, unexpected: {unexpected or 'none'}"
        )
