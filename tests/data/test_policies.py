"""ftrain.data.policies and random_view compared with torchvision's transforms of the same names."""

import contextlib
import hashlib
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import ftrain.random
from ftrain.data import policies
from ftrain.data.augment import random_view

FILL = (124, 116, 104)
SIZE = 20
DRAWS = 4000
# Two samples of DRAWS numbers of one distribution are further apart once in a million times (Smirnov's bound,
# 2 exp(-DRAWS d^2)).
FAR = math.sqrt(math.log(2e6) / DRAWS)


def picture(size=SIZE):
    """Slopes and stripes of many colours, uint8 [3, size, size]."""
    channel, row, column = np.meshgrid(np.arange(3), np.arange(size), np.arange(size), indexing="ij")
    return ((37 * channel + 11 * row * (channel + 1) + 7 * column + 40 * ((row + column) % 3)) % 230 + 10).astype(
        np.uint8
    )


def uniform(seed, count, examples=DRAWS):
    return ftrain.random.uniform(ftrain.random.key(seed), (examples, count), torch.float64).numpy()


def distance(one, other):
    """The Kolmogorov-Smirnov statistic: the largest difference between two empirical distribution functions."""
    one, other = (np.asarray(sample, np.float64).round(6) for sample in (one, other))
    places = np.concatenate([one, other])
    below = [np.searchsorted(np.sort(sample), places, side="right") / len(sample) for sample in (one, other)]
    return np.abs(below[0] - below[1]).max()


def far_apart(ours, theirs):
    """The names of the samples whose distribution differs from torchvision's."""
    assert ours.keys() == theirs.keys()
    assert all(len(sample) > 0.9 * DRAWS for samples in (ours, theirs) for sample in samples.values())
    distances = {name: distance(sample, theirs[name]) for name, sample in ours.items()}
    return {name: far for name, far in distances.items() if far >= FAR}


@contextlib.contextmanager
def seeded():
    """torchvision draws the same numbers in every run, and the global state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def of_torchvision(transform, height, width):
    """The parameters that torchvision draws for images of that size, DRAWS times."""
    with seeded():
        return [transform.make_params([torch.empty(3, height, width)]) for _ in range(DRAWS)]


def chosen_by_torchvision(make, count):
    """The operations and magnitudes that a policy of torchvision's chooses, in `count` images."""
    chosen = []

    class Recorded(make):
        def _apply_image_or_video_transform(self, image, transform_id, magnitude, interpolation, fill):
            chosen.append((transform_id, magnitude))
            return image

    transform, image = Recorded(), Image.fromarray(picture().transpose(1, 2, 0))
    with seeded():
        for _ in range(count):
            transform(image)
    return chosen


@pytest.fixture
def chosen(monkeypatch):
    """The operations and magnitudes that the policies choose during the test. None of them is executed."""
    record = []

    def operate(image, name, level, *, fill):
        record.append((name, level))
        return image

    monkeypatch.setattr(policies, "operate", operate)
    return record


def assert_even(counts, names):
    """Counts that differ from even ones by more than 5 standard errors occur once in 1.7 million."""
    assert counts.keys() == set(names)
    total, fraction = sum(counts.values()), 1.0 / len(counts)
    allowed = 5.0 * math.sqrt(total * fraction * (1.0 - fraction))
    assert {name: count for name, count in counts.items() if abs(count - total * fraction) > allowed} == {}


SIGNED = [
    "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"
]  # fmt: skip
UNSIGNED = ["Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"]


def expected_of_torchvision(transform, pixels, number, bin, sign):
    """torchvision's result of one operation with a magnitude, and the operation's name."""
    name, (magnitudes, signed) = list(transform._AUGMENTATION_SPACE.items())[number]
    table = magnitudes(31, *pixels.shape[1:])
    magnitude = 0.0 if table is None else float(table[bin])
    result = transform._apply_image_or_video_transform(
        Image.fromarray(pixels.transpose(1, 2, 0)),
        name,
        sign * magnitude if signed else magnitude,
        interpolation=transform.interpolation,
        fill=transform._fill,
    )
    return np.asarray(result).transpose(2, 0, 1), name


