"""What a prediction gets besides its PNG and overlay, as predict.py's flags ask: which files there are, of each image
and of all together. What is in them: `reports.prediction_outputs`, `reports.polygons`."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from accelerate.utils import gather_object
from PIL import Image

import visual_utils
from cli_utils import UserError, one_line
from data.classes import ClassMap
from data.inputs import Address
from data.large_images import no_limit
from data.output_paths import refuse_inputs
from metrics_utils import IGNORE_INDEX, csv_text
from reports.polygons import CocoAnnotations, geojson, labelme
from reports.prediction_outputs import Areas, ConfidenceMap, Georeference, geotiff, read_georeference
from reports.predictions import prediction_files, refuse_foreign

AREAS, COCO = "areas.csv", "coco.json"


def confidence_file(png: Path, folder: Path) -> Path:
    return folder / "confidence" / png.relative_to(folder)


def check_extra_files(
    names: Sequence[str], sources: Sequence[Path | Address], folder: Path, contact_sheet: Path
) -> None:
    """Raises UserError where one of the files, whatever the flags, would replace an input, a PNG, or a file that no
    prediction left."""
    files = prediction_files(names, folder, [contact_sheet])
    pngs = [png for png, _ in files]
    confidence = [confidence_file(png, folder) for png in pngs]
    twice = set(pngs) & set(confidence)
    if twice:
        raise UserError(f"{min(twice)} would be both a prediction and a map of confidence; rename the input's folder")
    beside = [(png.with_suffix(suffix), png) for png in pngs for suffix in (".tif", ".geojson", ".json")]
    of_all = [folder / AREAS, folder / COCO]
    refuse_inputs([*confidence, *(path for path, _ in beside), *of_all], sources, "--output_dir")
    refuse_foreign(files, contact_sheet, beside, of_all)


class ExtraFiles:
    """The files of a run of predict.py.

    Args:
        folder: of the predictions. names, sources: of the images; an index below is one into them.
        areas, polygons, confidence: `--save_areas`, `--save_polygons`, `--save_confidence`.

    Attributes:
        confidence_map: takes the confidence of the image at work; None where none is asked for.
    """

    def __init__(
        self,
        class_map: ClassMap,
        folder: Path,
        names: Sequence[str],
        sources: Sequence[Path | Address],
        areas: bool = False,
        polygons: str | None = None,
        confidence: bool = False,
    ):
        self.class_map, self.folder, self.names, self.sources = class_map, folder, names, sources
        self.polygons = polygons
        self.areas = Areas(class_map) if areas else None
        self.coco = CocoAnnotations(class_map, folder) if polygons == "coco" else None
        self.confidence_map = ConfidenceMap() if confidence else None
        self.palette = visual_utils.raw_palette(class_map.colors(), class_map.raw_values)

    def of_image(self, index: int, png: Path, place: Georeference | None, size: tuple[int, int]) -> Iterator:
        """Contexts of functions that take the ids, see `reports.prediction_outputs`; size: height and width."""
        if place:
            yield geotiff(png.with_suffix(".tif"), place, self.class_map, self.palette)
        yield from self._of_all(index, place)
        if self.polygons == "geojson":
            yield geojson(png.with_suffix(".geojson"), self.class_map, place)
        if self.polygons == "labelme":
            yield labelme(png.with_suffix(".json"), self.class_map, self.sources[index])
        if self.confidence_map:
            yield self.confidence_map.of(confidence_file(png, self.folder), size)

    def _of_all(self, index: int, place: Georeference | None) -> Iterator:
        """What is written of an image into a file of all."""
        if self.areas:
            yield self.areas.of(self.names[index], place)
        if self.coco:
            yield self.coco.of(index, self.names[index] + Path(self.sources[index]).suffix)

    def add_predicted_before(self, index: int, png: Path) -> None:
        """To the files of all images: one that was predicted by an earlier run."""
        place = read_georeference(png.with_suffix(".tif"))
        with ExitStack() as outputs:
            takers = [outputs.enter_context(output) for output in self._of_all(index, place)]
            for take in takers:
                take(_ids_there(png, self.class_map))

    def save(self) -> None:
        """The files of all images, of all processes; all have to call it."""
        if self.areas:
            order = {csv_text(name): index for index, name in enumerate(self.names)}
            rows = sorted(gather_object(self.areas.rows), key=lambda row: order[row["image"]])
            self.areas.save(self.folder / AREAS, rows)
        if self.coco:
            self.coco.save(self.folder / COCO, gather_object(self.coco.rows))


def _ids_there(png: Path, class_map: ClassMap) -> np.ndarray:
    """Training ids, uint8 (H, W), of a prediction that was written before; UserError where it cannot be read."""
    try:
        with no_limit(), Image.open(png) as image:
            values = np.asarray(image)
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise UserError(f"{png} cannot be read ({one_line(error)}); without it the image is predicted again") from None
    ids = np.full(256, IGNORE_INDEX, np.uint8)
    ids[class_map.raw_values] = np.arange(class_map.num_labels)
    return ids[values]
