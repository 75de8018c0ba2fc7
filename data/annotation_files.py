"""Annotations of other programs that are no masks: COCO, Labelme, YOLO, Supervisely, and brushes of Label Studio.

`outline_layout` tells by names and a look into files which of them a folder holds; `READERS` turn each into
`Annotations`, shapes on images, from which `data.outlines` draws masks.
"""

import base64
import json
import logging
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cli_utils import UserError, count_of, nearest, parse_yaml, read_text, shorten
from data.classes import check_name, whole_number
from data.layouts import (
    BRUSH_FILE,
    Picture,
    Tree,
    files_by_stem,
    split_extension,
    standard_split_name,
    words_of,
)
from data.synonyms import (
    COCO_FILES,
    IMAGE_EXTENSIONS,
    PANOPTIC_FILES,
    POSSIBLE_COCO_FILES,
    SPLIT_NAMES,
    YOLO_CLASS_FILES,
    YOLO_FILES,
)
from metrics_utils import IGNORE_INDEX

logger = logging.getLogger(__name__)

# Names of other programs for what is not outlined, and for what is neither.
BACKGROUND, IGNORED = ("background", "_background_", "__background__"), "__ignore__"
# Phrases for `cli_utils.count_of`, and behind a colon what comes from files.
NO_OUTLINE = "annotation/annotations has/have a box but no outline and is/are left out"
NO_AREA = "shape/shapes has/have a type without an area and is/are left out"
# Files that are looked into, and how far, to tell what they are.
SNIFFED_FILES, SNIFFED_BYTES = 60, 1 << 16
MAX_BITMAP = 1 << 26  # bytes of an unpacked bitmap


@dataclass(frozen=True)
class Shape:
    """A part of an object, or all of it.

    kind: "polygon" (points: its corners; holes: those of what is cut out), "circle" (its centre and a point on it),
    "bitmap" (where its corner lies; content: PNG as base64), "rle" (content: COCO's {"size", "counts"}), "brush"
    (content: a file that is not black where the object is) or "segments" (content: {"file", "ids"}, a file that holds
    ids in its colours as COCO's panoptic ones). points: float (n, 2), x and y.
    object: what the parts of one object have in common; None: it is the only one. crowd: a region with many objects.
    """

    label: str
    kind: str
    points: np.ndarray | None = None
    content: dict | str = ""
    holes: tuple[np.ndarray, ...] = ()
    object: int | str | None = None
    crowd: bool = False


@dataclass(frozen=True)
class AnnotatedImage:
    """source: the file with its annotations. size: width and height as this states it. relative: points are shares of
    width and height instead of pixels."""

    split: str
    name: str
    image: Path
    source: Path
    size: tuple[int, int] | None
    shapes: list[Shape]
    relative: bool = False
    mask_name: str = ""  # of its PNG in the cache


@dataclass(frozen=True)
class Annotations:
    """values: label → value in masks. notes: what is odd → how often."""

    images: list[AnnotatedImage]
    values: dict[str, int]
    notes: Counter


def outline_layout(tree: Tree) -> str | None:
    """The key of `data.layouts.LAYOUTS` whose files are there."""
    found = {
        "Label Studio brushes": brush_files,
        "Supervisely": supervisely_files,
        "COCO": coco_files,
        "COCO panoptic": partial(coco_files, panoptic=True),
        "Labelme": labelme_files,
        "YOLO": yolo_file,
    }
    return next((layout for layout, find in found.items() if find(tree)), None)


def class_values(labels: Iterable[str], first: int = 1) -> dict[str, int]:
    """Labels in the order of their classes → values in masks, from `first` on.

    Raises UserError for names that cannot be printed.
    """
    labels = list(dict.fromkeys(labels))
    for label in labels:
        try:
            check_name(label)
        except ValueError as error:
            raise UserError(f"the annotations name a class {label!r:.60}: {error}") from None
    classes = [label for label in labels if (label.lower() not in BACKGROUND or not first) and label != IGNORED]
    if len(classes) >= IGNORE_INDEX:
        raise UserError(f"{len(classes)} classes; masks hold {IGNORE_INDEX - 1} besides the background")
    values = dict.fromkeys(labels, 0) | {label: value for value, label in enumerate(classes, start=first)}
    return values | ({IGNORED: IGNORE_INDEX} if IGNORED in labels else {})


