"""Parting a training split into training and validation: seeded, whole groups together, every class on both sides.

`split_train` is what `--train_val_split`, `--split_groups` and `split.json` do.
"""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import DatasetDict

from cli_utils import UserError, parse_json, shorten, write_text
from data.mask_values import COLOR_VALUES, values_by_image
from metrics_utils import IGNORE_INDEX

logger = logging.getLogger(__name__)


def split_train(
    dataset: DatasetDict,
    fraction: float,
    seed: int = 42,
    split_file: str | os.PathLike | None = None,
    groups: str | None = None,
) -> DatasetDict:
    """Parts the training split in two; rows of both sides are sorted by name, whatever their order was.

    Args:
        dataset: of `data_utils.load_segmentation_dataset`, without a validation split.
        fraction: share of the images that becomes the validation split; at least one image stays on either side.
        seed: decides between splits that are equally good.
        split_file: JSON file that keeps the names of both sides and what they were made with. Where it exists, it
            decides, whatever the seed.
        groups: regular expression; images in whose names it finds the same text (its first group, if it has one) stay
            on one side, as frames of a video or tiles of a photo must.

    Raises:
        UserError: nothing to part, or a validation split is there already; a regular expression that does not fit
            the names; a split file that was made with other settings or for other images.
    """
    if "validation" in dataset:
        raise UserError(
            f"--train_val_split {fraction}: the dataset has a validation split of "
            f"{len(dataset['validation'])} images; leave the flag out"
        )
    if "train" not in dataset:
        raise UserError(f"--train_val_split {fraction}: the dataset has no training split, only {', '.join(dataset)}")
    order = np.argsort(dataset["train"]["name"][:], kind="stable")
    train = dataset["train"].select(order)
    names = train["name"][:]
    keys = names if groups is None else group_keys(names, groups)
    if len(names) == 1:
        raise UserError(f"--train_val_split {fraction}: a training split of 1 image cannot be split")
    if len(set(keys)) == 1:
        raise UserError(f"--split_groups {groups!r}: all {len(names)} images are one group ({keys[0]!r})")

    if split_file is not None and Path(split_file).is_file():
        sides = _read_split_file(Path(split_file), names, fraction, groups)
        logger.info(f"training and validation images as listed in {split_file}")
    else:
        values = values_by_image(train)
        in_validation = stratify(keys, values, fraction, seed)
        sides = {
            "train": np.flatnonzero(~in_validation).tolist(),
            "validation": np.flatnonzero(in_validation).tolist(),
        }
        _warn_of_one_sided_values(values, sides)
        if split_file is not None:
            listed = {side: [names[index] for index in indices] for side, indices in sides.items()}
            content = {"train_val_split": fraction, "seed": seed, "split_groups": groups, **listed}
            Path(split_file).parent.mkdir(parents=True, exist_ok=True)
            write_text(split_file, json.dumps(content, indent=1, ensure_ascii=False))
    outcome = ", ".join(f"{side} {len(indices)}" for side, indices in sides.items())
    if groups is not None:
        outcome += "; groups: " + ", ".join(f"{side} {len({keys[i] for i in sides[side]})}" for side in sides)
    logger.info(f"split by --train_val_split {fraction}: {outcome}")
    parts = {side: train.select(indices) for side, indices in sides.items()}
    return DatasetDict(parts | {name: rows for name, rows in dataset.items() if name != "train"})


def group_keys(names: Sequence[str], pattern: str) -> list[str]:
    """What the first group of a regular expression, or all of it, finds in each name.

    Raises:
        UserError: no regular expression, or names in which it finds nothing.
    """
    try:
        found = [re.search(pattern, name) for name in names]
    except re.error as error:
        raise UserError(f"--split_groups {pattern!r} is no regular expression: {error}") from None
    keys = [match and match[min(1, match.re.groups)] for match in found]
    without = [name for name, key in zip(names, keys, strict=True) if not key]
    if without:
        raise UserError(
            f"--split_groups {pattern!r} finds no group in {len(without)} of {len(names)} names: {shorten(without)}"
        )
    return keys


# ---- stratification -------------------------------------------------------------------------------------------------


