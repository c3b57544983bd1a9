"""A griffe extension: shows doctests in docstrings as code, also outside of an `Examples:` section."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(
    r"^(?P<indent>[ ]*)>>>.*\n?(?:[ ]*\S.*\n?)*", re.MULTILINE
)


class DoctestsAsCode(griffe.Extension):
    """Puts a fence around every doctest of every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(
                _fenced, obj.docstring.value
            )


def _fenced(doctest: re.Match[str]) -> str:
    indent = doctest["indent"]
    return (
        f"{indent}```pycon\n{doctest[0].rstrip()}\n{indent}```\n"
    )
