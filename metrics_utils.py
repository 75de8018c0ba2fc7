"""Mean IoU from one streaming int64 confusion matrix: the metric, `compute_metrics` and the per-category table.

Counts first, ratios second: everything printed is derived from one (num_labels, num_labels) matrix whose rows are the
truth and whose columns are the prediction, so results do not depend on the order, the batch size or the number of
processes, and memory does not grow with the number of images.
"""

import csv
import re
from pathlib import Path

import datasets
import evaluate
import numpy as np
import torch
from transformers import EvalPrediction

IGNORE_INDEX = 255

# Per-category scalars, as in eval_iou_wall: trackers get a curve per class, while the console and `eval_results.json`
# show the means only.
_PER_CATEGORY = re.compile("[a-z]+_(iou|accuracy)_")


def confusion_matrix(predictions, references, num_labels: int, ignore_index: int = IGNORE_INDEX) -> torch.Tensor:
    """Counts pixels by (truth, prediction).

    Args:
        predictions: integer array or tensor of any shape, training ids in [0, num_labels).
        references: integer array or tensor of the same shape, training ids or `ignore_index`. Where the reference is
            `ignore_index` the pixel counts nowhere, whatever was predicted.

    Returns:
        int64 tensor (num_labels, num_labels) on the device of the inputs; rows are the truth.

    Raises:
        ValueError: shapes differ, or a counted pixel holds an id outside [0, num_labels).
    """
    predictions, references = (
        maps if isinstance(maps, torch.Tensor) else torch.from_numpy(np.array(maps, dtype=np.int64))
        for maps in (predictions, references)
    )
    if predictions.shape != references.shape:
        raise ValueError(
            f"predictions of shape {tuple(predictions.shape)} cannot be compared with references of shape "
            f"{tuple(references.shape)}: bring the prediction to the annotation's size first"
        )
    valid = references != ignore_index
    truth, predicted = references[valid].long(), predictions[valid].long()
    for name, values in (("references", truth), ("predictions", predicted)):
        if values.numel() and (values.min() < 0 or values.max() >= num_labels):
            bad = sorted(set(values[(values < 0) | (values >= num_labels)].tolist()))[:5]
            raise ValueError(f"{name} hold ids {bad}; allowed are 0 to {num_labels - 1} and {ignore_index} (ignored)")
    return torch.bincount(truth * num_labels + predicted, minlength=num_labels**2).reshape(num_labels, num_labels)


