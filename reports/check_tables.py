"""The tables of a check: sizes and modes, values in the masks, classes. Computed once, for text and for the page."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from checks.records import DatasetReport, ImageRecord
from data.classes import ClassMap

ROWS_SHOWN, SIZES_SHOWN = 40, 10


@dataclass(frozen=True)
class Share:
    """A cell: a count, and what share of `total` it is; `percent` says whether the page writes the share out, too."""

    count: int
    total: int
    percent: bool = True

    @property
    def share(self) -> float:
        return self.count / max(self.total, 1)

    def __str__(self) -> str:
        return f"{self.share:.3%}"


@dataclass(frozen=True)
class NamedClass:
    """A cell: a class by its name, with its training id or its colour ("#rrggbb") if that is to be shown."""

    name: str
    id: int | None = None
    color: str | None = None

    def __str__(self) -> str:
        return self.name if self.id is None else f"{self.id} {self.name}"


@dataclass(frozen=True)
class Table:
    """note: what the rows do not say, as how many more there are; may be empty."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str | int | float | Share | NamedClass, ...]]
    note: str = ""


def more(count: int, noun: str) -> str:
    """ "and 3 more values"; an empty string for none."""
    return f"and {count} more {noun}{'s' * (count != 1)}" if count > 0 else ""


def size_table(records: Sequence[ImageRecord]) -> Table:
    """Images by size, most frequent first."""
    sizes = Counter((record.width, record.height) for record in records if record.width)
    rows = [
        (f"{width}x{height}", Share(count, sizes.total(), percent=False))
        for (width, height), count in sizes.most_common(SIZES_SHOWN)
    ]
    sides = [min(size) for size in sizes]
    note = f"{len(sizes)} sizes in all, short sides {min(sides)} to {max(sides)}" if len(sizes) > SIZES_SHOWN else ""
    return Table("Sizes of the images", ("width x height", "images"), rows, note)


def mode_table(title: str, modes: Iterable[str]) -> Table:
    """Files by Pillow's mode, most frequent first; those that were not decoded ("") do not count."""
    counts = Counter(filter(None, modes))
    rows = [(f"mode {mode}", Share(count, counts.total(), percent=False)) for mode, count in counts.most_common()]
    return Table(title, ("mode", "files"), rows)


def value_table(records: Iterable[ImageRecord], class_map: ClassMap | None) -> Table:
    """What the masks hold: value, pixels, masks with it, and what it means if that is known."""
    pixels, masks = Counter(), Counter()
    for record in records:
        pixels.update(record.raw_values)
        masks.update(record.raw_values.keys())
    rows = [
        (value, Share(pixels[value], pixels.total()), masks[value], _meaning(value, class_map) if class_map else "")
        for value in sorted(pixels)[:ROWS_SHOWN]
    ]
    note = more(len(pixels) - ROWS_SHOWN, "value")
    return Table("Values in the masks", ("value", "pixels", "masks", "meaning"), rows, note)


def _meaning(value: int, class_map: ClassMap) -> str | NamedClass:
    if value not in class_map.value_ids:
        return "no class"
    training_id = class_map.value_ids[value]
    name = class_map.id2label.get(training_id)
    return "ignored" if name is None else NamedClass(name, training_id)


def class_table(report: DatasetReport, class_map: ClassMap | None) -> Table:
    """Pixels of each class in each split and their share of the labelled ones, most frequent class first."""
    splits = report.class_pixels if class_map else {}
    rows = []
    if splits:
        totals = {split: sum(pixels) for split, pixels in splits.items()}
        shares = sum(np.array(pixels) / max(totals[split], 1) for split, pixels in splits.items())
        colors = class_map.colors()
        for i in np.argsort(-shares, kind="stable").tolist():
            name = NamedClass(report.id2label[i], color="#" + bytes(colors[i]).hex())
            counts = [Share(pixels[i], totals[split]) for split, pixels in splits.items()]
            rows.append((i, name, *counts, *map(float, report.class_weights[i : i + 1])))
    weight = ["weight with --class_weights auto"] if report.class_weights else []
    return Table("Classes", ("id", "class", *(f"{split} pixels" for split in splits), *weight), rows)
