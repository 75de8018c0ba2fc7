"""Segments images without annotations, with a model trained here or any segmentation model of the Hub.

    python predict.py --model outputs/mine --output_dir predicted photo.jpg folder_of_photos
    python predict.py --model nvidia/segformer-b0-finetuned-ade-512-512 --output_dir predicted photo.jpg
    python predict.py --model mine.onnx --output_dir predicted photo.jpg                # see export_onnx.py
    python predict.py --model outputs/a outputs/b --output_dir predicted photo.jpg      # together
    python predict.py --model outputs/mine --output_dir predicted @list.txt https://example.org/photo.jpg 'more/*.png'
    cat photo.jpg | python predict.py --model outputs/mine - > mask.png

Folders are searched with their subfolders. A list has a file, a folder, a pattern or an address a line; - takes one
image from stdin and gives its PNG alone, to stdout. Written to --output_dir, NAME being a file's name, or its path
below the folder that was given, or, of a file in a list, as the list names it, or an address's host and path, without
the extension:

    NAME.png            class of every pixel at the image's size: an indexed PNG in the annotation files' own values
    overlays/NAME.jpg   image and prediction side by side, with the names of the classes
    contact_sheet.png   a grid of these, at most 24
    NAME.mp4            of a film (or NAME.mkv): the classes blended in, with its sound; needs PyAV (pip install av)
    NAME.tif            of a GeoTIFF, with rasterio: the same as the PNG, in its place on the earth, nodata kept as 255

Where a name is no file name on every system, or two differ in capitals alone, a line says what they became. Files of
kinds that are not read, and masks in the folders of a dataset, are passed over with a warning, and the exit code is 0;
it is 1 where a file that should have been read, or an address, could not be.

Images of more than 89 million pixels are predicted a band of rows after the other, with the same result and in little
memory: TIFF files are also read so, through rasterio (pip install rasterio); others are decoded at once.

Photos are turned upright first, as their EXIF orientation says, and predictions are upright too. A model that was
evaluated with --slide_crop, --eval_scales and so on predicts as it was evaluated when it is given the same flags here.
"""

if __name__ == "__main__":
    from cli_utils import answer_early
    from reports.arguments import PREDICT

    answer_early(__doc__, **PREDICT)  # before the imports below, which take seconds

import logging
import os
import shutil
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF

from cli_utils import (
    UserError,
    WriteError,
    check_installed,
    count_of,
    parse_arguments,
    run_cli,
    set_up_logging,
    shorten,
)
from data.arguments import EvaluationArguments
from data.image_files import TIFF_SIGNATURES, read_channels
from data.inputs import STDIN, Address, Downloads, Input, expand
from data.large_images import LargeImage, large_size, open_large
from data.layouts import Tree
from data.output_paths import check_writable, output_names, refuse_inputs
from data.synonyms import IMAGE_EXTENSIONS
from data.trial_pairing import masks_among
from data.unread import describe_unread, unread_pictures
from models.ensemble import load_ensemble
from models.inference import find_device
from models.predictor import Predictor
from reports.arguments import PREDICT, PredictArguments
from reports.extra_files import ExtraFiles, check_extra_files
from reports.prediction_outputs import (
    ConfidenceMap,
    Georeference,
    bands_without_small_areas,
    read_georeference,
    with_nodata,
    without_small_areas,
)
from reports.predictions import prediction_files, refuse_foreign, write_predictions
from reports.video import split_videos, video_file, write_video

logger = logging.getLogger(__name__)

CONTACT_SHEET = "contact_sheet.png"
FRAMES_AT_ONCE = 8  # of a film, on an accelerator


