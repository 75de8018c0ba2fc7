"""Charts: where lines and ticks are, what is left out of long ones, and that the picture has what the plan has."""

import math

import numpy as np
import pytest

from reports.charts import COLORS, HEIGHT, POINTS, TOP, WIDTH, Chart, Series, draw_charts, nice_ticks, short


def chart(ys, **options):
    return Chart("Loss", (Series("loss", tuple(enumerate(ys))),), **options)


@pytest.mark.parametrize("ends", [(0, 1), (3, 3), (0, 0), (1e-6, 9e-5), (-2, 7), (0.931, 0.934), (0, 160000)])
def test_ticks_are_few_round_and_enclose(ends):
    ticks = nice_ticks(*ends, 5)
    assert ticks[0] <= ends[0] and ticks[-1] >= ends[1] and 3 <= len(ticks) <= 9
    assert all(len(short(tick)) <= 9 for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (6e-5, "6e-5"), (0.25, "0.25"), (160000, "160,000"), (1.25e-4, "1.25e-4")]
)
def test_numbers_are_short(value, text):
    assert short(value) == text


def test_gaps_and_single_points():
    plan = chart([1, 2, math.nan, 3]).layout()
    assert [len(piece) for piece in plan["lines"][0]["pieces"]] == [2, 1]


def test_of_long_lines_peaks_are_kept():
    ys = np.full(10_000, 1.0)
    ys[4321], ys[8000] = 5.0, 0.2
    points = [p for piece in chart(ys.tolist()).layout()["lines"][0]["pieces"] for p in piece]
    assert len(points) <= POINTS and min(y for _, y in points) == min(y for _, y in points if y >= TOP)
    straight = chart([1.0, 5.0, 0.2]).layout()
    heights = {y for piece in straight["lines"][0]["pieces"] for _, y in piece}
    assert {min(y for _, y in points), max(y for _, y in points)} == {min(heights), max(heights)}


def test_a_steep_line_is_logarithmic():
    plan = chart([1000, 1, 1, 0.5]).layout()
    assert plan["title"].endswith("(logarithmic)") and "1,000" in [text for _, text in plan["y_ticks"]]
    assert not chart([1000, 1, 0]).logarithmic  # zero has no place on such a scale


def test_the_picture():
    picture = draw_charts([chart([1, 2, 3], mark=(2, 3, "3.000")), chart([1]), chart([])])
    assert picture.size == (2 * 2 * WIDTH, 2 * 2 * HEIGHT)
    first = np.asarray(picture.crop((0, 0, 2 * WIDTH, 2 * HEIGHT))).reshape(-1, 3)
    blue = [int(COLORS[0][i : i + 2], 16) for i in (1, 3, 5)]
    assert (np.abs(first.astype(int) - blue).sum(axis=1) < 30).sum() > 500