def read_json(path: Path):
    try:
        return json.loads(read_text(path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "brackets are nested too deep" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} cannot be read as JSON: {reason}") from None


def _read_object(path: Path) -> dict:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} instead of annotations")
    return content


def begins_with(path: Path, *keys: str) -> bool:
    """Whether the first part of a JSON file has one of some keys."""
    try:
        with path.open("rb") as file:
            head = file.read(SNIFFED_BYTES).replace(b"\0", b"")  # of UTF-16 every other byte
    except OSError:
        return False
    return any(f'"{key}"'.encode() in head for key in keys)


def _split_of_words(path: Path, parts: tuple[str, ...], tree: Tree) -> str:
    words = (standard_split_name(word) for word in words_of(path.stem))
    return next(filter(None, words), None) or tree.places[parts].split or "train"


class PictureFinder:
    """Finds pictures by the name of their file, wherever they lie, if there is but one in the split; by its letters
    alone if no file has its capitals."""

    def __init__(self, tree: Tree):
        self.by_name: dict[str, list[Picture]] = defaultdict(list)
        self.by_stem: dict[str, list[Picture]] = defaultdict(list)
        self.folded: dict[tuple[bool, str], list[Picture]] = defaultdict(list)
        for picture in tree.pictures:
            self.by_name[picture.path.name].append(picture)
            self.by_stem[picture.stem].append(picture)
            for by_stem, name in ((False, picture.path.name), (True, picture.stem)):
                self.folded[by_stem, name.casefold()].append(picture)

    def find(self, name: str, split: str | None, by_stem: bool = False) -> Path | None:
        found = (self.by_stem if by_stem else self.by_name).get(name, [])
        found = found or self.folded.get((by_stem, name.casefold()), [])
        if len(found) > 1:
            found = [picture for picture in found if (picture.place.split or "train") == split]
        return found[0].path if len(found) == 1 else None


def _leave_out_missing(root: Path, missing: Sequence[str], found: int, notes: Counter) -> None:
    """Images that annotations name and that are not there are a note, and an error where they are most."""
    if len(missing) > found:
        raise UserError(
            f"{root}: annotations name {count_of(len(missing), 'image/images that is/are')} not there: "
            f"{shorten(missing)}; export with images, or put them beside the annotations"
        )
    if missing:
        notes[f"images that annotations name are not there and are left out: {shorten(missing)}"] = len(missing)


# ---- COCO -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CocoFile:
    """images: id → file name, width and height. shapes: by the ids of images. used: labels that annotations have."""

    categories: dict[int, str]
    parents: set[str]
    images: dict[int, tuple[str, int, int]]
    shapes: dict[int, list[Shape]]
    used: set[str]


def coco_files(tree: Tree, panoptic: bool = False) -> list[tuple[str, Path]]:
    """(split, annotation file); the split is that which the file's name or its folder's holds, or else train."""
    usual = tree.named(*(PANOPTIC_FILES if panoptic else COCO_FILES))
    if not usual:
        images = {(picture.parts, picture.stem) for picture in tree.pictures}
        others = dict.fromkeys(item for pattern in POSSIBLE_COCO_FILES for item in tree.named(pattern))
        looked_at = [(parts, path) for parts, path in others if (parts, path.stem) not in images]
        usual = [item for item in looked_at[:SNIFFED_FILES] if _is_coco(item[1], panoptic)]
    return [(_split_of_words(path, parts, tree), path) for parts, path in usual]


def _is_coco(path: Path, panoptic: bool) -> bool:
    if not begins_with(path, "images", "annotations", "categories"):
        return False
    try:
        content = read_json(path)
    except (UserError, OSError):
        return False
    if not isinstance(content, dict):
        return False
    if not all(isinstance(content.get(key), list) for key in ("images", "annotations", "categories")):
        return False
    first = content["annotations"][:1]
    return any(isinstance(entry, dict) and "segments_info" in entry for entry in first) == panoptic


def _read_coco(tree: Tree) -> Annotations:
    return _read_coco_files(tree, coco_files(tree), panoptic=False)


def _read_panoptic(tree: Tree) -> Annotations:
    return _read_coco_files(tree, coco_files(tree, panoptic=True), panoptic=True)