def find_images(inputs: Sequence[Input], output_dir: Path) -> dict[str, Path | Address]:
    """Name → file or address, in the order given, folders sorted.

    Raises:
        UserError: nothing given or there, two files of one name, or an output that would replace an input or become
            one. What is passed over is logged.
    """
    if not inputs:
        raise UserError("no images: name files or folders")
    images = {}
    for item in inputs:
        source = item.source
        if isinstance(source, Path) and os.path.isdir(source):
            if output_dir.resolve().is_relative_to(source.resolve()):
                raise UserError(f"--output_dir {output_dir} lies in the input folder {source}; give one outside it")
            found = _images_in(source)
        elif isinstance(source, Address) or os.path.isfile(source) or item.listed:
            found = [(item.name, source)]
        else:
            raise UserError(f"{source}: no such file or folder")
        for name, path in found:
            if not _is_same(images.setdefault(name, path), path):
                shown = [getattr(source, "shown", source) for source in (images[name], path)]
                raise UserError(
                    f"{shown[0]} and {shown[1]} would both become {output_dir / name}.png; "
                    "rename one, or give them separate --output_dir"
                )
    contact_sheet = output_dir / CONTACT_SHEET
    refuse_foreign(prediction_files(list(images), output_dir, [contact_sheet], images.values()), contact_sheet)
    return images


def _is_same(one: Path | Address, other: Path | Address) -> bool:
    if isinstance(one, Address) or isinstance(other, Address):
        return one == other
    return one.resolve() == other.resolve()


def _images_in(folder: Path) -> list[tuple[str, Path]]:
    """Name and path of the images below a folder; says what else lies there."""
    tree = Tree(folder)
    below = [picture.path.relative_to(folder) for picture in tree.pictures if picture.extension in IMAGE_EXTENSIONS]
    unread = unread_pictures(tree)
    passed_over = f"{folder}: {': '.join(describe_unread(unread))}" if unread else ""
    if not below:
        extensions = " ".join(sorted(IMAGE_EXTENSIONS))
        raise UserError(passed_over or f"no images in {folder} and its subfolders (looked for {extensions})")
    if unread:
        logger.warning(passed_over)
    masks = masks_among(tree)
    if masks:
        folders = sorted({str(path.parent) for path in masks})
        logger.warning(
            f"{folder} is a dataset: {count_of(len(masks), 'mask')} in {shorten(folders)} passed over; name such a "
            "folder or file itself where it is an image"
        )
    return [(path.with_suffix("").as_posix(), folder / path) for path in sorted(below) if folder / path not in masks]


def film_files(videos: list[Path], output_dir: Path) -> dict[Path, Path]:
    """Film → the film with its classes.

    Raises:
        UserError: PyAV is missing, or a film would be replaced.
    """
    if videos:
        check_installed("a film", "av")
    names = output_names([path.stem for path in videos])
    films = {path: video_file(path, output_dir, name) for path, name in zip(videos, names, strict=True)}
    refuse_inputs(films.values(), videos, "--output_dir")
    return films


def files_there(images: dict[str, Path], output_dir: Path) -> dict[int, Path]:
    """Position → PNG of the images whose files are there already; says how many."""
    files = prediction_files(list(images), output_dir, [output_dir / CONTACT_SHEET])
    there = {index: pair[0] for index, pair in enumerate(files) if all(file.is_file() for file in pair)}
    logger.info(f"--skip_existing: {len(there)} of {len(images)} images are predicted already")
    return there


def pipe(args: PredictArguments, evaluation_args: EvaluationArguments) -> list[Path]:
    """The image on stdin → its PNG on stdout, where nothing else goes."""
    allowed = ("model", "inputs", "device", "model_revision", "fused_ops", "min_area")
    defaults = PredictArguments(args.model)
    names = [flag.name for flag in fields(args) if flag.name not in allowed]
    given = [name for name in names if getattr(args, name) != getattr(defaults, name)]
    if given or len(args.inputs) > 1:
        what = f"leave out --{given[0]}" if given else "name nothing else"
        raise UserError(f"- is one image from stdin, and its PNG alone goes to stdout: {what}, or give files")
    output = sys.stdout
    if output.isatty():
        raise UserError("the PNG goes to stdout, which is a terminal: add > mask.png")
    with TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        source = Path(folder, "stdin")
        with source.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        with source.open("rb") as file:
            is_tiff = file.read(4) in TIFF_SIGNATURES
        source = source.rename(source.with_suffix(".tif")) if is_tiff else source
        if not source.stat().st_size:
            raise UserError("nothing came in on stdin, where - takes an image from")
        try:
            png = predict_all(replace(args, inputs=[str(source)], output_dir=Path(folder, "out")), evaluation_args)[0]
        except SystemExit as unreadable:
            sys.exit(str(unreadable.code).replace(str(source), "stdin"))
        content = png.read_bytes()
    output.buffer.write(content)
    output.buffer.flush()
    return []


