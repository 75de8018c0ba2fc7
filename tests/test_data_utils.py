"""Loading from folders and through `datasets`, deciding on classes, and what the model gets to see."""

import io
import json
import logging
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Value
from factories.datasets import LAYOUT_FILES, load
from PIL import Image
from torch.utils.data import DataLoader

import data_utils
from checks.judge import prepare_dataset
from cli_utils import UserError
from data import jpeg_files
from data.arguments import ClassArguments, DatasetArguments
from data.augmentation import TrainTransform
from data.classes import ClassMap
from data.image_files import EXIF_ORIENTATION, reduction_for
from data.preparation import undecoded
from data.preprocessing import EvaluationProtocol
from data.rare_classes import RareClassCrops
from data_utils import (
    NAME_BYTES,
    SegmentationDataset,
    collate_eval,
    collate_train,
    find_classes,
    load_data,
    load_segmentation_dataset,
    names_of_batch,
)

THREE = ClassMap({0: "sky", 1: "tree", 2: "road"})


@pytest.mark.parametrize("layout", LAYOUT_FILES)
def test_folders_in_every_layout(make_dataset, layout):
    root = make_dataset(layout)
    dataset = load_segmentation_dataset(dataset_dir=root)
    assert list(dataset) == (["train"] if layout == "images and masks" else ["train", "validation"])
    row = dataset["train"][1]
    assert row["image"].size == row["label"].size == (12, 8) and row["image"].mode == "RGB"
    assert row["name"].endswith("train_1")
    prepared = prepare_dataset(dataset, THREE)
    assert [row["class_pixels"] for row in prepared["train"]] == [[32, 32, 32]] * 2


# ---- through `datasets` ----


def encoded(array, path=None):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": path}


def table(image="image", label="label", count=3, paths=None, **others):
    """A dataset as the Hub has them; `others`: feature by name."""
    rng = np.random.default_rng(0)
    paths = paths or [None] * count
    rows = {
        image: [encoded(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8), path) for path in paths],
        label: [encoded(np.full((8, 12), i % 3, np.uint8)) for i in range(count)],
    }
    features = {image: datasets.Image(), label: datasets.Image()}
    for name, feature in others.items():
        features[name] = feature
        empty = {"Image": encoded(np.zeros((8, 12), np.uint8)), "Value": 0, "Array2D": np.zeros((8, 12), np.uint8)}
        rows[name] = [empty[type(feature).__name__]] * count
    return Dataset.from_dict(rows, features=Features(features))


def test_parquet_file_and_folder_and_save_to_disk(tmp_path):
    table().to_parquet(tmp_path / "one.parquet")
    (tmp_path / "many").mkdir()
    table().to_parquet(tmp_path / "many" / "train.parquet")
    table(count=2).to_parquet(tmp_path / "many" / "test.parquet")
    DatasetDict({"training": table(), "val": table(count=2)}).save_to_disk(tmp_path / "saved")
    table().save_to_disk(tmp_path / "single")
    expected = {
        "one.parquet": {"train": 3},
        "many": {"train": 3, "test": 2},
        "saved": {"train": 3, "validation": 2},
        "single": {"train": 3},
    }
    for name, counts in expected.items():
        dataset = load_segmentation_dataset(dataset_name=str(tmp_path / name))
        assert {split: len(rows) for split, rows in dataset.items()} == counts
        row = dataset["train"][2]
        assert row["name"] == "train_000002" and row["image"].mode == "RGB"
        assert np.asarray(row["label"]).tolist() == np.full((8, 12), 2).tolist()


def load_table(tmp_path, rows, **options):
    rows.save_to_disk(tmp_path / "table")
    return load_segmentation_dataset(dataset_name=str(tmp_path / "table"), **options)


