"""Masks drawn from annotations that outline objects: COCO and Labelme JSON, YOLO segmentation files and others.

    drawn = draw_masks(Tree("my_photos"), "COCO")      # pairs in splits; classes: {0: "background", …}

Value 0 is "background", where nothing is outlined (`--drop_classes background` ignores it). Classes count from 1:
COCO's by category id, YOLO's as `data.yaml` lists them, Labelme's by `labels.txt`, or else by alphabet.

Smaller objects lie over larger ones, whatever their order in the file, as tools list them in any: crowds first, then
by area, and those of one area in the order of the file. An object may be several shapes. A pixel belongs to a shape if
its centre lies inside, so shapes with a common edge share no pixel and areas are right. (`PIL.ImageDraw` adds half a
pixel all around: 300 random polygons of 25 pixels agree with pycocotools' masks to a mean IoU of 0.84 that way, and of
0.97 this way.)
"""

import base64
import io
import json
import logging
import math
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from cli_utils import UserError, count_of, one_line, shorten
from data.annotation_files import BACKGROUND, READERS, AnnotatedImage, Annotations, Shape, annotation_sources
from data.bulk import cache_key, map_in_order, processes_for
from data.classes import whole_number
from data.image_files import FORMATS, Header, orientation_of
from data.layouts import Pair, Tree
from data.output_paths import output_names
from metrics_utils import IGNORE_INDEX

logger = logging.getLogger(__name__)

INDEX = "drawn_masks.json"  # beside the cached masks: classes, pairs and what was odd
DRAWING_VERSION = 5  # part of every cache key: raised whenever other masks are drawn
IMAGES_PER_PROCESS = 500  # starting more processes would cost more than it saves
CUT_OFF = "outline/outlines reaches/reach beyond its/their image and is/are cut off"
FEW_POINTS = "outline/outlines has/have fewer than three points and is/are left out"
NO_PIXEL = "outline/outlines covers/cover no pixel of its/their image and is/are left out"
HIDDEN = "object/objects is/are hidden entirely by smaller ones drawn over it/them"
# Why a mask cannot be drawn.
UNREADABLE = "image/images cannot be read"
OTHER_SIZE = "image/images has/have another size than when it/they was/were annotated"
DAMAGED = "annotation/annotations is/are damaged"
MAX_COORDINATE = 1e100  # beyond which arithmetic ends
CROSSINGS = 1 << 22  # of rows and edges that are looked at in one go


class DrawnMasks(NamedTuple):
    """splits: split → pairs. classes: value in the masks → class. sources: the files they were made from. hidden:
    "split/name" of an image → objects in it that smaller ones hide entirely."""

    splits: dict[str, list[Pair]]
    classes: dict[int, str]
    sources: Sequence[Path]
    hidden: dict[str, list[str]]


def draw_masks(
    tree: Tree, layout: str, cache_dir: str | os.PathLike | None = None, num_proc: int | None = None
) -> DrawnMasks:
    """Draws the masks of a folder's annotations, once: the PNGs are kept in a cache until an annotation file changes,
    or images come or go.

    Args:
        layout: of `data.annotation_files.outline_layout`.
        cache_dir: default: the cache folder of `datasets`; in it, `segmentation_masks`.
        num_proc: processes; default: one for every 500 images, as far as there are CPUs, at most 8.

    Raises:
        UserError: annotations that cannot be understood, or that do not fit their images.
    """
    root, sources = tree.root, annotation_sources(tree, layout)
    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "segmentation_masks"
    folder = cache / _cache_key(tree, layout, sources)
    if not (folder / INDEX).is_file():
        annotations = READERS[layout](tree)
        if not any(item.shapes for item in annotations.images):
            found = "".join(f"; {_told(note, count)}" for note, count in annotations.notes.items())
            raise UserError(f"{root} ({layout} layout) holds no outline of any object{found}")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            _draw_all(root, annotations, Path(work, "masks"), num_proc)
            try:
                Path(work, "masks").rename(folder)  # complete, or not there
            except OSError:
                if not (folder / INDEX).is_file():  # else another process was faster
                    raise
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    listed = shorten((f"{value} {name}" for value, name in index["classes"].items()), 20)
    logger.info(f"{root}: masks drawn from outlines: {listed}; they are kept in {folder}")
    for note, count in index["notes"].items():
        places = index["hidden"] if note == HIDDEN else {}
        listed = shorten(f"{' and '.join(labels)} on {name}" for name, labels in places.items())
        logger.warning(f"{root}: {_told(note, count)}" + (f": {listed}" if listed else ""))
    splits = {
        split: [Pair(name, Path(image), folder / split / f"{mask}.png") for name, image, mask in pairs]
        for split, pairs in index["splits"].items()
    }
    return DrawnMasks(splits, {int(value): name for value, name in index["classes"].items()}, sources, index["hidden"])


