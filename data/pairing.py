"""Finding images and their masks in a folder: what it holds, which mask belongs to which image, and what is left over.

`find_dataset(folder)` takes, in this order: folders named by flags; a table that names images and masks; folders whose
names say what they hold and whose files pair (`data.trial_pairing`); annotations from which masks can be drawn
(`data.outlines`); folders whose names say nothing, where their files pair and the pixels tell images from masks. Every
picture below the folder is then used, or counted in a sentence.
"""

import glob
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from cli_utils import UserError, count_of, nearest, shorten
from data.annotation_files import SNIFFED_FILES, begins_with, outline_layout
from data.layouts import (
    LAYOUTS,
    OTHER,
    FoundDataset,
    Pair,
    Picture,
    Tree,
    check_folder,
    first_visible,
    read_name,
    visible_files,
    visible_folders,
)
from data.listings import ListReader, SplitList, find_lists, metadata_files, read_tables
from data.outlines import draw_masks
from data.synonyms import IMAGE_EXTENSIONS, PREFERRED_SUFFIXES, SPLIT_NAMES, UNREADABLE_EXPORTS, UNREADABLE_JSON
from data.trial_pairing import (
    Candidate,
    Entry,
    Side,
    best_of,
    candidates_of,
    described_unclear,
    pair_by_extension,
    sides_of,
    title_of,
    told_by_content,
)
from data.unread import describe_unread, unread_pictures

logger = logging.getLogger(__name__)

LISTING_LAYOUTS = ("metadata", "COCO", "COCO panoptic", "Labelme", "Supervisely", "Label Studio brushes")
FLAGS = "say where they are with --images DIR --masks DIR"


@dataclass(frozen=True)
class PairingFlags:
    """The flags that say which folders and files are meant; folders may be patterns, as `*/images`."""

    images: str | None = None
    masks: str | None = None
    mask_suffix: str | None = None
    image_suffix: str | None = None


def find_dataset(
    dataset_dir: str | Path | None,
    image_column: str | None = None,
    label_column: str | None = None,
    flags: PairingFlags = PairingFlags(),
) -> FoundDataset:
    """Finds out how a folder is laid out and pairs its images with their masks.

    Args:
        dataset_dir: None: the folders that hold `flags.images` and `flags.masks`.
        image_column, label_column: of `metadata.csv` or `.jsonl`; default: found by name.

    Raises:
        UserError: the folder is missing or empty; nothing pairs, or several things do equally well; a split would be
            empty or has two folders; two files have the same name but for the extension; a list or table names
            files that are not there.
    """
    root, tree = _listed(dataset_dir, flags)
    found, used = None, set()
    if not (flags.images or flags.masks):
        table = read_tables(metadata_files(tree), image_column, label_column) if metadata_files(tree) else None
        if table is not None:
            found = FoundDataset("metadata", table.splits, None, table.images_alone, table.masks_alone)
            logger.info(f"{root} has the metadata layout ({LAYOUTS['metadata']}); {_counted(table.splits)}")
        elif image_column or label_column:
            raise UserError(f"--image_column and --label_column: {root} has no metadata.csv or metadata.jsonl")
    if found is None:
        found, used = _find_pairs(root, tree, flags)
    splits = {split: found.splits[split] for split in SPLIT_NAMES if found.splits.get(split)}
    if not splits:
        raise UserError(f"{root} ({found.layout} layout) holds no image with a mask")
    found = replace(found, splits=splits, folder=root)
    _account(root, tree, found, used, chosen=bool(flags.images or flags.masks))
    return found


def _listed(dataset_dir: str | Path | None, flags: PairingFlags) -> tuple[Path, Tree]:
    if dataset_dir is None:
        folders = [_existing(text, None, flag) for flag, text in (("images", flags.images), ("masks", flags.masks))]
        below = [folder for found in folders for folder in found]
        root = Path(os.path.commonpath([os.path.abspath(folder) for folder in below]))
        # What lies within another is listed with it.
        below = sorted({Path(os.path.abspath(folder)) for folder in below})
        below = [path for path in below if not any(other in path.parents for other in below)]
        return root, Tree(root, below)
    root = Path(dataset_dir)
    check_folder(root)
    # An archive that was unpacked into a folder of its own.
    while len(inside := first_visible(root, 2)) == 1 and inside[0].is_dir() and first_visible(inside[0], 1):
        said = read_name(inside[0].name)
        if said.role or said.split:
            break
        root = inside[0]
    if root != Path(dataset_dir):
        logger.info(f"{dataset_dir} holds {root.relative_to(dataset_dir)} alone, which is looked at instead")
    return root, Tree(root)


