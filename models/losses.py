"""Losses for semantic segmentation at the annotation's resolution, computed a tile at a time as cross-entropy is.

`--loss ce+dice` is parsed by `models.arguments.parse_loss` and computed by `segmentation_loss`. Value and gradient of
the low-resolution logits are worked out together, so no upsampled (B, C, H, W) tensor ever exists. `plain_loss` states
the same losses in a few lines each; it is what `--no_fused_ops` computes.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metrics_utils import IGNORE_INDEX
from models.arguments import WEIGHTED
from models.tile_kernel import TileKernel
from models.upsampling import Tile, TiledUpsampling, full_precision

GAMMA = 2.0  # Lin et al., Focal Loss for Dense Object Detection, arXiv:1708.02002
# Pixels are hard where the label's probability is below this, or among that many lowest of each image's share of the
# batch. Source: `OHEMPixelSampler` in the configurations of mmsegmentation.
HARD_PROBABILITY, HARD_PIXELS_PER_IMAGE = 0.7, 100_000


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    names: Sequence[str] = ("ce",),
    weight: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    label_smoothing: float = 0.0,
    fused_ops: bool = True,
) -> Tensor:
    """The sum of some `models.arguments.LOSSES` of logits bilinearly upsampled to the labels' size.

    Cross-entropy and focal loss are sums over valid pixels divided by `num_items_in_batch`. The others are means over
    what is in these logits (hard pixels, or classes), and multiplied by the share of `num_items_in_batch` that is in
    them, so that the sum over accumulated batches and processes is a mean weighted by pixels.

    Args:
        logits: (B, C, h, w) of any floating dtype; half precision is computed in float32.
        labels: (B, H, W) integers, each 0 to C - 1 or `IGNORE_INDEX`.
        names: of `models.arguments.parse_loss`.
        weight: (C,) class weights of the losses that are `WEIGHTED`.
        num_items_in_batch: valid pixels of the whole batch over accumulation steps and processes; None: of these.
        label_smoothing: of cross-entropy.
        fused_ops: tile by tile; else with the upsampled tensor, by `plain_loss`.

    Returns:
        A scalar, 0 where every pixel is ignored. No second derivative with `fused_ops`.

    Raises:
        ValueError, TypeError: as `models.losses.upsampled_cross_entropy`.
    """
    check_shapes(logits, labels)
    if weight is not None and weight.shape != logits.shape[1:2]:
        raise ValueError(f"weight must be one number for each of {logits.shape[1]} classes, got {tuple(weight.shape)}")
    valid_pixels = (labels != IGNORE_INDEX).sum()
    if num_items_in_batch is None:
        num_items_in_batch = valid_pixels
    items = torch.as_tensor(num_items_in_batch, device=logits.device).clamp(min=1)
    total = 0.0
    for name in names:
        if not fused_ops:
            total = total + plain_loss(name, logits, labels, weight, label_smoothing if name == "ce" else 0.0) / items
        elif name == "ce":
            smoothing = {"label_smoothing": label_smoothing, "num_items_in_batch": items}
            total = total + upsampled_cross_entropy(logits, labels, weight=weight, **smoothing)
        else:
            total = total + tiled_loss(name, logits, labels, weight) / items
    return total


# ---- cross-entropy --------------------------------------------------------------------------------------------------


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
    upsampled pixels; value and gradient are worked out together in the forward pass, a tile at a time, or on a CPU
    with a C++ compiler a pixel at a time (`models.tile_kernel`).

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
    loss, divisor, _ = _cross_entropy_sums(logits, labels, weight, ignore_index, label_smoothing, with_gradient)
    if num_items_in_batch is not None:
        divisor = torch.as_tensor(num_items_in_batch, dtype=loss.dtype, device=loss.device)
    return loss / torch.where(divisor == 0, 1, divisor)


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


def _empty_gradient(logits: Tensor, dtype: torch.dtype, with_gradient: bool) -> Tensor:
    """(B, h, w, C), or nothing."""
    batch, classes, height, width = logits.shape
    return logits.new_empty((batch, height, width, classes) if with_gradient else (0,), dtype=dtype)


def _keep_gradient(ctx, inputs, output) -> None:
    """Of an operator whose first input is the logits and whose last output is the gradient of its first."""
    ctx.logits_dtype = inputs[0].dtype
    ctx.num_inputs = len(inputs)
    ctx.save_for_backward(output[-1])
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])


def _scaled_gradient(ctx, loss_gradient: Tensor, *_) -> tuple:
    (gradient,) = ctx.saved_tensors
    gradient = (gradient * loss_gradient).to(ctx.logits_dtype).permute(0, 3, 1, 2)
    if torch.is_grad_enabled():  # create_graph=True
        gradient = NoSecondDerivative.apply(gradient, torch.zeros((), requires_grad=True))
    return gradient, *[None] * (ctx.num_inputs - 1)


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


def cross_entropy_sums(
    logits: Tensor, labels: Tensor, weight: Tensor, ignore_index: int, label_smoothing: float, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and label weight summed over the valid pixels, and the gradient (B, h, w, C) of that loss, which is empty
    if it is not asked for.

    With w the class weights, e the smoothing and y the label, `torch.nn.CrossEntropyLoss` defines a pixel's loss as
    `(1 - e) w_y (-log p_y) + e / C sum_c w_c (-log p_c)`; its gradient with respect to the logits is
    `((1 - e) w_y + e / C sum(w)) p - (1 - e) w_y onehot(y) - e / C w`.
    """
    with full_precision(logits.device.type):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        gradient = _empty_gradient(logits, dtype, with_gradient).zero_()
        weight = weight.detach().to(dtype)
        uniform_weight = label_smoothing / logits.shape[1] * weight if label_smoothing else None
        kernel = TileKernel.of(logits, labels.shape[-2:])
        upsampling = None if kernel else TiledUpsampling(logits, labels.shape[-2:])
        losses, label_weights = [], []
        for image in range(logits.shape[0]):
            target, valid = targets_of(labels[image], logits.shape[1], ignore_index)
            label_weight = weight[target] * valid
            label_weights.append(label_weight.sum())
            nll_weight = (1 - label_smoothing) * label_weight
            given = image, target, valid, nll_weight, uniform_weight, gradient[image] if with_gradient else None
            losses.append(kernel.loss(*given).sum() if kernel else _image_cross_entropy(upsampling, *given))
        return torch.stack(losses).sum(), torch.stack(label_weights).sum(), gradient