def _read_coco_files(tree: Tree, found: list[tuple[str, Path]], panoptic: bool) -> Annotations:
    root, notes = tree.root, Counter()
    files = dict(found)
    if len(files) < len(found):
        listed = shorten((f"{path.relative_to(root)} ({split})" for split, path in found), 8)
        raise UserError(f"{root} has several annotation files for a split: {listed}")
    finder = PictureFinder(tree)
    contents = {split: _parse_coco(path, notes, finder if panoptic else None) for split, path in files.items()}
    categories: dict[int, str] = {}
    for split, content in contents.items():
        for i, name in content.categories.items():
            if categories.setdefault(i, name) != name:
                raise UserError(f"{files[split]}: category {i} is {name}, but {categories[i]} in another split")
    used, parents = (set().union(*(getattr(c, key) for c in contents.values())) for key in ("used", "parents"))
    # Roboflow adds a category above all others, which nothing belongs to.
    labels = {i: name for i, name in sorted(categories.items()) if name in used or name not in parents}
    values = class_values([IGNORED] * panoptic + list(labels.values()), first=0 if panoptic else 1)
    if list(labels) != [values[name] for name in labels.values()]:
        table = (f"{i} -> {values[name]} {name}" for i, name in labels.items())
        logger.info(f"{root}: category ids become values of masks: {shorten(table, 20)}")
    images = [
        item
        for split, path in files.items()
        for item in _coco_images(tree, split, path, contents[split], finder, notes)
    ]
    return Annotations(images, values, notes)


def _parse_coco(path: Path, notes: Counter, masks: PictureFinder | None) -> _CocoFile:
    """masks: of a panoptic file: finds its PNG files."""
    content = _read_object(path)
    try:
        categories = _by_id(
            "category", ((whole_number(entry["id"]), check_name(entry["name"])) for entry in content["categories"])
        )
        parents = {str(category.get("supercategory")) for category in content["categories"]}
        images = _by_id(
            "image",
            (
                (str(entry["id"]), (str(entry["file_name"]), *(whole_number(entry[k]) for k in ("width", "height"))))
                for entry in content["images"]
            ),
        )
        shapes, used, objects = defaultdict(list), set(), []
        for entry in content["annotations"]:
            image = str(entry["image_id"])
            if masks is not None:
                shapes[image] = _segments(path, entry, categories, used, masks)
                continue
            category, outline = whole_number(entry["category_id"]), entry.get("segmentation")
            if image not in images or category not in categories:
                kind, i = ("category", category) if image in images else ("image", image)
                raise UserError(f"{path}: annotation {entry.get('id')} is of {kind} {i}, which is not listed")
            label = categories[category]
            used.add(label)
            part_of = {"object": f"annotation {len(objects)}", "crowd": bool(entry.get("iscrowd"))}
            objects.append(label)
            if not outline:
                notes[NO_OUTLINE] += 1
            elif isinstance(outline, dict):
                shapes[image].append(Shape(label, "rle", content=outline, **part_of))
            else:
                rings = (np.array(ring, float).reshape(-1, 2) for ring in outline)
                shapes[image] += [Shape(label, "polygon", ring, **part_of) for ring in rings]
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path} is no COCO annotation file with images, annotations and categories: "
            f"{type(error).__name__} {error}"
        ) from None
    return _CocoFile(categories, parents, images, shapes, used)


def _by_id(kind: str, pairs: Iterable[tuple]) -> dict:
    """Raises ValueError where an id stands for two things: what belongs to one would go to the other."""
    found = {}
    for i, thing in pairs:
        if found.setdefault(i, thing) != thing:
            raise ValueError(f"the id {i} of {kind} {thing!r:.60} is that of {found[i]!r:.60}, too")
    return found


def _segments(
    path: Path, entry: dict, categories: dict[int, str], used: set[str], masks: PictureFinder
) -> list[Shape]:
    """What a panoptic file says of an image: which ids in its PNG file belong to which class; all others to none."""
    name = Path(str(entry["file_name"]).replace("\\", "/")).name
    found = [picture for picture in masks.by_name.get(name, []) if picture.extension == ".png"]
    # The folder is called like the annotation file.
    found = [picture for picture in found if path.stem in picture.parts] or found
    if len(found) != 1:
        raise UserError(f"{path} names {name}, which is {'there several times' if found else 'not there'}")
    ids: dict[str, list[int]] = defaultdict(list)
    for segment in entry["segments_info"]:
        category = whole_number(segment["category_id"])
        if category not in categories:
            raise UserError(f"{path}: {name} has a segment of category {category}, which is not listed")
        ids[categories[category]].append(int(segment["id"]))
    used |= ids.keys()
    file = str(found[0].path)
    return [Shape(IGNORED, "segments", content={"file": file, "ids": None})] + [
        Shape(label, "segments", content={"file": file, "ids": listed}) for label, listed in ids.items()
    ]


