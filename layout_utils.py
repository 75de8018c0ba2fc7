"""Finding images and their masks in a folder: which known layout it has, and which mask belongs to which image.

`find_dataset(folder)` tries the layouts below in order and takes the first that fits. A mask belongs to an image if
both have the same path below their folders, whatever the extensions.
"""

import csv
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from cli_utils import UserError, nearest

logger = logging.getLogger(__name__)

LAYOUTS = {
    "ADE20K": "images/{training,validation} + annotations/{training,validation}",
    "split folders": "{train,val,test}/{images,masks}",
    "images and masks by split": "{images,masks}/{train,val,test}",
    "CamVid": "train + trainannot, val + valannot, test + testannot",
    "Cityscapes": "leftImg8bit/*/* + gtFine/*/*_labelTrainIds.png",
    "Pascal VOC": "JPEGImages + SegmentationClass + ImageSets/Segmentation/*.txt",
    "images and masks": "images + masks",
    "metadata": "metadata.csv or metadata.jsonl with an image and a mask column",
    # Outlines, from which `annotation_utils` draws masks.
    "COCO": "annotations*.json or instances_*.json here or in annotations, or {train,val,test}/_annotations.coco.json",
    "Labelme": "images with a .json file beside each, here, in images or in {train,val,test}",
    "YOLO": "data.yaml + images/{train,val,test} + labels/{train,val,test}/*.txt",
}
COCO_FILES = ("annotations*.json", "instances_*.json", "_annotations.coco.json")
YOLO_FILES = ("data.yaml", "data.yml", "dataset.yaml")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
IMAGE_EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
LOSSY_EXTENSIONS = {".jpg", ".jpeg"}
MASK_EXTENSIONS = {".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"} | LOSSY_EXTENSIONS
# What annotation tools append to the image's name.
MASK_SUFFIXES = ("_mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_annotation", "_gt", "_L")
IMAGE_COLUMNS = ("image", "file_name", "image_file_name", "image_path", "filename", "img")
MASK_COLUMNS = ("mask", "label", "annotation", "mask_file_name", "label_file_name", "mask_path", "label_path")
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Pair:
    """An image and its mask; `name` is unique within its split and free of extensions."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class FoundDataset:
    """layout: a key of `LAYOUTS`. splits: "train", "validation", "test", those that are there, in this order.

    images_alone, masks_alone: files that are left out as they have no counterpart. Pascal VOC: images that a list
    names and that have no mask. COCO, Labelme and metadata: images beside others that have annotations. YOLO: none.
    """

    layout: str
    splits: dict[str, list[Pair]]
    images_alone: list[Path] = field(default_factory=list)
    masks_alone: list[Path] = field(default_factory=list)


def shorten(names: Iterable[str], shown: int = SHOWN) -> str:
    """The first few of many names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def is_lossy(file: BinaryIO) -> bool:
    """Whether an image file is compressed with loss: JPEG, or WebP with a lossy bitstream, as its chunks tell.

    Source: RFC 9649, WebP Image Format.
    """
    head = file.read(12)
    if head.startswith(b"\xff\xd8\xff"):
        return True
    if head[:4] != b"RIFF" or head[8:] != b"WEBP":
        return False
    while len(chunk := file.read(8)) == 8:
        kind, size = chunk[:4], int.from_bytes(chunk[4:], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8 "
        # A frame of an animation has 16 bytes of its own, then chunks.
        file.seek(16 if kind == b"ANMF" else size + size % 2, io.SEEK_CUR)
    return False


def standard_split_name(name: str) -> str | None:
    """ "val" → "validation"; None for a name that is no split."""
    return next((split for split, aliases in SPLIT_NAMES.items() if name.lower() in aliases), None)


def detect_layout(dataset_dir: str | Path) -> str | None:
    """The first of `LAYOUTS` whose folders are all there, or None; looks at names only."""
    root = Path(dataset_dir)

    def has(*parts: str) -> bool:
        return root.joinpath(*parts).is_dir()

    aliases = [alias for names in SPLIT_NAMES.values() for alias in names]
    if any(has("images", split) and has("annotations", split) for split in ("training", "validation")):
        return "ADE20K"
    if any(has(split, "images") and has(split, "masks") for split in aliases):
        return "split folders"
    if any(has("images", split) and has("masks", split) for split in aliases):
        return "images and masks by split"
    if any(has(split) and has(f"{split}annot") for split in aliases):
        return "CamVid"
    if has("leftImg8bit") and has("gtFine"):
        return "Cityscapes"
    if has("JPEGImages") and has("SegmentationClass") and has("ImageSets", "Segmentation"):
        return "Pascal VOC"
    if has("images") and has("masks"):
        return "images and masks"
    if _metadata_files(root):
        return "metadata"
    if coco_files(root):
        return "COCO"
    if labelme_folders(root):
        return "Labelme"
    return "YOLO" if yolo_file(root) else None


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
        from annotation_utils import draw_masks  # which imports this module

        splits = draw_masks(root, layout)
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
    lossy = [pair.mask.name for pairs in splits.values() for pair in pairs if _is_lossy_mask(pair.mask)]
    if lossy:
        logger.warning(
            f"{len(lossy)} masks are JPEG or lossy WebP files, whose compression changes values: {shorten(lossy)}"
        )
    return found


def _images_beside(splits: dict[str, list[Pair]]) -> list[Path]:
    """Images in the folders of a dataset's images that do not belong to it."""
    pairs = [pair for pairs in splits.values() for pair in pairs]
    used = {os.path.abspath(path) for pair in pairs for path in (pair.image, pair.mask)}
    folders = sorted({os.path.abspath(pair.image.parent) for pair in pairs})
    files = [path for folder in folders for path in _visible(Path(folder)) if path.suffix.lower() in IMAGE_EXTENSIONS]
    return [path for path in files if str(path) not in used]


def _is_lossy_mask(path: Path) -> bool:
    if path.suffix.lower() != ".webp":  # which may be either; others need not be opened
        return path.suffix.lower() in LOSSY_EXTENSIONS
    with path.open("rb") as file:
        return is_lossy(file)


def _visible(folder: Path) -> list[Path]:
    """What a person sees in a folder, sorted: without dot files and what macOS and Windows leave behind."""
    return sorted(path for path in folder.iterdir() if not _is_litter(path))


def _is_litter(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini", "__macosx")


def _check_folder(root: Path) -> None:
    if root.is_file():
        raise UserError(f"--dataset_dir {root} is a file; give the folder with the images and masks")
    if not root.is_dir():
        siblings = [path.name for path in _visible(root.parent) if path.is_dir()] if root.parent.is_dir() else []
        raise UserError(f"--dataset_dir {root}: no such folder{nearest(root.name, siblings)}")
    if not _visible(root):
        raise UserError(f"--dataset_dir {root} is empty")


def _no_layout_message(root: Path) -> str:
    there = [path.name + "/" * path.is_dir() for path in _visible(root)]
    inside = next((path for path in _visible(root) if path.is_dir() and detect_layout(path)), None)
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


def files_by_stem(folder: Path, extensions: set[str], ending: str = "") -> dict[str, Path]:
    """Relative path without `ending` and extension → file, for all files below `folder`, sorted by name.

    ending: only files whose stem ends so are taken.
    """
    files: dict[str, Path] = {}
    if not folder.is_dir():
        return files
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in extensions or not path.stem.endswith(ending) or not path.is_file():
            continue
        if any(_is_litter(Path(part)) for part in relative.parts):
            continue
        stem = relative.with_suffix("").as_posix().removesuffix(ending)
        if stem in files:
            raise UserError(f"{folder} holds {files[stem].name} and {path.name}, which differ in the extension alone")
        files[stem] = path
    return files


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
    for file in _visible(lists):
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


def coco_files(root: Path) -> list[tuple[str, Path]]:
    """(split, annotation file); the split is that which the file's name or its folder's holds, or else train."""
    folders = [root, root / "annotations", *(root / alias for names in SPLIT_NAMES.values() for alias in names)]
    found = []
    for folder in filter(Path.is_dir, folders):
        for path in _visible(folder):
            if path.is_file() and any(fnmatch(path.name, pattern) for pattern in COCO_FILES):
                words = [*re.findall("[a-z]+", path.stem.lower()), folder.name]
                found.append((next(filter(None, map(standard_split_name, words)), "train"), path))
    return found


def labelme_folders(root: Path) -> list[tuple[str, Path]]:
    """(split, folder) where a .json file lies beside an image of its name."""
    folders = [("train", root), ("train", root / "images")]
    for split, aliases in SPLIT_NAMES.items():
        for alias in aliases:
            folders += [(split, root / alias), (split, root / alias / "images"), (split, root / "images" / alias)]
    found = []
    for split, folder in folders:
        files = _visible(folder) if folder.is_dir() else []
        images = {path.stem for path in files if path.suffix.lower() in IMAGE_EXTENSIONS}
        if any(path.suffix == ".json" and path.stem in images for path in files):
            found.append((split, folder))
    return found


def yolo_file(root: Path) -> Path | None:
    """The file that names the classes."""
    return next((root / name for name in YOLO_FILES if (root / name).is_file()), None)


def _metadata_files(root: Path) -> list[tuple[str, Path]]:
    """(split, metadata file): one in the folder itself, or one in each split's folder."""
    folders = [("train", root)] + [(split, root / alias) for split, names in SPLIT_NAMES.items() for alias in names]
    return [
        (split, folder / name)
        for split, folder in folders
        for name in ("metadata.csv", "metadata.jsonl")
        if (folder / name).is_file()
    ]


def _read_metadata(root: Path, image_column: str | None, label_column: str | None) -> dict[str, list[Pair]]:
    """A row names an image and a mask, relative to its file's folder, and may name a split in a column `split`."""
    splits: dict[str, list[Pair]] = {}
    for file_split, file in _metadata_files(root):
        rows = _rows(file)
        if not rows:
            raise UserError(f"{file} has no rows")
        image_key = _find_column(file, rows[0], image_column, IMAGE_COLUMNS, "image")
        mask_key = _find_column(file, rows[0], label_column, MASK_COLUMNS, "label")
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


def _find_column(file: Path, row: dict, wanted: str | None, known: tuple[str, ...], kind: str) -> str:
    found = [wanted] if wanted else [name for name in known if name in row]
    if not found or found[0] not in row:
        raise UserError(
            f"{file} has no {kind} column{f' {wanted!r}' if wanted else ''} among {', '.join(row)}; "
            f"name it with --{kind}_column"
        )
    return found[0]
