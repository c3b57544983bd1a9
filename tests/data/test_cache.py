"""The cache of decoded images: its pixels are right whoever builds it and however that ends."""

import errno
import json
import os
import subprocess
import sys

import attrs
import numpy as np
import platformdirs
import pytest
import torch
from PIL import Image

from ftrain.data import Augmentation, Images, from_arrays, load, scan
from ftrain.data.augment import example_draws
from ftrain.data.cache import (
    CacheFormat,
    CachePlan,
    Caching,
    ImageCache,
    build_cache,
    cache_folder,
    open_cache,
    plan_cache,
    room,
)
from ftrain.data.pixels import train_pixels, val_pixels
from ftrain.errors import DataError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    return tmp_path / "cache" / "decoded"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for split, count in (("train", 35), ("val", 3)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (60 + number % 7, 96, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.jpg", quality=90)
    return root


def images_of(folder, **changes):
    train = scan(folder / "train")
    val = scan(folder / "val", classes=train.classes)
    return Images(train=train, val=val, batch_size=8, eval_batch_size=4, image_size=24, **changes)


def finished(generator):
    events = []
    while True:
        try:
            events.append(next(generator))
        except StopIteration as end:
            return end.value, events


def with_caches(images, kind, workers=0):
    train, _ = finished(build_cache(images.train, images.train_cache_format, kind, workers=workers))
    val, _ = finished(build_cache(images.val, images.val_cache_format, kind, workers=workers))
    return attrs.evolve(images, train_cache=train, val_cache=val)


def batches(images, workers=0):
    jobs = images.train_jobs(0) + images.val_jobs() + images.train_jobs(1)
    return [batch.images.numpy().tobytes() for batch in load(images, jobs, workers=workers)]


def test_the_size_of_images_in_the_cache():
    assert CacheFormat(24, 1.0).size(60, 96) == (24, 24)
    assert CacheFormat(30, None).size(60, 96) == (30, 48)
    assert CacheFormat(30, None).size(96, 60) == (48, 30)
    assert CacheFormat(30, None).size(20, 96) == (20, 96)
    assert CacheFormat(30, None).size(1000, 1) == (1000, 1)
    small = images_of_nothing(Augmentation(crop_scale=0.25))
    assert (small.train_cache_format, small.val_cache_format) == (CacheFormat(48, None), CacheFormat(24, 0.875))
    whole = images_of_nothing(Augmentation())
    assert (whole.train_cache_format, whole.val_cache_format) == (CacheFormat(24, 1.0), CacheFormat(24, 1.0))


def test_the_fit_is_a_part_of_what_a_cache_stores(folder, cache):
    source = scan(folder / "val")
    forms = {
        images_of_nothing(Augmentation(crop_scale=0.25, fit=fit, fill=fill)).val_cache_format
        for fit in ("crop", "pad", "stretch")
        for fill in ((124, 116, 104), (0, 0, 0))
    }
    assert {(form.fit, form.bars) for form in forms} == {
        ("crop", None),
        ("pad", (124, 116, 104)),
        ("pad", (0, 0, 0)),
        ("stretch", None),
    }
    assert len({cache_folder(source, form) for form in forms}) == len(forms) == 4
    crops = images_of_nothing(Augmentation(crop_scale=0.25, fit="pad")).train_cache_format
    assert crops == CacheFormat(48, None)  # random crops are the same with every fit


def images_of_nothing(augmentation):
    return Images(train=None, val=None, batch_size=8, image_size=24, augmentation=augmentation)


def test_a_plan_tells_the_size_of_the_cache(folder):
    source = scan(folder / "train")
    *steps, planned = plan_cache(source, CacheFormat(30, None), workers=0)
    assert steps == [32, 64, 70]
    assert planned.places[0].tolist() == [0, 30, 48, 60, 96]
    assert planned.places[1].tolist() == [30 * 48 * 3, 30, 47, 61, 96]
    assert planned.bytes == int((planned.places[:, 1] * planned.places[:, 2]).sum()) * 3
    assert planned.bad_images == {}


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_without_crops_the_cached_pixels_are_those_of_the_files(folder, cache, fit, kind, workers):
    images = images_of(folder, augmentation=Augmentation(fit=fit))
    assert batches(with_caches(images, kind, workers), workers) == batches(images)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_evaluation_uses_the_pixels_of_the_files_even_if_training_crops(folder, cache, fit):
    images = images_of(folder, augmentation=Augmentation(crop_scale=0.3, fit=fit))
    cached = with_caches(images, "ram")
    for ours, theirs in zip(load(cached, images.val_jobs()), load(images, images.val_jobs()), strict=True):
        assert torch.equal(ours.images, theirs.images)


def test_crops_are_the_same_in_memory_and_on_disk_with_any_number_of_workers(folder, cache):
    images = images_of(folder, augmentation=Augmentation(crop_scale=0.3))
    expected = batches(with_caches(images, "ram"))
    assert batches(with_caches(images, "disk", workers=2), workers=2) == expected
    assert batches(with_caches(images, "ram", workers=2), workers=1) == expected


def test_crops_of_cached_images_resemble_crops_of_the_files(tmp_path, cache):
    # Smooth images, which hardly change when they are resized twice.
    for name, slope in (("a", 1.0), ("b", 2.0)):
        (tmp_path / "train" / name).mkdir(parents=True)
        y, x = np.mgrid[0:120, 0:200]
        pixels = np.stack([x * 255 / 200, y * 255 / 120, 127 + 100 * np.sin(slope * (x + y) / 40)], axis=-1)
        for number in range(4):
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "train" / name / f"{number}.png")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    images = images_of(tmp_path, augmentation=Augmentation(crop_scale=0.3))
    cached = with_caches(images, "disk")
    assert cached.train_cache.plan.places[0, 1:].tolist() == [44, 73, 120, 200]
    ours, theirs = (next(load(value, images.train_jobs(0))).images.double() for value in (cached, images))
    assert not torch.equal(ours, theirs)
    assert (ours - theirs).abs().mean() < 2.5


def test_a_cache_on_disk_is_built_once_and_found_again(folder, cache):
    source = scan(folder / "train")
    built, events = finished(build_cache(source, CacheFormat(30, None), "disk", workers=0))
    assert events[0] == Caching(0, 70, built.plan.bytes, str(cache_folder(source, CacheFormat(30, None))))
    assert [event.done for event in events] == [0, 32, 64, 70]
    found, events = finished(build_cache(source, CacheFormat(30, None), "disk", workers=0))
    assert events == []
    assert torch.equal(found.whole(5), built.whole(5))
    assert sorted(path.name for path in cache.iterdir()) == [cache_folder(source, CacheFormat(30, None)).name]


def test_the_name_of_a_cache_depends_on_the_images_and_the_format(folder, cache, tmp_path):
    source = scan(folder / "val")
    names = {
        cache_folder(source, form) for form in (CacheFormat(30, None), CacheFormat(31, None), CacheFormat(30, 1.0))
    }
    assert len(names) == 3
    assert cache_folder(scan(folder / "val"), CacheFormat(30, None)) in names
    later = attrs.evolve(source, modified=source.modified + 1)
    assert cache_folder(later, CacheFormat(30, None)) not in names


def test_a_damaged_cache_is_built_again(folder, cache):
    source, form = scan(folder / "val"), CacheFormat(24, 1.0)
    finished(build_cache(source, form, "disk", workers=0))
    place = cache_folder(source, form)
    whole = (place / "pixels.bin").read_bytes()
    for name, content in (("pixels.bin", whole[:-1]), ("store.json", b"{"), ("places.npy", b"")):
        (place / name).write_bytes(content)
        assert open_cache(place) is None
        again, events = finished(build_cache(source, form, "disk", workers=0))
        assert events
        assert (place / "pixels.bin").read_bytes() == whole
        assert isinstance(again, ImageCache)


def test_what_a_killed_builder_leaves_is_removed_by_the_next(folder, cache):
    code = (
        "import os, sys, platformdirs, pathlib\n"
        "platformdirs.user_cache_path = lambda _: pathlib.Path(sys.argv[2])\n"
        "from ftrain.data import scan\n"
        "from ftrain.data.cache import CacheFormat, build_cache\n"
        "for event in build_cache(scan(pathlib.Path(sys.argv[1])), CacheFormat(24, 1.0), 'disk', workers=0):\n"
        "    if event.done >= 32: os.kill(os.getpid(), 9)\n"
    )
    arguments = [sys.executable, "-c", code, str(folder / "train"), str(cache.parent)]
    assert subprocess.run(arguments, check=False).returncode == -9
    (left,) = cache.iterdir()
    assert left.name.startswith(".")
    images = images_of(folder)
    assert batches(with_caches(images, "disk")) == batches(images)
    assert not left.exists()


def test_two_builders_do_not_disturb_each_other_and_the_first_to_finish_wins(folder, cache):
    source, form = scan(folder / "train"), CacheFormat(24, 1.0)
    slow = build_cache(source, form, "disk", workers=0)
    next(slow)
    next(slow)
    quick, _ = finished(build_cache(source, form, "disk", workers=0))
    late, _ = finished(slow)
    assert late.path == quick.path
    assert [path.name for path in cache.iterdir()] == [cache_folder(source, form).name]


def test_a_full_disk_ends_the_build_and_leaves_nothing(folder, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device; 121\.0 kB are needed.*decoded"):
        finished(build_cache(scan(folder / "train"), CacheFormat(24, 1.0), "disk", workers=0))
    assert list(cache.iterdir()) == []


def test_too_little_memory_is_reported_before_the_build(folder, monkeypatch):
    monkeypatch.setattr(room, "free_shared_memory", lambda: 1000)
    with pytest.raises(DataError, match=r"`cache=ram` needs 121\.0 kB of shared memory, but only 1\.0 kB is free; use"):
        finished(build_cache(scan(folder / "train"), CacheFormat(24, 1.0), "ram", workers=0))


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_bad_image_is_known_by_its_position(folder, cache, tmp_path, kind):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "broken" / split / name).mkdir(parents=True)
            for number in range(5):
                data = (folder / "train" / name / f"{number}.jpg").read_bytes()
                (tmp_path / "broken" / split / name / f"{number}.jpg").write_bytes(data)
    cut = tmp_path / "broken" / "train" / "a" / "3.jpg"
    cut.write_bytes(cut.read_bytes()[:1500])  # the header is whole
    text = tmp_path / "broken" / "train" / "b" / "1.jpg"
    text.write_text("a text")
    images = images_of(tmp_path / "broken", skip_bad_images=True)
    cached = with_caches(images, kind)
    if kind == "disk":
        cached = with_caches(images, kind)  # from the cache that is on disk now
    causes = cached.train_cache.plan.bad_images
    assert sorted(causes) == [3, 6]
    assert causes[3].startswith(f"cannot read the image {cut}: ")
    assert causes[6].startswith(f"cannot read the image {text}: ")
    ours, theirs = next(load(cached, images.train_jobs(0))), next(load(images, images.train_jobs(0)))
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.weights, theirs.weights)
    assert sorted(ours.skipped) == sorted(theirs.skipped) == sorted({3, 6} & set(ours.indices.tolist()))


