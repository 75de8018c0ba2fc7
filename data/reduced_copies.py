"""Copies of photos that are far larger than training ever shows them, at the size that it needs at most.

    splits = with_reduced_copies(splits, transform)     # the training images get a column "copy"

They lie beside the prepared masks, which stay as large as they are. Evaluation and prediction read the photos.
"""

import io
import logging
import math
import os
import shutil
from functools import partial
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from cli_utils import UserError, count_of
from data.augmentation import TrainTransform, size_at_scale
from data.bulk import column_of
from data.image_files import StoredFile
from data.jpeg_files import decode_pixels
from data.preparation import cached_map, prepared_folder

logger = logging.getLogger(__name__)

COPY = "copy"
LEAST_REDUCTION = 2  # of both sides; of smaller ones a copy would be read hardly faster
# Without subsampling of colours, which would double the difference to the photo itself (docs/scaling.md).
QUALITY, SUBSAMPLING = 95, 0
BYTES_PER_PIXEL = 0.7  # about, of detailed photos


def with_reduced_copies(
    splits: DatasetDict,
    transform: TrainTransform,
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
) -> DatasetDict:
    """Prepared splits, the training images as `add_copies` makes them; logs how many are copied and what it takes."""
    if "train" not in splits:
        return splits
    train = add_copies(splits["train"], transform, cache_dir, num_proc)
    if COPY not in train.column_names:
        return splits
    size = train.data.column(COPY).nbytes / 2**20
    logger.info(
        f"{count_copies(train)} of {count_of(len(train), 'training image')} are read from copies, as they are at "
        f"least {LEAST_REDUCTION} times as large as training needs: {size:.0f} MiB in {prepared_folder(cache_dir)} "
        "(--no_reduced_copies makes none)"
    )
    return DatasetDict({**splits, "train": train})


def count_copies(rows: Dataset) -> int:
    """Images that training reads from copies."""
    return len(rows) - rows.data.column(COPY).null_count if COPY in rows.column_names else 0


def add_copies(
    train: Dataset,
    transform: TrainTransform,
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
) -> Dataset:
    """Prepared training images with a column "copy": a JPEG file, or None where the photo is not at least
    `LEAST_REDUCTION` times as large as the transform makes it at most. As they are if there is no such photo.

    Args:
        train: a split of `checks.judge.prepare_dataset`.
        cache_dir, num_proc: as for `data.preparation.prepare_pairs`. The name of the file in it depends on the photos
            and on the size that is needed.

    Raises:
        UserError: the disk has no room.
    """
    if transform.protocol.num_channels != 3 or transform.protocol.is_wide:
        return train
    options = {"short_side": transform.protocol.short_side, "ratio": transform.scale_range[1]}
    sizes = zip(column_of(train, "height").tolist(), column_of(train, "width").tolist(), strict=True)
    sizes = [size for size in (size_of_copy(*size, **options) for size in sizes) if size]
    if not sizes:
        return train
    copies = cached_map(
        train,
        copy_example,
        Features({COPY: Value("binary")}),
        options,
        cache_dir,
        num_proc,
        "copying large photos",
        before=partial(_check_room, prepared_folder(cache_dir), sum(map(math.prod, sizes)) * BYTES_PER_PIXEL),
    )
    return concatenate_datasets([train, copies], axis=1)


def size_of_copy(height: int, width: int, short_side: int, ratio: float) -> list[int] | None:
    """Height and width of the copy of a photo of this size, in pixels; None where none is made.

    short_side, ratio: of `size_at_scale`, the largest.
    """
    needed = size_at_scale(height, width, short_side, ratio)
    return needed if height >= LEAST_REDUCTION * needed[0] and width >= LEAST_REDUCTION * needed[1] else None


def _check_room(folder: Path, size: float) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"copies of the training photos need about {size / 2**20:.0f} MiB in {folder}, and {free / 2**20:.0f} MiB "
            "are free there: make room, name another disk in HF_DATASETS_CACHE, or leave them out: --no_reduced_copies"
        )


def copy_example(image: dict, label: dict, name: str, short_side: int, ratio: float) -> dict:
    """One row of `with_reduced_copies`."""
    file = StoredFile.of(image, name)
    header = file.header()
    if header is None:
        return {COPY: None}
    width, height = header.upright
    size = size_of_copy(height, width, short_side, ratio)
    if size is None:
        return {COPY: None}
    # Bicubic, as bilinear resizing here and once more for the crop would blur twice.
    pixels = tvF.resize(decode_pixels(file), size, interpolation=InterpolationMode.BICUBIC, antialias=True)
    content = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(content, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    return {COPY: content.getvalue()}
