"""Fitting a loaded model to its task: a frozen encoder, LoRA adapters, images of other channels or of another size,
checkpointing.

All but `with_channels` and `with_image_size` change the model in place. None changes what is saved in the end: stock
transformers loads it.

With LoRA the weights of a checkpoint are the merged ones, a model like any other, and `adapters.safetensors` beside
them holds what training goes on from.
"""

import copy
import os
from pathlib import Path
from types import MethodType

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from cli_utils import UserError
from models.configurations import config_parts, is_eomt, new_model

# What transformers' vision models call the layers that make queries and values.
LORA_TARGETS = ("q_proj", "v_proj", "query", "value")
# Beside the `model.safetensors` of a checkpoint. Needed to resume.
ADAPTERS_FILE = "adapters.safetensors"
# How peft names what it puts in the place of a layer.
_BASE_LAYER, _LORA_A = ".base_layer.", ".lora_A.default.weight"


def encoder_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the modules that are the encoder, mostly one; everything else is the head."""
    kind = model.config.model_type
    if is_eomt(model.config):  # its queries go through the layers of the ViT
        return "embeddings", "layers", "layernorm"
    if kind in ("mask2former", "maskformer"):  # the base model has the decoders, too
        return ("model.pixel_level_module.encoder",)
    # UperNet names no base model.
    return (model.base_model_prefix or "backbone",)


def encoder_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules of `encoder_names`."""
    return [model.get_submodule(name) for name in encoder_names(model)]


def freeze_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """Train the head alone: no gradients in the encoder, which stays in evaluation mode, in place.

    `model.train()`, as the Trainer calls it before every step, then leaves BatchNorm's statistics, dropout and drop
    path of the encoder off. Where no tensor requires a gradient autograd keeps no activations, so the encoder costs
    what it costs in inference.
    """
    for encoder in encoder_modules(model):
        encoder.requires_grad_(False)
        # A method of the instance: transformers looks up what it knows of a model by the name of its class, which a
        # subclass would change.
        encoder.train = MethodType(_stay_in_evaluation_mode, encoder)
        encoder.eval()
    return model


def _stay_in_evaluation_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)


def enable_activation_checkpointing(model: PreTrainedModel) -> None:
    """Switches it on as the Trainer will, so that an architecture without it is found before training starts.

    Raises:
        UserError: the architecture has no support for it.
    """
    if "backbone" in dict(model.named_children()):
        # UperNet says that it cannot, whatever its backbone can.
        model.supports_gradient_checkpointing = model.backbone.supports_gradient_checkpointing
    try:
        model.activation_checkpointing_enable()
    except ValueError:
        raise UserError(
            f"--activation_checkpointing: {type(model).__name__} does not support it; leave the flag out, and reduce "
            "--per_device_train_batch_size instead (--gradient_accumulation_steps makes up for it)"
        ) from None


# ---- LoRA -----------------------------------------------------------------------------------------------------------


def add_lora(model: PreTrainedModel, r: int) -> PreTrainedModel:
    """Train low-rank adapters (LoRA) in the encoder's attention, and the head in full, in place, through peft.

    The matrix W of every layer that makes queries or values becomes W + B A, A (r, in) and B (out, r), where B starts
    at zero. W and the rest of the encoder are frozen. Source: Hu et al., LoRA, arXiv:2106.09685, with alpha = r.

    Raises:
        UserError: peft is not installed, r is less than 1, or the encoder has no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("--lora_r needs peft, which is not installed: pip install peft") from None
    if r < 1:
        raise UserError(f"--lora_r is {r}; it must be at least 1, as in 8")
    encoders = encoder_modules(model)
    found = 0
    for encoder in encoders:
        targets = [
            name
            for name, module in encoder.named_modules()
            # Layers that do not reach the logits are frozen already; adapters there would never get a gradient.
            if name.split(".")[-1] in LORA_TARGETS and isinstance(module, nn.Linear) and module.weight.requires_grad
        ]
        found += len(targets)
        if targets:
            inject_adapter_in_model(LoraConfig(r=r, lora_alpha=r, target_modules=targets), encoder)
        else:
            encoder.requires_grad_(False)
    if not found:
        raise UserError(
            f"--lora_r: no layers for attention's queries and values are known in {type(encoders[0]).__name__}; leave "
            "the flag out, or train the head alone with --freeze_encoder"
        )
    return model


def merge_lora(model: PreTrainedModel) -> PreTrainedModel:
    """Adds the adapters of `add_lora` into their matrices and removes them, in place; other models stay as they are.

    The weights are those of `merged_state_dict`.
    """
    layers = _lora_layers(model)
    if layers:
        merged = merged_state_dict(model)
        for name in layers:
            model.set_submodule(name, model.get_submodule(name).get_base_layer())
        model.load_state_dict(merged)
        for encoder in encoder_modules(model):
            vars(encoder).pop("peft_config", None)
    return model


def merged_state_dict(model: PreTrainedModel) -> dict[str, Tensor]:
    """`state_dict` as if there were no adapters: their products are added into the matrices. The model stays as is."""
    state = model.state_dict()
    merged = {_plain(key): tensor for key, tensor in state.items() if ".lora_" not in key}
    for name in _lora_layers(model):
        merged[f"{name}.weight"] = merged[f"{name}.weight"] + model.get_submodule(name).get_delta_weight("default")
    return merged


def save_adapters(model: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Writes adapters, and the matrices without them, to a checkpoint whose weights are the merged ones."""
    adapters = _adapters(model.state_dict())
    if adapters:
        save_file(adapters, Path(folder, ADAPTERS_FILE), metadata={"format": "pt"})