def _told(note: str, count: int) -> str:
    phrase, colon, detail = note.partition(": ")
    return count_of(count, phrase) + colon + detail


def _cache_key(tree: Tree, layout: str, sources: Sequence[Path]) -> str:
    images = [(picture.parts, picture.path.name) for picture in tree.pictures]
    return cache_key(DRAWING_VERSION, PIL.__version__, layout, str(tree.root.absolute()), images, files=sources)


# ---- drawing --------------------------------------------------------------------------------------------------------


def _draw_all(root: Path, annotations: Annotations, folder: Path, num_proc: int | None) -> None:
    """Writes all masks and the index."""
    images, notes = _with_mask_names(annotations.images), Counter(annotations.notes)
    folder.mkdir()
    for parent in {_mask_file(folder, item).parent for item in images}:
        parent.mkdir(parents=True, exist_ok=True)
    if num_proc is None:
        num_proc = processes_for(len(images), IMAGES_PER_PROCESS)
    draw = partial(_draw, values=annotations.values, folder=folder)
    problems, hidden = defaultdict(list), {}
    results = map_in_order(draw, images, num_proc)
    progress = tqdm(results, total=len(images), desc="drawing masks", unit=" images")
    for item, (found, covered, (kind, details)) in zip(images, progress, strict=True):
        notes.update(found)
        if covered:
            notes[HIDDEN] += len(covered)
            hidden[f"{item.split}/{item.name}"] = covered
        if kind:
            problems[kind] += details
    if problems:
        lines = (f"{count_of(len(details), kind)}: {shorten(details)}" for kind, details in problems.items())
        raise UserError(f"{root}: " + "\n  ".join(lines))
    pairs = defaultdict(list)
    for item in images:
        pairs[item.split].append([item.name, str(item.image.absolute()), item.mask_name])
    classes = {
        value: label
        for label, value in annotations.values.items()
        if value < IGNORE_INDEX and label.lower() not in BACKGROUND
    }
    index = {"classes": {0: BACKGROUND[0]} | dict(sorted(classes.items())), "notes": notes, "splits": pairs}
    index["hidden"] = hidden
    (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="ascii")


def _with_mask_names(images: list[AnnotatedImage]) -> list[AnnotatedImage]:
    names = {}
    for split in {item.split for item in images}:
        listed = [item.name for item in images if item.split == split]
        names |= {(split, name): path for name, path in zip(listed, output_names(listed), strict=True)}
    return [replace(item, mask_name=names[item.split, item.name]) for item in images]


def _mask_file(folder: Path, item: AnnotatedImage) -> Path:
    return folder / item.split / f"{item.mask_name}.png"


def _draw(
    item: AnnotatedImage, values: dict[str, int], folder: Path
) -> tuple[Counter, list[str], tuple[str, list[str]]]:
    """Writes one mask. Returns what is odd, labels of hidden objects, kind and details of what makes it unusable."""
    notes = Counter()
    try:
        with Image.open(item.image, formats=FORMATS) as picture:
            header = Header(picture.size, picture.mode, orientation_of(picture))
    except Exception as error:  # a decoder may raise anything on a damaged file
        return notes, [], (UNREADABLE, [f"{item.image.name} ({one_line(error)})"])
    size = item.size or header.upright
    if size not in (header.size, header.upright):
        stated, found = ("x".join(map(str, numbers)) for numbers in (size, header.upright))
        detail = f"{item.image.name} is {found}, {item.source.name} says {stated}"
        return notes, [], (OTHER_SIZE, [detail])
    owner, scale, damaged = np.zeros(size[::-1], np.int32), size if item.relative else (1, 1), []
    shapes = _in_drawing_order(item.shapes, scale, owner.shape)
    for number, shape in enumerate(shapes, start=1):
        try:
            note = _draw_shape(owner, shape, number, scale)
        except Exception as error:  # as above, for embedded bitmaps
            damaged.append(f"{shape.label} on {item.image.name} ({one_line(error)})")
            continue
        notes.update([note] if note else [])
        if note in (NO_PIXEL, FEW_POINTS):
            shapes[number - 1] = replace(shape, kind="")
    if damaged:
        return notes, [], (DAMAGED, damaged)
    value_of = np.array([0, *(values[shape.label] for shape in shapes)], np.uint8)
    Image.fromarray(value_of[owner]).save(_mask_file(folder, item), compress_level=3)
    return notes, _hidden(shapes, owner), ("", [])


