"""Misaligned masks: mirrored, turned or shifted against their images."""

import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from checks.records import ERROR, Finding, ImageRecord, finding, keys_of, part_of

ALIGNMENT_SIDE, ALIGNMENT_WINDOW = 192, 0.12  # pixels; share of a side that a mask may be off
ORIENTATIONS = ("as it is", "mirrored left to right", "upside down", "turned by 180 degrees")
FIT = ("measured mask", "fits/fit its/their image/images better")
# A split is misaligned if this share of its masks agrees on one shift and fits clearly better that way.
MIN_ALIGNED, MIN_AGREEMENT, MIN_SCORE, MIN_GAIN, SHIFT_TOLERANCE = 6, 0.7, 0.12, 1.25, 0.012


def alignment_faults(records: Sequence[ImageRecord]) -> list[Finding]:
    """Masks that fit their images better mirrored, turned or shifted: only where most of a split agree on how."""
    findings = []
    for split in dict.fromkeys(record.split for record in records):
        measured = [record for record in records if record.split == split and record.alignment]
        telling = [record for record in measured if max(score for _, _, score, _ in record.alignment) >= MIN_SCORE]
        if len(telling) < MIN_ALIGNED:
            continue
        # (images, orientations, (dx, dy, score, unmoved))
        table = np.array([record.alignment for record in telling])
        unmoved = table[:, :, 3]
        flipped = unmoved[:, 1:].argmax(axis=1) + 1
        best = unmoved[np.arange(len(table)), flipped]
        better = (best > MIN_GAIN * unmoved[:, 0] + 0.05) & (best >= MIN_SCORE)
        orientation = int(np.bincount(flipped[better], minlength=len(ORIENTATIONS)).argmax())
        agree = better & (flipped == orientation)
        if agree.mean() >= MIN_AGREEMENT:
            chosen = [record for record, chosen in zip(telling, agree.tolist(), strict=True) if chosen]
            message = f"{split}: {part_of(chosen, telling, *FIT)} {ORIENTATIONS[orientation]}"
            fix = "undo what was done to the masks or to the images alone, or do it to the other as well"
            findings.append(finding("mask-flipped", ERROR, message, fix, keys_of(chosen)))
            continue
        dx, dy, score, still = table[:, 0].T
        middle = np.median(dx), np.median(dy)
        near = (abs(dx - middle[0]) <= SHIFT_TOLERANCE) & (abs(dy - middle[1]) <= SHIFT_TOLERANCE)
        agree = near & (score > MIN_GAIN * still + 0.03) & (score >= MIN_SCORE)
        if agree.mean() >= MIN_AGREEMENT:
            chosen = [record for record, chosen in zip(telling, agree.tolist(), strict=True) if chosen]
            right, down = round(middle[0] * chosen[0].width), round(middle[1] * chosen[0].height)
            shift = f"{right:+d} pixels to the right and {down:+d} down"
            message = f"{split}: {part_of(chosen, telling, *FIT)} when moved by {shift}"
            fix = "export masks and images with the same crop, or move the masks by that much"
            findings.append(finding("mask-shifted", ERROR, message, fix, keys_of(chosen)))
    return findings


# ---- measuring ------------------------------------------------------------------------------------------------------


def alignment(gray: Image.Image, mask: np.ndarray) -> tuple[tuple[float, float, float, float], ...]:
    """How well the borders in a mask fit the edges in its picture: as it is, mirrored, upside down, turned by 180°.

    Both are made small (long side 192), and borders and edges correlated at all shifts of up to 12 % of each side.

    Args:
        gray: mode L; mask: integers (H, W) of the same size.

    Returns:
        For each of `ORIENTATIONS` (dx, dy, score, unmoved): the shift of the mask that fits best, in shares of width
        and height, positive to the right and down; its Pearson correlation; and that of the mask where it lies, give
        or take a pixel. Empty for a mask without borders, a blank picture, and one of less than 16 pixels a side.
    """
    shrink = max(gray.size) / ALIGNMENT_SIDE
    size = gray.size if shrink <= 1 else tuple(round(side / shrink) for side in gray.size)
    if min(size) < 16:
        return ()
    picture = np.asarray(gray.resize(size, Image.Resampling.BOX), np.float32)
    small = mask[_centres(mask.shape[0], size[1])[:, None], _centres(mask.shape[1], size[0])]
    # A few glaring edges must not outweigh the others.
    edges = _neighbour_differences(picture)
    edges = _standardized(np.minimum(edges, np.quantile(edges, 0.98)))
    windows = [max(1, round(side * ALIGNMENT_WINDOW)) for side in edges.shape]
    padded = [_quick_length(side + window) for side, window in zip(edges.shape, windows, strict=True)]
    spectrum = np.fft.rfft2(edges, padded)
    result = []
    for oriented in (small, small[:, ::-1], small[::-1], small[::-1, ::-1]):
        here = oriented[:-1, :-1]
        borders = _standardized(_softened((oriented[:-1, 1:] != here) | (oriented[1:, :-1] != here)))
        scores = np.fft.irfft2(spectrum * np.fft.rfft2(borders, padded).conj(), padded) / edges.size
        # Shift 0 to the middle.
        scores = np.roll(scores, windows, (0, 1))[: 2 * windows[0] + 1, : 2 * windows[1] + 1]
        y, x = np.unravel_index(scores.argmax(), scores.shape)
        unmoved = scores[windows[0] - 1 : windows[0] + 2, windows[1] - 1 : windows[1] + 2].max()
        shift = (int(x) - windows[1]) / size[0], (int(y) - windows[0]) / size[1]
        result.append((*shift, float(scores[y, x]), float(unmoved)))
    return tuple(result) if edges.any() and borders.any() else ()


def _centres(side: int, cells: int) -> np.ndarray:
    """Index of the pixel in the middle of each cell."""
    return ((np.arange(cells) + 0.5) * side / cells).astype(np.int64)


def _quick_length(least: int) -> int:
    """The least number from there on with no prime factor above 5, of which the Fourier transform is fast."""
    return next(n for n in itertools.count(least) if 30**16 % n == 0)


def _neighbour_differences(array: np.ndarray) -> np.ndarray:
    """(h, w) → (h - 1, w - 1): by how much each pixel differs from the ones to its right and below it."""
    array = array.astype(np.float32)
    here = array[:-1, :-1]
    return np.abs(array[:-1, 1:] - here) + np.abs(array[1:, :-1] - here)


def _softened(borders: np.ndarray) -> np.ndarray:
    """Mean of 3x3, so that an edge one pixel off still fits."""
    padded = np.pad(borders.astype(np.float32), 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9


def _standardized(array: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1; zeros where nothing varies."""
    array = array - array.mean()
    deviation = array.std()
    return array / deviation if deviation > 1e-6 else np.zeros_like(array)
