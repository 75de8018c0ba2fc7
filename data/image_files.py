"""Reading an image and its mask: decoded, upright, and the mask as an array of values, colours among them resolved.

A file is a `StoredFile` until it is decoded; what is wrong with one is a `FileProblem`. `fit_mask` is what preparing
and checking a dataset share.
"""

import io
import math
import os
import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from cli_utils import UserError, count_of, one_line, shorten
from data.classes import ClassMap
from metrics_utils import IGNORE_INDEX

if TYPE_CHECKING:  # checking a dataset needs no tensors, and torch takes seconds to import
    import torch

with suppress(ImportError):  # optional: photos of phones
    import pillow_heif

    pillow_heif.register_heif_opener()
Image.init()
# What is read, by content. Of others that Pillow knows, some run programs (PostScript), and none is a photo or a mask.
FORMATS = tuple(
    name
    for name in ("PNG", "JPEG", "MPO", "BMP", "DIB", "WEBP", "TIFF", "GIF", "JPEG2000", "PPM", "TGA", "AVIF", "HEIF")
    if name in Image.OPEN
)
EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # its values for which width and height change places
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian; + is BigTIFF
JPEG_2000_SIGNATURES = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")  # in a container, and the codestream alone
TIFF_SIZE, TIFF_BITS, TIFF_COMPRESSION, TIFF_SAMPLE_FORMAT, GDAL_NODATA = (256, 257), 258, 259, 339, 42113
# Old and new JPEG, lossy JPEG of DNG, JPEG 2000 (two), JPEG XL, WebP, LERC. Source: libtiff's tiff.h.
LOSSY_COMPRESSIONS = (6, 7, 34892, 33003, 34712, 50002, 50001, 34887)
# What GIS programs write where nothing is known; besides NaN, infinities, the lowest float and what a file states.
NODATA, LARGEST_NUMBER = -9999, 1e18
# Of the numbers in image files. Others than 8 bits are read, as what they are, from TIFF files, and of one band from
# PNG files, of which Pillow drops half of the bits where there are more.
EIGHT_BITS, WIDE_DTYPES = "uint8", ("uint16", "int16", "float32", "float64")
# Stray colours are mixtures of others if there are more than a class list can have, or many with few pixels each.
MAX_COLORS, MIXED_COLORS, MIXED_SHARE = 255, 8, 0.05
# By how much a channel of a colour may be off where no other class is near; what conversions between colour spaces do.
COLOR_TOLERANCE = 3
# A picture has many colours, and its most frequent ones do not cover much of it. Drawn masks, even compressed with
# loss, are made of areas of one colour.
PHOTO_COLORS, COMMON_COLORS, COMMON_SHARE = 1000, 64, 0.5
LIKE_COLOR = 40  # how far compression may move the colour of a class
# What decoders say of files that end too early; they have no exception of its own for that.
CUT_OFF = ("truncated", "broken", "unexpected end", "not enough", "incomplete")


class ReadBy(str, Enum):
    """What the class of a pixel in a mask was read from."""

    IDS = "ids"
    COLOR = "color"  # of the pixel, as the class list has it
    CHANNEL = "channel"  # one of several equal ones
    PALETTE = "palette"  # the colour in it, as the indices belong to no class
    PALETTE_NOT_INDEX = "palette, not index"  # the colour in it, although the indices belong to other classes


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
    TOO_LARGE = "file-too-large"
    DEPTH = "image-depth"
    MASK_DEPTH = "mask-depth"
    TURNED = "mask-turned"
    SIZE = "size-mismatch"
    FRACTIONS = "mask-fractions"
    COLORS = "mask-colors"
    UNKNOWN_COLORS = "mask-colors-unknown"
    LOSSY_COLORS = "mask-colors-lossy"
    PHOTO = "mask-photograph"


