"""The model card of a run, `README.md`, from what the run left in its folder."""

import csv
import json
import math
import os
import re
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from cli_utils import is_path, printable, redact, written_aside
from data.classes import ClassMap, read_class_list
from metrics_utils import csv_text
from models.arguments import ModelArguments
from reports.templates import render
from training.arguments import GROUPS, PLAN_FILE, SegmentationTrainingArguments

METRIC_NAMES = {"mean_iou": "Mean IoU", "mean_accuracy": "Mean accuracy", "overall_accuracy": "Overall accuracy"}
CALIBRATION = ("ece", "temperature", "ece_uncalibrated")
PICTURES = ("sample.jpg", "confusion_matrix.png", "curves.png")
# The heading of the card's last part.
VERSIONS = b"## Framework versions"


def write_model_card(output_dir: str | Path, repo_id: str | None = None, license: str | None = None) -> Path:
    """Writes `README.md`, `model_card`, and returns its path."""
    path = Path(output_dir, "README.md")
    content = model_card(output_dir, repo_id, license)
    with written_aside(path) as partial:
        partial.write_bytes(content)
    return path


def name_repository(output_dir: str | Path, repo_id: str, license: str | None = None) -> bool:
    """Writes the card of a finished run anew, now with the repository that it is published in.

    The versions in it stay those of the packages that trained. Returns False, and leaves the card as it is, where it
    is not what the run wrote: somebody has edited it.
    """
    path = Path(output_dir, "README.md")
    if not path.is_file():
        write_model_card(output_dir, repo_id, license)
        return True
    before = path.read_bytes()
    known = {None, repo_id, named_repository(output_dir)}
    text, _, versions = before.partition(VERSIONS)
    if text not in [model_card(output_dir, name, license).partition(VERSIONS)[0] for name in known]:
        return False
    content = model_card(output_dir, repo_id, license).partition(VERSIONS)[0] + VERSIONS + versions
    with written_aside(path) as partial:
        partial.write_bytes(content)
    return True


def named_repository(output_dir: str | Path) -> str | None:
    """The repository that the card of a run names: where it was published, as far as the card knows."""
    path = Path(output_dir, "README.md")
    named = re.search(rb'^model_id = "(.+)"$', path.read_bytes(), flags=re.MULTILINE) if path.is_file() else None
    return _hub_id(named[1].decode()) if named else None


def model_card(output_dir: str | Path, repo_id: str | None = None, license: str | None = None) -> bytes:
    """The card of a run with the Hub's metadata, UTF-8.

    Everything in it comes from the files of the run (`arguments.yaml`, `config.json`, `labels.json`,
    `trainer_state.json`, `train_results.json`, `eval_results.json`, `per_category.csv`, `plan.yaml`, and
    pictures); what is not there is left out. Paths of this machine are private: of a folder the card holds the last
    name alone.

    Args:
        repo_id: where the model will be published, for the usage example.
        license: licence id of the published weights; none is claimed unless it is given.
    """
    run = Path(output_dir)
    flags, config = _read(run / "arguments.yaml"), _read(run / "config.json")
    state, metrics = _read(run / "trainer_state.json"), _read(run / "eval_results.json")
    scores = {key: metrics.get(f"eval_{key}", math.nan) for key in METRIC_NAMES}
    scores = {key: value for key, value in scores.items() if math.isfinite(value)}
    outputs = {int(i): name for i, name in config.get("id2label", {}).items()}
    names = read_class_list(run / "labels.json")[0] if (run / "labels.json").is_file() else outputs
    saved_map = config.get("segmentation_label_map")
    has_pretrained = flags and not flags.get("from_scratch")
    base_model = ModelArguments(flags.get("model_name_or_path")).source if has_pretrained else None
    dataset = flags.get("dataset_name") or flags.get("dataset_dir")
    facts = {
        "title": (repo_id or run.resolve().name).split("/")[-1],
        "base_model_id": _hub_id(base_model),
        "dataset_id": _hub_id(flags.get("dataset_name")),
        "dataset": _hub_id(flags.get("dataset_name")) or _last_name(dataset),
    }
    return render(
        "model_card.md.j2",
        **facts,
        metadata=_metadata(**facts, license=license, config_name=flags.get("dataset_config_name"), scores=scores),
        repo_id=repo_id,
        flags=flags,
        base_model=base_model,
        architecture=config.get("architectures", ["?"])[0],
        names=names,
        class_map=ClassMap.from_config(saved_map, names) if saved_map else None,
        single_logit=len(outputs) == 1,
        pictures=[name for name in PICTURES if (run / name).is_file()],
        interval=_finite(metrics, "mean_iou_low", "mean_iou_high"),
        calibration=(found := _finite(metrics, *CALIBRATION)) and dict(zip(CALIBRATION, found, strict=True)),
        calibrated="segmentation_temperature" in config,
        plan=_plan(run / PLAN_FILE),
        scores=[(METRIC_NAMES[key], value) for key, value in scores.items()],
        protocol=metrics.get("eval_protocol"),
        categories=_categories(run / "per_category.csv"),
        # A flag that was not given has the project's default.
        settings={field.name: field.default for field in fields(SegmentationTrainingArguments)} | flags,
        steps=state.get("global_step") if flags else None,
        processes=_read(run / "train_results.json").get("num_processes", 1),
        last_name=_last_name,
        version=version,
    )


