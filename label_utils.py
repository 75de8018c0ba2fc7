"""What the values in annotation files mean: class lists, and raw values <-> training ids.

A "raw" value is one that stands in an annotation file; a "training id" is 0 … num_labels - 1, or 255 for ignored.
"""

import csv
import json
import os
import re
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import SegformerImageProcessor

import visual_utils
from cli_utils import UserError
from layout_utils import shorten
from metrics_utils import IGNORE_INDEX

# Training ids are uint8 and 255 means ignored.
MAX_LABELS = 255


@dataclass(frozen=True)
class LabelMap:
    """The one place that knows raw annotation values and training ids.

    Attributes:
        id2label: training id → name, ids 0 … num_labels - 1.
        palette: RGB by training id, or None where the class list has no colours.
        do_reduce_labels: raw 0 is ignored and raw k is training id k - 1, as in ADE20K.
        ignore_values: raw values that are ignored, besides 255.
    """

    id2label: dict[int, str]
    palette: list[list[int]] | None = None
    do_reduce_labels: bool = False
    ignore_values: tuple[int, ...] = ()

    def __post_init__(self):
        limit = MAX_LABELS - self.do_reduce_labels  # raw 255 is ignored, so reduction leaves 1 … 254
        if not 0 < self.num_labels <= limit:
            raise UserError(f"{self.num_labels} classes; a class list has 1 to {limit}")

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        return {name: i for i, name in self.id2label.items()}

    @property
    def raw_values(self) -> list[int]:
        """The value of each training id in the annotation files."""
        return [i + self.do_reduce_labels for i in range(self.num_labels)]

    def unknown_values(self, values: np.ndarray) -> np.ndarray:
        """Those of some raw values that are neither a class nor ignored."""
        ignored = [IGNORE_INDEX, *self.ignore_values, *([0] if self.do_reduce_labels else [])]
        return values[~np.isin(values, [*ignored, *self.raw_values])]

    def _training_ids(self, values: np.ndarray) -> np.ndarray:
        """Known raw values (n,) → training ids, int64 (n,)."""
        ids = torch.from_numpy(values.astype(np.int64))
        ids[torch.from_numpy(np.isin(values, self.ignore_values))] = IGNORE_INDEX
        if self.do_reduce_labels:
            [ids] = SegformerImageProcessor().reduce_label([ids])
        return ids.numpy()

    def reduce(self, mask: np.ndarray) -> np.ndarray:
        """Raw annotation, integers of any shape → training ids, uint8 of that shape. The input stays as it is.

        Raises:
            UserError: values that are neither a class nor ignored.
        """
        values = np.unique(mask)
        unknown = self.unknown_values(values)
        if len(unknown):
            raise UserError(
                f"annotation values {shorten(map(str, unknown), 5)} are none of the {self.num_labels} classes"
            )
        return self._training_ids(values).astype(np.uint8)[np.searchsorted(values, mask)]

    def to_raw(self, prediction: np.ndarray) -> np.ndarray:
        """Training ids, uint8 of any shape → values as in annotation files, uint8 (255 → 0 under reduction)."""
        if not self.do_reduce_labels:
            return prediction
        return np.where(prediction == IGNORE_INDEX, 0, prediction + 1).astype(np.uint8)

    def table(self) -> str:
        """Raw value → training id, several to a line."""
        ignored = sorted({IGNORE_INDEX, *self.ignore_values, *([0] if self.do_reduce_labels else [])})
        entries = [f"{raw} -> ignored" for raw in ignored]
        entries += [
            f"{raw} -> {i} {self.id2label[i]}"
            for i, raw in enumerate(self.raw_values)
            if raw not in self.ignore_values
        ]
        return textwrap.fill("; ".join(entries).replace(" ", "\0").replace(";\0", "; "), 110).replace("\0", " ")

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
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("[\n" + ",\n".join(entries) + "\n]\n", encoding="utf-8")


def read_class_list(path: str | os.PathLike) -> tuple[dict[int, str], list[list[int]] | None]:
    """Reads class names by training id, and their colours where all have one.

    The file is JSON, `{id: name}` or a list of `{"id", "name", "color"}`, or a CSV with those columns, a colour being
    three numbers ("120 120 120").

    Raises:
        UserError: the file is missing or has another format; ids that are not 0 … K - 1; a name that is used twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = list(csv.DictReader(text.splitlines())) if path.suffix.lower() == ".csv" else json.loads(text)
        if isinstance(content, dict):
            content = [{"id": key, "name": name} for key, name in content.items()]
        names = {int(entry["id"]): str(entry["name"]).strip() for entry in content}
        colors = {int(entry["id"]): _read_color(entry.get("color")) for entry in content}
    except OSError as error:
        raise UserError(f"class list {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"class list {path} is neither {{id: name}} nor a list of {{id, name, color}}: "
            f"{type(error).__name__} {error}"
        ) from None
    if len(names) != len(content):
        raise UserError(f"class list {path} uses an id twice")
    if not names or sorted(names) != list(range(len(names))):
        found = f"{min(names)} to {max(names)}, {len(names)} of them" if names else "none"
        raise UserError(
            f"class list {path}: ids must be 0, 1, 2 … without a gap (found {found}); they are training ids, so with "
            "--do_reduce_labels the class of annotation value 1 has id 0"
        )
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise UserError(f"class list {path} uses a name twice: {shorten(twice)}")
    ids = range(len(names))
    palette = None if None in colors.values() else [colors[i] for i in ids]
    return {i: names[i] for i in ids}, palette


def _read_color(color) -> list[int] | None:
    """[r, g, b], or a string with three numbers; None for no colour."""
    if not color:
        return None
    numbers = [int(number) for number in (re.findall(r"\d+", color) if isinstance(color, str) else color)]
    if len(numbers) != 3 or not all(0 <= number <= 255 for number in numbers):
        raise ValueError(f"colour {color!r} is not three numbers in 0…255")
    return numbers
