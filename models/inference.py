"""From a preprocessed image to logits, and from these to a prediction at the image's own size.

Training's evaluation, `--do_predict` and `predict.py` all go through here, one image at a time, so that they agree to
the last pixel:

    pixel_values = protocol.preprocess(image)
    logits = protocol_logits(model, pixel_values, protocol)
    prediction, loss_sum, valid_pixels = score_logits(logits, labels)
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF

from data.preprocessing import EvaluationProtocol
from metrics_utils import IGNORE_INDEX
from models.losses import _log_likelihood, check_shapes, targets_of
from models.upsampling import (
    TILE_COLUMNS,
    TiledUpsampling,
    _new_prediction,
    full_precision,
    tile_bytes,
    upsampled_argmax,
)


class PassLogits(NamedTuple):
    """What the network says in one pass over an image, not mirrored, at the network's own resolution.

    A window's logits, upsampled to the pixels that it covers, are averaged with those of the windows that overlap it.
    Because windows stand in a grid, that is linear in the logits and separates into rows and columns, so the average
    never has to be made as a whole.
    """

    logits: torch.Tensor  # (1, C, rows of windows · h, columns of windows · w): the windows' logits side by side
    rows: list[slice]  # pixels of the resized image that each row of windows covers
    columns: list[slice]

    @property
    def is_whole(self) -> bool:
        return len(self.rows) == len(self.columns) == 1


def predict_logits(model, pixel_values: torch.Tensor) -> torch.Tensor:
    """(C_in, h, w) on the model's device → logits (1, C, h', w'), one image at a time; C is num_labels, or 2 for a
    model with a single logit.

    A batch would be a little faster on a GPU, but matrix products round differently for different batch sizes, and
    the counts would then depend on who shares a batch with whom.
    """
    return two_class_logits(model(pixel_values=pixel_values[None]).logits)


def two_class_logits(logits: torch.Tensor) -> torch.Tensor:
    """A single logit z, (B, 1, h, w) → the logits (0, z) of two classes, (B, 2, h, w); others come back as they are.

    Softmax of these is the sigmoid of z, their cross-entropy the binary one, and their argmax is z > 0, so that loss,
    metrics and prediction need know nothing else of such models.
    """
    if logits.shape[1] != 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def protocol_logits(
    model, pixel_values: torch.Tensor | list[torch.Tensor], protocol: EvaluationProtocol
) -> torch.Tensor | list[PassLogits]:
    """What the network says of one image, for `score_logits` and `predicted_ids`.

    Args:
        model: in evaluation mode; the caller turns gradients off.
        pixel_values: what `protocol.preprocess` made, on any device.

    Returns:
        Logits (1, C, h', w') if there is but one pass over the whole image; else the logits of every pass.
    """
    device = next(model.parameters()).device
    passes = []
    for image in [pixel_values] if isinstance(pixel_values, torch.Tensor) else pixel_values:
        image = image.to(device)
        rows, columns = (protocol.windows(side) for side in image.shape[-2:])
        for mirrored in (False, True) if protocol.flip else (False,):
            logits = _window_logits(model, image.flip(-1) if mirrored else image, rows, columns)
            if mirrored:
                width = image.shape[-1]
                logits = logits.flip(-1)
                columns = [slice(width - window.stop, width - window.start) for window in reversed(columns)]
            passes.append(PassLogits(logits, rows, columns))
    return passes[0].logits if len(passes) == 1 and passes[0].is_whole else passes


def _window_logits(model, image: torch.Tensor, rows: list[slice], columns: list[slice]) -> torch.Tensor:
    """The logits of every window of an image (C_in, h, w), side by side."""
    if len(rows) == len(columns) == 1:
        return predict_logits(model, image)
    return torch.cat(
        [torch.cat([predict_logits(model, image[:, row, column]) for column in columns], dim=-1) for row in rows],
        dim=-2,
    )


def score_logits(
    logits: torch.Tensor | list[PassLogits], labels: torch.Tensor, fused_ops: bool = True, threshold: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prediction and cross-entropy at the annotation's resolution.

    Args:
        logits: of `protocol_logits`, or (1, C, h, w) float.
        labels: (1, H, W) integer training ids, `IGNORE_INDEX` ignored.
        fused_ops: a tile after the other; else full (1, C, H, W) tensors are made, as stock transformers does.
        threshold: of the protocol; other than 0.5 needs two classes.

    Returns:
        prediction (1, H, W) integer; summed cross-entropy (1,) float; number of valid pixels (1,) int64. Of several
        passes the prediction is the class of the highest probability averaged over them, and the cross-entropy is
        -log of the label's averaged probability (one that rounds to zero counts as the smallest float32, 1e-38).
    """
    size = labels.shape[-2:]
    valid = labels != IGNORE_INDEX
    if not isinstance(logits, torch.Tensor):
        prediction, likelihood = _score_passes(logits, size, labels.long() * valid, fused_ops, threshold)
        return prediction, -(likelihood.log() * valid).sum(dim=(1, 2)), valid.sum(dim=(1, 2))
    if threshold != 0.5:
        prediction = predicted_ids(logits, size, fused_ops, threshold)[None]
        return prediction, *score_logits(logits, labels, fused_ops)[1:]
    if fused_ops:
        return upsampled_scores(logits, labels, ignore_index=IGNORE_INDEX)
    upsampled = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    losses = F.cross_entropy(upsampled, labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
    return upsampled.argmax(dim=1), losses.sum(dim=(1, 2)), valid.sum(dim=(1, 2))


def predicted_ids(
    logits: torch.Tensor | list[PassLogits], size: tuple[int, int], fused_ops: bool = True, threshold: float = 0.5
) -> torch.Tensor:
    """Logits of `protocol_logits`, or (1, C, h, w) → training ids (H, W) at `size`, the same that `score_logits`
    finds with this threshold."""
    if not isinstance(logits, torch.Tensor):
        return _score_passes(logits, size, None, fused_ops, threshold)[0][0]
    if threshold != 0.5:
        # Shifted before upsampling, whose weights add up to one: z > log(t / (1 - t)) where sigmoid(z) > t.
        logits = logits.float() + _class_weights(threshold, logits.device).log()[:, None, None]
    if fused_ops:
        return upsampled_argmax(logits, size)[0]
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False).argmax(dim=1)[0]


