"""The page of a run, `report.html`, with its pictures for other uses and the table of its log.

    write_run_page("outputs/mine", read_run("outputs/mine"))
    python -m reports.run_page outputs/mine

makes it again of any finished run, from nothing but the files in its folder. While a run trains,
`reports.run_record.RunPage` makes it after each evaluation.
"""

import csv
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

from checks.records import DatasetReport, Finding
from cli_utils import UserError, count_of, printable, redact, run_cli, written_together
from data.classes import ClassMap
from metrics_utils import csv_text, score_images, without_per_category
from reports.breakdown import confusions, score_table, slices
from reports.charts import Chart, Series, draw_charts
from reports.check_tables import class_table, finding_table
from reports.intervals import MEASURES, PER_IMAGE_FILE, PerImage, bootstrap_interval, load_per_image
from reports.pictures import draw_matrix, file_of, heat_map, hex_color, percents
from reports.tables import Score, Table
from reports.templates import page_script, render
from training.display import duration
from visual_utils import default_palette

PAGE, RECORD, HISTORY = "report.html", "report.json", "history.csv"
CURVES, MATRIX = "curves.png", "confusion_matrix.png"
LABELLED = 30  # classes up to which the confusion matrix of a page has their names beside it
MAP_SIDE, LARGEST_CELL = 660, 40  # in units of its drawing
RARE_CONFIDENCE = 0.001  # share of the pixels from which a bin of confidences is drawn
NAMES_LENGTH = 20  # of a name beside it


@dataclass
class Run:
    """What a page is made of.

    Attributes:
        folder: as commands name it.
        log: of the Trainer, an entry an event.
        matrix: int64 (C, C), rows truth; None where nothing was evaluated.
        images: of that evaluation.
        scores: of that evaluation, as in `eval_results.json`.
        training: as in `train_results.json`; empty while it trains.
        record: of `reports.run_record`, what no other file has; may be empty.
        progress: how far training is, for a run that is not finished.
    """

    folder: str
    log: list[dict] = field(default_factory=list)
    matrix: np.ndarray | None = None
    images: PerImage | None = None
    scores: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    record: dict = field(default_factory=dict)
    progress: str = ""

    @property
    def colors(self) -> np.ndarray:
        """RGB by class, uint8 (C, 3)."""
        known = self.record.get("colors")
        if known is None or len(known) != len(self.images.class_names):
            return default_palette(len(self.images.class_names))
        return np.array([list(bytes.fromhex(color[1:])) for color in known], np.uint8)


def read_run(folder: str | os.PathLike) -> Run:
    """A run from its output folder.

    Raises:
        UserError: neither an evaluation nor a training run is there.
    """
    path = Path(folder)
    run = Run(str(folder))
    run.log = _read(path / "trainer_state.json").get("log_history", [])
    run.scores, run.training = _read(path / "eval_results.json"), _read(path / "train_results.json")
    run.record = _read(path / RECORD)
    if (path / "confusion_matrix.npy").is_file() and (path / PER_IMAGE_FILE).is_file():
        run.matrix, run.images = np.load(path / "confusion_matrix.npy"), load_per_image(path)
    if run.matrix is None and not run.log:
        raise UserError(f"{folder} holds no run: give the --output_dir of one that has trained or evaluated")
    return run


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); train or evaluate again") from None
    return content if isinstance(content, dict) else {}


# ---- files ----------------------------------------------------------------------------------------------------------


def write_run_page(folder: str | os.PathLike, run: Run, page_alone: bool = False) -> None:
    """Writes `report.html` and, if not alone, what there is of `curves.png`, `confusion_matrix.png`, `history.csv` and
    `report.json`.

    Raises:
        WriteError: they cannot be written.
    """
    files = {PAGE: render("run_page.html.j2", **page_contents(run))} | ({} if page_alone else other_files(run))
    with written_together(folder) as new:
        for name, content in files.items():
            (new / name).write_bytes(content)


def other_files(run: Run) -> dict[str, bytes]:
    """Name → content of what lies beside the page."""
    files = {}
    if run.log:
        files[HISTORY] = _history(run.log)
    charts = curves(run.log)
    if charts:
        files[CURVES] = file_of(draw_charts(charts))
    if run.matrix is not None:
        files[MATRIX] = file_of(draw_matrix(run.matrix, run.images.class_names))
    if run.record:
        files[RECORD] = json.dumps(run.record, indent=1).encode()
    return files


def _history(log: Sequence[dict]) -> bytes:
    """A row an event, a column a number; those of single classes last."""
    names = list(dict.fromkeys(name for entry in log for name in entry))
    means = without_per_category(dict.fromkeys(names))
    names = sorted(names, key=lambda name: (name not in ("step", "epoch"), name not in means))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names)
    writer.writerow({name: csv_text(name) for name in names})
    writer.writerows(log)
    return text.getvalue().encode("utf-8", errors="backslashreplace")


# ---- the page -------------------------------------------------------------------------------------------------------


