"""What errors cost, against the mean IoU of a matrix in which they are put right; and kinds of images."""

import numpy as np
import pytest

from metrics_utils import per_image_counts, score_images
from reports.breakdown import confusions, costs, gains, slices
from reports.intervals import PerImage, bootstrap_interval, class_intervals


def mean_iou(matrix):
    return score_images(per_image_counts(matrix[None]))


@pytest.mark.parametrize("seed", range(6))
def test_costs_and_gains_are_those_of_the_mended_matrix(seed):
    rng = np.random.default_rng(seed)
    matrix = rng.integers(0, 50, (5, 5)) * (rng.random((5, 5)) < 0.6)
    if seed % 2:
        matrix[3] = 0  # a class that is only predicted
    if seed == 4:
        matrix[:, 2] = matrix[2] = 0  # and one that does not occur
    cost, gained = costs(matrix), gains(matrix)
    for a in range(5):
        for b in range(5):
            mended = matrix.copy()
            if a != b:
                mended[a, a] += mended[a, b]
                mended[a, b] = 0
            assert cost[a, b] == pytest.approx(mean_iou(mended) - mean_iou(matrix), abs=1e-12)
        mended = matrix.copy()
        others = np.arange(5) != a
        mended[a, a] += mended[a, others].sum()
        mended[others, others] += mended[others, a]
        mended[a, others] = mended[others, a] = 0
        if matrix[a].sum() + matrix[:, a].sum() == 0:
            assert np.isnan(gained[a])
        else:
            assert gained[a] == pytest.approx(mean_iou(mended) - mean_iou(matrix), abs=1e-12)


def test_confusions_in_the_order_of_their_cost():
    matrix = np.array([[90, 10, 0], [0, 900, 100], [0, 0, 5]])
    first, second = confusions(matrix)
    assert (first.truth, first.predicted, first.pixels, first.share) == (1, 2, 100, 0.1)
    assert (second.truth, second.predicted) == (0, 1) and first.gain > second.gain > 0
    assert confusions(np.diag([1, 2, 3])) == []


def test_intervals_of_classes_are_those_of_each_alone():
    rng = np.random.default_rng(0)
    counts = per_image_counts(rng.integers(0, 9, (12, 3, 3)))
    intervals = class_intervals(counts, resamples=200, seed=3)
    for i in range(3):
        assert tuple(intervals[i]) == bootstrap_interval(counts[..., i : i + 1], resamples=200, seed=3)


def images(names, brightness=None, sizes=None):
    rng = np.random.default_rng(0)
    counts = per_image_counts(rng.integers(1, 9, (len(names), 2, 2)))
    others = {"brightness": brightness, "sizes": sizes}
    return PerImage(names, ["a", "b"], counts, counts, {k: v for k, v in others.items() if v is not None})


def test_groups_by_flag_and_by_folder():
    seen = images(["city_1_a", "city_1_b", "city_2_a", "field"])
    (table,) = slices(seen, r"^(city_\d)_")
    assert [(row[0], row[1].count) for row in table.rows] == [("city_1", 2), ("city_2", 1)]
    assert table.rows[0][2].value == score_images(seen.counts[:2])
    (table,) = slices(images(["day/a", "day/b", "night/c"]))
    assert [row[0] for row in table.rows] == ["day", "night"]
    assert slices(images(["a", "b"])) == []


def test_sizes_and_brightness_in_thirds():
    sizes = np.array([[100, 200]] * 3 + [[300, 200]] * 3)
    tables = slices(images([*"abcdef"], np.array([0.1, 0.9, 0.2, 0.8, 0.5, 0.5]), sizes))
    assert [[row[0] for row in table.rows] for table in tables] == [
        ["200x100", "200x300"],
        ["dark: 10 to 20 %", "middle: 50 to 50 %", "bright: 80 to 90 %"],
    ]
    many = np.array([[100 + i, 1000] for i in range(9)])
    (table,) = slices(images([*"abcdefghi"], np.full(9, 0.5), many))
    assert [row[0].split(":")[0] for row in table.rows] == ["small", "middle", "large"]
