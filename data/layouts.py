"""A dataset's folder as its names tell it: what lies below it, which folders hold images, which masks, which split.

Names are compared word by word with the tables of `data.synonyms`; capitals do not count.
"""

import fnmatch
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cli_utils import UserError, nearest
from data.synonyms import (
    FILLERS,
    IMAGE_EXTENSIONS,
    IMAGE_WORDS,
    LITTER,
    MASK_EXTENSIONS,
    MASK_WORDS,
    OTHER_SUFFIXES,
    OTHER_WORDS,
    SHORT_SPLIT_NAMES,
    SPLIT_NAMES,
    VARIANTS,
)

LAYOUTS = {
    "ADE20K": "images/{training,validation} + annotations/{training,validation}",
    "split folders": "{train,val,test}/{images,masks}",
    "images and masks by split": "{images,masks}/{train,val,test}",
    "CamVid": "train + trainannot, val + valannot, test + testannot",
    "Cityscapes": "leftImg8bit/*/* + gtFine/*/*_labelTrainIds.png",
    "Cityscapes label ids": "leftImg8bit/*/* + gtFine/*/*_labelIds.png, with --label_map",
    "Pascal VOC": "JPEGImages + SegmentationClass + ImageSets/Segmentation/*.txt",
    "images and masks": "images + masks",
    "paired folders": "two folders, by whatever names, whose files pair",
    "masks beside images": "a.jpg + a_mask.png in one folder",
    "metadata": "metadata.csv or metadata.jsonl with an image and a mask column",
    # Annotations from which `data.outlines` draws masks.
    "COCO": "annotations*.json or instances_*.json here or in annotations, or {train,val,test}/_annotations.coco.json",
    "COCO panoptic": "panoptic*.json with a folder of PNG files, and the images",
    "Labelme": "images with a .json file for each",
    "YOLO": "data.yaml or classes.txt + images/{train,val,test} + labels/{train,val,test}/*.txt",
    "Supervisely": "meta.json + */img + */ann/*.json",
    "Label Studio brushes": "task-1-annotation-1-by-1-tag-road-0.png and so on, and the images",
}
# Which program's file is a mask of one class alone, see `data.annotation_files`.
BRUSH_FILE = re.compile(r"task-(\d+)-annotation-(\d+)-by-(\d+)-tag-(.+)-(\d+)")


@dataclass(frozen=True)
class Pair:
    """An image and its mask; `name` is unique within its split and free of extensions."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class FoundDataset:
    """layout: a key of `LAYOUTS`. splits: "train", "validation", "test", those that are there, in this order.

    images_alone, masks_alone: files that are left out as they have no counterpart. Where lists or annotations say
    which images there are: images that these name and that have no mask, and images beside the others.
    left_out: sentences, each on other files that are there and not used. unread: files beside them that are pictures
    of kinds that are not read. folder: where the dataset lies.
    hidden: of outlines, "split/name" of an image → objects in it that smaller ones hide entirely.
    """

    layout: str
    splits: dict[str, list[Pair]]
    class_names: dict[int, str] | None = None
    images_alone: list[Path] = field(default_factory=list)
    masks_alone: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    hidden: dict[str, list[str]] = field(default_factory=dict)
    unread: list[Path] = field(default_factory=list)
    folder: Path | None = None


# ---- names ----------------------------------------------------------------------------------------------------------

IMAGES, MASKS, OTHER = "images", "masks", "other"  # roles
SPLIT_OF = {alias: split for split, aliases in SPLIT_NAMES.items() for alias in aliases}


def standard_split_name(name: str) -> str | None:
    """ "val" → "validation"; None for a name that is no split."""
    return SPLIT_OF.get(name.strip().lower())


def words_of(name: str) -> tuple[str, ...]:
    """ "labelsTr", "train_masks", "val2017", "trainannot" → their words, in lower case."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])", " ", name)
    words = []
    for word in re.findall(r"[^\W\d_]+|\d+", parted):
        words += _unglued(word.lower())
    return tuple(words)