# An operator of torch's, so that `torch.compile` takes it as it is, without a break in its graph.
_cross_entropy_sums = torch.library.custom_op(
    "fine_tune_segformer::cross_entropy_sums", cross_entropy_sums, mutates_args=()
)


@_cross_entropy_sums.register_fake
def _(logits, labels, weight, ignore_index, label_smoothing, with_gradient):
    dtype = torch.promote_types(logits.dtype, torch.float32)
    loss = logits.new_empty((), dtype=dtype)
    return loss, torch.empty_like(loss), _empty_gradient(logits, dtype, with_gradient)


_cross_entropy_sums.register_autograd(_scaled_gradient, setup_context=_keep_gradient)


def _image_cross_entropy(
    upsampling: TiledUpsampling,
    image: int,
    target: Tensor,
    valid: Tensor,
    nll_weight: Tensor,
    uniform_weight: Tensor | None,
    gradient: Tensor | None,
) -> Tensor:
    """The summed loss of an image, a tile after the other; its gradient is added to that one."""
    probability_weight = nll_weight if uniform_weight is None else nll_weight + uniform_weight.sum() * valid
    at_label, nll = -nll_weight, upsampling.new_empty(*target.shape)
    losses = []
    for tile in upsampling.tiles(image):
        tile_target = target[tile.pixels]
        probabilities, log_sum = upsampling.softmax_and_log_sum(tile)
        nll[tile.pixels] = log_sum - tile.logits.gather(-1, tile_target)
        if uniform_weight is not None:
            uniform_loss = uniform_weight.sum() * tile.logits.gather(-1, tile_target)
            uniform_loss -= tile.logits @ uniform_weight[:, None]
            losses.append((uniform_loss * valid[tile.pixels]).sum())
        if gradient is not None:
            tile_gradient = probabilities.mul_(probability_weight[tile.pixels])
            tile_gradient.scatter_add_(-1, tile_target, at_label[tile.pixels])
            if uniform_weight is not None:
                tile_gradient -= uniform_weight * valid[tile.pixels]
            upsampling.add_transposed(gradient, tile, tile_gradient)
    losses.append((probability_weight * nll).sum())
    return torch.stack(losses).sum()


