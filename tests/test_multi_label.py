"""Several labels per example: losses, metrics, and the steps."""

import functools

import networks
import numpy as np
import pytest
import torch

import ftrain
from ftrain import multi_label
from ftrain.losses import binary_cross_entropy
from ftrain.mix import cutmix, mixup
from ftrain.testing import MEANINGS, assert_pure

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [1.0, 0.5, 0.5], [0.0, 1.5, -1.0], [-1.0, 0.5, 2.0], [-2.0, -2.0, 0.0]])
LABELS = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]])
ONES = torch.ones(5)


def test_average_precision_is_that_of_scikit_learn():
    """average_precision_score(LABELS, LOGITS, average=None), also with sample_weight; scikit-learn 1.x."""
    assert multi_label.average_precision(LOGITS, LABELS, ONES).tolist() == pytest.approx([5 / 6] * 3, rel=1e-14)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    expected = [0.8095238095238095, 0.7714285714285715, 0.75]
    assert multi_label.average_precision(LOGITS, LABELS, weights).tolist() == pytest.approx(expected, rel=1e-12)
    found = multi_label.summary(LOGITS, LABELS, ONES, [0.5] * 3)
    assert found["map"] == pytest.approx(0.8333333333333334, rel=1e-14)


def test_the_order_of_the_examples_does_not_matter_even_with_equal_logits():
    order = torch.tensor([4, 1, 3, 0, 2])
    for function in (multi_label.average_precision, multi_label.best_thresholds):
        assert torch.equal(function(LOGITS, LABELS, ONES), function(LOGITS[order], LABELS[order], ONES))


def test_a_threshold_is_halfway_between_two_logits_where_f1_is_the_largest():
    """sigmoid of -0.5 (between 0 and -1), -0.25 (between 0.5 and -1) and 0.25 (between 0.5 and 0)."""
    thresholds = multi_label.best_thresholds(LOGITS, LABELS, ONES)
    assert thresholds.tolist() == pytest.approx([0.3775406687981454, 0.43782349911420193, 0.5621765008857981])
    scores = multi_label.label_scores(LOGITS, LABELS, ONES, thresholds.tolist())
    assert {name: values.tolist() for name, values in scores.items() if name in ("precision", "recall", "images")} == {
        "precision": pytest.approx([2 / 3] * 3),
        "recall": [1.0, 1.0, 1.0],
        "images": [2.0, 2.0, 2.0],
    }
    assert scores["f1"].tolist() == pytest.approx([0.8] * 3)
    found = multi_label.summary(LOGITS, LABELS, ONES, thresholds.tolist())
    assert found == pytest.approx({"accuracy": 0.6, "map": 5 / 6, "macro_f1": 0.8, "micro_f1": 0.8})


def test_no_threshold_is_better():
    noise = np.random.default_rng(0)
    logits = torch.tensor(noise.normal(size=(40, 6)).round(1))
    labels = torch.tensor((noise.random((40, 6)) < 0.3).astype(np.float32))
    weights = torch.tensor(noise.random(40))
    best = multi_label.label_scores(
        logits, labels, weights, multi_label.best_thresholds(logits, labels, weights).tolist()
    )["f1"]
    for probability in torch.sigmoid(logits).unique().tolist():
        assert (multi_label.label_scores(logits, labels, weights, [probability] * 6)["f1"] <= best + 1e-12).all()


def test_classes_without_examples_and_infinite_logits():
    logits = torch.tensor([[1.0, torch.nan], [-1.0, 0.0]])
    labels = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert multi_label.average_precision(logits, labels, torch.ones(2))[0].isnan()
    assert multi_label.best_thresholds(logits, labels, torch.ones(2))[0] == 0.5
    assert multi_label.average_precision(logits, labels, torch.ones(2))[1] == 0.5  # nan is the lowest
    found = multi_label.summary(logits, labels, torch.ones(2), [0.5, 0.5])
    assert (found["map"], found["macro_f1"]) == (0.5, 0.0)  # over the class that has examples


