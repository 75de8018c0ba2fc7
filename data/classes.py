"""What the values in annotation files mean: class lists, and raw values <-> training ids.

A "raw" value is one that stands in an annotation file; a "training id" is 0 … num_labels - 1, or 255 for ignored.
Reduction, ignored values, merged, dropped and renumbered classes all come down to one table, `ClassMap.value_ids`.
"""

import csv
import json
import logging
import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import visual_utils
from cli_utils import UserError, nearest, parse_json, parse_yaml, printable, read_text, shorten, write_text
from data.listings import read_csv
from data.synonyms import CLASS_COLUMNS, IGNORED_CLASS_NAMES
from metrics_utils import IGNORE_INDEX

logger = logging.getLogger(__name__)

# Training ids are uint8 and 255 means ignored.
MAX_LABELS = 255
HEX_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class ClassMap:
    """The one place that knows raw annotation values and training ids.

    Attributes:
        id2label: training id → name, ids 0 … num_labels - 1; line breaks become spaces, and control characters are
            written out.
        palette: RGB by training id, or None where the class list has no colours.
        do_reduce_labels: raw 0 is ignored and raw k is training id k - 1, as in ADE20K.
        ignore_values: raw values that are ignored, besides 255, which is unless `raw_to_id` makes a class of it.
        raw_to_id: where neither reduction nor raw = training id says it: raw value → training id or 255. Several raw
            values may share an id; the first of them stands for it in predictions.
        raw_colors: RGB by raw value, of dropped and merged classes too; None: as the palette says.
    """

    id2label: dict[int, str]
    palette: list[list[int]] | None = None
    do_reduce_labels: bool = False
    ignore_values: tuple[int, ...] = ()
    raw_to_id: dict[int, int] | None = None
    raw_colors: dict[int, list[int]] | None = None

    def __post_init__(self):
        # Names go into logs, tables, cards and pictures, and come from files that may hold anything.
        names = {
            i: printable(re.sub(r"[\t-\r\x85\u2028\u2029]+", " ", str(name))) for i, name in self.id2label.items()
        }
        object.__setattr__(self, "id2label", names)
        limit = MAX_LABELS - self.do_reduce_labels  # raw 255 is ignored, so reduction leaves 1 … 254
        if not 0 < self.num_labels <= limit:
            raise UserError(f"{self.num_labels} classes; a class list has 1 to {limit}")
        if not self.class_values:
            raise UserError("no class is left: --ignore_values has the values of all")
        if self.raw_to_id is not None:
            if self.do_reduce_labels:
                raise ValueError("with raw_to_id, which says it all, do_reduce_labels must be False")
            if set(self.raw_to_id.values()) - {IGNORE_INDEX} != set(self.id2label):
                raise ValueError(f"raw_to_id {self.raw_to_id} does not reach exactly the ids of {self.id2label}")

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def is_named_after_values(self) -> bool:
        """Whether nobody said what the classes are called."""
        names = {f"class_{raw}" for raw in self.class_values}
        return names.issuperset(self.id2label.values())

    @property
    def label2id(self) -> dict[str, int]:
        return {name: i for i, name in self.id2label.items()}

    @cached_property
    def value_ids(self) -> dict[int, int]:
        """Every raw value that may stand in an annotation file → its training id, or 255."""
        if self.raw_to_id is not None:
            classes, ignored = self.raw_to_id, []
        else:
            classes = {i + self.do_reduce_labels: i for i in range(self.num_labels)}
            ignored = [0] if self.do_reduce_labels else []
        void = [] if IGNORE_INDEX in classes else [IGNORE_INDEX]
        return classes | dict.fromkeys([*ignored, *self.ignore_values, *void], IGNORE_INDEX)

    @property
    def class_values(self) -> list[int]:
        """Raw values that stand for a class, sorted."""
        return sorted(raw for raw, i in self.value_ids.items() if i != IGNORE_INDEX)

    @property
    def raw_values(self) -> list[int]:
        """The value of each training id in predictions: the first of its raw values.

        Predictions are 8-bit PNGs. Where a raw value does not fit into them, they hold training ids.
        """
        if self.raw_to_id is None:
            return [i + self.do_reduce_labels for i in range(self.num_labels)]
        first = {i: raw for raw, i in reversed(self.raw_to_id.items())}
        values = [first[i] for i in range(self.num_labels)]
        return values if 0 <= min(values) and max(values) <= IGNORE_INDEX else list(range(self.num_labels))

    def values_by_color(self) -> dict[tuple[int, int, int], int]:
        """RGB → raw value, for masks that show classes in their colours.

        Raises:
            UserError: the class list has no colours, or one for several classes.
        """
        colors = self._colors_by_value()
        if not colors:
            raise UserError("the class list has no colours, so masks cannot be read by theirs")
        values, ids = {}, self.value_ids
        for raw, color in colors.items():
            other = values.setdefault(tuple(color), raw)
            if ids[other] != ids[raw]:
                raise UserError(
                    f"the class list has the colour {' '.join(map(str, color))} for both {self._named(other)} and "
                    f"{self._named(raw)}, so masks that show classes in their colours cannot be read"
                )
        return values

    def _colors_by_value(self) -> dict[int, list[int]] | None:
        if self.raw_colors is not None or self.palette is None:
            return self.raw_colors
        return dict(zip(self.raw_values, self.palette, strict=True))

    def _named(self, raw: int) -> str:
        name = self.id2label.get(self.value_ids[raw], "ignored")
        return f"annotation value {raw} ({name})"

    def unknown_values(self, values: np.ndarray) -> np.ndarray:
        """Those of some raw values that are neither a class nor ignored."""
        return values[~np.isin(values, list(self.value_ids))]

    def describe_values(self) -> str:
        """ "0 to 4, 7 are classes and 255 is ignored", for messages."""
        runs: list[list[int]] = []
        for value in self.class_values:
            if runs and value == runs[-1][-1] + 1:
                runs[-1].append(value)
            else:
                runs.append([value])
        listed = shorten((f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs), 8)
        void = "" if IGNORE_INDEX in self.class_values else " and 255 is ignored"
        return f"{listed} {'is a class' if listed.isdigit() else 'are classes'}{void}"

    def suggests_reduction(self, unknown: Sequence[int]) -> bool:
        """Whether values that are no class may be there because ids count from 1 instead of 0."""
        last = self.class_values[-1]
        return not self.do_reduce_labels and list(unknown) == [last + 1] and self.value_ids.keys() >= set(range(last))

    def reduce(self, mask: np.ndarray, values: Sequence[int] | None = None) -> np.ndarray:
        """Raw annotation, integers of any shape → training ids, uint8 of that shape. The input stays as it is.

        values: those that occur in it, where they are known.

        Raises:
            UserError: values that are neither a class nor ignored.
        """
        values = np.unique(mask) if values is None else np.sort(values)
        unknown = self.unknown_values(values)
        if len(unknown):
            raise UserError(
                f"annotation values {shorten(map(str, unknown), 5)} are none of the {self.num_labels} classes"
            )
        value_ids = self.value_ids
        ids = np.array([value_ids[value] for value in values.tolist()], np.uint8)
        if len(values) and 0 <= values[0] and values[-1] < 65536:  # a table is far faster than a search
            lookup = np.zeros(max(256, int(values[-1]) + 1), np.uint8)
            lookup[values] = ids
            return look_up(lookup, mask)
        return ids[np.searchsorted(values, mask)]

    def to_raw(self, prediction: np.ndarray) -> np.ndarray:
        """Training ids, uint8 of any shape → `raw_values`, uint8 (255 → 0 under reduction, else 255)."""
        lookup = np.full(256, 0 if self.do_reduce_labels else IGNORE_INDEX, np.uint8)
        lookup[: self.num_labels] = self.raw_values
        return look_up(lookup, prediction)

    def table(self) -> str:
        """Raw value → training id, several to a line."""
        value_ids = self.value_ids
        entries = [f"{raw} -> ignored" for raw in sorted(value_ids) if value_ids[raw] == IGNORE_INDEX]
        classes = sorted((i, raw) for raw, i in value_ids.items() if i != IGNORE_INDEX)
        entries += [f"{raw} -> {i} {self.id2label[i]}" for i, raw in classes]
        return textwrap.fill("; ".join(entries).replace(" ", "\0").replace(";\0", "; "), 110).replace("\0", " ")

    def to_config(self) -> dict:
        """For a model's `config.json`: what is needed to write its predictions in the annotation files' values."""
        return {
            "do_reduce_labels": self.do_reduce_labels,
            "ignore_values": list(self.ignore_values),
            # Pairs, as configurations are written with sorted keys and the order of raw values matters.
            "raw_to_id": None if self.raw_to_id is None else [list(pair) for pair in self.raw_to_id.items()],
        }

    @classmethod
    def from_config(cls, config: dict, id2label: dict[int, str], palette: list[list[int]] | None = None) -> "ClassMap":
        """The inverse of `to_config`; names and colours are kept elsewhere (`id2label`, `labels.json`).

        Raises:
            UserError: it is something else.
        """
        try:
            pairs, reduces = config["raw_to_id"], config["do_reduce_labels"]
            raw_to_id = None if pairs is None else {whole_number(raw): whole_number(i) for raw, i in pairs}
            if not isinstance(reduces, bool):
                raise TypeError(f"do_reduce_labels is {reduces!r:.40}")
            return cls(id2label, palette, reduces, tuple(map(whole_number, config["ignore_values"])), raw_to_id)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"segmentation_label_map in the model's config.json is damaged ({type(error).__name__}: {error}); "
                "copy the file again, or delete this entry: values in predictions are then the ids of classes"
            ) from None

    def colors(self) -> np.ndarray:
        """RGB by training id, uint8 (num_labels, 3): the class list's, or generated ones."""
        if self.palette is None:
            return visual_utils.default_palette(self.num_labels)
        return np.array(self.palette, np.uint8)

    def save(self, path: str | os.PathLike) -> None:
        """Writes names and colours in the format of `labels/ade20k.json`."""
        entries = [
            json.dumps({"id": i, "name": self.id2label[i], "color": color}, ensure_ascii=False)
            for i, color in enumerate(self.colors().tolist())
        ]
        write_text(path, "[\n" + ",\n".join(entries) + "\n]\n")


