"""Preparing a dataset once: every image and mask decoded and checked, labels reduced, pixels counted; cached.

`prepare_dataset` is what runs need, `prepare_one` what streams do; `annotation_values` and `values_by_image` look at
the masks alone.
"""

import hashlib
import io
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import PIL
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from PIL import Image

from cli_utils import UserError, one_line, shorten
from data.classes import ClassMap
from data.image_files import (
    BY_CHANNEL,
    BY_COLOR,
    BY_INDEX,
    BY_PALETTE,
    COLOR_LIST,
    MAX_COLORS,
    PROBLEMS,
    FileProblem,
    file_name,
    ids_of,
    is_lossy_file,
    open_image,
    packed_colors,
    read_pair,
)
from metrics_utils import IGNORE_INDEX

logger = logging.getLogger(__name__)

# Part of every cache key: raised whenever what is read from a file, or made of it, changes.
PREPARATION_VERSION = 1
# One process for so many images; starting more would cost more than it saves.
IMAGES_PER_PROCESS, MAX_PROCESSES = 500, 8
EXPORT_AGAIN = "lossy masks have mixed colours; export them again as PNG files, resized with nearest neighbour only"
SAMPLED_MASKS = 20  # whose colours are listed where there is no list of classes
COLOR_VALUES = 1 << 24  # added to packed colours, so that none is taken for an annotation value
MASK_VALUES = Features({"raw_values": List(Value("int64")), "colors": List(Value("int64"))})


def prepare_dataset(
    dataset: DatasetDict,
    class_map: ClassMap,
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
    num_channels: int = 3,
) -> DatasetDict:
    """Decodes every image and mask once, checks them, and keeps the masks as PNGs of training ids.

    The work is cached in files named after all that it depends on: this code, the label map, the libraries and the
    data (paths, sizes and times of local files), so that a second run and other processes only read it.

    Args:
        dataset: of `data_utils.load_segmentation_dataset`.
        cache_dir: default: `segmentation_prepared` in the cache folder of `datasets`.
        num_proc: processes; default: one for every 500 images of a split, as far as there are CPUs, at most 8.
        num_channels: of the images, see `data.image_files.read_channels`.

    Returns:
        Columns "image" (as it was), "label" (PIL L of training ids, upright like the image), "name", "height" and
        "width" (pixels), "class_pixels" (num_labels integers).

    Raises:
        UserError: for the unusable files of all splits together.
    """
    features = Features(
        {
            "label": datasets.Image(decode=False),
            "height": Value("int32"),
            "width": Value("int32"),
            "class_pixels": List(Value("int64"), length=class_map.num_labels),
            "raw_values": List(Value("int64")),
            "note": Value("string"),
            "problem": Value("string"),
            "detail": Value("string"),
        }
    )
    options = {"class_map": class_map, "num_channels": num_channels}
    prepared = {
        name: cached_map(split, prepare_example, features, options, cache_dir, num_proc, f"{name}: preparing")
        for name, split in dataset.items()
    }
    _raise_problems(dataset, prepared, class_map)
    result = {}
    for name, split in dataset.items():
        _log_oddities(name, split, prepared[name], class_map)
        kept = prepared[name].select_columns(["label", "height", "width", "class_pixels"])
        kept = kept.cast_column("label", datasets.Image())
        # Side by side with the images, which are neither copied nor encoded anew.
        result[name] = concatenate_datasets([split.select_columns(["image", "name"]), kept], axis=1)
    return DatasetDict(result)


def annotation_values(
    dataset: DatasetDict, cache_dir: str | os.PathLike | None = None, num_proc: int | None = None
) -> set[int]:
    """The distinct raw values of all masks that can be read. Arguments as for `prepare_dataset`; cached as well.

    Raises:
        UserError: masks show classes in colours, or are pictures of two classes with the values 0 and 255.
    """
    values: set[int] = set()
    unread = []
    for name, split in dataset.items():
        found = cached_map(split, mask_values, MASK_VALUES, {}, cache_dir, num_proc, f"{name}: reading mask values")
        values.update(*found["raw_values"])
        rows = undecoded(split)
        unread += [(rows, index) for index, found_here in enumerate(found["raw_values"]) if not found_here]
    _refuse_colors([rows[index] for rows, index in unread[:SAMPLED_MASKS]], len(unread))
    _refuse_binary_masks(values, dataset)
    return values


