"""SegFormer's decode head on a CPU: what lies between its matrix products, in few compiled passes over its large maps.

The kernels are in `head_kernel.cpp`. Normalised, rectified and partly dropped maps exist a block of rows at a time, on
their way into the classifier's product, and are made again in the backward pass.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models import compiled
from models.tile_kernel import bilinear_positions

MOST_MAPS = 8
# Numbers of a map that are worked on together, so that they are in a cache from one operation to the next; and rows
# whose gradients are summed in float32 before these sums are added up.
CHUNK_NUMBERS, BLOCK_ROWS = 2**19, 256
# MKL takes up to twice as long for products whose last dimension is no multiple of this.
CLASSES_MULTIPLE = 16


class _Map(ctypes.Structure):
    """`Sum::Map` of the source, name by name."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("height", "width")),
        *((name, ctypes.c_void_p) for name in ("values", "row", "column", "row_fraction", "column_fraction")),
    ]


class _Sum(ctypes.Structure):
    """`Sum` of the source, name by name."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("height", "width", "channels", "maps")),
        ("total", ctypes.c_void_p),
        ("rectify", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("means", "squares")),
        ("map", _Map * MOST_MAPS),
    ]


class _Norm(ctypes.Structure):
    """`Norm` of the source, name by name."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("channels", "block")),
        *((name, ctypes.c_void_p) for name in ("x", "mean", "inverse", "weight", "bias", "random")),
        ("least", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("kept", "hidden", "gradient", "sums")),
    ]


def upsampled_sum(total: Tensor, maps: list[Tensor], rectify: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """total (B, h, w, C) plus maps (B, h_i, w_i, C), bilinearly upsampled, in place of total; and the mean and the
    biased variance of the sum, (C,), which have no gradient.

    rectify: what is negative becomes 0 at last, there are no gradients, and mean and variance are undefined.
    """
    if torch.is_grad_enabled() and not rectify:
        return _UpsampledSum.apply(total, *maps)
    return _upsampled_sum(total, maps, rectify)


def _upsampled_sum(total: Tensor, maps: list[Tensor], rectify: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    batch, height, width, channels = total.shape
    means, squares = total.new_empty(2, batch * height, channels)
    kept, of_maps = [], (_Map * MOST_MAPS)()  # the first: until the kernel has run
    for index, values in enumerate(maps):
        row, row_fraction = bilinear_positions(values.shape[1], height)
        column, column_fraction = bilinear_positions(values.shape[2], width)
        tensors = [values.contiguous(), row, column, row_fraction, column_fraction]
        of_maps[index] = _Map(*values.shape[1:3], *(tensor.data_ptr() for tensor in tensors))
        kept.append(tensors)
    of_rows = (None, None) if rectify else (means.data_ptr(), squares.data_ptr())
    given = _Sum(height, width, channels, len(maps), total.data_ptr(), rectify, *of_rows, of_maps)
    compiled.run("upsampled_sum", given, count=batch * height)
    means, squares = means.double(), squares.double()
    mean = means.mean(0)
    variance = (squares.sum(0) / width + (means - mean).square().sum(0)) / (batch * height)
    return total, mean.float(), variance.float()


class _UpsampledSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, total, *maps):
        ctx.shapes = [values.shape for values in maps]
        total, mean, variance = _upsampled_sum(total, list(maps))
        ctx.mark_dirty(total)
        ctx.mark_non_differentiable(mean, variance)
        return total, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):
        channels_first = gradient.permute(0, 3, 1, 2)
        of_maps = [
            torch.ops.aten.upsample_bilinear2d_backward(
                channels_first, gradient.shape[1:3], (batch, channels, height, width), False
            ).permute(0, 2, 3, 1)
            for batch, height, width, channels in ctx.shapes
        ]
        return gradient, *of_maps


def normed_logits(
    x: Tensor, mean: Tensor, variance: Tensor, norm: nn.BatchNorm2d, p: float, weight: Tensor, bias: Tensor
) -> Tensor:
    """BatchNorm in training mode, ReLU, dropout without its scale, and a linear layer: (B, h, w, C) → (B, h, w, K).

    mean, variance: of x, as `upsampled_sum` gives them. norm: its running statistics go on.
    """
    _update_statistics(norm, mean, variance, x.numel() // x.shape[-1])
    parameters = (torch.rsqrt(variance + norm.eps), norm.weight, norm.bias, weight, bias)
    return _NormedLogits.apply(x.flatten(0, 2), mean, *parameters, p).unflatten(0, x.shape[:3])


@torch.no_grad()
def _update_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """As `torch.nn.BatchNorm2d` does."""
    norm.num_batches_tracked += 1
    momentum = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * (count / max(1, count - 1)), momentum)


