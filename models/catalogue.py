"""Models to choose from: what they are built of, whose weights they start from, and what those may be used for.

`docs/models.md` shows it as a table, with what `python benchmark.py models` measures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory

from transformers import ConvNextConfig, Dinov2Config, DINOv3ViTConfig, PretrainedConfig, SegformerConfig, SwinConfig

from models.backbones import config_with_head
from models.loading import MIT_VARIANTS

FREE = "yes: Apache-2.0"
MIT = "yes: MIT"
NVIDIA = "no: NVIDIA's licence is for non-commercial use"
DINOV3 = "yes, with conditions: the DINOv3 License, which goes on to whoever gets the model; gated"


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        weights: Hub id of what it starts from.
        commercial: whether the weights may be used at work, in plain words.
        ade20k: published single-scale mIoU, in per cent, with its source; None where none was found.
        encoder: configuration of the backbone, or of the whole model where it has no head of its own.
        head: of `models.arguments.HEADS`; None for a whole model.
    """

    weights: str
    commercial: str
    ade20k: str | None
    encoder: Callable[[], PretrainedConfig]
    head: str | None = None

    @property
    def flags(self) -> str:
        """Of `run_segmentation.py`, besides data and output."""
        return f"--backbone {self.weights} --head {self.head}" if self.head else f"--model_name_or_path {self.weights}"

    def config(self) -> PretrainedConfig:
        """Of the whole model, as it is trained at 512 pixels."""
        encoder = self.encoder()
        if self.head is None:
            return encoder
        with TemporaryDirectory() as folder:
            encoder.save_pretrained(folder)
            return config_with_head(folder, self.head, image_size=512)


def _mit(variant: str) -> Callable[[], PretrainedConfig]:
    return lambda: SegformerConfig(**MIT_VARIANTS[variant])


def _dinov2(width: int) -> Callable[[], PretrainedConfig]:
    return lambda: Dinov2Config(hidden_size=width, num_attention_heads=width // 64, image_size=518, patch_size=14)


def _dinov3(width: int) -> Callable[[], PretrainedConfig]:
    return lambda: DINOv3ViTConfig(
        hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width, num_register_tokens=4
    )


_SEGFORMER, _SWIN, _CONVNEXT = "SegFormer paper, table 1", "microsoft/Swin-Transformer", "mmsegmentation"
_SWIN_T = "microsoft/swin-tiny-patch4-window7-224"
MODELS = {
    "SegFormer B0": Model("nvidia/mit-b0", NVIDIA, f"37.4 ({_SEGFORMER})", _mit("mit-b0")),
    "SegFormer B2": Model("nvidia/mit-b2", NVIDIA, f"46.5 ({_SEGFORMER})", _mit("mit-b2")),
    "UperNet DINOv2-S": Model("facebook/dinov2-small", FREE, None, _dinov2(384), "upernet"),
    "UperNet DINOv2-B": Model("facebook/dinov2-base", FREE, None, _dinov2(768), "upernet"),
    "DPT DINOv2-S": Model("facebook/dinov2-small", FREE, None, _dinov2(384), "dpt"),
    "DPT DINOv2-B": Model("facebook/dinov2-base", FREE, None, _dinov2(768), "dpt"),
    "UperNet DINOv3-S": Model("facebook/dinov3-vits16-pretrain-lvd1689m", DINOV3, None, _dinov3(384), "upernet"),
    "UperNet Swin-T": Model(_SWIN_T, MIT, f"44.5 ({_SWIN})", SwinConfig, "upernet"),
    "UperNet ConvNeXt-T": Model("facebook/convnext-tiny-224", MIT, f"46.1 ({_CONVNEXT})", ConvNextConfig, "upernet"),
    "EoMT DINOv3-S": Model("facebook/dinov3-vits16-pretrain-lvd1689m", DINOV3, None, _dinov3(384), "eomt"),
    "EoMT DINOv3-B": Model("facebook/dinov3-vitb16-pretrain-lvd1689m", DINOV3, None, _dinov3(768), "eomt"),
    "Mask2Former Swin-T": Model(_SWIN_T, MIT, "47.7 (facebookresearch/Mask2Former)", SwinConfig, "mask2former"),
}
