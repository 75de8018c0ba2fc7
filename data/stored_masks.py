"""How prepared masks are kept: as TIFF files compressed with zstd, which any program opens, and this module reads five
to ten times as fast as PNG files."""

import io
import struct

import numpy as np
import pyarrow as pa
from PIL import Image

# One strip of grey pixels of 8 bits; TIFF 6.0, and libtiff's number for zstd.
_TAGS = struct.Struct("<H" + 9 * "HHII" + "I")
_START = b"II*\0\x08\0\0\0"
_ZSTD, _ZSTD_MAGIC, _LEVEL = 50000, b"\x28\xb5\x2f\xfd", 3
_PIXELS_AT = len(_START) + _TAGS.size
_SHORT, _LONG = 3, 4


def encode_mask(ids: np.ndarray) -> bytes:
    """uint8 (H, W) → a TIFF file."""
    height, width = ids.shape
    pixels = pa.Codec("zstd", _LEVEL).compress(np.ascontiguousarray(ids), asbytes=True)
    entries = (
        *(256, _LONG, 1, width),
        *(257, _LONG, 1, height),
        *(258, _SHORT, 1, 8),  # bits
        *(259, _SHORT, 1, _ZSTD),
        *(262, _SHORT, 1, 1),  # 0 is black
        *(273, _LONG, 1, _PIXELS_AT),
        *(277, _SHORT, 1, 1),  # channels
        *(278, _LONG, 1, height),  # rows of the strip
        *(279, _LONG, 1, len(pixels)),
    )
    return _START + _TAGS.pack(9, *entries, 0) + pixels


def decode_mask(content: bytes) -> np.ndarray:
    """What `encode_mask` made of uint8 (H, W), or another file of a mask with one channel of 8 bits."""
    if not (content.startswith(_START) and content.startswith(_ZSTD_MAGIC, _PIXELS_AT)):
        return np.array(Image.open(io.BytesIO(content)))
    entries = _TAGS.unpack_from(content, len(_START))
    width, height = entries[4], entries[8]
    pixels = pa.Codec("zstd").decompress(memoryview(content)[_PIXELS_AT:], height * width)
    return np.frombuffer(pixels, np.uint8).reshape(height, width)
