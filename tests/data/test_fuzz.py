"""Anything may stand in a user's files: what is read of it is data or a `UserError`, within bounded time and memory.

`make test` reads 25 files of each kind, `make test-slow` 1,500; the draws are the same in every run.
"""

import base64
import json
import logging
import re
import signal
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from random import Random

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories.damage import (
    HEIGHT,
    TEXTS,
    VALUES,
    WIDTH,
    damaged_bytes,
    damaged_json,
    damaged_picture,
    damaged_text,
    odd_array,
    pictures,
    tiff_of,
)
from factories.datasets import load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checks.judge import find_faults
from checks.records import ImageRecord
from checks.scan import scan
from cli_utils import UserError, parse_arguments, printable
from data.arguments import ClassArguments, DatasetArguments
from data.classes import ClassMap, class_map_of_list, map_classes, read_class_list, read_label_mapping
from data.image_files import StoredFile, decode_image
from data.mask_values import mask_values
from data.outlines import decode_rle
from data.preparation import prepare_example
from data_utils import find_classes, load_data

MAX_MEMORY = 512  # MiB above what was in use before, for a file of some kilobytes
MAX_SECONDS = 60
COLORS = [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
MAPS = (
    ClassMap({0: "a", 1: "b", 2: "c"}),
    ClassMap({0: "a", 1: "b", 2: "c"}, COLORS),
    ClassMap({0: "a", 1: "b"}, do_reduce_labels=True),
    ClassMap({0: "a", 1: "b"}, raw_to_id={0: 0, 255: 1}),
)


class TooMuch(BaseException):
    """Of time or memory; no Exception, so that nobody takes it for a damaged file."""


@contextmanager
def bounded():
    """Raises TooMuch for more than `MAX_SECONDS`, or more than `MAX_MEMORY` where the system counts it (Linux)."""

    def too_long(signum, frame):
        raise TooMuch(f"more than {MAX_SECONDS} s")

    def resident(field: str) -> int:
        return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10

    counts = Path("/proc/self/clear_refs").exists()
    if counts:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew. Source: proc_pid_clear_refs(5)
        before = resident("VmRSS")
    old = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(MAX_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    if counts and (used := resident("VmHWM") - before) > MAX_MEMORY:
        raise TooMuch(f"{used} MiB")


OUTCOMES = Counter()


def told(read, *args, **options):
    """What `read` returns, or None where it raises a UserError, which a terminal and a file can take."""
    try:
        result = read(*args, **options)
        OUTCOMES["data"] += 1
        return result
    except UserError as error:
        OUTCOMES["refused"] += 1
        message = printable(str(error), lines=True)
        assert message.strip() and message.encode(), error
        # A line for each thing that is wrong, and not the file.
        assert len(message) < 20_000, message[:2000]


def names_are_harmless(names) -> bool:
    return all(isinstance(name, str) and name.strip() and printable(name) == name for name in names)


# ---- pictures -------------------------------------------------------------------------------------------------------


def look(image: bytes, mask: bytes, class_map: ClassMap, num_channels: int) -> None:
    """All that training and checking do with a pair."""
    files = [{"bytes": content, "path": None} for content in (image, mask)]
    row = prepare_example(*files, "pair", "train", class_map, num_channels, {})
    record = ImageRecord(**vars(_scanned(files, class_map, num_channels)))
    assert (row["label"] is None) == bool(record.problem or record.raw_values.keys() - class_map.value_ids.keys()), (
        record
    )
    for classes in (class_map, None):
        for found in find_faults([record], classes, 512, complete=False):
            assert printable(f"{found.message} {found.fix}").encode()
    mask_values(*files, "pair")
    OUTCOMES["refused" if record.problem else "data"] += 1
    told(decode_image, StoredFile(None, image, "pair"), num_channels)


def _scanned(files: list[dict], class_map: ClassMap, num_channels: int):
    features = datasets.Features(
        {"image": datasets.Image(mode="RGB"), "label": datasets.Image(), "name": datasets.Value("string")}
    )
    rows = {"image": files[:1], "label": files[1:], "name": ["pair"]}
    rows = datasets.Dataset.from_dict(rows, features=features)
    [record] = scan(datasets.DatasetDict({"train": rows}), class_map, num_channels=num_channels, progress=False)
    return record


def images(random: Random, root: Path) -> None:
    look(damaged_picture(random), pictures()["PNG L"], random.choice(MAPS), random.choice((3, 3, 1, 2, 4)))


def masks(random: Random, root: Path) -> None:
    look(pictures()["PNG RGB"], damaged_picture(random), random.choice(MAPS), 3)


def images_as_masks(random: Random, root: Path) -> None:
    content = damaged_picture(random)
    look(content, content, random.choice(MAPS), 3)


def arrays(random: Random, root: Path) -> None:
    """Masks of any kind of number."""
    content = tiff_of(random, odd_array(random))
    look(pictures()["PNG RGB"], content if random.random() < 0.8 else damaged_bytes(random, content), MAPS[0], 3)


# ---- lists of classes, flags ----------------------------------------------------------------------------------------

CLASS_LISTS = {
    ".json": (
        '{"0": "road", "1": "car", "2": "sky"}',
        '["road", "car"]',
        '[{"id": 0, "name": "road", "color": [1, 2, 3]}, {"id": 1, "name": "car", "color": "4 5 6"}]',
        '{"names": ["road", "car"]}',
        '{"labels": [{"name": "road", "color": [1, 2, 3]}]}',
        '{"road": 0, "car": 7}',
    ),
    ".yaml": ("names: [road, car]\n", "0: road\n1: car\n", "- {id: 0, name: road}\n- {id: 1, name: car}\n"),
    ".csv": ("id,name,color\n0,road,1 2 3\n1,car,4 5 6\n", "name;r;g;b\nroad;1;2;3\ncar;4;5;6\n"),
    ".txt": ("road\ncar\n", "0 road\n1 car\n", "# label:color_rgb:parts:actions\nroad:1,2,3::\ncar:4,5,6::\n",
             "64 128 64 road\n1 2 3 car\n"),
}  # fmt: skip


def damaged_list(random: Random, suffix: str, text: str) -> bytes:
    if suffix == ".json" and random.random() < 0.6:
        return damaged_json(random, json.loads(text)).encode(errors="surrogatepass")
    return damaged_text(random, text)


def class_lists(random: Random, root: Path) -> None:
    suffix = random.choice(sorted(CLASS_LISTS))
    file = root / f"classes{suffix}"
    file.write_bytes(damaged_list(random, suffix, random.choice(CLASS_LISTS[suffix])))
    classes = told(read_class_list, file)
    if classes is not None:
        assert names_are_harmless(classes[0].values()), classes
        class_map = told(class_map_of_list, *classes, random.random() < 0.3)
        if class_map is not None:
            assert class_map.table().encode()
            class_map.save(root / "labels.json")
            assert read_class_list(root / "labels.json")[0] == class_map.id2label


def label_maps(random: Random, root: Path) -> None:
    texts = {
        ".json": ('{"0": "road", "1": null, "2": "car"}', '{"0": 0, "1": 1, "7": null}'),
        ".yaml": ("road: ground\ncar: ~\n", "7: road\n8: road\n9: ~\n", "0: 0\n1: 255\n"),
        ".csv": ("from,to\n7,road\n8,\n", "from;to\nroad;ground\ncar;\n"),
    }
    suffix = random.choice(sorted(texts))
    file = root / f"map{suffix}"
    file.write_bytes(damaged_list(random, suffix, random.choice(texts[suffix])))
    mapping = told(read_label_mapping, file)
    if mapping is not None:
        class_map = told(map_classes, mapping, file, ClassMap({0: "road", 1: "car"}))
        if class_map is not None:
            assert names_are_harmless(class_map.id2label.values()), class_map
            assert class_map.table().encode()


def yaml_configs(random: Random, root: Path) -> None:
    text = (
        "dataset_dir: photos\nignore_values: [11, 12]\nimage_size: 64\ntrain_val_split: 0.2\n"
        "merge_classes:\n  - car,truck=vehicle\ndo_reduce_labels: true\nid2label: classes.json\n"
    )
    file = root / "config.yaml"
    content = damaged_text(random, text)
    if random.random() < 0.3:
        key = random.choice(("dataset_dir", "ignore_values", "merge_classes", "do_reduce_labels", "train_val_split"))
        odd = (*TEXTS, *map(str, VALUES), "{1: {2: 3}}", "{[1]: 2}", "2020-01-01", "!!binary aGk=", "!!set {a}")
        content = f"{key}: {random.choice(odd)}\n".encode(errors="surrogatepass")
    file.write_bytes(content)
    told(parse_arguments, (DatasetArguments, ClassArguments), ["--config", str(file)])


# ---- datasets -------------------------------------------------------------------------------------------------------


def read(root: Path) -> None:
    found = told(load, root)
    if found is not None:
        data, class_map = found
        assert len(data.splits) and all(map(len, data.splits.values()))
        assert names_are_harmless(class_map.id2label.values()), class_map
        for rows in data.splits.values():
            for row in rows.with_format(None).select_columns("name"):
                assert row["name"].encode()


def folder(root: Path, files: dict[str, bytes | str]) -> None:
    """Replaces what lies in a folder, without another one for each example."""
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))


