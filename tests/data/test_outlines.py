"""Outlines become masks: literal pixels, an independent rule for each, and every mistake named with its file."""

import base64
import io
import json
import logging
import zlib

import numpy as np
import pytest
import yaml
from factories.datasets import load
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from checks.judge import prepare_dataset
from cli_utils import UserError
from data import outlines
from data.image_files import EXIF_ORIENTATION
from data.layouts import Tree
from data.outlines import decode_rle, draw_masks, draw_polygon
from data.pairing import find_dataset

WIDTH, HEIGHT = 12, 8
# 3 to 7 and 2 to 5: four pixels wide, three high.
BOX = [3, 2, 7, 2, 7, 5, 3, 5]
BOX_MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
BOX_MASK[2:5, 3:7] = 1


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(outlines.datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "segmentation_masks"


def save_image(path, size=(WIDTH, HEIGHT), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 30)).save(path, **options)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def masks(root):
    """Name → mask, of all splits."""
    pairs = [pair for pairs in find_dataset(root).splits.values() for pair in pairs]
    assert all(pair.image.is_file() for pair in pairs)
    return {pair.name: np.asarray(Image.open(pair.mask)) for pair in pairs}


def refused(root, *parts):
    with pytest.raises(UserError) as caught:
        find_dataset(root)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message


# ---- shapes ----


@settings(max_examples=200, deadline=None)
@given(st.integers(3, 9), st.integers(0, 2**32), st.booleans())
def test_pixels_are_those_with_their_centre_inside(corners, seed, whole):
    """Against counting, for every pixel, the edges to its right; also where the polygon reaches beyond the image."""
    points = np.random.default_rng(seed).uniform(-4, 16, (corners, 2))
    points = points.round() if whole else points
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            crossings = 0
            for (x, y), (other_x, other_y) in zip(points, np.roll(points, -1, axis=0), strict=True):
                if (y <= row + 0.5) != (other_y <= row + 0.5):
                    crossings += x + (row + 0.5 - y) * (other_x - x) / (other_y - y) > column + 0.5
            expected[row, column] = 7 * (crossings % 2)
    mask = np.zeros_like(expected)
    assert draw_polygon(mask, points, 7) == (expected > 0).sum()
    np.testing.assert_array_equal(mask, expected)


def test_neighbours_share_no_pixel():
    left, right = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    draw_polygon(left, np.array([(1, 1), (5.5, 0), (6.5, 8), (1, 7)]), 1)
    draw_polygon(right, np.array([(5.5, 0), (11, 1), (11, 7), (6.5, 8)]), 1)
    both = left + right
    assert both.max() == 1 and (both[1:7, 1:11] == 1).all()


def test_run_lengths():
    """Strings as pycocotools 2.0.11 writes them."""
    hole = np.zeros((5, 7), bool)
    hole[1:4, 2:6] = True
    hole[2, 3] = False
    noise = [
        *([0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0, 1], [0, 1, 0, 0, 1, 1, 1]),
        *([1, 0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0, 0]),
    ]
    large = np.zeros((60, 40), bool)
    large[3:55, 5:30] = True
    for text, expected in (
        (";32NO012004", hole),
        ("3110001020O0N31M11O", noise),
        ("_9d1800000000000000000000000000000000000000000000000eb0", large),
        ("0S1", np.ones((5, 7))),
    ):
        np.testing.assert_array_equal(decode_rle(text, np.shape(expected)), expected)
    np.testing.assert_array_equal(decode_rle([1, 2, 3], (2, 3)), [[False, True, False], [True, False, False]])
    for wrong in ([1, 2], [7, -1], "0S1"):
        with pytest.raises(ValueError, match="for 3x2"):
            decode_rle(wrong, (2, 3))


# ---- COCO ----