def values_by_image(split: Dataset) -> list[set[int]]:
    """The distinct raw values of each mask; none for one that cannot be used. Cached.

    Where masks show classes in colours, these stand for the values: `COLOR_VALUES` + 24 bits of RGB.
    """
    found = cached_map(split, mask_values, MASK_VALUES, {}, None, None, "reading mask values for the split")
    rows = list(zip(found["raw_values"], found["colors"], strict=True))
    # A grey mask among them, as one without any object, shows colours as well.
    in_colors = any(colors and not values for values, colors in rows)
    return [
        {COLOR_VALUES + color for color in colors} if in_colors and colors else set(values) for values, colors in rows
    ]


def prepare_one(
    image: dict | None, label: dict | None, name: str, class_map: ClassMap, num_channels: int = 3
) -> Image.Image:
    """The mask of a single training example as `prepare_dataset` makes it, PIL L of training ids.

    Args:
        image, label: {"bytes", "path"}. name: what messages call the example.
        num_channels: of the image.

    Raises:
        UserError: where `prepare_dataset` would raise one for this example.
    """
    row = prepare_example(image, label, name, class_map, num_channels)
    if row["problem"]:
        what, fix = PROBLEMS[row["problem"]]
        fix = fix or likely_cause(set(row["raw_values"]), class_map)
        raise UserError(f"1 {what} - train: {row['detail']}: {fix}")
    return Image.open(io.BytesIO(row["label"]["bytes"]))


# ---- the cache ------------------------------------------------------------------------------------------------------


def undecoded(split: Dataset) -> Dataset:
    """Images as {"bytes", "path"}."""
    split = split.cast_column("image", datasets.Image(decode=False))
    return split.cast_column("label", datasets.Image(decode=False))


