"""Segments images without annotations, with a model trained here or any segmentation model of the Hub.

    python predict.py --model outputs/mine --output_dir predicted photo.jpg folder_of_photos
    python predict.py --model nvidia/segformer-b0-finetuned-ade-512-512 --output_dir predicted photo.jpg
    python predict.py --model mine.onnx --output_dir predicted photo.jpg                # see export_onnx.py

Folders are searched with their subfolders. Written to --output_dir, NAME being a file's name, or its path below the
folder that was given, without the extension:

    NAME.png            class of every pixel at the image's size: an indexed PNG in the annotation files' own values
    overlays/NAME.jpg   image and prediction side by side, with the names of the classes
    contact_sheet.png   a grid of these, at most 24

Where a name is no file name on every system, or two differ in capitals alone, a line says what they became. Files of
kinds that are not read, and masks in the folders of a dataset, are passed over with a warning, and the exit code is 0;
it is 1 where a file that should have been read could not be.

Photos are turned upright first, as their EXIF orientation says, and predictions are upright too. A model that was
evaluated with --slide_crop, --eval_scales and so on predicts as it was evaluated when it is given the same flags here.
"""

import logging
import re
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from cli_utils import (
    UserError,
    WriteError,
    count_of,
    parse_arguments,
    run_cli,
    set_up_logging,
    shorten,
)
from data.arguments import EvaluationArguments
from data.image_files import read_channels
from data.layouts import MASKS, Tree, read_name
from data.output_paths import check_writable
from data.synonyms import IMAGE_EXTENSIONS, MASK_SUFFIXES
from data.unread import describe_unread, unread_pictures
from models.image_processor import load_image_processor
from models.inference import evaluation_protocol, find_device, predict_ids
from models.loading import describe_model, load_trained_model
from models.onnx_model import OnnxModel
from models.trained_classes import find_class_map
from reports.predictions import prediction_files, write_predictions

logger = logging.getLogger(__name__)

CONTACT_SHEET = "contact_sheet.png"
# What datasets add to the name of an image, to name a mask or another picture of it.
ENDINGS = f"({'|'.join(map(re.escape, sorted(MASK_SUFFIXES, key=len, reverse=True)))}|_gtFine_.*|_leftImg8bit)$"


@dataclass
class PredictArguments:
    """What to segment, with which model, and where the results go."""

    model: str = field(
        metadata={
            "help": "folder or Hub id of a trained model, or a file of export_onnx.py",
            "metavar": "DIR_OR_ID_OR_FILE",
        }
    )
    output_dir: Path = field(metadata={"help": "folder for predictions, overlays and the contact sheet"})
    inputs: list[Path] = field(
        default_factory=list,
        metadata={"help": "images and folders of images; the flag may be left out", "metavar": "FILE_OR_FOLDER"},
    )
    device: str | None = field(
        default=None, metadata={"help": "cuda, mps, cpu …; the accelerator if left out, or cpu where there is none"}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "branch, tag or commit of a model on the Hub; main if left out"}
    )
    fused_ops: bool = field(default=True, metadata={"help": "the exact speed-ups of the head and the upsampling"})


def find_images(inputs: list[Path], output_dir: Path) -> dict[str, Path]:
    """Name → file, in the order given, folders sorted.

    Raises:
        UserError: nothing given or there, two files of one name, or an output that would replace an input or become
            one. What is passed over is logged.
    """
    if not inputs:
        raise UserError("no images: name files or folders")
    images = {}
    for source in inputs:
        if source.is_dir():
            if output_dir.resolve().is_relative_to(source.resolve()):
                raise UserError(f"--output_dir {output_dir} lies in the input folder {source}; give one outside it")
            found = _images_in(source)
        elif source.is_file():
            found = [(source.stem, source)]
        else:
            raise UserError(f"{source}: no such file or folder")
        for name, path in found:
            if images.setdefault(name, path).resolve() != path.resolve():
                raise UserError(
                    f"{images[name]} and {path} would both become {output_dir / name}.png; "
                    "rename one, or give them separate --output_dir"
                )
    prediction_files(list(images), output_dir, [output_dir / CONTACT_SHEET], images.values())
    return images


