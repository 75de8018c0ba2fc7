"""Temperature and calibration error: planted ones are found, and pixels are sampled as they are scored."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories.models import noise, save_model

from data.preprocessing import EvaluationProtocol
from models.calibration import (
    BINS,
    LIMITS,
    calibrate,
    expected_calibration_error,
    fit_temperature,
    pixels_per_image,
    reliability,
    sample_pixels,
)
from models.inference import _full_probabilities, at_temperature, predict_ids, predict_with_confidence, protocol_logits
from models.loading import load_trained_model


def planted(pixels, factor, num_classes=4, seed=0):
    """Scores that are `factor` times as large as they should be, and targets drawn from what they should be."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (pixels, num_classes)).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (rng.random((pixels, 1)) > probabilities.cumsum(1)).sum(1).clip(max=num_classes - 1)
    return factor * logits, np.stack([labels, logits.argmax(1)], axis=1).astype(np.int32)


@pytest.mark.parametrize("factor", [1 / 3, 1, 3])
def test_a_planted_temperature_is_found(factor):
    scores, targets = planted(40_000, factor)
    valid = np.full(40, 5000)
    found = calibrate(scores.reshape(40, 1000, 4), targets.reshape(40, 1000, 2), valid)
    assert found.temperature == pytest.approx(factor, rel=0.03)
    assert found.ece < 0.015
    assert (found.ece_uncalibrated > 0.05) == (factor != 1)
    assert set(found.metrics()) == {"eval_temperature", "eval_ece", "eval_ece_uncalibrated"}


def test_no_other_temperature_is_better():
    scores, targets = (torch.from_numpy(part) for part in planted(3000, 2.5))
    weights = torch.rand(3000, dtype=torch.float64)

    def loss(temperature):
        return (weights * F.cross_entropy(scores / temperature, targets[:, 0].long(), reduction="none")).sum()

    found = fit_temperature(scores, targets[:, 0], weights)
    assert loss(found) < min(loss(0.99 * found), loss(1.01 * found))


@pytest.mark.parametrize(("right", "limit"), [(1.0, LIMITS[0]), (0.0, LIMITS[1])])
def test_what_is_always_right_or_always_wrong_has_a_limit(right, limit):
    scores = torch.tensor([[1.0, 0.0]]).repeat(10, 1)
    labels = torch.full((10,), int(1 - right))
    assert fit_temperature(scores, labels, torch.ones(10, dtype=torch.float64)) == limit


def test_calibration_error_is_that_of_the_paper():
    scores, targets = planted(500, 2)
    weights, temperatures = np.random.default_rng(1).random(500), np.repeat([1.0, 2.0], 250)
    probabilities = np.exp(scores / temperatures[:, None].astype(np.float32))
    probabilities /= probabilities.sum(1, keepdims=True)
    expected = 0.0
    for m in range(1, BINS + 1):
        confidence = probabilities[np.arange(500), targets[:, 1]]
        inside = (confidence > (m - 1) / BINS) & (confidence <= m / BINS)
        if inside.any():
            right = np.average(targets[inside, 0] == targets[inside, 1], weights=weights[inside])
            gap = abs(right - np.average(confidence[inside], weights=weights[inside]))
            expected += weights[inside].sum() / weights.sum() * gap
    tensors = [torch.from_numpy(part) for part in (scores, targets, weights, temperatures.astype(np.float32))]
    assert expected_calibration_error(reliability(*tensors)) == pytest.approx(expected, abs=1e-6)


def test_each_half_is_judged_with_the_temperature_of_the_other():
    """The first half is three times as sure as it should be, the last half as it should be."""
    scores, targets = (np.concatenate(parts) for parts in zip(planted(5000, 3), planted(5000, 1, seed=1), strict=True))
    found = calibrate(scores.reshape(10, 1000, 4), targets.reshape(10, 1000, 2), np.full(10, 1000))
    each = [torch.from_numpy(part) for part in (scores, targets)]
    temperatures = torch.cat([torch.ones(5000), torch.full((5000,), 3.0)])
    expected = expected_calibration_error(reliability(*each, torch.ones(10_000, dtype=torch.float64), temperatures))
    assert found.ece == pytest.approx(expected, abs=0.02) and found.ece > 0.1


