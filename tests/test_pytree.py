from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ftrain.pytree import frozen


@frozen
class Pair:
    """Two things."""

    left: Tensor
    right: dict[str, Tensor]

    def total(self) -> Tensor:
        return self.left.sum() + sum(value.sum() for value in self.right.values())


@frozen
class Nested:
    pair: Pair
    rest: tuple[Tensor, ...]


def pair(value: float = 1.0) -> Pair:
    return Pair(torch.full((3,), value), {"a": torch.full((2,), 2 * value), "b": torch.tensor(3 * value)})


def test_fields_are_given_in_order_or_by_name() -> None:
    one, two = torch.tensor(1.0), {"a": torch.tensor(2.0)}
    for value in (Pair(one, two), Pair(one, right=two), Pair(left=one, right=two), Pair(right=two, left=one)):
        assert value.left is one
        assert value.right is two


def test_the_class_keeps_its_name_docstring_and_methods() -> None:
    assert Pair.__name__ == "Pair"
    assert Pair.__doc__ == "Two things."
    assert [field.name for field in attrs.fields(Pair)] == ["left", "right"]
    assert pair().total().item() == 10.0
    assert repr(Pair(torch.tensor(1), {})) == "Pair(left=tensor(1), right={})"


def test_fields_cannot_be_set_or_deleted() -> None:
    value = pair()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        value.left = torch.zeros(3)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        value.unheard_of = 1
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        del value.left
    assert value.left.tolist() == [1.0, 1.0, 1.0]


def test_evolve_makes_another() -> None:
    value = pair()
    changed = attrs.evolve(value, left=torch.zeros(1))
    assert changed.left.tolist() == [0.0]
    assert changed.right is value.right
    assert value.left.tolist() == [1.0, 1.0, 1.0]


def test_equality_is_identity() -> None:
    value = pair()
    assert value == value
    assert value != Pair(value.left, value.right)
    assert len({value, value, pair()}) == 2


@pytest.mark.parametrize(
    ("args", "kwargs", "found"),
    [
        ((), {}, "none"),
        ((1,), {}, "left"),
        ((), {"right": 2}, "right"),
        ((1, 2), {"left": 3}, "left, right, left"),
        ((1,), {"middle": 2}, "left, middle"),
        ((1, 2), {"middle": 3}, "left, right, middle"),
    ],
)
def test_fields_missing_unknown_or_twice_are_rejected(args: Any, kwargs: Any, found: str) -> None:
    with pytest.raises(TypeError) as caught:
        Pair(*args, **kwargs)
    assert str(caught.value) == f"Pair expects each of the fields left, right once; got {found}"


def test_too_many_values_are_rejected() -> None:
    with pytest.raises(TypeError, match="Pair expects each of the fields left, right once"):
        Pair(1, 2, 3)


@frozen
class Padded:
    first: Tensor
    last: dict[str, Tensor] = attrs.field(factory=dict)


def test_a_field_with_a_factory_may_be_omitted() -> None:
    one = torch.tensor(1.0)
    assert Padded(one).last == {}
    assert Padded(one).last is not Padded(one).last
    assert Padded(one, {"a": one}).last == {"a": one} == Padded(one, last={"a": one}).last
    for args, kwargs in (((), {}), ((one, {}), {"last": {}})):
        with pytest.raises(TypeError, match="Padded expects each of the fields first, last once"):
            Padded(*args, **kwargs)
    made = torch.compile(lambda value: Padded(2 * value), fullgraph=True, backend="eager")(one)
    assert made.first.item() == 2.0
    assert made.last == {}


@frozen
class Defaults:
    required: Any
    plain: int = 3
    field: Any = attrs.field(default=None)


def test_a_field_with_a_plain_default_may_be_omitted() -> None:
    value = Defaults(1)
    assert (value.required, value.plain, value.field) == (1, 3, None)
    value = Defaults(1, field=5)
    assert (value.plain, value.field) == (3, 5)
    with pytest.raises(TypeError, match=r"Defaults expects each of the fields required, plain, field once; got plain"):
        Defaults(plain=2)
    back = pytree.tree_map(lambda leaf: leaf, Defaults(1, 2))
    assert (back.required, back.plain, back.field) == (1, 2, None)
    made = torch.compile(lambda value: Defaults(2 * value), fullgraph=True, backend="eager")(torch.tensor(1.0))
    assert (made.required.item(), made.plain, made.field) == (2.0, 3, None)


