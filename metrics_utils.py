"""From counts of pixels to scores: mean IoU, boundary IoU, `compute_metrics` and the per-category table.

Counts first, ratios second: every score is a ratio of sums of int64 counts, so results do not depend on the order, the
batch size or the number of processes. A confusion matrix has the truth in its rows and the prediction in its columns;
of each image three integers a class are kept: intersection, label pixels and predicted pixels.

Importing this costs no heavy library: torch is loaded where tensors are counted.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from transformers import EvalPrediction

IGNORE_INDEX = 255
# Per-category scalars, as in eval_iou_wall: trackers get a curve per class, while the console and `eval_results.json`
# show the means only.
_PER_CATEGORY = re.compile("[a-z]+_(iou|accuracy)_")
# Share of the image diagonal. Source: Cheng et al. 2021, arXiv 2103.16562.
BOUNDARY_DILATION = 0.02


# ---- counts ---------------------------------------------------------------------------------------------------------


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
    import torch

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
    truth, predicted = (torch.where(valid, maps, 0).long() for maps in (references, predictions))
    if truth.device.type == "cpu" and truth.numel():  # another device would be waited for, and asserts it itself
        for name, values in (("references", truth), ("predictions", predicted)):
            lowest, highest = values.aminmax()
            if lowest < 0 or highest >= num_labels:
                bad = sorted(set(values[(values < 0) | (values >= num_labels)].tolist()))[:5]
                raise ValueError(
                    f"{name} hold ids {bad}; allowed are 0 to {num_labels - 1} and {ignore_index} (ignored)"
                )
    pairs = torch.where(valid, truth * num_labels + predicted, num_labels**2)
    return _histogram(pairs, num_labels**2 + 1)[:-1].reshape(num_labels, num_labels)


def _histogram(ids: torch.Tensor, bins: int) -> torch.Tensor:
    """How often each of so many ids, from 0 on, occurs: int64 (bins,); more than asked for on a CPU that finds higher
    ones, an assertion on other devices."""
    import torch

    if ids.device.type == "cpu":
        return torch.bincount(ids.flatten(), minlength=bins)
    ids = ids.flatten().long()  # there `bincount` waits for the highest id
    return ids.new_zeros(bins).scatter_add_(0, ids, torch.ones_like(ids))


def per_image_counts(confusion: np.ndarray) -> np.ndarray:
    """Confusion matrices (n, C, C), rows truth → int64 (n, 3, C): intersection, label pixels, predicted pixels."""
    confusion = np.asarray(confusion)
    return np.stack([confusion.diagonal(axis1=1, axis2=2), confusion.sum(axis=2), confusion.sum(axis=1)], axis=1)


def boundary_width(height: int, width: int) -> int:
    """Pixels from its contour that belong to a mask's boundary: 2 % of the image diagonal, at least 1."""
    return max(1, round(BOUNDARY_DILATION * (height**2 + width**2) ** 0.5))


def _sliding_max(values: torch.Tensor, window: int, dim: int) -> torch.Tensor:
    """Maximum of every `window` consecutive values along `dim`, which gets window - 1 shorter.

    The span covered doubles with each pass, so that a window of 35 takes six passes, and 67 seven.
    """
    span = 1
    while span < window:
        step = min(span, window - span)
        length = values.shape[dim] - step
        values = values.narrow(dim, 0, length).maximum(values.narrow(dim, step, length))
        span += step
    return values


def class_boundaries(ids: torch.Tensor, ignored: torch.Tensor, width: int) -> torch.Tensor:
    """Marks the pixels within `width` (Chebyshev distance) of another class or of the outside of the image.

    For each class that is its mask minus the mask's erosion by a (2 width + 1)² square, all classes at once: a pixel
    survives erosion where the largest and the smallest id around it are equal.

    Args:
        ids: int16 ids (H, W).
        ignored: bool (H, W). These pixels are neutral: in no boundary, and the cause of none.

    Returns:
        bool (H, W).
    """
    import torch

    def highest_around(ids):
        ids = torch.where(ignored, torch.iinfo(torch.int16).min, ids)
        return _sliding_max(_sliding_max(ids, 2 * width + 1, dim=1), 2 * width + 1, dim=0)

    boundary = ~ignored
    if min(boundary.shape) > 2 * width:  # else the outside is near everywhere
        # The highest of the negated ids is the lowest id, negated.
        boundary[width:-width, width:-width] &= highest_around(ids) != -highest_around(-ids)
    return boundary


