"""Reading an image and its mask: decoded, upright, and the mask as an array of values, colours among them resolved.

`read_pair`, or `fit_mask` of files that are open already, is what preparing and checking a dataset share; what it
cannot use is a `FileProblem`.
"""

import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as tvF

from cli_utils import UserError, one_line
from data.classes import ClassMap
from metrics_utils import IGNORE_INDEX

EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # its values for which width and height change places
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian; + is BigTIFF
# How a mask was read, where that is worth a warning.
BY_COLOR, BY_CHANNEL = "read by the colours of their classes", "read from one of several equal channels"
BY_PALETTE = "read by the colours of their palettes, as the indices are no class"
BY_INDEX = "read by their indices, although their palettes show other classes' colours"
# Stray colours are mixtures of others if there are more than a class list can have, or many with few pixels each.
MAX_COLORS, MIXED_COLORS, MIXED_SHARE = 255, 8, 0.05
COLOR_LIST = "give the list of classes with their colours: --id2label FILE, a CSV with the columns name,r,g,b or JSON"
# What can be wrong with a file, and what to do about it.
PROBLEMS = {
    "unreadable": ("files cannot be read", "mend them, or delete them together with their image or mask"),
    "image depth": ("images have more than 8 bits a channel", "convert them to 8 bits, scaled as they are to be seen"),
    "size": ("masks differ in size from their image", "every pixel of an image needs its own label"),
    "colors": (
        "masks hold colours or fractions instead of class ids",
        f"{COLOR_LIST}; or write masks with one channel of integers, a class id for each pixel",
    ),
    "unknown colors": (
        "masks hold colours that no class has",
        "add each to the list of classes (--id2label), as a class of its own; if it stands for void or background, "
        "--drop_classes NAME then ignores it",
    ),
    "lossy colors": (
        "masks hold many colours that no class has, as lossy compression and resizing with interpolation mix them",
        "export them again as PNG files and resize with nearest neighbour; if they are as they were drawn, the list "
        "of classes (--id2label) is another one's",
    ),
    "lossy values": (
        "masks have lossy compression (JPEG or WebP) and hold values that are no class",
        "it changes values; write masks as PNG files from their source",
    ),
    "values": ("masks hold values that are no class", None),  # see `data.preparation.likely_cause`
}


class FileProblem(Exception):
    """A file that cannot be used. kind: a key of `PROBLEMS`; detail: the file's name and what was found."""

    def __init__(self, kind: str, detail: str):
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


def file_name(value: dict, name: str) -> str:
    """What messages call an image or mask: its file, or the row of a dataset that keeps bytes."""
    return Path(value["path"]).name if value["path"] else name


def open_image(value: dict | None, name: str) -> Image.Image:
    """Decodes a file or its bytes completely, as stored: neither turned nor converted."""
    if value is None:
        raise FileProblem("unreadable", f"{name} (the image or the mask of this row is empty)")
    try:
        with Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"])) as image:
            image.load()
            return image
    except PIL.UnidentifiedImageError:
        reason = "no image, or of an unknown format"
    except Exception as error:  # a decoder may raise anything on a damaged file
        reason = one_line(error)
    raise FileProblem("unreadable", f"{file_name(value, name)} ({reason})")


def open_picture(image: dict | None, name: str, num_channels: int = 3) -> Image.Image:
    """The image of a pair as stored; of other numbers of channels than 1 and 3, an RGB view of its bands, upright."""
    if num_channels in (1, 3) or image is None:
        return open_image(image, name)
    try:
        source = image["path"] if image["bytes"] is None else image["bytes"]
        return rgb_view(read_channels(source, num_channels, file_name(image, name)))
    except UserError as error:
        raise FileProblem("unreadable", str(error)) from None


def read_pair(
    image: dict, label: dict, name: str, class_map: ClassMap | None = None, num_channels: int = 3
) -> tuple[np.ndarray, str]:
    """Opens both files of a pair and returns what `fit_mask` does.

    Args:
        image, label: {"bytes", "path"}. name: of their row.
        num_channels: of the image.

    Raises:
        FileProblem: either cannot be used.
    """
    picture = open_picture(image, name, num_channels)
    return fit_mask(picture, open_image(label, name), image, label, name, class_map)


