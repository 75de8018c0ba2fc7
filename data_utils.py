"""From a user's files to the model's inputs: load, find the classes, prepare, hand out examples.

    data = load_data(DatasetArguments(dataset_dir="my_photos"))         # images and masks as in the files
    class_map = find_classes(data, ClassArguments())                    # raw annotation value <-> training id
    dataset = prepare_dataset(data.splits, class_map)                   # labels checked and reduced, cached
    train_dataset = SegmentationDataset(dataset["train"], TrainTransform(protocol), seed=42)
    eval_dataset = SegmentationDataset(dataset["validation"], protocol)

Each step has modules of its own in `data/`: `pairing` finds pairs in a folder, `hub_datasets` and `streaming` read
what `datasets` knows, `splitting` keeps some images for validation, `classes` knows the values, `preparation` reads
every file once, `augmentation` and `preprocessing` make pixels of images.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
from datasets import Dataset, DatasetDict, Features, IterableDataset, Value
from PIL import Image

import visual_utils
from cli_utils import UserError, count_of, shorten
from data.arguments import ClassArguments, DatasetArguments
from data.classes import (
    MAX_LABELS,
    ClassMap,
    class_map_of_list,
    edit_classes,
    map_classes,
    read_class_list,
    read_label_mapping,
    two_class_map,
)
from data.hub_datasets import class_list_folder, load_through_datasets, standard_columns, standard_splits
from data.image_files import StoredFile, decode_image, rgb_view
from data.layouts import Pair, visible_folders
from data.mask_values import SAMPLE, annotation_values, are_binary, looks_published, read_mask_values
from data.pairing import PairingFlags, find_dataset
from data.preparation import undecoded
from data.rare_classes import RareClassCrops
from data.splitting import split_train
from data.stored_masks import decode_mask
from data.streams import NO_CLASS_LIST, open_streams
from data.synonyms import CLASS_LIST_FILES, IGNORED_BY_FORMAT, POSSIBLE_CLASS_LIST_FILES, POSSIBLE_COCO_FILES
from metrics_utils import IGNORE_INDEX

if TYPE_CHECKING:  # finding and checking a dataset needs no tensors, and torch takes seconds to import
    import torch

    from data.augmentation import TrainTransform
    from data.preprocessing import EvaluationProtocol

logger = logging.getLogger(__name__)

LABELS = Path(__file__).parent / "labels"
# Datasets whose classes and label reduction are known → their class list.
PUBLISHED = {"ADE20K": LABELS / "ade20k.json", "Cityscapes": LABELS / "cityscapes.json"}
# Layouts whose masks hold other values than those that training uses → the table of both.
VALUES_ON_REQUEST = {"Cityscapes label ids": LABELS / "cityscapes_label_ids.yaml"}
ADE20K_ON_THE_HUB = "scene_parse_150"
HUB_LAYOUT = "Hub dataset"
NAME_BYTES = 128  # of an image's name, kept in a batch


@dataclass(frozen=True)
class Data:
    """A dataset as its files have it, and what finding it told.

    Attributes:
        source: what messages call it: its folder or its name.
        splits: "train", "validation", "test", those that are there, with the columns "image" (PIL RGB, upright,
            decoded when read), "label" (PIL, as in the file) and "name" (unique in its split, without extension).
        layout: a key of `data.layouts.LAYOUTS`, or `HUB_LAYOUT`.
        published: the key of `PUBLISHED` that its folders or its name speak of. Its classes and label reduction are
            taken by default if the values in the masks look like it, see `find_classes`.
        class_names: value in the masks → class, where the annotations themselves name classes (outlines).
        images_alone, masks_alone: files that are left out as they have no counterpart.
        hidden: of outlines, "split/name" of an image → objects in it that smaller ones hide entirely.
        unread: files beside them that are pictures of kinds that are not read.
        folder: where it lies on this disk; of a Hub dataset, the cached part of its repository if it has a class list.
        num_channels: bands of its images.
        left_out: sentences on other files of the folder that are not used.
        stream: with `--streaming`, the training images as {"bytes", "path"} of "image" and "label"; `splits` then has
            the images to evaluate alone.
    """

    source: str
    splits: DatasetDict
    layout: str = HUB_LAYOUT
    published: str | None = None
    class_names: dict[int, str] | None = None
    images_alone: list[Path] = field(default_factory=list)
    masks_alone: list[Path] = field(default_factory=list)
    folder: Path | None = None
    num_channels: int = 3
    hidden: dict[str, list[str]] = field(default_factory=dict)
    stream: IterableDataset | None = None
    left_out: tuple[str, ...] = ()
    unread: list[Path] = field(default_factory=list)

    def files(self) -> Iterator[str]:
        """The image and mask files on this disk that it was read from, and those that are left out."""
        for rows in self.splits.values():
            columns = undecoded(rows.select_columns(["image", "label"])).flatten()
            for column in ("image", "label"):
                # Beside bytes stands the name that they had somewhere.
                yield from (path for path in columns[f"{column}.path"] if path and os.path.isabs(path))
        yield from map(str, [*self.images_alone, *self.masks_alone])


# ---- loading --------------------------------------------------------------------------------------------------------


def load_data(
    args: DatasetArguments,
    seed: int = 42,
    split_file: str | os.PathLike | None = None,
    token: str | None = None,
    max_eval_samples: int | None = None,
    num_channels: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    needs_class_list: bool = False,
) -> Data:
    """What a script's flags name: from a folder (layouts: `data.layouts.LAYOUTS`) or through `datasets`.

    Args:
        seed, split_file: of `--train_val_split`, as for `data.splitting.split_train`.
        token, cache_dir: as for `datasets.load_dataset`.
        max_eval_samples: with `--streaming`, how many images to evaluate; None for none.
        num_channels: bands of the images where the flags do not say; None for 3.
        needs_class_list: no flag names the classes, so a stream without a list of its own is refused.

    Raises:
        UserError: nothing or nothing usable is there; the message says what was looked for.
    """
    source, num_channels = args.source, args.num_channels or num_channels or 3
    if args.is_folder:
        flags = PairingFlags(args.images, args.masks, args.mask_suffix, args.image_suffix)
        found = find_dataset(args.dataset_dir, args.image_column, args.label_column, flags)
        data = Data(
            source,
            DatasetDict({split: _dataset_of_pairs(pairs) for split, pairs in found.splits.items()}),
            found.layout,
            found.layout if found.layout in PUBLISHED else None,
            found.class_names,
            found.images_alone,
            found.masks_alone,
            found.folder,
            num_channels,
            hidden=found.hidden,
            left_out=tuple(found.left_out),
            unread=found.unread,
        )
    else:
        stream = None
        if args.streaming:
            stream, splits = open_streams(args, max_eval_samples, token)
        else:
            loaded = standard_splits(load_through_datasets(source, args.dataset_config_name, cache_dir, token), source)
            columns = args.image_column, args.label_column
            splits = DatasetDict({split: standard_columns(rows, split, *columns) for split, rows in loaded.items()})
        published = "ADE20K" if ADE20K_ON_THE_HUB in source else None
        # After the data, which say better than a list that they cannot be reached.
        folder = class_list_folder(source, CLASS_LIST_FILES, token)
        if args.streaming and needs_class_list and not (folder or published):
            raise UserError(NO_CLASS_LIST)
        data = Data(source, splits, published=published, folder=folder, num_channels=num_channels, stream=stream)
    if args.train_val_split is not None:
        parts = split_train(data.splits, args.train_val_split, seed, split_file, args.split_groups)
        data = replace(data, splits=parts)
    return data


def load_segmentation_dataset(
    seed: int = 42,
    split_file: str | os.PathLike | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    **flags,
) -> DatasetDict:
    """The splits of `load_data`, by the names of the flags: `load_segmentation_dataset(dataset_dir="my_photos")`.

    Args:
        seed, split_file, token, cache_dir: as there.
        flags: fields of `DatasetArguments`.
    """
    flags = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in flags.items()}
    return load_data(DatasetArguments(**flags), seed, split_file, token, cache_dir=cache_dir).splits


def _dataset_of_pairs(pairs: list[Pair]) -> Dataset:
    odd = [path for pair in pairs for path in (pair.image, pair.mask) if not _is_utf8(str(path.absolute()))]
    if odd:
        raise UserError(
            f"{count_of(len(odd), 'file name/names is/are')} no valid UTF-8: {shorten(map(str, odd))}; rename such "
            "files, for instance with `convmv -f latin1 -t utf8 -r --notest FOLDER`"
        )
    return Dataset.from_dict(
        {
            "image": [str(pair.image.absolute()) for pair in pairs],
            "label": [str(pair.mask.absolute()) for pair in pairs],
            "name": [pair.name for pair in pairs],
        },
        # Mode None keeps palette indices and 16-bit values of masks as they are.
        features=Features({"image": datasets.Image(mode="RGB"), "label": datasets.Image(), "name": Value("string")}),
    )


def _is_utf8(name: str) -> bool:
    """False for file names of other encodings, in which Python keeps the bytes that are none as half characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- classes --------------------------------------------------------------------------------------------------------