@pytest.mark.parametrize("size", [20, 33])
@pytest.mark.parametrize("policy", ["rand_augment", "trivial_augment_wide"])
@pytest.mark.parametrize("number", range(14))
def test_every_operation_and_magnitude_equals_torchvisions(policy, number, size):
    wide, pixels = policy == "trivial_augment_wide", picture(size)
    transform = (v2.TrivialAugmentWide if wide else v2.RandAugment)(fill=list(FILL))
    assert len(transform._AUGMENTATION_SPACE) == 14
    results = set()
    for bin in range(31):
        for sign, draw in ((-1.0, 0.25), (1.0, 0.75)):
            if wide:
                draws = np.array([(number + 0.5) / 14, (bin + 0.5) / 31, draw])
                found = policies.trivial_augment_wide(pixels, draws, fill=FILL)
            else:
                draws = np.array([(number + 0.5) / 14, draw])
                found = policies.rand_augment(pixels, draws, fill=FILL, ops=1, magnitude=bin)
            expected, name = expected_of_torchvision(transform, pixels, number, bin, sign)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, expected, err_msg=f"{name}, bin {bin}, sign {sign}")
            results.add(found.tobytes())
    # Every operation changes this picture.
    assert name == policies.OPERATIONS[number]
    assert len(results) > 1 or name in ("Identity", "AutoContrast", "Equalize")
    assert pixels.tobytes() not in results or name not in ("AutoContrast", "Equalize")


def test_rand_augment_applies_one_operation_after_the_other():
    draws = np.array([5.5 / 14, 0.1, 10.5 / 14, 0.9, 4.5 / 14, 0.9])  # Rotate to the right, Posterize, TranslateY down
    found = policies.rand_augment(picture(), draws, fill=FILL, ops=3, magnitude=20)
    expected = picture()
    for number, sign in ((5, -1.0), (10, 1.0), (4, 1.0)):
        expected, _ = expected_of_torchvision(v2.RandAugment(fill=list(FILL)), expected, number, 20, sign)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(policies.rand_augment(picture(), np.array([]), fill=FILL, ops=0), picture())


def test_rand_augment_chooses_as_torchvisions(chosen):
    for draws in uniform(1, policies.rand_augment_draws(2)):
        policies.rand_augment(picture(), draws, fill=FILL)
    theirs = chosen_by_torchvision(v2.RandAugment, DRAWS)
    assert set(chosen) == set(theirs)
    assert len(chosen) == len(theirs) == 2 * DRAWS
    for choices in (chosen, theirs):
        assert_even(Counter(name for name, _ in choices), [*SIGNED, *UNSIGNED])
        assert_even(Counter(level < 0 for name, level in choices if name in SIGNED), [False, True])
        same = sum(first[0] == second[0] for first, second in zip(choices[::2], choices[1::2], strict=True))
        assert 204 < same < 368  # a fourteenth of 4000, and 5 times its standard error


def test_trivial_augment_chooses_as_torchvisions(chosen):
    count = 3 * DRAWS
    for draws in uniform(2, policies.TRIVIAL_AUGMENT_DRAWS, count):
        policies.trivial_augment_wide(picture(), draws, fill=FILL)
    theirs = chosen_by_torchvision(v2.TrivialAugmentWide, count)
    assert set(chosen) == set(theirs)  # all 14 operations, 31 magnitudes and both signs
    assert len(chosen) == len(theirs) == count
    levels = {name: sorted({abs(level) for other, level in theirs if other == name}) for name in SIGNED}
    for choices in (chosen, theirs):
        assert_even(Counter(name for name, _ in choices), [*SIGNED, *UNSIGNED])
        assert_even(Counter(level < 0 for name, level in choices if name in SIGNED and level != 0), [False, True])
        assert_even(Counter(levels[name].index(abs(level)) for name, level in choices if name in SIGNED), range(31))


