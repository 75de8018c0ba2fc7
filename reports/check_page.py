"""A check of a dataset as one HTML page: verdict, findings, classes, values, sizes, and pictures of the worst files.

    write_html(report, "report.html", dataset, class_map)

The page needs nothing but itself: its style is inside, its pictures are data URIs, and it forbids browsers to load
anything else. All that comes from the data is escaped, as file names may hold anything.
"""

import base64
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from PIL import Image

from checks.duplicates import mirrored, normalized_thumbnails
from checks.records import ERROR, WARNING, DatasetReport, Finding, ImageRecord
from cli_utils import UserError
from data.classes import ClassMap
from data.image_files import FileProblem, ids_of, open_image, read_channels, read_pair, rgb_view
from data.preparation import undecoded
from data_utils import Data
from metrics_utils import IGNORE_INDEX
from visual_utils import colorize, default_palette, overlay

SIDE = 240  # of a picture, in pixels
PICTURES, PAIRS = 6, 3  # of a finding
VALUES_SHOWN, SIZES_SHOWN = 40, 10
# Their masks are shown alone: they are about thin runs of pixels along borders, which an overlay draws lines over.
BORDER_KINDS = ("mask-interpolated", "mask-lossy")
NO_CLASS_COLOR = (255, 0, 255)
COLORS_WITHOUT_CLASSES = 64
UNLABELLED = -1

STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1c1c1c; --muted: #595959; --line: #cccccc; --bar: #cfe2f7;
  --error: #b00020; --warning: #8a5300; --info: #0b5cad; --fit: #1b6e2d; }