def coco(root, path="annotations/instances_train2017.json", folder="train2017", annotations=None, **changes):
    """Two images, the second without annotations; categories 7 and 3."""
    for name in ("a.jpg", "b.jpg"):
        if not (root / folder / name).exists():
            save_image(root / folder / name)
    content = {
        "images": [
            {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in ((11, "a.jpg"), (5, "b.jpg"))
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": annotations or [outline([BOX])],
    }
    write_json(root / path, content | changes)
    return root


def outline(segmentation, category=3, image=11):
    return {"id": 1, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0}


def test_coco(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = coco(tmp_path / "data")
    coco(
        root, "annotations/instances_val2017.json", "val2017", annotations=[outline([[0, 0, 4, 0, 4, 2, 0, 2]], 7, 5)]
    )
    (root / "annotations" / "captions_val2017.json").write_text("{}")
    found = find_dataset(root)
    assert found.layout == "COCO"
    assert {split: [pair.name for pair in pairs] for split, pairs in found.splits.items()} == {
        "train": ["a", "b"],
        "validation": ["a", "b"],
    }
    assert found.images_alone == []
    save_image(root / "train2017" / "c.jpg")
    assert find_dataset(root).images_alone == [root / "train2017" / "c.jpg"]
    train, validation = found.splits["train"], found.splits["validation"]
    assert train[0].image == root / "train2017" / "a.jpg"
    np.testing.assert_array_equal(np.asarray(Image.open(train[0].mask)), BOX_MASK)
    assert not np.asarray(Image.open(train[1].mask)).any()
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:2, :4] = 2
    np.testing.assert_array_equal(np.asarray(Image.open(validation[1].mask)), expected)
    assert "category ids become values of masks: 3 -> 1 cat, 7 -> 2 dog" in caplog.text
    assert "train: 1 image has no annotations and is all background: b" in caplog.text
    assert "masks drawn from outlines: 0 background, 1 cat, 2 dog" in caplog.text


def test_coco_to_training_ids(tmp_path):
    root = coco(tmp_path / "data")
    data, class_map = load(root)
    assert data.class_names == {0: "background", 1: "cat", 2: "dog"}
    assert class_map.id2label == {0: "background", 1: "cat", 2: "dog"}
    assert prepare_dataset(data.splits, class_map)["train"]["class_pixels"] == [[84, 12, 0], [96, 0, 0]]
    class_map = load(root, drop_classes=["background"])[1]
    assert class_map.id2label == {0: "cat", 1: "dog"}
    with pytest.raises(UserError, match=r"cat is the only class in the training masks \(ignored: 0\)"):
        prepare_dataset(data.splits, class_map)


def test_masks_of_other_layouts_have_no_annotated_classes(make_dataset):
    assert load(make_dataset())[0].class_names is None


@pytest.mark.parametrize(
    ("path", "folder", "split"),
    [
        ("train/_annotations.coco.json", "train", "train"),  # Roboflow
        ("valid/_annotations.coco.json", "valid", "validation"),
        ("annotations/instances_default.json", "images", "train"),  # CVAT
        ("annotations/instances_default.json", "images/default", "train"),
        ("annotations.json", "images", "train"),
        ("annotations.json", ".", "train"),
        ("annotations_test.json", "images/test", "test"),
        ("annotations/instances_val2017.json", "images/val2017", "validation"),
    ],
)
def test_where_coco_files_and_images_lie(tmp_path, path, folder, split):
    root = coco(tmp_path / "data", path, folder)
    [(found, pairs)] = find_dataset(root).splits.items()
    assert found == split and [pair.image for pair in pairs] == [root / folder / "a.jpg", root / folder / "b.jpg"]


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ([BOX, [0, 0, 2, 0, 2, 1, 0, 1]], 14),  # two parts
        ({"size": [HEIGHT, WIDTH], "counts": [4, 20, 72]}, 20),
        (
            {"size": [5, 7], "counts": ";32NO012004"},
            "1 annotation is damaged: cat on a.jpg (RLE of 7x5 pixels for 12x8",
        ),
        ({"size": [HEIGHT, WIDTH], "counts": [4, 20]}, "runs of 24 pixels for 12x8"),
        ([[3, 2, 7, 2, 7]], "no COCO annotation file"),
        ([["left", "top"]], "no COCO annotation file"),
        ([[float("nan"), 2, 7, 2, 7, 4]], "cat on a.jpg (a corner that is no number)"),
    ],
)
def test_coco_outlines(tmp_path, segmentation, expected):
    root = coco(tmp_path / "data", annotations=[outline(segmentation)])
    if isinstance(expected, str):
        refused(root, expected)
    else:
        assert (masks(root)["a"] == 1).sum() == expected


INNER = [4, 3, 5, 3, 5, 4, 4, 4]


@pytest.mark.parametrize("order", [1, -1])
def test_smaller_objects_lie_over_larger_ones(tmp_path, order):
    root = coco(tmp_path / "data", annotations=[outline([BOX]), outline([INNER], category=7)][::order])
    expected = BOX_MASK.copy()
    expected[3, 4] = 2
    np.testing.assert_array_equal(masks(root)["a"], expected)


def test_of_one_area_the_later_lies_on_top(tmp_path):
    """The other is hidden entirely, which is said with its image, drawn or cached."""
    root = coco(tmp_path / "data", annotations=[outline([BOX], category=7), outline([BOX])])
    for _ in ("drawn", "cached"):
        np.testing.assert_array_equal(masks(root)["a"], BOX_MASK)
        assert find_dataset(root).hidden == {"train/a": ["dog"]}
    same = coco(tmp_path / "same", annotations=[outline([BOX]), outline([BOX])])
    assert find_dataset(same).hidden == {}  # the class is there


