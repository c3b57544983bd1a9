"""Your own metrics and your own augmentation in train_step and eval_step."""

import functools

import networks
import pytest
import torch
from torch.utils import _pytree as pytree

import ftrain
from ftrain.metrics import RESERVED_NAMES, measure
from ftrain.mix import mixup
from ftrain.steps import AUGMENT_DRAW, MIXING_DRAW
from ftrain.testing import assert_pure

LABELS = torch.tensor([0, 1, 2, 4])


def parts(name="linear", **options):
    module, size = networks.made(name)
    apply, params, buffers = ftrain.functionalize(module)
    optimizer = ftrain.sgd(0.05, momentum=0.9)
    state = ftrain.init_state(params, buffers, optimizer, seed=3)
    images = ftrain.random.normal(ftrain.random.key(1), (4, 3, size, size))
    return functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer, **options), state, (images, LABELS)


def label_is_even(logits, labels):
    return labels % 2 == 0


def highest_logit(logits, labels):
    return logits.amax(dim=-1)


METRICS = {"even": label_is_even, "highest": highest_logit}


def test_a_metric_is_a_weighted_mean_over_the_examples():
    logits, weights = torch.zeros(4, 5), torch.tensor([1.0, 2.0, 0.5, 0.0])
    values = torch.tensor([1.0, 2.0, 4.0, torch.nan])
    found = measure(logits, LABELS, torch.ones(4), weights, {"value": lambda logits, labels: values})
    assert found.per_example["value"].dtype == torch.float64
    assert found.compute()["value"] == (1.0 + 4.0 + 2.0) / 3.5
    assert (found + found).compute()["value"] == 2.0


def test_the_steps_report_metrics():
    step, state, batch = parts(metrics=METRICS)
    _, metrics = step(state, batch)
    assert metrics.compute()["even"] == 0.75
    evaluated = ftrain.eval_step(state, batch, apply=step.keywords["apply"], metrics=METRICS).compute()
    logits = ftrain.predict_step(state, batch[0], apply=step.keywords["apply"])
    assert evaluated["even"] == 0.75
    assert evaluated["highest"] == pytest.approx(logits.amax(dim=-1).mean().item())


def test_metrics_do_not_change_the_state():
    step, state, batch = parts("convnet")
    plain, measured = step(state, batch)[0], step(state, batch, metrics=METRICS)[0]
    for one, other in zip(*map(pytree.tree_leaves, (plain, measured)), strict=True):
        assert torch.equal(one, other)


def test_metrics_of_parts_of_a_batch_are_those_of_the_whole():
    step, state, batch = parts(metrics=METRICS)
    whole, split = step(state, batch)[1].compute(), step(state, batch, accumulate=2)[1].compute()
    assert split["even"] == whole["even"]
    assert split["highest"] == pytest.approx(whole["highest"], rel=1e-6)


def test_metrics_receive_the_labels_that_the_loss_receives():
    seen = {}

    def loss(logits, labels):
        seen["loss"] = labels
        return ftrain.cross_entropy(logits, labels)

    def metric(logits, labels):
        seen["metric"] = labels
        return labels.amax(dim=-1)

    step, state, batch = parts(mix=mixup(1.0, classes=5), loss=loss, metrics={"largest": metric})
    step(state, batch)
    assert seen["metric"] is seen["loss"]
    assert seen["metric"].shape == (4, 5)


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_names_of_ftrains_own_metrics_are_rejected(name):
    step, state, batch = parts(metrics={name: label_is_even})
    with pytest.raises(ValueError, match=f"a metric cannot be called '{name}', which ftrain uses itself"):
        step(state, batch)


def test_a_metric_must_return_one_value_per_example():
    step, state, batch = parts(metrics={"mean": lambda logits, labels: logits.mean()})
    with pytest.raises(ValueError, match=r"'mean' must return one value per example, of shape \[4\]; got \[\]"):
        step(state, batch)


def brightness(key, images):
    return images * ftrain.random.uniform(key, (len(images), 1, 1, 1), minval=0.5, maxval=1.5)


