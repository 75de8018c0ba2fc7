"""Signs by which faults of a dataset show in pixels: the same picture twice, interpolated masks, masks that lie askew.

Pure functions of arrays; what they mean for a dataset is judged in `inspect_utils`.
"""

import numpy as np
from PIL import Image

HASH_SHAPE, THUMBNAIL_SIDE = (8, 8), 16
# Two pictures are near-duplicates if few bits differ and what is left of them at 16x16 correlates so well.
MAX_HASH_DISTANCE, MIN_CORRELATION = 10, 0.98
FLAT = 3.0  # standard deviation (of 0…255) of a thumbnail below which pictures cannot be told apart
BLOCK = 1024  # rows of a comparison of all with all
# Pixels along a row or column: what counts as an area, and as what interpolation may put between two areas.
MIN_AREA_RUN, MAX_RAMP = 3, 8
ALIGNMENT_SIDE, ALIGNMENT_WINDOW = 192, 0.12  # pixels; share of a side that a mask may be off
ORIENTATIONS = ("as it is", "mirrored left to right", "upside down", "turned by 180 degrees")


# ---- the same picture twice -----------------------------------------------------------------------------------------


def difference_hash(gray: Image.Image) -> int:
    """64 bits: whether each of 8x8 cells of a picture (mode L) is darker than the one to its right.

    Neither size, compression, contrast nor brightness change it much.
    Source: N. Krawetz, "Kind of Like That", The Hacker Factor Blog, 2013 (dHash).
    """
    rows, columns = HASH_SHAPE
    cells = np.asarray(gray.resize((columns + 1, rows), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")


def thumbnail(gray: Image.Image) -> bytes:
    """A picture (mode L) as 16x16 bytes."""
    return gray.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).tobytes()


def normalized_thumbnails(thumbnails: list[bytes]) -> np.ndarray:
    """→ float32 (n, 256) of mean 0 and length 1, whose products are correlations; zeros where there is no contrast."""
    pixels = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(len(thumbnails), -1).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    pixels[pixels.std(axis=1) < FLAT] = 0
    return pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-6)


def best_matches(
    hashes: np.ndarray, thumbnails: np.ndarray, known_hashes: np.ndarray, known_thumbnails: np.ndarray, earlier: bool
) -> np.ndarray:
    """For each picture its nearest near-duplicate among the known ones.

    All are compared with all in blocks, which takes a second or two for 10,000 pictures.

    Args:
        hashes: uint64 (n,) of `difference_hash`; known_hashes: (m,).
        thumbnails: (n, 256) of `normalized_thumbnails`; known_thumbnails: (m, 256).
        earlier: the known pictures are the same ones, and each is compared with those before it only.

    Returns:
        Index of the known picture, int64 (n,); -1 where there is none.
    """
    result = np.full(len(hashes), -1)
    for start in range(0, len(hashes), BLOCK):
        rows = slice(start, start + BLOCK)
        near = np.bitwise_count(hashes[rows, None] ^ known_hashes[None]) <= MAX_HASH_DISTANCE
        if earlier:
            near &= np.arange(len(known_hashes)) < np.arange(len(hashes))[rows, None]
        if near.any():
            correlation = np.where(near, thumbnails[rows] @ known_thumbnails.T, -1)
            best = correlation.argmax(axis=1)
            found = correlation[np.arange(len(best)), best] >= MIN_CORRELATION
            result[rows][found] = best[found]
    return result


# ---- interpolated masks ---------------------------------------------------------------------------------------------


def transitions(mask: np.ndarray) -> tuple[int, int, dict[int, int]]:
    """Counts how the areas of a mask meet, along its rows and its columns.

    An area shows as a run of at least 3 equal values. Where two areas meet whose values differ by two or more, a mask
    that somebody drew has nothing in between; one that was resized with interpolation, or softened, has one or more
    thin runs of values in between.

    Args:
        mask: integers (H, W).

    Returns:
        Places where two such areas meet, at most 8 pixels apart; how many of these have a ramp, that is thin runs all
        of whose values lie strictly between; and value → how many ramps it stands in.
    """
    crossings, ramps, values = _row_transitions(mask)
    more = _row_transitions(np.ascontiguousarray(mask.T))
    found, counts = np.unique(np.concatenate([values, more[2]]), return_counts=True)
    return crossings + more[0], ramps + more[1], dict(zip(found.tolist(), counts.tolist(), strict=True))


def _row_transitions(mask: np.ndarray) -> tuple[int, int, np.ndarray]:
    height, width = mask.shape
    change = np.ones((height, width), bool)
    np.not_equal(mask[:, 1:], mask[:, :-1], out=change[:, 1:])
    starts = np.flatnonzero(change)
    lengths = np.diff(starts, append=mask.size)
    values = mask.reshape(-1)[starts].astype(np.int64)

    areas = np.flatnonzero(lengths >= MIN_AREA_RUN)
    left, right = areas[:-1], areas[1:]
    gap = starts[right] - starts[left] - lengths[left]
    low, high = np.minimum(values[left], values[right]), np.maximum(values[left], values[right])
    meet = (starts[left] // width == starts[right] // width) & (gap <= MAX_RAMP) & (high - low >= 2)

    # Each thin run belongs to the meeting of the last area before it with the next one.
    thin = np.flatnonzero(lengths < MIN_AREA_RUN)
    meeting = np.searchsorted(areas, thin) - 1
    inside = (meeting >= 0) & (meeting < len(left))
    thin, meeting = thin[inside], meeting[inside]
    between = (low[meeting] < values[thin]) & (values[thin] < high[meeting])
    spoilt = np.bincount(meeting[~between], minlength=len(left)) > 0
    ramp = meet & (gap > 0) & ~spoilt
    return int(meet.sum()), int(ramp.sum()), values[thin[ramp[meeting]]]


# ---- masks that lie askew -------------------------------------------------------------------------------------------


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
    # A few glaring edges shall not outweigh the others.
    edges = _neighbour_differences(picture)
    edges = _standardized(np.minimum(edges, np.quantile(edges, 0.95)))
    windows = [max(1, round(side * ALIGNMENT_WINDOW)) for side in edges.shape]
    padded = [side + window for side, window in zip(edges.shape, windows, strict=True)]
    spectrum = np.fft.rfft2(edges, padded)
    result = []
    for oriented in (small, small[:, ::-1], small[::-1], small[::-1, ::-1]):
        borders = _standardized(_softened(_neighbour_differences(oriented) > 0))
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
