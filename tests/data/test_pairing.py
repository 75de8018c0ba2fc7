"""Every layout is found, every mask finds its image, and what does not fit is named."""

import json
import logging
import shutil

import numpy as np
import pytest
from factories.datasets import LAYOUT_FILES, load, save_pair

from cli_utils import UserError
from data.layouts import Pair
from data.pairing import PairingFlags, find_dataset
from data_utils import LABELS


def refused(folder, *parts, **options):
    """Finding the dataset fails with one line that holds all `parts`."""
    with pytest.raises(UserError) as caught:
        find_dataset(folder, **options)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message


@pytest.mark.parametrize("layout", LAYOUT_FILES)
def test_every_layout_is_found(make_dataset, layout, caplog):
    caplog.set_level(logging.INFO)
    root = make_dataset(layout)
    found = find_dataset(root)
    assert found.layout == layout
    assert f"has the {layout} layout" in caplog.text
    prefix = "ulm/" if layout == "Cityscapes" else "pictures/" if layout == "metadata" else ""
    expected = {"train": [f"{prefix}train_0", f"{prefix}train_1"]}
    if layout != "images and masks":
        expected["validation"] = [f"{prefix}val_0", f"{prefix}val_1"]
    assert {split: [pair.name for pair in pairs] for split, pairs in found.splits.items()} == expected
    image, mask = (root / file.format(split="train", ade="training", name="train_1") for file in LAYOUT_FILES[layout])
    assert found.splits["train"][1] == Pair(expected["train"][1], image, mask)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_the_full_ade20k_archive(make_dataset):
    root = make_dataset("ADE20K").rename(make_dataset("ADE20K", folder="parent").parent / "ADEChallengeData2016")
    (root / "objectInfo150.txt").write_text("Idx Ratio Train Val Stuff Name\n")
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 airport_terminal\n")
    assert find_dataset(root).layout == "ADE20K"


@pytest.mark.parametrize("alias", ["val", "valid", "validation", "dev"])
def test_split_names(make_dataset, alias):
    root = make_dataset()
    (root / "val").rename(root / alias)
    assert list(find_dataset(root).splits) == ["train", "validation"]


def test_nested_folders_dots_and_upper_case(tmp_path):
    ids = np.zeros((4, 6), np.uint8)
    save_pair(tmp_path / "images" / "a" / "x.1.JPG", tmp_path / "masks" / "a" / "x.1.PNG", ids)
    save_pair(tmp_path / "images" / "b" / "x.1.TIFF", tmp_path / "masks" / "b" / "x.1.png", ids)
    assert [pair.name for pair in find_dataset(tmp_path).splits["train"]] == ["a/x.1", "b/x.1"]


def test_litter_is_passed_over(make_dataset, caplog):
    root = make_dataset()
    for litter in ("train/images/._train_0.jpg", "train/masks/.DS_Store", "train/images/Thumbs.db", "desktop.ini"):
        (root / litter).write_bytes(b"litter")
    (root / "train" / "images" / "__MACOSX").mkdir()
    (root / "train" / "images" / "__MACOSX" / "x.jpg").write_bytes(b"litter")
    assert len(find_dataset(root).splits["train"]) == 2
    assert "without" not in caplog.text


def test_masks_named_with_a_suffix(make_dataset, caplog):
    caplog.set_level(logging.INFO)
    root = make_dataset("images and masks")
    for path in (root / "masks").iterdir():
        path.rename(path.with_stem(path.stem + "_mask"))
    assert [pair.mask.name for pair in find_dataset(root).splits["train"]] == ["train_0_mask.bmp", "train_1_mask.bmp"]
    assert "with _mask at the end" in caplog.text


def test_two_possible_suffixes_are_refused(make_dataset):
    root = make_dataset("images and masks")
    for path in list((root / "masks").iterdir()):
        shutil.copy(path, path.with_stem(path.stem + "_mask"))
        path.rename(path.with_stem(path.stem + "_label"))
    refused(root, "masks with _label at the end", "masks with _mask at the end", "--mask_suffix _mask")


def test_orphans_are_left_out_and_counted(make_dataset, caplog):
    root = make_dataset(count=6)
    for i in range(5):
        (root / "train" / "masks" / f"train_{i}.png").unlink()
    (root / "val" / "images" / "val_3.jpg").unlink()
    found = find_dataset(root)
    assert [pair.name for pair in found.splits["train"]] == ["train_5"]
    assert "train: 5 images without a mask left out: train_0.jpg, train_1.jpg, train_2.jpg and 2 more" in caplog.text
    assert "validation: 1 mask without an image left out: val_3.png" in caplog.text
    assert found.images_alone == [root / "train" / "images" / f"train_{i}.jpg" for i in range(5)]
    assert found.masks_alone == [root / "val" / "masks" / "val_3.png"]


