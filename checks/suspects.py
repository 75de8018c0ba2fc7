"""Regions where a trained model contradicts the annotation, is sure of it, and agrees with itself over a whole area:
suspected label errors, for a person to look at.

The idea is confident learning's (Northcutt et al. 2021, arXiv 1911.00068; for masks Lad and Mueller 2023, arXiv
2307.05080): a model that has not trained on an image tells what its label should be. Of a mask the borders are always
a little wrong, by the model or by the annotator, so a region counts only where it is wider than that.
"""

import numpy as np
import torch

from metrics_utils import IGNORE_INDEX

# A region: what it is ranked by, what is annotated, what the model sees, how sure it is (its mean probability), its
# share of the image, and its box in shares of width and height.
FIELDS = ("score", "truth", "predicted", "confidence", "share", "left", "top", "right", "bottom")
FOUND = 3  # regions kept of an image
# By how much the probability of what the model sees must exceed that of what is annotated, in each cell.
MARGIN = 0.5
BORDER = 0.01  # share of the diagonal; what is narrower than twice this is no region
NOTHING = np.full((FOUND, len(FIELDS)), np.nan, np.float32)


def suspected_errors(probabilities: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """The regions of one image where the annotation may be wrong, most suspicious first.

    Args:
        probabilities: float (C, h, w), of a coarse grid over the whole image.
        labels: integer training ids (H, W), or `IGNORE_INDEX`.

    Returns:
        float32 (`FOUND`, `len(FIELDS)`), rows of NaN where there are fewer. Ranked by the mean margin of the region
        times the square root of its share of the image, so that a large one must be sure, too.
    """
    probabilities, labels = probabilities.float(), labels.to(probabilities.device)
    height, width = probabilities.shape[1:]
    rows, columns = (
        ((torch.arange(cells, device=labels.device) + 0.5) * pixels / cells).long()
        for cells, pixels in zip((height, width), labels.shape, strict=True)
    )
    truth = labels[rows[:, None], columns].long()
    confidence, predicted = probabilities.max(dim=0)
    labelled = truth != IGNORE_INDEX
    own = probabilities.gather(0, (truth * labelled)[None])[0]
    margin = (confidence - own) * labelled
    # One number for what is annotated and what is seen; -1 where there is nothing to suspect.
    pairs = torch.where(margin > MARGIN, truth * len(probabilities) + predicted, -1).cpu().numpy()
    if (pairs < 0).all():
        return NOTHING
    cores = _cores(pairs, max(1, round(BORDER * (height**2 + width**2) ** 0.5)))
    confidence, margin = confidence.cpu().numpy(), margin.cpu().numpy()
    regions = _connected(pairs)
    found = []
    for region in np.unique(regions[cores]):
        inside = regions == region
        y, x = np.nonzero(inside)
        share = len(y) / inside.size
        box = x.min() / width, y.min() / height, (x.max() + 1) / width, (y.max() + 1) / height
        pair = divmod(int(pairs[y[0], x[0]]), len(probabilities))
        found.append((margin[inside].mean() * share**0.5, *pair, confidence[inside].mean(), share, *box))
    result = NOTHING.copy()
    found = sorted(found, reverse=True)[:FOUND]
    result[: len(found)] = np.array(found, np.float32).reshape(-1, len(FIELDS))
    return result


def _cores(pairs: np.ndarray, radius: int) -> np.ndarray:
    """Where all cells within `radius` (Chebyshev distance, within the image) are of the same pair: bool (h, w)."""
    low = high = pairs
    for axis in (0, 1):
        beyond = [(radius, radius) if i == axis else (0, 0) for i in (0, 1)]
        low, high = (
            reduce(np.lib.stride_tricks.sliding_window_view(np.pad(values, beyond, "edge"), 2 * radius + 1, axis), -1)
            for values, reduce in ((low, np.min), (high, np.max))
        )
    return (low == high) & (pairs >= 0)


def _connected(pairs: np.ndarray) -> np.ndarray:
    """A number for each cell, the same for cells of one pair that hang together (4 neighbours): int (h, w)."""
    numbers = np.arange(pairs.size).reshape(pairs.shape)
    while True:
        before = numbers.copy()
        for one, other in (((slice(1, None),), (slice(None, -1),)), ((..., slice(1, None)), (..., slice(None, -1)))):
            same = pairs[one] == pairs[other]
            for a, b in ((one, other), (other, one)):
                numbers[a] = np.where(same, np.maximum(numbers[a], numbers[b]), numbers[a])
        numbers = numbers.ravel()[numbers]  # what the highest neighbour has reached
        if (numbers == before).all():
            return numbers