def main(argv: list[str] | None = None) -> list[Path]:
    """Predicts all images and returns the files written: PNGs, overlays and the contact sheet.

    Files that cannot be read are left out and named at the end, with exit code 1. Raises `cli_utils.UserError` for
    anything else wrong with inputs or model, before the first prediction.
    """
    args, evaluation_args = parse_arguments(argv=argv, description=__doc__, **PREDICT)
    pipes = STDIN in args.inputs
    set_up_logging(logging.WARNING if pipes else logging.INFO)
    return (pipe if pipes else predict_all)(args, evaluation_args)


class Reader:
    """Index → image, as `reports.predictions.write_predictions` asks for it.

    Args:
        sources: files and addresses. there: indices of those that are left out.

    Attributes:
        unreadable: what is wrong with the images that cannot be read.
        place, size: georeference, if there is one, and height and width of the image that was read last.
    """

    def __init__(
        self, sources: list[Path | Address], predictor: Predictor, downloads: Downloads, there: Container[int]
    ):
        self.sources, self.predictor, self.downloads, self.there = sources, predictor, downloads, there
        self.unreadable, self.place, self.size = [], None, None

    def __call__(self, index: int) -> tuple[Tensor | LargeImage, None] | None:
        if index in self.there:
            return None
        protocol = self.predictor.protocol
        path = name = getattr(self.sources[index], "shown", self.sources[index])
        try:
            path = self.downloads.path_of(self.sources[index])
            image = None if protocol.is_wide else open_large(path, protocol.num_channels)
            self.place = read_georeference(path)
            if image is None:
                image = read_channels(path, protocol.num_channels, name, protocol.image_dtype)
                self.size = tuple(tvF.get_size(image))
            else:
                self.predictor.check_size(path, image.size)
                height, width = self.size = image.size
                logger.info(f"{name}: {width:,}x{height:,} pixels, read and predicted in bands of rows")
            return image, None
        except UserError as error:
            self.unreadable.append(str(error).replace(str(path), str(name)))
            return None


class Segmenter:
    """Image → training ids, uint8, without specks and with what the image does not know; its confidence is written.

    Args:
        min_area: `--min_area`. folder: for the rows of large images meanwhile. confidence_map: None: not wanted.
    """

    def __init__(self, predictor: Predictor, min_area: int, folder: Path, confidence_map: ConfidenceMap | None):
        self.predictor, self.min_area, self.folder = predictor, min_area, folder
        self.confidence_map = confidence_map

    def __call__(self, image: Tensor | LargeImage, place: Georeference | None) -> Tensor | Iterator[Tensor]:
        """(H, W); of a `LargeImage` (n, W), some rows after the other. place: where it lies, with its nodata."""
        bands = self._bands(image)
        if not isinstance(image, LargeImage):
            return next(with_nodata(map(self._tidy, bands), place))
        if self.min_area:
            bands = bands_without_small_areas(map(np.asarray, bands), self.min_area, self.folder)
            bands = (torch.from_numpy(ids.copy()) for ids in bands)
        return with_nodata(bands, place)

    def frames(self, images: list) -> list[Tensor]:
        """Those of a film, all of one size → (H, W) of each."""
        predict_together = self.predictor.predict_together or partial(map, self.predictor.predict)
        return [self._tidy(ids.to(torch.uint8)) for ids in predict_together(images)]

    def _bands(self, image: Tensor | LargeImage) -> Iterator[Tensor]:
        is_large = isinstance(image, LargeImage)
        if self.confidence_map is None:
            found = self.predictor.predict(image)
            yield from (ids.to(torch.uint8) for ids in (found if is_large else [found]))
            return
        found = self.predictor.predict_with_confidence(image)
        for ids, confidence in found if is_large else [found]:
            self.confidence_map.write(confidence.numpy())
            yield ids.to(torch.uint8)

    def _tidy(self, ids: Tensor) -> Tensor:
        return torch.from_numpy(without_small_areas(ids.numpy(), self.min_area)) if self.min_area else ids