@pytest.mark.parametrize(
    ("image", "label", "others"),
    [
        ("pixel_values", "annotation", {}),
        ("Image", "Mask", {"scene": Value("int64")}),
        ("scan", "segmentation_mask", {}),
        ("image", "painted", {}),
        ("img", "seg_map", {"preview": datasets.Image()}),
    ],
)
def test_columns_are_found(tmp_path, image, label, others):
    dataset = load_table(tmp_path, table(image, label, **others))
    assert dataset["train"].column_names == ["image", "label", "name"]
    assert np.asarray(dataset["train"][1]["label"]).max() == 1


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (lambda: table("image", "img"), {}, "image and img of the columns could be the images.*--image_column"),
        (
            lambda: table("image", "mask", x=datasets.Image()).rename_column("x", "label"),
            {},
            "mask and label .* the labels.*--label_column",
        ),
        (lambda: table("a", "b"), {}, "a and b of the columns could be the images: a .Image., b .Image.;"),
        (lambda: table("image", "b", c=datasets.Image()), {}, "b and c of the columns could be the labels"),
        (
            lambda: table("image", "x", mask=datasets.Array2D((8, 12), "uint8")).remove_columns("x"),
            {},
            r"none of the columns could be the labels: image \(Image\), mask \(Array2D\).*datasets.Image",
        ),
        (table, {"image_column": "imgae"}, r"--image_column imgae: no such column \(did you mean image\?\)"),
        (
            lambda: table(n=Value("int64")),
            {"label_column": "n"},
            r"--label_column n holds Value\('int64'\), not images",
        ),
    ],
)
def test_columns_that_cannot_be_told(tmp_path, rows, options, message):
    with pytest.raises(UserError, match=message):
        load_table(tmp_path, rows(), **options)


def test_columns_that_are_named(tmp_path):
    dataset = load_table(tmp_path, table("label", "image"), image_column="label", label_column="image")
    assert np.asarray(dataset["train"][2]["label"]).max() == 2 and dataset["train"][0]["image"].mode == "RGB"


def test_parquet_written_without_features(tmp_path):
    plain = (
        table().cast_column("image", datasets.Image(decode=False)).cast_column("label", datasets.Image(decode=False))
    )
    struct = {"bytes": Value("binary"), "path": Value("string")}
    plain = Dataset.from_dict(plain.to_dict(), features=Features({"image": struct, "label": struct}))
    dataset = load_table(tmp_path, plain)
    assert np.asarray(dataset["train"][2]["label"]).max() == 2


def test_names_of_files_are_kept(tmp_path):
    assert load_table(tmp_path, table(paths=["a/x.jpg", "b/y.jpg", "z.png"]))["train"]["name"][:] == ["x", "y", "z"]
    twice = load_table(tmp_path / "twice", table(paths=["a/x.jpg", "b/x.jpg", "z.png"]))
    assert twice["train"]["name"][:] == ["train_000000", "train_000001", "train_000002"]


def test_split_names_of_the_hub(tmp_path, caplog):
    DatasetDict({"dev": table(), "unsupervised": table()}).save_to_disk(tmp_path / "a")
    assert list(load_segmentation_dataset(dataset_name=str(tmp_path / "a"))) == ["validation"]
    assert "split 'unsupervised' (3 rows) is neither train, validation nor test" in caplog.text
    DatasetDict({"dev": table(), "val": table()}).save_to_disk(tmp_path / "b")
    with pytest.raises(UserError, match="two validation splits: dev, val"):
        load_segmentation_dataset(dataset_name=str(tmp_path / "b"))
    DatasetDict({"unsupervised": table()}).save_to_disk(tmp_path / "c")
    with pytest.raises(UserError, match="no rows in a train, validation or test split; its splits: unsupervised"):
        load_segmentation_dataset(dataset_name=str(tmp_path / "c"))


def test_the_hub_without_network():
    with pytest.raises(
        UserError, match=r"scene_parse_150: the Hub cannot be reached .*--dataset_dir FOLDER works without"
    ):
        load_segmentation_dataset(dataset_name="scene_parse_150")


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    (tmp_path / "bad.parquet").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("bad.parquet", "none.parquet", "empty", "nowhere"):
        with pytest.raises(UserError, match=f"--dataset_name {tmp_path / name} cannot be loaded: .*--dataset_dir"):
            load_segmentation_dataset(dataset_name=str(tmp_path / name))

    def scripts(*args, **kwargs):
        raise RuntimeError("Dataset scripts are no longer supported, but found scene_parse_150.py")

    monkeypatch.setattr(data_utils.datasets, "load_dataset", scripts)
    with pytest.raises(UserError, match="scene_parse_150 cannot be loaded: Dataset scripts are no longer supported"):
        load_segmentation_dataset(dataset_name="scene_parse_150")


