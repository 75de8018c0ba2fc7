"""Crops around rare classes: how often each class and each image is shown, and where the crop lies."""

import logging

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from data.augmentation import TrainTransform
from data.preprocessing import EvaluationProtocol
from data.rare_classes import MOST_REPEATS, RareClassCrops, class_probabilities, rare_class_crops

# Shares of 45, 30, 15, 6, 3, 0.8 and 0.2 percent in each of many images.
SHARES = np.array([450, 300, 150, 60, 30, 8, 2])


def test_probabilities_of_the_published_formula_at_our_temperature():
    """By hand: softmax((1 - share) / 0.1) is proportional to exp(-share / 0.1)."""
    expected = np.exp(-SHARES / 1000 / 0.1)
    found = class_probabilities(np.tile(SHARES, (100, 1)), 0.5)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-9)
    assert [round(100 * p) for p in found] == [0, 1, 6, 16, 21, 27, 28]


def test_classes_that_never_occur_are_never_drawn():
    assert class_probabilities(np.array([[5, 0, 95]] * 40), 0.5)[1] == 0
    with pytest.raises(ValueError, match="no pixel"):
        class_probabilities(np.zeros((3, 2), int), 0.5)


@pytest.mark.parametrize(("images", "rare_in"), [(200, 1), (200, 3), (1000, 7)])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_no_image_is_shown_too_often_on_account_of_one_class(images, rare_in, share):
    pixels = np.tile([600, 400, 0], (images, 1))
    pixels[:rare_in, 2] = 5
    probabilities = class_probabilities(pixels, share)
    assert probabilities.sum() == pytest.approx(1)
    assert share * probabilities[2] / rare_in <= MOST_REPEATS / images * (1 + 1e-9)
    assert probabilities[2] == pytest.approx(MOST_REPEATS * rare_in / (share * images))


def test_statistics_of_the_draws():
    """20,000 draws: half by turns, the others by the probabilities, each class in the images that have it alone."""
    pixels = np.zeros((40, 3), int)
    pixels[:, 0], pixels[20:, 1], pixels[30:, 2] = 1000, 300, 20
    crops, rng = RareClassCrops.of(pixels, 0.5), np.random.default_rng(0)
    drawn = [crops.draw(7, rng) for _ in range(20000)]
    by_turns = [index for index, shown in drawn if shown is None]
    assert len(by_turns) / len(drawn) == pytest.approx(0.5, abs=0.015) and set(by_turns) == {7}
    for shown in range(3):
        found = np.array([index for index, drawn_class in drawn if drawn_class == shown])
        assert len(found) / 10000 == pytest.approx(crops.probabilities[shown], abs=0.015)
        counts = np.bincount(found, minlength=40)
        assert (counts[pixels[:, shown] == 0] == 0).all()
        assert shown == 0 or (counts[pixels[:, shown] > 0] > 0).all()
    assert crops.probabilities[2] > 3 * crops.probabilities[0]


@pytest.mark.parametrize("short_side", [48, 96, 200])
def test_the_crop_lies_around_a_pixel_of_the_class(short_side):
    """A class of 2 x 2 pixels of 96 x 160: at its own size and above it is in every crop, and not in the middle."""
    label = np.zeros((96, 160), np.uint8)
    label[70:72, 130:132] = 1
    image, label = Image.new("RGB", (160, 96)), Image.fromarray(label)
    transform = TrainTransform(EvaluationProtocol(short_side), (1.0, 1.0), crop_size=32, flip_probability=0.0)
    centres = []
    for seed in range(200):
        found = transform(image, label, np.random.default_rng(seed), shown_class=1)["labels"].numpy()
        assert found.shape == (32, 32)
        if short_side >= 96:
            centres.append(np.argwhere(found == 1).mean(axis=0))
    if centres:
        low, high = np.quantile(centres, [0.02, 0.98], axis=0)
        assert (low < 12).all() and (high > 20).all()  # spread over half of the crop …
        assert (np.array(centres) > 6).all() and (np.array(centres) < 26).all()  # … and no more


def test_a_class_that_the_mask_does_not_have_changes_nothing():
    label = np.arange(64 * 80, dtype=np.uint8).reshape(64, 80) % 7
    image, label = Image.new("RGB", (80, 64)), Image.fromarray(label)
    transform = TrainTransform(EvaluationProtocol(32))
    one, two = (transform(image, label, np.random.default_rng(3), shown_class) for shown_class in (None, 99))
    assert all((one[key] == two[key]).all() for key in one)


def test_what_is_asked_for_is_logged(caplog):
    split = Dataset.from_dict({"class_pixels": [[90, 10, 0]] * 5})
    with caplog.at_level(logging.INFO):
        assert rare_class_crops(split, 0.5, {0: "wall", 1: "lamp", 2: "sky"}).share == 0.5
        assert rare_class_crops(split, 0.0, {}) is None
    (record,) = caplog.records
    assert record.getMessage() == "50% of the training crops lie around a pixel of a class: lamp 100%, wall 0%"
