"""From a user's files to the model's inputs.

    dataset = load_segmentation_dataset(dataset_dir="my_photos")        # image, label as in the files, name
    class_map = find_classes(dataset, dataset_dir="my_photos")     # raw annotation value <-> training id
    # or both from a script's flags: dataset, class_map = load_from_arguments(data_args, seed)
    dataset = prepare_dataset(dataset, class_map)                       # labels checked and reduced, cached
    train_dataset = SegmentationDataset(dataset["train"], TrainTransform(protocol), seed=42)
    eval_dataset = SegmentationDataset(dataset["validation"], protocol)

The steps have modules of their own: `layout_utils` finds pairs in a folder, `split_utils` keeps some for validation,
`label_utils` knows the classes, `prepare_utils` checks and caches, `transform_utils` augments.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, Value
from PIL import Image
from torchvision.transforms.v2 import functional as tvF

import visual_utils
from cli_utils import UserError, shorten
from data.arguments import DatasetArguments
from data.augmentation import TrainTransform
from data.classes import MAX_LABELS, ClassMap, edit_classes, map_classes, read_class_list, read_label_mapping
from data.hub_datasets import _standard_splits, load_through_datasets, standard_columns
from data.image_files import read_channels, rgb_view
from data.layouts import detect_layout
from data.outlines import annotated_classes
from data.pairing import find_dataset
from data.preparation import annotation_values
from data.preprocessing import EvaluationProtocol
from data.splitting import split_train
from metrics_utils import IGNORE_INDEX

logger = logging.getLogger(__name__)

LABELS = Path(__file__).parent / "labels"
# Ours, then those of CamVid and CVAT.
CLASS_LIST_FILES = ("id2label.json", "labels.json", "classes.json", "class_dict.csv", "labelmap.txt")


# ---- classes --------------------------------------------------------------------------------------------------------


def find_classes(
    dataset: DatasetDict | None,
    dataset_dir: str | os.PathLike | None = None,
    dataset_name: str | None = None,
    id2label_file: str | os.PathLike | None = None,
    do_reduce_labels: bool | None = None,
    ignore_values: Sequence[int] = (),
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
    merge_classes: Sequence[str] = (),
    drop_classes: Sequence[str] = (),
    label_map_file: str | os.PathLike | None = None,
) -> ClassMap:
    """Decides which classes a dataset has and whether its labels are to be reduced; logs both.

    The class list is, in this order: `id2label_file`; one of `CLASS_LIST_FILES` inside `dataset_dir`; the names in
    annotations that outline objects (COCO, Labelme, YOLO), which a file must not contradict; ADE20K's or Cityscapes'
    for a folder in their layout and for scene_parse_150; else the values that occur in the masks, each called
    `class_` and its value. A value that never occurs is then no class and gets no id.

    Args:
        dataset: of `load_segmentation_dataset`; masks are read only where the classes come from them, which None
            forbids.
        do_reduce_labels: None means on for the ADE20K layout and scene_parse_150, else off.
        ignore_values: raw values that are ignored, besides 255.
        cache_dir, num_proc: as for `prepare_dataset`.
        merge_classes, drop_classes: see `data.classes.edit_classes`.
        label_map_file: instead of these two, see `data.classes.map_classes`. Names of training ids are then those of
            `id2label_file`.
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
    mapping = read_label_mapping(label_map_file) if label_map_file else None

    # Where a table maps values to ids, the class list names those ids and not what the annotations hold.
    names_values = mapping is None or any(isinstance(key, str) for key in mapping)
    classes = _known_classes(dataset, dataset_dir, id2label_file, layout, do_reduce_labels, names_values)
    ignore_values = tuple(ignore_values)
    if classes:
        class_map = ClassMap(*classes, do_reduce_labels, ignore_values)
    elif mapping is not None:
        class_map = None
    elif dataset is None:
        raise UserError("--streaming needs to know the classes beforehand: give --id2label FILE or --label_map FILE")
    else:
        class_map = _infer_classes(annotation_values(dataset, cache_dir, num_proc), do_reduce_labels, ignore_values)

    if mapping is not None:
        return map_classes(mapping, label_map_file, class_map, classes if id2label_file else None, ignore_values)
    if merge_classes or drop_classes:
        return edit_classes(class_map, merge_classes, drop_classes)
    return class_map


def _known_classes(
    dataset: DatasetDict | None,
    dataset_dir,
    id2label_file,
    layout: str | None,
    do_reduce_labels: bool,
    names_values: bool,
) -> tuple[dict[int, str], list[list[int]] | None] | None:
    """Names and colours by training id, from the first place that has them; None where none has.

    names_values: a class list says what annotations hold, so it must agree with the names that these have themselves.
    """
    inside = [Path(dataset_dir, name) for name in CLASS_LIST_FILES] if dataset_dir else []
    file = id2label_file or next((path for path in inside if path.is_file()), None)
    names = annotated_classes(dataset) if dataset is not None else None
    first = int(do_reduce_labels)
    own = {value - first: name for value, name in names.items() if value >= first} if names else None
    if own and file is None:
        logger.info(f"{len(own)} classes, as the annotations name them")
        return own, None
    file = file or {"ADE20K": LABELS / "ade20k.json", "Cityscapes": LABELS / "cityscapes.json"}.get(layout)
    if file is None:
        return None
    classes = read_class_list(file)
    if own and names_values and classes[0] != own:
        listed, needed = (shorten((f"{i} {name}" for i, name in c.items()), 8) for c in (classes[0], own))
        raise UserError(
            f"class list {file} is {listed}, but the annotations name {needed}: leave it out, or give these names; "
            "--label_map renames classes"
        )
    logger.info(f"{len(classes[0])} classes from {file}")
    return classes