def test_one_source_is_needed(tmp_path):
    for options in ({}, {"dataset_dir": tmp_path, "dataset_name": "x"}):
        with pytest.raises(ValueError, match="give .*dataset_dir .*dataset_name"):
            load_segmentation_dataset(**options)


# ---- classes ----


def resolve(root, **options):
    return load(root, **options)[1]


def test_values_that_never_occur_are_no_classes(make_dataset, caplog):
    caplog.set_level(logging.INFO)
    class_map = resolve(make_dataset(values=(0, 2, 5, 200, 255)), ignore_values=[5])
    assert class_map.id2label == {0: "class_0", 1: "class_2", 2: "class_200"}
    assert class_map.raw_values == [0, 2, 200] and class_map.value_ids[5] == 255
    assert "named after the values in the masks (0, 2, 200)" in caplog.text
    reduced = resolve(make_dataset(values=(0, 1, 3), folder="reduced"), do_reduce_labels=True)
    assert reduced.id2label == {0: "class_1", 1: "class_3"}
    assert reduced.value_ids == {0: 255, 1: 0, 3: 1, 255: 255}
    dense = resolve(make_dataset(values=(0, 1, 2), folder="dense"), do_reduce_labels=True)
    assert dense == ClassMap({0: "class_1", 1: "class_2"}, do_reduce_labels=True)