def _read(path: Path) -> dict:
    """The content of a JSON or YAML file; nothing where there is no file."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text) or {}


def _finite(metrics: dict, *names: str) -> list[float]:
    """Numbers of an evaluation; none where one of them is missing."""
    values = [metrics.get(f"eval_{name}", math.nan) for name in names]
    return values if all(map(math.isfinite, values)) else []


def _plan(file: Path) -> list[str]:
    """The settings of a plan with their reasons, a line each, without its heading, which says where the data lie."""
    if not file.is_file():
        return []
    takes_path = {field.name for kind in GROUPS.values() for field in fields(kind) if is_path(field)}
    lines = []
    for line in file.read_text(encoding="utf-8").partition("\n\n")[2].splitlines():
        name, colon, rest = line.partition(": ")
        if colon and name in takes_path:
            value = yaml.safe_load(rest)
            if isinstance(value, str) and not _hub_id(value):
                written = yaml.safe_dump({name: value}, allow_unicode=True, width=10**6).rstrip()
                reason = line.removeprefix(written) if line.startswith(written) else ""
                line = f"{name}: {_last_name(value)}{reason}"
        lines.append(line)
    return lines


def _categories(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with open(file, newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        name = row["name"].removeprefix("'")
        if csv_text(name) == row["name"]:  # the apostrophe is for spreadsheets
            row["name"] = name
    return rows


def _hub_id(name: str | None) -> str | None:
    """`name` if it can only be an id on the Hub, NAMESPACE/NAME; None for folders and names of local loaders."""
    if not name or name.count("/") != 1 or os.path.exists(os.path.expanduser(name)):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _last_name(path: str | None) -> str | None:
    """The last part of a path, for use in backticks."""
    if not path:
        return None
    # Where it is a URL its query may be signed.
    name = Path(os.path.expanduser(redact(path))).resolve().name
    return printable(" ".join(name.replace("`", "'").split()))


def _metadata(
    title: str,
    base_model_id: str | None,
    dataset_id: str | None,
    dataset: str | None,
    license: str | None,
    config_name: str | None,
    scores: dict[str, float],
) -> ModelCardData:
    """The Hub's metadata; only what has an id on the Hub is named there."""
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=dataset_id or "custom",
            dataset_name=dataset or "the training data",
            dataset_config=config_name,
            dataset_split="validation",
            metric_type=key,
            metric_name=METRIC_NAMES[key],
            metric_value=float(value),
        )
        for key, value in scores.items()
    ]
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["image-segmentation", "semantic-segmentation", "vision"],
        base_model=base_model_id,
        datasets=dataset_id,
        metrics=list(scores) or None,
        model_name=title,
        eval_results=results or None,
    )
    if not scores:
        data.pop("model_name")  # part of the evaluation results, not a key of its own
    return data
