"""SegFormer in less time and memory, with the same parameters, checkpoints and, beyond rounding, results.

Upsampling commutes with 1x1 convolutions, so the decode head multiplies at the low resolutions (the identity is in
`FusedSegformerDecodeHead`). The rest is layout and recomputation: activations stay channels-last, as the encoder makes
them, and those that are cheap to make again are not kept.
"""

from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, SegformerForSemanticSegmentation
from transformers import UperNetForSemanticSegmentation as UperNet
from transformers.activations import GELUActivation
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.segformer.modeling_segformer import (
    SegformerDecodeHead,
    SegformerDepthWiseConv,
    SegformerDropPath,
    SegformerLayer,
    SegformerMixMLP,
    SegformerMLP,
    SegformerSequenceReduction,
    SegformerStage,
)

from models import compiled, head_kernel, mix_ffn


class _AddLinear(torch.autograd.Function):
    """total (B, C_out, h, w) + hidden (B, h, w, C_in) @ weight (C_out, C_in).T, of one dtype, in place of total.

    One product that accumulates, where autograd would have a second map as large as the total written, read and added.
    """

    @staticmethod
    def forward(ctx, total, hidden, weight):
        ctx.save_for_backward(hidden, weight)
        ctx.mark_dirty(total)
        return _add_linear(total, hidden, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        hidden, weight = ctx.saved_tensors
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, weight.shape[0])
        # A frozen encoder needs none.
        grad_hidden = (rows @ weight).view_as(hidden) if ctx.needs_input_grad[1] else None
        return gradient, grad_hidden, rows.T @ hidden.reshape(-1, weight.shape[1])