def test_a_crop_stays_inside_the_cached_image():
    places = np.array([[0, 2, 3, 200, 300]])
    memory = torch.arange(18, dtype=torch.uint8)
    one = ImageCache(CachePlan(places, {}), CacheFormat(2, None), None, memory)
    assert one.crop(0, (0.0, 0.0, 300.0, 200.0), 2).shape == (3, 2, 2)
    assert one.crop(0, (299.0, 199.0, 1.0, 1.0), 1).flatten().tolist() == [15, 16, 17]
    assert one.crop(0, (0.0, 0.0, 100.0, 100.0), 1).flatten().tolist() == [0, 1, 2]


def test_caches_of_another_interpolation_are_other_caches(folder, cache):
    source = scan(folder / "val")
    plain, bicubic = CacheFormat(24, 1.0), CacheFormat(24, 1.0, interpolation="bicubic")
    assert cache_folder(source, plain) != cache_folder(source, bicubic)
    for form in (plain, bicubic, CacheFormat(30, None, interpolation="bicubic")):
        built, _ = finished(build_cache(source, form, "disk", workers=0))
        found = open_cache(cache_folder(source, form))
        assert built.form == found.form == form
        assert torch.equal(built.whole(0), found.whole(0))
    images = [finished(build_cache(source, form, "disk", workers=0))[0].whole(0) for form in (plain, bicubic)]
    assert not torch.equal(*images)


