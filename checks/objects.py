"""Connected objects in a mask: how large, and how thin."""

from typing import NamedTuple

import numpy as np


class Objects(NamedTuple):
    """One entry an object: regions of one value whose pixels touch, corners included.

    Attributes:
        value: in the mask.
        area: pixels.
        thickness: pixels of the shorter side of its box, or its mean width where that is less, as of a slanting pole.
    """

    value: np.ndarray
    area: np.ndarray
    thickness: np.ndarray


def find_objects(mask: np.ndarray) -> Objects:
    """All objects of a mask, integers (H, W).

    Found by the runs of equal values in its rows: two runs in neighbouring rows that touch are one object, and numbers
    of runs sink to the lowest of their object (hooking and pointer jumping: Shiloach and Vishkin, An O(log n) parallel
    connectivity algorithm, 1982). Needs a few arrays of the length of the runs, and no picture of numbers.
    """
    height, width = mask.shape
    begins = np.ones(mask.shape, bool)
    begins[:, 1:] = mask[:, 1:] != mask[:, :-1]
    start = np.flatnonzero(begins)
    stop = np.append(start[1:], mask.size)  # each row begins a run
    row, left = np.divmod(start, width)
    right = (stop - 1) % width
    value = mask.reshape(-1)[start]

    # The runs in the row below that each run touches, corners included, are neighbours of each other.
    below = np.flatnonzero(row < height - 1)
    begin_of_row = (row[below] + 1) * width
    first = np.searchsorted(start, begin_of_row + np.maximum(left[below] - 1, 0), "right") - 1
    last = np.searchsorted(start, begin_of_row + np.minimum(right[below] + 1, width - 1), "right") - 1
    count = last - first + 1
    upper = np.repeat(below, count)
    lower = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(count.sum())
    same = value[upper] == value[lower]
    upper, lower = upper[same], lower[same]

    number = np.arange(len(start))
    while True:
        before = number.copy()
        lowest = np.minimum(number[upper], number[lower])
        for ends in (upper, lower):
            # Of a run and of the run that it is numbered by, so that whole trees sink.
            np.minimum.at(number, before[ends], lowest)
            np.minimum.at(number, ends, lowest)
        number = number[number]
        if (number == before).all():
            break

    roots, number = np.unique(number, return_inverse=True)
    area = np.bincount(number, weights=stop - start).astype(np.int64)
    box = [np.full(len(roots), fill) for fill in (mask.size, -1, mask.size, -1)]
    for side, ends, function in zip(box, (row, row, left, right), (np.minimum, np.maximum) * 2, strict=True):
        function.at(side, number, ends)
    sides = np.stack([box[1] - box[0], box[3] - box[2]]) + 1
    return Objects(value[roots], area, np.minimum(sides.min(axis=0), area / sides.max(axis=0)))
