"""Bands of more than 8 bits: of what kind they are, and the mean and standard deviation by which they are normalised.

    rows = measure(bands)                        # of one image, kept when a dataset is prepared
    found = band_statistics(prepared)            # of a dataset; None where all images have 8 bits

Numbers of satellites, elevation models and microscopes have no fixed range, so there is no black and white to scale
them to: what a network sees is (value - mean) / standard deviation, both over all training pixels that have a value.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from cli_utils import UserError, shorten
from data.image_files import EIGHT_BITS

TRAIN = "train"


class BandStatistics(NamedTuple):
    """dtype: of the files, numpy's name. mean, std: of every band, over all training pixels that have a value; std is
    that of the pixels themselves (divided by their number). Both empty without training images."""

    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def measure(bands: np.ndarray) -> list[list[float]]:
    """float32 (C, H, W), NaN where nothing is known → of every band the number of values, their mean, and the sum of
    the squares of what they differ from it; in float64."""
    rows = []
    for band in bands:
        values = band[~np.isnan(band)].astype(np.float64)
        mean = float(values.mean()) if len(values) else 0.0
        rows.append([float(len(values)), mean, float(np.square(values - mean).sum())])
    return rows


def combined(images: Sequence[Sequence[Sequence[float]]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What `measure` gave of several images → mean and standard deviation of every band.

    Source: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.

    Raises:
        UserError: a band without a single value.
    """
    count, mean, squares = np.moveaxis(np.array(images, np.float64), -1, 0)  # each (images, C)
    total = count.sum(axis=0)
    if not total.all():
        raise UserError(
            f"band {int(np.flatnonzero(total == 0)[0]) + 1} has no value in any training image: all pixels are nodata"
        )
    of_all = (count * mean).sum(axis=0) / total
    std = np.sqrt((squares + count * np.square(mean - of_all)).sum(axis=0) / total)
    # A band that is the same everywhere says nothing, and becomes zero.
    return tuple(of_all.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def band_statistics(splits: Mapping[str, Dataset]) -> BandStatistics | None:
    """Of a prepared dataset; None where its images have 8 bits a channel.

    Raises:
        UserError: images of several kinds.
    """
    kinds = {split: rows["image_dtype"][:] for split, rows in splits.items()}
    found = sorted({kind for listed in kinds.values() for kind in listed})
    if len(found) > 1:
        raise UserError(f"images have bands of {shorten(found, 9)}; all must be of one kind")
    if found in ([], [EIGHT_BITS]):
        return None
    measured = splits[TRAIN]["bands"][:] if TRAIN in splits else []
    return BandStatistics(found[0], *(combined(measured) if len(measured) else ((), ())))
