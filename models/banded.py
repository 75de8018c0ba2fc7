"""Predicting an image a band of rows after the other: equal, id for id, to `models.inference.predict_ids` of the whole
image, in memory for a few rows of windows of every pass.

    for ids, confidence in predict_bands(model, image, protocol): ...    # uint8 (n, W), from the top down
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from cli_utils import UserError
from data.large_images import LargeImage, resized_rows
from data.preprocessing import EvaluationProtocol
from models.inference import class_shift, levels, mean_softmax, most_likely, predict_logits
from models.upsampling import TiledUpsampling, full_precision


class _RowsOfWindows:
    """The logits of one pass over an image, not mirrored, of which few rows of windows are held: made when they are
    asked for, from the top.

    scale, flip: of the protocol's passes. shift: what is added to the logits of the classes, (C,).
    """

    def __init__(
        self,
        model,
        image: LargeImage,
        protocol: EvaluationProtocol,
        scale: float = 1.0,
        flip: bool = False,
        shift: Tensor | None = None,
    ):
        self.model, self.protocol, self.flip, self.shift = model, protocol, flip, shift
        self.device = next(model.parameters()).device
        size = protocol.input_size(*image.size, scale)
        self.rows, self.shown_columns = (protocol.windows(side) for side in size)
        self.resized = resized_rows(image, size)
        self.shown, self.top = torch.empty(image.num_channels, 0, size[1], dtype=torch.uint8), 0
        self.held: dict[int, Tensor] = {}  # row of windows → logits (h, columns of windows · w, C)
        self.made = 0
        self._make()

    @property
    def columns(self) -> list[slice]:
        """What windows cover of the image, which is not mirrored."""
        if not self.flip:
            return self.shown_columns
        width = self.shown_columns[-1].stop
        return [slice(width - window.stop, width - window.start) for window in reversed(self.shown_columns)]

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
        strip = strip.flip(-1) if self.flip else strip
        logits = [
            predict_logits(self.model, self.protocol.normalize(strip[..., column]).to(self.device))
            for column in self.shown_columns
        ]
        logits = torch.cat(logits, dim=-1).float()
        logits = logits.flip(-1) if self.flip else logits
        if self.shift is not None:
            logits = logits + self.shift[:, None, None]
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

    def __init__(
        self,
        logits: _RowsOfWindows,
        size: tuple[int, int],
        memory_of: TiledUpsampling | None = None,
        rows: int | None = None,
    ):
        windows = None if logits.is_whole else (logits.rows, logits.columns)
        nothing = torch.zeros((), device=logits.device).expand(logits.shape)
        super().__init__(nothing, size, windows, memory_of, rows)
        self.source = logits
        self._last = None

    def low_rows(self, image: int, rows: slice | Tensor) -> Tensor:
        if self._last is None or self._last[0] is not rows:  # all tiles of a strip have the same
            self._last = rows, self.source[rows]
        return self._last[1]


def band_probabilities(
    model, image: LargeImage, protocol: EvaluationProtocol, rows: int | None = None
) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """As `models.inference.mean_probabilities`, of an image that is read as they are drawn.

    Raises:
        UserError: a model that predicts masks.
    """
    check_takes_bands(protocol)
    passes = [(scale, flip) for scale in protocol.scales for flip in ((False, True) if protocol.flip else (False,))]
    logits = [_RowsOfWindows(model, image, protocol, *one) for one in passes]
    first = _BandedUpsampling(logits[0], image.size, rows=rows)
    return mean_softmax(first, [_BandedUpsampling(one, image.size, first, rows) for one in logits[1:]])


@torch.inference_mode()
def predict_bands(
    model, image: LargeImage, protocol: EvaluationProtocol, confidence: bool = False
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Of some rows of an image after the other: training ids, uint8 (n, W), and, if asked for, how likely they are, as
    `models.inference.predict_with_confidence`, else None; on the CPU.

    Raises:
        UserError: a model that predicts masks.
    """
    check_takes_bands(protocol)
    device = next(model.parameters()).device

    def tiles_of_one_pass():
        """The classes of the highest logits, as `models.inference.predicted_ids` finds them."""
        shift = class_shift(protocol.threshold, device) if protocol.threshold != 0.5 else None
        upsampling = _BandedUpsampling(_RowsOfWindows(model, image, protocol, shift=shift), image.size)
        for tile in upsampling.tiles(0):
            ids, probabilities = upsampling.argmax(tile), None
            if confidence:
                probabilities = upsampling.softmax(tile) if shift is None else (tile.logits - shift).softmax(-1)
            yield tile.pixels, ids, probabilities

    def tiles():
        for pixels, probabilities in band_probabilities(model, image, protocol):
            yield pixels, most_likely(probabilities, -1, protocol.threshold), probabilities

    with full_precision(device.type):
        chosen = tiles_of_one_pass() if _is_shown_whole(image, protocol) else tiles()
        yield from joined(chosen, image.size[1], protocol.temperature if confidence else None)


def _is_shown_whole(image: LargeImage, protocol: EvaluationProtocol) -> bool:
    """Whether there is one pass in one window, whose logits are resized once."""
    windows = [protocol.windows(side) for side in protocol.input_size(*image.size)]
    one_pass = protocol.scales == (1.0,) and not protocol.flip
    return one_pass and protocol.output == "logits" and max(map(len, windows)) == 1


def check_takes_bands(protocol: EvaluationProtocol) -> None:
    """Raises UserError for a protocol that needs the whole image."""
    if protocol.output == "queries":
        raise UserError(
            "a model that predicts masks needs the whole image at once, and this one is read in bands: take a model "
            "that classifies pixels for images of this size"
        )


def joined(
    tiles: Iterable[tuple[tuple[slice, slice], Tensor, Tensor | None]], width: int, temperature: float | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows and columns, ids (n, m) and probabilities (n, m, C) of tiles, in the order of `TiledUpsampling.tiles` →
    ids and confidence, uint8 (n, W), of its strips; without a temperature the confidence is None."""
    strip, band = None, ()
    for (rows, columns), ids, probabilities in tiles:
        if rows != strip:
            if strip is not None:
                yield band
            strip, size = rows, (rows.stop - rows.start, width)
            band = tuple(
                torch.empty(size, dtype=torch.uint8) if wanted else None for wanted in (True, temperature is not None)
            )
        band[0][:, columns] = ids.to(torch.uint8).cpu()
        if temperature is not None:
            band[1][:, columns] = levels(probabilities, ids, temperature).cpu()
    yield band
