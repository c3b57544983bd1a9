"""Decoded images that are kept: the same pixels where that is promised, whoever builds the store, however it ends."""

import errno
import os
import subprocess
import sys

import attrs
import numpy as np
import platformdirs
import pytest
import torch
from PIL import Image

from ftrain.data import Augmentation, Images, scan
from ftrain.data import batches as load
from ftrain.data import cache as store
from ftrain.data.cache import Caching, Form, Plan, Store, keep, open_store, plan, store_folder
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


def with_stores(images, kind, workers=0):
    train, _ = finished(keep(images.train, images.train_form, kind, workers=workers))
    val, _ = finished(keep(images.val, images.val_form, kind, workers=workers))
    return attrs.evolve(images, train_store=train, val_store=val)


def batches(images, workers=0):
    jobs = images.train_jobs(0) + images.val_jobs() + images.train_jobs(1)
    return [batch.images.numpy().tobytes() for batch in load(images, jobs, workers=workers)]


def test_the_size_of_what_is_kept():
    assert Form(24, 1.0).size(60, 96) == (24, 24)
    assert Form(30, None).size(60, 96) == (30, 48)
    assert Form(30, None).size(96, 60) == (48, 30)
    assert Form(30, None).size(20, 96) == (20, 96)
    assert Form(30, None).size(1000, 1) == (1000, 1)
    small = images_of_nothing(Augmentation(crop_scale=0.25))
    assert (small.train_form, small.val_form) == (Form(48, None), Form(24, 0.875))
    whole = images_of_nothing(Augmentation())
    assert (whole.train_form, whole.val_form) == (Form(24, 1.0), Form(24, 1.0))


def images_of_nothing(augmentation):
    return Images(train=None, val=None, batch_size=8, image_size=24, augmentation=augmentation)


def test_a_plan_says_how_large_a_store_gets(folder):
    source = scan(folder / "train")
    *steps, planned = plan(source, Form(30, None), workers=0)
    assert steps == [32, 64, 70]
    assert planned.places[0].tolist() == [0, 30, 48, 60, 96]
    assert planned.places[1].tolist() == [30 * 48 * 3, 30, 47, 61, 96]
    assert planned.bytes == int((planned.places[:, 1] * planned.places[:, 2]).sum()) * 3
    assert planned.unreadable == {}


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_where_epochs_show_whole_squares_kept_pixels_are_those_of_the_files(folder, cache, kind, workers):
    images = images_of(folder)
    assert batches(with_stores(images, kind, workers), workers) == batches(images)


def test_evaluation_shows_the_pixels_of_the_files_also_where_training_crops(folder, cache):
    images = images_of(folder, augmentation=Augmentation(crop_scale=0.3))
    kept = with_stores(images, "ram")
    for ours, theirs in zip(load(kept, images.val_jobs()), load(images, images.val_jobs()), strict=True):
        assert torch.equal(ours.images, theirs.images)


def test_crops_of_kept_images_are_the_same_in_memory_and_on_disk_with_any_workers(folder, cache):
    images = images_of(folder, augmentation=Augmentation(crop_scale=0.3))
    expected = batches(with_stores(images, "ram"))
    assert batches(with_stores(images, "disk", workers=2), workers=2) == expected
    assert batches(with_stores(images, "ram", workers=2), workers=1) == expected


def test_crops_of_kept_images_look_like_crops_of_the_files(tmp_path, cache):
    # Smooth pictures, of which resizing twice changes little.
    for name, slope in (("a", 1.0), ("b", 2.0)):
        (tmp_path / "train" / name).mkdir(parents=True)
        y, x = np.mgrid[0:120, 0:200]
        pixels = np.stack([x * 255 / 200, y * 255 / 120, 127 + 100 * np.sin(slope * (x + y) / 40)], axis=-1)
        for number in range(4):
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "train" / name / f"{number}.png")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    images = images_of(tmp_path, augmentation=Augmentation(crop_scale=0.3))
    kept = with_stores(images, "disk")
    assert kept.train_store.plan.places[0, 1:].tolist() == [44, 73, 120, 200]
    ours, theirs = (next(load(value, images.train_jobs(0))).images.double() for value in (kept, images))
    assert not torch.equal(ours, theirs)
    assert (ours - theirs).abs().mean() < 2.5


def test_a_store_on_disk_is_built_once_and_found_again(folder, cache):
    source = scan(folder / "train")
    built, events = finished(keep(source, Form(30, None), "disk", workers=0))
    assert events[0] == Caching(0, 70, built.plan.bytes, str(store_folder(source, Form(30, None))))
    assert [event.done for event in events] == [0, 32, 64, 70]
    found, events = finished(keep(source, Form(30, None), "disk", workers=0))
    assert events == []
    assert torch.equal(found.whole(5), built.whole(5))
    assert sorted(path.name for path in cache.iterdir()) == [store_folder(source, Form(30, None)).name]