@pytest.mark.parametrize(
    ("draw", "order"), [(0.0, (0, 1, 2, 3)), (0.5, (2, 0, 1, 3)), (0.7, (2, 3, 0, 1)), (0.999, (3, 2, 1, 0))]
)
def test_color_jitter_equals_torchvisions_with_the_same_factors(draw, order):
    draws = np.array([draw, 0.25, 0.5, 0.875, 0.125])
    found = policies.color_jitter(picture(), draws, brightness=0.5, contrast=3.0, saturation=0.5, hue=0.25)
    parameters = {
        "fn_idx": torch.tensor(order),
        "brightness_factor": 0.75,
        "contrast_factor": 2.0,
        "saturation_factor": 1.375,
        "hue_factor": -0.1875,
    }
    expected = v2.ColorJitter(0.5, 3.0, 0.5, 0.25).transform(Image.fromarray(picture().transpose(1, 2, 0)), parameters)
    np.testing.assert_array_equal(found, np.asarray(expected).transpose(2, 0, 1))


def test_color_jitter_skips_changes_of_strength_0(monkeypatch):
    for name in ("brightness", "saturation", "hue"):
        monkeypatch.setattr(v2.functional, f"adjust_{name}", None)
    found = policies.color_jitter(picture(), np.full(5, 0.75), brightness=0.0, contrast=0.5, saturation=0.0, hue=0.0)
    expected = v2.functional.adjust_contrast(Image.fromarray(picture().transpose(1, 2, 0)), 1.25)
    np.testing.assert_array_equal(found, np.asarray(expected).transpose(2, 0, 1))


def test_color_jitters_factors_and_orders_are_distributed_as_torchvisions(monkeypatch):
    names = ["brightness", "contrast", "saturation", "hue"]
    strengths = dict(zip(names, (0.4, 1.5, 0.7, 0.1), strict=True))
    ours, orders, order = {name: [] for name in names}, [], []

    def recorder(name):
        def record(image, factor):
            ours[name].append(factor)
            order.append(names.index(name))
            return image

        return record

    for name in names:
        monkeypatch.setattr(v2.functional, f"adjust_{name}", recorder(name))
    for draws in uniform(3, policies.COLOR_JITTER_DRAWS):
        order.clear()
        policies.color_jitter(picture(), draws, **strengths)
        orders.append(tuple(order))
    drawn = of_torchvision(v2.ColorJitter(**strengths), SIZE, SIZE)
    theirs = {name: [parameters[f"{name}_factor"] for parameters in drawn] for name in names}
    assert far_apart(ours, theirs) == {}
    their_orders = Counter(tuple(parameters["fn_idx"].tolist()) for parameters in drawn)
    assert len(their_orders) == 24
    assert_even(their_orders, their_orders)
    assert_even(Counter(orders), their_orders)


def erased_box(draws, size, **arguments):
    """The rectangle that random_erasing erases (top, left, height, width), or None."""
    hidden = policies.random_erasing(np.zeros((3, size, size), np.uint8), draws, fill=(1, 2, 3), **arguments)
    np.testing.assert_array_equal(hidden, hidden[:1] * np.array([1, 2, 3], np.uint8)[:, None, None])
    rows, columns = np.flatnonzero(hidden[0].any(axis=1)), np.flatnonzero(hidden[0].any(axis=0))
    if len(rows) == 0:
        return None
    assert hidden[0].sum() == len(rows) * len(columns)
    return int(rows[0]), int(columns[0]), len(rows), len(columns)