def check_model_fits(predictor: Predictor, sources: Iterable[Path | Address], save_confidence: bool) -> None:
    """Raises UserError where the model cannot do what is asked, before the first prediction."""
    if save_confidence and predictor.predict_with_confidence is None:
        raise UserError(
            f"--save_confidence: {predictor.name} gives classes alone; export the model with --confidence or --logits"
        )
    if predictor.needs_whole and not predictor.protocol.is_wide:
        for path in sources:
            if isinstance(path, Path) and (size := large_size(path)):
                predictor.check_size(path, size)


def predict_all(args: PredictArguments, evaluation_args: EvaluationArguments) -> list[Path]:
    """`main`, of files and addresses."""
    if args.output_dir is None:
        raise UserError("--output_dir is missing: give the folder for predictions")
    contact_sheet = args.output_dir / CONTACT_SHEET
    inputs = expand(args.inputs)
    videos, _ = split_videos([item.source for item in inputs if isinstance(item.source, Path)])
    films = film_files(videos, args.output_dir)
    inputs = [item for item in inputs if item.source not in films]
    images = find_images(inputs, args.output_dir) if inputs or not videos else {}
    names, sources = list(images), list(images.values())
    check_extra_files(names, sources, args.output_dir, contact_sheet)
    check_writable(args.output_dir, "--output_dir", is_folder=True)
    device = find_device(args.device)

    predictor = load_ensemble(args.model, evaluation_args, device, args.model_revision, args.fused_ops)
    check_model_fits(predictor, sources, args.save_confidence)
    class_map = predictor.class_map
    logger.info(f"{predictor.description}, on {device}; short side {predictor.protocol.short_side}")
    values = [f"{value} {class_map.id2label[i]}" for i, value in enumerate(class_map.raw_values)]
    logger.info(f"values in the PNGs: {values[0]} … {values[-1]}")
    there = files_there(images, args.output_dir) if args.skip_existing else {}

    extra_files = ExtraFiles(
        class_map, args.output_dir, names, sources, args.save_areas, args.save_polygons, args.save_confidence
    )
    segment = Segmenter(predictor, args.min_area, args.output_dir, extra_files.confidence_map)
    batch_size = args.per_device_eval_batch_size or (1 if device.type == "cpu" else FRAMES_AT_ONCE)
    state = PartialState()
    try:
        with Downloads(int(args.url_megabytes * 2**20), args.url_seconds) as downloads:
            reader = Reader(sources, predictor, downloads, there)
            written = write_predictions(
                names,
                reader,
                lambda image: segment(image, reader.place),
                class_map,
                args.output_dir,
                contact_sheet,
                inputs=sources,
                also=lambda index, png: extra_files.of_image(index, png, reader.place, reader.size),
                unreadable=reader.unreadable,
            )
        for film, target in films.items():
            if not (args.skip_existing and target.is_file()):
                frames = target.with_name(f"{target.stem}_frames") if args.video_frames else None
                write_video(film, target, segment.frames, class_map, frames, batch_size)
        for index in sorted(there)[state.process_index :: state.num_processes]:
            extra_files.add_predicted_before(index, there[index])
        extra_files.save()
    except WriteError as error:
        raise UserError(
            f"{error}. What was predicted before is in {args.output_dir}; make room, then give the same command again"
        ) from None
    if reader.unreadable:
        sys.exit(f"error: {len(reader.unreadable)} of {len(images)} files were skipped: {shorten(reader.unreadable)}")
    sheet = [contact_sheet] if written else []
    return [*(png for png, _ in written), *(overlay for _, overlay in written), *sheet, *films.values()]


if __name__ == "__main__":
    run_cli(main)
