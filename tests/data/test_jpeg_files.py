"""JPEG files decoded by simplejpeg have the pixels that Pillow gives, and what it cannot read goes to Pillow."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvF

from cli_utils import UserError
from data import jpeg_files
from data.image_files import EXIF_ORIENTATION, StoredFile, decode_image
from data.jpeg_files import decode_jpeg, decode_pixels


def photo(size=(64, 48), mode="RGB", **options):
    colors = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(colors).resize(size, Image.BICUBIC).convert(mode).save(content, "JPEG", quality=90, **options)
    return content.getvalue()


def file_of(content):
    return StoredFile(None, content, "x")


@pytest.fixture
def calls(monkeypatch):
    """How often Pillow decoded."""
    seen = []
    monkeypatch.setattr(jpeg_files, "decode_image", lambda *a: seen.append(1) or decode_image(*a))
    return seen


@pytest.mark.parametrize("reduction", [1, 2, 8])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"size": (37, 53)}, {"keep_rgb": True}])
def test_pixels_are_those_of_pillow(subsampling, options, reduction, calls):
    options = options if "keep_rgb" in options else options | {"subsampling": subsampling}
    file = file_of(photo(**options))
    found = decode_pixels(file, reduction=reduction)
    assert found.dtype == torch.uint8 and not calls
    assert torch.equal(found, tvF.pil_to_tensor(decode_image(file, 3, reduction)))
    assert found.shape[1] == -(-Image.open(io.BytesIO(file.bytes)).height // reduction)


def turned():
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    return photo(exif=exif)


def as_png():
    content = io.BytesIO()
    Image.open(io.BytesIO(photo())).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("make", [turned, as_png, lambda: photo(mode="L"), lambda: photo(mode="CMYK")])
def test_other_files_go_to_pillow(make, calls):
    file = file_of(make())
    assert torch.equal(decode_pixels(file), tvF.pil_to_tensor(decode_image(file)))
    assert len(calls) == 1


def test_without_simplejpeg(monkeypatch):
    content = photo()
    expected = decode_pixels(file_of(content)), decode_jpeg(content)
    monkeypatch.setattr(jpeg_files, "simplejpeg", None)
    assert torch.equal(expected[0], decode_pixels(file_of(content)))
    assert torch.equal(expected[1], decode_jpeg(content))


def test_a_damaged_file_is_named():
    with pytest.raises(UserError, match="x can no longer be read: x .*truncated"):
        decode_pixels(file_of(photo(size=(640, 480))[:-2000]))


def test_other_numbers_of_bands(calls):
    assert decode_pixels(file_of(photo()), num_channels=1).shape == (1, 48, 64)
    assert len(calls) == 1