def boundary_counts(
    prediction: torch.Tensor, truth: torch.Tensor, num_labels: int, ignore_index: int = IGNORE_INDEX
) -> torch.Tensor:
    """Counts for boundary IoU (Cheng et al. 2021): the IoU of the two masks' boundaries instead of the masks.

    As published, the boundary of a mask is what `boundary_width` erosions by 3×3 take away, and the outside of the
    image counts as background. The paper has no ignored pixels. Here they are neutral: they count nowhere, whatever
    was predicted there, and do not make a contour. (Were they background as well, truth and prediction would share
    the contours of every ignored region, and each prediction would be given these for free.)

    Cheap enough for every evaluation, not only the last: on one CPU core about 10 ms for 512×683 and 100 ms for
    1024×2048, where MiT-B0 itself takes over a second for the former (not measured on a GPU). At most 20 bytes a
    pixel, however many classes there are.

    Args:
        prediction: integer ids (H, W).
        truth: ids of the same shape, or `ignore_index`, on the same device.

    Returns:
        int64 (3, num_labels) on that device: pixels of a class in both boundaries, in the truth's, in the
        prediction's.

    Raises:
        ValueError: shapes differ, or an id that counts is num_labels or more.
    """
    import torch

    if prediction.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} must be one (H, W)")
    ignored = truth == ignore_index
    # Smaller numbers, faster passes; the commonest input is int64.
    prediction, truth = prediction.to(torch.int16), truth.to(torch.int16)
    width = boundary_width(*truth.shape)
    in_prediction, in_truth = (class_boundaries(ids, ignored, width) for ids in (prediction, truth))
    in_both = in_truth & in_prediction & (truth == prediction)
    # Bin 0 takes the pixels that are not counted: several times as fast as picking out the others.
    counted = [(truth, in_both), (truth, in_truth), (prediction, in_prediction)]
    counts = [_histogram((ids + 1) * mask, num_labels + 1)[1:] for ids, mask in counted]
    if max(len(count) for count in counts) > num_labels:
        raise ValueError(
            f"an id is beyond the {num_labels} classes (ids 0 to {num_labels - 1}, {ignore_index} ignored)"
        )
    return torch.stack(counts)


# ---- scores ---------------------------------------------------------------------------------------------------------


