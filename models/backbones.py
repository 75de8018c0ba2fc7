"""`--backbone ID --head NAME`: a pretrained backbone of transformers with a fresh head of transformers.

What is built is a standard model, which transformers' Auto classes load without anything of ours:
`UperNetForSemanticSegmentation`; `Tipsv2DptForSemanticSegmentation`, the one DPT of transformers that really uses its
backbone; `Mask2FormerForUniversalSegmentation`; or `EomtDinov3ForUniversalSegmentation`, whose layers are a DINOv3's.
"""

import importlib.util
import logging
import re

import torch
from safetensors.torch import load_file
from transformers import (
    DINOv3ViTModel,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    Mask2FormerConfig,
    PretrainedConfig,
    PreTrainedModel,
    TimmBackboneConfig,
    Tipsv2DptConfig,
    UperNetConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_BACKBONE_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
)
from transformers.utils import cached_file

from cli_utils import UserError, one_line, shorten
from models.adapters import encoder_modules, encoder_names, set_image_size
from models.configurations import (
    encoder_config,
    is_universal,
    num_equal_layers,
    open_config,
    read_checkpoint,
)

logger = logging.getLogger(__name__)

NUM_STAGES = 4
# What a configuration says of a model and its file, and not of the network.
NOT_OF_BACKBONE = PretrainedConfig().to_dict().keys() | {"model_type", "image_size", "architectures"}
# Backbones that can hand out tokens, class token first, and the registers after it that those have which say nothing
# of registers.
DPT_BACKBONES = {"dinov2_with_registers": None, "tipsv2_vision_model": None, "dinov2": 0, "beit": 0}
# What a checkpoint may hold beside the backbone: heads of other tasks, what feeds them, and a norm behind the last
# layer that feature maps do not pass; and what may be fresh: norms of feature maps, which no pretraining has.
_OTHER_PARTS = {"classifier", "pooler", "layernorm", "layer_norm", "norm", "head", "lm_head", "decoder", "fc_norm"}
_OTHER_PARTS |= {"fc", "last_convolution"}  # TextNet, PP-LCNet
_OF_OTHER_MODELS = ("text_model.", "temperature", "logit_scale")
_FRESH = ("hidden_states_norms.",)


def config_with_head(
    backbone: str, head: str, revision: str | None = None, image_size: int | None = None
) -> PretrainedConfig:
    """The configuration of a pretrained backbone with a head over four of its stages.

    Stages are the four of a pyramid (Swin, ConvNeXt), or the layers at the four quarters of a ViT, all of whose maps
    have one resolution. The head is as wide as published: 512 channels of UperNet (mmsegmentation,
    configs/_base_/models/upernet_swin.py); DPT's from an eighth of the backbone's width to all of it
    (transformers, convert_dinov2_depth_to_hf.py).

    Args:
        backbone: Hub id or folder.
        head: of `models.arguments.HEADS`.
        image_size: the one side in pixels that an EoMT takes; 512 if left out, as published for ADE20K.

    Raises:
        UserError: it cannot be reached or read, is no backbone or has fewer than four stages, or is none that the
            head can read.
    """
    config = _backbone_config(backbone, revision)
    whole = _with_head(config, backbone, head, image_size)
    whole.name_or_path = backbone  # for messages; it is not saved
    return whole


def _backbone_config(backbone: str, revision: str | None) -> PretrainedConfig:
    known = [kind.model_type for kind in MODEL_FOR_BACKBONE_MAPPING]
    config = open_config(backbone, known, revision)
    if config.model_type == "timm_wrapper":
        config = _timm_config(config)
    if getattr(config, "vision_config", None) is not None:  # of an image encoder and a text encoder
        config = config.vision_config
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        own_head = type(config) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING or is_universal(config)
        raise UserError(
            f"--backbone {backbone} is of type {config.model_type}, of which transformers reads no feature maps"
            + (
                f": it is trained with its own head as --model_name_or_path {backbone}"
                if own_head
                else f"; backbones are {', '.join(known)}"
            )
        )
    return config


