"""SegFormer's Mix-FFN on a CPU, its depthwise convolution and GELU in one compiled pass over the maps either way.

The kernel is `mix_ffn_kernel.cpp`. What it does not do (`suits`) is left to torch's operations.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models import compiled

# Of the parameters whose gradients the kernel makes: the weight's nine taps, the bias, and the bias added before.
_TAPS, _SUMS = 9, 11


class _Maps(ctypes.Structure):
    """`Maps` of the source, name by name."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels")),
        *((name, ctypes.c_void_p) for name in ("hidden", "hidden_bias", "weight", "bias")),
        *((name, ctypes.c_void_p) for name in ("gradient", "parameter_gradients")),
    ]


def suits(hidden_states: Tensor, channels: int) -> bool:
    """Whether the kernel can be had, and is for a Mix-FFN of these tokens and as many hidden channels."""
    return (
        type(hidden_states) is Tensor  # and no stand-in of a tracer
        and hidden_states.device.type == "cpu"
        and hidden_states.dtype == torch.float32
        and channels % 8 == 0
        and hidden_states.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and compiled.library() is not None
    )


def mix_ffn(hidden_states: Tensor, height: int, width: int, fc1, dwconv, fc2) -> Tensor:
    """fc2(gelu(dwconv(fc1(x)))) of tokens (B, height * width, C), float32; fc1 and fc2 are linear layers, dwconv a
    3 x 3 convolution with padding, all with biases. No second derivative."""
    parameters = (fc1.weight, fc1.bias, dwconv.weight, dwconv.bias, fc2.weight, fc2.bias)
    if torch.is_grad_enabled():
        return _MixFfn.apply(hidden_states, height, width, *parameters)
    return _forward(hidden_states, height, width, *parameters)


def _forward(hidden_states, height, width, weight1, bias1, weight, bias, weight2, bias2) -> Tensor:
    maps = (hidden_states.flatten(0, 1) @ weight1.T).view(-1, height, width, len(weight1))
    _convolve(maps, bias1, weight, bias)
    return F.linear(maps.flatten(1, 2), weight2, bias2)


class _MixFfn(torch.autograd.Function):
    """Keeps its input alone for the backward pass: the maps of four times the channels are made again."""

    @staticmethod
    def forward(ctx, hidden_states, height, width, *parameters):
        ctx.save_for_backward(hidden_states, *parameters)
        ctx.size = height, width
        return _forward(hidden_states, height, width, *parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        hidden_states, weight1, bias1, weight, bias, weight2, _ = ctx.saved_tensors
        tokens, grad_output = hidden_states.flatten(0, 1), grad_output.flatten(0, 1)
        maps = (tokens @ weight1.T).view(-1, *ctx.size, len(weight1))
        gradient = (grad_output @ weight2).view_as(maps)
        sums = _convolve(maps, bias1, weight, bias, gradient)
        maps, gradient = maps.flatten(0, 2), gradient.flatten(0, 2)  # the gradient of the maps, and fc2's input
        return (
            (maps @ weight1).view_as(hidden_states) if ctx.needs_input_grad[0] else None,
            None,
            None,
            maps.T @ tokens,
            sums[-1],
            sums[:_TAPS].T.reshape(weight.shape),
            sums[_TAPS],
            grad_output.T @ gradient,
            grad_output.sum(0),
        )


def _convolve(
    maps: Tensor, maps_bias: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor | None = None
) -> Tensor | None:
    """GELU of the depthwise convolution of maps (B, H, W, C) + maps_bias, in place.

    With the result's gradient (B, H, W, C) that one is overwritten by the result, and the maps by their own gradient;
    returned are the gradients of the weight's nine taps, the bias and maps_bias, (11, C).
    """
    batch, _, _, channels = maps.shape
    taps = weight.detach().reshape(channels, _TAPS).T.contiguous()
    sums = None if gradient is None else maps.new_empty(batch, _SUMS, channels)
    # Kept until the kernel has run.
    tensors = (maps, maps_bias.contiguous(), taps, bias.contiguous(), gradient, sums)
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    library, maps_of = compiled.library(), _Maps(*maps.shape, *addresses)
    strips = batch * -(-channels // library.mix_ffn_strip())

    def work(part: tuple[int, int]) -> int:
        return library.mix_ffn_kernel(ctypes.byref(maps_of), *map(ctypes.c_int64, part))

    if any(compiled.in_threads(work, compiled.shares(strips))):
        raise MemoryError(f"no memory for rows of {maps.shape[2]} x {channels} numbers")
    return None if sums is None else sums.sum(0)
