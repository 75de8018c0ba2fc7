"""Every mask mode is read, every unusable file is named with its cause, and nothing is computed twice."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from factories.datasets import load, save_pair
from PIL import Image

from checks.judge import prepare_dataset
from cli_utils import UserError
from data import classes, image_files, preparation
from data.arguments import ClassArguments, DatasetArguments
from data.classes import ClassMap
from data_utils import find_classes, load_data, load_segmentation_dataset

THREE = ClassMap({0: "sky", 1: "tree", 2: "road"})
REDUCED = ClassMap({0: "sky", 1: "tree"}, do_reduce_labels=True)
# What a few images of each hold, the usual ones more often.
ADE20K_VALUES = (0, *[1, 2, 3, 5] * 8, 7, 12, 13, 21, 44, 84, 88, 137)
CITYSCAPES_VALUES = (255, *[0, 2, 8, 13] * 5, 1, 5, 7, 10, 11, 18)
IDS = np.array([[0, 1, 2, 2], [1, 1, 0, 255]], np.uint8)


def prepare(root, class_map=THREE, **options):
    return prepare_dataset(load_segmentation_dataset(dataset_dir=root), class_map, **options)


def train_mask(root, index=1, suffix=".png"):
    return root / "train" / "masks" / f"train_{index}{suffix}"


def test_result(make_dataset):
    root = make_dataset(values=(0, 1, 2, 255))
    train = prepare(root)["train"]
    assert train.column_names == ["image", "name", "label", "height", "width", "class_pixels", "image_dtype", "bands"]
    row = train[1]
    assert row["name"] == "train_1" and (row["height"], row["width"]) == (8, 12)
    assert row["class_pixels"] == [24, 24, 24]
    assert row["label"].mode == "L" and row["image"].mode == "RGB"
    raw = np.asarray(Image.open(train_mask(root)))
    np.testing.assert_array_equal(np.asarray(row["label"]), raw)
    stored = train.cast_column("image", datasets.Image(decode=False))[1]["image"]
    assert stored == {"bytes": None, "path": str(root / "train" / "images" / "train_1.jpg")}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
@pytest.mark.parametrize(("low", "high"), [(0, 150), (-3, 20), (60_000, 70_000), (5, 6)])
def test_values_are_counted(dtype, low, high):
    ids = np.random.default_rng(0).integers(low, high, (40, 30)).astype(dtype)
    values, counts = np.unique(ids, return_counts=True)
    assert preparation.count_values(ids) == dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_labels_are_reduced_once(make_dataset):
    root = make_dataset(values=(0, 1, 2, 255))
    row = prepare(root, REDUCED)["train"][0]
    raw = np.asarray(Image.open(train_mask(root, 0)))
    np.testing.assert_array_equal(np.asarray(row["label"]), np.choose(np.minimum(raw, 3), [255, 0, 1, 255]))
    assert row["class_pixels"] == [24, 24]


def palette_image(ids):
    image = Image.fromarray(ids).convert("P")
    image = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
    image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200] + [7] * (256 * 3 - 9))
    return image


@pytest.mark.parametrize(
    ("mask", "suffix", "expected"),
    [
        (Image.fromarray(IDS), ".png", IDS),
        (palette_image(IDS), ".png", IDS),
        (Image.fromarray(IDS.astype(np.uint16)), ".png", IDS),
        (Image.fromarray(IDS.astype(np.uint16)), ".tif", IDS),
        (Image.fromarray(IDS.astype(np.int32)), ".tiff", IDS),
        (Image.fromarray(IDS == 1), ".png", IDS == 1),
        (Image.fromarray(IDS == 1), ".bmp", IDS == 1),
        (Image.fromarray(np.stack([IDS] * 3, axis=-1)), ".png", IDS),
        (Image.fromarray(np.stack([*[IDS] * 3, np.full_like(IDS, 255)], axis=-1)), ".png", IDS),
        (Image.fromarray(np.stack([IDS, np.full_like(IDS, 255)], axis=-1)), ".png", IDS),
    ],
    ids=["L", "P", "16-bit", "16-bit tif", "32-bit", "1-bit", "1-bit bmp", "RGB", "RGBA", "LA"],
)
def test_mask_modes(tmp_path, mask, suffix, expected, caplog):
    caplog.set_level(logging.INFO)
    save_pair(tmp_path / "images" / "x.jpg", tmp_path / "masks" / f"x{suffix}", IDS)
    mask.save(tmp_path / "masks" / f"x{suffix}")
    row = prepare(tmp_path)["train"][0]
    np.testing.assert_array_equal(np.asarray(row["label"]), expected)
    assert ("1 mask was read from one of several equal channels" in caplog.text) == (
        mask.mode in ("RGB", "RGBA", "LA")
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_exif_orientation(tmp_path, orientation, suffix, caplog):
    """A mask drawn on the upright picture, and one drawn on the picture as stored."""
    stored = np.zeros((8, 24), np.uint8)
    stored[:3, :9] = 1
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).T,
        8: np.rot90(stored),
    }[orientation]
    exif = Image.Exif()
    exif[image_files.EXIF_ORIENTATION] = orientation
    picture = Image.fromarray(np.stack([stored * 200] * 3, axis=-1))
    masks = {"drawn_upright": upright, "drawn_as_stored": stored}
    if suffix == ".tif":
        del masks["drawn_as_stored"]  # Pillow turns TIFF files itself, so nobody sees them as they are stored
    for name, mask in masks.items():
        save_pair(
            tmp_path / "images" / f"{name}{suffix}", tmp_path / "masks" / f"{name}.png", np.ascontiguousarray(mask)
        )
        picture.save(tmp_path / "images" / f"{name}{suffix}", exif=exif)
    train = prepare(tmp_path)["train"]
    # Where the size does not change, nothing tells the two kinds apart; masks are taken as drawn upright.
    sizes_tell = orientation >= 5
    for row in train:
        assert (row["height"], row["width"]) == upright.shape
        if sizes_tell or row["name"] == "drawn_upright":
            np.testing.assert_array_equal(np.asarray(row["label"]), upright)
            assert ((np.asarray(row["image"])[..., 0] > 100) == upright).mean() > 0.95
    assert ("1 of 2 masks was turned like the image" in caplog.text) == (sizes_tell and suffix != ".tif")


def test_a_mask_with_a_stale_orientation(tmp_path, caplog):
    ids = np.zeros((8, 24), np.uint8)
    ids[:3, :9] = 1
    save_pair(tmp_path / "images" / "x.png", tmp_path / "masks" / "x.png", ids)
    exif = Image.Exif()
    exif[image_files.EXIF_ORIENTATION] = 6
    Image.fromarray(ids).save(tmp_path / "masks" / "x.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(prepare(tmp_path)["train"][0]["label"]), ids)
    assert "1 mask was not turned, against the EXIF orientation" in caplog.text


def overwrite_mask(array, suffix=".png"):
    def fault(root):
        train_mask(root).unlink()
        Image.fromarray(np.asarray(array)).save(train_mask(root, suffix=suffix))

    return fault


def cut_off(kind):
    def fault(root):
        [path] = (root / "train" / kind).glob("train_1.*")
        path.write_bytes(path.read_bytes()[:-40])

    return fault


def empty_image(root):
    (root / "train" / "images" / "train_1.jpg").write_bytes(b"")


def text_mask(root):
    train_mask(root).write_text("no image")


def deep_image(root):
    (root / "train" / "images" / "train_1.jpg").unlink()
    Image.fromarray(np.full((8, 12), 3000, np.uint16)).save(root / "train" / "images" / "train_1.png")


def every_mask(values, suffix=".png"):
    def fault(root):
        for path in list(root.glob("*/masks/*")):
            path.unlink()
            Image.fromarray(np.resize(np.array(values), (8, 12)).astype(np.uint8)).save(path.with_suffix(suffix))

    return fault


COLORS = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
TRANSPARENT = np.dstack([np.zeros((8, 12, 3), np.uint8), COLORS[..., 0]])


@pytest.mark.parametrize(
    ("fault", "class_map", "parts"),
    [
        (empty_image, THREE, ["1 file is empty (0 bytes): train/train_1.jpg (no image"]),
        (text_mask, THREE, ["1 file cannot be read: train/train_1.png (no image, or of an unknown format)"]),
        (cut_off("images"), THREE, ["1 file ends too early: train/train_1.jpg", "truncated"]),
        (cut_off("masks"), THREE, ["1 file cannot be read: train/train_1.png"]),
        (
            deep_image,
            THREE,
            ["1 image has more than 8 bits a channel: train/train_1.png (1 band of uint16, --num_channels is 3)"],
        ),
        (overwrite_mask(np.zeros((8, 11), np.uint8)), THREE, ["1 mask differs", "train_1.png is 11x8, its image"]),
        (overwrite_mask(np.zeros((12, 8), np.uint8)), THREE, ["mask lies sideways", "train_1.png is 8x12, its"]),
        (overwrite_mask(COLORS), THREE,
         ["colours instead", "train_1.png (mode RGB, 96 colours: 0 42 138,", "--id2label"]),
        (overwrite_mask(TRANSPARENT), THREE, ["colours instead", "train_1.png (mode RGBA, 1 colour: 0 0 0)"]),
        (overwrite_mask(np.full((8, 12), 0.5, np.float32), ".tif"), THREE, ["holds fractions", "train_1.tif (0.5)"]),
        # Values beyond the class list, and why.
        (every_mask([1, 2, 3]), THREE, ["all 4 masks hold values that belong to no class", "train_0 has 3",
                                        "0 to 2 are classes", "count from 1: --do_reduce_labels"]),
        (every_mask([0, 1, 2, 3]), THREE, ["train_0 has 3", "--do_reduce_labels", "--ignore_values 3"]),
        (every_mask([0, 1, 2, 3]), REDUCED, ["train_0 has 3", "1 to 2 are classes", "--id2label"]),
        (overwrite_mask(np.full((8, 12), 7, np.uint8)), THREE, ["1 of 4", "train_1 has 7", "--ignore_values 7"]),
        (every_mask([7, 24, 25]), ClassMap({0: "a", 1: "b"}, raw_to_id={24: 0, 7: 1}),
         ["train_0 has 25", "7, 24 are classes", "--ignore_values 25 if 25 stands for void"]),
        (overwrite_mask(np.full((8, 12), 65535, np.uint16)), THREE, ["train_1 has 65535", "_values 65535"]),
        (overwrite_mask(np.full((8, 12), 256, np.uint16)), REDUCED, ["train_1 has 256"]),
        (overwrite_mask(np.resize(np.arange(90, dtype=np.uint8), (8, 12))), THREE,
         ["train_1 has 3, 4, 5, 6, 7 and 82 more", "give the list of these classes with --id2label"]),
        (overwrite_mask(COLORS[..., 0], ".jpg"), THREE, ["1 of 4 masks has lossy", "train/train_1 has", "PNG"]),
        (every_mask([0, 255]), THREE, ["all masks hold the values 0 and 255 alone", "writes them with 0 and 1"]),
        (every_mask([0, 255]), REDUCED, ["all masks hold the values 0 and 255 alone", "writes them with 0 and 1"]),
        (every_mask([255]), THREE, ["train: every pixel of all 2 masks is ignored", "train_0", "--ignore_values"]),
        (every_mask([0]), REDUCED, ["train: every pixel of all 2 masks is ignored", "--do_reduce_labels"]),
    ],
)  # fmt: skip
def test_bad_files_are_named_with_their_cause(make_dataset, fault, class_map, parts):
    root = make_dataset(values=(0, 1, 2))
    fault(root)
    with pytest.raises(UserError) as caught:
        prepare(root, class_map)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message


def test_all_problems_of_all_splits_are_told_together(make_dataset):
    root = make_dataset(count=6)
    for i in range(5):
        overwrite_mask(np.full((8, 12), 9, np.uint8))(root) if i == 1 else None
        (root / "val" / "images" / f"val_{i}.jpg").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        prepare(root)
    first, second = str(caught.value).splitlines()
    assert first.startswith("[file-empty] 5 files are empty (0 bytes): validation/val_0.jpg") and "and 2 more" in first
    assert second.startswith(
        "  [mask-values-unknown] 1 of 7 masks holds values that belong to no class (train/train_1"
    )


def test_odd_but_valid_is_logged(make_dataset, caplog):
    root = make_dataset(values=(0, 1))
    overwrite_mask(np.full((8, 12), 255, np.uint8))(root)
    prepare(root)
    assert "1 of 4 masks is ignored entirely: train/train_1" in caplog.text
    assert "1 of 3 classes never occurs: road" in caplog.text
    caplog.clear()
    prepare(make_dataset(folder="shifted"), ClassMap(THREE.id2label, do_reduce_labels=True))
    assert "value 3 never occurs, all below it do: --no_do_reduce_labels if 0 is a class" in caplog.text


def calls(monkeypatch):
    """Counts the examples that are computed rather than read."""
    counted = []
    original = preparation.prepare_example
    monkeypatch.setattr(
        preparation, "prepare_example", lambda *args, **kwargs: (counted.append(1), original(*args, **kwargs))[1]
    )
    preparation.prepare_example.__name__ = original.__name__
    return counted


def test_a_second_run_computes_nothing(make_dataset, tmp_path, monkeypatch):
    root, cache = make_dataset(), tmp_path / "cache"
    counted = calls(monkeypatch)
    first = prepare(root, cache_dir=cache)
    assert len(counted) == 4
    second = prepare(root, cache_dir=cache)
    assert len(counted) == 4
    assert [row["class_pixels"] for row in first["train"]] == [row["class_pixels"] for row in second["train"]]
    # And so does another process.
    script = (
        "import sys; sys.path[:0] = ['.', 'tests', 'tests/data']; from pathlib import Path\n"
        "from test_preparation import *\n"
        "patch = pytest.MonkeyPatch(); counted = calls(patch)\n"
        f"prepare(Path({str(root)!r}), cache_dir={str(cache)!r}); print('computed', len(counted))"
    )
    repository = Path(preparation.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=repository)
    assert "computed 0" in done.stdout, done.stderr


def touch(root):
    status = train_mask(root).stat()
    os.utime(train_mask(root), ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("change", ["mask", "image", "options", "code", "library", "fewer"])
def test_what_changed_is_computed_anew(make_dataset, tmp_path, monkeypatch, change):
    root, cache = make_dataset(), tmp_path / "cache"
    counted = calls(monkeypatch)
    prepare(root, cache_dir=cache)
    class_map, expected = THREE, 4
    if change == "mask":
        touch(root)
        expected += 2  # the other split is as it was
    elif change == "image":
        (root / "train" / "images" / "train_0.jpg").write_bytes((root / "train/images/train_1.jpg").read_bytes())
        expected += 2
    elif change == "options":
        class_map, expected = ClassMap(THREE.id2label, ignore_values=(1,)), 8
    elif change == "code":
        monkeypatch.setattr(preparation, "PREPARATION_VERSION", preparation.PREPARATION_VERSION + 1)
        expected = 8
    elif change == "library":
        monkeypatch.setattr(preparation.PIL, "__version__", "99.0")
        expected = 8
    elif change == "fewer":
        train_mask(root).unlink()
        expected += 1
    prepare(root, class_map, cache_dir=cache)
    assert len(counted) == expected


@pytest.mark.parametrize("damage", ["cut", "noise", "rows"])
def test_a_damaged_cache_is_made_anew(make_dataset, tmp_path, monkeypatch, damage, caplog):
    root, cache = make_dataset(), tmp_path / "cache"
    before = prepare(root, cache_dir=cache)["train"][0]["class_pixels"]
    counted = calls(monkeypatch)
    for file in cache.glob("*.arrow"):
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:-700])
        elif damage == "noise":
            file.write_bytes(b"noise")
        else:
            datasets.Dataset.from_file(str(file)).take(1).map(cache_file_name=str(tmp_path / "one.arrow"))
            (tmp_path / "one.arrow").rename(file)
    assert prepare(root, cache_dir=cache)["train"][0]["class_pixels"] == before
    assert len(counted) == 4
    assert "is damaged" in caplog.text
    assert prepare(root, cache_dir=cache)["train"].num_rows == 2 and len(counted) == 4


def test_an_interrupted_run_leaves_no_cache(make_dataset, tmp_path, monkeypatch):
    root, cache = make_dataset(), tmp_path / "cache"

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "prepare_example", interrupted)
        interrupted.__name__ = "prepare_example"
        with pytest.raises(KeyboardInterrupt):
            prepare(root, cache_dir=cache)
    counted = calls(monkeypatch)
    prepare(root, cache_dir=cache)
    assert len(counted) == 4


def test_several_processes_give_the_same(make_dataset, tmp_path):
    root = make_dataset(count=5)
    alone, together = (prepare(root, cache_dir=tmp_path / str(n), num_proc=n)["train"] for n in (1, 2))
    assert alone["name"][:] == together["name"][:] and alone["class_pixels"][:] == together["class_pixels"][:]
    assert [np.asarray(a).tolist() for a in alone["label"]] == [np.asarray(b).tolist() for b in together["label"]]


def test_problems_come_from_the_cache_too(make_dataset, tmp_path, monkeypatch):
    """With several processes the main one computes and all others must fail alike."""
    root = make_dataset()
    text_mask(root)
    counted = calls(monkeypatch)
    for _ in range(2):
        with pytest.raises(UserError, match="cannot be read: train/train_1.png"):
            prepare(root, cache_dir=tmp_path / "cache")
    assert len(counted) == 4


def encoded(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_embedded_images(tmp_path, monkeypatch):
    """Hub data: bytes in Arrow files. Selecting rows must not mix up what belongs to whom."""
    rng = np.random.default_rng(0)
    images = [encoded(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)) for _ in range(10)]
    masks = [np.full((8, 12), i % 3, np.uint8) for i in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": images, "label": list(map(encoded, masks))}, features=features)
    rows.to_parquet(tmp_path / "data.parquet")
    options = {"dataset_name": str(tmp_path / "data.parquet"), "train_val_split": 0.3}
    counted = calls(monkeypatch)
    for expected in (10, 10):
        dataset = prepare_dataset(load_segmentation_dataset(**options), THREE, cache_dir=tmp_path / "cache")
        assert len(counted) == expected
        for row in [*dataset["train"], *dataset["validation"]]:
            index = int(row["name"].removeprefix("train_"))
            assert np.asarray(row["label"]).tolist() == masks[index].tolist()
            assert row["image"].tobytes() == Image.open(io.BytesIO(images[index]["bytes"])).tobytes()
    prepare_dataset(load_segmentation_dataset(**options, seed=1), THREE, cache_dir=tmp_path / "cache")
    assert len(counted) == 20


def test_missing_rows_are_named(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    rows = {
        "image": [encoded(np.zeros((4, 4, 3), np.uint8))] * 2,
        "label": [encoded(np.zeros((4, 4), np.uint8)), None],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data.parquet")
    dataset = load_segmentation_dataset(dataset_name=str(tmp_path / "data.parquet"))
    with pytest.raises(UserError, match=r"1 file cannot be read: train/train_000001 \(the image or the mask"):
        prepare_dataset(dataset, THREE)


# ---- masks in colours ----

COLORED = ClassMap({0: "sky", 1: "tree", 2: "road"}, [[128, 128, 128], [0, 100, 0], [128, 64, 128]])


def color_masks(root, colors=COLORED.palette, suffix=".png"):
    """Every mask of values 0 … as RGB."""
    for path in list(root.glob("*/masks/*")):
        colored = Image.fromarray(np.array(colors, np.uint8)[np.asarray(Image.open(path))])
        path.unlink()
        colored.save(path.with_suffix(suffix))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("class_dict.csv", "name,r,g,b\nsky,128,128,128\ntree,0,100,0\nroad,128,64,128\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nsky:128,128,128::\ntree:0,100,0::\nroad:128,64,128::\n"),
    ],
)
def test_masks_in_colors(make_dataset, file, content, caplog):
    """From CamVid's and CVAT's lists of classes to training ids."""
    caplog.set_level(logging.INFO)
    root = make_dataset(values=(0, 1, 2))
    color_masks(root)
    overwrite_mask(np.full((8, 12, 3), 128, np.uint8))(root)  # grey, but a colour of the list
    (root / file).write_text(content)
    train = prepare(root, resolve(root))["train"]
    assert [row["class_pixels"] for row in train] == [[32, 32, 32], [96, 0, 0]]
    np.testing.assert_array_equal(np.asarray(train[0]["label"]), np.resize([0, 1, 2], (8, 12)))
    assert "all 4 masks were read by the colours of the classes" in caplog.text


def test_a_dropped_class_takes_its_color_along(make_dataset):
    root = make_dataset(values=(0, 1, 2))
    color_masks(root)
    row = prepare(root, classes.edit_classes(COLORED, drop=["tree"]))["train"][0]
    np.testing.assert_array_equal(np.asarray(row["label"]), np.resize([0, 255, 1], (8, 12)))


def void_pixel(root):
    color_masks(root)
    mask = np.array(Image.open(train_mask(root)))
    mask[0, :2] = [3, 0, 4]
    mask[1, 1] = [9, 9, 9]
    overwrite_mask(mask)(root)


def resized(root):
    color_masks(root)
    save_pair(root / "train" / "images" / "train_1.jpg", train_mask(root), np.zeros((64, 64), np.uint8))
    blocks = np.array(COLORED.palette, np.uint8)[[[0, 1], [2, 0]]]
    overwrite_mask(Image.fromarray(blocks).resize((16, 16), 0).resize((64, 64), Image.Resampling.BICUBIC))(root)


TWICE = ClassMap(COLORED.id2label, [[128, 128, 128], [0, 100, 0], [128, 128, 128]])


@pytest.mark.parametrize(
    ("fault", "class_map", "parts"),
    [
        (void_pixel, COLORED, ["1 mask holds colours that belong to no class", "train_1.png has 2 such colours, "
                               "mostly 3 0 4 on 2.1% of it (nearest: tree 0 100 0, 100 away)", "--drop_classes NAME"]),
        (color_masks, THREE, ["4 masks hold colours", "train_0.png (mode RGB, 3 colours: 0 100 0", "--id2label FILE"]),
        (color_masks, TWICE, ["128 128 128 for both annotation value 0 (sky) and annotation value 2 (road)"]),
        (lambda root: color_masks(root, suffix=".jpg"), COLORED, ["4 masks hold many colours that belong to no class",
                                                                  "train_0.jpg has", "nearest neighbour"]),
        (lambda root: color_masks(root, suffix=".webp"), COLORED, ["4 masks hold many colours", "train_0.webp has"]),
        (resized, COLORED, ["1 mask holds many colours that belong to no class", "train_1.png has", "interpolation"]),
        # An image of background alone, if black is the background that the list of classes lacks.
        (lambda root: [color_masks(root), overwrite_mask(np.zeros((8, 12, 3), np.uint8))(root)], COLORED,
         ["3 masks were read by the colours of the classes (train/train_0", "but 1 was read from one of several equal "
          "channels (train/train_1)", "--id2label"]),
    ],
)  # fmt: skip
def test_bad_colors_are_named_with_their_cause(make_dataset, fault, class_map, parts):
    test_bad_files_are_named_with_their_cause(make_dataset, fault, class_map, parts)


def test_colors_without_a_list_of_classes(make_dataset):
    root = make_dataset(values=(0, 1, 2))
    color_masks(root)
    with pytest.raises(UserError) as caught:
        resolve(root)
    colors = "3 colours: 0 100 0, 128 64 128, 128 128 128"
    assert "[mask-colors] 4 masks hold colours instead of class ids: train/train_0" in str(caught.value)
    assert f"train_0.png (mode RGB, {colors}), " in str(caught.value)
    assert "give the list of classes with their colours: --id2label FILE" in str(caught.value)
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    overwrite_mask(noise)(root)
    with pytest.raises(UserError, match=r"train_1.png \(2,400 colours\): are images and masks swapped\?"):
        resolve(root)


# ---- file formats ----


@pytest.mark.parametrize("image_suffix", [".tif", ".webp", ".bmp", ".jpeg"])
@pytest.mark.parametrize("mask_suffix", [".tif", ".webp", ".bmp", ".gif"])
def test_file_formats(tmp_path, image_suffix, mask_suffix, caplog):
    ids = np.minimum(IDS, 2)  # as programs close the gaps in GIFs
    save_pair(tmp_path / "images" / f"x{image_suffix}", tmp_path / "masks" / "x.png", ids)
    Image.open(tmp_path / "masks" / "x.png").save(tmp_path / "masks" / f"x{mask_suffix}", lossless=True)
    (tmp_path / "masks" / "x.png").unlink()
    row = prepare(tmp_path)["train"][0]
    np.testing.assert_array_equal(np.asarray(row["label"]), ids)
    assert row["image"].mode == "RGB" and row["image"].size == (4, 2)
    assert "compression" not in caplog.text


def test_lossy_webp_masks_are_told(tmp_path):
    ids = np.zeros((32, 32), np.uint8)
    ids[8:24, 8:24] = 2
    save_pair(tmp_path / "images" / "x.png", tmp_path / "masks" / "x.webp", 100 * ids)
    with pytest.raises(UserError, match=r"1 mask has lossy compression.*train/x has"):
        prepare(tmp_path)


def test_lossy_masks_whose_values_are_classes_are_told(make_dataset, caplog):
    root = make_dataset()
    overwrite_mask(np.ones((8, 12), np.uint8), ".jpg")(root)
    prepare(root)
    assert "[mask-lossy] 1 of 4 masks has lossy compression" in caplog.text


def test_multi_band_images(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    save_pair(tmp_path / "images" / "x.tif", tmp_path / "masks" / "x.png", IDS)
    bands = np.arange(5 * 2 * 4, dtype=np.uint8).reshape(5, 2, 4)
    tifffile.imwrite(tmp_path / "images" / "x.tif", bands, photometric="minisblack", planarconfig="separate")
    dataset = load_segmentation_dataset(dataset_dir=tmp_path)
    row = prepare_dataset(dataset, THREE, num_channels=5)["train"].remove_columns("image")[0]
    assert (row["height"], row["width"], row["class_pixels"]) == (2, 4, [2, 3, 2])
    with pytest.raises(UserError, match=r"1 file cannot be read: train/x.tif \(5 bands, --num_channels is 4"):
        prepare_dataset(dataset, THREE, num_channels=4)
    save_pair(tmp_path / "images" / "x.tif", tmp_path / "masks" / "x.png", IDS.T.copy())
    tifffile.imwrite(tmp_path / "images" / "x.tif", bands, photometric="minisblack", planarconfig="separate")
    with pytest.raises(UserError, match="x.png is 2x4, its image 4x2"):
        prepare_dataset(load_segmentation_dataset(dataset_dir=tmp_path), THREE, num_channels=5)


# ---- class lists from the data ----


def resolve(root, **options):
    return load(root, **options)[1]


def test_classes_from_the_masks(make_dataset, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    class_map = resolve(make_dataset(values=(0, 2, 5, 255)), ignore_values=[5])
    assert class_map.id2label == {0: "class_0", 1: "class_2"} and class_map.raw_to_id == {0: 0, 2: 1}
    assert class_map.ignore_values == (5,)
    assert "named after the values in the masks (0, 2)" in caplog.text
    class_map = resolve(make_dataset(values=(0, 1, 3), folder="reduced"), do_reduce_labels=True)
    assert class_map.id2label == {0: "class_1", 1: "class_3"}
    binary = resolve(make_dataset(values=(0, 255), folder="binary"))
    assert (binary.id2label, binary.raw_values) == ({0: "class_0", 1: "class_255"}, [0, 255])
    with pytest.raises(UserError, match="no mask holds a value that stands for a class"):
        resolve(make_dataset(values=(255,), folder="void"))
    root = make_dataset(folder="deep")
    overwrite_mask(np.full((8, 12), 1000, np.uint16))(root)
    with pytest.raises(UserError, match="hold the values 0, 1, 2, 1000; class ids are 0 to 254.*--ignore_values"):
        resolve(root)


def test_order_of_class_lists_and_default_of_reduction(make_dataset, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    ade = make_dataset("ADE20K", values=ADE20K_VALUES)
    class_map = resolve(ade)
    assert (class_map.num_labels, class_map.do_reduce_labels) == (150, True)
    assert class_map.id2label[0] == "wall" and class_map.palette[0] == [120, 120, 120]
    assert "label reduction (raw 0 ignored, others down by one): on, default for ADE20K" in caplog.text
    reduced = make_dataset("ADE20K", values=[value - 1 for value in ADE20K_VALUES[1:]], folder="reduced")
    class_map = resolve(reduced, do_reduce_labels=False)
    assert (class_map.id2label[0], class_map.do_reduce_labels) == ("wall", False)
    cityscapes = resolve(make_dataset("Cityscapes", values=CITYSCAPES_VALUES, folder="city"))
    assert (cityscapes.id2label[18], cityscapes.do_reduce_labels) == ("bicycle", False)
    saved = tmp_path / "zhoubolei/scene_parse_150"
    load(ade)[0].splits.save_to_disk(saved)
    hub = find_classes(load_data(DatasetArguments(dataset_name=str(saved))), ClassArguments())
    assert (hub.num_labels, hub.do_reduce_labels) == (150, True)
    saved.rename(tmp_path / "else")
    other = load_data(DatasetArguments(dataset_name=str(tmp_path / "else")))
    assert find_classes(other, ClassArguments()).do_reduce_labels is False
    (ade / "classes.json").write_text(json.dumps("x"))
    with pytest.raises(UserError, match="classes.json is neither"):
        resolve(ade)
    (ade / "classes.json").write_text(json.dumps({"0": "own", "1": "classes"}))
    assert resolve(ade).id2label == {0: "own", 1: "classes"}
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"0": "given"}))
    assert resolve(ade, id2label=given).id2label == {0: "given"}
