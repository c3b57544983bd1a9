"""The decorator that makes a class immutable, a pytree, and traceable by Dynamo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import attrs

from ftrain.torch_private import pytree

__all__ = ["frozen"]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(attrs.field,))
def frozen(cls: type[T]) -> type[T]:
    """Makes `cls` an immutable attrs class that torch's transforms see through.

    The fields are the class's annotations, as in `attrs.frozen`, and are given in order or by name. A field with a
    default (`x: int = 3`, `attrs.field(default=3)` or `attrs.field(factory=dict)`) may be omitted. An instance is a
    pytree whose children are its fields, so it goes through `torch.func.vmap`, `grad` and `torch.compile` as a dict
    does. Two instances are equal only if they are the same object, because tensors have no single truth value to
    compare by.

    Raises:
      TypeError: for a default that attrs computes from the other fields, or, at construction, for a field that is
        missing, unknown or given twice.
      attrs.exceptions.FrozenInstanceError: on assignment to a field.

    >>> import torch
    >>> @frozen
    ... class Point:
    ...     x: torch.Tensor
    ...     y: torch.Tensor
    >>> torch.func.grad(lambda point: point.x * point.y)(Point(torch.tensor(2.0), y=torch.tensor(3.0)))
    Point(x=tensor(3.), y=tensor(2.))
    """
    cls = attrs.frozen(init=False, slots=False, eq=False)(cls)
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(cls)  # type: ignore[arg-type]
    names = tuple(field.name for field in fields)
    defaults = {field.name: _default(cls, field) for field in fields if field.default is not attrs.NOTHING}
    cls.__init__ = _initializer(cls.__name__, names, defaults)  # type: ignore[method-assign]
    pytree.register_pytree_node(
        cls,
        lambda value: ([getattr(value, name) for name in names], None),
        lambda children, _: cls(*children),
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        flatten_with_keys_fn=lambda value: ([(pytree.GetAttrKey(name), getattr(value, name)) for name in names], None),
    )
    return cls


def _default(cls: type, field: attrs.Attribute[Any]) -> Callable[[], Any]:
    default: Any = field.default
    if not isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return lambda: default
    if default.takes_self:
        raise TypeError(
            f"the default of {cls.__name__}.{field.name} depends on the other fields, which ftrain.frozen does not "
            "support; give a value or a factory without arguments"
        )
    return default.factory  # type: ignore[no-any-return]


def _initializer(owner: str, names: tuple[str, ...], defaults: dict[str, Callable[[], Any]]) -> Callable[..., None]:
    # Dynamo cannot trace the __init__ that attrs writes for a frozen class; it traces this one.
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = dict(zip(names, args, strict=False), **kwargs)
        once = len(given) == len(args) + len(kwargs)
        given |= {name: default() for name, default in defaults.items() if name not in given}
        if not once or set(given) != set(names):
            found = [*names[: len(args)], *kwargs]
            raise TypeError(
                f"{owner} expects each of the fields {', '.join(names)} once; got {', '.join(found) or 'none'}"
            )
        for name in names:
            object.__setattr__(self, name, given[name])

    return __init__