def look_up(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`table[values]` for a table of uint8 and integers of any shape; of bytes in a third of that time."""
    if values.dtype != np.uint8 or len(table) != 256:
        return table.take(values)
    return np.frombuffer(bytearray(values).translate(table.tobytes()), np.uint8).reshape(values.shape)


# ---- class lists ----------------------------------------------------------------------------------------------------


def read_class_list(path: str | os.PathLike) -> tuple[dict[int, str], list[list[int]] | None]:
    """Reads class names by id, and, where all have one, their colours in the order of the ids.

    JSON or YAML: `{id: name}`, `{name: id}`, `{name: color}`, a list of names or of `{"id", "name", "color"}`, or one
    of these under `names` (YOLO) or `labels` (nnU-Net, Mapillary). CSV: with such columns, a colour being three
    numbers or `#rrggbb`, or with name, r, g, b, as CamVid's `class_dict.csv`. Text: a name a line, or `id name`;
    CVAT's `labelmap.txt` with `name:r,g,b:parts:actions`; CamVid's `label_colors.txt` with `r g b name`, or
    `name r g b`. Without ids the rows count from 0.

    Ids from 0 without a gap are training ids, all others values in masks, see `class_map_of_list`.

    A list of the ids 0 and 255 alone is one of two classes, 0 and 1: see `two_class_map`.

    Raises:
        UserError: the file is missing or has another format; an id or a name that is used twice; a name that
            is empty or holds a line break.
    """
    path = Path(path)
    kind = path.suffix.lower()
    try:
        text = read_text(path)
        if kind in (".csv", ".tsv"):
            content = _csv_entries(text)
        elif kind in (".json", ".yaml", ".yml"):
            content = _entries(parse_json(text) if kind == ".json" else parse_yaml(text))
        else:
            content = _line_entries(text)
        content = [entry for entry in content if str(entry["name"]).strip() not in IGNORED_CLASS_NAMES]
        names = {whole_number(entry["id"]): check_name(entry["name"]) for entry in content}
        colors = {whole_number(entry["id"]): _read_color(entry.get("color")) for entry in content}
    except OSError as error:
        raise UserError(f"class list {path}: {error.strerror}") from None
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        expected = {
            ".csv": "no table with the columns id, name, color or name, r, g, b",
            ".json": "neither {id: name} nor a list of names or of {id, name, color}",
        }.get(kind, "no list with a name a line, and no label map of CVAT, with lines like road:128,64,128::")
        reason = " ".join(str(error).split())
        raise UserError(f"class list {path} is {expected}: {type(error).__name__} {reason}") from None
    if len(names) != len(content):
        raise UserError(f"class list {path} uses an id twice")
    if sorted(names) == [0, IGNORE_INDEX]:
        names, colors = ({int(i > 0): found[i] for i in names} for found in (names, colors))
    if not names.keys() - {IGNORE_INDEX}:
        raise UserError(f"class list {path} names no class")
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise UserError(f"class list {path} uses a name twice: {shorten(twice)}")
    ids = sorted(names)
    palette = None if None in colors.values() else [colors[i] for i in ids]
    return {i: names[i] for i in ids}, palette


def whole_number(entry) -> int:
    """3 of 3, 3.0 and "3". Raises ValueError for anything else."""
    if isinstance(entry, str) and re.fullmatch(r"-?[0-9]{1,9}", entry.strip()):
        return int(entry)
    if isinstance(entry, bool) or not isinstance(entry, int | float) or not abs(entry) < 2**31 or entry != int(entry):
        raise ValueError(f"{entry!r} is no whole number" if len(repr(entry)) < 40 else "a number out of range")
    return int(entry)


def check_name(entry) -> str:
    """The name of a class, without blanks around it. Raises ValueError for what is none, or would break a line."""
    if isinstance(entry, bool) or not isinstance(entry, str | int):
        raise ValueError(f"{entry!r:.40} is no name of a class")
    name = str(entry).strip()
    if not name:
        raise ValueError("a class without a name")
    if printable(name) != name:  # line breaks, escape sequences, halves of characters
        raise ValueError(f"the name {name!r:.60} holds a line break or another character that cannot be printed")
    if not any(character.isprintable() and not character.isspace() for character in name):
        raise ValueError(f"the name {name!r:.60} cannot be seen")
    return name


def two_class_map(
    classes: tuple[dict[int, str], list[list[int]] | None] | None = None, ignore_values: tuple[int, ...] = ()
) -> ClassMap:
    """For masks of the values 0 and 255 alone, pictures of two classes: 255 is the second one.

    classes: of `read_class_list`, two; None: named after the values.
    """
    id2label, palette = classes or ({0: "class_0", 1: f"class_{IGNORE_INDEX}"}, None)
    return ClassMap(id2label, palette, ignore_values=ignore_values, raw_to_id={0: 0, IGNORE_INDEX: 1})


def class_map_of_list(
    names: dict[int, str], palette: list[list[int]] | None, do_reduce_labels: bool, ignore_values: Sequence[int] = ()
) -> ClassMap:
    """The label map of a class list. Ids from 0 without a gap are training ids; all others are values in masks, and
    the training ids count up in their order. 255 is no class, but its colour is that of ignored pixels.

    Args:
        names, palette: of `read_class_list`.
    """
    ignore_values = tuple(ignore_values)
    void = {IGNORE_INDEX: palette[-1]} if palette and IGNORE_INDEX in names else {}
    names = {i: name for i, name in names.items() if i != IGNORE_INDEX}
    palette = palette and palette[: len(names)]
    first = int(do_reduce_labels)
    if list(names) == list(range(len(names))):
        colors = {i + first: color for i, color in enumerate(palette)} | void if void else None
        return ClassMap(names, palette, do_reduce_labels, ignore_values, raw_colors=colors)
    raw_to_id = {raw: i for i, raw in enumerate(names)}
    id2label = dict(enumerate(names.values()))
    logger.info("the ids of the class list are values in masks; training ids count up in their order")
    if do_reduce_labels:
        if 0 in names:
            raise UserError(
                f"the class list names value 0 ({names[0]}) and has gaps, so its ids are values in masks, of which "
                "--do_reduce_labels would ignore 0: leave out one of the two"
            )
        if list(names) == list(range(1, len(names) + 1)):
            return ClassMap(id2label, palette, True, ignore_values)
        raw_to_id[0] = IGNORE_INDEX
    colors = None if palette is None else dict(zip(names, palette, strict=True)) | void
    return ClassMap(id2label, palette, False, ignore_values, raw_to_id, colors)


def _entries(content) -> list[dict]:
    """What a JSON or YAML file holds → {"id", "name", "color"}."""
    if isinstance(content, dict):
        inner = next((content[key] for key in ("names", "labels", "id2label") if key in content), None)
        if isinstance(inner, dict | list):
            content = inner
        elif len(content) > 1 and "annotations" in content:
            raise ValueError("annotations of images")
    if not isinstance(content, dict | list):
        raise TypeError(f"a {type(content).__name__}")
    if isinstance(content, dict):
        if content and all(_is_color(value) for value in content.values()):
            return [{"id": i, "name": name, "color": color} for i, (name, color) in enumerate(content.items())]
        by_name = all(
            isinstance(value, int) and not str(key).strip().lstrip("-").isdigit() for key, value in content.items()
        )
        pairs = [(value, key) if by_name else (key, value) for key, value in content.items()]
        if any(isinstance(name, dict | list) for _, name in pairs):
            raise ValueError("several values for a class")
        return [{"id": i, "name": name} for i, name in pairs]
    if all(isinstance(entry, str) for entry in content):
        return _numbered(content)
    return [_entry(index, entry) for index, entry in enumerate(content)]


def _is_color(value) -> bool:
    if isinstance(value, str):
        return bool(HEX_COLOR.fullmatch(value.strip()))
    return isinstance(value, list) and len(value) == 3 and all(isinstance(number, int) for number in value)


def _entry(index: int, row: dict) -> dict:
    """A row or object with any of the names that a column may have."""
    row = {str(key).strip().lower(): value for key, value in row.items()}
    found = {
        kind: next((row[name] for name in names if row.get(name) not in (None, "")), None)
        for kind, names in CLASS_COLUMNS.items()
    }
    channels = [found["r"], found["g"], found["b"]]
    if any(channel is not None for channel in channels):
        if None in channels:
            raise ValueError(f"{found['name']!r} lacks r, g or b")
        found["color"] = channels
    if found["name"] is None:
        raise KeyError("name")
    return {"id": index if found["id"] is None else found["id"], "name": found["name"], "color": found["color"]}


def _numbered(names: Sequence[str]) -> list[dict]:
    """Names count from 0, but for what Labelme calls its first line, which is no class."""
    names = [name.strip() for name in names if name.strip() and name.strip() not in IGNORED_CLASS_NAMES]
    return [{"id": index, "name": name} for index, name in enumerate(names)]


def _csv_entries(text: str) -> list[dict]:
    return [_entry(index, row) for index, row in enumerate(read_csv(text))]


def _line_entries(text: str) -> list[dict]:
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    fields = [line.rsplit(":", 3) for line in lines]
    if lines and all(len(found) == 4 for found in fields):
        return [{"id": index, "name": name, "color": color} for index, (name, color, _, _) in enumerate(fields)]
    for line, found in zip(lines, fields, strict=True):
        if len(found) == 4 and re.fullmatch(r"\d*,\d*,\d*", found[1]):
            odd = next(other for other, parts in zip(lines, fields, strict=True) if len(parts) != 4)
            raise ValueError(f"in {odd!r}, as {line!r} has colours")
    colored = [re.fullmatch(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(.+)", line) for line in lines]
    if lines and all(colored):
        return [{"id": index, "name": hit[4], "color": list(hit.groups()[:3])} for index, hit in enumerate(colored)]
    # From the end: with a name in front of them, three numbers could be looked for in too many places of a long line.
    colored = [re.fullmatch(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,;:]+(\D.*)", line[::-1]) for line in lines]
    if lines and all(colored):
        rows = [[text[::-1] for text in reversed(hit.groups())] for hit in colored]
        return [{"id": i, "name": name.strip(" ,;:\t"), "color": color} for i, (name, *color) in enumerate(rows)]
    numbered = [re.match(r"(\d+)\s*[:=,;\s]", line) for line in lines]
    names = [line[hit.end() :].strip() for hit, line in zip(numbered, lines, strict=True) if hit]
    if lines and all(numbered) and all(re.search(r"\D", name) for name in names):
        return [{"id": hit[1], "name": name} for hit, name in zip(numbered, names, strict=True)]
    return _numbered(lines)


def _read_color(color) -> list[int] | None:
    """[r, g, b], or a string with three numbers or as #rrggbb; None for no colour."""
    if not color:
        return None
    if isinstance(color, str) and HEX_COLOR.fullmatch(color.strip()):
        return list(bytes.fromhex(color.strip()[-6:]))
    numbers = [whole_number(number) for number in (re.findall(r"\d+", color) if isinstance(color, str) else color)]
    if len(numbers) != 3 or not all(0 <= number <= 255 for number in numbers):
        raise ValueError(f"colour {color!r} is not three numbers in 0…255")
    return numbers


# ---- editing classes ------------------------------------------------------------------------------------------------


def edit_classes(class_map: ClassMap, merge: Sequence[str] = (), drop: Sequence[str] = ()) -> ClassMap:
    """Joins classes (`--merge_classes car,truck,bus=vehicle`) and drops others, whose pixels are then ignored.

    Ids keep their order and close up. A joined class has the place of its first member in the class list. If its name
    is that of a class, this is joined as well (`truck,bus=car`) and lends its colour and its value in predictions;
    else the first member does.

    Raises:
        UserError: unknown names, a class in two places, nothing left.
    """
    new_names: dict[str, str] = {}
    for group in merge:
        listed, _, new = (part.strip() for part in group.rpartition("="))
        members = [name.strip() for name in listed.split(",")]
        if not new or not all(members):
            raise UserError(f"--merge_classes {group}: write NAME,NAME=NEW_NAME, as in car,truck,bus=vehicle")
        _check_names("--merge_classes", members, class_map.label2id)
        if new in new_names.values():
            raise UserError(f"--merge_classes makes {new} twice; name all its members in one place")
        for name in dict.fromkeys([*members, *({new} & class_map.label2id.keys())]):
            if name in new_names:
                raise UserError(f"--merge_classes puts {name} into both {new_names[name]} and {new}")
            new_names[name] = new
    used = {class_map.id2label[class_map.value_ids[raw]] for raw in class_map.class_values}
    for name in new_names:
        if name not in used:
            raise UserError(
                f"--merge_classes puts {name} into {new_names[name]}, but --ignore_values has its annotation value "
                f"{class_map.raw_values[class_map.label2id[name]]}: leave it out of one of the two"
            )
    _check_names("--drop_classes", drop, class_map.label2id)
    both = [name for name in drop if name in new_names]
    if both:
        raise UserError(f"--drop_classes {shorten(both)}: also in --merge_classes; leave it out of one of the two")
    new_names |= dict.fromkeys(drop)
    targets = {}
    for raw, i in class_map.value_ids.items():
        if i != IGNORE_INDEX:
            name = class_map.id2label[i]
            targets[raw] = new_names.get(name, name)
    return _relabel(targets, class_map, class_map.ignore_values)


def read_label_mapping(path: str | os.PathLike) -> dict[int | str, int | str | None]:
    """Reads a `--label_map` file: raw value or class name → training id or name, None for ignored.

    JSON or YAML, `{7: road, 8: road, 9: null}`, or a CSV with a header and two columns, empty for ignored. Whole
    numbers are raw values and training ids; 255 is ignored.

    Raises:
        UserError: the file is missing or has another format.
    """
    path = Path(path)
    try:
        text = read_text(path)
        if path.suffix.lower() == ".csv":
            delimiter = max(",;\t", key=text.partition("\n")[0].count)
            rows = list(csv.reader(text.splitlines(), delimiter=delimiter, skipinitialspace=True))[1:]
            pairs = [(key, target or None) for key, target in filter(None, rows)]
        else:
            pairs = list(parse_yaml(text).items())  # JSON is YAML
        mapping = {_value_or_name(key): None if target is None else _value_or_name(target) for key, target in pairs}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--label_map {path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--label_map {path} is not a table from annotation values or class names to training ids or names "
            f"(null: ignored): {reason}"
        ) from None
    if len(mapping) != len(pairs):
        raise UserError(f"--label_map {path} names a value or class twice")
    return {key: None if target == IGNORE_INDEX else target for key, target in mapping.items()}


def _value_or_name(entry) -> int | str:
    if isinstance(entry, str) and not re.fullmatch(r"-?[0-9]+", entry.strip()):
        return check_name(entry)
    if isinstance(entry, bool) or not isinstance(entry, int | str):
        # YAML reads yes, no, on and off as truth values.
        raise ValueError(f"{entry!r} is neither a whole number nor a name (put names like no and on in quotes)")
    return whole_number(entry)


def map_classes(
    mapping: dict[int | str, int | str | None],
    path: str | os.PathLike,
    class_map: ClassMap | None,
    names: tuple[dict[int, str], list[list[int]] | None] | None = None,
    ignore_values: Sequence[int] = (),
) -> ClassMap:
    """The label map of a `--label_map` file.

    To names: training ids count up in the order in which the names first appear in the file. To ids: they must be
    0 … K - 1, and `names` says what they are called. Values that the file does not name but the class list does are
    ignored, which is logged; all others are errors when masks are read.

    Args:
        mapping: of `read_label_mapping`.
        path: for messages.
        class_map: what raw values meant before; needed for keys that are names. None where there is no class list.
        names: of `read_class_list`, for training ids; None: `class_0`, `class_1`, …
        ignore_values: raw values that are ignored, besides 255.

    Raises:
        UserError: an unknown name, names and ids mixed, a gap in the ids, an ignored value that gets a class, nothing
            left.
    """
    targets: dict[int, int | str | None] = {}
    values_by_name: dict[str, list[int]] = {}
    for raw, i in class_map.value_ids.items() if class_map else ():
        if i != IGNORE_INDEX:
            values_by_name.setdefault(class_map.id2label[i], []).append(raw)
    by_name = [key for key in mapping if isinstance(key, str)]
    if by_name and not class_map:
        raise UserError(f"--label_map {path} names {shorten(by_name)}, but there is no class list: give --id2label")
    _check_names(f"--label_map {path}", by_name, values_by_name)
    for key, target in mapping.items():
        for raw in [key] if isinstance(key, int) else values_by_name[key]:
            if raw in targets and targets[raw] != target:
                raise UserError(f"--label_map {path} has {targets[raw]} and {target} for annotation value {raw}")
            targets[raw] = target
    ignored = [raw for raw in ignore_values if targets.get(raw) is not None]
    if ignored:
        raise UserError(
            f"--label_map {path} gives annotation value {ignored[0]} the class {targets[ignored[0]]}, but it is "
            "ignored by --ignore_values"
        )
    ids = {target for target in targets.values() if isinstance(target, int)}
    if not ids:
        return _relabel(targets, class_map, ignore_values)

    if any(isinstance(target, str) for target in targets.values()):
        raise UserError(f"--label_map {path} maps to both names and ids ({min(ids)} …); use one of the two")
    if by_name:
        raise UserError(
            f"--label_map {path} maps names to ids; map annotation values to ids, or names to names "
            "(where there are ids, the class list names those)"
        )
    id2label, palette = names or ({i: f"class_{i}" for i in range(len(ids))}, None)
    if sorted(ids) != sorted(id2label):
        wrong = sorted(ids ^ id2label.keys())
        raise UserError(
            f"--label_map {path} must reach every training id from 0 to {len(id2label) - 1} and no other; "
            f"{shorten(map(str, wrong), 5)} {'is' if len(wrong) == 1 else 'are'} in one of the two only"
        )
    raw_to_id = {raw: IGNORE_INDEX if target is None else target for raw, target in targets.items()}
    return ClassMap(id2label, palette, ignore_values=tuple(ignore_values), raw_to_id=raw_to_id)


def _check_names(source: str, wanted: Iterable[str], known: Iterable[str]) -> None:
    for name in wanted:
        if name not in known:
            raise UserError(f"{source}: there is no class {name!r}{nearest(name, known)}")


def _relabel(targets: dict[int, str | None], before: ClassMap | None, ignore_values: Sequence[int]) -> ClassMap:
    """The class map in which raw values belong to the classes `targets` names, None being ignored.

    Values that `before` knows and `targets` does not are ignored.
    """
    names = list(dict.fromkeys(name for name in targets.values() if name is not None))
    if not names:
        raise UserError("no class is left: all are dropped or ignored")
    old_ids = before.value_ids if before else {}
    old_names = {raw: before.id2label[i] for raw, i in old_ids.items() if i != IGNORE_INDEX}
    left_out = [name for raw, name in old_names.items() if raw not in targets]
    if left_out:
        logger.warning(f"{len(left_out)} classes are not in --label_map and are ignored: {shorten(left_out, 8)}")
    # A class that keeps its name keeps its value and colour, whatever is joined to it.
    order = sorted(targets, key=lambda raw: old_names.get(raw) != targets[raw])
    ids = {name: i for i, name in enumerate(names)} | {None: IGNORE_INDEX}
    raw_to_id = {raw: ids[targets[raw]] for raw in order}
    colors = (before._colors_by_value() if before else None) or {}
    by_id = {i: colors.get(raw) for raw, i in reversed(raw_to_id.items())}
    palette = [by_id[i] for i in range(len(names))]
    return ClassMap(
        dict(enumerate(names)),
        None if None in palette else palette,
        ignore_values=tuple(ignore_values),
        raw_to_id=raw_to_id | {raw: IGNORE_INDEX for raw in old_ids if raw not in raw_to_id},
        raw_colors=colors or None,
    )
