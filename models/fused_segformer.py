"""SegFormer in less time and memory, with the same parameters, checkpoints and, beyond rounding, results.

Upsampling commutes with 1x1 convolutions, so the decode head multiplies at the low resolutions (the identity is in
`FusedSegformerDecodeHead`). The rest is layout and recomputation: activations stay channels-last, as the encoder makes
them, and those that are cheap to make again are not kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, SegformerForSemanticSegmentation
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead, SegformerMixMLP, SegformerStage


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
