"""Looking at a dataset: every pair decoded once, what a folder holds besides, and the quick look before training.

    records = scan(dataset, class_map)                        # of `data_utils.load_from_arguments`
    findings = find_faults(records, class_map, image_size)

`check_dataset.py` scans everything; `run_segmentation.py` a sample, before it starts (`quick_check`).
"""

import hashlib
import io
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from datasets import DatasetDict
from PIL import Image, ImageOps
from tqdm import tqdm

from checks.alignment import alignment
from checks.duplicates import difference_hash, thumbnail
from checks.records import ImageRecord
from checks.values import transitions
from data.classes import ClassMap
from data.image_files import EXIF_ORIENTATION, FileProblem, fit_mask, is_lossy_file, open_image, open_picture
from data.preparation import undecoded

logger = logging.getLogger(__name__)

# One process for so many images; starting more would cost more than it saves.
IMAGES_PER_PROCESS, MAX_PROCESSES = 200, 8
BLOCK, CHUNK = 128, 16  # images handed to all processes, and to one, at a time
ALIGNED_PER_SPLIT = 200  # images whose alignment is measured: a fault of the whole split shows in a part of it


# ---- scanning -------------------------------------------------------------------------------------------------------


def scan(
    dataset: DatasetDict,
    class_map: ClassMap | None = None,
    max_images: int | None = None,
    num_proc: int | None = None,
    seed: int = 0,
    progress: bool = True,
    num_channels: int = 3,
) -> list[ImageRecord]:
    """Decodes every image and mask once and says what is known of them, in the order of the dataset.

    Args:
        dataset: of `data_utils.load_segmentation_dataset`.
        class_map: gives the colours by which masks in colours are read.
        max_images: a random sample of so many, parted among the splits by their size; None: all.
        num_proc: processes; default: one for every 200 images, as far as there are CPUs, at most 8.
        seed: of the sample. progress: shows a bar.
        num_channels: of the images, as for `data.image_files.read_channels`.
    """
    chosen = _choose({split: len(rows) for split, rows in dataset.items()}, max_images, seed)
    if num_proc is None:
        num_proc = max(1, min(os.cpu_count() or 1, MAX_PROCESSES, len(chosen) // IMAGES_PER_PROCESS))
    dataset = DatasetDict({split: undecoded(rows) for split, rows in dataset.items()})
    look = partial(_look_at, class_map=class_map, num_channels=num_channels)
    with tqdm(total=len(chosen), desc="checking", unit=" images", disable=not progress) as bar:
        records = []
        for record in _map(look, ((split, dataset[split][i], align) for split, i, align in chosen), num_proc):
            records.append(record)
            bar.update()
    return records


def _choose(sizes: dict[str, int], max_images: int | None, seed: int) -> list[tuple[str, int, bool]]:
    """(split, index, whether to measure its alignment) of the images to look at."""
    total, rng = sum(sizes.values()), np.random.default_rng(seed)
    chosen = []
    for split, size in sizes.items():
        count = size if max_images is None or max_images >= total else min(size, -(-max_images * size // total))
        indices = np.sort(rng.permutation(size)[:count]).tolist()
        step = -(-count // ALIGNED_PER_SPLIT)
        chosen += [(split, index, place % step == 0) for place, index in enumerate(indices)]
    return chosen


def _map(function, tasks: Iterator, num_proc: int) -> Iterator:
    """`map` in processes, in order. Tasks are handed out in blocks, as they may hold whole files."""
    if num_proc == 1:
        yield from map(function, tasks)
        return
    with ProcessPoolExecutor(num_proc) as pool:
        block = []
        for task in tasks:
            block.append(task)
            if len(block) == BLOCK:
                yield from pool.map(function, block, chunksize=CHUNK)
                block = []
        yield from pool.map(function, block, chunksize=CHUNK)


def _look_at(task: tuple[str, dict, bool], class_map: ClassMap | None, num_channels: int) -> ImageRecord:
    """task: split, row with undecoded "image" and "label", whether to measure alignment."""
    split, row, align = task
    image, label, name = row["image"], row["label"], row["name"]
    facts = {"image_file": _file(image, name), "mask_file": _file(label, name)}
    source, file = image, facts["image_file"]
    try:
        picture = open_picture(image, name, num_channels)
        upright = ImageOps.exif_transpose(picture)
        facts |= {"image_mode": picture.mode, "orientation": picture.getexif().get(EXIF_ORIENTATION, 1)}
        facts |= {"width": upright.width, "height": upright.height}
        source, file = label, facts["mask_file"]
        mask = open_image(label, name)
        facts |= {"mask_mode": mask.mode, "mask_size": mask.size}
        ids, note = fit_mask(picture, mask, image, label, name, class_map)
    except FileProblem as problem:
        kind = _kind(problem, source)
        return ImageRecord(split, name, **facts, problem=kind, problem_file=file, detail=problem.detail)
    rgb = upright.convert("RGB")
    gray = rgb.convert("L")
    facts |= {
        "oddities": _oddities(picture, image, mask, label, gray),
        "image_digest": _digest(rgb.tobytes(), rgb.size),
        "image_hash": difference_hash(gray),
        "thumbnail": thumbnail(gray),
        "alignment": alignment(gray, ids) if align else (),
    }
    return ImageRecord(split, name, **facts, **_mask_facts(ids, mask), note=note)


def _file(value: dict | None, name: str) -> str:
    return (value and value["path"]) or name


def _kind(problem: FileProblem, source: dict | None) -> str:
    """A key of `PROBLEMS`, or why a file is unreadable: "empty", "truncated"."""
    if problem.kind != "unreadable" or source is None:
        return problem.kind
    path, content = source["path"], source["bytes"]
    if content == b"" or (content is None and os.path.isfile(path) and os.path.getsize(path) == 0):
        return "empty"
    early = ("truncated", "broken", "unexpected end", "not enough", "incomplete")
    return "truncated" if any(word in problem.detail.lower() for word in early) else "unreadable"


def _oddities(picture: Image.Image, image: dict, mask: Image.Image, label: dict, gray: Image.Image) -> tuple[str, ...]:
    low, high = gray.getextrema()
    oddities = {
        "blank image": low == high,
        "transparent image": picture.has_transparency_data and picture.convert("RGBA").getextrema()[3][0] < 255,
        "animated image": _frames(picture.format, image) > 1,
        "animated mask": _frames(mask.format, label) > 1,
        "lossy mask": is_lossy_file(label),
    }
    return tuple(oddity for oddity, found in oddities.items() if found)


def _frames(image_format: str | None, value: dict) -> int:
    if image_format not in ("GIF", "TIFF", "WEBP"):  # others hold one, or thumbnails besides
        return 1
    with Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])) as image:
        return image.n_frames


def _mask_facts(ids: np.ndarray, mask: Image.Image) -> dict:
    if ids.dtype == np.uint8:
        counts = np.bincount(ids.reshape(-1), minlength=256)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(ids, return_counts=True)
    values = values.tolist()
    crossings, ramps, ramp_values = transitions(ids)
    palette = mask.getpalette() if mask.mode == "P" else []
    return {
        "raw_values": dict(zip(values, counts.tolist(), strict=True)),
        "palette": {
            v: "#{:02x}{:02x}{:02x}".format(*palette[3 * v : 3 * v + 3]) for v in values if 3 * v + 3 <= len(palette)
        },
        "crossings": crossings,
        "ramps": ramps,
        "ramp_values": ramp_values,
        "mask_digest": _digest(ids.tobytes(), ids.shape),
    }


def _digest(content: bytes, size: tuple) -> str:
    return hashlib.blake2b(content, digest_size=16, person=repr(size).encode()[:16]).hexdigest()
