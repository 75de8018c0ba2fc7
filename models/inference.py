"""From a model and an image to logits, and from these to a prediction at the image's own size.

    protocol = evaluation_protocol(model.config, image_processor, evaluation_args)
    ids = predict_ids(model, image, protocol)

Training's evaluation, `--do_predict` and `predict.py` all go through here, one image at a time, so that they agree to
the last pixel. Evaluation takes the two steps of `predict_ids` one by one, the second with labels:

    logits = protocol_logits(model, protocol.preprocess(image), protocol)
    prediction, loss_sum, valid_pixels = score_logits(logits, labels)
"""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF
from transformers import PretrainedConfig

from cli_utils import UserError, one_line
from data.arguments import EvaluationArguments
from data.preprocessing import EvaluationProtocol, short_side_of
from metrics_utils import IGNORE_INDEX
from models.configurations import is_eomt, is_universal
from models.geometry import input_geometry
from models.losses import check_shapes, targets_of
from models.mask_scores import QueryPass, full_scores, mean_scores, query_outputs, rows_of_scores, share_of_scores
from models.tile_kernel import TileKernel
from models.upsampling import (
    TiledUpsampling,
    empty_prediction,
    full_precision,
    tile_argmax,
    tile_rows,
    upsampled_argmax,
)

logger = logging.getLogger(__name__)

TEMPERATURE = "segmentation_temperature"  # the key in a model's configuration


def find_device(name: str | None) -> torch.device:
    """The device of that name; None: the accelerator if there is one, else the CPU."""
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: torch without CUDA
        raise UserError(f"--device {name} cannot be used here: {one_line(error)}") from None


def evaluation_protocol(
    config: PretrainedConfig, image_processor, args: EvaluationArguments, crop_size: int | None = None
) -> EvaluationProtocol:
    """The protocol of a run: what the architecture can take, what the image processor says, what the flags ask for.

    The short side is one that the architecture sees whole, and so is the training crop, whose side it is by default.

    Args:
        config: of the model.
        crop_size: of `--crop_size`.

    Raises:
        UserError: flags that do not fit the architecture, or a configuration whose model does not run.
    """
    if is_eomt(config) and args.image_size not in (None, config.image_size):
        raise UserError(
            f"--image_size {args.image_size}: {config.name_or_path or 'this model'} was trained for "
            f"{config.image_size} pixels and takes no others: leave it out; training with it makes one of that size"
        )
    geometry = input_geometry(config)
    asked = short_side_of(image_processor)
    short_side = geometry.fit(asked)
    if short_side != asked:
        takes = "takes images of one size only" if geometry.side else f"takes multiples of {geometry.divisor} only"
        logger.warning(
            f"short side {asked}: {config.model_type} {takes}, so images are shown and cropped at {short_side} pixels "
            f"(--image_size {geometry.nearest(asked)} would fit)"
        )
    return EvaluationProtocol.from_image_processor(
        image_processor,
        short_side=short_side,
        size_divisor=geometry.divisor,
        square=geometry.square,
        **args.options(crop_size or short_side) | _of_architecture(config, args, short_side),
    )


def _of_architecture(config: PretrainedConfig, args: EvaluationArguments, short_side: int) -> dict:
    """What else a protocol has of the architecture: how its output is resized, and the windows of EoMT, which takes
    one size and shows images of any aspect in as few of them as cover the long side."""
    options = {"output": "queries" if is_universal(config) else "logits"}
    options["temperature"] = getattr(config, TEMPERATURE, 1.0)
    if config.model_type == "upernet":
        options["output"] = "full logits"
    if is_eomt(config) and args.slide_crop is None and args.slide_stride is None:
        options |= {"slide_crop": short_side, "even_windows": True}
    return options


class PassLogits(NamedTuple):
    """What the network says in one pass over an image, not mirrored, at the network's own resolution.

    A window's logits, upsampled to the pixels that it covers, are averaged with those of the windows that overlap it.
    """

    logits: Tensor  # (1, C, rows of windows · h, columns of windows · w): the windows' logits side by side
    rows: list[slice]  # pixels of the resized image that each row of windows covers
    columns: list[slice]
    full: bool = False  # whether a whole image's logits are resized to it first, as a window's always are

    @property
    def windows(self) -> tuple[list[slice], list[slice]] | None:
        """Rows and columns of windows, as `TiledUpsampling` takes them, whose logits are resized to the pixels that
        they cover and from there to the original size; None for a whole image whose logits are resized once."""
        whole = len(self.rows) == len(self.columns) == 1
        return None if whole and not self.full else (self.rows, self.columns)

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]

    @property
    def device(self) -> torch.device:
        return self.logits.device

    def mirrored(self) -> "PassLogits":
        """Of the mirror image of the one that was shown."""
        width = self.columns[-1].stop
        columns = [slice(width - window.stop, width - window.start) for window in reversed(self.columns)]
        return self._replace(logits=self.logits.flip(-1), columns=columns)


