"""Reading an image and its mask: decoded, upright, and the mask as an array of values, colours among them resolved.

A file is a `StoredFile` until it is decoded; what is wrong with one is a `FileProblem`. `fit_mask` is what preparing
and checking a dataset share.
"""

import io
import os
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as tvF

from cli_utils import UserError, count_of, one_line, shorten
from data.classes import ClassMap
from metrics_utils import IGNORE_INDEX

EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # its values for which width and height change places
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian; + is BigTIFF
# Stray colours are mixtures of others if there are more than a class list can have, or many with few pixels each.
MAX_COLORS, MIXED_COLORS, MIXED_SHARE = 255, 8, 0.05
# What decoders say of files that end too early; they have no exception of its own for that.
CUT_OFF = ("truncated", "broken", "unexpected end", "not enough", "incomplete")


class ReadBy(str, Enum):
    """What the class of a pixel in a mask was read from."""

    IDS = "ids"
    COLOR = "color"  # of the pixel, as the class list has it
    CHANNEL = "channel"  # one of several equal ones
    PALETTE = "palette"  # the colour in it, as the indices belong to no class
    INDEX = "index"  # although the palette has the colours of other classes


class Turned(str, Enum):
    """What made a mask upright: its own EXIF entry, if it has one, unless the size of its image tells otherwise."""

    BY_ENTRY = "by its own entry"
    LIKE_IMAGE = "like its image"  # by the image's entry
    AGAINST_ENTRY = "against its own entry"  # left as it is


class Problem(str, Enum):
    """Why a pair cannot be used, named as the finding that reports it."""

    EMPTY = "file-empty"
    TRUNCATED = "file-truncated"
    UNREADABLE = "file-unreadable"
    DEPTH = "image-depth"
    TURNED = "mask-turned"
    SIZE = "size-mismatch"
    COLORS = "mask-colors"
    UNKNOWN_COLORS = "mask-colors-unknown"
    LOSSY_COLORS = "mask-colors-lossy"


AGAIN = "copy or download again, or delete together with the other file of the pair"
# What is said of files that have it, and what to do about it.
SENTENCES = {
    Problem.EMPTY: ("file/files is/are empty (0 bytes)", AGAIN),
    Problem.TRUNCATED: ("file/files ends/end too early", AGAIN),
    Problem.UNREADABLE: ("file/files cannot be read", AGAIN),
    Problem.DEPTH: (
        "image/images has/have more than 8 bits a channel",
        "convert to 8 bits, scaled as the picture should look",
    ),
    Problem.TURNED: ("mask/masks lies/lie sideways, as wide as the image is high", "turn by 90 degrees"),
    Problem.SIZE: (
        "mask/masks differs/differ in size from its/their image/images",
        "export again at the size of the image, or resize with nearest neighbour",
    ),
    Problem.COLORS: (
        "mask/masks holds/hold colours or fractions instead of class ids",
        "give the list of classes with their colours: --id2label FILE, a CSV with the columns name,r,g,b or JSON; or "
        "write masks with one channel of integers, a class id for each pixel",
    ),
    Problem.UNKNOWN_COLORS: (
        "mask/masks holds/hold colours that belong to no class",
        "add each to the list of classes (--id2label), as a class of its own; if it stands for void or background, "
        "--drop_classes NAME then ignores it",
    ),
    Problem.LOSSY_COLORS: (
        "mask/masks holds/hold many colours that belong to no class, as lossy compression and interpolation mix them",
        "export again as PNG and resize with nearest neighbour only; if nothing was mixed, the list of classes "
        "(--id2label) is that of other masks",
    ),
}


def describe_problem(problem: Problem, details: Sequence[str]) -> tuple[str, str]:
    """What was found, and what to do about it. details: one for each pair that has the problem."""
    phrase, fix = SENTENCES[problem]
    return f"{count_of(len(details), phrase)}: {shorten(details)}", fix


