"""Which input sizes an architecture sees whole, from its configuration alone, and whether it runs at all.

Networks cut images into patches or halve their maps again and again. At a side that does not divide evenly the last
rows and columns are cut off, or padded at one scale and not at another, and the logits of what is left are stretched
over the whole image without a word.
"""

import copy
import json
import math
from typing import NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from cli_utils import UserError, one_line
from data.preprocessing import EvaluationProtocol
from models.adapters import encoder_modules
from models.configurations import is_eomt, is_universal, new_model

# What is published: both sides rounded up to a multiple of 32 (`data.preprocessing`), whatever less would do.
PUBLISHED_DIVISOR = EvaluationProtocol.size_divisor
# Its quotients by the usual patches and strides are whole: 4, 6, 7, 8, 12, 14, 16, 24, 28, 32.
_PROBE_SIDE = 672
_OF_NO_EFFECT = {"id2label", "label2id", "architectures", "dtype", "transformers_version", "_name_or_path"}
_known: dict[str, "InputGeometry"] = {}  # by the fields of a configuration


class InputGeometry(NamedTuple):
    """The input sizes that an architecture sees whole.

    Attributes:
        divisor: both sides are multiples of it.
        square: the sides are equal.
        side: the only one there is, where position embeddings are of one size; else None.
    """

    divisor: int
    square: bool = False
    side: int | None = None

    def fit(self, side: int) -> int:
        """The side to show in place of one that was asked for: rounded up, or the only one."""
        return self.side or math.ceil(side / self.divisor) * self.divisor

    def nearest(self, side: int) -> str:
        """The sizes next to one that does not fit, for messages."""
        if self.side:
            return str(self.side)
        return (
            f"{side // self.divisor * self.divisor} and {self.fit(side)}" if side > self.divisor else str(self.divisor)
        )


def input_geometry(config: PretrainedConfig) -> InputGeometry:
    """The geometry of a segmentation model; its network is run once without weights (on torch's meta device).

    Raises:
        UserError: no model can be built from the configuration, or the one built does not run.
    """
    # A run asks before and after it knows its classes, which change nothing here.
    fields = {key: value for key, value in config.to_dict().items() if key not in _OF_NO_EFFECT}
    key = json.dumps(fields, sort_keys=True, default=str)
    if key not in _known:
        _known[key] = _probe(config)
    return _known[key]


def _probe(config: PretrainedConfig) -> InputGeometry:
    name = config.name_or_path or config.model_type
    config = copy.deepcopy(config)
    if "use_auxiliary_head" in config.to_dict():
        config.use_auxiliary_head = False  # as `load_model` has it
    try:
        with torch.device("meta"):
            model = new_model(config)
    except Exception as error:  # lists of different lengths, sizes that do not divide: each fails in its own way
        raise UserError(f"no model can be built from the configuration of {name}: {one_line(error)}") from error
    try:
        geometry = _geometry(model.eval())
        if _reads_maps(config):
            _check_maps(encoder_modules(model)[0], geometry.fit(64))
        if not is_universal(config):  # these look at values, which there are none of on the meta device
            _run(model, geometry.fit(64))
    except Exception as error:  # widths that do not match, window sizes, stages that are not there
        raise UserError(
            f"the model in the configuration of {name} can be built but does not run: {one_line(error)}"
        ) from error
    return geometry


def _geometry(model: PreTrainedModel) -> InputGeometry:
    config = model.config
    kind = config.model_type
    if is_eomt(config):  # it takes one size, in which a window of any image is shown
        if not 0 < config.num_blocks <= config.num_hidden_layers:
            raise ValueError(f"num_blocks is {config.num_blocks}, of {config.num_hidden_layers} layers")
        return InputGeometry(1, True, config.image_size)
    if kind == "data2vec-vision" or (kind == "dpt" and config.is_hybrid):
        # Position embeddings of one size, or feature maps reshaped to the configured one.
        return _fixed(config.image_size)
    if kind == "dpt":
        # The neck halves the map of patches, and reshapes tokens to a square of any size.
        return InputGeometry(2 * config.patch_size, True)
    if _reads_maps(config):
        return _backbone_geometry(encoder_modules(model)[0])
    if kind == "segformer":
        needed = math.prod(config.strides)
    elif kind == "beit":  # halves the map of patches
        needed = 2 * config.patch_size
    elif kind == "tipsv2_dpt":
        # The neck scales the map of patches by these factors; half of an odd number of patches would be rounded.
        needed = config.backbone_config.patch_size * math.ceil(1 / min(1, *config.reassemble_factors))
    elif kind == "mobilevitv2":  # cuts the last stage into 2 × 2 patches and leaves an odd last row or column zero
        needed = 2 * config.output_stride
    elif kind == "sapiens2":
        needed = config.patch_size if isinstance(config.patch_size, int) else math.lcm(*config.patch_size)
    else:  # mobilevit, mobilenet_v2
        needed = config.output_stride
    return InputGeometry(_divisor(needed))


def _reads_maps(config: PretrainedConfig) -> bool:
    """Whether its head reads feature maps of any size of a backbone, which then decides about sizes."""
    return config.model_type == "upernet" or (is_universal(config) and not is_eomt(config))


def _backbone_geometry(backbone: PreTrainedModel) -> InputGeometry:
    """Of a head that takes feature maps of any size: what its backbone needs, found by its maps."""
    try:
        maps = _run(backbone, _PROBE_SIDE).feature_maps
    except Exception:  # position embeddings of one size, or a fault that the caller will meet again
        side = _only_side(backbone.config)
        if side is None:
            raise
        return _fixed(side)
    # A map that was rounded up or down is off by less than one cell.
    return InputGeometry(_divisor(math.lcm(*(round(_PROBE_SIDE / one.shape[-1]) for one in maps))))


def _only_side(config: PretrainedConfig) -> int | None:
    """The side that a backbone was pretrained for, if it says one."""
    side = getattr(config, "image_size", None)
    if config.model_type == "timm_backbone":
        import timm  # it has built the backbone

        pretrained = timm.get_pretrained_cfg(config.backbone)
        side = pretrained.input_size[-1] if pretrained and pretrained.fixed_input_size else None
    return side if isinstance(side, int) or not side else max(side)


def _check_maps(backbone: PreTrainedModel, side: int) -> None:
    """Raises ValueError where feature maps are not (B, C, h, w) with the channels that heads expect."""
    found = [tuple(one.shape) for one in _run(backbone, side).feature_maps]
    if [shape[1] for shape in found if len(shape) == 4] != list(backbone.channels):
        raise ValueError(f"feature maps of the backbone are {found}, without its {list(backbone.channels)} channels")


def _fixed(side: int) -> InputGeometry:
    # Larger images come in windows of this side, and may be of any size.
    return InputGeometry(math.gcd(PUBLISHED_DIVISOR, side), True, side)


def _divisor(needed: int) -> int:
    return PUBLISHED_DIVISOR if PUBLISHED_DIVISOR % needed == 0 else needed


@torch.no_grad()
def _run(network: nn.Module, side: int):
    # Under `torch.device("meta")` modules that cache what they compute would keep it without values for other models.
    return network(pixel_values=torch.zeros(1, input_channels(network), side, side, device="meta"))


def input_channels(network: nn.Module) -> int:
    """How many channels the images have that a network takes: those of its first convolution."""
    return next(module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d))