@torch.inference_mode()
def predict_ids(
    model, image: Image.Image | torch.Tensor, protocol: EvaluationProtocol, fused_ops: bool = True
) -> torch.Tensor:
    """RGB image, or uint8 (C, H, W) → integer tensor (H, W) of training ids at the image's own size, on the CPU.

    The model must be in evaluation mode; it runs on the device where its parameters are.
    """
    logits = protocol_logits(model, protocol.preprocess(image), protocol)
    return predicted_ids(logits, tuple(tvF.get_size(image)), fused_ops, protocol.threshold).cpu()


def _class_weights(threshold: float, device: torch.device) -> torch.Tensor:
    """Weights (2,) of two probabilities p and 1 - p: the second product is the larger one where 1 - p > threshold."""
    return torch.tensor([threshold, 1 - threshold], device=device)


@torch.compiler.disable
@torch.no_grad()
def upsampled_scores(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX
) -> tuple[Tensor, Tensor, Tensor]:
    """What evaluation needs of logits (B, C, h, w) upsampled to labels (B, H, W), in one pass over the pixels.

    Returns:
        The prediction (B, H, W) of `upsampled_argmax`, bit for bit; the cross-entropy summed over each image's valid
        pixels (B,), in the dtype of `upsampled_cross_entropy`; and the number of valid pixels (B,), int64.

    Raises:
        ValueError, TypeError: as `upsampled_cross_entropy`.
    """
    check_shapes(logits, labels)
    prediction = _new_prediction(logits, labels.shape[-2:])
    losses, valid_pixels = [], []
    with full_precision(logits.device.type):
        upsampling = TiledUpsampling(logits, labels.shape[-2:])
        for image in range(logits.shape[0]):
            target, valid = targets_of(labels[image], logits.shape[1], ignore_index)
            likelihood = upsampling.new_empty(*target.shape)
            for tile in upsampling.tiles(image):
                prediction[image][tile.pixels] = upsampling.argmax(tile)
                likelihood[tile.pixels] = upsampling.softmax(tile).gather(-1, target[tile.pixels])
            losses.append(-(_log_likelihood(upsampling, image, target, likelihood) * valid).sum())
            valid_pixels.append(valid.sum())
    return prediction, torch.stack(losses), torch.stack(valid_pixels)


# ---- several passes or windows --------------------------------------------------------------------------------------