class StoredFile(NamedTuple):
    """An image or mask that was not decoded yet.

    path, bytes: of the file, or its content where a dataset holds that; both None: the dataset has neither.
    name: of its row.
    """

    path: str | None
    bytes: bytes | None
    name: str

    @classmethod
    def of(cls, value: dict | None, name: str) -> "StoredFile":
        """value: {"bytes", "path"}, as `datasets` has it."""
        return cls(**(value or {"path": None, "bytes": None}), name=name)

    @property
    def title(self) -> str:
        """What messages call it: its file, or its row."""
        return Path(self.path).name if self.path else self.name

    @property
    def location(self) -> str:
        return self.path or self.name

    @property
    def source(self) -> str | bytes | None:
        """What `read_channels` takes."""
        return self.path if self.bytes is None else self.bytes

    def stream(self) -> BinaryIO:
        return open(self.path, "rb") if self.bytes is None else io.BytesIO(self.bytes)

    def open(self) -> Image.Image:
        """Decodes all of it, as stored: neither turned nor converted. Raises FileProblem."""
        if self.source is None:
            detail = f"{self.name} (the image or the mask of this row is empty)"
            raise FileProblem(Problem.UNREADABLE, self, detail)
        try:
            with self.stream() as file, Image.open(file) as image:
                image.load()
                return image
        except Exception as error:  # a decoder may raise anything on a damaged file
            raise self.unreadable(error) from None

    def unreadable(self, error: Exception) -> "FileProblem":
        """error: what decoding it raised."""
        reason = _reason(error)
        problem = Problem.TRUNCATED if any(words in reason.lower() for words in CUT_OFF) else Problem.UNREADABLE
        if self.bytes == b"" or (self.bytes is None and os.path.isfile(self.path) and not os.path.getsize(self.path)):
            problem = Problem.EMPTY
        return FileProblem(problem, self, f"{self.title} ({reason})")

    def is_lossy(self) -> bool:
        """Whether it is compressed with loss: JPEG, or WebP with a lossy bitstream, as its chunks tell.

        Source: RFC 9649, WebP Image Format.
        """
        with self.stream() as file:
            head = file.read(12)
            if head.startswith(b"\xff\xd8\xff"):
                return True
            is_webp = head[:4] == b"RIFF" and head[8:] == b"WEBP"
            while is_webp and len(chunk := file.read(8)) == 8:
                kind, size = chunk[:4], int.from_bytes(chunk[4:], "little")
                if kind in (b"VP8 ", b"VP8L"):
                    return kind == b"VP8 "
                # A frame of an animation has 16 bytes of its own, then chunks.
                file.seek(16 if kind == b"ANMF" else size + size % 2, io.SEEK_CUR)
        return False


class FileProblem(Exception):
    """A file that cannot be used. detail: its name and what was found."""

    def __init__(self, problem: Problem, file: StoredFile, detail: str):
        super().__init__(problem, file, detail)
        self.problem, self.file, self.detail = problem, file, detail


def _reason(error: Exception) -> str:
    """Why a file cannot be decoded."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "no image, or of an unknown format"
    return one_line(error)


def open_picture(image: StoredFile, num_channels: int = 3) -> Image.Image:
    """The image of a pair as stored; of other numbers of channels than 1 and 3, an RGB view of its bands, upright."""
    if num_channels in (1, 3) or image.source is None:
        picture = image.open()
    else:
        try:
            picture = rgb_view(_decode_channels(image.source, num_channels))
        except Exception as error:  # a decoder may raise anything on a damaged file
            raise image.unreadable(error) from None
    if picture.mode.startswith(("I", "F")):
        raise FileProblem(Problem.DEPTH, image, f"{image.title} (mode {picture.mode})")
    return picture


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of an image as viewers show it."""
    return picture.size[::-1] if picture.getexif().get(EXIF_ORIENTATION) in SIDEWAYS else picture.size