def predict_logits(model, pixel_values: Tensor) -> Tensor:
    """(C_in, h, w) on the model's device → logits (1, C, h', w'), one image at a time; C is num_labels, or 2 for a
    model with a single logit.

    A batch (B, C_in, h, w) would be a little faster on a GPU, but matrix products round differently for different
    batch sizes, and the counts would then depend on who shares a batch with whom; frames of films are shown so.
    """
    images = pixel_values if pixel_values.dim() == 4 else pixel_values[None]
    return two_class_logits(model(pixel_values=images).logits)


def two_class_logits(logits: Tensor) -> Tensor:
    """A single logit z, (B, 1, h, w) → the logits (0, z) of two classes, (B, 2, h, w); others come back as they are.

    Softmax of these is the sigmoid of z, their cross-entropy the binary one, and their argmax is z > 0, so that loss,
    metrics and prediction need know nothing else of such models.
    """
    if logits.shape[1] != 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def protocol_logits(
    model, pixel_values: Tensor | list[Tensor], protocol: EvaluationProtocol
) -> Tensor | list[PassLogits] | list[QueryPass]:
    """What the network says of one image, for `score_logits` and `predicted_ids`.

    Args:
        model: in evaluation mode; the caller turns gradients off.
        pixel_values: what `protocol.preprocess` made, on any device.

    Returns:
        Logits (1, C, h', w') if there is but one pass over the whole image; else the logits of every pass, or the
        masks of every pass of a universal model.
    """
    device = next(model.parameters()).device
    look = _window_masks if protocol.output == "queries" else _window_logits
    passes = []
    for image in [pixel_values] if isinstance(pixel_values, Tensor) else pixel_values:
        image = image.to(device)
        rows, columns = (protocol.windows(side) for side in image.shape[-2:])
        passes.append(look(model, image, rows, columns, protocol))
        if protocol.flip:
            passes.append(look(model, image.flip(-1), rows, columns, protocol).mirrored())
    if protocol.output != "queries" and len(passes) == 1 and passes[0].windows is None:
        return passes[0].logits
    return passes


def count_passes(pixel_values: Tensor | list[Tensor], protocol: EvaluationProtocol) -> int:
    """How often `protocol_logits` runs the network for an image."""
    images = [pixel_values] if isinstance(pixel_values, Tensor) else pixel_values
    windows = sum(math.prod(len(protocol.windows(side)) for side in image.shape[-2:]) for image in images)
    return windows * (2 if protocol.flip else 1)


def _window_logits(
    model, image: Tensor, rows: list[slice], columns: list[slice], protocol: EvaluationProtocol
) -> PassLogits:
    """The logits of every window of an image (C_in, h, w), or of a batch of them, side by side."""
    if len(rows) == len(columns) == 1:
        logits = predict_logits(model, image)
    else:
        logits = torch.cat(
            [
                torch.cat([predict_logits(model, image[..., row, column]) for column in columns], dim=-1)
                for row in rows
            ],
            dim=-2,
        )
    return PassLogits(logits, rows, columns, protocol.output == "full logits")


def _window_masks(
    model, image: Tensor, rows: list[slice], columns: list[slice], protocol: EvaluationProtocol
) -> QueryPass:
    """What a universal model says of every window of an image (C_in, h, w)."""
    return QueryPass(
        [[query_outputs(model, image[:, row, column]) for column in columns] for row in rows], rows, columns
    )


