"""The page in which predictions are looked at, in a browser."""

import numpy as np
import pytest
from factories.browser import NEEDS_CHROMIUM, browser  # noqa: F401
from PIL import Image

from data.classes import ClassMap
from reports.viewer import VIEW_SIDE, View, viewer_frame, viewer_page

HOSTILE = "<script>document.title = 'taken'</script>${1+1}{{2}}"
COLORS = [[200, 0, 0], [0, 100, 0], [0, 0, 250]]
IDS = np.repeat(np.array([[0, 1, 2, 255]], np.uint8), 30, axis=0).repeat(10, axis=1)  # (30, 40), a column each


@pytest.fixture
def page(tmp_path):
    """Of a white image: two models, one of them without confidence."""
    classes = ClassMap({0: "wall", 1: HOSTILE, 2: "sky"}, COLORS)
    views = [
        View("outputs/a", classes, IDS, np.where(IDS == 1, 128, 255).astype(np.uint8)),
        View("outputs/b", ClassMap({0: "road", 1: "car"}, COLORS[:2]), np.zeros_like(IDS)),
    ]
    file = tmp_path / "view.html"
    file.write_bytes(viewer_page(Image.new("RGB", (40, 30), "white"), views))
    return file


def opened(browser, page):  # noqa: F811
    browser.open(page)
    browser.wait_for("document.body.dataset.ready == 'yes'")


def color_at(browser, x, y=15, view=0):  # noqa: F811
    return browser.run(f"""(() => {{
        const copy = new OffscreenCanvas(1, 1).getContext("2d");
        copy.drawImage(document.querySelectorAll("canvas")[{view}], {-x}, {-y});
        return [...copy.getImageData(0, 0, 1, 1).data].slice(0, 3);
    }})()""")


def point_at(browser, x, y=15):  # noqa: F811
    """What is told of a pixel of the first picture, by each view."""
    return browser.run(f"""(() => {{
        const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect();
        const place = {{ clientX: box.left + ({x} + .5) * box.width / 40, clientY: box.top + {y} * box.height / 30 }};
        canvas.dispatchEvent(new PointerEvent("pointermove", place));
        const plain = (output) => output.textContent.replace(/[\\u2068\\u2069]/g, "");
        return [...document.querySelectorAll("output")].map(plain);
    }})()""")


@NEEDS_CHROMIUM
def test_what_lies_under_the_pointer_is_told_of_all_models(page, browser):  # noqa: F811
    opened(browser, page)
    assert point_at(browser, 5) == ["wall, 100 % sure", "road"]
    assert point_at(browser, 15) == [f"{HOSTILE}, 50 % sure", "road"]
    assert point_at(browser, 25) == ["sky, 100 % sure", "road"]
    assert point_at(browser, 39, 29) == ["nothing is known here", "road"]
    assert browser.run("document.title") == "Prediction" and browser.problems == []


@NEEDS_CHROMIUM
def test_opacity_and_the_legend(page, browser):  # noqa: F811
    opened(browser, page)
    legend = browser.run("[...document.querySelectorAll('.legend li')].map(row => row.textContent.trim())")
    assert legend == ["wall 33.3 %", f"{HOSTILE} 33.3 %", "sky 33.3 %", "road 100.0 %"]

    def expected(id, strength):
        return [(1 - strength) * 255 + strength * value for value in COLORS[id]]

    for strength in (0.55, 1.0, 0.0):
        browser.run(f"opacity.value = {100 * strength}; opacity.dispatchEvent(new Event('input'))")
        for x, id in ((5, 0), (15, 1), (25, 2)):
            assert color_at(browser, x) == pytest.approx(expected(id, strength), abs=2)
        assert color_at(browser, 35) == pytest.approx([255] * 3, abs=2)  # nothing is known there
        assert color_at(browser, 5, view=1) == pytest.approx(expected(0, strength), abs=2)
    browser.run("opacity.value = 100; opacity.dispatchEvent(new Event('input'))")
    browser.run("document.querySelectorAll('.legend input')[1].click()")
    assert [color_at(browser, x) == pytest.approx([255] * 3, abs=2) for x in (5, 15, 25)] == [False, True, False]
    assert color_at(browser, 5, view=1) == COLORS[0]
    browser.run("document.querySelectorAll('.legend input')[1].click()")
    assert color_at(browser, 15) == COLORS[1] and browser.problems == []


def test_a_large_image_is_shown_smaller_and_shares_are_those_of_the_whole():
    """One pixel that no screen shows is still in the legend."""
    ids = np.zeros((10, 4 * VIEW_SIDE), np.uint8)
    ids[0, 0] = 1
    page = viewer_page(Image.new("RGB", ids.shape[::-1]), [View("m", ClassMap({0: "a", 1: "b"}), ids)]).decode()
    assert f'width="{VIEW_SIDE}" height="2"' in page and "<bdi>b</bdi>" in page and "&lt; 0.1 %" in page


def test_problems_are_text_and_a_frame_holds_the_page_alone():
    page = viewer_page(problems=[f"{HOSTILE} (no image)"])
    assert b"<script>document.title" not in page and b'role="alert"' in page
    frame = viewer_frame(page)
    assert frame.count("<") == 2 and 'sandbox="allow-scripts"' in frame
