"""Where a score is lost: what each class and each confusion costs, and which kinds of images score worse."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from metrics_utils import category_ratios, per_image_counts, score_images
from reports.intervals import PerImage, bootstrap_interval, class_intervals
from reports.tables import NamedClass, Score, Share, Table, more

CONFUSIONS = 12  # that are named in words
GROUPS = 20  # of a table, at most
RESAMPLES = 500  # of the interval of a group
BRIGHTNESS_RANGE = 10  # percent, from the darkest to the brightest image; less is no difference
FEW = 5  # values of a measure that are groups of their own; more are put into thirds


# ---- what errors cost -----------------------------------------------------------------------------------------------


def gains(matrix: np.ndarray) -> np.ndarray:
    """What mean IoU would gain if every error that a class has part in were put right: float64 (C,).

    Those are the pixels of the class taken for another one, and the pixels of others taken for it; the IoU of those
    others rises as well. NaN for a class that does not occur.

    Args:
        matrix: int64 (C, C), rows truth.
    """
    right, union, iou, defined = _parts(matrix)
    labels, missed, added = matrix.sum(axis=1), matrix, matrix.T  # [a, b]: a taken for b, b taken for a
    with np.errstate(divide="ignore", invalid="ignore"):
        # [a, b]: the IoU of b once the errors of a are right.
        after = (right + added) / (union - missed)
    np.fill_diagonal(after, np.where(labels > 0, 1.0, np.nan))
    after[:, ~defined] = np.nan
    gained = _mean(after) - _mean(iou)
    return np.where(defined, gained, np.nan)


def costs(matrix: np.ndarray) -> np.ndarray:
    """What mean IoU would gain if pixels of one class were no longer taken for another: float64 (C, C), zero on the
    diagonal, [a, b] for truth a and prediction b."""
    right, union, iou, defined = _parts(matrix)
    count, total = defined.sum(), np.where(defined, iou, 0).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        gained = matrix / union[:, None]
        left = union - matrix  # [a, b]: union of b without them; a class of which nothing is left goes from the mean
        raised = np.where(left > 0, right / left - iou, 0)
        after = (total + gained + raised) / np.where(left > 0, count, count - 1)
    result = np.where(matrix > 0, after - total / max(count, 1), 0)
    np.fill_diagonal(result, 0)
    return result


def _parts(matrix: np.ndarray) -> tuple[np.ndarray, ...]:
    """Correct pixels, union, IoU and whether it is defined, of every class."""
    intersection, label, predicted = per_image_counts(matrix[None])[0]
    union = label + predicted - intersection
    return intersection, union, category_ratios(np.stack([intersection, label, predicted]))["iou"], union > 0


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, of what is defined."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis=-1) / defined.sum(axis=-1)


class Confusion(NamedTuple):
    """Pixels of one class that were taken for another: ids, how many, their share of all pixels of that class, and
    what mean IoU would gain."""

    truth: int
    predicted: int
    pixels: int
    share: float
    gain: float


def confusions(matrix: np.ndarray, shown: int = CONFUSIONS) -> list[Confusion]:
    """Those that cost most, most first."""
    cost, labels = costs(matrix), matrix.sum(axis=1)
    order = np.argsort(-cost, axis=None, kind="stable")[:shown]
    pairs = [divmod(int(place), len(matrix)) for place in order]
    return [
        Confusion(a, b, int(matrix[a, b]), float(matrix[a, b] / labels[a]), float(cost[a, b]))
        for a, b in pairs
        if cost[a, b] > 0
    ]


def score_table(matrix: np.ndarray, images: PerImage, colors: Sequence[str]) -> Table:
    """Every class with its scores, the most frequent first. colors: "#rrggbb" by id."""
    counts = per_image_counts(matrix[None])[0]
    ratios, gained = category_ratios(counts), gains(matrix)
    intervals, labels = class_intervals(images.counts), counts[1]
    rows = [
        (
            NamedClass(images.class_names[i], color=colors[i]),
            Score(ratios["iou"][i].item(), *intervals[i].tolist()),
            Score(ratios["accuracy"][i].item()),
            Score(ratios["precision"][i].item()),
            Share(int(labels[i]), int(labels.sum())),
            int((images.counts[:, 1, i] > 0).sum()),
            Score(gained[i].item(), signed=True),
        )
        for i in np.argsort(-labels, kind="stable").tolist()
    ]
    columns = ("class", "IoU", "accuracy", "precision", "pixels", "images", "gained if fixed")
    absent = int((counts[1] + counts[2] == 0).sum())
    note = f"{absent} of {len(labels)} classes are in neither truth nor prediction. " if absent else ""
    note += (
        "Accuracy: share of the class's pixels that were found. Precision: share of what was taken for it that is "
        "it. Gained if fixed: what mean IoU would rise by if every pixel of the class were right and no other taken "
        "for it."
    )
    return Table("IoU by class", columns, rows, note, sortable=True)


# ---- kinds of images ------------------------------------------------------------------------------------------------


def slices(images: PerImage, split_groups: str | None = None) -> list[Table]:
    """The score of kinds of images, one table a measure: groups of names, sizes, brightness; where there are several.

    split_groups: of the flag; without it, groups are the folders in the names of the images.
    """
    kinds = {"Groups of images": _by_name(images.names, split_groups)}
    if "sizes" in images.others:
        height, width = images.others["sizes"].T.tolist()
        sizes = _gathered(f"{w}x{h}" for h, w in zip(height, width, strict=True))
        pixels = np.prod(images.others["sizes"], axis=1, dtype=np.float64) / 1e6
        kinds["Size of the image"] = (
            sizes if len(sizes) <= FEW else _thirds(pixels, "small middle large", "{:.2g} to {:.2g} megapixels")
        )
    if "brightness" in images.others:
        percent = images.others["brightness"] * 100
        if np.ptp(percent) >= BRIGHTNESS_RANGE:
            kinds["Brightness of the image"] = _thirds(percent, "dark middle bright", "{:.0f} to {:.0f} %")
    tables = []
    for title, groups in kinds.items():
        rows = []
        for name, places in [*groups.items()][:GROUPS]:
            counts = images.counts[places]
            score = Score(score_images(counts), *bootstrap_interval(counts, resamples=RESAMPLES))
            rows.append((name, Share(len(places), len(images.names), percent=False), score))
        note = more(len(groups) - GROUPS, "group")
        if len(rows) > 1:
            tables.append(Table(title, ("kind", "images", "mean IoU"), rows, note, sortable=True))
    return tables


def _gathered(groups: Iterable[str]) -> dict[str, list[int]]:
    """Group → places of its images, the largest group first; images of no group ("") are left out."""
    places = {}
    for i, group in enumerate(groups):
        places.setdefault(group, []).append(i)
    places.pop("", None)
    return dict(sorted(places.items(), key=lambda item: -len(item[1])))


def _by_name(names: Sequence[str], pattern: str | None) -> dict[str, list[int]]:
    if pattern is None:
        folders = _gathered(name.rpartition("/")[0] for name in names)
        return folders if len(folders) <= GROUPS else _gathered(name.partition("/")[0] for name in names)
    found = [re.search(pattern, name) for name in names]
    return _gathered("" if match is None else match[1 if match.re.groups else 0] or "" for match in found)


def _thirds(values: np.ndarray, words: str, span: str) -> dict[str, list[int]]:
    """The lowest, middle and highest third, called by a word and the lowest and the highest value in it."""
    if len(set(values.tolist())) < 3:
        return {}
    order = np.argsort(values, kind="stable")
    thirds = zip(words.split(), np.array_split(order, 3), strict=True)
    return {
        f"{word}: {span.format(values[part[0]], values[part[-1]])}": sorted(part.tolist()) for word, part in thirds
    }