def test_a_split_without_pairs_is_refused(make_dataset):
    root = make_dataset()
    for path in list((root / "val" / "masks").iterdir()):
        path.rename(path.with_stem(path.stem + "_x"))
    refused(root, "the validation split would be empty", "2 images", "val_0.jpg", "2 masks", "val_0_x.png")
    shutil.rmtree(root / "val" / "masks")
    refused(root, "the validation split would be empty", "0 masks")


def test_a_test_split_without_masks_is_left_out(make_dataset, caplog):
    caplog.set_level(logging.INFO)
    root = make_dataset()
    shutil.copytree(root / "val" / "images", root / "test" / "images")
    assert list(find_dataset(root).splits) == ["train", "validation"]
    assert "2 test images have no masks" in caplog.text


def test_no_folder(make_dataset):
    root = make_dataset()
    refused(root.parent / "dtaa", "dtaa: no such folder (did you mean data?)")
    refused(root / "no" / "where", "where: no such folder")
    refused(root / "train" / "images" / "train_0.jpg", "is a file")


def test_empty_folders(tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"")
    refused(tmp_path, f"{tmp_path} is empty")
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    refused(tmp_path, "the train split would be empty", "0 images")


def test_no_known_layout(make_dataset, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "Notes.txt").write_text("")
    (tmp_path / "other" / "pictures").mkdir()
    refused(tmp_path / "other", "0 images that can be read", "it holds Notes.txt, pictures/")
    save_pair(tmp_path / "only" / "a.jpg", tmp_path / "b.png", np.zeros((8, 8), np.uint8))
    refused(tmp_path / "only", "no known layout", "1 picture", "a.jpg", "--images DIR --masks DIR")


def test_an_archive_in_a_folder_of_its_own(make_dataset, tmp_path):
    root = make_dataset("ADE20K", folder="downloads/ADEChallengeData2016")
    found = find_dataset(tmp_path / "downloads")
    assert (found.layout, found.folder) == ("ADE20K", root)


def test_two_folders_for_a_split(make_dataset):
    root = make_dataset()
    shutil.copytree(root / "val", root / "validation")
    refused(root, "two folders for the validation split")


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_two_files_of_one_name(make_dataset, kind):
    root = make_dataset()
    path = next((root / "train" / kind).iterdir())
    shutil.copy(path, path.with_suffix(".bmp"))
    refused(root, f"{path.stem}.bmp", "differ in the extension alone")


def test_cityscapes_without_training_ids(make_dataset):
    root = make_dataset("Cityscapes", values=(0, 7, 26))
    for path in list((root / "gtFine").rglob("*.png")):
        for other in ("labelIds", "color", "instanceIds"):
            shutil.copy(path, path.with_name(path.name.replace("labelTrainIds", other)))
    assert {pair.mask.name[-17:] for pair in find_dataset(root).splits["train"]} == {"labelTrainIds.png"}
    for path in (root / "gtFine" / "train" / "ulm").glob("*TrainIds.png"):
        path.unlink()
    refused(root, "no *_gtFine_labelTrainIds.png", "csCreateTrainIdLabelImgs")
    for path in (root / "gtFine").rglob("*TrainIds.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"--label_map .*cityscapes_label_ids.yaml"):
        load(root)
    class_map = load(root, label_map=LABELS / "cityscapes_label_ids.yaml")[1]
    assert class_map.id2label[13] == "car" and class_map.value_ids[26] == 13


def test_class_lists_of_programs(make_dataset, tmp_path):
    """Found by their names where they hold classes; other files of the name are passed over."""
    root = make_dataset(values=(0, 1, 2))
    (root / "config.json").write_text('{"model_type": "segformer"}')
    (root / "labels.txt").write_text("a caption with \n a caption with \n")
    assert load(root)[1].id2label == {0: "class_0", 1: "class_1", 2: "class_2"}
    (root / "train" / "_classes.csv").write_text("Pixel Value, Class\n0, sky\n1, cat\n2, dog\n")
    assert load(root)[1].id2label == {0: "sky", 1: "cat", 2: "dog"}
    (root / "dataset.json").write_text('{"labels": {"sky": 0, "cat": 1, "ignore": 2}}')  # nnU-Net's word for void
    (root / "train" / "_classes.csv").unlink()
    class_map = load(root)[1]
    assert class_map.id2label == {0: "sky", 1: "cat"} and class_map.value_ids[2] == 255


def test_voc_lists(make_dataset, caplog):
    root = make_dataset("Pascal VOC")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "trainval.txt").write_text("train_0\nval_0\n")
    (lists / "train.txt").write_text("train_1\n")
    assert [pair.name for pair in find_dataset(root).splits["train"]] == ["train_1"]
    (root / "SegmentationClass" / "val_0.png").unlink()
    found = find_dataset(root)
    assert "validation: 1 image without a mask left out: val_0.jpg" in caplog.text
    assert (found.images_alone, found.masks_alone) == ([root / "JPEGImages" / "val_0.jpg"], [])  # not train_0
    (lists / "val.txt").write_text("val_0\nval_9\n")
    refused(root, "val.txt names 1 image that is not in JPEGImages: val_9")
    (lists / "val.txt").rename(lists / "night.txt")
    (lists / "train.txt").rename(lists / "day.txt")
    (lists / "trainval.txt").unlink()
    refused(root, "holds no train.txt, val.txt or test.txt but day.txt, night.txt")
    for file in lists.iterdir():
        file.unlink()
    assert len(find_dataset(root).splits["train"]) == 3  # no list, so all of them