def _existing(text: str, root: Path | None, flag: str) -> list[Path]:
    """The folders that a flag names, in the dataset's folder or, failing that, in the current one."""
    bases = [root, Path()] if root is not None else [Path()]
    for base in bases:
        hits = sorted(Path(path) for path in glob.glob(str(base / text) if text != "." else str(base)))
        hits = [path for path in hits if path.is_dir()] or ([base / text] if (base / text).is_dir() else [])
        if hits:
            return hits
    siblings = [path.name for path in visible_folders(root)] if root is not None else []
    where = f" in {root} or here" if root is not None else ""
    raise UserError(f"--{flag} {text}: no such folder{where}{nearest(text, siblings)}")


def _counted(splits: dict[str, Sequence]) -> str:
    return ", ".join(f"{split}: {len(splits[split])}" for split in SPLIT_NAMES if splits.get(split))


# ---- the decision ---------------------------------------------------------------------------------------------------


def _find_pairs(root: Path, tree: Tree, flags: PairingFlags) -> tuple[FoundDataset, set[Path]]:
    """What the tree holds, and pictures that were used for it or are spoken of already."""
    suffixes = flags.mask_suffix, flags.image_suffix
    images, masks, unknown = sides_of(tree)
    if flags.images or flags.masks:
        chosen = [
            [_side_of_flag(root, tree, text, flag)] if text else None
            for flag, text in (("images", flags.images), ("masks", flags.masks))
        ]
        if flags.images and flags.masks and _same(*chosen):
            candidates = candidates_of(chosen[0][0], chosen[0][0], *suffixes)
            pair = pair_by_extension(chosen[0][0])
            candidates += [pair] if pair and not any(suffixes) else []
        else:
            left = chosen[0] or [side for side in [*images, *unknown] if not _same([side], chosen[1])]
            right = chosen[1] or [side for side in [*masks, *unknown] if not _same([side], chosen[0])]
            candidates = [found for a in left for b in right for found in candidates_of(a, b, *suffixes)]
        best = best_of(_nearest_tier(candidates))
        if best is None:
            left, right = (side[0] if side else None for side in chosen)
            raise UserError(_nothing_pairs(root, tree, candidates, left, right))
        return _assembled(root, tree, best)

    plain = [side for side in unknown if side.tier == 1]
    candidates = [found for a in images for b in masks for found in candidates_of(a, b, *suffixes)]
    beside = [found for side in [*images, *unknown] for found in candidates_of(side, side, *suffixes)]
    # A photograph may have such a name, too: `beach_L.jpg` beside `beach.jpg`.
    candidates += beside if any(suffixes) else told_by_content(beside, names_tell=True)
    named = []
    if not any(found.matches and found.tier == 0 for found in candidates):
        named = [found for a in unknown for b in masks for found in candidates_of(a, b, *suffixes)]
    if not images:
        # Folders whose names say nothing may hold anything; what has no name but its split's holds the images.
        candidates += [found for found in named if found.images in plain] + told_by_content(
            [found for found in named if found.images not in plain]
        )
    best = best_of(_nearest_tier(candidates))
    if best is not None:
        return _assembled(root, tree, best)

    layout = outline_layout(tree)
    if layout is not None:
        drawn = draw_masks(tree, layout)
        found = FoundDataset(layout, drawn.splits, drawn.classes, hidden=drawn.hidden)
        logger.info(f"{root} has the {layout} layout ({LAYOUTS[layout]}); {_counted(drawn.splits)}")
        return found, set(drawn.sources)

    guesses = [found for a in images for b in unknown for found in candidates_of(a, b, *suffixes)]
    guesses += [found for a in unknown for b in unknown if a is not b for found in candidates_of(a, b, *suffixes)]
    told = told_by_content(guesses)
    told += [pair for side in [*images, *unknown] if not any(suffixes) and (pair := pair_by_extension(side))]
    best = best_of(told)
    if best is not None:
        return _assembled(root, tree, best)
    guessed = [found for found in [*beside, *named, *guesses] if found.matches]
    if guessed and not any(found.matches for found in candidates):
        likely = max(guessed, key=lambda found: len(found.matches))
        doubt = "neither names nor pixels say that these are masks; if they are"
        if likely in named and images:
            doubt = f"the folder said to hold the images is {images[0].title}; if those are meant"
        raise UserError(
            f"--dataset_dir {root}: {likely} would make {count_of(len(likely.matches), 'pair')}, but {doubt}: "
            f"{likely.flags}"
        )
    largest = [max(sides, key=lambda side: len(side.entries), default=None) for sides in (images or unknown, masks)]
    raise UserError(_nothing_pairs(root, tree, candidates, *largest))