def page_contents(run: Run) -> dict:
    """What the template shows."""
    record, evaluated = run.record, run.matrix is not None
    data = _data(record["data"], record.get("colors")) if record.get("data") else None
    names = run.images.class_names if evaluated else []
    examples = _examples(record) if evaluated else []
    contents = {
        "title": Path(run.folder).resolve().name or run.folder,
        "summary": _summary(run),
        "numbers": _numbers(run) if evaluated else [],
        "protocol": run.scores.get("eval_protocol", ""),
        "images": len(run.images.names) if evaluated else 0,
        "charts": [chart.layout() for chart in curves(run.log)],
        "classes": score_table(run.matrix, run.images, [hex_color(c) for c in run.colors]) if evaluated else None,
        "reliability": reliability(run) if evaluated else None,
        "names": names,
        "confusions": confusions(run.matrix) if evaluated else [],
        "map": _map(run.matrix, names) if evaluated else None,
        "examples": examples,
        "slices": slices(run.images, record.get("split_groups")) if evaluated else [],
        "settings": _settings(record),
        "data": data,
        "machine": _machine(run),
        "commands": _commands(run.folder, bool(run.training)),
        "script": page_script(),
    }
    parts = [
        ("scores", "scores", contents["numbers"]),
        ("curves", "curves", contents["charts"]),
        ("classes", "classes", evaluated),
        ("confusions", "confusions", evaluated),
        ("confidence", "confidence", contents["reliability"]),
        *((id, heading.lower(), shown) for id, heading, _, shown in examples),
        ("slices", "kinds of images", contents["slices"]),
        ("settings", "settings", contents["settings"].rows),
        ("data", "data", data),
        ("machine", "time and versions", contents["machine"].rows),
        ("commands", "what next", True),
    ]
    return contents | {"parts": [(id, name) for id, name, there in parts if there]}


def _summary(run: Run) -> str:
    record = run.record
    facts = [run.progress, record.get("model"), record.get("data", {}).get("dataset"), record.get("written")]
    return "; ".join(filter(None, facts))


def _numbers(run: Run) -> list[tuple[str, Score]]:
    numbers = []
    for name, (kind, statistic) in MEASURES.items():
        counts = getattr(run.images, kind)
        score = Score(score_images(counts, statistic), *bootstrap_interval(counts, statistic))
        numbers.append((name.replace("_", " ").replace("iou", "IoU"), score))
    if "eval_ece" in run.scores:
        numbers.append(("calibration error", Score(run.scores["eval_ece"])))
    if "train_mean_iou" in run.training:
        numbers.append(("mean IoU, training images", Score(run.training["train_mean_iou"])))
    return numbers


def curves(log: Sequence[dict]) -> list[Chart]:
    """Loss, mean IoU, learning rate and gradient norm by step; without those of which there are not two points."""

    def line(name: str, key: str) -> Series:
        points = {entry["step"]: float(entry[key]) for entry in reversed(log) if key in entry and "step" in entry}
        return Series(name, tuple(sorted(points.items())))

    charts = {
        "Loss": [line("training", "loss"), line("evaluation", "eval_loss")],
        "Mean IoU": [line("mean IoU", "eval_mean_iou"), line("boundary", "eval_boundary_mean_iou")],
        "Learning rate": [line("learning rate", "learning_rate")],
        "Gradient norm": [line("gradient norm", "grad_norm")],
    }
    drawn = []
    for title, lines in charts.items():
        lines = tuple(one for one in lines if any(math.isfinite(y) for _, y in one.points))
        if any(len(one.points) > 1 for one in lines):
            best = max(((y, x) for x, y in lines[0].points if math.isfinite(y)), default=None)
            mark = (best[1], best[0], f"{best[0]:.3f}") if title == "Mean IoU" else None
            drawn.append(Chart(title, lines, mark))
    return drawn


def reliability(run: Run) -> dict | None:
    """How many pixels are right at what confidence, as a chart, and what is said of it; None where it is not known."""
    lines, scores = run.record.get("reliability", {}), run.scores
    if not lines or "eval_temperature" not in scores:
        return None
    points = {
        name: tuple((confidence, right) for share, confidence, right in lines[key] if share >= RARE_CONFIDENCE)
        for key, name in (("before", "as they are"), ("after", "calibrated"))
        if key in lines
    }
    series = [Series(name, of_line) for name, of_line in points.items()]
    words = f"expected calibration error {scores['eval_ece_uncalibrated']:.4f} as they are"
    if "eval_ece" in scores:
        words += f", {scores['eval_ece']:.4f} at a temperature, each half of the images judged with that of the other"
    return {
        "chart": Chart("Right pixels by confidence", (*series, Series("ideal", ((0, 0), (1, 1))))).layout(),
        "words": f"Probabilities of the predicted classes: {words}. That of all images is "
        f"{scores['eval_temperature']:.3f}; above 1 the model is too sure of itself, below 1 too little.",
    }