def with_adapters(
    state_dict: dict[str, Tensor], model: PreTrainedModel, folder: str | os.PathLike
) -> dict[str, Tensor]:
    """The weights of a checkpoint, merged as `merged_state_dict` has them, as the model's adapters need them.

    Raises:
        UserError: the checkpoint was written with adapters and the model has none, or the other way round, or they
            are of another rank.
    """
    file = Path(folder, ADAPTERS_FILE)
    needed = _adapters(model.state_dict())
    found = load_file(file) if file.is_file() else {}
    if {key: tensor.shape for key, tensor in found.items()} != {key: tensor.shape for key, tensor in needed.items()}:
        raise UserError(
            f"{folder} was written {_describe(found)}, the model has been made {_describe(needed)}; resume it with "
            "the flags it was started with"
        )
    replaced = {_plain(key) for key in found}
    return {key: tensor for key, tensor in state_dict.items() if key not in replaced} | found


def _lora_layers(model: PreTrainedModel) -> list[str]:
    return [key.removesuffix(_LORA_A) for key in model.state_dict() if key.endswith(_LORA_A)]


def _adapters(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state_dict.items() if ".lora_" in key or _BASE_LAYER in key}


def _describe(adapters: dict[str, Tensor]) -> str:
    rank = next((len(tensor) for key, tensor in adapters.items() if key.endswith(_LORA_A)), None)
    return "without --lora_r" if rank is None else f"with --lora_r {rank}"


def _plain(key: str) -> str:
    return key.replace(_BASE_LAYER, ".")


# ---- channels -------------------------------------------------------------------------------------------------------


def set_num_channels(config: PretrainedConfig, num_channels: int) -> None:
    """Sets how many channels images have, in place.

    Raises:
        UserError: the number is less than 1, or the architecture leaves no choice.
    """
    if num_channels < 1:
        raise UserError(f"--num_channels is {num_channels}; it must be at least 1")
    parts = [part for part in config_parts(config) if "num_channels" in part.to_dict()]
    if not parts:
        raise UserError(f"--num_channels: the configuration of {config.model_type} has no such field")
    for part in parts:
        part.num_channels = num_channels


def with_channels(model: PreTrainedModel, num_channels: int) -> PreTrainedModel:
    """A model for RGB images → one for images of that many channels, with the same weights but for the first layer.

    In the first convolution the filters of the first three channels are kept and every other one is their mean; of one
    or two channels each is the mean. All are multiplied by 3 / num_channels, so that an image whose channels are all
    the same gives what it gave in RGB.

    Raises:
        UserError: as `set_num_channels`, or the model is not for RGB images, or its first layer is no convolution.
    """
    config = copy.deepcopy(model.config)
    set_num_channels(config, num_channels)
    grown = new_model(config).eval()
    state = model.state_dict()
    changed = [key for key, tensor in grown.state_dict().items() if tensor.shape != state[key].shape]
    if not changed:
        return model
    filters = state[changed[0]]
    if len(changed) > 1 or filters.ndim != 4 or filters.shape[1] != 3:
        raise UserError(
            f"--num_channels {num_channels}: {', '.join(changed)} of {type(model).__name__}, {tuple(filters.shape)}, "
            "is no convolution over three channels whose filters could be taken over"
        )
    mean = filters.mean(dim=1, keepdim=True)
    kept = filters if num_channels > 3 else filters[:, :0]
    filters = torch.cat([kept, mean.expand(-1, num_channels - kept.shape[1], -1, -1)], dim=1)
    grown.load_state_dict(state | {changed[0]: filters * (3 / num_channels)})
    return grown


# ---- the one size of an EoMT ----------------------------------------------------------------------------------------


def set_image_size(config: PretrainedConfig, side: int) -> None:
    """Sets the side of the squares that an EoMT takes, in pixels, in place.

    Raises:
        UserError: its patches do not divide them.
    """
    patch = config.patch_size
    if side % patch:
        raise UserError(
            f"--image_size is {side}, which patches of {patch} pixels do not divide: give {side // patch * patch} or "
            f"{-(-side // patch) * patch}"
        )
    config.image_size = side


def with_image_size(model: PreTrainedModel, side: int) -> PreTrainedModel:
    """An EoMT over DINOv2 → one with the same weights for squares of another side, in pixels: its table of positions
    is resized as DINOv2's is where EoMT's own code loads it (timm, layers/pos_embed.py, `resample_abs_pos_embed`).

    (One over DINOv3 computes its positions, and nothing in it depends on the size.)
    """
    config = copy.deepcopy(model.config)
    set_image_size(config, side)
    resized = new_model(config).eval()
    state, key = model.state_dict(), "embeddings.position_embeddings.weight"
    old, new = (size // config.patch_size for size in (model.config.image_size, side))
    table = state[key].T.reshape(1, -1, old, old)
    table = nn.functional.interpolate(table, (new, new), mode="bicubic", antialias=True, align_corners=False)
    resized.load_state_dict(state | {key: table[0].flatten(1).T})
    return resized