@lru_cache(maxsize=100_000)
def _unglued(word: str) -> tuple[str, ...]:
    """ "trainannot" and "imagestr", which no capital parts."""
    roles = IMAGE_WORDS | MASK_WORDS
    if word in roles or word in SPLIT_OF or word in OTHER_WORDS:
        return (word,)
    for cut in range(2, len(word) - 1):
        front, back = word[:cut], word[cut:]
        if front in SPLIT_OF and len(back) > 1 and back in roles:
            return (front, back)
        if front in roles and (back in SPLIT_OF or back in SHORT_SPLIT_NAMES):
            return (front, back)
        if back in ("annot", "annots"):  # CamVid's, with any name in front
            return (front, back)
    return (word,)


@dataclass(frozen=True)
class NameOfFolder:
    """What one name says. role: `IMAGES`, `MASKS`, `OTHER` or None. split: a standard name, if `sure` or if another
    folder has the same name but for the split (`uavid_train`, `uavid_val`). base: its words for the role; extra: all
    others but those of the split; pattern: its words with a mark where the split stands."""

    role: str | None
    split: str | None
    sure: bool
    base: tuple[str, ...]
    extra: tuple[str, ...]
    pattern: tuple[str, ...]


@lru_cache(maxsize=100_000)
def read_name(name: str) -> NameOfFolder:
    words = words_of(name)
    # Words that are written apart, too: ground truth, train val.
    joined = [words[i] + words[i + 1] for i in range(len(words) - 1)]

    def hits(table) -> set[str]:
        found = {word for word in words if word in table and (len(word) > 1 or len(words) == 1)}
        found |= {word for pair, both in zip(joined, zip(words, words[1:], strict=False), strict=True)
                  if pair in table for word in both}  # fmt: skip
        return found

    others, masks, images = (hits(table) for table in (OTHER_WORDS, MASK_WORDS, IMAGE_WORDS))
    role, base = (
        (OTHER, others) if others else (MASKS, masks) if masks else (IMAGES, images) if images else (None, set())
    )
    splits = {word: SPLIT_OF[word] for word in words if word in SPLIT_OF and word not in base}
    if not splits and role in (IMAGES, MASKS):
        splits = {word: SHORT_SPLIT_NAMES[word] for word in words if word in SHORT_SPLIT_NAMES and word not in base}
    if len(set(splits.values())) > 1 and set(splits) == {"train", "val"}:
        splits = dict.fromkeys(splits, "train")
    split = next(iter(splits.values())) if len(set(splits.values())) == 1 else None
    if split is None:
        splits = {}
    left = [word for word in words if word not in base and word not in splits]
    sure = not [word for word in left if word not in FILLERS and not re.fullmatch(r"(19|20)\d\d", word)]
    ordered = tuple(word for word in words if word in base)
    pattern = tuple("{}" if word in splits else word for word in words)
    return NameOfFolder(role, split, sure, ordered, tuple(left), pattern)


# ---- the tree -------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """What the names on the way to a folder say: its role by the last name that has one; side: all names with a role,
    without the split; split, and the name that said so (split_names: all of them, where they contradict each other);
    rest: all other names."""

    role: str | None
    side: tuple[str, ...]
    split: str | None
    split_names: tuple[str, ...]
    rest: tuple[str, ...]
    is_torn: bool = False


class Picture(NamedTuple):
    """An image or mask file. parts: the folders from the dataset's to it."""

    path: Path
    parts: tuple[str, ...]
    stem: str
    extension: str
    place: Place


