"""Preparing a dataset once: every image and mask decoded, labels reduced, pixels counted; cached, and not judged.

    prepared, records = prepare_pairs(dataset, class_map)

`prepare_one` does for streams what `prepare_pairs` does for datasets. What is wrong with a pair stands in its
`PairRecord`, for `checks.judge`.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import PIL
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from PIL import Image

from cli_utils import one_line
from data.bands import measure
from data.bulk import KILLED, cache_key, processes_for
from data.classes import ClassMap
from data.image_files import (
    EIGHT_BITS,
    FileProblem,
    Problem,
    ReadBy,
    StoredFile,
    Turned,
    check_sizes,
    fit_mask,
    open_bands,
    open_picture,
    orientation_of,
    rgb_view,
    upright_size,
)
from data.stored_masks import encode_mask
from metrics_utils import IGNORE_INDEX

logger = logging.getLogger(__name__)

# Part of every cache key: raised whenever what is read from a file, or made of it, changes.
PREPARATION_VERSION = 7
IMAGES_PER_PROCESS = 500  # starting more processes would cost more than it saves
ROWS_IN_MEMORY = 100  # before they are written


@dataclass(frozen=True)
class PairRecord:
    """What is known about an image and its mask once both are decoded. Unknown values keep their default.

    Attributes:
        split, name: as in the dataset.
        image_file, mask_file: paths, or names where the dataset keeps bytes.
        width, height: of the image as it is seen, upright, in pixels.
        image_mode, mask_mode: Pillow's, as stored. orientation: the image's EXIF entry; 1 is upright.
        mask_size: width and height of the mask as stored.
        lossy: the mask's file is compressed with loss.
        raw_values: value in the mask → pixels.
        read_by, turned: what was done to read these.
        nodata, nodata_class, near_colors: see `data.image_files.MaskIds`.
        image_dtype: of the numbers in the image; bands: of others than 8 bits, see `data.bands.measure`.
        problem: why the pair cannot be used. problem_file: the file to blame. detail: its name and what was found.
    """

    split: str
    name: str
    image_file: str
    mask_file: str
    width: int = 0
    height: int = 0
    image_mode: str = ""
    mask_mode: str = ""
    orientation: int = 1
    mask_size: tuple[int, int] = (0, 0)
    lossy: bool = False
    raw_values: dict[int, int] = field(default_factory=dict)
    read_by: ReadBy = ReadBy.IDS
    turned: Turned = Turned.BY_ENTRY
    nodata: int = 0
    nodata_class: int | None = None
    near_colors: int = 0
    image_dtype: str = EIGHT_BITS
    bands: tuple[tuple[float, ...], ...] = ()
    problem: Problem | None = None
    problem_file: str = ""
    detail: str = ""

    @property
    def key(self) -> str:
        return f"{self.split}/{self.name}"


class DecodedPair(NamedTuple):
    """picture, mask: as stored. ids: raw values of the mask (H, W), upright like the image as it is seen."""

    picture: Image.Image
    mask: Image.Image
    ids: np.ndarray


def prepare_pairs(
    dataset: DatasetDict,
    class_map: ClassMap,
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
    num_channels: int = 3,
    known: Mapping[str, Mapping[str, dict]] | None = None,
) -> tuple[DatasetDict, list[PairRecord]]:
    """Decodes every image and mask once, and keeps the masks as training ids. Raises nothing about the data.

    The work is cached in files named after all that it depends on: the version of this code, the class map, the
    libraries and the data (paths, sizes and times of local files), so that a second run and other processes only
    read it.

    Args:
        dataset: of `data_utils.load_segmentation_dataset`.
        cache_dir: default: `segmentation_prepared` in the cache folder of `datasets`.
        num_proc: processes; default: one for every 500 images of a split, as far as there are CPUs, at most 8.
        num_channels: of the images, see `data.image_files.read_channels`.
        known: split → name → row of `prepared_row`, of pairs that were decoded already.

    Returns:
        Columns "image" (as it was), "label" (PIL L of training ids, upright like the image; None for a pair that
        cannot be used, or whose mask holds values that belong to no class), "name", "height" and "width" (pixels),
        "class_pixels" (num_labels integers), "image_dtype" and "bands" (see `PairRecord`); and the record of every
        pair, in the order of the splits.
    """
    features = Features(
        {
            "label": datasets.Image(decode=False),
            "height": Value("int32"),
            "width": Value("int32"),
            "class_pixels": List(Value("int64"), length=class_map.num_labels),
            "image_dtype": Value("string"),
            "bands": List(List(Value("float64"))),
            "record": Value("string"),
        }
    )
    result, records = {}, []
    for name, split in dataset.items():
        options = {"split": name, "class_map": class_map, "num_channels": num_channels}
        more = {"known": (known or {}).get(name, {})}
        rows = cached_map(split, prepare_example, features, options, cache_dir, num_proc, f"{name}: preparing", **more)
        records += map(_record, rows["record"][:])
        rows = rows.remove_columns("record").cast_column("label", datasets.Image())
        # Next to the images, which are neither copied nor encoded anew.
        result[name] = concatenate_datasets([split.select_columns(["image", "name"]), rows], axis=1)
    return DatasetDict(result), records


def prepare_one(
    image: StoredFile, mask: StoredFile, class_map: ClassMap, num_channels: int = 3
) -> tuple[PairRecord, np.ndarray | None, Image.Image | None]:
    """A single training example as `prepare_pairs` makes it: its record; its mask of training ids, uint8 (H, W), or
    None; and the image as stored, or None where the pair cannot be used.

    num_channels: of the image.
    """
    record, decoded = decode_pair("train", image, mask, class_map, num_channels)
    return record, _label(record, decoded, class_map), decoded and decoded.picture


# ---- the cache ------------------------------------------------------------------------------------------------------


def undecoded(split: Dataset) -> Dataset:
    """Images as {"bytes", "path"}."""
    split = split.cast_column("image", datasets.Image(decode=False))
    return split.cast_column("label", datasets.Image(decode=False))


def prepared_folder(cache_dir: str | os.PathLike | None = None) -> Path:
    """Where prepared data lie; None: in the cache folder of `datasets`."""
    return Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "segmentation_prepared")


def cached_map(
    split: Dataset,
    function: Callable,
    features: Features,
    options: dict,
    cache_dir,
    num_proc,
    description: str,
    before: Callable[[], None] | None = None,
    **more,
) -> Dataset:
    """The columns that `function(image, label, name, **options, **more)` makes, read from a file where there is one.

    options: what the result depends on, besides the files. more: what it does not depend on.
    before: called where there is no file yet.
    """
    split, cache_dir = undecoded(split), prepared_folder(cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    key = _cache_key(split, function, options)
    if num_proc is None:
        num_proc = processes_for(len(split), IMAGES_PER_PROCESS)

    def read_or_make(num_proc: int = num_proc) -> Dataset:
        result = split.map(
            function,
            input_columns=["image", "label", "name"],
            remove_columns=split.column_names,
            features=features,
            fn_kwargs=options | more,
            cache_file_name=str(cache_dir / f"{key}.arrow"),
            load_from_cache_file=True,
            new_fingerprint=key,
            num_proc=num_proc if num_proc > 1 else None,
            writer_batch_size=ROWS_IN_MEMORY,
            desc=description,
        )
        if len(result) != len(split):
            raise pa.ArrowInvalid(f"{len(result)} rows instead of {len(split)}")
        return result

    # `datasets` moves a file into place when it is complete, so it takes a full disk or a crash to damage one.
    cached = list(cache_dir.glob(f"{key}*.arrow"))
    if before is not None and not cached:
        before()
    try:
        return read_or_make()
    except RuntimeError as error:  # of `datasets`, which has no kind of its own for it
        if "abruptly died" not in str(error):
            raise
        logger.warning(KILLED)
        return read_or_make(num_proc=1)
    except (pa.ArrowException, OSError) as error:
        if not cached:
            raise
        logger.warning(f"{cached[0]} is damaged ({one_line(error)}) and is made anew")
        for path in cached:
            path.unlink()
        return read_or_make()


def _cache_key(split: Dataset, function: Callable, options: dict) -> str:
    """Everything that the result of `cached_map` depends on. split: undecoded."""
    facts = [PREPARATION_VERSION, datasets.__version__, PIL.__version__, function.__name__, options, split["name"][:]]
    table = split.select_columns(["image", "label"]).flatten()
    files = [path for column in ("image", "label") for path in table[f"{column}.path"][:]]
    if any(table.data.column(f"{column}.bytes").null_count < len(split) for column in ("image", "label")):
        # The images are inside Arrow files; `datasets` knows which, and which of their rows these are.
        facts.append(split._fingerprint)
        files = [entry["filename"] for entry in split.cache_files]
    return cache_key(*facts, files=files)


# ---- one pair -------------------------------------------------------------------------------------------------------


def decode_pair(
    split: str, image: StoredFile, mask: StoredFile, class_map: ClassMap | None = None, num_channels: int = 3
) -> tuple[PairRecord, DecodedPair | None]:
    """Opens both files of a pair; None where the pair cannot be used, of which the record then says why.

    Args:
        class_map: gives the colours by which masks in colours are read.
        num_channels: of the image.
    """
    facts = {"image_file": image.location, "mask_file": mask.location}
    try:
        # What does not fit is told without decoding it: a file of a few kilobytes may have a gigabyte of pixels.
        headers = image.header(), mask.header()
        if None not in headers:
            width, height = headers[0].upright
            facts |= {"image_mode": headers[0].mode, "width": width, "height": height}
            facts |= {"mask_mode": headers[1].mode, "mask_size": headers[1].size}
            check_sizes(*headers, mask)
        bands = open_bands(image, num_channels)
        if bands is None:
            picture = open_picture(image, num_channels)
        else:
            picture = rgb_view(bands)
            facts |= {"image_dtype": image.band_dtype(), "bands": tuple(map(tuple, measure(bands)))}
        width, height = upright_size(picture)
        facts |= {"image_mode": picture.mode, "width": width, "height": height}
        facts |= {"orientation": orientation_of(picture)}
        stored = mask.open()
        facts |= {"mask_mode": stored.mode, "mask_size": stored.size, "lossy": mask.is_lossy()}
        found, turned = fit_mask(picture, stored, mask, class_map)
    except FileProblem as caught:
        facts |= {"problem": caught.problem, "problem_file": caught.file.location, "detail": caught.detail}
        return PairRecord(split, image.name, **facts), None
    facts |= {"raw_values": count_values(found.ids), "turned": turned}
    facts |= {name: getattr(found, name) for name in ("read_by", "nodata", "nodata_class", "near_colors")}
    return PairRecord(split, image.name, **facts), DecodedPair(picture, stored, found.ids)


def count_values(ids: np.ndarray) -> dict[int, int]:
    """Value → pixels."""
    flat = ids.reshape(-1)
    # Masks are areas, so there are far fewer runs of equal values than pixels; of noise there are as many.
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1])[: flat.size])
    values, lengths = flat[starts], np.diff(starts, append=flat.size)
    if values.dtype == np.uint8:  # as most are, and far faster than `unique`
        counts = np.bincount(values, weights=lengths)  # floats, exact below 2^53
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, place = np.unique(values, return_inverse=True)
        counts = np.bincount(place, weights=lengths)
    return dict(zip(values.tolist(), counts.astype(np.int64).tolist(), strict=True))


def _label(record: PairRecord, decoded: DecodedPair | None, class_map: ClassMap) -> np.ndarray | None:
    """Training ids, uint8 (H, W); None for a pair that cannot be used, or with values that belong to no class."""
    if decoded is None or not record.raw_values.keys() <= class_map.value_ids.keys():
        return None
    return class_map.reduce(decoded.ids, list(record.raw_values))


def prepare_example(
    image: dict, label: dict, name: str, split: str, class_map: ClassMap, num_channels: int, known: Mapping[str, dict]
) -> dict:
    """One row of `prepare_pairs`, unless it is known already."""
    if name in known:
        return known[name]
    pair = decode_pair(split, StoredFile.of(image, name), StoredFile.of(label, name), class_map, num_channels)
    return prepared_row(*pair, class_map)


def prepared_row(record: PairRecord, decoded: DecodedPair | None, class_map: ClassMap) -> dict:
    """What `prepare_pairs` keeps of a pair: its label, its pixels by training id, and its record."""
    facts = {fact.name: getattr(record, fact.name) for fact in fields(PairRecord)}  # not those of a closer look
    row = {"label": None, "record": json.dumps(facts)}
    row |= {name: facts[name] for name in ("height", "width", "image_dtype", "bands")}
    label = _label(record, decoded, class_map)
    if label is not None:
        row["label"] = {"bytes": encode_mask(label), "path": None}
    return row | {"class_pixels": class_pixels(record, class_map).tolist()}


def class_pixels(record: PairRecord, class_map: ClassMap) -> np.ndarray:
    """Pixels by training id, int64 (num_labels,)."""
    counts, value_ids = np.zeros(class_map.num_labels, np.int64), class_map.value_ids
    for value, pixels in record.raw_values.items():
        if value_ids.get(value, IGNORE_INDEX) != IGNORE_INDEX:
            counts[value_ids[value]] += pixels
    return counts


def _record(text: str) -> PairRecord:
    """From what `prepared_row` made of it."""
    facts = json.loads(text)
    facts["raw_values"] = {int(value): pixels for value, pixels in facts["raw_values"].items()}
    facts |= {"mask_size": tuple(facts["mask_size"]), "bands": tuple(map(tuple, facts["bands"]))}
    facts |= {"problem": facts["problem"] and Problem(facts["problem"])}
    return PairRecord(**(facts | {"read_by": ReadBy(facts["read_by"]), "turned": Turned(facts["turned"])}))
