"""Photometric distortion: which colours a training image gets is drawn apart from changing them.

    change = draw_colors(rng, num_channels)
    change_colors(pixels, change)                                       # one image, on a CPU, as it is read
    finish_batch({"pixel_values": …, **collated_changes}, protocol)     # a batch of bytes, wherever it lies

Both give the same values. The first is the faster one on a CPU; the second lets an accelerator do the work, which then
is also handed a quarter of the bytes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from data.classes import look_up
from data.preprocessing import EvaluationProtocol

# Colours change in strips of this many rows, so that what they need stays in the processor's cache.
STRIP_ROWS = 64
PIXELS_AT_ONCE = 2**21  # of a batch; what they need is some 200 MB
UNCHANGED = np.arange(256, dtype=np.uint8)


class ColorChange(NamedTuple):
    """What happens to the colours of an image, in this order; by default nothing.

    before, after: tables of what becomes of a channel's value, uint8 (256,). saturation: factor. turn: of the hue, in
    units of 60 degrees, at most 1 either way; both only of RGB.
    """

    before: np.ndarray = UNCHANGED
    saturation: np.float32 = np.float32(1)
    turn: np.float32 = np.float32(0)
    after: np.ndarray = UNCHANGED

    def packed(self) -> dict[str, torch.Tensor]:
        """For an example whose colours change in a batch: "color_tables", uint8 (2, 256), and "color_factors", float32
        (2,)."""
        tables = torch.from_numpy(np.stack([self.before, self.after]))
        return {"color_tables": tables, "color_factors": torch.tensor([self.saturation, self.turn])}


def draw_colors(rng: np.random.Generator, num_channels: int = 3) -> ColorChange:
    """Photometric distortion of an image with so many channels.

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
    saturation = np.float32(drawn(0.5, 1.5, 1.0))
    turn = np.float32(drawn(-36, 36, 0.0) / 60)
    before, after = (contrast[brightness], UNCHANGED) if rng.random() < 0.5 else (brightness, contrast)
    if num_channels < 3 or (saturation == 1 and not turn):
        return ColorChange(after[before])
    return ColorChange(before, saturation, turn, after)


# ---- one image ------------------------------------------------------------------------------------------------------


def change_colors(pixels: np.ndarray, change: ColorChange) -> np.ndarray:
    """uint8 (C, H, W) → the same, contiguous."""
    pixels = np.ascontiguousarray(pixels)
    seen = _seen(len(pixels))
    colors = _recolored(pixels[:seen], change.before)
    if change.turn:
        colors = _change_hue(colors, change.saturation, change.turn)
    elif change.saturation != 1:
        colors = _change_saturation(colors, change.saturation)
    colors = _recolored(colors, change.after)
    return colors if seen == len(pixels) else np.concatenate([colors, pixels[seen:]])


def _seen(num_channels: int) -> int:
    """How many channels, the first ones, are colours."""
    return 3 if num_channels >= 3 else 1


def _recolored(colors: np.ndarray, table: np.ndarray) -> np.ndarray:
    return colors if (table == UNCHANGED).all() else look_up(table, colors)


def _change_saturation(colors: np.ndarray, saturation: np.float32) -> np.ndarray:
    """RGB, uint8 (3, H, W) → the same, with HSV's saturation multiplied, up to 1: what a channel is below the largest,
    its value, grows by that factor. In float32."""
    result = np.empty_like(colors)
    for rows in _strips(colors):
        planes = colors[:, rows]
        value, spread = _value_and_spread(planes)
        peak = value.astype(np.float32)
        factor = np.minimum(spread * saturation, peak)
        factor /= np.maximum(spread, 1)
        for plane, changed in zip(planes, result[:, rows], strict=True):
            below = (value - plane).astype(np.float32)
            below *= factor
            changed[:] = _rounded_difference(peak, below)
    return result


