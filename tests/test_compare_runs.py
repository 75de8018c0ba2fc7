"""The comparison of two output folders, through the real `main`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from factories.browser import NEEDS_CHROMIUM, browser  # noqa: F401 - a fixture
from factories.run_folders import make_run
from PIL import Image

import compare_runs
from cli_utils import UserError, run_cli
from reports.intervals import load_per_image, paired_bootstrap, paired_class_intervals, save_per_image
from reports.predictions import prediction_files

CLASSES = ["wall", "door", "sky", "never seen"]
PROTOCOL = "short side 512; whole image in one pass"


def counts_of(quality, images=60, seed=0):
    """Counts (images, 3, 4) of a model that gets the share `quality` of each class right; the last class is absent."""
    rng = np.random.default_rng(0)
    label = rng.integers(100, 1000, (images, 4)) * np.array([1, 1, 1, 0])
    noise = np.random.default_rng(seed).normal(0, 0.05, label.shape)
    intersection = (label * np.clip(np.asarray(quality) + noise, 0, 1)).astype(np.int64)
    return np.stack([intersection, label, label], axis=1)


def write_run(folder, counts, names=None, class_names=CLASSES, protocol=PROTOCOL):
    folder.mkdir()
    names = names or [f"img_{i}" for i in range(len(counts))]
    save_per_image(folder, names, counts, counts, class_names)
    if protocol:
        (folder / "eval_results.json").write_text(json.dumps({"eval_mean_iou": 0.5, "eval_protocol": protocol}))
    return str(folder)


@pytest.fixture
def worse(tmp_path):
    return write_run(tmp_path / "worse", counts_of([0.6, 0.6, 0.6, 0]))


@pytest.fixture
def better(tmp_path):
    return write_run(tmp_path / "better", counts_of([0.65, 0.85, 0.6, 0], seed=1))


def test_better_run_is_named(worse, better, capsys):
    result = compare_runs.main([worse, better])
    row = result["scores"]["mean_iou"]
    expected = paired_bootstrap(
        counts_of([0.6, 0.6, 0.6, 0]), counts_of([0.65, 0.85, 0.6, 0], seed=1), resamples=2000, seed=0
    )
    assert (row["difference"], row["low"], row["high"], row["p_value"]) == expected
    assert row["b"] - row["a"] == pytest.approx(row["difference"])
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert list(result["scores"]) == ["mean_iou", "boundary_mean_iou", "per_image_mean_iou", "overall_accuracy"]
    assert (result["verdict"], result["images"], result["warnings"]) == ("B is better", 60, [])
    # Greatest change first, a class that occurs nowhere left out.
    assert [change["name"] for change in result["classes"]] == ["door", "wall", "sky"]
    assert result["classes"][0]["images"] == 60

    text = capsys.readouterr().out
    assert "mean_iou: B is better" in text and "warning" not in text and "never seen" not in text
    assert f"{row['difference']:+.4f}  [{row['low']:+.4f}, {row['high']:+.4f}]" in text
    assert text.index("door") < text.index("sky")


def test_verdict_turns_with_the_order(worse, better):
    assert compare_runs.main([better, worse])["verdict"] == "A is better"


def test_noise_is_no_difference(tmp_path, worse, capsys):
    same = write_run(tmp_path / "same", counts_of([0.6, 0.6, 0.6, 0], seed=1))
    assert compare_runs.main([worse, same])["verdict"] == "no difference can be shown with 60 images"
    assert "no difference can be shown with 60 images" in capsys.readouterr().out


def test_images_may_come_in_another_order(tmp_path, worse, better):
    order = np.random.default_rng(5).permutation(60)
    shuffled = write_run(
        tmp_path / "shuffled", counts_of([0.65, 0.85, 0.6, 0], seed=1)[order], names=[f"img_{i}" for i in order]
    )
    assert compare_runs.main([worse, shuffled])["scores"] == compare_runs.main([worse, better])["scores"]


def test_json_holds_the_result_and_no_nan(tmp_path, worse):
    file, nothing = tmp_path / "comparison.json", write_run(tmp_path / "nothing", np.zeros((2, 3, 4), np.int64))
    compare_runs.main([nothing, nothing, "--json", str(file)])
    written = file.read_text()
    assert json.loads(written)["scores"]["mean_iou"]["low"] is None and "NaN" not in written
    result = compare_runs.main([worse, worse, "--json", str(file)])
    assert json.loads(file.read_text()) == result
    assert result["scores"]["mean_iou"]["p_value"] == 1.0


def test_other_protocol_is_a_warning(tmp_path, worse, capsys):
    other = write_run(tmp_path / "other", counts_of(0.6), protocol="sliding window")
    unknown = write_run(tmp_path / "unknown", counts_of(0.6), protocol=None)
    assert compare_runs.main([worse, other])["warnings"] == [
        f"evaluated under different protocols: A: {PROTOCOL}. B: sliding window."
    ]
    assert "warning: evaluated under different protocols" in capsys.readouterr().out
    assert compare_runs.main([unknown, other])["warnings"] == [
        "evaluated under different protocols: A: unknown. B: sliding window."
    ]


def test_calibration_errors_stand_beside_each_other(tmp_path, worse, capsys):
    folders = [write_run(tmp_path / name, counts_of(0.6)) for name in "ab"]
    for folder, error in zip(folders, (0.0821, 0.0307), strict=True):
        Path(folder, "eval_results.json").write_text(json.dumps({"eval_protocol": PROTOCOL, "eval_ece": error}))
    result = compare_runs.main([*folders, "--html", str(tmp_path / "page.html")])
    assert result["calibration_error"] == {"a": 0.0821, "b": 0.0307, "difference": pytest.approx(-0.0514)}
    assert "calibration_error   0.0821   0.0307     -0.0514\n" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "calibration error" in page and "-0.0514" in page.replace("−", "-") and "less is better" in page
    # One of the two alone says nothing.
    result = compare_runs.main([folders[0], worse, "--html", str(tmp_path / "page.html")])
    assert result["calibration_error"] is None and "calibration error" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("content", ["[1, 2]", "3"])
def test_damaged_scores_are_named(tmp_path, worse, content):
    Path(worse, "eval_results.json").write_text(content)
    with pytest.raises(UserError, match=r"eval_results\.json holds no scores .*evaluate the run again"):
        compare_runs.main([worse, worse])


def test_folder_without_counts_is_told_how_to_get_them(tmp_path, worse):
    with pytest.raises(UserError, match=r"per_image\.npz is missing; .*run_segmentation\.py .*--do_eval"):
        compare_runs.main([worse, str(tmp_path)])
    for folder in (tmp_path / "missing", Path(worse, "per_image.npz")):
        with pytest.raises(UserError, match="is not a folder; give the --output_dir of a run"):
            compare_runs.main([worse, str(folder)])


def test_other_images_are_counted(tmp_path, worse):
    other = write_run(tmp_path / "other", counts_of(0.6), names=[f"img_{i}" for i in range(10, 70)])
    with pytest.raises(
        UserError, match=r"different images: 10 only in .*worse, 10 only in .*other \(such as 'img_0'\), 50"
    ):
        compare_runs.main([worse, other])
    fewer = write_run(tmp_path / "fewer", counts_of(0.6)[:20])
    with pytest.raises(UserError, match=r"40 only in .*worse, 0 only in .*fewer"):
        compare_runs.main([worse, fewer])


def test_other_annotations_are_refused(tmp_path, worse):
    counts = counts_of([0.6, 0.6, 0.6, 0])
    counts[7, 1, 2] += 1
    with pytest.raises(UserError, match="1 of 60 images has another annotation .*'img_7'"):
        compare_runs.main([worse, write_run(tmp_path / "other", counts)])


def test_other_classes_are_refused(tmp_path, worse):
    renamed = write_run(tmp_path / "renamed", counts_of(0.6), class_names=["wall", "gate", "sky", "never seen"])
    with pytest.raises(UserError, match="4 classes and .* 4, 2 of them in one only, such as 'door'"):
        compare_runs.main([worse, renamed])
    reordered = write_run(tmp_path / "reordered", counts_of(0.6), class_names=CLASSES[::-1])
    with pytest.raises(UserError, match="in another order"):
        compare_runs.main([worse, reordered])


def test_names_that_are_not_unique_are_refused(tmp_path, worse):
    twice = write_run(tmp_path / "twice", counts_of(0.6), names=["same"] * 60)
    with pytest.raises(UserError, match="several images of one name"):
        compare_runs.main([worse, twice])


def test_bad_flags_and_files(tmp_path, worse):
    with pytest.raises(UserError, match="--resamples is 1; "):
        compare_runs.main([worse, worse, "--resamples", "1"])
    with pytest.raises(UserError, match="two output folders are compared, not 1: compare_runs.py RUN_A RUN_B"):
        compare_runs.main([worse])
    with pytest.raises(UserError, match=r"unknown flag --resample \(did you mean --resamples\?\)"):
        compare_runs.main([worse, worse, "--resample", "200"])
    broken = write_run(tmp_path / "broken", counts_of([0.6, 0.6, 0.6, 0]))
    Path(broken, "eval_results.json").write_text('{"eval_mean')
    with pytest.raises(UserError, match=r"eval_results\.json holds no scores"):
        compare_runs.main([worse, broken])


def test_script_ends_with_0_whatever_the_verdict(tmp_path, worse, better):
    file = tmp_path / "comparison.json"
    script = [sys.executable, compare_runs.__file__, better, worse, "--json", str(file)]
    finished = subprocess.run(script, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "mean_iou: A is better" in finished.stdout
    assert json.loads(file.read_text())["verdict"] == "A is better"


def test_a_mistake_ends_with_one_line_and_2(worse, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare_runs.py", worse, "nowhere"])
    with pytest.raises(SystemExit) as stopped:
        run_cli(compare_runs.main)
    assert stopped.value.code == 2
    assert capsys.readouterr() == ("", "error: nowhere is not a folder; give the --output_dir of a run\n")


# ---- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_runs(tmp_path):
    """Two runs with pages and overlays, B better than A."""
    folders = [make_run(tmp_path / name, 3, 12, accuracy=share) for name, share in (("a", 0.6), ("b", 0.9))]
    settings = json.loads((folders[1] / "report.json").read_text())
    settings["settings"] = [["learning_rate", "0.002", "6e-05"]]
    (folders[1] / "report.json").write_text(json.dumps(settings))
    for number, folder in enumerate(folders):
        names = load_per_image(folder).names
        for _, overlay in prediction_files(names, folder / "predictions", [folder / "contact_sheet.png"]):
            overlay.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (1200, 400), ["red", "blue"][number]).save(overlay)
    return [str(folder) for folder in folders]


def test_the_page_tells_what_changed(two_runs, tmp_path):
    result = compare_runs.main([*two_runs, "--html", str(tmp_path / "page.html"), "--resamples", "200"])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "mean IoU: B is better" in page and len(page) < 3_000_000
    assert f"{result['scores']['mean_iou']['difference']:+.4f}" in page
    assert page.count("data:image/jpeg") == 2 * 5 and "What got better" in page and "What got worse" not in page
    assert "learning_rate" in page and "0.001" in page and "dataset_dir" in page
    assert page.count(">A</text>") == 4
    assert "<script>alert" not in page and "<b>0" not in page


@NEEDS_CHROMIUM
def test_a_browser_shows_the_page(two_runs, tmp_path, browser):  # noqa: F811
    compare_runs.main([*two_runs, "--html", str(tmp_path / "page.html"), "--resamples", "200"])
    browser.open(tmp_path / "page.html", 500)
    assert browser.problems == [] and browser.run("document.documentElement.scrollWidth") <= 500


def test_a_page_of_evaluations_alone(worse, better, tmp_path):
    compare_runs.main([worse, better, "--html", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Mean IoU by image" in page and "<svg" not in page.replace('<svg class="interval"', "")
    with pytest.raises(UserError, match="--html"):
        compare_runs.main([worse, better, "--html", str(tmp_path / "page.html" / "no.html")])


def test_intervals_of_classes_are_those_of_the_paired_difference():
    a, b = counts_of([0.6, 0.6, 0.6, 0]), counts_of([0.7, 0.6, 0.6, 0], seed=1)
    intervals = paired_class_intervals(a, b, 300)
    for i in range(3):
        one = paired_bootstrap(a[..., i : i + 1], b[..., i : i + 1], resamples=300)
        assert tuple(intervals[i]) == (one.low, one.high)
    assert np.isnan(intervals[3]).all()
