"""Prints of pictures against literals and loops."""

import numpy as np
from factories.broken_datasets import draw_scene
from PIL import Image

from checks.duplicates import best_matches, difference_hash, mirrored, normalized_thumbnails, thumbnail


def test_difference_hash_of_a_ramp():
    ramp = Image.fromarray(np.tile(np.arange(0, 180, 20, dtype=np.uint8), (8, 1)))
    assert difference_hash(ramp) == 2**64 - 1
    assert difference_hash(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
    one = np.zeros((8, 9), np.uint8)
    one[0, 1] = 1  # the first cell is darker than the second
    assert difference_hash(Image.fromarray(one)) == 2**63


def prints(pictures):
    pictures = [picture.convert("L") for picture in pictures]
    hashes = np.array([difference_hash(picture) for picture in pictures], np.uint64)
    return hashes, normalized_thumbnails([thumbnail(picture) for picture in pictures])


def test_mirrored_is_the_print_of_the_mirror_image():
    pictures = [draw_scene(seed)[0] for seed in range(5)]
    hashes, thumbnails = mirrored(*prints(pictures))
    expected = prints([picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures])
    assert max(np.bitwise_count(hashes ^ expected[0])) <= 1  # sums are rounded otherwise
    np.testing.assert_allclose(thumbnails, expected[1], atol=0.01)


def test_best_matches_against_loops(monkeypatch):
    monkeypatch.setattr("checks.duplicates.BLOCK", 3)
    pictures = [draw_scene(seed)[0] for seed in (0, 1, 2, 0, 3, 1, 0)]
    pictures[3] = pictures[3].resize((50, 40)).resize((64, 48))
    hashes, thumbnails = prints(pictures)
    assert best_matches(hashes, thumbnails, hashes, thumbnails, earlier=True)[:6].tolist() == [-1, -1, -1, 0, -1, 1]
    others = prints([draw_scene(seed)[0] for seed in (9, 1, 3)])
    assert best_matches(hashes, thumbnails, *others).tolist() == [-1, 1, -1, -1, 2, 1, -1]


def test_pictures_without_contrast_match_nothing():
    flat = prints([Image.new("RGB", (64, 48), color) for color in ("black", "black", "gray")])
    assert best_matches(*flat, *flat, earlier=True).tolist() == [-1, -1, -1]


def test_different_scenes_are_no_duplicates():
    found = prints([draw_scene(seed)[0] for seed in range(300)])
    assert best_matches(*found, *found, earlier=True).max() == -1