def test_thresholds_of_extreme_logits():
    """Above 37 probabilities are equal in float64: the true and the false are predicted, F1 = 2 * 2 / (3 + 2). Where
    the probability is 0 or nan the class never applies, so that nothing is gained by a threshold of 0."""
    logits = torch.tensor([[60.0, -800.0, 2.0], [50.0, torch.nan, -800.0], [45.0, -900.0, torch.nan]])
    labels = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    found = multi_label.best_thresholds(logits, labels, torch.ones(3)).tolist()
    assert found == [pytest.approx(0.5), 0.5, pytest.approx(0.8807971 / 2)]
    scores = multi_label.label_scores(logits, labels, torch.ones(3), found)
    assert scores["f1"].tolist() == pytest.approx([0.8, 0.0, 0.5])
    near = torch.tensor([[38.0], [36.0], [-38.0]])  # told apart
    [threshold] = multi_label.best_thresholds(near, torch.tensor([[1.0], [0.0], [0.0]]), torch.ones(3)).tolist()
    assert 0.0 < threshold < 1.0
    assert multi_label.label_scores(near, torch.tensor([[1.0], [0.0], [0.0]]), torch.ones(3), [threshold])["f1"] == 1.0


def test_without_examples_there_is_nothing_to_choose():
    nothing = LOGITS[:0], LABELS[:0], ONES[:0]
    assert multi_label.best_thresholds(*nothing).tolist() == [0.5, 0.5, 0.5]
    assert multi_label.average_precision(*nothing).isnan().all()


def test_the_losses():
    """log(1 + e^-2), log(1 + e^-1) ...; focal with (1 - p)^2 in front, and cross-entropy where gamma is 0."""
    logits, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]])
    assert binary_cross_entropy(logits, labels).item() == pytest.approx((0.126928 + 1.313262) / 2, rel=1e-5)
    expected = (0.119203**2 * 0.126928 + 0.731059**2 * 1.313262) / 2
    assert multi_label.focal(logits, labels).item() == pytest.approx(expected, rel=1e-4)
    noise = ftrain.random.normal(ftrain.random.key(0), (5, 3))
    torch.testing.assert_close(
        multi_label.focal(noise, LABELS, gamma=0.0), binary_cross_entropy(noise, LABELS), rtol=1e-6, atol=0
    )


def test_metrics_of_batches_are_those_of_the_whole():
    def measured(rows, weights=ONES):
        losses = LOGITS.sum(dim=1)
        return multi_label.measure(LOGITS[rows], LABELS[rows], losses[rows], weights[rows], by_class=True)

    whole = measured(slice(0, 5)).compute()
    assert (measured(slice(0, 2)) + measured(slice(2, 5))).compute() == pytest.approx(whole)
    assert whole == pytest.approx(
        {
            "loss": 1.5 / 5,
            "accuracy": 0.6,
            "count": 5.0,
            "nonfinite": 0.0,
            "micro_f1": 0.8,
            "map": 5 / 6,
            "macro_f1": 0.8,
        }
    )
    padded = torch.tensor([1.0, 1, 1, 1, 0])
    without_last = measured(slice(0, 4)).compute()
    assert measured(slice(0, 5), padded).compute() == pytest.approx(without_last)


def test_training_metrics_are_at_a_probability_of_one_half():
    """Predicted: 1.0.1 111 .1. .11 ...; true: 1.1 .1. 11. ..1 ...; hits 2 + 1 + 1 + 1 of 8 predicted and 6 true."""
    found = multi_label.measure(LOGITS, LABELS, torch.zeros(5), ONES)
    assert {name: value.item() for name, value in found.per_label.items()} == {
        "hits": 5.0,
        "predicted": 8.0,
        "actual": 6.0,
    }
    assert found.examples == ()
    assert found.compute() == pytest.approx(
        {"loss": 0.0, "accuracy": 0.4, "count": 5.0, "nonfinite": 0.0, "micro_f1": 10 / 14}
    )


