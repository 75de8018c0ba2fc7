"""What is written of a prediction besides its PNG and overlay: areas and a GeoTIFF; polygons: `reports.polygons`.

Each is a context of a function that takes the training ids, uint8 (n, W), a band of rows after the other or all at
once, 255 where nothing is known. `rasterio` (optional) reads georeferences.
"""

import csv
import io
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from cli_utils import UserError, one_line, write_text, written_aside
from data.classes import ClassMap
from data.large_images import RowsOnDisk
from metrics_utils import IGNORE_INDEX, csv_text
from visual_utils import PngWriter


@dataclass(frozen=True)
class Georeference:
    """Where an image lies on the earth: `rasterio`'s affine transform and coordinate reference system.

    size: height and width. nodata: whether pixels may be marked as such.
    """

    path: Path
    size: tuple[int, int]
    transform: object
    crs: object
    nodata: bool

    def known(self, first: int, stop: int) -> np.ndarray:
        """bool (rows, W): where the image has pixels."""
        import rasterio
        from rasterio.windows import Window

        with rasterio.open(self.path) as raster:
            return raster.dataset_mask(window=Window(0, first, self.size[1], stop - first)) > 0

    @property
    def square_metres(self) -> float | None:
        """Of a pixel; None where coordinates are no lengths, as degrees."""
        if self.crs is None or not self.crs.is_projected:
            return None
        return abs(self.transform.determinant) * self.crs.linear_units_factor[1] ** 2


def read_georeference(path: Path) -> Georeference | None:
    """Of a TIFF file; None of others, of one without, and without rasterio."""
    if path.suffix.lower() not in (".tif", ".tiff") or not find_spec("rasterio"):
        return None
    import rasterio

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a georeference
        try:
            with rasterio.open(path) as raster:
                if raster.crs is None and raster.transform.is_identity:
                    return None
                flags = [flag for band in raster.mask_flag_enums for flag in band]
                nodata = any(flag is not rasterio.enums.MaskFlags.all_valid for flag in flags)
                return Georeference(path, raster.shape, raster.transform, raster.crs, nodata)
        except rasterio.errors.RasterioError:
            return None  # reading it says more


def with_nodata(bands: Iterable[torch.Tensor], place: Georeference | None) -> Iterator[torch.Tensor]:
    """Bands of ids (n, W), 255 where the image states that it knows nothing."""
    top = 0
    for ids in bands:
        if place and place.nodata:
            ids = ids.masked_fill(torch.from_numpy(~place.known(top, top + len(ids))), IGNORE_INDEX)
        yield ids
        top += len(ids)


@contextmanager
def geotiff(path: Path, place: Georeference, class_map: ClassMap, palette: np.ndarray) -> Iterator:
    """A function that takes the ids: a GeoTIFF in tiles, compressed, in the annotation files' values with their
    colours, 255 being nodata where no class has that value.

    palette: (256, 3) by value.
    """
    import rasterio
    from rasterio.windows import Window

    with written_aside(path) as partial:
        raster = rasterio.open(
            partial,
            "w",
            driver="GTiff",
            height=place.size[0],
            width=place.size[1],
            count=1,
            dtype="uint8",
            crs=place.crs,
            transform=place.transform,
            nodata=None if IGNORE_INDEX in class_map.raw_values else IGNORE_INDEX,
            tiled=True,
            blockxsize=256,
            blockysize=256,
            compress="deflate",
            bigtiff="if_safer",
        )
        with raster:
            raster.write_colormap(1, {value: (*map(int, color), 255) for value, color in enumerate(palette)})
            done = 0

            def write(ids: np.ndarray) -> None:
                nonlocal done
                values = np.where(ids == IGNORE_INDEX, np.uint8(IGNORE_INDEX), class_map.to_raw(ids))
                raster.write(values, 1, window=Window(0, done, place.size[1], len(ids)))
                done += len(ids)

            yield write


@dataclass
class Areas:
    """The table of `--save_areas`: pixels and share of every class in every image, and square metres where they are
    known."""

    class_map: ClassMap
    rows: list[dict] = field(default_factory=list)

    @contextmanager
    def of(self, name: str, place: Georeference | None) -> Iterator:
        """A function that takes the ids of an image."""
        counts = np.zeros(256, np.int64)

        def count(ids: np.ndarray) -> None:
            counts[:] += np.bincount(ids.ravel(), minlength=256)

        yield count
        known = int(counts.sum() - counts[IGNORE_INDEX])
        metres = place and place.square_metres
        for i, value in enumerate(self.class_map.raw_values):
            self.rows.append(
                {
                    "image": csv_text(name),
                    "value": value,
                    "class": csv_text(self.class_map.id2label[i]),
                    "pixels": int(counts[i]),
                    "share": f"{counts[i] / max(1, known):.6f}",
                    "square_metres": "" if metres is None else f"{counts[i] * metres:.3f}",
                }
            )

    def save(self, path: Path, rows: list[dict]) -> None:
        """rows: of all processes."""
        text = io.StringIO()
        table = csv.DictWriter(text, ["image", "value", "class", "pixels", "share", "square_metres"])
        table.writeheader()
        table.writerows(rows)
        write_text(path, text.getvalue())


class ConfidenceMap:
    """The map of the image at work, grey, 255 for certainty: written as the image is predicted."""

    @contextmanager
    def of(self, path: Path, size: tuple[int, int]) -> Iterator:
        """A function that takes the ids of an image of this height and width."""
        with written_aside(path) as partial, PngWriter(partial, size) as self._png:
            yield lambda ids: None

    def write(self, rows: np.ndarray) -> None:
        """uint8 (n, W), the next rows."""
        self._png.write(rows)


def without_small_areas(ids: np.ndarray, min_area: int, out: np.ndarray | None = None) -> np.ndarray:
    """Connected areas of less than that many pixels get the class of the largest one around them, uint8 (H, W).

    Areas touch at edges, not at corners; where nothing is known stays so.

    out: uint8 (H, W), for the result.
    """
    from rasterio import features

    if min_area < 2 or min(ids.shape) < 1 or math.prod(ids.shape) <= min_area:
        return ids
    try:
        # Only where it is needed, as it is as large as the image.
        mask = ids != IGNORE_INDEX if ids.max() == IGNORE_INDEX else None
        return features.sieve(ids, size=min_area, connectivity=4, mask=mask, out=out)
    except Exception as error:
        raise UserError(f"--min_area {min_area}: {one_line(error)}") from error


def bands_without_small_areas(bands: Iterable[np.ndarray], min_area: int, folder: Path) -> Iterator[np.ndarray]:
    """As `without_small_areas`, of an image that comes in bands, which lie in a folder meanwhile."""
    with RowsOnDisk(folder) as before, RowsOnDisk(folder) as after:
        for ids in bands:
            before.write(ids)
            after.write(ids)  # room for the result
        without_small_areas(before.whole(), min_area, after.whole())
        yield from after.again()
