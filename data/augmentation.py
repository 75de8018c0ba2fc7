"""Random transforms of an image and its mask together, as SegFormer was trained."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from data.preprocessing import MAX_ASPECT_RATIO, EvaluationProtocol
from metrics_utils import IGNORE_INDEX

# Colours change in strips of this many rows, so that what they need stays in the processor's cache.
STRIP_ROWS = 64


@dataclass(frozen=True)
class TrainTransform:
    """SegFormer's training pipeline for an image and its mask: scale jitter, crop, flip, photometric distortion; and,
    where asked for, what pictures without an "up" allow: vertical flip and quarter turns.

    Source: NVlabs/SegFormer, local_configs/_base_/datasets/ade20k_repeat.py, with the mmsegmentation transforms that
    it names.

    Attributes:
        protocol: gives the short side (pixels) that the scale jitter multiplies, and the normalisation.
        crop_size: side of the crop in pixels; None takes the short side, as published.
        scale_range: of the factor on the short side, which is drawn uniformly; the aspect is kept.
        max_class_share: a crop in which one class has this share of the labelled pixels is drawn again, ten times at
            most.
        flip_probability: of the horizontal flip. vertical_flip_probability: of the other one.
        quarter_turns: whether the crop is turned by 0, 90, 180 or 270 degrees, each as likely as the others.
        photometric_distortion: whether colours are changed.

    Raises:
        UserError: a crop that the architecture cannot take.
    """

    protocol: EvaluationProtocol
    scale_range: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    flip_probability: float = 0.5
    photometric_distortion: bool = True
    crop_size: int | None = None
    vertical_flip_probability: float = 0.0
    quarter_turns: bool = False

    def __post_init__(self):
        object.__setattr__(self, "crop_size", self.protocol.training_crop(self.crop_size))

    def __call__(
        self,
        image: Image.Image | torch.Tensor,
        label: Image.Image,
        rng: np.random.Generator,
        shown_class: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """RGB image, or uint8 (C, H, W), and mask of training ids of one size → float32 "pixel_values" (C, S, S) and
        uint8 "labels" (S, S), where S is `crop_size`.

        shown_class: the crop is laid around a random pixel of this class, if the mask has one.
        """
        side = self.crop_size
        pixels = image if isinstance(image, torch.Tensor) else tvF.pil_to_tensor(image)
        mask = tvF.pil_to_tensor(label)
        size = self._jittered_size(label.height, label.width, rng)
        pixels = tvF.resize(pixels, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
        mask = tvF.resize(mask, size, interpolation=InterpolationMode.NEAREST_EXACT)
        window = self._window_on(shown_class, label, mask, rng) or self._crop_window(mask, rng)
        pixels, mask = tvF.crop(pixels, *window), tvF.crop(mask, *window)
        if rng.random() < self.flip_probability:
            pixels, mask = tvF.horizontal_flip(pixels), tvF.horizontal_flip(mask)
        # Without these two no number is drawn, so that runs without them stay what they were.
        if self.vertical_flip_probability and rng.random() < self.vertical_flip_probability:
            pixels, mask = tvF.vertical_flip(pixels), tvF.vertical_flip(mask)
        if self.quarter_turns:
            turns = int(rng.integers(4))
            pixels, mask = (torch.rot90(one, turns, (-2, -1)) for one in (pixels, mask))
        if self.photometric_distortion:
            pixels = distort_colors(pixels, rng)
        padding = [0, 0, side - pixels.shape[-1], side - pixels.shape[-2]]  # right and below
        pixel_values = tvF.pad(self.protocol.normalize(pixels), padding, fill=0.0)
        return {"pixel_values": pixel_values, "labels": tvF.pad(mask, padding, fill=IGNORE_INDEX)[0]}

    def _jittered_size(self, height: int, width: int, rng: np.random.Generator) -> list[int]:
        ratio = rng.uniform(*self.scale_range)
        short, long = (
            int(side * ratio) for side in (self.protocol.short_side, self.protocol.short_side * MAX_ASPECT_RATIO)
        )
        scale = min(short / min(height, width), long / max(height, width))
        return [max(1, int(side * scale + 0.5)) for side in (height, width)]

    def _crop_window(self, mask: torch.Tensor, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop of the mask (1, H, W)."""
        height, width = (min(self.crop_size, side) for side in mask.shape[-2:])
        for _ in range(11):  # the first draw and ten more
            top = int(rng.integers(mask.shape[-2] - height + 1))
            left = int(rng.integers(mask.shape[-1] - width + 1))
            counts = torch.bincount(mask[0, top : top + height, left : left + width].flatten(), minlength=256)
            counts = counts[:IGNORE_INDEX]
            if (counts > 0).sum() > 1 and counts.max() < self.max_class_share * counts.sum():
                break
        return top, left, height, width

    def _window_on(
        self, shown_class: int | None, label: Image.Image, mask: torch.Tensor, rng: np.random.Generator
    ) -> tuple[int, int, int, int] | None:
        """A window of the mask (1, H, W) whose centre is at most a quarter of its sides off a random pixel of a class,
        as far as the borders let it; None where the label, which the mask was resized from, has no such pixel."""
        if shown_class is None:
            return None
        # In the label, as what is small may vanish in a smaller mask.
        places = np.flatnonzero(np.asarray(label) == shown_class)
        if not len(places):
            return None
        place = divmod(int(places[rng.integers(len(places))]), label.width)
        window = []
        for at, side, resized in zip(place, (label.height, label.width), mask.shape[-2:], strict=True):
            length = min(self.crop_size, resized)
            centre = (at + 0.5) * resized / side + rng.uniform(-0.25, 0.25) * length
            window.append((min(max(0, round(centre - length / 2)), resized - length), length))
        (top, height), (left, width) = window
        return top, left, height, width


