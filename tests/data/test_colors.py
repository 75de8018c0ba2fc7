"""Photometric distortion: its formulas and how often it happens, for single images and for batches alike."""

import colorsys

import numpy as np
import pytest
import torch

from data.augmentation import TrainTransform
from data.colors import PIXELS_AT_ONCE, change_batch, change_colors, draw_colors, finish_batch
from data.preprocessing import EvaluationProtocol
from data_utils import collate_train


def distort_colors(pixels, rng):
    """uint8 (C, H, W), changed as an image and as a batch of one."""
    change = draw_colors(rng, len(pixels))
    changed = torch.from_numpy(change_colors(pixels.numpy(), change))
    packed = change.packed()
    assert torch.equal(
        change_batch(pixels[None], packed["color_tables"][None], packed["color_factors"][None])[0], changed
    )
    return changed


class Fixed:
    """A generator with chosen numbers: each step of the distortion takes one to decide and one for its strength."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)

    def uniform(self, low, high):
        number = self.numbers.pop(0)
        assert low <= number <= high
        return number


ON, OFF = 0.0, 0.9


def distorted(color, *numbers):
    image = torch.tensor(color, dtype=torch.uint8)[:, None, None].expand(3, 2, 5).contiguous()
    result = distort_colors(image, Fixed(*numbers))
    assert result.shape == (3, 2, 5) and result.dtype == torch.uint8
    assert (result == result[:, :1, :1]).all()
    return result[:, 0, 0].tolist()


def test_brightness_and_contrast():
    color = [100, 10, 240]
    assert distorted(color, OFF, OFF, OFF, OFF, OFF) == color
    assert distorted(color, ON, 20.0, OFF, OFF, OFF, OFF) == [120, 30, 255]
    assert distorted(color, ON, -32.0, OFF, OFF, OFF, OFF) == [68, 0, 208]
    assert distorted(color, OFF, ON, 1.5, OFF, OFF, OFF) == [150, 15, 255]
    assert distorted(color, OFF, ON, 0.5, OFF, OFF, ON) == [50, 5, 120]


@pytest.mark.parametrize(
    ("channels", "expected"), [([100], [130]), ([100, 50], [130, 50]), ([100, 100, 100, 7, 9], [130, 130, 130, 7, 9])]
)
def test_distortion_of_other_channels(channels, expected):
    """(100 + 9) · 1.2 = 130.8 in grey, which saturation and hue leave as it is; other bands keep their values."""
    image = torch.tensor(channels, dtype=torch.uint8)[:, None, None].expand(-1, 2, 5).contiguous()
    result = distort_colors(image, Fixed(ON, 9.0, ON, 1.2, ON, 1.5, ON, 30.0, ON))
    assert result[:, 1, 3].tolist() == expected
    assert result.shape == (len(channels), 2, 5) and result.dtype == torch.uint8


def test_contrast_before_or_after_saturation():
    color = [200, 100, 100]
    # Before: 255 (clipped), 150, 150, then grey; after: 200, 200, 200 at saturation 1/2 → 150, so order shows.
    before = distorted(color, OFF, ON, 1.5, ON, 0.5, OFF, ON)
    after = distorted(color, OFF, ON, 1.5, ON, 0.5, OFF, OFF)
    assert before == [255, 202, 202]
    assert after == [255, 225, 225]


@pytest.mark.parametrize("color", [[200, 100, 50], [10, 250, 130], [90, 90, 90], [30, 60, 220]])
@pytest.mark.parametrize(("saturation", "degrees"), [(0.5, 0), (1.5, 0), (1.0, 36), (1.0, -36), (0.7, 20)])
def test_saturation_and_hue_against_colorsys(color, saturation, degrees):
    hue, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    expected = colorsys.hsv_to_rgb((hue + degrees / 360) % 1, min(1.0, s * saturation), v)
    found = distorted(color, OFF, OFF, ON, saturation, ON, float(degrees), OFF)
    np.testing.assert_allclose(found, np.array(expected) * 255, atol=0.51)


@pytest.mark.parametrize(("saturation", "degrees"), [(0.613, 0), (1.487, 0), (1.0, 35.9), (1.21, -36.0), (0.5, 7.3)])
def test_saturation_and_hue_of_many_colors(saturation, degrees):
    """Against HSV in float64, written down the long way."""
    colors = np.random.default_rng(0).integers(0, 256, (3, 150, 40), dtype=np.uint8)
    colors[:, 100:] = colors[:, 100:] // 64 * 64  # greys, ties and extremes
    steps = (OFF, OFF, ON, saturation, *((ON, degrees) if degrees else (OFF,)), OFF)
    found = distort_colors(torch.from_numpy(colors), Fixed(*steps)).numpy()
    red, green, blue = planes = colors.astype(np.float64)
    value, low = planes.max(axis=0), planes.min(axis=0)
    spread = np.where(value > low, value - low, 1)
    hue = np.where(value == green, (blue - red) / spread + 2, (red - green) / spread + 4)
    hue = np.where(value == red, (green - blue) / spread, hue)
    chroma = np.minimum((value - low) * saturation, value)
    for plane, offset in zip(found, (5, 3, 1), strict=True):  # f(n) = v - v·s·max(0, min(k, 4 - k, 1))
        k = (offset + hue + degrees / 60) % 6
        expected = value - chroma * np.clip(np.minimum(k, 4 - k), 0, 1)
        assert np.abs(plane - expected).max() < 0.501


def test_each_distortion_happens_half_of_the_time():
    image = torch.full((3, 1, 1), 100, dtype=torch.uint8)
    rng = np.random.default_rng(0)
    results = torch.stack([distort_colors(image, rng)[:, 0, 0] for _ in range(2000)])
    # A grey pixel shows brightness and contrast alone: neither in a quarter of all cases.
    assert (results == results[:, :1]).all()
    assert (results[:, 0] == 100).float().mean() == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("num_channels", [1, 3, 5])
def test_a_batch_is_changed_like_its_images(num_channels, monkeypatch):
    """50 draws at once, of colours that have ties and extremes among them."""
    monkeypatch.setattr("data.colors.PIXELS_AT_ONCE", 7 * 40 * 30)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, num_channels, 40, 30), dtype=np.uint8)
    pixels[:, :, 20:] = pixels[:, :, 20:] // 85 * 85
    changes = [draw_colors(rng, num_channels) for _ in pixels]
    packed = [change.packed() for change in changes]
    tables, factors = (torch.stack([one[name] for one in packed]) for name in ("color_tables", "color_factors"))
    found = change_batch(torch.from_numpy(pixels), tables, factors)
    for image, change, changed in zip(pixels, changes, found, strict=True):
        assert (change_colors(image, change) == changed.numpy()).all()
    assert PIXELS_AT_ONCE >= 1024**2 and (num_channels == 1 or len({tuple(one) for one in factors.tolist()}) > 20)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"photometric_distortion": False},
        {"quarter_turns": True, "vertical_flip_probability": 0.5},
        {"scale_range": (0.3, 0.7)},  # padded
    ],
)
def test_examples_finished_as_a_batch_are_those_finished_one_by_one(options):
    rng = np.random.default_rng(0)
    protocol = EvaluationProtocol(64, flip_channels=True)
    pairs = [
        (torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8)), rng.integers(0, 3, size, dtype=np.uint8))
        for size in ((70, 90), (64, 64), (200, 50), (33, 128))
    ]
    batches, later = [], []
    for examples, defers in ((batches, False), (later, True)):
        transform = TrainTransform(protocol, defers_colors=defers, **options)
        examples += [transform(*pair, np.random.default_rng(i)) | {"name": str(i)} for i, pair in enumerate(pairs)]
    expected, found = collate_train(batches), collate_train(later)
    assert found["pixel_values"].dtype == found["labels"].dtype == torch.uint8
    kept = {name: tensor.clone() for name, tensor in found.items()}
    finished = finish_batch(found, protocol)
    assert finished.keys() == expected.keys()
    assert all(torch.equal(finished[name], expected[name]) for name in expected)
    assert all(finished[name].dtype == expected[name].dtype for name in expected)
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    assert finish_batch(expected, protocol) is expected
