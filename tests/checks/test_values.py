"""What the values in masks tell: runs between areas against loops, pixels by class."""

import itertools

import numpy as np
import pytest
from factories.broken_datasets import make_clean, mask_of
from factories.datasets import load_splits
from PIL import Image

from checks.scan import scan
from checks.values import count_class_pixels, transitions
from data.classes import ClassMap


@pytest.mark.parametrize(
    "row, expected",
    [
        ("00033333", (1, 0, {})),  # two areas, as drawn
        ("00012333", (1, 1, {1: 1, 2: 1})),
        ("33321000", (1, 1, {1: 1, 2: 1})),
        ("00011222", (1, 1, {1: 1})),
        ("00053333", (1, 0, {})),  # a thin thing that is not in between
        ("00015333", (1, 0, {})),  # nor is all of this
        ("00011111", (0, 0, {})),  # there is nothing between 0 and 1
        ("00012222000", (2, 1, {1: 1})),
        ("01230123", (0, 0, {})),  # no areas
        ("0001232323232333", (0, 0, {})),  # too far apart
    ],
)
def test_transitions_of_a_row(row, expected):
    row = np.array([[int(value) for value in row]], np.uint8)
    assert transitions(row) == transitions(row.T) == expected


def slow_transitions(mask):
    crossings, ramps, values = 0, 0, {}
    for row in [*mask.tolist(), *mask.T.tolist()]:
        runs = [(value, len(list(run))) for value, run in itertools.groupby(row)]
        areas = [i for i, (_, length) in enumerate(runs) if length >= 3]
        for left, right in itertools.pairwise(areas):
            between = runs[left + 1 : right]
            ends = sorted((runs[left][0], runs[right][0]))
            if sum(length for _, length in between) > 8 or ends[1] - ends[0] < 2:
                continue
            crossings += 1
            if between and all(ends[0] < value < ends[1] for value, _ in between):
                ramps += 1
                for value, _ in between:
                    values[value] = values.get(value, 0) + 1
    return crossings, ramps, values


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_transitions_against_loops(dtype):
    rng = np.random.default_rng(0)
    for _ in range(20):
        coarse = rng.integers(0, 7, (5, 6))
        mask = coarse.repeat(rng.integers(1, 6, 5), axis=0).repeat(rng.integers(1, 6, 6), axis=1).astype(dtype)
        noisy = np.where(rng.random(mask.shape) < 0.05, rng.integers(0, 7, mask.shape), mask).astype(dtype)
        assert transitions(noisy) == slow_transitions(noisy)


def test_class_pixels_under_reduction(tmp_path):
    root = make_clean(tmp_path)
    class_map = ClassMap({0: "disc", 1: "box", 2: "bar"}, do_reduce_labels=True)
    counts = count_class_pixels(scan(load_splits(root), class_map), class_map)
    masks = np.stack([np.asarray(Image.open(mask_of(root, i))) for i in range(8)])
    assert counts["train"].tolist() == [int((masks == value).sum()) for value in (1, 2, 3)]
