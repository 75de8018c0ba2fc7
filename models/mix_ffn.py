"""SegFormer's Mix-FFN on a CPU, its depthwise convolution and GELU in one compiled pass over the maps either way.

The kernel is `mix_ffn_kernel.cpp`.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models import compiled

CHANNELS_MULTIPLE = 8  # of the hidden channels
# Of the parameters whose gradients the kernel makes: the weight's nine taps, the bias, and the bias added before.
_TAPS, _SUMS = 9, 11


class _Maps(ctypes.Structure):
    """`Maps` of the source, name by name."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels")),
        *((name, ctypes.c_void_p) for name in ("hidden", "hidden_bias", "weight", "bias")),
        *((name, ctypes.c_void_p) for name in ("gradient", "parameter_gradients")),
    ]


def mix_ffn(
    hidden_states: Tensor,
    height: int,
    width: int,
    norm: nn.LayerNorm | None,
    fc1: nn.Linear,
    dwconv: nn.Conv2d,
    fc2: nn.Linear,
) -> Tensor:
    """fc2(gelu(dwconv(fc1(norm(x))))) of tokens (B, height * width, C), float32; dwconv is a 3 x 3 convolution with
    padding of `CHANNELS_MULTIPLE` channels, and all have biases. No second derivative.

    norm: None where there is none.
    """
    of_norm = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
    parameters = (*of_norm, fc1.weight, fc1.bias, dwconv.weight, dwconv.bias, fc2.weight, fc2.bias)
    if torch.is_grad_enabled():
        return _MixFfn.apply(hidden_states, height, width, *parameters)
    return _forward(hidden_states, height, width, *parameters)


def _forward(
    hidden_states, height, width, norm_weight, norm_bias, eps, weight1, bias1, weight, bias, weight2, bias2
) -> Tensor:
    tokens, *_ = _normed(hidden_states, norm_weight, norm_bias, eps)
    maps = (tokens @ weight1.T).view(-1, height, width, len(weight1))
    del tokens
    _convolve(maps, bias1, weight, bias)
    return F.linear(maps.flatten(1, 2), weight2, bias2)


def _normed(hidden_states, norm_weight, norm_bias, eps) -> tuple[Tensor, ...]:
    """Tokens (rows, C), and what the backward pass of LayerNorm needs."""
    tokens = hidden_states.flatten(0, 1)
    if norm_weight is None:
        return (tokens,)
    return torch.native_layer_norm(tokens, tokens.shape[1:], norm_weight, norm_bias, eps)


class _MixFfn(torch.autograd.Function):
    """Keeps its input alone for the backward pass: the maps of four times the channels are made again."""

    @staticmethod
    def forward(ctx, hidden_states, height, width, norm_weight, norm_bias, eps, *parameters):
        ctx.save_for_backward(hidden_states, norm_weight, norm_bias, *parameters)
        ctx.height, ctx.width, ctx.eps = height, width, eps
        return _forward(hidden_states, height, width, norm_weight, norm_bias, eps, *parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        hidden_states, norm_weight, norm_bias, weight1, bias1, weight, bias, weight2, _ = ctx.saved_tensors
        grad_output = grad_output.flatten(0, 1)
        tokens, *of_norm = _normed(hidden_states, norm_weight, norm_bias, ctx.eps)
        maps = (tokens @ weight1.T).view(-1, ctx.height, ctx.width, len(weight1))
        gradient = (grad_output @ weight2).view_as(maps)
        sums = _convolve(maps, bias1, weight, bias, gradient)
        maps, gradient = maps.flatten(0, 2), gradient.flatten(0, 2)  # the gradient of the maps, and fc2's input
        grad_weight1, grad_weight2 = maps.T @ tokens, grad_output.T @ gradient
        of_tokens, of_norm_weight, of_norm_bias = maps @ weight1, None, None
        if of_norm:
            of_tokens, of_norm_weight, of_norm_bias = torch.ops.aten.native_layer_norm_backward(
                of_tokens, hidden_states.flatten(0, 1), tokens.shape[1:], *of_norm, norm_weight, norm_bias, [True] * 3
            )
        return (
            of_tokens.view_as(hidden_states),
            None,
            None,
            of_norm_weight,
            of_norm_bias,
            None,
            grad_weight1,
            sums[-1],
            sums[:_TAPS].T.reshape(weight.shape),
            sums[_TAPS],
            grad_weight2,
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
    strips = batch * -(-channels // compiled.library().mix_ffn_strip())
    compiled.run("mix_ffn_kernel", _Maps(*maps.shape, *addresses), count=strips)
    return None if sums is None else sums.sum(0)
