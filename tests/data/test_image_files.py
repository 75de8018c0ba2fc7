"""What a mask's file holds is what is read from it, whatever its mode; colours are told apart from ids."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.classes import ClassMap
from data.image_files import (
    FileProblem,
    Problem,
    ReadBy,
    StoredFile,
    Turned,
    decode_image,
    ids_of,
    packed_colors,
)
from data.preparation import decode_pair

PALETTE = [[i * 37 % 256, i * 91 % 256, 255 - i] for i in range(255)]
ALL = ClassMap({i: f"c{i}" for i in range(255)}, PALETTE)
THREE = ClassMap({0: "sky", 1: "tree", 2: "road"}, [[128, 128, 128], [0, 100, 0], [128, 64, 128]])
FILE = StoredFile(None, b"", "x.png")
LARGEST = {"1": 1, "I;16": 65535, "I": 2**31 - 1, "RGB": 254, "RGBA": 254}


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def indexed(indices, palette):
    image = Image.frombytes("P", indices.shape[::-1], indices.astype(np.uint8).tobytes())
    image.putpalette(np.array(palette, np.uint8).tobytes())
    return image


def to_mode(ids, mode):
    """An image of a mode in which `ids` are written as programs do."""
    if mode == "1":
        return Image.fromarray(ids == 1)
    if mode == "P":
        return indexed(ids, PALETTE[:254])
    if mode in ("RGB", "RGBA"):
        return Image.fromarray(np.array(PALETTE, np.uint8)[ids]).convert(mode)
    return Image.fromarray(ids.astype({"L": np.uint8, "I;16": np.uint16, "I": np.int32}[mode]))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_ids_survive_every_mode_and_size(data):
    """Ids → file → `decode_pair`, in sizes of 1 to 40 pixels."""
    mode = data.draw(st.sampled_from(["P", "L", "1", "I;16", "I", "RGB", "RGBA"]))
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    largest = data.draw(st.integers(0, LARGEST.get(mode, 255)))
    ids = rng.integers(0, largest, (height, width), endpoint=True)
    formats = {"I": ["TIFF"], "I;16": ["PNG", "TIFF"], "RGBA": ["PNG", "TIFF"]}
    file_format = data.draw(st.sampled_from(formats.get(mode, ["PNG", "TIFF", "BMP"])))
    image = encoded(Image.new("RGB", (width, height)), "JPEG")
    mask = encoded(to_mode(ids, mode), file_format)
    record, decoded = decode_pair("train", StoredFile.of(image, "x"), StoredFile.of(mask, "x"), ALL)
    found, read_by, turned = decoded.ids, record.read_by, record.turned
    np.testing.assert_array_equal(found, ids)
    assert found.shape == (height, width) and np.issubdtype(found.dtype, np.integer)
    assert read_by == (ReadBy.COLOR if mode in ("RGB", "RGBA") else ReadBy.IDS) and turned == Turned.BY_ENTRY


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 255), st.integers(0, 2**32))
def test_colors_are_looked_up(count, seed):
    """Against a dictionary, pixel for pixel, with any colours in any order."""
    rng = np.random.default_rng(seed)
    packed = rng.choice(1 << 24, count, replace=False)
    palette = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=-1)
    assert packed_colors(palette.astype(np.uint8)).tolist() == packed.tolist()
    class_map = ClassMap({i: f"c{i}" for i in range(count)}, palette.tolist())
    pixels = palette[rng.integers(0, count, (7, 9))].astype(np.uint8)
    found = ids_of(Image.fromarray(pixels), FILE, class_map)
    assert found.ids.tolist() == [[palette.tolist().index(color) for color in row] for row in pixels.tolist()]


def test_ids_without_colors_stay_ids():
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    gray = Image.fromarray(np.stack([ids] * 3, axis=-1))
    for class_map in (None, ClassMap(THREE.id2label), THREE):
        found, read_by, *_ = ids_of(gray, FILE, class_map)
        assert found.tolist() == ids.tolist() and read_by is ReadBy.CHANNEL
        assert ids_of(indexed(ids, PALETTE), FILE, class_map).read_by is ReadBy.IDS
    # ADE20K has a colour twice. That must not keep anybody from reading ids.
    twice = ClassMap(THREE.id2label, [[9, 9, 9], [5, 5, 5], [9, 9, 9]])
    assert ids_of(gray, FILE, twice).read_by is ReadBy.CHANNEL
    assert ids_of(indexed(ids, PALETTE), FILE, twice).ids.tolist() == ids.tolist()
    assert ids_of(indexed(ids + 3, PALETTE), FILE, twice).ids.tolist() == (ids + 3).tolist()


def test_transparency():
    colors = np.array(THREE.palette, np.uint8)[[[0, 1, 2]]]
    for alpha in ([0, 255, 0], [7, 7, 7]):
        image = Image.fromarray(np.dstack([colors, np.array([alpha], np.uint8)]))
        assert ids_of(image, FILE, THREE).ids.tolist() == [[0, 1, 2]]
    image = Image.fromarray(np.dstack([colors, np.array([[0, 128, 255]], np.uint8)]))
    with pytest.raises(FileProblem) as caught:
        ids_of(image, FILE, THREE)
    assert caught.value.problem is Problem.COLORS
    assert caught.value.detail == "x.png (mode RGBA, 3 colours: 0 100 0, 128 64 128, 128 128 128)"


@pytest.mark.parametrize(
    ("indices", "palette", "expected", "read_by"),
    [
        ([[0, 1, 2]], [[0, 0, 0], *THREE.palette], [[0, 1, 2]], ReadBy.IDS),  # a colour that is no class: ids
        ([[1, 2, 3]], [[0, 0, 0], *THREE.palette], [[0, 1, 2]], ReadBy.PALETTE),
        ([[1, 2, 4]], [[0, 0, 0], *THREE.palette, [1, 1, 1]], [[1, 2, 4]], ReadBy.IDS),  # no class: an error later
        ([[0, 1, 2]], THREE.palette, [[0, 1, 2]], ReadBy.IDS),
        ([[0, 1, 255]], [*THREE.palette, *[[7, 7, 7]] * 253], [[0, 1, 255]], ReadBy.IDS),
        ([[0, 1, 2]], THREE.palette[::-1], [[2, 1, 0]], ReadBy.PALETTE_NOT_INDEX),
        ([[9, 9, 9]], THREE.palette, [[9, 9, 9]], ReadBy.IDS),  # an index beyond the palette
    ],
)
def test_indices_and_their_palette(indices, palette, expected, read_by):
    assert ids_of(indexed(np.array(indices), palette), FILE, THREE).ids.tolist() == expected
    assert ids_of(indexed(np.array(indices), palette), FILE, THREE).read_by is read_by
    assert ids_of(indexed(np.array(indices), palette), FILE).ids.tolist() == indices


def test_stray_colors():
    """What is said depends on how many there are, and on how much."""
    pixels = np.zeros((50, 60, 3), np.uint8) + np.array(THREE.palette[1], np.uint8)

    def problem(mask):
        with pytest.raises(FileProblem) as caught:
            ids_of(Image.fromarray(mask), FILE, THREE)
        return caught.value

    black = pixels.copy()
    black[:25] = 0
    assert problem(black).problem is Problem.UNKNOWN_COLORS
    assert problem(black).detail == "x.png has 0 0 0 on 50.0% of it (nearest: tree 0 100 0, 100 away)"
    other_list = pixels.copy()
    other_list[5:] = np.arange(1, 11, dtype=np.uint8)[np.resize(np.arange(10), (45, 60, 1))] * [3, 5, 7]
    assert problem(other_list).problem is Problem.UNKNOWN_COLORS
    edges = pixels.copy()
    edges[:5] = other_list[5:10]
    assert problem(edges).problem is Problem.LOSSY_COLORS
    edges[:5] = np.random.default_rng(0).integers(0, 256, (5, 60, 3), dtype=np.uint8)
    assert problem(edges).problem is Problem.LOSSY_COLORS
    noise = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    assert problem(noise).problem is Problem.PHOTO
    assert problem(noise).detail == "x.png (3,000 colours)"


@pytest.mark.parametrize(
    ("file_format", "options", "expected"),
    [
        ("JPEG", {"quality": 100}, True),
        ("WEBP", {}, True),
        ("WEBP", {"lossless": True}, False),
        ("WEBP", {"icc_profile": b"odd"}, True),  # makes it an extended file
        ("WEBP", {"exif": b"Exif\0\0", "lossless": True, "icc_profile": b"odd"}, False),
        ("PNG", {}, False),
        ("TIFF", {}, False),
    ],
)
@pytest.mark.parametrize("frames", [1, 2])
def test_lossy_files(file_format, options, expected, frames):
    noise = np.random.default_rng(0).integers(0, 256, (frames, 9, 7, 4), dtype=np.uint8)
    mode = "RGB" if file_format == "JPEG" else "RGBA"
    first, *others = (Image.fromarray(frame).convert(mode) for frame in noise)
    if others and file_format == "WEBP":
        options = options | {"save_all": True, "append_images": others}
    assert StoredFile.of(encoded(first, file_format, **options), "x").is_lossy() is expected


@pytest.mark.parametrize(
    ("dtype", "stated"),
    [
        *(("f4", "1e20"), ("f4", "-3.4028234663852886e+38"), ("f4", "0.5"), ("f8", "1e20"), ("f4", "nan")),
        *(("f8", "-1.7976931348623157e+308"), ("f2", "65504"), ("u4", "4294967295"), ("i4", "-2147483648")),
        *(("i8", "-9223372036854775808"), ("u8", "18446744073709551615"), ("u2", "65535"), ("i2", "-32768")),
    ],
)
def test_what_a_raster_states_as_unknown_is_ignored_and_counted(dtype, stated):
    """Of any kind of number, also of those that no class can have."""
    ids = np.zeros((8, 12), dtype)
    ids[2:4], ids[5:] = 1, np.array(stated).astype(dtype)
    file = io.BytesIO()
    tifffile.imwrite(file, ids, extratags=[(42113, 2, 0, stated, True)])
    image = encoded(Image.new("RGB", (12, 8)))
    record, decoded = decode_pair("train", StoredFile.of(image, "x"), StoredFile(None, file.getvalue(), "x"), THREE)
    assert record.raw_values == {0: 36, 1: 24, 255: 36} and record.nodata == 36, record
    assert (decoded.ids[5:] == 255).all()


def test_damaged_exif_data_are_passed_over():
    """As viewers do; Pillow raises where it is asked how the picture lies."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for file_format in ("PNG", "JPEG"):
        content = encoded(Image.new("RGB", (12, 8)), file_format, exif=exif)["bytes"]
        start = content.index(b"MM\0*" if b"MM\0*" in content else b"II*\0")
        content = content[:start] + b"\xdf:O!" + content[start + 4 :]
        if file_format == "PNG":
            length = struct.unpack(">I", content[(at := content.index(b"eXIf")) - 4 : at])[0]
            chunk = content[at : at + 4 + length]
            content = content[:at] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[at + 8 + length :]
        image, mask = StoredFile(None, content, "x"), StoredFile.of(encoded(Image.new("L", (12, 8))), "x")
        record, _ = decode_pair("train", image, mask, THREE)
        assert record.problem is None and (record.width, record.height, record.orientation) == (12, 8, 1), record
        assert decode_image(image).size == (12, 8) and decode_image(image, 1).shape == (1, 8, 12)
