"""The layouts that a folder of images and masks may have, told by the names in it, and how its files are listed."""

import re
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

from cli_utils import UserError

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


HEIF_EXTENSIONS = {".heic", ".heif"} if find_spec("pillow_heif") else set()  # photos of phones
MASK_EXTENSIONS = {".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jpg", ".jpeg", ".jp2", ".j2k", ".jpx"}
IMAGE_EXTENSIONS = MASK_EXTENSIONS | HEIF_EXTENSIONS
# What annotation tools append to the image's name.
MASK_SUFFIXES = ("_mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_annotation", "_gt", "_L")


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
    hidden: of outlines, split and name of an image → objects in it that smaller ones hide entirely.
    """

    layout: str
    splits: dict[str, list[Pair]]
    class_names: dict[int, str] | None = None
    images_alone: list[Path] = field(default_factory=list)
    masks_alone: list[Path] = field(default_factory=list)
    hidden: dict[str, list[str]] = field(default_factory=dict)


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
    if metadata_files(root):
        return "metadata"
    if coco_files(root):
        return "COCO"
    if labelme_folders(root):
        return "Labelme"
    return "YOLO" if yolo_file(root) else None


def coco_files(root: Path) -> list[tuple[str, Path]]:
    """(split, annotation file); the split is that which the file's name or its folder's holds, or else train."""
    folders = [root, root / "annotations", *(root / alias for names in SPLIT_NAMES.values() for alias in names)]
    found = []
    for folder in filter(Path.is_dir, folders):
        for path in visible_files(folder):
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
        files = visible_files(folder) if folder.is_dir() else []
        images = {path.stem for path in files if path.suffix.lower() in IMAGE_EXTENSIONS}
        if any(path.suffix == ".json" and path.stem in images for path in files):
            found.append((split, folder))
    return found


def yolo_file(root: Path) -> Path | None:
    """The file that names the classes."""
    return next((root / name for name in YOLO_FILES if (root / name).is_file()), None)


def metadata_files(root: Path) -> list[tuple[str, Path]]:
    """(split, metadata file): one in the folder itself, or one in each split's folder."""
    folders = [("train", root)] + [(split, root / alias) for split, names in SPLIT_NAMES.items() for alias in names]
    return [
        (split, folder / name)
        for split, folder in folders
        for name in ("metadata.csv", "metadata.jsonl")
        if (folder / name).is_file()
    ]


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
        if any(is_litter(Path(part)) for part in relative.parts):
            continue
        stem = relative.with_suffix("").as_posix().removesuffix(ending)
        if stem in files:
            raise UserError(f"{folder} holds {files[stem].name} and {path.name}, which differ in the extension alone")
        files[stem] = path
    return files


def visible_files(folder: Path) -> list[Path]:
    """What a person sees in a folder, sorted: without dot files and what macOS and Windows leave behind."""
    return sorted(path for path in folder.iterdir() if not is_litter(path))


def is_litter(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini", "__macosx")
