"""What the values in masks tell before any class is known: which there are, how often, and if they can be classes.

masks = read_mask_values(splits)            # one `MaskValues` a mask, cached
if not looks_published("ADE20K", masks): …
doubt = doubt_values(masks)                 # of masks without a list of classes
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value

from cli_utils import UserError, count_of, shorten
from data.image_files import (
    MAX_COLORS,
    FileProblem,
    Problem,
    StoredFile,
    check_sizes,
    describe_problem,
    ids_of,
    packed_colors,
    share_of,
)
from data.preparation import cached_map, count_values
from metrics_utils import IGNORE_INDEX

logger = logging.getLogger(__name__)

COLOR_VALUES = 1 << 24  # added to packed colours, so that none is taken for an annotation value
LARGE = 1 << 24  # pixels, from which on it pays to compare sizes before a mask is decoded
MOST_STEPS = 10  # between values that look spread out
SAMPLE = 200  # masks that tell whether a dataset is the one that its folders are named after
FEATURES = Features(
    {
        "values": List(Value("int64")),
        "pixels": List(Value("int64")),
        "colors": List(Value("int64")),
        "lossy": Value("bool"),
        "nodata": Value("int64"),
        "nodata_class": Value("int64"),
        "problem": Value("string"),
        "detail": Value("string"),
    }
)
# Problems of masks that keep their classes from being told.
UNREADABLE_VALUES = (Problem.PHOTO, Problem.FRACTIONS, Problem.LOSSY_COLORS, Problem.COLORS, Problem.MASK_DEPTH)
LOSSY = "write masks as PNG files from their source; the loss cannot be undone"

# Values that are no classes but mixtures of them: many that are rare, several of them in each mask; or a great many
# in each mask, as in a photo. Masks that people drew hold few: those of ADE20K 10 on average.
RARE_SHARE, MIN_RARE, RARE_PER_MASK, MANY_PER_MASK = 0.001, 8, 4, 24


class MaskValues(NamedTuple):
    """key: split and name. pixels: raw value → pixels. lossy: compressed with loss. nodata, nodata_class: see
    `data.image_files.MaskIds`. problem, detail: why it cannot be read."""

    key: str
    pixels: dict[int, int]
    lossy: bool = False
    nodata: int = 0
    nodata_class: int | None = None
    problem: Problem | None = None
    detail: str = ""


def read_mask_values(
    dataset: DatasetDict,
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
    sample: int | None = None,
) -> list[MaskValues]:
    """What each mask holds. Cached.

    Args:
        cache_dir, num_proc: as for `data.preparation.prepare_pairs`.
        sample: so many masks, evenly spread over all; None: all.
    """
    masks, total = [], sum(map(len, dataset.values()))
    for name, split in dataset.items():
        if sample is not None and sample < total:
            count = -(-sample * len(split) // total)
            split = split.select(np.linspace(0, len(split) - 1, count).round().astype(int).tolist())
        found = cached_map(split, mask_values, FEATURES, {}, cache_dir, num_proc, f"{name}: reading mask values")
        for key, row in zip(split["name"][:], found, strict=True):
            pixels = dict(zip(row["values"], row["pixels"], strict=True))
            problem = row["problem"] and Problem(row["problem"])
            facts = row["lossy"], row["nodata"], row["nodata_class"], problem, f"{name}/{row['detail']}"
            masks.append(MaskValues(f"{name}/{key}", pixels, *facts))
    return masks


def mask_values(image: dict, label: dict, name: str) -> dict:
    """The values of a mask and how often they occur, the packed colours of one with several channels, unless these are
    too many for classes; and why it cannot be read."""
    result = {"values": [], "pixels": [], "colors": [], "lossy": False, "nodata": 0, "nodata_class": None}
    result |= {"problem": None, "detail": None}
    file = StoredFile.of(label, name)
    try:
        header = file.header()
        if header and math.prod(header.size) > LARGE and (other := StoredFile.of(image, name).header()):
            check_sizes(other, header, file)  # a short file may have any number of pixels
        mask = file.open()
        if mask.mode in ("RGB", "RGBA"):
            colors = np.unique(packed_colors(np.asarray(mask)[..., :3])).tolist()
            result["colors"] = colors if len(colors) <= MAX_COLORS else []
        found = ids_of(mask, file)
        counts = count_values(found.ids)
        result |= {"values": list(counts), "pixels": list(counts.values())}
        result |= {"lossy": file.is_lossy(), "nodata": found.nodata, "nodata_class": found.nodata_class}
    except FileProblem as caught:
        result |= {"problem": caught.problem, "detail": caught.detail}
    return result


def annotation_values(
    dataset: DatasetDict,
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
    ignore_values: Collection[int] = (),
) -> set[int]:
    """The distinct raw values of all masks that can be read, to make classes of.

    Args:
        dataset, cache_dir, num_proc: as for `read_mask_values`.
        ignore_values: those that are no class in any case.

    Raises:
        UserError: masks show classes in colours, hold values that cannot be classes, or one that may be one or not.
    """
    masks = read_mask_values(dataset, cache_dir, num_proc)
    for problem in UNREADABLE_VALUES:
        details = [mask.detail for mask in masks if mask.problem is problem]
        if details:
            message, fix = describe_problem(problem, details)
            raise UserError(f"[{problem.value}] {message}: {fix}")
    doubt = doubt_values(masks)
    if doubt:
        raise UserError("[{}] {}: {}".format(*doubt))
    values = set().union(*(mask.pixels for mask in masks))
    stated = [mask.key for mask in masks if mask.nodata_class is not None and mask.nodata_class not in ignore_values]
    # With one class alone there is nothing to learn, so what the masks have besides it is the other one.
    if stated and len(values - {0, IGNORE_INDEX, *ignore_values}) > 1:
        raise UserError(
            f"[mask-nodata-class] {count_of(len(stated), 'mask/masks states/state')} that 0 means no data "
            f"({shorten(stated)}), which programs also write where 0 is the background. Say what it is: "
            "--ignore_values 0 if nothing is known there, --id2label FILE with a name for 0 if it is a class"
        )
    if IGNORE_INDEX in values - {*ignore_values} and _are_spread(values):
        listed = ", ".join(map(str, sorted(values)))
        table = ", ".join(f"{value}: class_{value}" for value in sorted(values))
        raise UserError(
            f"[mask-values-spread] the masks hold {listed}, as of classes that were spread out to be seen, but 255 is "
            f"ignored: --label_map FILE with {{{table}}} makes classes of all, --ignore_values 255 means void"
        )
    return values


def _are_spread(values: set[int]) -> bool:
    """Whether a few values go from 0 to 255 in equal steps."""
    steps = len(values) - 1
    return 1 < steps <= MOST_STEPS and all(abs(value - 255 * i / steps) <= 1 for i, value in enumerate(sorted(values)))


def values_by_image(split: Dataset) -> list[set[int]]:
    """The distinct raw values of each mask; none for one that cannot be used. Cached.

    Where masks show classes in colours, these stand for the values: `COLOR_VALUES` + 24 bits of RGB.
    """
    found = cached_map(split, mask_values, FEATURES, {}, None, None, "reading mask values for the split")
    rows = list(zip(found["values"], found["colors"], strict=True))
    # A grey mask among them, as one without any object, shows colours as well.
    in_colors = any(colors and not values for values, colors in rows)
    return [
        {COLOR_VALUES + color for color in colors} if in_colors and colors else set(values) for values, colors in rows
    ]


# ---- can these be classes? ------------------------------------------------------------------------------------------


def are_binary(masks: Sequence[MaskValues]) -> bool:
    """Whether the values 0 and 255 are all there is, so that 255 is a class and not ignored."""
    return set().union(*(mask.pixels for mask in masks)) == {0, IGNORE_INDEX}


def doubt_values(masks: Sequence[MaskValues]) -> tuple[str, str, str] | None:
    """Kind, message and fix where the values of masks without a list of classes look like anything but classes."""
    masks = [mask for mask in masks if not mask.problem and mask.pixels]
    total = Counter()
    for mask in masks:
        total.update(mask.pixels)
    del total[IGNORE_INDEX]
    if not total or are_binary(masks):
        return None
    rare = {value for value, count in total.items() if count < RARE_SHARE * total.total()}
    per_mask = sum(len(mask.pixels) for mask in masks) / len(masks)
    rare_per_mask = sum(len(mask.pixels.keys() & rare) for mask in masks) / len(masks)
    share = share_of(sum(total[value] for value in rare), total.total())
    message = (
        f"{count_of(len(total), 'class/classes')}, {len(rare)} of which cover less than {RARE_SHARE:.1%} each, "
        f"{share} together, and {per_mask:.0f} in a mask on average: are these classes?"
    )
    lossy = [mask.key for mask in masks if mask.lossy]
    if lossy and (rare or len(total) > MANY_PER_MASK):
        which = f"{len(lossy)} of {count_of(len(masks), 'mask/masks has/have')} lossy compression ({shorten(lossy)})"
        fix = f"{LOSSY}; or name the values that are classes with --id2label FILE"
        return "mask-lossy", f"{which}: {message}", fix
    many_rare = len(rare) >= max(MIN_RARE, len(total) / 2) and rare_per_mask >= RARE_PER_MASK
    if per_mask >= MANY_PER_MASK or many_rare:
        fix = (
            "export masks as PNG and resize with nearest neighbour only; if they are, name them with --id2label FILE; "
            "if these are photos, images and masks are swapped"
        )
        return "mask-values-doubtful", message, fix
    return None


# ---- are they those of a published dataset? -------------------------------------------------------------------------


def looks_published(name: str, masks: Sequence[MaskValues], shift: int = 0) -> bool:
    """Whether the values in masks are spread as those of the dataset that their folders are named after.

    With margins for small parts of it: ten images of ADE20K have some 40 of its 150 values, and one has 10. Lists of
    one's own count up without gaps, from 0 or 1, and mostly end soon.

    Args:
        name: "ADE20K" or "Cityscapes".
        masks: without any value, as of masks in colours, there is nothing to say against it.
        shift: added to the values: 1 for masks of ADE20K that were reduced already.
    """
    pixels, has_void = Counter(), False
    for mask in masks:
        has_void = has_void or IGNORE_INDEX in mask.pixels
        for value, count in mask.pixels.items():
            pixels[value if value == IGNORE_INDEX else value + shift] += count
    if not pixels:
        return True
    del pixels[IGNORE_INDEX]
    return _is_ade20k(pixels) if name == "ADE20K" else _is_cityscapes(pixels, has_void)


def _is_ade20k(pixels: Counter) -> bool:
    """Ids 1 to 150 are sorted by how much they cover, so most pixels have one of the first 50."""
    del pixels[0]
    values = sorted(pixels)
    if len(values) < 6 or values[0] < 0 or not 50 <= values[-1] <= 150:
        return False
    if math.gcd(*(value - values[0] for value in values)) > 1:  # equal steps, as of ids spread out to be seen
        return False
    has_gaps = len(values) < 0.8 * values[-1]
    common = sum(count for value, count in pixels.items() if value <= 50)
    return (has_gaps or values[-1] > 120) and common > 0.6 * pixels.total()


def _is_cityscapes(pixels: Counter, has_void: bool) -> bool:
    """Ids 0 to 18; the car with the camera is void in every image, and road, sidewalk, building, vegetation, sky and
    car cover most of it."""
    values = sorted(pixels)
    common = sum(pixels[value] for value in (0, 1, 2, 8, 10, 13))
    is_spread = len(values) >= 8 and values[0] >= 0 and 11 <= values[-1] <= 18
    return has_void and is_spread and common > 0.6 * pixels.total()
