"""The model card of a run, `README.md`, from what the run left in its folder."""

import csv
import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from cli_utils import written_aside
from data.classes import ClassMap, read_class_list
from models.arguments import ModelArguments
from reports.templates import render
from training.arguments import SegmentationTrainingArguments

METRIC_NAMES = {"mean_iou": "Mean IoU", "mean_accuracy": "Mean accuracy", "overall_accuracy": "Overall accuracy"}
PACKAGES = ("transformers", "torch", "torchvision", "datasets", "accelerate")
# Flags that the card names where they were given.
OTHER_SETTINGS = (
    *("loss", "class_weights", "freeze_encoder", "lora_r", "head_lr_multiplier", "ema_decay", "sync_bn"),
    "early_stopping_patience",
)


class Source(NamedTuple):
    """Where a model or a dataset came from: an id on the Hub if it has one, and a name without folders."""

    hub_id: str | None
    name: str | None


def write_model_card(output_dir: str | Path, repo_id: str | None = None, license: str | None = None) -> Path:
    """Writes `README.md` with the Hub's metadata and returns its path.

    Everything in it comes from the files of the run (`arguments.yaml`, `config.json`, `labels.json`,
    `trainer_state.json`, `train_results.json`, `eval_results.json`, `per_category.csv`, `sample.jpg`); what is not
    there is left out. Paths of this machine are private: of a folder the card holds the last name alone.

    Args:
        repo_id: where the model will be published, for the usage example.
        license: licence id of the published weights; none is claimed unless it is given.
    """
    run = Path(output_dir)
    flags, config = _read(run / "arguments.yaml"), _read(run / "config.json")
    state, results = _read(run / "trainer_state.json"), _read(run / "train_results.json")
    metrics = _read(run / "eval_results.json")
    scores = {key: value for key in METRIC_NAMES if (value := _score(metrics, key)) is not None}

    base_model = Source(None, None)
    if flags and not flags.get("from_scratch"):
        base_model = _source(ModelArguments(flags.get("model_name_or_path")).source)
    dataset = _source(flags.get("dataset_name"))
    if flags.get("dataset_dir"):
        dataset = Source(None, _last_name(flags["dataset_dir"]))

    title = (repo_id or run.resolve().name).split("/")[-1]
    path = run / "README.md"
    content = render(
        "model_card.md.j2",
        metadata=_metadata(title, license, base_model, dataset, flags, scores),
        title=title,
        repo_id=repo_id,
        architecture=config.get("architectures", [None])[0],
        from_scratch=_last_name(flags.get("from_scratch")),
        base_model=base_model,
        dataset=dataset,
        dataset_config=flags.get("dataset_config_name"),
        has_sample=(run / "sample.jpg").is_file(),
        scores=[(METRIC_NAMES[key], f"{value:.4f}") for key, value in scores.items()],
        protocol=metrics.get("eval_protocol"),
        categories=_categories(run / "per_category.csv"),
        hyperparameters=_hyperparameters(flags, state, results) if flags and state else [],
        versions=[(package, version(package)) for package in PACKAGES],
        **_labels(run / "labels.json", config),
    )
    with written_aside(path) as partial:
        partial.write_bytes(content)
    return path