def _nearest_tier(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those in which names say most, among those that make pairs."""
    making = [found for found in candidates if found.matches]
    lowest = min((found.tier for found in making), default=0)
    return [found for found in making if found.tier == lowest]


def _same(left: Sequence[Side] | None, right: Sequence[Side] | None) -> bool:
    if not left or not right:
        return False
    paths = [{entry.picture.path for side in sides for entry in side.entries} for sides in (left, right)]
    return bool(paths[0] & paths[1])


def _side_of_flag(root: Path, tree: Tree, text: str, flag: str) -> Side:
    """The pictures below the folders that a flag names; what a `*` stands for must be the same on both sides."""
    below = [Path(os.path.abspath(folder)) for folder in _existing(text, tree.root, flag)]
    base = Path(os.path.abspath(tree.root))
    outside = [folder for folder in below if folder != base and base not in folder.parents]
    if outside:
        tree, base = Tree(Path(os.path.commonpath(below)), below), Path(os.path.commonpath(below))
    folders = [folder.relative_to(base).parts for folder in below]
    wanted = [re.compile(_capturing(part)) for part in Path(text).parts]
    entries = []
    for picture in tree.pictures:
        start = next((parts for parts in folders if picture.parts[: len(parts)] == parts), None)
        if start is None:
            continue
        place = tree.places[picture.parts]
        varied = []
        for name, pattern in zip(reversed(start), reversed(wanted), strict=False):
            hit = pattern.fullmatch(name)
            if hit and name not in place.split_names:
                varied = [part for part in hit.groups() if part and part not in place.split_names] + varied
        deeper = [name for name in picture.parts[len(start) :] if name not in place.split_names]
        entries.append(Entry(picture, place.split, (*varied, *deeper)))
    if not entries:
        raise UserError(f"--{flag} {text} holds no pictures that are read{_noted(unread_pictures(tree))}")
    return Side(text, entries)


def _capturing(part: str) -> str:
    return re.escape(part).replace(r"\*", "(.*)").replace(r"\?", "(.)")


# ---- what is said where nothing pairs -------------------------------------------------------------------------------


def _nothing_pairs(
    root: Path, tree: Tree, candidates: Sequence[Candidate], images: Side | None, masks: Side | None
) -> str:
    """One line: what is there, and what would make it readable."""
    noted = _noted(unread_pictures(tree))
    unclear = next((found for found in candidates if found.unclear), None)
    if unclear is not None:
        return f"--dataset_dir {root}: {described_unclear(unclear)}"
    if images is not None and masks is not None:
        left, right = ([entry.picture.path for entry in side.entries] for side in (images, masks))
        return (
            f"the train split would be empty: of {len(left)} images in {_full(root, images)}{_examples(left)} and "
            f"{len(right)} masks in {_full(root, masks)}{_examples(right)} no two have the same name; if the masks' "
            f"names are those of the images with something behind: --mask_suffix TEXT{noted}"
        )
    export = _unreadable_export(tree)
    if export:
        return f"--dataset_dir {root}: {export}"
    there = shorten((path.name + "/" * path.is_dir() for path in visible_files(root)), 8)
    if not tree.pictures:
        return (
            f"the train split would be empty: --dataset_dir {root} has 0 images that can be read{noted} (it holds "
            f"{there}; read are {' '.join(sorted(IMAGE_EXTENSIONS))})"
        )
    if masks is not None:
        count = count_of(len(masks.entries), "mask")
        return (
            f"--dataset_dir {root} has {count} in {masks.title} but no images{noted}: put them into a folder images "
            "beside it, with the same names, or say where they are: --images DIR"
        )
    if images is not None:
        names = [entry.picture.path for entry in images.entries]
        return (
            f"--dataset_dir {root} has no known layout: {count_of(len(names), 'picture')} in {_full(root, images)}"
            f"{_examples(names)} and nothing that could be their masks{noted} (it holds {there}); put masks of the "
            f"same names into a folder masks beside images, or {FLAGS}"
        )
    return f"--dataset_dir {root} has no known layout{noted}. It holds {there}; {FLAGS}"


def _unreadable_export(tree: Tree) -> str:
    for parts, name in tree.files:
        for pattern, advice in UNREADABLE_EXPORTS.items():
            if fnmatchcase(name.lower(), pattern):
                return f"{'/'.join((*parts, name))} is {advice}"
    for parts, path in tree.named("*.json")[:SNIFFED_FILES]:
        for keys, advice in UNREADABLE_JSON.items():
            if all(begins_with(path, key) for key in keys):
                return f"{'/'.join((*parts, path.name))} is {advice}"
    return ""


def _noted(unread: Sequence[Path]) -> str:
    return f"; {': '.join(describe_unread(unread))}" if unread else ""


def _full(root: Path, side: Side) -> str:
    return str(root) if side.title == "." else str(root / side.title)


def _examples(files: Sequence[Path]) -> str:
    return f" ({shorten(path.name for path in files)})" if files else ""


# ---- from a candidate to a dataset ----------------------------------------------------------------------------------


def _assembled(root: Path, tree: Tree, best: Candidate) -> tuple[FoundDataset, set[Path]]:
    """The dataset that a candidate makes, with the splits of lists where there are any."""
    layout = _layout_of(best)
    in_folders = any(entry.split for side in (best.images, best.masks) for entry in side.entries)
    lists = {} if in_folders else find_lists(tree)
    made = f"{len(best.matches)} of {max(len(best.images.entries), len(best.masks.entries))} pairs"
    found = FoundDataset(layout, {})
    if lists:
        used = _by_lists(root, tree, best, lists, found)
    else:
        used = _by_folders(root, best, found)
    how = f"{best.rule}, {made}"
    what = (
        f"images and masks in {best.images.title}"
        if best.is_one_folder
        else f"images in {best.images.title}, masks in {best.masks.title}"
    )
    logger.info(f"{root} has the {layout} layout: {what} ({how}); {_counted(found.splits)}")
    return found, used


def _layout_of(best: Candidate) -> str:
    """The key of `LAYOUTS`, as names of folders tell it."""
    first = next((found for found in best.matches if found.image.split), best.matches[0])
    image, mask = first.image.picture, first.mask.picture
    if best.is_one_folder:
        return "masks beside images"
    sides = "/".join(image.place.side), "/".join(mask.place.side)
    if sides == ("left_img_8_bit", "gt_fine") and best.rule.mask_suffix in PREFERRED_SUFFIXES[:2]:
        return "Cityscapes" if best.rule.mask_suffix == PREFERRED_SUFFIXES[0] else "Cityscapes label ids"
    if sides[0] == "jpeg_images" and sides[1].startswith("segmentation_class"):
        return "Pascal VOC"
    splits = {name.lower() for found in best.matches for name in found.image.picture.place.split_names}
    # images/train or train/images
    split_first = bool(image.place.split_names) and read_name(image.parts[0]).split is not None
    if sides == ("images", "annotations") and splits & {"training", "validation"} and not split_first:
        return "ADE20K"
    if sides == ("", "annot") and image.place.split:
        return "CamVid"
    if sides == ("images", "masks"):
        return ("split folders" if split_first else "images and masks by split") if splits else "images and masks"
    return "paired folders"


def _by_folders(root: Path, best: Candidate, found: FoundDataset) -> set[Path]:
    """Splits as the names of folders say. Returns pictures that are spoken of."""
    for side in (best.images, best.masks):
        _check_splits(root, side)
    has_splits = any(pair.image.split or pair.mask.split for pair in best.matches)
    pairs, matched, loose = defaultdict(list), set(), []
    for pair in best.matches:
        split = pair.image.split or pair.mask.split or (None if has_splits else "train")
        files = Pair(pair.name, pair.image.picture.path, pair.mask.picture.path)
        matched |= {files.image, files.mask}
        if split is None:
            loose.append(pair)
        else:
            pairs[split].append(files)
    if loose:
        folders = title_list(entry for pair in loose for entry in (pair.image, pair.mask))
        found.left_out.append(
            f"{count_of(len(loose), 'image/images with its/their mask/masks')} in {folders} left out, as the "
            f"folder's name is no split: rename it, or name it with --images and --masks"
        )
    for split in SPLIT_NAMES:
        here = [
            [
                entry.picture.path
                for entry in side.entries
                if entry.picture.path not in matched and (entry.split or (None if has_splits else "train")) == split
            ]
            for side in (best.images, best.masks)
        ]
        _judge_split(root, split, pairs.get(split, []), here[0], here[1], found, best)
    found.splits.update({split: _ordered(pairs[split]) for split in pairs})
    sides = [entry for side in (best.images, best.masks) for entry in side.entries]
    spoken = {entry.picture.path for entry in sides if entry.split or not has_splits}
    return spoken | matched


def _judge_split(
    root: Path,
    split: str,
    pairs: list[Pair],
    images_alone: list[Path],
    masks_alone: list[Path],
    found: FoundDataset,
    best: Candidate,
) -> None:
    """Says what of a split is left out; raises UserError where that is all of it."""
    if pairs:
        found.images_alone.extend(images_alone)
        found.masks_alone.extend(masks_alone)
        for files, what in ((images_alone, "without a mask"), (masks_alone, "without an image")):
            if files:
                noun = "image" if files is images_alone else "mask"
                logger.warning(f"{split}: {count_of(len(files), noun)} {what} left out: {_names(files)}")
    elif images_alone and not masks_alone and split == "test":
        logger.info(f"{_folder(images_alone)}: {len(images_alone)} test images have no masks and are left out")
    elif images_alone or masks_alone:
        unclear = [
            case
            for case in best.unclear
            if {entry.picture.path for entries in case for entry in entries} & {*images_alone, *masks_alone}
        ]
        if unclear:
            raise UserError(f"{root}: {described_unclear(replace(best, unclear=unclear))}")
        others = [path for path in masks_alone if path.stem.endswith(PREFERRED_SUFFIXES)]
        if others:
            raise UserError(
                f"{_folder(masks_alone)} holds no *{best.rule.mask_suffix}.png as other splits do, but "
                f"{_names(others)}; make those of Cityscapes with csCreateTrainIdLabelImgs "
                "(pip install cityscapesscripts), or move the others away"
            )
        images_said, masks_said = (
            f"{len(files)} {noun}s{f' in {_folder(files)}' if files else ''}{_examples(files)}"
            for files, noun in ((images_alone, "image"), (masks_alone, "mask"))
        )
        raise UserError(
            f"the {split} split would be empty: of {images_said} and {masks_said} no two have the same name; add what "
            f"is missing, or do without that split: {_without(split, best)}"
        )
    if pairs and best.unclear:
        paths = {*images_alone, *masks_alone}
        for case in best.unclear:
            if {entry.picture.path for entries in case for entry in entries} & paths:
                raise UserError(f"{root}: {described_unclear(replace(best, unclear=[case]))}")


def _without(split: str, best: Candidate) -> str:
    """The flags that leave a split out, or what else does."""
    kept = [pair for pair in best.matches if (pair.image.split or pair.mask.split or split) != split]
    if not kept:
        return "move these files out of the dataset's folder"
    images, masks = (title_of([getattr(pair, side) for pair in kept]) for side in ("image", "mask"))
    sides = replace(best.images, title=images), replace(best.masks, title=masks)
    return replace(best, images=sides[0], masks=sides[1]).flags


def _names(files: Sequence[Path]) -> str:
    return shorten(path.name for path in files)


def _folder(files: Sequence[Path]) -> str:
    return os.path.commonpath([path.parent for path in files])


def title_list(entries: Iterable[Entry]) -> str:
    return shorten(dict.fromkeys("/".join(entry.picture.parts) + "/" for entry in entries), 4)


def _check_splits(root: Path, side: Side) -> None:
    """Raises UserError where two folders make one split, or one folder is named after two."""
    names: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in side.entries:
        place = entry.picture.place
        if place.is_torn:
            raise UserError(
                f"{root}: {'/'.join(entry.picture.parts)} is named after two splits, "
                f"{' and '.join(place.split_names)}; rename one of these folders"
            )
        if entry.split and place.split_names:
            names[entry.split].setdefault(place.split_names[-1], entry)
    for split, found in names.items():
        if len(found) > 1:
            first, second = list(found)[:2]
            raise UserError(
                f"{root} has two folders for the {split} split, {first} and {second}; put their files into one, or "
                "rename or move the one that is not meant"
            )


def _ordered(pairs: list[Pair]) -> list[Pair]:
    pairs = sorted(pairs, key=lambda pair: pair.image)
    counts = Counter(pair.name for pair in pairs)
    if max(counts.values()) == 1:
        return pairs
    base = os.path.commonpath([pair.image.parent for pair in pairs])
    return [replace(pair, name=pair.image.relative_to(base).with_suffix("").as_posix()) for pair in pairs]


def _by_lists(root: Path, tree: Tree, best: Candidate, lists: dict[str, SplitList], found: FoundDataset) -> set[Path]:
    """Splits as lists say; what no list names is left out. Returns pictures that are spoken of."""
    name_of = {pair.image.picture: pair.name for pair in best.matches}
    mask_of = {pair.image.picture: pair.mask.picture for pair in best.matches}
    images = [
        (entry.picture, name_of.get(entry.picture, "/".join((*entry.rest, entry.picture.stem))))
        for entry in best.images.entries
    ]
    names = dict(images)
    reader = ListReader(tree, images, [picture for picture in tree.pictures if picture not in names])
    listed_in: dict[Picture, str] = {}
    for split in [name for name in SPLIT_NAMES if name in lists]:
        file = lists[split].file
        listed, missing = reader.read(lists[split].names)
        if missing:
            raise UserError(
                f"{file} names {count_of(len(missing), 'image/images that is/are')} not in "
                f"{best.images.title}: {shorten(missing)}"
            )
        pairs, alone = [], []
        for picture, entry in listed.items():
            mask = entry.mask or mask_of.get(picture)
            if mask is None:
                alone.append(picture.path)
            else:
                pairs.append(Pair(names[picture], picture.path, mask.path))
            other = listed_in.setdefault(picture, split)
            if other != split:
                logger.warning(f"{file} names {picture.path.name}, which is in the {other} split as well")
        _judge_split(root, split, pairs, alone, [], found, best)
        if pairs:
            found.splits[split] = pairs
    unlisted = [picture for picture in names if picture not in listed_in]
    if unlisted:
        logger.info(
            f"{count_of(len(unlisted), 'image')} in {best.images.title} that no list names left out: "
            f"{shorten(picture.path.name for picture in unlisted)}"
        )
    return {entry.picture.path for side in (best.images, best.masks) for entry in side.entries}


# ---- what is left over ----------------------------------------------------------------------------------------------


def _account(root: Path, tree: Tree, found: FoundDataset, spoken: set[Path], chosen: bool) -> None:
    """Says which other pictures lie below the folder, and which files there are not read at all."""
    pairs = [pair for pairs in found.splits.values() for pair in pairs]
    paths = {*spoken, *found.images_alone, *found.masks_alone}
    paths.update(path for pair in pairs for path in (pair.image, pair.mask))
    pictures = [picture for picture in tree.pictures if picture.path not in paths]  # all but a few, without a look at
    known = {os.path.abspath(path) for path in paths} if pictures else set()  # how their paths are written
    beside = {os.path.abspath(folder) for folder in {pair.image.parent for pair in pairs}}
    others: dict[tuple[bool, str], list[Picture]] = defaultdict(list)
    for picture in pictures:
        path = os.path.abspath(picture.path)
        if path in known:
            continue
        if found.layout in LISTING_LAYOUTS and os.path.dirname(path) in beside:
            found.images_alone.append(picture.path)
        else:
            is_expected = chosen or picture.place.role == OTHER
            others[is_expected, tree.title(picture.parts)].append(picture)
    for is_expected in (True, False):
        folders = {title: files for (expected, title), files in others.items() if expected == is_expected}
        if not folders:
            continue
        count = count_of(sum(map(len, folders.values())), "other picture/pictures")
        listed = shorten((f"{title} ({len(files)})" for title, files in folders.items()), 6)
        sentence = f"{count} below {root} not used: {listed}"
        if is_expected:
            logger.info(sentence)
        else:
            found.left_out.append(sentence)
    found.unread.extend(unread_pictures(tree))
    if found.unread:
        logger.warning(f"{root}: {': '.join(describe_unread(found.unread))}")
    for sentence in found.left_out:
        logger.warning(sentence)
