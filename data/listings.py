"""Files that say which images and masks there are: tables (`metadata.csv`, `metadata.jsonl`) and lists of a split's
images (`ImageSets/Segmentation/train.txt`)."""

import csv
import io
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cli_utils import UserError, count_of, parse_json, read_text, shorten
from data.columns import find_columns, has_column
from data.layouts import SPLIT_OF, Pair, Picture, Tree, split_extension, standard_split_name, words_of
from data.output_paths import inner_names
from data.synonyms import DEFAULT_LISTS, LIST_FOLDERS, LIST_WORDS, NO_FILE, SPLIT_COLUMNS, SPLIT_NAMES

logger = logging.getLogger(__name__)

TABLES = (".csv", ".tsv", ".jsonl")
MOST_SNIFFED = 1 << 26  # bytes of a file that is looked into, as it may be a table of images and masks
MAX_LINE = 1 << 13  # letters of two paths

# ---- tables ---------------------------------------------------------------------------------------------------------


def metadata_files(tree: Tree) -> list[tuple[str, Path]]:
    """(split, table): `metadata.csv` in the folder itself or in that of each split, or else tables of any name in the
    folder whose columns are called after images and masks and name files that are there.

    Raises:
        UserError: several such tables for a split.
    """
    usual = [
        (tree.places[parts].split or "train", path)
        for parts, path in tree.named(*(f"metadata{kind}" for kind in TABLES))
        if not parts or (len(parts) == 1 and tree.places[parts].split)
    ]
    if usual:
        return usual
    found = [(split_of_list(path.stem), path) for path in _tables(tree) if _names_pairs(path)]
    found = [item for item in found if item[0]] or [("train", path) for _, path in found]
    counts = Counter(split for split, _ in found)
    for split, count in counts.items():
        if count > 1:
            listed = shorten(path.name for of, path in found if of == split)
            raise UserError(
                f"{tree.root} has {count} tables that name images and masks of the {split} split: {listed}; rename "
                f"the one that is meant to metadata{found[0][1].suffix.lower()}"
            )
    return found


def _tables(tree: Tree) -> list[Path]:
    """Tables in the folder itself that are looked into."""
    found = [path for parts, path in tree.named(*(f"*{kind}" for kind in TABLES)) if not parts]
    return [path for path in found if path.stat().st_size <= MOST_SNIFFED]


def _names_pairs(path: Path) -> bool:
    """Whether the first row of a table names an image and a mask that are there."""
    try:
        [row, *_] = _rows(path)
        usable = [name for name in row if Path(_cell(row, name)).suffix]
        if not all(has_column(kind, usable) for kind in ("image", "label")):
            return False
        keys = find_columns(dict.fromkeys(row, ""), usable)
    except (UserError, OSError, ValueError):
        return False
    return _outer_folders(path, [_cell(row, key) for key in keys]) is not None


@dataclass(frozen=True)
class Table:
    """splits: pairs of the rows. images_alone, masks_alone: files of rows that lack the other one."""

    splits: dict[str, list[Pair]]
    images_alone: list[Path] = field(default_factory=list)
    masks_alone: list[Path] = field(default_factory=list)


def read_tables(files: Sequence[tuple[str, Path]], image_column: str | None, label_column: str | None) -> Table | None:
    """A row names an image and a mask, relative to its file's folder, and may name a split in a column `split`.

    None: the tables name no masks, so they are about something else.
    """
    table = Table({})
    for file_split, file in files:
        rows = _rows(file)
        if not rows:
            raise UserError(f"{file} has no rows")
        columns = dict.fromkeys((str(name) for row in rows[:20] for name in row), "")
        # Other columns hold other things than files.
        usable = [name for name in columns if any(Path(_cell(row, name)).suffix for row in rows)]
        if label_column is None and image_column is None and not has_column("label", columns) and len(usable) < 2:
            return None
        image_key, mask_key = find_columns(columns, usable, image_column, label_column, str(file))
        _read_rows(table, file, file_split, rows, image_key, mask_key)
    for split, pairs in table.splits.items():
        twice = [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1]
        if twice:
            raise UserError(f"the metadata of the {split} split names an image more than once: {shorten(twice)}")
        names = inner_names([pair.name for pair in pairs])
        pairs[:] = [replace(pair, name=name) for pair, name in zip(pairs, names, strict=True)]
    return table