def augmented(step, state, batch):
    """The images that reach the network in a step, and the state after it."""
    seen = []

    def apply(params, buffers, inputs, *, train, key):
        seen.append(inputs)
        return step.keywords["apply"](params, buffers, inputs, train=train, key=key)

    new, _ = functools.partial(step, apply=apply)(state, batch)
    return torch.cat(seen), new


def test_augmentation_draws_from_the_key_of_the_step():
    step, state, (images, labels) = parts(augment=brightness)
    first, new = augmented(step, state, (images, labels))
    key = ftrain.random.fold_in(ftrain.random.fold_in(state.key, 0), AUGMENT_DRAW)
    assert torch.equal(first, brightness(key, images))
    second, _ = augmented(step, new, (images, labels))
    assert not torch.equal(first, second)
    assert AUGMENT_DRAW != MIXING_DRAW


def test_augmentation_comes_before_mixing_and_sees_the_whole_batch():
    seen = []

    def augment(key, images):
        seen.append(images.shape)
        return torch.ones_like(images)

    step, state, batch = parts(augment=augment, mix=mixup(1.0, classes=5), accumulate=2)
    found, _ = augmented(step, state, batch)
    assert seen == [(4, 3, 8, 8)]
    torch.testing.assert_close(found, torch.ones_like(found))


def test_a_step_with_metrics_and_augmentation_is_pure():
    assert_pure(*parts("convnet", metrics=METRICS, augment=brightness))


def test_augmentation_must_return_as_many_images():
    step, state, batch = parts(augment=lambda key, images: images[:2])
    with pytest.raises(ValueError, match=r"`augment` must return a tensor of 4 images; got \[2, 3, 8, 8\]"):
        step(state, batch)


# --- arguments of the wrong kind


def call(step, state, batch, **options):
    """train_step, eval_step or predict_step with what it needs."""
    if step is ftrain.train_step:
        return step(state, batch, optimizer=ftrain.sgd(0.1), **options)
    return step(state, batch[0] if step is ftrain.predict_step else batch, **options)


@pytest.mark.parametrize("step", [ftrain.train_step, ftrain.eval_step, ftrain.predict_step])
@pytest.mark.parametrize(
    ("apply", "found"),
    [
        (torch.nn.Linear(2, 2), r"got a module \(Linear\)\. Call apply, params, buffers = "),
        (ftrain.functionalize(torch.nn.Linear(2, 2)), r"got a tuple of 3\. Unpack it: apply, params, buffers = "),
        (None, r"got a NoneType\. Call apply, params, buffers = "),
    ],
)
def test_an_apply_that_is_no_function_is_rejected(step, apply, found):
    _, state, batch = parts()
    with pytest.raises(TypeError, match=f"`apply` must be the function that ftrain.functionalize returns; {found}"):
        call(step, state, batch, apply=apply)


@pytest.mark.parametrize("step", [ftrain.train_step, ftrain.eval_step])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda images, labels: {"images": images, "labels": labels},
            TypeError,
            r"`batch` must be \(inputs, labels\) or \(inputs, labels, weights\); got a dict",
        ),
        (lambda images, labels: images, TypeError, "got a Tensor"),
        (lambda images, labels: (images, labels, labels, labels), ValueError, r"got 4 values\. .* use batch\[:3\]"),
        (lambda images, labels: (images, [0, 1, 2, 4]), TypeError, "the labels of `batch` must be .*; got a list"),
        (lambda images, labels: (images, labels[0]), TypeError, "got a 0-d tensor of torch.int64"),
        (
            lambda images, labels: (images, labels[:3]),
            ValueError,
            r"must have the same length; got inputs of shape \[4, 3, 8, 8\] and labels of shape \[3\]",
        ),
        (
            lambda images, labels: (images, labels, torch.ones(3)),
            ValueError,
            r"the weights of `batch` must be a tensor of shape \[4\], one per label; got \[3\]",
        ),
        (lambda images, labels: (images, labels, None), ValueError, "one per label; got a NoneType"),
    ],
)
def test_a_batch_of_the_wrong_form_is_rejected(step, change, error, message):
    bound, state, batch = parts()
    with pytest.raises(error, match=message):
        call(step, state, change(*batch), apply=bound.keywords["apply"])