class Tree:
    """All files below a folder but for litter, listed once; links to folders are followed."""

    def __init__(self, root: Path, below: Iterable[Path] | None = None):
        """below: folders in `root` that are looked at; default: all of it."""
        self.root = root
        self.files: list[tuple[tuple[str, ...], str]] = []  # folders from the root, name
        for start in below or [root]:
            self._list(start)

    def _list(self, start: Path) -> None:
        prefix = start.relative_to(self.root).parts if start != self.root else ()
        for folder, folders, names in os.walk(start, followlinks=True):
            here = os.path.realpath(folder)
            # A link to a folder above would be followed forever.
            folders[:] = sorted(
                name
                for name in folders
                if not is_litter(name)
                and not (
                    os.path.islink(path := os.path.join(folder, name)) and is_within(here, os.path.realpath(path))
                )
            )
            relative = os.path.relpath(folder, start)
            parts = prefix + (() if relative == "." else tuple(relative.split(os.sep)))
            self.files += [(parts, name) for name in sorted(names) if not is_litter(name)]

    def below(self, folder: Path) -> list[tuple[tuple[str, ...], str]]:
        """(folders from there, name) of all files below a folder, sorted; one outside the root is listed for it."""
        path, root = Path(os.path.abspath(folder)), Path(os.path.abspath(self.root))
        if not path.is_relative_to(root):
            return sorted(Tree(folder).files) if folder.is_dir() else []
        start = path.relative_to(root).parts
        below = [parts for parts in self._names if parts[: len(start)] == start]
        return sorted((parts[len(start) :], name) for parts in below for name in self._names[parts])

    @cached_property
    def _names(self) -> dict[tuple[str, ...], list[str]]:
        """Folder → the files in it."""
        names = defaultdict(list)
        for parts, name in self.files:
            names[parts].append(name)
        return names

    def path(self, parts: tuple[str, ...], name: str) -> Path:
        return self.root.joinpath(*parts, name)

    @cached_property
    def folders(self) -> set[tuple[str, ...]]:
        """All that hold files, here or below."""
        return {parts[:depth] for parts in {parts for parts, _ in self.files} for depth in range(len(parts) + 1)}

    @cached_property
    def pictures(self) -> list[Picture]:
        """All files that can be images or masks."""
        found = []
        for parts, name in self.files:
            stem, extension = split_extension(name)
            if extension in IMAGE_EXTENSIONS or extension in MASK_EXTENSIONS:
                place = self.places[parts]
                if place.role != OTHER and (stem.endswith(OTHER_SUFFIXES) or BRUSH_FILE.fullmatch(stem)):
                    place = place._replace(role=OTHER)
                found.append(Picture(self.path(parts, name), parts, stem, extension, place))
        return found

    @cached_property
    def places(self) -> dict[tuple[str, ...], Place]:
        """Folder → what the names on the way to it say."""
        names = {name for parts in self.folders for name in parts}
        patterns = defaultdict(set)
        for name in names:
            if (read := read_name(name)).split:
                patterns[read.pattern].add(read.split)
        of_split = {
            name
            for name in names
            if (read := read_name(name)).split and (read.sure or len(patterns[read.pattern]) > 1)
        }
        return {parts: self._place(parts, of_split) for parts in self.folders}

    def _place(self, parts: tuple[str, ...], of_split: set[str]) -> Place:
        reads = [read_name(name) for name in parts]
        roles = [i for i, read in enumerate(reads) if read.role in (IMAGES, MASKS)]
        if len(roles) > 1:  # `masks/pictures`, `segmentation/images`
            saying = [i for i in roles if not self._saying_nothing & {parts[: i + 1], parts[i]}]
            roles = saying or roles[-1:]
        is_other = any(read.role == OTHER or name in self._superseded for read, name in zip(reads, parts, strict=True))
        role = OTHER if is_other else reads[roles[-1]].role if roles else None
        side, splits, rest = [], [], []
        for i, (name, read) in enumerate(zip(parts, reads, strict=True)):
            if name in of_split:
                # Of `site1_train` and `site2_train` the rest is part of the names.
                splits.append((read.split, name if read.sure or read.role else read.split))
            if i in roles:
                if name in self._series:
                    side.append("_".join(read.base))
                    rest.append("_".join(read.extra).casefold())
                else:
                    keep = read.base + read.extra if name in of_split else words_of(name)
                    side.append("_".join(word for word in words_of(name) if word in keep))
            elif name not in of_split:
                rest.append(name)
            elif not read.sure:
                rest.append("_".join(read.pattern).replace("{}", "").strip("_"))
        is_torn = len({split for split, _ in splits}) > 1
        split = splits[-1][0] if splits else None
        return Place(role, tuple(side), split, tuple(name for _, name in splits), tuple(rest), is_torn)

    @cached_property
    def _saying_nothing(self) -> set[tuple[str, ...] | str]:
        """Folders above ones of both roles, and names that lie below folders of both: they have no role themselves."""
        below, above = defaultdict(set), defaultdict(set)
        for parts in self.folders:
            roles = [read_name(name).role for name in parts]
            for i in range(len(parts)):
                below[parts[: i + 1]].update(roles[i + 1 :])
                above[parts[i]].update(roles[:i])
        return {key for found in (below, above) for key, roles in found.items() if {IMAGES, MASKS} <= roles}

    @cached_property
    def _holding(self) -> set[str]:
        """Names of folders that hold pictures, directly or below."""
        return {
            name
            for parts in {parts for parts, name in self.files if split_extension(name)[1] in IMAGE_EXTENSIONS}
            for name in parts
        }

    @cached_property
    def _superseded(self) -> set[str]:
        """Names of folders that hold what another holds in a better form, see `VARIANTS`."""
        found = set()
        by_word = defaultdict(set)
        for name in self._holding:
            by_word[re.sub(r"[\W_]", "", name).lower()].add(name)
        for variants in VARIANTS:
            there = [word for word in variants if word in by_word]
            found |= {name for word in there[1:] for name in by_word[word]}
        return found

    @cached_property
    def _series(self) -> set[str]:
        """Names of folders like `site1_images`, `site1_masks`, `site2_images`, `site2_masks`: several of one kind,
        where what is left of their names pairs images with masks."""
        extras: dict[str, dict[tuple[str, ...], str]] = {IMAGES: {}, MASKS: {}}
        for name in self._holding:
            read = read_name(name)
            if read.role in extras and not read.split:
                if read.extra in extras[read.role]:
                    return set()
                extras[read.role][read.extra] = name
        images, masks = extras.values()
        if len(images) < 2 or () in images or images.keys() != masks.keys():
            return set()
        return {*images.values(), *masks.values()}

    def named(self, *patterns: str, within: Iterable[str] | None = None) -> list[tuple[tuple[str, ...], Path]]:
        """(folders, path) of the files whose name fits a pattern, capitals or not; nearest to the root first.

        within: names of the folder they must lie in, "" for the root.
        """
        found, fits = [], re.compile("|".join(fnmatch.translate(pattern.lower()) for pattern in patterns))
        for parts, name in self.files:
            if fits.match(name.lower()):
                if within is None or (parts[-1].lower() if parts else "") in within:
                    found.append((parts, self.path(parts, name)))
        return sorted(found, key=lambda item: (len(item[0]), item[1]))

    def title(self, parts: tuple[str, ...]) -> str:
        """What messages call a folder."""
        return "/".join(parts) + "/" if parts else "the folder itself"