@pytest.mark.parametrize("crop_scale", [0.3, 1.0])
def test_what_a_bicubic_cache_gives_is_what_the_files_give(folder, crop_scale):
    augmentation = Augmentation(crop_scale=crop_scale, interpolation="bicubic", centre_fraction=0.9)
    images = images_of(folder, augmentation=augmentation)
    assert images.val_cache_format == CacheFormat(images.image_size, 0.9, interpolation="bicubic")
    assert images.train_cache_format.interpolation == "bicubic"
    cached = with_caches(images, "ram")
    for position in range(len(images.val)):
        assert torch.equal(val_pixels(cached, position), val_pixels(images, position))
    bilinear = attrs.evolve(images, augmentation=attrs.evolve(augmentation, interpolation="bilinear"))
    draws = example_draws(0, 0, np.arange(4), count=augmentation.draws)
    for position in range(4):
        fresh = train_pixels(images, position, draws[position])
        assert not torch.equal(fresh, train_pixels(bilinear, position, draws[position]))
        if crop_scale == 1.0:
            assert torch.equal(train_pixels(cached, position, draws[position]), fresh)


def test_the_folder_and_the_files_are_those_of_earlier_versions(folder, cache, monkeypatch):
    """An existing cache must be found: the facts behind its name, and the content of store.json."""
    monkeypatch.setattr("PIL.__version__", "11.0.0")
    monkeypatch.setattr("torch.__version__", "2.11.0")
    pixels = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    source = from_arrays(pixels, [0, 1])
    assert source.fingerprint == "a03de20e0776457cc266b4b79e3d63d4f06301c7c1cbbfeda9f3bf01fc87339d"
    place = cache_folder(source, CacheFormat(2, 1.0))
    assert place.name == "206ce0fce339a37754a00acd"
    finished(build_cache(source, CacheFormat(2, 1.0), "disk", workers=0))
    assert json.loads((place / "store.json").read_text()) == {
        "format": 2,
        "form": [2, 1.0],
        "bytes": 24,
        "unreadable": {},
    }
    assert np.load(place / "places.npy").tolist() == [[0, 2, 2, 4, 4], [12, 2, 2, 4, 4]]
    assert (place / "pixels.bin").stat().st_size == 24
