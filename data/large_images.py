"""Images that are read, resized and predicted a band of rows after the other, in memory that does not grow with them.

    image = open_large(path, num_channels=3)          # None: small enough to be read at once
    for rows in resized_rows(image, (512, 704)): ...  # uint8 (C, n, 704), the rows that `tvF.resize` would make

TIFF files are read through rasterio (optional), which decodes the rows that are asked for; others are decoded at once
by Pillow, if there is room.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF

from cli_utils import UserError, one_line
from data.image_files import EXIF_ORIENTATION, FORMATS

# Pixels above which an image is read in bands: where Pillow begins to warn.
LARGE_PIXELS = Image.MAX_IMAGE_PIXELS
# Of a band as it is read.
BAND_BYTES = 2**25


class UnreadableRows(UserError):
    """Some rows of an image cannot be decoded, which shows when it is nearly done."""


@dataclass(frozen=True)
class LargeImage:
    """size: height and width. read: first and last row (exclusive) → uint8 (C, rows, width)."""

    size: tuple[int, int]
    num_channels: int
    read: Callable[[int, int], Tensor]

    @property
    def band(self) -> int:
        """Rows that are read at a time."""
        return max(1, BAND_BYTES // (self.size[1] * self.num_channels))


@contextmanager
def no_limit() -> Iterator[None]:
    """Pillow's limit is for files of strangers that are decoded at once; here their size is looked at instead."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def large_size(path: Path) -> tuple[int, int] | None:
    """Height and width, as stored, of an image that `open_large` opens; None of others."""
    header = _large_header(path)
    return header and header[0]


def _large_header(path: Path) -> tuple[tuple[int, int], str, str, int] | None:
    """Height and width, format, mode and EXIF orientation."""
    try:
        with no_limit(), warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            size, kind, mode = image.size[::-1], image.format, image.mode
            orientation = Image.Image.getexif(image).get(EXIF_ORIENTATION, 1)
    except Exception:  # a decoder may raise anything on a damaged file
        return None
    return (size, kind, mode, orientation) if math.prod(size) > LARGE_PIXELS else None


def open_large(path: Path, num_channels: int) -> LargeImage | None:
    """An image of more than `LARGE_PIXELS`; None for others, and for what is no image, which reading it says.

    Raises:
        UserError: it does not fit into memory, or cannot be read in bands; says what to do.
    """
    header = _large_header(path)
    if header is None:
        return None
    size, kind, mode, orientation = header
    if kind == "TIFF" and find_spec("rasterio") and orientation == 1 and mode in ("L", "RGB", "RGBA", "RGBX"):
        return _open_raster(path, size, num_channels)
    # What decoding it, making it upright and converting it takes at most.
    needed, room = 3 * math.prod(size) * max(3, num_channels), psutil.virtual_memory().available
    if needed > room:
        raise UserError(
            f"{path} ({size[1]:,}x{size[0]:,} pixels need {needed / 2**30:.1f} GB to be decoded at once and there are "
            f"{room / 2**30:.1f}: convert it to an upright TIFF file of 8 bits a channel, as with gdal_translate -co "
            "TILED=YES, which is read in bands, and pip install rasterio)"
        )
    try:
        with no_limit(), Image.open(path, formats=FORMATS) as image:
            upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):
            raise ValueError(f"more than 8 bits a channel, mode {upright.mode}: convert it to 8 bits")
        channels = tvF.pil_to_tensor(upright.convert({1: "L", 3: "RGB"}.get(num_channels, upright.mode)))
        if len(channels) != num_channels:
            raise ValueError(f"{len(channels)} bands, --num_channels is {num_channels}")
    except Exception as error:
        raise UserError(f"{path} ({one_line(error)})") from None
    return LargeImage(tuple(channels.shape[1:]), num_channels, lambda first, stop: channels[:, first:stop])


