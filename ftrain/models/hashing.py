"""Hashes by which a change in the source of a network or of a function is noticed when a run is resumed."""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LIBRARIES = frozenset(("builtins", "torch", "torchvision", "timm"))
_NAMED = _LIBRARIES | {"ftrain", "numpy"}  # their functions are identified by name


def module_hash(module: torch.nn.Module) -> str:
    """SHA-256 of a module's structure and of the source of its classes; see `source_hash`."""
    digest = hashlib.sha256(repr(module).encode())
    classes = {base for layer in module.modules() for base in type(layer).__mro__ if not _from_library(base)}
    sources = sorted((cls.__qualname__.encode(), _source(cls)) for cls in classes)
    for part in (each for pair in sources for each in pair):
        digest.update(b"\0%d\0%s" % (len(part), part))
    return digest.hexdigest()


def function_hash(function: Callable[..., Any]) -> str:
    """A SHA-256, in hexadecimal, that changes when the source of a function changes, or a value that it captures.

    It covers the source of the function (the bytecode where there is no source, which differs between versions of
    Python), its defaults, the values of its closure, what `functools.partial` binds, and, for a callable object, the
    source of its class and its attributes. Among these values, functions are covered in the same way, tensors and
    arrays by their contents, modules by `source_hash`, their attributes and their tensors, and other values by their
    `repr`, or only by the name of their type if the `repr` contains an address. Functions of torch, torchvision, timm,
    numpy and ftrain are identified by name. Global variables and functions that the function refers to by name are not
    covered. The hash is the same in every process.

    Args:
      function: any callable.

    >>> def scaled(factor): return lambda logits: factor * logits
    >>> function_hash(scaled(2)) == function_hash(scaled(2)), function_hash(scaled(2)) == function_hash(scaled(3))
    (True, False)
    """
    return _Hasher().hash(function).hex()


class _Hasher:
    """Hashes of values, each computed once. A value inside itself counts as a cycle."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, bytes]] = {}  # by id, with the value, so that no other gets its id
        self._open: set[int] = set()

    def hash(self, value: Any) -> bytes:
        if id(value) in self._known:
            return self._known[id(value)][1]
        if id(value) in self._open:
            return b"cycle"
        self._open.add(id(value))
        digest = hashlib.sha256()
        for part in self._parts(value):
            content = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
            digest.update(b"%d\0%s" % (len(content), content))
        self._open.remove(id(value))
        self._known[id(value)] = value, digest.digest()
        return digest.digest()

    def _parts(self, value: Any) -> list[Any]:
        """The kind of a value, and strings or bytes that identify it."""
        if isinstance(value, functools.partial):
            return ["partial", self.hash(value.func), self.hash(value.args), self.hash(value.keywords)]
        if isinstance(value, types.MethodType):
            return ["method", self.hash(value.__func__), self.hash(value.__self__)]
        if isinstance(value, types.FunctionType):
            return ["function", *self._function(value)]
        if isinstance(value, types.ModuleType):
            return ["python module", value.__name__]
        if isinstance(value, type):
            return ["class", *_class(value)]
        if isinstance(value, Tensor):
            return ["tensor", value.dtype, list(value.shape), _content(value)]
        if isinstance(value, np.ndarray):
            content = self.hash(value.tolist()) if value.dtype.hasobject else value.tobytes()
            return ["array", value.dtype.str, list(value.shape), content]
        if isinstance(value, torch.nn.Module):
            return ["module", module_hash(value), *self._module(value)]
        if isinstance(value, tuple | list):
            return [type(value).__name__, *map(self.hash, value)]
        if isinstance(value, Mapping):
            return ["mapping", *sorted(self.hash(key) + self.hash(each) for key, each in value.items())]
        if isinstance(value, set | frozenset):
            return ["set", *sorted(map(self.hash, value))]
        if isinstance(value, types.BuiltinFunctionType):
            return ["builtin", value.__module__, value.__qualname__]
        if callable(value):
            attributes = getattr(value, "__dict__", {})
            return ["object", *_class(type(value)), self.hash(attributes) if attributes else _shown(value)]
        return ["value", _name(type(value)), _shown(value)]

    def _function(self, function: types.FunctionType) -> list[Any]:
        source = _name(function).encode() if _root(function) in _NAMED else _function_source(function)
        captured = [_cell(cell) for cell in function.__closure__ or ()]
        return [source, self.hash([function.__defaults__, function.__kwdefaults__, captured])]

    def _module(self, module: torch.nn.Module) -> list[bytes]:
        attributes = [
            {name: each for name, each in vars(layer).items() if not name.startswith("_")} for layer in module.modules()
        ]
        tensors = [*module.named_parameters(), *module.named_buffers()]
        return [self.hash(attributes), self.hash(tensors)]


def _content(tensor: Tensor) -> bytes:
    if tensor.is_meta or tensor.layout != torch.strided:
        return b""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return bytes(plain.reshape(-1).view(torch.uint8).numpy().tobytes())


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return "an empty cell"


def _shown(value: Any) -> str:
    text = repr(value)
    return "" if " at 0x" in text else text


def _class(cls: type) -> list[Any]:
    if _root(cls) in _NAMED:
        return [_name(cls)]
    return [each for base in cls.__mro__ if _root(base) not in _NAMED for each in (base.__qualname__, _source(base))]


def _root(value: Any) -> str:
    return (value.__module__ or "").partition(".")[0]


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _function_source(function: types.FunctionType) -> bytes:
    try:
        source = inspect.getsource(function.__code__)  # of the function itself, not of what functools.wraps names
    except (OSError, TypeError):
        return repr(_bytecode(function.__code__)).encode()
    if source.count("lambda") > 1 and function.__name__ == "<lambda>":  # inspect finds the line, not which lambda in it
        return source.encode() + repr(_bytecode(function.__code__)).encode()
    return source.encode()


def _from_library(cls: type) -> bool:
    return _root(cls) in _LIBRARIES


def _source(cls: type) -> bytes:
    try:
        return inspect.getsource(cls).encode()
    except (OSError, TypeError):  # TypeError: a class whose module has no file
        functions = {name: _plain_function(value) for name, value in vars(cls).items()}
        return repr([(name, _bytecode(f.__code__)) for name, f in sorted(functions.items()) if f]).encode()


def _plain_function(attribute: Any) -> types.FunctionType | None:
    """The function behind a method, a static or class method, or a property."""
    function = getattr(attribute, "__func__", getattr(attribute, "fget", attribute))
    return function if isinstance(function, types.FunctionType) else None


def _bytecode(code: types.CodeType) -> tuple[Any, ...]:
    """What a function does, without line numbers and file names."""

    def stable(constant: Any) -> Any:
        if isinstance(constant, types.CodeType):
            return _bytecode(constant)
        return sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)

    return code.co_code, code.co_names, code.co_varnames, [stable(each) for each in code.co_consts]
