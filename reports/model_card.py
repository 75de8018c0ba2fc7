"""The model card of a run, `README.md`, from what the run left in its folder."""

import csv
import html
import json
import math
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import (
    HFValidationError,
)
from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments

METRIC_NAMES = {"mean_iou": "Mean IoU", "mean_accuracy": "Mean accuracy", "overall_accuracy": "Overall accuracy"}
MAX_OPEN_TABLE_ROWS = 30


# ---- model card -----------------------------------------------------------------------------------------------------


def training_hyperparameters(args: TrainingArguments, steps: int | None = None) -> dict[str, object]:
    """What the card says about training, by printed name; `steps` are the optimizer steps that were taken."""
    settings = args.to_dict()  # enumerations become their values
    effective_batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    rows = {
        "learning rate": args.learning_rate,
        "batch size": f"{effective_batch} ({args.train_batch_size} per device, {args.world_size} process(es), "
        f"{args.gradient_accumulation_steps} accumulated)",
        "epochs": args.num_train_epochs if args.max_steps <= 0 else None,
        "optimizer steps": steps or (args.max_steps if args.max_steps > 0 else None),
        "optimizer": settings["optim"],
        "weight decay": args.weight_decay,
        "learning rate schedule": settings["lr_scheduler_type"],
        "warm-up steps": args.warmup_steps,
        "mixed precision": "bf16" if args.bf16 else "fp16" if args.fp16 else None,
        "seed": args.seed,
    }
    return {name: value for name, value in rows.items() if value is not None}


def write_model_card(
    output_dir: str | Path,
    *,
    repo_id: str | None = None,
    metrics: dict | None = None,
    base_model: str | None = None,
    from_scratch: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    dataset_split: str | None = "validation",
    do_reduce_labels: bool = False,
    ignore_values: tuple[int, ...] = (),
    class_table: str | None = None,
    single_logit: bool = False,
    hyperparameters: dict[str, object] | None = None,
    license: str | None = None,
) -> Path:
    """Writes `README.md` with the Hub's metadata from what the run left in `output_dir`; returns its path.

    The architecture and the class count come from `config.json`, the per-category table from `per_category.csv`, the
    picture is `sample.jpg`; what is not there is left out. No path of this machine gets into the card.

    Args:
        repo_id: where the model will be published, for the usage example.
        metrics: content of `eval_results.json`; None where the model was not evaluated.
        base_model: Hub id or folder of the pretrained model; only a Hub id becomes metadata.
        from_scratch: instead, the variant or `config.json` whose weights were random.
        dataset: Hub id or folder; of a folder the last name alone is mentioned.
        do_reduce_labels, ignore_values: how annotation values became class ids.
        class_table: annotation value → class, where classes were merged, dropped or mapped.
        single_logit: the model has one output for two classes.
        hyperparameters: printed name → value (see `training_hyperparameters`); None where nothing was trained.
        license: licence id of the published weights; none is claimed unless it is given.
    """
    output_dir = Path(output_dir)
    title = (repo_id or output_dir.resolve().name).split("/")[-1]
    scores = {key: value for key in METRIC_NAMES if (value := _score(metrics, key)) is not None}
    dataset_name = _public_name(dataset) or "the training data"
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["image-segmentation", "semantic-segmentation", "vision"],
        base_model=_hub_id(base_model),
        datasets=_hub_id(dataset),
        metrics=list(scores) or None,
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="image-segmentation",
                task_name="Semantic segmentation",
                dataset_type=_hub_id(dataset) or "custom",
                dataset_name=dataset_name,
                dataset_config=dataset_config,
                dataset_split=dataset_split,
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
    sections = [
        f"# {title}",
        _introduction(output_dir, base_model, from_scratch, dataset, dataset_config),
        _picture(output_dir),
        _usage(repo_id),
        _labels(do_reduce_labels, ignore_values, class_table, single_logit),
        _results(output_dir, metrics, scores),
        _training(hyperparameters),
        _versions(),
    ]
    path = output_dir / "README.md"
    path.write_text("\n\n".join([f"---\n{data}\n---", *filter(None, sections)]) + "\n", encoding="utf-8")
    return path


def _hub_id(name: str | None) -> str | None:
    """`name` if it can only be an id on the Hub, NAMESPACE/NAME; None for folders and names of local loaders."""
    if not name or name.count("/") != 1 or Path(name).expanduser().exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _public_name(name: str | None) -> str | None:
    """A Hub id as it is, of a path the last part only: where the data lay on this machine is nobody's business."""
    if not name:
        return None
    return _hub_id(name) or Path(name).expanduser().resolve().name


def _score(metrics: dict | None, key: str) -> float | None:
    """The finite value of an evaluation metric, or None."""
    value = (metrics or {}).get(f"eval_{key}")
    return float(value) if value is not None and math.isfinite(value) else None