def _open_raster(path: Path, size: tuple[int, int], num_channels: int) -> LargeImage:
    import rasterio
    from rasterio.windows import Window

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a georeference
        raster = rasterio.open(path)
    if raster.count < num_channels and not (raster.count == 1 and num_channels == 3):
        raise UserError(f"{path} ({raster.count} bands, --num_channels is {num_channels})")
    if set(raster.dtypes) != {"uint8"}:
        raise UserError(f"{path} (bands of {', '.join(set(raster.dtypes))}: convert them to 8 bits)")
    bands = [1] * 3 if raster.count == 1 and num_channels == 3 else list(range(1, num_channels + 1))

    # Two rows of its tiles, as a band may end within one, or the few rows of a very wide image; GDAL would take a
    # twentieth of the memory.
    cache = max(2**26, min(2 * raster.block_shapes[0][0], size[0]) * size[1] * raster.count)

    def read(first: int, stop: int) -> Tensor:
        try:
            with rasterio.Env(GDAL_CACHEMAX=cache):
                return torch.from_numpy(raster.read(bands, window=Window(0, first, size[1], stop - first)))
        except rasterio.errors.RasterioError as error:
            raise UnreadableRows(f"{path} (rows {first} to {stop}: {one_line(error)})") from None

    return LargeImage(size, num_channels, read)


# ---- what is predicted of them ----


class RowsOnDisk:
    """Rows uint8 (n, W) that come one band after the other and are then wanted as a whole, in a file of a folder that
    has no name and goes with the context. Of what is mapped into memory the system holds as much as there is room for.
    """

    def __init__(self, folder: Path | None = None):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        self.file, self.bands, self.width = TemporaryFile(dir=folder), [], 0

    def __enter__(self) -> "RowsOnDisk":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def write(self, rows: np.ndarray) -> None:
        # Through the file: of a full disk a mapping would tell by ending the process.
        self.file.write(np.ascontiguousarray(rows, np.uint8).data)
        self.bands.append(len(rows))
        self.width = rows.shape[1]

    def whole(self) -> np.ndarray:
        """All rows, (H, W); what is changed there is changed in the file."""
        self.file.flush()
        return np.asarray(np.memmap(self.file, np.uint8, "r+", shape=(sum(self.bands), self.width)))

    def again(self) -> Iterator[np.ndarray]:
        """The bands as they came."""
        rows, top = self.whole(), 0
        for height in self.bands:
            yield rows[top : top + height]
            top += height


# ---- resizing -------------------------------------------------------------------------------------------------------


def _weights(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Of antialiased bilinear resizing of uint8: first and last (exclusive) input of each output, integer weights
    (size, taps), and how many binary digits these have.

    Source: aten/src/ATen/native/cpu/UpSampleKernel.cpp, `compute_index_ranges_int16_weights`.
    """
    scale = length / size
    support = max(scale, 1.0)
    center = (np.arange(size) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    stop = np.minimum((center + support + 0.5).astype(np.int64), length)
    place = first[:, None] + np.arange((stop - first).max())
    weights = np.maximum(1 - np.abs(place - center[:, None] + 0.5) / support, 0) * (place < stop[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    digits = int((np.floor(0.5 + weights.max() * 2.0 ** np.arange(1, 23)) < 2**15).sum())
    return first, stop, (weights * 2**digits + 0.5).astype(np.int32), digits


def resized_rows(image: LargeImage, size: tuple[int, int]) -> Iterator[Tensor]:
    """The image at `size` (height, width), antialiased and bilinear, some rows after the other, uint8 (C, n, width).

    Together they are what `tvF.resize` makes of the whole image on a CPU, bit for bit: columns first, which it does of
    a band as of the whole, then rows.
    """
    (length, _), (height, width) = image.size, size
    first, stop, weights, digits = _weights(length, height)
    held, start, done = torch.empty(image.num_channels, 0, width, dtype=torch.uint8), 0, 0
    for top in range(0, length, image.band):
        band = image.read(top, min(length, top + image.band))
        band = tvF.resize(band, [band.shape[1], width], antialias=True)
        held = torch.cat([held[:, max(0, first[done] - start) :], band], dim=1)
        start = max(start, int(first[done]))
        ready = int(np.searchsorted(stop, start + held.shape[1], side="right"))
        if ready > done:
            rows = torch.zeros(image.num_channels, ready - done, width, dtype=torch.int32)
            for tap in range(weights.shape[1]):
                index = torch.from_numpy(np.minimum(first[done:ready] + tap, length - 1) - start)
                rows += (
                    held[:, index.clamp(max=held.shape[1] - 1)] * torch.from_numpy(weights[done:ready, tap])[:, None]
                )
            yield ((rows + 2 ** (digits - 1)) >> digits).clamp(max=255).to(torch.uint8)
            done = ready
        if done == height:
            return
