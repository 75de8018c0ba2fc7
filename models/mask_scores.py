"""From masks with classes to the scores of pixels, without a (B, C, H, W) tensor.

A universal model gives each of its Q queries class probabilities p and a mask of logits m. The score of class c at a
pixel is the sum over queries of p[q, c] * sigmoid(m[q]), with the masks resized bilinearly to the size that was shown.
Where windows overlap scores are averaged; then they are resized bilinearly to the original size.

This is the order of the code behind the published figures: detectron2's `MaskFormer.semantic_inference` (Mask2Former
and MaskFormer) and tue-mps/eomt, training/mask_classification_semantic.py. transformers' post-processing differs:
Mask2Former's resizes masks to 384 x 384, MaskFormer's not at all. As the sigmoid is not linear, so do some pixels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.upsampling import TILE_COLUMNS, bilinear_weights, tile_rows


class QueryOutput(NamedTuple):
    """What a universal model says of one image or window."""

    probabilities: Tensor  # (Q, C) float32, without "no object"
    masks: Tensor  # (Q, h, w) logits


class QueryPass(NamedTuple):
    """What it says in one pass over an image, not mirrored, at its own resolution."""

    outputs: list[list[QueryOutput]]  # by rows and columns of windows
    rows: list[slice]  # pixels of the resized image that each row of windows covers
    columns: list[slice]

    @property
    def num_classes(self) -> int:
        return self.outputs[0][0].probabilities.shape[1]

    @property
    def device(self) -> torch.device:
        return self.outputs[0][0].masks.device

    def mirrored(self) -> "QueryPass":
        """Of the mirror image of the one that was shown."""
        width = self.columns[-1].stop
        return QueryPass(
            [[QueryOutput(one.probabilities, one.masks.flip(-1)) for one in row[::-1]] for row in self.outputs],
            self.rows,
            [slice(width - window.stop, width - window.start) for window in reversed(self.columns)],
        )

    def scores(self, rows: slice, columns: slice) -> Tensor:
        """Scores (rows, columns, C) of these pixels of the size that was shown, averaged over the windows."""
        total = torch.zeros(rows.stop - rows.start, columns.stop - columns.start, self.num_classes, device=self.device)
        count = torch.zeros_like(total[..., :1])
        for row, of_row in zip(self.rows, self.outputs, strict=True):
            for column, output in zip(self.columns, of_row, strict=True):
                places, covered = zip(
                    *(_common(want, window) for want, window in ((rows, row), (columns, column))), strict=True
                )
                if None in places:
                    continue
                masks = output.masks.float()
                for axis, part, window in zip((1, 2), covered, (row, column), strict=True):
                    masks = _resized(masks, axis, window.stop - window.start, part)
                scores = masks.sigmoid().permute(1, 2, 0) @ output.probabilities
                total[places] += scores
                count[places] += 1
        return total / count


def _common(wanted: slice, window: slice) -> tuple[slice | None, slice | None]:
    """What a window has of the pixels that are wanted, counted from the first wanted one, and from its own first."""
    start, stop = max(wanted.start, window.start), min(wanted.stop, window.stop)
    if start >= stop:
        return None, None
    return slice(start - wanted.start, stop - wanted.start), slice(start - window.start, stop - window.start)


def _resized(values: Tensor, axis: int, size: int, part: slice) -> Tensor:
    """One axis resized bilinearly to `size`, and of that a part."""
    source, weights = bilinear_weights(values.shape[axis], size, part, values.dtype)
    values = values.narrow(axis, source.start, source.stop - source.start)
    return torch.tensordot(values, weights.to(values.device), dims=([axis], [1])).movedim(-1, axis)


def query_outputs(model, pixel_values: Tensor) -> QueryOutput:
    """(C_in, h, w) on the model's device → what a universal model in evaluation mode says of it.

    While EoMT's masks are annealed its attention draws random queries in evaluation, too. They are drawn from the same
    seed for every image, and leave the random numbers of training alone, so that scores can be repeated.
    """
    chances = getattr(getattr(model, "module", model), "attn_mask_probs", None)
    draws = chances is not None and bool(((chances > 0) & (chances < 1)).any())
    devices = [pixel_values.device] if pixel_values.device.type != "cpu" else []
    with torch.random.fork_rng(devices, enabled=draws, device_type=pixel_values.device.type if devices else "cuda"):
        if draws:
            torch.manual_seed(0)
        output = model(pixel_values=pixel_values[None])
    probabilities = output.class_queries_logits[0].float().softmax(-1)[:, :-1]
    return QueryOutput(probabilities, output.masks_queries_logits[0])


def rows_of_scores(passes: list[QueryPass], size: tuple[int, int]) -> int:
    """Height of a tile of `mean_scores`: masks and scores of it, before they are resized for the second time, are
    what is in memory."""
    num_queries = passes[0].outputs[0][0].masks.shape[0]
    return tile_rows(size, num_queries + 2 * passes[0].num_classes, passes[0].device)


def mean_scores(
    passes: list[QueryPass], size: tuple[int, int], rows: int | None = None
) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Rows and columns of one tile of the image after the other, with scores (rows, columns, C) averaged over the
    passes and divided by their sum, which makes them probabilities.

    rows: height of a tile; that of `rows_of_scores` if left out.
    """
    rows, columns = rows or rows_of_scores(passes, size), min(size[1], TILE_COLUMNS)
    for top in range(0, size[0], rows):
        for left in range(0, size[1], columns):
            pixels = slice(top, min(top + rows, size[0])), slice(left, min(left + columns, size[1]))
            yield pixels, share_of_scores(passes, size, pixels)


def share_of_scores(passes: list[QueryPass], size: tuple[int, int], pixels: tuple[slice, slice]) -> Tensor:
    """As `mean_scores`, of the pixels in these rows and columns."""
    scores = sum(_tile_scores(one, size, pixels) for one in passes)
    return scores / scores.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _tile_scores(one: QueryPass, size: tuple[int, int], pixels: tuple[slice, slice]) -> Tensor:
    sources, weights = zip(
        *(
            bilinear_weights(windows[-1].stop, side, part, torch.float32)
            for windows, side, part in zip((one.rows, one.columns), size, pixels, strict=True)
        ),
        strict=True,
    )
    scores = one.scores(*sources)
    for axis, weight in enumerate(weights):
        scores = torch.tensordot(scores, weight.to(scores.device), dims=([axis], [1])).movedim(-1, axis)
    return scores


def full_scores(one: QueryPass, size: tuple[int, int]) -> Tensor:
    """The published formula on full tensors: scores (1, C, H, W) of one pass."""
    total = torch.zeros(1, one.num_classes, one.rows[-1].stop, one.columns[-1].stop, device=one.device)
    count = torch.zeros_like(total[:, :1])
    for row, of_row in zip(one.rows, one.outputs, strict=True):
        for column, output in zip(one.columns, of_row, strict=True):
            covered = (row.stop - row.start, column.stop - column.start)
            masks = F.interpolate(output.masks[None].float(), size=covered, mode="bilinear", align_corners=False)
            total[:, :, row, column] += torch.einsum("qc,bqhw->bchw", output.probabilities, masks.sigmoid())
            count[:, :, row, column] += 1
    return F.interpolate(total / count, size=size, mode="bilinear", align_corners=False)