def test_crowds_lie_below(tmp_path, caplog):
    """In COCO they come last in the file, and cover all objects of their kind."""
    everywhere = {"size": [HEIGHT, WIDTH], "counts": [26, 3, 67]}
    crowd = outline(everywhere, category=7) | {"iscrowd": 1}
    root = coco(tmp_path / "data", annotations=[outline([BOX]), crowd])
    np.testing.assert_array_equal(masks(root)["a"], BOX_MASK)
    assert "1 object is hidden entirely by smaller ones drawn over it: dog on train/a" in caplog.text


def test_the_parts_of_an_object_count_together(tmp_path):
    """One part of the larger object is smaller than what lies over the other object."""
    parts = [[0, 0, 12, 0, 12, 2, 0, 2], [3, 2, 4, 2, 4, 3, 3, 3]]
    root = coco(tmp_path / "data", annotations=[outline([BOX]), outline(parts, category=7)])
    expected = BOX_MASK.copy()
    expected[:2] = 2
    np.testing.assert_array_equal(masks(root)["a"], expected)


def test_work_is_bounded_by_what_is_declared(tmp_path):
    """Sizes are compared before anything of that size is made."""
    huge = {"size": [100_000, 100_000], "counts": [10**9, 10**9 * 9]}
    refused(coco(tmp_path / "rle", annotations=[outline(huge)]), "RLE of 100000x100000 pixels for 12x8")
    endless = {"size": [HEIGHT, WIDTH], "counts": "o" * 1_000_000}
    refused(coco(tmp_path / "endless", annotations=[outline(endless)]), "damaged RLE")
    beyond = [[3, 2, 1e308, 2, 7, -1e308]]
    refused(coco(tmp_path / "far", annotations=[outline(beyond)]), "cat on a.jpg (a corner at 1e+308)")
    corners = np.stack([np.tile([3.0, 7.0], 100_000), np.linspace(2, 5, 200_000)], axis=1)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    assert 0 < draw_polygon(mask, corners, 1) <= 12


def test_odd_outlines_are_counted(tmp_path, caplog):
    odd = [
        outline([BOX]),
        outline([[10, 6, 30, 6, 30, 7, 10, 7]]),
        outline([[1, 1, 2, 2]]),
        outline([[6, 6, 6.2, 6, 6.2, 6.2]]),
        outline([]),
        outline(None),
    ]
    root = coco(tmp_path / "data", annotations=odd)
    for _ in ("drawn", "cached"):
        caplog.clear()
        assert (masks(root)["a"] == 1).sum() == 12 + 2
        for text in (
            "1 outline reaches beyond its image and is cut off",
            "1 outline has fewer than three points and is left out",
            "1 outline covers no pixel of its image and is left out",
            "2 annotations have a box but no outline and are left out",
        ):
            assert text in caplog.text


def test_roboflow_adds_a_category_that_nothing_is(tmp_path):
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
        {"id": 2, "name": "dog", "supercategory": "pets"},
    ]
    root = coco(tmp_path / "data", categories=categories, annotations=[outline([BOX], category=2)])
    assert masks(root)["a"].max() == 2
    coco(root, categories=categories, annotations=[outline([BOX], category=0)])
    assert load(root)[0].class_names == {**{0: "background", 1: "pets", 2: "cat", 3: "dog"}}


def test_a_category_called_background(tmp_path):
    categories = [{"id": 1, "name": "Background"}, {"id": 2, "name": "cat"}]
    annotations = [outline([[0, 0, 12, 0, 12, 8, 0, 8]], category=2), outline([BOX], category=1)]
    root = coco(tmp_path / "data", categories=categories, annotations=annotations)
    np.testing.assert_array_equal(masks(root)["a"], 1 - BOX_MASK)