def _coco_images(
    tree: Tree, split: str, path: Path, content: _CocoFile, finder: PictureFinder, notes: Counter
) -> list[AnnotatedImage]:
    root = tree.root
    folders = _coco_folders(root, split, path)
    images, missing = {}, []
    for i, (file_name, width, height) in content.images.items():
        found = _find_image(file_name, folders, finder, split)
        if found is None:
            missing.append(file_name)
            continue
        name, image = found
        if name in images:
            raise UserError(f"{path} lists the image {name} twice")
        images[name] = AnnotatedImage(split, name, image, path, (width, height), content.shapes.get(i, []))
    if len(missing) > len(images):
        looked_in = shorten((f"{folder.relative_to(root)}/" for folder in folders), 8)
        raise UserError(
            f"{path} names {count_of(len(missing), 'image')} that are not there: {shorten(missing)} (looked in "
            f"{looked_in} and everywhere below {root})"
        )
    if missing:
        phrase = "listed image/images is/are not there and left out"
        notes[f"{phrase}: {path.name} names {shorten(missing)}"] = len(missing)
    empty = [name for name, item in images.items() if not item.shapes]
    if empty:
        phrase = "image/images has/have no annotations and is/are all background"
        logger.info(f"{split}: {count_of(len(empty), phrase)}: {shorten(empty)}")
    return list(images.values())


def _coco_folders(root: Path, split: str, path: Path) -> list[Path]:
    """Where the images may be: beside the file or in the usual folders, as `train2017` for `instances_train2017`."""
    parts = ("", "images", path.stem.rpartition("_")[2], *SPLIT_NAMES[split])
    folders = [base / part for base in (path.parent, root, root / "images") for part in parts]
    return [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]


def _find_image(file_name: str, folders: list[Path], finder: PictureFinder, split: str) -> tuple[str, Path] | None:
    """Name and path; where the stated path leads nowhere, the file's own name may."""
    stated = Path(file_name.replace("\\", "/"))
    for wanted in (stated, Path(stated.name)):
        if not wanted.is_absolute() and ".." not in wanted.parts:
            for folder in folders:
                if os.path.isfile(folder / wanted):
                    return split_extension(wanted.as_posix())[0], folder / wanted
    path = next(filter(None, (finder.find(name, split) for name in names_of_upload(stated.name))), None)
    if path is None and stated.name:  # a panoptic file may name images like its PNG files
        path = finder.find(stated.stem, split, by_stem=True)
    return (stated.stem, path) if path else None


# ---- Labelme --------------------------------------------------------------------------------------------------------


def labelme_files(tree: Tree) -> list[tuple[str, tuple[str, ...], Path]]:
    """(split, folders, file) of .json files beside an image of their name, or that hold shapes."""
    images = {(picture.parts, picture.stem) for picture in tree.pictures}
    folders: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for parts, path in tree.named("*.json"):
        folders[parts].append(path)
    found = []
    for parts, paths in folders.items():
        is_beside = any((parts, path.stem) in images for path in paths)
        if is_beside or any(begins_with(path, "shapes") and begins_with(path, "imagePath") for path in paths[:3]):
            found += [(tree.places[parts].split or "train", parts, path) for path in paths]
    return found


