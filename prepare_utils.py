"""Preparing a dataset once: every image and mask decoded and checked, labels reduced, pixels counted; cached.

`prepare_dataset` is what runs need; `annotation_values` looks at the masks alone.
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
import transformers
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from PIL import Image, ImageOps

import label_utils
from cli_utils import UserError
from label_utils import LabelMap
from layout_utils import LOSSY_EXTENSIONS, shorten
from metrics_utils import IGNORE_INDEX

logger = logging.getLogger(__name__)

EXIF_ORIENTATION = 0x0112
# One process for so many images; starting more would cost more than it saves.
IMAGES_PER_PROCESS, MAX_PROCESSES = 500, 8
# What can be wrong with a file, and what to do about it.
PROBLEMS = {
    "unreadable": ("files cannot be read", "mend them, or delete them together with their image or mask"),
    "image depth": ("images have more than 8 bits a channel", "convert them to 8 bits, scaled as they are to be seen"),
    "size": ("masks differ in size from their image", "every pixel of an image needs its own label"),
    "colors": (
        "masks hold colours or fractions instead of class ids",
        "write masks with one channel of integers, a class id for each pixel",
    ),
    "lossy values": (
        "masks are JPEG files and hold values that are no class",
        "JPEG compression changes values; write masks as PNG files from their source",
    ),
    "values": ("masks hold values that are no class", None),  # see `_likely_cause`
}


class FileProblem(Exception):
    """A file that cannot be used. kind: a key of `PROBLEMS`; detail: the file's name and what was found."""

    def __init__(self, kind: str, detail: str):
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


def prepare_dataset(
    dataset: DatasetDict,
    label_map: LabelMap,
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
) -> DatasetDict:
    """Decodes every image and mask once, checks them, and keeps the masks as PNGs of training ids.

    The work is cached in files named after all that it depends on: this code, the label map, the libraries and the
    data (paths, sizes and times of local files), so that a second run and other processes only read it.

    Args:
        dataset: of `data_utils.load_segmentation_dataset`.
        cache_dir: default: `segmentation_prepared` in the cache folder of `datasets`.
        num_proc: processes; default: one for every 500 images of a split, as far as there are CPUs, at most 8.

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
            "class_pixels": List(Value("int64"), length=label_map.num_labels),
            "raw_values": List(Value("int64")),
            "note": Value("string"),
            "problem": Value("string"),
            "detail": Value("string"),
        }
    )
    options = {"label_map": label_map}
    prepared = {
        name: _cached_map(split, _prepare_example, features, options, cache_dir, num_proc, f"{name}: preparing")
        for name, split in dataset.items()
    }
    _raise_problems(dataset, prepared, label_map)
    result = {}
    for name, split in dataset.items():
        _log_oddities(name, split, prepared[name], label_map)
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
        UserError: the masks are pictures of two classes, with the values 0 and 255.
    """
    features = Features({"raw_values": List(Value("int64"))})
    values: set[int] = set()
    for name, split in dataset.items():
        found = _cached_map(split, _mask_values, features, {}, cache_dir, num_proc, f"{name}: reading mask values")
        values.update(*found["raw_values"])
    _refuse_binary_masks(values, dataset)
    return values


# ---- the cache ------------------------------------------------------------------------------------------------------


def undecoded(split: Dataset) -> Dataset:
    """Images as {"bytes", "path"}."""
    split = split.cast_column("image", datasets.Image(decode=False))
    return split.cast_column("label", datasets.Image(decode=False))