def test_coco_mistakes(tmp_path):
    root = tmp_path / "data"
    refused(coco(root, annotations=[outline([BOX], category=9)]), "2017.json: annotation 1 is of category 9, which is")
    refused(coco(root, annotations=[outline([BOX], image=9)]), "annotation 1 is of image 9, which is not listed")
    refused(coco(root, annotations=[outline([])]), "(COCO layout) holds no outline of any object; 1 annotation has")
    refused(coco(root, categories="none"), "no COCO annotation file with images, annotations and categories")
    listed = [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9} for i in range(4)]
    refused(
        coco(root, images=[*listed, {"id": 11, "file_name": "a.jpg", "width": 9, "height": 9}]),
        "names 4 images that are not there: 0.jpg, 1.jpg",
    )
    images = [{"id": 11, "file_name": "a.jpg", "width": 9, "height": HEIGHT}]
    refused(
        coco(root, images=images),
        "1 image has another size than when it was annotated",
        "a.jpg is 12x8, instances_train2017.json says 9x8",
    )
    images = [{"id": i, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT} for i in (11, 12)]
    refused(coco(root, images=images), "lists the image a twice")
    (root / "annotations" / "instances_train2017.json").write_text("{")
    refused(root, "instances_train2017.json cannot be read as JSON")
    coco(root)
    coco(root, "annotations/instances_val2017.json", "val2017", categories=[{"id": 3, "name": "bird"}])
    refused(root, "instances_val2017.json: category 3 is bird, but cat in another split")
    (root / "annotations" / "instances_val2017.json").rename(root / "annotations_train.json")
    refused(root, "several annotation files for a split: annotations_train.json (train), annotations/instances_train")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"categories": [{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}]},
            "the id 3 of category 'dog' is that of",
        ),
        ({"categories": [{"id": 3.5, "name": "cat"}]}, "3.5 is no whole number"),
        ({"categories": [{"id": 3, "name": None}]}, "None is no name of a class"),
        ({"categories": [{"id": 3, "name": ""}]}, "a class without a name"),
        ({"categories": [{"id": 3, "name": "\u200b"}]}, "cannot be seen"),
        (
            {
                "images": [
                    {"id": 11, "file_name": name, "width": WIDTH, "height": HEIGHT} for name in ("a.jpg", "b.jpg")
                ]
            },
            "the id 11 of image ('b.jpg', 12, 8) is that of ('a.jpg', 12, 8), too",
        ),
    ],
)
def test_ids_and_names_that_mean_nothing_or_two_things(tmp_path, change, said):
    """Annotations of the one would become those of the other."""
    refused(coco(tmp_path / "data", **change), "2017.json is no COCO annotation file", said)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "\ud800", "left\u202eright", "bell\a"])
def test_names_that_cannot_be_printed_are_refused_wherever_they_stand(tmp_path, name):
    refused(coco(tmp_path / "coco", categories=[{"id": 3, "name": name}]), "cannot be printed")
    refused(labelme(tmp_path / "labelme", shapes=[shape(name, "polygon", [[1, 1], [8, 1], [8, 6]])]), "be printed")
    save_image(tmp_path / "yolo" / "images" / "train" / "a.jpg")
    (tmp_path / "yolo" / "data.yaml").write_text(f"names: [{json.dumps(name)}]\n")
    (tmp_path / "yolo" / "labels" / "train").mkdir(parents=True)
    (tmp_path / "yolo" / "labels" / "train" / "a.txt").write_text("0 0.2 0.2 0.6 0.2 0.6 0.7\n")
    refused(tmp_path / "yolo", "be printed")
    root = tmp_path / "supervisely"
    save_image(root / "set" / "img" / "a.jpg")
    write_json(root / "meta.json", {"classes": [{"title": name}]})
    write_json(root / "set" / "ann" / "a.jpg.json", {"size": {"width": WIDTH, "height": HEIGHT}, "objects": []})
    refused(root, "be printed")


def test_every_damaged_annotation_is_counted(tmp_path):
    bad = [outline({"size": [HEIGHT, WIDTH], "counts": [1]}), outline({"size": [1, 1], "counts": [1]})]
    root = coco(tmp_path / "data", annotations=[*bad, outline([BOX])])
    refused(root, "2 annotations are damaged: cat on a.jpg (runs of 1 pixels for 12x8), cat on a.jpg (RLE of 1x1 ")


def test_brushes_of_another_size_are_not_decoded(tmp_path, monkeypatch):
    """A file of a few kilobytes may hold any number of pixels."""
    save_image(tmp_path / "data" / "1.jpg")
    Image.new("L", (5000, 5000)).save(tmp_path / "data" / "task-1-annotation-1-by-1-tag-road-0.png")
    monkeypatch.setattr(outlines, "_stencil", None)
    refused(tmp_path / "data", "1 annotation is damaged: road on 1.jpg (a mask of 5000x5000 pixels for 12x8)")


def test_names_of_files_in_any_encoding(tmp_path):
    """Named where datasets are made of them; here they cost nothing."""
    root = coco(tmp_path / "data", images=[{"id": 11, "file_name": "\udce4.jpg", "width": WIDTH, "height": HEIGHT}])
    save_image(root / "train2017" / "\udce4.jpg")
    assert list(masks(root)) == ["\udce4"]


def test_coco_images_that_are_not_there(tmp_path, caplog):
    """One may be lost, or left behind by who uploads; if most are, something else is wrong."""
    root = coco(tmp_path / "data")
    (root / "train2017" / "b.jpg").unlink()
    assert list(masks(root)) == ["a"]
    assert "1 listed image is not there and left out: instances_train2017.json names b.jpg" in caplog.text
    (root / "train2017" / "a.jpg").unlink()
    refused(
        root,
        "instances_train2017.json names 2 images that are not there: a.jpg, b.jpg (looked in annotations/",
    )


def test_unreadable_images_are_named(tmp_path):
    root = coco(tmp_path / "data")
    (root / "train2017" / "b.jpg").write_text("no image")
    refused(root, "1 image cannot be read: b.jpg")