@media (prefers-color-scheme: dark) { :root { --back: #16181c; --text: #e8e8e8; --muted: #a8a8a8; --line: #444a53;
  --bar: #24466b; --error: #ff8a8a; --warning: #f0b45a; --info: #7db8ff; --fit: #7fd38f; } }
body { margin: 2rem auto; padding: 0 1rem; max-width: 70rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th, td:not(:last-child) { overflow-wrap: normal; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums;
  background: linear-gradient(var(--bar) 0 0) no-repeat 0 0 / var(--share, 0) 100%; }
code { unicode-bidi: isolate; white-space: pre-wrap; }
a { color: var(--info); }
p.verdict { padding: .6rem 1rem; border-left: .5rem solid; font-weight: bold; }
.error { color: var(--error); } .warning { color: var(--warning); } .info { color: var(--info); }
.fit { color: var(--fit); } .muted { color: var(--muted); }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
.together { display: flex; flex-wrap: wrap; gap: 1rem; padding: .5rem; border: 1px solid var(--line); }
figure { margin: 0; max-width: 31rem; }
figure img { margin-right: .25rem; vertical-align: top; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .4em; border: 1px solid var(--muted); }
"""


def write_html(
    report: DatasetReport,
    path: str | os.PathLike,
    data: Data | None = None,
    class_map: ClassMap | None = None,
) -> None:
    """Writes the page. Parent folders are made.

    Args:
        data: of `data_utils.load_data`, where the pictures come from; None: a page without them.
        class_map: what the values in its masks mean; None where that is not clear.

    Raises:
        UserError: the file cannot be written.
    """
    # File names that are no valid UTF-8 hold characters that cannot be written otherwise.
    content = _page(report, data, class_map).encode("utf-8", errors="backslashreplace")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)
    except OSError as error:
        raise UserError(f"--html {path} cannot be written: {error.strerror}") from None


def _page(report: DatasetReport, data: Data | None, class_map: ClassMap | None) -> str:
    title = escape(f"Check of {report.dataset}")
    level = next((level for level in (ERROR, WARNING) if report.count(level)), "fit")
    counts = ", ".join(f"{split}: {count}" for split, count in report.splits.items()) or "no pairs"
    summary = f"{report.layout} layout; {counts}; looked at {len(report.records)} pairs in {report.seconds:.1f} s"
    places = _places(data.splits if data else None, report.records)
    num_channels = data.num_channels if data else 3
    body = [
        _findings_table(report.findings),
        _class_table(report, class_map),
        _value_table(report.records, class_map),
        _size_table(report.records),
    ]
    if any(found.files for found in report.findings):
        body.append("<p>Pictures of masks: ignored pixels are dark, values that are no class are magenta.</p>\n")
    for number, found in enumerate(report.findings):
        body.append(_section(number, found, report.records, places, class_map, num_channels))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Check of <code>{escape(report.dataset)}</code></h1>
<p class="verdict {level}">{escape(report.verdict())}</p>
<p class="muted">{escape(summary)}</p>
{"".join(body)}</body>
</html>
"""


# ---- tables ---------------------------------------------------------------------------------------------------------


def _table(title: str, header: Iterable[str], rows: Iterable[str], below: str = "") -> str:
    """header: plain text. rows: cells, as HTML."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(f"<tr>{row}</tr>\n" for row in rows)
    note = f'<p class="muted">{escape(below)}</p>\n' if below else ""
    return f"<h2>{title}</h2>\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n{note}"


def _bar(share: float, text: str) -> str:
    """A cell with a bar behind its text."""
    return f'<td class="number" style="--share: {share:.2%}">{text}</td>'


def _findings_table(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    rows = []
    for number, found in enumerate(findings):
        kind = f"<code>{escape(found.kind)}</code>"
        if found.files:
            kind = f'<a href="#finding-{number}">{kind}</a>'
        rows.append(
            f'<td class="{found.severity}">{found.severity}</td>'
            f"<td>{kind}</td><td>{escape(found.message)}<br>Fix: {escape(found.fix)}</td>"
        )
    return _table("Findings", ("severity", "kind", "what was found, and how to mend it"), rows)


def _class_table(report: DatasetReport, class_map: ClassMap | None) -> str:
    """Pixels of each class in each split, and their share of the labelled ones; most frequent first."""
    if class_map is None or not report.class_pixels:
        return ""
    shares = {split: np.array(counts) / max(sum(counts), 1) for split, counts in report.class_pixels.items()}
    colors, rows = class_map.colors(), []
    for i in np.argsort(-sum(shares.values()), kind="stable").tolist():
        color = "#{:02x}{:02x}{:02x}".format(*colors[i])
        swatch = f'<span class="swatch" style="background: {color}"></span>'
        cells = [f'<td class="number">{i}</td><td>{swatch}{escape(report.id2label[i])}</td>']
        for split, share in shares.items():
            cells.append(_bar(share[i], f"{report.class_pixels[split][i]:,} ({share[i]:.2%})"))
        cells += [f'<td class="number">{report.class_weights[i]:.2f}</td>'] if report.class_weights else []
        rows.append("".join(cells))
    weight = ["weight in the loss"] if report.class_weights else []
    return _table("Classes", ("id", "class", *(f"{split} pixels" for split in shares), *weight), rows)


def _value_table(records: Sequence[ImageRecord], class_map: ClassMap | None) -> str:
    pixels, masks = Counter(), Counter()
    for record in records:
        pixels.update(record.raw_values)
        masks.update(record.raw_values.keys())
    rows, total = [], pixels.total()
    names = class_map.id2label | {IGNORE_INDEX: "ignored", None: "no class"} if class_map else {}
    for value in sorted(pixels)[:VALUES_SHOWN]:
        meaning = names[class_map.value_ids.get(value)] if class_map else ""
        share = pixels[value] / total
        rows.append(
            f'<td class="number">{value}</td>{_bar(share, f"{pixels[value]:,} ({share:.2%})")}'
            f'<td class="number">{masks[value]}</td><td>{escape(meaning)}</td>'
        )
    more = f"and {len(pixels) - VALUES_SHOWN} more values" if len(pixels) > VALUES_SHOWN else ""
    return _table("Values in the masks", ("value", "pixels", "masks", "meaning"), rows, more) if rows else ""


def _size_table(records: Sequence[ImageRecord]) -> str:
    sizes = Counter((record.width, record.height) for record in records if record.width)
    rows = []
    for (width, height), count in sizes.most_common(SIZES_SHOWN):
        rows.append(f"<td>{width} x {height}</td>{_bar(count / sizes.total(), f'{count:,}')}")
    sides = [min(size) for size in sizes]
    more = f"{len(sizes)} sizes in all, short sides {min(sides)} to {max(sides)}" if len(sizes) > SIZES_SHOWN else ""
    return _table("Sizes of the images", ("width x height", "images"), rows, more) if rows else ""


# ---- pictures -------------------------------------------------------------------------------------------------------


def _places(dataset: DatasetDict | None, records: Iterable[ImageRecord]) -> dict[str, tuple[Dataset, int]]:
    """Where the rows are that entries in `Finding.files` are about: keys of records, and files that have a problem."""
    places = {}
    for split, rows in (dataset or {}).items():
        rows = undecoded(rows)
        places |= {f"{split}/{name}": (rows, index) for index, name in enumerate(rows["name"])}
    files = {record.problem_file: record.key for record in records if record.problem_file}
    return places | {file: places[key] for file, key in files.items() if key in places}


def _section(
    number: int,
    found: Finding,
    records: Sequence[ImageRecord],
    places: dict[str, tuple[Dataset, int]],
    class_map: ClassMap | None,
    num_channels: int,
) -> str:
    """The worst files of a finding in pictures, copies beside what they are copies of; of the others the names."""
    if not found.files:
        return ""
    is_about_copies = "duplicate" in found.kind or found.kind == "mask-repeated"
    groups = _pairs(found, records)[:PAIRS] if is_about_copies else [(file,) for file in found.files[:PICTURES]]
    pictures = []
    for group in groups:
        figures = "".join(_figure(file, found.kind, places, class_map, num_channels) for file in group)
        pictures.append(f'<div class="together">\n{figures}</div>\n' if is_about_copies else figures)
    shown = {file for group in groups for file in group}
    others = [f"<code>{escape(file)}</code>" for file in found.files if file not in shown]
    if found.count > len(found.files):
        others.append(f"{found.count - len(found.files)} more")
    return (
        f'<section id="finding-{number}">\n'
        f'<h2 class="{found.severity}">{found.severity}: <code>{escape(found.kind)}</code></h2>\n'
        f'<p>{escape(found.message)}</p>\n<div class="pictures">\n{"".join(pictures)}</div>\n'
        + (f'<p class="muted">Also {", ".join(others)}</p>\n' if others else "")
        + "</section>\n"
    )


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
    if "across-splits" in found.kind:
        likeness[splits[:, None] == splits] = -2
    np.fill_diagonal(likeness, -3)
    pairs, shown = [], set()
    for i, j in enumerate(likeness.argmax(axis=1).tolist()):
        if i not in shown:
            pairs.append((listed[i].key, listed[j].key))
            shown |= {i, j}
    return pairs


def _figure(
    file: str,
    kind: str,
    places: dict[str, tuple[Dataset, int]],
    class_map: ClassMap | None,
    num_channels: int,
) -> str:
    """Image and mask side by side, or what there is of them. file: an entry in `Finding.files`."""
    if file in places:
        rows, index = places[file]
        row = rows[index]
    elif Path(file).is_file():  # one without its image or its mask
        column = "label" if kind == "mask-without-image" else "image"
        row = {"image": None, "label": None, "name": file} | {column: {"bytes": None, "path": file}}
    else:
        return f"<figure><figcaption><code>{escape(file)}</code></figcaption></figure>\n"
    photo, mask, problem = _views(row, kind, class_map, num_channels)
    images = "".join(_img(picture, what) for picture, what in ((photo, "image"), (mask, "mask")) if picture)
    said = f'<br><span class="muted">{escape(problem)}</span>' if problem and file in places else ""
    return f"<figure>{images}<figcaption><code>{escape(file)}</code>{said}</figcaption></figure>\n"


def _views(
    row: dict, kind: str, class_map: ClassMap | None, num_channels: int
) -> tuple[Image.Image | None, Image.Image | None, str]:
    """Small pictures of image and mask, None for what cannot be read, and what is wrong with them."""
    image, label, name, problem = row["image"], row["label"], row["name"], ""
    photo = mask = ids = None
    source = image and (image["path"] if image["bytes"] is None else image["bytes"])
    with suppress(UserError):  # what is wrong, `read_pair` says too
        photo = rgb_view(read_channels(source, num_channels, name)) if source else None
    try:
        ids, _ = read_pair(image, label, name, class_map, num_channels)
    except FileProblem as unusable:
        problem = unusable.detail
        try:  # the mask may do by itself
            mask = open_image(label, name)
            ids, _ = ids_of(mask, name, class_map)
        except FileProblem:
            mask = mask and _small(mask.convert("RGB"))
    if ids is not None:
        fits = photo is not None and photo.size == ids.shape[::-1]
        mask = _mask_view(ids, _small(photo) if fits and kind not in BORDER_KINDS else None, class_map)
    return photo and _small(photo), mask, problem


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
    width, height = _shown_size(ids.shape[::-1])
    rows = ((np.arange(height) + 0.5) * ids.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * ids.shape[1] / width).astype(int)
    small = ids[rows[:, None], columns]
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
        pixels[np.asarray(strays.resize((width, height), Image.Resampling.BOX)) > 0] = NO_CLASS_COLOR
        picture = Image.fromarray(pixels)
    return picture


def _img(picture: Image.Image, what: str) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85, subsampling=0)  # colours of thin areas stay what they are
    content = base64.b64encode(file.getvalue()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{content}" width="{picture.width}" height="{picture.height}" alt="{what}">'
    )