AGAIN = "copy or download again, or delete together with the other file of the pair"
# What is said of files that have it, and what to do about it.
SENTENCES = {
    Problem.EMPTY: ("file/files is/are empty (0 bytes)", AGAIN),
    Problem.TRUNCATED: ("file/files ends/end too early", AGAIN),
    Problem.UNREADABLE: ("file/files cannot be read", AGAIN),
    Problem.TOO_LARGE: (
        f"file/files has/have more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, the most that are read",
        "cut into tiles, in the same way as the other file of the pair",
    ),
    Problem.MASK_DEPTH: (
        "mask/masks has/have several channels of more than 8 bits",
        "write masks with one channel of integers, a class id for each pixel (of 8 or 16 bits)",
    ),
    Problem.DEPTH: (
        "image/images has/have more than 8 bits a channel",
        "convert to 8 bits, scaled as the picture should look; or to files of 16 bits (TIFF, of one band also PNG) or "
        "floats (TIFF) with as many bands as --num_channels says",
    ),
    Problem.TURNED: ("mask/masks lies/lie sideways, as wide as the image is high", "turn by 90 degrees"),
    Problem.SIZE: (
        "mask/masks differs/differ in size from its/their image/images",
        "export again at the size of the image, or resize with nearest neighbour",
    ),
    Problem.FRACTIONS: (
        "mask/masks holds/hold fractions instead of class ids",
        "resample with nearest neighbour and write whole numbers, a class id for each pixel (gdal_translate -ot Byte)",
    ),
    Problem.COLORS: (
        "mask/masks holds/hold colours instead of class ids",
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
    Problem.PHOTO: (
        "mask/masks looks/look like a photograph",
        "are images and masks swapped? Then --images and --masks with each other's folder; if these are masks, export "
        "again as PNG, without compression or smoothing",
    ),
}


def share_of(count: int, total: int) -> str:
    """A share in per cent; of what is there, never 0."""
    share = count / max(total, 1)
    return "<0.1%" if 0 < share < 0.001 else f"{share:.1%}"


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

    def open(self, reduction: int = 1) -> Image.Image:
        """Decodes all of it, as stored: neither turned nor converted. Raises FileProblem.

        reduction: 2, 4 or 8: a JPEG is decoded at that part of its size; others as they are.
        """
        if self.source is None:
            detail = f"{self.name} (the image or the mask of this row is empty)"
            raise FileProblem(Problem.UNREADABLE, self, detail)
        try:
            try:
                with self.stream() as file, Image.open(file, formats=FORMATS) as image:
                    if reduction > 1 and image.format == "JPEG":
                        image.draft(None, tuple(side // reduction for side in image.size))
                    image.load()
                    _forget_damaged_exif(image)
            except PIL.UnidentifiedImageError:
                image = self._open_wide_tiff()
            return _as_written(image)
        except Exception as error:  # a decoder may raise anything on a damaged file
            raise self.unreadable(error) from None

    def _open_wide_tiff(self) -> Image.Image:
        """A TIFF file of numbers that Pillow does not know, as of 64 bits: mode I or F. Others are unidentified."""
        with self.stream() as file:
            tags = _tiff_tags(file)
            bits, pixels = _bits(tags), math.prod(tags.get(tag, 0) for tag in TIFF_SIZE)
            if not 0 < pixels or len(bits) > 1:
                raise PIL.UnidentifiedImageError
            if pixels > 2 * Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{pixels} pixels")
            file.seek(0)
            array = _import_tifffile(f"{bits[0]} bits a pixel").imread(file, key=0)
        if array.ndim != 2 or array.dtype.kind not in "iuf":
            raise ValueError(f"no image but {'x'.join(map(str, array.shape))} numbers of {array.dtype}")
        array = _mark_nodata(array, _number(tags.get(GDAL_NODATA)))
        if array.dtype.kind != "f" and (array.min() < -(2**31) or array.max() >= 2**31):
            raise ValueError(f"numbers from {array.min()} to {array.max()}")
        with np.errstate(over="ignore"):  # infinite is what is too large for 32 bits
            image = Image.fromarray(array.astype(np.float32 if array.dtype.kind == "f" else np.int32))
        image.info["nodata"] = tags.get(GDAL_NODATA)
        return image

    def header(self) -> "Header | None":
        """What its first bytes state, without decoding it; None where they cannot be read."""
        try:
            with self.stream() as file, Image.open(file, formats=FORMATS) as image:
                return Header(image.size, image.mode, orientation_of(image))
        except Exception:  # as above; `open` says why
            pass
        try:  # of a TIFF file that only tifffile reads
            with self.stream() as file:
                width, height = (int(_tiff_tags(file)[tag]) for tag in TIFF_SIZE)
            return Header((width, height), "", 1)
        except Exception:
            return None

    def channel_bits(self) -> int:
        """Bits of each of its channels, as the header of a PNG, TIFF or JPEG 2000 file states them, else 8.

        Pillow opens pictures of several channels of 16 bits as if they had 8, and drops the rest.
        """
        try:
            with self.stream() as file:
                head = file.read(32)
                if head.startswith(PNG_SIGNATURE):
                    return head[24]
                if head.startswith(TIFF_SIGNATURES):
                    return max(_bits(_tiff_tags(file)))
                if head.startswith(JPEG_2000_SIGNATURES):
                    # Rsiz, 8 sizes, Csiz, then a byte with a sign and the bits less one, for each component.
                    size = _jpeg_2000_segments(file).get(0x51, b"")
                    return max((byte & 127) + 1 for byte in size[36::3])
        except Exception:  # a damaged file, of which decoding says more
            pass
        return 8

    def band_dtype(self) -> str:
        """One of `WIDE_DTYPES` for a TIFF file of such numbers, or a grey PNG of 16 bits, as its header says;
        `EIGHT_BITS` for all others."""
        try:
            with self.stream() as file:
                head = file.read(26)
                if head.startswith(PNG_SIGNATURE) and head[24:] == b"\x10\0":  # 16 bits, grey
                    return "uint16"
                file.seek(0)
                tags = _tiff_tags(file)
        except OSError:  # decoding says more
            tags = {}
        kinds = {1: "uint", 2: "int", 3: "float"}
        formats = np.atleast_1d(tags.get(TIFF_SAMPLE_FORMAT, 1)).tolist()
        found = {f"{kinds.get(kind)}{bits}" for kind in formats for bits in _bits(tags)}
        return found.pop() if len(found) == 1 and found <= {*WIDE_DTYPES} else EIGHT_BITS

    def unreadable(self, error: Exception) -> "FileProblem":
        """error: what decoding it raised."""
        reason = _reason(error)
        problem = Problem.TRUNCATED if any(words in reason.lower() for words in CUT_OFF) else Problem.UNREADABLE
        if isinstance(error, Image.DecompressionBombError):
            problem = Problem.TOO_LARGE
        if self.bytes == b"" or (self.bytes is None and os.path.isfile(self.path) and not os.path.getsize(self.path)):
            problem = Problem.EMPTY
        return FileProblem(problem, self, f"{self.title} ({reason})")

    def is_lossy(self) -> bool:
        """Whether it is compressed with loss, as its header tells: JPEG, also in a TIFF file, AVIF and HEIC; WebP and
        JPEG 2000 by the kind of their bitstream.

        Sources: RFC 9649 (WebP); ISO/IEC 15444-1, annex A (JPEG 2000): the last byte of the marker segment COD names
        the wavelet, of which 0, the 9-7 one, cannot be undone.
        """
        with self.stream() as file:
            head = file.read(12)
            if head.startswith(b"\xff\xd8\xff"):
                return True
            if head[4:8] == b"ftyp" and head[8:] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
                return True
            if head.startswith(TIFF_SIGNATURES):
                return _tiff_tags(file).get(TIFF_COMPRESSION, 1) in LOSSY_COMPRESSIONS
            if head.startswith(JPEG_2000_SIGNATURES):
                return _jpeg_2000_segments(file).get(0x52, b"")[9:10] == b"\0"
            is_webp = head[:4] == b"RIFF" and head[8:] == b"WEBP"
            while is_webp and len(chunk := file.read(8)) == 8:
                kind, size = chunk[:4], int.from_bytes(chunk[4:], "little")
                if kind in (b"VP8 ", b"VP8L"):
                    return kind == b"VP8 "
                # A frame of an animation has 16 bytes of its own, then chunks.
                file.seek(16 if kind == b"ANMF" else size + size % 2, io.SEEK_CUR)
        return False


class Header(NamedTuple):
    """size: width and height as stored. mode: Pillow's. orientation: of EXIF, 1 is upright."""

    size: tuple[int, int]
    mode: str
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        return self.size[::-1] if self.orientation in SIDEWAYS else self.size


def _tiff_tags(file: BinaryIO) -> dict[int, object]:
    """The tags of the first image in a TIFF file; none of anything else or of a damaged one."""
    file.seek(0)
    head = file.read(8)
    if not head.startswith(TIFF_SIGNATURES):
        return {}
    try:
        directory = ImageFileDirectory_v2(head + (file.read(8) if b"+" in head[2:4] else b""))
        file.seek(directory.next)
        directory.load(file)
        return dict(directory)
    except Exception:  # decoding says more
        return {}


def _bits(tags: dict[int, object]) -> tuple[int, ...]:
    """Of each sample of a pixel in a TIFF file."""
    return tuple(np.atleast_1d(tags.get(TIFF_BITS, 1)).astype(int).tolist())


def _jpeg_2000_segments(file: BinaryIO) -> dict[int, bytes]:
    """Second byte of the marker → content, of the main header of a JPEG 2000 codestream."""
    file.seek(0)
    content = file.read(1 << 20)  # colour profiles and the like come first
    position, segments = content.find(b"\xff\x4f\xff\x51") + 2, {}
    while position > 1 and content[position : position + 1] == b"\xff" and content[position + 1] != 0x90:
        (length,) = struct.unpack_from(">H", content, position + 2)
        segments[content[position + 1]] = content[position + 4 : position + 2 + length]
        position += 2 + max(length, 2)
    return segments


def _as_written(image: Image.Image) -> Image.Image:
    """Numbers as they were before they were stored.

    Of a TIFF file, `info["nodata"]` is the value that it states for pixels of which nothing is known, or None, and
    pixels of 8 bits with a sign keep theirs. GIF knows no grey: writers number the levels that occur, in every file
    anew, and keep the levels themselves in the palette.
    """
    if image.format == "GIF" and image.mode == "P":
        used = np.unique(np.asarray(image))
        stored = np.zeros((256, 3), np.uint8)
        palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        stored[: len(palette)] = palette
        if (stored[used] == stored[used, :1]).all():
            image = Image.fromarray(stored[:, 0][np.asarray(image)])
    tags = getattr(image, "tag_v2", {})
    nodata = _number(tags.get(GDAL_NODATA, image.info.get("nodata")))
    is_signed = bool(np.all(tags.get(TIFF_SAMPLE_FORMAT, 1) == np.array(2)))
    if image.mode == "L" and is_signed:
        image = _with_pixels(image, np.asarray(image).view(np.int8).astype(np.int32))
    elif image.mode in ("I", "F") and tags:
        array = np.asarray(image)
        marked = _mark_nodata(array if image.mode == "F" or is_signed else array.view(np.uint32), nodata)
        image = _with_pixels(image, marked.astype(array.dtype)) if _is_no_class(nodata) else image
    image.info["nodata"] = nodata
    return image


def _forget_damaged_exif(image: Image.Image) -> None:
    """Viewers show pictures whose EXIF data cannot be read, as they are stored; Pillow raises when it is asked."""
    try:
        image.getexif()
    except Exception:  # its readers raise as they please
        image.info.pop("exif", None)


def _number(text: object) -> int | float | None:
    """What a file states as a number, in full; None for what is none."""
    for kind in (int, float):
        with suppress(ValueError):
            number = kind(str(text).strip(" \0"))
            if kind is float or abs(number) <= 2**64:
                return number
    return None


def _is_no_class(number: float | None) -> bool:
    """Whether a number cannot be that of a class, as it is a fraction, or has more than 32 bits."""
    return number is not None and math.isfinite(number) and (number != int(number) or abs(number) >= 2**31)


def _mark_nodata(array: np.ndarray, nodata: float | None) -> np.ndarray:
    """Numbers in which `NODATA` stands for what a file states as unknown, where no class can have that value."""
    if not _is_no_class(nodata):
        return array
    with np.errstate(over="ignore"), suppress(OverflowError):  # beyond what the array can hold
        is_unknown = array == array.dtype.type(nodata)
        return np.where(is_unknown, NODATA, array.astype(np.float64 if array.dtype.kind == "f" else np.int64))
    return array


def _with_pixels(image: Image.Image, array: np.ndarray) -> Image.Image:
    """An image of other numbers, and of the same orientation."""
    made = Image.fromarray(array)
    if (orientation := orientation_of(image)) != 1:
        made.getexif()[EXIF_ORIENTATION] = orientation
    return made


class FileProblem(Exception):
    """A file that cannot be used. detail: its name and what was found."""

    def __init__(self, problem: Problem, file: StoredFile, detail: str):
        super().__init__(problem, file, detail)
        self.problem, self.file, self.detail = problem, file, detail


def _reason(error: Exception) -> str:
    """Why a file cannot be decoded."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "no image, or of an unknown format"
    if isinstance(error, Image.DecompressionBombError):
        [pixels] = re.findall(r"[0-9]+", str(error))[:1] or ["0"]
        return f"{int(pixels):,} pixels, more than the {2 * Image.MAX_IMAGE_PIXELS:,} that are read: cut into tiles"
    return one_line(error)


def open_bands(image: StoredFile, num_channels: int) -> np.ndarray | None:
    """The image of a pair as it is stored, float32 (C, H, W) and NaN where nothing is known; None: it has 8 bits.

    Raises:
        FileProblem: it cannot be read, or has another number of bands than `num_channels`.
    """
    dtype = image.band_dtype() if image.source is not None else EIGHT_BITS
    if dtype == EIGHT_BITS:
        return None
    try:
        bands = _read_wide(_content(image.source), num_channels, dtype)
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise image.unreadable(error) from None
    if len(bands) != num_channels:
        detail = f"{image.title} ({count_of(len(bands), 'band')} of {dtype}, --num_channels is {num_channels})"
        raise FileProblem(Problem.DEPTH, image, detail)
    return bands


def open_picture(image: StoredFile, num_channels: int = 3) -> Image.Image:
    """The image of a pair as stored; of other numbers of channels than 1 and 3, an RGB view of its bands, upright."""
    bits = image.channel_bits() if image.source is not None else 8
    if bits > 8:
        raise FileProblem(Problem.DEPTH, image, f"{image.title} ({bits} bits a channel)")
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
    return picture.size[::-1] if orientation_of(picture) in SIDEWAYS else picture.size


def orientation_of(picture: Image.Image) -> int:
    """Its EXIF entry, 1 to 8; 1, upright, where there is none or one that means nothing."""
    # Not the method of PNG files, which decodes them to look behind the pixels.
    stated = Image.Image.getexif(picture).get(EXIF_ORIENTATION)
    return int(stated) if stated in range(1, 9) else 1


def check_sizes(image: Header, mask: Header, file: StoredFile) -> None:
    """Raises FileProblem where a mask cannot be as large as its image, however either is turned. Nothing is decoded.

    file: the mask's.
    """
    if sorted(mask.size) != sorted(image.size):
        found, needed = ("x".join(map(str, header.upright)) for header in (mask, image))
        raise FileProblem(Problem.SIZE, file, f"{file.title} is {found}, its image {needed}")


def fit_mask(
    picture: Image.Image, mask: Image.Image, file: StoredFile, class_map: ClassMap | None = None
) -> tuple["MaskIds", Turned]:
    """The mask of a pair, upright like its image, and what was turned.

    Cameras store pictures as the sensor sees them, with an EXIF entry that says how to turn them. Viewers, `datasets`
    and most annotation tools obey it; others draw on the picture as stored, and some leave the entry in a mask that
    was turned already. The size tells.

    Args:
        picture, mask: as stored, of `open_picture` and `StoredFile.open`. file: the mask's.
        class_map: gives the colours by which masks in colours are read.

    Raises:
        FileProblem: the mask cannot be used.
    """
    upright, nodata = upright_size(picture), mask.info.get("nodata")
    # Pillow copies an image that needs no turning.
    fitted, turned = mask if orientation_of(mask) == 1 else ImageOps.exif_transpose(mask), Turned.BY_ENTRY
    if fitted.size != upright and mask.size == upright:
        fitted, turned = mask, Turned.AGAINST_ENTRY
    elif fitted.size != upright and mask.size == picture.size:
        mask.getexif()[EXIF_ORIENTATION] = picture.getexif()[EXIF_ORIENTATION]
        fitted, turned = ImageOps.exif_transpose(mask), Turned.LIKE_IMAGE
    if fitted.size != upright:
        found, needed = ("x".join(map(str, size)) for size in (fitted.size, upright))
        problem = Problem.TURNED if fitted.size == upright[::-1] else Problem.SIZE
        raise FileProblem(problem, file, f"{file.title} is {found}, its image {needed}")
    fitted.info["nodata"] = nodata
    return ids_of(fitted, file, class_map), turned


# ---- masks as values ------------------------------------------------------------------------------------------------


class MaskIds(NamedTuple):
    """ids: values of a mask, (H, W), of any integer dtype. read_by: what they were read from.

    nodata: pixels that are ignored because the file says that nothing is known there. nodata_class: the value that it
    says so of although it is a class, and is kept. near_colors: pixels whose colour is a little off that of a class.
    """

    ids: np.ndarray
    read_by: ReadBy
    nodata: int = 0
    nodata_class: int | None = None
    near_colors: int = 0


def ids_of(mask: Image.Image, file: StoredFile, class_map: ClassMap | None = None) -> MaskIds:
    """The values of a decoded mask.

    Palette indices, 16-bit values, whole numbers in floats and single bits (0, 1) are read as ids, and so are several
    equal channels. Colours are read where the class list has them: those of the pixels, or, where indices belong to no
    class, those of the palette in the file. What is transparent counts by its colour. Colours that are off by at most
    `COLOR_TOLERANCE` in a channel are those of the only class that is near.

    No data is what a TIFF file states as such (`mask.info["nodata"]`), -9999, NaN and infinities: 255, unless the
    value is a class. Without a class list 0 is kept, as programs state it of masks whose background it is.

    Raises:
        FileProblem: it has neither ids nor colours of classes, or the class list has one colour for several classes.
    """
    array = np.asarray(mask)
    if mask.mode == "1":
        return MaskIds(array.astype(np.uint8), ReadBy.IDS)
    if mask.mode == "F":
        array = _whole_numbers(array, file)
    if mask.mode in ("L", "F") or mask.mode.startswith("I"):
        return _ids_and_nodata(array, ReadBy.IDS, mask.info.get("nodata"), class_map)
    has_colors = class_map is not None and (class_map.palette is not None or class_map.raw_colors is not None)
    if mask.mode == "P":
        found = _ids_of_indices(mask, array, class_map) if has_colors else MaskIds(array, ReadBy.IDS)
        if found.read_by is not ReadBy.IDS:
            return found
        return _ids_and_nodata(array, found.read_by, mask.info.get("nodata"), class_map)
    if mask.mode not in ("LA", "RGB", "RGBA"):
        raise FileProblem(Problem.COLORS, file, f"{file.title} (mode {mask.mode})")
    if file.source and file.channel_bits() > 8:
        detail = f"{file.title} (mode {mask.mode}, {file.channel_bits()} bits a channel)"
        raise FileProblem(Problem.MASK_DEPTH, file, detail)
    channels = array[..., [0, 0, 0] if mask.mode == "LA" else [0, 1, 2]]
    alpha = [255] if mask.mode == "RGB" else np.unique(array[..., -1]).tolist()
    is_gray = len(alpha) == 1 and bool((channels == channels[..., :1]).all())
    if is_gray and not has_colors:
        return MaskIds(channels[..., 0], ReadBy.CHANNEL)
    packed = packed_colors(channels)
    if not has_colors or (len(alpha) > 1 and alpha != [0, 255]):
        colors = np.unique(packed)
        listed = shorten((f"{color >> 16} {color >> 8 & 255} {color & 255}" for color in colors.tolist()), 4)
        detail = f"{file.title} (mode {mask.mode}, {count_of(len(colors), 'colour')}: {listed})"
        if _is_photo(packed):
            raise FileProblem(Problem.PHOTO, file, f"{file.title} ({len(colors):,} colours)")
        raise FileProblem(Problem.LOSSY_COLORS if len(colors) > MAX_COLORS else Problem.COLORS, file, detail)
    try:
        values = class_map.values_by_color()
    except UserError as error:  # several classes have one colour, as in ADE20K; no matter for masks of ids
        if is_gray:
            return MaskIds(channels[..., 0], ReadBy.CHANNEL)
        raise FileProblem(Problem.COLORS, file, f"{file.title} ({error})") from None
    ids, is_stray = _look_up(packed, values)
    if not is_stray.any():
        return MaskIds(ids, ReadBy.COLOR)
    if is_gray and not len(class_map.unknown_values(np.unique(channels[..., 0]))):
        return MaskIds(channels[..., 0], ReadBy.CHANNEL)
    near = _take_near_colors(packed, ids, is_stray, values)
    if is_stray.any():
        raise _stray_colors(packed, is_stray, class_map, file)
    return MaskIds(ids, ReadBy.COLOR, near_colors=near)


def _whole_numbers(array: np.ndarray, file: StoredFile) -> np.ndarray:
    """Floats (H, W) → int64; `NODATA` where there is none. Raises FileProblem for fractions."""
    with np.errstate(invalid="ignore"):
        is_number = np.isfinite(array) & (np.abs(array) < LARGEST_NUMBER)
        numbers = np.where(is_number, array, NODATA).astype(np.float64)
    fractions = np.unique(numbers[numbers != np.floor(numbers)])
    if len(fractions):
        listed = shorten((f"{number:g}" for number in fractions[:9].tolist()), 4)
        raise FileProblem(Problem.FRACTIONS, file, f"{file.title} ({listed})")
    return numbers.clip(-(2**53), 2**53).astype(np.int64)


def _ids_and_nodata(ids: np.ndarray, read_by: ReadBy, stated: float | None, class_map: ClassMap | None) -> MaskIds:
    """Values of which the file says, or their kind, that they stand for nothing become 255."""
    classes = class_map.class_values if class_map else [0]
    candidates = {NODATA}
    if stated is not None and math.isfinite(stated) and stated == int(stated):
        candidates.add(int(stated))
    pixels, kept, possible = 0, None, np.iinfo(ids.dtype)
    for value in candidates - {IGNORE_INDEX}:
        if not possible.min <= value <= possible.max or not (found := ids == value).any():
            continue
        if value in classes:
            kept = value
        elif IGNORE_INDEX not in classes:  # else it has no value to become, and is reported as one that is no class
            pixels += int(found.sum())
            ids = np.where(found, ids.dtype.type(IGNORE_INDEX), ids)
    return MaskIds(ids, read_by, pixels, kept)


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


def _take_near_colors(
    packed: np.ndarray, ids: np.ndarray, is_stray: np.ndarray, values: dict[tuple[int, int, int], int]
) -> int:
    """Gives pixels whose colour is a little off a single class's the raw value of this; changes both arrays in place.

    Nothing is changed unless that mends the whole mask, as mixtures of two colours may come near a third. Returns how
    many pixels there were.
    """
    strays, place = np.unique(packed[is_stray], return_inverse=True)
    if len(strays) > len(values) * (2 * COLOR_TOLERANCE + 1) ** 3:
        return 0
    known, raw = np.array(list(values), np.int16), np.array(list(values.values()), ids.dtype)
    found = np.empty(len(strays), ids.dtype)
    for index, color in enumerate(strays.tolist()):
        distance = np.abs(known - np.array([color >> 16, color >> 8 & 255, color & 255], np.int16)).max(axis=1)
        near = np.flatnonzero(distance <= 2 * COLOR_TOLERANCE)
        if len(near) != 1 or distance[near[0]] > COLOR_TOLERANCE:
            return 0
        found[index] = raw[near[0]]
    count = int(is_stray.sum())
    ids[is_stray] = found[place.reshape(-1)]
    is_stray[:] = False
    return count


def _is_photo(packed: np.ndarray, known: Sequence[tuple[int, int, int]] = ()) -> bool:
    """known: colours of classes, near which most of a mask stays whatever was done to it."""
    colors, counts = np.unique(packed, return_counts=True)
    common = np.sort(counts)[-COMMON_COLORS:].sum()
    if len(colors) < PHOTO_COLORS or common >= COMMON_SHARE * packed.size:
        return False
    some = packed.reshape(-1)[:: -(-packed.size // 4096), None]
    channels = np.concatenate([some >> 16, some >> 8 & 255, some & 255], axis=1)
    is_like_class = np.zeros(len(some), bool)
    for color in known:
        is_like_class |= np.abs(channels - color).max(axis=1) <= LIKE_COLOR
    return is_like_class.mean() < 0.5


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
        f"{file.title} has {others}{' '.join(map(str, color))} on {share_of(counts.max(), packed.size)} of it "
        f"(nearest: {name} {' '.join(map(str, nearest))}, {distances[nearest]:.0f} away)"
    )
    are_rare = counts.max() < MIXED_SHARE * packed.size
    if len(strays) > MAX_COLORS and _is_photo(packed, list(values)):
        return FileProblem(Problem.PHOTO, file, f"{file.title} ({len(np.unique(packed)):,} colours)")
    is_mixed = len(strays) > MAX_COLORS or (len(strays) > MIXED_COLORS and are_rare)
    is_mixed = is_mixed or bool(file.source and file.is_lossy())
    return FileProblem(Problem.LOSSY_COLORS if is_mixed else Problem.UNKNOWN_COLORS, file, detail)


def _ids_of_indices(mask: Image.Image, indices: np.ndarray, class_map: ClassMap) -> MaskIds:
    """An indexed mask. Where its palette has the colours of classes, these say more than the indices: programs that
    make files smaller number the colours as they occur."""
    used = np.unique(indices)
    embedded = np.zeros((256, 3), np.uint8)
    stored = np.array(mask.getpalette("RGB"), np.uint8).reshape(-1, 3)
    embedded[: len(stored)] = stored
    are_values, value_ids = not len(class_map.unknown_values(used)), class_map.value_ids
    with suppress(UserError):  # several classes have one colour
        packed, values = packed_colors(embedded[used]), class_map.values_by_color()
        ids, is_stray = _look_up(packed, values)
        if are_values:
            # What is ignored may have any colour.
            counts = np.array([value_ids[value] != IGNORE_INDEX for value in used.tolist()], bool)
            is_same = [
                value_ids[value] == value_ids[raw] for value, raw in zip(used.tolist(), ids.tolist(), strict=True)
            ]
            if is_stray[counts].any() or np.array(is_same)[counts].all():
                return MaskIds(indices, ReadBy.IDS)
            ids = np.where(counts, ids, used)
            is_stray[:] = False
        is_near = is_stray.copy()
        _take_near_colors(packed, ids, is_stray, values)
        if not is_stray.any():
            near = int(np.isin(indices, used[is_near]).sum())
            table = np.zeros(256, ids.dtype)
            table[used] = ids
            read_by = ReadBy.PALETTE_NOT_INDEX if are_values else ReadBy.PALETTE
            return MaskIds(table[indices], read_by, near_colors=near)
    return MaskIds(indices, ReadBy.IDS)


# ---- images with any number of channels -----------------------------------------------------------------------------


def read_channels(
    source: str | os.PathLike | bytes, num_channels: int, name: str | None = None, dtype: str = EIGHT_BITS
) -> "torch.Tensor":
    """`read_bands` as a tensor."""
    import torch

    return torch.from_numpy(read_bands(source, num_channels, name, dtype))


def read_bands(
    source: str | os.PathLike | bytes, num_channels: int, name: str | None = None, dtype: str = EIGHT_BITS
) -> np.ndarray:
    """Decodes an image file, upright as its EXIF orientation says → uint8 (num_channels, H, W), or, of other numbers,
    float32, NaN where the file says that nothing is known.

    Args:
        source: a file, or what is in one.
        num_channels: 1 and 3: the image as grey or RGB, whatever it was, transparency dropped. Others: the file's own
            bands, which must be that many.
        name: what messages call it; default: the file.
        dtype: of the numbers in it; one of `WIDE_DTYPES` for files of these, with that many bands.

    Raises:
        UserError: not readable, of other numbers, or another number of bands.
    """
    try:
        return _decode_channels(source, num_channels, dtype)
    except Exception as error:  # a decoder may raise anything on a damaged file
        name = name or (f"{len(source)} bytes" if isinstance(source, bytes) else source)
        raise UserError(f"{name} ({_reason(error)})") from None


def _content(source: str | os.PathLike | bytes) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def _decode_channels(source: str | os.PathLike | bytes, num_channels: int, dtype: str = EIGHT_BITS) -> np.ndarray:
    content = _content(source)
    if dtype != EIGHT_BITS:
        found = StoredFile(None, content, "").band_dtype()
        if found != dtype:
            raise ValueError(f"bands of {found}, and the model was trained on {dtype}: convert them to what that had")
        channels = _read_wide(content, num_channels, dtype)
    # Pillow knows few kinds of multi-band TIFFs, and of those it drops bands, or divides them by the fourth.
    elif content.startswith(TIFF_SIGNATURES) and num_channels not in (1, 3):
        channels = _read_tiff(content, num_channels)
    else:
        channels = _read_with_pillow(content, num_channels)
    if len(channels) != num_channels:
        reason = f"{count_of(len(channels), 'band')}, --num_channels is {num_channels}; all images must have the same"
        if num_channels in channels.shape[1:]:
            # As `tifffile.imwrite` stores (H, W, bands) unless it is told.
            reason += "; written by tifffile, it needs planarconfig='contig', photometric='minisblack'"
        raise ValueError(reason)
    return channels


def reduction_for(size: Sequence[int], least: Sequence[int]) -> int:
    """8, 4, 2 or 1: by how much an image of a size may be reduced and still be no smaller than another.

    It divides both sides, or what is left would not lie exactly on the mask; those of cameras it mostly does.
    """
    room = min(side // smallest for side, smallest in zip(size, least, strict=True))
    return next((factor for factor in (8, 4, 2) if factor <= room and not any(side % factor for side in size)), 1)


def decode_image(
    image: StoredFile, num_channels: int = 3, reduction: int = 1, dtype: str = EIGHT_BITS
) -> "Image.Image | torch.Tensor":
    """An image as models are to see it, upright: PIL RGB; or, for other numbers of channels than three, or numbers of
    more than 8 bits, what `read_channels` gives.

    reduction: as for `StoredFile.open`, of RGB images. dtype: as for `read_channels`.

    Raises:
        UserError: it cannot be read; names the file.
    """
    if num_channels != 3 or dtype != EIGHT_BITS:
        return read_channels(image.source, num_channels, image.location, dtype)
    try:
        picture = image.open(reduction)
    except FileProblem as problem:
        raise UserError(f"{image.location} can no longer be read: {problem.detail}") from None
    return upright_rgb(picture)


def upright_rgb(picture: Image.Image) -> Image.Image:
    """A decoded image as models of three channels are to see it."""
    if picture.getexif().get(EXIF_ORIENTATION) is not None:
        picture = ImageOps.exif_transpose(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def rgb_view(image: "Image.Image | torch.Tensor | np.ndarray") -> Image.Image:
    """Something to look at: a PIL image as it is; of (C, H, W), uint8 or floats, the first three bands, or the first
    in grey. Of floats the middle 96 % of the values of a band become black to white, and NaN black."""
    if isinstance(image, Image.Image):
        return image
    bands = np.asarray(image)[: 3 if len(image) >= 3 else 1]
    if bands.dtype.kind == "f":
        bands = np.stack([_stretched(band) for band in bands])
    pixels = np.ascontiguousarray(np.moveaxis(bands, 0, -1)) if len(bands) > 1 else bands[0]
    return Image.fromarray(pixels).convert("RGB")


def _stretched(values: np.ndarray) -> np.ndarray:
    """float32 (H, W) → uint8."""
    step = max(1, round(math.sqrt(values.size / 2**18)))
    some = values[::step, ::step]
    some = some[~np.isnan(some)]
    low, high = np.percentile(some, (2, 98)) if len(some) else (0.0, 1.0)
    scaled = np.nan_to_num((values - low) / max(high - low, 1e-30)).clip(0, 1)
    return (scaled * 255).round().astype(np.uint8)


def _read_with_pillow(content: bytes, num_channels: int) -> np.ndarray:
    bits = StoredFile(None, content, "").channel_bits()
    if bits > 8:
        raise ValueError(f"{bits} bits a channel: convert it to 8 bits")
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image.load()
        _forget_damaged_exif(image)
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        # Pillow would cut them off at 255. Training refuses them for the same reason.
        raise ValueError(f"more than 8 bits a channel, mode {upright.mode}: convert it to 8 bits")
    modes = {1: "L", 3: "RGB"}
    pixels = np.array(upright.convert(modes.get(num_channels, upright.mode)))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _read_wide(content: bytes, num_channels: int, dtype: str) -> np.ndarray:
    """The bands of a file of other numbers than 8 bits, float32 (C, H, W)."""
    if content.startswith(TIFF_SIGNATURES):
        return _read_tiff(content, num_channels, dtype)
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        if (orientation := orientation_of(image)) != 1:
            raise ValueError(f"stored turned or mirrored, EXIF orientation {orientation}: store it upright")
        return np.array(image, np.float32)[None]


def _read_tiff(content: bytes, num_channels: int, dtype: str = EIGHT_BITS) -> np.ndarray:
    """The bands of the first image in a TIFF file: uint8, or float32 of other numbers, see `read_channels`."""
    with _import_tifffile(f"{num_channels} bands").TiffFile(io.BytesIO(content)) as file:
        series = file.series[0]
        if math.prod(series.shape) > 2 * Image.MAX_IMAGE_PIXELS * max(num_channels, 1):
            raise Image.DecompressionBombError(f"{math.prod(series.shape) // num_channels} pixels")
        axes, array = series.axes, series.asarray()
        orientation = series.keyframe.tags.valueof("Orientation", default=1)
        nodata = _number(series.keyframe.tags.valueof(GDAL_NODATA))
    # Bands are samples of a pixel, planes, or pages of their own: one axis, for which there are many letters.
    others = axes.replace("Y", "").replace("X", "")
    if len(axes) - len(others) != 2 or len(others) > 1:
        raise ValueError(f"no image but an array of {'x'.join(map(str, array.shape))} with the axes {axes}")
    if array.dtype.name != dtype:
        raise ValueError(f"bands of {array.dtype}: convert them to 8 bits, scaled as the picture should look")
    if orientation != 1:
        raise ValueError(f"stored turned or mirrored, TIFF orientation {orientation}: store it upright")
    bands = np.moveaxis(array, axes.index(others), 0) if others else array[None]
    if dtype != EIGHT_BITS:
        bands = np.where(_is_unknown(bands, nodata), np.float32(np.nan), bands.astype(np.float32))
    return np.ascontiguousarray(bands)


def _is_unknown(bands: np.ndarray, nodata: float | None) -> np.ndarray:
    """Where a band says nothing: the value that its file states, what GIS programs write, and what is no number."""
    unknown = np.zeros(bands.shape, bool)
    for value in (nodata, None if bands.dtype.kind == "u" else NODATA):
        with np.errstate(over="ignore"), suppress(OverflowError, ValueError):  # beyond what the band can hold
            if value is not None and (bands.dtype.kind == "f" or value == int(value)):
                unknown |= bands == bands.dtype.type(value)
    if bands.dtype.kind == "f":
        unknown |= ~(np.abs(bands) < LARGEST_NUMBER)
    return unknown


def _import_tifffile(what: str):
    try:
        import tifffile
    except ImportError:
        raise ValueError(f"a TIFF file of {what} needs tifffile: pip install tifffile") from None
    return tifffile
