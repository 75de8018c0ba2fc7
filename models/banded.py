"""Predicting an image a band of rows after the other: equal, id for id, to `models.inference.predict_ids` of the whole
image, in memory for a few rows of windows.

    for rows in predict_bands(model, image, protocol): ...    # uint8 (n, W), from the top down
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from cli_utils import UserError
from data.large_images import LargeImage, resized_rows
from data.preprocessing import EvaluationProtocol
from models.inference import class_shift, most_likely, predict_logits
from models.upsampling import TiledUpsampling, full_precision


class _RowsOfWindows:
    """The logits of one image, of which few rows of windows are held: made when they are asked for, from the top."""

    def __init__(self, model, image: LargeImage, protocol: EvaluationProtocol):
        self.model, self.protocol = model, protocol
        self.device = next(model.parameters()).device
        size = protocol.input_size(*image.size)
        self.rows, self.columns = (protocol.windows(side) for side in size)
        self.resized = resized_rows(image, size)
        self.shown, self.top = torch.empty(image.num_channels, 0, size[1], dtype=torch.uint8), 0
        self.held: dict[int, Tensor] = {}  # row of windows → logits (h, columns of windows · w, C)
        self.made = 0
        self._make()

    @property
    def is_whole(self) -> bool:
        """Whether logits are resized once; else to the pixels that were shown, and from there to the image."""
        return len(self.rows) == len(self.columns) == 1 and self.protocol.output == "logits"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the logits of all windows side by side, as `models.inference.PassLogits` has them."""
        height, width, num_classes = self.held[0].shape if 0 in self.held else next(iter(self.held.values())).shape
        return 1, num_classes, len(self.rows) * height, width

    def _make(self) -> None:
        """The next row of windows."""
        window = self.rows[self.made]
        self.shown = self.shown[:, window.start - self.top :]
        self.top = window.start
        while self.shown.shape[1] < window.stop - window.start:
            self.shown = torch.cat([self.shown, next(self.resized)], dim=1)
        strip = self.shown[:, : window.stop - window.start]
        logits = [
            predict_logits(self.model, self.protocol.normalize(strip[..., column]).to(self.device))
            for column in self.columns
        ]
        logits = torch.cat(logits, dim=-1).float()
        if self.is_whole and self.protocol.threshold != 0.5:
            logits = logits + class_shift(self.protocol.threshold, self.device)[:, None, None]
        self.held[self.made] = logits[0].permute(1, 2, 0)
        self.made += 1

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Rows (n, w, C) of the logits; those of windows further up are forgotten."""
        height = next(iter(self.held.values())).shape[0]
        index = torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows.cpu()
        needed = range(int(index.min()) // height, int(index.max()) // height + 1)
        while self.made <= needed[-1]:
            self._make()
        self.held = {row: logits for row, logits in self.held.items() if row >= needed[0]}
        parts = [self.held[row][index[index // height == row] - row * height] for row in needed]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class _BandedUpsampling(TiledUpsampling):
    """Takes the logits from `_RowsOfWindows`; what it hands to its superclass has their shape and no memory."""

    def __init__(self, logits: _RowsOfWindows, size: tuple[int, int]):
        windows = None if logits.is_whole else (logits.rows, logits.columns)
        super().__init__(torch.zeros((), device=logits.device).expand(logits.shape), size, windows)
        self.source = logits
        self._last = None

    def low_rows(self, image: int, rows: slice | Tensor) -> Tensor:
        if self._last is None or self._last[0] is not rows:  # all tiles of a strip have the same
            self._last = rows, self.source[rows]
        return self._last[1]


@torch.inference_mode()
def predict_bands(model, image: LargeImage, protocol: EvaluationProtocol) -> Iterator[Tensor]:
    """Training ids, integer (n, W) on the CPU, of some rows of an image after the other.

    Raises:
        UserError: a protocol of several passes over the image, which would have to be held together, or a model that
            predicts masks.
    """
    if protocol.output == "queries":
        raise UserError(
            "a model that predicts masks needs the whole image at once, and this one is read in bands: take a model "
            "that classifies pixels for images of this size"
        )
    if protocol.flip or protocol.scales != (1.0,):
        raise UserError(
            "--eval_scales and --eval_flip need the whole image several times, and this one is read in bands: leave "
            "them out for images of this size"
        )
    with full_precision(next(model.parameters()).device.type):
        logits = _RowsOfWindows(model, image, protocol)
        upsampling = _BandedUpsampling(logits, image.size)
        band, rows = None, None
        for tile in upsampling.tiles(0):
            if tile.rows is not rows:
                if band is not None:
                    yield band
                rows = tile.rows
                band = torch.empty(rows.output.stop - rows.output.start, image.size[1], dtype=torch.uint8)
            if logits.is_whole:
                ids = upsampling.argmax(tile)
            else:
                ids = most_likely(upsampling.softmax(tile), -1, protocol.threshold)
            band[:, tile.columns.output] = ids.to(torch.uint8).cpu()
        yield band
