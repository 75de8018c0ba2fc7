"""From a user's files to the model's inputs.

    dataset = load_segmentation_dataset(dataset_dir="my_photos")        # image, label as in the files, name
    label_map = resolve_label_map(dataset, dataset_dir="my_photos")     # raw annotation value <-> training id
    dataset = prepare_dataset(dataset, label_map)                       # labels checked and reduced, cached
    train_dataset = SegmentationDataset(dataset["train"], TrainTransform(protocol), seed=42)
    eval_dataset = SegmentationDataset(dataset["validation"], protocol)

The steps have modules of their own: `layout_utils` finds pairs in a folder, `label_utils` knows the classes,
`prepare_utils` checks and caches, `transform_utils` augments.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, Value
from PIL import Image
from torchvision.transforms.v2 import functional as tvF

import visual_utils
from cli_utils import UserError, nearest
from image_utils import read_channels, rgb_view
from label_utils import MAX_LABELS, LabelMap, read_class_list
from layout_utils import detect_layout, find_dataset, shorten, standard_split_name
from metrics_utils import IGNORE_INDEX
from prepare_utils import annotation_values, first_line, prepare_dataset, undecoded
from protocol_utils import EvaluationProtocol
from transform_utils import TrainTransform

__all__ = [
    "DatasetArguments",
    "LabelMap",
    "SegmentationDataset",
    "TrainTransform",
    "augmentation_preview",
    "collate_eval",
    "collate_train",
    "load_segmentation_dataset",
    "prepare_dataset",
    "read_class_list",
    "resolve_label_map",
]

logger = logging.getLogger(__name__)

LABELS = Path(__file__).parent / "labels"
CLASS_LIST_FILES = ("id2label.json", "labels.json", "classes.json")
IMAGE_COLUMNS = ("image", "pixel_values", "img", "images", "input", "photo", "picture")
LABEL_COLUMNS = (
    *("label", "annotation", "mask", "segmentation_mask", "semantic_mask", "segmentation", "labels", "annotations"),
    *("masks", "seg_map", "label_image", "gt", "ground_truth"),
)


@dataclass
class DatasetArguments:
    """Which data, and what its annotations mean."""

    dataset_dir: str | None = field(default=None, metadata={"help": "folder with images and masks (layouts: README)"})
    dataset_name: str | None = field(
        default=None, metadata={"help": "instead: a Hub dataset, or anything datasets.load_dataset takes"}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "configuration of the Hub dataset"})
    image_column: str | None = field(default=None, metadata={"help": "default: found by name and type"})
    label_column: str | None = field(default=None, metadata={"help": "default: found by name and type"})
    id2label: str | None = field(
        default=None,
        metadata={"help": "class names: JSON {id: name}, a list of {id, name, color}, or a CSV with those"},
    )
    do_reduce_labels: bool | None = field(
        default=None,
        metadata={
            "help": "annotation 0 becomes 255 (ignored), all others go down by one; "
            "default: on for ADE20K layouts and scene_parse_150, else off",
            "aliases": ["--reduce_labels"],
            "nargs": "?",
            "const": True,
        },
    )
    ignore_values: list[int] = field(
        default_factory=list, metadata={"help": "raw annotation values that become 255 (ignored), besides 255 itself"}
    )
    train_val_split: float | None = field(
        default=None, metadata={"help": "share of the images kept for validation where the dataset has no such split"}
    )


# ---- classes --------------------------------------------------------------------------------------------------------


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
        values = annotation_values(dataset, cache_dir, num_proc)
        id2label = _infer_classes(values, do_reduce_labels, ignore_values)
    return LabelMap(id2label, palette, do_reduce_labels, tuple(ignore_values))


def _infer_classes(values: set[int], do_reduce_labels: bool, ignore_values: Sequence[int]) -> dict[int, str]:
    """One class for each value from the first to the highest; those in between may be missing in the masks."""
    classes = sorted(values - {IGNORE_INDEX, *ignore_values} - ({0} if do_reduce_labels else set()))
    if not classes:
        raise UserError("no mask holds a value that stands for a class, so there is nothing to learn")
    listed = shorten(map(str, classes), 20)
    if classes[0] < 0 or classes[-1] >= MAX_LABELS:
        raise UserError(
            f"the masks hold the values {listed}; class ids are 0 to {MAX_LABELS - 1}. "
            "If some stand for no class, name them with --ignore_values"
        )
    logger.info(
        f"no class list was given: classes are named after the values in the masks ({listed}); "
        "--id2label FILE gives them names"
    )
    first = int(do_reduce_labels)
    return {raw - first: f"class_{raw}" for raw in range(first, classes[-1] + 1)}


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
            f"--dataset_name {name}: the Hub cannot be reached ({first_line(error)}); "
            "--dataset_dir FOLDER works without network"
        ) from None
    except (FileNotFoundError, ValueError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(
            f"--dataset_name {name} cannot be loaded: {first_line(error)} "
            "(images and masks in a folder are read with --dataset_dir FOLDER, without network)"
        ) from None
    if isinstance(loaded, Dataset):
        loaded = DatasetDict({standard_split_name(str(loaded.split)) or "train": loaded})
    return loaded


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
    paths = list(undecoded(split).flatten()["image.path"])
    stems = [Path(path).stem for path in paths if path]
    if len(set(stems)) < len(split):
        stems = [f"{split_name}_{index:06d}" for index in range(len(split))]
    return split.add_column("name", stems)


def _is_image(feature) -> bool:
    """Image, or what an Image column is in a parquet file without the features' description."""
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})


