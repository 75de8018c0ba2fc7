"""Writes a trained model as an ONNX file, for ONNX Runtime and what else runs such files.

    pip install onnx onnxscript onnxruntime
    python export_onnx.py --model outputs/mine --output mine.onnx
    python predict.py --model mine.onnx --output_dir predicted photo.jpg

The file takes uint8 RGB images of any size, (batch, height, width, 3), and gives the class id of every pixel, uint8
(batch, height, width): the resizing of the evaluation protocol, normalisation, upsampling and argmax are inside. With
--confidence it also gives how likely that class is, 255 standing for certainty. With --logits it takes what the
protocol makes of an image, float32 (batch, 3, height, width), and gives logits at a quarter of that size or less.

Before the file gets its name it is run on images and compared with the model, pixel by pixel: those of --check_images,
--calibration_dir or --dataset_dir, some of them also smaller, larger and upright; without any, rendered pictures. One
that says something else than the model is refused. docs/export.md tells what is inside and how to use it.
"""

if __name__ == "__main__":
    from cli_utils import answer_early
    from models.arguments import EXPORT

    answer_early(__doc__, **EXPORT)  # before the imports below, which take seconds

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF
from transformers import PreTrainedModel

from checks.judge import prepare_dataset
from cli_utils import (
    UserError,
    check_installed,
    one_line,
    parse_arguments,
    run_cli,
    set_up_logging,
    written_aside,
)
from data.arguments import DatasetArguments
from data.classes import ClassMap
from data.image_files import read_channels
from data.output_paths import check_writable, refuse_inputs
from data.preprocessing import EvaluationProtocol
from data.synonyms import IMAGE_EXTENSIONS
from data_utils import SegmentationDataset, load_data
from metrics_utils import confusion_matrix, per_image_counts, score_images
from models.arguments import EXPORT
from models.image_processor import load_image_processor
from models.inference import evaluation_protocol
from models.loading import describe_model, load_trained_model
from models.onnx_model import OnnxModel, metadata
from models.trained_classes import find_class_map
from reports.intervals import paired_bootstrap
from toy_dataset import render_scene

logger = logging.getLogger(__name__)
# Images that are compared, calibrated on, and pixels of those that are brought to several sizes.
MAX_IMAGES, MAX_CALIBRATION, MAX_PIXELS = 16, 100, 2**21
# Scenes of the toy dataset.
RENDERED = (("validation", 0), ("validation", 2), ("validation", 1))


