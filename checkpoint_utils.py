"""What stands beside the weights in a checkpoint: its configuration, and its image processor, read and written."""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    PretrainedConfig,
    SegformerImageProcessor,
)
from transformers.image_processing_base import ImageProcessingMixin

from cli_utils import UserError
from protocol_utils import MAX_ASPECT_RATIO, EvaluationProtocol

logger = logging.getLogger(__name__)

WITHOUT_NETWORK = "without network: a local folder as the model, or training with --from_scratch mit-b0"


def read_config(name_or_path: str) -> PretrainedConfig:
    """The configuration of a segmentation architecture from the Hub, a folder, or a `config.json`.

    Raises:
        UserError: it cannot be reached or read, or is of an architecture that does not segment.
    """
    path = Path(name_or_path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(
            f"folder {path} holds no config.json, so no model (found: {first_few(p.name for p in path.iterdir())})"
        )
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except Exception as error:  # a damaged file can raise anything
        if path.exists():
            raise UserError(f"the configuration in {path} cannot be read: {one_line(error)}") from error
        raise UserError(
            f"{name_or_path} is no folder here, and the Hub did not give it: {one_line(error)} (private and gated "
            f"models need `hf auth login`; {WITHOUT_NETWORK})"
        ) from error
    if type(config) not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        known = sorted(config_class.model_type for config_class in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING)
        raise UserError(
            f"{name_or_path} is of type {config.model_type}; transformers segments images with {', '.join(known)}"
        )
    return config


def load_image_processor(
    name_or_path: str = "nvidia/mit-b0",
    from_scratch: str | None = None,
    image_size: int | None = None,
    do_reduce_labels: bool | None = None,
    num_channels: int | None = None,
) -> ImageProcessingMixin:
    """The image processor to be saved with the model, set to what training does.

    Args:
        name_or_path: Hub id or folder; where it has no image processor, SegFormer's with its defaults is taken.
        from_scratch: as for `model_utils.load_model`; not None means SegFormer's.
        image_size: side in pixels of its squares; None for the short side that the checkpoint's says.
        do_reduce_labels: None keeps the checkpoint's.
        num_channels: None keeps the checkpoint's. Mean and standard deviation of the first three channels stay; others
            get the average of those three, and so does an only one (or both of two).

    Raises:
        UserError: the checkpoint cannot be reached or read.
    """
    if from_scratch:
        image_processor = SegformerImageProcessor()
    else:
        read_config(name_or_path)  # so that an unreachable Hub is not taken for a missing preprocessor_config.json
        try:
            image_processor = AutoImageProcessor.from_pretrained(name_or_path)
        except (OSError, ValueError) as error:
            found = [path for path in _processor_files(name_or_path) if path.exists()]
            if found:
                raise UserError(f"{' or '.join(map(str, found))} cannot be read: {one_line(error)}") from error
            logger.warning(f"{name_or_path} has no image processor; SegFormer's is used")
            image_processor = SegformerImageProcessor()
    settings = image_processor.to_dict()
    # The name of `do_reduce_labels` in old files, which transformers 5 hands on without acting on it.
    settings.pop("reduce_labels", None)
    # A mask has to cover the image, whole and at the size that was asked for.
    changes = {key: False for key in ("do_center_crop", "keep_aspect_ratio") if settings.get(key)}
    side = image_size or EvaluationProtocol.from_image_processor(image_processor).short_side
    changes["size"] = {"height": side, "width": side}
    if do_reduce_labels is not None:
        changes["do_reduce_labels"] = do_reduce_labels
    if num_channels is not None:
        changes |= {key: _for_channels(settings[key], num_channels) for key in ("image_mean", "image_std")}
    return type(image_processor).from_dict(settings | changes)


def save_processor_config(
    output_dir: str | os.PathLike,
    image_processor: ImageProcessingMixin,
    protocol: EvaluationProtocol,
    image_sizes: Iterable[tuple[int, int]] = (),
) -> None:
    """Saves the image processor so that stock transformers shows the model what it was evaluated on, where it can.

    Where `protocol` resizes all images to one size, or to squares for an architecture that takes nothing else, that
    size is written and agreement is complete. Else no file can say that sides are rounded up to a multiple of 32:
    `preprocessor_config.json`, which every release reads, has squares, and `processor_config.json`, which
    transformers 5 reads first, short side `short_side` and long side at most four times that. Sliding windows and
    test-time augmentation cannot be written at all; the whole image is shown in one pass.

    Args:
        image_sizes: (height, width) of the images that the model was evaluated on.
    """
    side = protocol.short_side
    sizes = {(side, side)} if protocol.square else {protocol.input_size(*size) for size in set(image_sizes)}
    if len(sizes) == 1:
        ((height, width),) = sizes
        for_old = for_new = {"height": height, "width": width}
    else:
        for_old = {"height": side, "width": side}
        for_new = {"shortest_edge": side, "longest_edge": MAX_ASPECT_RATIO * side}
    settings, kind = image_processor.to_dict(), type(image_processor)
    kind.from_dict(settings | {"size": for_old}).save_pretrained(output_dir)
    content = {"image_processor": json.loads(kind.from_dict(settings | {"size": for_new}).to_json_string())}
    _, processor_file = _processor_files(output_dir)
    processor_file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _processor_files(folder: str | os.PathLike) -> tuple[Path, Path]:
    return Path(folder, "preprocessor_config.json"), Path(folder, "processor_config.json")


def _for_channels(values: list[float], num_channels: int) -> list[float]:
    """Values of the channels of a checkpoint → values of that many channels."""
    if len(values) == num_channels:
        return list(values)
    average = sum(values) / len(values)
    kept = list(values) if num_channels > len(values) else []
    return kept + [average] * (num_channels - len(kept))


def first_few(items: Iterable[str], count: int = 4) -> str:
    """The first few of many, and how many there are."""
    items = list(items)
    return ", ".join(items[:count]) + (f" … ({len(items)} in all)" if len(items) > count else "")


def one_line(error: Exception) -> str:
    """Type and first line of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