def fit_mask(
    picture: Image.Image, mask: Image.Image, image: dict, label: dict, name: str, class_map: ClassMap | None = None
) -> tuple[np.ndarray, str]:
    """The mask of a pair, raw values (H, W), upright like its image, and a note on what was done to it.

    Cameras store pictures as the sensor sees them, with an EXIF entry that says how to turn them. Viewers, `datasets`
    and most annotation tools obey it; others draw on the picture as stored, and some leave the entry in a mask that
    was turned already. The size tells.

    Args:
        picture, mask: of `open_picture` and `open_image`.
        image, label, name: what they were opened from.
        class_map: gives the colours by which masks in colours are read.

    Raises:
        FileProblem: either cannot be used.
    """
    if picture.mode.startswith(("I", "F")):
        raise FileProblem("image depth", f"{file_name(image, name)} (mode {picture.mode})")
    orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
    upright = picture.size[::-1] if orientation in SIDEWAYS else picture.size
    turned, note = ImageOps.exif_transpose(mask), ""
    if turned.size != upright and mask.size == upright:
        turned, note = mask, "not turned, against their EXIF orientation, to fit their images"
    elif turned.size != upright and mask.size == picture.size:
        mask.getexif()[EXIF_ORIENTATION] = orientation
        turned, note = ImageOps.exif_transpose(mask), "turned like their images, as the EXIF orientation of these says"
    if turned.size != upright:
        found, needed = ("x".join(map(str, size)) for size in (turned.size, upright))
        raise FileProblem("size", f"{file_name(label, name)} is {found}, {file_name(image, name)} {needed}")
    try:
        ids, mode_note = ids_of(turned, file_name(label, name), class_map)
    except FileProblem as problem:
        if problem.kind == "unknown colors" and is_lossy_file(label):
            problem = FileProblem("lossy colors", problem.detail)
        raise problem from None
    return ids, note or mode_note


def is_lossy_file(value: dict) -> bool:
    """Whether an image or mask, {"bytes", "path"}, lost something in compression."""
    with open(value["path"], "rb") if value["bytes"] is None else io.BytesIO(value["bytes"]) as file:
        return is_lossy(file)