@functools.cache
def parts(name):
    network, size = networks.made(name)
    apply, params, buffers = ftrain.functionalize(network)
    optimizer = ftrain.sgd(0.05, momentum=0.9)
    state = ftrain.init_state(params, buffers, optimizer, seed=3)
    images = ftrain.random.normal(ftrain.random.key(1), (4, 3, size, size))
    labels = torch.tensor([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    return apply, optimizer, state, (images, labels, torch.tensor([1.0, 1.0, 0.5, 0.0]))


STEPS = {
    "train": lambda apply, optimizer: functools.partial(
        ftrain.train_step, apply=apply, optimizer=optimizer, loss=binary_cross_entropy, measure=multi_label.measure
    ),
    "train, focal and mixed": lambda apply, optimizer: functools.partial(
        ftrain.train_step,
        apply=apply,
        optimizer=optimizer,
        loss=multi_label.focal,
        mix=mixup(0.4, classes=5),
        measure=multi_label.measure,
        accumulate=2,
    ),
    "evaluate": lambda apply, optimizer: functools.partial(
        ftrain.eval_step, apply=apply, loss=binary_cross_entropy, measure=multi_label.measure
    ),
}


# "train" is compiled only with -m long, as a part of "train, focal and mixed".
@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        pytest.param(
            name,
            meaning,
            marks=pytest.mark.long if meaning in ("one graph", "draws") and name == "train" else [],
            id=f"{name}-{meaning}",
        )
        for name in STEPS
        for meaning in MEANINGS
    ],
)
def test_the_steps_are_pure(name, meaning):
    apply, optimizer, state, batch = parts("linear")
    assert_pure(STEPS[name](apply, optimizer), state, batch, meanings=[meaning])


def test_donation_changes_no_bit():
    apply, optimizer, state, batch = parts("convnet")
    step = STEPS["train"](apply, optimizer)
    donated = ftrain.init_state(
        {name: param.clone() for name, param in state.params.items()},
        {name: buffer.clone() for name, buffer in state.buffers.items()},
        optimizer,
        seed=3,
    )
    expected, measured = step(state, batch)
    found, metrics = step(donated, batch, donate=True)
    assert all(torch.equal(found.params[name], param) for name, param in expected.params.items())
    assert metrics.compute() == measured.compute()
    with pytest.raises(ftrain.DonatedError):
        donated.params["0.weight"].sum()


@pytest.mark.parametrize("mix", [mixup(1.0, classes=5), cutmix(1.0, classes=5)])
def test_labels_are_mixed_class_by_class(mix):
    _, _, _, (images, labels, _) = parts("linear")
    _, mixed = mix(ftrain.random.key(4), images, labels, torch.ones(4))
    own = mixed[1, 1].item()  # the second image has class 1, and the one before it, its partner, has not
    assert 0.0 < own < 1.0
    torch.testing.assert_close(mixed, own * labels + (1 - own) * labels.roll(1, 0))


def test_a_network_learns_several_labels():
    apply, optimizer, state, (images, labels, _) = parts("linear")
    step = STEPS["train"](apply, ftrain.adam(0.01))
    state = ftrain.init_state(state.params, state.buffers, ftrain.adam(0.01), seed=0)
    for _ in range(30):
        state, metrics = step(state, (images, labels))
    found = STEPS["evaluate"](apply, optimizer)(state, (images, labels)).compute()
    assert (found["accuracy"], found["map"], found["macro_f1"]) == (1.0, 1.0, 1.0)
    assert metrics.compute()["micro_f1"] == 1.0


def test_a_metric_may_not_have_a_name_of_ftrains_own():
    logits, labels = torch.zeros(2, 3), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="a metric cannot be called 'map', which ftrain uses itself"):
        multi_label.measure(logits, labels, torch.zeros(2), torch.ones(2), {"map": lambda logits, labels: logits[:, 0]})