def _cached_map(
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
        logger.warning(f"{cached[0]} is damaged ({first_line(error)}) and is made anew")
        for path in cached:
            path.unlink()
        return read_or_make()


def _cache_key(split: Dataset, function: Callable, options: dict) -> str:
    """Hash of everything that the result of `_cached_map` depends on."""
    digest = hashlib.sha256()
    for module_file in (__file__, label_utils.__file__):
        digest.update(Path(module_file).read_bytes())
    versions = (datasets.__version__, PIL.__version__, transformers.__version__)
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


def _mask_values(image: dict, label: dict, name: str) -> dict:
    """The distinct values of a mask; none for one that cannot be used, of which `prepare_dataset` will tell."""
    try:
        mask, _ = ids_of(open_image(label, name), name)
    except FileProblem:
        return {"raw_values": []}
    return {"raw_values": np.unique(mask).tolist()}


def _prepare_example(image: dict, label: dict, name: str, label_map: LabelMap) -> dict:
    """One row of `prepare_dataset`. What is wrong is returned, never raised, so that all of it can be told at once."""
    result = {
        "label": None,
        "height": 0,
        "width": 0,
        "class_pixels": [0] * label_map.num_labels,
        "raw_values": [],
        "note": "",
        "problem": "",
        "detail": "",
    }
    try:
        mask, note = read_pair(image, label, name)
        values, counts = np.unique(mask, return_counts=True)
        result |= {
            "height": mask.shape[0],
            "width": mask.shape[1],
            "raw_values": values.tolist(),
            "note": note,
        }
        unknown = label_map.unknown_values(values)
        if len(unknown):
            file = file_name(label, name)
            kind = "lossy values" if Path(file).suffix.lower() in LOSSY_EXTENSIONS else "values"
            raise FileProblem(kind, f"{file} has {shorten(map(str, unknown), 5)}")
    except FileProblem as problem:
        return result | {"problem": problem.kind, "detail": problem.detail}
    pixels = np.zeros(IGNORE_INDEX + 1, np.int64)
    np.add.at(pixels, label_map.reduce(values), counts)
    png = io.BytesIO()
    Image.fromarray(label_map.reduce(mask)).save(png, "PNG", compress_level=3)
    return result | {
        "label": {"bytes": png.getvalue(), "path": None},
        "class_pixels": pixels[: label_map.num_labels].tolist(),
    }


def file_name(value: dict, name: str) -> str:
    """What messages call an image or mask: its file, or the row of a dataset that keeps bytes."""
    return Path(value["path"]).name if value["path"] else name


def first_line(error: Exception) -> str:
    """What an exception says, without the details that follow."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_image(value: dict | None, name: str) -> Image.Image:
    """Decodes a file or its bytes completely, as stored: neither turned nor converted."""
    if value is None:
        raise FileProblem("unreadable", f"{name} (the image or the mask of this row is empty)")
    try:
        with Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])) as image:
            image.load()
            return image
    except PIL.UnidentifiedImageError:
        reason = "no image, or of an unknown format"
    except Exception as error:  # a decoder may raise anything on a damaged file
        reason = first_line(error)
    raise FileProblem("unreadable", f"{file_name(value, name)} ({reason})")


def read_pair(image: dict, label: dict, name: str) -> tuple[np.ndarray, str]:
    """The mask of a pair, raw values (H, W), upright like its image, and a note on what was done to it.

    Cameras store pictures as the sensor sees them, with an EXIF entry that says how to turn them. Viewers, `datasets`
    and most annotation tools obey it; others draw on the picture as stored, and some leave the entry in a mask that
    was turned already. The size tells.
    """
    picture, mask = open_image(image, name), open_image(label, name)
    if picture.mode.startswith(("I", "F")):
        raise FileProblem("image depth", f"{file_name(image, name)} (mode {picture.mode})")
    upright = ImageOps.exif_transpose(picture).size
    turned, note = ImageOps.exif_transpose(mask), ""
    if turned.size != upright and mask.size == upright:
        turned, note = mask, "not turned, against their EXIF orientation, to fit their images"
    elif turned.size != upright and mask.size == picture.size:
        mask.getexif()[EXIF_ORIENTATION] = picture.getexif()[EXIF_ORIENTATION]
        turned, note = ImageOps.exif_transpose(mask), "turned like their images, as the EXIF orientation of these says"
    ids, mode_note = ids_of(turned, file_name(label, name))
    if turned.size != upright:
        found, needed = ("x".join(map(str, size)) for size in (turned.size, upright))
        raise FileProblem("size", f"{file_name(label, name)} is {found}, {file_name(image, name)} {needed}")
    return ids, note or mode_note


def ids_of(mask: Image.Image, file: str) -> tuple[np.ndarray, str]:
    """A decoded mask → its values (H, W) of any integer dtype, and a note.

    Palette indices, 16-bit values and single bits (0, 1) are read as ids.
    """
    array = np.asarray(mask)
    if mask.mode == "1":
        return array.astype(np.uint8), ""
    if mask.mode in ("L", "P") or mask.mode.startswith("I"):
        return array, ""
    if mask.mode in ("LA", "RGB", "RGBA"):
        alpha_is_constant = mask.mode == "RGB" or array[..., -1].min() == array[..., -1].max()
        channels = array[..., : 3 if mask.mode != "LA" else 1]
        if alpha_is_constant and (channels == channels[..., :1]).all():
            return channels[..., 0], f"read from one of several equal channels (mode {mask.mode})"
    raise FileProblem("colors", f"{file} (mode {mask.mode})")


# Until all modules use the public names.
_FileProblem, _open, _read_pair = FileProblem, open_image, read_pair


# ---- the verdict ----------------------------------------------------------------------------------------------------


def _raise_problems(dataset: DatasetDict, prepared: dict[str, Dataset], label_map: LabelMap) -> None:
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
            fix = fix or _likely_cause(all_values, label_map)
            lines.append(f"{len(details[problem])} {what} - {shorten(details[problem])}: {fix}")
    if lines:
        raise UserError("\n  ".join(lines))
    _refuse_binary_masks(all_values, dataset)
    num_labels = label_map.num_labels
    if label_map.do_reduce_labels and set(range(num_labels)) <= all_values and num_labels not in all_values:
        logger.warning(
            f"with label reduction annotation value 0 is ignored, yet the masks hold 0 to {num_labels - 1}, one "
            f"value for each of the {num_labels} classes: --no_do_reduce_labels if 0 is a class"
        )


def _refuse_binary_masks(values: set[int], dataset: DatasetDict) -> None:
    if values == {0, IGNORE_INDEX}:
        first = undecoded(next(iter(dataset.values())))[0]
        raise UserError(
            f"all masks ({file_name(first['label'], first['name'])} …) hold the values 0 and 255 alone: they are "
            "pictures of two classes, but 255 means ignored; write them with the values 0 and 1"
        )


def _likely_cause(all_values: set[int], label_map: LabelMap) -> str:
    """Why masks may hold values that are no class, and what would mend it."""
    unknown = label_map.unknown_values(np.array(sorted(all_values))).tolist()
    first, last = label_map.raw_values[0], label_map.raw_values[-1]
    listed = shorten(map(str, unknown), 5)
    known = f"{first} to {last} are classes and 255 is ignored"
    if unknown == [last + 1] and label_map.do_reduce_labels:
        return f"{known}. Label reduction is on: does the list of classes (--id2label) lack one?"
    if unknown == [last + 1] and 0 not in all_values:
        return f"{known}; 0 never occurs, so ids seem to count from 1: --do_reduce_labels"
    if unknown == [last + 1]:
        return (
            f"{known}. If 0 stands for unlabelled and ids count from 1: --do_reduce_labels. If {unknown[0]} stands "
            f"for void: --ignore_values {unknown[0]}. Else the list of classes (--id2label) lacks one"
        )
    if len(unknown) <= 2:
        flag = " ".join(map(str, unknown))
        return f"{known}. If {listed} stands for void: --ignore_values {flag}. Else give another list with --id2label"
    return f"{known}. These masks have another list of classes: give it with --id2label"


def _log_oddities(split_name: str, split: Dataset, prepared: Dataset, label_map: LabelMap) -> None:
    """What is odd but valid: turned masks, images without labels, classes that cannot be learnt."""
    for note, count in Counter(filter(None, prepared["note"])).items():
        logger.warning(f"{split_name}: {count} masks were {note}")
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
    absent = [label_map.id2label[i] for i in np.flatnonzero(class_pixels.sum(axis=0) == 0).tolist()]
    if absent and split_name == "train":
        logger.warning(
            f"{len(absent)} of {label_map.num_labels} classes never occur in training: {shorten(absent, 8)}"
        )
