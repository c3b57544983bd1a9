"""ftrain.mix beside torchvision's transforms of the same names, and in a training step."""

import functools
import math

import networks
import numpy as np
import pytest
import torch
from torchvision.transforms import v2

import ftrain
from ftrain.mix import cutmix, either, mixup
from ftrain.steps import MIXING_DRAW
from ftrain.testing import MEANINGS, assert_pure

CLASSES = networks.CLASSES
MIXES = {
    "mixup": mixup(0.2, classes=CLASSES),
    "cutmix": cutmix(1.0, classes=CLASSES),
    "either": either(mixup(0.2, classes=CLASSES), cutmix(1.0, classes=CLASSES)),
}
DRAWS = 4000
# Two samples of DRAWS numbers of one distribution are further apart once in a million times (Smirnov's bound,
# 2 exp(-DRAWS d^2)).
FAR = math.sqrt(math.log(2e6) / DRAWS)


def distance(one, other):
    """Kolmogorov and Smirnov's: the largest difference between the distribution functions of two samples."""
    places = np.concatenate([one, other])
    below = [np.searchsorted(np.sort(sample), places, side="right") / len(sample) for sample in (one, other)]
    return np.abs(below[0] - below[1]).max()


def batch(size=8, examples=4):
    images = ftrain.random.randint(ftrain.random.key(1), (examples, 3, size, size), 0, 256).to(torch.uint8)
    return images, torch.arange(examples) % CLASSES, torch.ones(examples)


def of_torchvision(transform, images):
    """The parameters that torchvision draws, DRAWS times."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [transform.make_params([images]) for _ in range(DRAWS)]


@functools.cache
def boxes(height, width):
    """DRAWS boxes of cutmix as left, top, right, bottom, int64 [n, 4], and the weight of its own label.
    The second of two images is all 1, so the box in the first is where it is 1. Boxes without pixels, whose place
    cannot be seen, are left out, here and of torchvision's."""
    images = torch.zeros(2, 1, height, width)
    images[1] = 1.0
    mix = cutmix(1.0, classes=2)
    mixed, targets = torch.func.vmap(lambda key: mix(key, images, torch.tensor([0, 1]), torch.ones(2)))(
        ftrain.random.split(ftrain.random.key(4), DRAWS)
    )
    found = np.array([box_of(picture) for picture in mixed[:, 0, 0] == 1.0])
    seen = found[:, 2] > 0
    return found[seen], targets[:, 0, 0].numpy()[seen]


def box_of(inside):
    """The box that is True in a picture, as left, top, right, bottom; all 0 if nothing is."""
    rows, columns = inside.any(dim=1).nonzero().flatten().tolist(), inside.any(dim=0).nonzero().flatten().tolist()
    assert inside.sum() == len(rows) * len(columns)  # one solid rectangle
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if rows else (0, 0, 0, 0)


def test_mixup_mixes_with_the_example_before():
    images = torch.tensor([0, 100, 200], dtype=torch.uint8).reshape(3, 1, 1, 1)
    mixed, targets = mixup(1.0, classes=4)(ftrain.random.key(0), images, torch.tensor([2, 0, 3]), torch.ones(3))
    assert mixed.flatten().tolist() == pytest.approx([28.91958, 85.54021, 185.54021], rel=1e-6)
    own, partners = pytest.approx(0.8554021, rel=1e-6), pytest.approx(0.1445979, rel=1e-6)
    assert targets.tolist() == [[0.0, 0.0, own, partners], [own, 0.0, partners, 0.0], [partners, 0.0, 0.0, own]]


def test_cutmix_pastes_a_box_of_the_example_before():
    images = torch.tensor([0, 1], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 5, 6)
    mixed, targets = cutmix(1.0, classes=2)(ftrain.random.key(2), images, torch.tensor([0, 1]), torch.ones(2))
    assert mixed[0, 0].int().tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert torch.equal(mixed[1], 1 - mixed[0])
    own, partners = pytest.approx(26 / 30), pytest.approx(4 / 30)
    assert targets.tolist() == [[own, partners], [partners, own]]