def category_ratios(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Per-class ratios, float64 (…, C), of counts (…, 3, C); NaN where undefined.

    iou = intersection / (label + predicted - intersection), accuracy (recall) = intersection / label,
    precision = intersection / predicted, dice = 2 intersection / (label + predicted).
    """
    intersection, label, predicted = np.moveaxis(counts, -2, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "iou": intersection / (label + predicted - intersection),
            "accuracy": intersection / label,
            "precision": intersection / predicted,
            "dice": 2 * intersection / (label + predicted),
        }


def _mean_ratio(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """→ function: the mean of a ratio over the classes for which it is defined; NaN where there is none."""

    def mean(counts: np.ndarray) -> np.ndarray:
        values = category_ratios(counts)[name]
        defined = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            return np.where(defined, values, 0).sum(axis=-1) / defined.sum(axis=-1)

    return mean


def _quotient(counts: np.ndarray) -> np.ndarray:
    """Sum of row 0 over sum of row 1. Of counts: the share of labelled pixels that are right."""
    with np.errstate(invalid="ignore"):
        return counts[..., 0, :].sum(axis=-1) / counts[..., 1, :].sum(axis=-1)


def _frequency_weighted_iou(counts: np.ndarray) -> np.ndarray:
    """Sum over classes of label pixels × IoU, divided by all label pixels (Long et al. 2015, section 5)."""
    label, iou = counts[..., 1, :], category_ratios(counts)["iou"]
    with np.errstate(invalid="ignore"):
        return np.where(label > 0, label * iou, 0).sum(axis=-1) / label.sum(axis=-1)


# Scores of a set of images: functions of the summed counts (…, 3, C), float64 (…).
SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean_iou": _mean_ratio("iou"),
    "mean_accuracy": _mean_ratio("accuracy"),
    "overall_accuracy": _quotient,
    "frequency_weighted_iou": _frequency_weighted_iou,
    "mean_precision": _mean_ratio("precision"),
    "mean_dice": _mean_ratio("dice"),
}


def summands(counts: np.ndarray, statistic: str) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """What of counts (n, 3, C) has to be summed over images, (n, …), and the function from the sums to the statistic.

    Raises ValueError for an unknown statistic.
    """
    if statistic in SCORES:
        return counts, SCORES[statistic]
    if statistic != "per_image_mean_iou":
        raise ValueError(f"statistic is {statistic!r}; known are {', '.join(SCORES)} and per_image_mean_iou")
    values = SCORES["mean_iou"](counts)[:, None]
    defined = ~np.isnan(values)
    return np.stack([np.where(defined, values, 0), defined], axis=1), _quotient


def score_images(counts: np.ndarray, statistic: str = "mean_iou") -> float:
    """A score of the images of counts (n, 3, C): a key of `SCORES`, or `per_image_mean_iou`; NaN where undefined."""
    values, function = summands(counts, statistic)
    return float(function(values.sum(axis=0)))


def per_category_iou(counts: np.ndarray) -> np.ndarray:
    """IoU of each class over all images of counts (n, 3, C): float64 (C,), NaN for a class that does not occur."""
    return category_ratios(counts.sum(axis=0))["iou"]


def summarize_images(counts: np.ndarray, boundary: np.ndarray) -> dict[str, float]:
    """Every score of a set of images as flat scalars; NaN where undefined.

    Args:
        counts, boundary: int64 (n, 3, C) from `per_image_counts` and `boundary_counts`.

    Returns:
        Those of `SCORES`; `per_image_mean_iou`, the mean over images of each image's own mean IoU over the classes in
        its truth or prediction, where images without a labelled pixel are left out; and `boundary_mean_iou`.
    """
    scores = {name: score_images(counts, name) for name in (*SCORES, "per_image_mean_iou")}
    return scores | {"boundary_mean_iou": score_images(boundary)}


def summarize_confusion(matrix: np.ndarray) -> dict:
    """The keys and values of evaluate's `mean_iou` for a confusion matrix.

    A class in neither prediction nor truth has a NaN IoU and is left out of `mean_iou`; a class absent from the truth
    has a NaN accuracy and is left out of `mean_accuracy`.
    """
    counts = per_image_counts(matrix[None])
    ratios = category_ratios(counts[0])
    means = {name: score_images(counts, name) for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}
    return means | {f"per_category_{name}": ratios[name] for name in ("iou", "accuracy")}


# ---- the metric -----------------------------------------------------------------------------------------------------


class MeanIoU:
    """Mean IoU with the interface and the values of evaluate's `mean_iou`, streaming.

    `evaluate.load("mean_iou")` writes every map into an Arrow file and needs the Hub; this keeps one confusion matrix.
    As with every evaluate metric, the first `add` after a `compute` starts a new evaluation. Until then
    `confusion_matrix` (int64, (num_labels, num_labels), rows truth) still holds what was computed.
    """

    def __init__(self, num_labels: int, ignore_index: int = IGNORE_INDEX):
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}; at least one class is needed")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.confusion_matrix = np.zeros((num_labels, num_labels), dtype=np.int64)
        self._computed = False

    def add_confusion_matrix(self, matrix: np.ndarray) -> None:
        """Adds counts that were made elsewhere: int64, (num_labels, num_labels), rows truth."""
        if self._computed:
            self.confusion_matrix = np.zeros_like(self.confusion_matrix)
            self._computed = False
        self.confusion_matrix += matrix

    def add_batch(self, *, predictions, references) -> None:
        """Adds a batch of maps: lists (sizes may differ) or one array (B, H, W)."""
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def add(self, *, prediction, reference) -> None:
        """Adds one map: integers of shape (H, W)."""
        matrix = confusion_matrix(prediction, reference, self.num_labels, self.ignore_index)
        self.add_confusion_matrix(matrix.cpu().numpy())

    def compute(self, *, predictions=None, references=None) -> dict:
        """Adds the maps that are given, if any, and returns `mean_iou`, `mean_accuracy`, `overall_accuracy`,
        `per_category_iou` and `per_category_accuracy` (see `summarize_confusion`)."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        self._computed = True
        return summarize_confusion(self.confusion_matrix)


class ComputeMetrics:
    """`compute_metrics` for a Trainer with `batch_eval_metrics=True`: adds each batch, reports on the last one.

    It takes what `SegmentationTrainer.prediction_step` returns for n images, gathered over all processes, as tensors:
    `predictions = (confusion int64 (n, C, C), mean cross-entropy float32 (n,), valid pixels int64 (n,), boundary
    counts int64 (n, 3, C), …)`. Returned are flat scalars: the pixel-exact loss, the scores of `summarize_images`, and
    IoU and accuracy of every category that occurs.

    Of the evaluation that ended last it keeps `confusion_matrix` (int64 (C, C), rows truth), and of each image in the
    dataset's order `losses` (float32 (n,)), `counts` and `boundary` (int64 (n, 3, C)): 48 C bytes an image, 7 KB for
    150 classes; and `others`, whatever else came along, in arrays of n rows.
    """

    def __init__(self, id2label: dict[int, str]):
        self.id2label = id2label
        self._mean_iou = MeanIoU(len(id2label))
        self._batches = []

    @property
    def confusion_matrix(self) -> np.ndarray:
        return self._mean_iou.confusion_matrix

    def __call__(self, eval_prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        arrays = (part.cpu().numpy() for part in eval_prediction.predictions)
        matrices, mean_losses, valid_pixels, boundary, *others = arrays
        self._mean_iou.add_confusion_matrix(matrices.sum(axis=0))
        self._batches.append((per_image_counts(matrices), boundary, mean_losses, valid_pixels, *others))
        if not compute_result:
            return {}

        parts = [np.concatenate(part) for part in zip(*self._batches, strict=True)]
        self.counts, self.boundary, self.losses, valid_pixels, *self.others = parts
        self._batches = []
        # One image at a time in float64 on the host: the sum has the same order, hence the same rounding, for any
        # batch size and number of processes.
        loss_sum = sum(loss * count for loss, count in zip(self.losses.tolist(), valid_pixels.tolist(), strict=True))
        per_category = self._mean_iou.compute()
        return (
            {"loss": loss_sum / max(1, int(valid_pixels.sum()))}
            | summarize_images(self.counts, self.boundary)
            | {
                f"{ratio}_{self.id2label[i]}": float(value)
                for ratio in ("iou", "accuracy")
                for i, value in enumerate(per_category[f"per_category_{ratio}"])
                if not np.isnan(value)
            }
        )


# ---- tables ---------------------------------------------------------------------------------------------------------


def without_per_category(metrics: dict) -> dict:
    """The metrics without the per-category scalars: what a person wants to see at the end of an epoch."""
    return {key: value for key, value in metrics.items() if not _PER_CATEGORY.match(key)}


PER_CATEGORY_COLUMNS = ("id", "name", "iou", "accuracy", "precision", "dice", "label_pixels", "predicted_pixels")


def per_category_rows(matrix: np.ndarray, id2label: dict[int, str]) -> list[dict]:
    """One dict per class with the keys of `PER_CATEGORY_COLUMNS`; ratios are floats, None where undefined."""
    counts = per_image_counts(matrix[None])[0]
    scores = category_ratios(counts) | {"label_pixels": counts[1], "predicted_pixels": counts[2]}
    rows = []
    for i, name in sorted(id2label.items()):
        row = {"id": i, "name": name}
        for column in PER_CATEGORY_COLUMNS[2:]:
            value = scores[column][i].item()
            row[column] = None if value != value else value
        rows.append(row)
    return rows


def csv_text(text: str) -> str:
    """Text from data for a cell of a CSV file: on one line, and behind an apostrophe where a spreadsheet would run it
    as a formula. Source: OWASP, CSV Injection."""
    text = re.sub("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+", " ", text)
    return f"'{text}" if text.lstrip()[:1] in tuple("=+-@＝＋－＠") else text


def save_confusion(output_dir: str | Path, matrix: np.ndarray, id2label: dict[int, str]) -> None:
    """Writes `confusion_matrix.npy` (int64) and `per_category.csv`, each complete or not at all; an undefined ratio is
    an empty field, names are those of `csv_text`."""
    array, table = io.BytesIO(), io.StringIO(newline="")
    np.save(array, matrix)
    writer = csv.DictWriter(table, PER_CATEGORY_COLUMNS)
    writer.writeheader()
    writer.writerows(row | {"name": csv_text(row["name"])} for row in per_category_rows(matrix, id2label))
    content = table.getvalue().encode("utf-8", errors="backslashreplace")
    for name, file in (("confusion_matrix.npy", array.getvalue()), ("per_category.csv", content)):
        partial = Path(output_dir, f".{name}.partial")
        partial.write_bytes(file)
        partial.replace(Path(output_dir, name))


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
