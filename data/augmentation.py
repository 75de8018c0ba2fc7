"""Random transforms of an image and its mask together, as SegFormer was trained."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from data.image_files import reduction_for
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
        reduced_decoding: whether JPEG files far larger than any crop needs are decoded at a part of their size, see
            `reduction`.

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
    reduced_decoding: bool = True

    def __post_init__(self):
        object.__setattr__(self, "crop_size", self.protocol.training_crop(self.crop_size))

    def __call__(
        self,
        image: Image.Image | torch.Tensor,
        label: Image.Image | np.ndarray,
        rng: np.random.Generator,
        shown_class: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """RGB image, or uint8 (C, H, W), and mask of training ids, uint8 (H, W) → float32 "pixel_values" (C, S, S) and
        uint8 "labels" (S, S), where S is `crop_size`. The image has the size of its mask, or a part of it.

        shown_class: the crop is laid around a random pixel of this class, if the mask has one.
        """
        pixels = image if isinstance(image, torch.Tensor) else tvF.pil_to_tensor(image)
        label = np.asarray(label)
        size = self._jittered_size(*label.shape, rng)
        mask = ResizedMask(label, size)
        pixels = tvF.resize(pixels, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
        window = self._window_on(shown_class, mask, rng) or self._crop_window(mask, rng)
        pixels, mask = tvF.crop(pixels, *window), mask.crop(*window)
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
        return {"pixel_values": self._padded_values(pixels), "labels": self._padded(mask, IGNORE_INDEX)}

    def _padded(self, plane: torch.Tensor, fill: int) -> torch.Tensor:
        """uint8 (…, h, w) → (…, S, S), contiguous, with `fill` on the right and below."""
        (height, width), side = plane.shape[-2:], self.crop_size
        if height == width == side:
            return plane.contiguous()
        padded = plane.new_full((*plane.shape[:-2], side, side), fill)
        padded[..., :height, :width] = plane
        return padded

    def _padded_values(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (C, h, w) → float32 (C, S, S), normalised, with zeros on the right and below.

        Padded first, as bytes: what the network gets is written once.
        """
        values = self.protocol.normalize(self._padded(pixels, 0))
        values[:, pixels.shape[-2] :] = 0
        values[:, :, pixels.shape[-1] :] = 0
        return values

    def reduction(self, height: int, width: int) -> int:
        """By how much an image of this size may be reduced as it is decoded: 1, 2, 4 or 8. What is left is no smaller
        than the scale jitter makes it at most, so that nothing is ever enlarged on account of it."""
        if not self.reduced_decoding:
            return 1
        return reduction_for(
            (height, width), size_at_scale(height, width, self.protocol.short_side, self.scale_range[1])
        )

    def _jittered_size(self, height: int, width: int, rng: np.random.Generator) -> list[int]:
        return size_at_scale(height, width, self.protocol.short_side, rng.uniform(*self.scale_range))

    def _crop_window(self, mask: "ResizedMask", rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop of the mask."""
        height, width = (min(self.crop_size, side) for side in mask.shape)
        for _ in range(11):  # the first draw and ten more
            top = int(rng.integers(mask.shape[0] - height + 1))
            left = int(rng.integers(mask.shape[1] - width + 1))
            counts = torch.bincount(mask.crop(top, left, height, width).flatten(), minlength=256)[:IGNORE_INDEX]
            if (counts > 0).sum() > 1 and counts.max() < self.max_class_share * counts.sum():
                break
        return top, left, height, width

    def _window_on(
        self, shown_class: int | None, mask: "ResizedMask", rng: np.random.Generator
    ) -> tuple[int, int, int, int] | None:
        """A window of the mask whose centre is at most a quarter of its sides off a random pixel of a class, as far as
        the borders let it; None where the mask has no such pixel."""
        if shown_class is None:
            return None
        # In the mask as it was, as what is small may vanish in a smaller one.
        places = np.flatnonzero(mask.original == shown_class)
        if not len(places):
            return None
        place = divmod(int(places[rng.integers(len(places))]), mask.original.shape[1])
        window = []
        for at, side, resized in zip(place, mask.original.shape, mask.shape, strict=True):
            length = min(self.crop_size, resized)
            centre = (at + 0.5) * resized / side + rng.uniform(-0.25, 0.25) * length
            window.append((min(max(0, round(centre - length / 2)), resized - length), length))
        (top, height), (left, width) = window
        return top, left, height, width


def size_at_scale(height: int, width: int, short_side: int, ratio: float) -> list[int]:
    """Height and width in pixels of an image whose short side becomes `short_side` times a ratio, and the long one at
    most `MAX_ASPECT_RATIO` times that."""
    short, long = (int(side * ratio) for side in (short_side, short_side * MAX_ASPECT_RATIO))
    scale = min(short / min(height, width), long / max(height, width))
    return [max(1, int(side * scale + 0.5)) for side in (height, width)]


class ResizedMask:
    """A mask resized with nearest neighbour (`InterpolationMode.NEAREST_EXACT`), of which only what is looked at is
    computed.

    Args:
        original: the mask, uint8 (H, W). size: its new height and width, `shape`.
    """

    def __init__(self, original: np.ndarray, size: Sequence[int]):
        self.original, self.shape = original, tuple(size)
        # torch's own choice of pixels, rounding included: as coordinates resized in its way.
        self.rows, self.columns = (
            F.interpolate(torch.arange(old, dtype=torch.float32)[None, None], new, mode="nearest-exact")[0, 0]
            .long()
            .numpy()
            for old, new in zip(original.shape, size, strict=True)
        )

    def crop(self, top: int, left: int, height: int, width: int) -> torch.Tensor:
        """uint8 (height, width)."""
        rows, columns = self.rows[top : top + height], self.columns[left : left + width]
        return torch.from_numpy(self.original[rows][:, columns])


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
    before, after = (contrast[brightness], table()) if rng.random() < 0.5 else (brightness, contrast)

    seen, others = (pixels[:3], pixels[3:]) if len(pixels) >= 3 else (pixels[:1], pixels[1:])
    colors = seen.contiguous().numpy()
    if len(seen) == 1 or (saturation == 1 and not hue):  # grey has neither
        colors = _look_up(after[before], colors)
    else:
        colors = _look_up(before, colors)
        colors = _change_hue(colors, saturation, hue) if hue else _change_saturation(colors, saturation)
        colors = _look_up(after, colors)
    distorted = torch.from_numpy(colors)
    return torch.cat([distorted, others]) if len(others) else distorted


def _look_up(table: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """`table[colors]` for uint8 (256,) and uint8 of any shape, contiguous; in half the time of `take`."""
    if (table == np.arange(256)).all():
        return colors
    return np.frombuffer(bytearray(colors).translate(table.tobytes()), np.uint8).reshape(colors.shape)


def _change_saturation(colors: np.ndarray, saturation: float) -> np.ndarray:
    """RGB, uint8 (3, H, W) → the same, with HSV's saturation multiplied, up to 1: what a channel is below the largest,
    its value, grows by that factor. In float32."""
    result = np.empty_like(colors)
    for rows in _strips(colors):
        planes = colors[:, rows]
        value, spread = _value_and_spread(planes)
        peak = value.astype(np.float32)
        factor = np.minimum(spread * np.float32(saturation), peak)
        factor /= np.maximum(spread, 1)
        for plane, changed in zip(planes, result[:, rows], strict=True):
            below = (value - plane).astype(np.float32)
            below *= factor
            changed[:] = _rounded_difference(peak, below)
    return result


def _change_hue(colors: np.ndarray, saturation: float, degrees: float) -> np.ndarray:
    """As `_change_saturation`, and turns the hue by at most 60 degrees.

    In float32, which takes a fifth of the time of Pillow's way to 8-bit HSV and back, and rounds once.
    """
    result, turn = np.empty_like(colors), np.float32(degrees / 60)
    for rows in _strips(colors):
        planes = colors[:, rows]
        value, spread = _value_and_spread(planes)
        peak = value.astype(np.float32)
        new_spread = np.minimum(spread * np.float32(saturation), peak)  # spread = saturation · value
        np.maximum(spread, 1, out=spread)  # grey is of any hue
        red, green, blue = planes.astype(np.float32)
        # On a circle of length 6: red at 0, green at 2, blue at 4. From -1.6 to 5.6 here.
        hue = (red - green) / spread + (4 + turn)
        np.copyto(hue, (blue - red) / spread + (2 + turn), where=value == planes[1])
        np.copyto(hue, (green - blue) / spread + turn, where=value == planes[0])
        # The way round the circle counts where it may be shorter than 2; what is further off has least of a channel.
        distances = (
            np.minimum(np.abs(hue), 6 - hue),
            np.abs(hue - 2),
            np.minimum(np.abs(hue - 4), hue + 2),
        )
        for distance, changed in zip(distances, result[:, rows], strict=True):
            distance -= 1
            np.maximum(distance, 0, out=distance)
            np.minimum(distance, 1, out=distance)
            distance *= new_spread
            changed[:] = _rounded_difference(peak, distance)
    return result


def _strips(colors: np.ndarray) -> Iterator[slice]:
    return (slice(top, top + STRIP_ROWS) for top in range(0, colors.shape[1], STRIP_ROWS))


def _value_and_spread(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of RGB, uint8 (3, h, w): the largest channel, uint8, and how far the smallest is below it, float32; (h, w)."""
    red, green, blue = planes
    value = np.maximum(np.maximum(red, green), blue)
    return value, (value - np.minimum(np.minimum(red, green), blue)).astype(np.float32)


def _rounded_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float32 a - b, rounded, in the memory of b."""
    np.subtract(a, b, out=b)
    return np.rint(b, out=b)
