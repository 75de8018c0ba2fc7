"""Prints of pictures against literals and loops."""

import numpy as np
import pytest
from factories.broken_datasets import draw_scene
from PIL import Image

from checks import duplicates
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


@pytest.mark.parametrize("count", [1, 2, 700])
@pytest.mark.parametrize("earlier", [True, False])
def test_pictures_are_compared_in_cells_as_if_with_all(count, earlier, monkeypatch):
    """Smooth pictures and copies of some of them with a little noise, against the comparison of all with all."""
    monkeypatch.setattr(duplicates, "BLOCK", 50)  # several blocks to a cell

    def pictures(seed):
        rng = np.random.default_rng(seed)
        small = rng.integers(0, 256, (count, 3, 3), dtype=np.uint8)
        found = [np.asarray(Image.fromarray(one).resize((16, 16), Image.Resampling.BICUBIC)) for one in small]
        for target, source in rng.integers(0, count, (count // 2, 2)).tolist():
            found[target] = (found[source] + rng.normal(0, rng.choice([1, 8]), (16, 16))).clip(0, 255).astype(np.uint8)
        found[0] = np.full((16, 16), 7, np.uint8)  # flat
        grays = [Image.fromarray(one) for one in found]
        hashes = np.array([difference_hash(gray) for gray in grays], np.uint64)
        return hashes, normalized_thumbnails([one.tobytes() for one in found])

    one = pictures(0)
    known = one if earlier else tuple(np.concatenate(pair) for pair in zip(pictures(1), one, strict=True))
    allowed = np.bitwise_count(one[0][:, None] ^ known[0][None]) <= duplicates.MAX_HASH_DISTANCE
    if earlier:
        allowed &= np.tri(count, k=-1, dtype=bool)
    correlation = np.where(allowed, one[1] @ known[1].T, -1)
    highest = correlation.max(axis=1)
    found = best_matches(*one, *known, earlier=earlier)
    is_clear = np.abs(highest - duplicates.MIN_CORRELATION) > 1e-5
    assert ((found >= 0) == (highest >= duplicates.MIN_CORRELATION))[is_clear].all()
    matched = np.flatnonzero(found >= 0)
    np.testing.assert_allclose(correlation[matched, found[matched]], highest[matched], atol=1e-5)
    assert count < 3 or len(matched) > 100
