"""The page of a run: complete in itself, of bounded size, usable in any width and light, and with the keyboard."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from factories.browser import NEEDS_CHROMIUM, browser  # noqa: F401 - a fixture
from factories.run_folders import HOSTILE, class_names, make_run
from PIL import Image

from cli_utils import UserError
from reports import run_page
from reports.run_page import curves, main, read_run

CLASSES = (2, 11, 150)
# Classes and images of the largest run that a page must bear, and what it may weigh then.
MOST_IMAGES, MOST_BYTES = 2000, 3_000_000


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Number of classes → folder of a run with its page."""
    folder = tmp_path_factory.mktemp("runs")
    made = {count: make_run(folder / f"run{count}", count, {150: MOST_IMAGES}.get(count, 20)) for count in CLASSES}
    for run in made.values():
        main([str(run)])
    return made


# ---- what it is made of ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", CLASSES)
def test_everything_is_in_one_file_of_bounded_size(runs, count):
    page = (runs[count] / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < MOST_BYTES
    addresses = re.findall(r"""(?:href|src)=["']([^"'#][^"']*)""", page)
    assert addresses and all(address.startswith("data:image/") for address in addresses)
    assert "http" not in re.sub(r"<meta http-equiv", "", page)
    parts = "scores curves classes confusions confidence images suspects slices settings data".split()
    for part in parts:
        assert f'<section id="{part}"' in page
    assert "<script>alert" not in page and "<b>0" not in page and "<i>masks" not in page


def test_it_can_be_made_again_from_the_folder_alone(runs, tmp_path):
    shutil.copytree(runs[11], tmp_path / "run11")
    before = {name: (tmp_path / "run11" / name).read_bytes() for name in ("report.html", "curves.png", "history.csv")}
    for name in before:
        (tmp_path / "run11" / name).unlink()
    assert main([str(tmp_path / "run11")]) == tmp_path / "run11" / "report.html"
    for name, content in before.items():
        again = (tmp_path / "run11" / name).read_bytes()
        assert again.replace(str(tmp_path).encode(), b"") == content.replace(str(runs[11].parent).encode(), b""), name


@pytest.mark.parametrize(("count", "told"), [(0, False), (7, True)])
def test_photos_that_were_read_from_copies_are_told(runs, tmp_path, count, told):
    folder = shutil.copytree(runs[2], tmp_path / "run")
    record = json.loads((folder / "report.json").read_text())
    record["data"]["read_from_copies"] = count
    (folder / "report.json").write_text(json.dumps(record))
    main([str(folder)])
    page = (folder / "report.html").read_text()
    assert ("7 large training photos were read from copies as small as training needs." in page) == told


def test_what_is_not_there_is_left_out(runs, tmp_path):
    shutil.copytree(runs[2], tmp_path / "run")
    for name in ("report.json", "trainer_state.json", "train_results.json"):
        (tmp_path / "run" / name).unlink()
    page = main([str(tmp_path / "run")]).read_text(encoding="utf-8")
    for part in ("curves", "confidence", "images", "suspects", "settings", "data"):
        assert f'id="{part}"' not in page and f'href="#{part}"' not in page
    assert 'id="classes"' in page and "predict.py" not in page


def test_a_run_that_only_trained_has_its_curves(runs, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(runs[2] / "trainer_state.json", tmp_path / "run")
    page = main([str(tmp_path / "run")]).read_text(encoding="utf-8")
    assert 'id="curves"' in page and 'id="scores"' not in page


@pytest.mark.parametrize("words", [[], ["a", "b"], ["--run"]])
def test_one_folder_is_needed(words):
    with pytest.raises(UserError, match="one folder"):
        main(words)


def test_a_folder_without_a_run_and_a_damaged_file_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        read_run(tmp_path)
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(UserError, match="trainer_state.json cannot be read"):
        read_run(tmp_path)


def test_the_log_as_a_table(tmp_path, runs):
    with open(runs[2] / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    log = json.loads((runs[2] / "trainer_state.json").read_text())["log_history"]
    assert len(rows) == len(log) and next(iter(rows[0])) == "step"
    assert rows[0]["loss"] == str(log[0]["loss"]) and rows[0]["eval_mean_iou"] == ""
    assert run_page.other_files(run_page.Run("x", [{"step": 1, "eval_iou_=1+1": 0.5}]))["history.csv"].startswith(
        b"step,eval_iou_=1+1"
    )


def test_pictures_for_pasting(runs):
    for count in CLASSES:
        matrix = Image.open(runs[count] / "confusion_matrix.png")
        assert max(matrix.size) < 1500 and len(matrix.getcolors(10**6)) > 2
        assert Image.open(runs[count] / "curves.png").size[0] > 1000


def test_curves_take_the_first_of_several_evaluations_of_a_step():
    log = [{"eval_mean_iou": 0.4, "step": 5}, {"eval_mean_iou": 0.6, "step": 10}, {"eval_mean_iou": 0.5, "step": 10}]
    (chart,) = curves(log)
    assert chart.title == "Mean IoU" and chart.series[0].points == ((5, 0.4), (10, 0.6))
    assert chart.mark == (10, 0.6, "0.600")
    assert (
        curves([{"loss": 1.0, "step": 1}]) == [] and curves([{"loss": float("nan"), "step": i} for i in (1, 2)]) == []
    )


# ---- in a browser ---------------------------------------------------------------------------------------------------


@NEEDS_CHROMIUM
@pytest.mark.parametrize(
    ("count", "width", "dark"), [(2, 1280, True), (11, 400, False), (150, 1280, False), (150, 400, True)]
)
def test_a_browser_shows_it(runs, browser, tmp_path, count, width, dark):  # noqa: F811
    browser.open(runs[count] / "report.html", width, dark)
    assert browser.problems == []
    assert browser.run("document.documentElement.scrollWidth") <= width  # nothing sticks out but tables, which scroll
    color = browser.run("getComputedStyle(document.body).backgroundColor")
    assert color == ("rgb(22, 24, 28)" if dark else "rgb(255, 255, 255)")
    names = browser.run(
        "[...document.querySelectorAll('#classes tbody td:first-child')].map(c => c.textContent.trim())"
    )
    assert sorted(names) == sorted(class_names(count))
    sides = browser.run("[...document.querySelectorAll('.panel svg')].map(s => s.getBoundingClientRect().width)")
    assert len(sides) == 5 * (12 + 2) and min(sides) > 100
    browser.screenshot(tmp_path / "page.png")
    shown = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert shown.shape[1] == width and np.unique(shown.reshape(-1, 3)[::97], axis=0).shape[0] > 50


@NEEDS_CHROMIUM
def test_tables_sort_with_the_keyboard(runs, browser):  # noqa: F811
    browser.open(runs[11] / "report.html")

    def column(number):
        script = f"[...document.querySelectorAll('#classes tbody tr')].map(r => r.cells[{number}].dataset.value)"
        return [float(value) for value in browser.run(script) if value]

    assert column(4) == sorted(column(4), reverse=True)  # by pixels
    for number in (1, 4, 6):  # IoU, pixels, gain
        browser.run(f"document.querySelectorAll('#classes th button')[{number}].focus()")
        browser.press("Enter")
        assert column(number) == sorted(column(number), reverse=True)
        browser.press(" ")
        assert column(number) == sorted(column(number))
    assert browser.run("document.querySelector('#classes th[aria-sort]').textContent.trim()") == "gained if fixed"


@NEEDS_CHROMIUM
def test_the_slider_and_the_matrix_answer_to_keys(runs, browser):  # noqa: F811
    browser.open(runs[11] / "report.html")
    browser.run("document.querySelector('.wipe input').focus()")
    for _ in range(3):
        browser.press("ArrowRight")
    assert browser.run("document.querySelector('.example').style.getPropertyValue('--at')") == "3%"
    browser.run("document.querySelector('.map svg').focus()")
    browser.press("ArrowRight")
    said = browser.run("document.querySelector('.map output').textContent")
    assert HOSTILE[0] in said and HOSTILE[1] in said and "is taken for" in said
    matrix = np.load(runs[11] / "confusion_matrix.npy")
    assert f"{matrix[0, 1]:,} of {matrix[0].sum():,} pixels" in said
    assert browser.problems == []


@NEEDS_CHROMIUM
def test_it_prints(runs, browser):  # noqa: F811
    browser.open(runs[2] / "report.html")
    assert 2 <= browser.printed_pages() <= 30
