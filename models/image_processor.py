"""The image processor saved next to a model's weights: read, adapted to the data, and written as it was evaluated."""

import json
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path

from transformers import (
    AutoImageProcessor,
    EomtImageProcessor,
    Mask2FormerImageProcessor,
    MaskFormerImageProcessor,
    SegformerImageProcessor,
)
from transformers.image_processing_base import ImageProcessingMixin

from cli_utils import UserError, one_line, write_text
from data.arguments import MAX_SIDE
from data.bands import BandStatistics
from data.image_files import EIGHT_BITS, WIDE_DTYPES
from data.preprocessing import MAX_ASPECT_RATIO, EvaluationProtocol, short_side_of
from models.configurations import is_eomt
from models.loading import find_config

logger = logging.getLogger(__name__)
# Of the types whose output needs its own post-processing.
_KINDS = {
    "eomt": EomtImageProcessor,
    "eomt_dinov3": EomtImageProcessor,
    "mask2former": Mask2FormerImageProcessor,
    "maskformer": MaskFormerImageProcessor,
}


def load_image_processor(
    name_or_path: str = "nvidia/mit-b0",
    from_scratch: str | None = None,
    revision: str | None = None,
    image_size: int | None = None,
    do_reduce_labels: bool | None = None,
    num_channels: int | None = None,
    head: str | None = None,
) -> ImageProcessingMixin:
    """The image processor to be saved with the model, set to what training does.

    Args:
        name_or_path: Hub id or folder; where it has no image processor, SegFormer's with its defaults is taken.
        from_scratch: as for `models.loading.load_model`; not None means SegFormer's.
        revision: branch, tag or commit of a model on the Hub.
        image_size: side in pixels of its squares; None for the short side that the checkpoint's says.
        do_reduce_labels: None keeps the checkpoint's.
        num_channels: None keeps the checkpoint's, and one that has measured its bands takes no other. Mean and
            standard deviation of the first three channels stay; others get the average of those three, and so does an
            only one (or both of two).
        head: as for `load_model`. A backbone's processor is one for classification, so SegFormer's is taken with the
            backbone's mean and standard deviation, and with its own side of 512 pixels.

    Raises:
        UserError: the checkpoint cannot be reached or read.
    """
    # An unreachable Hub is not to be taken for a missing preprocessor_config.json.
    config = find_config(name_or_path, from_scratch, revision, head)
    own_kind = _KINDS.get(config.model_type, SegformerImageProcessor)
    if from_scratch:
        image_processor = own_kind()
    else:
        try:
            image_processor = AutoImageProcessor.from_pretrained(
                name_or_path, revision=revision, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            if "trust_remote_code" in str(error):
                raise UserError(
                    f"the image processor of {name_or_path} is code of its own (auto_map in its configuration), which "
                    "is never run here; one of transformers' image processors in preprocessor_config.json would do"
                ) from None
            files = [Path(name_or_path, f"{name}_config.json") for name in ("preprocessor", "processor")]
            found = [file for file in files if file.exists()]
            if found:
                raise UserError(f"{' or '.join(map(str, found))} cannot be read: {one_line(error)}") from error
            logger.warning(f"{name_or_path} has no image processor; {own_kind.__name__} is used")
            image_processor = own_kind()
    if head:
        of_backbone = image_processor.to_dict()
        of_timm = of_backbone.get("data_config", {})
        of_backbone |= {f"image_{key}": of_timm[key] for key in ("mean", "std") if key in of_timm}
        statistics = {key: of_backbone[key] for key in ("image_mean", "image_std") if of_backbone.get(key)}
        image_processor = own_kind(**statistics)
    settings = image_processor.to_dict()
    _check_numbers(settings, from_scratch or name_or_path)
    # The name of `do_reduce_labels` in old files, which transformers 5 hands on without acting on it.
    settings.pop("reduce_labels", None)
    # Saved with the model it would ask whoever loads it to run that code.
    settings.pop("auto_map", None)
    # A mask has to cover the image, whole and at the size that was asked for.
    changes = {key: False for key in ("do_center_crop", "keep_aspect_ratio") if settings.get(key)}
    side = image_size or short_side_of(SegformerImageProcessor() if from_scratch or head else image_processor)
    if is_eomt(config):
        side = image_size or config.image_size
    changes["size"] = {"height": side, "width": side}
    if "do_split_image" in settings:  # EoMT's windows, with which masks of pixels are made
        changes |= {"size": {"shortest_edge": side, "longest_edge": None}, "do_split_image": True}
        changes["do_pad"] = False
    if do_reduce_labels is not None:
        changes["do_reduce_labels"] = do_reduce_labels
    dtype, mean = settings.get("image_dtype", EIGHT_BITS), settings.get("image_mean")
    if dtype != EIGHT_BITS and num_channels not in (None, len(mean)):
        raise UserError(
            f"--num_channels is {num_channels}, but {name_or_path} was trained on {len(mean)} bands of {dtype}, each "
            "with a mean of its own; leave the flag out"
        )
    if num_channels is not None:
        changes |= {key: _for_channels(settings[key], num_channels) for key in ("image_mean", "image_std")}
    return type(image_processor).from_dict(settings | changes)


def normalized_by(
    image_processor: ImageProcessingMixin, found: BandStatistics | None, source: str, trains: bool
) -> ImageProcessingMixin:
    """The image processor for images of these bands: `image_mean` and `image_std` in the images' own numbers,
    `rescale_factor` 1, and `image_dtype`, what they are; of a model that has been trained on such bands, its own.

    Args:
        found: of `data.bands.band_statistics`. source: the model's name, for messages.
        trains: whether the model is to be trained; else it must know them.

    Raises:
        UserError: the model was trained on other numbers, or there are no images to measure them on.
    """
    settings = image_processor.to_dict()
    known, dtype = settings.get("image_dtype", EIGHT_BITS), found.dtype if found else EIGHT_BITS
    if known == dtype:
        return image_processor
    if known != EIGHT_BITS or not trains:
        raise UserError(
            f"the images have bands of {dtype}, and {source} was trained on {known}: convert them to what that had, "
            "or train a model on them"
        )
    if not found.mean:
        raise UserError(f"no training images, on which the bands of {dtype} could be measured")
    changes = {"image_mean": list(found.mean), "image_std": list(found.std), "image_dtype": dtype}
    changes |= {"do_normalize": True, "do_rescale": True, "rescale_factor": 1.0}
    if "do_flip_channel_order" in settings:
        changes["do_flip_channel_order"] = False
    return type(image_processor).from_dict(settings | changes)


def _check_numbers(settings: dict, source: str) -> None:
    """Raises UserError for numbers that would make nonsense of every image, as NaN does, or more of it than fits."""

    def are_numbers(values, least: float) -> bool:
        return all(isinstance(value, int | float) and least < value < math.inf for value in values)

    mean, std, size = (settings.get(key) for key in ("image_mean", "image_std", "size"))
    sides = [side for side in size.values() if side is not None] if isinstance(size, dict) else []
    factor, dtype = settings.get("rescale_factor"), settings.get("image_dtype", EIGHT_BITS)
    kinds = (EIGHT_BITS, *WIDE_DTYPES)
    for key, value, fits, allowed in (
        ("image_mean", mean, not mean or are_numbers(mean, -math.inf), "numbers"),
        ("image_std", std, not std or are_numbers(std, 0), "positive numbers"),
        ("image_std", std, not (mean and std) or len(mean) == len(std), f"as many numbers as image_mean, {mean}"),
        ("image_dtype", dtype, dtype in kinds, " or ".join(kinds)),
        ("rescale_factor", factor, factor is None or are_numbers([factor], 0), "a positive number"),
        ("size", size, are_numbers(sides, 0) and max(sides, default=1) <= MAX_SIDE, f"1 to {MAX_SIDE} pixels a side"),
    ):
        if not fits:
            raise UserError(
                f"the image processor of {source} (preprocessor_config.json or processor_config.json) has {key} "
                f"{value!r:.100}; it must be {allowed}"
            )


def save_processor_config(
    output_dir: str | os.PathLike,
    image_processor: ImageProcessingMixin,
    protocol: EvaluationProtocol,
    image_sizes: Iterable[tuple[int, int]] = (),
) -> None:
    """Saves the image processor so that stock transformers shows the model what it was evaluated on, where it can.

    Where `protocol` resizes all images to one size, or to squares for an architecture that takes nothing else, that
    size is written and agreement is complete. Else no file can say that sides are rounded up to a multiple:
    `preprocessor_config.json`, which every release reads, has squares, and `processor_config.json`, which
    transformers 5 reads first, short side `short_side` and long side at most four times that. Sliding windows and
    test-time augmentation cannot be written at all; the whole image is shown in one pass.

    Args:
        image_sizes: (height, width) of the images that the model was evaluated on.
    """
    side = protocol.short_side
    sizes = {(side, side)} if protocol.square else {protocol.input_size(*size) for size in set(image_sizes)}
    if protocol.even_windows:  # its own image processor cuts them, too
        for_old = for_new = {"shortest_edge": side, "longest_edge": None}
    elif len(sizes) == 1:
        ((height, width),) = sizes
        for_old = for_new = {"height": height, "width": width}
    else:
        for_old = {"height": side, "width": side}
        for_new = {"shortest_edge": side, "longest_edge": MAX_ASPECT_RATIO * side}
    settings, kind = image_processor.to_dict(), type(image_processor)
    kind.from_dict(settings | {"size": for_old}).save_pretrained(output_dir)
    content = {"image_processor": json.loads(kind.from_dict(settings | {"size": for_new}).to_json_string())}
    write_text(Path(output_dir, "processor_config.json"), json.dumps(content, indent=2, sort_keys=True) + "\n")


def _for_channels(values: list[float], num_channels: int) -> list[float]:
    """Values of the channels of a checkpoint → values of that many channels."""
    if len(values) == num_channels:
        return list(values)
    average = sum(values) / len(values)
    kept = list(values) if num_channels > len(values) else []
    return kept + [average] * (num_channels - len(kept))
