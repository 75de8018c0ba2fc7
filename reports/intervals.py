"""How sure a score is: bootstrap intervals over images, the paired difference of two runs, and `per_image.npz`.

Of every image there are three integers a class (`metrics_utils.per_image_counts`). Any score of any set of images is a
ratio of sums of these, so drawing other sets of images costs a matrix product and no inference.

A run writes them to `per_image.npz`; `compare_runs.py` reads two of those files.
"""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cli_utils import UserError, written_aside
from metrics_utils import category_ratios, score_images, summands

PER_IMAGE_FILE = "per_image.npz"
# What else is known of each image: its height and width in pixels, int32 (n, 2); its brightness, float32 (n,), 0 to 1;
# and regions where its annotation may be wrong, float32 (n, FOUND, FIELDS), of `checks.suspects`.
OTHERS = ("sizes", "brightness", "suspects")
CONFIDENCE = 0.95
# What is said of an evaluation in a few numbers → the counts of `PerImage` and the statistic that each is made of.
MEASURES = {
    "mean_iou": ("counts", "mean_iou"),
    "boundary_mean_iou": ("boundary", "mean_iou"),
    "per_image_mean_iou": ("counts", "per_image_mean_iou"),
    "overall_accuracy": ("counts", "overall_accuracy"),
}
# Numbers held at a time while resampling; 8 MB of float64 each for the drawn images and their sums.
BLOCK_VALUES = 2**20


# ---- bootstrap ----------------------------------------------------------------------------------------------------


def _resampled(samples: Sequence[np.ndarray], statistic: str, resamples: int, seed: int) -> np.ndarray:
    """The statistic of each sample, counts (n, 3, C), on the same random draws of n images with replacement: float64
    (len(samples), resamples)."""
    parts = [summands(sample, statistic) for sample in samples]
    blocks = _sums_of_draws([added for added, _ in parts], resamples, seed)
    functions = [function for _, function in parts]
    values = [[function(sums) for function, sums in zip(functions, block, strict=True)] for block in blocks]
    return np.concatenate(values, axis=1)


def _sums_of_draws(added: Sequence[np.ndarray], resamples: int, seed: int) -> Iterator[list[np.ndarray]]:
    """Of each array (n, …) the sums over n images drawn with replacement, the same for all arrays: float64 (draws, …),
    a block of draws after the other.

    How often each image was drawn, as a matrix (draws, n), times the counts gives the sums of all draws at once. In
    float64 they are exact: integers below 2**53.
    """
    images = len(added[0])
    if images == 0 or resamples < 1:
        raise ValueError(f"{resamples} resamples of {images} images; at least one of each is needed")
    flat = [values.reshape(images, -1).astype(np.float64) for values in added]
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_VALUES // max(images, flat[0].shape[1]))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(images, size=(size, images)) + images * np.arange(size)[:, None]
        times_drawn = np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images).astype(np.float64)
        yield [(times_drawn @ row).reshape(size, *values.shape[1:]) for row, values in zip(flat, added, strict=True)]


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


def class_intervals(counts: np.ndarray, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """`bootstrap_interval` of the IoU of each class: float64 (C, 2), NaN for a class that does not occur.

    Args:
        counts: int64 (n, 3, C).
    """
    blocks = _sums_of_draws([counts], resamples, seed)
    values = np.concatenate([category_ratios(sums)["iou"] for (sums,) in blocks])
    return np.array([_percentile_interval(column) for column in values.T])


def paired_class_intervals(
    counts_a: np.ndarray, counts_b: np.ndarray, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """95 % intervals of the difference in IoU, B minus A, of each class, as `paired_bootstrap` has that of a score:
    float64 (C, 2), NaN where a class has no IoU in both."""
    blocks = _sums_of_draws([counts_a, counts_b], resamples, seed)
    values = [category_ratios(sums_b)["iou"] - category_ratios(sums_a)["iou"] for sums_a, sums_b in blocks]
    return np.array([_percentile_interval(column) for column in np.concatenate(values).T])


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
        others: of `OTHERS`, those that are known.
    """

    names: list[str]
    class_names: list[str]
    counts: np.ndarray
    boundary: np.ndarray
    others: dict[str, np.ndarray] = field(default_factory=dict)


def save_per_image(
    output_dir: str | Path,
    names: Sequence[str],
    counts: np.ndarray,
    boundary: np.ndarray,
    class_names: Sequence[str],
    **others: np.ndarray,
) -> None:
    """Writes `per_image.npz`, compressed (a few hundred bytes an image); an interrupted run leaves no half a file.

    Arguments as the attributes of `PerImage`; ValueError where their lengths do not fit together.
    """
    expected = (len(names), 3, len(class_names))
    if counts.shape != expected or boundary.shape != expected:
        raise ValueError(f"counts {counts.shape} and boundary {boundary.shape}; {expected} is needed")
    content = {"names": np.array(names, str), "class_names": np.array(class_names, str)}
    with written_aside(Path(output_dir, PER_IMAGE_FILE)) as partial:
        np.savez_compressed(partial, **content, counts=counts, boundary=boundary, **others)


def load_per_image(folder: str | Path) -> PerImage:
    """Reads the `per_image.npz` of a run's output folder; UserError where it is missing or not to be read."""
    path = Path(folder, PER_IMAGE_FILE)
    if not path.parent.is_dir():
        raise UserError(f"{folder} is not a folder; give the --output_dir of a run")
    try:
        with np.load(path, allow_pickle=False) as file:
            names, class_names = file["names"].tolist(), file["class_names"].tolist()
            others = {name: file[name] for name in OTHERS if name in file.files}
            return PerImage(names, class_names, file["counts"], file["boundary"], others)
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
            f"the runs were evaluated on different images: {len(only_a)} only in {name_a}, {len(only_b)} only in "
            f"{name_b} (such as {min(only_a or only_b)!r}), {len(a.names) - len(only_a)} in both; evaluate both "
            "on the same"
        )
    place = {name: i for i, name in enumerate(b.names)}
    order = [place[name] for name in a.names]
    matched = PerImage(a.names, a.class_names, b.counts[order], b.boundary[order])
    other = np.flatnonzero((a.counts[:, 1] != matched.counts[:, 1]).any(axis=1))
    if other.size:
        raise UserError(
            f"{other.size} of {len(a.names)} images {'has' if other.size == 1 else 'have'} another annotation in "
            f"{name_b} than in {name_a} (such as {a.names[other[0]]!r}: class pixels differ); evaluate both with the "
            "same masks and label flags"
        )
    return matched
