"""Finding images and their masks in a folder: which known layout it has, and which mask belongs to which image.

`find_dataset(folder)` tries the layouts below in order and takes the first that fits. A mask belongs to an image if
both have the same path below their folders, whatever the extensions.
"""

import csv
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from cli_utils import UserError, nearest, shorten
from data.columns import find_columns
from data.layouts import (
    IMAGE_EXTENSIONS,
    LAYOUTS,
    MASK_EXTENSIONS,
    MASK_SUFFIXES,
    SPLIT_NAMES,
    FoundDataset,
    Pair,
    detect_layout,
    files_by_stem,
    metadata_files,
    standard_split_name,
    visible_files,
)
from data.outlines import draw_masks

logger = logging.getLogger(__name__)


def find_dataset(
    dataset_dir: str | Path, image_column: str | None = None, label_column: str | None = None
) -> FoundDataset:
    """Finds the layout of a folder and pairs its images with their masks.

    Args:
        image_column, label_column: of `metadata.csv` or `.jsonl`; default: found by name.

    Raises:
        UserError: the folder is missing, empty or in no known layout; a split would be empty; two files have the same
            name but for the extension; the metadata names files that are not there.
    """
    root = Path(dataset_dir)
    _check_folder(root)
    layout = detect_layout(root)
    if layout is None:
        raise UserError(_no_layout_message(root))
    found = FoundDataset(layout, {})
    if layout == "metadata":
        splits = _read_metadata(root, image_column, label_column)
    elif layout == "Pascal VOC":
        splits = _pair_voc(found, root)
    elif layout in ("COCO", "Labelme", "YOLO"):
        splits, class_names, hidden = draw_masks(root, layout)
        found = FoundDataset(layout, {}, class_names, hidden=hidden)
    elif layout == "images and masks":
        splits = {"train": _pair_folders(found, "train", root / "images", root / "masks")}
    else:
        splits = {}
        for split, images, masks in _split_folders(root, layout):
            if split in splits:
                raise UserError(f"{root} has two folders for the {split} split; the second is {images}")
            splits[split] = _pair_folders(found, split, images, masks)
    splits = {split: splits[split] for split in SPLIT_NAMES if splits.get(split)}
    found.splits.update(splits)
    if layout in ("metadata", "COCO", "Labelme"):
        found.images_alone.extend(_images_beside(splits))
    if not splits:
        raise UserError(f"{root} ({layout} layout) holds no image with a mask")
    counts = ", ".join(f"{split}: {len(pairs)}" for split, pairs in splits.items())
    logger.info(f"{root} has the {layout} layout ({LAYOUTS[layout]}); images with masks: {counts}")
    return found


def _images_beside(splits: dict[str, list[Pair]]) -> list[Path]:
    """Images in the folders of a dataset's images that do not belong to it."""
    pairs = [pair for pairs in splits.values() for pair in pairs]
    used = {os.path.abspath(path) for pair in pairs for path in (pair.image, pair.mask)}
    folders = sorted({os.path.abspath(pair.image.parent) for pair in pairs})
    files = [
        path for folder in folders for path in visible_files(Path(folder)) if path.suffix.lower() in IMAGE_EXTENSIONS
    ]
    return [path for path in files if str(path) not in used]


def _check_folder(root: Path) -> None:
    if root.is_file():
        raise UserError(f"--dataset_dir {root} is a file; give the folder with the images and masks")
    if not root.is_dir():
        siblings = [path.name for path in visible_files(root.parent) if path.is_dir()] if root.parent.is_dir() else []
        raise UserError(f"--dataset_dir {root}: no such folder{nearest(root.name, siblings)}")
    if not visible_files(root):
        raise UserError(f"--dataset_dir {root} is empty")


def _no_layout_message(root: Path) -> str:
    there = [path.name + "/" * path.is_dir() for path in visible_files(root)]
    inside = next((path for path in visible_files(root) if path.is_dir() and detect_layout(path)), None)
    hint = f" (did you mean {inside}?)" if inside else ""
    known = "; ".join(f"{name}: {folders}" for name, folders in LAYOUTS.items())
    return f"--dataset_dir {root} has no known layout{hint}. It holds {shorten(there, 8)}. Looked for {known}"


def _split_folders(root: Path, layout: str) -> Iterable[tuple[str, Path, Path]]:
    """(split, image folder, mask folder) for every split of a layout of which the image folder is there."""
    for split, aliases in SPLIT_NAMES.items():
        for alias in aliases:
            images, masks = {
                "ADE20K": (root / "images" / alias, root / "annotations" / alias),
                "split folders": (root / alias / "images", root / alias / "masks"),
                "images and masks by split": (root / "images" / alias, root / "masks" / alias),
                "CamVid": (root / alias, root / f"{alias}annot"),
                "Cityscapes": (root / "leftImg8bit" / alias, root / "gtFine" / alias),
            }[layout]
            if images.is_dir() or masks.is_dir():
                yield split, images, masks