def distort_colors(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Photometric distortion, uint8 (C, H, W) → the same.

    The first three channels are RGB, and further ones stay as they are; of fewer than three the first is grey, and
    only brightness and contrast show in it.

    In this order and each with probability 1/2: brightness up or down by at most 32, contrast × 0.5…1.5, saturation
    × 0.5…1.5, hue turned by at most 36 degrees; contrast comes last instead of second in half of all cases.
    Source: `PhotoMetricDistortion` of mmsegmentation, hue_delta=18 in OpenCV's unit of two degrees. torchvision's
    RandomPhotometricDistort has other formulas and permutes channels.
    """
    values = np.arange(256, dtype=np.float64)

    def table(gain: float = 1.0, offset: float = 0.0) -> np.ndarray:
        return np.clip(values * gain + offset, 0, 255).astype(np.uint8)

    def drawn(low: float, high: float, neutral: float) -> float:
        return rng.uniform(low, high) if rng.random() < 0.5 else neutral

    brightness = table(offset=drawn(-32, 32, 0.0))
    contrast = table(gain=drawn(0.5, 1.5, 1.0))
    saturation = drawn(0.5, 1.5, 1.0)
    hue = drawn(-36, 36, 0.0)
    contrast_first = rng.random() < 0.5

    seen, others = (pixels[:3], pixels[3:]) if len(pixels) >= 3 else (pixels[:1], pixels[1:])
    colors = seen.expand(3, -1, -1).contiguous().numpy()
    colors = (contrast[brightness] if contrast_first else brightness).take(colors)
    if saturation != 1 or hue:
        colors = _change_saturation_and_hue(colors, saturation, hue)
    if not contrast_first:
        colors = contrast.take(colors)
    distorted = torch.from_numpy(colors[: len(seen)])
    return torch.cat([distorted, others]) if len(others) else distorted


def _change_saturation_and_hue(colors: np.ndarray, saturation: float, degrees: float) -> np.ndarray:
    """RGB, uint8 (3, H, W) → the same, with HSV's saturation multiplied, up to 1, and its hue turned.

    In float32, which takes a third of the time of Pillow's way to 8-bit HSV and back, and rounds once.
    """
    result = np.empty_like(colors)
    for top in range(0, colors.shape[1], STRIP_ROWS):
        rows = slice(top, top + STRIP_ROWS)
        red, green, blue = colors[:, rows].astype(np.float32)
        value = np.maximum(np.maximum(red, green), blue)
        spread = value - np.minimum(np.minimum(red, green), blue)
        new_spread = np.minimum(spread * saturation, value)  # spread = saturation · value
        spread = np.maximum(spread, 1)  # grey is of any hue
        hue = np.where(value == green, (blue - red) / spread + 2, (red - green) / spread + 4)
        hue = np.where(value == red, (green - blue) / spread, hue) + degrees / 60
        for channel, peak in enumerate((0, 2, 4)):  # where on the circle of length 6 it is brightest
            distance = hue - peak
            distance = np.abs(distance - 6 * np.rint(distance / 6))
            result[channel, rows] = np.rint(value - new_spread * np.clip(distance - 1, 0, 1))
    return result