def find_classes(
    data: Data, args: ClassArguments, cache_dir: str | os.PathLike | None = None, num_proc: int | None = None
) -> ClassMap:
    """Decides which classes a dataset has and whether its labels are to be reduced; logs both.

    The class list is, in this order: that of `--id2label`; one of `CLASS_LIST_FILES` in the dataset's folder or Hub
    repository; the names in annotations that outline objects, which a file must not contradict; that of the published
    dataset whose folders it has, if the masks look like it too; else the values that occur in the masks, each called
    `class_` and its value. A value that never occurs is then no class and gets no id. Where all masks hold 0 and 255
    alone, 255 is the second of two classes.

    Args:
        data: of `load_data`; masks are read only where the classes come from them, or a sample of them where the
            folders are those of a published dataset or there are two classes.
        args: `do_reduce_labels` None means on for ADE20K, else off; see `data.classes.edit_classes` for merged and
            dropped classes and `data.classes.map_classes` for a label map, whose training ids `id2label` names.
        cache_dir, num_proc: as for `prepare_dataset`.

    Raises:
        UserError: class lists that cannot be read or do not fit, nothing that stands for a class, or folders of a
            published dataset with masks that may be anything.
    """
    mapping = read_label_mapping(args.label_map) if args.label_map else None
    own_list = _class_list_file(data, args.id2label)
    data, reduces, reason = _settle_published(data, args, mapping, own_list, cache_dir, num_proc)
    logger.info(f"label reduction (raw 0 ignored, others down by one): {'on' if reduces else 'off'}, {reason}")

    classes = _known_classes(data, own_list, reduces, mapping)
    ignore_values = tuple(args.ignore_values)
    may_be_binary = (
        mapping is None and data.stream is None and not reduces and not {0, IGNORE_INDEX} & {*ignore_values}
    )
    if classes and [*classes[0]] == [0, 1] and may_be_binary and _is_binary(data.splits, cache_dir, num_proc):
        logger.info(f"all masks hold the values 0 and 255 alone: 255 is {classes[0][1]} and not ignored")
        class_map = two_class_map(classes, ignore_values)
    elif classes:
        class_map = class_map_of_list(*classes, reduces, ignore_values)
    elif mapping is not None:
        class_map = None
    elif data.stream is not None:
        raise UserError(NO_CLASS_LIST)
    else:
        values = annotation_values(data.splits, cache_dir, num_proc, {*ignore_values, *[0] * reduces})
        class_map = _infer_classes(values, reduces, ignore_values, may_be_binary)

    if mapping is not None:
        named = None
        if classes and args.id2label:
            named = {i: name for i, name in classes[0].items() if i != IGNORE_INDEX}, classes[1]
        return map_classes(mapping, args.label_map, class_map, named, ignore_values)
    dropped = [*args.drop_classes]
    void = IGNORED_BY_FORMAT.get(Path(own_list).name) if own_list else None
    if void in class_map.label2id and void not in dropped:
        logger.info(f"the class {void} of {own_list} is ignored, as its format says")
        dropped.append(void)
    if args.merge_classes or dropped:
        return edit_classes(class_map, args.merge_classes, dropped)
    return class_map