def _read_rows(table: Table, file: Path, file_split: str, rows: list[dict], image_key: str, mask_key: str) -> None:
    split_key = _split_column(rows)
    missing, alone = [], defaultdict(list)
    outer = _outer_folders(file, [_cell(row, key) for row in rows[:20] for key in (image_key, mask_key)])
    if outer:
        logger.info(
            f"{file} was written on another machine: its files are looked for without the first {outer} folders"
        )
    for row in rows:
        stated = _cell(row, split_key) if split_key else ""
        split = standard_split_name(stated) if stated else file_split
        if split is None:
            raise UserError(f"{file}: split {stated!r} is none of {', '.join(SPLIT_NAMES)}")
        cells = {key: _cell(row, key) for key in (image_key, mask_key)}
        paths = {key: _path(file, cell, outer or 0) for key, cell in cells.items() if cell.lower() not in NO_FILE}
        missing += [cells[key] for key, path in paths.items() if not os.path.isfile(path)]
        if len(paths) == 2:
            name = split_extension(Path(cells[image_key].replace("\\", "/")).as_posix())[0]
            table.splits.setdefault(split, []).append(Pair(name, paths[image_key], paths[mask_key]))
        elif image_key in paths:
            table.images_alone.append(paths[image_key])
            alone[split].append(cells[image_key])
        elif mask_key in paths:
            table.masks_alone.append(paths[mask_key])
            alone[split].append(cells[mask_key])
        else:
            raise UserError(f"{file}: a row lacks both its {image_key} and its {mask_key}: {row}")
    if missing:
        raise UserError(f"{file} names {count_of(len(missing), 'file')} that are not there: {shorten(missing)}")
    for split, cells in alone.items():
        rows_said = count_of(len(cells), "row")
        logger.warning(f"{file}: {rows_said} of the {split} split without a {mask_key} left out: {shorten(cells)}")


def _cell(row: dict, key: str) -> str:
    value = row.get(key)
    return "" if value is None or isinstance(value, list) else str(value).strip()


def _split_column(rows: Sequence[dict]) -> str | None:
    return next((name for name in rows[0] if str(name).strip().lower() in SPLIT_COLUMNS), None)


def _path(file: Path, cell: str, outer: int = 0) -> Path:
    """outer: so many folders are left out in front."""
    parts = _folders_and_name(cell)[outer:]
    stated = [file.parent.joinpath(*parts)] if outer else [file.parent / cell, file.parent / cell.replace("\\", "/")]
    found = next((path for path in stated if os.path.isfile(path)), None)
    if found is None and (outer or not Path(cell).is_absolute()):
        found = _in_other_capitals(file.parent, parts)
    return found or stated[0]


def _in_other_capitals(folder: Path, parts: Sequence[str]) -> Path | None:
    """The file whose path differs in capitals alone, as on Windows, where they do not count."""
    path = folder
    for part in parts:
        if not os.path.lexists(path / part):
            try:
                names = _spellings(str(path), os.stat(path).st_mtime_ns).get(part.casefold(), [])
            except (OSError, ValueError):
                return None
            if len(names) != 1:
                return None
            [part] = names
        path = path / part
    return path if os.path.isfile(path) else None


@lru_cache(maxsize=64)
def _spellings(folder: str, changed: int) -> dict[str, list[str]]:
    """Names in a folder, by their letters. changed: when it was, as a part of the cache's key."""
    names = defaultdict(list)
    for name in os.listdir(folder):
        names[name.casefold()].append(name)
    return names


def _folders_and_name(cell: str) -> list[str]:
    return [part for part in cell.replace("\\", "/").split("/") if part not in ("", ".")] or [""]


def _outer_folders(file: Path, cells: Sequence[str]) -> int | None:
    """How many folders of another machine stand in front of files that a table names; None: these are not there."""
    cells = [cell for cell in cells if cell.lower() not in NO_FILE]
    depth = min((len(_folders_and_name(cell)) for cell in cells), default=0)
    return next(
        (outer for outer in range(depth) if all(os.path.isfile(_path(file, cell, outer)) for cell in cells)), None
    )