def test_paths_of_another_machine(tmp_path):
    images = [{"id": 11, "file_name": "C:\\me\\photos\\a.jpg", "width": WIDTH, "height": HEIGHT}]
    root = coco(tmp_path / "data", images=images)
    np.testing.assert_array_equal(masks(root)["a"], BOX_MASK)


@pytest.mark.parametrize("upright", [True, False])
def test_turned_images(tmp_path, upright):
    """Some tools outline objects on the picture as stored, others as it is seen; the stated size tells."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    save_image(tmp_path / "data" / "train2017" / "a.jpg", exif=exif)
    size = {"width": HEIGHT, "height": WIDTH} if upright else {"width": WIDTH, "height": HEIGHT}
    box = [3, 3, 6, 3, 6, 7, 3, 7] if upright else BOX
    root = coco(tmp_path / "data", images=[{"id": 11, "file_name": "a.jpg", **size}], annotations=[outline([box])])
    data, class_map = load(root)
    row = prepare_dataset(data.splits, class_map)["train"][0]
    np.testing.assert_array_equal(np.asarray(row["label"]), np.rot90(BOX_MASK, -1))
    assert row["image"].size == (HEIGHT, WIDTH)


# ---- Labelme ----


def labelme(root, name="a", shapes=None, suffix=".jpg", **changes):
    save_image(root / f"{name}{suffix}")
    content = {
        "shapes": [shape("dog", "polygon", np.reshape(BOX, (-1, 2)).tolist())] if shapes is None else shapes,
        "imagePath": f"{name}{suffix}",
        "imageData": "unused",
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    write_json(root / f"{name}.json", content | changes)
    return root


def shape(label, shape_type, points, **more):
    return {"label": label, "shape_type": shape_type, "points": points, "group_id": None, **more}


def test_labelme(tmp_path, caplog):
    root = tmp_path / "data"
    labelme(root / "train")
    labelme(root / "train", "b", [shape("cat", "rectangle", [[7, 5], [3, 2]])])
    labelme(root / "val", "c")
    save_image(root / "val" / "unlabelled.jpg")
    write_json(root / "val" / "settings.json", {})
    found = find_dataset(root)
    assert found.layout == "Labelme"
    assert {split: [pair.name for pair in pairs] for split, pairs in found.splits.items()} == {
        "train": ["a", "b"],
        "validation": ["c"],
    }
    assert found.images_alone == [root / "val" / "unlabelled.jpg"]
    drawn = masks(root)
    np.testing.assert_array_equal(drawn["a"], 2 * BOX_MASK)  # cat, dog: by alphabet
    np.testing.assert_array_equal(drawn["b"], BOX_MASK)
    assert "1 image in validation has no .json file and is left out: unlabelled.jpg" in caplog.text


def bitmap(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.array(pixels, bool)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_labelme_shapes(tmp_path, caplog):
    shapes = [
        shape("cat", "circle", [[4, 4], [4, 6]]),
        shape("cat", "mask", [[9, 6], [10, 7]], mask=bitmap([[1, 0], [1, 1]])),
        shape("cat", "line", [[0, 0], [9, 9]]),
        shape("cat", "point", [[0, 0]]),
    ]
    root = labelme(tmp_path / "data", shapes=shapes)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:6, 3:5] = expected[3:5, 2:6] = 1  # centres less than 2 from (4, 4)
    expected[6:8, 9] = expected[7, 10] = 1
    np.testing.assert_array_equal(masks(root)["a"], expected)
    assert "1 shape has a type without an area and is left out: line" in caplog.text
    assert "1 shape has a type without an area and is left out: point" in caplog.text


def test_labelme_labels_file(tmp_path):
    """Its order, and its two names for what is no class."""
    box = np.reshape(BOX, (-1, 2)).tolist()
    shapes = [
        shape("dog", "polygon", box),
        shape("__ignore__", "polygon", box[:3]),
        shape("_background_", "circle", [box[3], [4, 5]]),
    ]
    root = labelme(tmp_path / "data", shapes=shapes)
    (root / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\n")
    assert sorted(np.unique(masks(root)["a"])) == [0, 1, 255]
    assert load(root)[0].class_names == {0: "background", 1: "dog", 2: "cat"}
    (root / "labels.txt").write_text("__ignore__\n_background_\ndogs\ncat\n")
    refused(root, "a.json: label 'dog' is not in", "labels.txt (did you mean dogs?)")


def test_labelme_mistakes(tmp_path, caplog):
    root = tmp_path / "data"
    refused(
        labelme(root, imageWidth=9),
        "1 image has another size than when it was annotated",
        "a.jpg is 12x8, a.json says 9x8",
    )
    refused(labelme(root, shapes=[]), "(Labelme layout) holds no outline of any object")
    refused(labelme(root, shapes=[{"label": "x"}]), "a.json is no Labelme annotation: KeyError 'points'")
    refused(
        labelme(root, shapes=[shape(" ", "polygon", [[0, 0]])]),
        "a.json is no Labelme annotation",
        "a class without a name",
    )
    labelme(root)
    write_json(root / "b.json", {"shapes": [], "imagePath": "..\\else\\b.jpg"})
    assert sorted(masks(root)) == ["a"]
    assert "1 images that annotations name are not there and are left out: ..\\else\\b.jpg of b.json" in caplog.text
    write_json(root / "c.json", {"shapes": [], "imagePath": "c.jpg"})
    refused(root, "annotations name 2 images that are not there", "c.jpg of c.json", "put them beside")
    (root / "c.json").unlink()
    write_json(root / "b.json", {"shapes": [], "imagePath": "gone/a.jpg"})
    (root / "b.json").rename(root / "a.json")  # the image beside it counts
    refused(root, "holds no outline")


# ---- YOLO ----


def yolo(root, lines=None, data=None, folder="train"):
    save_image(root / "images" / folder / "a.jpg", (20, 10))
    (root / "labels" / folder).mkdir(parents=True, exist_ok=True)
    lines = ["1 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6"] if lines is None else lines
    (root / "labels" / folder / "a.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text(yaml.safe_dump(data or {"names": ["cat", "dog"]}))
    return root


def test_yolo(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = yolo(tmp_path / "data")
    yolo(root, ["0 0.5 0 1 0 1 1 0.5 1", "", "1 0 0 1 0 1 0.1 0 0.1"], {"names": {0: "cat", 1: "dog"}}, "val")
    save_image(root / "images" / "val" / "b.jpg")
    found = find_dataset(root)
    assert found.layout == "YOLO"
    assert {split: [pair.name for pair in pairs] for split, pairs in found.splits.items()} == {
        "train": ["a"],
        "validation": ["a", "b"],
    }
    expected = np.zeros((10, 20), np.uint8)
    expected[2:6, 2:10] = 2
    np.testing.assert_array_equal(np.asarray(Image.open(found.splits["train"][0].mask)), expected)
    expected[:] = 0
    expected[:, 10:] = 1
    expected[0] = 2
    np.testing.assert_array_equal(np.asarray(Image.open(found.splits["validation"][0].mask)), expected)
    assert "validation: 1 image has no label file and is all background: b" in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        {"train": "images/train", "path": "/elsewhere"},
        {"train": "../images/train"},
        {"train": ["images/train"], "test": "images/test"},
        {"train": "/elsewhere/images/train"},
    ],
)
def test_where_yolo_images_lie(tmp_path, data):
    root = yolo(tmp_path / "data", data={"names": ["cat", "dog"], **data})
    assert masks(root)["a"].max() == 2


def test_roboflow_yolo(tmp_path):
    root = yolo(tmp_path / "data", data={"names": ["cat", "dog"], "train": "../train/images"})
    (root / "train").mkdir()
    for kind in ("images", "labels"):
        (root / kind / "train").rename(root / "train" / kind)
        (root / kind).rmdir()
    assert masks(root)["a"].max() == 2


def test_yolo_mistakes(tmp_path, caplog):
    root = tmp_path / "data"
    refused(yolo(root, ["0 0 0 1 0 1 1", "2 0 0 1 0 1 1"]), "a.txt, line 2: class 2, but data.yaml names 2, 0 to 1")
    refused(yolo(root, ["0 0 0 1 0 1"]), "a.txt, line 1: after the class come x and y of each corner")
    refused(yolo(root, ["0 0 0 100 0 100 50"]), "a.txt, line 1", "shares of width and height")
    refused(yolo(root, ["0 0 0 wide 0 1 1"]), "a.txt, line 1: could not convert")
    refused(yolo(root, ["0 0.5 0.5 1 1"]), "holds no outline of any object; 1 annotation has a box but no outline")
    refused(yolo(root, data={"nc": 2}), "data.yaml has no names")
    refused(yolo(root, data={"names": {1: "cat"}}), "ids from 0 without a gap")
    refused(yolo(root, data={"names": ["cat", "cat"]}), "names must be different")
    refused(yolo(root, data={"names": ["cat"], "train": "frames.txt"}), "line 1: class 1, but data.yaml names 1")
    refused(yolo(root, data={"names": ["cat"], "train": "images/train", "val": "x"}), "val: x is no folder")
    (root / "data.yaml").write_text("names: [a")
    refused(root, "data.yaml cannot be read as YAML")
    yolo(root)
    (root / "labels" / "train" / "a.txt").rename(root / "labels" / "train" / "b.txt")
    refused(root, "none of the 1 images in", "has a label file in", "labels/train")
    yolo(root)
    find_dataset(root)
    assert "1 label file in train has no image and is left out: b.txt" in caplog.text


@pytest.mark.parametrize("file", ["classes.txt", "labels/classes.txt", "obj.names"])
def test_yolo_with_a_list_of_classes_alone(tmp_path, file):
    """As Label Studio and LabelImg write it."""
    root = yolo(tmp_path / "data", folder="")
    (root / "data.yaml").unlink()
    (root / file).write_bytes("Kätzchen\r\ndog\r\n".encode("cp1252"))
    assert masks(root)["a"].max() == 2
    assert find_dataset(root).class_names == {0: "background", 1: "Kätzchen", 2: "dog"}


def test_yolo_in_capitals(tmp_path):
    root = yolo(tmp_path / "data", folder="Train")
    (root / "images").rename(root / "Images")
    (root / "labels").rename(root / "Labels")
    assert masks(root)["a"].max() == 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_text_files_of_any_editor(tmp_path, encoding):
    root = yolo(tmp_path / "yolo")
    file = root / "labels" / "train" / "a.txt"
    file.write_bytes(file.read_text().encode(encoding))
    (root / "data.yaml").write_bytes("names: [Kätzchen, dog]".encode(encoding))
    assert masks(root)["a"].max() == 2
    root = labelme(tmp_path / "labelme", shapes=[shape("Straße", "polygon", np.reshape(BOX, (-1, 2)).tolist())])
    (root / "labels.txt").write_bytes("Straße\n".encode(encoding))
    (root / "a.json").write_bytes(json.dumps(json.loads((root / "a.json").read_text())).encode(encoding))
    assert find_dataset(root).class_names == {0: "background", 1: "Straße"}


def test_text_that_cannot_be_told(tmp_path):
    root = labelme(tmp_path / "labelme")
    (root / "labels.txt").write_bytes("図形一覧表".encode("shift_jis"))
    refused(root, "labels.txt is no text in UTF-8, UTF-16 or Windows-1252; save it as UTF-8")


# ---- other programs ----


def test_coco_under_any_name(tmp_path):
    """Label Studio's result.json, FiftyOne's labels.json, and one of one's own, with ids as strings."""
    for name in ("result.json", "labels.json", "export of may.json"):
        root = coco(tmp_path / name, name, "images", annotations=[outline([BOX], category="3", image="11")])
        np.testing.assert_array_equal(masks(root)["a"], BOX_MASK)
        assert load(root)[0].class_names == {0: "background", 1: "cat", 2: "dog"}


