"""More than one mean: per-image counts, the scores made of them, boundary IoU and bootstrap confidence intervals.

Every image is reduced to three integers a class: intersection, label pixels and predicted pixels. Any score over any
set of images is a ratio of sums of these, so drawing other sets of images costs a matrix product and no inference.

A run writes them to `per_image.npz`; `compare_runs.py` reads two of those files.
"""

import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import EvalPrediction

from cli_utils import UserError
from metrics_utils import IGNORE_INDEX, ComputeMetrics, category_ratios

PER_IMAGE_FILE = "per_image.npz"
# Share of the image diagonal. Source: Cheng et al. 2021, arXiv 2103.16562.
BOUNDARY_DILATION = 0.02
CONFIDENCE = 0.95
# Numbers held at a time while resampling; 8 MB of float64 each for the drawn images and their sums.
BLOCK_VALUES = 2**20


# ---- counts -------------------------------------------------------------------------------------------------------


def per_image_counts(confusion) -> np.ndarray:
    """Confusion matrices (n, C, C), rows truth → int64 (n, 3, C): intersection, label pixels, predicted pixels."""
    confusion = torch.as_tensor(confusion).cpu()
    parts = (confusion.diagonal(dim1=1, dim2=2), confusion.sum(dim=2), confusion.sum(dim=1))
    return torch.stack(parts, dim=1).numpy()


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
        values = torch.maximum(values.narrow(dim, 0, length), values.narrow(dim, step, length))
        span += step
    return values


def class_boundaries(label_map: torch.Tensor, ignored: torch.Tensor, width: int) -> torch.Tensor:
    """Marks the pixels within `width` (Chebyshev distance) of another class or of the outside of the image.

    For each class that is its mask minus the mask's erosion by a (2 width + 1)² square, all classes at once: a pixel
    survives erosion where the largest and the smallest id around it are equal.

    Args:
        label_map: int16 ids (H, W).
        ignored: bool (H, W). These pixels are neutral: in no boundary, and the cause of none.

    Returns:
        bool (H, W).
    """

    def highest_around(ids):
        ids = torch.where(ignored, torch.iinfo(torch.int16).min, ids)
        return _sliding_max(_sliding_max(ids, 2 * width + 1, dim=1), 2 * width + 1, dim=0)

    boundary = ~ignored
    if min(boundary.shape) > 2 * width:  # else the outside is near everywhere
        # The highest of the negated ids is the lowest id, negated.
        boundary[width:-width, width:-width] &= highest_around(label_map) != -highest_around(-label_map)
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
    counts = [torch.bincount(((ids + 1) * mask).flatten(), minlength=num_labels + 1)[1:] for ids, mask in counted]
    if max(len(count) for count in counts) > num_labels:
        raise ValueError(
            f"an id is beyond the {num_labels} classes (ids 0 to {num_labels - 1}, {ignore_index} ignored)"
        )
    return torch.stack(counts)


# ---- scores -------------------------------------------------------------------------------------------------------