def split_extension(name: str) -> tuple[str, str]:
    """ "a.b.JPG" → "a.b", ".jpg"."""
    stem, extension = os.path.splitext(name)
    return stem, extension.lower()


def is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def files_by_stem(folder: Path, extensions: set[str], tree: Tree) -> dict[str, Path]:
    """Relative path without extension → file, for all files below `folder`, sorted by name.

    tree: what was listed already, and is not listed again.
    """
    files: dict[str, Path] = {}
    for parts, name in tree.below(folder):
        stem, extension = split_extension(name)
        if extension not in extensions:
            continue
        key = "/".join((*parts, stem))
        if key in files:
            raise UserError(f"{folder} holds {files[key].name} and {name}, which differ in the extension alone")
        files[key] = folder.joinpath(*parts, name)
    return files


def visible_files(folder: Path) -> list[Path]:
    """What a person sees in a folder, sorted: without dot files and what macOS and Windows leave behind."""
    return sorted(path for path in folder.iterdir() if not is_litter(path.name))


def check_folder(root: Path) -> None:
    """Raises UserError for a `--dataset_dir` that is no folder, or an empty one."""
    if root.is_file():
        raise UserError(f"--dataset_dir {root} is a file; give the folder with the images and masks")
    if not root.is_dir():
        siblings = [path.name for path in visible_folders(root.parent)] if root.parent.is_dir() else []
        raise UserError(f"--dataset_dir {root}: no such folder{nearest(root.name, siblings)}")
    if not first_visible(root, 1):
        raise UserError(f"--dataset_dir {root} is empty")


def first_visible(folder: Path, count: int) -> list[Path]:
    """Some of `visible_files`, of folders that may hold millions."""
    with os.scandir(folder) as entries:
        return [folder / name for name in islice((e.name for e in entries if not is_litter(e.name)), count)]


def visible_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if entry.is_dir() and not is_litter(entry.name))


def is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in LITTER