def _read_labelme(tree: Tree) -> Annotations:
    images, notes, finder, missing = {}, Counter(), PictureFinder(tree), []
    beside: dict[tuple[str, ...], dict[str, Path]] = defaultdict(dict)
    for picture in tree.pictures:
        beside[picture.parts][picture.stem] = picture.path
    folders = {}
    for split, parts, path in labelme_files(tree):
        content = _read_object(path)
        if "shapes" not in content and path.stem not in beside[parts]:  # a list of classes, or the like
            continue
        folders[parts] = split
        try:
            image = _labelme_image(path, content, beside[parts], finder, split)
            if image is None:
                missing.append(f"{content.get('imagePath')} of {path.name}")
                continue
            size = (content.get("imageWidth"), content.get("imageHeight"))
            shapes = [shape for entry in content["shapes"] if (shape := _labelme_shape(entry, notes))]
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"{path} is no Labelme annotation: {type(error).__name__} {error}") from None
        name = "/".join((*tree.places[parts].rest, path.stem))
        if (split, name) in images:
            raise UserError(f"{tree.root} has {path.name} twice in the {split} split, the second in {path.parent}")
        images[split, name] = AnnotatedImage(split, name, image, path, size if None not in size else None, shapes)
    _leave_out_missing(tree.root, missing, len(images), notes)
    used = {item.image for item in images.values()}
    for parts, split in folders.items():
        alone = [path.name for path in beside[parts].values() if path not in used]
        if alone:
            notes[f"image/images in {split} has/have no .json file and is/are left out: {shorten(alone)}"] = len(alone)
    return Annotations(list(images.values()), class_values(_labelme_labels(tree.root, images.values())), notes)


def _labelme_image(
    path: Path, content: dict, beside: dict[str, Path], finder: PictureFinder, split: str
) -> Path | None:
    stated = path.parent / str(content.get("imagePath") or "").replace("\\", "/")
    if os.path.isfile(stated):
        return stated
    return beside.get(path.stem) or finder.find(stated.name, split) or finder.find(path.stem, split, by_stem=True)


def _labelme_shape(entry: dict, notes: Counter) -> Shape | None:
    label, kind = check_name(entry["label"]), entry.get("shape_type") or "polygon"
    points = np.array(entry["points"], float).reshape(-1, 2)
    group = entry.get("group_id")
    part_of = {} if group is None else {"object": f"group {group} {label}"}
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    if kind in ("polygon", "rectangle", "oriented_rectangle"):
        return Shape(label, "polygon", points, **part_of)
    if kind == "circle":
        return Shape(label, "circle", points, **part_of)
    if kind == "mask":
        return Shape(label, "bitmap", points, entry["mask"], **part_of)
    notes[f"{NO_AREA}: {kind}"] += 1
    return None


def _labelme_labels(root: Path, images: Iterable[AnnotatedImage]) -> list[str]:
    used = {shape.label: item.source for item in images for shape in item.shapes}
    file = root / "labels.txt"
    if not file.is_file():
        return sorted(used)
    listed = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    for label, source in used.items():
        if label not in listed:
            raise UserError(f"{source}: label {label!r} is not in {file}{nearest(label, listed)}")
    return listed


# ---- YOLO -----------------------------------------------------------------------------------------------------------


def yolo_file(tree: Tree) -> Path | None:
    """The file that names the classes."""
    found = [path for parts, path in tree.named(*YOLO_FILES) if len(parts) <= 1]
    if not found and any(_is_yolo_label(path) for _, path in tree.named("*.txt")[:SNIFFED_FILES]):
        found = [path for _, path in tree.named(*YOLO_CLASS_FILES)]
    return found[0] if found else None


def _is_yolo_label(path: Path) -> bool:
    """Whether the first line is a class and at least four numbers."""
    try:
        lines = read_text(path).splitlines()
        words = lines[0].split() if lines else []
        return len(words) > 4 and words[0].isdigit() and bool([float(word) for word in words])
    except (UserError, OSError, ValueError):
        return False


def _read_yolo(tree: Tree) -> Annotations:
    root, labels = tree.root, _yolo_labels(tree)
    images, notes, seen = [], Counter(), set()
    for split, image_folder, label_folder in yolo_folders(tree):
        image_files = files_by_stem(image_folder, IMAGE_EXTENSIONS, tree)
        label_files = files_by_stem(label_folder, {".txt"}, tree)
        for name in YOLO_CLASS_FILES:  # what some programs add
            label_files.pop(split_extension(name)[0], None)
        if not label_files.keys() & image_files.keys():
            if split == "test" and not label_files:
                logger.info(f"{image_folder}: {len(image_files)} test images have no label files and are left out")
                continue
            raise UserError(
                f"none of the {len(image_files)} images in {image_folder} has a label file in {label_folder}"
            )
        alone = [path.name for stem, path in label_files.items() if stem not in image_files]
        if alone:
            notes[f"label file/files in {split} has/have no image and is/are left out: {shorten(alone)}"] = len(alone)
        empty = [stem for stem in image_files if stem not in label_files]
        if empty:
            phrase = "image/images has/have no label file and is/are all background"
            logger.info(f"{split}: {count_of(len(empty), phrase)}: {shorten(empty)}")
        for stem, image in image_files.items():
            if (split, stem) in seen:
                raise UserError(f"{root} has {stem} twice in the {split} split")
            seen.add((split, stem))
            path = label_files.get(stem)
            shapes = _yolo_shapes(path, labels, notes) if path else []
            images.append(AnnotatedImage(split, stem, image, path or label_folder, None, shapes, relative=True))
    return Annotations(images, class_values(labels), notes)