def test_random_erasings_boxes_are_distributed_as_torchvisions():
    size = 48
    ours = [erased_box(draws, size, probability=1.0) for draws in uniform(4, policies.ERASING_DRAWS)]
    drawn = of_torchvision(v2.RandomErasing(p=1.0), size, size)
    theirs = [tuple(int(parameters[name]) for name in "ijhw") for parameters in drawn]
    assert None not in ours

    def parts(boxes):
        top, left, height, width = np.array(boxes).T
        return {
            "area": height * width,
            "ratio": np.log(height / width),
            "top": top / (size - height + 1),
            "left": left / (size - width + 1),
        }

    assert far_apart(parts(ours), parts(theirs)) == {}


def test_random_erasing_has_its_probability():
    draws = uniform(5, policies.ERASING_DRAWS)
    erased = [erased_box(row, 16, probability=0.25) is not None for row in draws]
    assert 863 < sum(erased) < 1137  # 1000, and 5 times sqrt(4000 x 0.25 x 0.75)
    assert not any(erased_box(row, 16, probability=0.0) for row in draws[:200])


def test_random_erasing_takes_the_first_box_that_is_smaller_than_the_image():
    draws = np.zeros(policies.ERASING_DRAWS)
    draws[1:3] = 0.999, 0.999
    draws[3:13], draws[13:23] = 0.9999, 0.9999  # 33% with a ratio of 3.3 is higher than the image
    assert erased_box(draws, 100, probability=1.0) is None
    draws[13:23] = 0.9645  # a ratio of 3.03: just as high
    assert erased_box(draws, 100, probability=1.0) is None
    draws[3 + 7], draws[13 + 7] = 0.0, 0.75  # 2%, and a ratio of 0.3 x 11^0.75 = 1.81
    draws[3 + 8], draws[13 + 8] = 0.5, 0.5
    assert erased_box(draws, 100, probability=1.0) == (81, 89, 19, 11)


VIEW_DRAWS = 23


def parts_of_crops(boxes, height, width):
    left, top, crop_width, crop_height = np.array(boxes).T
    return {
        "area": crop_width * crop_height,
        "ratio": np.log(crop_width / crop_height),
        "left": left / (width - crop_width + 1),
        "top": top / (height - crop_height + 1),
    }


@pytest.mark.parametrize(("height", "width", "smallest"), [(400, 533, 0.08), (300, 480, 0.35), (50, 40, 0.5)])
def test_random_views_are_distributed_as_torchvisions_random_resized_crop(height, width, smallest):
    views = [
        random_view(height, width, draws, smallest_fraction=smallest, flip=True) for draws in uniform(6, VIEW_DRAWS)
    ]
    drawn = of_torchvision(v2.RandomResizedCrop(8, scale=(smallest, 1.0)), height, width)
    theirs = [tuple(parameters[name] for name in ("left", "top", "width", "height")) for parameters in drawn]
    parts = [parts_of_crops(boxes, height, width) for boxes in ([view.box for view in views], theirs)]
    assert far_apart(*parts) == {}


@pytest.mark.parametrize(
    ("height", "width", "box"), [(30, 1000, (480, 0, 40, 30)), (1000, 30, (0, 480, 30, 40)), (7, 300, (145, 0, 9, 7))]
)
def test_random_views_of_long_images_fall_back_as_torchvisions(height, width, box):
    drawn = of_torchvision(v2.RandomResizedCrop(8), height, width)[:50]
    assert {tuple(parameters[name] for name in ("left", "top", "width", "height")) for parameters in drawn} == {box}
    found = {
        random_view(height, width, draws, smallest_fraction=0.08, flip=False).box
        for draws in uniform(7, VIEW_DRAWS, 50)
    }
    assert found == {box}


def test_a_random_view_is_the_whole_image_if_only_the_ten_attempts_did_not_fit():
    draws = np.full(VIEW_DRAWS, 0.9999)  # all of the area, 4 / 3 as wide as high
    assert random_view(120, 100, draws, smallest_fraction=0.08, flip=False).box == (0, 0, 100, 120)


