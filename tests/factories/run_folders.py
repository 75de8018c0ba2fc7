"""Output folders of runs that never were: any number of classes and images, any names, without a model."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from checks.suspects import FIELDS, FOUND
from metrics_utils import per_image_counts, save_confusion, summarize_images
from reports.intervals import load_per_image, save_per_image
from reports.pictures import hex_color
from reports.run_record import EXAMPLES, draw_examples
from visual_utils import default_palette

DRAWN = 24  # different images; a run of more has them again and again
# What names may hold: markup, signs of more than 16 bits, writing from right to left, and quotes.
HOSTILE = ["<script>alert(1)</script>", '🚗 car & "bus"', "طريق", "a" * 90, "]]>'; --"]


def class_names(count: int) -> list[str]:
    return [HOSTILE[i] if i < len(HOSTILE) else f"class {i}" for i in range(count)]


def draw_run(place: int, classes: int, size=(160, 120), accuracy=0.8):
    """Image, truth and prediction of one image: stripes of a few classes, some of them taken for their neighbour."""
    rng = np.random.default_rng(place)
    width, height = size
    present = rng.choice(classes, min(classes, 6), replace=False)
    truth = np.repeat(present, -(-height // len(present)))[:height, None].repeat(width, 1).astype(np.uint8)
    truth[:, :4] = 255
    blocks = rng.random((-(-height // 10), -(-width // 10))) > accuracy + 0.2 * np.sin(place)
    wrong = blocks.repeat(10, axis=0).repeat(10, axis=1)[:height, :width]
    prediction = np.where(wrong | (truth == 255), (np.minimum(truth, classes - 1) + 1) % classes, truth)
    colors = default_palette(classes)
    pixels = colors[np.minimum(truth, classes - 1)] * (0.4 + 0.5 * (place % 7) / 7) + rng.normal(
        0, 12, (height, width, 1)
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), truth, prediction.astype(np.uint8)


def make_run(folder: Path, classes=3, images=12, names=None, steps=200, size=(160, 120), accuracy=0.8) -> Path:
    """What a run with an evaluation leaves, but for model and predictions."""
    folder.mkdir(parents=True)
    names = names or class_names(classes)
    stems = [f"{'night' if i % 3 else 'day'}/photo <b>{i:04}</b>" for i in range(images)]
    drawn = [draw_run(i, classes, size, accuracy) for i in range(min(images, DRAWN))]
    matrices = np.zeros((len(drawn), classes, classes), np.int64)
    for matrix, (_, truth, prediction) in zip(matrices, drawn, strict=True):
        valid = truth != 255
        np.add.at(matrix, (truth[valid], prediction[valid]), 1)
    again = np.arange(images) % len(drawn)
    counts = per_image_counts(matrices)[again]
    matrix = sum(matrices[i] for i in again)
    suspects = np.full((images, FOUND, len(FIELDS)), np.nan, np.float32)
    suspects[: min(2, images), 0] = [0.4, 0, 1, 0.97, 0.1, 0.2, 0.1, 0.5, 0.6]
    others = {
        "sizes": np.array([[size[1] + i, size[0]] for i in range(images)], np.int32),
        "brightness": np.array([np.asarray(image).mean() / 255 for image, *_ in drawn], np.float32)[again],
        "suspects": suspects,
    }
    save_confusion(folder, matrix, dict(enumerate(names)))
    save_per_image(folder, stems, counts, counts, names, **others)
    scores = {f"eval_{key}": value for key, value in summarize_images(counts, counts).items()}
    scores |= {"eval_loss": 0.5, "eval_runtime": 12.0, "eval_samples_per_second": 3.0, "eval_protocol": "whole image"}
    scores |= {"eval_temperature": 1.4, "eval_ece": 0.02, "eval_ece_uncalibrated": 0.08}
    (folder / "eval_results.json").write_text(json.dumps(scores))
    log = [{"loss": 2 / step, "grad_norm": 1.0, "learning_rate": 1e-4, "step": step} for step in range(1, steps + 1)]
    log += [{"eval_loss": 3 / step, "eval_mean_iou": 1 - 1 / step, "step": step} for step in range(20, steps + 1, 20)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log, "global_step": steps}))
    training = {"train_runtime": 300.0, "train_samples_per_second": 4.0}
    (folder / "train_results.json").write_text(json.dumps(training))

    colors = default_palette(classes)
    examples, doubtful = draw_examples(
        load_per_image(folder), lambda i: drawn[again[i]][:2], drawn_prediction(drawn), colors, EXAMPLES
    )
    pixels = counts[:, 1].sum(axis=0).tolist()
    found = {"kind": "class-rare", "severity": "warning", "message": f"{names[0]} is rare", "fix": "more of it"}
    record = {
        "model": "SegFormer: 3.7 M parameters",
        "written": "2026-01-01 12:00",
        "settings": [["learning_rate", "0.001", "6e-05"], ["dataset_dir", "photos & <i>masks</i>", None]],
        "split_groups": None,
        "reliability": {
            kind: [[0.25, x, x**power] for x in (0.3, 0.55, 0.8, 0.98)]
            for kind, power in (("before", 1.3), ("after", 1.05))
        },
        "colors": [hex_color(color) for color in colors],
        "device": "CPU, 2 cores",
        "peak_memory": "1.20 GiB of main memory",
        "versions": {"Python": "3.11.7", "torch": "2.14.1"},
        "data": {
            "dataset": "photos",
            "layout": "split folders",
            "splits": {"train": 20, "validation": images},
            "id2label": dict(enumerate(names)),
            "class_pixels": {"train": pixels, "validation": pixels},
            "findings": [found | {"files": [], "count": 0}],
            "checked": True,
        },
        "examples": examples,
        "suspects": doubtful,
    }
    (folder / "report.json").write_text(json.dumps(record))
    return folder


def drawn_prediction(drawn):
    """image → its prediction."""
    of_image = {id(image): prediction for image, _, prediction in drawn}
    return lambda image: of_image[id(image)]
