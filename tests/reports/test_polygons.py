"""Predictions as polygons: areas and corners counted by hand, and every file read back by who reads such files."""

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from data.classes import ClassMap
from data.inputs import Address
from data.layouts import Tree
from data.outlines import decode_rle, draw_masks, encode_rle
from reports.polygons import CocoAnnotations, geojson, labelme
from reports.prediction_outputs import read_georeference

CLASS_MAP = ClassMap({0: "wall", 1: "=floor"}, [[200, 0, 0], [0, 100, 0]], do_reduce_labels=True)
IDS = np.array([[0, 0, 1, 1], [0, 1, 1, 255], [0, 0, 0, 0]], np.uint8)
NAMES = {0: "wall", 1: "floor", 2: "sky"}


@pytest.fixture
def image(tmp_path):
    """A GeoTIFF of 4 x 3 pixels of half a metre."""
    place = rasterio.Affine(0.5, 0, 1000, 0, -0.5, 2000)
    options = {"height": 3, "width": 4, "count": 3, "dtype": "uint8", "crs": "EPSG:32632", "transform": place}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **options) as raster:
        raster.write(np.full((3, 3, 4), 9, np.uint8))
    return tmp_path / "a.tif"


def give(context, ids=IDS):
    with context as take:
        take(ids[:1])
        take(ids[1:])


def test_polygons(image, tmp_path):
    give(geojson(tmp_path / "pixels.geojson", CLASS_MAP, None))
    give(geojson(tmp_path / "earth.geojson", CLASS_MAP, read_georeference(image)))
    pixels, earth = (json.loads((tmp_path / f"{name}.geojson").read_text()) for name in ("pixels", "earth"))
    by_value = {feature["properties"]["value"]: feature for feature in pixels["features"]}
    assert by_value.keys() == {1, 2} and by_value[1]["properties"]["class"] == "wall"

    def area(feature):
        ring = np.array(feature["geometry"]["coordinates"][0])
        return abs((ring[:-1, 0] * ring[1:, 1] - ring[1:, 0] * ring[:-1, 1]).sum() / 2)

    assert {value: area(feature) for value, feature in by_value.items()} == {1: 7, 2: 4}
    assert sorted(area(feature) for feature in earth["features"]) == [1.0, 1.75]
    assert earth["crs"]["properties"]["name"] == "EPSG:32632" and "crs" not in pixels
    corner = np.array(earth["features"][0]["geometry"]["coordinates"][0]).min(axis=0)
    assert corner.tolist() == [1000.0, 1998.5] or corner.tolist() == [1000.5, 1999.0]


def scene(seed, height=40, width=55):
    """Areas in areas, single pixels, areas that touch at corners, and some of which nothing is known."""
    rng = np.random.default_rng(seed)
    ids = np.kron(rng.integers(0, 3, (height // 5, width // 5)), np.ones((5, 5))).astype(np.uint8)
    for value in (1, 2, 0, 255):
        top, left, side = rng.integers(0, 20, 3)
        ids[top : top + side + 3, left : left + side + 3] = value
    ids[rng.random(ids.shape) < 0.05] = 255
    ids[::7, ::5] = 1
    return ids


def read_back(folder, layout):
    """Class names of the masks that are drawn from a folder's annotations, by image."""
    drawn = draw_masks(Tree(folder), layout, cache_dir=folder / "cache")
    pairs = [pair for split in drawn.splits.values() for pair in split]
    names = np.array([drawn.classes.get(value, "ignored") for value in range(256)])
    return {pair.name: names[np.asarray(Image.open(pair.mask))] for pair in pairs}


def test_coco_is_read_back_by_us_and_by_pycocotools(tmp_path):
    scenes = {f"sub/{seed}": scene(seed) for seed in range(3)}
    coco = CocoAnnotations(ClassMap(NAMES, raw_to_id={7: 0, 3: 1, 200: 2}))
    (tmp_path / "sub").mkdir()
    for index, (name, ids) in reversed(list(enumerate(scenes.items()))):
        Image.new("RGB", ids.shape[::-1]).save(tmp_path / f"{name}.png")
        give(coco.of(index, f"{name}.png"), ids)
    coco.save(tmp_path / "coco.json", coco.rows)
    expected = {
        name: np.where(ids == 255, "background", np.array([*NAMES.values()])[ids % 255])
        for name, ids in scenes.items()
    }
    found = read_back(tmp_path, "COCO")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)

    with redirect_stdout(io.StringIO()):
        read = COCO(str(tmp_path / "coco.json"))
    assert [(entry["id"], entry["name"], entry["value"]) for entry in read.loadCats(read.getCatIds())] == [
        *((1, "wall", 7), (2, "floor", 3), (3, "sky", 200))
    ]
    kinds = set()
    for i, (name, ids) in enumerate(scenes.items(), start=1):
        assert read.imgs[i] == {"id": i, "file_name": f"{name}.png", "height": 40, "width": 55}
        drawn = np.full(ids.shape, 255, np.uint8)
        for annotation in read.loadAnns(read.getAnnIds(imgIds=i)):
            kinds.add(type(annotation["segmentation"]))
            mask = read.annToMask(annotation) > 0
            assert mask.sum() == annotation["area"] and (drawn[mask] == 255).all() and annotation["iscrowd"] == 0
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == box
            drawn[mask] = annotation["category_id"] - 1
        assert np.array_equal(np.where(drawn == 255, 255, drawn), ids)
    assert kinds == {list, dict}


def test_labelme_is_read_back(tmp_path):
    scenes = {str(seed): scene(seed) for seed in range(3)}
    (tmp_path / "photos").mkdir()
    for name, ids in scenes.items():
        Image.new("RGB", ids.shape[::-1]).save(tmp_path / "photos" / f"{name}.png")
        give(labelme(tmp_path / "out" / f"{name}.json", ClassMap(NAMES), tmp_path / "photos" / f"{name}.png"), ids)
    content = json.loads((tmp_path / "out" / "0.json").read_text())
    assert content["imagePath"] == "../photos/0.png" and content["imageData"] is None
    assert (content["imageHeight"], content["imageWidth"]) == (40, 55)
    found = read_back(tmp_path, "Labelme")
    assert len(found) == 3
    for name, ids in scenes.items():
        expected = np.where(ids == 255, "ignored", np.array([*NAMES.values()])[ids % 255])
        assert np.array_equal(found[f"out/{name}" if f"out/{name}" in found else name], expected)


def test_an_image_of_the_web_in_labelme(tmp_path):
    give(labelme(tmp_path / "a.json", CLASS_MAP, Address("http://h/x/a%20b.JPG?id=1")))
    assert json.loads((tmp_path / "a.json").read_text())["imagePath"] == "a b.jpg"


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**36 - 1))
def test_run_lengths_are_decoded_to_what_they_are_of(height, width, bits):
    whole = np.array([bits >> i & 1 for i in range(height * width)], bool).reshape(height, width)
    assert np.array_equal(decode_rle(encode_rle(whole, (0, 0), whole.shape), whole.shape), whole)
    larger = np.zeros((height + 3, width + 2), bool)
    larger[2 : 2 + height, 1 : 1 + width] = whole
    assert np.array_equal(decode_rle(encode_rle(whole, (2, 1), larger.shape), larger.shape), larger)