def test_mixup_equals_torchvisions_with_the_same_weight():
    images, labels, weights = batch()
    for key in ftrain.random.split(ftrain.random.key(3), 5):
        mixed, targets = MIXES["mixup"](key, images, labels, weights)
        theirs = v2.MixUp(alpha=0.2, num_classes=CLASSES)
        params = {"lam": targets[0, 0].item(), "labels": labels, "batch_size": len(labels)}
        torch.testing.assert_close(mixed, theirs.transform(images.float(), params))
        torch.testing.assert_close(targets, theirs.transform(labels, params))


def test_cutmix_equals_torchvisions_with_the_same_box():
    images, labels, weights = batch()
    images[:] = torch.tensor([10, 20, 30, 40], dtype=torch.uint8).reshape(4, 1, 1, 1)
    boxes_seen = set()
    for key in ftrain.random.split(ftrain.random.key(3), 20):
        mixed, targets = MIXES["cutmix"](key, images, labels, weights)
        box = box_of(mixed[0, 0] == 40)
        boxes_seen.add(box)
        theirs = v2.CutMix(alpha=1.0, num_classes=CLASSES)
        own = 1.0 - (box[2] - box[0]) * (box[3] - box[1]) / 64
        params = {"box": box, "lam_adjusted": own, "labels": labels, "batch_size": len(labels)}
        assert torch.equal(mixed, theirs.transform(images, params).float())
        torch.testing.assert_close(targets, theirs.transform(labels, params))
    assert len(boxes_seen) > 10


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixups_weight_is_distributed_as_torchvisions(alpha):
    mix, labels = mixup(alpha, classes=2), torch.tensor([0, 1])
    keys = ftrain.random.split(ftrain.random.key(2), DRAWS)
    own = torch.func.vmap(lambda key: mix(key, torch.zeros(2, 1, 1, 1), labels, torch.ones(2))[1][0, 0])(keys)
    theirs = [params["lam"] for params in of_torchvision(v2.MixUp(alpha=alpha, num_classes=2), torch.zeros(2, 1, 1, 1))]
    # To six digits, because torchvision's float32 weights near 1 are rounded differently.
    assert distance(own.numpy().round(6), np.array(theirs).round(6)) < FAR


def test_cutmixs_boxes_are_distributed_as_torchvisions():
    height, width = 24, 32
    ours, _ = boxes(height, width)
    drawn = of_torchvision(v2.CutMix(alpha=1.0, num_classes=2), torch.zeros(2, 1, height, width))
    theirs = np.array([params["box"] for params in drawn])
    theirs = theirs[(theirs[:, 2] > theirs[:, 0]) & (theirs[:, 3] > theirs[:, 1])]
    assert abs(len(ours) - len(theirs)) < 0.02 * DRAWS
    parts = {
        "left": lambda box: box[:, 0],
        "top": lambda box: box[:, 1],
        "right": lambda box: box[:, 2],
        "bottom": lambda box: box[:, 3],
        "width": lambda box: box[:, 2] - box[:, 0],
        "height": lambda box: box[:, 3] - box[:, 1],
        "area": lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
    }
    distances = {name: distance(part(ours), part(theirs)) for name, part in parts.items()}
    assert {name: far for name, far in distances.items() if far >= FAR} == {}


def test_cutmixs_labels_are_mixed_by_the_area_that_is_left():
    found, shares = boxes(24, 32)
    areas = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    np.testing.assert_allclose(shares, 1.0 - areas / (24 * 32), atol=1e-6)


@pytest.mark.parametrize("name", MIXES)
def test_probabilities_sum_to_one_and_images_keep_their_range(name):
    images, labels, weights = batch()
    for key in ftrain.random.split(ftrain.random.key(5), 20):
        mixed, targets = MIXES[name](key, images, labels, weights)
        assert mixed.dtype == targets.dtype == torch.float32
        assert mixed.shape == images.shape
        assert targets.shape == (4, CLASSES)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
        assert targets.min() >= 0.0
        assert 0.0 <= mixed.min() <= mixed.max() <= 255.0
        assert mixed.max() > 200.0