def _infer_classes(values: set[int], do_reduce_labels: bool, ignore_values: tuple[int, ...]) -> ClassMap:
    """One class for each value that occurs."""
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
    id2label = {i: f"class_{raw}" for i, raw in enumerate(classes)}
    first = int(do_reduce_labels)
    if classes == list(range(first, first + len(classes))):
        return ClassMap(id2label, None, do_reduce_labels, ignore_values)
    raw_to_id = {raw: i for i, raw in enumerate(classes)} | ({0: IGNORE_INDEX} if do_reduce_labels else {})
    return ClassMap(id2label, ignore_values=ignore_values, raw_to_id=raw_to_id)


# ---- loading --------------------------------------------------------------------------------------------------------


def load_from_arguments(
    args: DatasetArguments,
    seed: int = 42,
    split_file: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | None = None,
) -> tuple[DatasetDict, ClassMap]:
    """What a script's flags ask for: the dataset as its files have it, and what their values mean.

    Args:
        seed, split_file, token: as for `load_segmentation_dataset`.
        cache_dir: as for `prepare_dataset`.

    Raises:
        UserError: flags that do not fit together, and whatever is wrong with dataset or classes.
    """
    if not (args.dataset_dir or args.dataset_name):
        raise UserError("no data: give --dataset_dir FOLDER or --dataset_name HUB_ID")
    if args.label_map and (args.merge_classes or args.drop_classes):
        raise UserError("--label_map says it all: leave out --merge_classes and --drop_classes, or --label_map")
    dataset = load_segmentation_dataset(
        dataset_dir=args.dataset_dir,
        dataset_name=args.dataset_name,
        dataset_config_name=args.dataset_config_name,
        image_column=args.image_column,
        label_column=args.label_column,
        train_val_split=args.train_val_split,
        split_groups=args.split_groups,
        seed=seed,
        split_file=split_file,
        token=token,
    )
    return dataset, resolve_from_arguments(dataset, args, cache_dir)


def resolve_from_arguments(
    dataset: DatasetDict | None, args: DatasetArguments, cache_dir: str | os.PathLike | None = None
) -> ClassMap:
    """`find_classes` as a script's flags ask for; dataset and cache_dir as there."""
    return find_classes(
        dataset,
        dataset_dir=args.dataset_dir,
        dataset_name=args.dataset_name,
        id2label_file=args.id2label,
        do_reduce_labels=args.do_reduce_labels,
        ignore_values=args.ignore_values,
        cache_dir=cache_dir,
        merge_classes=args.merge_classes,
        drop_classes=args.drop_classes,
        label_map_file=args.label_map,
    )


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
    split_groups: str | None = None,
) -> DatasetDict:
    """Loads a dataset from a folder (layouts: `data.layouts.LAYOUTS`) or through `datasets`.

    Args:
        dataset_dir: folder with images and masks; or else
        dataset_name: Hub id, a folder of `save_to_disk`, a parquet file, or anything `datasets.load_dataset` takes.
        image_column, label_column: default: found by name and type.
        train_val_split: share of the training images that becomes the validation split, for datasets without one.
        seed, split_file, split_groups: of that split, as for `data.splitting.split_train`.
        cache_dir, token: as for `datasets.load_dataset`.

    Returns:
        "train", "validation", "test", those that are there, with the columns "image" (PIL RGB, upright, decoded when
        read), "label" (PIL, as in the file) and "name" (unique in its split, without extension).

    Raises:
        UserError: nothing or nothing usable is there; the message says what was looked for.
    """
    if (dataset_dir is None) == (dataset_name is None):
        raise ValueError("give either dataset_dir or dataset_name")
    if split_groups is not None and train_val_split is None:
        raise UserError("--split_groups belongs to a split: add --train_val_split 0.2")
    if dataset_dir is not None:
        found = find_dataset(dataset_dir, image_column, label_column)
        dataset = DatasetDict({split: _dataset_of_pairs(pairs) for split, pairs in found.splits.items()})
    else:
        loaded = load_through_datasets(str(dataset_name), dataset_config_name, cache_dir, token)
        dataset = _standard_splits(loaded, dataset_name)
        dataset = DatasetDict(
            {split: standard_columns(rows, split, image_column, label_column) for split, rows in dataset.items()}
        )
    if train_val_split is not None:
        dataset = split_train(dataset, train_val_split, seed, split_file, split_groups)
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
        has another number of channels than three (see `data.image_files.read_channels`, also for what it raises)."""
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
    dataset: SegmentationDataset, class_map: ClassMap, samples: int = 8, draws: int = 4
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
    return visual_utils.augmentation_sheet(rows, class_map.colors(), class_map.id2label, IGNORE_INDEX)


def collate_train(examples: list[dict]) -> dict[str, torch.Tensor]:
    """→ float32 "pixel_values" (B, C, S, S), int64 "labels" (B, S, S)."""
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.stack([example["labels"] for example in examples]).long(),
    }


def collate_eval(examples: list[dict]) -> dict[str, list[torch.Tensor]]:
    """→ lists, as the images have different sizes."""
    return {key: [example[key] for example in examples] for key in ("pixel_values", "labels")}