def test_random_views_are_flipped_as_often_as_by_torchvision():
    ours = sum(
        random_view(40, 40, draws, smallest_fraction=0.08, flip=True).flipped for draws in uniform(8, VIEW_DRAWS)
    )
    image, flip = torch.tensor([[[0, 1]]]), v2.RandomHorizontalFlip()
    with seeded():
        theirs = sum(int(flip(image)[0, 0, 0]) for _ in range(DRAWS))
    for count in (ours, theirs):
        assert 1842 < count < 2158  # half of 4000, and 5 times its standard error
    never = [random_view(40, 40, draws, smallest_fraction=0.08, flip=False) for draws in uniform(8, VIEW_DRAWS, 100)]
    assert not any(view.flipped for view in never)


# Rows 9 and 10, columns 8 to 11, and the SHA-256 of the whole result.
GOLDEN = {
    "rand_augment": (
        [
            [[59, 153, 182, 71], [156, 185, 74, 164]],
            [[137, 95, 124, 153], [106, 135, 164, 121]],
            [[79, 173, 66, 94], [49, 78, 107, 64]],
        ],
        "608121aea17d0e649ecc2ba9b240170e4e39f046d96f31199d623967ae061ceb",
    ),
    "trivial_augment_wide": (
        [
            [[168, 219, 40, 201], [11, 172, 223, 44]],
            [[63, 125, 187, 129], [136, 78, 140, 202]],
            [[188, 31, 104, 57], [31, 214, 57, 130]],
        ],
        "ab0464ea597458963f14771f74282e3bf1e99e44998a856730c9fcf26da13895",
    ),
    "color_jitter": (
        [
            [[5, 135, 139, 19], [110, 142, 22, 124]],
            [[93, 47, 117, 108], [91, 123, 118, 105]],
            [[61, 134, 16, 75], [1, 34, 94, 16]],
        ],
        "15fa617248d157be604f131ebe10b1ecb49c257c820fb7d6bd0ff73f7955ef70",
    ),
    "random_erasing": (
        [
            [[15, 124, 124, 124], [176, 124, 124, 124]],
            [[151, 116, 116, 116], [93, 116, 116, 116]],
            [[57, 104, 104, 104], [10, 104, 104, 104]],
        ],
        "2e6a167552dcd935eaf1972ff3d67c80fd15d97ad0773bad67db8c075e3aa5ad",
    ),
}


def augmented(name):
    """A picture with less sharpness and contrast, rotated, jittered, or partly erased."""
    draws = uniform(9, 23, 1)[0]
    if name == "rand_augment":
        return policies.rand_augment(picture(), draws[:4], fill=FILL)
    if name == "trivial_augment_wide":
        return policies.trivial_augment_wide(picture(), draws[7:10], fill=FILL)
    if name == "color_jitter":
        return policies.color_jitter(picture(), draws[:5], brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    return policies.random_erasing(picture(), draws, probability=1.0, fill=FILL)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_pictures(name):
    found = augmented(name)
    corner, digest = GOLDEN[name]
    assert found[:, 9:11, 8:12].tolist() == corner
    assert hashlib.sha256(found.tobytes()).hexdigest() == digest


@pytest.mark.parametrize("name", GOLDEN)
def test_policies_are_functions_of_their_arguments_alone(name):
    before = picture()
    with seeded():
        state = torch.get_rng_state()
        first = augmented(name)
        torch.manual_seed(1)
        np.testing.assert_array_equal(augmented(name), first)
        torch.manual_seed(0)
        assert torch.equal(torch.get_rng_state(), state)
    flipped = picture()[:, :, ::-1]
    if name == "color_jitter":  # treats all places alike, however the image lies in memory
        draws = uniform(9, 23, 1)[0][:5]
        again = policies.color_jitter(flipped, draws, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
        np.testing.assert_array_equal(again, first[:, :, ::-1])
    np.testing.assert_array_equal(before, picture())


def test_torchvision_is_imported_only_when_a_policy_is_used():
    code = "import sys, ftrain.data.policies; print('torchvision' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"]
