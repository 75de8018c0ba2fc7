"""Data: loading a dataset, what its annotation values mean, preparing it once, and transforming it as it is read.

    dataset = load_segmentation_dataset(dataset_dir="my_photos")        # image, label as in the files, name
    label_map = resolve_label_map(dataset, dataset_dir="my_photos")     # raw annotation value <-> training id
    dataset = prepare_dataset(dataset, label_map)                       # labels checked and reduced, cached
    train_dataset = SegmentationDataset(dataset["train"], TrainTransform(protocol), seed=42)
    eval_dataset = SegmentationDataset(dataset["validation"], protocol)

A "raw" value is one that stands in an annotation file; a "training id" is 0 … num_labels - 1, or 255 for ignored.
"""

import csv
import hashlib
import io
import json
import logging
import os
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import PIL
import pyarrow as pa
import torch
import transformers
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvF
from transformers import SegformerImageProcessor

import visual_utils
from cli_utils import UserError, nearest
from layout_utils import LOSSY_EXTENSIONS, detect_layout, find_dataset, shorten, standard_split_name
from metrics_utils import IGNORE_INDEX
from protocol_utils import MAX_ASPECT_RATIO, EvaluationProtocol

logger = logging.getLogger(__name__)

LABELS = Path(__file__).parent / "labels"
CLASS_LIST_FILES = ("id2label.json", "labels.json", "classes.json")
IMAGE_COLUMNS = ("image", "pixel_values", "img", "images", "input", "photo", "picture")
LABEL_COLUMNS = (
    *("label", "annotation", "mask", "segmentation_mask", "semantic_mask", "segmentation", "labels", "annotations"),
    *("masks", "seg_map", "label_image", "gt", "ground_truth"),
)
EXIF_ORIENTATION = 0x0112
# Training ids are uint8 and 255 means ignored.
MAX_LABELS = 255


# ---- what annotation values mean ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelMap:
    """The one place that knows raw annotation values and training ids.

    Attributes:
        id2label: training id → name, ids 0 … num_labels - 1.
        palette: RGB by training id, or None where the class list has no colours.
        do_reduce_labels: raw 0 is ignored and raw k is training id k - 1, as in ADE20K.
        ignore_values: raw values that are ignored, besides 255.
    """

    id2label: dict[int, str]
    palette: list[list[int]] | None = None
    do_reduce_labels: bool = False
    ignore_values: tuple[int, ...] = ()

    def __post_init__(self):
        limit = MAX_LABELS - self.do_reduce_labels  # raw 255 is ignored, so reduction leaves 1 … 254
        if not 0 < self.num_labels <= limit:
            raise UserError(f"{self.num_labels} classes; a class list has 1 to {limit}")

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        return {name: i for i, name in self.id2label.items()}

    @property
    def raw_values(self) -> list[int]:
        """The value of each training id in the annotation files."""
        return [i + self.do_reduce_labels for i in range(self.num_labels)]

    def unknown_values(self, values: np.ndarray) -> np.ndarray:
        """Those of some raw values that are neither a class nor ignored."""
        ignored = [IGNORE_INDEX, *self.ignore_values, *([0] if self.do_reduce_labels else [])]
        return values[~np.isin(values, [*ignored, *self.raw_values])]

    def _training_ids(self, values: np.ndarray) -> np.ndarray:
        """Known raw values (n,) → training ids, int64 (n,)."""
        ids = torch.from_numpy(values.astype(np.int64))
        ids[torch.from_numpy(np.isin(values, self.ignore_values))] = IGNORE_INDEX
        if self.do_reduce_labels:
            [ids] = SegformerImageProcessor().reduce_label([ids])
        return ids.numpy()

    def reduce(self, mask: np.ndarray) -> np.ndarray:
        """Raw annotation (H, W) of any integer dtype → training ids, uint8 (H, W). The input stays as it is.

        Raises:
            UserError: values that are neither a class nor ignored.
        """
        values, positions = np.unique(mask, return_inverse=True)
        unknown = self.unknown_values(values)
        if len(unknown):
            raise UserError(f"annotation values {shorten(map(str, unknown), 5)} are no class of the {self.num_labels}")
        return self._training_ids(values).astype(np.uint8)[positions].reshape(mask.shape)

    def to_raw(self, prediction: np.ndarray) -> np.ndarray:
        """Training ids, uint8 of any shape → values as in annotation files, uint8 (255 → 0 under reduction)."""
        if not self.do_reduce_labels:
            return prediction
        return np.where(prediction == IGNORE_INDEX, 0, prediction + 1).astype(np.uint8)

    def table(self) -> str:
        """Raw value → training id, several to a line."""
        ignored = sorted({IGNORE_INDEX, *self.ignore_values, *([0] if self.do_reduce_labels else [])})
        entries = [f"{raw} -> ignored" for raw in ignored]
        entries += [
            f"{raw} -> {i} {self.id2label[i]}"
            for i, raw in enumerate(self.raw_values)
            if raw not in self.ignore_values
        ]
        return textwrap.fill("; ".join(entries).replace(" ", "\0").replace(";\0", "; "), 110).replace("\0", " ")

    def colors(self) -> np.ndarray:
        """RGB by training id, uint8 (num_labels, 3): the class list's, or generated ones."""
        if self.palette is None:
            return visual_utils.default_palette(self.num_labels)
        return np.array(self.palette, np.uint8)

    def save(self, path: str | os.PathLike) -> None:
        """Writes names and colours in the format of `labels/ade20k.json`."""
        entries = [
            json.dumps({"id": i, "name": self.id2label[i], "color": color}, ensure_ascii=False)
            for i, color in enumerate(self.colors().tolist())
        ]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("[\n" + ",\n".join(entries) + "\n]\n", encoding="utf-8")