def is_lossy(file: BinaryIO) -> bool:
    """Whether an image file is compressed with loss: JPEG, or WebP with a lossy bitstream, as its chunks tell.

    Source: RFC 9649, WebP Image Format.
    """
    head = file.read(12)
    if head.startswith(b"\xff\xd8\xff"):
        return True
    if head[:4] != b"RIFF" or head[8:] != b"WEBP":
        return False
    while len(chunk := file.read(8)) == 8:
        kind, size = chunk[:4], int.from_bytes(chunk[4:], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8 "
        # A frame of an animation has 16 bytes of its own, then chunks.
        file.seek(16 if kind == b"ANMF" else size + size % 2, io.SEEK_CUR)
    return False


# ---- masks as values ------------------------------------------------------------------------------------------------


def ids_of(mask: Image.Image, file: str, class_map: ClassMap | None = None) -> tuple[np.ndarray, str]:
    """A decoded mask → its values (H, W) of any integer dtype, and a note.

    Palette indices, 16-bit values and single bits (0, 1) are read as ids, and so are several equal channels. Colours
    are read where the class list has them: those of the pixels, or, where indices are no class, those of the palette
    in the file. What is transparent counts by its colour.

    Args:
        file: what messages call it.

    Raises:
        FileProblem: it has neither ids nor colours of classes.
        UserError: it has colours, and the class list has one for several classes.
    """
    array = np.asarray(mask)
    if mask.mode == "1":
        return array.astype(np.uint8), ""
    if mask.mode == "L" or mask.mode.startswith("I"):
        return array, ""
    has_colors = class_map is not None and (class_map.palette is not None or class_map.raw_colors is not None)
    if mask.mode == "P":
        return _ids_of_indices(mask, array, class_map) if has_colors else (array, "")
    if mask.mode not in ("LA", "RGB", "RGBA"):
        raise FileProblem("colors", f"{file} (mode {mask.mode})")
    channels = array[..., [0, 0, 0] if mask.mode == "LA" else [0, 1, 2]]
    alpha = [255] if mask.mode == "RGB" else np.unique(array[..., -1]).tolist()
    is_gray = len(alpha) == 1 and bool((channels == channels[..., :1]).all())
    by_channel = channels[..., 0], f"{BY_CHANNEL} (mode {mask.mode})"
    if is_gray and not has_colors:
        return by_channel
    packed = packed_colors(channels)
    if not has_colors or (len(alpha) > 1 and alpha != [0, 255]):
        raise FileProblem("colors", f"{file} (mode {mask.mode}, {len(np.unique(packed))} colours)")
    if is_gray and _is_ambiguous(class_map):
        return by_channel
    values = class_map.values_by_color()
    ids, is_stray = _look_up(packed, values)
    if not is_stray.any():
        return ids, BY_COLOR
    if is_gray and not len(class_map.unknown_values(np.unique(channels[..., 0]))):
        return by_channel
    raise _stray_colors(packed, is_stray, class_map, file)


def _is_ambiguous(class_map: ClassMap) -> bool:
    """Whether several classes have one colour, as in ADE20K; no matter for masks that can be read otherwise."""
    try:
        class_map.values_by_color()
    except UserError:
        return True
    return False


def packed_colors(colors: np.ndarray) -> np.ndarray:
    """RGB, uint8 (..., 3) → 24 bits in an int32 (...)."""
    red, green, blue = np.moveaxis(colors.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _look_up(packed: np.ndarray, values: dict[tuple[int, int, int], int]) -> tuple[np.ndarray, np.ndarray]:
    """Colours → raw values, and where a colour is none of a class's; both (H, W)."""
    known = packed_colors(np.array(list(values), np.uint8))
    order = np.argsort(known)
    known, raw = known[order], np.array(list(values.values()), np.int32)[order]
    position = np.searchsorted(known, packed).clip(max=len(known) - 1)
    return raw[position], known[position] != packed


def _stray_colors(packed: np.ndarray, is_stray: np.ndarray, class_map: ClassMap, file: str) -> FileProblem:
    """What to say of a mask with colours that no class has."""
    strays, counts = np.unique(packed[is_stray], return_counts=True)
    most = strays[counts.argmax()]
    color = np.array([most >> 16, most >> 8 & 255, most & 255])
    values = class_map.values_by_color()
    distances = {known: float(np.linalg.norm(color - known)) for known in values}
    nearest = min(distances, key=distances.get)
    name = class_map.id2label.get(class_map.value_ids[values[nearest]], "an ignored class")
    detail = (
        f"{file} has {f'{len(strays)} such colours, mostly ' if len(strays) > 1 else ''}{' '.join(map(str, color))} "
        f"on {counts.max() / packed.size:.1%} of it (nearest: {name} {' '.join(map(str, nearest))}, "
        f"{distances[nearest]:.0f} away)"
    )
    are_rare = counts.max() < MIXED_SHARE * packed.size
    is_mixed = len(strays) > MAX_COLORS or (len(strays) > MIXED_COLORS and are_rare)
    return FileProblem("lossy colors" if is_mixed else "unknown colors", detail)


def _ids_of_indices(mask: Image.Image, indices: np.ndarray, class_map: ClassMap) -> tuple[np.ndarray, str]:
    """An indexed mask: programs number colours as they please, but then its palette has the colours of the classes."""
    used = np.unique(indices)
    embedded = np.zeros((256, 3), np.uint8)
    stored = np.array(mask.getpalette("RGB"), np.uint8).reshape(-1, 3)
    embedded[: len(stored)] = stored
    if len(class_map.unknown_values(used)):
        if not _is_ambiguous(class_map):
            ids, is_stray = _look_up(packed_colors(embedded), class_map.values_by_color())
            if not is_stray[used].any():
                return ids[indices], BY_PALETTE
    elif class_map.palette is not None:
        value_ids = class_map.value_ids
        shown = [(embedded[value].tolist(), value_ids[value]) for value in used.tolist()]
        shown = [(color, i) for color, i in shown if i != IGNORE_INDEX]
        are_classes = all(color in class_map.palette for color, _ in shown)
        if are_classes and any(color != class_map.palette[i] for color, i in shown):
            return indices, BY_INDEX
    return indices, ""


# ---- images with any number of channels -----------------------------------------------------------------------------


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
        reason = one_line(error)
    raise UserError(f"{name or (f'{len(source)} bytes' if isinstance(source, bytes) else source)} ({reason})")


def decode_image(image: dict, name: str, num_channels: int = 3) -> Image.Image | torch.Tensor:
    """An image as models are to see it, upright: PIL RGB, or uint8 (num_channels, H, W) for other numbers than three.

    Args:
        image: {"bytes", "path"}. name: of its row.
        num_channels: see `read_channels`.

    Raises:
        UserError: it cannot be read; names the file.
    """
    file = image["path"] or name
    if num_channels != 3:
        return read_channels(image["path"] if image["bytes"] is None else image["bytes"], num_channels, file)
    try:
        picture = open_image(image, name)
    except FileProblem as problem:
        raise UserError(f"{file} can no longer be read: {problem.detail}") from None
    if picture.getexif().get(EXIF_ORIENTATION) is not None:
        picture = ImageOps.exif_transpose(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


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