def _with_head(config: PretrainedConfig, backbone: str, head: str, image_size: int | None) -> PretrainedConfig:
    if head == "eomt":
        return _eomt_config(config, backbone, image_size)
    if config.model_type != "timm_backbone":
        config.out_features = _stages(config, backbone)
    if head != "dpt":
        if hasattr(config, "reshape_hidden_states"):
            config.reshape_hidden_states = True
        return (
            UperNetConfig(backbone_config=config) if head == "upernet" else Mask2FormerConfig(backbone_config=config)
        )
    if config.model_type not in DPT_BACKBONES:
        raise UserError(
            f"--head dpt reads class token and patches of four layers of a ViT, of {', '.join(DPT_BACKBONES)}; "
            f"{backbone} is of type {config.model_type}: give --head upernet"
        )
    config.reshape_hidden_states = False
    if DPT_BACKBONES[config.model_type] is not None:
        config.num_register_tokens = DPT_BACKBONES[config.model_type]  # the head asks for it
    return Tipsv2DptConfig(
        backbone_config=config, neck_hidden_sizes=[config.hidden_size // part for part in (8, 4, 2, 1)]
    )


def _eomt_config(config: PretrainedConfig, backbone: str, image_size: int | None) -> EomtDinov3Config:
    """Source of what the backbone does not say: tue-mps/eomt, configs/dinov3/ade20k/semantic/eomt_large_512.yaml."""
    if config.model_type != "dinov3_vit":
        raise UserError(
            f"--head eomt goes on a dinov3_vit, whose layers it takes over one by one; {backbone} is of type "
            f"{config.model_type} (a trained EoMT over DINOv2 is --model_name_or_path "
            "tue-mps/ade20k_semantic_eomt_large_512)"
        )
    of_backbone = config.to_dict()
    same = {key: of_backbone[key] for key in EomtDinov3Config().to_dict() if key in of_backbone}
    same = {key: value for key, value in same.items() if key not in NOT_OF_BACKBONE}
    eomt = EomtDinov3Config(**same, num_queries=100, num_blocks=4)
    set_image_size(eomt, image_size or 512)
    return eomt


def _stages(config: PretrainedConfig, backbone: str) -> list[str]:
    stages = [name for name in config.stage_names or () if name != "stem"]
    if len(stages) < NUM_STAGES:
        raise UserError(
            f"--backbone {backbone} has {len(stages)} stages ({shorten(stages) or 'none'}), and a head reads "
            f"{NUM_STAGES}: take another one"
        )
    return [stages[index] for index in _four_of(len(stages), num_equal_layers(config) == len(stages))]


def _four_of(count: int, equal: bool) -> list[int]:
    """Indices of four stages: the quarters of equal layers, else the last four."""
    if equal:
        return [round(count * quarter / NUM_STAGES) - 1 for quarter in range(1, NUM_STAGES + 1)]
    return list(range(count - NUM_STAGES, count))


@torch.no_grad()
def load_backbone(model: PreTrainedModel, name_or_path: str, revision: str | None = None) -> None:
    """Loads a checkpoint's weights into the backbone of a model made of `config_with_head`, in place.

    Raises:
        UserError: they cannot be reached or read, or the checkpoint lacks or contradicts part of the backbone.
    """
    config = encoder_config(model.config)
    if config.model_type == "timm_backbone":
        encoder_modules(model)[0].load_state_dict(_timm_weights(config, name_or_path, revision))
        return
    eomt = config.model_type == "eomt_dinov3"
    kind = DINOv3ViTModel if eomt else MODEL_FOR_BACKBONE_MAPPING[type(config)]
    backbone, info = read_checkpoint(kind, name_or_path, None if eomt else config, revision)
    prefix = kind.base_model_prefix + "."
    missing = {key for key in info["missing_keys"] if not key.removeprefix(prefix).startswith(_FRESH)}
    if config.model_type == "pixio":  # its norm is one of feature maps
        missing = {key for key in missing if "layernorm." not in key.removeprefix(prefix).split("layers.")[0]}
    unexpected = {
        key
        for key in info["unexpected_keys"]
        if key.removeprefix(prefix).split(".")[0] not in _OTHER_PARTS
        and not key.startswith(_OF_OTHER_MODELS)
        and not key.endswith(".mask_token")  # what stands in the place of patches in pretraining
    }
    faults = [
        f"{what} {shorten(sorted(keys), 4)}"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", {key for key, *_ in info["mismatched_keys"]}),
        )
        if keys
    ]
    if faults:
        raise UserError(f"{name_or_path} does not fit a {kind.__name__}: {'; '.join(faults)}")
    if eomt:
        _take_layers(model, backbone)
    else:
        encoder_modules(model)[0].load_state_dict(backbone.state_dict())
    loaded = len(backbone.state_dict()) - len(info["missing_keys"])
    logger.info(f"{name_or_path}: {loaded} tensors of the backbone loaded, fresh: the head")


