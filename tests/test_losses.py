from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ftrain.losses import (
    Loss,
    balanced_weights,
    binary_cross_entropy,
    class_weighted,
    cross_entropy,
    effective_weights,
    focal,
    logit_adjusted,
    mean_squared_error,
)

UNEVEN = torch.tensor([50.0, 30.0, 10.0, 8.0, 2.0])
LOSSES: list[Loss] = [
    *(cross_entropy, binary_cross_entropy, mean_squared_error, focal),
    *(class_weighted(focal, UNEVEN), logit_adjusted(cross_entropy, UNEVEN)),
]
LOG2 = 0.6931471805599453

# Logits whose softmax is (1/2, 1/4, 1/4), (1/3, 1/3, 1/3) and (1/10, 8/10, 1/10).
LOGITS = torch.tensor([[LOG2, 0.0, 0.0], [5.0, 5.0, 5.0], [0.0, 3 * LOG2, 0.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1])


def close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14)


def example(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [8, 5], class numbers [8] and probabilities [8, 5]."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(8, 5, generator=generator, dtype=dtype)
    labels = torch.randint(5, (8,), generator=generator)
    return logits, labels, torch.rand(8, 5, generator=generator, dtype=dtype).softmax(dim=-1)


def test_cross_entropy_by_hand() -> None:
    # -log 1/2, -log 1/3, -log 8/10
    close(cross_entropy(LOGITS, LABELS), [0.6931471805599453, 1.0986122886681098, 0.2231435513142098])


def test_cross_entropy_of_probabilities_by_hand() -> None:
    targets = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64)
    # (log 2 + log 4) / 2, log 3, -log 8/10
    close(cross_entropy(LOGITS, targets), [1.0397207708399179, 1.0986122886681098, 0.2231435513142098])


def test_cross_entropy_with_smoothing_by_hand() -> None:
    # With e = 0.3 the target of the first is (0.8, 0.1, 0.1): 0.8 log 2 + 0.2 log 4 = 1.2 log 2;
    # that of the third (0.1, 0.8, 0.1): 0.2 log 10 - 0.8 log 0.8.
    expected = [0.8317766166719343, 1.0986122886681098, 0.6390318596501768]
    close(cross_entropy(LOGITS, LABELS, label_smoothing=0.3), expected)
    one_hot = torch.eye(3, dtype=torch.float64)[LABELS]
    close(cross_entropy(LOGITS, one_hot, label_smoothing=0.3), expected)


def test_binary_cross_entropy_by_hand() -> None:
    # First: -log sigmoid(log 2) = log 3/2, and twice log 2; third: log 9/8 and twice log 2.
    # Second: -log sigmoid(5) = log(1 + e^-5), and twice log(1 + e^5).
    close(binary_cross_entropy(LOGITS, LABELS), [0.5972531564093516, 3.3400486818224517, 0.5013591322587580])


def test_binary_cross_entropy_of_probabilities_by_hand() -> None:
    logits = torch.tensor([[0.0, LOG2]], dtype=torch.float64)
    targets = torch.tensor([[0.3, 0.5]], dtype=torch.float64)
    # log 2 whatever the target; (log 3/2 + log 3) / 2
    close(binary_cross_entropy(logits, targets), [(0.6931471805599453 + 0.7520386983881371) / 2])


def test_mean_squared_error_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, -1.0]], dtype=torch.float64)
    close(mean_squared_error(logits, torch.tensor([0, 2])), [0.0, 8 / 3])
    close(mean_squared_error(logits, torch.tensor([1, 1])), [2 / 3, 2 / 3])
    targets = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    close(mean_squared_error(logits, targets), [0.5 / 3, 2 / 3])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_the_formula(smoothing: float) -> None:
    logits, labels, probabilities = example()
    for targets in (labels, probabilities):
        q = targets if targets.ndim > 1 else F.one_hot(targets, 5).double()
        expected = -(((1 - smoothing) * q + smoothing / 5) * logits.log_softmax(dim=-1)).sum(dim=-1)
        torch.testing.assert_close(
            cross_entropy(logits, targets, label_smoothing=smoothing), expected, rtol=1e-13, atol=0
        )


