"""Small datasets on disk, in every layout, and how they are loaded."""

from pathlib import Path

import numpy as np
from datasets import DatasetDict
from PIL import Image

from data.arguments import ClassArguments, DatasetArguments
from data.classes import ClassMap
from data_utils import Data, find_classes, load_data, load_segmentation_dataset

# Image and mask of a layout, below the dataset's folder.
LAYOUT_FILES = {
    "ADE20K": ("images/{ade}/{name}.jpg", "annotations/{ade}/{name}.png"),
    "split folders": ("{split}/images/{name}.jpg", "{split}/masks/{name}.png"),
    "images and masks by split": ("images/{split}/{name}.JPG", "masks/{split}/{name}.tif"),
    "CamVid": ("{split}/{name}.png", "{split}annot/{name}.png"),
    "Cityscapes": (
        "leftImg8bit/{split}/ulm/{name}_leftImg8bit.png",
        "gtFine/{split}/ulm/{name}_gtFine_labelTrainIds.png",
    ),
    "Pascal VOC": ("JPEGImages/{name}.jpg", "SegmentationClass/{name}.png"),
    "images and masks": ("images/{name}.jpeg", "masks/{name}.bmp"),
    "metadata": ("pictures/{name}.webp", "ids/{name}.gif"),
}


def save_pair(image_file: Path, mask_file: Path, ids: np.ndarray, seed: int = 0) -> None:
    """A mask, and a noisy image of its size."""
    for file in (image_file, mask_file):
        file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*ids.shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image_file)
    Image.fromarray(ids).save(mask_file)


def load(root: Path, cache_dir: Path | None = None, **flags) -> tuple[Data, ClassMap]:
    """A folder's data and classes, by fields of `DatasetArguments` and `ClassArguments`."""
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    class_flags = {name: flags.pop(name) for name in list(flags) if name in ClassArguments.__dataclass_fields__}
    data = load_data(DatasetArguments(dataset_dir=str(root), **flags))
    return data, find_classes(data, ClassArguments(**class_flags), cache_dir)


def load_splits(root: Path) -> DatasetDict:
    """A folder's pairs, by split."""
    return load_segmentation_dataset(dataset_dir=root)
