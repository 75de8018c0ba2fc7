"""JPEG photos straight into tensors by simplejpeg, where it is installed: the pixels that Pillow gives, in two thirds
of its time or less."""

from contextlib import suppress

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvF

from data.image_files import EIGHT_BITS, EXIF_ORIENTATION, FORMATS, StoredFile, decode_image

try:
    import simplejpeg
except ImportError:  # optional
    simplejpeg = None


def decode_pixels(
    image: StoredFile, num_channels: int = 3, reduction: int = 1, dtype: str = EIGHT_BITS
) -> torch.Tensor:
    """`data.image_files.decode_image` as a tensor (C, H, W); raises what that raises."""
    pixels = None
    if num_channels == 3 and dtype == EIGHT_BITS and simplejpeg is not None:
        with suppress(Exception):  # of a damaged file, of which Pillow says more
            pixels = _decode_plain_jpeg(image, reduction)
    if pixels is None:
        decoded = decode_image(image, num_channels, reduction, dtype)
        pixels = decoded if isinstance(decoded, torch.Tensor) else tvF.pil_to_tensor(decoded)
    return pixels


def decode_jpeg(content: bytes) -> torch.Tensor:
    """A JPEG file of RGB that needs no turning → uint8 (3, H, W)."""
    if simplejpeg is None:
        return decode_pixels(StoredFile(None, content, "a JPEG file"))
    return _as_planes(simplejpeg.decode_jpeg(content))


def _decode_plain_jpeg(image: StoredFile, reduction: int) -> torch.Tensor | None:
    """None for what is no JPEG file of RGB, or lies on its side."""
    with image.stream() as file, Image.open(file, formats=FORMATS) as header:
        if header.format not in ("JPEG", "MPO") or header.mode != "RGB":
            return None
        if header.getexif().get(EXIF_ORIENTATION, 1) != 1:
            return None
        if reduction == 1 or header.format == "MPO":
            least = (0, 0)
        else:
            least = (header.height // reduction, header.width // reduction)
        file.seek(0)
        return _as_planes(simplejpeg.decode_jpeg(file.read(), min_height=least[0], min_width=least[1]))


def _as_planes(colors) -> torch.Tensor:
    return torch.from_numpy(colors).permute(2, 0, 1)