def _table(header: tuple[str, ...], rows: list[tuple]) -> str:
    """A Markdown table; text cannot break out of its cell."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(html.escape(str(cell), quote=False).replace("|", "&#124;") for cell in line) + " |"
        for line in lines
    )


def _introduction(output_dir, base_model, from_scratch, dataset, dataset_config) -> str:
    model = "A model"
    if (output_dir / "config.json").is_file():
        config = json.loads((output_dir / "config.json").read_text(encoding="utf-8"))
        model = f"`{config['architectures'][0]}` with {len(config['id2label'])} classes"
    origin = ""
    if from_scratch:
        origin = f", trained from random weights (`{Path(from_scratch).name}`)"
    elif _hub_id(base_model):
        origin = f", fine-tuned from [{base_model}](https://huggingface.co/{base_model})"
    elif base_model:
        origin = f", fine-tuned from a local model (`{_public_name(base_model)}`)"
    data = ""
    if _hub_id(dataset):
        data = f" on [{dataset}](https://huggingface.co/datasets/{dataset})"
    elif dataset:
        data = f" on the data set `{_public_name(dataset)}`"
    if dataset and dataset_config:
        data += f" (configuration `{dataset_config}`)"
    return f"{model} for semantic segmentation{origin}{data}."


def _picture(output_dir: Path) -> str | None:
    if not (output_dir / "sample.jpg").is_file():
        return None
    return "![image, annotation and prediction](sample.jpg)\n\nFrom left to right: image, annotation, prediction."


def _usage(repo_id: str | None) -> str:
    return f"""## Usage

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

model_id = "{repo_id or "path/to/this/folder"}"
image = Image.open("photo.jpg").convert("RGB")

# One binary mask for each class that was found …
segments = pipeline("image-segmentation", model=model_id)(image)

# … or one class id for each pixel.
processor = AutoImageProcessor.from_pretrained(model_id)
model = AutoModelForSemanticSegmentation.from_pretrained(model_id).eval()
with torch.inference_mode():
    outputs = model(**processor(images=image, return_tensors="pt"))
prediction = processor.post_process_semantic_segmentation(outputs, target_sizes=[(image.height, image.width)])[0]
```"""


def _labels(
    do_reduce_labels: bool, ignore_values: tuple[int, ...], class_table: str | None, single_logit: bool
) -> str:
    if class_table:
        text = f"Values in the annotation files and the classes they became:\n\n```\n{class_table}\n```\n\n"
    else:
        rule = "value n means class n"
        if do_reduce_labels:
            rule = "value 0 is ignored, and value n means class n - 1 (`do_reduce_labels`)"
        ignored = ", ".join(str(value) for value in sorted({*ignore_values, 255}))
        text = f"In the annotation files {rule}; ignored in training and evaluation: {ignored}. "
    names = "The names of the classes are in `config.json` and `labels.json`."
    if single_logit:
        names = (
            "The names of both classes are in `labels.json`. The model has one output: a pixel is of the second class "
            "where it is above 0. `pipeline` and `post_process_semantic_segmentation` take the highest of several "
            "outputs and do not fit such a model; `predict.py` does."
        )
    return f"## Labels\n\n{text}{names}"


def _results(output_dir: Path, metrics: dict | None, scores: dict[str, float]) -> str:
    if not scores:
        return "## Evaluation\n\nThis model was not evaluated."
    rows = [(METRIC_NAMES[key], f"{value:.4f}") for key, value in scores.items()]
    parts = ["## Evaluation", _table(("metric", "value"), rows)]
    if metrics.get("eval_protocol"):
        parts.append(f"Protocol: {metrics['eval_protocol']}.")
    if (output_dir / "per_category.csv").is_file():
        with open(output_dir / "per_category.csv", newline="", encoding="utf-8") as file:
            rows = [
                (row["id"], row["name"], _ratio(row["iou"]), _ratio(row["accuracy"])) for row in csv.DictReader(file)
            ]
        table = _table(("id", "category", "IoU", "accuracy"), rows)
        if len(rows) > MAX_OPEN_TABLE_ROWS:
            table = f"<details>\n<summary>{len(rows)} categories</summary>\n\n{table}\n\n</details>"
        parts += ["No IoU: in neither annotations nor predictions. No accuracy: not in the annotations.", table]
    return "\n\n".join(parts)


def _ratio(field: str) -> str:
    return f"{float(field):.4f}" if field else "–"


def _training(hyperparameters: dict[str, object] | None) -> str | None:
    return hyperparameters and "## Training\n\n" + _table(("hyperparameter", "value"), list(hyperparameters.items()))


def _versions() -> str:
    packages = ("transformers", "torch", "torchvision", "datasets", "accelerate")
    return "## Framework versions\n\n" + "\n".join(f"- {package} {version(package)}" for package in packages)