def _score_passes(
    passes: list[PassLogits], size: tuple[int, int], target: torch.Tensor | None, fused_ops: bool, threshold: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The class of the highest averaged probability, (1, H, W), and the averaged probability of `target` (1, H, W)."""
    num_classes, device = passes[0].logits.shape[1], passes[0].logits.device
    smallest = torch.finfo(torch.float32).tiny
    if not fused_ops:
        probabilities = _mean_probabilities((_full_logits(one, size) for one in passes), dim=1)
        likelihood = None if target is None else probabilities.gather(1, target[:, None])[:, 0].clamp(min=smallest)
        return _most_likely(probabilities, 1, threshold), likelihood
    # 255 is left to mean "ignored", as in `upsampled_argmax`.
    dtype = torch.uint8 if num_classes <= IGNORE_INDEX else torch.int64
    prediction = torch.empty(1, *size, dtype=dtype, device=device)
    likelihood = None if target is None else torch.empty(1, *size, device=device)
    with full_precision(device.type):
        for rows, columns, tiles in _tiles(passes, size):
            probabilities = _mean_probabilities(tiles, dim=-1)
            prediction[0, rows, columns] = _most_likely(probabilities, -1, threshold)
            if target is not None:
                of_target = probabilities.gather(-1, target[0, rows, columns, None])[..., 0]
                likelihood[0, rows, columns] = of_target.clamp(min=smallest)
    return prediction, likelihood


def _most_likely(probabilities: torch.Tensor, dim: int, threshold: float) -> torch.Tensor:
    """argmax along `dim`, as the threshold between two classes moves it."""
    if threshold != 0.5:
        probabilities = probabilities.movedim(dim, -1) * _class_weights(threshold, probabilities.device)
        dim = -1
    return probabilities.argmax(dim)


def _mean_probabilities(logits: Iterable[torch.Tensor], dim: int) -> torch.Tensor:
    """Softmax along `dim`, averaged over the passes."""
    total, count = None, 0
    for one in logits:
        probabilities = one.softmax(dim)
        total = probabilities if total is None else total.add_(probabilities)
        count += 1
    return total.div_(count)


def _full_logits(one: PassLogits, size: tuple[int, int]) -> torch.Tensor:
    """The published formula on full tensors: a pass's logits (1, C, H, W), averaged where windows overlap."""
    logits = one.logits.float()
    if one.is_whole:
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    total = logits.new_zeros(1, logits.shape[1], one.rows[-1].stop, one.columns[-1].stop)
    count = torch.zeros_like(total[:, :1])
    for row, window_row in zip(one.rows, logits.chunk(len(one.rows), dim=-2), strict=True):
        for column, window in zip(one.columns, window_row.chunk(len(one.columns), dim=-1), strict=True):
            covered = (row.stop - row.start, column.stop - column.start)
            total[:, :, row, column] += F.interpolate(window, size=covered, mode="bilinear", align_corners=False)
            count[:, :, row, column] += 1
    return F.interpolate(total / count, size=size, mode="bilinear", align_corners=False)


class _Span(NamedTuple):
    """A run of output rows (or columns), the input rows they are made of, and the weights between them."""

    output: slice
    input: torch.Tensor  # indices
    weights: torch.Tensor  # (output rows, input rows)


def _tiles(passes: list[PassLogits], size: tuple[int, int]) -> Iterator[tuple[slice, slice, Iterator[torch.Tensor]]]:
    """Rows and columns of one tile of the image after the other, with the logits (rows, columns, C) of every pass."""
    maps = [one.logits[0].float().permute(1, 2, 0) for one in passes]
    device, num_classes = maps[0].device, maps[0].shape[-1]
    tile_columns = min(size[1], TILE_COLUMNS)
    tile_rows = max(1, tile_bytes(device) // (tile_columns * num_classes * maps[0].itemsize))
    rows, columns = [], []
    for one, low in zip(passes, maps, strict=True):
        rows.append(_spans(None if one.is_whole else one.rows, low.shape[0], size[0], tile_rows, device))
        columns.append(_spans(None if one.is_whole else one.columns, low.shape[1], size[1], tile_columns, device))

    def tile(low: torch.Tensor, row: _Span, column: _Span) -> torch.Tensor:
        wide = torch.matmul(column.weights, low[row.input[:, None], column.input])
        return torch.mm(row.weights, wide.flatten(1)).unflatten(1, wide.shape[1:])

    for row in zip(*rows, strict=True):
        for column in zip(*columns, strict=True):
            yield row[0].output, column[0].output, map(tile, maps, row, column)


def _spans(windows: list[slice] | None, low: int, size: int, length: int, device: torch.device) -> list[_Span]:
    """One axis of a pass: from the `low` rows of all windows to `size` rows, in runs of at most `length`.

    windows: pixels of the resized image that each covers; None for the whole image, which goes to `size` in one step.
    """

    def bilinear(weights: torch.Tensor, size: int) -> torch.Tensor:
        return F.interpolate(weights[None], size=size, mode="linear", align_corners=False)[0]

    if windows is None:
        weights = bilinear(torch.eye(low), size)
    else:
        side = windows[-1].stop
        weights, count = torch.zeros(len(windows), low // len(windows), side), torch.zeros(side)
        for window_weights, window in zip(weights, windows, strict=True):
            window_weights[:, window] = bilinear(torch.eye(len(window_weights)), window.stop - window.start)
            count[window] += 1
        weights = bilinear((weights / count).flatten(0, 1), size)
    spans = []
    for start in range(0, size, length):
        output = slice(start, min(start + length, size))
        inputs = weights[:, output].any(dim=1).nonzero()[:, 0]
        spans.append(_Span(output, inputs.to(device), weights[inputs, output].T.contiguous().to(device)))
    return spans