def _yolo_content(tree: Tree) -> dict:
    path = yolo_file(tree)
    if path.name.lower() in YOLO_CLASS_FILES:
        return {"names": [line.strip() for line in read_text(path).splitlines() if line.strip()]}
    try:
        content = parse_yaml(read_text(path))
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content.get("names"):
        raise UserError(f"{path} has no names, the list of classes")
    return content


def _yolo_labels(tree: Tree) -> list[str]:
    names = _yolo_content(tree)["names"]
    by_id = dict(names) if isinstance(names, dict) else dict(enumerate(names)) if isinstance(names, list) else {}
    try:
        labels = [check_name(by_id[i]) for i in range(len(by_id)) if i in by_id]
    except ValueError as error:
        raise UserError(f"{yolo_file(tree)}: names: {error} (put names like no and on in quotes)") from None
    if not labels or len(labels) < len(by_id) or len(set(labels)) < len(labels):
        raise UserError(f"{yolo_file(tree)}: names must be different, with ids from 0 without a gap, not {names}")
    return labels


def yolo_folders(tree: Tree) -> list[tuple[str, Path, Path]]:
    """(split, image folder, label folder). Paths in the file are often another machine's, so those here come first."""
    content, folders, root = _yolo_content(tree), [], tree.root
    actual = {tuple(name.lower() for name in parts): root.joinpath(*parts) for parts in sorted(tree.folders)}
    with_images = sorted({picture.parts for picture in tree.pictures}, key=lambda parts: (len(parts), parts))
    for split, aliases in SPLIT_NAMES.items():
        key = next((alias for alias in aliases if content.get(alias)), None)
        usual = [root.joinpath(*parts) for parts in with_images if tree.places[parts].split == split]
        entries = content[key] if key and isinstance(content[key], list) else [content[key]] if key else [None]
        for entry in entries:
            # Roboflow writes ../train/images for train/images.
            stated = (
                [root / str(entry).lstrip("./"), root / str(content.get("path", "")) / str(entry)] if entry else []
            )
            folder = next((path for path in [*stated, *usual] if os.path.isdir(path)), None)
            if folder is not None:
                folders.append((split, folder, _label_folder(root, folder, actual)))
            elif entry and split != "test":  # which many files name and few archives hold
                raise UserError(f"{yolo_file(tree)}: {key}: {entry} is no folder (images are read from folders)")
    if not folders:
        plain = [
            folder
            for folder in (actual.get(("images",)), root)
            if folder and files_by_stem(folder, IMAGE_EXTENSIONS, tree)
        ]
        if not plain:
            raise UserError(f"{yolo_file(tree)} names no folder of images, and {root} has no images/train")
        folders.append(("train", plain[0], _label_folder(root, plain[0], actual)))
    return folders


def _label_folder(root: Path, images: Path, actual: dict[tuple[str, ...], Path]) -> Path:
    """The last `images` in a path becomes `labels`; without one, label files lie beside the images."""
    base = root if images.is_relative_to(root) else Path(images.anchor)
    parts = list(images.relative_to(base).parts)
    lower = [part.lower() for part in parts]
    if "images" not in lower:
        return images
    parts[len(parts) - 1 - lower[::-1].index("images")] = "labels"
    labels = base.joinpath(*parts)
    return labels if os.path.isdir(labels) else actual.get(tuple(part.lower() for part in parts), labels)


