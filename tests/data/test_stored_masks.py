"""Prepared masks come back as they were, and are files that other programs read."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.stored_masks import decode_mask, encode_mask


@given(height=st.integers(1, 70), width=st.integers(1, 70), classes=st.sampled_from([1, 3, 256]))
def test_both_ways(height, width, classes):
    ids = np.random.default_rng(height + width).integers(0, classes, (height, width), dtype=np.uint8)
    content = encode_mask(ids)
    np.testing.assert_array_equal(decode_mask(content), ids)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode, image.size) == ("TIFF", "L", (width, height))
        np.testing.assert_array_equal(np.asarray(image), ids)


def test_a_part_of_a_larger_array():
    ids = np.arange(200, dtype=np.uint8).reshape(10, 20)[::2, ::-3]
    np.testing.assert_array_equal(decode_mask(encode_mask(ids)), ids)


def test_what_comes_back_may_be_changed():
    ids = decode_mask(encode_mask(np.zeros((3, 4), np.uint8)))
    ids[0, 0] = 1


@pytest.mark.parametrize("suffix", ["PNG", "TIFF"])
def test_masks_of_other_programs(suffix):
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    file = io.BytesIO()
    Image.fromarray(ids).save(file, suffix)
    np.testing.assert_array_equal(decode_mask(file.getvalue()), ids)
