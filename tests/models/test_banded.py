"""Images in bands: the same pixels for the network, and the same classes, as of the whole image."""

import numpy as np
import pytest
import torch
from factories.models import noise, save_model
from PIL import Image
from torchvision.transforms.v2 import functional as tvF

from cli_utils import UserError
from data import large_images
from data.large_images import LargeImage, RowsOnDisk, open_large, resized_rows
from data.preprocessing import EvaluationProtocol
from models.banded import predict_bands
from models.inference import predict_ids, predict_with_confidence
from models.loading import load_trained_model


def in_memory(image):
    channels = tvF.pil_to_tensor(image)
    return LargeImage(tuple(channels.shape[1:]), len(channels), lambda first, stop: channels[:, first:stop])


@pytest.mark.parametrize("band", [1, 7, 10**6])
def test_rows_are_those_of_torchvision(monkeypatch, band):
    for (height, width), size in {
        (40, 60): (64, 96),
        (500, 333): (32, 64),
        (333, 500): (334, 64),
        (7, 5): (100, 33),
        (64, 64): (64, 64),
        (1, 9): (32, 128),
        (100, 3): (3, 100),
    }.items():
        monkeypatch.setattr(large_images, "BAND_BYTES", band * width * 3)
        image = noise(height, width)
        found = torch.cat(list(resized_rows(in_memory(image), size)), dim=1)
        assert torch.equal(found, tvF.resize(tvF.pil_to_tensor(image), list(size), antialias=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_trained_model(str(save_model(tmp_path_factory.mktemp("model"))))


WIDE, TALL = (150, 220), (300, 97)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, WIDE),
        ({}, TALL),
        ({"slide_crop": 64, "slide_stride": 48}, WIDE),
        ({"slide_crop": 64, "slide_stride": 48}, TALL),
        ({"slide_crop": 64, "slide_stride": 16}, WIDE),
        ({"slide_crop": 32, "slide_stride": 32}, WIDE),
        ({"slide_crop": 512}, WIDE),
        ({"flip": True}, TALL),
        ({"scales": (0.5, 1.0, 1.25), "flip": True, "temperature": 1.5}, WIDE),
        ({"scales": (0.75, 1.25), "flip": True, "slide_crop": 64, "slide_stride": 40}, TALL),
    ],
    ids=str,
)
def test_classes_are_those_of_the_whole_image(model, monkeypatch, options, size):
    monkeypatch.setattr(large_images, "BAND_BYTES", 2**13)
    monkeypatch.setattr("models.upsampling.CPU_TILE_BYTES_PER_THREAD", 2**14)
    protocol, image = EvaluationProtocol(128, **options), noise(*size)
    bands = list(predict_bands(model, in_memory(image), protocol, confidence=True))
    ids, confidence = map(torch.cat, zip(*bands, strict=True))
    expected, expected_confidence = predict_with_confidence(model, image, protocol)
    assert len(bands) > 3 and len(expected.unique()) == 3 and confidence.float().std() > 5
    assert torch.equal(ids, expected) and torch.equal(expected, predict_ids(model, image, protocol))
    assert torch.equal(confidence, expected_confidence)


def test_two_classes_at_a_threshold(monkeypatch, tmp_path):
    monkeypatch.setattr(large_images, "BAND_BYTES", 2**13)
    model = load_trained_model(str(save_model(tmp_path, names={0: "no", 1: "yes"})))
    for options in ({}, {"flip": True}, {"slide_crop": 64}):
        protocol, image = EvaluationProtocol(64, threshold=0.8, temperature=2.0, **options), noise(100, 120)
        found = predict_bands(model, in_memory(image), protocol, confidence=True)
        ids, confidence = map(torch.cat, zip(*found, strict=True))
        expected, expected_confidence = predict_with_confidence(model, image, protocol)
        assert torch.equal(ids, expected) and len(ids.unique()) == 2
        assert (confidence.int() - expected_confidence.int()).abs().max() <= 1


def test_few_rows_of_windows_are_held(model, monkeypatch):
    from models import banded

    held = []
    make = banded._RowsOfWindows._make

    def count(self):
        make(self)
        held.append(len(self.held))

    monkeypatch.setattr(banded._RowsOfWindows, "_make", count)
    protocol = EvaluationProtocol(64, slide_crop=64, slide_stride=48)
    monkeypatch.setattr("models.upsampling.CPU_TILE_BYTES_PER_THREAD", 2**12)
    list(predict_bands(model, in_memory(noise(1500, 380)), protocol))
    assert len(held) > 4 and max(held) <= 3


def test_rows_on_disk(tmp_path):
    rng = np.random.default_rng(0)
    bands = [rng.integers(0, 256, (height, 7), dtype=np.uint8) for height in (3, 1, 12)]
    with RowsOnDisk(tmp_path) as rows:
        for band in bands:
            rows.write(band)
        assert np.array_equal(rows.whole(), np.concatenate(bands))
        rows.whole()[3] = 9
        assert [len(band) for band in rows.again()] == [3, 1, 12]
        assert (list(rows.again())[1] == 9).all()
        assert list(tmp_path.iterdir()) == []  # it has no name


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tif", "png", "jpg"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_files_in_bands(tmp_path, monkeypatch, kind, mode):
    monkeypatch.setattr(large_images, "LARGE_PIXELS", 1000)
    image = noise(40, 60).convert(mode)
    image.save(tmp_path / f"a.{kind}")
    large = open_large(tmp_path / f"a.{kind}", 3)
    with Image.open(tmp_path / f"a.{kind}") as stored:
        expected = tvF.pil_to_tensor(stored.convert("RGB"))
    assert large.size == (40, 60)
    assert torch.equal(torch.cat([large.read(0, 13), large.read(13, 40)], dim=1), expected)
    monkeypatch.setattr(large_images, "LARGE_PIXELS", 2400)
    assert open_large(tmp_path / f"a.{kind}", 3) is None


def test_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(large_images, "LARGE_PIXELS", 1000)
    noise(40, 60).save(tmp_path / "a.png")
    memory = type("Memory", (), {"available": 10_000})
    monkeypatch.setattr(large_images.psutil, "virtual_memory", lambda: memory)
    with pytest.raises(UserError, match=r"a\.png \(60x40 pixels need .* and there are .* pip install rasterio\)"):
        open_large(tmp_path / "a.png", 3)


def test_what_cannot_be_read_in_bands(tmp_path, monkeypatch):
    monkeypatch.setattr(large_images, "LARGE_PIXELS", 1000)
    Image.fromarray(np.full((40, 60), 40000, np.uint16)).save(tmp_path / "deep.tif")
    with pytest.raises(UserError, match=r"deep\.tif \(more than 8 bits a channel"):
        open_large(tmp_path / "deep.tif", 3)
    noise(40, 60).save(tmp_path / "three.tif")
    with pytest.raises(UserError, match=r"three\.tif \(3 bands, --num_channels is 4\)"):
        open_large(tmp_path / "three.tif", 4)
    (tmp_path / "no.tif").write_bytes(b"image")
    assert open_large(tmp_path / "no.tif", 3) is None