PAIRS = {"images/a.png": "masks/a.png", "images/b.png": "masks/b.png"}


def pair_files() -> dict[str, bytes]:
    return {name: pictures()["PNG RGB"] for name in PAIRS} | {name: pictures()["PNG L"] for name in PAIRS.values()}


def tables(random: Random, root: Path) -> None:
    rows = [{"image": image, "mask": mask, "split": "train"} for image, mask in PAIRS.items()]
    kind = random.choice(("csv", "tsv", "jsonl"))
    if kind == "jsonl":
        lines = [damaged_json(random, row) if random.random() < 0.6 else json.dumps(row) for row in rows]
        text = "\n".join(lines)
    else:
        mark = {"csv": ",", "tsv": "\t"}[kind]
        cells = [list(rows[0]), *(list(row.values()) for row in rows)]
        if random.random() < 0.6:
            cells[random.randrange(3)][random.randrange(3)] = random.choice(TEXTS)
        text = "\n".join(mark.join(row) for row in cells)
    content = damaged_text(random, text) if random.random() < 0.5 else text
    folder(root, pair_files() | {f"metadata.{kind}": content})
    read(root)


def lists_of_images(random: Random, root: Path) -> None:
    pairs = {f"JPEGImages/{name}.png": pictures()["PNG RGB"] for name in "abc"}
    pairs |= {f"SegmentationClass/{name}.png": pictures()["PNG P"] for name in "abc"}
    lists = {"train": "a\nb\n", "val": "c\n"}
    hit = random.choice(sorted(lists))
    files = {f"ImageSets/Segmentation/{split}.txt": text for split, text in lists.items()}
    files[f"ImageSets/Segmentation/{hit}.txt"] = damaged_text(random, lists[hit])
    folder(root, pairs | files)
    read(root)