def stratify(keys: Sequence[str], values: Sequence[set[int]], fraction: float, seed: int) -> np.ndarray:
    """Chooses validation images so that the classes are divided as the images are, in whole groups.

    Iterative stratification (Sechidis et al., On the Stratification of Multi-Label Data, 2011) over groups, then
    single groups change sides as long as that puts more classes on both sides, or else brings the number of images
    nearer to the one wanted, or else evens out the shares of the classes.

    Args:
        keys: group of each image.
        values: of `data.mask_values.values_by_image`; 255 does not count.
        fraction: wanted share of the images.
        seed: of the order in which groups of equal size are given away.

    Returns:
        bool (number of images,), True for validation.
    """
    groups = {key: row for row, key in enumerate(sorted(set(keys)))}
    columns = {value: 1 + i for i, value in enumerate(sorted(set().union(*values) - {IGNORE_INDEX}))}
    # Images of each group, all of them in the first column, then those with each value.
    images = np.zeros((len(groups), 1 + len(columns)), np.int64)
    for key, found in zip(keys, values, strict=True):
        images[groups[key], [0, *(columns[value] for value in found - {IGNORE_INDEX})]] += 1
    wanted = min(max(round(fraction * len(keys)), 1), len(keys) - 1)
    chosen = _give_away(images, wanted / len(keys), np.random.default_rng(seed))
    chosen = _improve(chosen, images, wanted)
    return chosen[[groups[key] for key in keys]]


def _give_away(images: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """The rarest class first, each of its groups goes where most of the class is still wanted, large groups first."""
    order = rng.permutation(len(images))
    order = order[np.argsort(-images[order, 0], kind="stable")]
    wanted = images.sum(axis=0) * np.array([[1 - fraction], [fraction]])
    chosen, left = np.zeros(len(images), bool), np.ones(len(images), bool)
    while left.any():
        groups_left = (images[left] > 0).sum(axis=0)
        rarest = np.where(groups_left > 0, groups_left, len(images) + 1).argmin()
        for group in order[left[order] & (images[order, rarest] > 0)]:
            side = max((0, 1), key=lambda side: (wanted[side, rarest], wanted[side, 0]))
            wanted[side] -= images[group]
            chosen[group], left[group] = side == 1, False
    return chosen


def _improve(chosen: np.ndarray, images: np.ndarray, wanted: int) -> np.ndarray:
    """The best single change after the other until none helps. (The first column counts as a class that all have.)"""
    totals = images.sum(axis=0)
    divisible = (images > 0).sum(axis=0) > 1
    chosen = chosen.copy()
    while True:
        # Validation images by class: now, and if one group, or another, changed sides.
        changes = np.where(chosen, -1, 1)[:, None] * images
        counts = images[chosen].sum(axis=0) + np.vstack([np.zeros_like(totals), changes])
        one_sided = ((counts == 0) | (counts == totals))[:, divisible].sum(axis=1)
        off_size = np.abs(counts[:, 0] - wanted)
        unevenness = np.abs(counts / totals - wanted / totals[0]).sum(axis=1)
        best = np.lexsort((unevenness, off_size, one_sided))[0]
        if best == 0:
            return chosen
        chosen[best - 1] ^= True


def _warn_of_one_sided_values(values: list[set[int]], sides: dict[str, list[int]]) -> None:
    found = {side: set().union(*(values[i] for i in indices)) - {IGNORE_INDEX} for side, indices in sides.items()}
    for side, other in (("train", "validation"), ("validation", "train")):
        alone = sorted(found[side] - found[other])
        if alone:
            logger.warning(
                f"{len(alone)} of {len(found['train'] | found['validation'])} annotation values occur in {side} only: "
                f"{shorten(map(_described, alone), 8)}"
            )


def _described(value: int) -> str:
    return str(value) if value < COLOR_VALUES else f"#{value - COLOR_VALUES:06x}"


# ---- the file -------------------------------------------------------------------------------------------------------


def _read_split_file(path: Path, names: list[str], fraction: float, groups: str | None) -> dict[str, list[int]]:
    """Rows of both sides, in the file's order."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        made_with = {"train_val_split": content["train_val_split"], "split_groups": content.get("split_groups")}
        sides = {side: list(map(str, content[side])) for side in ("train", "validation")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); delete it to split anew") from None
    for flag, value in {"train_val_split": fraction, "split_groups": groups}.items():
        if made_with[flag] != value:
            raise UserError(
                f"--{flag} is {value}, but {path} was made with {made_with[flag]}; "
                "give that value, or delete the file, or give another --output_dir"
            )
    listed = [*sides["train"], *sides["validation"]]
    twice = [name for name, count in Counter(listed).items() if count > 1]
    if twice:
        raise UserError(f"{path} is damaged ({shorten(twice)}: listed twice); delete it to split anew")
    changed = sorted(set(names) ^ set(listed))
    if changed:
        raise UserError(
            f"{path} does not fit the dataset: {len(changed)} names are in one of the two only "
            f"({shorten(changed)}); delete it to split anew, or give another --output_dir"
        )
    position = {name: index for index, name in enumerate(names)}
    return {side: [position[name] for name in listed] for side, listed in sides.items()}