def test_means_equal_torch() -> None:
    logits, labels, probabilities = example()
    one_hot = F.one_hot(labels, 5).double()
    for targets in (labels, probabilities):
        wide = probabilities if targets.ndim > 1 else one_hot
        pairs = [
            (cross_entropy(logits, targets), F.cross_entropy(logits, targets)),
            (binary_cross_entropy(logits, targets), F.binary_cross_entropy_with_logits(logits, wide)),
            (mean_squared_error(logits, targets), F.mse_loss(logits, wide)),
        ]
        for found, expected in pairs:
            torch.testing.assert_close(found.mean(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("batch", [0, 1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_value_per_example_in_the_dtype_of_the_logits(loss: Loss, batch: int, dtype: torch.dtype) -> None:
    logits, labels, probabilities = example(dtype=dtype)
    for targets in (labels, probabilities):
        found = loss(logits[:batch], targets[:batch])
        assert found.shape == (batch,)
        assert found.dtype == dtype


@pytest.mark.parametrize("loss", LOSSES)
def test_large_logits_stay_finite(loss: Loss) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 0.0, 0.0], [-1e4, 1e4, 0.0, 0.0, 0.0]])
    assert torch.isfinite(loss(logits, torch.tensor([1, 1]))).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_an_example_does_not_depend_on_its_batch(loss: Loss) -> None:
    logits, labels, _ = example()
    torch.testing.assert_close(loss(logits, labels)[3:4], loss(logits[3:4], labels[3:4]), rtol=1e-15, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_vmap_equals_the_loop(loss: Loss, kind: str) -> None:
    batches = [example(seed) for seed in range(3)]
    logits = torch.stack([batch[0] for batch in batches])
    targets = torch.stack([batch[1 if kind == "labels" else 2] for batch in batches])
    expected = torch.stack([loss(one, target) for one, target in zip(logits, targets, strict=True)])
    torch.testing.assert_close(torch.func.vmap(loss)(logits, targets), expected, rtol=1e-14, atol=0)


def test_gradients_by_hand() -> None:
    def gradient(loss: Loss) -> Tensor:
        return torch.func.grad(lambda logits: loss(logits, LABELS[:1]).sum())(LOGITS[:1])

    close(gradient(cross_entropy)[0], [-1 / 2, 1 / 4, 1 / 4])  # softmax - one-hot
    close(gradient(binary_cross_entropy)[0], [-1 / 9, 1 / 6, 1 / 6])  # (sigmoid - one-hot) / 3
    close(gradient(mean_squared_error)[0], [2 * (LOG2 - 1) / 3, 0.0, 0.0])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_gradients_equal_finite_differences(loss: Loss, kind: str) -> None:
    logits, labels, probabilities = example()
    targets = labels if kind == "labels" else probabilities
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), [logits.requires_grad_()])


@pytest.mark.parametrize("loss", LOSSES)
def test_vmapped_gradients_are_those_of_each_example(loss: Loss) -> None:
    logits, labels, _ = example()

    def single(one: Tensor, label: Tensor) -> Tensor:
        return loss(one[None], label[None]).sum()

    found = torch.func.vmap(torch.func.grad(single))(logits, labels)
    expected = torch.func.grad(lambda x: loss(x, labels).sum())(logits)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("loss", LOSSES)
def test_compiled_as_one_graph(loss: Any) -> None:
    logits, labels, _ = example()
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, labels), loss(logits, labels), rtol=1e-14, atol=0)


def test_focal_by_hand() -> None:
    # (1 - 1/2)^2 log 2, (1 - 1/3)^2 log 3, (1 - 8/10)^2 (-log 8/10)
    close(focal(LOGITS, LABELS), [0.1732867951399863, 0.48827212829693767, 0.0089257420525684])
    targets = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    # First: (1/4 log 2 + 9/16 log 4) / 2
    close(focal(LOGITS, targets), [0.4765386866349624, 0.48827212829693767, 0.0089257420525684])
    torch.testing.assert_close(focal(LOGITS, LABELS, gamma=0.0), cross_entropy(LOGITS, LABELS))


def test_focal_of_a_certain_example_is_zero_with_a_finite_gradient() -> None:
    logits = torch.tensor([[1e4, 0.0]], requires_grad=True)
    for gamma in (0.5, 1.0, 2.0):
        loss = focal(logits, torch.tensor([0]), gamma=gamma)
        assert loss.item() == 0.0
        assert torch.isfinite(torch.autograd.grad(loss.sum(), logits)[0]).all()


def test_class_weights_by_hand() -> None:
    weights = torch.tensor([2.0, 0.5, 4.0], dtype=torch.float64)
    # times 2, 4 and 0.5
    expected = [1.3862943611198906, 4.394449154672439, 0.1115717756571049]
    close(class_weighted(cross_entropy, weights)(LOGITS, LABELS), expected)
    mixed = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    # The first weighs (2 + 0.5) / 2.
    close(class_weighted(cross_entropy, weights)(LOGITS, mixed)[:1], [1.0397207708399179 * 1.25])


def test_balanced_weights_make_all_classes_weigh_the_same() -> None:
    assert balanced_weights([3, 100]) == pytest.approx([103 / 6, 103 / 200])
    assert balanced_weights([5, 5, 5]) == pytest.approx([1.0, 1.0, 1.0])


def test_effective_weights_by_hand() -> None:
    # (1 - 0.9) / (1 - 0.9^n) is 1 for n = 1 and 0.1 / 0.19 for n = 2; their mean over three examples is 1.
    one, two = 1.0, 0.1 / 0.19
    mean = (one + 2 * two) / 3
    assert effective_weights([1, 2], beta=0.9) == pytest.approx([one / mean, two / mean])
    assert effective_weights([3, 100], beta=0.0) == pytest.approx([1.0, 1.0])


def test_weights_of_classes_without_examples_are_errors() -> None:
    with pytest.raises(ValueError, match="`counts` must be positive, because a class without examples has no weight"):
        balanced_weights([3, 0])
    with pytest.raises(ValueError, match="`beta` must be a number >= 0 and < 1; got 1.0"):
        effective_weights([3, 4], beta=1.0)


def test_logit_adjustment_by_hand() -> None:
    # Priors 1/2, 1/4, 1/4: the softmax of the first becomes (2/3, 1/6, 1/6), of the second (1/2, 1/4, 1/4).
    adjusted = logit_adjusted(cross_entropy, torch.tensor([20, 10, 10]))
    close(adjusted(LOGITS[:2], LABELS[:2]), [0.4054651081081644, 1.3862943611198906])
    unchanged = logit_adjusted(cross_entropy, torch.tensor([20, 10, 10]), tau=0.0)
    close(unchanged(LOGITS, LABELS), cross_entropy(LOGITS, LABELS).tolist())
