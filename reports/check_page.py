"""A check of a dataset as one HTML page: verdict, findings, classes, values, sizes, and pictures of the worst files.

    write_html(report, "report.html", data, class_map)

The page needs nothing but itself: its style is inside, its pictures are data URIs, and it forbids browsers to load
anything else. All that comes from the data is escaped, as file names may hold anything.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from PIL import Image

from checks.duplicates import ACROSS_SPLITS, COPIES, mirrored, normalized_thumbnails
from checks.records import ERROR, WARNING, DatasetReport, Finding, ImageRecord
from cli_utils import UserError, written_aside
from data.classes import ClassMap
from data.image_files import FileProblem, StoredFile, ids_of, read_bands, rgb_view
from data.preparation import decode_pair, undecoded
from data_utils import Data
from metrics_utils import IGNORE_INDEX
from reports.check_tables import class_table, size_table, value_table
from reports.pictures import encoded, hex_color
from reports.tables import NamedClass
from reports.templates import render
from visual_utils import colorize, default_palette, overlay, sampled

SIDE = 240  # of a picture, in pixels
PICTURES, PAIRS = 6, 3  # of a finding
MAX_PIXELS = 50_000_000  # of a file that is decoded for a picture
# Their masks are shown alone: they are about thin runs of pixels along borders, which an overlay draws lines over.
BORDER_KINDS = ("mask-interpolated", "mask-lossy")
NO_CLASS_COLOR = (255, 0, 255)
COLORS_WITHOUT_CLASSES = 64
UNLABELLED = -1
Places = dict[str, tuple[Dataset, int]]


def write_html(
    report: DatasetReport,
    path: str | os.PathLike,
    data: Data | None = None,
    class_map: ClassMap | None = None,
) -> None:
    """Writes the page, which appears when it is complete. Parent folders are made.

    Args:
        data: of `data_utils.load_data`, where the pictures come from; None: a page without them.
        class_map: what the values in its masks mean; None where that is not clear.

    Raises:
        UserError: the file cannot be written.
    """
    content = render("check_page.html.j2", **_contents(report, data, class_map))
    try:
        with written_aside(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise UserError(f"--html {path} cannot be written: {error.strerror}") from None


def _contents(report: DatasetReport, data: Data | None, class_map: ClassMap | None) -> dict:
    """What the template shows."""
    counts = ", ".join(f"{split}: {count}" for split, count in report.splits.items()) or "no pairs"
    pairs = f"{len(report.records)} pair{'s' * (len(report.records) != 1)}"
    places = _places(data.splits if data else None, report.records)
    draw = partial(_figure, places, class_map, data.num_channels if data else 3)
    tables = class_table(report, class_map), value_table(report.records, class_map), size_table(report.records)
    return {
        "report": report,
        "level": next((level for level in (ERROR, WARNING) if report.count(level)), "fit"),
        "summary": f"{report.layout} layout; {counts}; looked at {pairs} in {report.seconds:.1f} s",
        # Of a broken dataset what is broken comes first, in pictures of its own.
        "samples": _samples(report.records, class_map, draw)
        if data and class_map and not report.count(ERROR)
        else None,
        "tables": tables,
        "sections": [_section(found, report.records, draw) if found.files else None for found in report.findings],
    }


# ---- pictures -------------------------------------------------------------------------------------------------------


def _places(dataset: DatasetDict | None, records: Iterable[ImageRecord]) -> Places:
    """Where the rows are that entries in `Finding.files` are about: keys of records, and files that have a problem."""
    places = {}
    for split, rows in (dataset or {}).items():
        rows = undecoded(rows)
        places |= {f"{split}/{name}": (rows, index) for index, name in enumerate(rows["name"][:])}
    files = {record.problem_file: record.key for record in records if record.problem_file}
    return places | {file: places[key] for file, key in files.items() if key in places}


def _samples(records: Sequence[ImageRecord], class_map: ClassMap, draw: Callable[[str, str], dict]) -> dict | None:
    """Pairs from all over the dataset, and the classes that can be seen in them, by their ids."""
    usable = [record for record in records if not record.problem]
    if not usable:
        return None
    shown = [usable[i] for i in np.unique(np.linspace(0, len(usable) - 1, PICTURES).round().astype(int))]
    value_ids, colors = class_map.value_ids, class_map.colors()
    ids = {value_ids.get(value, IGNORE_INDEX) for record in shown for value in record.raw_values}
    classes = [NamedClass(class_map.id2label[i], color=hex_color(colors[i])) for i in sorted(ids - {IGNORE_INDEX})]
    return {
        "figures": [draw(record.key, "") for record in shown],
        "classes": classes,
        "unseen": class_map.num_labels - len(classes),
        "pairs": len(usable),
        "ignored": IGNORE_INDEX in ids,
    }


def _section(found: Finding, records: Sequence[ImageRecord], draw: Callable[[str, str], dict]) -> dict:
    """The worst files of a finding in pictures, copies beside what they are copies of; of the others the names."""
    shows_copies = found.kind in COPIES
    groups = _pairs(found, records)[:PAIRS] if shows_copies else [(file,) for file in found.files[:PICTURES]]
    shown = {file for group in groups for file in group}
    return {
        "shows_copies": shows_copies,
        "groups": [[draw(file, found.kind) for file in group] for group in groups],
        "others": [file for file in found.files if file not in shown],
        "unlisted": found.count - len(found.files),
    }


def _pairs(found: Finding, records: Iterable[ImageRecord]) -> list[tuple[str, str]]:
    """Each file of a finding about copies with the one that is most like it, in another split if it is about those."""
    by_key = {record.key: record for record in records}
    listed = [by_key[file] for file in found.files]
    digests = np.array([r.mask_digest if found.kind == "mask-repeated" else r.image_digest for r in listed])
    splits = np.array([record.split for record in listed])
    thumbnails = normalized_thumbnails([record.thumbnail for record in listed])
    _, flipped = mirrored(np.zeros(len(listed), np.uint64), thumbnails)
    likeness = np.maximum(thumbnails @ thumbnails.T, thumbnails @ flipped.T)
    likeness[digests[:, None] == digests] = 2  # more than any correlation
    if found.kind in ACROSS_SPLITS:
        likeness[splits[:, None] == splits] = -2
    np.fill_diagonal(likeness, -3)
    pairs, shown = [], set()
    for i, j in enumerate(likeness.argmax(axis=1).tolist()):
        if i not in shown:
            pairs.append((listed[i].key, listed[j].key))
            shown |= {i, j}
    return pairs


def _figure(places: Places, class_map: ClassMap | None, num_channels: int, file: str, kind: str) -> dict:
    """Image and mask side by side, or what there is of them.

    file: an entry in `Finding.files`. kind: of the finding.
    """
    figure = {"file": file, "pictures": [], "problem": ""}
    if file in places:
        rows, index = places[file]
        row = rows[index]
    elif Path(file).is_file():  # an image without a mask, or the other way round
        column = "label" if kind == "mask-without-image" else "image"
        row = {"image": None, "label": None, "name": file} | {column: {"bytes": None, "path": file}}
    else:
        return figure
    photo, mask, problem = _views(row, kind, class_map, num_channels)
    figure["pictures"] = [_jpeg(picture, alt) for picture, alt in ((photo, "image"), (mask, "mask")) if picture]
    return figure | {"problem": problem if file in places else ""}


def _views(
    row: dict, kind: str, class_map: ClassMap | None, num_channels: int
) -> tuple[Image.Image | None, Image.Image | None, str]:
    """Small pictures of image and mask, None for what cannot be read, and what is wrong with them."""
    image, label = (StoredFile.of(row[column], row["name"]) for column in ("image", "label"))
    photo = mask = ids = None
    large = [file for file in (image, label) if (found := file.header()) and math.prod(found.size) > MAX_PIXELS]
    if large:
        size = "x".join(map(str, large[0].header().size))
        return None, None, f"{large[0].title} is {size}, too large to be shown"
    with suppress(UserError):  # what is wrong, the record says too
        if image.source:
            photo = rgb_view(read_bands(image.source, num_channels, dtype=image.band_dtype()))
    record, decoded = decode_pair("", image, label, class_map, num_channels)
    if decoded is not None:
        ids = decoded.ids
    else:
        try:  # the mask may do by itself
            mask = label.open()
            ids = ids_of(mask, label, class_map).ids
        except FileProblem:
            mask = mask and _small(mask.convert("RGB"))
    if ids is not None:
        fits = photo is not None and photo.size == ids.shape[::-1]
        mask = _mask_view(ids, _small(photo) if fits and kind not in BORDER_KINDS else None, class_map)
    return photo and _small(photo), mask, record.detail


def _shown_size(size: tuple[int, int]) -> tuple[int, int]:
    width, height = (max(1, round(side * SIDE / max(size))) for side in size)
    return width, height


def _small(picture: Image.Image) -> Image.Image:
    """Small ones are enlarged without smoothing, so that pixels can be seen."""
    size = _shown_size(picture.size)
    smoothed = size[0] < picture.width or size[1] < picture.height
    return picture.resize(size, Image.Resampling.LANCZOS if smoothed else Image.Resampling.NEAREST)


def _mask_view(ids: np.ndarray, photo: Image.Image | None, class_map: ClassMap | None) -> Image.Image:
    """A small picture of a mask, over its photo if there is one: classes in their colours, what is no class glaring.

    Args:
        ids: raw values (H, W). photo: of the size that is shown.
    """
    size = _shown_size(ids.shape[::-1])
    small = sampled(ids, size)
    if class_map is None:
        palette = default_palette(COLORS_WITHOUT_CLASSES)
        shown, strays = small % COLORS_WITHOUT_CLASSES, None
    else:
        palette, value_ids = class_map.colors(), class_map.value_ids
        values, places = np.unique(small, return_inverse=True)
        classes = np.array([value_ids.get(value, IGNORE_INDEX) for value in values.tolist()])
        shown = classes[places.reshape(small.shape)]
        shown = np.where(shown == IGNORE_INDEX, UNLABELLED, shown)
        strays = Image.fromarray(np.where(np.isin(ids, list(value_ids)), 0, 255).astype(np.uint8))
    picture = (
        colorize(shown, palette, UNLABELLED) if photo is None else overlay(photo, shown, palette, 0.6, UNLABELLED)
    )
    if strays is not None:
        # However few they are in the pixels that become one.
        pixels = np.array(picture)
        pixels[np.asarray(strays.resize(size, Image.Resampling.BOX)) > 0] = NO_CLASS_COLOR
        picture = Image.fromarray(pixels)
    return picture


def _jpeg(picture: Image.Image, alt: str) -> dict:
    content = encoded(picture, format="JPEG", quality=85, subsampling=0)  # colours of thin areas stay what they are
    return {"content": content, "width": picture.width, "height": picture.height, "alt": alt}
