"""Segments images without annotations, with a model trained here or any segmentation model of the Hub.

    python predict.py --model outputs/mine --output_dir predicted photo.jpg folder_of_photos
    python predict.py --model nvidia/segformer-b0-finetuned-ade-512-512 --output_dir predicted photo.jpg

Folders are searched with their subfolders. Written to --output_dir, NAME being a file's name, or its path below the
folder that was given, without the extension:

    NAME.png            class of every pixel at the image's size: an indexed PNG in the annotation files' own values
    overlays/NAME.jpg   image and prediction side by side, with the names of the classes
    contact_sheet.png   a grid of these, at most 24

Photos are turned upright first, as their EXIF orientation says, and predictions are upright too. A model that was
evaluated with --slide_crop, --eval_scales and so on predicts as it was evaluated when it is given the same flags here.
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import PretrainedConfig
from transformers.utils import cached_file

import visual_utils
from cli_utils import UserError, one_line, run_cli, shorten
from data.classes import ClassMap, read_class_list
from data.image_files import read_channels, rgb_view
from data.layouts import IMAGE_EXTENSIONS
from data.preprocessing import EvaluationProtocol
from models.image_processor import load_image_processor
from models.inference import predict_ids
from models.loading import describe_model, fixed_input_size, load_trained_model

logger = logging.getLogger(__name__)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="FILE_OR_FOLDER")
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="folder or Hub id of a trained model")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--image_size", type=int, help="short side shown to the model (default: as it was trained)")
    parser.add_argument("--slide_crop", type=int, help="side of a window that slides over the image (default: none)")
    parser.add_argument("--slide_stride", type=int, help="its step (default: 3/4 of its side)")
    parser.add_argument(
        "--eval_scales", type=_scale, nargs="+", default=[1.0], help="average over these scales, as in 0.75 1 1.25"
    )
    parser.add_argument("--eval_flip", action="store_true", help="average with the mirrored image")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="two classes: probability above which a pixel is given the second one (default: 0.5)",
    )
    parser.add_argument("--device", help="cuda, mps, cpu … (default: the accelerator, else cpu)")
    parser.add_argument("--fused_ops", action="store_true", default=True, help="the exact speed-ups (default)")
    parser.add_argument("--no_fused_ops", dest="fused_ops", action="store_false", help="compute as stock transformers")
    return parser.parse_args(argv)


def _scale(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number (name files and folders before this flag)") from None


def find_images(inputs: list[Path], output_dir: Path) -> dict[str, Path]:
    """Name → file, in the order given, folders sorted.

    Raises:
        UserError: nothing there, two files of one name, or an output that would replace an input or become one.
    """
    images = {}
    for source in inputs:
        if source.is_dir():
            if output_dir.resolve().is_relative_to(source.resolve()):
                raise UserError(f"--output_dir {output_dir} lies in the input folder {source}; give one outside it")
            below = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
            found = [
                (path.with_suffix("").as_posix(), source / path)
                for path in below
                if path.suffix.lower() in IMAGE_EXTENSIONS and not any(part.startswith(".") for part in path.parts)
            ]
            if not found:
                extensions = " ".join(sorted(IMAGE_EXTENSIONS))
                raise UserError(f"no images in {source} and its subfolders (looked for {extensions})")
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
    files = {path.resolve() for path in images.values()}
    for name in (*images, "contact_sheet"):
        for output in output_files(output_dir, name):
            if output.resolve() in files:
                raise UserError(f"the input {output} would be overwritten; give another --output_dir")
    if "contact_sheet" in images:
        raise UserError(f"the prediction for {images['contact_sheet']} would replace the contact sheet; rename it")
    return images


def output_files(output_dir: Path, name: str) -> tuple[Path, Path]:
    """Where the label map and the overlay of an image go."""
    return output_dir / f"{name}.png", output_dir / "overlays" / f"{name}.jpg"


def find_device(name: str | None) -> torch.device:
    """The device of that name; None: the accelerator if there is one, else the CPU."""
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: torch without CUDA
        raise UserError(f"--device {name} cannot be used here: {one_line(error)}") from None


def find_class_map(name_or_path: str, config: PretrainedConfig, image_processor) -> ClassMap:
    """A trained model's classes with their colours and the values that stand for them in annotation files.

    Models trained here have the values in their configuration; of others the image processor says whether labels were
    reduced. Colours are those of the model's `labels.json` or of a list in `labels/`, whichever has the model's class
    names. A model with a single logit, whose configuration can name but one class, has the two of its `labels.json`.
    """
    files = sorted((Path(__file__).parent / "labels").glob("*.json"))
    own_file = None
    try:
        own_file = cached_file(name_or_path, "labels.json")
        files.insert(0, own_file)
    except OSError:
        pass  # only models trained here have it
    id2label, palette = config.id2label, None
    single_logit = len(id2label) == 1
    if single_logit:
        id2label = {0: "background", 1: id2label[0]}
    for file in files:
        try:
            names, colors = read_class_list(file)
        except UserError:  # somebody else's labels.json, in another format
            continue
        if names == id2label or (single_logit and file == own_file and len(names) == 2):
            id2label, palette = names, colors
            break
    recorded = config.to_dict().get("segmentation_label_map")
    if recorded is not None:
        return ClassMap.from_config(recorded, id2label, palette)
    try:
        # As it stands in the file: older models, NVIDIA's own among them, say `reduce_labels`, which transformers 5
        # reads without acting on it.
        settings = type(image_processor).get_image_processor_dict(name_or_path)[0]
    except OSError:
        settings = {}  # a model without an image processor
    reduced = settings.get("do_reduce_labels", settings.get("reduce_labels", False))
    return ClassMap(id2label, palette, do_reduce_labels=bool(reduced))


def main(argv: list[str] | None = None) -> list[Path]:
    """Predicts all images and returns the files written: label maps, overlays and the contact sheet.

    Files that cannot be read are left out and named at the end, with exit code 1. Raises `cli_utils.UserError` for
    anything else wrong with inputs or model, before the first prediction.
    """
    args = parse_arguments(argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO, force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if args.image_size is not None and args.image_size < 1:
        raise UserError(f"--image_size is {args.image_size}; it must be at least 1")
    options = {
        "slide_crop": args.slide_crop,
        "slide_stride": args.slide_stride,
        "scales": tuple(args.eval_scales),
        "flip": args.eval_flip,
        "threshold": args.threshold,
    }
    EvaluationProtocol(**options)  # raises on values that do not fit together
    images = find_images(args.inputs, args.output_dir)
    device = find_device(args.device)

    model = load_trained_model(args.model, args.fused_ops).to(device)
    image_processor = load_image_processor(args.model, image_size=args.image_size)
    class_map = find_class_map(args.model, model.config, image_processor)
    if args.threshold != 0.5 and class_map.num_labels != 2:
        raise UserError(f"--threshold is for two classes; {args.model} has {class_map.num_labels}")
    asked_for = EvaluationProtocol.from_image_processor(image_processor)
    fixed_size = fixed_input_size(model, asked_for.short_side)
    protocol = EvaluationProtocol.from_image_processor(image_processor, fixed_size, **options)
    logger.info(f"{describe_model(model)}, on {device}; short side {protocol.short_side}")
    names = [f"{value} {class_map.id2label[i]}" for i, value in enumerate(class_map.raw_values)]
    logger.info(f"values in the PNGs: {names[0]} … {names[-1]}")

    palette = class_map.colors()
    raw_palette = visual_utils.raw_palette(palette, class_map.raw_values)
    label_files, overlay_files, unreadable = [], [], []
    for name, path in tqdm(images.items(), desc="predicting"):
        try:
            image = read_channels(path, protocol.num_channels)
        except UserError as error:
            unreadable.append(str(error))
            continue
        prediction = predict_ids(model, image, protocol, args.fused_ops).numpy().astype(np.uint8)
        label_file, overlay_file = output_files(args.output_dir, name)
        visual_utils.save_indexed_png(label_file, class_map.to_raw(prediction), raw_palette)
        overlay_file.parent.mkdir(parents=True, exist_ok=True)
        panels = visual_utils.side_by_side(rgb_view(image), None, prediction, palette, class_map.id2label)
        panels.save(overlay_file, quality=90)
        label_files.append(label_file)
        overlay_files.append(overlay_file)

    contact_sheet = args.output_dir / "contact_sheet.png"
    if overlay_files:
        visual_utils.contact_sheet(overlay_files).save(contact_sheet)
        logger.info(f"predictions of {len(label_files)} images in {args.output_dir}; at a glance: {contact_sheet}")
    if unreadable:
        sys.exit(f"error: {len(unreadable)} of {len(images)} files were skipped: {shorten(unreadable)}")
    return [*label_files, *overlay_files, contact_sheet]


if __name__ == "__main__":
    run_cli(main)
