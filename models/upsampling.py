"""Bilinear upsampling of logits a tile at a time, so that the upsampled (B, C, H, W) tensor never exists.

Upsampling is linear and separates into rows and columns: a tile of the result is the rectangle of low-resolution
logits below it, multiplied by the weights of its columns and then by those of its rows. Where a window slid over the
image, the average of overlapping windows is linear too, and separates since windows form a grid: only weights differ.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from metrics_utils import IGNORE_INDEX
from models.tile_kernel import TileKernel, bilinear_positions

# Bytes of one upsampled tile. On a CPU what each thread has of the tile and its softmax is to stay in a core's
# second-level cache (half to twice as much measured alike, four times as much a third slower); elsewhere a small share
# of the memory, for few launches.
CPU_TILE_BYTES_PER_THREAD = 2**20
ACCELERATOR_TILE_BYTES = 2**26
# Widest tile, in pixels: the horizontal step is a dense product over the low-resolution columns of the tile.
TILE_COLUMNS = 128
# Where all logits are nearer to zero, exponentials and their sums neither overflow nor lose digits.
SAFE_EXPONENT = 60.0
# More than there are classes, and float32 holds sums of a few of them exactly.
_CODE_OFFSET = 2**16


def tile_bytes(device: torch.device) -> int:
    """Memory that one upsampled tile may take."""
    return CPU_TILE_BYTES_PER_THREAD * torch.get_num_threads() if device.type == "cpu" else ACCELERATOR_TILE_BYTES


def tile_rows(size: tuple[int, int], values: int, device: torch.device, itemsize: int = 4) -> int:
    """Height of a tile of an image (H, W) at whose pixels that many numbers are held."""
    return min(size[0], max(1, tile_bytes(device) // (min(size[1], TILE_COLUMNS) * values * itemsize)))


class Span(NamedTuple):
    """A run of output rows (or columns), the input rows it is interpolated from, and the weights between them."""

    output: slice
    input: slice | Tensor  # indices where rows of several windows leave gaps
    weights: Tensor  # (output rows, input rows)


def _spans(input_size: int, output_size: int, length: int, windows: list[slice] | None, dtype, device) -> list[Span]:
    """One axis of the upsampling, cut into runs of at most `length` output rows.

    windows: pixels of the resized image that each of the windows covers whose rows make up the input; None for an
        image that was shown whole.
    """
    spans = []
    for start in range(0, output_size, length):
        output = slice(start, min(start + length, output_size))
        if windows is None:
            rows, weights = bilinear_weights(input_size, output_size, output, dtype)
        else:
            rows, weights = _window_weights(windows, input_size // len(windows), output_size, output, dtype)
            rows = rows if isinstance(rows, slice) else rows.to(device)
        spans.append(Span(output, rows, weights.to(device)))
    return spans


def bilinear_weights(input_size: int, output_size: int, output: slice, dtype: torch.dtype) -> tuple[slice, Tensor]:
    """Input rows, and their weights (output rows, input rows), of a run of one axis of bilinear interpolation,
    `align_corners=False`.

    On the CPU, where the bounds of the slices are needed.
    """
    low, fraction = bilinear_positions(input_size, output_size, output, dtype)
    high = (low + 1).clamp(max=input_size - 1)
    first, last = int(low[0]), int(high[-1])
    weights = torch.zeros(len(low), last + 1 - first, dtype=dtype)
    rows = torch.arange(len(low))
    weights[rows, low - first] = 1 - fraction
    weights[rows, high - first] += fraction  # low and high are one row at the far edge
    return slice(first, last + 1), weights


def _window_weights(
    windows: list[slice], window_size: int, output_size: int, output: slice, dtype: torch.dtype
) -> tuple[slice | Tensor, Tensor]:
    """As `bilinear_weights`, the input being windows of `window_size` rows each, one after the other.

    Each window is interpolated to the pixels that it covers, and the average of these to `output_size`.
    """
    shown, weights = bilinear_weights(windows[-1].stop, output_size, output, dtype)
    count, parts = torch.zeros(weights.shape[1], dtype=dtype), []
    for index, window in enumerate(windows):
        start, stop = max(window.start, shown.start), min(window.stop, shown.stop)
        if start < stop:
            covered = slice(start - window.start, stop - window.start)
            rows, upsampled = bilinear_weights(window_size, window.stop - window.start, covered, dtype)
            pixels = slice(start - shown.start, stop - shown.start)
            count[pixels] += 1
            parts.append((pixels, torch.arange(rows.start, rows.stop) + index * window_size, upsampled))
    rows = torch.cat([part_rows for _, part_rows, _ in parts])
    weights = torch.cat([weights[:, pixels] / count[pixels] @ upsampled for pixels, _, upsampled in parts], dim=1)
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last + 1 - first == len(rows) else rows, weights


class Tile(NamedTuple):
    """A rectangle of one image's upsampled logits."""

    rows: Span
    columns: Span
    strip: Tensor  # (input rows, w, C), the low-resolution logits below the strip that the tile is part of
    logits: Tensor  # (rows, columns, C), overwritten by the next tile; in memory the columns are innermost

    @property
    def pixels(self) -> tuple[slice, slice]:
        return self.rows.output, self.columns.output


