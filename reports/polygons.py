"""Predictions as polygons, for people who go on drawing: GeoJSON, COCO and Labelme. Needs `rasterio` (optional).

Each is a context of a function that takes the training ids, uint8 (n, W), a band of rows after the other or all at
once, 255 where nothing is known. Connected areas of one class, which touch at edges and not at corners, are outlined
along the borders of their pixels; x goes to the right and y down, and the first pixel lies between 0 and 1. Nothing is
smoothed, so that `data.annotation_files` and `data.outlines` draw COCO's and Labelme's files to the class of every
pixel; where nothing is known COCO's then have the background, and Labelme's what is ignored.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cli_utils import write_text
from data.annotation_files import IGNORED
from data.classes import ClassMap
from data.inputs import Address
from data.large_images import RowsOnDisk
from data.outlines import draw_polygon, encode_rle
from metrics_utils import IGNORE_INDEX
from reports.prediction_outputs import Georeference

LABELME_VERSION = "5.5.0"  # whose fields are written


def outlines(ids: np.ndarray, transform=None, unknown: bool = False) -> Iterator[tuple[list, int]]:
    """Closed rings of x and y, the first around the area, others around its holes; and the training id.

    Args:
        ids: uint8 (H, W).
        transform: of `rasterio`, from pixels to other coordinates.
        unknown: also areas of 255.
    """
    import rasterio
    from rasterio import features

    transform = transform or rasterio.Affine.identity()
    # Without a mask, which would be as large as the image in memory.
    for outline, i in features.shapes(ids, connectivity=4, transform=transform):
        if unknown or i != IGNORE_INDEX:
            yield outline["coordinates"], int(i)


@contextmanager
def geojson(path: Path, class_map: ClassMap, place: Georeference | None) -> Iterator:
    """A file for each image: polygons with holes. Coordinates are those of the georeference, with its name under
    `crs`, else pixels."""
    with RowsOnDisk(path.parent) as rows:
        yield rows.write
        found = []
        for rings, i in outlines(rows.whole(), place and place.transform):
            properties = {"class": class_map.id2label[i], "value": class_map.raw_values[i]}
            geometry = {"type": "Polygon", "coordinates": rings}
            found.append({"type": "Feature", "properties": properties, "geometry": geometry})
    content = {"type": "FeatureCollection", "features": found}
    if place and place.crs:
        name = place.crs.to_string()
        content["crs"] = {"type": "name", "properties": {"name": name}}
    write_text(path, json.dumps(content, ensure_ascii=False))


@contextmanager
def labelme(path: Path, class_map: ClassMap, source: Path | Address) -> Iterator:
    """A file for each image, which Labelme opens: it knows no holes, so areas lie over those that enclose them, the
    largest first, as it draws them; where nothing is known is an area called __ignore__.

    source: the image; the file says where it lies from there.
    """
    with RowsOnDisk(path.parent) as rows:
        yield rows.write
        ids, found = rows.whole(), []
        for rings, i in outlines(ids, unknown=True):
            label = IGNORED if i == IGNORE_INDEX else class_map.id2label[i]
            found.append((-_ring_area(rings[0]), label, rings[0][:-1]))
    shapes = [
        {"label": label, "points": points, "group_id": None, "shape_type": "polygon", "flags": {}}
        for _, label, points in sorted(found, key=lambda shape: shape[0])
    ]
    content = {
        "version": LABELME_VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": _seen_from(path.parent, source),
        "imageData": None,
        "imageHeight": ids.shape[0],
        "imageWidth": ids.shape[1],
    }
    write_text(path, json.dumps(content, ensure_ascii=False))


def _ring_area(ring: list) -> float:
    (x, y), (next_x, next_y) = np.array(ring[:-1]).T, np.array(ring[1:]).T
    return abs(float((x * next_y - next_x * y).sum())) / 2


def _seen_from(folder: Path, source: Path | Address) -> str:
    if isinstance(source, Address):
        return source.name.rpartition("/")[2] + source.suffix
    try:
        return Path(os.path.relpath(source.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return source.resolve().as_posix()


@dataclass
class CocoAnnotations:
    """One file for all images: an annotation for every area, an outline or, where it has holes, run lengths.

    Categories count from 1 in the order of the classes, as 0 is what many readers take for the background; `value` is
    the class's value in the PNGs.

    folder: for the ids of the image at work.
    """

    class_map: ClassMap
    folder: Path | None = None
    rows: list[dict] = field(default_factory=list)

    @contextmanager
    def of(self, index: int, name: str) -> Iterator:
        """A function that takes the ids of an image. index: among all images. name: of its file."""
        with RowsOnDisk(self.folder) as rows:
            yield rows.write
            ids = rows.whole()
            image = {"id": index + 1, "file_name": name, "height": ids.shape[0], "width": ids.shape[1]}
            annotations = [_coco_annotation(rings, i, ids.shape) for rings, i in outlines(ids)]
            self.rows.append({"image": image, "annotations": annotations})

    def save(self, path: Path, rows: list[dict]) -> None:
        """rows: of all processes."""
        rows = sorted(rows, key=lambda row: row["image"]["id"])
        annotations = [{"image_id": row["image"]["id"]} | found for row in rows for found in row["annotations"]]
        content = {
            "images": [row["image"] for row in rows],
            "annotations": [{"id": number} | found for number, found in enumerate(annotations, start=1)],
            "categories": [
                {"id": i + 1, "name": self.class_map.id2label[i], "value": value}
                for i, value in enumerate(self.class_map.raw_values)
            ],
        }
        write_text(path, json.dumps(content, ensure_ascii=False))


def _coco_annotation(rings: list, i: int, size: tuple[int, int]) -> dict:
    """size: height and width."""
    corners = [np.array(ring[:-1]).astype(int) for ring in rings]
    (left, top), (right, bottom) = corners[0].min(axis=0).tolist(), corners[0].max(axis=0).tolist()
    if len(rings) == 1:
        segmentation, area = [corners[0].ravel().tolist()], int(_ring_area(rings[0]))
    else:
        inside = np.zeros((bottom - top, right - left), bool)
        area = draw_polygon(inside, corners[0] - (left, top), True, [ring - (left, top) for ring in corners[1:]])
        segmentation = {"size": list(size), "counts": encode_rle(inside, (top, left), size)}
    return {
        "category_id": i + 1,
        "segmentation": segmentation,
        "area": area,
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
    }
