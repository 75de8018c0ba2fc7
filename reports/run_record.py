"""What a run's page shows and no other file keeps: settings, data, machine, and pictures of examples.

`report.json` holds it, so that the page can be made again when dataset and model are gone. `RunPage` writes it and the
page, after each evaluation while a model trains, and at the end.
"""

import logging
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict
from transformers import TrainerCallback

from checks.records import Finding
from checks.suspects import FIELDS
from cli_utils import WriteError, one_line, redact
from data.bulk import column_of
from data.classes import ClassMap
from data.image_files import rgb_view
from data.reduced_copies import count_copies
from data_utils import Data
from metrics_utils import SCORES, without_per_category
from models.calibration import Calibration
from models.loading import describe_model
from reports.intervals import PerImage
from reports.pictures import around, example, hex_color
from reports.run_page import PAGE, Run, now, read_run, write_run_page
from reports.trackers import log_pictures
from training.arguments import GROUPS, Arguments
from training.dry_run import peak_memory
from training.output_folder import NEW_RUN
from training.trainer import SegmentationTrainer

logger = logging.getLogger(__name__)

# Examples of each kind: at the end, and while a model trains, when they take time from training.
EXAMPLES = {"worst": 6, "median": 3, "best": 3}
FEW_EXAMPLES = {"worst": 3, "median": 1, "best": 1}
SUSPECTS = 12
PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "numpy")


# ---- facts ----------------------------------------------------------------------------------------------------------


def new_record(
    args: Arguments, data: Data, dataset: DatasetDict, class_map: ClassMap, findings: Sequence[Finding] | None
) -> dict:
    """Settings, data and machine of a run, as JSON can hold them.

    Args:
        dataset: of `checks.judge`. findings: what the check of the data found; None if there was none.
    """
    pixels = {split: column_of(rows, "class_pixels").sum(axis=0) for split, rows in dataset.items() if len(rows)}
    device = torch.accelerator.current_accelerator() if args.training.device.type != "cpu" else None
    name = torch.get_device_module(device).get_device_name() if device else f"CPU, {os.cpu_count()} cores"
    return {
        "settings": _settings(args),
        "split_groups": args.dataset.split_groups,
        "colors": [hex_color(color) for color in class_map.colors()],
        "device": f"{name}, {torch.get_num_threads()} threads" if device is None else name,
        "versions": {"Python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "data": {
            "dataset": redact(data.source),
            "layout": data.layout,
            "splits": {split: len(rows) for split, rows in dataset.items()},
            "read_from_copies": sum(map(count_copies, dataset.values())),
            "id2label": class_map.id2label,
            "class_pixels": {split: counts.tolist() for split, counts in pixels.items()},
            "findings": [asdict(found) for found in findings or ()],
            "checked": findings is not None,
        },
    }


def _settings(args: Arguments) -> list[tuple]:
    """(flag, value, default) of what was given and is not the default."""
    values = args.values()
    defaults = {
        one.name: one.default_factory() if callable(one.default_factory) else one.default
        for kind in GROUPS.values()
        for one in fields(kind)
    }
    given = [name for name in args.given if name in values]
    plain = {name: getattr(defaults[name], "value", defaults[name]) for name in given}
    return [
        (name, redact(str(values[name])), None if plain[name] is None else str(plain[name]))
        for name in given
        if values[name] != plain[name]
    ]


def evaluated_images(trainer: SegmentationTrainer, class_map: ClassMap) -> PerImage:
    """The trainer's last evaluation of its `eval_dataset`, image by image."""
    metric, split = trainer.compute_metrics, trainer.eval_dataset.split
    sizes = np.stack([column_of(split, "height"), column_of(split, "width")], axis=1).astype(np.int32)
    others = {"sizes": sizes} | dict(zip(("brightness", "suspects"), metric.others, strict=False))
    names = [class_map.id2label[i] for i in range(class_map.num_labels)]
    return PerImage(split["name"][:], names, metric.counts, metric.boundary, others)


# ---- pictures -------------------------------------------------------------------------------------------------------