def _map(matrix: np.ndarray, names: Sequence[str]) -> dict:
    """Where the confusion matrix is drawn, and its numbers for the script: of each row column → count."""
    labelled = len(names) <= LABELLED
    cell = min(LARGEST_CELL, MAP_SIDE / len(names))
    shown = [name if len(name) <= NAMES_LENGTH else f"{name[: NAMES_LENGTH - 1]}…" for name in names]
    margin = 14 + 8 * max(map(len, shown)) if labelled else 8
    rows = [{int(j): int(row[j]) for j in np.flatnonzero(row)} for row in matrix]
    return {
        "cell": round(cell, 3),
        "left": -margin,
        "top": margin,
        "width": round(margin + cell * len(names) + 8),
        "height": round(margin + cell * len(names) + 8),
        "labels": shown if labelled else [],
        "percents": percents(matrix),
        "picture": heat_map(matrix),
        "data": {"names": [printable(name) for name in names], "rows": rows, "totals": matrix.sum(axis=1).tolist()},
    }


def _examples(record: dict) -> list[tuple[str, str, str, list[dict]]]:
    """Sections of pictures: id, heading, words, pictures."""
    words = (
        "The images with the lowest mean IoU of their own, then those in the middle, then the best. The slider lays "
        "the truth over the prediction."
    )
    looked = (
        "Where the model contradicts the annotation over a whole area and is sure of it, most suspicious first. "
        "Either the annotation is wrong, which is worth mending, or the model has learned something wrong. In a test "
        "on drawn scenes, with 8 of 80 masks spoilt on purpose, 7 images were named, all of them spoilt "
        "(tests/checks/test_suspects.py); photos and weak models give more false alarms."
    )
    return [
        ("images", "Images", words, record.get("examples", [])),
        ("suspects", "Suspected label errors", looked, record.get("suspects", [])),
    ]


def _settings(record: dict) -> Table:
    rows = [tuple("–" if value is None else str(value) for value in row) for row in record.get("settings", [])]
    return Table("Settings other than the defaults", ("flag", "value", "default"), rows)


def _data(data: dict, colors: list[str] | None) -> dict:
    """Splits, findings and classes, in the tables of a check."""
    report = DatasetReport(
        **{key: data[key] for key in ("dataset", "layout", "splits", "class_pixels")},
        id2label={int(i): name for i, name in data["id2label"].items()},
        records=[],
        findings=[Finding(**found) for found in data["findings"]],
        seconds=0,
    )
    palette = colors and [list(bytes.fromhex(color[1:])) for color in colors]
    counts = ", ".join(f"{split}: {count_of(count, 'image')}" for split, count in report.splits.items())
    copies = data.get("read_from_copies", 0)  # older records do not say
    copied = (
        f" {count_of(copies, 'large training photo/photos was/were')} read from copies as small as training needs."
    )
    copied = copied if copies else ""
    silent = (
        "A quick check found nothing to object to." if data["checked"] else "It was not checked (check_dataset.py)."
    )
    return {
        "summary": f"{report.dataset}, {report.layout} layout. {counts}.{copied}",
        "findings": finding_table(report) if report.findings else None,
        "silence": silent,
        "classes": class_table(report, ClassMap(report.id2label, palette)),
    }


def _machine(run: Run) -> Table:
    rows = [("device", run.record["device"])] if "device" in run.record else []
    training, scores = run.training, run.scores
    if "train_runtime" in training:
        rows.append(
            (
                "training",
                f"{duration(training['train_runtime'])}, {training['train_samples_per_second']:.1f} images/s",
            )
        )
    if "eval_runtime" in scores:
        rows.append(
            (
                "last evaluation",
                f"{duration(scores['eval_runtime'])}, {scores['eval_samples_per_second']:.1f} images/s",
            )
        )
    if "peak_memory" in run.record:
        rows.append(("peak of memory", run.record["peak_memory"]))
    rows += list(run.record.get("versions", {}).items())
    return Table("Time, memory and versions", ("", ""), rows)


def _commands(folder: str, trained: bool) -> list[tuple[str, str]]:
    folder = str(Path(folder))  # without a slash at its end
    commands = [
        (
            "Compare with another run, image by image:",
            ["compare_runs.py", folder, "OTHER", "--html", "comparison.html"],
        )
    ]
    if trained:
        commands = [
            ("Predict photos:", ["predict.py", "--model", folder, "--output_dir", "predicted", "PHOTOS"]),
            ("Try it in a browser:", ["app.py", "--model", folder]),
            *commands,
            ("Export it for ONNX Runtime:", ["export_onnx.py", "--model", folder, "--output", f"{folder}/model.onnx"]),
            ("Publish it on the Hub:", ["publish.py", folder]),
            (
                "Train again with the same settings:",
                ["run_segmentation.py", "--config", f"{folder}/arguments.yaml", "--output_dir", f"{folder}-again"],
            ),
        ]
    commands.append(("Make this page again:", ["-m", "reports.run_page", folder]))
    return [(words, redact(shlex.join(["python", *command]))) for words, command in commands]


def now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M")


def main(argv: Sequence[str] | None = None) -> Path:
    """Makes the page of a finished run again; returns its path."""
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) != 1 or words[0].startswith("-"):
        raise UserError("one folder is needed, the --output_dir of a run: python -m reports.run_page FOLDER")
    write_run_page(words[0], read_run(words[0]))
    page = Path(words[0], PAGE)
    print(f"written: {printable(str(page))}")
    return page


if __name__ == "__main__":
    run_cli(main)
