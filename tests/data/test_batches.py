"""Order, augmentation and loading depend on seed, epoch and index alone."""

import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image

import ftrain.random
from ftrain.data import Augmentation, Images, Job, load, scan
from ftrain.data.augment import centre_view, example_draws, random_view
from ftrain.data.order import Balance, Pace, epoch_order, train_examples
from ftrain.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 5)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (30 + number, 44, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.jpg")
    return root


def images_of(folder, **changes):
    train = scan(folder / "train")
    val = scan(folder / "val", classes=train.classes)
    options = {"batch_size": 4, "image_size": 16, "eval_batch_size": 4, "seed": 5}
    options["augmentation"] = Augmentation(crop_scale=0.3)
    return Images(train=train, val=val, **{**options, **changes})


def test_an_epoch_is_a_permutation_and_epochs_differ():
    assert sorted(epoch_order(0, 0, 50).tolist()) == list(range(50))
    assert epoch_order(0, 0, 50).tolist() != epoch_order(0, 1, 50).tolist()
    assert epoch_order(0, 0, 50).tolist() != epoch_order(1, 0, 50).tolist()
    # jax.random.permutation(fold_in(fold_in(key(0), crc32(b"order")), 0), 10), with JAX 0.10.2
    assert epoch_order(0, 0, 10).tolist() == [0, 3, 6, 4, 7, 8, 1, 5, 2, 9]


def test_batches_are_slices_of_the_epoch():
    order = epoch_order(3, 2, 18)
    pace = Pace(18, 4, drop_last=True)
    batches = [train_examples(3, step, pace) for step in range(8, 12)]
    assert np.concatenate([batch.indices for batch in batches]).tolist() == order[:16].tolist()
    assert {epoch for batch in batches for epoch in batch.epochs.tolist()} == {2}


def test_a_batch_at_the_end_of_an_epoch_is_filled_from_the_next():
    pace = Pace(10, 4)
    assert [train_examples(0, step, pace).epochs.tolist() for step in (1, 2, 4, 5)] == [
        [0, 0, 0, 0],
        [0, 0, 1, 1],
        [1, 1, 1, 1],
        [2, 2, 2, 2],
    ]
    used = np.concatenate([train_examples(0, step, pace).indices for step in range(15)])
    assert [used[first : first + 10].tolist() for first in range(0, 60, 10)] == [
        epoch_order(0, epoch, 10).tolist() for epoch in range(6)
    ]


# Seven examples of one class, two of another, one of a third, and none of a fourth.
UNEVEN = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 3])


def balanced_draws(seed, steps, pace, labels=UNEVEN):
    """(example, how often it was drawn before) of each draw of the first steps."""
    balance = Balance.of(labels)
    drawn = [train_examples(seed, step, pace, balance) for step in range(steps)]
    return np.concatenate([each.indices for each in drawn]), np.concatenate([each.epochs for each in drawn])


def test_with_a_balance_every_class_and_every_example_of_a_class_is_drawn_equally_often():
    indices, passes = balanced_draws(5, 30, Pace(10, 3))  # nine epochs
    assert np.bincount(UNEVEN[indices]).tolist() == [30, 30, 0, 30]
    assert sorted(np.bincount(indices).tolist()) == [4, 4, 4, 4, 4, 5, 5, 15, 15, 30]
    by_epoch = [np.bincount(UNEVEN[indices[first : first + 10]]).tolist() for first in range(0, 90, 10)]
    assert by_epoch == [[4, 3, 0, 3], [3, 4, 0, 3], [3, 3, 0, 4]] * 3
    # No example has a number twice, so that its augmentation is another one at each draw.
    assert sorted(zip(indices[indices >= 7].tolist(), passes[indices >= 7].tolist(), strict=True)) == [
        *((7, number) for number in range(15)),
        *((8, number) for number in range(15)),
        *((9, number) for number in range(30)),
    ]


def test_the_draws_of_a_balance_are_these():
    """They must never change, because runs resume with them."""
    pace, balance = Pace(6, 6), Balance.of([0, 0, 0, 0, 1, 2])
    drawn = [train_examples(0, step, pace, balance) for step in range(3)]
    assert [each.indices.tolist() for each in drawn] == [[3, 2, 4, 4, 5, 5], [5, 0, 1, 5, 4, 4], [1, 4, 5, 5, 4, 2]]
    assert [each.epochs.tolist() for each in drawn] == [[0, 0, 1, 0, 1, 0], [3, 0, 0, 2, 2, 3], [1, 5, 4, 5, 4, 1]]


