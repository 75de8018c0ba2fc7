"""Bands of 16 bits and floats: what is read of a file, statistics against numpy's, and what a network is shown."""

import io

import numpy as np
import pytest
import rasterio
import tifffile
import torch
from PIL import Image

from checks.judge import prepare_dataset
from cli_utils import UserError
from data.augmentation import TrainTransform
from data.bands import band_statistics, combined, measure
from data.classes import ClassMap
from data.image_files import EXIF_ORIENTATION, FileProblem, StoredFile, open_bands, read_channels, rgb_view
from data.preprocessing import EvaluationProtocol
from data_utils import load_segmentation_dataset

NAMES = ClassMap({0: "wall", 1: "floor", 2: "sky"})


def stored(array, **options):
    """A TIFF file of (C, H, W)."""
    content = io.BytesIO()
    options = {"photometric": "minisblack", "planarconfig": "separate"} | options
    tifffile.imwrite(content, array, **options)
    return content.getvalue()


def numbers(dtype, count=4, height=5, width=7, seed=0):
    values = np.random.default_rng(seed).normal(1000, 800, (count, height, width))
    return values.clip(0).astype(dtype) if dtype == "uint16" else (values - 1000).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize(
    "options", [{}, {"planarconfig": "contig"}, {"byteorder": ">", "compression": "zlib"}], ids=str
)
def test_bands_are_read_as_they_are(dtype, options):
    array = numbers(dtype)
    content = stored(array.transpose(1, 2, 0) if options.get("planarconfig") == "contig" else array, **options)
    assert StoredFile(None, content, "").band_dtype() == dtype
    found = read_channels(content, 4, dtype=dtype)
    assert found.dtype == torch.float32 and np.array_equal(found.numpy(), array.astype(np.float32))


def test_one_band_and_three(tmp_path):
    array = numbers("uint16", 3)
    assert np.array_equal(read_channels(stored(array), 3, dtype="uint16").numpy(), array)
    assert np.array_equal(read_channels(stored(array[0], planarconfig=None), 1, dtype="uint16").numpy(), array[:1])


def test_grey_png_files_of_sixteen_bits():
    array, content = numbers("uint16", 1), io.BytesIO()
    Image.fromarray(array[0]).save(content, "PNG")
    file = StoredFile(None, content.getvalue(), "depth.png")
    assert file.band_dtype() == "uint16"
    assert np.array_equal(read_channels(file.bytes, 1, dtype="uint16").numpy(), array.astype(np.float32))
    assert np.array_equal(open_bands(file, 1), array.astype(np.float32))
    with pytest.raises(FileProblem, match="1 band of uint16, --num_channels is 3"):
        open_bands(file, 3)
    with pytest.raises(UserError, match="bands of uint16, and the model was trained on int16"):
        read_channels(file.bytes, 1, dtype="int16")
    exif, turned = Image.Exif(), io.BytesIO()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(array[0]).save(turned, "PNG", exif=exif)
    with pytest.raises(UserError, match="stored turned or mirrored, EXIF orientation 6: store it upright"):
        read_channels(turned.getvalue(), 1, dtype="uint16")


def test_files_of_eight_bits_and_others_are_no_bands():
    assert StoredFile(None, stored(numbers("uint16").astype(np.uint8)), "").band_dtype() == "uint8"
    assert StoredFile(None, stored(numbers("uint16").astype(np.uint32)), "").band_dtype() == "uint8"
    for content in (b"", b"II*\0", b"no image"):
        assert StoredFile(None, content, "").band_dtype() == "uint8"


@pytest.mark.parametrize(
    ("dtype", "nodata", "others"),
    [("uint16", 0, []), ("int16", -3, [-9999]), ("float32", -3.4028234663852886e38, [-9999, np.nan, np.inf, 1e20])],
)
def test_nodata(tmp_path, dtype, nodata, others):
    array = numbers(dtype)
    array[0, 0, 0], array[1, 1, 1] = nodata, nodata
    for place, value in enumerate(others):
        array[2, 2, place] = value
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=5, width=7, count=4, dtype=dtype, nodata=nodata
    ) as raster:
        raster.write(array)
    expected = array.astype(np.float32)
    expected[0, 0, 0] = expected[1, 1, 1] = np.nan
    expected[2, 2, : len(others)] = np.nan
    expected[array == nodata] = np.nan
    found = read_channels(tmp_path / "a.tif", 4, dtype=dtype).numpy()
    assert np.array_equal(found, expected, equal_nan=True) and np.isnan(found).sum() >= 2 + len(others)


def test_other_numbers_than_the_model_s_are_refused():
    for array, dtype in ((numbers("float32"), "uint16"), (numbers("uint16").astype(np.uint8), "float32")):
        with pytest.raises(UserError, match=rf"bands of {array.dtype}, and the model was trained on {dtype}: convert"):
            read_channels(stored(array), 4, "a.tif", dtype)
    with pytest.raises(UserError, match=r"a\.tif \(4 bands, --num_channels is 5"):
        read_channels(stored(numbers("uint16")), 5, "a.tif", "uint16")
    png = io.BytesIO()
    Image.new("RGB", (3, 2)).save(png, "PNG")
    with pytest.raises(UserError, match="bands of uint8, and the model was trained on float32"):
        read_channels(png.getvalue(), 3, dtype="float32")