def _change_hue(colors: np.ndarray, saturation: np.float32, turn: np.float32) -> np.ndarray:
    """As `_change_saturation`, and turns the hue by at most 60 degrees.

    In float32, which takes a fifth of the time of Pillow's way to 8-bit HSV and back, and rounds once.
    """
    result = np.empty_like(colors)
    for rows in _strips(colors):
        planes = colors[:, rows]
        value, spread = _value_and_spread(planes)
        peak = value.astype(np.float32)
        new_spread = np.minimum(spread * saturation, peak)  # spread = saturation · value
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


# ---- a batch --------------------------------------------------------------------------------------------------------


def finish_batch(batch: dict[str, torch.Tensor], protocol: EvaluationProtocol) -> dict[str, torch.Tensor]:
    """What examples whose colours were left for later are without that: "pixel_values" changed and normalised, float32
    (B, C, S, S), and "labels" int64. Other batches stay as they are.

    Args:
        batch: of `data_utils.collate_train`, with uint8 "pixel_values", the entries of `ColorChange.packed`, and
            "shown", int64 (B, 2): height and width of what is no padding.
    """
    if "color_tables" not in batch:
        return batch
    batch = dict(batch)
    tables, factors, shown = (batch.pop(name) for name in ("color_tables", "color_factors", "shown"))
    pixels = change_batch(batch["pixel_values"], tables, factors)
    values = protocol.normalize(pixels)
    rows, columns = (torch.arange(side, device=values.device) for side in values.shape[-2:])
    is_padding = (rows >= shown[:, :1])[:, :, None] | (columns >= shown[:, 1:])[:, None]
    return batch | {"pixel_values": values.masked_fill_(is_padding[:, None], 0), "labels": batch["labels"].long()}


def change_batch(pixels: torch.Tensor, tables: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """`change_colors` of each image, uint8 (B, C, H, W), with entries of `ColorChange.packed`; without a look at any
    of them, as an accelerator would have to be waited for."""
    seen, result = _seen(pixels.shape[1]), pixels.clone()
    count = max(1, PIXELS_AT_ONCE // (pixels.shape[-2] * pixels.shape[-1]))
    for colors, table, factor in zip(
        *(tensor.split(count) for tensor in (result[:, :seen], tables, factors)), strict=True
    ):
        changed = _look_up_batch(table[:, 0], colors)
        if seen == 3:
            changed = _change_hue_and_saturation(changed, *factor[:, :, None, None].unbind(1))
        colors.copy_(_look_up_batch(table[:, 1], changed))
    return result


def _look_up_batch(tables: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """uint8 (B, 256), one table for each image of uint8 (B, C, H, W)."""
    firsts = torch.arange(0, tables.numel(), 256, dtype=torch.int32, device=colors.device)
    places = colors.to(torch.int32) + firsts[:, None, None, None]
    return tables.flatten().index_select(0, places.flatten()).view(colors.shape)


def _change_hue_and_saturation(colors: torch.Tensor, saturation: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """`_change_hue` of uint8 (B, 3, H, W), and `_change_saturation` where the hue stays; step by step as there, so
    that all is rounded in the same way. saturation, turn: float32 (B, 1, 1)."""
    red, green, blue = colors.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    peak, spread = value.float(), (value - torch.minimum(torch.minimum(red, green), blue)).float()
    new_spread = torch.minimum(spread * saturation, peak)
    spread = spread.clamp_(min=1)
    below = (value[:, None] - colors).float() * (new_spread / spread)[:, None]
    r, g, b = (plane.float() for plane in (red, green, blue))
    hue = (r - g) / spread + (4 + turn)
    hue = torch.where(value == green, (b - r) / spread + (2 + turn), hue)
    hue = torch.where(value == red, (g - b) / spread + turn, hue)
    distances = (torch.minimum(hue.abs(), 6 - hue), (hue - 2).abs(), torch.minimum((hue - 4).abs(), hue + 2))
    turned = (torch.stack(distances, 1) - 1).clamp_(0, 1) * new_spread[:, None]
    turned, saturation, turn = (peak[:, None] - turned).round_(), saturation[:, None], turn[:, None]
    changed = torch.where(turn != 0, turned, (peak[:, None] - below).round_())
    return torch.where((turn != 0) | (saturation != 1), changed.to(torch.uint8), colors)