@pytest.mark.parametrize("pace", [Pace(10, 4), Pace(10, 4, drop_last=True), Pace(10, 10), Pace(10, 7)])
def test_a_balanced_epoch_can_be_entered_anywhere(pace):
    indices, passes = balanced_draws(1, 50, pace)
    for step in (49, 7, 23):
        found = train_examples(1, step, pace, Balance.of(UNEVEN))  # which remembers nothing of the steps before
        here = slice(step * pace.batch_size, (step + 1) * pace.batch_size)
        assert (found.indices.tolist(), found.epochs.tolist()) == (indices[here].tolist(), passes[here].tolist())


def test_balanced_orders_differ_by_epoch_and_seed():
    even = np.arange(40) % 2
    pace = Pace(40, 40)
    orders = [balanced_draws(seed, 2, pace, even)[0] for seed in (0, 1)]
    assert all(sorted(order[first : first + 40].tolist()) == list(range(40)) for order in orders for first in (0, 40))
    assert len({tuple(order[first : first + 40].tolist()) for order in orders for first in (0, 40)}) == 4


@pytest.mark.parametrize(
    ("pace", "ends"),
    [
        (Pace(60, 32), [2, 4, 6, 8, 10]),  # 1.875 steps an epoch: 1.9, 3.75, 5.6, 7.5, 9.4
        (Pace(60, 32, drop_last=True), [1, 2, 3, 4, 5]),
        (Pace(64, 32), [2, 4, 6, 8, 10]),
        (Pace(33, 32), [2, 3, 4, 5, 6]),
        (Pace(5, 5), [1, 2, 3, 4, 5]),
    ],
)
def test_epochs_end_where_all_their_examples_were_used(pace, ends):
    assert [pace.steps(epochs) for epochs in range(1, 6)] == ends
    assert [step for step in range(1, ends[-1] + 1) if pace.ends_epoch(step)] == ends
    assert [pace.epoch_of(step) for step in ends] == [1, 2, 3, 4, 5]
    assert [pace.epochs(step) for step in ends] == [1, 2, 3, 4, 5]
    assert [pace.epochs(step - 1) for step in ends] == [0, 1, 2, 3, 4]


def test_an_example_looks_the_same_in_whatever_batch_of_its_epoch():
    """Its draws depend on the epoch that it belongs to, not on that of the batch."""
    both = example_draws(0, np.array([1, 2]), np.array([8, 8]), count=5)
    assert np.array_equal(both[0], example_draws(0, 1, np.array([8]), count=5)[0])
    assert np.array_equal(both[1], example_draws(0, 2, np.array([8]), count=5)[0])


def test_draws_depend_on_the_example_and_not_on_its_batch():
    together = example_draws(0, 1, np.array([3, 8, 5]), count=5)
    alone = example_draws(0, 1, np.array([8]), count=5)
    assert np.array_equal(together[1], alone[0])
    assert not np.array_equal(together[0], together[1])
    assert not np.array_equal(alone, example_draws(0, 2, np.array([8]), count=5))
    assert np.array_equal(alone, example_draws(0, 1, np.array([8]), count=9)[:, :5])
    assert (together >= 0).all()
    assert (together < 1).all()


def test_random_views_are_distributed_as_torchvisions():
    from torchvision.transforms.v2 import RandomResizedCrop

    height, width, count = 300, 400, 4000
    draws = example_draws(0, 0, np.arange(count), count=23)
    views = [random_view(height, width, row, smallest_fraction=0.25, flip=True) for row in draws]
    ours = np.array([view.box for view in views])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transform = RandomResizedCrop(32, scale=(0.25, 1.0))
        picture = torch.zeros(3, height, width)
        made = [transform.make_params([picture]) for _ in range(count)]
    theirs = np.array([[p["left"], p["top"], p["width"], p["height"]] for p in made])
    for column in range(4):
        for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
            difference = np.quantile(ours[:, column], quantile) - np.quantile(theirs[:, column], quantile)
            assert abs(difference) < 10.0, (column, quantile)
    assert (ours[:, 0] + ours[:, 2] <= width).all()
    assert (ours[:, 1] + ours[:, 3] <= height).all()
    assert np.mean([view.flipped for view in views]) == pytest.approx(0.5, abs=0.03)


def test_if_no_view_fits_it_is_the_largest_box_at_the_centre():
    draws = np.full(23, 0.99)  # nearly the whole area, and a ratio that does not fit into a long strip
    assert random_view(10, 1000, draws, smallest_fraction=0.9, flip=True).box == (493, 0, 13, 10)
    assert random_view(1, 1, draws, smallest_fraction=0.3, flip=False).box == (0, 0, 1, 1)


