"""The evaluation protocol: how an image becomes logits, and logits become a label map of the image's own size.

The protocol of the SegFormer paper and of mmsegmentation: aspect kept, short side `short_side`, long side at most four
times that, both sides rounded up to a multiple of 32, the whole image in one pass, logits resized bilinearly to the
original size, then argmax. Training evaluation, `--do_predict` and `predict.py` all go through here, one image at a
time, so that they agree to the last pixel.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from fused_utils import upsampled_argmax, upsampled_scores
from metrics_utils import IGNORE_INDEX

# Source: SegFormer's test pipeline, img_scale=(2048, 512): the long side may be four times the short one.
MAX_ASPECT_RATIO = 4


@dataclass(frozen=True)
class EvaluationProtocol:
    """How an image is brought to the network.

    Attributes:
        short_side: pixels of the short side after resizing.
        size_divisor: both sides are rounded up to a multiple of it.
        square: resize to short_side × short_side instead, for architectures with a fixed input size.
        image_mean, image_std: per channel, after scaling to 0…1.
        flip_channels: the network expects BGR (MobileViT).
    """

    short_side: int = 512
    size_divisor: int = 32
    square: bool = False
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    flip_channels: bool = False

    @classmethod
    def from_image_processor(cls, image_processor, fixed_size: int | None = None) -> "EvaluationProtocol":
        """The protocol for a model's image processor.

        fixed_size: side in pixels for architectures that take one input size only (`model_utils.fixed_input_size`).
        """
        settings = image_processor.to_dict()
        size = settings.get("size") or {}
        short_side = (
            fixed_size or size.get("shortest_edge") or min(size.get("height") or 512, size.get("width") or 512)
        )
        normalizes = settings.get("do_normalize", False)
        return cls(
            short_side=short_side,
            square=fixed_size is not None,
            image_mean=tuple(settings["image_mean"]) if normalizes else (0.0, 0.0, 0.0),
            image_std=tuple(settings["image_std"]) if normalizes else (1.0, 1.0, 1.0),
            flip_channels=bool(settings.get("do_flip_channel_order")),
        )

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels at which an image of this height and width is shown to the network."""
        if self.square:
            return self.short_side, self.short_side
        scale = min(self.short_side / min(height, width), MAX_ASPECT_RATIO * self.short_side / max(height, width))
        return tuple(
            max(1, math.ceil(int(side * scale + 0.5) / self.size_divisor)) * self.size_divisor
            for side in (height, width)
        )

    def normalize(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 RGB (…, 3, H, W) → float32, scaled to 0…1, then mean and standard deviation taken out per channel."""
        if self.flip_channels:
            image = image.flip(-3)
        return tvF.normalize(tvF.to_dtype(image, torch.float32, scale=True), self.image_mean, self.image_std)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """RGB image of any size → float32 (3, h, w) with (h, w) = `input_size` of the image."""
        tensor = tvF.pil_to_tensor(image)
        size = self.input_size(*tensor.shape[-2:])
        return self.normalize(tvF.resize(tensor, size, interpolation=InterpolationMode.BILINEAR, antialias=True))

    def describe(self) -> str:
        """One line for `eval_protocol`."""
        if self.square:
            resize = f"image resized to {self.short_side}x{self.short_side}"
        else:
            resize = (
                f"short side {self.short_side} (long side at most {MAX_ASPECT_RATIO * self.short_side}), aspect kept, "
                f"sides rounded up to a multiple of {self.size_divisor}"
            )
        return (
            f"{resize}; whole image in one pass; logits resized bilinearly to the original size; one confusion matrix "
            f"over all images, label {IGNORE_INDEX} ignored; no test-time augmentation"
        )


def predict_logits(model, pixel_values: torch.Tensor) -> torch.Tensor:
    """(C_in, h, w) on the model's device → logits (1, num_labels, h', w'), one image at a time.

    A batch would be a little faster on a GPU, but matrix products round differently for different batch sizes, and
    the counts would then depend on who shares a batch with whom.
    """
    return model(pixel_values=pixel_values[None]).logits


def score_logits(logits: torch.Tensor, labels: torch.Tensor, fused_ops: bool = True):
    """Prediction and cross-entropy at the annotation's resolution.

    Args:
        logits: (1, C, h, w) float.
        labels: (1, H, W) integer training ids, `IGNORE_INDEX` ignored.
        fused_ops: strip by strip; else the full (1, C, H, W) tensor is made, as stock transformers does.

    Returns:
        prediction (1, H, W) integer; summed cross-entropy (1,) float; number of valid pixels (1,) int64.
    """
    if fused_ops:
        return upsampled_scores(logits, labels, ignore_index=IGNORE_INDEX)
    upsampled = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    losses = F.cross_entropy(upsampled, labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
    return upsampled.argmax(dim=1), losses.sum(dim=(1, 2)), (labels != IGNORE_INDEX).sum(dim=(1, 2))


def label_map_of(logits: torch.Tensor, size: tuple[int, int], fused_ops: bool = True) -> torch.Tensor:
    """Logits (1, C, h, w) → training ids (H, W) at `size`, the same ids that `score_logits` finds."""
    if fused_ops:
        return upsampled_argmax(logits, size)[0]
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False).argmax(dim=1)[0]


@torch.inference_mode()
def predict_label_map(model, image: Image.Image, protocol: EvaluationProtocol, fused_ops: bool = True) -> torch.Tensor:
    """RGB image → integer tensor (H, W) of training ids at the image's own size, on the CPU.

    The model must be in evaluation mode; it runs on the device where its parameters are.
    """
    pixel_values = protocol.preprocess(image).to(model.device)
    return label_map_of(predict_logits(model, pixel_values), (image.height, image.width), fused_ops).cpu()