def _add_linear(total: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    rows = total.permute(0, 2, 3, 1).view(-1, weight.shape[0])
    rows.addmm_(hidden.reshape(-1, weight.shape[1]), weight.T)
    return total


class _ReluDropout(torch.autograd.Function):
    """dropout(relu(x), p) without its scale, in place of x, and one tensor kept: where it is 0, so is the gradient.

    Dropping is decided by 16 random bits a value, four values for each number drawn: about six times faster on a CPU
    than a Bernoulli draw for every value. So p is rounded to 1/65536; `dropout_scale` is rounded alike, so that means
    are kept, and belongs into the weights that come next.
    """

    @staticmethod
    def forward(ctx, x, p):
        _relu_dropout(x, p)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (result,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad_output, result, 0), None


def _relu_dropout(x: Tensor, p: float) -> Tensor:
    dropped = round(p * 2**16)
    x.relu_()
    if dropped:
        bits = head_kernel.random_bits(x.numel(), x.device).as_strided(x.shape, x.stride())
        x.masked_fill_(torch.le(bits, dropped - 2**15 - 1), 0)
    return x


def dropout_scale(p: float) -> float:
    """1 / (1 - p), p as `_ReluDropout` rounds it; 0 where all is dropped."""
    dropped = round(p * 2**16)
    return 2**16 / (2**16 - dropped) if dropped < 2**16 else 0.0


class FusedSegformerDecodeHead(SegformerDecodeHead):
    """SegFormer's decode head by its folded per-stage products; modules, parameters and buffers are the stock head's.

    Between `linear_projections[i]` and `linear_fuse` there is no non-linearity, and bilinear upsampling acts on each
    channel alone with weights that sum to one, so it commutes with 1x1 convolutions:
    `linear_fuse(cat(up(W_i x_i + b_i))) = sum_i up((F_i W_i) x_i) + sum_i F_i b_i`, F_i the block of `linear_fuse` for
    stage i. Each product runs at its stage's own resolution.

    The modules themselves are not called. Where one of them would do more than multiply by its weights (adapters,
    hooks, parametrizations, quantised or other modules in its place), and while TorchScript traces, which knows no
    autograd functions, the stock forward pass runs instead.
    """

    def forward(self, encoder_hidden_states: tuple[Tensor, ...], **kwargs) -> Tensor:
        """Logits (B, num_labels, h_0, w_0) of the stage outputs (B, C_i, h_i, w_i).

        With `reshape_last_stage=False` the last stage is (B, h_i * w_i, C_i).
        """
        encoder_hidden_states = self._as_maps(encoder_hidden_states)
        if torch.jit.is_tracing() or not self._is_plain():
            return super().forward(encoder_hidden_states, **kwargs)
        # Exporters do not know what autograd functions change in place; without gradients there is no need of these.
        with_gradients = torch.is_grad_enabled()
        add_linear = _AddLinear.apply if with_gradients else _add_linear
        relu_dropout = _ReluDropout.apply if with_gradients else _relu_dropout
        weights, bias = self._folded_weights(encoder_hidden_states[0].device.type)
        if compiled.suits(encoder_hidden_states[0]) and len(weights) <= head_kernel.MOST_MAPS:
            return self._forward_by_kernel(encoder_hidden_states, weights, bias)
        size = encoder_hidden_states[0].shape[-2:]
        # From the smallest stage up: it takes the bias, since a constant survives upsampling, and every later stage is
        # added into its upsampled map, in place (adding into a view would make autograd copy whole maps).
        fused = None
        for hidden_state, weight in reversed(list(zip(encoder_hidden_states, weights, strict=True))):
            hidden_state = hidden_state.permute(0, 2, 3, 1)
            if fused is not None and hidden_state.shape[1:3] == size:
                fused = add_linear(fused, hidden_state.to(fused.dtype), weight.to(fused.dtype))
                continue
            product = F.linear(hidden_state, weight, bias if fused is None else None).permute(0, 3, 1, 2)
            if product.shape[-2:] != size:
                product = F.interpolate(product, size=size, mode="bilinear", align_corners=False)
            fused = product if fused is None else fused.add_(product)
        if self.batch_norm.training:
            fused = self.batch_norm(fused)
        p = self.dropout.p if self.dropout.training else 0.0
        hidden_states = relu_dropout(fused, p).permute(0, 2, 3, 1)
        logits = F.linear(hidden_states, self.classifier.weight.flatten(1) * dropout_scale(p), self.classifier.bias)
        return logits.permute(0, 3, 1, 2)

    def _forward_by_kernel(self, hidden_states: tuple[Tensor, ...], weights: list[Tensor], bias: Tensor) -> Tensor:
        """The same on a CPU, in fewer passes over the large maps and with fewer of them kept."""
        biases = [None] * (len(weights) - 1) + [bias]
        states = [hidden_state.permute(0, 2, 3, 1) for hidden_state in hidden_states]
        total, *maps = map(F.linear, states, weights, biases)
        classifier, norm, p = self.classifier.weight.flatten(1), self.batch_norm, 0.0
        if not torch.is_grad_enabled() and not norm.training and not self.dropout.training:
            fused, _, _ = head_kernel.upsampled_sum(total, maps, rectify=True)
            return head_kernel.logits_of(fused, classifier, self.classifier.bias).permute(0, 3, 1, 2)
        fused, mean, variance = head_kernel.upsampled_sum(total, maps)
        if self.dropout.training:
            p = self.dropout.p
            classifier = classifier * dropout_scale(p)
        if norm.training and type(norm) is nn.BatchNorm2d:
            logits = head_kernel.normed_logits(fused, mean, variance, norm, p, classifier, self.classifier.bias)
        else:
            fused = norm(fused.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if norm.training else fused
            logits = F.linear(_ReluDropout.apply(fused, p), classifier, self.classifier.bias)
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

    def _as_maps(self, hidden_states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The last stage as a map (B, C, h, w) where it is a sequence; stock guesses a square."""
        *others, last = hidden_states
        if last.ndim == 4:
            return hidden_states
        # What the stage's patch embedding makes of the stage before it.
        kernel, stride = self.config.patch_sizes[-1], self.config.strides[-1]
        size = [(side + 2 * (kernel // 2) - kernel) // stride + 1 for side in others[-1].shape[-2:]]
        return *others, last.reshape(last.shape[0], *size, last.shape[2]).permute(0, 3, 1, 2)

    def _is_plain(self) -> bool:
        """Whether the weights of the modules say all that the modules do."""
        projections = [projection.proj for projection in self.linear_projections]
        norm, fuse, classifier = self.batch_norm, self.linear_fuse, self.classifier
        return (
            _are_plain(SegformerMLP, *self.linear_projections)
            and _are_plain(nn.Linear, *projections)
            and _are_plain(nn.Conv2d, fuse, classifier)
            and (_are_plain(nn.BatchNorm2d, norm) or _are_plain(nn.SyncBatchNorm, norm))
            and _are_plain(nn.ReLU, self.activation)
            and _are_plain(nn.Dropout, self.dropout)
            and fuse.kernel_size == classifier.kernel_size == (1, 1)
            and fuse.bias is None
            and all(projection.bias is not None for projection in projections)
            and norm.affine
            and norm.track_running_stats
        )


class FoldedSegformerDecodeHead(FusedSegformerDecodeHead):
    """The fused head with its products worked out once, BatchNorm among them: for exporters, not for training."""

    def _folded_weights(self, device_type: str) -> tuple[list[Tensor], Tensor]:
        weights = [self.get_buffer(f"folded_{stage}") for stage in range(len(self.linear_projections))]
        return weights, self.folded_bias


# Where a module keeps what is called around its `forward`: hooks of modules, of state and of pruning do not matter.
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def _are_plain(kind: type[nn.Module], *modules: nn.Module) -> bool:
    """Whether the modules are of this very class, nothing is called before, after or in place of their `forward`, and
    their weights are tensors like any other (those that are quantised, or lie on several devices, are not)."""
    return all(
        type(module) is kind
        and "forward" not in vars(module)
        and not any(getattr(module, hooks) for hooks in _HOOKS)
        and not any(is_traceable_wrapper_subclass(weight) for weight in module.parameters(recurse=False))
        for module in modules
    )


def fuse_decode_head(model: PreTrainedModel) -> PreTrainedModel:
    """Make a SegFormer segmentation model use `FusedSegformerDecodeHead`, in place; any other model is left alone.

    Only the class of the head changes: `state_dict`, saved files, `copy.deepcopy` and pickling stay what they were.
    """
    if isinstance(model, SegformerForSemanticSegmentation):
        _change_class(model.decode_head, SegformerDecodeHead, FusedSegformerDecodeHead)
    return model


@torch.no_grad()
def fold_decode_head(model: PreTrainedModel) -> PreTrainedModel:
    """Make a SegFormer segmentation model in evaluation mode use `FoldedSegformerDecodeHead`, in place; any other
    model, and a head that does more than multiply by its weights, are left alone.

    The model is to be exported: from now on its head does not notice when its weights change.
    """
    head = getattr(fuse_decode_head(model), "decode_head", None)
    if type(head) is FusedSegformerDecodeHead and head._is_plain():
        weights, bias = head._folded_weights("cpu")
        for stage, weight in enumerate(weights):
            head.register_buffer(f"folded_{stage}", weight, persistent=False)
        head.register_buffer("folded_bias", bias, persistent=False)
        _change_class(head, FusedSegformerDecodeHead, FoldedSegformerDecodeHead)
    return model


def _change_class(module: nn.Module, stock: type[nn.Module], fused: type[nn.Module]) -> None:
    # What stands in a stock module's place, as a wrapper of peft does, stays what it is.
    if type(module) is stock:
        module.__class__ = fused


class ChannelsLastSegformerStage(SegformerStage):
    """An encoder stage that hands its map (B, C, h, w) on as it is in memory, channels-last, without a copy."""

    def forward(self, hidden_states: Tensor, **kwargs) -> Tensor:
        if torch.jit.is_tracing():  # so that what is exported is the stock graph
            return super().forward(hidden_states, **kwargs)
        hidden_states, height, width = self.patch_embeddings(hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states, height, width, **kwargs)
        hidden_states = self.layer_norm(hidden_states)
        return _as_map(hidden_states, height, width) if self.reshape else hidden_states


def _as_map(hidden_states: Tensor, height: int, width: int) -> Tensor:
    """(B, h * w, C) → (B, C, h, w), a view that is channels-last to every operator.

    Of a single image the view that the stock modules make has a stride along the batch that hides it, so that a
    convolution is done in the other layout, with copies in and out: up to ten times the time.
    """
    return hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class ChannelsLastSegformerDepthWiseConv(SegformerDepthWiseConv):
    """The depthwise convolution of a Mix-FFN on maps as they are in memory, whatever the batch size."""

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        if torch.jit.is_tracing():
            return super().forward(hidden_states, height, width)
        return self.dwconv(_as_map(hidden_states, height, width)).flatten(2).transpose(1, 2)


class ChannelsLastSegformerSequenceReduction(SegformerSequenceReduction):
    """The convolution before the keys and values of attention, in the same way."""

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        if torch.jit.is_tracing():
            return super().forward(hidden_states, height, width)
        reduced = self.sequence_reduction(_as_map(hidden_states, height, width))
        return self.layer_norm(reduced.flatten(2).transpose(1, 2))


class RecomputingSegformerMixMLP(SegformerMixMLP):
    """A Mix-FFN that keeps its input alone for the backward pass instead of three maps of four times the channels.

    The maps are cheap to make again (a few per cent of a step) and are most of what the encoder would keep. Where the
    modules do no more than their weights say, `models.mix_ffn` does it all.
    """

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        if torch.jit.is_tracing():
            return super().forward(hidden_states, height, width)
        if compiled.suits(hidden_states) and self.is_plain():
            return mix_ffn.mix_ffn(hidden_states, height, width, None, *self.layers())
        if not torch.is_grad_enabled():
            return super().forward(hidden_states, height, width)
        return checkpoint(
            super().forward,
            hidden_states,
            height,
            width,
            use_reentrant=False,
            preserve_rng_state=self.training,  # adapters may draw, even where the dropout here does not
        )

    def layers(self) -> tuple[nn.Linear, nn.Conv2d, nn.Linear]:
        return self.fc1, self.dwconv.dwconv, self.fc2

    def is_plain(self) -> bool:
        """Whether the weights of the modules say all that the modules do, and `models.mix_ffn` is for them."""
        return (
            _are_plain(nn.Linear, self.fc1, self.fc2)
            and _are_plain(ChannelsLastSegformerDepthWiseConv, self.dwconv)
            and _are_plain(nn.Conv2d, self.dwconv.dwconv)
            and _are_plain(GELUActivation, self.activation_fn)
            and _are_plain(nn.Dropout, self.dropout)
            and not (self.dropout.training and self.dropout.p)
            and all(module.bias is not None for module in self.layers())
            and self.fc1.out_features % mix_ffn.CHANNELS_MULTIPLE == 0
        )


class FusedSegformerLayer(SegformerLayer):
    """A block of the encoder that keeps less: with the compiled Mix-FFN its second LayerNorm is made again, too, and
    what drop path leaves of a branch is added as it is scaled."""

    def forward(self, hidden_states: Tensor, height: int, width: int, **kwargs) -> Tensor:
        if not self._is_plain(hidden_states):
            return super().forward(hidden_states, height, width, **kwargs)
        branch, _ = self.attention(self.layernorm_before(hidden_states), height, width, **kwargs)
        hidden_states = self._add(hidden_states, branch)
        branch = mix_ffn.mix_ffn(hidden_states, height, width, self.layernorm_after, *self.mlp.layers())
        return self._add(hidden_states, branch)

    def _is_plain(self, hidden_states: Tensor) -> bool:
        """Whether this is for compiled kernels, and the weights of the modules say all that the modules do."""
        return (
            compiled.suits(hidden_states)
            and _are_plain(RecomputingSegformerMixMLP, self.mlp)
            and self.mlp.is_plain()
            and _are_plain(nn.LayerNorm, self.layernorm_after)
            and self.layernorm_after.bias is not None  # and so a weight
            and (_are_plain(nn.Identity, self.drop_path) or _are_plain(SegformerDropPath, self.drop_path))
            and _are_plain(nn.Dropout, self.hidden_dropout)
            and not (self.hidden_dropout.training and self.hidden_dropout.p)
        )

    def _add(self, hidden_states: Tensor, branch: Tensor) -> Tensor:
        """hidden_states + drop_path(branch), with the numbers that `SegformerDropPath` draws."""
        p = getattr(self.drop_path, "drop_prob", 0.0) if self.drop_path.training else 0.0
        if not p:
            return hidden_states + branch
        kept = torch.rand(len(branch), 1, 1).add_(1 - p).floor_()
        return torch.addcmul(hidden_states, branch, kept / (1 - p))


def fuse_model(model: PreTrainedModel) -> PreTrainedModel:
    """`fuse_decode_head`, and an encoder that copies and keeps less with the same results, in place.

    As there, only classes of modules change. UperNet is asked for its logits as its head makes them. Every other model
    is left alone.
    """
    if isinstance(model, SegformerForSemanticSegmentation):
        fuse_decode_head(model)
        for stage in model.segformer.stages:
            _change_class(stage, SegformerStage, ChannelsLastSegformerStage)
            for block in stage.blocks:
                _change_class(block, SegformerLayer, FusedSegformerLayer)
                _change_class(block.mlp, SegformerMixMLP, RecomputingSegformerMixMLP)
                _change_class(block.mlp.dwconv, SegformerDepthWiseConv, ChannelsLastSegformerDepthWiseConv)
                reduction = getattr(block.attention, "sequence_reduction", None)
                _change_class(reduction, SegformerSequenceReduction, ChannelsLastSegformerSequenceReduction)
    elif isinstance(model, UperNet):
        # A method of the instance: a subclass would be saved under its own name.
        model.forward = MethodType(_upernet_logits, model)
    return model


def _upernet_logits(model: UperNet, pixel_values: Tensor | None = None, **kwargs) -> SemanticSegmenterOutput:
    """`UperNet.forward` without the resizing to the image's size, (B, num_labels, H, W), which the loss and the
    evaluation do a tile at a time; with anything but an image it is the stock one."""
    if kwargs:
        return UperNet.forward(model, pixel_values=pixel_values, **kwargs)
    return SemanticSegmenterOutput(logits=model.decode_head(model.backbone(pixel_values).feature_maps))