def _yolo_shapes(path: Path, labels: list[str], notes: Counter) -> list[Shape]:
    shapes = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.split():
            continue
        try:
            label, *numbers = (float(word) for word in line.split())
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        if label not in range(len(labels)):
            raise UserError(
                f"{path}, line {number}: class {label:g}, but data.yaml names {len(labels)}, 0 to {len(labels) - 1}"
            )
        if len(numbers) % 2 or not all(-1 <= share <= 2 for share in numbers):
            raise UserError(
                f"{path}, line {number}: after the class come x and y of each corner, as shares of width and height"
            )
        if len(numbers) == 4:
            notes[NO_OUTLINE] += 1
        else:
            shapes.append(Shape(labels[int(label)], "polygon", np.array(numbers).reshape(-1, 2)))
    return shapes


# ---- Supervisely ----------------------------------------------------------------------------------------------------


def supervisely_files(tree: Tree) -> list[tuple[tuple[str, ...], Path]]:
    """(folders, file) of the annotations, if there is a meta.json that names classes."""
    if not any(begins_with(path, "classes") for _, path in tree.named("meta.json")):
        return []
    return tree.named("*.json", within=["ann"])


def _read_supervisely(tree: Tree) -> Annotations:
    meta = next(path for _, path in tree.named("meta.json"))
    notes, images, finder, missing = Counter(), [], PictureFinder(tree), []
    try:
        labels = [check_name(entry["title"]) for entry in _read_object(meta)["classes"]]
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{meta} names no classes: {type(error).__name__} {error}") from None
    there = {picture.path for picture in tree.pictures}
    for parts, path in supervisely_files(tree):
        split = tree.places[parts].split
        beside = [tree.path((*parts[:-1], folder), path.stem) for folder in ("img", "images", "image")]
        image = next((picture for picture in beside if picture in there), None)
        content = _read_object(path)
        try:
            shapes = [shape for entry in content["objects"] for shape in _supervisely_shapes(entry, notes)]
            size = int(content["size"]["width"]), int(content["size"]["height"])
            tags = [standard_split_name(str(tag.get("name"))) for tag in content.get("tags", [])]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, zlib.error) as error:
            raise UserError(f"{path} is no Supervisely annotation: {type(error).__name__} {error}") from None
        unknown = [shape.label for shape in shapes if shape.label not in labels]
        if unknown:
            raise UserError(f"{path}: class {unknown[0]!r} is not in {meta}{nearest(unknown[0], labels)}")
        split = split or next(filter(None, tags), "train")
        image = image or finder.find(path.stem, split)
        if image is None:
            missing.append(path.stem)
            continue
        folders = [name for name in parts[:-1] if name not in tree.places[parts].split_names]
        name = "/".join((*folders, split_extension(path.stem)[0]))
        images.append(AnnotatedImage(split, name, image, path, size, shapes))
    _leave_out_missing(tree.root, missing, len(images), notes)
    return Annotations(images, class_values(labels), notes)


def _supervisely_shapes(entry: dict, notes: Counter) -> list[Shape]:
    label, kind = str(entry["classTitle"]).strip(), entry["geometryType"]
    if kind == "bitmap":
        packed = base64.b64decode(entry["bitmap"]["data"])
        stencil = zlib.decompressobj().decompress(packed, MAX_BITMAP)
        corner = np.array(entry["bitmap"]["origin"], float).reshape(1, 2)
        return [Shape(label, "bitmap", corner, base64.b64encode(stencil).decode())]
    if kind in ("polygon", "rectangle"):
        points = np.array(entry["points"]["exterior"], float).reshape(-1, 2)
        if kind == "rectangle":
            (left, top), (right, bottom) = points.min(0), points.max(0)
            points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        holes = tuple(np.array(ring, float).reshape(-1, 2) for ring in entry["points"].get("interior", []))
        return [Shape(label, "polygon", points, holes=holes)]
    notes[f"{NO_AREA}: {kind}"] += 1
    return []


# ---- Label Studio ---------------------------------------------------------------------------------------------------


def brush_files(tree: Tree) -> list[Picture]:
    return [picture for picture in tree.pictures if BRUSH_FILE.fullmatch(picture.stem)]


