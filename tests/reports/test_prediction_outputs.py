"""Areas, polygons and GeoTIFFs of predictions: what is in them, counted by hand."""

import csv

import numpy as np
import pytest
import rasterio

import visual_utils
from data.classes import ClassMap
from reports.prediction_outputs import (
    Areas,
    geotiff,
    read_georeference,
    without_small_areas,
)

CLASS_MAP = ClassMap({0: "wall", 1: "=floor"}, [[200, 0, 0], [0, 100, 0]], do_reduce_labels=True)
IDS = np.array([[0, 0, 1, 1], [0, 1, 1, 255], [0, 0, 0, 0]], np.uint8)


@pytest.fixture
def image(tmp_path):
    """A GeoTIFF of 4 x 3 pixels of half a metre, of which one is nodata."""
    place = rasterio.Affine(0.5, 0, 1000, 0, -0.5, 2000)
    pixels = np.full((3, 3, 4), 9, np.uint8)
    pixels[:, 1, 3] = 0
    options = {"height": 3, "width": 4, "count": 3, "dtype": "uint8", "crs": "EPSG:32632", "transform": place}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", nodata=0, **options) as raster:
        raster.write(pixels)
    return tmp_path / "a.tif"


def give(context, ids=IDS):
    with context as take:
        take(ids[:1])
        take(ids[1:])


def test_georeference(image, tmp_path):
    place = read_georeference(image)
    assert place.size == (3, 4) and place.square_metres == 0.25 and place.nodata
    assert (~place.known(0, 3)).sum() == 1 and not place.known(1, 2)[0, 3]
    with rasterio.open(
        tmp_path / "bare.tif", "w", driver="GTiff", height=2, width=2, count=1, dtype="uint8"
    ) as raster:
        raster.write(np.zeros((1, 2, 2), np.uint8))
    assert read_georeference(tmp_path / "bare.tif") is None
    assert read_georeference(tmp_path / "a.png") is None
    (tmp_path / "no.tif").write_bytes(b"no")
    assert read_georeference(tmp_path / "no.tif") is None


def test_degrees_are_no_metres(image):
    with rasterio.open(image, "r+") as raster:
        raster.crs = "EPSG:4326"
    assert read_georeference(image).square_metres is None


def test_a_geotiff_lies_where_the_image_lies(image, tmp_path):
    palette = visual_utils.raw_palette(CLASS_MAP.colors(), CLASS_MAP.raw_values)
    give(geotiff(tmp_path / "out.tif", read_georeference(image), CLASS_MAP, palette))
    with rasterio.open(tmp_path / "out.tif") as out, rasterio.open(image) as source:
        assert out.crs == source.crs and out.transform == source.transform and out.nodata == 255
        assert np.array_equal(out.read(1), np.where(IDS == 255, 255, IDS + 1))
        assert out.colormap(1)[1] == (200, 0, 0, 255) and out.profile["tiled"] and out.profile["compress"] == "deflate"


def test_areas(image, tmp_path):
    areas = Areas(CLASS_MAP)
    give(areas.of("a", read_georeference(image)))
    give(areas.of("b", None))
    areas.save(tmp_path / "areas.csv", areas.rows)
    with open(tmp_path / "areas.csv", newline="", encoding="utf-8") as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ["a", "1", "wall", "7", "0.636364", "1.750"],
        ["a", "2", "'=floor", "4", "0.363636", "1.000"],
        ["b", "1", "wall", "7", "0.636364", ""],
        ["b", "2", "'=floor", "4", "0.363636", ""],
    ]


def test_small_areas_go_to_what_surrounds_them():
    ids = np.zeros((10, 10), np.uint8)
    ids[2:4, 2:4], ids[6:9, 6:9], ids[0, 0] = 1, 2, 255
    found = without_small_areas(ids, 5)
    expected = ids.copy()
    expected[2:4, 2:4] = 0
    assert np.array_equal(found, expected)
    assert np.array_equal(without_small_areas(ids, 4), ids)
    assert np.array_equal(without_small_areas(ids, 1), ids)
