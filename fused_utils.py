"""The same mathematics in less time and memory: SegFormer's decode head, and upsampling fused with what follows.

Nothing here changes a result beyond rounding. Two identities do the work (see `FusedSegformerDecodeHead` and
`upsampled_cross_entropy`); the rest is layout: activations stay channels-last, as the encoder makes them.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, SegformerForSemanticSegmentation
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead, SegformerMixMLP, SegformerStage

from metrics_utils import IGNORE_INDEX

# Bytes of one upsampled tile. On a CPU what each thread has of the tile and its softmax is to stay in a core's
# second-level cache (half to twice as much measured alike, four times as much a third slower); elsewhere a small share
# of the memory, for few launches.
CPU_TILE_BYTES_PER_THREAD = 2**20
ACCELERATOR_TILE_BYTES = 2**26
# Widest tile, in pixels: the horizontal step is a dense product over the low-resolution columns of the tile.
TILE_COLUMNS = 128
# More than there are classes, and float32 holds sums of a few of them exactly.
_CODE_OFFSET = 2**16
# Below this a float32 softmax loses digits, then becomes 0, while its logarithm is still an ordinary number.
SMALLEST_LIKELIHOOD = 1e-30


class _AddLinear(torch.autograd.Function):
    """total (B, C_out, h, w) + hidden (B, h, w, C_in) @ weight (C_out, C_in).T, of one dtype, in place of total.

    One product that accumulates, where autograd would have a second map as large as the total written, read and added.
    """

    @staticmethod
    def forward(ctx, total, hidden, weight):
        ctx.save_for_backward(hidden, weight)
        rows = total.permute(0, 2, 3, 1).view(-1, weight.shape[0])
        rows.addmm_(hidden.reshape(-1, weight.shape[1]), weight.T)
        ctx.mark_dirty(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        hidden, weight = ctx.saved_tensors
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, weight.shape[0])
        # A frozen encoder needs none.
        grad_hidden = (rows @ weight).view_as(hidden) if ctx.needs_input_grad[1] else None
        return gradient, grad_hidden, rows.T @ hidden.reshape(-1, weight.shape[1])


class _ReluDropout(torch.autograd.Function):
    """dropout(relu(x), p) without its scale, in place of x, and one tensor kept: where it is 0, so is the gradient.

    Dropping is decided by 16 random bits a value, four values for each number drawn: about six times faster on a CPU
    than a Bernoulli draw for every value. So p is rounded to 1/65536; `dropout_scale` is rounded alike, so that means
    are kept, and belongs into the weights that come next.
    """

    @staticmethod
    def forward(ctx, x, p):
        dropped = round(p * 2**16)
        x.relu_()
        if dropped:
            numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
            bits = numbers.view(torch.int16)[: x.numel()].as_strided(x.shape, x.stride())
            x.mul_(torch.gt(bits, dropped - 2**15 - 1))
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (result,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad_output, result, 0), None


def dropout_scale(p: float) -> float:
    """1 / (1 - p), p as `_ReluDropout` rounds it; 0 where all is dropped."""
    dropped = round(p * 2**16)
    return 2**16 / (2**16 - dropped) if dropped < 2**16 else 0.0


class FusedSegformerDecodeHead(SegformerDecodeHead):
    """SegFormer's decode head by its folded per-stage products; modules, parameters and buffers are the stock head's.

    Between `linear_projections[i]` and `linear_fuse` there is no non-linearity, and bilinear upsampling acts on each
    channel alone with weights that sum to one, so it commutes with 1x1 convolutions:
    `linear_fuse(cat(up(W_i x_i + b_i))) = sum_i up((F_i W_i) x_i) + sum_i F_i b_i`, F_i the block of `linear_fuse` for
    stage i. Each product runs at its stage's own resolution. Hooks on the replaced modules do not fire.
    """

    def forward(self, encoder_hidden_states: tuple[Tensor, ...], **kwargs) -> Tensor:
        """Logits (B, num_labels, h_0, w_0) of the stage outputs (B, C_i, h_i, w_i).

        With `reshape_last_stage=False` the last stage is (B, h_i * w_i, C_i).
        """
        weights, bias = self._folded_weights(encoder_hidden_states[0].device.type)
        size = encoder_hidden_states[0].shape[-2:]
        # From the smallest stage up: it takes the bias, since a constant survives upsampling, and every later stage is
        # added into its upsampled map, in place (adding into a view would make autograd copy whole maps).
        fused = None
        for hidden_state, weight in reversed(list(zip(encoder_hidden_states, weights, strict=True))):
            if hidden_state.ndim == 3:
                hidden_state = hidden_state.unflatten(1, self._last_stage_size(encoder_hidden_states[-2].shape[-2:]))
            else:
                hidden_state = hidden_state.permute(0, 2, 3, 1)
            if fused is not None and hidden_state.shape[1:3] == size:
                fused = _AddLinear.apply(fused, hidden_state.to(fused.dtype), weight.to(fused.dtype))
                continue
            product = F.linear(hidden_state, weight, bias if fused is None else None).permute(0, 3, 1, 2)
            if product.shape[-2:] != size:
                product = F.interpolate(product, size=size, mode="bilinear", align_corners=False)
            fused = product if fused is None else fused.add_(product)
        if self.batch_norm.training:
            fused = self.batch_norm(fused)
        p = self.dropout.p if self.dropout.training else 0.0
        hidden_states = _ReluDropout.apply(fused, p).permute(0, 2, 3, 1)
        logits = F.linear(hidden_states, self.classifier.weight.flatten(1) * dropout_scale(p), self.classifier.bias)
        return logits.permute(0, 3, 1, 2)

    def _folded_weights(self, device_type: str) -> tuple[list[Tensor], Tensor]:
        """`F_i W_i` of every stage and the sum of `F_i b_i`, with BatchNorm's affine map in evaluation mode.

        Worked out afresh in every forward pass, so never stale, whichever way a weight was changed (an edit through
        `.data` leaves no trace that a cache could look for) and with gradients to every parameter.
        """
        with torch.autocast(device_type, enabled=False):
            # linear_fuse reads the stages in reverse order.
            blocks = self.linear_fuse.weight.flatten(1).chunk(len(self.linear_projections), dim=1)[::-1]
            projections = [projection.proj for projection in self.linear_projections]
            bias = sum(block @ projection.bias for block, projection in zip(blocks, projections, strict=True))
            norm = self.batch_norm
            if not norm.training:
                scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
                blocks = [scale[:, None] * block for block in blocks]
                bias = scale * (bias - norm.running_mean) + norm.bias
            return [block @ projection.weight for block, projection in zip(blocks, projections, strict=True)], bias

    def _last_stage_size(self, previous_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) that the last stage's patch embedding makes of the stage before it; stock guesses a square."""
        kernel, stride = self.config.patch_sizes[-1], self.config.strides[-1]
        height, width = ((side + 2 * (kernel // 2) - kernel) // stride + 1 for side in previous_size)
        return height, width


def fuse_decode_head(model: PreTrainedModel) -> PreTrainedModel:
    """Make a SegFormer segmentation model use `FusedSegformerDecodeHead`, in place; any other model is left alone.

    Only the class of the head changes: `state_dict`, saved files, `copy.deepcopy` and pickling stay what they were.
    """
    if isinstance(model, SegformerForSemanticSegmentation):
        model.decode_head.__class__ = FusedSegformerDecodeHead
    return model


class ChannelsLastSegformerStage(SegformerStage):
    """An encoder stage that hands its map (B, C, h, w) on as it is in memory, channels-last, without a copy."""

    def forward(self, hidden_states: Tensor, **kwargs) -> Tensor:
        hidden_states, height, width = self.patch_embeddings(hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states, height, width, **kwargs)
        hidden_states = self.layer_norm(hidden_states)
        return hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2) if self.reshape else hidden_states


class RecomputingSegformerMixMLP(SegformerMixMLP):
    """A Mix-FFN that keeps its input alone for the backward pass instead of three maps of four times the channels.

    The maps are cheap to make again (a few per cent of a step) and are most of what the encoder would keep.
    """

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(hidden_states, height, width)
        return checkpoint(
            super().forward,
            hidden_states,
            height,
            width,
            use_reentrant=False,
            preserve_rng_state=self.training and self.dropout.p > 0,
        )


def fuse_model(model: PreTrainedModel) -> PreTrainedModel:
    """`fuse_decode_head`, and an encoder that copies and keeps less with the same results, in place.

    As there, only classes of modules change, and a model that is no SegFormer segmentation model is left alone.
    """
    if isinstance(model, SegformerForSemanticSegmentation):
        fuse_decode_head(model)
        for stage in model.segformer.stages:
            stage.__class__ = ChannelsLastSegformerStage
            for block in stage.blocks:
                block.mlp.__class__ = RecomputingSegformerMixMLP
    return model


def tile_bytes(device: torch.device) -> int:
    """Memory that one upsampled tile may take."""
    return CPU_TILE_BYTES_PER_THREAD * torch.get_num_threads() if device.type == "cpu" else ACCELERATOR_TILE_BYTES


class Span(NamedTuple):
    """A run of output rows (or columns), the input rows it is interpolated from, and the weights between them."""

    output: slice
    input: slice
    weights: Tensor  # (output rows, input rows)


def _interpolation_spans(
    input_size: int, output_size: int, length: int, dtype: torch.dtype, device: torch.device
) -> list[Span]:
    """One axis of bilinear interpolation, `align_corners=False`, cut into runs of at most `length` output rows.

    Positions are worked out as `torch.nn.functional.interpolate` does, in the dtype of the result, and on the CPU,
    where the bounds of the slices are needed.
    """
    position = (torch.arange(output_size, dtype=dtype) + 0.5) * (input_size / output_size) - 0.5
    position = position.clamp(min=0)
    low = position.long().clamp(max=input_size - 1)
    high = (low + 1).clamp(max=input_size - 1)
    fraction = position - low
    spans = []
    for start in range(0, output_size, length):
        output = slice(start, min(start + length, output_size))
        first, last = int(low[output.start]), int(high[output.stop - 1])
        weights = torch.zeros(output.stop - start, last + 1 - first, dtype=dtype)
        rows = torch.arange(output.stop - start)
        weights[rows, low[output] - first] = 1 - fraction[output]
        weights[rows, high[output] - first] += fraction[output]  # low and high are one row at the far edge
        spans.append(Span(output, slice(first, last + 1), weights.to(device)))
    return spans


class Tile(NamedTuple):
    """A rectangle of one image's upsampled logits."""

    rows: Span
    columns: Span
    logits: Tensor  # (rows, columns, C), overwritten by the next tile

    @property
    def pixels(self) -> tuple[slice, slice]:
        return self.rows.output, self.columns.output

    @property
    def input_pixels(self) -> tuple[slice, slice]:
        return self.rows.input, self.columns.input


class TiledUpsampling:
    """Bilinear upsampling of logits (B, C, h, w) to (H, W), channels-last, a strip of rows after the other.

    The height of a strip follows from the bytes allowed for a tile; a strip wider than `TILE_COLUMNS` comes in several
    tiles. How an image is cut does not depend on the others of its batch. Half precision becomes float32.
    """

    def __init__(self, logits: Tensor, size: tuple[int, int]):
        self.dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        self.logits = logits.detach().permute(0, 2, 3, 1)
        self.size = tuple(size)
        (height, width), (input_height, input_width), num_classes = size, logits.shape[2:], logits.shape[1]
        columns = min(width, TILE_COLUMNS)
        rows = min(height, max(1, tile_bytes(logits.device) // (columns * num_classes * self.dtype.itemsize)))
        self.rows = _interpolation_spans(input_height, height, rows, self.dtype, logits.device)
        self.columns = _interpolation_spans(input_width, width, columns, self.dtype, logits.device)
        # Memory that every tile uses again: fresh pages would cost as much time as the arithmetic.
        input_rows = max(span.weights.shape[1] for span in self.rows)
        self._wide = self.new_empty(input_rows * columns * num_classes)
        self._tile = self.new_empty(rows * columns * num_classes)
        self._probabilities = torch.empty_like(self._tile)
        self._coded_classes = torch.arange(_CODE_OFFSET, _CODE_OFFSET + num_classes, dtype=self.dtype)

    def new_empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.logits.device)

    def tiles(self, image: int) -> Iterator[Tile]:
        """The tiles of one image of the batch, together all of its upsampled pixels."""
        num_classes = self.logits.shape[-1]
        for rows in self.rows:
            for columns in self.columns:
                low = self.logits[image, rows.input, columns.input].to(self.dtype)
                wide = _first(self._wide, low.shape[0], columns.weights.shape[0], num_classes)
                torch.matmul(columns.weights, low, out=wide)
                tile = _first(self._tile, rows.weights.shape[0], columns.weights.shape[0] * num_classes)
                torch.mm(rows.weights, wide.flatten(1), out=tile)
                yield Tile(rows, columns, tile.unflatten(1, (-1, num_classes)))

    def softmax(self, tile: Tile) -> Tensor:
        """Probabilities (rows, columns, C) of a tile, overwritten by the next call."""
        return torch.softmax(tile.logits, -1, out=_first(self._probabilities, *tile.logits.shape))

    def argmax(self, tile: Tile) -> Tensor:
        """Most likely classes (rows, columns) of a tile; overwrites the last softmax.

        Where one class alone has the highest logit, which is nearly everywhere, its index is a product of "is the
        highest" with the indices: vectorised and, on a CPU with many classes, less than half the time of torch's
        argmax. An offset shows where that does not hold: ties sum to more, NaN to less.
        """
        if tile.logits.device.type != "cpu" or tile.logits.dtype != torch.float32:
            return tile.logits.argmax(-1)
        highest = _first(self._probabilities, *tile.logits.shape)
        torch.eq(tile.logits, tile.logits.amax(-1, keepdim=True), out=highest)
        coded = torch.mv(highest.flatten(0, 1), self._coded_classes).view(tile.logits.shape[:2])
        lowest, largest = coded.aminmax()
        if lowest < _CODE_OFFSET or largest >= 2 * _CODE_OFFSET:
            return tile.logits.argmax(-1)
        return coded - _CODE_OFFSET

    def add_transposed(self, gradient: Tensor, tile: Tile, tile_gradient: Tensor) -> None:
        """The transpose of upsampling: adds what a tile contributes to an image's gradient (h, w, C), in place."""
        wide = _first(self._wide, tile.rows.weights.shape[1], tile_gradient[0].numel())
        torch.mm(tile.rows.weights.T, tile_gradient.flatten(1), out=wide)
        gradient[tile.input_pixels] += torch.matmul(tile.columns.weights.T, wide.unflatten(1, tile_gradient.shape[1:]))


def _first(buffer: Tensor, *shape: int) -> Tensor:
    """The beginning of a flat buffer as a tensor of this shape."""
    return buffer[: math.prod(shape)].view(shape)


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Keeps autocast and TF32 (the Trainer turns it on where there is any) from rounding interpolated logits."""
    matmul = torch.backends.cuda.matmul
    precision = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        matmul.fp32_precision = precision


def check_shapes(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 4 or labels.ndim != 3 or logits.shape[0] != labels.shape[0]:
        raise ValueError(
            f"logits must be (B, C, h, w) and labels (B, H, W), got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")


def targets_of(labels: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Labels (H, W) -> target and valid, (H, W, 1), int64 and bool; target is 0 where the label is ignored.

    Labels that are no class are looked for on the CPU alone. Elsewhere that would wait for the device; there, as with
    stock cross-entropy, indexing by such a label ends in a device-side assertion.
    """
    target = labels.long().unsqueeze(-1)
    valid = target != ignore_index
    target = target * valid
    if target.device.type == "cpu":
        lowest, highest = (int(bound) for bound in target.aminmax())
        if lowest < 0 or highest >= num_classes:
            raise ValueError(
                f"label {lowest if lowest < 0 else highest} is neither a class (0 to {num_classes - 1}) nor the "
                f"ignore_index {ignore_index}"
            )
    return target, valid


def _log_likelihood(upsampling: TiledUpsampling, image: int, target: Tensor, likelihood: Tensor) -> Tensor:
    """log softmax at `target`, (H, W, 1), given the softmax there: its logarithm, unless digits were lost."""
    if likelihood.amin() >= SMALLEST_LIKELIHOOD:
        return likelihood.log()
    log_likelihood = torch.empty_like(likelihood)
    for tile in upsampling.tiles(image):
        log_likelihood[tile.pixels] = tile.logits.log_softmax(-1).gather(-1, target[tile.pixels])
    return log_likelihood


def _cross_entropy_sums(
    logits: Tensor, labels: Tensor, weight: Tensor, ignore_index: int, label_smoothing: float, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss and label weight summed over the valid pixels, and the gradient (B, h, w, C) of that loss.

    With w the class weights, e the smoothing and y the label, `torch.nn.CrossEntropyLoss` defines a pixel's loss as
    `(1 - e) w_y (-log p_y) + e / C sum_c w_c (-log p_c)`; its gradient with respect to the logits is
    `((1 - e) w_y + e / C sum(w)) p - (1 - e) w_y onehot(y) - e / C w`.
    """
    num_classes = logits.shape[1]
    upsampling = TiledUpsampling(logits, labels.shape[-2:])
    gradient = torch.zeros_like(upsampling.logits, dtype=upsampling.dtype) if with_gradient else None
    weight = weight.detach().to(upsampling.dtype)
    uniform_weight = label_smoothing / num_classes * weight
    losses, label_weights = [], []
    for image in range(logits.shape[0]):
        target, valid = targets_of(labels[image], num_classes, ignore_index)
        label_weight = weight[target] * valid
        label_weights.append(label_weight.sum())
        nll_weight = (1 - label_smoothing) * label_weight
        probability_weight = nll_weight + uniform_weight.sum() * valid
        likelihood = upsampling.new_empty(*target.shape)
        for tile in upsampling.tiles(image):
            tile_target = target[tile.pixels]
            probabilities = upsampling.softmax(tile)
            likelihood[tile.pixels] = probabilities.gather(-1, tile_target)
            if label_smoothing:
                uniform_loss = uniform_weight.sum() * tile.logits.gather(-1, tile_target)
                uniform_loss -= tile.logits @ uniform_weight[:, None]
                losses.append((uniform_loss * valid[tile.pixels]).sum())
            if gradient is not None:
                tile_gradient = probabilities.mul_(probability_weight[tile.pixels])
                tile_gradient.scatter_add_(-1, tile_target, -nll_weight[tile.pixels])
                if label_smoothing:
                    tile_gradient -= uniform_weight * valid[tile.pixels]
                upsampling.add_transposed(gradient[image], tile, tile_gradient)
        log_likelihood = _log_likelihood(upsampling, image, target, likelihood)
        losses.append(-(probability_weight * log_likelihood).sum())
    return torch.stack(losses).sum(), torch.stack(label_weights).sum(), gradient


class NoSecondDerivative(torch.autograd.Function):
    """Passes a first derivative on; differentiating it raises, where it would otherwise count as a constant."""

    @staticmethod
    def forward(ctx, gradient, _):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError(
            "upsampled_cross_entropy cannot be differentiated twice; use F.interpolate + F.cross_entropy"
        )


class _UpsampledCrossEntropy(torch.autograd.Function):
    """`_cross_entropy_sums` for autograd: the gradient comes with the value and is all that waits for `backward`."""

    @staticmethod
    def forward(ctx, logits, labels, weight, ignore_index, label_smoothing, with_gradient):
        with full_precision(logits.device.type):
            loss, label_weight, gradient = _cross_entropy_sums(
                logits, labels, weight, ignore_index, label_smoothing, with_gradient
            )
        ctx.logits_dtype = logits.dtype
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(label_weight)
        return loss, label_weight

    @staticmethod
    def backward(ctx, loss_gradient, _):
        (gradient,) = ctx.saved_tensors
        gradient = (gradient * loss_gradient).to(ctx.logits_dtype).permute(0, 3, 1, 2)
        if torch.is_grad_enabled():  # create_graph=True
            gradient = NoSecondDerivative.apply(gradient, torch.zeros((), requires_grad=True))
        return gradient, None, None, None, None, None


@torch.compiler.disable
def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = IGNORE_INDEX,
    weight: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of logits bilinearly upsampled to the labels' size, without ever holding the upsampled logits.

    Equals `F.cross_entropy(F.interpolate(logits, labels.shape[-2:], mode="bilinear"), labels, ...)` in value and
    gradient. Upsampling is linear, so the gradient of the loss with respect to the low-resolution logits is a sum over
    tiles of upsampled pixels; value and gradient are worked out together, a tile at a time, in the forward pass.

    Args:
        logits: (B, C, h, w) of any floating dtype; half precision is computed in float32. Channels-last is fastest.
        labels: (B, H, W) integers, each 0 to C - 1 or `ignore_index`; (H, W) may be any size.
        ignore_index: label of the pixels that count nowhere.
        weight: (C,) class weights.
        num_items_in_batch: divisor of the summed loss, the valid pixels of the whole batch over accumulation steps and
            processes. Without it the loss is torch's weighted mean over the valid pixels given.
        label_smoothing: 0 to 1, as in `F.cross_entropy`.

    Returns:
        A scalar, float64 for float64 logits and else float32; 0 where every pixel is ignored. No second derivative.

    Raises:
        ValueError: on shapes that do not fit and, on the CPU, on a label that is neither a class nor ignored (on a GPU
            that ends in a device-side assertion, as in stock cross-entropy).
        TypeError: on labels that are no integers.
    """
    check_shapes(logits, labels)
    if weight is None:
        weight = logits.new_ones(logits.shape[1])
    elif weight.shape != logits.shape[1:2]:
        raise ValueError(f"weight must be one number for each of {logits.shape[1]} classes, got {tuple(weight.shape)}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in 0..1, got {label_smoothing}")
    with_gradient = logits.requires_grad and torch.is_grad_enabled()
    loss, divisor = _UpsampledCrossEntropy.apply(logits, labels, weight, ignore_index, label_smoothing, with_gradient)
    if num_items_in_batch is not None:
        divisor = torch.as_tensor(num_items_in_batch, dtype=loss.dtype, device=loss.device)
    return loss / torch.where(divisor == 0, 1, divisor)


def _new_prediction(logits: Tensor, size: tuple[int, int]) -> Tensor:
    # 255 is left to mean "ignored" wherever predictions and labels are written alike.
    dtype = torch.uint8 if logits.shape[1] <= IGNORE_INDEX else torch.int64
    return torch.empty(logits.shape[0], *size, dtype=dtype, device=logits.device)


@torch.compiler.disable
@torch.no_grad()
def upsampled_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Most likely class of each pixel, (B, C, h, w) -> (B, H, W), uint8 for up to 255 classes and else int64.

    Equals `F.interpolate(logits, size, mode="bilinear").argmax(1)` (up to rounding where two classes tie) without the
    (B, C, H, W) tensor.
    """
    prediction = _new_prediction(logits, size)
    with full_precision(logits.device.type):
        upsampling = TiledUpsampling(logits, size)
        for image in range(logits.shape[0]):
            for tile in upsampling.tiles(image):
                prediction[image][tile.pixels] = upsampling.argmax(tile)
    return prediction


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
