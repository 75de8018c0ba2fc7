"""How far a model's confidence can be believed: the temperature that makes it so, and the expected calibration error.

Guo et al. 2017, *On Calibration of Modern Neural Networks*, arXiv 1706.04599. Probabilities are softmax(logits / T),
which leaves the order of the classes, and so every prediction, as it is. T has the lowest cross-entropy on validation
images. Of several passes (test-time augmentation), whose probabilities are averaged, and of universal models, which
have no logits, the logarithms of the probabilities stand for them (`models.inference.at_temperature`).

Each image gives a fixed number of its labelled pixels, drawn with a fixed seed, one from each stretch of them in the
order of rows, so that memory is bounded and the figures do not depend on batches or processes:

    scores, targets = sample_pixels(logits, labels, prediction, count)     # of each image, as it is evaluated
    calibration = calibrate(scores, targets, valid_pixels)                 # of all of them
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from cli_utils import write_text
from metrics_utils import IGNORE_INDEX
from models.inference import TEMPERATURE, scores_at

# Of an image; and scores of all images together, 16 MiB of float32.
PIXELS_PER_IMAGE, MOST_SCORES = 256, 2**22
LIMITS = (0.05, 20.0)  # of the temperature
BINS = 15  # as in the paper
_CHUNK = 2**18  # scores that are worked on at a time


def pixels_per_image(images: int, num_classes: int) -> int:
    """How many pixels each of so many images gives."""
    return max(1, min(PIXELS_PER_IMAGE, MOST_SCORES // max(1, images * num_classes)))


def sample_pixels(logits, labels: Tensor, prediction: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What is kept of an image.

    Args:
        logits: of `models.inference.protocol_logits`.
        labels, prediction: integer training ids (H, W).
        count: of pixels; some come twice where fewer have a label.

    Returns:
        Scores float32 (count, C), see `models.inference.scores_at`, and targets int32 (count, 2): label and
        prediction. Both labels are `IGNORE_INDEX` where no pixel has one.
    """
    num_classes = logits.shape[1] if isinstance(logits, Tensor) else logits[0].num_classes
    # Evaluations while the model trains ask for none, and are not to pass over the labels, or wait for a device.
    labelled = (labels != IGNORE_INDEX).flatten().nonzero()[:, 0] if count else ()
    if not len(labelled):
        targets = torch.full((count, 2), IGNORE_INDEX, dtype=torch.int32, device=labels.device)
        return torch.zeros(count, num_classes, device=labels.device), targets
    chance = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = ((torch.arange(count) + chance) * (len(labelled) / count)).long().clamp(max=len(labelled) - 1)
    pixels = labelled[drawn.to(labelled.device)]
    width = labels.shape[1]
    scores = scores_at(logits, tuple(labels.shape), pixels // width, pixels % width)
    targets = torch.stack([ids.flatten()[pixels].to(torch.int32) for ids in (labels, prediction)], dim=1)
    return scores.float(), targets


@dataclass(frozen=True)
class Calibration:
    """Attributes:
    temperature: fitted on all images.
    ece: expected calibration error, each half of the images judged with the temperature of the other; None where
        one half has no labelled pixel.
    ece_uncalibrated: that of the probabilities as they are.
    bins, bins_uncalibrated: float (`BINS`, 3), share of the pixels, their mean confidence, and how many are right;
        NaN for the last two where there is none.
    """

    temperature: float
    ece: float | None
    ece_uncalibrated: float
    bins: np.ndarray | None
    bins_uncalibrated: np.ndarray

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """Flat scalars; `PREFIX_ece` is missing where it is not known."""
        values = {"temperature": self.temperature, "ece": self.ece, "ece_uncalibrated": self.ece_uncalibrated}
        return {f"{prefix}_{name}": value for name, value in values.items() if value is not None}


def calibrate(scores: np.ndarray, targets: np.ndarray, valid_pixels: np.ndarray) -> Calibration | None:
    """Of samples of n images in the dataset's order: scores float32 (n, k, C), targets int (n, k, 2), and the number
    of labelled pixels of each, (n,), by which the sampled ones weigh. None without any.

    The halves are the first images and the last, so that frames of one scene, which lie together, rarely judge each
    other.
    """
    images, count, _ = scores.shape
    weights = np.repeat(valid_pixels / max(1, count), count)
    half = np.repeat(np.arange(images) >= images // 2, count)
    used = weights > 0
    scores, targets = (torch.from_numpy(part.reshape(images * count, -1)[used]) for part in (scores, targets))
    weights, half = torch.from_numpy(weights[used]), torch.from_numpy(half[used])
    if not len(weights):
        return None
    fitted = fit_temperature(scores, targets[:, 0], weights)
    before = reliability(scores, targets, weights, torch.ones(len(weights)))
    bins = None
    if half.any() and not half.all():
        first, last = (fit_temperature(scores[part], targets[part, 0], weights[part]) for part in (~half, half))
        bins = reliability(scores, targets, weights, torch.where(half, first, last).float())
    ece = None if bins is None else expected_calibration_error(bins)
    return Calibration(fitted, ece, expected_calibration_error(before), bins, before)


def fit_temperature(scores: Tensor, labels: Tensor, weights: Tensor) -> float:
    """The temperature of the lowest cross-entropy, within `LIMITS`.

    The cross-entropy of softmax(b · scores) is convex in b = 1 / T, so its slope has one zero.

    Args:
        scores: float32 (N, C). labels: integer (N,), 0 to C - 1. weights: float64 (N,).
    """
    chunk = max(1, _CHUNK // scores.shape[1])
    parts = list(zip(scores.split(chunk), labels.long().split(chunk), weights.split(chunk), strict=True))

    def slope(log_temperature: float) -> float:
        factor, total = math.exp(-log_temperature), 0.0
        for part, label, weight in parts:
            expected = ((part * factor).softmax(1) * part).sum(1)
            total += float((weight * (expected - part.gather(1, label[:, None])[:, 0])).sum())
        return total

    low, high = map(math.log, LIMITS)
    if slope(low) <= 0:
        return LIMITS[0]
    if slope(high) >= 0:
        return LIMITS[1]
    return math.exp(brentq(slope, low, high, xtol=1e-6))


def reliability(scores: Tensor, targets: Tensor, weights: Tensor, temperatures: Tensor) -> np.ndarray:
    """The bins of `Calibration`, of equal width in confidence: the probability of the predicted class.

    temperatures: (N,), of each pixel.
    """
    chunk = max(1, _CHUNK // scores.shape[1])
    parts = (values.split(chunk) for values in (scores, targets[:, 1].long(), temperatures))
    confidence = torch.cat(
        [(part / t[:, None]).softmax(1).gather(1, ids[:, None])[:, 0] for part, ids, t in zip(*parts, strict=True)]
    ).double()
    right = (targets[:, 0] == targets[:, 1]).double()
    place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    sums = [torch.bincount(place, weights * values, BINS) for values in (torch.ones_like(right), confidence, right)]
    share, confident, correct = torch.stack(sums).numpy()
    with np.errstate(invalid="ignore"):
        return np.stack([share / share.sum(), confident / share, correct / share], axis=1)


def expected_calibration_error(bins: np.ndarray) -> float:
    """Mean distance of confidence and accuracy, weighted by pixels; of `reliability`."""
    share, confidence, accuracy = bins.T
    return float((share * np.abs(np.nan_to_num(confidence - accuracy))).sum())


def save_temperature(folder: Path, temperature: float) -> None:
    """Adds it to the configuration of the model in a folder, where transformers keeps it and makes no use of it."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {TEMPERATURE: temperature}
    write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")