def read_class_list(path: str | os.PathLike) -> tuple[dict[int, str], list[list[int]] | None]:
    """Reads class names by training id, and their colours where all have one.

    The file is JSON, `{id: name}` or a list of `{"id", "name", "color"}`, or a CSV with those columns, a colour being
    three numbers ("120 120 120").

    Raises:
        UserError: the file is missing or has another format; ids that are not 0 … K - 1; a name that is used twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = list(csv.DictReader(text.splitlines())) if path.suffix.lower() == ".csv" else json.loads(text)
        if isinstance(content, dict):
            content = [{"id": key, "name": name} for key, name in content.items()]
        names = {int(entry["id"]): str(entry["name"]).strip() for entry in content}
        colors = {int(entry["id"]): _read_color(entry.get("color")) for entry in content}
    except OSError as error:
        raise UserError(f"class list {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"class list {path} is neither {{id: name}} nor a list of {{id, name, color}}: "
            f"{type(error).__name__} {error}"
        ) from None
    if len(names) != len(content):
        raise UserError(f"class list {path} uses an id twice")
    if not names or sorted(names) != list(range(len(names))):
        found = f"{min(names)} to {max(names)}, {len(names)} of them" if names else "none"
        raise UserError(
            f"class list {path}: ids must be 0, 1, 2 … without a gap (found {found}); they are training ids, so with "
            "--do_reduce_labels the class of annotation value 1 has id 0"
        )
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise UserError(f"class list {path} uses a name twice: {shorten(twice)}")
    ids = range(len(names))
    palette = None if None in colors.values() else [colors[i] for i in ids]
    return {i: names[i] for i in ids}, palette


def _read_color(color) -> list[int] | None:
    """[r, g, b], or a string with three numbers; None for no colour."""
    if not color:
        return None
    numbers = [int(number) for number in (re.findall(r"\d+", color) if isinstance(color, str) else color)]
    if len(numbers) != 3 or not all(0 <= number <= 255 for number in numbers):
        raise ValueError(f"colour {color!r} is not three numbers in 0…255")
    return numbers


def resolve_label_map(
    dataset: DatasetDict,
    dataset_dir: str | os.PathLike | None = None,
    dataset_name: str | None = None,
    id2label_file: str | os.PathLike | None = None,
    do_reduce_labels: bool | None = None,
    ignore_values: Sequence[int] = (),
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
) -> LabelMap:
    """Decides which classes a dataset has and whether its labels are to be reduced; logs both.

    The class list is, in this order: `id2label_file`; `id2label.json`, `labels.json` or `classes.json` inside
    `dataset_dir`; ADE20K's or Cityscapes' for a folder in their layout and for scene_parse_150; else one class for
    each value up to the highest in any mask, called `class_0`, `class_1`, … after the value.

    Args:
        dataset: of `load_segmentation_dataset`; masks are read only where the classes come from them.
        do_reduce_labels: None means on for the ADE20K layout and scene_parse_150, else off.
        ignore_values: raw values that are ignored, besides 255.
        cache_dir, num_proc: as for `prepare_dataset`.
    """
    layout = detect_layout(dataset_dir) if dataset_dir else None
    if dataset_name and "scene_parse_150" in dataset_name:
        layout = "ADE20K"
    source = "asked for" if do_reduce_labels is not None else f"default for {layout or 'this dataset'}"
    if do_reduce_labels is None:
        do_reduce_labels = layout == "ADE20K"
    logger.info(
        f"label reduction (raw 0 ignored, others down by one): {'on' if do_reduce_labels else 'off'}, {source}"
    )

    inside = [Path(dataset_dir, name) for name in CLASS_LIST_FILES] if dataset_dir else []
    shipped = {"ADE20K": LABELS / "ade20k.json", "Cityscapes": LABELS / "cityscapes.json"}.get(layout)
    file = id2label_file or next((path for path in inside if path.is_file()), shipped)
    if file:
        id2label, palette = read_class_list(file)
        logger.info(f"{len(id2label)} classes from {file}")
    else:
        palette = None
        id2label = _infer_classes(dataset, do_reduce_labels, ignore_values, cache_dir, num_proc)
    return LabelMap(id2label, palette, do_reduce_labels, tuple(ignore_values))


def _infer_classes(dataset, do_reduce_labels, ignore_values, cache_dir, num_proc) -> dict[int, str]:
    values: set[int] = set()
    for split_name, split in dataset.items():
        found = _cached_map(
            _undecoded(split), _mask_values, VALUE_FEATURES, {}, cache_dir, num_proc, f"{split_name}: values"
        )
        values.update(*found["raw_values"])
    _refuse_binary_masks(values)
    classes = values - {IGNORE_INDEX, *ignore_values} - ({0} if do_reduce_labels else set())
    listed = shorten(map(str, sorted(classes)), 20)
    if not classes:
        raise UserError("no mask has a value that stands for a class; name the classes with --id2label FILE")
    limit = MAX_LABELS - 1
    if min(classes) < 0 or max(classes) > limit:
        raise UserError(
            f"mask values {listed}: class ids go from 0 to {limit}. "
            "If some stand for no class, name them with --ignore_values"
        )
    id2label = {raw - do_reduce_labels: f"class_{raw}" for raw in range(int(do_reduce_labels), max(classes) + 1)}
    logger.info(
        f"no class list was given: {len(id2label)} classes from the mask values {listed}, named class_VALUE; "
        "--id2label FILE gives them names"
    )
    return id2label


def _refuse_binary_masks(values: set[int]) -> None:
    if IGNORE_INDEX in values and values <= {0, IGNORE_INDEX}:
        raise UserError(
            "all masks hold the values 0 and 255 alone: binary masks as pictures, of which 255 would be ignored; "
            "write them with the values 0 and 1"
        )


# ---- loading --------------------------------------------------------------------------------------------------------


def load_segmentation_dataset(
    dataset_dir: str | os.PathLike | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    train_val_split: float | None = None,
    seed: int = 42,
    split_file: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | None = None,
) -> DatasetDict:
    """Loads a dataset from a folder (layouts: `layout_utils.LAYOUTS`) or through `datasets`.

    Args:
        dataset_dir: folder with images and masks; or else
        dataset_name: Hub id, a folder of `save_to_disk`, a parquet file, or anything `datasets.load_dataset` takes.
        image_column, label_column: default: found by name and type.
        train_val_split: share of the training images that becomes the validation split, for datasets without one.
        seed: of that split.
        split_file: JSON file that keeps the names of both sides; where it exists, it decides.
        cache_dir, token: as for `datasets.load_dataset`.

    Returns:
        "train", "validation", "test", those that are there, with the columns "image" (PIL RGB, upright, decoded when
        read), "label" (PIL, as in the file) and "name" (unique in its split, without extension).

    Raises:
        UserError: nothing or nothing usable is there; the message says what was looked for.
    """
    if (dataset_dir is None) == (dataset_name is None):
        raise ValueError("give either dataset_dir or dataset_name")
    if dataset_dir is not None:
        found = find_dataset(dataset_dir, image_column, label_column)
        dataset = DatasetDict({split: _dataset_of_pairs(pairs) for split, pairs in found.splits.items()})
    else:
        loaded = _load_through_datasets(str(dataset_name), dataset_config_name, cache_dir, token)
        dataset = _standard_splits(loaded, dataset_name)
        dataset = DatasetDict(
            {split: _standard_columns(rows, split, image_column, label_column) for split, rows in dataset.items()}
        )
    if train_val_split is not None:
        dataset = _split_train(dataset, train_val_split, seed, split_file)
    return dataset


def _dataset_of_pairs(pairs) -> Dataset:
    return Dataset.from_dict(
        {
            "image": [str(pair.image.absolute()) for pair in pairs],
            "label": [str(pair.mask.absolute()) for pair in pairs],
            "name": [pair.name for pair in pairs],
        },
        # Mode None keeps palette indices and 16-bit values of masks as they are.
        features=Features({"image": datasets.Image(mode="RGB"), "label": datasets.Image(), "name": Value("string")}),
    )


def _load_through_datasets(name: str, config: str | None, cache_dir, token) -> DatasetDict:
    path = Path(name)
    saved = [path / file for file in ("dataset_dict.json", "state.json") if (path / file).is_file()]
    try:
        if saved:
            loaded = datasets.load_from_disk(name)
        elif path.suffix == ".parquet":
            loaded = datasets.load_dataset("parquet", data_files=name, cache_dir=cache_dir)
        else:
            loaded = datasets.load_dataset(name, config, cache_dir=cache_dir, token=token)
    except ConnectionError as error:  # includes `OfflineModeIsEnabled`
        raise UserError(
            f"--dataset_name {name}: the Hub cannot be reached ({_first_line(error)}); "
            "--dataset_dir FOLDER works without network"
        ) from None
    except (FileNotFoundError, ValueError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(
            f"--dataset_name {name} cannot be loaded: {_first_line(error)} "
            "(images and masks in a folder are read with --dataset_dir FOLDER, without network)"
        ) from None
    return loaded if isinstance(loaded, DatasetDict) else DatasetDict({str(loaded.split or "train"): loaded})


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _standard_splits(dataset: DatasetDict, name) -> DatasetDict:
    splits = {}
    for original, rows in dataset.items():
        split = standard_split_name(original)
        if split is None:
            logger.warning(
                f"{name}: split {original!r} ({len(rows)} rows) is neither train, validation nor test: left out"
            )
        elif split in splits:
            raise UserError(f"{name} has two {split} splits: {', '.join(dataset)}")
        elif len(rows):
            splits[split] = rows
    if not splits:
        raise UserError(f"{name} has no rows in a train, validation or test split; its splits: {', '.join(dataset)}")
    return DatasetDict(splits)


def _standard_columns(split: Dataset, split_name: str, image_column: str | None, label_column: str | None) -> Dataset:
    image_column = _find_column(split, "image", image_column, IMAGE_COLUMNS, taken=label_column)
    label_column = _find_column(split, "label", label_column, LABEL_COLUMNS, taken=image_column)
    split = split.select_columns([image_column, label_column])
    # Renamed in one go, as "label" may well be what the image column is called.
    split = split.rename_columns({image_column: "image", label_column: "label"})
    split = split.cast_column("image", datasets.Image(mode="RGB")).cast_column("label", datasets.Image())
    paths = list(_undecoded(split).flatten()["image.path"])
    stems = [Path(path).stem for path in paths if path]
    if len(set(stems)) < len(split):
        stems = [f"{split_name}_{index:06d}" for index in range(len(split))]
    return split.add_column("name", stems)


def _is_image(feature) -> bool:
    """Image, or what an Image column is in a parquet file without the features' description."""
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})