def score_logits(
    logits: Tensor | list[PassLogits] | list[QueryPass], labels: Tensor, fused_ops: bool = True, threshold: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction and cross-entropy at the annotation's resolution.

    Args:
        logits: of `protocol_logits`, or (1, C, h, w) float.
        labels: (1, H, W) integer training ids, `IGNORE_INDEX` ignored.
        fused_ops: a tile after the other; else full (1, C, H, W) tensors are made, as stock transformers does.
        threshold: of the protocol; other than 0.5 needs two classes.

    Returns:
        prediction (1, H, W) integer; summed cross-entropy (1,) float; number of valid pixels (1,) int64. Of several
        passes the prediction is the class of the highest probability averaged over them, and the cross-entropy is
        -log of the label's averaged probability (one that rounds to zero counts as the smallest float32, 1e-38). A
        universal model's probabilities are its scores divided by their sum.
    """
    size = labels.shape[-2:]
    valid = labels != IGNORE_INDEX
    if not isinstance(logits, Tensor):
        prediction, likelihood = _score_passes(logits, size, labels.long() * valid, fused_ops, threshold)
        return prediction, -(likelihood.log() * valid).sum(dim=(1, 2)), valid.sum(dim=(1, 2))
    if threshold != 0.5:
        prediction = predicted_ids(logits, size, fused_ops, threshold)[None]
        return prediction, *score_logits(logits, labels, fused_ops)[1:]
    if fused_ops:
        return upsampled_scores(logits, labels)
    upsampled = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    losses = F.cross_entropy(upsampled, labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
    return upsampled.argmax(dim=1), losses.sum(dim=(1, 2)), valid.sum(dim=(1, 2))


def predicted_ids(
    logits: Tensor | list[PassLogits] | list[QueryPass],
    size: tuple[int, int],
    fused_ops: bool = True,
    threshold: float = 0.5,
) -> Tensor:
    """Logits of `protocol_logits`, or (1, C, h, w) → training ids (H, W) at `size`, the same that `score_logits`
    finds with this threshold."""
    if not isinstance(logits, Tensor):
        return _score_passes(logits, size, None, fused_ops, threshold)[0][0]
    if threshold != 0.5:
        logits = logits.float() + class_shift(threshold, logits.device)[:, None, None]
    if fused_ops:
        return upsampled_argmax(logits, size)[0]
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False).argmax(dim=1)[0]


@torch.inference_mode()
def predict_ids(model, image: Image.Image | Tensor, protocol: EvaluationProtocol, fused_ops: bool = True) -> Tensor:
    """RGB image, or uint8 (C, H, W) → integer tensor (H, W) of training ids at the image's own size, on the CPU.

    The model must be in evaluation mode; it runs on the device where its parameters are.
    """
    logits = protocol_logits(model, protocol.preprocess(image), protocol)
    return predicted_ids(logits, tuple(tvF.get_size(image)), fused_ops, protocol.threshold).cpu()


@torch.inference_mode()
def predict_together(
    model, images: Sequence[Image.Image | Tensor], protocol: EvaluationProtocol, fused_ops: bool = True
) -> list[Tensor]:
    """`predict_ids` of several images of one size, as one batch; the ids are the same, but for pixels where logits
    differ by what matrix products round. Models that predict masks are shown one after the other."""
    if len(images) == 1 or protocol.output == "queries":
        return [predict_ids(model, image, protocol, fused_ops) for image in images]
    shown = [protocol.preprocess(image) for image in images]
    if isinstance(shown[0], Tensor):
        batch = torch.stack(shown)
    else:
        batch = [torch.stack(scale) for scale in zip(*shown, strict=True)]
    logits, size = protocol_logits(model, batch, protocol), tuple(tvF.get_size(images[0]))

    def of(index: int) -> Tensor | list[PassLogits]:
        one = slice(index, index + 1)
        return logits[one] if isinstance(logits, Tensor) else [a._replace(logits=a.logits[one]) for a in logits]

    return [predicted_ids(of(index), size, fused_ops, protocol.threshold).cpu() for index in range(len(images))]


@torch.inference_mode()
def predict_with_confidence(
    model, image: Image.Image | Tensor, protocol: EvaluationProtocol, fused_ops: bool = True
) -> tuple[Tensor, Tensor]:
    """As `predict_ids`, and how likely these classes are: uint8 (H, W), 255 for certainty, on the CPU."""
    logits, size = protocol_logits(model, protocol.preprocess(image), protocol), tuple(tvF.get_size(image))
    ids = predicted_ids(logits, size, fused_ops, protocol.threshold)
    confidence = torch.empty(size, dtype=torch.uint8)
    with full_precision(ids.device.type):
        for pixels, probabilities in mean_probabilities(as_passes(logits), size):
            confidence[pixels] = levels(probabilities, ids[pixels], protocol.temperature).cpu()
    return ids.cpu(), confidence


def levels(probabilities: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Probabilities (H, W, C) → those of the classes `ids` (H, W) at that temperature, 0 to 255, uint8 (H, W)."""
    likely = at_temperature(probabilities, temperature).gather(-1, ids.long()[..., None])[..., 0]
    return (likely * 255).round().to(torch.uint8)


def at_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """Probabilities (…, C) → softmax of their logarithms over the temperature: those of the logits over it, where
    they are the softmax of some, and whatever they are an average of, in the same order."""
    if temperature == 1:
        return probabilities
    return (probabilities.clamp(min=torch.finfo(torch.float32).tiny).log() / temperature).softmax(-1)


@torch.no_grad()
def scores_at(
    logits: Tensor | list[PassLogits] | list[QueryPass], size: tuple[int, int], rows: Tensor, columns: Tensor
) -> Tensor:
    """Of single pixels (k,) at `size`: float32 (k, C) whose softmax is their probabilities.

    logits: of `protocol_logits`.
    """
    passes = as_passes(logits)
    with full_precision(passes[0].device.type):
        if isinstance(passes[0], QueryPass):
            pixels = [(slice(y, y + 1), slice(x, x + 1)) for y, x in zip(rows.tolist(), columns.tolist(), strict=True)]
            probabilities = torch.cat([share_of_scores(passes, size, one)[0] for one in pixels])
            return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()
        found = [_logits_at(one, size, rows, columns) for one in passes]
        if len(found) == 1:
            return found[0]
        return torch.stack([one.log_softmax(-1) for one in found]).logsumexp(0)


def _logits_at(one: PassLogits, size: tuple[int, int], rows: Tensor, columns: Tensor) -> Tensor:
    """Upsampled logits (k, C) of single pixels."""
    if one.windows is not None:
        return TiledUpsampling(one.logits, size, one.windows).at(0, rows, columns)
    places = torch.stack([(columns + 0.5) * 2 / size[1] - 1, (rows + 0.5) * 2 / size[0] - 1], dim=-1)
    options = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
    return F.grid_sample(one.logits.float(), places[None, None].float(), **options)[0, :, 0].T


def as_passes(logits: Tensor | list[PassLogits] | list[QueryPass]) -> list[PassLogits] | list[QueryPass]:
    return [PassLogits(logits, [slice(0, 1)], [slice(0, 1)])] if isinstance(logits, Tensor) else logits


def class_shift(threshold: float, device: torch.device | str = "cpu") -> Tensor:
    """What is added to the logits of two classes (2,) so that their argmax is the threshold's decision.

    Before upsampling, whose weights add up to one: z > log(t / (1 - t)) where sigmoid(z) > t.
    """
    return _class_weights(threshold, device).log()


def _class_weights(threshold: float, device: torch.device | str) -> Tensor:
    """Weights (2,) of two probabilities p and 1 - p: the second product is the larger one where 1 - p > threshold."""
    return torch.tensor([threshold, 1 - threshold], device=device)


@torch.compiler.disable
@torch.no_grad()
def upsampled_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What evaluation needs of logits (B, C, h, w) upsampled to labels (B, H, W), in one pass over the pixels.

    Returns:
        The prediction (B, H, W) of `upsampled_argmax`, bit for bit; the cross-entropy summed over each image's valid
        pixels (B,), in the dtype of `upsampled_cross_entropy`; and the number of valid pixels (B,), int64.

    Raises:
        ValueError, TypeError: as `upsampled_cross_entropy`.
    """
    check_shapes(logits, labels)
    prediction = empty_prediction(*logits.shape[:2], labels.shape[-2:], logits.device)
    losses, valid_pixels = [], []
    with full_precision(logits.device.type):
        kernel = TileKernel.of(logits, labels.shape[-2:])
        upsampling = None if kernel else TiledUpsampling(logits, labels.shape[-2:])
        for image in range(logits.shape[0]):
            target, valid = targets_of(labels[image], logits.shape[1], IGNORE_INDEX)
            valid_pixels.append(valid.sum())
            if kernel:
                prediction[image], loss = kernel.argmax_and_loss(image, target, valid)
                losses.append(loss.sum())
                continue
            loss = upsampling.new_empty(*target.shape)
            for tile in upsampling.tiles(image):
                prediction[image][tile.pixels] = upsampling.argmax(tile)
                loss[tile.pixels] = upsampling.log_sum(tile) - tile.logits.gather(-1, target[tile.pixels])
            losses.append((loss * valid).sum())
    return prediction, torch.stack(losses), torch.stack(valid_pixels)


# ---- several passes or windows --------------------------------------------------------------------------------------


def _score_passes(
    passes: list[PassLogits] | list[QueryPass],
    size: tuple[int, int],
    target: Tensor | None,
    fused_ops: bool,
    threshold: float,
) -> tuple[Tensor, Tensor | None]:
    """The class of the highest averaged probability, (1, H, W), and the averaged probability of `target` (1, H, W)."""
    num_classes, device = passes[0].num_classes, passes[0].device
    smallest = torch.finfo(torch.float32).tiny
    if not fused_ops:
        probabilities = sum(_full_probabilities(one, size) for one in passes)
        probabilities = probabilities / probabilities.sum(1, keepdim=True)
        likelihood = None if target is None else probabilities.gather(1, target[:, None])[:, 0].clamp(min=smallest)
        return most_likely(probabilities, 1, threshold), likelihood
    prediction = empty_prediction(1, num_classes, size, device)
    likelihood = None if target is None else torch.empty(prediction.shape, device=device)
    with full_precision(device.type):
        for pixels, probabilities in mean_probabilities(passes, size):
            prediction[0][pixels] = most_likely(probabilities, -1, threshold)
            if target is not None:
                of_target = probabilities.gather(-1, target[0][pixels][..., None])[..., 0]
                likelihood[0][pixels] = of_target.clamp(min=smallest)
    return prediction, likelihood


def _full_probabilities(one: PassLogits | QueryPass, size: tuple[int, int]) -> Tensor:
    """Probabilities, or scores, (1, C, H, W) of a pass."""
    return full_scores(one, size) if isinstance(one, QueryPass) else _full_logits(one, size).softmax(1)


def mean_probabilities(
    passes: list[PassLogits] | list[QueryPass], size: tuple[int, int], rows: int | None = None
) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Rows and columns of one tile of the image after the other, with probabilities (rows, columns, C) averaged over
    the passes.

    rows: height of a tile, at most that of `rows_of_tile`, which it is by default.
    """
    if isinstance(passes[0], QueryPass):
        return mean_scores(passes, size, rows)
    first = TiledUpsampling(passes[0].logits, size, passes[0].windows, rows=rows)
    return mean_softmax(
        first, [TiledUpsampling(one.logits, size, one.windows, memory_of=first, rows=rows) for one in passes[1:]]
    )


def rows_of_tile(passes: list[PassLogits] | list[QueryPass], size: tuple[int, int]) -> int:
    """Height of the tiles in which `mean_probabilities` comes."""
    one = passes[0]
    return rows_of_scores(passes, size) if isinstance(one, QueryPass) else tile_rows(size, one.num_classes, one.device)


def mean_softmax(
    first: TiledUpsampling, others: list[TiledUpsampling]
) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """As `mean_probabilities`, of one image each; the others use the memory of the first."""
    # Drawn one at a time, since each tile overwrites the one before it.
    tiles = [other.tiles(0) for other in others]
    for tile in first.tiles(0):
        probabilities = first.softmax(tile)
        if others:  # which use its memory
            probabilities = probabilities.clone()
        for other, its_tiles in zip(others, tiles, strict=True):
            probabilities += other.softmax(next(its_tiles))
        yield tile.pixels, probabilities.div_(1 + len(others))


def most_likely(probabilities: Tensor, dim: int, threshold: float) -> Tensor:
    """argmax along `dim`, 1 of (1, C, H, W) or -1 of a tile, as the threshold between two classes moves it."""
    if threshold != 0.5:
        probabilities = probabilities.movedim(dim, -1) * _class_weights(threshold, probabilities.device)
        return probabilities.argmax(-1)
    return tile_argmax(probabilities) if dim == -1 else probabilities.argmax(dim)


def _full_logits(one: PassLogits, size: tuple[int, int]) -> Tensor:
    """The published formula on full tensors: a pass's logits (1, C, H, W), averaged where windows overlap."""
    logits = one.logits.float()
    if one.windows is None:
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    total = logits.new_zeros(1, logits.shape[1], one.rows[-1].stop, one.columns[-1].stop)
    count = torch.zeros_like(total[:, :1])
    for row, window_row in zip(one.rows, logits.chunk(len(one.rows), dim=-2), strict=True):
        for column, window in zip(one.columns, window_row.chunk(len(one.columns), dim=-1), strict=True):
            covered = (row.stop - row.start, column.stop - column.start)
            total[:, :, row, column] += F.interpolate(window, size=covered, mode="bilinear", align_corners=False)
            count[:, :, row, column] += 1
    return F.interpolate(total / count, size=size, mode="bilinear", align_corners=False)