def main(argv: list[str] | None = None) -> dict:
    """Exports, compares, writes; returns the figures of the comparison.

    Raises `cli_utils.UserError` for anything wrong with flags or model, and for a file that does not agree with it.
    """
    args, evaluation_args, dataset_args = parse_arguments(argv=argv, description=__doc__, **EXPORT)
    set_up_logging()
    check_installed("the export to ONNX", "onnx", "onnxscript", "onnxruntime")
    import onnx

    from models.onnx_export import MAX_DIFFERENT, TIE, Agreement, export_network, quantized, with_images

    check_writable(args.output, "--output")
    files = [*find_files(args.check_images, "--check_images")]
    calibration = find_files([args.calibration_dir], "--calibration_dir") if args.int8 else []
    refuse_inputs([args.output], [*files, *calibration], "--output")

    revision = args.model_revision
    model = load_trained_model(args.model, revision=revision)
    image_processor = load_image_processor(args.model, revision=revision, image_size=evaluation_args.image_size)
    class_map = find_class_map(args.model, model.config, image_processor, revision)
    evaluation_args.check_classes(class_map.num_labels, args.model)
    protocol = evaluation_protocol(model.config, image_processor, evaluation_args)
    check_protocol(protocol, model, args.logits)
    if protocol.output == "full logits":  # the stock network resizes them to the size shown, in the graph, too
        vars(model).pop("forward", None)
        protocol = replace(protocol, output="logits")
    logger.info(describe_model(model))
    logger.info(f"exported: {protocol.describe()}")
    dataset = evaluation_dataset(dataset_args, class_map, protocol, args.max_eval_samples)

    graph = export_network(model, protocol, half=args.fp16)
    if args.int8:
        graph = quantized(graph, shown_images(calibration, protocol))
    if not args.logits:
        graph = with_images(graph, protocol, args.confidence)
    said = metadata(class_map, protocol) | {
        "model": args.model if not Path(args.model).exists() else Path(args.model).resolve().name,
        "precision": args.precision,
        "versions": json.dumps({package.__name__: package.__version__ for package in (torch, transformers, onnx)}),
    }
    onnx.helper.set_model_props(graph, said)
    exported = OnnxModel(graph.SerializeToString())

    def compare(image) -> tuple[Tensor, Tensor]:
        try:
            found = exported.predict_ids(image)
        except Exception as error:  # ONNX Runtime's errors have no common class
            size = "x".join(map(str, reversed(tvF.get_size(image))))
            raise UserError(
                f"{model.config.model_type} cannot be exported to ONNX by torch {torch.__version__}: the graph does "
                f"not run on an image of {size} pixels ({one_line(error)[:200]}); predict.py runs the model as it is"
            ) from error
        return agreement.add(model, protocol, image, found, TIE[args.precision]), found

    agreement = Agreement()
    for image in images_of_several_sizes(files or calibration, dataset, protocol):
        compare(image)
    scores, sentence = {}, ""
    if dataset is not None:
        scores, sentence = score_both(compare, dataset, class_map.num_labels)
    where = "" if files or calibration or dataset else ", on rendered pictures; --check_images has yours"
    sentences = [f"{agreement.describe()}{where}", *filter(None, [sentence])]
    allowed = MAX_DIFFERENT[args.precision] if args.max_different is None else args.max_different
    if agreement.share_different > allowed:
        raise UserError(
            f"{args.output} is not written, as it does not say what the model says: {'; '.join(sentences)}. Allowed "
            f"are {allowed:.3%} (--max_different)"
        )
    onnx.helper.set_model_props(graph, said | {"checked": "; ".join(sentences)})
    with written_aside(args.output) as file:
        file.write_bytes(graph.SerializeToString())
    for line in (*sentences, f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MB; {exported.describe()}"):
        logger.info(line)
    return {"pixels": agreement.pixels, "ties": agreement.ties, "different": agreement.different} | scores


# ---- images ---------------------------------------------------------------------------------------------------------


def check_protocol(protocol: EvaluationProtocol, model: PreTrainedModel, logits: bool) -> None:
    """Raises UserError for what is done around the network and cannot stand in a graph."""
    if protocol.is_wide and not logits:
        raise UserError(
            f"the model takes bands of {protocol.image_dtype}, and such a graph takes images of 8 bits: export with "
            "--logits, and give the file to predict.py --model FILE.onnx"
        )
    if protocol.output == "queries":
        raise UserError(
            f"{model.config.model_type} predicts masks, whose scores are added up outside of the network: it cannot "
            "be exported; predict.py and pipeline() run it as it is"
        )
    if protocol.slide_crop or protocol.flip or protocol.scales != (1.0,):
        raise UserError(
            "--slide_crop, --eval_scales and --eval_flip show the network several images in the place of one, which "
            "predict.py does: export with --logits and give them to predict.py --model FILE.onnx"
        )


def find_files(sources: list[Path], flag: str) -> list[Path]:
    """Image files, those of folders and their subfolders sorted; UserError where there are none."""
    found = []
    for source in sources:
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        images = [path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file()]
        if not images:
            extensions = " ".join(sorted(IMAGE_EXTENSIONS))
            raise UserError(f"{flag} {source}: no images there (looked for {extensions})")
        found += images
    return found


def evenly(items: Sequence, count: int) -> list:
    """At most that many, from the first to the last."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def shown_images(files: list[Path], protocol: EvaluationProtocol) -> Iterator[Tensor]:
    """What the network is shown of some of the images."""
    for file in evenly(files, MAX_CALIBRATION):
        yield protocol.preprocess(read_channels(file, protocol.num_channels, dtype=protocol.image_dtype))


def images_of_several_sizes(
    files: list[Path], dataset: SegmentationDataset | None, protocol: EvaluationProtocol
) -> Iterator[Tensor]:
    """Images (C, H, W), as `data.image_files.read_channels` gives them, and of the first ones also a small, a large
    and an upright version."""
    if files:
        options = {"num_channels": protocol.num_channels, "dtype": protocol.image_dtype}
        images = [read_channels(file, **options) for file in evenly(files, MAX_IMAGES)]
    elif dataset is not None:
        images = [as_tensor(dataset.read(index)[0]) for index in evenly(range(len(dataset)), 3)]
    else:
        images = [as_tensor(render_scene(0, *scene)[0]) for scene in RENDERED]
        images = [protocol.rendered(image[torch.arange(protocol.num_channels) % 3]) for image in images]
    yield from images
    for index, factor in enumerate((0.4, 1.7)):
        image = images[index % len(images)]
        yield tvF.resize(image, [max(1, int(side * factor)) for side in image.shape[-2:]], antialias=True)
    yield images[-1].transpose(1, 2)[..., : max(1, images[-1].shape[1] * 2 // 3)].contiguous()


def as_tensor(image: Image.Image | Tensor) -> Tensor:
    return image if isinstance(image, Tensor) else tvF.pil_to_tensor(image)


# ---- a dataset ------------------------------------------------------------------------------------------------------


def evaluation_dataset(
    args: DatasetArguments, class_map: ClassMap, protocol: EvaluationProtocol, max_samples: int | None
) -> SegmentationDataset | None:
    """The validation images, or the test images, that both are scored on; None without --dataset_dir."""
    if not (args.is_folder or args.dataset_name):
        return None
    if args.streaming:
        raise UserError("--streaming is for training; leave it out")
    data = load_data(args, num_channels=protocol.num_channels)
    splits = prepare_dataset(data.splits, class_map, num_channels=data.num_channels)
    split = splits.get("validation", splits.get("test"))
    if split is None:
        raise UserError(f"{args.source} has no validation or test images (found {', '.join(splits)})")
    return SegmentationDataset(split.take(min(len(split), max_samples or len(split))), protocol)


def score_both(compare: Callable, dataset: SegmentationDataset, num_labels: int) -> tuple[dict[str, float], str]:
    """Mean IoU of the model and of its graph, and the 95 % interval of the difference, paired by image."""
    counts = {"model": [], "graph": []}
    for index in range(len(dataset)):
        image, mask = dataset.read(index)
        labels = tvF.pil_to_tensor(mask)
        for matrices, ids in zip(counts.values(), compare(image), strict=True):
            matrices.append(confusion_matrix(ids[None], labels, num_labels)[None].numpy())
    model, graph = (per_image_counts(np.concatenate(matrices)) for matrices in counts.values())
    difference = paired_bootstrap(model, graph)
    before, after = score_images(model), score_images(graph)
    return {"mean_iou_model": before, "mean_iou_graph": after}, (
        f"mean IoU on {len(dataset)} images: {before:.4f} in PyTorch, {after:.4f} in ONNX Runtime; difference "
        f"{difference.difference:+.4f} (95 % interval {difference.low:+.4f} to {difference.high:+.4f})"
    )


if __name__ == "__main__":
    run_cli(main)
