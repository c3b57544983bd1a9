"""Near-duplicates."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from PIL import Image, ImageEnhance

from ftrain.data import scan, similar
from ftrain.data.similar import difference_hashes, grouped, near_duplicates
from ftrain.run.locate import to_end


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    return tmp_path / "cache"


def scene(seed: int) -> Image.Image:
    """Something like a photograph: large soft shapes."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((280, 240), Image.Resampling.BICUBIC)


def test_a_difference_hash_written_out() -> None:
    thumbnail = np.zeros((1, 8, 9, 3), np.uint8)
    thumbnail[0, 0] = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1])[:, None]  # each pixel is brighter than the next: 11111111
    thumbnail[0, 1, ::2] = 200  # every other one is: 10101010
    thumbnail[0, 7, 0] = 1  # the first one is: 10000000
    [value] = difference_hashes(thumbnail)
    assert value.tobytes().hex() == "ffaa000000000080"
    red_and_blue = np.zeros((1, 8, 9, 3), np.uint8)
    red_and_blue[..., ::2, 0], red_and_blue[..., 1::2, 2] = 255, 255  # 255 of red are brighter than 255 of blue
    assert difference_hashes(red_and_blue)[0].tobytes().hex() == "aa" * 8


def test_copies_are_found_and_other_images_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    (tmp_path / "images" / "b").mkdir()
    scene(0).save(folder / "0.png")
    scene(0).save(folder / "1 compressed.jpg", quality=40)
    scene(0).resize((100, 86)).save(folder / "2 smaller.png")
    scene(0).resize((500, 240)).save(folder / "3 stretched.webp")
    ImageEnhance.Brightness(scene(0)).enhance(1.1).save(folder / "4 brighter.png")
    scene(0).crop((3, 2, 277, 238)).save(folder / "5 cropped.png")
    scene(1).save(folder / "6 other.png")
    scene(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "7 flipped.png")
    scene(0).save(tmp_path / "images" / "b" / "8 of another class.png")
    (tmp_path / "images" / "b" / "9 broken.png").write_bytes(b"nothing")
    (tmp_path / "images" / "b" / "9 broken too.png").write_bytes(b"nothing")
    assert to_end(near_duplicates(scan(tmp_path / "images"))).tolist() == [0, 0, 0, 0, 0, 0, 6, 7, 0, 9, 10]


def test_images_without_contrast_are_alike_only_in_the_same_colour() -> None:
    colours = [(200, 0, 0), (203, 0, 0), (190, 0, 0), (0, 0, 200), (200, 0, 0)]
    flat = np.broadcast_to(np.array(colours, np.uint8)[:, None, None], (5, 8, 9, 3))
    assert grouped(flat).tolist() == [0, 0, 2, 3, 0]


def test_what_looks_like_a_copy_of_a_copy_is_in_the_group() -> None:
    steps = [np.asarray(ImageEnhance.Brightness(scene(3)).enhance(1 - 0.1 * n).resize((9, 8))) for n in range(4)]
    assert grouped(np.stack([steps[0], steps[3]])).tolist() == [0, 1]
    assert grouped(np.stack([steps[3], steps[1], steps[0], steps[2]])).tolist() == [0, 0, 0, 0]


def test_no_pair_of_hashes_is_missed() -> None:
    noise = np.random.default_rng(0)
    hashes = noise.integers(0, 1 << 63, 40, dtype=np.uint64)
    near = hashes[:20].copy()
    for position, bits in enumerate(itertools.islice(itertools.cycle(range(7)), 20)):
        for bit in noise.choice(64, bits, replace=False).tolist():
            near[position] ^= np.uint64(1) << np.uint64(bit)
    every = np.concatenate([hashes, near])
    expected = {
        (i, j)
        for i, j in itertools.combinations(range(60), 2)
        if int(every[i] ^ every[j]).bit_count() <= similar.MAX_BITS
    }
    assert len(expected) >= 14
    found = {
        (int(min(pair)), int(max(pair)))
        for bucket in similar._buckets(every)
        for pair in itertools.combinations(bucket.tolist(), 2)
    }
    assert expected <= found
    differences = every[:20] ^ every[40:]
    assert similar._differing_bits(differences).tolist() == [int(each).bit_count() for each in differences]


def test_the_result_is_remembered_until_a_file_changes(tmp_path: Path, cache: Path) -> None:
    for name, seed in (("a/1", 1), ("a/2", 1), ("b/1", 2)):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(seed).save(path)
    assert [event[:3] for event in near_duplicates(scan(tmp_path / "images"))] == [
        ("comparing images", 0, 3),
        ("comparing images", 3, 3),
    ]
    assert list(near_duplicates(scan(tmp_path / "images"))) == []
    assert to_end(near_duplicates(scan(tmp_path / "images"))).tolist() == [0, 0, 2]
    scene(7).save(tmp_path / "images" / "a" / "2.png")
    assert to_end(near_duplicates(scan(tmp_path / "images"))).tolist() == [0, 1, 2]
    [first, second] = cache.rglob("*.npy")
    for path in (first, second):
        path.write_bytes(b"damaged")
    assert to_end(near_duplicates(scan(tmp_path / "images"))).tolist() == [0, 1, 2]
