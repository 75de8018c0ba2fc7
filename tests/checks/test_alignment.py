"""Shifts and flips of masks against their images are measured."""

import numpy as np
import pytest
from factories.broken_datasets import draw_scene
from PIL import Image

from checks.alignment import alignment


@pytest.mark.parametrize("size", [(64, 48), (400, 300)])
@pytest.mark.parametrize("dx, dy", [(0, 0), (5, 3), (-4, 0), (0, -4)])
def test_alignment_finds_the_shift_back(size, dx, dy):
    scale = size[0] // 64
    picture, mask = draw_scene(5, size)
    moved = np.roll(np.asarray(mask), (dy * scale, dx * scale), (0, 1))
    found = alignment(picture.convert("L"), moved)
    x, y, score, unmoved = found[0]
    assert (x * size[0], y * size[1]) == pytest.approx((-dx * scale, -dy * scale), abs=1.1 * max(1, size[0] / 192))
    assert score > 0.3 and (unmoved < 0.7 * score if dx or dy else unmoved == pytest.approx(score))
    assert all(other[3] < 0.7 * score for other in found[1:])


@pytest.mark.parametrize("flip, place", [(np.fliplr, 1), (np.flipud, 2), (lambda m: m[::-1, ::-1], 3)])
def test_alignment_finds_flips(flip, place):
    picture, mask = draw_scene(4)
    found = alignment(picture.convert("L"), flip(np.asarray(mask)))
    unmoved = [score for *_, score in found]
    assert int(np.argmax(unmoved)) == place
    assert unmoved[place] == pytest.approx(alignment(picture.convert("L"), np.asarray(mask))[0][3])


def test_nothing_to_align():
    picture, mask = draw_scene(4)
    assert alignment(picture.convert("L"), np.zeros((48, 64), np.uint8)) == ()
    assert alignment(Image.new("L", picture.size), np.asarray(mask)) == ()
    assert alignment(Image.new("L", (15, 40)), np.zeros((40, 15), np.uint8)) == ()