def _read(path: Path) -> dict:
    """The content of a JSON or YAML file; nothing where there is no file."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text) or {}


def _score(metrics: dict, key: str) -> float | None:
    """The finite value of an evaluation metric, or None."""
    value = metrics.get(f"eval_{key}")
    return float(value) if value is not None and math.isfinite(value) else None


def _source(name: str | None) -> Source:
    """A name that can only be an id on the Hub, NAMESPACE/NAME, is one; folders and names of local loaders are not."""
    if name and name.count("/") == 1 and not Path(name).expanduser().exists():
        try:
            validate_repo_id(name)
            return Source(name, name)
        except HFValidationError:
            pass
    return Source(None, _last_name(name))


def _last_name(path: str | None) -> str | None:
    """The last part of a path, for use in backticks."""
    return Path(path).expanduser().resolve().name.replace("`", "'").replace("\n", " ") if path else None


def _metadata(
    title: str, license: str | None, base_model: Source, dataset: Source, flags: dict, scores: dict[str, float]
) -> ModelCardData:
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["image-segmentation", "semantic-segmentation", "vision"],
        base_model=base_model.hub_id,
        datasets=dataset.hub_id,
        metrics=list(scores) or None,
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="image-segmentation",
                task_name="Semantic segmentation",
                dataset_type=dataset.hub_id or "custom",
                dataset_name=dataset.name or "the training data",
                dataset_config=flags.get("dataset_config_name"),
                dataset_split="validation",
                metric_type=key,
                metric_name=METRIC_NAMES[key],
                metric_value=value,
            )
            for key, value in scores.items()
        ]
        or None,
    )
    if not scores:
        data.pop("model_name")  # part of the evaluation results, not a key of its own
    return data


def _labels(labels_file: Path, config: dict) -> dict:
    """What annotation values mean, as the template names it."""
    outputs = {int(i): name for i, name in config.get("id2label", {}).items()}
    names = read_class_list(labels_file)[0] if labels_file.is_file() else outputs
    single_logit = len(outputs) == 1
    saved = config.get("segmentation_label_map")
    class_map = ClassMap.from_config(saved, names) if saved else None
    value_names = []
    if saved and saved["raw_to_id"] is not None:
        # Ignored values have no name and come last.
        pairs = sorted(class_map.value_ids.items(), key=lambda pair: pair[::-1])
        value_names = [(raw, f"{i} {names[i]}" if i in names else "ignored") for raw, i in pairs]
    return {
        "names": names,
        "single_logit": single_logit,
        "do_reduce_labels": bool(saved and saved["do_reduce_labels"]),
        "ignore_values": sorted({*(saved["ignore_values"] if saved else ()), 255}),
        "value_names": value_names,
    }


def _categories(file: Path) -> list[tuple[str, ...]]:
    """Id, name, IoU and accuracy of each class; a dash for what is undefined."""
    if not file.is_file():
        return []
    with open(file, newline="", encoding="utf-8") as lines:
        return [
            (row["id"], row["name"], *(f"{float(row[key]):.4f}" if row[key] else "–" for key in ("iou", "accuracy")))
            for row in csv.DictReader(lines)
        ]


def _hyperparameters(flags: dict, state: dict, results: dict) -> list[tuple[str, object]]:
    """Name and value of what the run was trained with; a flag that was not given has the project's default."""

    def setting(name: str):
        return flags.get(name, SegmentationTrainingArguments.__dataclass_fields__[name].default)

    batch, accumulated = int(setting("per_device_train_batch_size")), int(setting("gradient_accumulation_steps"))
    processes = results.get("num_processes", 1)
    rows = {
        "learning rate": setting("learning_rate"),
        "batch size": f"{batch * accumulated * processes} ({batch} per device, "
        f"{processes} {'process' if processes == 1 else 'processes'}, {accumulated} accumulated)",
        "epochs": setting("num_train_epochs") if setting("max_steps") <= 0 else None,
        "optimizer steps": state["global_step"],
        "optimizer": setting("optim"),
        "weight decay": setting("weight_decay"),
        "learning rate schedule": setting("lr_scheduler_type"),
        "warm-up steps": setting("warmup_steps"),
        "mixed precision": "bf16" if setting("bf16") else "fp16" if setting("fp16") else None,
        "seed": setting("seed"),
    }
    others = {name.replace("_", " "): flags[name] for name in OTHER_SETTINGS if flags.get(name)}
    if "class weights" in others:
        others["class weights"] = _last_name(others["class weights"])  # of a file
    return [(name, value) for name, value in (rows | others).items() if value is not None]
