"""Showing rare classes more often: `--rare_class_crops`.

A share of the training crops is laid around a pixel of a class drawn at random, in an image drawn among those that
have it. Sources: Hoyer et al., DAFormer, arXiv:2111.14887, section 3.3 (the class is drawn with a probability of
softmax((1 - share of its pixels) / T)); nnU-Net (a third of each batch is made to hold foreground). Ours: T = 0.1, as
at the published 0.01 two or three classes get all crops of a small dataset; and the limit on how often one image is
shown.
"""

import logging
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from cli_utils import shorten
from data.bulk import column_of

logger = logging.getLogger(__name__)

TEMPERATURE = 0.1
# A rare class in very few images must not make the model learn these by heart: how much more often than by turns an
# image may be shown on account of one class.
MOST_REPEATS = 4


@dataclass(frozen=True)
class RareClassCrops:
    """Which crops are laid around which class.

    Attributes:
        share: of the crops; the others are drawn as without it.
        probabilities: of each class, float64 (C,), which add up to 1.
        images: of each class, the indices of the images that have it.
    """

    share: float
    probabilities: np.ndarray
    images: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, class_pixels: np.ndarray, share: float) -> "RareClassCrops":
        """From the pixels of each class in each image, integers (n, C)."""
        counts = np.asarray(class_pixels, np.int64)
        images = tuple(np.flatnonzero(column) for column in counts.T)
        return cls(share, class_probabilities(counts, share), images)

    def draw(self, index: int, rng: np.random.Generator) -> tuple[int, int | None]:
        """Which image to crop in the place of image `index`, and the class to lay the crop around; None for any."""
        if rng.random() >= self.share:
            return index, None
        shown_class = int(rng.choice(len(self.probabilities), p=self.probabilities))
        return int(rng.choice(self.images[shown_class])), shown_class


def class_probabilities(class_pixels: np.ndarray, share: float) -> np.ndarray:
    """How likely each class is to be drawn, float64 (C,): none that never occurs, rare ones most.

    Args:
        class_pixels: integers (n, C).
        share: of the crops that are laid around a class, above 0.

    Raises:
        ValueError: there are no pixels.
    """
    pixels = class_pixels.sum(axis=0)
    if not pixels.any():
        raise ValueError("no pixel is of any class")
    logits = (1 - pixels / pixels.sum()) / TEMPERATURE
    probabilities = np.where(pixels > 0, np.exp(logits - logits.max()), 0.0)
    probabilities /= probabilities.sum()
    # Shown by turns, an image gets 1 / n of the crops; on account of a class in m images, share * p / m of them.
    limits = MOST_REPEATS * (class_pixels > 0).sum(axis=0) / (share * len(class_pixels))
    limited = np.zeros(len(limits), bool)
    while (over := (probabilities > limits * (1 + 1e-9)) & ~limited).any():
        # What is cut off goes to the others, as long as there are any; else all keep their proportions.
        limited |= over
        free = probabilities[~limited].sum()
        rest = 1 - limits[limited].sum()
        if free <= 0 or rest <= 0:
            break
        probabilities = np.where(limited, limits, probabilities * rest / free)
    return probabilities / probabilities.sum()


def rare_class_crops(split: Dataset, share: float, id2label: dict[int, str]) -> RareClassCrops | None:
    """What `--rare_class_crops` asks for, logged; None for none.

    split: prepared training images, whose pixels are counted.
    """
    if not share:
        return None
    crops = RareClassCrops.of(column_of(split, "class_pixels"), share)
    likely = np.argsort(-crops.probabilities, kind="stable").tolist()
    listed = shorten((f"{id2label[i]} {crops.probabilities[i]:.0%}" for i in likely if crops.probabilities[i]), 8)
    logger.info(f"{share:.0%} of the training crops lie around a pixel of a class: {listed}")
    return crops