def outlined(random: Random, root: Path, files: dict, damaged: dict) -> None:
    """files: name → content of those that stay; damaged: those of which one is damaged, JSON where it is no text."""
    hit = random.choice(sorted(damaged))
    for name, content in damaged.items():
        text = content if isinstance(content, str) else json.dumps(content)
        if name == hit and (isinstance(content, str) or random.random() < 0.2):
            text = damaged_text(random, text)
        elif name == hit:
            text = damaged_json(random, content)
        files = files | {name: text}
    folder(root, files)
    read(root)


def coco(random: Random, root: Path) -> None:
    box = [3, 2, 7, 2, 7, 5, 3, 5]
    outlines = (
        [box],
        {"size": [HEIGHT, WIDTH], "counts": [20, 30, HEIGHT * WIDTH - 50]},
        {"size": [HEIGHT, WIDTH], "counts": "d0n0^1"},
        [[value + 1 for value in box], box],
    )
    content = {
        "images": [{"id": i, "file_name": f"{'ab'[i]}.png", "width": WIDTH, "height": HEIGHT} for i in range(2)],
        "categories": [{"id": 1, "name": "car", "supercategory": "thing"}, {"id": 2, "name": "road"}],
        "annotations": [
            {"id": i, "image_id": i % 2, "category_id": 1 + i % 2, "segmentation": outline, "iscrowd": i // 3}
            for i, outline in enumerate(outlines)
        ],
    }
    images = {f"images/{name}.png": pictures()["PNG RGB"] for name in "ab"}
    outlined(random, root, images, {"annotations/instances_train.json": content})


def panoptic(random: Random, root: Path) -> None:
    content = {
        "images": [{"id": 0, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1, "name": "car", "isthing": 1}, {"id": 2, "name": "road", "isthing": 0}],
        "annotations": [
            {
                "image_id": 0,
                "file_name": "a.png",
                "segments_info": [{"id": 1, "category_id": 1}, {"id": 65793, "category_id": 2}],
            }
        ],
    }
    picture = damaged_picture(random) if random.random() < 0.3 else pictures()["PNG RGB"]
    files = {"images/a.png": pictures()["PNG RGB"], "panoptic_train/a.png": picture}
    outlined(random, root, files, {"panoptic_train.json": content})


def labelme(random: Random, root: Path) -> None:
    bitmap = base64.b64encode(pictures()["PNG 1"]).decode()
    shapes = [
        {"label": "car", "points": [[3, 2], [7, 2], [7, 5]], "shape_type": "polygon", "group_id": None},
        {"label": "road", "points": [[1, 1], [9, 6]], "shape_type": "rectangle", "group_id": 1},
        {"label": "road", "points": [[4, 4], [6, 4]], "shape_type": "circle"},
        {"label": "car", "points": [[2, 2], [4, 4]], "shape_type": "mask", "mask": bitmap},
    ]
    content = {"imagePath": "a.png", "imageWidth": WIDTH, "imageHeight": HEIGHT, "shapes": shapes, "imageData": None}
    files = {f"{name}.png": pictures()["PNG RGB"] for name in "ab"}
    damaged = {"a.json": content, "b.json": content | {"imagePath": "b.png"}}
    if random.random() < 0.3:
        damaged["labels.txt"] = "__ignore__\n_background_\ncar\nroad\n"
    outlined(random, root, files, damaged)


def yolo(random: Random, root: Path) -> None:
    images = {f"images/train/{name}.png": pictures()["PNG RGB"] for name in "ab"}
    damaged = {
        "data.yaml": "path: .\ntrain: images/train\nval: images/train\nnc: 2\nnames:\n  0: car\n  1: road\n",
        "labels/train/a.txt": "0 0.2 0.2 0.6 0.2 0.6 0.7\n1 0.5 0.5 0.9 0.5 0.9 0.9 0.5 0.9\n",
    }
    if random.random() < 0.3:
        damaged["classes.txt"] = "car\nroad\n"
        del damaged["data.yaml"]
    outlined(random, root, images, damaged)


def supervisely(random: Random, root: Path) -> None:
    packed = base64.b64encode(zlib.compress(pictures()["PNG 1"])).decode()
    content = {
        "size": {"width": WIDTH, "height": HEIGHT},
        "tags": [{"name": "train"}],
        "objects": [
            {
                "classTitle": "car",
                "geometryType": "polygon",
                "points": {"exterior": [[1, 1], [8, 1], [8, 6]], "interior": []},
            },
            {"classTitle": "road", "geometryType": "rectangle", "points": {"exterior": [[2, 2], [9, 5]]}},
            {"classTitle": "road", "geometryType": "bitmap", "bitmap": {"origin": [1, 1], "data": packed}},
        ],
    }
    meta = {"classes": [{"title": "car", "shape": "polygon"}, {"title": "road", "shape": "any"}], "tags": []}
    images = {"set/img/a.png": pictures()["PNG RGB"]}
    outlined(random, root, images, {"meta.json": meta, "set/ann/a.png.json": content})


def label_studio(random: Random, root: Path) -> None:
    brush = damaged_picture(random) if random.random() < 0.3 else pictures()["PNG L"]
    files = {"a.png": pictures()["PNG RGB"], "task-1-annotation-1-by-1-tag-road-0.png": brush}
    content = [{"id": 1, "data": {"image": "/data/upload/1/12345678-a.png"}, "annotations": []}]
    outlined(random, root, files, {"project.json": content})


def run_lengths(random: Random, root: Path) -> None:
    """`decode_rle` raises ValueError, which `data.outlines` names."""
    counts = random.choice(("d0n0^1", "_9d1800000eb0", [20, 30, 46], random.choice(VALUES)))
    if random.random() < 0.2:
        pass
    elif isinstance(counts, str):
        counts = damaged_bytes(random, counts.encode(errors="surrogatepass")).decode("latin-1")
    elif isinstance(counts, list) and counts:
        counts[random.randrange(len(counts))] = random.choice(VALUES)
    try:
        assert decode_rle(counts, (HEIGHT, WIDTH)).shape == (HEIGHT, WIDTH)
        OUTCOMES["data"] += 1
    except (ValueError, TypeError):
        OUTCOMES["refused"] += 1


def parquet_files(random: Random, root: Path) -> None:
    """Through `datasets`: pictures in columns of any kind, in files of any bytes."""
    whole = pictures()["PNG RGB"], pictures()["PNG L"]
    image, mask = (damaged_picture(random) if random.random() < 0.3 else content for content in whole)
    columns = {
        "image": [{"bytes": image, "path": random.choice((None, "a.png", random.choice(TEXTS)))}],
        "label": [{"bytes": random.choice((mask, mask, mask, None, b"")), "path": None}],
    }
    if random.random() < 0.2:
        columns[random.choice(("image", "label", "x"))] = [random.choice(("a", 1, 2.5, None, [1], {"bytes": b""}))]
    file = root / f"data{random.randrange(1 << 30)}.parquet"
    try:
        table = pa.table(columns)
    except (pa.ArrowException, UnicodeEncodeError):
        return
    pq.write_table(table, file)
    if random.random() < 0.4:
        file.write_bytes(damaged_bytes(random, file.read_bytes()))

    def load_file():
        data = load_data(DatasetArguments(dataset_name=str(file)), cache_dir=str(root / "cache"))
        return find_classes(data, ClassArguments(), root / "prepared")

    told(load_file)


KINDS = [
    *(images, masks, images_as_masks, arrays, class_lists, label_maps, yaml_configs, tables, lists_of_images, coco),
    *(panoptic, labelme, yolo, supervisely, label_studio, run_lengths, parquet_files),
]


def attempt(kind, examples: int, root: Path) -> None:
    """Draws so many files of a kind and reads each of them."""

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=True))
    def read_one(random):
        with bounded():
            kind(random, root)

    logging.disable(logging.CRITICAL)  # a hundred thousand lines, none of which is looked at
    OUTCOMES.clear()
    try:
        read_one()
    finally:
        logging.disable(logging.NOTSET)
    assert OUTCOMES["data"] and OUTCOMES["refused"], OUTCOMES


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_anything_is_data_or_an_error_that_says_so(kind, tmp_path):
    attempt(kind, 40, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_anything_at_length(kind, tmp_path):
    attempt(kind, 1500, tmp_path)