def test_pixels_weigh_as_the_images_are_large():
    scores, targets = (np.concatenate(parts) for parts in zip(planted(2000, 3), planted(2000, 1, seed=1), strict=True))
    shapes = (scores.reshape(4, 1000, 4), targets.reshape(4, 1000, 2))
    assert calibrate(*shapes, np.array([10**6, 10**6, 1, 1])).temperature == pytest.approx(3, rel=0.05)
    assert calibrate(*shapes, np.array([0, 0, 9, 9])).temperature == pytest.approx(1, rel=0.05)


def test_what_cannot_be_known_is_left_out():
    scores, targets = planted(100, 2)
    one = calibrate(scores[None], targets[None], np.array([100]))
    assert set(one.metrics()) == {"eval_temperature", "eval_ece_uncalibrated"}
    assert calibrate(scores[None], targets[None], np.array([0])) is None


def test_samples_are_bounded():
    assert pixels_per_image(10, 3) == 256
    assert pixels_per_image(2000, 150) * 2000 * 150 <= 2**22
    assert pixels_per_image(10**9, 150) == 1


# ---- sampled pixels -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_trained_model(str(save_model(tmp_path_factory.mktemp("model"))))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output": "full logits"},
        {"slide_crop": 64, "slide_stride": 40},
        {"scales": (0.5, 1.0), "flip": True, "slide_crop": 64},
    ],
    ids=str,
)
def test_sampled_pixels_have_the_probabilities_that_are_scored(model, monkeypatch, options):
    monkeypatch.setattr("models.upsampling.CPU_TILE_BYTES_PER_THREAD", 2**13)
    image, labels = noise(150, 220), torch.randint(0, 3, (150, 220), generator=torch.Generator().manual_seed(0))
    labels[:40] = 255
    protocol = EvaluationProtocol(128, **options)
    with torch.inference_mode():
        logits = protocol_logits(model, protocol.preprocess(image), protocol)
        prediction = predict_ids(model, image, protocol)
        scores, targets = sample_pixels(logits, labels, prediction, 500)
        passes = [logits] if isinstance(logits, torch.Tensor) else logits
        full = [
            F.interpolate(one, (150, 220), mode="bilinear").softmax(1)
            if isinstance(one, torch.Tensor)
            else _full_probabilities(one, (150, 220))
            for one in passes
        ]
    expected = sum(full)[0] / len(full)
    # Every pixel that was drawn is found again by its label, its prediction and its probabilities.
    inside = [part[..., 40:, :].flatten(-2) for part in (labels, prediction, expected)]
    distance = (inside[2].T[None] - scores.softmax(1)[:, None]).abs().amax(-1)
    nearest = distance.argmin(1)
    assert distance.amin(1).max() < 1e-4
    assert (targets[:, 0] == inside[0][nearest]).float().mean() > 0.9  # a few pixels at the edge are alike
    assert (targets[:, 1] == inside[1][nearest]).all()
    assert (nearest.diff() > 0).float().mean() > 0.9  # one of every stretch
    again = sample_pixels(logits, labels, prediction, 500)
    assert torch.equal(again[0], scores) and torch.equal(again[1], targets)


def test_an_image_without_labels_gives_none(model):
    labels = torch.full((20, 30), 255)
    scores, targets = sample_pixels(torch.randn(1, 3, 5, 8), labels, torch.zeros(20, 30, dtype=torch.uint8), 7)
    assert scores.shape == (7, 3) and (targets == 255).all()
    labels[3, 4] = 2
    _, targets = sample_pixels(torch.randn(1, 3, 5, 8), labels, torch.ones(20, 30, dtype=torch.uint8), 7)
    assert (targets == torch.tensor([2, 1])).all()


def test_temperature_moves_confidences_and_leaves_classes(model):
    image = noise(60, 90)
    for options in ({}, {"flip": True}):
        plain, cool = (EvaluationProtocol(64, temperature=t, **options) for t in (1.0, 2.5))
        (ids, before), (same, after) = (predict_with_confidence(model, image, protocol) for protocol in (plain, cool))
        assert torch.equal(ids, same) and torch.equal(ids, predict_ids(model, image, plain))
        assert after.float().mean() < before.float().mean() - 10
    logits = torch.randn(50, 4)
    found = at_temperature(logits.softmax(1), 2.5)
    torch.testing.assert_close(found, (logits / 2.5).softmax(1))