@pytest.mark.parametrize("name", ["{}.JPG", "images/0a1b2c3d-{}.jpg", "C:\\me\\{}.jpg", "../other/{}.jpg", "{}"])
def test_coco_images_by_other_names(tmp_path, name):
    """Capitals, what Label Studio puts in front, folders of another machine, no extension."""
    sizes = {"width": WIDTH, "height": HEIGHT}
    images = [{"id": i, "file_name": name.format(stem)} | sizes for i, stem in ((11, "a"), (5, "b"))]
    root = coco(tmp_path / "data", "result.json", "images", images=images)
    found = masks(root)
    assert len(found) == 2 and sum((mask == BOX_MASK).all() for mask in found.values()) == 1


def panoptic(root, folder="annotations/panoptic_val2017"):
    save_image(root / "val2017" / "a.jpg")
    ids = np.zeros((HEIGHT, WIDTH), np.int32)
    ids[2:5, 3:7], ids[:2] = 70_000, 258
    channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    (root / folder).mkdir(parents=True)
    Image.fromarray(channels).save(root / folder / "a.png")
    segments = [{"id": 70_000, "category_id": 17}, {"id": 258, "category_id": 3}]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 3, "name": "sky"}, {"id": 17, "name": "cat"}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
    }
    write_json(root / "annotations" / "panoptic_val2017.json", content)
    return root