def _rows(file: Path) -> list[dict]:
    text = read_text(file)
    try:
        if file.suffix.lower() == ".jsonl":
            rows = [parse_json(line) for line in text.splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no object {…}")
            return rows
        return read_csv(text)
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def read_csv(text: str) -> list[dict]:
    """Rows of a table with a header, between commas, semicolons or tabs, whichever the header has most of."""
    head = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t|", key=head.count)
    rows = csv.DictReader(io.StringIO(text.lstrip("\ufeff"), newline=""), delimiter=delimiter, skipinitialspace=True)
    return [
        {str(key).strip(): value for key, value in row.items() if key is not None}
        for row in rows
        if any(value for value in row.values())
    ]


# ---- lists ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ListedImage:
    """mask: where the list names that as well."""

    image: Picture
    mask: Picture | None = None


def split_of_list(stem: str) -> str | None:
    """ "val", "val_list" → "validation"; None for a name that says more."""
    words = words_of(stem)
    splits = [SPLIT_OF[word] for word in words if word in SPLIT_OF]
    return splits[0] if len(splits) == 1 and all(word in SPLIT_OF or word in LIST_WORDS for word in words) else None


class SplitList(NamedTuple):
    """names: its lines, or, of a table, the cells that name images."""

    file: Path
    names: list[str]


def find_lists(tree: Tree) -> dict[str, SplitList]:
    """Split → the list of its images, of files or of a table that names images and their splits; none where there are
    no lists.

    Raises:
        UserError: a folder of lists in which none has the name of a split.
    """
    files = _list_files(tree)
    return {split: SplitList(file, read_text(file).splitlines()) for split, file in files.items()} or _split_table(
        tree
    )


def _split_table(tree: Tree) -> dict[str, SplitList]:
    there = {name for picture in tree.pictures for name in (picture.stem, picture.path.name)}
    for file in _tables(tree):
        with suppress(UserError):
            rows = _rows(file)
            split_key = _split_column(rows) if rows else None
            splits = [standard_split_name(_cell(row, split_key)) for row in rows] if split_key else [None]
            keys = [key for key in rows[0] if _folders_and_name(_cell(rows[0], key))[-1] in there] if rows else []
            if keys and None not in splits:
                lists = {split: SplitList(file, []) for split in splits}
                for row, split in zip(rows, splits, strict=True):
                    lists[split].names.append(_cell(row, keys[0]))
                return lists
    return {}


def _list_files(tree: Tree) -> dict[str, Path]:
    """As `find_lists`, of text files."""
    lists: dict[str, dict[str, Path]] = defaultdict(dict)
    for parts, path in tree.named("*.txt"):
        lists["/".join(parts).lower()][path.stem.lower()] = path
    for folder in LIST_FOLDERS:
        there = lists.get(folder.lower(), {})
        are_plain = any(standard_split_name(stem) for stem in there)
        found: dict[str, Path] = {}
        others = []
        for stem, path in there.items():
            split = standard_split_name(stem) if are_plain else split_of_list(stem)
            if split is None or stem in DEFAULT_LISTS:
                others.append(path)
            elif split in found:
                raise UserError(f"two lists of the {split} split: {found[split]} and {path}; delete one")
            else:
                found[split] = path
        if found:
            if others and folder:
                logger.info(f"lists that are not read: {shorten(path.name for path in others)}")
            return found
        usual = [path for path in others if path.stem.lower() in DEFAULT_LISTS]
        if len(usual) == 1 or (len(others) == 1 and folder == LIST_FOLDERS[0]):
            return {"train": (usual or others)[0]}
        if folder == LIST_FOLDERS[0] and folder.lower() in lists:
            names = shorten((path.name for path in others), 8)
            raise UserError(
                f"{others[0].parent} holds no train.txt, val.txt or test.txt but {names}: rename the list that "
                "training shall use to train.txt"
            )
    return {}


class ListReader:
    """Finds what the lines of lists name: an image, with or without folders and extension, or image and mask."""

    def __init__(self, tree: Tree, images: Iterable[tuple[Picture, str]], masks: Iterable[Picture]):
        """images: with their names."""
        self.images: dict[str, list[Picture]] = defaultdict(list)
        for picture, name in images:
            for key in self._spelled({name, *self._keys(picture)}):
                self.images[key].append(picture)
        self.masks: dict[str, list[Picture]] = defaultdict(list)
        for picture in masks:
            for key in self._spelled(self._keys(picture)):
                self.masks[key].append(picture)

    @staticmethod
    def _keys(picture: Picture) -> list[str]:
        path = "/".join((*picture.parts, picture.stem))
        return [path, path + picture.path.suffix, picture.stem, picture.path.name]

    def read(self, names: Iterable[str]) -> tuple[dict[Picture, ListedImage], list[str]]:
        """What the lines of a list name, and those that name nothing that is there."""
        found: dict[Picture, ListedImage] = {}
        missing = []
        for line in map(str.strip, names):
            if not line or line.startswith("#"):
                continue
            listed = self._listed(line)
            if listed is None:
                missing.append(line)
            else:
                found.setdefault(listed.image, listed)
        return found, missing

    def _listed(self, line: str) -> ListedImage | None:
        image = self._find(self.images, line)
        if image is not None:
            return ListedImage(image)
        if len(line) > MAX_LINE:  # each gap in it might be the one
            return None
        for gap in re.finditer(r"\s*[,;\t]\s*|\s+", line):
            image = self._find(self.images, line[: gap.start()])
            mask = self._find(self.masks, line[gap.end() :])
            if image is not None and mask is not None:
                return ListedImage(image, mask)
        return None

    @staticmethod
    def _spelled(keys: Iterable[str]) -> set[str]:
        """With a line break in front, which no line has, in small letters: for names that differ in capitals alone."""
        return {spelled for key in keys for spelled in (key, "\n" + key.casefold())}

    @staticmethod
    def _find(files: dict[str, list[Picture]], text: str) -> Picture | None:
        """By the whole path, or without the folders of another machine."""
        parts = [part for part in text.strip("\"' ").replace("\\", "/").split("/") if part not in ("", ".", "..")]
        names = ["/".join(parts[start:]) for start in range(len(parts))]
        hits = (files.get(name, []) for name in [*names, *("\n" + name.casefold() for name in names)])
        return next((found[0] for found in hits if len(found) == 1), None)