@pytest.mark.parametrize("name", MIXES)
def test_labels_may_be_probabilities(name):
    images, labels, weights = batch()
    key = ftrain.random.key(6)
    by_number, by_probability = (
        MIXES[name](key, images.double(), given, weights)
        for given in (labels, torch.nn.functional.one_hot(labels, CLASSES).double())
    )
    assert by_number[0].dtype == torch.float64
    assert torch.equal(by_number[0], by_probability[0])
    assert torch.equal(by_number[1], by_probability[1])


@pytest.mark.parametrize("name", MIXES)
def test_an_example_whose_partner_has_weight_0_is_not_mixed(name):
    images, labels, _ = batch()
    images = images.float()
    images[1] = torch.nan
    weights = torch.tensor([1.0, 0.0, 0.5, 1.0])
    mixed_keys = 0
    for key in ftrain.random.split(ftrain.random.key(7), 10):
        mixed, targets = MIXES[name](key, images, labels, weights)
        full, full_targets = MIXES[name](key, images, labels, torch.ones(4))
        assert torch.equal(mixed[2], images[2])
        assert targets[2].tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]
        for other in (0, 3):
            assert torch.equal(mixed[other], full[other])
            assert torch.equal(targets[other], full_targets[other])
        mixed_keys += int(full_targets[2, 2] < 1.0)
    assert mixed_keys > 4


def test_either_chooses_one_of_its_mixes_for_the_whole_batch_equally_often():
    def constant(number):
        return lambda key, images, labels, weights: (torch.full_like(images, number), torch.full((4, CLASSES), number))

    images, labels, weights = batch()
    mix = either(constant(0.0), constant(1.0), constant(2.0))
    keys = ftrain.random.split(ftrain.random.key(8), 3000)
    mixed, targets = torch.func.vmap(lambda key: mix(key, images.float(), labels, weights))(keys)
    chosen = targets[:, 0, 0].long()
    assert (mixed == chosen[:, None, None, None, None]).all()
    assert (targets == chosen[:, None, None]).all()
    counts = torch.bincount(chosen, minlength=3)
    assert counts.min() > 871  # 1000, and 5 times sqrt(3000 x 1/3 x 2/3)
    assert counts.max() < 1129


@pytest.mark.parametrize("name", MIXES)
def test_vmap_over_keys_equals_the_loop(name):
    images, labels, weights = batch()
    keys = ftrain.random.split(ftrain.random.key(9), 4)
    together = torch.func.vmap(lambda key: MIXES[name](key, images, labels, weights))(keys)
    alone = [MIXES[name](key, images, labels, weights) for key in keys]
    for found, expected in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(found, torch.stack(expected))