def fit_mask(
    picture: Image.Image, mask: Image.Image, file: StoredFile, class_map: ClassMap | None = None
) -> tuple[np.ndarray, ReadBy, Turned]:
    """The mask of a pair, raw values (H, W), upright like its image, how it was read, and what was turned.

    Cameras store pictures as the sensor sees them, with an EXIF entry that says how to turn them. Viewers, `datasets`
    and most annotation tools obey it; others draw on the picture as stored, and some leave the entry in a mask that
    was turned already. The size tells.

    Args:
        picture, mask: as stored, of `open_picture` and `StoredFile.open`. file: the mask's.
        class_map: gives the colours by which masks in colours are read.

    Raises:
        FileProblem: the mask cannot be used.
    """
    upright = upright_size(picture)
    fitted, turned = ImageOps.exif_transpose(mask), Turned.BY_ENTRY
    if fitted.size != upright and mask.size == upright:
        fitted, turned = mask, Turned.AGAINST_ENTRY
    elif fitted.size != upright and mask.size == picture.size:
        mask.getexif()[EXIF_ORIENTATION] = picture.getexif()[EXIF_ORIENTATION]
        fitted, turned = ImageOps.exif_transpose(mask), Turned.LIKE_IMAGE
    if fitted.size != upright:
        found, needed = ("x".join(map(str, size)) for size in (fitted.size, upright))
        problem = Problem.TURNED if fitted.size == upright[::-1] else Problem.SIZE
        raise FileProblem(problem, file, f"{file.title} is {found}, its image {needed}")
    return *ids_of(fitted, file, class_map), turned


# ---- masks as values ------------------------------------------------------------------------------------------------


def ids_of(mask: Image.Image, file: StoredFile, class_map: ClassMap | None = None) -> tuple[np.ndarray, ReadBy]:
    """A decoded mask → its values (H, W) of any integer dtype, and what they were read from.

    Palette indices, 16-bit values and single bits (0, 1) are read as ids, and so are several equal channels. Colours
    are read where the class list has them: those of the pixels, or, where indices belong to no class, those of the
    palette in the file. What is transparent counts by its colour.

    Raises:
        FileProblem: it has neither ids nor colours of classes, or the class list has one colour for several classes.
    """
    array = np.asarray(mask)
    if mask.mode == "1":
        return array.astype(np.uint8), ReadBy.IDS
    if mask.mode == "L" or mask.mode.startswith("I"):
        return array, ReadBy.IDS
    has_colors = class_map is not None and (class_map.palette is not None or class_map.raw_colors is not None)
    if mask.mode == "P":
        return _ids_of_indices(mask, array, class_map) if has_colors else (array, ReadBy.IDS)
    if mask.mode not in ("LA", "RGB", "RGBA"):
        raise FileProblem(Problem.COLORS, file, f"{file.title} (mode {mask.mode})")
    channels = array[..., [0, 0, 0] if mask.mode == "LA" else [0, 1, 2]]
    alpha = [255] if mask.mode == "RGB" else np.unique(array[..., -1]).tolist()
    is_gray = len(alpha) == 1 and bool((channels == channels[..., :1]).all())
    by_channel = channels[..., 0], ReadBy.CHANNEL
    if is_gray and not has_colors:
        return by_channel
    packed = packed_colors(channels)
    if not has_colors or (len(alpha) > 1 and alpha != [0, 255]):
        colors = np.unique(packed)
        listed = shorten((f"{color >> 16} {color >> 8 & 255} {color & 255}" for color in colors.tolist()), 4)
        detail = f"{file.title} (mode {mask.mode}, {count_of(len(colors), 'colour')}: {listed})"
        raise FileProblem(Problem.LOSSY_COLORS if len(colors) > MAX_COLORS else Problem.COLORS, file, detail)
    try:
        values = class_map.values_by_color()
    except UserError as error:  # several classes have one colour, as in ADE20K; no matter for masks of ids
        if is_gray:
            return by_channel
        raise FileProblem(Problem.COLORS, file, f"{file.title} ({error})") from None
    ids, is_stray = _look_up(packed, values)
    if not is_stray.any():
        return ids, ReadBy.COLOR
    if is_gray and not len(class_map.unknown_values(np.unique(channels[..., 0]))):
        return by_channel
    raise _stray_colors(packed, is_stray, class_map, file)


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