def _in_drawing_order(shapes: list[Shape], scale: tuple[float, float], height_width: tuple[int, int]) -> list[Shape]:
    """Crowds, then objects by area, the largest first; of one area, and within an object, in the order of the file."""
    shapes = [replace(shape, object=f"shape {i}") if shape.object is None else shape for i, shape in enumerate(shapes)]
    areas = Counter()
    for shape in shapes:
        areas[shape.object] += _area(shape, scale, height_width)
    first = {shape.object: i for i, shape in reversed(list(enumerate(shapes)))}
    return sorted(shapes, key=lambda shape: (not shape.crowd, -round(areas[shape.object], 6), first[shape.object]))


def _area(shape: Shape, scale: tuple[float, float], height_width: tuple[int, int]) -> float:
    """In pixels, also of what lies beyond the image; 0 for what is damaged."""
    try:
        with np.errstate(all="ignore"):
            if shape.kind == "rle":
                return float(sum(_run_lengths(shape.content["counts"])[1::2]))
            if shape.kind == "brush":
                return float(_painted(shape, height_width).sum())
            if shape.kind == "segments":  # which share no pixel
                return 0.0
            points = shape.points * scale
            if shape.kind == "circle":
                area = math.pi * math.dist(*points) ** 2
            elif shape.kind == "bitmap":
                with Image.open(io.BytesIO(base64.b64decode(shape.content)), formats=("PNG",)) as bitmap:
                    area = math.prod(bitmap.size)
            else:
                area = _ring_area(points) - sum(_ring_area(ring * scale) for ring in shape.holes)
    except Exception:  # drawing it says why
        return 0.0
    return area if math.isfinite(area) else 0.0


def _ring_area(points: np.ndarray) -> float:
    (x, y), (next_x, next_y) = points.T, np.roll(points, -1, axis=0).T
    return abs(float((x * next_y - next_x * y).sum())) / 2


def _hidden(shapes: list[Shape], owner: np.ndarray) -> list[str]:
    """Labels of objects of which no pixel is left, where another class covers them. owner: 1 + index of the shape."""
    left = np.bincount(owner.reshape(-1), minlength=len(shapes) + 1)[1:] > 0
    drawn = {shape.object: shape.label for shape in shapes if shape.kind not in ("", "segments")}
    seen = {shape.object for shape, is_left in zip(shapes, left, strict=True) if is_left}
    labels = {shape.label for shape, is_left in zip(shapes, left, strict=True) if is_left}
    return [label for i, label in drawn.items() if i not in seen and labels - {label}]


def _draw_shape(mask: np.ndarray, shape: Shape, value: int, scale: tuple[float, float]) -> str:
    """Returns what is odd about a shape, or an empty string."""
    height, width = mask.shape
    if shape.kind == "rle":
        size = tuple(int(side) for side in shape.content["size"])
        if size != mask.shape:  # compared first: a short text may stand for any number of pixels
            raise ValueError(f"RLE of {'x'.join(map(str, size[::-1]))} pixels for {width}x{height}")
        mask[decode_rle(shape.content["counts"], size)] = value
        return ""
    if shape.kind in ("brush", "segments"):
        inside = _painted(shape, mask.shape)
        mask[inside] = value
        return "" if inside.any() or shape.kind == "segments" else NO_PIXEL
    points = shape.points * scale
    if not np.isfinite(points).all():
        raise ValueError("a corner that is no number")
    if len(points) and np.abs(points).max() > MAX_COORDINATE:
        raise ValueError(f"a corner at {np.abs(points).max():g}")
    if shape.kind == "polygon":
        if len(points) < 3:
            return FEW_POINTS
        pixels = draw_polygon(mask, points, value, shape.holes)
    else:
        if shape.kind == "circle":
            radius = math.dist(*points)
            y, x = np.ogrid[:height, :width]
            inside = (x + 0.5 - points[0, 0]) ** 2 + (y + 0.5 - points[0, 1]) ** 2 < radius**2
            points = points[0] + radius * np.array([[-1, -1], [1, 1]])
        else:
            stencil = Image.new("L", (width, height))
            with Image.open(io.BytesIO(base64.b64decode(shape.content)), formats=("PNG",)) as bitmap:
                if bitmap.width > width + 2 or bitmap.height > height + 2:
                    raise ValueError(f"a bitmap of {bitmap.width}x{bitmap.height} pixels for {width}x{height}")
                corner = np.floor(points[0]).clip(-(2**30), 2**30).astype(int).tolist()
                stencil.paste(_stencil(bitmap), tuple(corner))
            inside = np.asarray(stencil) > 0
        mask[inside] = value
        pixels = inside.sum()
    # By less than a pixel is rounding.
    is_cut_off = (points < -1).any() or (points > np.add((width, height), 1)).any()
    return (CUT_OFF if is_cut_off else "") if pixels else NO_PIXEL