def _is_binary(splits: DatasetDict, cache_dir, num_proc) -> bool:
    """Whether all masks hold 0 and 255 alone. They are all read only if a few do."""
    few = read_mask_values(splits, cache_dir, num_proc, sample=20)
    may_be = set().union(*(mask.pixels for mask in few)) <= {0, IGNORE_INDEX}
    return may_be and are_binary(read_mask_values(splits, cache_dir, num_proc))


def reduces_labels(data: Data, args: ClassArguments) -> bool:
    """Whether labels are to be reduced, as `find_classes` decides it."""
    mapping = read_label_mapping(args.label_map) if args.label_map else None
    return _settle_published(data, args, mapping, _class_list_file(data, args.id2label), None, None)[1]


def _settle_published(
    data: Data, args: ClassArguments, mapping: dict | None, own_list: str | Path | None, cache_dir, num_proc
) -> tuple[Data, bool, str]:
    """The data, with `published` None where it is not to be taken for that; whether to reduce labels, and why.

    The folders of a dataset say how its files lie, and not what their values mean: somebody's masks of 0 and 1 in the
    folders of ADE20K would be reduced to a single class, "wall", and score 1.0.
    """
    asked, published = args.do_reduce_labels, data.published
    default = published == "ADE20K"
    reduces = default if asked is None else asked
    reason = "asked for" if asked is not None else f"default for {published or data.layout}"
    by_value = mapping is not None and not any(isinstance(key, str) for key in mapping)
    if published is None or data.stream is not None or (by_value and own_list is None and asked is None):
        return replace(data, published=None if by_value else published), reduces, reason
    masks = read_mask_values(data.splits, cache_dir, num_proc, SAMPLE)
    if looks_published(published, masks, shift=int(default and not reduces)):
        return data, reduces, reason
    other = replace(data, published=None)
    if own_list is not None and (not default or asked is not None):
        return other, reduces, reason
    values = sorted(set().union(*(mask.pixels for mask in masks)) - {IGNORE_INDEX})
    found = f"{data.source} has the folders of {published}, but the masks do not look like it: they hold "
    found += f"{shorten(map(str, values), 8)}"
    file = f"labels/{PUBLISHED[published].name}"
    if own_list is not None:
        ids = sorted(read_class_list(own_list)[0].keys() - {IGNORE_INDEX})
        count = len(ids)
        if ids != list(range(count)):
            return other, False, f"the ids in {own_list} are values in masks"
        if values and values[-1] >= count:  # without reduction it would belong to no class
            return other, True, f"default for {published}; {count_of(count, 'class/classes')} in {own_list}"
        raise UserError(
            f"{found}, and {own_list} names {count_of(count, 'class/classes')}. Say what 0 is: --no_do_reduce_labels "
            "if it is the first class, --do_reduce_labels if it is unlabelled and classes count from 1"
        )
    if default and asked is not None:
        return other, reduces, reason
    own = "--no_do_reduce_labels --id2label FILE" if default else "--id2label FILE"
    theirs = f"--do_reduce_labels --id2label {file}" if default else f"--id2label {file}"
    raise UserError(
        f"{found}. Say which classes they are: {own} for classes of your own{', 0 being the first' * default}; "
        f"{theirs} if they are those of {published} all the same"
    )