def _images_in(folder: Path) -> list[tuple[str, Path]]:
    """Name and path of the images below a folder; says what else lies there."""
    below = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    below = [
        path
        for path in below
        if path.suffix.lower() in IMAGE_EXTENSIONS and not any(part.startswith(".") for part in path.parts)
    ]
    unread = unread_pictures(Tree(folder))
    passed_over = f"{folder}: {': '.join(describe_unread(unread))}" if unread else ""
    if not below:
        extensions = " ".join(sorted(IMAGE_EXTENSIONS))
        raise UserError(passed_over or f"no images in {folder} and its subfolders (looked for {extensions})")
    if unread:
        logger.warning(passed_over)
    masks = _masks_of(below)
    if masks:
        folders = sorted({str(folder / path.parent) for path in masks})
        logger.warning(
            f"{folder} is a dataset: {count_of(len(masks), 'mask')} in {shorten(folders)} passed over; name such a "
            "folder itself where its files are images"
        )
    return [(path.with_suffix("").as_posix(), folder / path) for path in below if path not in masks]


def _holds_masks(folder: str) -> bool:
    """By the folder's name; those of VOC's objects hold no classes, but no photos either."""
    return read_name(folder).role == MASKS or "segmentation" in folder.lower()


def _masks_of(paths: list[Path]) -> set[Path]:
    """Those of the files of a folder that are masks of others there, by the names of their folders or their own."""

    def bare(path: Path) -> str:
        return re.sub(ENDINGS, "", path.stem)

    in_mask_folder = {path for path in paths if any(_holds_masks(part) for part in path.parts[:-1])}
    images = {bare(path) for path in paths if path not in in_mask_folder}
    masks = {path for path in in_mask_folder if bare(path) in images}
    stems = {path.with_suffix("") for path in paths}
    masks |= {path for path in paths if bare(path) != path.stem and path.with_name(bare(path)) in stems}
    return masks


def load_graph(args: PredictArguments, evaluation_args: EvaluationArguments, device: torch.device) -> OnnxModel:
    """A file of export_onnx.py; UserError where it does not fit the flags."""
    if args.model_revision is not None:
        raise UserError(f"--model_revision {args.model_revision} is for models of the Hub, and {args.model} is a file")
    if not Path(args.model).is_file():
        raise UserError(f"--model {args.model}: no such file; export_onnx.py writes one")
    model = OnnxModel(args.model, device)
    evaluation_args.check_classes(model.class_map.num_labels, args.model)
    model.set_protocol(evaluation_args)
    return model


def main(argv: list[str] | None = None) -> list[Path]:
    """Predicts all images and returns the files written: PNGs, overlays and the contact sheet.

    Files that cannot be read are left out and named at the end, with exit code 1. Raises `cli_utils.UserError` for
    anything else wrong with inputs or model, before the first prediction.
    """
    args, evaluation_args = parse_arguments(
        (PredictArguments, EvaluationArguments), argv, description=__doc__, positional="inputs"
    )
    set_up_logging()
    images = find_images(args.inputs, args.output_dir)
    check_writable(args.output_dir, "--output_dir", is_folder=True)
    device = find_device(args.device)

    if args.model.endswith(".onnx"):
        model = load_graph(args, evaluation_args, device)
        class_map, protocol, predict, what = model.class_map, model.protocol, model.predict_ids, model.describe()
    else:
        revision = args.model_revision
        model = load_trained_model(args.model, args.fused_ops, revision=revision).to(device)
        image_processor = load_image_processor(args.model, revision=revision, image_size=evaluation_args.image_size)
        class_map = find_class_map(args.model, model.config, image_processor, revision)
        evaluation_args.check_classes(class_map.num_labels, args.model)
        protocol = evaluation_protocol(model.config, image_processor, evaluation_args)
        predict = partial(predict_ids, model, protocol=protocol, fused_ops=args.fused_ops)
        what = describe_model(model)
    logger.info(f"{what}, on {device}; short side {protocol.short_side}")
    values = [f"{value} {class_map.id2label[i]}" for i, value in enumerate(class_map.raw_values)]
    logger.info(f"values in the PNGs: {values[0]} … {values[-1]}")

    paths, unreadable = list(images.values()), []

    def read(index: int):
        try:
            return read_channels(paths[index], protocol.num_channels), None
        except UserError as error:
            unreadable.append(str(error))

    contact_sheet = args.output_dir / CONTACT_SHEET
    try:
        written = write_predictions(
            list(images), read, predict, class_map, args.output_dir, contact_sheet, inputs=paths
        )
    except WriteError as error:
        raise UserError(
            f"{error}. What was predicted before is in {args.output_dir}; make room, then give the same command again"
        ) from None
    if unreadable:
        sys.exit(f"error: {len(unreadable)} of {len(images)} files were skipped: {shorten(unreadable)}")
    return [*(png for png, _ in written), *(overlay for _, overlay in written), contact_sheet]


if __name__ == "__main__":
    run_cli(main)