def _find_column(split: Dataset, kind: str, wanted: str | None, known: Sequence[str], taken: str | None) -> str:
    """The column of images with a known name, or else the only one whose name says nothing; `taken` is the other."""
    if wanted is not None:
        if wanted not in split.features:
            raise UserError(f"--{kind}_column {wanted}: no such column{nearest(wanted, split.column_names)}")
        if not _is_image(split.features[wanted]):
            raise UserError(f"--{kind}_column {wanted} holds {split.features[wanted]}, not images (`datasets.Image`)")
        return wanted
    columns = [name for name, feature in split.features.items() if _is_image(feature) and name != taken]
    by_name = [name for name in columns if name.lower() in known]
    others = [name for name in columns if name.lower() not in (*IMAGE_COLUMNS, *LABEL_COLUMNS)]
    candidates = by_name or others
    if len(candidates) == 1:
        return candidates[0]
    described = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in split.features.items())
    raise UserError(
        f"{' and '.join(candidates) or 'none'} of the columns could be the {kind}s: {described}; "
        f"say which with --{kind}_column (it must hold `datasets.Image`)"
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
        sides = _read_split_file(split_file, names, fraction)
        logger.info(f"training and validation images as listed in {split_file}")
    else:
        count = min(max(round(fraction * len(names)), 1), len(names) - 1)
        if count < 1:
            raise UserError(f"--train_val_split {fraction}: a training split of {len(names)} image cannot be parted")
        order = np.random.default_rng(seed).permutation(len(names))
        sides = {"train": sorted(order[count:].tolist()), "validation": sorted(order[:count].tolist())}
        if split_file is not None:
            listed = {side: [names[index] for index in indices] for side, indices in sides.items()}
            content = {"train_val_split": fraction, "seed": seed, **listed}
            split_file.parent.mkdir(parents=True, exist_ok=True)
            split_file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    logger.info(
        f"split by --train_val_split {fraction}: train {len(sides['train'])}, validation {len(sides['validation'])}"
    )
    parts = {side: train.select(indices) for side, indices in sides.items()}
    return DatasetDict(parts | {name: rows for name, rows in dataset.items() if name != "train"})


def _read_split_file(path: Path, names: list[str], fraction: float) -> dict[str, list[int]]:
    """Rows of both sides, in the file's order."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        made_with = content["train_val_split"]
        sides = {side: list(content[side]) for side in ("train", "validation")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); delete it to split anew") from None
    if made_with != fraction:
        raise UserError(
            f"--train_val_split is {fraction}, but {path} was made with {made_with}; "
            "give that value, or delete the file, or give another --output_dir"
        )
    changed = sorted(set(names) ^ {*sides["train"], *sides["validation"]})
    if changed:
        raise UserError(
            f"{path} does not fit the dataset: {len(changed)} names are in one of the two only "
            f"({shorten(changed)}); delete it to split anew, or give another --output_dir"
        )
    position = {name: index for index, name in enumerate(names)}
    return {side: [position[name] for name in listed] for side, listed in sides.items()}


# ---- reading --------------------------------------------------------------------------------------------------------


class SegmentationDataset(torch.utils.data.Dataset):
    """Examples for the model from a split of `prepare_dataset`, decoded and transformed as they are read.

    With a `TrainTransform`: float32 "pixel_values" (C, S, S) and uint8 "labels" (S, S), random as a function of seed,
    epoch and index alone, so that neither a resumed run nor the number of workers changes them. With an
    `EvaluationProtocol`: "pixel_values" (C, h, w) as the network is to see them, "labels" (H, W) as annotated. The
    protocol's number of channels decides how image files are read, see `read`.
    """

    def __init__(self, split: Dataset, transform: TrainTransform | EvaluationProtocol, seed: int = 0):
        self.protocol = transform.protocol if isinstance(transform, TrainTransform) else transform
        if self.protocol.num_channels != 3:
            split = split.cast_column("image", datasets.Image(decode=False))
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

    def read(self, index: int) -> tuple[Image.Image | torch.Tensor, Image.Image]:
        """Image and mask of training ids before any transform; the image is RGB, or uint8 (C, H, W) where the protocol
        has another number of channels than three (see `image_utils.read_channels`, also for what it raises)."""
        row = self.split[index]
        image = row["image"]
        if self.protocol.num_channels != 3:
            source = image["path"] if image["bytes"] is None else image["bytes"]
            image = read_channels(source, self.protocol.num_channels, image["path"])
        return image, row["label"]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image, label = self.read(index)
        if isinstance(self.transform, TrainTransform):
            rng = np.random.default_rng([self.seed, int(self._epoch), index])
            return self.transform(image, label, rng)
        return {"pixel_values": self.transform.preprocess(image), "labels": tvF.pil_to_tensor(label)[0]}


def augmentation_preview(
    dataset: SegmentationDataset, label_map: LabelMap, samples: int = 8, draws: int = 4
) -> Image.Image:
    """What a training dataset's `TrainTransform` does, as a picture: some images, evenly spread, and what each becomes
    in the first epochs, with its mask. Ignored pixels are black, and padding is the grey that normalises to zero.

    Args:
        samples: images, a row for each.
        draws: epochs.
    """
    names, epoch = dataset.split["name"], int(dataset._epoch)
    rows = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, samples).round().astype(int)).tolist():
        drawn = []
        for draw in range(draws):
            dataset.set_epoch(draw)
            example = dataset[index]
            drawn.append((rgb_view(dataset.protocol.denormalize(example["pixel_values"])), example["labels"].numpy()))
        rows.append((names[index], rgb_view(dataset.read(index)[0]), drawn))
    dataset.set_epoch(epoch)
    return visual_utils.augmentation_sheet(rows, label_map.colors(), label_map.id2label, IGNORE_INDEX)


def collate_train(examples: list[dict]) -> dict[str, torch.Tensor]:
    """→ float32 "pixel_values" (B, C, S, S), int64 "labels" (B, S, S)."""
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.stack([example["labels"] for example in examples]).long(),
    }


def collate_eval(examples: list[dict]) -> dict[str, list[torch.Tensor]]:
    """→ lists, as the images have different sizes."""
    return {key: [example[key] for example in examples] for key in ("pixel_values", "labels")}
