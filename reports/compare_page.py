"""Two runs on one page: what changed, by class and by image, with paired intervals. `compare_runs.py --html`."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cli_utils import UserError, written_aside
from metrics_utils import SCORES
from reports.charts import Chart, Series
from reports.intervals import PerImage, paired_class_intervals
from reports.pictures import encoded
from reports.predictions import prediction_files
from reports.run_page import Run, curves, read_run
from reports.tables import NamedClass, Score, Table
from reports.templates import page_script, render

PICTURES = 5  # of images that got worse, and of those that got better
WIDTH = 900  # of a picture, in pixels


def write_compare_page(path: str | os.PathLike, result: dict, a: PerImage, b: PerImage, resamples: int) -> None:
    """Writes the page, which appears when it is complete.

    Args:
        result: of `compare_runs.main`. a, b: the runs' evaluations, with the same images in the same order.

    Raises:
        WriteError: it cannot be written.
    """
    content = render("compare_page.html.j2", **_contents(result, a, b, resamples))
    with written_aside(path) as partial:
        partial.write_bytes(content)


def _contents(result: dict, a: PerImage, b: PerImage, resamples: int) -> dict:
    folders = result["a"], result["b"]
    runs = [_run(folder) for folder in folders]
    changes = _image_changes(a, b)
    worse = [change for change in changes if change["b"] < change["a"]]
    better = [change for change in changes if change["b"] > change["a"]]
    return {
        "title": " and ".join(Path(folder).resolve().name for folder in folders),
        "verdict": f"mean IoU: {result['verdict']}",
        "runs": folders,
        "warnings": result["warnings"],
        "images": result["images"],
        "scores": _score_table(result["scores"], result["calibration_error"]),
        "charts": [chart.layout() for chart in _common_curves(runs)],
        "classes": _class_table(result["classes"], a, b, resamples),
        "changes": _change_table(changes),
        "pictures": [
            ("worse", "What got worse", _pictures(worse[:PICTURES], a.names, folders)),
            ("better", "What got better", _pictures(better[:PICTURES], a.names, folders)),
        ],
        "settings": _setting_table(runs),
        "script": page_script(),
    }


def _run(folder: str) -> Run:
    """For its log and its settings; an evaluation that somebody copied may be all that there is."""
    try:
        return read_run(folder)
    except UserError:
        return Run(folder)


def _score_table(scores: dict, calibration_error: dict | None) -> Table:
    rows = [
        (
            name.replace("_", " ").replace("iou", "IoU"),
            Score(row["a"]),
            Score(row["b"]),
            Score(row["difference"], row["low"], row["high"], signed=True),
            f"{row['p_value']:.4f}",
        )
        for name, row in scores.items()
    ]
    if calibration_error is None:
        return Table("Scores", ("score", "A", "B", "difference", "p"), rows)
    a, b, difference = (calibration_error[key] for key in ("a", "b", "difference"))
    rows.append(("calibration error", Score(a), Score(b), Score(difference, signed=True), "–"))
    note = "Of the calibration error less is better; it is of all images together, so it has no interval over images."
    return Table("Scores", ("score", "A", "B", "difference", "p"), rows, note)


def _class_table(classes: Sequence[dict], a: PerImage, b: PerImage, resamples: int) -> Table:
    intervals = paired_class_intervals(a.counts, b.counts, resamples)
    rows = [
        (
            NamedClass(row["name"]),
            Score(row["a"]),
            Score(row["b"]),
            Score(row["difference"], *intervals[row["id"]].tolist(), signed=True),
            row["images"],
        )
        for row in classes
    ]
    note = "One interval in twenty misses zero where nothing has changed; of many classes some do."
    return Table("IoU by class", ("class", "A", "B", "difference", "images"), rows, note, sortable=True)


def _image_changes(a: PerImage, b: PerImage) -> list[dict]:
    """Mean IoU of each image of its own in both runs, greatest change first."""
    scores = [SCORES["mean_iou"](run.counts) for run in (a, b)]
    rows = [
        {"name": name, "a": float(one), "b": float(other)}
        for name, one, other in zip(a.names, *scores, strict=True)
        if math.isfinite(one - other)
    ]
    return sorted(rows, key=lambda row: -abs(row["b"] - row["a"]))


def _change_table(changes: Sequence[dict], shown: int = 200) -> Table:
    rows = [
        (row["name"], Score(row["a"]), Score(row["b"]), Score(row["b"] - row["a"], signed=True))
        for row in changes[:shown]
    ]
    differences = np.array([row["b"] - row["a"] for row in changes])
    note = (
        f"{(differences > 0).sum()} images got better, {(differences < 0).sum()} worse, {(differences == 0).sum()} "
        "stayed the same. "
    )
    note += f"The {shown} with the greatest change are listed." * (len(changes) > shown)
    return Table("Mean IoU by image", ("image", "A", "B", "difference"), rows, note, sortable=True)


def _common_curves(runs: Sequence[Run]) -> list[Chart]:
    """The first line of each chart that a run has, of both runs in one."""
    titles = {}
    for name, run in zip("AB", runs, strict=True):
        for chart in curves(run.log):
            titles.setdefault(chart.title, []).append(Series(name, chart.series[0].points))
    return [Chart(title, tuple(lines)) for title, lines in titles.items()]


def _pictures(changes: Sequence[dict], names: Sequence[str], folders: Sequence[str]) -> list[dict]:
    """Image, truth and prediction of both runs, of those images of which `--do_predict` has written them in both."""
    overlays = [
        dict(zip(names, prediction_files(names, Path(folder, "predictions"), _others(folder)), strict=True))
        for folder in folders
    ]
    found = []
    for change in changes:
        files = [of_run[change["name"]][1] for of_run in overlays]
        if all(file.is_file() for file in files):
            found.append(change | {"pictures": [_small(file) for file in files]})
    return found


def _others(folder: str) -> list[Path]:
    return [Path(folder, name) for name in ("contact_sheet.png", "sample.jpg")]


def _small(file: Path) -> dict:
    picture = Image.open(file).convert("RGB")
    picture.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    content = encoded(picture, format="JPEG", quality=80)
    return {"content": content, "width": picture.width, "height": picture.height}


def _setting_table(runs: Sequence[Run]) -> Table:
    """Flags whose values differ."""
    settings = [{row[0]: (row[1], row[2]) for row in run.record.get("settings", [])} for run in runs]
    rows = []
    for name in dict.fromkeys([*settings[0], *settings[1]]):
        default = next(one[name][1] for one in settings if name in one)
        values = [one[name][0] if name in one else default for one in settings]
        if values[0] != values[1]:
            rows.append((name, *("–" if value is None else str(value) for value in values)))
    return Table("Settings that differ", ("flag", "A", "B"), rows)