def test_metadata_in_json_lines_for_each_split(make_dataset):
    root = make_dataset("metadata")
    (root / "metadata.csv").unlink()
    for split in ("train", "val"):
        rows = [{"image": f"../pictures/{split}_{i}.webp", "label": f"../ids/{split}_{i}.gif"} for i in range(2)]
        (root / split).mkdir()
        (root / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "metadata.jsonl").write_text("")
    refused(root, "metadata.jsonl has no rows")
    (root / "metadata.jsonl").write_text('{"image": "pictures/val_0.webp", "label": "ids/val_0.gif", "split": "test"}')
    found = find_dataset(root)
    assert {split: len(pairs) for split, pairs in found.splits.items()} == {"train": 2, "validation": 2, "test": 1}
    assert found.images_alone == []
    (root / "pictures" / "more.jpg").touch()
    assert find_dataset(root).images_alone == [root / "pictures" / "more.jpg"]


def test_metadata_mistakes(make_dataset):
    root = make_dataset("metadata")
    file = root / "metadata.csv"
    good = file.read_text()
    file.write_text(good + "\npictures/train_7.webp,ids/train_7.gif,train")
    refused(root, "names 2 files that are not there: pictures/train_7.webp, ids/train_7.gif")
    file.write_text(good + "\npictures/train_0.webp,ids/train_0.gif,train")
    refused(root, "train split names an image more than once: pictures/train_0")
    file.write_text(good.replace(",val", ",evening"))
    refused(root, "split 'evening' is none of train, validation, test")
    file.write_text(good.replace("ids/train_1.gif", ""))
    found = find_dataset(root)
    assert len(found.splits["train"]) == 1 and found.images_alone == [root / "pictures" / "train_1.webp"]
    file.write_text(good.replace("mask_file_name", "ground"))
    assert len(find_dataset(root).splits["train"]) == 2  # the only other column with names of files
    refused(root, "--image_column photo: no such column", image_column="photo", label_column="ground")
    rows = [line.split(",") for line in good.splitlines()]
    doubled = [",".join([*row, row[1]]) for row in rows[1:]]
    file.write_text("\n".join(["file_name,ground,split,other", *doubled]))
    refused(root, "ground and other of the columns could be the labels: file_name, ground, split", "--label_column")
    assert len(find_dataset(root, label_column="ground").splits["train"]) == 2
    file.write_text(good)
    (root / "metadata.csv").rename(root / "metadata.jsonl")
    refused(root, "metadata.jsonl cannot be read")


@pytest.mark.parametrize("cell", ["x" * 300, "x/" * 3000, "/", ".", "..", "a\0b", "C:\\con", "~nobody-at-all/x"])
def test_cells_that_no_file_can_be_called(make_dataset, cell):
    root = make_dataset("metadata")
    file = root / "metadata.csv"
    header, row, *rows = file.read_text().split("\n")
    image, rest = row.split(",", 1)
    file.write_text("\n".join([header, f"{cell},{rest}", row, *rows]))
    refused(root, "names 1 file that are not there" if cell != "a\0b" else "metadata.csv")


def test_two_layouts_in_a_folder_are_a_choice(make_dataset):
    root = make_dataset("CamVid")
    make_dataset("ADE20K")
    refused(root, "--images images --masks annotations", "--masks '*annot'")
    found = find_dataset(root, flags=PairingFlags("images", "annotations"))
    assert {split: len(pairs) for split, pairs in found.splits.items()} == {"train": 2, "validation": 2}