def _class_list_file(data: Data, id2label_file: str | None) -> str | Path | None:
    """That of the flag, or one in the dataset's folder."""
    return id2label_file or (_class_list_in(data.folder, bool(data.class_names)) if data.folder else None)


def _known_classes(
    data: Data, file: str | Path | None, reduces: bool, mapping: dict | None
) -> tuple[dict[int, str], list[list[int]] | None] | None:
    """Names and colours by training id, from the first place that has them; None where none has. file: the user's."""
    first = int(reduces)
    own = {value - first: name for value, name in (data.class_names or {}).items() if value >= first}
    if own and file is None:
        logger.info(f"{len(own)} classes, as the annotations name them")
        return own, None
    if data.layout in VALUES_ON_REQUEST and file is None and mapping is None:
        raise UserError(
            f"{data.source}: the masks are Cityscapes' *_labelIds.png, with 34 values of which 19 are classes: "
            f"--label_map {VALUES_ON_REQUEST[data.layout]} says which (or make *_labelTrainIds.png with "
            "csCreateTrainIdLabelImgs of cityscapesscripts)"
        )
    file = file or PUBLISHED.get(data.published)
    if file is None:
        return None
    classes = read_class_list(file)
    # Where a table maps values to ids, the class list names those ids and not what the annotations hold.
    names_values = mapping is None or any(isinstance(key, str) for key in mapping)
    if own and names_values and classes[0] != own:
        listed, needed = (shorten((f"{i} {name}" for i, name in c.items()), 8) for c in (classes[0], own))
        raise UserError(
            f"class list {file} is {listed}, but the annotations name {needed}: leave it out, or give these names; "
            "--label_map renames classes"
        )
    logger.info(f"{len(classes[0])} classes from {file}")
    return classes


