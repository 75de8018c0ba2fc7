"""Random transforms of an image and its mask together, as SegFormer was trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from data.colors import ColorChange, change_colors, draw_colors
from data.image_files import reduction_for
from data.preprocessing import MAX_ASPECT_RATIO, EvaluationProtocol
from metrics_utils import IGNORE_INDEX


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
        photometric_distortion: whether colours are changed. Not of numbers of more than 8 bits, which are measurements
            and no colours; and `defers_colors` is off then.
        defers_colors: whether the change of colours and the normalisation are left to `data.colors.finish_batch`.
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
    defers_colors: bool = False

    def __post_init__(self):
        object.__setattr__(self, "crop_size", self.protocol.training_crop(self.crop_size))
        if self.protocol.is_wide:
            for name in ("photometric_distortion", "defers_colors"):
                object.__setattr__(self, name, False)

    def __call__(
        self,
        image: Image.Image | torch.Tensor,
        label: Image.Image | np.ndarray,
        rng: np.random.Generator,
        shown_class: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """RGB image, or what `data.image_files.read_channels` gives, (C, H, W), and mask of training ids, uint8 (H, W)
        → float32 "pixel_values" (C, S, S) and uint8 "labels" (S, S), where S is `crop_size`. The image has the size of
        its mask, or a part of it.

        With `defers_colors` "pixel_values" are uint8, and there is what `data.colors.finish_batch` needs.

        shown_class: the crop is laid around a random pixel of this class, if the mask has one.
        """
        pixels = self.protocol.without_nodata(image if isinstance(image, torch.Tensor) else tvF.pil_to_tensor(image))
        label = np.asarray(label)
        size = self._jittered_size(*label.shape, rng)
        mask = ResizedMask(label, size)
        pixels = tvF.resize(pixels, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
        window = self._window_on(shown_class, mask, rng) or self._crop_window(mask, rng)
        # Views until all is turned, as each copy takes as long as a flip.
        both = tvF.crop(pixels, *window).numpy(), mask.crop(*window).numpy()
        if rng.random() < self.flip_probability:
            both = tuple(one[..., ::-1] for one in both)
        # Without these two no number is drawn, so that runs without them stay what they were.
        if self.vertical_flip_probability and rng.random() < self.vertical_flip_probability:
            both = tuple(one[..., ::-1, :] for one in both)
        if self.quarter_turns:
            turns = int(rng.integers(4))
            both = tuple(np.rot90(one, turns, (-2, -1)) for one in both)
        pixels, labels = both[0], self._padded(both[1], IGNORE_INDEX)
        change = draw_colors(rng, len(pixels)) if self.photometric_distortion else ColorChange()
        if self.defers_colors:
            shown = torch.tensor(pixels.shape[1:])
            return {"pixel_values": self._padded(pixels, 0), "labels": labels, "shown": shown} | change.packed()
        return {"pixel_values": self._padded_values(change_colors(pixels, change)), "labels": labels}

    def _padded(self, plane: np.ndarray, fill: int) -> torch.Tensor:
        """(…, h, w) → (…, S, S), contiguous, with `fill` on the right and below."""
        (height, width), side = plane.shape[-2:], self.crop_size
        if height == width == side:
            return torch.from_numpy(np.ascontiguousarray(plane))
        padded = np.full((*plane.shape[:-2], side, side), fill, plane.dtype)
        padded[..., :height, :width] = plane
        return torch.from_numpy(padded)

    def _padded_values(self, pixels: np.ndarray) -> torch.Tensor:
        """(C, h, w) → float32 (C, S, S), normalised, with zeros on the right and below.

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
            ids = mask.crop(top, left, height, width).flatten()
            counts = torch.bincount(ids, minlength=256)[:IGNORE_INDEX]
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

        self._window, self._crop = None, None

    def crop(self, top: int, left: int, height: int, width: int) -> torch.Tensor:
        """uint8 (height, width), contiguous."""
        window = top, left, height, width
        if window != self._window:  # the window that was found good is cut out next
            rows, columns = self.rows[top : top + height], self.columns[left : left + width]
            # `take` twice is faster than any indexing, and leaves rows that lie together.
            self._window, self._crop = window, torch.from_numpy(self.original.take(rows, 0).take(columns, 1))
        return self._crop