def cached_map(
    split: Dataset, function: Callable, features: Features, options: dict, cache_dir, num_proc, description: str
) -> Dataset:
    """The columns that `function(image, label, name, **options)` makes, read from a file if it was made before."""
    split = undecoded(split)
    cache_dir = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "segmentation_prepared")
    cache_dir.mkdir(parents=True, exist_ok=True)
    key = _cache_key(split, function, options)
    if num_proc is None:
        num_proc = min(os.cpu_count() or 1, MAX_PROCESSES, len(split) // IMAGES_PER_PROCESS)

    def read_or_make() -> Dataset:
        result = split.map(
            function,
            input_columns=["image", "label", "name"],
            remove_columns=split.column_names,
            features=features,
            fn_kwargs=options,
            cache_file_name=str(cache_dir / f"{key}.arrow"),
            load_from_cache_file=True,
            new_fingerprint=key,
            num_proc=num_proc if num_proc > 1 else None,
            desc=description,
        )
        if len(result) != len(split):
            raise pa.ArrowInvalid(f"{len(result)} rows instead of {len(split)}")
        return result

    # `datasets` moves a file into place when it is complete, so it takes a full disk or a crash to damage one.
    cached = list(cache_dir.glob(f"{key}*.arrow"))
    try:
        return read_or_make()
    except (pa.ArrowException, OSError) as error:
        if not cached:
            raise
        logger.warning(f"{cached[0]} is damaged ({one_line(error)}) and is made anew")
        for path in cached:
            path.unlink()
        return read_or_make()


def _cache_key(split: Dataset, function: Callable, options: dict) -> str:
    """Hash of everything that the result of `cached_map` depends on."""
    digest = hashlib.sha256()
    versions = (PREPARATION_VERSION, datasets.__version__, PIL.__version__)
    digest.update(repr((function.__name__, versions, options)).encode())
    digest.update("\0".join(split["name"]).encode())
    columns = split.select_columns(["image", "label"]).flatten()
    files = [path for column in ("image", "label") for path in columns[f"{column}.path"]]
    table = columns.data
    in_files = all(table.column(f"{column}.bytes").null_count == table.num_rows for column in ("image", "label"))
    if not in_files:
        # The images are inside Arrow files; `datasets` knows which, and which of their rows these are.
        digest.update(split._fingerprint.encode())
        files = [entry["filename"] for entry in split.cache_files]
    for path in files:
        if path and os.path.isfile(path):
            status = os.stat(path)
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        else:
            digest.update(f"{path} is missing\0".encode())
    return digest.hexdigest()[:40]


# ---- one example ----------------------------------------------------------------------------------------------------


def mask_values(image: dict, label: dict, name: str) -> dict:
    """The distinct values of a mask, and the packed colours of one with several channels, unless these are too many
    for classes; neither for one that cannot be used, of which `prepare_dataset` will tell."""
    result = {"raw_values": [], "colors": []}
    try:
        mask = open_image(label, name)
        if mask.mode in ("RGB", "RGBA"):
            colors = np.unique(packed_colors(np.asarray(mask)[..., :3])).tolist()
            result["colors"] = colors if len(colors) <= MAX_COLORS else []
        result["raw_values"] = np.unique(ids_of(mask, name)[0]).tolist()
    except FileProblem:
        pass
    return result


def prepare_example(image: dict, label: dict, name: str, class_map: ClassMap, num_channels: int) -> dict:
    """One row of `prepare_dataset`. What is wrong is returned, never raised, so that all of it can be told at once."""
    result = {
        "label": None,
        "height": 0,
        "width": 0,
        "class_pixels": [0] * class_map.num_labels,
        "raw_values": [],
        "note": "",
        "problem": "",
        "detail": "",
    }
    try:
        mask, note = read_pair(image, label, name, class_map, num_channels)
        values, counts = np.unique(mask, return_counts=True)
        result |= {
            "height": mask.shape[0],
            "width": mask.shape[1],
            "raw_values": values.tolist(),
            "note": note,
        }
        unknown = class_map.unknown_values(values)
        if len(unknown):
            file = file_name(label, name)
            kind = "lossy values" if is_lossy_file(label) else "values"
            raise FileProblem(kind, f"{file} has {shorten(map(str, unknown), 5)}")
    except FileProblem as problem:
        return result | {"problem": problem.kind, "detail": problem.detail}
    pixels = np.zeros(IGNORE_INDEX + 1, np.int64)
    np.add.at(pixels, class_map.reduce(values), counts)
    png = io.BytesIO()
    Image.fromarray(class_map.reduce(mask)).save(png, "PNG", compress_level=3)
    return result | {
        "label": {"bytes": png.getvalue(), "path": None},
        "class_pixels": pixels[: class_map.num_labels].tolist(),
    }


# ---- the verdict ----------------------------------------------------------------------------------------------------


def _raise_problems(dataset: DatasetDict, prepared: dict[str, Dataset], class_map: ClassMap) -> None:
    """One UserError for everything that was found; a warning where the masks fit the classes better unreduced."""
    details, all_values = defaultdict(list), set()
    for split_name, rows in prepared.items():
        for values in rows["raw_values"]:
            all_values.update(values)
        for problem, detail in zip(rows["problem"], rows["detail"], strict=True):
            if problem:
                details[problem].append(f"{split_name}: {detail}")
    lines = []
    for problem, (what, fix) in PROBLEMS.items():
        if problem in details:
            fix = fix or likely_cause(all_values, class_map)
            lines.append(f"{len(details[problem])} {what} - {shorten(details[problem])}: {fix}")
    if lines:
        raise UserError("\n  ".join(lines))
    _refuse_mixed_masks(dataset, prepared)
    _refuse_binary_masks(all_values, dataset)
    num_labels = class_map.num_labels
    if class_map.do_reduce_labels and set(range(num_labels)) <= all_values and num_labels not in all_values:
        logger.warning(
            f"with label reduction annotation value 0 is ignored, yet the masks hold 0 to {num_labels - 1}, one "
            f"value for each of the {num_labels} classes: --no_do_reduce_labels if 0 is a class"
        )


def _refuse_mixed_masks(dataset: DatasetDict, prepared: dict[str, Dataset]) -> None:
    """Colours in some masks are evidence against ids in others that could be either."""
    by_note = defaultdict(list)
    for split_name, rows in prepared.items():
        for name, note in zip(dataset[split_name]["name"], rows["note"], strict=True):
            by_note[note.partition(" (")[0]].append(f"{split_name}: {name}")
    for colors, ids in ((BY_COLOR, BY_CHANNEL), (BY_PALETTE, BY_INDEX)):
        if colors in by_note and ids in by_note:
            raise UserError(
                f"{len(by_note[colors])} masks were {colors} ({shorten(by_note[colors])}), but {len(by_note[ids])} "
                f"were {ids} ({shorten(by_note[ids])}): if all show colours, add those that no class has to the list "
                "of classes (--id2label); else write all with one channel, a class id for each pixel"
            )


def _refuse_colors(rows: list[dict], count: int) -> None:
    """rows: some of the `count` masks that could not be read without a list of classes."""
    colors, files = set(), []
    for row in rows:
        try:
            mask = open_image(row["label"], row["name"])
            ids_of(mask, row["name"])
        except FileProblem as problem:
            if problem.kind == "colors" and mask.mode in ("RGB", "RGBA"):
                colors.update(np.unique(packed_colors(np.asarray(mask)[..., :3])).tolist())
                files.append(file_name(row["label"], row["name"]))
    if not colors:
        return
    listed = shorten([f"{color >> 16} {color >> 8 & 255} {color & 255}" for color in sorted(colors)], 8)
    few = len(colors) <= MAX_COLORS
    raise UserError(
        f"{count} masks ({files[0]} …) show classes in colours, {len(colors)} different ones in {len(files)} of them "
        f"({listed}): {COLOR_LIST if few else EXPORT_AGAIN}"
    )


def _refuse_binary_masks(values: set[int], dataset: DatasetDict) -> None:
    if values == {0, IGNORE_INDEX}:
        first = undecoded(next(iter(dataset.values())))[0]
        raise UserError(
            f"all masks ({file_name(first['label'], first['name'])} …) hold the values 0 and 255 alone: they are "
            "pictures of two classes, but 255 means ignored; `python check_dataset.py FOLDER --fix NEW_FOLDER` writes "
            "them with the values 0 and 1"
        )


def likely_cause(all_values: set[int], class_map: ClassMap) -> str:
    """Why masks may hold values that are no class, and what would mend it."""
    unknown = class_map.unknown_values(np.array(sorted(all_values))).tolist()
    listed, known = shorten(map(str, unknown), 5), class_map.describe_values()
    if class_map.do_reduce_labels and unknown == [class_map.class_values[-1] + 1]:
        return f"{known}. Label reduction is on: does the list of classes (--id2label) lack one?"
    if class_map.suggests_reduction(unknown) and 0 not in all_values:
        return f"{known}; 0 never occurs, so ids seem to count from 1: --do_reduce_labels"
    if class_map.suggests_reduction(unknown):
        return (
            f"{known}. If 0 stands for unlabelled and ids count from 1: --do_reduce_labels. If {unknown[0]} stands "
            f"for void: --ignore_values {unknown[0]}. Else the list of classes (--id2label) lacks one"
        )
    if len(unknown) <= 2:
        flag = " ".join(map(str, unknown))
        return f"{known}. If {listed} stands for void: --ignore_values {flag}. Else give another list with --id2label"
    return f"{known}. These masks have another list of classes: give it with --id2label"


def _log_oddities(split_name: str, split: Dataset, prepared: Dataset, class_map: ClassMap) -> None:
    """What is odd but valid: turned masks, images without labels, classes that cannot be learnt."""
    for note, count in Counter(filter(None, prepared["note"])).items():
        level = logging.INFO if note == BY_COLOR else logging.WARNING
        logger.log(level, f"{split_name}: {count} masks were {note}")
    class_pixels = np.array(prepared["class_pixels"])
    empty = np.flatnonzero(class_pixels.sum(axis=1) == 0).tolist()
    if len(empty) == len(prepared) and split_name != "test":
        raise UserError(
            f"{split_name}: every pixel of all {len(empty)} masks is ignored, as {split['name'][0]}; see "
            "--do_reduce_labels and --ignore_values"
        )
    if empty:
        names = split["name"]
        logger.warning(f"{split_name}: {len(empty)} masks are ignored entirely: {shorten([names[i] for i in empty])}")
    absent = [class_map.id2label[i] for i in np.flatnonzero(class_pixels.sum(axis=0) == 0).tolist()]
    if absent and split_name == "train":
        logger.warning(
            f"{len(absent)} of {class_map.num_labels} classes never occur in training: {shorten(absent, 8)}"
        )