def _find_column(split: Dataset, kind: str, wanted: str | None, known: Sequence[str], taken: str | None) -> str:
    columns = [name for name, feature in split.features.items() if _is_image(feature) and name != taken]
    if wanted is not None:
        if wanted not in split.features:
            raise UserError(f"--{kind}_column {wanted}: no such column{nearest(wanted, split.column_names)}")
        if not _is_image(split.features[wanted]):
            raise UserError(f"--{kind}_column {wanted} holds {split.features[wanted]}, not images (`datasets.Image`)")
        return wanted
    by_name = [name for candidate in known for name in columns if name.lower() == candidate]
    others = [name for name in columns if name.lower() not in (*IMAGE_COLUMNS, *LABEL_COLUMNS)]
    if by_name or len(others) == 1:
        return by_name[0] if by_name else others[0]
    described = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in split.features.items())
    raise UserError(
        f"no {kind} column was recognised among {described}; name it with "
        f"--{kind}_column (it must hold `datasets.Image`)"
    )


def _split_train(dataset: DatasetDict, fraction: float, seed: int, split_file) -> DatasetDict:
    """Parts the training split in two by a seeded permutation, or as `split_file` says."""
    if "validation" in dataset:
        raise UserError(
            f"--train_val_split {fraction}: the dataset has a validation split of "
            f"{len(dataset['validation'])} images; leave the flag out"
        )
    if "train" not in dataset:
        raise UserError(f"--train_val_split {fraction}: the dataset has no training split, only {', '.join(dataset)}")
    train = dataset["train"]
    names = list(train["name"])
    split_file = Path(split_file) if split_file is not None else None
    if split_file is not None and split_file.is_file():
        sides = json.loads(split_file.read_text(encoding="utf-8"))
        if sides["train_val_split"] != fraction:
            raise UserError(
                f"--train_val_split is {fraction}, but {split_file} was made with {sides['train_val_split']}; "
                "give that value, or delete the file, or give another --output_dir"
            )
        changed = sorted(set(names) ^ {*sides["train"], *sides["validation"]})
        if changed:
            raise UserError(
                f"{split_file} does not fit the dataset: {len(changed)} names are in one of the two only "
                f"({shorten(changed)}); delete it to split anew, or give another --output_dir"
            )
        logger.info(f"training and validation images as listed in {split_file}")
    else:
        count = min(max(round(fraction * len(names)), 1), len(names) - 1)
        if count < 1:
            raise UserError(f"--train_val_split {fraction}: a training split of {len(names)} image cannot be parted")
        order = np.random.default_rng(seed).permutation(len(names))
        chosen = set(order[:count].tolist())
        sides = {"train_val_split": fraction, "seed": seed, "train": [], "validation": []}
        for index, name in enumerate(names):
            sides["validation" if index in chosen else "train"].append(name)
        if split_file is not None:
            split_file.parent.mkdir(parents=True, exist_ok=True)
            split_file.write_text(json.dumps(sides, indent=1, ensure_ascii=False), encoding="utf-8")
    position = {name: index for index, name in enumerate(names)}
    parts = {side: train.select([position[name] for name in sides[side]]) for side in ("train", "validation")}
    logger.info(
        f"split by --train_val_split {fraction}: train {len(sides['train'])}, validation {len(sides['validation'])}"
    )
    return DatasetDict(parts | {name: rows for name, rows in dataset.items() if name != "train"})


