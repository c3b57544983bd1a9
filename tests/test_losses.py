from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ftrain.losses import Loss, binary_cross_entropy, cross_entropy, mean_squared_error

LOSSES: list[Loss] = [cross_entropy, binary_cross_entropy, mean_squared_error]
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
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
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
