"""Images with any number of channels: from a file to a uint8 tensor, and from that to something to look at.

RGB images need none of this: `datasets` and Pillow read them. `--num_channels 1` reads everything as grey; 4 and more
are the bands of the files as they are: RGBA PNGs, multi-band TIFFs (through `tifffile`, planar or interleaved). Bands
have 8 bits: deeper ones would have to be scaled, and only their owner knows from where to where.
"""

import io
import os
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as tvF

from cli_utils import UserError

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian; + is BigTIFF


def read_channels(source: str | os.PathLike | bytes, num_channels: int, name: str | None = None) -> torch.Tensor:
    """Decodes an image file, upright as its EXIF orientation says → uint8 (num_channels, H, W).

    Args:
        source: a file, or what is in one.
        num_channels: 1 and 3: the image as grey or RGB, whatever it was, transparency dropped. Others: the file's own
            bands, which must be that many.
        name: what messages call it; default: the file.

    Raises:
        UserError: not readable, more than 8 bits a channel, or another number of bands.
    """
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        # Pillow knows few kinds of multi-band TIFFs, and of those it drops bands, or divides them by the fourth.
        read = _read_tiff if content.startswith(TIFF_SIGNATURES) and num_channels not in (1, 3) else _read_with_pillow
        channels = read(content, num_channels)
        if len(channels) == num_channels:
            return channels
        reason = f"{len(channels)} bands, --num_channels is {num_channels}; all images must have the same"
        if num_channels in channels.shape[1:]:
            # As `tifffile.imwrite` stores (H, W, bands) unless it is told.
            reason += "; written by tifffile, it needs planarconfig='contig', photometric='minisblack'"
    except PIL.UnidentifiedImageError:
        reason = "no image, or of an unknown format"
    except Exception as error:  # a decoder may raise anything on a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise UserError(f"{name or (f'{len(source)} bytes' if isinstance(source, bytes) else source)} ({reason})")


def rgb_view(image: Image.Image | torch.Tensor) -> Image.Image:
    """Something to look at: a PIL image as it is; of uint8 (C, H, W) the first three bands, or the first in grey."""
    if isinstance(image, Image.Image):
        return image
    return tvF.to_pil_image(image[:3] if len(image) >= 3 else image[:1]).convert("RGB")


def _read_with_pillow(content: bytes, num_channels: int) -> torch.Tensor:
    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        # Pillow would cut them off at 255. Training refuses them for the same reason.
        raise ValueError(f"more than 8 bits a channel, mode {upright.mode}: convert it to 8 bits")
    modes = {1: "L", 3: "RGB"}
    return tvF.pil_to_tensor(upright.convert(modes.get(num_channels, upright.mode)))


def _read_tiff(content: bytes, num_channels: int) -> torch.Tensor:
    """The bands of the first image in a TIFF file."""
    try:
        import tifffile
    except ImportError:
        raise ValueError(f"a TIFF file of {num_channels} bands needs tifffile: pip install tifffile") from None
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series = file.series[0]
        axes, array = series.axes, series.asarray()
        orientation = series.keyframe.tags.valueof("Orientation", default=1)
    # Bands are samples of a pixel, planes, or pages of their own: one axis, for which there are many letters.
    others = axes.replace("Y", "").replace("X", "")
    if len(axes) - len(others) != 2 or len(others) > 1:
        raise ValueError(f"no image but an array of {'x'.join(map(str, array.shape))} with the axes {axes}")
    if array.dtype != np.uint8:
        raise ValueError(f"bands of {array.dtype}: convert them to 8 bits, scaled as they are to be seen")
    if orientation != 1:
        raise ValueError(f"stored turned or mirrored, TIFF orientation {orientation}: store it upright")
    bands = np.moveaxis(array, axes.index(others), 0) if others else array[None]
    return torch.from_numpy(np.ascontiguousarray(bands))
