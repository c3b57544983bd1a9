"""Networks of one's own: made by a function in a Python file, or given as a module, and identified by their source."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from ftrain.errors import SettingsError
from ftrain.models.construct import seeded
from ftrain.models.hashing import module_hash
from ftrain.text import shown

Factory = Callable[..., torch.nn.Module]


def is_own(name: str) -> bool:
    """Whether the name of a model is a reference such as `my_file.py:make_network`, not a name of the catalogue.

    >>> is_own("my_file.py:make_network"), is_own("resnet34")
    (True, False)
    """
    return ":" in name


def absolute(reference: str) -> str:
    """The reference with the absolute path of its file.

    >>> absolute("/tmp/../home/my_file.py:make_network")
    '/home/my_file.py:make_network'
    """
    path, name = _split(reference)
    return f"{os.path.abspath(path)}:{name}"


def load_factory(reference: str) -> Factory:
    """The function that a reference such as `my_file.py:make_network` names.

    The file is run as a module with a name of its own, so it replaces no other module. It can import installed
    packages. The folder that it lies in is not searched, since `source_hash` covers this one file.

    Args:
      reference: the path of a Python file, a colon, and the name of a function (or a class) in it that accepts
        `num_classes` and returns a `torch.nn.Module`.

    Raises:
      SettingsError: if there is no such file or function, or if the file cannot be run.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "my_file.py"
    ...     _ = path.write_text("import torch\\ndef make(num_classes): return torch.nn.Linear(2, num_classes)")
    ...     factory = load_factory(f"{path}:make")
    >>> build_own(factory, classes=3, seed=0)
    Linear(in_features=2, out_features=3, bias=True)
    """
    path, name = _split(reference)
    if not name.isidentifier():
        raise SettingsError(
            f"expected a Python file and the name of a function in it, such as {shown(path)}:make_network; got "
            f"{shown(reference)}"
        )
    module = _run(path)
    if not hasattr(module, name):
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("__")]
        raise SettingsError(f"there is no function {name} in {shown(path)}{_nearest(name, callables)}")
    factory = getattr(module, name)
    if not callable(factory):
        raise SettingsError(
            f"{name} in {shown(path)} is of type {type(factory).__name__}; expected a function that accepts "
            "num_classes and returns a torch.nn.Module"
        )
    return factory  # type: ignore[no-any-return]


def build_own(factory: Factory, *, classes: int, seed: int) -> torch.nn.Module:
    """The network that `factory(num_classes=classes)` returns, with its parameters initialised from `seed`.

    torch's global random state is neither read nor changed. The factory must not draw from other global generators,
    such as numpy's, since those are not seeded.

    Args:
      factory: from `load_factory`, or any function that accepts `num_classes`.
      classes: the number of logits, at least 1.
      seed: an integer in [0, 2**64).

    Raises:
      ValueError: if `classes` or `seed` is out of range.
      SettingsError: if the factory does not accept `num_classes`, or does not return a `torch.nn.Module`.

    >>> build_own(lambda num_classes: torch.nn.Linear(2, num_classes), classes=3, seed=0)
    Linear(in_features=2, out_features=3, bias=True)
    """
    if classes < 1:
        raise ValueError(f"`classes` must be at least 1, got {classes}")
    name = shown(getattr(factory, "__qualname__", type(factory).__name__))
    try:
        inspect.signature(factory).bind(num_classes=classes)
    except TypeError as error:
        raise SettingsError(f"{name} must accept num_classes=N as its only required argument: {error}") from error
    except ValueError:  # a callable written in C may not tell its signature
        pass
    with seeded(seed):
        module = factory(num_classes=classes)
    if not isinstance(module, torch.nn.Module):
        raise SettingsError(
            f"{name} must return a torch.nn.Module, but returned a value of type {type(module).__name__}"
        )
    return module


def source_hash(network: torch.nn.Module | str | os.PathLike[str]) -> str:
    """A SHA-256, in hexadecimal, that changes when the source of a network changes.

    For a file it covers the bytes of that file, but not the modules that the file imports. For a module it covers the
    structure that `repr` shows, and the source of every class in it that comes from neither torch, torchvision nor
    timm, with its base classes; but not functions outside of these classes. Where the source of a class is not
    available, as for one defined in an interactive session, the bytecode of its methods takes its place, which differs
    between versions of Python. The structure may also differ between versions of torch.

    Args:
      network: a reference such as `my_file.py:make_network`, the path of a Python file, or a module.

    Raises:
      SettingsError: if there is no such file.

    >>> source_hash(torch.nn.Linear(2, 3)) == source_hash(torch.nn.Linear(2, 3))
    True
    >>> source_hash(torch.nn.Linear(2, 3)) == source_hash(torch.nn.Linear(2, 4))
    False
    """
    if isinstance(network, torch.nn.Module):
        return module_hash(network)
    text = os.fspath(network)
    return hashlib.sha256(_read(text if os.path.isfile(text) else _split(text)[0])).hexdigest()


def _split(reference: str) -> tuple[str, str]:
    path, colon, name = reference.rpartition(":")
    return (path, name) if colon else (reference, "")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        folder = Path(path).parent
        beside = [entry.name for entry in folder.glob("*.py")] if folder.is_dir() else []
        nearest = _nearest(Path(path).name, beside)
        raise SettingsError(f"there is no file {shown(os.path.abspath(path))}{nearest}") from None
    except OSError as error:
        raise SettingsError(f"cannot read {shown(path)}: {error.strerror or error}") from error


def _run(path: str) -> types.ModuleType:
    """The file as a module.

    Exactly these bytes are run. importlib would read a stale __pycache__, and write one beside the user's file.
    """
    content = _read(path)
    identity = hashlib.sha256(b"%s\0%s" % (os.fsencode(os.path.abspath(path)), content)).hexdigest()
    name = f"_ftrain_own_{identity[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, os.path.abspath(path))
    if spec is None:
        raise SettingsError(f"expected a Python file, whose name ends in .py; got {shown(path)}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses, pickle and inspect look for it
    try:
        exec(compile(content, os.path.abspath(path), "exec", dont_inherit=True), vars(module))
    except Exception as error:
        del sys.modules[name]
        raise SettingsError(f"cannot run {shown(path)}: {type(error).__name__}: {shown(str(error))}") from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _nearest(name: str, others: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, others, n=3)
    return f"; the closest names are {', '.join(map(shown, near))}" if near else ""