def _mean_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without its NaNs; NaN (without numpy's warning) where there is nothing else."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis=-1) / defined.sum(axis=-1)


def _ratios(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Per-class ratios (…, C) of counts (…, 3, C)."""
    return category_ratios(*np.moveaxis(counts, -2, 0))


def _frequency_weighted_iou(counts: np.ndarray) -> np.ndarray:
    """Sum over classes of label pixels × IoU, divided by all label pixels (Long et al. 2015, section 5)."""
    label = np.asarray(counts[..., 1, :], np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(label > 0, label * _ratios(counts)["iou"], 0).sum(axis=-1) / label.sum(axis=-1)


def _overall_accuracy(counts: np.ndarray) -> np.ndarray:
    """Sum of intersections over sum of label pixels: the share of labelled pixels that are right."""
    with np.errstate(invalid="ignore"):
        return counts[..., 0, :].sum(axis=-1) / counts[..., 1, :].sum(axis=-1)


# Scores of a set of images: functions of the summed counts (…, 3, C), float64 (…).
SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean_iou": lambda counts: _mean_defined(_ratios(counts)["iou"]),
    "mean_accuracy": lambda counts: _mean_defined(_ratios(counts)["accuracy"]),
    "overall_accuracy": _overall_accuracy,
    "frequency_weighted_iou": _frequency_weighted_iou,
    "mean_precision": lambda counts: _mean_defined(_ratios(counts)["precision"]),
    "mean_dice": lambda counts: _mean_defined(_ratios(counts)["dice"]),
}


def _summands(counts: np.ndarray, statistic: str) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """What has to be summed over images, (n, …), and the function from the sums to the statistic."""
    if statistic in SCORES:
        return counts, SCORES[statistic]
    if statistic != "per_image_mean_iou":
        raise ValueError(f"statistic is {statistic!r}; known are {', '.join(SCORES)} and per_image_mean_iou")
    values = SCORES["mean_iou"](counts)[:, None]
    defined = ~np.isnan(values)
    return np.stack([np.where(defined, values, 0), defined], axis=1), _overall_accuracy


def score_images(counts: np.ndarray, statistic: str = "mean_iou") -> float:
    """A score of the images of counts (n, 3, C): a key of `SCORES`, or `per_image_mean_iou`; NaN where undefined."""
    summands, function = _summands(counts, statistic)
    return float(function(summands.sum(axis=0)))


def per_category_iou(counts: np.ndarray) -> np.ndarray:
    """IoU of each class over all images of counts (n, 3, C): float64 (C,), NaN for a class that does not occur."""
    return _ratios(counts.sum(axis=0))["iou"]


def summarize_images(counts: np.ndarray, boundary: np.ndarray) -> dict[str, float]:
    """The scores that `metrics_utils.summarize_confusion` does not have, as flat scalars; NaN where undefined.

    Args:
        counts, boundary: int64 (n, 3, C) from `per_image_counts` and `boundary_counts`.

    Returns:
        `frequency_weighted_iou`, `mean_precision` and `mean_dice` over the classes where they are defined,
        `boundary_mean_iou`, and `per_image_mean_iou`: the mean over images of each image's own mean IoU over the
        classes in its truth or prediction; images without a labelled pixel are left out.
    """
    names = ("frequency_weighted_iou", "mean_precision", "mean_dice", "per_image_mean_iou")
    return {name: score_images(counts, name) for name in names} | {"boundary_mean_iou": score_images(boundary)}


# ---- bootstrap ----------------------------------------------------------------------------------------------------


def _resampled(samples: Sequence[np.ndarray], statistic: str, resamples: int, seed: int) -> np.ndarray:
    """The statistic of each sample, counts (n, 3, C), on the same random draws of n images with replacement.

    How often each image was drawn, as a matrix (draws, n), times the counts gives the sums of all draws at once. In
    float64 they are exact: integers below 2**53.

    Returns:
        float64 (len(samples), resamples).
    """
    images = len(samples[0])
    if images == 0 or resamples < 1:
        raise ValueError(f"{resamples} resamples of {images} images; at least one of each is needed")
    parts = [_summands(sample, statistic) for sample in samples]
    parts = [(summands.reshape(images, -1).astype(np.float64), summands.shape[1:], f) for summands, f in parts]
    rng = np.random.default_rng(seed)
    values = np.empty((len(samples), resamples))
    block = max(1, BLOCK_VALUES // max(images, parts[0][0].shape[1]))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(images, size=(size, images)) + images * np.arange(size)[:, None]
        times_drawn = np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images).astype(np.float64)
        for row, (summands, shape, function) in zip(values, parts, strict=True):
            row[start : start + size] = function((times_drawn @ summands).reshape(size, *shape))
    return values


def _percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the defined values; (NaN, NaN) where there is none."""
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def bootstrap_interval(
    counts: np.ndarray, statistic: str = "mean_iou", resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval over images (Efron and Tibshirani 1993, chapter 13).

    It says how the score would vary with other images of the same kind; it knows nothing of other training seeds.
    Where most classes occur in a handful of the images it is too narrow: on synthetic data of 100 images with each
    class in 5 of them it held the true score 92 times in 100, with each class in 1 of 20 images 87 times.

    Args:
        counts: int64 (n, 3, C); those of `boundary_counts` give the interval of the boundary IoU.
        statistic: a key of `SCORES`, or `per_image_mean_iou`.

    Returns:
        (low, high), the same for the same seed.
    """
    return _percentile_interval(_resampled([counts], statistic, resamples, seed)[0])


class PairedDifference(NamedTuple):
    """B minus A, its 95 % interval, and the two-sided p-value of "no difference"."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    counts_a: np.ndarray, counts_b: np.ndarray, statistic: str = "mean_iou", resamples: int = 1000, seed: int = 0
) -> PairedDifference:
    """Paired bootstrap of statistic(B) - statistic(A): both are computed on the same draws of images.

    What makes an image hard for both models cancels, so far smaller differences show than by comparing two intervals.
    The p-value is the percentile interval turned round: twice the share of draws on the rarer side of zero, zero
    included, so below 0.05 about where the 95 % interval excludes zero. One is added to the draws counted and to all
    draws (Davison and Hinkley 1997, section 4.2), so it is at least 2 / (resamples + 1).

    Args:
        counts_a, counts_b: int64 (n, 3, C), row i of both about the same image (see `match_images`).
    """
    if counts_a.shape != counts_b.shape:
        raise ValueError(f"counts of shapes {counts_a.shape} and {counts_b.shape} are not about the same images")
    difference = score_images(counts_b, statistic) - score_images(counts_a, statistic)
    values_a, values_b = _resampled([counts_a, counts_b], statistic, resamples, seed)
    differences = values_b - values_a
    differences = differences[~np.isnan(differences)]
    tail = 1 + min((differences <= 0).sum(), (differences >= 0).sum())
    p_value = min(1.0, 2 * float(tail) / (len(differences) + 1))
    return PairedDifference(difference, *_percentile_interval(differences), p_value)


# ---- the file -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PerImage:
    """One evaluation, image by image.

    Attributes:
        names: of the n images, in the dataset's order.
        class_names: of the C classes, by training id.
        counts, boundary: int64 (n, 3, C) from `per_image_counts` and `boundary_counts`.
    """

    names: list[str]
    class_names: list[str]
    counts: np.ndarray
    boundary: np.ndarray


def save_per_image(
    output_dir: str | Path,
    names: Sequence[str],
    counts: np.ndarray,
    boundary: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Writes `per_image.npz`, compressed (a few hundred bytes an image); an interrupted run leaves no half a file.

    Arguments as the attributes of `PerImage`; ValueError where their lengths do not fit together.
    """
    expected = (len(names), 3, len(class_names))
    if counts.shape != expected or boundary.shape != expected:
        raise ValueError(f"counts {counts.shape} and boundary {boundary.shape}; {expected} is needed")
    path = Path(output_dir, PER_IMAGE_FILE)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:  # given a name, numpy would add .npz to it
        np.savez_compressed(
            file, names=np.array(names, str), class_names=np.array(class_names, str), counts=counts, boundary=boundary
        )
    os.replace(partial, path)


def load_per_image(folder: str | Path) -> PerImage:
    """Reads the `per_image.npz` of a run's output folder; UserError where it is missing or not to be read."""
    path = Path(folder, PER_IMAGE_FILE)
    if not path.parent.is_dir():
        raise UserError(f"{folder} is no folder; give the --output_dir of a run")
    try:
        with np.load(path, allow_pickle=False) as file:
            return PerImage(file["names"].tolist(), file["class_names"].tolist(), file["counts"], file["boundary"])
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; an evaluation writes it: python run_segmentation.py --model_name_or_path {folder} "
            f"--dataset_dir DATASET --output_dir {folder} --do_eval"
        ) from None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); evaluate the run again with --do_eval") from None


def match_images(a: PerImage, b: PerImage, name_a: str = "A", name_b: str = "B") -> PerImage:
    """`b` with its images in the order of `a`.

    Raises:
        UserError: the two differ in classes, images, or the annotation of an image, so that nothing can be compared.
    """
    if a.class_names != b.class_names:
        different = sorted(set(a.class_names) ^ set(b.class_names))
        raise UserError(
            f"{name_a} has {len(a.class_names)} classes and {name_b} {len(b.class_names)}, "
            + (f"{len(different)} of them in one only, such as {different[0]!r}" if different else "in another order")
            + "; only runs with the same classes can be compared"
        )
    for run, name in ((a, name_a), (b, name_b)):
        if len(set(run.names)) < len(run.names):
            raise UserError(f"{name} holds several images of one name; they cannot be told apart")
    only_a, only_b = set(a.names) - set(b.names), set(b.names) - set(a.names)
    if only_a or only_b:
        raise UserError(
            f"the runs were evaluated on other images: {len(only_a)} only in {name_a}, {len(only_b)} only in {name_b} "
            f"(such as {min(only_a or only_b)!r}), {len(a.names) - len(only_a)} in both; evaluate both on the same"
        )
    place = {name: i for i, name in enumerate(b.names)}
    order = [place[name] for name in a.names]
    matched = PerImage(a.names, a.class_names, b.counts[order], b.boundary[order])
    other = np.flatnonzero((a.counts[:, 1] != matched.counts[:, 1]).any(axis=1))
    if other.size:
        raise UserError(
            f"{other.size} of {len(a.names)} images have another annotation in {name_b} than in {name_a} (such as "
            f"{a.names[other[0]]!r}: class pixels differ); evaluate both with the same masks and label flags"
        )
    return matched


# ---- the Trainer --------------------------------------------------------------------------------------------------


class ComputeStatistics(ComputeMetrics):
    """`ComputeMetrics` that also keeps every image's counts, and reports the scores of `summarize_images`.

    It takes one more part: `predictions = (…, boundary counts int64 (n, 3, C))`. It keeps 48 C bytes an image, 7 KB
    for 150 classes.
    """

    def __init__(self, id2label: dict[int, str], ignore_index: int = IGNORE_INDEX):
        super().__init__(id2label, ignore_index)
        self._counts, self._boundary, self._finished = [], [], False

    @property
    def counts(self) -> np.ndarray:
        """Of the evaluation that ended last: int64 (n, 3, C), in the dataset's order."""
        return np.concatenate(self._counts)

    @property
    def boundary(self) -> np.ndarray:
        """The same of the boundaries."""
        return np.concatenate(self._boundary)

    def __call__(self, eval_prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        *parts, boundary = eval_prediction.predictions
        if self._finished:
            self._counts, self._boundary = [], []
        self._finished = compute_result
        self._counts.append(per_image_counts(parts[0]))
        self._boundary.append(torch.as_tensor(boundary).cpu().numpy())
        metrics = super().__call__(EvalPrediction(tuple(parts), eval_prediction.label_ids), compute_result)
        return metrics | summarize_images(self.counts, self.boundary) if compute_result else metrics
