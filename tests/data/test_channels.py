"""Reading images with any number of channels, from files to examples for the model."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from datasets import Dataset
from PIL import Image

from checks.judge import prepare_dataset
from cli_utils import UserError
from data.augmentation import TrainTransform
from data.classes import ClassMap
from data.image_files import read_channels, rgb_view
from data.preparation import undecoded
from data.preprocessing import EvaluationProtocol
from data_utils import SegmentationDataset, load_segmentation_dataset

PLAIN_4 = {"image_mean": (0.0,) * 4, "image_std": (1.0,) * 4}


def random_bands(count, height=5, width=7, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), dtype=np.uint8)


def save(array, path, **options):
    Image.fromarray(array).save(path, **options)
    return path


def turned_by_the_camera():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    return exif


def test_rgb_and_grey_are_what_pillow_makes_of_any_image(tmp_path):
    rgba = random_bands(4).transpose(1, 2, 0)
    path = save(rgba, tmp_path / "a.png", exif=turned_by_the_camera())
    upright = Image.fromarray(np.rot90(rgba, -1))
    for source in (path, str(path), path.read_bytes()):
        for num_channels, mode in ((3, "RGB"), (1, "L")):
            found = read_channels(source, num_channels)
            assert found.dtype == torch.uint8 and found.shape == (num_channels, 7, 5)
            expected = np.asarray(upright.convert(mode)).reshape(7, 5, num_channels)
            assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("count", [2, 4])
def test_bands_of_a_png_are_taken_as_they_are(tmp_path, count):
    bands = random_bands(count)
    path = save(bands.transpose(1, 2, 0), tmp_path / "a.png", exif=turned_by_the_camera())
    assert np.array_equal(read_channels(path, count).numpy(), np.rot90(bands, -1, axes=(1, 2)))


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "rgb", "planarconfig": "contig", "extrasamples": ["unspecified"]},  # Pillow drops the fourth
        {"photometric": "rgb", "planarconfig": "contig", "extrasamples": ["assocalpha"]},  # Pillow divides by it
        {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unassalpha"]},
        {"photometric": "minisblack", "planarconfig": "contig"},
        {"photometric": "minisblack", "planarconfig": "separate", "compression": "zlib"},
        {"photometric": "minisblack", "bigtiff": True, "byteorder": ">"},  # a page for each band
        {"photometric": "minisblack", "imagej": True},
    ],
    ids=str,
)
def test_bands_of_a_tiff_are_taken_as_they_are(tmp_path, options):
    bands = random_bands(4)
    interleaved = options.get("planarconfig") == "contig"
    tifffile.imwrite(tmp_path / "a.tif", bands.transpose(1, 2, 0) if interleaved else bands, **options)
    assert np.array_equal(read_channels(tmp_path / "a.tif", 4).numpy(), bands)


def test_many_bands(tmp_path):
    bands = random_bands(13)
    tifffile.imwrite(tmp_path / "a.tif", bands.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    assert np.array_equal(read_channels((tmp_path / "a.tif").read_bytes(), 13).numpy(), bands)


@pytest.mark.parametrize(
    ("mode", "num_channels", "found"), [("RGB", 4, 3), ("L", 4, 1), ("P", 4, 1), ("RGBA", 2, 4), ("RGBA", 5, 4)]
)
def test_another_number_of_bands(tmp_path, mode, num_channels, found):
    Image.new(mode, (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=rf"a\.png \({found} bands?, --num_channels is {num_channels}; all"):
        read_channels(tmp_path / "a.png", num_channels)


def test_tiffs_that_are_refused(tmp_path):
    path, bands = tmp_path / "a.tif", random_bands(4)

    def refused(message, array, num_channels=4, **options):
        tifffile.imwrite(path, array, **({"photometric": "minisblack"} | options))
        with pytest.raises(UserError, match=rf"a\.tif \({message}"):
            read_channels(path, num_channels)

    refused("4 bands, --num_channels is 5", bands, 5)
    refused("1 band, --num_channels is 4", bands[0])
    refused("bands of uint16: convert them to 8 bits", bands.astype(np.uint16))
    refused("bands of float32: convert them", bands.astype(np.float32))
    refused("stored turned or mirrored, TIFF orientation 6", bands, extratags=[(274, "H", 1, 6, True)])
    refused("no image but an array of 2x4x5x7 with the axes", np.stack([bands, bands]))
    # Read by Pillow.
    refused("16 bits a channel: convert it to 8 bits", bands[0].astype(np.uint16), 1)


def test_tifffile_is_asked_for_only_where_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    path = save(random_bands(4).transpose(1, 2, 0), tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif \(a TIFF file of 4 bands needs tifffile: pip install tifffile"):
        read_channels(path, 4)
    assert read_channels(path, 3).shape == read_channels(path, 1).expand(3, -1, -1).shape == (3, 5, 7)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"a\.png \(.*No such file"):
        read_channels(tmp_path / "a.png", 4)
    with pytest.raises(UserError, match=r"^photo\.jpg \(no image, or of an unknown format\)$"):
        read_channels(b"no image", 3, "photo.jpg")
    whole = io.BytesIO()
    Image.fromarray(random_bands(1, 64, 64)[0]).save(whole, "PNG")
    with pytest.raises(UserError, match=r"bytes \(.*truncated"):
        read_channels(whole.getvalue()[:1000], 1)
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0")
    with pytest.raises(UserError, match=r"a\.tif \("):
        read_channels(tmp_path / "a.tif", 4)


def test_rgb_view():
    bands = torch.from_numpy(random_bands(4))
    assert np.array_equal(np.asarray(rgb_view(bands)), bands[:3].permute(1, 2, 0).numpy())
    for few in (bands[:1], bands[:2]):
        view = rgb_view(few)
        assert view.mode == "RGB"
        assert (np.asarray(view) == bands[0].numpy()[..., None]).all()
    image = Image.new("L", (2, 2))
    assert rgb_view(image) is image


# ---- datasets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def four_bands(make_dataset):
    """Three images of 12x8 pixels with four bands, and their prepared split."""
    root = make_dataset("CamVid", count=3)
    bands = [random_bands(4, 8, 12, seed) for seed in range(3)]
    for i, array in enumerate(bands):
        Image.fromarray(array.transpose(1, 2, 0)).save(root / "train" / f"train_{i}.png")
    names = ClassMap({0: "wall", 1: "floor", 2: "sky"})
    return bands, prepare_dataset(load_segmentation_dataset(dataset_dir=root), names)["train"]


@pytest.mark.parametrize("in_table", [False, True])
def test_datasets_read_the_bands_that_the_protocol_asks_for(four_bands, in_table):
    bands, split = four_bands
    if in_table:  # as Hub datasets are: bytes instead of a path
        files = [Path(file["path"]).read_bytes() for file in undecoded(split)["image"]]
        table = {"image": [{"bytes": file, "path": None} for file in files]}
        table |= {"label": split["label"], "name": split["name"]}
        split = Dataset.from_dict(table, features=split.select_columns(list(table)).features)
    protocol = EvaluationProtocol(16, size_divisor=8, **PLAIN_4)
    dataset = SegmentationDataset(split, protocol)
    image, label = dataset.read(1)
    assert np.array_equal(image.numpy(), bands[1]) and label.size == (12, 8)
    example = dataset[1]
    assert example["pixel_values"].shape == (4, 16, 24) and example["labels"].shape == (8, 12)
    assert torch.equal(example["pixel_values"], protocol.preprocess(torch.from_numpy(bands[1])))
    training = SegmentationDataset(split, TrainTransform(protocol), seed=3)[1]
    assert training["pixel_values"].shape == (4, 16, 16)
    grey = SegmentationDataset(split, EvaluationProtocol(16, image_mean=(0.5,), image_std=(0.5,)))
    assert grey.read(2)[0].shape == (1, 8, 12)
    image, _ = SegmentationDataset(split, EvaluationProtocol(16)).read(1)
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), bands[1][:3].transpose(1, 2, 0))


def test_a_dataset_names_the_file_with_other_bands(four_bands):
    _, split = four_bands
    five = EvaluationProtocol(16, image_mean=(0.0,) * 5, image_std=(1.0,) * 5)
    with pytest.raises(UserError, match=r"train_2\.png \(4 bands, --num_channels is 5"):
        SegmentationDataset(split, five)[2]


def test_bands_that_tifffile_stored_as_pages_are_explained():
    stored = io.BytesIO()
    tifffile.imwrite(stored, np.zeros((20, 30, 6), np.uint8))
    with pytest.raises(UserError, match=r"20 bands, --num_channels is 6.*planarconfig='contig'"):
        read_channels(stored.getvalue(), 6)