def _pair_folders(found: FoundDataset, split: str, images: Path, masks: Path) -> list[Pair]:
    """Pairs the files of two folders by name; a test split without any mask, as benchmarks publish it, is left out."""
    if found.layout == "Cityscapes":
        image_files = files_by_stem(images, IMAGE_EXTENSIONS, "_leftImg8bit")
        mask_files = files_by_stem(masks, MASK_EXTENSIONS, "_gtFine_labelTrainIds")
        if not mask_files and split != "test" and files_by_stem(masks, MASK_EXTENSIONS, "_gtFine_labelIds"):
            raise UserError(
                f"{masks} holds *_labelIds.png but no *_labelTrainIds.png; make those with the Cityscapes scripts "
                "(pip install cityscapesscripts, then csCreateTrainIdLabelImgs)"
            )
    else:
        image_files, mask_files = files_by_stem(images, IMAGE_EXTENSIONS), files_by_stem(masks, MASK_EXTENSIONS)
    return _match(found, split, image_files, mask_files, str(images), str(masks))


def _match(
    found: FoundDataset,
    split: str,
    images: dict[str, Path],
    masks: dict[str, Path],
    images_from: str,
    masks_from: str,
) -> list[Pair]:
    """The pairs of a split; files without a counterpart are added to those of `found`."""
    if images and masks and not images.keys() & masks.keys():
        masks = _without_common_suffix(images, masks)
    pairs = [Pair(stem, images[stem], masks[stem]) for stem in images if stem in masks]
    images_alone = [path for stem, path in images.items() if stem not in masks]
    masks_alone = [path for stem, path in masks.items() if stem not in images]
    if not pairs and split == "test" and not masks:
        logger.info(f"{images_from}: {len(images)} test images have no masks and are left out")
    elif not pairs:
        raise UserError(
            f"the {split} split would be empty: of {len(images)} images in {images_from}"
            f"{_examples(images_alone)} and {len(masks)} masks in {masks_from}{_examples(masks_alone)} "
            "no two have the same name"
        )
    else:
        found.images_alone.extend(images_alone)
        found.masks_alone.extend(masks_alone)
        for files, what in ((images_alone, "images without a mask"), (masks_alone, "masks without an image")):
            if files:
                logger.warning(f"{split}: {len(files)} {what} left out: {shorten(path.name for path in files)}")
    return pairs


def _examples(files: list[Path]) -> str:
    return f" ({shorten(path.name for path in files)})" if files else ""


def _without_common_suffix(images: dict[str, Path], masks: dict[str, Path]) -> dict[str, Path]:
    """`x_mask.png` for `x.jpg`: if one suffix, and one only, makes pairs, it is taken off the masks' names."""
    candidates = {}
    for suffix in MASK_SUFFIXES:
        renamed = {stem.removesuffix(suffix): path for stem, path in masks.items() if stem.endswith(suffix)}
        if renamed.keys() & images.keys():
            candidates[suffix] = renamed
    if len(candidates) != 1:
        return masks
    [(suffix, renamed)] = candidates.items()
    logger.info(f"masks are named like their images with {suffix} at the end")
    return renamed | {stem: path for stem, path in masks.items() if not stem.endswith(suffix)}


def _pair_voc(found: FoundDataset, root: Path) -> dict[str, list[Pair]]:
    lists = root / "ImageSets" / "Segmentation"
    images = files_by_stem(root / "JPEGImages", IMAGE_EXTENSIONS)
    masks = files_by_stem(root / "SegmentationClass", MASK_EXTENSIONS)
    splits = {}
    for file in visible_files(lists):
        split = standard_split_name(file.stem)
        if file.suffix != ".txt" or split is None:
            continue
        names = dict.fromkeys(file.read_text(encoding="utf-8").split())
        missing = [name for name in names if name not in images]
        if missing:
            raise UserError(f"{file} names {len(missing)} images that are not in JPEGImages: {shorten(missing)}")
        splits[split] = _match(
            found,
            split,
            {name: images[name] for name in names},
            {name: masks[name] for name in names if name in masks},
            str(file),
            "SegmentationClass",
        )
    if not splits:
        raise UserError(f"{lists} holds no train.txt, val.txt or test.txt")
    return splits


def _read_metadata(root: Path, image_column: str | None, label_column: str | None) -> dict[str, list[Pair]]:
    """A row names an image and a mask, relative to its file's folder, and may name a split in a column `split`."""
    splits: dict[str, list[Pair]] = {}
    for file_split, file in metadata_files(root):
        rows = _rows(file)
        if not rows:
            raise UserError(f"{file} has no rows")
        columns = dict.fromkeys(map(str, rows[0]), "")
        # Other columns hold other things than files.
        files = [name for name in columns if any(Path(str(row.get(name) or "")).suffix for row in rows[:20])]
        image_key, mask_key = find_columns(columns, files, image_column, label_column, str(file))
        missing = []
        for row in rows:
            split = standard_split_name(str(row["split"])) if row.get("split") else file_split
            if split is None:
                raise UserError(f"{file}: split {row['split']!r} is none of {', '.join(SPLIT_NAMES)}")
            if not row.get(image_key) or not row.get(mask_key):
                raise UserError(f"{file}: a row lacks its {image_key} or {mask_key}: {row}")
            image, mask = file.parent / str(row[image_key]), file.parent / str(row[mask_key])
            missing += [str(row[key]) for key, path in ((image_key, image), (mask_key, mask)) if not path.is_file()]
            name = Path(str(row[image_key])).with_suffix("").as_posix()
            splits.setdefault(split, []).append(Pair(name, image, mask))
        if missing:
            raise UserError(f"{file} names {len(missing)} files that are not there: {shorten(missing)}")
    for split, pairs in splits.items():
        twice = [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]
        if twice:
            raise UserError(f"the metadata of the {split} split names an image more than once: {shorten(twice)}")
    return splits


def _rows(file: Path) -> list[dict]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text)))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{file} cannot be read: {error}") from None
