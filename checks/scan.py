"""Looking at a dataset closely: every pair, or a sample, decoded once.

    records = scan(dataset, class_map)                        # of `data_utils.load_segmentation_dataset`
    findings = find_faults(records, class_map, image_size)    # of `checks.judge`

What is looked at beyond preparing: hashes, thumbnails and digests, alignment, runs of values along borders.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import xxhash
from datasets import DatasetDict
from PIL import Image, ImageOps
from tqdm import tqdm

from checks.alignment import alignment
from checks.duplicates import difference_hash, thumbnail
from checks.records import ImageRecord
from checks.values import transitions
from data.bulk import map_in_order, processes_for
from data.classes import ClassMap
from data.image_files import EXIF_ORIENTATION, StoredFile
from data.preparation import DecodedPair, decode_pair, prepared_row, undecoded

IMAGES_PER_PROCESS = 200  # starting more processes would cost more than it saves
ALIGNED_PER_SPLIT = 200  # images whose alignment is measured: a fault of the whole split shows in a part of it


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
        max_images: the size of a random sample, divided among the splits by their size; None: all.
        num_proc: processes; default: one for every 200 images, as far as there are CPUs, at most 8.
        seed: of the sample. progress: shows a bar.
        num_channels: of the images, as for `data.image_files.read_channels`.
    """
    chosen = _choose({split: len(rows) for split, rows in dataset.items()}, max_images, seed)
    if num_proc is None:
        num_proc = processes_for(len(chosen), IMAGES_PER_PROCESS)
    look = partial(_look_at, class_map=class_map, num_channels=num_channels)
    records = map_in_order(look, _tasks(dataset, chosen), num_proc)
    return list(tqdm(records, total=len(chosen), desc="checking", unit=" images", disable=not progress))


def scan_sample(
    dataset: DatasetDict, class_map: ClassMap, num_images: int, seed: int, num_channels: int
) -> tuple[list[ImageRecord], dict[str, dict[str, dict]]]:
    """The records of a sample, and what is prepared of it, as `data.preparation.prepare_pairs` takes it (`known`)."""
    chosen = _choose({split: len(rows) for split, rows in dataset.items()}, num_images, seed)
    records, rows = [], defaultdict(dict)
    for task in _tasks(dataset, chosen):
        record, decoded = _decode(task, class_map, num_channels)
        records.append(record)
        rows[record.split][record.name] = prepared_row(record, decoded, class_map)
    return records, rows


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


def _tasks(dataset: DatasetDict, chosen: list[tuple[str, int, bool]]) -> Iterator[tuple[str, dict, bool]]:
    """Split, row with undecoded "image" and "label", whether to measure alignment."""
    rows = {split: undecoded(rows) for split, rows in dataset.items()}
    return ((split, rows[split][index], align) for split, index, align in chosen)


def _look_at(task: tuple[str, dict, bool], class_map: ClassMap | None, num_channels: int) -> ImageRecord:
    return _decode(task, class_map, num_channels)[0]


def _decode(
    task: tuple[str, dict, bool], class_map: ClassMap | None, num_channels: int
) -> tuple[ImageRecord, DecodedPair | None]:
    """task: one of `_tasks`."""
    split, row, align = task
    image, mask = (StoredFile.of(row[column], row["name"]) for column in ("image", "label"))
    record, decoded = decode_pair(split, image, mask, class_map, num_channels)
    if decoded is None:
        return ImageRecord(**vars(record)), None
    picture, stored, ids = decoded
    turned = picture.getexif().get(EXIF_ORIENTATION, 1) != 1
    rgb = ImageOps.exif_transpose(picture) if turned else picture
    rgb = rgb if rgb.mode == "RGB" else rgb.convert("RGB")
    gray = rgb.convert("L")
    crossings, ramps, ramp_values = transitions(ids)
    small = thumbnail(gray)
    oddities = {
        # All of it is looked at only where its small picture is of one grey.
        "blank image": len({*small}) == 1 and len({*gray.getextrema()}) == 1,
        "transparent image": picture.has_transparency_data and picture.convert("RGBA").getextrema()[3][0] < 255,
        "animated image": _is_animated(picture, image),
        "animated mask": _is_animated(stored, mask),
    }
    record = ImageRecord(
        **vars(record),
        oddities=tuple(oddity for oddity, found in oddities.items() if found),
        palette=_palette(stored, record.raw_values),
        crossings=crossings,
        ramps=ramps,
        ramp_values=ramp_values,
        image_digest=_digest(np.asarray(rgb)),
        mask_digest=_digest(ids),
        image_hash=difference_hash(gray),
        thumbnail=small,
        alignment=alignment(gray, ids) if align else (),
    )
    return record, decoded


def _is_animated(picture: Image.Image, file: StoredFile) -> bool:
    """Whether there are more frames or pages than the one that was decoded."""
    if picture.format not in ("GIF", "TIFF", "WEBP"):  # others hold one, or thumbnails besides
        return False
    try:
        with file.stream() as stream, Image.open(stream) as image:
            return image.n_frames > 1
    except Exception:  # a decoder may raise anything on a damaged file, and what follows here is damaged
        return True


def _palette(mask: Image.Image, values: Iterable[int]) -> dict[int, str]:
    """Value → "#rrggbb" of an indexed mask."""
    palette = mask.getpalette() if mask.mode == "P" else []
    colors = {value: palette[3 * value : 3 * value + 3] for value in values}
    return {value: "#{:02x}{:02x}{:02x}".format(*color) for value, color in colors.items() if len(color) == 3}


def _digest(pixels: np.ndarray) -> str:
    """128 bits, by which equal pictures are found: of values, of however many bytes, and shape."""
    digest = xxhash.xxh3_128(repr((pixels.shape, pixels.dtype.str)).encode())
    digest.update(np.ascontiguousarray(pixels))
    return digest.hexdigest()
