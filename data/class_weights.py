"""How much each class counts in the loss: weights worked out from pixel counts, or read from a file."""

import csv
import logging
import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from datasets import Dataset

from cli_utils import UserError, nearest, parse_json, read_text
from data.bulk import column_of
from data.listings import read_csv

logger = logging.getLogger(__name__)

WEIGHT_CAP = 10.0  # times the smallest; 1 / ln(1.02 + share) alone goes up to 36 times


def find_class_weights(choice: str | None, split: Dataset | None, id2label: dict[int, str]) -> np.ndarray | None:
    """What `--class_weights` asks for, float64 (num_labels,), logged; None for none.

    Args:
        choice: "auto" or a file.
        split: prepared training images, whose pixels are counted; None where there are none to train on.
    """
    if choice is None or (choice == "auto" and split is None):
        return None
    weights = (
        class_weights(column_of(split, "class_pixels")) if choice == "auto" else read_class_weights(choice, id2label)
    )
    logger.info(
        f"class weights: {', '.join(f'{id2label[i]} {weights[i]:.2f}' for i in np.argsort(-weights).tolist())}"
    )
    return weights


def class_weights(class_pixels: np.ndarray, cap: float = WEIGHT_CAP) -> np.ndarray:
    """Weights that favour rare classes, 1 / ln(1.02 + share of pixels), float64 (C,).

    Cut off at `cap` times the smallest, then scaled so that the classes that occur have a mean of 1; those that never
    occur get 1. Source: Paszke et al., ENet, arXiv:1606.02147, section 5.1.

    Args:
        class_pixels: counts (C,), or (images, C).
        cap: how often a pixel of the rarest class may count for one of the commonest.

    Raises:
        ValueError: there are no pixels.
    """
    pixels = np.asarray(class_pixels, np.float64)
    pixels = pixels.reshape(-1, pixels.shape[-1]).sum(axis=0)
    if not pixels.any():
        raise ValueError("no pixel is of any class")
    weights = 1 / np.log(1.02 + pixels / pixels.sum())
    weights = weights.clip(max=cap * weights.min())
    return np.where(pixels > 0, weights / weights[pixels > 0].mean(), 1.0)


def read_class_weights(path: str | Path, id2label: dict[int, str]) -> np.ndarray:
    """Class weights from a file, float64 (num_labels,).

    The file is JSON, a list in the order of the classes, {name: weight} or {id: weight}; a CSV with the columns name
    and weight; or a .txt of numbers in the order of the classes.

    Raises:
        UserError: the file cannot be read, or its weights are not one positive number (or 0) for each class.
    """
    path = Path(path)
    try:
        text = read_text(path)
        if path.suffix.lower() == ".csv":
            content = _without_repeats((row["name"], row["weight"]) for row in read_csv(text))
        elif path.suffix.lower() == ".txt":
            content = text.split()
        else:
            content = parse_json(text)
    except OSError as error:
        raise UserError(f"--class_weights {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"--class_weights {path} cannot be read as JSON, .csv with the columns name and weight, or .txt: {error}"
        ) from None
    names = [name for _, name in sorted(id2label.items())]
    if isinstance(content, dict):
        if not any(name in content for name in names):
            name_of = {str(index): name for index, name in id2label.items()}
            content = {name_of.get(key, key): weight for key, weight in content.items()}
        unknown = [name for name in content if name not in names]
        missing = [name for name in names if name not in content]
        if unknown or missing:
            what = (
                f"{unknown[0]!r}{nearest(unknown[0], names)} is no class" if unknown else f"{missing[0]!r} is missing"
            )
            raise UserError(f"--class_weights {path}: {what}; it takes one weight for each of {len(names)} classes")
        content = [content[name] for name in names]
    if not isinstance(content, list) or len(content) != len(names):
        found = f"{len(content)} weights" if isinstance(content, list) else type(content).__name__
        raise UserError(f"--class_weights {path} holds {found}; it takes one for each of {len(names)} classes")
    weights = np.full(len(names), np.nan)
    for index, weight in enumerate(content):
        with suppress(TypeError, ValueError, OverflowError):
            weights[index] = float(weight)
        if not (math.isfinite(weights[index]) and weights[index] >= 0):
            raise UserError(
                f"--class_weights {path}: the weight of {names[index]!r} is {weight!r}; it must be a number, 0 or more"
            )
    if not weights.any():
        raise UserError(f"--class_weights {path}: all weights are 0")
    return weights


def _without_repeats(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    content = {}
    for name, weight in pairs:
        if name in content:
            raise ValueError(f"{name!r} comes twice")
        content[name] = weight
    return content
