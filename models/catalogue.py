"""Models to choose from: what they are built of, whose weights they start from, what those may be used for, and what
they cost.

`docs/models.md` shows it as a table, `python benchmark.py models` measures it, and plans choose from it
(`training.planning.choose_model`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import NamedTuple

from transformers import ConvNextConfig, Dinov2Config, DINOv3ViTConfig, PretrainedConfig, SegformerConfig, SwinConfig

from models.backbones import config_with_head
from models.loading import MIT_VARIANTS


@dataclass(frozen=True)
class Licence:
    """Of weights: whether they may be used at work, in plain words and as a fact; open: without asking for access."""

    text: str
    commercial: bool
    open: bool = True


FREE = Licence("yes: Apache-2.0", commercial=True)
MIT = Licence("yes: MIT", commercial=True)
NVIDIA = Licence("no: NVIDIA's licence is for non-commercial use", commercial=False)
DINOV3 = Licence(
    "yes, with conditions: the DINOv3 License, which goes on to whoever gets the model; gated",
    commercial=True,
    open=False,
)


class Cost(NamedTuple):
    """With 150 classes: millions of parameters, billions of multiply-adds for an image of 512 x 512, and GiB that a
    training step takes on a CPU at batch 2 in float32 (None: not measured)."""

    parameters: float
    gflops: int
    step: float | None = None


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        weights: Hub id of what it starts from.
        licence: of the weights.
        ade20k: published single-scale mIoU, in per cent, with its source; None where none was found.
        encoder: configuration of the backbone, or of the whole model where it has no head of its own.
        head: of `models.arguments.HEADS`; None for a whole model.
        cost: as `python benchmark.py models` measures it.
        on_ade20k: Hub id of the whole model trained on ADE20K under the same licence, None where there is none.
    """

    weights: str
    licence: Licence
    ade20k: str | None
    encoder: Callable[[], PretrainedConfig]
    head: str | None = None
    cost: Cost = Cost(0, 0)
    on_ade20k: str | None = None

    @property
    def choice(self) -> dict[str, str]:
        """Flags of `run_segmentation.py` and their values, besides data and output."""
        return {"backbone": self.weights, "head": self.head} if self.head else {"model_name_or_path": self.weights}

    @property
    def flags(self) -> str:
        """The same as on a command line."""
        return " ".join(f"--{flag} {value}" for flag, value in self.choice.items())

    @property
    def scores_pixels(self) -> bool:
        """Whether it gives scores of pixels, and not masks."""
        return self.head not in ("eomt", "mask2former")

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
_DINOV3_S, _DINOV3_B = (f"facebook/dinov3-vit{size}16-pretrain-lvd1689m" for size in "sb")
_ON_ADE20K = "nvidia/segformer-{}-finetuned-ade-512-512"
_SWIN_UPERNET, _SWIN_MASKS = f"44.5 ({_SWIN})", "47.7 (facebookresearch/Mask2Former)"
MODELS = {
    "SegFormer B0": Model(
        "nvidia/mit-b0",
        NVIDIA,
        f"37.4 ({_SEGFORMER})",
        _mit("mit-b0"),
        None,
        Cost(3.8, 4, 0.4),
        _ON_ADE20K.format("b0"),
    ),
    "SegFormer B2": Model(
        "nvidia/mit-b2",
        NVIDIA,
        f"46.5 ({_SEGFORMER})",
        _mit("mit-b2"),
        None,
        Cost(27.5, 24, 1.3),
        _ON_ADE20K.format("b2"),
    ),
    "UperNet DINOv2-S": Model("facebook/dinov2-small", FREE, None, _dinov2(384), "upernet", Cost(51.2, 86, 2.0)),
    "UperNet DINOv2-B": Model("facebook/dinov2-base", FREE, None, _dinov2(768), "upernet", Cost(118.9, 194, 3.6)),
    "DPT DINOv2-S": Model("facebook/dinov2-small", FREE, None, _dinov2(384), "dpt", Cost(35.7, 196, 3.2)),
    "DPT DINOv2-B": Model("facebook/dinov2-base", FREE, None, _dinov2(768), "dpt", Cost(110.5, 320, 5.1)),
    "UperNet DINOv3-S": Model(_DINOV3_S, DINOV3, None, _dinov3(384), "upernet", Cost(50.8, 61, 1.8)),
    "UperNet Swin-T": Model(_SWIN_T, MIT, _SWIN_UPERNET, SwinConfig, "upernet", Cost(59.0, 237, 3.4)),
    "UperNet ConvNeXt-T": Model(
        "facebook/convnext-tiny-224", MIT, f"46.1 ({_CONVNEXT})", ConvNextConfig, "upernet", Cost(59.3, 235, 3.2)
    ),
    "EoMT DINOv3-S": Model(_DINOV3_S, DINOV3, None, _dinov3(384), "eomt", Cost(23.3, 52, 2.5)),
    "EoMT DINOv3-B": Model(_DINOV3_B, DINOV3, None, _dinov3(768), "eomt", Cost(92.4, 180, 5.5)),
    "Mask2Former Swin-T": Model(_SWIN_T, MIT, _SWIN_MASKS, SwinConfig, "mask2former", Cost(47.4, 69, 5.0)),
}