def test_no_crops_at_a_fraction_of_one():
    view = random_view(20, 40, np.full(23, 0.2), smallest_fraction=1.0, flip=True)
    assert view.box == (10.0, 0.0, 20.0, 20.0)
    assert view.flipped
    assert centre_view(100, 200).box == (56.25, 6.25, 87.5, 87.5)


def as_bytes(batches):
    return [[part.numpy().tobytes() for part in batch[:4]] for batch in batches]


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize(
    "augmentation", [Augmentation(crop_scale=0.3), Augmentation(fit="pad"), Augmentation(crop_scale=0.3, fit="stretch")]
)
def test_batches_are_the_same_bytes_with_any_number_of_workers(folder, workers, augmentation):
    images = images_of(folder, augmentation=augmentation)
    jobs = images.train_jobs(0) + images.val_jobs() + images.train_jobs(1)
    assert len(jobs) == 5 + 3 + 4
    alone = as_bytes(load(images, jobs))
    assert as_bytes(load(images, jobs, workers=workers)) == alone
    # From the middle, as a resumed run loads them.
    assert as_bytes(load(images, jobs[6:], workers=workers)) == alone[6:]


def test_balanced_batches_are_the_same_bytes_with_any_number_of_workers(folder):
    balance = Balance.of([0] * 15 + [1] * 3)
    images = images_of(folder, balance=balance)
    jobs = images.train_jobs(0) + images.train_jobs(1)
    alone = as_bytes(load(images, jobs))
    assert as_bytes(load(images, jobs, workers=2)) == alone
    assert as_bytes(load(images, jobs[6:], workers=1)) == alone[6:]


def test_an_image_that_is_drawn_again_is_augmented_anew(folder):
    images = images_of(folder, balance=Balance.of([0] * 17 + [1]), batch_size=18)
    batch = next(load(images, [Job("train", 0)]))
    again = batch.images[batch.indices == 17]
    assert len({each.numpy().tobytes() for each in again}) == len(again) == 9


def test_evaluation_counts_every_example_once_and_pads_the_last_batch(folder):
    images = images_of(folder)
    batches = list(load(images, images.val_jobs()))
    assert [tuple(batch.images.shape) for batch in batches] == [(4, 3, 16, 16)] * 3
    assert all(batch.images.dtype == torch.uint8 for batch in batches)
    assert [batch.weights.tolist() for batch in batches] == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    kept = [i for batch in batches for i, w in zip(batch.indices.tolist(), batch.weights.tolist(), strict=True) if w]
    assert kept == list(range(10))
    assert torch.cat([batch.labels for batch in batches])[:10].tolist() == [0] * 5 + [1] * 5
    assert batches[2].images[2:].max() == 0


def test_half_of_the_images_are_flipped(folder):
    augmented = next(load(images_of(folder, augmentation=Augmentation()), [Job("train", 0)]))
    plain = next(load(images_of(folder, augmentation=Augmentation(flip=False)), [Job("train", 0)]))
    assert torch.equal(augmented.indices, plain.indices)
    same = [torch.equal(a, b) for a, b in zip(augmented.images, plain.images, strict=True)]
    flipped = [torch.equal(a, b.flip(-1)) for a, b in zip(augmented.images, plain.images, strict=True)]
    assert [a != b for a, b in zip(same, flipped, strict=True)] == [True] * 4
    assert 0 < sum(flipped) < 4


def test_loading_leaves_the_global_generators_alone(folder):
    before = torch.get_rng_state()
    list(load(images_of(folder), [Job("train", 0)], workers=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_one_clear_error(folder, tmp_path, workers):
    images = images_of(folder)
    broken = tmp_path / "train"
    broken.mkdir()
    for name in ("a", "b"):
        (broken / name).symlink_to(folder / "train" / name)
    images = images_of(folder)
    (tmp_path / "copy").mkdir()
    path = tmp_path / "copy" / "0.jpg"
    path.write_bytes((folder / "val" / "a" / "0.jpg").read_bytes()[:300])
    import attrs

    bad = attrs.evolve(images.val, paths=(str(path), *images.val.paths[1:]))
    with pytest.raises(DataError) as caught:
        list(load(attrs.evolve(images, val=bad), images.val_jobs(), workers=workers))
    assert str(caught.value).startswith(f"cannot read the image {path}: ")
    assert "Traceback" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_purpose_keys_differ():
    from ftrain.data.order import purpose_key

    keys = {tuple(purpose_key(0, purpose, epoch).tolist()) for purpose in ("order", "augment") for epoch in (0, 1)}
    assert len(keys) == 4
    assert tuple(ftrain.random.key(0).tolist()) not in keys
