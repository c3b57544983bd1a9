from __future__ import annotations

import math

import attrs
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ftrain.metrics import Metrics, class_scores, measure

NAN, INF = math.nan, math.inf
N = 1000


def scored(logits: list[list[float]], labels: list[int], weights: list[float] | None = None) -> dict[str, float]:
    """Metrics of a batch whose losses are all 1."""
    count = len(labels)
    given = torch.ones(count) if weights is None else torch.tensor(weights)
    return measure(torch.tensor(logits), torch.tensor(labels), torch.ones(count), given).compute()


def zeros(**fields: dict[str, Tensor]) -> Metrics:
    zero = torch.zeros((), dtype=torch.float64)
    sums = {"loss": zero, "correct": zero, "count": zero, "nonfinite": zero}
    return Metrics(**sums, **{"per_example": {}, "per_step": {}, **fields})


def known(classes: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and losses of N examples: the label of example i is class i % 10, and there are (3 i) % 10 classes
    ahead of it, each of 0 to 9 for a tenth of the examples. The loss of example i is i / 8, exact in float32."""
    index = torch.arange(N)
    labels, ahead = index % 10, index * 3 % 10
    place = (torch.arange(classes) - labels[:, None]) % classes  # 0 at the label, 1 to 9 elsewhere
    logits = torch.where((place > 0) & (place <= ahead[:, None]), 2.0, 1.0 - place)
    return logits, labels, index / 8


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_exact_whatever_the_batch_size(size: int) -> None:
    """The last batch is padded with rows of weight 0 that hold nan and inf."""
    logits, labels, losses = known()
    total = None
    for start in range(0, N, size):
        stop = min(start + size, N)
        padding = size - (stop - start)
        batch = measure(
            torch.cat([logits[start:stop], torch.full((padding, 10), NAN)]),
            torch.cat([labels[start:stop], torch.zeros(padding, dtype=torch.int64)]),
            torch.cat([losses[start:stop], torch.tensor([NAN, INF]).repeat(padding)[:padding]]),
            torch.cat([torch.ones(stop - start), torch.zeros(padding)]),
        )
        total = batch if total is None else total + batch
    # The losses sum to (0 + ... + 999) / 8 = 62437.5; one in ten has no class ahead of its label, five have under 5.
    expected = {"loss": 62.4375, "accuracy": 0.1, "count": 1000.0, "nonfinite": 0.0, "top5": 0.5}
    assert total.compute() == expected


def test_padding_with_a_correct_prediction_does_not_count() -> None:
    found = scored([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0, 1, 1], [1.0, 1.0, 0.0])
    assert found == {"loss": 1.0, "accuracy": 0.5, "count": 2.0, "nonfinite": 0.0}


def test_weights_count_as_fractions_of_an_example() -> None:
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    losses = torch.tensor([2.0, 6.0])
    found = measure(logits, torch.tensor([0, 1]), losses, torch.tensor([1.5, 0.5])).compute()
    assert found == {"loss": 3.0, "accuracy": 0.75, "count": 2.0, "nonfinite": 0.0}


def test_top5_only_where_there_are_more_than_five_classes() -> None:
    assert "top5" not in scored([[0.0] * 5], [4])
    assert scored([[0.0] * 6], [4])["top5"] == 1.0
    assert scored([[0.0] * 6], [5])["top5"] == 0.0


def test_top5_counts_the_five_largest() -> None:
    logits = [[6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]] * 7
    assert scored(logits, [0, 1, 2, 3, 4, 5, 6])["top5"] == 5 / 7
    assert scored(logits, [0, 1, 2, 3, 4, 5, 6])["accuracy"] == 1 / 7


def test_the_lower_class_wins_a_tie() -> None:
    logits = [[1.0, 1.0, 0.0]] * 3
    assert scored(logits, [0, 0, 0])["accuracy"] == 1.0
    assert scored(logits, [1, 1, 1])["accuracy"] == 0.0
    # A network that has collapsed to the same logits for every class is right for class 0 alone.
    assert scored([[0.0] * 4] * 4, [0, 1, 2, 3])["accuracy"] == 0.25


def test_nan_is_never_correct() -> None:
    assert scored([[NAN, NAN], [NAN, NAN]], [0, 1])["accuracy"] == 0.0
    assert scored([[NAN, 1.0], [1.0, NAN]], [0, 1])["accuracy"] == 0.0
    # Nor is the other class: a network that returned nan has no known prediction.
    assert scored([[NAN, 1.0], [1.0, NAN]], [1, 0])["accuracy"] == 0.0
    assert scored([[NAN] * 6], [0])["top5"] == 0.0


def test_infinite_logits_are_compared_as_numbers() -> None:
    assert scored([[INF, 1.0], [-INF, 1.0]], [0, 1])["accuracy"] == 1.0
    assert scored([[-INF, -INF]], [0])["accuracy"] == 1.0


def test_probabilities_count_by_their_most_probable_class() -> None:
    logits = torch.tensor([[0.0, 3.0, 0.0], [3.0, 0.0, 0.0]])
    targets = torch.tensor([[0.1, 0.8, 0.1], [0.4, 0.6, 0.0]])
    found = measure(logits, targets, torch.ones(2), torch.ones(2)).compute()
    assert found["accuracy"] == 0.5


@pytest.mark.parametrize("loss", [NAN, INF, -INF])
def test_nonfinite_counts_batches(loss: float) -> None:
    logits, labels = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    bad = measure(logits, labels, torch.tensor([1.0, loss, 1.0]), torch.ones(3))
    good = measure(logits, labels, torch.ones(3), torch.ones(3))
    padded = measure(logits, labels, torch.tensor([1.0, loss, 1.0]), torch.tensor([1.0, 0.0, 1.0]))
    assert bad.compute()["nonfinite"] == 1.0
    assert good.compute()["nonfinite"] == 0.0
    assert padded.compute()["nonfinite"] == 0.0
    assert (bad + good + bad).compute()["nonfinite"] == 2.0


def test_sums_are_0d_float64_whatever_the_logits() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        metrics = measure(torch.zeros(2, 7, dtype=dtype), torch.tensor([0, 1]), torch.ones(2), torch.ones(2))
        leaves = pytree.tree_leaves(metrics)
        assert len(leaves) == 5
        assert all(leaf.shape == () and leaf.dtype == torch.float64 for leaf in leaves)


def test_a_long_sum_is_exact() -> None:
    """In float32, 2**24 examples of loss 1 would swallow the next one."""
    many = zeros()
    many = attrs.evolve(many, count=torch.tensor(2.0**24, dtype=torch.float64)) + zeros()
    one = measure(torch.zeros(1, 2), torch.tensor([0]), torch.ones(1), torch.ones(1))
    assert (many + one).count.item() == 16777217.0


def test_adding_does_not_change_what_is_added() -> None:
    one = measure(torch.zeros(1, 2), torch.tensor([0]), torch.ones(1), torch.ones(1))
    one + one
    assert one.compute() == {"loss": 1.0, "accuracy": 1.0, "count": 1.0, "nonfinite": 0.0}


def test_metrics_of_different_sums_do_not_add() -> None:
    top5, lr = {"top5": torch.tensor(1.0)}, {"steps": torch.tensor(1.0), "lr": torch.tensor(0.1)}
    with pytest.raises(ValueError, match=r"only metrics with the same sums can be added; got \['top5'\] and \[\]"):
        zeros(per_example=top5) + zeros()
    with pytest.raises(
        ValueError, match=r"only metrics with the same sums can be added; got \[\] and \['lr', 'steps'\]"
    ):
        zeros() + zeros(per_step=lr)
    assert (zeros(per_example=top5, per_step=lr) + zeros(per_example=top5, per_step=lr)).per_step["lr"] == 0.2


def test_compute_divides_by_examples_and_by_steps() -> None:
    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64)

    metrics = Metrics(
        loss=number(30.0),
        correct=number(5.0),
        count=number(20.0),
        nonfinite=number(1.0),
        per_example={"top5": number(15.0)},
        per_step={"steps": number(4.0), "lr": number(0.5), "grad_norm": number(6.0)},
    )
    expected = {
        "loss": 1.5,
        "accuracy": 0.25,
        "count": 20.0,
        "nonfinite": 1.0,
        "top5": 0.75,
        "lr": 0.125,
        "grad_norm": 1.5,
    }
    assert metrics.compute() == expected
    assert all(type(value) is float for value in metrics.compute().values())


def test_a_mean_over_nothing_is_nan() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    found = zeros(per_example={"top5": zero}, per_step={"steps": zero, "lr": zero}).compute()
    assert found.keys() == {"loss", "accuracy", "count", "nonfinite", "top5", "lr"}
    assert (found["count"], found["nonfinite"]) == (0.0, 0.0)
    assert all(math.isnan(found[name]) for name in ("loss", "accuracy", "top5", "lr"))


def test_pytree_round_trip() -> None:
    metrics = measure(torch.zeros(2, 7), torch.tensor([0, 1]), torch.tensor([1.0, 3.0]), torch.ones(2))
    leaves, structure = pytree.tree_flatten(metrics)
    back = pytree.tree_unflatten(leaves, structure)
    assert isinstance(back, Metrics)
    assert back.compute() == {"loss": 2.0, "accuracy": 0.5, "count": 2.0, "nonfinite": 0.0, "top5": 1.0}
    doubled = pytree.tree_map(lambda leaf: 2 * leaf, metrics)
    assert doubled.compute() == {"loss": 2.0, "accuracy": 0.5, "count": 4.0, "nonfinite": 0.0, "top5": 1.0}


def test_metrics_are_immutable() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        zeros().loss = torch.tensor(1.0)


def test_no_input_changes() -> None:
    logits, labels, losses = known()
    weights = torch.ones(N)
    copies = [tensor.clone() for tensor in (logits, labels, losses, weights)]
    measure(logits, labels, losses, weights)
    for tensor, copy in zip((logits, labels, losses, weights), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_vmap_equals_the_loop() -> None:
    logits, labels, losses = known()
    shape = (10, 100)
    batches = (logits.reshape(*shape, 10), labels.reshape(shape), losses.reshape(shape), torch.ones(shape))
    mapped = torch.func.vmap(measure)(*batches)
    singles = [measure(*(part[member] for part in batches)) for member in range(10)]
    for found, expected in zip(
        pytree.tree_leaves(mapped), zip(*map(pytree.tree_leaves, singles), strict=True), strict=True
    ):
        assert torch.equal(found, torch.stack(expected))


def test_compiled_as_one_graph() -> None:
    logits, labels, losses = known()
    torch._dynamo.reset()
    compiled = torch.compile(measure, fullgraph=True, dynamic=False, backend="aot_eager")
    found = compiled(logits, labels, losses, torch.ones(N))
    assert isinstance(found, Metrics)
    assert found.compute() == {"loss": 62.4375, "accuracy": 0.1, "count": 1000.0, "nonfinite": 0.0, "top5": 0.5}


def test_class_scores_by_hand() -> None:
    # Rows are labels, columns predictions. Class 2 is never predicted; class 3 has no images and is never predicted.
    confusion = torch.tensor([[6, 2, 0, 0], [1, 3, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0]])
    found = {name: values.tolist() for name, values in class_scores(confusion).items()}
    assert found == {
        "precision": [0.75, 0.375, 0.0, 0.0],  # 6 of 8, 3 of 8
        "recall": [0.75, 0.75, 0.0, 0.0],  # 6 of 8, 3 of 4, 0 of 4
        "f1": [0.75, 0.5, 0.0, 0.0],  # 2 x 6 / (8 + 8), 2 x 3 / (8 + 4)
        "images": [8.0, 4.0, 4.0, 0.0],
    }


def test_class_scores_of_a_perfect_classifier() -> None:
    found = class_scores(torch.diag(torch.tensor([3, 1, 2])))
    assert found["precision"].tolist() == [1.0, 1.0, 1.0]
    assert found["recall"].tolist() == [1.0, 1.0, 1.0]
    assert found["f1"].tolist() == [1.0, 1.0, 1.0]
    assert found["images"].tolist() == [3.0, 1.0, 2.0]


def test_the_macro_accuracy_is_the_mean_over_the_classes_that_have_examples():
    # Three of class 0, of which two are correct; one of class 2, which is not; none of class 1. One does not count.
    logits = torch.eye(3)[[0, 0, 1, 0, 2]]
    labels, weights = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    batch = measure(logits, labels, torch.ones(5), weights, by_class=True)
    values = (batch + batch).compute()
    assert values["accuracy"] == 0.5
    assert values["macro_accuracy"] == pytest.approx((2 / 3 + 0.0) / 2)
    assert batch.per_class["count"].tolist() == [3.0, 0.0, 1.0]
    assert "macro_accuracy" not in measure(logits, labels, torch.ones(5), weights).compute()


def test_the_macro_accuracy_of_nothing_is_nan():
    nothing = measure(torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(2), torch.zeros(2), by_class=True)
    assert math.isnan(nothing.compute()["macro_accuracy"])
