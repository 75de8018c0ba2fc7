"""The tables of a check: sizes and modes, values in the masks, classes. Computed once, for text and for the page."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from checks.records import DatasetReport, ImageRecord
from data.classes import ClassMap
from reports.tables import NamedClass, Share, Table, more

ROWS_SHOWN, SIZES_SHOWN = 40, 10


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


def finding_table(report: DatasetReport) -> Table:
    """What a check found, errors first."""
    rows = [(found.severity, found.kind, f"{found.message}. Fix: {found.fix}") for found in report.findings]
    return Table("Findings", ("severity", "kind", "what was found, and how to fix it"), rows)