def _read_brushes(tree: Tree) -> Annotations:
    """One PNG for each task and label; which picture a task is, only the project's JSON export tells, or the name of a
    picture that is the task's number."""
    finder, notes = PictureFinder(tree), Counter()
    names = _task_pictures(tree)
    tasks: dict[int, dict[int, list[Picture]]] = defaultdict(lambda: defaultdict(list))
    for picture in brush_files(tree):
        task, annotation, _, _, _ = BRUSH_FILE.fullmatch(picture.stem).groups()
        tasks[int(task)][int(annotation)].append(picture)
    images, labels, lost = [], set(), []
    for task, annotations in sorted(tasks.items()):
        image = next(filter(None, (finder.find(name, "train") for name in names.get(task, []))), None)
        for stem in (str(task), f"task-{task}", f"task_{task}"):
            image = image or finder.find(stem, "train", by_stem=True)
        if image is None:
            lost.append(f"task {task}{f' ({names[task][0]})' if names.get(task) else ''}")
            continue
        if len(annotations) > 1:
            notes["task/tasks has/have several annotations, of which the last counts"] += 1
        files = annotations[max(annotations)]
        shapes = [Shape(BRUSH_FILE.fullmatch(file.stem)[4], "brush", content=str(file.path)) for file in files]
        labels |= {shape.label for shape in shapes}
        split = next((picture.place.split for picture in finder.by_name[image.name] if picture.path == image), None)
        images.append(AnnotatedImage(split or "train", image.stem, image, files[0].path, None, shapes))
    if lost and len(lost) >= len(images):
        raise UserError(
            f"{tree.root} has brush masks of Label Studio, whose names say the task but not the picture: "
            f"{shorten(lost)}; export the project as JSON, too, and put that file and the pictures into this folder "
            "(or export it as COCO)"
        )
    if lost:
        notes[f"task/tasks has/have no picture that is there and is/are left out: {shorten(lost)}"] = len(lost)
    return Annotations(images, class_values(sorted(labels)), notes)


def _is_task(number) -> bool:
    return re.fullmatch(r"[0-9]{1,18}", str(number)[:20]) is not None


def names_of_upload(name: str) -> list[str]:
    """What Label Studio calls a file, and what it was called before: uploads get eight digits and a dash in front."""
    return [name, name[9:]] if re.match(r"[0-9a-f]{8}-.", name) else [name]


def _task_pictures(tree: Tree) -> dict[int, list[str]]:
    """Task → names that its picture may have, from JSON exports of the project."""
    found: dict[int, list[str]] = {}
    for _, path in tree.named("*.json")[:SNIFFED_FILES]:
        if not begins_with(path, "data"):
            continue
        content = read_json(path)
        for entry in content if isinstance(content, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("data"), dict) and _is_task(entry.get("id")):
                stated = [value for value in entry["data"].values() if isinstance(value, str)]
                names = [Path(value.replace("\\", "/").partition("&")[0]).name for value in stated]
                names = [name.partition("?d=")[2] or name for name in names]
                names = [other for name in names for other in names_of_upload(name)]
                pictures = [name for name in names if split_extension(name)[1] in IMAGE_EXTENSIONS]
                found[int(entry["id"])] = pictures
    return found


READERS: dict[str, Callable[[Tree], Annotations]] = {
    "COCO": _read_coco,
    "COCO panoptic": _read_panoptic,
    "Labelme": _read_labelme,
    "YOLO": _read_yolo,
    "Supervisely": _read_supervisely,
    "Label Studio brushes": _read_brushes,
}


def annotation_sources(tree: Tree, layout: str) -> Sequence[Path]:
    """The files that masks of a layout are made from."""
    if layout.startswith("COCO"):
        files = [path for _, path in coco_files(tree, panoptic=layout != "COCO")]
        return files + [picture.path for picture in tree.pictures if layout != "COCO" and picture.extension == ".png"]
    if layout == "Labelme":
        return [*(path for _, _, path in labelme_files(tree)), *tree.root.glob("labels.txt")]
    if layout == "Supervisely":
        return [path for _, path in [*tree.named("meta.json"), *supervisely_files(tree)]]
    if layout == "Label Studio brushes":
        return [picture.path for picture in brush_files(tree)] + [path for _, path in tree.named("*.json")]
    folders = {folder for _, *both in yolo_folders(tree) for folder in both if os.path.isdir(folder)}
    return [
        yolo_file(tree),
        *(folder.joinpath(*parts, name) for folder in sorted(folders) for parts, name in tree.below(folder)),
    ]