# inductor takes a minute for "either", in which nothing is new to it.
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param("either", "aot_eager", marks=pytest.mark.long),
        pytest.param("mixup", "inductor", marks=pytest.mark.long),
    ],
)
def test_compiled_as_one_graph_equals_eager(name, backend):
    images, labels, weights = batch()
    torch._dynamo.reset()
    compiled = torch.compile(MIXES[name], fullgraph=True, dynamic=False, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for key in ftrain.random.split(ftrain.random.key(10), 6):
            for found, expected in zip(
                compiled(key, images, labels, weights), MIXES[name](key, images, labels, weights), strict=True
            ):
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_partners_pixels_get_their_part_of_the_gradient(name):
    images, labels, weights = batch(size=4)
    key = ftrain.random.key(11)
    slope = torch.func.grad(lambda x: MIXES[name](key, x, labels, weights)[0][0].sum())(images.double())
    own = MIXES[name](key, images, labels, weights)[1][0, 0].double()
    assert 0.0 < own < 1.0
    pixels = 3 * 4 * 4
    torch.testing.assert_close(
        slope.sum(dim=(1, 2, 3)), torch.stack([own, 0 * own, 0 * own, 1 - own]) * pixels, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("make", [mixup, cutmix])
def test_mixes_reject_arguments_out_of_range(make):
    images, _, weights = batch()
    for alpha in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"`alpha` must be positive and finite; got {alpha}"):
            make(alpha, classes=3)
    with pytest.raises(ValueError, match="`classes` must be at least 1; got 0"):
        make(1.0, classes=0)
    with pytest.raises(ValueError, match="labels that are probabilities must have 3 classes; got 5"):
        make(1.0, classes=3)(ftrain.random.key(0), images, torch.ones(4, 5) / 5, weights)
    with pytest.raises(ValueError, match="either needs at least one mix"):
        either()


@functools.cache
def parts():
    apply, params, buffers = ftrain.functionalize(networks.made("convnet")[0])
    apply = ftrain.normalized(apply, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    optimizer = ftrain.sgd(0.05, momentum=0.9)
    return apply, optimizer, ftrain.init_state(params, buffers, optimizer, seed=3)


def bound_step(mix):
    apply, optimizer, _ = parts()
    return functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer, mix=mix)


ALWAYS = {"one graph": "mixup", "draws": "either"}


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        pytest.param(
            name,
            meaning,
            marks=pytest.mark.long if ALWAYS.get(meaning, name) != name else [],
            id=f"{name}-{meaning}",
        )
        for name in MIXES
        for meaning in MEANINGS
    ],
)
def test_train_step_with_a_mix_is_pure(name, meaning):
    images, labels, _ = batch()
    weights = torch.tensor([1.0, 1.0, 0.5, 0.0])
    assert_pure(bound_step(MIXES[name]), parts()[2], (images, labels, weights), meanings=[meaning])


def test_train_step_mixes_by_the_key_of_the_step():
    images, labels, weights = batch()
    state = parts()[2]
    state, _ = bound_step(None)(state, (images, labels))
    key = ftrain.random.fold_in(ftrain.random.fold_in(state.key, 1), MIXING_DRAW)
    by_hand = bound_step(None)(state, (*MIXES["mixup"](key, images, labels, weights), weights))
    found = bound_step(MIXES["mixup"])(state, (images, labels, weights))
    for a, b in zip(*(torch.utils._pytree.tree_leaves(result) for result in (by_hand, found)), strict=True):
        assert torch.equal(a, b)


def test_mixing_changes_no_draw_of_the_forward_pass():
    images, labels, _ = batch()
    plain = bound_step(None)(parts()[2], (images, labels))
    unmixed = bound_step(lambda key, images, labels, weights: (images, labels))(parts()[2], (images, labels))
    for a, b in zip(*(torch.utils._pytree.tree_leaves(result) for result in (plain, unmixed)), strict=True):
        assert torch.equal(a, b)


def test_metrics_count_the_most_probable_class_as_the_label():
    apply, _, state = parts()
    images, labels, weights = batch()
    logits, _ = apply(state.params, state.buffers, images, train=True, key=ftrain.random.fold_in(state.key, 0))
    answer = logits[0].argmax()

    def toward_the_first_answer(key, images, labels, weights):
        return images, 0.4 * torch.eye(CLASSES)[labels] + 0.6 * torch.eye(CLASSES)[answer]

    _, metrics = bound_step(toward_the_first_answer)(state, (images, labels, weights))
    assert metrics.correct == (logits.argmax(dim=1) == answer).sum() > 0
    assert metrics.count == 4


def test_normalized_accepts_mixed_images_and_uint8():
    images, _, _ = batch()
    apply, _, state = parts()
    as_bytes, _ = apply(state.params, state.buffers, images, train=False)
    as_floats, _ = apply(state.params, state.buffers, images.float(), train=False)
    assert torch.equal(as_bytes, as_floats)