class _NormedLogits(torch.autograd.Function):
    """Keeps x, and a byte a number: whether it came through."""

    @staticmethod
    def forward(ctx, x, mean, inverse, norm_weight, norm_bias, weight, bias, p):
        kept = torch.empty(x.shape, dtype=torch.uint8)
        logits, chunk = x.new_empty(len(x), len(weight)), _Chunks(x, mean, inverse, norm_weight, norm_bias, kept)
        product = _Classifier(weight, bias)
        for rows in chunk.rows():
            hidden = chunk.forward(rows, p)
            product(hidden, logits[rows])
        ctx.save_for_backward(x, kept, mean, inverse, norm_weight, norm_bias, weight)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, kept, mean, inverse, norm_weight, norm_bias, weight = ctx.saved_tensors
        chunk = _Chunks(x, mean, inverse, norm_weight, norm_bias, kept)
        grad_x, grad_weight, sums = torch.empty_like(x), torch.zeros_like(weight), []
        for rows in chunk.rows():
            torch.mm(gradient[rows], weight, out=grad_x[rows])
            hidden, sums_of_rows = chunk.backward(rows, grad_x[rows])
            grad_weight.addmm_(gradient[rows].T, hidden)
            sums.append(sums_of_rows)
        total, dot = torch.cat(sums).sum(0)
        # The gradient of a number is scale * (g - mean of g - normalised * mean of (g * normalised)).
        scale = inverse * norm_weight
        of_x = -scale * inverse * dot / len(x)
        constant = -scale * total / len(x) - of_x * mean
        for rows in chunk.rows():
            rest = torch.addcmul(constant, x[rows], of_x, out=chunk.hidden[: len(x[rows])])
            torch.addcmul(rest, grad_x[rows], scale, out=grad_x[rows])
        return grad_x, None, None, dot, total, grad_weight, gradient.sum(0), None


class _Chunks:
    """A map (rows, C) through the kernels, some rows at a time, with room for what comes out."""

    def __init__(self, x, mean, inverse, norm_weight, norm_bias, kept):
        self.x, self.kept = x, kept
        self.norm = [tensor.detach().contiguous() for tensor in (mean, inverse, norm_weight, norm_bias)]
        blocks = max(1, CHUNK_NUMBERS // (x.shape[1] * BLOCK_ROWS))
        self.length = min(len(x), blocks * BLOCK_ROWS)
        self.hidden = x.new_empty(self.length, x.shape[1])

    def rows(self) -> list[slice]:
        return [slice(first, first + self.length) for first in range(0, len(self.x), self.length)]

    def forward(self, rows: slice, p: float) -> Tensor:
        """What comes out of the rows, valid until the next call."""
        dropped = round(p * 2**16)
        random = random_bits(self.x[rows].numel(), self.x.device) if dropped else None
        return self._run("norm_forward", rows, random=random, least=dropped - 2**15)

    def backward(self, rows: slice, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The same again, and sums (blocks, 2, C) for BatchNorm's backward pass; the gradient of what came out becomes
        that of what was rectified."""
        sums = self.x.new_empty(-(-len(gradient) // BLOCK_ROWS), 2, self.x.shape[1])
        return self._run("norm_backward", rows, gradient=gradient, sums=sums), sums

    def _run(self, kernel: str, rows: slice, least: int = 0, random=None, gradient=None, sums=None) -> Tensor:
        x, hidden = self.x[rows], self.hidden[: len(self.x[rows])]
        tensors = [[x, *self.norm, random], [self.kept[rows], hidden, gradient, sums]]
        first, last = ([None if t is None else t.data_ptr() for t in group] for group in tensors)
        given = _Norm(x.shape[1], BLOCK_ROWS, *first, least, *last)
        compiled.run(kernel, given, len(x), count=-(-len(x) // BLOCK_ROWS))
        return hidden


class _Classifier:
    """A linear layer's weight (K, C) and bias, padded to what MKL is fast for."""

    def __init__(self, weight: Tensor, bias: Tensor):
        self.bias = bias
        self.padded = F.pad(weight, (0, 0, 0, -len(weight) % CLASSES_MULTIPLE))

    def __call__(self, hidden: Tensor, logits: Tensor) -> None:
        """Of hidden (rows, C) to logits (rows, K), in place of these."""
        torch.add((hidden @ self.padded.T)[:, : len(self.bias)], self.bias, out=logits)


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer without gradients, (B, h, w, C) → (B, h, w, K)."""
    rows, product = hidden.flatten(0, 2), _Classifier(weight, bias)
    logits, length = rows.new_empty(len(rows), len(weight)), max(1, CHUNK_NUMBERS // rows.shape[1])
    for first in range(0, len(rows), length):
        product(rows[first : first + length], logits[first : first + length])
    return logits.unflatten(0, hidden.shape[:3])


def random_bits(count: int, device: torch.device) -> Tensor:
    """int16, each value as likely as any other; four of them for each number drawn, which on a CPU takes a sixth of
    what a number for every value would."""
    return (
        torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None).view(torch.int16)[:count]
    )
