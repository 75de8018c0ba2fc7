"""Small photographs and masks anywhere, for folders of any layout."""

from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 16, 12


def photo(file: Path, seed: int = 0) -> None:
    """A picture of many colours."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def spots(file: Path, seed: int = 0) -> np.ndarray:
    """A mask of the values 0, 1 and 2."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[2 + seed % 4 : 8, 3:9] = 1
    ids[5:10, 8 + seed % 5 : 14] = 2
    Image.fromarray(ids).save(file)
    return ids


def write_tree(root: Path, pairs: dict[str, str]) -> None:
    """Image file → mask file, relative to the folder."""
    for seed, (image, mask) in enumerate(pairs.items()):
        photo(root / image, seed)
        spots(root / mask, seed)