def test_class_lists_of_camvid_and_cvat_are_found(make_dataset, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = make_dataset()
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nroad:1,2,3::\nsky:4,5,6::\ntree:7,8,9::\n")
    assert resolve(root).id2label == {0: "road", 1: "sky", 2: "tree"}
    (root / "class_dict.csv").write_text("name,r,g,b\ncar,1,1,1\nbus,2,2,2\nvan,3,3,3\n")
    assert resolve(root).id2label == {0: "car", 1: "bus", 2: "van"}
    assert "3 classes from" in caplog.text and "class_dict.csv" in caplog.text
    (root / "id2label.json").write_text('{"0": "a", "1": "b", "2": "c"}')
    assert resolve(root).id2label == {0: "a", 1: "b", 2: "c"}


def test_classes_that_the_annotations_name(tmp_path):
    """COCO: the names of its categories, and the background."""
    Image.new("RGB", (12, 8)).save(tmp_path / "a.png")
    outline = {"id": 1, "image_id": 1, "category_id": 7, "segmentation": [[0, 0, 6, 0, 6, 7, 0, 7]]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 12, "height": 8}],
        "annotations": [outline],
        "categories": [{"id": 3, "name": "car"}, {"id": 7, "name": "sky"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert resolve(tmp_path).id2label == {0: "background", 1: "car", 2: "sky"}
    reduced = resolve(tmp_path, do_reduce_labels=True)
    assert reduced.id2label == {0: "car", 1: "sky"} and reduced.raw_values == [1, 2]
    assert resolve(tmp_path, drop_classes=["background"], merge_classes=["car,sky=thing"]).raw_values == [1]
    file = tmp_path / "classes.json"
    file.write_text('{"0": "car", "1": "sky"}')
    assert resolve(tmp_path, do_reduce_labels=True).id2label == {0: "car", 1: "sky"}
    with pytest.raises(
        UserError, match="classes.json is 0 car, 1 sky, but the annotations name 0 background, 1 car, 2 sky: leave it"
    ):
        resolve(tmp_path)
    mapping = tmp_path / "map.json"
    mapping.write_text('{"0": 255, "1": 0, "2": 1}')  # to ids, which the file names
    assert resolve(tmp_path, id2label=file, label_map=mapping).id2label == {0: "car", 1: "sky"}
    mapping.write_text('{"car": "thing"}')
    with pytest.raises(UserError, match="but the annotations name 0 background"):
        resolve(tmp_path, id2label=file, label_map=mapping)


def test_editing_reaches_the_masks(make_dataset, tmp_path):
    """0 and 2 joined, 1 dropped, through `prepare_dataset` and back."""
    root = make_dataset(values=(0, 1, 2, 255))
    (root / "labels.json").write_text('{"0": "car", "1": "sky", "2": "bus"}')
    data, class_map = load(root, tmp_path / "cache", merge_classes=["car,bus=vehicle"], drop_classes=["sky"])
    row = prepare_dataset(data.splits, class_map)["train"][0]
    assert row["class_pixels"] == [48] and np.asarray(row["label"])[0].tolist() == [0, 255, 0, 255] * 3
    assert class_map.to_raw(np.array([[0, 255]], np.uint8)).tolist() == [[0, 255]]


def test_a_label_map_file(make_dataset, tmp_path):
    root, file = make_dataset(values=(0, 1, 2)), tmp_path / "map.yaml"
    file.write_text("{0: null, 1: thing, 2: thing}")
    assert resolve(root, label_map=file).id2label == {0: "thing"}  # no class list, and none is made up
    names = tmp_path / "names.json"
    names.write_text('{"0": "first", "1": "second"}')
    file.write_text("{0: null, 1: 1, 2: 0}")
    class_map = resolve(root, label_map=file, id2label=names)
    assert class_map.id2label == {0: "first", 1: "second"} and class_map.raw_values == [2, 1]
    with pytest.raises(UserError, match="--label_map says it all: leave out --merge_classes and --drop_classes"):
        resolve(root, label_map=file, drop_classes=["x"])


def test_arguments_reach_the_split(make_dataset, tmp_path):
    root = make_dataset("images and masks", count=6)
    args = DatasetArguments(dataset_dir=str(root), train_val_split=0.3, split_groups=r"\d")
    file = tmp_path / "split.json"
    data = load_data(args, seed=7, split_file=file)
    assert [len(rows) for rows in data.splits.values()] == [4, 2]
    assert find_classes(data, ClassArguments()).num_labels == 3
    content = json.loads(file.read_text())
    assert (content["seed"], content["split_groups"], content["train_val_split"]) == (7, r"\d", 0.3)
    with pytest.raises(UserError, match="no data: give --dataset_dir FOLDER or --dataset_name HUB_ID"):
        load_data(DatasetArguments())


# ---- reading ----


@pytest.fixture
def prepared(make_dataset):
    rows = prepare_dataset(load_segmentation_dataset(dataset_dir=make_dataset(count=5, values=(0, 1, 2, 255))), THREE)
    return rows["train"]


def same(first, second):
    return all(
        torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in ("pixel_values", "labels")
    )


def test_training_examples_depend_on_seed_epoch_and_index_alone(prepared):
    transform = TrainTransform(EvaluationProtocol(16))
    one, two = SegmentationDataset(prepared, transform, seed=3), SegmentationDataset(prepared, transform, seed=3)
    epoch_0 = [one[i] for i in range(5)]
    torch.manual_seed(5)
    np.random.seed(5)
    state = torch.get_rng_state()
    assert same(epoch_0, [two[i] for i in reversed(range(5))][::-1])
    assert torch.equal(state, torch.get_rng_state())  # nothing drawn from the global generator
    one.set_epoch(1)
    epoch_1 = [one[i] for i in range(5)]
    assert not same(epoch_0, epoch_1)
    one.set_epoch(0)
    assert same(epoch_0, [one[i] for i in range(5)])
    other_seed = SegmentationDataset(prepared, transform, seed=4)
    assert not same(epoch_0, [other_seed[i] for i in range(5)])


def test_crops_of_rare_classes_depend_on_seed_epoch_and_index_alone(prepared):
    """And other images than that of the index are among them, under their own names."""
    transform = TrainTransform(EvaluationProtocol(16), vertical_flip_probability=0.5, quarter_turns=True)
    pixels = np.array(prepared["class_pixels"])
    examples = []
    for order in (range(len(prepared)), range(len(prepared))[::-1]):
        dataset = SegmentationDataset(prepared, transform, 7, RareClassCrops.of(pixels, 0.8))
        found = {}
        for epoch in range(4):
            dataset.set_epoch(epoch)
            found |= {(epoch, index): dataset[index] for index in order}
        examples.append(found)
    assert examples[0].keys() == examples[1].keys()
    assert same(examples[0].values(), [examples[1][key] for key in examples[0]])
    names = list(prepared["name"])
    assert any(example["name"] != names[index] for (_, index), example in examples[0].items())


def test_workers_see_the_epoch(prepared):
    dataset = SegmentationDataset(prepared, TrainTransform(EvaluationProtocol(16)), seed=3)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, persistent_workers=True, collate_fn=collate_train)
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        batches = list(loader)
        expected = [collate_train([dataset[i] for i in indices]) for indices in ([0, 1], [2, 3], [4])]
        assert same(batches, expected)


def test_evaluation_examples_are_whole(prepared):
    protocol = EvaluationProtocol(32)
    dataset = SegmentationDataset(prepared, protocol)
    assert len(dataset) == 5
    example = dataset[3]
    assert example["pixel_values"].shape == (3, 32, 64)  # 8x12 pixels: 32x48, rounded up to multiples of 32
    assert torch.equal(example["pixel_values"], protocol.preprocess(prepared[3]["image"]))
    assert example["labels"].dtype == torch.uint8
    np.testing.assert_array_equal(example["labels"], np.asarray(prepared[3]["label"]))


def test_collators(prepared):
    train = SegmentationDataset(prepared, TrainTransform(EvaluationProtocol(16)))
    batch = collate_train([train[0], train[1]])
    assert batch["pixel_values"].shape == (2, 3, 16, 16) and batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].shape == (2, 16, 16) and batch["labels"].dtype == torch.int64
    assert int(batch["labels"].max()) == 255
    evaluation = SegmentationDataset(prepared, EvaluationProtocol(16))
    batch = collate_eval([evaluation[0], evaluation[1]])
    assert [len(batch[key]) for key in ("pixel_values", "labels")] == [2, 2]
    assert torch.equal(batch["labels"][1], evaluation[1]["labels"])


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def turn(file):
    with Image.open(file) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(file)