def _stray_colors(packed: np.ndarray, is_stray: np.ndarray, class_map: ClassMap, file: StoredFile) -> FileProblem:
    """What to say of a mask with colours that belong to no class."""
    strays, counts = np.unique(packed[is_stray], return_counts=True)
    most = strays[counts.argmax()]
    color = np.array([most >> 16, most >> 8 & 255, most & 255])
    values = class_map.values_by_color()
    distances = {known: float(np.linalg.norm(color - known)) for known in values}
    nearest = min(distances, key=distances.get)
    name = class_map.id2label.get(class_map.value_ids[values[nearest]], "an ignored class")
    others = f"{len(strays)} such colours, mostly " if len(strays) > 1 else ""
    detail = (
        f"{file.title} has {others}{' '.join(map(str, color))} on {counts.max() / packed.size:.1%} of it "
        f"(nearest: {name} {' '.join(map(str, nearest))}, {distances[nearest]:.0f} away)"
    )
    are_rare = counts.max() < MIXED_SHARE * packed.size
    is_mixed = file.is_lossy() or len(strays) > MAX_COLORS or (len(strays) > MIXED_COLORS and are_rare)
    return FileProblem(Problem.LOSSY_COLORS if is_mixed else Problem.UNKNOWN_COLORS, file, detail)


def _ids_of_indices(mask: Image.Image, indices: np.ndarray, class_map: ClassMap) -> tuple[np.ndarray, ReadBy]:
    """An indexed mask: programs number colours as they please, but then its palette has the colours of the classes."""
    used = np.unique(indices)
    embedded = np.zeros((256, 3), np.uint8)
    stored = np.array(mask.getpalette("RGB"), np.uint8).reshape(-1, 3)
    embedded[: len(stored)] = stored
    if len(class_map.unknown_values(used)):
        with suppress(UserError):  # several classes have one colour
            ids, is_stray = _look_up(packed_colors(embedded), class_map.values_by_color())
            if not is_stray[used].any():
                return ids[indices], ReadBy.PALETTE
    elif class_map.palette is not None:
        value_ids = class_map.value_ids
        shown = [(embedded[value].tolist(), value_ids[value]) for value in used.tolist()]
        shown = [(color, i) for color, i in shown if i != IGNORE_INDEX]
        are_classes = all(color in class_map.palette for color, _ in shown)
        if are_classes and any(color != class_map.palette[i] for color, i in shown):
            return indices, ReadBy.INDEX
    return indices, ReadBy.IDS


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
        return _decode_channels(source, num_channels)
    except Exception as error:  # a decoder may raise anything on a damaged file
        name = name or (f"{len(source)} bytes" if isinstance(source, bytes) else source)
        raise UserError(f"{name} ({_reason(error)})") from None


def _decode_channels(source: str | os.PathLike | bytes, num_channels: int) -> torch.Tensor:
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    # Pillow knows few kinds of multi-band TIFFs, and of those it drops bands, or divides them by the fourth.
    read = _read_tiff if content.startswith(TIFF_SIGNATURES) and num_channels not in (1, 3) else _read_with_pillow
    channels = read(content, num_channels)
    if len(channels) != num_channels:
        reason = f"{count_of(len(channels), 'band')}, --num_channels is {num_channels}; all images must have the same"
        if num_channels in channels.shape[1:]:
            # As `tifffile.imwrite` stores (H, W, bands) unless it is told.
            reason += "; written by tifffile, it needs planarconfig='contig', photometric='minisblack'"
        raise ValueError(reason)
    return channels


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
        raise ValueError(f"bands of {array.dtype}: convert them to 8 bits, scaled as the picture should look")
    if orientation != 1:
        raise ValueError(f"stored turned or mirrored, TIFF orientation {orientation}: store it upright")
    bands = np.moveaxis(array, axes.index(others), 0) if others else array[None]
    return torch.from_numpy(np.ascontiguousarray(bands))