def _class_list_in(folder: Path, has_names: bool) -> Path | None:
    """A class list in a dataset's folder or, as Roboflow has it, in those of its splits.

    has_names: the annotations name their classes themselves, so files that may belong to them are not looked at.
    """
    certain = [name for name in CLASS_LIST_FILES if not (has_names and name in POSSIBLE_COCO_FILES)]
    found = next((folder / name for name in certain if (folder / name).is_file()), None)
    if found is not None or has_names:
        return found
    folders = [folder, *visible_folders(folder)]
    for path in [below / name for name in POSSIBLE_CLASS_LIST_FILES for below in folders]:
        if not path.is_file():
            continue
        try:
            read_class_list(path)
        except UserError as error:
            logger.info(f"{path} is not taken for a list of classes: {error}")
        else:
            return path
    return None


def _infer_classes(
    values: set[int], do_reduce_labels: bool, ignore_values: tuple[int, ...], may_be_binary: bool = False
) -> ClassMap:
    """One class for each value that occurs. may_be_binary: nothing speaks against 255 as a class."""
    if values == {0, IGNORE_INDEX} and may_be_binary:
        logger.info("all masks hold the values 0 and 255 alone: 255 is a class and not ignored; --id2label names both")
        return two_class_map(ignore_values=ignore_values)
    classes = sorted(values - {IGNORE_INDEX, *ignore_values} - ({0} if do_reduce_labels else set()))
    if not classes:
        raise UserError("no mask holds a value that stands for a class, so there is nothing to learn")
    listed = shorten(map(str, classes), 20)
    if classes[0] < 0 or classes[-1] >= MAX_LABELS:
        raise UserError(
            f"the masks hold the values {listed}; class ids are 0 to {MAX_LABELS - 1}. If some stand for no class, "
            f"name them: --ignore_values {' '.join(str(v) for v in classes if not 0 <= v < MAX_LABELS)[:60]}"
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


# ---- reading --------------------------------------------------------------------------------------------------------


class SegmentationDataset:
    """Examples for the model from a split of `prepare_dataset`, decoded and transformed as they are read.

    With a `TrainTransform`: what it makes, mostly float32 "pixel_values" (C, S, S) and uint8 "labels" (S, S), and
    "name", random as a function of seed, epoch and index alone, so that neither a resumed run nor the number of
    workers changes them. With an `EvaluationProtocol`: "pixel_values" (C, h, w) as the network is to see them,
    "labels" (H, W) as annotated. The protocol's number of channels decides how image files are read, see `read`.

    rare_crops: with a `TrainTransform`, which examples show another image than that of their index, around a class.
    """

    def __init__(
        self,
        split: Dataset,
        transform: TrainTransform | EvaluationProtocol,
        seed: int = 0,
        rare_crops: RareClassCrops | None = None,
    ):
        import torch

        from data.augmentation import TrainTransform
        from data.reduced_copies import COPY

        self.trains = isinstance(transform, TrainTransform)
        self.protocol = transform.protocol if self.trains else transform
        # Decoded here, where an error can name the file.
        self.split = split.cast_column("image", datasets.Image(decode=False))
        columns = [name for name in ("image", "label", "name", COPY) if name in self.split.column_names]
        self._rows, self._copy = undecoded(self.split.select_columns(columns)), COPY
        self._stamps = [_stamp(path) for path in self._rows.select_columns("image").flatten()["image.path"][:]]
        self._touched: set[int] = set()
        self.transform = transform
        self.seed = seed
        self.rare_crops = rare_crops
        # In shared memory, where workers that live through several epochs see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random transforms of an epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.split)

    def read(self, index: int) -> tuple[Image.Image | torch.Tensor, Image.Image]:
        """Image and mask of training ids before any transform; the image is RGB, or (C, H, W) where the protocol has
        another number of channels than three, or numbers of more than 8 bits (see `data.image_files.read_channels`,
        also for what it raises).

        Raises:
            UserError: the image cannot be read, or is not the one that it was as this was made; names its file.
        """
        label, file, _ = self._stored(index)
        image = decode_image(file, self.protocol.num_channels, dtype=self.protocol.image_dtype)
        size = image.size[::-1] if isinstance(image, Image.Image) else image.shape[-2:]
        self._check_unchanged(index, file, size, label)
        return image, Image.fromarray(label)

    def _stored(self, index: int) -> tuple[np.ndarray, StoredFile, bytes | None]:
        """Mask, uint8 (H, W), the image, and the copy that is read for training in its place, if there is one."""
        row = self._rows[index]
        return decode_mask(row["label"]["bytes"]), StoredFile.of(row["image"], row["name"]), row.get(self._copy)

    def _check_unchanged(
        self, index: int, file: StoredFile, size: Sequence[int], label: np.ndarray, reduction: int = 1
    ) -> None:
        """Raises UserError where an image is not the one that it was. size: height and width, of all or of a part."""
        if tuple(size) not in (label.shape, tuple(side // reduction for side in label.shape)):
            raise UserError(
                f"{file.location} has changed since it was prepared: it is {size[1]}x{size[0]} "
                f"now, its mask {label.shape[1]}x{label.shape[0]}; put the old file back and go on with "
                "--resume_from_checkpoint last, or start again with a new mask"
            )
        self._compare_stamp(file.path, index)

    def _compare_stamp(self, path: str | None, index: int) -> None:
        """Another image of the same size has as many pixels, but hardly ever as many bytes; one that has may just have
        been touched."""
        then, now = self._stamps[index], _stamp(path)
        if then == now or None in (then, now):
            return
        if then[0] != now[0]:
            raise UserError(
                f"{path} has changed since this run began: it has {now[0]:,} bytes now, and had {then[0]:,}; put the "
                "old file back and go on with --resume_from_checkpoint last, or start again"
            )
        if index not in self._touched:
            self._touched.add(index)
            logger.warning(f"{path} was written again since this run began, with as many bytes: the same image?")

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | str]:
        import torch

        from data.jpeg_files import decode_jpeg, decode_pixels

        shown_class, rng = None, np.random.default_rng([self.seed, int(self._epoch), index])
        if self.rare_crops is not None:
            index, shown_class = self.rare_crops.draw(index, rng)
        label, file, small = self._stored(index)
        if self.trains and small:
            self._compare_stamp(file.path, index)
            return self.transform(decode_jpeg(small), label, rng, shown_class) | {"name": file.name}
        reduction = self.transform.reduction(*label.shape) if self.trains else 1
        pixels = decode_pixels(file, self.protocol.num_channels, reduction, self.protocol.image_dtype)
        self._check_unchanged(index, file, pixels.shape[-2:], label, reduction)
        if self.trains:
            return self.transform(pixels, label, rng, shown_class) | {"name": file.name}
        return {"pixel_values": self.transform.preprocess(pixels), "labels": torch.from_numpy(label)}


def _stamp(path: str | None) -> tuple[int, int] | None:
    """Bytes and time of a file; None where there is none."""
    try:
        status = os.stat(path or "")
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def augmentation_preview(
    dataset: SegmentationDataset, class_map: ClassMap, samples: int = 8, draws: int = 4
) -> Image.Image:
    """What a training dataset's `TrainTransform` does, as a picture: some images, evenly spread, and what each becomes
    in the first epochs, with its mask. Ignored pixels are black, and padding is the grey that normalises to zero.

    Args:
        samples: images, a row for each.
        draws: epochs.
    """
    from data.colors import finish_batch

    names, epoch = dataset.split["name"], int(dataset._epoch)
    rows = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, samples).round().astype(int)).tolist():
        drawn = []
        for draw in range(draws):
            dataset.set_epoch(draw)
            batch = finish_batch(collate_train([dataset[index]]), dataset.protocol)
            drawn.append(
                (rgb_view(dataset.protocol.denormalize(batch["pixel_values"][0])), batch["labels"][0].numpy())
            )
        rows.append((names[index], rgb_view(dataset.read(index)[0]), drawn))
    dataset.set_epoch(epoch)
    return visual_utils.augmentation_sheet(rows, class_map.colors(), class_map.id2label, IGNORE_INDEX)