def test_a_default_that_depends_on_other_fields_is_rejected() -> None:
    class Dependent:
        first: int
        second: int = attrs.field(default=attrs.Factory(lambda self: self.first, takes_self=True))

    with pytest.raises(TypeError, match=r"the default of Dependent\.second depends on the other fields"):
        frozen(Dependent)


def test_pytree_round_trip() -> None:
    value = Nested(pair(), (torch.tensor(7.0), torch.tensor(8.0)))
    leaves, structure = pytree.tree_flatten(value)
    assert [leaf.tolist() for leaf in leaves] == [[1.0, 1.0, 1.0], [2.0, 2.0], 3.0, 7.0, 8.0]
    back = pytree.tree_unflatten(leaves, structure)
    assert isinstance(back, Nested)
    assert isinstance(back.pair, Pair)
    assert list(back.pair.right) == ["a", "b"]
    assert all(ours is theirs for ours, theirs in zip(pytree.tree_leaves(back), leaves, strict=True))
    assert pytree.tree_structure(back) == structure


def test_a_pytree_may_hold_anything() -> None:
    doubled = pytree.tree_map(lambda leaf: 2 * leaf, Pair("ab", {"x": 3}))
    assert (doubled.left, doubled.right) == ("abab", {"x": 6})


def test_key_paths_name_the_fields() -> None:
    leaves, _ = pytree.tree_flatten_with_path(Nested(pair(), (torch.tensor(7.0),)))
    assert [pytree.keystr(path) for path, _ in leaves] == [
        ".pair.left",
        ".pair.right['a']",
        ".pair.right['b']",
        ".rest[0]",
    ]


def test_grad_has_the_shape_of_its_argument() -> None:
    def loss(value: Pair) -> Tensor:
        return (value.left**2).sum() + 5.0 * value.right["a"].sum() + 0.0 * value.right["b"]

    found = torch.func.grad(loss)(pair())
    assert isinstance(found, Pair)
    assert found.left.tolist() == [2.0, 2.0, 2.0]
    assert found.right["a"].tolist() == [5.0, 5.0]
    assert found.right["b"].item() == 0.0


def test_vmap_goes_in_and_out() -> None:
    stacked = pytree.tree_map(lambda *leaves: torch.stack(leaves), pair(1.0), pair(10.0))
    found = torch.func.vmap(lambda value: Nested(value, (value.total(),)))(stacked)
    assert isinstance(found, Nested)
    assert found.pair.left.tolist() == [[1.0] * 3, [10.0] * 3]
    assert found.rest[0].tolist() == [10.0, 100.0]


def test_vmap_accepts_in_dims_by_field() -> None:
    value = Pair(torch.tensor([1.0, 2.0]), {"a": torch.tensor(10.0)})
    found = torch.func.vmap(Pair.total, in_dims=(Pair(0, {"a": None}),))(value)
    assert found.tolist() == [11.0, 12.0]


def test_compiled_as_one_graph_without_recompiling() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    def step(value: Pair) -> Nested:
        return Nested(
            Pair(value.left + 1.0, right={"b": value.right["b"], "a": value.right["a"] * 2.0}), (value.total(),)
        )

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)
    for number, total in ((1.0, 10.0), (2.0, 20.0), (3.0, 30.0)):
        found = compiled(pair(number))
        assert isinstance(found, Nested)
        assert found.pair.left.tolist() == [number + 1.0] * 3
        assert found.pair.right["a"].tolist() == [4 * number] * 2
        assert found.rest[0].item() == total
    assert len(graphs) == 1
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        found.rest = ()


def test_compiled_vmap_of_grad() -> None:
    stacked = pytree.tree_map(lambda *leaves: torch.stack(leaves), pair(1.0), pair(10.0))
    torch._dynamo.reset()

    def gradients(values: Pair) -> Pair:
        return torch.func.vmap(torch.func.grad(lambda value: (value.left**2).sum() + value.total()))(values)

    found = torch.compile(gradients, fullgraph=True, dynamic=False, backend="aot_eager")(stacked)
    assert isinstance(found, Pair)
    assert found.left.tolist() == [[3.0] * 3, [21.0] * 3]
    assert found.right["a"].tolist() == [[1.0] * 2] * 2