def test_statistics_are_numpy_s_over_all_pixels():
    rng = np.random.default_rng(0)
    images = [rng.normal(1e6, 3, (3, 4 + i, 50)).astype(np.float32) for i in range(5)]
    for image in images:
        image[rng.random(image.shape) < 0.1] = np.nan
    images[2][1] = np.nan  # a band of an image of which nothing is known
    mean, std = combined([measure(image) for image in images])
    bands = [np.concatenate([image[band].reshape(-1) for image in images]).astype(np.float64) for band in range(3)]
    assert np.allclose(mean, [np.nanmean(band) for band in bands], rtol=1e-13)
    assert np.allclose(std, [np.nanstd(band) for band in bands], rtol=1e-12)


def test_bands_that_say_nothing():
    assert combined([measure(np.full((2, 3, 3), 7.0, np.float32))]) == ((7.0, 7.0), (1.0, 1.0))
    with pytest.raises(UserError, match="band 2 has no value in any training image"):
        combined([measure(np.array([[[1.0]], [[np.nan]]], np.float32))])


def test_what_the_network_is_shown():
    protocol = EvaluationProtocol(
        64, image_mean=(100.0, -5.0), image_std=(10.0, 2.0), image_dtype="float32", scales=(1.0,)
    )
    image = torch.stack([torch.full((64, 64), 120.0), torch.full((64, 64), -5.0)])
    image[0, :32] = np.nan
    shown = protocol.preprocess(image)
    # Nothing spreads from what is unknown, which becomes the mean.
    assert torch.equal(shown[0, :32], torch.zeros(32, 64)) and torch.equal(shown[0, 32:], torch.full((32, 64), 2.0))
    assert torch.equal(shown[1], torch.zeros(64, 64)) and image[0].isnan().any()
    assert abs(protocol.brightness(shown).item() - (0.5 + 0.25 / 2)) < 1e-6
    assert protocol.denormalize(shown).dtype == torch.uint8 and protocol.denormalize(shown)[1].unique().tolist() == [
        127
    ]
    picture = protocol.rendered(torch.tensor([[[0, 255]], [[0, 255]]], dtype=torch.uint8))
    assert picture.tolist() == [[[80.0, 120.0]], [[-9.0, -1.0]]]
    trained = TrainTransform(protocol, scale_range=(1, 1))(
        image, np.zeros((64, 64), np.uint8), np.random.default_rng(0)
    )
    assert set(trained["pixel_values"].unique().tolist()) == {0.0, 2.0}  # colours are not distorted


def test_a_view_is_stretched():
    band = torch.arange(10000, dtype=torch.float32).reshape(100, 100) - 3000
    view = np.asarray(rgb_view(band.expand(4, -1, -1)))
    assert view.shape == (100, 100, 3) and view[0, 0, 0] == 0 and view[-1, -1, 0] == 255 and 120 < view[50, 0, 0] < 135
    band = band.clone()
    band[:50] = np.nan
    assert (np.asarray(rgb_view(band[None]))[:50] == 0).all()
    assert (np.asarray(rgb_view(torch.full((1, 3, 3), np.nan))) == 0).all()


def wide_dataset(make_dataset, dtype="uint16"):
    root = make_dataset("CamVid", count=3)
    for index, path in enumerate(sorted(root.glob("*/*.png"))):
        if "annot" not in path.parent.name:
            path.with_suffix(".tif").write_bytes(stored(numbers(dtype, 4, 8, 12, index)))
            path.unlink()
    return root


def test_statistics_of_a_prepared_dataset(make_dataset):
    root = wide_dataset(make_dataset)
    prepared = prepare_dataset(load_segmentation_dataset(dataset_dir=root), NAMES, num_channels=4)
    assert all(set(rows["image_dtype"]) == {"uint16"} for rows in prepared.values())
    found = band_statistics(prepared)
    pixels = np.concatenate(
        [tifffile.imread(path).reshape(4, -1) for path in sorted(root.glob("train/*.tif"))], axis=1
    )
    assert found.dtype == "uint16"
    assert np.allclose(found.mean, pixels.mean(axis=1), rtol=1e-12)
    assert np.allclose(found.std, pixels.std(axis=1), rtol=1e-12)
    assert band_statistics({"validation": prepared["validation"]}).mean == ()


def test_images_of_eight_bits_have_no_statistics(make_dataset):
    prepared = prepare_dataset(load_segmentation_dataset(dataset_dir=make_dataset("CamVid")), NAMES)
    assert band_statistics(prepared) is None and prepared["train"]["bands"][:] == [[], []]


def test_images_of_several_kinds_are_refused(make_dataset):
    root = wide_dataset(make_dataset)
    (root / "train" / "train_1.tif").write_bytes(stored(numbers("float32", 4, 8, 12)))
    with pytest.raises(
        UserError,
        match=r"\[image-dtypes-mixed\] 1 of 6 images has numbers of another kind .* \(uint16: 5, float32: 1\)",
    ):
        prepare_dataset(load_segmentation_dataset(dataset_dir=root), NAMES, num_channels=4)


def test_another_number_of_bands_is_named(make_dataset):
    with pytest.raises(UserError, match=r"6 images have more than 8 bits.*\(4 bands of uint16, --num_channels is 3\)"):
        prepare_dataset(load_segmentation_dataset(dataset_dir=wide_dataset(make_dataset)), NAMES)