class TiledUpsampling:
    """Bilinear upsampling of logits (B, C, h, w) to (H, W), a strip of rows after the other.

    Tiles are (rows, columns, C) to whom uses them and (rows, C, columns) in memory, so that what is done along the
    classes is done for many columns at once: on a CPU sums and maxima take a third of the time, or less.

    The height of a strip follows from the bytes allowed for a tile; a strip wider than `TILE_COLUMNS` comes in several
    tiles. How an image is cut depends on (H, W) and C alone, and on `rows`. Half precision becomes float32.

    Args:
        windows: where the logits are those of sliding windows side by side, the pixels of the resized image that each
            row and each column of windows covers. Every window is upsampled to its pixels, and the average where they
            overlap to (H, W). None for images that were shown whole.
        memory_of: of the same (H, W), C, rows and dtype; its tile and softmax are overwritten by this one's.
        rows: height of a strip, at most that of `tile_rows`, which it is by default.
    """

    def __init__(
        self,
        logits: Tensor,
        size: tuple[int, int],
        windows: tuple[list[slice], list[slice]] | None = None,
        memory_of: "TiledUpsampling | None" = None,
        rows: int | None = None,
    ):
        self.dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        self.logits = logits.detach().permute(0, 2, 3, 1)
        (height, width), (input_height, input_width), num_classes = size, logits.shape[2:], logits.shape[1]
        columns = min(width, TILE_COLUMNS)
        rows = rows or tile_rows(size, num_classes, logits.device, self.dtype.itemsize)
        row_windows, column_windows = windows or (None, None)
        self.rows = _spans(input_height, height, rows, row_windows, self.dtype, logits.device)
        self.columns = _spans(input_width, width, columns, column_windows, self.dtype, logits.device)
        # Memory that every tile uses again: fresh pages would cost as much time as the arithmetic.
        input_rows = max(span.weights.shape[1] for span in self.rows)
        self._wide = self.new_empty(input_rows * columns * num_classes)
        self._tile = memory_of._tile if memory_of else self.new_empty(rows * columns * num_classes)
        self._asked: tuple[Tensor | None, bool] = None, False  # see `_is_safe`
        self._probabilities = memory_of._probabilities if memory_of else torch.empty_like(self._tile)

    def new_empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.logits.device)

    def tiles(self, image: int) -> Iterator[Tile]:
        """The tiles of one image of the batch, together all of its upsampled pixels."""
        num_classes = self.logits.shape[-1]
        for rows in self.rows:
            strip = self.low_rows(image, rows.input).to(self.dtype)
            for columns in self.columns:
                height, width = rows.weights.shape[0], columns.weights.shape[0]
                low = strip[:, columns.input].transpose(1, 2)
                wide = _first(self._wide, len(strip), num_classes, width)
                torch.matmul(low, columns.weights.T, out=wide)
                tile = _first(self._tile, height, num_classes * width)
                torch.mm(rows.weights, wide.flatten(1), out=tile)
                yield Tile(rows, columns, strip, tile.view(height, num_classes, width).transpose(1, 2))

    def low_rows(self, image: int, rows: slice | Tensor) -> Tensor:
        """Rows (n, w, C) of the logits of an image."""
        return self.logits[image][rows]

    def at(self, image: int, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits (k, C) of k single pixels of an image, int64 rows and columns (k,)."""
        found = self.new_empty(len(rows), self.logits.shape[-1])
        for down in self.rows:
            for across in self.columns:
                inside = (rows >= down.output.start) & (rows < down.output.stop)
                inside = (inside & (columns >= across.output.start) & (columns < across.output.stop)).nonzero()[:, 0]
                if len(inside):
                    low = self.low_rows(image, down.input)[:, across.input].to(self.dtype)
                    y = down.weights[rows[inside] - down.output.start]
                    x = across.weights[columns[inside] - across.output.start]
                    found[inside] = torch.einsum("ph,pw,hwc->pc", y, x, low)
        return found

    def softmax(self, tile: Tile) -> Tensor:
        """Probabilities (rows, columns, C) of a tile, overwritten by the next call."""
        return self.softmax_and_log_sum(tile)[0]

    def softmax_and_log_sum(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Probabilities (rows, columns, C) of a tile, overwritten by the next call, and the logarithm of the sum of
        the exponentials of its logits (rows, columns, 1)."""
        logits = tile.logits.transpose(1, 2)
        probabilities = _first(self._probabilities, *logits.shape)
        if self._is_safe(tile):
            total = torch.exp(logits, out=probabilities).sum(1, keepdim=True)
            probabilities.div_(total)
            log_sum = total.log_()
        else:
            torch.softmax(logits, 1, out=probabilities)
            # Of any class; the likeliest one's probability has all of its digits.
            log_sum = logits.amax(1, keepdim=True) - probabilities.amax(1, keepdim=True).log_()
        return probabilities.transpose(1, 2), log_sum.transpose(1, 2)

    def log_sum(self, tile: Tile) -> Tensor:
        """The second of `softmax_and_log_sum`, alone."""
        logits = tile.logits.transpose(1, 2)
        if not self._is_safe(tile):
            return logits.logsumexp(1, keepdim=True).transpose(1, 2)
        exponentials = torch.exp(logits, out=_first(self._probabilities, *logits.shape))
        return exponentials.sum(1, keepdim=True).log_().transpose(1, 2)

    def _is_safe(self, tile: Tile) -> bool:
        """Whether exponentials may be taken as they are: fewer passes over the tile than torch's softmax, and a third
        of its time. Asking would make other devices wait, and these have a softmax in one pass."""
        if tile.strip.device.type != "cpu":
            return False
        strip, safe = self._asked
        if strip is not tile.strip:
            lowest, highest = (bound.item() for bound in tile.strip.aminmax())
            safe = -SAFE_EXPONENT < lowest and highest < SAFE_EXPONENT  # not where one is NaN
            self._asked = tile.strip, safe
        return safe

    def argmax(self, tile: Tile) -> Tensor:
        """Most likely classes (rows, columns) of a tile; overwrites the last softmax."""
        return tile_argmax(tile.logits, self._probabilities)

    def add_transposed(self, gradient: Tensor, tile: Tile, tile_gradient: Tensor) -> None:
        """The transpose of upsampling: adds what a tile contributes to an image's gradient (h, w, C), in place."""
        rows, columns = tile.rows.weights, tile.columns.weights
        wide = _first(self._wide, rows.shape[1], columns.shape[0] * tile_gradient.shape[-1])
        torch.mm(rows.T, tile_gradient.transpose(1, 2).flatten(1), out=wide)
        wide = wide.view(rows.shape[1], -1, columns.shape[0]).transpose(1, 2)
        gradient[tile.rows.input, tile.columns.input] += columns.T @ wide


def tile_argmax(scores: Tensor, memory: Tensor | None = None) -> Tensor:
    """argmax of the scores (rows, columns, C) of a tile, (rows, columns), of any number's type.

    Where one class alone has the highest score, which is nearly everywhere, its index is a product of "is the highest"
    with the indices: vectorised and, on a CPU, a small part of the time of torch's argmax. An offset shows where that
    does not hold: ties sum to more, NaN to less.

    memory: flat, float32, of as many numbers, to be overwritten.
    """
    if scores.device.type != "cpu" or scores.dtype != torch.float32:
        return scores.argmax(-1)
    scores = scores.transpose(1, 2)
    highest = torch.empty_like(scores) if memory is None else _first(memory, *scores.shape)
    torch.eq(scores, scores.amax(1, keepdim=True), out=highest)
    num_classes = scores.shape[1]
    coded = torch.matmul(torch.arange(_CODE_OFFSET, _CODE_OFFSET + num_classes, dtype=torch.float32), highest)
    lowest, largest = coded.aminmax()
    if lowest < _CODE_OFFSET or largest >= 2 * _CODE_OFFSET:
        return scores.argmax(1)
    return coded - _CODE_OFFSET


def _first(buffer: Tensor, *shape: int) -> Tensor:
    """The beginning of a flat buffer as a tensor of this shape."""
    return buffer[: math.prod(shape)].view(shape)


@contextmanager
def exact_products() -> Iterator[None]:
    """Keeps TF32 from rounding what matrices are multiplied from, where it is on (`training.arguments`): scores are
    the same in training and in prediction, which does not turn it on."""
    matmul = torch.backends.cuda.matmul
    precision = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = precision


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Keeps autocast and TF32 from rounding interpolated logits."""
    with exact_products(), torch.autocast(device_type, enabled=False):
        yield


def empty_prediction(count: int, num_classes: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Room for the class ids of images at `size`, (count, H, W): uint8 for up to 255 classes, else int64."""
    # 255 is left to mean "ignored" wherever predictions and labels are written alike.
    dtype = torch.uint8 if num_classes <= IGNORE_INDEX else torch.int64
    return torch.empty(count, *size, dtype=dtype, device=device)


@torch.compiler.disable
@torch.no_grad()
def upsampled_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Most likely class of each pixel, (B, C, h, w) -> (B, H, W), uint8 for up to 255 classes and else int64.

    Equals `F.interpolate(logits, size, mode="bilinear").argmax(1)` (up to rounding where two classes tie) without the
    (B, C, H, W) tensor.
    """
    prediction = empty_prediction(*logits.shape[:2], size, logits.device)
    kernel = TileKernel.of(logits, size)
    if kernel:
        for image in range(logits.shape[0]):
            prediction[image] = kernel.argmax(image)
        return prediction
    with full_precision(logits.device.type):
        upsampling = TiledUpsampling(logits, size)
        for image in range(logits.shape[0]):
            for tile in upsampling.tiles(image):
                prediction[image][tile.pixels] = upsampling.argmax(tile)
    return prediction