# ---- preparing ------------------------------------------------------------------------------------------------------

VALUE_FEATURES = Features({"raw_values": List(Value("int64"))})


class _FileProblem(Exception):
    """kind: a key of `PROBLEMS`. detail: the file, and what is wrong with it."""

    def __init__(self, kind: str, detail: str):
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


# What is wrong with a file, and what to do about it.
PROBLEMS = {
    "unreadable": ("files cannot be read", "mend or delete them (an image together with its mask)"),
    "image depth": ("images have more than 8 bits a channel", "convert them to 8 bits, scaled as they are to be seen"),
    "size": ("masks differ in size from their image", "each pixel of an image needs its own label"),
    "mask mode": ("masks hold colours or fractions instead of class ids", "write masks with one channel of class ids"),
    "values": ("masks hold values that are no class", ""),
}


def prepare_dataset(
    dataset: DatasetDict,
    label_map: LabelMap,
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
) -> DatasetDict:
    """Decodes every image and mask once, checks them, and keeps the masks as PNGs of training ids.

    The work is cached in files that depend on this module, the label map, the libraries and the data (paths, sizes and
    times of local files), so that a second run and other processes read it only.

    Args:
        dataset: of `load_segmentation_dataset`.
        cache_dir: default: `segmentation_prepared` in the cache folder of `datasets`.
        num_proc: processes; default: one for every 500 images, as far as there are CPUs, at most 8.

    Returns:
        Columns "image" (as it was), "label" (PIL L of training ids, upright as the image), "name", "height", "width"
        (pixels), "class_pixels" (num_labels integers).

    Raises:
        UserError: for all unusable files of all splits together.
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
    prepared = {
        name: _cached_map(
            _undecoded(split),
            _prepare_example,
            features,
            {"label_map": label_map},
            cache_dir,
            num_proc,
            f"{name}: preparing",
        )
        for name, split in dataset.items()
    }
    _raise_problems(prepared, label_map)
    _log_statistics(dataset, prepared, label_map)
    result = {}
    for name, split in dataset.items():
        kept = prepared[name].select_columns(["label", "height", "width", "class_pixels"])
        kept = kept.cast_column("label", datasets.Image())
        # Side by side with the images, which are neither copied nor encoded anew.
        result[name] = concatenate_datasets([split.select_columns(["image", "name"]), kept], axis=1)
    return DatasetDict(result)


def _undecoded(split: Dataset) -> Dataset:
    """Images as {"bytes", "path"}."""
    split = split.cast_column("image", datasets.Image(decode=False))
    return split.cast_column("label", datasets.Image(decode=False))


def _cached_map(
    split: Dataset, function: Callable, features: Features, options: dict, cache_dir, num_proc, description: str
) -> Dataset:
    """`split.map(function)` with its own columns alone, read from a file where the same was computed before."""
    cache_dir = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "segmentation_prepared")
    cache_dir.mkdir(parents=True, exist_ok=True)
    key = _cache_key(split, function, options)
    file = cache_dir / f"{key}.arrow"
    if num_proc is None:
        num_proc = min(os.cpu_count() or 1, 8, len(split) // 500)

    def run() -> Dataset:
        result = split.map(
            function,
            input_columns=["image", "label", "name"],
            remove_columns=split.column_names,
            features=features,
            fn_kwargs=options,
            cache_file_name=str(file),
            load_from_cache_file=True,
            new_fingerprint=key,
            num_proc=num_proc if num_proc > 1 else None,
            desc=description,
        )
        if len(result) != len(split):
            raise pa.ArrowInvalid(f"{len(result)} rows instead of {len(split)}")
        return result

    cached = list(cache_dir.glob(f"{key}*.arrow"))
    try:
        return run()
    except (pa.ArrowException, OSError) as error:
        if not cached:
            raise
        logger.warning(f"the cached {file.name} is damaged ({_first_line(error)}) and is made anew")
        for path in cached:
            path.unlink()
        return run()


def _cache_key(split: Dataset, function: Callable, options: dict) -> str:
    """Hash of everything that the result of the map depends on."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    versions = (datasets.__version__, PIL.__version__, transformers.__version__)
    digest.update(repr((function.__name__, versions, options)).encode())
    flat = split.flatten()
    files = [path for column in ("image", "label") for path in flat[f"{column}.path"]]
    embedded = any(flat.data.column(f"{column}.bytes").null_count < len(flat.data) for column in ("image", "label"))
    if embedded or not all(path and os.path.isfile(path) for path in files):
        # The bytes are in Arrow files, of which `datasets` keeps track.
        digest.update(split._fingerprint.encode())
    else:
        for path in files:
            status = os.stat(path)
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    digest.update("\0".join(split["name"]).encode())
    return digest.hexdigest()[:40]