def collate_train(examples: list[dict]) -> dict[str, torch.Tensor]:
    """→ float32 "pixel_values" (B, C, S, S), int64 "labels" (B, S, S) and uint8 "names" (B, `NAME_BYTES`), for
    `names_of_batch`: what shares batches out among processes knows tensors alone.

    Of examples whose colours are left for later what `data.colors.finish_batch` makes this of: pixels and labels are
    bytes yet.
    """
    import torch

    names = [example.get("name", "").encode(errors="replace")[-NAME_BYTES:] for example in examples]
    padded = bytearray(b"".join(name.ljust(NAME_BYTES, b"\0") for name in names))
    batch = {key: torch.stack([example[key] for example in examples]) for key in examples[0] if key != "name"}
    if batch["pixel_values"].is_floating_point():
        batch["labels"] = batch["labels"].long()
    return batch | {"names": torch.frombuffer(padded, dtype=torch.uint8).view(len(names), NAME_BYTES)}


def names_of_batch(names: torch.Tensor) -> list[str]:
    """The names that `collate_train` put into a batch; of longer ones the last `NAME_BYTES` bytes, and for an example
    without a name its number."""
    decoded = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in names.cpu().numpy()]
    return [name or f"number {i}" for i, name in enumerate(decoded)]


def collate_eval(examples: list[dict]) -> dict[str, list[torch.Tensor]]:
    """→ lists, as the images have different sizes."""
    return {key: [example[key] for example in examples] for key in ("pixel_values", "labels")}
