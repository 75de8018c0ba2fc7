"""The evaluation protocol: at which sizes an image is shown to the network, whole or in windows, and how normalised.

The protocol of the SegFormer paper and of mmsegmentation: aspect kept, short side `short_side`, long side at most four
times that, both sides rounded up to a multiple of 32 (14, 28 or 64 where the architecture takes no other), the whole
image in one pass, logits resized bilinearly to the original size, then argmax. Where asked for, also as published: a
sliding window instead of the whole image, and test-time augmentation, the average over several scales and mirror
images. `models.inference` builds the protocol of a run and carries it out.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from cli_utils import UserError
from data.image_files import EIGHT_BITS
from metrics_utils import IGNORE_INDEX

# Source: SegFormer's test pipeline, img_scale=(2048, 512): the long side may be four times the short one.
MAX_ASPECT_RATIO = 4


@dataclass(frozen=True)
class EvaluationProtocol:
    """How an image is brought to the network.

    Attributes:
        short_side: pixels of the short side after resizing.
        size_divisor: both sides are rounded up to a multiple of it, which the architecture decides
            (`models.geometry`).
        square: resize to short_side × short_side instead, for architectures that take squares only.
        image_mean, image_std: per channel, after scaling to 0…1; of other numbers than 8 bits, as they are.
        image_dtype: of the numbers in image files, see `data.bands`.
        flip_channels: the network expects BGR (MobileViT).
        slide_crop, slide_stride: side and step in pixels of a square window that slides over the resized image, logits
            averaged where windows overlap; None shows the whole image. Published for Cityscapes: short side 1024,
            window 1024, stride 768, and three quarters of the window is the default. With `square` the window is the
            input that the architecture takes.
        scales: test-time augmentation, factors on the short side; published: 0.75, 0.875, 1, 1.125, 1.25 (NVlabs) or
            0.5, 0.75, 1, 1.25, 1.5, 1.75 (mmsegmentation).
        flip: test-time augmentation, every scale also mirrored.
        even_windows: windows lie at equal distances, as few as cover a side, instead of at steps of `slide_stride`
            (EoMT).
        output: what the network gives and how it is resized: "logits", to the original size; "full logits", to the
            size that was shown and then to the original one (UperNet); "queries", masks to the size that was shown,
            and the pixels' scores that they add up to from there to the original one (`models.mask_scores`).
        threshold: for models of two classes, the probability above which a pixel is given the second one. It moves
            predictions alone, never the loss.
        temperature: for `models.calibration`; it moves confidences alone, never predictions.

    Raises:
        UserError: on values that do not fit together.
    """

    short_side: int = 512
    size_divisor: int = 32
    square: bool = False
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    image_dtype: str = EIGHT_BITS
    flip_channels: bool = False
    slide_crop: int | None = None
    slide_stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    even_windows: bool = False
    output: str = "logits"
    threshold: float = 0.5
    temperature: float = 1.0

    def __post_init__(self):
        crop, divisor, scales = self.slide_crop, self.size_divisor, _numbers(self.scales)
        if crop is not None and self.slide_stride is None:
            object.__setattr__(self, "slide_stride", crop * 3 // 4)
        stride, side = self.slide_stride, f"{self.short_side}x{self.short_side}"
        if not (isinstance(self.temperature, int | float) and 0 < self.temperature < math.inf):
            problem = f"the model's segmentation_temperature is {self.temperature!r:.100}; it is a positive number"
        elif not 0 < self.threshold < 1:
            problem = f"--threshold is {self.threshold:g}; it is a probability between 0 and 1, as in 0.5"
        elif not self.scales or min(self.scales) <= 0:
            problem = f"--eval_scales is {scales or 'empty'}; it takes one or more positive factors, as in 0.75 1 1.25"
        elif crop is None and stride is not None:
            problem = f"--slide_stride {stride} is for a sliding window: add --slide_crop"
        elif crop is None and self.square and set(self.scales) != {1.0}:
            problem = (
                f"--eval_scales {scales}: this architecture takes images of {side} pixels only; leave the flag out, "
                f"or add --slide_crop {self.short_side} and scales of at least 1"
            )
        elif crop is None:
            return
        elif crop < 1 or crop % divisor:
            nearest = max(1, round(crop / divisor)) * divisor
            problem = f"--slide_crop is {crop}; it must be a positive multiple of {divisor}, as in {nearest}"
        elif not 1 <= stride <= crop:
            problem = (
                f"--slide_stride is {stride}; it must be from 1 to --slide_crop ({crop}), or pixels between two "
                "windows would be seen by neither"
            )
        elif self.square and crop != self.short_side:
            problem = (
                f"--slide_crop is {crop}, but this architecture takes images of {side} pixels only: give --slide_crop "
                f"{self.short_side}"
            )
        elif self.square and min(self.scales) < 1:
            problem = (
                f"--eval_scales {scales}: at scale {min(self.scales):g} the image is smaller than the {side} pixels "
                "that this architecture takes; give scales of at least 1"
            )
        else:
            return
        raise UserError(problem)

    @classmethod
    def from_image_processor(cls, image_processor, **options) -> "EvaluationProtocol":
        """The protocol for a model's image processor.

        Args:
            options: attributes that no image processor knows, as the architecture and the flags have them, and those
                that are to differ from what it says.
        """
        settings = image_processor.to_dict()
        normalizes, num_channels = settings.get("do_normalize", False), num_channels_of(image_processor)
        mean = settings["image_mean"] if normalizes else (0.0,) * num_channels
        std = settings["image_std"] if normalizes else (1.0,) * num_channels
        # Some scale to 0…2 or the like before they normalise: (f x - mean) / std of x in 0…1.
        dtype = settings.get("image_dtype", EIGHT_BITS)
        most = 255 if dtype == EIGHT_BITS else 1
        factor = most * (settings.get("rescale_factor") or 1 / 255) if settings.get("do_rescale", True) else 1.0
        if abs(factor - 1) > 1e-6:
            mean, std = ([value / factor for value in values] for values in (mean, std))
        said = {
            "short_side": short_side_of(image_processor),
            "image_mean": tuple(mean),
            "image_std": tuple(std),
            "image_dtype": dtype,
            "flip_channels": bool(settings.get("do_flip_channel_order")),
        }
        return cls(**said | options)

    @property
    def num_channels(self) -> int:
        """Of the images; 3 is RGB."""
        return len(self.image_mean)

    @property
    def is_wide(self) -> bool:
        """Whether images have other numbers than 8 bits."""
        return self.image_dtype != EIGHT_BITS

    @property
    def _shown(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation on a scale from black (0) to white (1), which other numbers than 8 bits do not
        have; there two standard deviations lie on either side of the mean."""
        return ((0.5,), (0.25,)) if self.is_wide else (self.image_mean, self.image_std)

    def without_nodata(self, image: torch.Tensor) -> torch.Tensor:
        """float32 (C, H, W) with the mean of the band in the place of NaN; uint8 as it is.

        Before anything is resized, so that what is unknown does not spread.
        """
        if not self.is_wide:
            return image
        mean = self._rgb_or_bgr(torch.tensor(self.image_mean)[:, None, None])
        return torch.where(image.isnan(), mean, image)

    def training_crop(self, asked: int | None) -> int:
        """Side of the crop to train on, in pixels: `short_side`, or what was asked for.

        Raises:
            UserError: the architecture cannot take what was asked for.
        """
        if asked is None:
            return self.short_side
        if self.square and asked != self.short_side:
            raise UserError(
                f"--crop_size is {asked}, but this architecture is trained on all of its input, {self.short_side}x"
                f"{self.short_side} pixels: leave it out, or change --image_size as well"
            )
        if asked < 1 or asked % self.size_divisor:
            nearest = max(1, round(asked / self.size_divisor)) * self.size_divisor
            raise UserError(
                f"--crop_size is {asked}; it must be a positive multiple of {self.size_divisor}, as in {nearest}"
            )
        return asked

    def input_size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
        """Height and width in pixels to which an image of this height and width is resized.

        scale: one of `scales`. As published, it multiplies the limits on both sides, which are then whole pixels.
        """
        if self.square and not self.slide_crop:
            return self.short_side, self.short_side
        short_side, long_side = (int(side * scale) for side in (self.short_side, MAX_ASPECT_RATIO * self.short_side))
        factor = min(short_side / min(height, width), long_side / max(height, width))
        # A window that is all an architecture takes has to fit in, whatever the image's aspect.
        least = self.slide_crop if self.square else self.size_divisor
        return tuple(
            max(least, math.ceil(int(side * factor + 0.5) / self.size_divisor) * self.size_divisor)
            for side in (height, width)
        )

    def windows(self, side: int) -> list[slice]:
        """The pixels, along one side of the resized image, that each window covers.

        Source: `slide_inference` of mmsegmentation: the last window is pulled back to the border, and a side shorter
        than the window is covered whole.
        """
        if self.slide_crop is None:
            return [slice(0, side)]
        if self.even_windows:
            # Source: tue-mps/eomt, training/lightning_module.py, `window_imgs_semantic`.
            count = math.ceil(side / self.slide_crop)
            overlap = (count * self.slide_crop - side) / max(1, count - 1)
            starts = [int(index * (self.slide_crop - overlap)) for index in range(count)]
            return [slice(start, min(side, start + self.slide_crop)) for start in starts]
        count = max(0, math.ceil((side - self.slide_crop) / self.slide_stride)) + 1
        stops = [min(side, i * self.slide_stride + self.slide_crop) for i in range(count)]
        return [slice(max(0, stop - self.slide_crop), stop) for stop in stops]

    def normalize(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 (…, C, H, W) → float32, scaled to 0…1, then mean and standard deviation taken out per channel; other
        numbers, float32, are not scaled before that.

        C is `num_channels`, the first three being RGB.
        """
        if self.is_wide:
            return tvF.normalize(self._rgb_or_bgr(image), self.image_mean, self.image_std)
        scaled = tvF.to_dtype(self._rgb_or_bgr(image), torch.float32, scale=True)
        return tvF.normalize(scaled, self.image_mean, self.image_std, inplace=True)

    def denormalize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize`: float32 (…, C, H, W) → uint8, to be looked at."""
        mean, std = (torch.tensor(values)[:, None, None] for values in self._shown)
        return self._rgb_or_bgr(tvF.to_dtype((pixel_values * std + mean).clamp(0, 1), torch.uint8, scale=True))

    def rendered(self, picture: torch.Tensor) -> torch.Tensor:
        """A picture to try a model with, uint8 (C, H, W) → numbers of the kind that it takes, black and white being
        two standard deviations off the mean."""
        if not self.is_wide:
            return picture
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        return (picture / 255 - 0.5) * 4 * std + mean

    def brightness(self, pixel_values: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        """Mean over all pixels and channels of what `preprocess` made, before it was normalised: 0 (black) to 1."""
        first = pixel_values if isinstance(pixel_values, torch.Tensor) else pixel_values[0]
        mean, std = (torch.tensor(values, device=first.device) for values in self._shown)
        return (first.mean(dim=(1, 2)) * std + mean).mean()

    def _rgb_or_bgr(self, image: torch.Tensor) -> torch.Tensor:
        """From the order of the image's first three channels to that of the network's, or back."""
        if not self.flip_channels:
            return image
        return torch.cat([image[..., :3, :, :].flip(-3), image[..., 3:, :, :]], dim=-3)

    def preprocess(self, image: Image.Image | torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """RGB image, or what `data.image_files.read_channels` gives, (C, H, W), of any size → float32 (C, h, w) with
        (h, w) = `input_size` of the image; a list if `scales` are several, one for each. Windows and mirror images are
        made by `protocol_logits`."""
        tensor = self.without_nodata(image if isinstance(image, torch.Tensor) else tvF.pil_to_tensor(image))
        sizes = [self.input_size(*tensor.shape[-2:], scale) for scale in self.scales]
        resized = [
            self.normalize(tvF.resize(tensor, size, interpolation=InterpolationMode.BILINEAR, antialias=True))
            for size in sizes
        ]
        return resized[0] if len(resized) == 1 else resized

    def describe(self) -> str:
        """One line for `eval_protocol`."""
        if self.square and not self.slide_crop:
            resize = f"image resized to {self.short_side}x{self.short_side}"
        else:
            resize = (
                f"short side {self.short_side} (long side at most {MAX_ASPECT_RATIO * self.short_side}), aspect kept"
            )
            if self.size_divisor > 1:
                resize += f", sides rounded up to a multiple of {self.size_divisor}"
        if self.slide_crop and self.square:
            resize += f"{' and to' if self.size_divisor > 1 else ', sides'} at least {self.slide_crop}"
        view = "whole image in one pass"
        scores = "scores" if self.output == "queries" else "logits"
        if self.slide_crop:
            places = "at equal distances" if self.even_windows else f"with stride {self.slide_stride}"
            view = (
                f"sliding window {self.slide_crop}x{self.slide_crop} {places}, {scores} averaged where windows overlap"
            )
        augmentation = "no test-time augmentation"
        if self.flip or self.scales != (1.0,):
            passes = len(self.scales) * (1 + self.flip)
            augmentation = (
                f"test-time augmentation: probabilities averaged over scales {_numbers(self.scales)}"
                f"{', each also mirrored' if self.flip else ''} ({passes} pass{'es' if passes > 1 else ''})"
            )
        threshold = "" if self.threshold == 0.5 else f"; second class above a probability of {self.threshold:g}"
        resized = {
            "logits": "logits resized bilinearly to the original size",
            "full logits": "logits resized bilinearly to the size shown, then to the original size",
            "queries": "masks resized bilinearly to the size shown, the scores they add up to (softmax of classes x "
            "sigmoid of masks) to the original size; the loss is -log of the label's share of the scores",
        }[self.output]
        return (
            f"{resize}; {view}; {resized}; one confusion matrix "
            f"over all images, label {IGNORE_INDEX} ignored; {augmentation}{threshold}"
        )


def short_side_of(image_processor) -> int:
    """Short side in pixels to which an image processor brings images; 512 where it does not say."""
    size = image_processor.to_dict().get("size") or {}
    return size.get("shortest_edge") or min(size.get("height") or 512, size.get("width") or 512)


def num_channels_of(image_processor) -> int:
    """How many channels the images have; mean values say so even where nothing is normalised."""
    return len(image_processor.to_dict().get("image_mean") or (0, 0, 0))


def _numbers(scales: Iterable[float]) -> str:
    return " ".join(f"{scale:g}" for scale in scales)