def grow(file):
    with Image.open(file) as image:
        image.resize((image.width + 1, image.height)).save(file)


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, r"train_1\.\w+.*[Tt]runcated"),
        (Path.unlink, r"train_1\.\w+.*No such file"),
        (lambda file: file.write_bytes(b""), r"train_1\.\w+.*no image"),
        (lambda file: file.write_text("<html>"), r"train_1\.\w+.*no image"),
        (turn, r"train_1\.\w+ has changed since it was prepared: it is 8x12 now, its mask 12x8"),
        (grow, r"train_1\.\w+ has changed since it was prepared: it is 13x8 now, its mask 12x8"),
    ],
)
def test_files_that_change_after_they_were_prepared_are_named(make_dataset, change, message, num_channels):
    root = make_dataset(count=3)
    split = prepare_dataset(load_segmentation_dataset(dataset_dir=root), THREE)["train"]
    protocol = EvaluationProtocol(16, image_mean=(0.5,) * num_channels, image_std=(0.5,) * num_channels)
    for transform in (TrainTransform(protocol), protocol):
        dataset = SegmentationDataset(split, transform)
        dataset[1]
    file = Path(undecoded(split)[1]["image"]["path"])
    change(file)
    for transform in (TrainTransform(protocol), protocol):
        dataset = SegmentationDataset(split, transform)
        dataset[0]
        for read in (dataset.read, dataset.__getitem__):
            with pytest.raises(UserError, match=message) as caught:
                read(1)
            assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_an_image_that_is_replaced_by_another_of_its_size_is_named(make_dataset, caplog):
    split = prepare_dataset(load_segmentation_dataset(dataset_dir=make_dataset(count=3)), THREE)["train"]
    file = Path(undecoded(split)[1]["image"]["path"])
    dataset = SegmentationDataset(split, TrainTransform(EvaluationProtocol(16)))
    content, time = file.read_bytes(), file.stat().st_mtime_ns
    file.write_bytes(content)
    os.utime(file, ns=(time, time + 1))  # copied back from somewhere
    for _ in range(2):
        dataset[1]
    assert caplog.text.count("train_1.jpg was written again since this run began") == 1
    Image.new("RGB", (12, 8), (200, 10, 10)).save(file)
    with pytest.raises(
        UserError, match=r"train_1.jpg has changed since this run began: it has \d+ bytes now, and had"
    ):
        dataset[1]
    dataset[0]