def category_ratios(intersection: np.ndarray, label: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Per-class ratios of pixel counts of any one shape, float64 of that shape, NaN where undefined.

    iou = intersection / (label + predicted - intersection), accuracy (recall) = intersection / label,
    precision = intersection / predicted, dice = 2 intersection / (label + predicted).
    """
    intersection, label, predicted = (np.asarray(count, np.float64) for count in (intersection, label, predicted))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "iou": intersection / (label + predicted - intersection),
            "accuracy": intersection / label,
            "precision": intersection / predicted,
            "dice": 2 * intersection / (label + predicted),
        }


def scores_from_confusion(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Per-class `category_ratios`, `label_pixels` and `predicted_pixels` of a confusion matrix (C, C), rows truth."""
    matrix = np.asarray(matrix)
    label_pixels, predicted_pixels = matrix.sum(axis=1), matrix.sum(axis=0)
    ratios = category_ratios(np.diagonal(matrix), label_pixels, predicted_pixels)
    return ratios | {"label_pixels": label_pixels, "predicted_pixels": predicted_pixels}


def _nanmean(values: np.ndarray) -> float:
    """Mean over the defined entries; NaN (without numpy's warning) where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def summarize_confusion(matrix: np.ndarray) -> dict:
    """The keys and values of evaluate's `mean_iou` for a confusion matrix.

    A class in neither prediction nor truth has a NaN IoU and is left out of `mean_iou`; a class absent from the truth
    has a NaN accuracy and is left out of `mean_accuracy`.
    """
    scores = scores_from_confusion(matrix)
    total = int(np.asarray(matrix).sum())
    return {
        "mean_iou": _nanmean(scores["iou"]),
        "mean_accuracy": _nanmean(scores["accuracy"]),
        "overall_accuracy": float(np.trace(matrix) / total) if total else float("nan"),
        "per_category_iou": scores["iou"],
        "per_category_accuracy": scores["accuracy"],
    }


class MeanIoU(evaluate.Metric):
    """Mean IoU with evaluate's interface and evaluate's values, streaming.

    `evaluate.load("mean_iou")` writes every map into an Arrow file and needs the Hub; this keeps one confusion matrix.
    As with every evaluate metric, the first `add` after a `compute` starts a new evaluation. Until then
    `confusion_matrix` (int64, (num_labels, num_labels), rows truth) still holds what was computed.
    """

    def __init__(self, num_labels: int, ignore_index: int = IGNORE_INDEX, **kwargs):
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}; at least one class is needed")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.confusion_matrix = np.zeros((num_labels, num_labels), dtype=np.int64)
        self._computed = False
        super().__init__(**kwargs)
        self.info.module_name = "mean_iou"  # evaluate derives "mean_io_u" from the class name

    def _info(self):
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("uint8")))
        return evaluate.MetricInfo(
            description="Mean intersection over union of semantic segmentation maps.",
            citation="",
            inputs_description="predictions, references: lists of integer maps of shape (height, width).",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def add_confusion_matrix(self, matrix):
        """Adds counts that were made elsewhere: int64, (num_labels, num_labels), rows truth."""
        if self._computed:
            self.confusion_matrix = np.zeros_like(self.confusion_matrix)
            self._computed = False
        self.confusion_matrix += np.asarray(matrix, dtype=np.int64)

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Adds a batch of maps: lists (sizes may differ) or one array (B, H, W)."""
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Adds one map: integers of shape (H, W)."""
        matrix = confusion_matrix(prediction, reference, self.num_labels, self.ignore_index)
        self.add_confusion_matrix(matrix.cpu().numpy())

    def compute(self, *, predictions=None, references=None, **kwargs):
        """Adds the maps that are given, if any, and returns `mean_iou`, `mean_accuracy`, `overall_accuracy`,
        `per_category_iou` and `per_category_accuracy` (see `summarize_confusion`)."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        self._computed = True
        return summarize_confusion(self.confusion_matrix)


class ComputeMetrics:
    """`compute_metrics` for a Trainer with `batch_eval_metrics=True`: adds each batch, reports on the last one.

    It takes what `SegmentationTrainer.prediction_step` returns for n images, gathered over all processes:
    `predictions = (confusion int64 (n, C, C), mean cross-entropy float32 (n,), valid pixels int64 (n,))`.
    Returned are flat scalars: the means, the pixel-exact loss, and IoU and accuracy of every category that occurs.
    """

    def __init__(self, id2label: dict[int, str], ignore_index: int = IGNORE_INDEX):
        self.id2label = id2label
        self.metric = MeanIoU(len(id2label), ignore_index)
        self._loss_sum, self._valid_pixels = 0.0, 0

    @property
    def confusion_matrix(self) -> np.ndarray:
        """Counts of the evaluation that ended last, int64 (num_labels, num_labels), rows truth."""
        return self.metric.confusion_matrix

    def __call__(self, eval_prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        matrices, mean_losses, valid_pixels = (torch.as_tensor(part).cpu() for part in eval_prediction.predictions)
        self.metric.add_confusion_matrix(matrices.sum(dim=0).numpy())
        # One image at a time in float64 on the host: the sum has the same order, hence the same rounding, for any
        # batch size and number of processes.
        for mean_loss, count in zip(mean_losses.tolist(), valid_pixels.tolist(), strict=True):
            self._loss_sum += mean_loss * count
            self._valid_pixels += count
        if not compute_result:
            return {}

        result = self.metric.compute()
        per_category = {"iou_": result["per_category_iou"], "accuracy_": result["per_category_accuracy"]}
        metrics = {
            "loss": self._loss_sum / self._valid_pixels if self._valid_pixels else 0.0,
            "mean_iou": result["mean_iou"],
            "mean_accuracy": result["mean_accuracy"],
            "overall_accuracy": result["overall_accuracy"],
        } | {
            f"{prefix}{self.id2label[i]}": float(value)
            for prefix, values in per_category.items()
            for i, value in enumerate(values)
            if not np.isnan(value)
        }
        self._loss_sum, self._valid_pixels = 0.0, 0
        return metrics


def without_per_category(metrics: dict) -> dict:
    """The metrics without the per-category scalars: what a person wants to see at the end of an epoch."""
    return {key: value for key, value in metrics.items() if not _PER_CATEGORY.match(key)}


PER_CATEGORY_COLUMNS = ("id", "name", "iou", "accuracy", "precision", "dice", "label_pixels", "predicted_pixels")


def per_category_rows(matrix: np.ndarray, id2label: dict[int, str]) -> list[dict]:
    """One dict per class with the keys of `PER_CATEGORY_COLUMNS`; ratios are floats, None where undefined."""
    scores = scores_from_confusion(matrix)
    rows = []
    for i, name in sorted(id2label.items()):
        row = {"id": i, "name": name}
        for column in PER_CATEGORY_COLUMNS[2:]:
            value = scores[column][i].item()
            row[column] = None if value != value else value
        rows.append(row)
    return rows


def save_confusion(output_dir: str | Path, matrix: np.ndarray, id2label: dict[int, str]) -> None:
    """Writes `confusion_matrix.npy` (int64) and `per_category.csv`; an undefined ratio is an empty field."""
    output_dir = Path(output_dir)
    np.save(output_dir / "confusion_matrix.npy", matrix)
    with open(output_dir / "per_category.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, PER_CATEGORY_COLUMNS)
        writer.writeheader()
        writer.writerows(per_category_rows(matrix, id2label))


def per_category_table(matrix: np.ndarray, id2label: dict[int, str]) -> str:
    """A table for the console of the classes that occur in truth or prediction, most frequent first."""
    rows = [row for row in per_category_rows(matrix, id2label) if row["iou"] is not None]
    rows.sort(key=lambda row: -row["label_pixels"])
    total = max(1, sum(row["label_pixels"] for row in rows))
    width = max([len(row["name"]) for row in rows] + [len("category")])
    lines = [f"{'category':<{width}}    IoU  accuracy  share of pixels"]
    for row in rows:
        accuracy = "       –" if row["accuracy"] is None else f"{row['accuracy']:8.3f}"
        lines.append(f"{row['name']:<{width}}  {row['iou']:5.3f}  {accuracy}  {row['label_pixels'] / total:15.2%}")
    return "\n".join(lines)