def _painted(shape: Shape, height_width: tuple[int, int]) -> np.ndarray:
    """Where a file says that an object is, bool (H, W). Raises ValueError for one of another size."""
    if shape.kind == "brush":
        with _opened(shape.content, height_width) as file:
            return np.asarray(_stencil(file)) > 0
    ids = _ids_of_colors(shape.content["file"], height_width)
    return ids == 0 if shape.content["ids"] is None else np.isin(ids, shape.content["ids"])


def _opened(file: str, height_width: tuple[int, int]) -> Image.Image:
    """Its size is compared before it is decoded: a short file may have any number of pixels."""
    image = Image.open(file, formats=FORMATS)
    if image.size != height_width[::-1]:
        image.close()
        raise ValueError(f"a mask of {image.width}x{image.height} pixels for {height_width[1]}x{height_width[0]}")
    return image


def _stencil(bitmap: Image.Image) -> Image.Image:
    """What is opaque, or, without transparency, what is not black."""
    return bitmap.getchannel("A") if "A" in bitmap.getbands() else bitmap.convert("L")


@lru_cache(maxsize=1)
def _ids_of_colors(file: str, height_width: tuple[int, int]) -> np.ndarray:
    """Ids of a panoptic PNG: red + 256 green + 65536 blue."""
    with _opened(file, height_width) as image:
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int32), -1, 0)
    return red + 256 * green + 65536 * blue


def draw_polygon(mask: np.ndarray, points: np.ndarray, value: int, holes: Sequence[np.ndarray] = ()) -> int:
    """Writes a value into the pixels whose centre lies inside a polygon, by the even-odd rule.

    Args:
        mask: (H, W), changed in place.
        points: (n, 2), x and y of the corners in pixels; (0, 0) is the corner of the first pixel, not its centre.
        holes: polygons like it that are cut out.

    Returns:
        How many pixels there are.
    """
    rings = [points, *holes]
    (x, y), (next_x, next_y) = np.concatenate(rings).T, np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]).T
    top, bottom = np.clip([y.min(), y.max() + 1], 0, len(mask)).astype(int)
    left, right = np.clip([x.min(), x.max() + 1], 0, mask.shape[1]).astype(int)
    turns = np.zeros((bottom - top, right - left + 1), bool)
    rows = max(1, CROSSINGS // len(x))  # at a time, as an outline may have a million corners
    for first in range(top, bottom, rows):
        centers = np.arange(first, min(first + rows, bottom)) + 0.5
        row, edge = np.nonzero((y <= centers[:, None]) != (next_y <= centers[:, None]))
        crossing = x[edge] + (centers[row] - y[edge]) * (next_x - x)[edge] / (next_y - y)[edge]
        # From the first centre behind it, each crossing turns inside to outside or outside to inside.
        column = np.ceil(crossing - 0.5).clip(left, right).astype(int) - left
        np.logical_xor.at(turns, (row + first - top, column), True)
    inside = np.logical_xor.accumulate(turns, axis=1)[:, :-1]
    mask[top:bottom, left:right][inside] = value
    return int(inside.sum())


def decode_rle(counts: str | list[int], size: tuple[int, int]) -> np.ndarray:
    """COCO's run-length encoding → bool (H, W).

    Runs of 0 and 1 in turn, column after column. As a string, each run is a number in groups of five bits, low ones
    first, a sixth bit saying that more follow, plus 48 as a character; from the fourth on it is the difference to the
    run before the last. Source: maskApi.c of the COCO API.

    Args:
        size: height and width.

    Raises:
        ValueError: the runs do not fill the size.
    """
    counts, (height, width) = _run_lengths(counts), size
    if sum(counts) != height * width or min(counts) < 0:
        raise ValueError(f"runs of {sum(counts)} pixels for {width}x{height}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def encode_rle(inside: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> list[int]:
    """The inverse of `decode_rle`, as numbers.

    Args:
        inside: bool (h, w), a part of the image that holds all of an area.
        corner: row and column of the image where it begins. size: height and width of the image.
    """
    (top, left), height = corner, size[0]
    padded = np.pad(inside, ((1, 1), (0, 0))).astype(np.int8)
    column, row = np.nonzero(np.diff(padded, axis=0).T)  # where each run begins and, in turn, ends
    turns = (left + column) * height + top + row
    # One that ends with a column goes on where the next column begins with one.
    goes_on = np.flatnonzero(turns[1:-1:2] == turns[2::2]) * 2 + 1
    turns = np.delete(turns, [*goes_on, *(goes_on + 1)])
    counts = np.diff(turns, prepend=0, append=height * size[1]).tolist()
    return counts if counts[-1] else counts[:-1]


def _run_lengths(counts: str | list[int]) -> list[int]:
    """Of `decode_rle`; raises ValueError for what is none."""
    if not isinstance(counts, str):
        return [whole_number(count) for count in counts]
    lengths, number, shift = [], 0, 0
    for character in counts.encode():
        bits = character - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("damaged RLE")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
            number = shift = 0
    return lengths
