"""The one decorator that makes a class immutable, a pytree, and traceable by Dynamo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import attrs
from torch.utils import _pytree as pytree

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(attrs.field,))
def frozen(cls: type[T]) -> type[T]:
    """Makes `cls` an immutable attrs class that torch's transforms see through.

    The fields are the class's annotations, as in `attrs.frozen`; they are given in order or by name, and one with
    `attrs.field(factory=...)` may be left out. An instance is a pytree whose children are its fields, so it goes
    through `torch.func.vmap`, `grad` and `torch.compile` as a dict does. Two instances are equal only if they are the
    same object, because tensors have no single truth value to compare by.

    Raises:
      attrs.exceptions.FrozenInstanceError: on assignment to a field.
      TypeError: at construction, for a field that is missing, unknown or given twice.
    """
    cls = attrs.frozen(init=False, slots=False, eq=False)(cls)
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(cls)  # type: ignore[arg-type]
    names = tuple(field.name for field in fields)
    factories = {field.name: field.default.factory for field in fields if field.default}
    cls.__init__ = _initializer(cls.__name__, names, factories)  # type: ignore[method-assign]
    pytree.register_pytree_node(
        cls,
        lambda value: ([getattr(value, name) for name in names], None),
        lambda children, _: cls(*children),
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        flatten_with_keys_fn=lambda value: ([(pytree.GetAttrKey(name), getattr(value, name)) for name in names], None),
    )
    return cls


def _initializer(owner: str, names: tuple[str, ...], factories: dict[str, Callable[[], Any]]) -> Callable[..., None]:
    # Dynamo cannot trace the __init__ that attrs writes for a frozen class; it traces this one.
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = dict(zip(names, args, strict=False), **kwargs)
        once = len(given) == len(args) + len(kwargs)
        given |= {name: factory() for name, factory in factories.items() if name not in given}
        if not once or set(given) != set(names):
            found = [*names[: len(args)], *kwargs]
            raise TypeError(f"{owner} takes the fields {', '.join(names)}, each once; got {', '.join(found) or 'none'}")
        for name in names:
            object.__setattr__(self, name, given[name])

    return __init__
