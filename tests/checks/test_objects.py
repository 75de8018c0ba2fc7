"""Objects against a slow flood fill, and sizes by hand."""

import numpy as np
import pytest

from checks.objects import find_objects


def flooded(mask):
    """(value, area, bounding box) of every region whose pixels touch, corners included, one pixel after the other."""
    left, found = np.ones(mask.shape, bool), []
    for start in np.ndindex(mask.shape):
        if not left[start]:
            continue
        left[start], stack, pixels = False, [start], []
        while stack:
            y, x = stack.pop()
            pixels.append((y, x))
            for near in np.ndindex(3, 3):
                at = y + near[0] - 1, x + near[1] - 1
                inside = 0 <= at[0] < mask.shape[0] and 0 <= at[1] < mask.shape[1]
                if inside and left[at] and mask[at] == mask[start]:
                    left[at] = False
                    stack.append(at)
        sides = np.ptp(np.array(pixels), axis=0) + 1
        found.append((int(mask[start]), len(pixels), round(min(sides.min(), len(pixels) / sides.max()), 6)))
    return sorted(found)


@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (13, 1), (24, 31), (40, 23)])
@pytest.mark.parametrize("values", [1, 2, 5])
@pytest.mark.parametrize("block", [1, 3])
def test_objects_are_those_of_a_flood_fill(shape, values, block):
    rng = np.random.default_rng(sum(shape) + values)
    for _ in range(3):
        small = rng.integers(0, values, [-(-side // block) for side in shape], dtype=np.uint8)
        mask = small.repeat(block, 0).repeat(block, 1)[: shape[0], : shape[1]]
        found = find_objects(mask)
        rows = zip(found.value.tolist(), found.area.tolist(), found.thickness.round(6).tolist(), strict=True)
        assert sorted(rows) == flooded(mask)


def test_long_chains_are_one_object():
    """A spiral and a comb, whose numbers have the longest way to go."""
    comb = np.zeros((101, 201), np.uint8)
    comb[:, ::2] = 1
    comb[-1] = 1
    snake = np.zeros((101, 60), np.uint8)
    snake[::2] = 1
    snake[1::4, -1] = snake[3::4, 0] = 1
    for mask in (comb, comb[::-1], comb[:, ::-1].T, snake, snake[::-1]):
        assert (find_objects(np.ascontiguousarray(mask)).value == 1).sum() == 1


def test_thickness_by_hand():
    mask = np.zeros((40, 60), np.uint8)
    mask[5:35, 10:14] = 1  # a pole 4 wide
    for i in range(20):
        mask[10 + i, 30 + i : 33 + i] = 2  # a slanting bar, 3 wide: 60 pixels in a box of 20 by 22
    found = find_objects(mask)
    assert dict(zip(found.value.tolist(), found.thickness.round(3).tolist(), strict=True))[1] == 4
    assert found.thickness[found.value == 2].round(2).tolist() == [2.73]
