"""What a plan needs to know of the data: a sample of pairs looked at, and what follows of all of them together.

looks = survey(split, class_map)        # cached
asymmetry(looks, "upside down")         # have the pictures a top?
count_different(looks)                  # pictures that are not nearly the same as another one
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from datasets import Dataset, Features, Value
from PIL import ImageOps

from checks.duplicates import THUMBNAIL_SIDE, best_matches, difference_hash, normalized_thumbnails, thumbnail
from checks.objects import find_objects
from data.classes import ClassMap
from data.image_files import StoredFile
from data.preparation import cached_map, decode_pair
from metrics_utils import IGNORE_INDEX

SAMPLE = 300  # pairs that are looked at
OBJECTS_KEPT = 64  # of one class in one image, evenly spread over their sizes
CELLS = 8  # a side, in which the share of each class is told
TURNS = {"upside down": lambda a: a[..., ::-1, :], "turned": lambda a: np.rot90(a, 1, (-2, -1))}


@dataclass(frozen=True)
class Look:
    """What was seen of one pair.

    Attributes:
        width, height: of the image as it is seen, in pixels.
        thumbnail: grey, 16x16, uint8. image_hash: of `checks.duplicates.difference_hash`.
        pixels: training id → pixels.
        shares: training id → share in each of 8x8 cells, of 255, uint8.
        objects: training id → (thickness, area) of its objects in pixels, of `checks.objects.find_objects`.
    """

    name: str
    width: int
    height: int
    thumbnail: bytes
    image_hash: int
    pixels: dict[int, int]
    shares: dict[int, bytes]
    objects: dict[int, tuple[tuple[float, int], ...]]

    @cached_property
    def picture(self) -> np.ndarray:
        """The thumbnail, float32 (16, 16)."""
        return np.frombuffer(self.thumbnail, np.uint8).reshape(THUMBNAIL_SIDE, -1).astype(np.float32)


def survey(
    split: Dataset,
    class_map: ClassMap,
    num_channels: int = 3,
    max_images: int = SAMPLE,
    seed: int = 0,
    cache_dir=None,
    num_proc: int | None = None,
) -> list[Look]:
    """Looks at a random sample of a split, in its order; pairs that cannot be used are left out, for the judge.

    Args:
        split: of `data_utils.load_data`.
        num_channels: of the images. cache_dir, num_proc: as for `data.preparation.prepare_pairs`.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(split))[:max_images])
    options = {"class_map": class_map, "num_channels": num_channels}
    features = Features({"look": Value("string")})
    rows = cached_map(split.select(chosen), survey_pair, features, options, cache_dir, num_proc, "looking at")
    return [_look(text) for text in rows["look"][:] if text]


def survey_pair(image: dict, label: dict, name: str, class_map: ClassMap, num_channels: int) -> dict:
    """One row of `survey`: a `Look` as JSON, or an empty text."""
    pair = StoredFile.of(image, name), StoredFile.of(label, name)
    record, decoded = decode_pair("", *pair, class_map, num_channels)
    if decoded is None or not record.raw_values.keys() <= class_map.value_ids.keys():
        return {"look": ""}
    gray = ImageOps.exif_transpose(decoded.picture).convert("RGB").convert("L")
    ids = class_map.reduce(decoded.ids)
    pixels = {i: n for i, n in enumerate(np.bincount(ids.reshape(-1), minlength=256).tolist()) if n}
    pixels.pop(IGNORE_INDEX, None)
    look = {
        "width": record.width,
        "height": record.height,
        "thumbnail": thumbnail(gray).hex(),
        "image_hash": difference_hash(gray),
        "pixels": pixels,
        "shares": {i: shares.tobytes().hex() for i, shares in _shares_of_cells(ids, pixels).items()},
        "objects": _objects_by_class(ids, pixels),
    }
    return {"look": json.dumps({"name": name, **look})}


def _look(text: str) -> Look:
    facts = json.loads(text)
    facts["thumbnail"] = bytes.fromhex(facts["thumbnail"])
    for key, make in (("pixels", int), ("shares", bytes.fromhex), ("objects", lambda rows: tuple(map(tuple, rows)))):
        facts[key] = {int(i): make(value) for i, value in facts[key].items()}
    return Look(**facts)


def _shares_of_cells(ids: np.ndarray, classes) -> dict[int, np.ndarray]:
    rows, columns = (np.arange(side) * CELLS // side for side in ids.shape)
    cells = rows[:, None] * CELLS + columns
    counts = np.bincount((cells * 256 + ids).reshape(-1), minlength=CELLS * CELLS * 256).reshape(-1, 256)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return {i: np.rint(255 * shares[:, i]).astype(np.uint8) for i in classes}


def _objects_by_class(ids: np.ndarray, classes) -> dict[int, list[tuple[float, int]]]:
    found, result = find_objects(ids), {}
    for i in classes:
        mine = np.flatnonzero(found.value == i)
        mine = mine[np.argsort(found.area[mine], kind="stable")]
        kept = mine[np.linspace(0, len(mine) - 1, min(len(mine), OBJECTS_KEPT)).round().astype(int)]
        result[i] = [(round(float(found.thickness[j]), 2), int(found.area[j])) for j in kept]
    return result


# ---- of all together ------------------------------------------------------------------------------------------------


def count_different(looks: Sequence[Look]) -> int:
    """How many pictures are not nearly the same as one before them."""
    if not looks:
        return 0
    hashes = np.array([look.image_hash for look in looks], np.uint64)
    prints = normalized_thumbnails([look.thumbnail for look in looks])
    return int((best_matches(hashes, prints, hashes, prints, earlier=True) < 0).sum())


def asymmetry(looks: Sequence[Look], turn: str) -> float:
    """By how much pictures differ from themselves upside down, or turned by 90 degrees, in the same way: ours.

    With d the difference between a picture and its turned self, |mean of d|² / mean of |d|²: 1 if all pictures have
    the same top, 1 / n on average if n pictures have none. The larger one of the grey pictures and of where their
    classes lie is returned; 1 where nothing differs.

    turn: a key of `TURNS`.
    """
    of_pictures = np.stack([look.picture for look in looks])
    classes = sorted(set().union(*(look.shares for look in looks)))
    empty = bytes(CELLS * CELLS)
    of_classes = np.stack(
        [np.frombuffer(b"".join(look.shares.get(i, empty) for i in classes), np.uint8) for look in looks]
    ).reshape(len(looks), len(classes), CELLS, CELLS)
    shares = []
    for pictures in (of_pictures, of_classes.astype(np.float32)):
        differences = pictures - TURNS[turn](pictures)
        size = np.square(differences).reshape(len(looks), -1).sum(axis=1).mean()
        shares.append(float(np.square(differences.mean(axis=0)).sum() / size) if size > 0 else 1.0)
    return max(shares)