def _mask_values(image: dict, label: dict, name: str) -> dict:
    """The distinct values of a mask; none for a mask that cannot be used, of which `prepare_dataset` tells."""
    try:
        mask = _ids_of(_open(label, name), name)[0]
    except _FileProblem:
        return {"raw_values": []}
    return {"raw_values": _histogram(mask)[0].tolist()}


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
        mask, note = _read_pair(image, label, name)
        values, counts = _histogram(mask)
        result |= {"height": mask.shape[0], "width": mask.shape[1], "raw_values": values.tolist(), "note": note}
        unknown = label_map.unknown_values(values)
        if len(unknown):
            raise _FileProblem("values", f"{_file_name(label, name)} has {shorten(map(str, unknown), 5)}")
    except _FileProblem as problem:
        return result | {"problem": problem.kind, "detail": problem.detail}
    class_pixels = np.zeros(256, np.int64)
    np.add.at(class_pixels, label_map.reduce(values), counts)
    buffer = io.BytesIO()
    Image.fromarray(label_map.reduce(mask)).save(buffer, "PNG", compress_level=3)
    return result | {
        "label": {"bytes": buffer.getvalue(), "path": None},
        "class_pixels": class_pixels[: label_map.num_labels].tolist(),
    }


def _histogram(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values (n,), int64, ascending, and how many pixels have them."""
    values, counts = np.unique(mask, return_counts=True)
    return values.astype(np.int64), counts


def _file_name(value: dict, name: str) -> str:
    return Path(value["path"]).name if value["path"] else name


def _open(value: dict, name: str) -> Image.Image:
    """Decodes a file or its bytes completely, as it is stored: neither turned nor converted."""
    try:
        with Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])) as image:
            image.load()
            return image
    except Exception as error:  # a decoder may raise anything on a damaged file
        reason = str(error).split(":")[0] if isinstance(error, PIL.UnidentifiedImageError) else _first_line(error)
        raise _FileProblem("unreadable", f"{_file_name(value, name)} ({reason})") from None


def _read_pair(image: dict, label: dict, name: str) -> tuple[np.ndarray, str]:
    """The mask of a pair, raw values (H, W), turned upright as the image is, and a note on what was done for it.

    Cameras store pictures as the sensor sees them and say in the EXIF orientation how to turn them. `datasets` and
    annotation tools do so; a mask without that entry may have been drawn before or after.
    """
    picture, mask_picture = _open(image, name), _open(label, name)
    if picture.mode.startswith(("I", "F")):
        raise _FileProblem("image depth", f"{_file_name(image, name)} (mode {picture.mode})")
    mask, note = _ids_of(mask_picture, _file_name(label, name))
    stored, upright = picture.size, ImageOps.exif_transpose(picture).size
    turned = ImageOps.exif_transpose(mask_picture)
    if turned.size == upright:
        mask = _ids_of(turned, name)[0]
    elif mask_picture.size == stored:
        mask_picture.getexif()[EXIF_ORIENTATION] = picture.getexif()[EXIF_ORIENTATION]
        mask = _ids_of(ImageOps.exif_transpose(mask_picture), name)[0]
        note = "turned along with their images (EXIF orientation)"
    elif mask_picture.size == upright:
        note = "taken as stored, against their EXIF orientation, to fit their images"
    else:
        sizes = " but ".join("x".join(map(str, size)) for size in (turned.size, upright))
        raise _FileProblem("size", f"{_file_name(label, name)} is {sizes.replace('but', 'but its image')}")
    return mask, note


def _ids_of(mask: Image.Image, file_name: str) -> tuple[np.ndarray, str]:
    """A decoded mask → its values (H, W), any integer dtype, and a note.

    Palette indices, 16-bit values and single bits (0, 1) are read as ids.
    """
    array = np.asarray(mask)
    if mask.mode == "1":
        return array.astype(np.uint8), ""
    if mask.mode in ("L", "P") or mask.mode.startswith("I"):
        return array, ""
    channels = array.reshape(*array.shape[:2], -1)
    if mask.mode in ("LA", "RGBA") and channels[..., -1].min() == channels[..., -1].max():
        channels = channels[..., :-1]
    if mask.mode != "F" and mask.mode != "PA" and (channels == channels[..., :1]).all():
        return channels[..., 0], f"read from one of several equal channels (mode {mask.mode})"
    raise _FileProblem("mask mode", f"{file_name} (mode {mask.mode})")


def _raise_problems(prepared: dict[str, Dataset], label_map: LabelMap) -> None:
    """One UserError for everything that was found, a line for each kind of problem."""
    details, raw_values, all_values = defaultdict(list), set(), set()
    for split_name, rows in prepared.items():
        columns = (rows[column] for column in ("problem", "detail", "raw_values"))
        for problem, detail, values in zip(*columns, strict=True):
            all_values.update(values)
            if problem:
                details[problem].append(f"{split_name}: {detail}")
            if problem == "values":
                raw_values.update(values)
    _refuse_binary_masks(all_values)
    lines = []
    for problem, (what, fix) in PROBLEMS.items():
        if problem in details:
            if problem == "values":
                fix = _likely_cause(raw_values, all_values, label_map, details[problem])
            lines.append(f"{len(details[problem])} {what} - {shorten(details[problem])}: {fix}")
    if lines:
        raise UserError("; ".join(lines) if len(lines) == 1 else "unusable files\n  " + "\n  ".join(lines))


def _likely_cause(values: set[int], all_values: set[int], label_map: LabelMap, details: list[str]) -> str:
    """Why masks may hold values that are no class, and what would mend it."""
    unknown = sorted(label_map.unknown_values(np.array(sorted(values))).tolist())
    allowed = f"{label_map.raw_values[0]} to {label_map.raw_values[-1]}"
    listed = shorten(map(str, unknown), 5)
    known = f"allowed are {allowed} and 255 for ignored"
    one_above = [label_map.num_labels]
    if any(Path(detail.split(" has ")[0]).suffix.lower() in LOSSY_EXTENSIONS for detail in details):
        return f"{known}. JPEG compression changes values: masks must be PNG files"
    if not label_map.do_reduce_labels and unknown == one_above:
        if 0 not in all_values:
            return f"{known}, and 0 never occurs. Ids seem to count from 1: --do_reduce_labels"
        return (
            f"{known}. If 0 stands for unlabelled and ids count from 1: --do_reduce_labels; "
            f"if {listed} stands for no class: --ignore_values {unknown[0]}; else the class list lacks a class"
        )
    if label_map.do_reduce_labels and unknown == [label_map.num_labels + 1]:
        return f"{known}. If ids count from 0: --no_do_reduce_labels; else the class list (--id2label) lacks a class"
    if len(unknown) <= 2:
        flag = " ".join(map(str, unknown))
        return f"{known}. If {listed} stands for no class (void): --ignore_values {flag}; else give another --id2label"
    return f"{known}. The list of {label_map.num_labels} classes does not fit these masks: give theirs with --id2label"


def _log_statistics(dataset: DatasetDict, prepared: dict[str, Dataset], label_map: LabelMap) -> None:
    """What is odd but valid: turned masks, images without labels, classes that cannot be learnt."""
    for name, rows in prepared.items():
        for note, count in Counter(filter(None, rows["note"])).items():
            logger.warning(f"{name}: {count} masks were {note}")
        class_pixels = np.array(rows["class_pixels"])
        empty = [dataset[name]["name"][int(i)] for i in np.flatnonzero(class_pixels.sum(axis=1) == 0)]
        if len(empty) == len(rows):
            raise UserError(
                f"{name}: every pixel of all {len(rows)} masks is ignored; see --do_reduce_labels, --ignore_values"
            )
        if empty:
            logger.warning(f"{name}: in {len(empty)} images every pixel is ignored: {shorten(empty)}")
        if name == "train":
            absent = [label_map.id2label[int(i)] for i in np.flatnonzero(class_pixels.sum(axis=0) == 0)]
            if absent:
                logger.warning(
                    f"{len(absent)} of {label_map.num_labels} classes never occur in training: {shorten(absent, 8)}"
                )


# ---- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainTransform:
    """SegFormer's training pipeline for an image and its mask: scale jitter, crop, flip, photometric distortion.

    Source: NVlabs/SegFormer, local_configs/_base_/datasets/ade20k_repeat.py, with the mmsegmentation transforms that
    it names.

    Attributes:
        protocol: gives the crop's side (`short_side`, pixels) and the normalisation.
        scale_range: of the factor on the short side, which is drawn uniformly; the aspect is kept.
        max_class_share: a crop in which one class has this share of the labelled pixels is drawn again, ten times at
            most.
        flip_probability: of the horizontal flip.
        photometric_distortion: whether colours are changed.
    """

    protocol: EvaluationProtocol
    scale_range: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    flip_probability: float = 0.5
    photometric_distortion: bool = True

    def __call__(self, image: Image.Image, label: Image.Image, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """RGB image and mask of training ids of one size → float32 "pixel_values" (3, S, S), uint8 "labels" (S, S)."""
        side = self.protocol.short_side
        pixels, mask = tvF.pil_to_tensor(image), tvF.pil_to_tensor(label)
        size = self._jittered_size(image.height, image.width, rng)
        pixels = tvF.resize(pixels, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
        mask = tvF.resize(mask, size, interpolation=InterpolationMode.NEAREST_EXACT)
        window = self._crop_window(mask, rng)
        pixels, mask = tvF.crop(pixels, *window), tvF.crop(mask, *window)
        if rng.random() < self.flip_probability:
            pixels, mask = tvF.horizontal_flip(pixels), tvF.horizontal_flip(mask)
        if self.photometric_distortion:
            pixels = distort_colors(pixels, rng)
        padding = [0, 0, side - pixels.shape[-1], side - pixels.shape[-2]]  # right and below
        pixel_values = tvF.pad(self.protocol.normalize(pixels), padding, fill=0.0)
        return {"pixel_values": pixel_values, "labels": tvF.pad(mask, padding, fill=IGNORE_INDEX)[0]}

    def _jittered_size(self, height: int, width: int, rng: np.random.Generator) -> list[int]:
        ratio = rng.uniform(*self.scale_range)
        short, long = (
            int(side * ratio) for side in (self.protocol.short_side, self.protocol.short_side * MAX_ASPECT_RATIO)
        )
        scale = min(short / min(height, width), long / max(height, width))
        return [max(1, int(side * scale + 0.5)) for side in (height, width)]

    def _crop_window(self, mask: torch.Tensor, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop of the mask (1, H, W)."""
        height, width = (min(self.protocol.short_side, side) for side in mask.shape[-2:])
        for _ in range(11):  # the first draw and ten more
            top = int(rng.integers(mask.shape[-2] - height + 1))
            left = int(rng.integers(mask.shape[-1] - width + 1))
            counts = torch.bincount(mask[0, top : top + height, left : left + width].flatten(), minlength=256)
            counts = counts[:IGNORE_INDEX]
            if (counts > 0).sum() > 1 and counts.max() < self.max_class_share * counts.sum():
                break
        return top, left, height, width


def distort_colors(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Photometric distortion of an RGB image, uint8 (3, H, W) → the same.

    In this order and each with probability 1/2: brightness up or down by at most 32, contrast × 0.5…1.5, saturation
    × 0.5…1.5, hue turned by at most 36 degrees; contrast comes last instead of second in half of all cases.
    Source: `PhotoMetricDistortion` of mmsegmentation, hue_delta=18 in OpenCV's unit of two degrees. torchvision's
    RandomPhotometricDistort has other formulas and permutes channels. Every step maps 8-bit values of one channel, in
    RGB or HSV, so tables do.
    """
    values = np.arange(256, dtype=np.float64)

    def table(gain: float = 1.0, offset: float = 0.0) -> np.ndarray:
        return np.clip(values * gain + offset, 0, 255).astype(np.uint8)

    def drawn(low: float, high: float, neutral: float) -> float:
        return rng.uniform(low, high) if rng.random() < 0.5 else neutral

    brightness = table(offset=drawn(-32, 32, 0.0))
    contrast = table(gain=drawn(0.5, 1.5, 1.0))
    saturation = table(gain=drawn(0.5, 1.5, 1.0))
    hue = round(drawn(-36, 36, 0.0) / 360 * 256)  # Pillow's circle has 256 steps
    contrast_first = rng.random() < 0.5

    before = contrast[brightness] if contrast_first else brightness
    image = Image.fromarray(before[pixels.permute(1, 2, 0).numpy()])
    if hue or saturation[255] != 255 or saturation[254] != 254:
        turned = (np.arange(256) + hue) % 256
        hsv = image.convert("HSV").point([*turned.tolist(), *saturation.tolist(), *range(256)])
        image = hsv.convert("RGB")
    if not contrast_first:
        image = image.point(contrast.tolist() * 3)
    return tvF.pil_to_tensor(image)


class SegmentationDataset(torch.utils.data.Dataset):
    """Examples for the model from a split of `prepare_dataset`, decoded and transformed as they are read.

    With a `TrainTransform`: float32 "pixel_values" (3, S, S) and uint8 "labels" (S, S), random as a function of seed,
    epoch and index alone, so that neither a resumed run nor the number of workers changes them. With an
    `EvaluationProtocol`: "pixel_values" (3, h, w) as the network is to see them, "labels" (H, W) as annotated.
    """

    def __init__(self, split: Dataset, transform: TrainTransform | EvaluationProtocol, seed: int = 0):
        self.split = split
        self.transform = transform
        self.seed = seed
        # In shared memory, where workers that live through several epochs see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random transforms of an epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.split[index]
        if isinstance(self.transform, TrainTransform):
            rng = np.random.default_rng([self.seed, int(self._epoch), index])
            return self.transform(row["image"], row["label"], rng)
        return {
            "pixel_values": self.transform.preprocess(row["image"]),
            "labels": tvF.pil_to_tensor(row["label"])[0],
        }


def collate_train(examples: list[dict]) -> dict[str, torch.Tensor]:
    """→ float32 "pixel_values" (B, 3, S, S), int64 "labels" (B, S, S)."""
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.stack([example["labels"] for example in examples]).long(),
    }


def collate_eval(examples: list[dict]) -> dict[str, list[torch.Tensor]]:
    """→ lists, as the images have different sizes."""
    return {key: [example[key] for example in examples] for key in ("pixel_values", "labels")}