def test_an_error_in_a_worker_is_the_same_line(prepared):
    file = Path(undecoded(prepared)[1]["image"]["path"])
    cut(file)
    dataset = SegmentationDataset(prepared, TrainTransform(EvaluationProtocol(16)))
    with pytest.raises(UserError) as here:
        dataset[1]
    with pytest.raises(UserError) as from_worker:  # which hands on its traceback as text, with the message at its end
        list(DataLoader(dataset, batch_size=3, num_workers=1, collate_fn=collate_train))
    assert str(from_worker.value) == str(here.value)


def test_names_of_a_batch():
    long, odd = "x" * 300, "größe 😀"
    example = {"pixel_values": torch.zeros(3, 2, 2), "labels": torch.zeros(2, 2)}
    batch = collate_train([example | {"name": name} for name in ("a", long, odd, "\udcff")] + [example])
    assert names_of_batch(batch["names"]) == ["a", "x" * NAME_BYTES, odd, "?", "number 4"]


@pytest.mark.parametrize(
    ("size", "least", "factor"),
    [
        ((600, 800), (128, 171), 4),
        ((600, 800), (301, 401), 1),
        ((600, 800), (300, 400), 2),
        ((5000, 40), (10, 40), 1),
        ((601, 800), (10, 10), 1),
        ((604, 800), (10, 10), 4),
        ((9000, 9000), (1, 1), 8),
    ],
)
def test_a_reduced_image_is_no_smaller_than_needed(size, least, factor):
    assert reduction_for(size, least) == factor


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_large_photos_are_decoded_smaller_for_training_alone(tmp_path, monkeypatch, orientation, suffix):
    """600 x 800 and crops of at most 2 x 64 pixels: a quarter is enough. Nothing but rounding of colours differs."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((800, 600), Image.BICUBIC)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    photo.save(tmp_path / "data" / "images" / f"x{suffix}", exif=exif, quality=95)
    ids = rng.integers(0, 3, (9, 9), dtype=np.uint8)
    size = (600, 800) if orientation == 6 else (800, 600)
    Image.fromarray(ids).resize(size, Image.NEAREST).save(tmp_path / "data" / "masks" / "x.png")
    split = prepare_dataset(load_segmentation_dataset(dataset_dir=tmp_path / "data"), THREE)["train"]
    sizes, decode = [], jpeg_files.decode_pixels
    monkeypatch.setattr(
        jpeg_files, "decode_pixels", lambda *a: (pixels := decode(*a), sizes.append(pixels.shape[:0:-1]))[0]
    )
    protocol = EvaluationProtocol(64, image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    options = {"photometric_distortion": False}
    full = SegmentationDataset(split, TrainTransform(protocol, reduced_decoding=False, **options))
    reduced = SegmentationDataset(split, TrainTransform(protocol, **options))
    for epoch in range(6):
        for dataset in (full, reduced):
            dataset.set_epoch(epoch)
        one, other = full[0], reduced[0]
        assert torch.equal(one["labels"], other["labels"])
        difference = (one["pixel_values"] - other["pixel_values"]).abs() * 255
        assert difference.mean() < 1 and difference.max() < 6
        assert (difference.max() > 0) == (suffix == ".jpg")
    smaller = tuple(side // 4 for side in size) if suffix == ".jpg" else size
    assert sizes == [size, smaller] * 6
    assert reduced.read(0)[0].size == size
    SegmentationDataset(split, protocol)[0]
    assert sizes[-1] == size  # evaluation is what it was