def test_coco_panoptic(tmp_path):
    root = panoptic(tmp_path / "data")
    found = find_dataset(root)
    assert (found.layout, list(found.splits), found.class_names) == (
        "COCO panoptic",
        ["validation"],
        {0: "sky", 1: "cat"},
    )
    expected = np.full((HEIGHT, WIDTH), 255, np.uint8)  # what is in no segment belongs to no class
    expected[:2], expected[2:5, 3:7] = 0, 1
    np.testing.assert_array_equal(masks(root)["a"], expected)
    (root / "annotations" / "panoptic_val2017" / "a.png").unlink()
    refused(root, "panoptic_val2017.json names a.png, which is not there")


def supervisely(root, objects, dataset="ds0", **changes):
    save_image(root / dataset / "img" / "a.jpg")
    write_json(root / "meta.json", {"classes": [{"title": "road", "shape": "any"}, {"title": "car", "shape": "any"}]})
    content = {"size": {"width": WIDTH, "height": HEIGHT}, "tags": [], "objects": objects}
    write_json(root / dataset / "ann" / "a.jpg.json", content | changes)
    return root


def test_supervisely(tmp_path, caplog):
    buffer = io.BytesIO()
    stencil = Image.fromarray(np.array([[0, 1], [1, 1]], np.uint8))
    stencil.putpalette([0, 0, 0, 255, 255, 255])
    stencil.save(buffer, "PNG", transparency=0)
    data = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    corners, hole = np.reshape(BOX, (-1, 2)).tolist(), [[4, 3], [6, 3], [6, 4], [4, 4]]
    objects = [
        {"classTitle": "car", "geometryType": "polygon", "points": {"exterior": corners, "interior": [hole]}},
        {"classTitle": "road", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [9, 5]}},
        {"classTitle": "road", "geometryType": "rectangle", "points": {"exterior": [[0, 0], [2, 1]], "interior": []}},
        {"classTitle": "road", "geometryType": "point", "points": {"exterior": [[1, 1]], "interior": []}},
    ]
    root = supervisely(tmp_path / "data", objects)
    expected = 2 * BOX_MASK
    expected[3, 4:6] = 0
    expected[5, 10] = expected[6, 9:11] = 1
    expected[0, :2] = 1
    found = find_dataset(root)
    assert (found.layout, found.class_names) == ("Supervisely", {0: "background", 1: "road", 2: "car"})
    np.testing.assert_array_equal(masks(root)["ds0/img/a".replace("img/", "")], expected)
    assert "1 shape has a type without an area and is left out: point" in caplog.text
    supervisely(root, objects, "ds1", tags=[{"name": "val"}])
    assert {split: [pair.name for pair in pairs] for split, pairs in find_dataset(root).splits.items()} == {
        "train": ["ds0/a"],
        "validation": ["ds1/a"],
    }
    refused(supervisely(root, [objects[0] | {"classTitle": "cars"}]), "class 'cars' is not in", "(did you mean car?)")
    refused(supervisely(root, [{"classTitle": "car"}]), "a.jpg.json is no Supervisely annotation: KeyError")