# ---- the other losses -----------------------------------------------------------------------------------------------


def tiled_loss(name: str, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """`plain_loss` for "focal", "ohem", "dice" or "lovasz" without the upsampled tensor."""
    with_gradient = logits.requires_grad and torch.is_grad_enabled()
    return _tiled_sums(logits, labels, weight, name, with_gradient)[0]


def tiled_sums(
    logits: Tensor, labels: Tensor, weight: Tensor | None, name: str, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """A loss, and its gradient (B, h, w, C), which is empty if it is not asked for."""
    with full_precision(logits.device.type):
        upsampling = TiledUpsampling(logits, labels.shape[-2:])
        gradient = _empty_gradient(logits, upsampling.dtype, with_gradient).zero_()
        return _SUMS[name](upsampling, labels, weight, gradient if with_gradient else None), gradient


_tiled_sums = torch.library.custom_op("fine_tune_segformer::tiled_sums", tiled_sums, mutates_args=())


@_tiled_sums.register_fake
def _(logits, labels, weight, name, with_gradient):
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty((), dtype=dtype), _empty_gradient(logits, dtype, with_gradient)


_tiled_sums.register_autograd(_scaled_gradient, setup_context=_keep_gradient)


def _tiles(upsampling: TiledUpsampling, labels: Tensor) -> Iterator[tuple[int, Tile, Tensor, Tensor]]:
    """Image, tile, target and valid (rows, columns, 1) of every tile of the batch."""
    for image in range(len(labels)):
        target, valid = targets_of(labels[image], upsampling.logits.shape[-1], IGNORE_INDEX)
        for tile in upsampling.tiles(image):
            yield image, tile, target[tile.pixels], valid[tile.pixels]


def _tile_log_likelihood(upsampling: TiledUpsampling, tile: Tile, target: Tensor) -> Tensor:
    """log softmax at `target`, (rows, columns, 1)."""
    return tile.logits.gather(-1, target) - upsampling.log_sum(tile)


def _label_weight(weight: Tensor | None, target: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    return valid.to(dtype) if weight is None else weight.to(dtype)[target] * valid


def _add_likelihood_gradient(upsampling, gradient, image, tile, target, slope) -> None:
    """Adds the gradient of a loss that depends on the label's log-probability alone, its derivative being `slope`.

    The derivative of log p_y with respect to the logits is onehot(y) - p.
    """
    tile_gradient = upsampling.softmax(tile).mul_(-slope)
    tile_gradient.scatter_add_(-1, target, slope)
    upsampling.add_transposed(gradient[image], tile, tile_gradient)


def _focal(upsampling: TiledUpsampling, labels: Tensor, weight: Tensor | None, gradient: Tensor | None) -> Tensor:
    loss = upsampling.new_empty().zero_()
    for image, tile, target, valid in _tiles(upsampling, labels):
        label_weight = _label_weight(weight, target, valid, upsampling.dtype)
        log_p = _tile_log_likelihood(upsampling, tile, target)
        p = log_p.exp()
        loss -= (label_weight * (1 - p) ** GAMMA * log_p).sum()
        if gradient is not None:
            slope = label_weight * ((1 - p) ** (GAMMA - 1) * (GAMMA * p * log_p - (1 - p)))
            _add_likelihood_gradient(upsampling, gradient, image, tile, target, slope)
    return loss


def _ohem(upsampling: TiledUpsampling, labels: Tensor, weight: Tensor | None, gradient: Tensor | None) -> Tensor:
    log_p = upsampling.new_empty(*labels.shape, 1).zero_()
    for image, tile, target, _ in _tiles(upsampling, labels):
        log_p[image][tile.pixels] = _tile_log_likelihood(upsampling, tile, target)
    hard = _hard_pixels(log_p[..., 0].exp(), labels)[..., None]
    scale = (labels != IGNORE_INDEX).sum().to(upsampling.dtype) / hard.sum().clamp(min=1)
    loss = upsampling.new_empty().zero_()
    for image, tile, target, _ in _tiles(upsampling, labels):
        slope = -scale * _label_weight(weight, target, hard[image][tile.pixels], upsampling.dtype)
        loss += (slope * log_p[image][tile.pixels]).sum()
        if gradient is not None:
            _add_likelihood_gradient(upsampling, gradient, image, tile, target, slope)
    return loss


def _hard_pixels(likelihood: Tensor, labels: Tensor) -> Tensor:
    """Whether a pixel counts, bool (B, H, W), by the label's probability; ties are all in."""
    valid = labels != IGNORE_INDEX
    of_valid = likelihood[valid]
    if not of_valid.numel():
        return valid
    kept = min(HARD_PIXELS_PER_IMAGE * len(labels), of_valid.numel())
    lowest_kept = of_valid.kthvalue(kept).values
    return valid & ((likelihood < HARD_PROBABILITY) | (likelihood <= lowest_kept))


def _dice(upsampling: TiledUpsampling, labels: Tensor, weight: Tensor | None, gradient: Tensor | None) -> Tensor:
    num_classes = upsampling.logits.shape[-1]
    intersection, predicted, labelled = upsampling.new_empty(3, num_classes).zero_()
    for _, tile, target, valid in _tiles(upsampling, labels):
        probabilities = upsampling.softmax(tile).mul_(valid)
        predicted += probabilities.sum(1).sum(0)  # row by row, as in `_sums_by_class`
        intersection += _sums_by_class(probabilities.gather(-1, target), target, num_classes)
        labelled += _sums_by_class(valid.to(upsampling.dtype), target, num_classes)
    present = labelled > 0
    scale = (labels != IGNORE_INDEX).sum().to(upsampling.dtype) / present.sum().clamp(min=1)
    both = torch.where(present, predicted + labelled, 1)
    if gradient is not None:
        # The derivative of the loss with respect to a probability p_c of a pixel is `everywhere` for every class, and
        # `at_label` more for the pixel's own; softmax then makes p (a - sum(p a)) of derivatives a.
        everywhere = scale * torch.where(present, 2 * intersection / both**2, 0)
        at_label = -scale * torch.where(present, 2 / both, 0)
        for image, tile, target, valid in _tiles(upsampling, labels):
            probabilities = upsampling.softmax(tile)
            of_label = probabilities.gather(-1, target) * at_label[target]
            mean = (probabilities @ everywhere)[..., None] + of_label
            tile_gradient = probabilities.mul_(everywhere - mean)
            tile_gradient.scatter_add_(-1, target, of_label)
            upsampling.add_transposed(gradient[image], tile, tile_gradient.mul_(valid))
    return scale * torch.where(present, 1 - 2 * intersection / both, 0).sum()


def _sums_by_class(values: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Values (rows, columns, 1) summed by target, (C,).

    Row by row first: equal numbers added to one float32, pixel after pixel, are all rounded alike.
    """
    by_row = values.new_zeros(len(values), num_classes)
    return by_row.scatter_add_(1, target[..., 0], values[..., 0]).sum(0)


def _lovasz(upsampling: TiledUpsampling, labels: Tensor, weight: Tensor | None, gradient: Tensor | None) -> Tensor:
    # Class by class, each a map of its own; the maps' common normalisation is made beforehand.
    valid = labels != IGNORE_INDEX
    log_sum = upsampling.new_empty(*labels.shape)
    for image, tile, _, _ in _tiles(upsampling, labels):
        log_sum[image][tile.pixels] = upsampling.log_sum(tile)[..., 0]
    present = labels[valid].unique().tolist()
    scale = valid.sum().to(upsampling.dtype) / max(1, len(present))
    loss = upsampling.new_empty().zero_()
    inner = torch.zeros_like(log_sum)  # sum over classes of p times the derivative with respect to p
    for index in present:
        low = upsampling.logits[..., index, None].permute(0, 3, 1, 2).to(upsampling.dtype).contiguous()
        upsampled = F.interpolate(low, labels.shape[-2:], mode="bilinear", align_corners=False)
        p = (upsampled[:, 0] - log_sum).exp()
        class_loss, derivative = _lovasz_of_class(p[valid], labels[valid] == index)
        loss += scale * class_loss
        if gradient is not None:
            of_class = torch.zeros_like(p).masked_scatter_(valid, scale * derivative).mul_(p)
            inner += of_class
            # Its transpose itself, as operators of one's own are below autograd.
            gradient[..., index] += torch.ops.aten.upsample_bilinear2d_backward(
                of_class[:, None], labels.shape[-2:], low.shape, False
            )[:, 0]
    if gradient is not None:
        for image, tile, _, _ in _tiles(upsampling, labels):
            tile_gradient = upsampling.softmax(tile).mul_(-inner[image][tile.pixels][..., None])
            upsampling.add_transposed(gradient[image], tile, tile_gradient)
    return loss


def _lovasz_of_class(p: Tensor, is_class: Tensor) -> tuple[Tensor, Tensor]:
    """Lovász extension of a class's Jaccard loss at the errors of probabilities (n,), and its derivative (n,)."""
    errors, order = torch.where(is_class, 1 - p, p).sort(descending=True)
    weights = _jaccard_steps(is_class[order], p.dtype)
    derivative = torch.empty_like(p)
    derivative[order] = weights
    return (errors * weights).sum(), torch.where(is_class, -derivative, derivative)


def _jaccard_steps(is_class: Tensor, dtype: torch.dtype) -> Tensor:
    """How much the Jaccard loss grows with each pixel that becomes wrong, in this order (algorithm 1 of the paper).

    The loss is 1 - kept / union. A pixel of the class takes 1 from `kept`, any other adds 1 to `union`. The difference
    is written out: subtracting losses near 1 that are next to equal would leave few digits, or none, in float32.
    """
    class_pixels = is_class.sum()
    kept = (class_pixels - is_class.cumsum(0)).to(dtype)
    union = (class_pixels + (~is_class).cumsum(0)).to(dtype)
    return torch.where(is_class, 1 / union, kept / (union * (union - 1)))


_SUMS = {"focal": _focal, "ohem": _ohem, "dice": _dice, "lovasz": _lovasz}


# ---- the same with the upsampled tensor -----------------------------------------------------------------------------


def plain_loss(
    name: str, logits: Tensor, labels: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """A loss times the number of valid pixels, with the upsampled (B, C, H, W) tensor; arguments as above."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    with torch.autocast(logits.device.type, enabled=False):
        logits = F.interpolate(logits.to(dtype), labels.shape[-2:], mode="bilinear", align_corners=False)
        weight = None if weight is None else weight.to(dtype)
        valid = labels != IGNORE_INDEX
        labels = labels.long()
        pixels, present = valid.sum(), labels[valid].unique()
        if name in WEIGHTED:
            options = {"ignore_index": IGNORE_INDEX, "label_smoothing": label_smoothing}
            losses = F.cross_entropy(logits, labels, weight, reduction="none", **options)
            p = (-F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")).exp()
            if name == "focal":
                losses = (1 - p) ** GAMMA * losses
            elif name == "ohem":
                hard = _hard_pixels(p.detach(), labels)
                losses = hard * losses * (pixels.to(dtype) / hard.sum().clamp(min=1))
            return losses.sum()
        probabilities = logits.softmax(1).permute(0, 2, 3, 1)[valid]
        truth = F.one_hot(labels[valid], logits.shape[1]).to(dtype)
        if name == "dice":
            dice = 2 * (probabilities * truth).sum(0) / (probabilities + truth).sum(0).clamp(min=1e-30)
            losses = (1 - dice)[present]
        else:
            errors = (truth - probabilities).abs()
            losses = torch.stack(
                [
                    (errors[order, index] * _jaccard_steps(truth[order, index] > 0, dtype)).sum()
                    for index in present.tolist()
                    for order in [errors[:, index].argsort(descending=True)]
                ]
                or [logits.sum() * 0]
            )
        return pixels * losses.sum() / max(1, len(present))