def test_the_name_of_a_store_follows_from_the_images_and_what_is_kept(folder, cache, tmp_path):
    source = scan(folder / "val")
    names = {store_folder(source, form) for form in (Form(30, None), Form(31, None), Form(30, 1.0))}
    assert len(names) == 3
    assert store_folder(scan(folder / "val"), Form(30, None)) in names
    later = attrs.evolve(source, modified=source.modified + 1)
    assert store_folder(later, Form(30, None)) not in names


def test_a_store_that_was_cut_off_is_built_anew(folder, cache):
    source, form = scan(folder / "val"), Form(24, 1.0)
    finished(keep(source, form, "disk", workers=0))
    place = store_folder(source, form)
    whole = (place / "pixels.bin").read_bytes()
    for name, content in (("pixels.bin", whole[:-1]), ("store.json", b"{"), ("places.npy", b"")):
        (place / name).write_bytes(content)
        assert open_store(place) is None
        again, events = finished(keep(source, form, "disk", workers=0))
        assert events
        assert (place / "pixels.bin").read_bytes() == whole
        assert isinstance(again, Store)


def test_a_builder_that_is_killed_leaves_nothing_that_the_next_one_keeps(folder, cache):
    code = (
        "import os, sys, platformdirs, pathlib\n"
        "platformdirs.user_cache_path = lambda _: pathlib.Path(sys.argv[2])\n"
        "from ftrain.data import scan\n"
        "from ftrain.data.cache import Form, keep\n"
        "for event in keep(scan(pathlib.Path(sys.argv[1])), Form(24, 1.0), 'disk', workers=0):\n"
        "    if event.done >= 32: os.kill(os.getpid(), 9)\n"
    )
    arguments = [sys.executable, "-c", code, str(folder / "train"), str(cache.parent)]
    assert subprocess.run(arguments, check=False).returncode == -9
    (left,) = cache.iterdir()
    assert left.name.startswith(".")
    images = images_of(folder)
    assert batches(with_stores(images, "disk")) == batches(images)
    assert not left.exists()


def test_a_builder_that_lives_is_left_alone_and_the_first_to_finish_wins(folder, cache):
    source, form = scan(folder / "train"), Form(24, 1.0)
    slow = keep(source, form, "disk", workers=0)
    next(slow)
    next(slow)
    quick, _ = finished(keep(source, form, "disk", workers=0))
    late, _ = finished(slow)
    assert late.path == quick.path
    assert [path.name for path in cache.iterdir()] == [store_folder(source, form).name]


def test_a_full_disk_ends_the_build_and_leaves_nothing(folder, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device; 121\.0 kB are needed.*decoded"):
        finished(keep(scan(folder / "train"), Form(24, 1.0), "disk", workers=0))
    assert list(cache.iterdir()) == []


def test_memory_that_does_not_suffice_is_said_beforehand(folder, monkeypatch):
    monkeypatch.setattr(store, "free_memory", lambda: 1000)
    with pytest.raises(DataError, match=r"--cache ram needs 121\.0 kB of shared memory, and 1\.0 kB are free; use"):
        finished(keep(scan(folder / "train"), Form(24, 1.0), "ram", workers=0))


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_an_unreadable_image_is_known_by_its_position(folder, cache, tmp_path, kind):
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
    images = images_of(tmp_path / "broken", skip_unreadable=True)
    kept = with_stores(images, kind)
    if kind == "disk":
        kept = with_stores(images, kind)  # as it is found again
    causes = kept.train_store.plan.unreadable
    assert sorted(causes) == [3, 6]
    assert causes[3].startswith(f"cannot read the image {cut}: ")
    assert causes[6].startswith(f"cannot read the image {text}: ")
    ours, theirs = next(load(kept, images.train_jobs(0))), next(load(images, images.train_jobs(0)))
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.weights, theirs.weights)
    assert sorted(ours.left_out) == sorted(theirs.left_out) == sorted({3, 6} & set(ours.indices.tolist()))


def test_places_outside_of_the_box_are_never_read():
    places = np.array([[0, 2, 3, 200, 300]])
    memory = torch.arange(18, dtype=torch.uint8)
    one = Store(Plan(places, {}), Form(2, None), None, memory)
    assert one.crop(0, (0.0, 0.0, 300.0, 200.0), 2).shape == (3, 2, 2)
    assert one.crop(0, (299.0, 199.0, 1.0, 1.0), 1).flatten().tolist() == [15, 16, 17]
    assert one.crop(0, (0.0, 0.0, 100.0, 100.0), 1).flatten().tolist() == [0, 1, 2]
