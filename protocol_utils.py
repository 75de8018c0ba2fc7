"""The evaluation protocol: how an image becomes logits, and logits become a label map of the image's own size.

The protocol of the SegFormer paper and of mmsegmentation: aspect kept, short side `short_side`, long side at most four
times that, both sides rounded up to a multiple of 32, the whole image in one pass, logits resized bilinearly to the
original size, then argmax. Where asked for, also as published: a sliding window instead of the whole image, and
test-time augmentation, the average over several scales and mirror images. Training evaluation, `--do_predict` and
`predict.py` all go through here, one image at a time, so that they agree to the last pixel:

    pixel_values = protocol.preprocess(image)
    logits = protocol_logits(model, pixel_values, protocol)
    prediction, loss_sum, valid_pixels = score_logits(logits, labels)
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from cli_utils import UserError
from fused_utils import (
    TILE_COLUMNS,
    full_precision,
    tile_bytes,
    upsampled_argmax,
    upsampled_scores,
)
from metrics_utils import IGNORE_INDEX

# Source: SegFormer's test pipeline, img_scale=(2048, 512): the long side may be four times the short one.
MAX_ASPECT_RATIO = 4


@dataclass(frozen=True)
class EvaluationProtocol:
    """How an image is brought to the network.

    Attributes:
        short_side: pixels of the short side after resizing.
        size_divisor: both sides are rounded up to a multiple of it.
        square: resize to short_side × short_side instead, for architectures with a fixed input size.
        image_mean, image_std: per channel, after scaling to 0…1.
        flip_channels: the network expects BGR (MobileViT).
        slide_crop, slide_stride: side and step in pixels of a square window that slides over the resized image, logits
            averaged where windows overlap; None shows the whole image. Published for Cityscapes: short side 1024,
            window 1024, stride 768, and three quarters of the window is the default. With `square` the window is the
            input that the architecture takes.
        scales: test-time augmentation, factors on the short side; published: 0.75, 0.875, 1, 1.125, 1.25 (NVlabs) or
            0.5, 0.75, 1, 1.25, 1.5, 1.75 (mmsegmentation).
        flip: test-time augmentation, every scale also mirrored.
        threshold: for models of two classes, the probability above which a pixel is given the second one. It moves
            predictions alone, never the loss.

    Raises:
        UserError: on values that do not fit together.
    """

    short_side: int = 512
    size_divisor: int = 32
    square: bool = False
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    flip_channels: bool = False
    slide_crop: int | None = None
    slide_stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    threshold: float = 0.5

    def __post_init__(self):
        if not 0 < self.threshold < 1:
            raise UserError(f"--threshold is {self.threshold:g}; it is a probability between 0 and 1, as in 0.5")
        crop, divisor = self.slide_crop, self.size_divisor
        if crop is not None and self.slide_stride is None:
            object.__setattr__(self, "slide_stride", crop * 3 // 4)
        stride = self.slide_stride
        if not self.scales or min(self.scales) <= 0:
            raise UserError(
                f"--eval_scales is {_numbers(self.scales) or 'empty'}; it takes one or more positive factors, "
                "as in 0.75 1 1.25"
            )
        if crop is None:
            if stride is not None:
                raise UserError(f"--slide_stride {stride} is for a sliding window: add --slide_crop")
            if self.square and set(self.scales) != {1.0}:
                raise UserError(
                    f"--eval_scales {_numbers(self.scales)}: this architecture takes images of "
                    f"{self.short_side}x{self.short_side} pixels only; leave the flag out, or add --slide_crop "
                    f"{self.short_side} and scales of at least 1"
                )
            return
        if crop < 1 or crop % divisor:
            raise UserError(
                f"--slide_crop is {crop}; it must be a positive multiple of {divisor}, "
                f"as in {max(1, round(crop / divisor)) * divisor}"
            )
        if not 1 <= stride <= crop:
            raise UserError(
                f"--slide_stride is {stride}; it must be from 1 to --slide_crop ({crop}), or pixels between two "
                "windows would be seen by neither"
            )
        if self.square and crop != self.short_side:
            raise UserError(
                f"--slide_crop is {crop}, but this architecture takes images of {self.short_side}x{self.short_side} "
                f"pixels only: give --slide_crop {self.short_side}"
            )
        if self.square and min(self.scales) < 1:
            raise UserError(
                f"--eval_scales {_numbers(self.scales)}: at scale {min(self.scales):g} the image is smaller than the "
                f"{crop}x{crop} pixels that this architecture takes; give scales of at least 1"
            )

    @classmethod
    def from_image_processor(cls, image_processor, fixed_size: int | None = None, **options) -> "EvaluationProtocol":
        """The protocol for a model's image processor.

        Args:
            fixed_size: side in pixels for architectures that take one input size only
                (`model_utils.fixed_input_size`).
            options: `slide_crop`, `slide_stride`, `scales`, `flip`, `threshold`, which no image processor knows.
        """
        settings = image_processor.to_dict()
        size = settings.get("size") or {}
        short_side = (
            fixed_size or size.get("shortest_edge") or min(size.get("height") or 512, size.get("width") or 512)
        )
        normalizes = settings.get("do_normalize", False)
        # Where nothing is normalised, the list still says how many channels there are.
        num_channels = len(settings.get("image_mean") or (0, 0, 0))
        return cls(
            short_side=short_side,
            square=fixed_size is not None,
            image_mean=tuple(settings["image_mean"]) if normalizes else (0.0,) * num_channels,
            image_std=tuple(settings["image_std"]) if normalizes else (1.0,) * num_channels,
            flip_channels=bool(settings.get("do_flip_channel_order")),
            **options,
        )

    @property
    def num_channels(self) -> int:
        """Of the images; 3 is RGB."""
        return len(self.image_mean)

    def input_size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
        """Height and width in pixels to which an image of this height and width is resized.

        scale: one of `scales`. As published, it multiplies the limits on both sides, which are then whole pixels.
        """
        if self.square and not self.slide_crop:
            return self.short_side, self.short_side
        short_side, long_side = (int(side * scale) for side in (self.short_side, MAX_ASPECT_RATIO * self.short_side))
        factor = min(short_side / min(height, width), long_side / max(height, width))
        # A window that is all an architecture takes has to fit in, whatever the image's aspect.
        least = self.slide_crop if self.square else self.size_divisor
        return tuple(
            max(least, math.ceil(int(side * factor + 0.5) / self.size_divisor) * self.size_divisor)
            for side in (height, width)
        )

    def windows(self, side: int) -> list[slice]:
        """The pixels, along one side of the resized image, that each window covers.

        Source: `slide_inference` of mmsegmentation: the last window is pulled back to the border, and a side shorter
        than the window is covered whole.
        """
        if self.slide_crop is None:
            return [slice(0, side)]
        count = max(0, math.ceil((side - self.slide_crop) / self.slide_stride)) + 1
        stops = [min(side, i * self.slide_stride + self.slide_crop) for i in range(count)]
        return [slice(max(0, stop - self.slide_crop), stop) for stop in stops]

    def normalize(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 (…, C, H, W) → float32, scaled to 0…1, then mean and standard deviation taken out per channel.

        C is `num_channels`, the first three being RGB.
        """
        scaled = tvF.to_dtype(self._rgb_or_bgr(image), torch.float32, scale=True)
        return tvF.normalize(scaled, self.image_mean, self.image_std, inplace=True)

    def denormalize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize`: float32 (…, C, H, W) → uint8, to be looked at."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        return self._rgb_or_bgr(tvF.to_dtype((pixel_values * std + mean).clamp(0, 1), torch.uint8, scale=True))

    def _rgb_or_bgr(self, image: torch.Tensor) -> torch.Tensor:
        """From the order of the image's first three channels to that of the network's, or back."""
        if not self.flip_channels:
            return image
        return torch.cat([image[..., :3, :, :].flip(-3), image[..., 3:, :, :]], dim=-3)

    def preprocess(self, image: Image.Image | torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """RGB image, or uint8 (C, H, W), of any size → float32 (C, h, w) with (h, w) = `input_size` of the image; a
        list if `scales` are several, one for each. Windows and mirror images are made by `protocol_logits`."""
        tensor = image if isinstance(image, torch.Tensor) else tvF.pil_to_tensor(image)
        sizes = [self.input_size(*tensor.shape[-2:], scale) for scale in self.scales]
        resized = [
            self.normalize(tvF.resize(tensor, size, interpolation=InterpolationMode.BILINEAR, antialias=True))
            for size in sizes
        ]
        return resized[0] if len(resized) == 1 else resized

    def describe(self) -> str:
        """One line for `eval_protocol`."""
        if self.square and not self.slide_crop:
            resize = f"image resized to {self.short_side}x{self.short_side}"
        else:
            resize = (
                f"short side {self.short_side} (long side at most {MAX_ASPECT_RATIO * self.short_side}), aspect kept, "
                f"sides rounded up to a multiple of {self.size_divisor}"
            )
        if self.slide_crop and self.square:
            resize += f" and to at least {self.slide_crop}"
        view = "whole image in one pass"
        if self.slide_crop:
            view = (
                f"sliding window {self.slide_crop}x{self.slide_crop} with stride {self.slide_stride}, logits averaged "
                "where windows overlap"
            )
        augmentation = "no test-time augmentation"
        if self.flip or self.scales != (1.0,):
            passes = len(self.scales) * (1 + self.flip)
            augmentation = (
                f"test-time augmentation: probabilities averaged over scales {_numbers(self.scales)}"
                f"{', each also mirrored' if self.flip else ''} ({passes} pass{'es' if passes > 1 else ''})"
            )
        threshold = "" if self.threshold == 0.5 else f"; second class above a probability of {self.threshold:g}"
        return (
            f"{resize}; {view}; logits resized bilinearly to the original size; one confusion matrix "
            f"over all images, label {IGNORE_INDEX} ignored; {augmentation}{threshold}"
        )


def _numbers(scales: Iterable[float]) -> str:
    return " ".join(f"{scale:g}" for scale in scales)


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
    """What the network says of one image, for `score_logits` and `label_map_of`.

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
        prediction = label_map_of(logits, size, fused_ops, threshold)[None]
        return prediction, *score_logits(logits, labels, fused_ops)[1:]
    if fused_ops:
        return upsampled_scores(logits, labels, ignore_index=IGNORE_INDEX)
    upsampled = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    losses = F.cross_entropy(upsampled, labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
    return upsampled.argmax(dim=1), losses.sum(dim=(1, 2)), valid.sum(dim=(1, 2))


def label_map_of(
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
def predict_label_map(
    model, image: Image.Image | torch.Tensor, protocol: EvaluationProtocol, fused_ops: bool = True
) -> torch.Tensor:
    """RGB image, or uint8 (C, H, W) → integer tensor (H, W) of training ids at the image's own size, on the CPU.

    The model must be in evaluation mode; it runs on the device where its parameters are.
    """
    logits = protocol_logits(model, protocol.preprocess(image), protocol)
    return label_map_of(logits, tuple(tvF.get_size(image)), fused_ops, protocol.threshold).cpu()


def _class_weights(threshold: float, device: torch.device) -> torch.Tensor:
    """Weights (2,) of two probabilities p and 1 - p: the second product is the larger one where 1 - p > threshold."""
    return torch.tensor([threshold, 1 - threshold], device=device)


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
