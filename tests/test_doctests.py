"""The examples in the docstrings."""

import doctest
import importlib
import pkgutil

import pytest

import ftrain

MODULES = ["ftrain", *(module.name for module in pkgutil.walk_packages(ftrain.__path__, "ftrain."))]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert result.failed == 0


# Classes that only annotate, and modules.
WITHOUT_EXAMPLE = {"Optimizer", "Transform", "Metrics", "TrainState", "Run", "FtrainError", "DonatedError"}


def test_every_public_function_has_an_example():
    public = {name: getattr(ftrain, name) for name in ftrain.__all__}
    functions = {name: value for name, value in public.items() if callable(value) and name not in WITHOUT_EXAMPLE}
    assert [name for name, value in functions.items() if ">>> " not in (value.__doc__ or "")] == []