def brushes(root, *labels, task=4, annotation=9):
    for number, (label, area) in enumerate(labels):
        pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
        pixels[area] = 255
        root.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / f"task-{task}-annotation-{annotation}-by-1-tag-{label}-{number}.png")


def test_label_studio_brushes(tmp_path, caplog):
    root = tmp_path / "data"
    save_image(root / "images" / "holiday.jpg")
    brushes(root / "masks", ("road", np.s_[:4]), ("big car", np.s_[3:6, 2:5]))
    refused(root, "task 4; export the project as JSON, too")
    write_json(root / "project.json", [{"id": 4, "data": {"image": "/data/upload/1/0a1b2c3d-holiday.jpg"}}])
    found = find_dataset(root)
    assert (found.layout, found.class_names) == ("Label Studio brushes", {0: "background", 1: "big car", 2: "road"})
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:4] = 2
    expected[3:6, 2:5] = 1  # the smaller one over the larger one
    np.testing.assert_array_equal(masks(root)["holiday"], expected)
    brushes(root / "masks", ("road", np.s_[:1]), annotation=12)
    assert (masks(root)["holiday"] > 0).sum() == WIDTH
    assert "1 task has several annotations, of which the last counts" in caplog.text


def test_label_studio_brushes_of_pictures_named_like_tasks(tmp_path):
    save_image(tmp_path / "4.jpg")
    brushes(tmp_path, ("road", np.s_[:4]))
    assert masks(tmp_path)["4"].sum() == 4 * WIDTH


# ---- the cache ----


def test_masks_are_drawn_once(tmp_path, cache, monkeypatch):
    root = coco(tmp_path / "data")
    drawn = []
    original = outlines._draw
    monkeypatch.setattr(outlines, "_draw", lambda *a, **k: (drawn.append(1), original(*a, **k))[1])
    first = find_dataset(root)
    assert find_dataset(root) == first and len(drawn) == 2
    coco(root, annotations=[outline([BOX], category=7)])
    assert masks(root)["a"].max() == 2 and len(drawn) == 4
    assert len(list(cache.iterdir())) == 2


def test_an_interrupted_run_leaves_nothing(tmp_path, cache, monkeypatch):
    root = coco(tmp_path / "data")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outlines, "_draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            find_dataset(root)
    assert list(cache.iterdir()) == []
    np.testing.assert_array_equal(masks(root)["a"], BOX_MASK)


def test_several_processes_give_the_same(tmp_path):
    root = coco(tmp_path / "data")
    [pairs] = draw_masks(Tree(root), "COCO", tmp_path / "other", num_proc=2)[0].values()
    np.testing.assert_array_equal(np.asarray(Image.open(pairs[0].mask)), BOX_MASK)


def test_too_many_classes(tmp_path):
    categories = [{"id": i, "name": f"c{i}"} for i in range(1, 256)]
    refused(coco(tmp_path / "data", categories=categories), "255 classes; masks hold 254 besides the background")
    root = coco(tmp_path / "fit", categories=categories[:254], annotations=[outline([BOX], category=254)])
    assert masks(root)["a"].max() == 254