def pick(images: PerImage, wanted: dict[str, int]) -> list[tuple[str, int, float]]:
    """(kind, place, mean IoU of its own) of the images to show, each once; the worst first."""
    scores = SCORES["mean_iou"](images.counts)
    order = [i for i in np.argsort(scores, kind="stable").tolist() if scores[i] == scores[i]]
    worst = order[: wanted["worst"]]
    rest = order[len(worst) :]
    best = rest[max(0, len(rest) - wanted["best"]) :][::-1]
    rest = rest[: len(rest) - len(best)]
    begin = max(0, (len(order) - wanted["median"]) // 2 - len(worst))
    median = rest[begin : begin + wanted["median"]] or rest[-1:]
    kinds = {"worst": worst, "median": median, "best": best}
    return [(kind, i, float(scores[i])) for kind, places in kinds.items() for i in places]


def draw_examples(
    images: PerImage, read: Callable, predict: Callable, colors: np.ndarray, wanted: dict[str, int]
) -> tuple[list[dict], list[dict]]:
    """Pictures of chosen images, and of regions whose annotation may be wrong, for `reports.run_page`.

    Args:
        read, predict: as for `reports.predictions.write_predictions`.
        wanted: images of each kind.
    """

    @cache
    def seen(place: int) -> tuple:
        image, truth = read(place)
        return rgb_view(image), np.asarray(truth), np.asarray(predict(image)).astype(np.uint8)

    names = images.class_names
    examples = [
        example(*seen(place), colors, names) | {"name": images.names[place], "kind": kind, "iou": score}
        for kind, place, score in pick(images, wanted)
    ]
    suspects = []
    for place, region in suspected(images)[:SUSPECTS]:
        photo, truth, prediction = seen(place)
        left, top, right, bottom = around(photo.size, [region[side] for side in ("left", "top", "right", "bottom")])
        crop = (slice(top, bottom), slice(left, right))
        shown = example(photo.crop((left, top, right, bottom)), truth[crop], prediction[crop], colors, names)
        scale = shown["width"] / (right - left)
        box = [
            (region["left"] * photo.width - left) * scale,
            (region["top"] * photo.height - top) * scale,
            (region["right"] - region["left"]) * photo.width * scale,
            (region["bottom"] - region["top"]) * photo.height * scale,
        ]
        told = {"truth": names[int(region["truth"])], "predicted": names[int(region["predicted"])]}
        told |= {"confidence": region["confidence"], "share": region["share"]}
        suspects.append(shown | {"name": images.names[place], "box": [round(x, 1) for x in box], "suspect": told})
    return examples, suspects


def suspected(images: PerImage) -> list[tuple[int, dict[str, float]]]:
    """(place of the image, fields of `checks.suspects`) of every region found, most suspicious first."""
    found = images.others.get("suspects")
    if found is None:
        return []
    places = np.argwhere(~np.isnan(found[..., 0])).tolist()
    regions = [(i, dict(zip(FIELDS, found[i, j].tolist(), strict=True))) for i, j in places]
    return sorted(regions, key=lambda region: -region[1]["score"])


# ---- writing --------------------------------------------------------------------------------------------------------


class RunPage(TrainerCallback):
    """Keeps the page of a run up to date: after each evaluation of a training run, and, by `finish`, at the end.

    Until the run has its first checkpoint the page lies where the run works (`training.output_folder`), and moves in
    with it. What goes wrong in making the page is logged, and stops nobody's training.
    """

    def __init__(self, trainer: SegmentationTrainer, record: dict, class_map: ClassMap):
        self.trainer, self.class_map = trainer, class_map
        self.record = record | {"model": describe_model(trainer.model)}
        self.is_training = False
        self.run = None  # of the last evaluation
        self.place = None  # that was last said

    def on_train_begin(self, args, state, control, **kwargs):
        self.is_training = True

    def on_train_end(self, args, state, control, **kwargs):
        self.is_training = False

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not (self.is_training and state.is_world_process_zero and "eval_loss" in (metrics or {})):
            return
        try:
            self.run = self._current(metrics)
            self.run.progress = f"still training: step {state.global_step:,} of {state.max_steps:,}"
            folder = Path(args.output_dir, *[NEW_RUN] * bool(self.trainer.replaced))
            write_run_page(folder, self.run, page_alone=True)
            if folder != self.place:
                self.place = folder
                logger.info(f"the page of the run, made again after each evaluation: {folder / PAGE}")
        except WriteError:
            raise  # the disk is full: no checkpoint can be written either
        except Exception as error:
            logger.warning(f"the page of the run could not be made after step {state.global_step}: {one_line(error)}")
        log_pictures(self.trainer, self.class_map)

    def add_calibration(self, calibration: Calibration) -> None:
        """Of the evaluation that the page shows at the end."""
        bins = {"before": calibration.bins_uncalibrated, "after": calibration.bins}
        self.record["reliability"] = {
            name: values[values[:, 0] > 0].tolist() for name, values in bins.items() if values is not None
        }

    def _current(self, metrics: dict) -> Run:
        """The run as it stands."""
        trainer = self.trainer
        images = evaluated_images(trainer, self.class_map)
        scores = without_per_category(metrics) | {"eval_protocol": trainer.protocol.describe()}
        run = Run(
            trainer.args.output_dir,
            trainer.state.log_history,
            trainer.compute_metrics.confusion_matrix,
            images,
            scores,
            record=self.record | {"written": now(), "peak_memory": peak_memory(trainer.args.device)},
        )
        self._add_pictures(run, FEW_EXAMPLES)
        return run

    def _add_pictures(self, run: Run, wanted: dict[str, int]) -> None:
        trainer = self.trainer
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            return  # one process alone cannot predict
        read, predict = trainer.eval_dataset.read, trainer.predict_ids
        examples, suspects = draw_examples(run.images, read, predict, self.class_map.colors(), wanted)
        run.record |= {"examples": examples, "suspects": suspects}

    def write_trained(self, folder: Path) -> None:
        """The page of a model that has trained, with its last evaluation, if there was one."""
        trainer = self.trainer
        run = self.run or Run(trainer.args.output_dir, record=self.record | {"written": now()})
        run.log, run.progress = trainer.state.log_history, ""
        try:
            write_run_page(folder, run)
        except WriteError:
            raise  # the disk is full: no checkpoint can be written either
        except Exception as error:
            logger.warning(f"the page of the run could not be made: {one_line(error)}")

    def finish(self, folder: Path, evaluated: bool) -> None:
        """The page at the end of a run, in the main process. evaluated: with the scores that lie in the folder."""
        if not self.trainer.is_world_process_zero():
            return
        try:
            run = read_run(folder)
            if evaluated:
                run.record = self.record | {"written": now(), "peak_memory": peak_memory(self.trainer.args.device)}
                self._add_pictures(run, EXAMPLES)
            write_run_page(folder, run)
        except WriteError:
            raise  # the disk is full: no checkpoint can be written either
        except Exception as error:
            logger.warning(f"the page of the run could not be made: {one_line(error)}")
