"""A griffe extension: makes docstrings fit for Markdown, and finds functions named like the module that they are in."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(
    r"^(?P<indent>[ ]*)>>>.*\n?(?:[ ]*\S.*\n?)*", re.MULTILINE
)
# "eps: > 0", which Markdown would show as a quotation
BOUND = re.compile(r"^([ ]+\w[\w, ]*: )(>=? )", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Puts a fence around every doctest, and escapes bounds at the start of a description."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = DOCTEST.sub(_fenced, obj.docstring.value)
            obj.docstring.value = BOUND.sub(r"\1\\\2", text)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Points `ftrain.adam` at the function in ftrain/optim/adam.py, not at the module."""
        for name, target in pkg.imports.items():
            room = target.removeprefix(f"{pkg.name}.").rpartition(
                "."
            )[0]
            module = pkg.modules.get(room)
            if module and name in module.modules:
                path = module.imports[name]
                pkg.set_member(name, griffe.Alias(name, path))


def _fenced(doctest: re.Match[str]) -> str:
    indent = doctest["indent"]
    return (
        f"{indent}```pycon\n{doctest[0].rstrip()}\n{indent}```\n"
    )
