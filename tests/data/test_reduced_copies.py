"""Copies of large photos: who gets one, at which size, and what training and evaluation then read."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from checks.judge import prepare_dataset
from cli_utils import UserError
from data import reduced_copies
from data.arguments import AugmentationArguments
from data.augmentation import TrainTransform
from data.classes import ClassMap
from data.image_files import EXIF_ORIENTATION
from data.jpeg_files import decode_jpeg
from data.preprocessing import EvaluationProtocol
from data.reduced_copies import COPY, count_copies, size_of_copy, with_reduced_copies
from data_utils import SegmentationDataset, load_segmentation_dataset

THREE = ClassMap({0: "sky", 1: "tree", 2: "road"})
PLAIN = EvaluationProtocol(64, image_mean=(0.0,) * 3, image_std=(1.0,) * 3)


@pytest.fixture
def prepared(tmp_path):
    """Photos of 600 x 800 as JPEG, as PNG and lying on its side, and one that is no larger than needed."""
    rng = np.random.default_rng(0)
    for folder in ("train/images", "train/masks", "val/images", "val/masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    turned = Image.Exif()
    turned[EXIF_ORIENTATION] = 6
    for split, name, size, options in (
        ("train", "a.jpg", (800, 600), {"quality": 95}),
        ("train", "b.png", (800, 600), {}),
        ("train", "c.jpg", (800, 600), {"quality": 95, "exif": turned}),
        ("train", "d.jpg", (200, 150), {}),
        ("val", "e.jpg", (800, 600), {}),
    ):
        colors = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        colors.resize(size, Image.BICUBIC).save(tmp_path / "data" / split / "images" / name, **options)
        ids = Image.fromarray(rng.integers(0, 3, (9, 9), dtype=np.uint8))
        size = size[::-1] if "exif" in options else size
        ids.resize(size, Image.NEAREST).save(tmp_path / "data" / split / "masks" / f"{name[0]}.png")
    return prepare_dataset(load_segmentation_dataset(dataset_dir=tmp_path / "data"), THREE)


@pytest.mark.parametrize(
    ("size", "needed"),
    [
        ((600, 800), [128, 171]),
        ((256, 342), [128, 171]),
        ((255, 800), None),  # 128 x 402 are needed
        ((800, 600), [171, 128]),
        ((300, 6000), [26, 512]),  # the long side is at most 4 x 128
        ((100, 100), None),
    ],
)
def test_what_is_twice_as_large_as_needed_is_copied(size, needed):
    assert size_of_copy(*size, 64, 2.0) == needed


def test_training_reads_the_copies_and_evaluation_the_photos(prepared, tmp_path, caplog):
    """Masks are equal, and colours nearly; the crops are those of the photos."""
    caplog.set_level(logging.INFO)
    transform = TrainTransform(PLAIN, photometric_distortion=False)
    copied = with_reduced_copies(prepared, transform, tmp_path / "cache")
    assert "3 of 4 training images are read from copies, as they are at least 2 times as large" in caplog.text
    shapes = [copy and tuple(decode_jpeg(copy).shape) for copy in copied["train"][COPY]]
    assert shapes == [(3, 128, 171), (3, 128, 171), (3, 171, 128), None]
    assert COPY not in copied["validation"].column_names
    assert [count_copies(rows) for rows in copied.values()] == [3, 0]
    all_of_it = TrainTransform(PLAIN, photometric_distortion=False, reduced_decoding=False)
    whole = SegmentationDataset(prepared["train"], all_of_it, seed=1)
    reduced = SegmentationDataset(copied["train"], transform, seed=1)
    for index in range(4):
        one, other = whole[index], reduced[index]
        assert torch.equal(one["labels"], other["labels"]) and one["name"] == other["name"]
        difference = (one["pixel_values"] - other["pixel_values"]).abs() * 255
        assert difference.mean() < 1.5 and difference.max() < 16
        assert (difference.max() > 0) == (index < 3)
    evaluated = [SegmentationDataset(split["train"], PLAIN) for split in (prepared, copied)]
    for index in range(4):
        assert torch.equal(*(dataset[index]["pixel_values"] for dataset in evaluated))
        assert np.array_equal(*(np.asarray(dataset.read(index)[0]) for dataset in evaluated))


def test_copies_are_made_once_for_a_size(prepared, tmp_path, monkeypatch):
    made = []
    original = reduced_copies.decode_pixels
    monkeypatch.setattr(reduced_copies, "decode_pixels", lambda file: made.append(file.name) or original(file))
    first = with_reduced_copies(prepared, TrainTransform(PLAIN), tmp_path / "cache")
    again = with_reduced_copies(prepared, TrainTransform(PLAIN, flip_probability=0.0), tmp_path / "cache")
    assert made == ["a", "b", "c"] and first["train"][COPY] == again["train"][COPY]
    with_reduced_copies(prepared, TrainTransform(PLAIN, scale_range=(0.5, 1.0)), tmp_path / "cache")
    assert made[3:] == ["a", "b", "c", "d"]


def test_without_large_photos_nothing_is_written(prepared, tmp_path):
    same = with_reduced_copies(prepared, TrainTransform(EvaluationProtocol(512)), tmp_path / "cache")
    assert same is prepared and not (tmp_path / "cache").exists()


def test_a_disk_without_room_is_found_before_the_work(prepared, tmp_path, monkeypatch):
    with_reduced_copies(prepared, TrainTransform(PLAIN), tmp_path / "cache")
    monkeypatch.setattr(reduced_copies.shutil, "disk_usage", lambda _: SimpleNamespace(free=40_000))
    with_reduced_copies(prepared, TrainTransform(PLAIN), tmp_path / "cache")  # they are there
    with pytest.raises(UserError, match="need about 0 MiB in .*other, and 0 MiB .*--no_reduced_copies"):
        with_reduced_copies(prepared, TrainTransform(PLAIN), tmp_path / "other")


def test_a_photo_that_changed_is_noticed_where_its_copy_is_read(prepared, tmp_path):
    copied = with_reduced_copies(prepared, TrainTransform(PLAIN), tmp_path / "cache")["train"]
    dataset = SegmentationDataset(copied, TrainTransform(PLAIN))
    Image.new("RGB", (800, 600)).save(tmp_path / "data" / "train" / "images" / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg has changed since this run began"):
        dataset[0]


def test_flags():
    assert AugmentationArguments().copies_large_photos
    assert not AugmentationArguments(reduced_decoding=False).copies_large_photos
    assert not AugmentationArguments(reduced_copies=False).copies_large_photos
    assert "reduced_copies" not in AugmentationArguments().of_transform()