def _take_layers(model: EomtDinov3ForUniversalSegmentation, backbone: DINOv3ViTModel) -> None:
    """The backbone's tensors under the names that EoMT has for them, but for the token of masked patches."""
    names = {
        re.sub(r"^(model\.)?layer\.", "layers.", re.sub(r"^norm\.", "layernorm.", key)): key
        for key in backbone.state_dict()
    }
    state, own = backbone.state_dict(), model.state_dict()
    encoder = [key for key in own if key.startswith(tuple(f"{name}." for name in encoder_names(model)))]
    unknown = {key for key in encoder if key not in names} | {
        key for key in names if key not in own and not key.endswith("mask_token")
    }
    if unknown:
        raise UserError(f"EoMT does not have the layers of this backbone: {shorten(sorted(unknown), 4)}")
    model.load_state_dict({key: state[names[key]] for key in encoder}, strict=False)


# ---- timm -----------------------------------------------------------------------------------------------------------


def _timm_config(config: PretrainedConfig) -> TimmBackboneConfig:
    """Of a timm model on the Hub or in a folder, whose configuration is of type `timm_wrapper`."""
    if importlib.util.find_spec("timm") is None:
        raise UserError(f"{config.architecture} is a model of timm, which is not installed: pip install timm")
    import timm

    try:
        with torch.device("meta"):
            stages = timm.create_model(config.architecture, features_only=True).feature_info.info
    except Exception as error:
        raise UserError(f"timm gives no feature maps of {config.architecture}: {one_line(error)}") from error
    if len(stages) < NUM_STAGES:
        raise UserError(f"timm's {config.architecture} has {len(stages)} stages, and a head reads {NUM_STAGES}")
    equal = len({stage["reduction"] for stage in stages}) == 1
    return TimmBackboneConfig(backbone=config.architecture, out_indices=_four_of(len(stages), equal))


def _timm_weights(config: TimmBackboneConfig, name_or_path: str, revision: str | None) -> dict[str, torch.Tensor]:
    import timm

    try:
        state = load_file(cached_file(name_or_path, "model.safetensors", revision=revision))
        # The prefix is that of files which transformers wrote.
        state = {key.removeprefix("timm_model."): tensor for key, tensor in state.items()}
        backbone = timm.create_model(
            config.backbone,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": state},
            features_only=True,
            out_indices=config.out_indices,
        )
    except Exception as error:  # whatever is wrong with a file or does not fit
        raise UserError(f"the weights of {name_or_path} cannot be loaded: {one_line(error)}") from error
    # timm passes over what does not fit. It takes modules of a sequence, "stages.0", out of it as "stages_0", and
    # puts ViTs whole into "model".
    loaded = backbone.state_dict()
    missing = []
    for key, tensor in loaded.items():
        names = (key, key.removeprefix("model."), re.sub(r"_(\d+)\.", r".\1.", key, count=1))
        if not any(name in state and torch.equal(state[name], tensor) for name in names):
            missing.append(key)
    if missing:
        raise UserError(f"{name_or_path} does not fit timm's {config.backbone}: missing {shorten(missing, 4)}")
    return {f"_backbone.{key}": tensor for key, tensor in loaded.items()}
