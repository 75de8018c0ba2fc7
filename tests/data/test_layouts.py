"""Folders as people and programs leave them: each is read exactly, or refused in one line that says how it can be."""

import logging
import os
import re
import shutil

import numpy as np
import pytest
from factories.datasets import load
from factories.trees import photo, spots, write_tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cli_utils import UserError
from data.layouts import read_name, words_of
from data.pairing import PairingFlags, find_dataset

NAMES = [f"p{i}" for i in range(6)]


def pairs_of(root, **flags):
    """split → image file → mask file, relative to the folder."""
    found = find_dataset(root, flags=PairingFlags(**flags))
    return {
        split: {pair.image.relative_to(root).as_posix(): pair.mask.relative_to(root).as_posix() for pair in pairs}
        for split, pairs in found.splits.items()
    }


def refused(root, *parts, **flags):
    with pytest.raises(UserError) as caught:
        find_dataset(root, flags=PairingFlags(**flags))
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message and len(message) < 700


# (image, mask) with the name in place; both with the split where there are two.
FLAT = {
    "imgs + labels": ("imgs/{}.jpg", "labels/{}.png"),
    "Photos + Masks": ("Photos/{}.JPG", "Masks/{}.PNG"),
    "one that no word names": ("pictures of cats/{}.png", "painted/{}.png"),
    "none that a word names": ("alpha/{}.png", "beta/{}.png"),
    "masks beside images": ("{}.jpg", "{}_mask.png"),
    "both in a folder": ("shots/{}.png", "shots/{}_label.png"),
    "told by extension": ("{}.jpg", "{}.png"),
    "masks below images": ("images/{}.jpg", "images/masks/{}.png"),
    "nested on the images' side": ("images/day1/{}.jpg", "masks/{}.png"),
    "nested on the masks' side": ("images/{}.jpg", "annotations/trimaps/{}.png"),
    "sat and mask": ("images/{}_sat.jpg", "masks/{}_mask.png"),
    "RGB and label": ("2_Ortho_RGB/{}_RGB.tif", "5_Labels_all/{}_label.tif"),
    "Cityscapes' names": ("images/{}_leftImg8bit.png", "masks/{}_gtFine_labelIds.png"),
    "prefixes": ("images/img_{}.png", "masks/mask_{}.png"),
    "double extension": ("images/{}.jpg", "masks/{}.jpg.png"),
    "SuperAnnotate": ("images/{}.jpg", "masks/{}.jpg___fuse.png"),
    "letters behind": ("images/{}.jpg", "masks/{}m.png"),
    "capitals": ("images/{}.jpg", "masks/{upper}.png"),
    "GIF images": ("images/{}.gif", "masks/{}.png"),
    "JPEG 2000 images": ("images/{}.jp2", "masks/{}.png"),
    "labelme2voc": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
    "labelme2voc, older": ("JPEGImages/{}.jpg", "SegmentationClassPNG/{}.png"),
    "FiftyOne": ("data/{}.jpg", "labels/{}.png"),
    "a project called like masks": ("segmentation/images/{}.jpg", "segmentation/masks/{}.png"),
    "A2D2": ("camera/front/x_camera_front_{}.png", "label/front/x_label_front_{}.png"),
    "a word within": ("images/cam1_rgb_{}.png", "labels/cam1_semantic_{}.png"),
    "a word more within": ("images/scene_{}.png", "masks/scene_mask_{}.png"),
    "IDD": ("leftImg8bit/1/{}_image.jpg", "gtFine/1/{}_labellevel3Ids.png"),
    "ACDC": ("rgb_anon/{}_rgb_anon.png", "gt/{}_gt_labelTrainIds.png"),
    "ISIC": ("ISIC2018_Task1-2_Training_Input/{}.jpg", "ISIC2018_Task1_Training_GroundTruth/{}_segmentation.png"),
}
WITH_SPLITS = {
    "mmsegmentation": (("img_dir/train/{}.jpg", "ann_dir/train/{}.png"), ("img_dir/val/{}.jpg", "ann_dir/val/{}.png")),
    "train/rgb + train/semseg": (("train/rgb/{}.png", "train/semseg/{}.png"), ("val/rgb/{}.png", "val/semseg/{}.png")),
    "train + train_masks": (("train/{}.jpg", "train_masks/{}.gif"), ("val/{}.jpg", "val_masks/{}.gif")),
    "Train, Valid": (("Train/images/{}.jpg", "Train/labels/{}.png"), ("Valid/images/{}.jpg", "Valid/labels/{}.png")),
    "capitals of one": (("images/train/{}.jpg", "masks/train/{}.png"), ("images/Val/{}.jpg", "masks/Val/{}.png")),
    "train2017": (("train2017/{}.jpg", "masks/train2017/{}.png"), ("val2017/{}.jpg", "masks/val2017/{}.png")),
    "eval": (("train/images/{}.jpg", "train/masks/{}.png"), ("eval/images/{}.jpg", "eval/masks/{}.png")),
    "Roboflow": (("train/{}.jpg", "train/{}_mask.png"), ("valid/{}.jpg", "valid/{}_mask.png")),
    "Mapillary": (
        ("training/images/{}.jpg", "training/v1.2/labels/{}.png"),
        ("validation/images/{}.jpg", "validation/v1.2/labels/{}.png"),
    ),
    "LoveDA": (
        ("Train/Urban/images_png/{}.png", "Train/Urban/masks_png/{}.png"),
        ("Val/Rural/images_png/{}.png", "Val/Rural/masks_png/{}.png"),
    ),
    "UAVid": (
        ("uavid_train/seq1/Images/{}.png", "uavid_train/seq1/Labels/{}.png"),
        ("uavid_val/seq2/Images/{}.png", "uavid_val/seq2/Labels/{}.png"),
    ),
    "CamVid on Kaggle": (("train/{}.png", "train_labels/{}_L.png"), ("val/{}.png", "val_labels/{}_L.png")),
    "splits of the masks alone": (("images/{}.jpg", "masks/train/{}.png"), ("images/{}v.jpg", "masks/val/{}v.png")),
    "BDD100K": (
        ("bdd100k/images/10k/train/{}.jpg", "bdd100k/labels/sem_seg/masks/train/{}.png"),
        ("bdd100k/images/10k/val/{}.jpg", "bdd100k/labels/sem_seg/masks/val/{}.png"),
    ),
    "sites": (
        ("site1_train/images/{}.jpg", "site1_train/masks/{}.png"),
        ("site1_val/images/{}.jpg", "site1_val/masks/{}.png"),
    ),
}


def filled(pattern, name):
    return pattern.format(name, upper=name.upper())


@pytest.mark.parametrize("case", FLAT)
def test_folders_without_splits(tmp_path, case):
    image, mask = FLAT[case]
    truth = {filled(image, name): filled(mask, name) for name in NAMES}
    write_tree(tmp_path, truth)
    assert pairs_of(tmp_path) == {"train": truth}


@pytest.mark.parametrize("case", WITH_SPLITS)
def test_folders_with_splits(tmp_path, case):
    truth = {}
    for split, (image, mask) in zip(("train", "validation"), WITH_SPLITS[case], strict=True):
        truth[split] = {filled(image, name): filled(mask, name) for name in NAMES}
        write_tree(tmp_path, truth[split])
    assert pairs_of(tmp_path) == truth


def test_nnunet(tmp_path):
    truth = {f"imagesTr/{name}_0000.png": f"labelsTr/{name}.png" for name in NAMES}
    test = {f"imagesTs/{name}x_0000.png": f"labelsTs/{name}x.png" for name in NAMES}
    write_tree(tmp_path, truth)
    write_tree(tmp_path, test)
    assert pairs_of(tmp_path) == {"train": truth, "test": test}
    for name in NAMES:
        shutil.copy(tmp_path / f"imagesTr/{name}_0000.png", tmp_path / f"imagesTr/{name}_0001.png")
    refused(tmp_path, "--image_suffix _0000", "--image_suffix _0001")
    assert pairs_of(tmp_path, image_suffix="_0000")["train"] == truth


def test_several_that_would_do_are_a_choice(tmp_path):
    write_tree(tmp_path, {f"images/{name}.jpg": f"masks/{name}.png" for name in NAMES})
    shutil.copytree(tmp_path / "masks", tmp_path / "labels_of_bob")
    refused(tmp_path, "--images images --masks masks", "--images images --masks labels_of_bob")
    assert set(pairs_of(tmp_path, masks="labels_of_bob")["train"].values()) == {
        f"labels_of_bob/{name}.png" for name in NAMES
    }
    (tmp_path / "labels_of_bob" / "p0.png").unlink()  # nearly as many are no better
    refused(tmp_path, "--masks labels_of_bob")
    shutil.copytree(tmp_path / "masks", tmp_path / "labels" / "v1")
    shutil.copytree(tmp_path / "masks", tmp_path / "labels" / "v2")
    shutil.rmtree(tmp_path / "labels_of_bob")
    shutil.rmtree(tmp_path / "masks")
    refused(tmp_path, "labels/v1/p0.png and labels/v2/p0.png", "--masks")
    assert pairs_of(tmp_path, masks="labels/v2")["train"]["images/p0.jpg"] == "labels/v2/p0.png"


def test_a_mask_is_never_taken_for_an_image(tmp_path):
    write_tree(tmp_path, {f"masks/{name}.png": f"masks_color/{name}.png" for name in NAMES})
    refused(tmp_path, "masks")
    root = tmp_path / "beside"
    write_tree(root, {f"images/{name}.jpg": f"images/{name}_mask.png" for name in NAMES})
    write_tree(root, {f"images/{name}.jpg": f"masks/{name}.png" for name in NAMES})
    refused(root, "--images images --masks masks", "_mask")


def test_two_folders_of_photographs_are_no_pair(tmp_path):
    for name in NAMES:
        photo(tmp_path / "left" / f"{name}.png", seed=1)
        photo(tmp_path / "right" / f"{name}.png", seed=2)
    refused(tmp_path, "left", "right", "--images")


def test_masks_in_colours_beside_plain_ones(tmp_path):
    write_tree(tmp_path, {f"{name}.jpg": f"{name}_mask.png" for name in NAMES})
    for name in NAMES:
        spots(tmp_path / f"{name}_color.png")
    assert set(pairs_of(tmp_path)["train"].values()) == {f"{name}_mask.png" for name in NAMES}
    for name in NAMES:
        photo(tmp_path / f"{name}_color.png")  # it may well be the image
    refused(tmp_path, "--image_suffix _color --mask_suffix _mask")


def test_superannotate_beside_images(tmp_path):
    write_tree(tmp_path, {f"{name}.jpg": f"{name}.jpg___fuse.png" for name in NAMES})
    assert len(pairs_of(tmp_path)["train"]) == 6
    for name in NAMES:
        shutil.copy(tmp_path / f"{name}.jpg___fuse.png", tmp_path / f"{name}.jpg___save.png")
    refused(tmp_path, "--images . --masks . --mask_suffix ___fuse, or")
    found = pairs_of(tmp_path, images=".", masks=".", mask_suffix="___fuse")
    assert found["train"]["p0.jpg"] == "p0.jpg___fuse.png"


def test_a_folder_of_masks_for_each_class(tmp_path):
    for label in ("cat", "dog"):
        write_tree(tmp_path, {f"images/{name}.jpg": f"masks/{label}/{name}.png" for name in NAMES})
    refused(tmp_path, "--images images --masks masks/cat, or --images images --masks masks/dog", "must be joined")
    assert len(pairs_of(tmp_path, images="images", masks="masks/cat")["train"]) == 6


def test_a_mask_for_each_object_is_no_choice_of_flags(tmp_path):
    for name in NAMES:
        photo(tmp_path / name / "images" / f"{name}.png")
        for number in (1, 2):
            spots(tmp_path / name / "masks" / f"obj{number}_{name}.png")
    refused(tmp_path, "join the masks of an image in one file")


def test_two_names_that_share_no_word_for_a_side_are_no_pair(tmp_path):
    write_tree(tmp_path, {f"images/left_{name}.png": f"masks/right_{name}.png" for name in NAMES})
    refused(tmp_path, "no two have the same name")


def test_a_photograph_with_the_name_of_a_mask(tmp_path):
    for name in NAMES:
        photo(tmp_path / f"{name}.jpg", seed=1)
        photo(tmp_path / f"{name}_L.jpg", seed=2)
    refused(tmp_path, "neither names nor pixels", "--mask_suffix _L")
    assert len(pairs_of(tmp_path, mask_suffix="_L")["train"]) == 6


def test_flags_alone(tmp_path):
    truth = {f"one/{name}.jpg": f"two/{name}.png" for name in NAMES}
    write_tree(tmp_path, truth)
    found = find_dataset(None, flags=PairingFlags(str(tmp_path / "one"), str(tmp_path / "two")))
    assert [pair.image.name for pair in found.splits["train"]] == [f"{name}.jpg" for name in NAMES]
    assert found.folder == tmp_path
    refused(None, "--masks", "twos: no such folder", images=str(tmp_path / "one"), masks=str(tmp_path / "twos"))
    refused(tmp_path, "--images on: no such folder", "did you mean one?", images="on", masks="two")
    for path in list((tmp_path / "two").iterdir()):
        path.rename(path.with_stem(path.stem + "-by-me"))
    assert len(pairs_of(tmp_path, images="one", masks="two", mask_suffix="-by-me")["train"]) == 6
    refused(tmp_path, "no two have the same name", images="one", masks="two", mask_suffix="-by-you")


def test_flags_with_patterns(tmp_path):
    truth = {}
    for split, folder in (("train", "train"), ("validation", "val")):
        truth[split] = {f"{folder}/a/{name}.jpg": f"{folder}/b/{name}.png" for name in NAMES}
        write_tree(tmp_path, truth[split])
    assert pairs_of(tmp_path, images="*/a", masks="*/b") == truth
    for site in ("x", "y"):
        write_tree(tmp_path / "s", {f"{site}_shots/{name}.jpg": f"{site}_drawn/{name}.png" for name in NAMES})
    pairs = pairs_of(tmp_path / "s", images="*_shots", masks="*_drawn")["train"]
    assert len(pairs) == 12 and pairs["y_shots/p1.jpg"] == "y_drawn/p1.png"


def test_two_folders_of_a_split_are_refused(tmp_path):
    for folder in ("train", "Train"):
        write_tree(
            tmp_path, {f"{folder}/images/{folder}{name}.jpg": f"{folder}/masks/{folder}{name}.png" for name in NAMES}
        )
    refused(tmp_path, "two folders for the train split", "Train", "train")
    shutil.rmtree(tmp_path / "Train")
    write_tree(tmp_path, {f"train/val/images/{name}.jpg": f"train/val/masks/{name}.png" for name in NAMES})
    refused(tmp_path, "train/val/images is named after two splits, train and val")


def test_a_folder_that_is_no_split_is_named(tmp_path, caplog):
    for folder in ("train", "holdout"):
        write_tree(tmp_path, {f"{folder}/images/{name}.jpg": f"{folder}/masks/{name}.png" for name in NAMES})
    found = find_dataset(tmp_path)
    assert {split: len(pairs) for split, pairs in found.splits.items()} == {"train": 6}
    assert "6 images with their masks in holdout/images/, holdout/masks/ left out" in caplog.text
    assert found.left_out


def test_a_site_with_a_split_in_its_name_is_no_split(tmp_path):
    write_tree(tmp_path, {f"test_site_3/images/{name}.jpg": f"test_site_3/masks/{name}.png" for name in NAMES})
    assert list(pairs_of(tmp_path)) == ["train"]


def test_files_that_are_not_read_are_named(tmp_path, caplog):
    write_tree(tmp_path, {f"images/{name}.jpg": f"masks/{name}.png" for name in NAMES})
    for name in NAMES[:4]:
        (tmp_path / "images" / f"{name}.jpg").rename(tmp_path / "images" / f"{name}.heic")
    found = find_dataset(tmp_path)
    assert "4 files are of kinds that are not read (4 .heic): p0.heic, " in caplog.text
    assert "pip install pillow-heif reads them" in caplog.text and caplog.text.count("not read") == 1
    assert [path.suffix for path in found.unread] == [".heic"] * 4
    assert len(found.masks_alone) == 4
    for name in NAMES[4:]:
        (tmp_path / "images" / f"{name}.jpg").rename(tmp_path / "images" / f"{name}.npy")
    refused(tmp_path, "6 masks in masks but no images", "6 files are of kinds that are not read (4 .heic, 2 .npy)")
    shutil.rmtree(tmp_path / "masks")
    refused(tmp_path, "0 images that can be read", "not read (4 .heic, 2 .npy)")


def test_names_of_a_table_lead_out_of_no_folder(tmp_path):
    for folder in ("here", "there"):
        write_tree(tmp_path / folder, {"a.jpg": "a.png"})
    there = tmp_path / "there"
    rows = [f"../there/a.jpg,{there}/a.png", "a.jpg,a.png"]
    (tmp_path / "here" / "metadata.csv").write_text("\n".join(["image,label", *rows]))
    [pairs] = find_dataset(tmp_path / "here").splits.values()
    assert [pair.name for pair in pairs] == ["there/a", "a"]
    assert all(pair.image.is_file() and pair.mask.is_file() for pair in pairs)


def test_every_other_picture_is_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_tree(tmp_path, {f"JPEGImages/{name}.jpg": f"SegmentationClass/{name}.png" for name in NAMES})
    shutil.copytree(tmp_path / "SegmentationClass", tmp_path / "SegmentationObject")
    photo(tmp_path / "docs" / "banner.png")
    found = find_dataset(tmp_path)
    assert f"6 other pictures below {tmp_path} not used: SegmentationObject/ (6)" in caplog.text
    assert found.left_out == [f"1 other picture below {tmp_path} not used: docs/ (1)"]


def test_exports_that_only_others_read(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    (tmp_path / "annotations.xml").write_text("<annotations/>")
    refused(tmp_path, "annotations.xml is CVAT's own format", "Segmentation mask 1.1")


def test_other_formats_are_named(tmp_path):
    photo(tmp_path / "images" / "a.jpg")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "default.json").write_text('{"info": {}, "categories": {}, "items": []}')
    refused(tmp_path, "annotations/default.json is Datumaro's own format", "datum convert")
    (tmp_path / "data.zip").write_bytes(b"PK")
    refused(tmp_path, "data.zip is an archive: unpack it first")


def test_a_split_without_masks_can_be_left_out(tmp_path):
    truth = {f"train/{name}_sat.jpg": f"train/{name}_mask.png" for name in NAMES}
    write_tree(tmp_path, truth)
    photo(tmp_path / "valid" / "z_sat.jpg")
    refused(tmp_path, "the validation split would be empty", "--images train --masks train --image_suffix _sat")
    found = pairs_of(tmp_path, images="train", masks="train", image_suffix="_sat", mask_suffix="_mask")
    assert found == {"train": truth}


def test_words_of_names():
    assert words_of("ISIC_Training_GroundTruth") == ("isic", "training", "ground", "truth")
    assert words_of("labelsTr") == ("labels", "tr") and words_of("train2017") == ("train", "2017")
    assert words_of("trainannot") == ("train", "annot") and words_of("imagestr") == ("images", "tr")
    assert read_name("SegmentationObject").role == "other" and read_name("Ground Truth").role == "masks"
    assert read_name("images_and_masks").role == "masks" and read_name("scene").role is None


@pytest.mark.parametrize("layout", ["YOLO", "two folders"])
def test_a_folder_is_listed_once(tmp_path, monkeypatch, layout):
    """Of millions of files, listing them is what takes long."""
    write_tree(tmp_path, {f"images/train/{name}.jpg": f"masks/train/{name}.png" for name in NAMES})
    if layout == "YOLO":
        shutil.rmtree(tmp_path / "masks")
        (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat]\n")
        for name in NAMES:
            (tmp_path / "labels" / "train").mkdir(parents=True, exist_ok=True)
            (tmp_path / "labels" / "train" / f"{name}.txt").write_text("0 0 0 1 0 1 1\n")
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    load(tmp_path)
    assert listed.count(str(tmp_path / "images" / "train")) == 1


# ---- split lists ----


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "{}.jpg",
        "JPEGImages/{}.jpg",
        "/JPEGImages/{0}.jpg /SegmentationClass/{0}.png",
        "C:\\me\\JPEGImages\\{}.jpg",
    ],
)
def test_lists_in_many_hands(tmp_path, line, encoding):
    names = [f"größe ({i})" for i in range(4)]
    truth = {f"JPEGImages/{name}.jpg": f"SegmentationClass/{name}.png" for name in names}
    write_tree(tmp_path, truth)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, part in (("Train", names[:3]), ("val", names[3:])):
        text = "# a comment\r\n" + "".join(f"{line.format(name)}\r\n" for name in part)
        (lists / f"{split}.txt").write_bytes(text.encode(encoding))
    files = list(truth.items())
    assert pairs_of(tmp_path) == {"train": dict(files[:3]), "validation": dict(files[3:])}


def test_the_only_list_is_the_training_split(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_tree(tmp_path, {f"JPEGImages/{name}.jpg": f"SegmentationClass/{name}.png" for name in NAMES})
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("\n".join(NAMES[:4]))
    assert list(pairs_of(tmp_path)["train"]) == [f"JPEGImages/{name}.jpg" for name in NAMES[:4]]
    assert "2 images in JPEGImages that no list names left out: p4.jpg, p5.jpg" in caplog.text


@pytest.mark.parametrize(
    "files", [("ImageSets/Main/train.txt", "ImageSets/Main/val.txt"), ("train_list.txt", "val_list.txt")]
)
def test_lists_by_other_names(tmp_path, files):
    truth = {f"images/{name}.jpg": f"labels/{name}.png" for name in NAMES}
    write_tree(tmp_path, truth)
    for file, part in zip(files, (NAMES[:4], NAMES[4:]), strict=True):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("".join(f"images/{name}.jpg labels/{name}.png\n" for name in part))
    items = list(truth.items())
    assert pairs_of(tmp_path) == {"train": dict(items[:4]), "validation": dict(items[4:])}


def test_a_second_column_names_the_mask(tmp_path):
    write_tree(tmp_path, {f"images/{i}.jpg": f"masks/{i}.png" for i in range(4)})
    (tmp_path / "train.txt").write_text("".join(f"images/{i}.jpg masks/{3 - i}.png\n" for i in range(4)))
    assert pairs_of(tmp_path) == {"train": {f"images/{i}.jpg": f"masks/{3 - i}.png" for i in range(4)}}


# ---- tables ----


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "header", [("image_id", "split", "sat_image_path", "mask_path"), ("n", "Subset", "Foto", "Ground Truth")]
)
def test_tables_in_many_hands(tmp_path, caplog, header, delimiter, encoding):
    truth = {f"a/{name} ü.jpg": f"b/{name} ü.png" for name in NAMES}
    write_tree(tmp_path, truth)
    photo(tmp_path / "a" / "no mask.jpg")
    rows = [header, *((str(i), "train" if i < 4 else "Val", *pair) for i, pair in enumerate(truth.items()))]
    rows += [("9", "test", "a/no mask.jpg", "")]
    (tmp_path / "metadata.csv").write_bytes("\n".join(map(delimiter.join, rows)).encode(encoding))
    files = list(truth.items())
    assert pairs_of(tmp_path) == {"train": dict(files[:4]), "validation": dict(files[4:])}
    assert "1 row of the test split without" in caplog.text and "a/no mask.jpg" in caplog.text


@pytest.mark.parametrize("kind", ["list", "table"])
def test_capitals_do_not_count_where_no_other_file_has_them(tmp_path, kind):
    truth = {f"Fotos/{name}.jpg": f"masks/{name}.png" for name in NAMES}
    write_tree(tmp_path, truth)
    if kind == "list":
        (tmp_path / "train.txt").write_text("".join(f"{name.upper()}.JPG\n" for name in NAMES))
    else:
        rows = [f"fotos/{name}.JPG,Masks/{name}.PNG" for name in NAMES]
        (tmp_path / "metadata.csv").write_text("\n".join(["image,mask", *rows]))
    assert pairs_of(tmp_path) == {"train": truth}
    photo(tmp_path / "Fotos" / "P0.Jpg")  # which of the two is meant?
    refused(tmp_path, "not" if kind == "list" else "not there")


TABLES = {
    "of another name": {"index.csv": "image,mask,split"},
    "one for each split": {"train.csv": "image;mask", "val.csv": "image;mask"},
    "of splits alone": {"metadata.csv": "image_id,split"},
    "of another machine": {"metadata.csv": "image,mask,split"},
    "of Windows": {"metadata.csv": "image,mask,split"},
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_by_other_names(tmp_path, case):
    truth = {f"a/{name}.jpg": f"b/{name}.png" for name in NAMES}
    write_tree(tmp_path, truth)
    before = {"of another machine": "/kaggle/input/", "of Windows": "D:\\me\\"}.get(case, "")
    rows = [
        {"image": before + image, "mask": before + mask, "image_id": NAMES[i], "split": "train" if i < 4 else "val"}
        for i, (image, mask) in enumerate(truth.items())
    ]
    for file, header in TABLES[case].items():
        delimiter = ";" if ";" in header else ","
        chosen = [row for row in rows if file[:-4] in (row["split"], "metadata", "index")]
        lines = [delimiter.join(row[key] for key in header.split(delimiter)) for row in chosen]
        (tmp_path / file).write_text("\n".join([header, *lines]).replace("/", "\\" if case == "of Windows" else "/"))
    items = list(truth.items())
    assert pairs_of(tmp_path) == {"train": dict(items[:4]), "validation": dict(items[4:])}
    if case == "of another name":
        shutil.copy(tmp_path / "index.csv", tmp_path / "old.csv")
        refused(tmp_path, "2 tables that name images and masks of the train split: index.csv, old.csv", "metadata.csv")


def test_a_table_about_something_else(tmp_path):
    truth = {f"images/{name}.jpg": f"masks/{name}.png" for name in NAMES}
    write_tree(tmp_path, truth)
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{name}.jpg,a cat\n" for name in NAMES))
    assert pairs_of(tmp_path) == {"train": truth}


# ---- any tree ----

IMAGE_FOLDERS = ["images", "imgs", "Photos", "JPEGImages", "rgb"]
MASK_FOLDERS = ["masks", "labels", "Annotations", "gt", "seg"]
AFFIXES = [
    ("", ""),
    ("", "_mask"),
    ("", "_label"),
    ("_sat", "_mask"),
    ("_RGB", "_label"),
    ("", "_by_eve"),
    ("_0000", ""),
]
SPLITS = [(), ("train", "val"), ("Train", "Valid"), ("training", "validation"), ("train", "eval", "holdout")]


PROPERTY = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=50, **PROPERTY)
@given(st.data())
def test_any_tree_is_read_exactly_or_refused(tmp_path_factory, caplog, data):
    check_any_tree(tmp_path_factory, caplog, data)


@pytest.mark.slow
@settings(max_examples=1500, **PROPERTY)
@given(st.data())
def test_very_many_trees_are_read_exactly_or_refused(tmp_path_factory, caplog, data):
    check_any_tree(tmp_path_factory, caplog, data)


def check_any_tree(tmp_path_factory, caplog, data):
    """Names, cases, depths, suffixes, orphans and decoys, whose truth is known: every pair that is made is right, and
    every picture is used or in a sentence."""
    draw = data.draw
    root = tmp_path_factory.mktemp("tree")
    image_folder, mask_folder = draw(st.sampled_from(IMAGE_FOLDERS)), draw(st.sampled_from(MASK_FOLDERS))
    image_suffix, mask_suffix = draw(st.sampled_from(AFFIXES))
    splits = draw(st.sampled_from(SPLITS)) or ("",)
    split_first = draw(st.booleans())
    scenes = draw(st.sampled_from([("",), ("day 1", "day2"), ("north",)]))
    nested = draw(st.sampled_from(["both", "images", "masks"]))
    stems = draw(
        st.lists(
            st.sampled_from(["a", "b1", "c", "IMG 2", "x.y", "1", "11", "größe", "d_mask"]),
            min_size=1,
            max_size=5,
            unique=True,
        )
    )
    repeats = draw(st.booleans())  # the same names in every scene and split
    truth, orphans = {}, []
    for split in splits:
        for scene in scenes:
            for stem in stems:
                name = stem if repeats else f"{stem}-{split}-{scene}"
                image, mask = (
                    "/".join(
                        [
                            *filter(None, [split, kind] if split_first else [kind, split]),
                            *filter(None, [scene] if nested in ("both", kind_name) else []),
                            f"{name}{suffix}{extension}",
                        ]
                    )
                    for kind_name, kind, suffix, extension in (
                        ("images", image_folder, image_suffix, ".jpg"),
                        ("masks", mask_folder, mask_suffix, ".png"),
                    )
                )
                missing = draw(st.sampled_from(["", "", "", "", "image", "mask"]))
                if missing != "image" and not (root / image).exists():
                    photo(root / image, seed=len(truth))
                if missing != "mask" and not (root / mask).exists():
                    spots(root / mask, seed=len(truth))
                if missing:
                    orphans.append((image, mask))
                truth.setdefault(image, set()).add(mask)
    decoys = draw(st.sets(st.sampled_from(["second masks", "other photos", "overlays", "banner", "notes"])))
    there = sorted(path for path in (root / mask_folder if not split_first else root).rglob("*.png"))
    if "second masks" in decoys and there:
        for path in there:
            target = root / "old_masks" / path.relative_to(root)
            spots(target, seed=7)
    # Without them, the other photos with the same names are as good a reading.
    if "other photos" in decoys and any((root / image).exists() for image in truth):
        for stem in stems:
            photo(root / "spare" / f"{stem}.jpg", seed=9)
    if "overlays" in decoys:
        for stem in stems:
            photo(root / "overlays" / f"{stem}.png", seed=9)
    if "banner" in decoys:
        photo(root / "banner.png")
    if "notes" in decoys:
        (root / "train.md").write_text("x")
    caplog.clear()
    try:
        with caplog.at_level(logging.INFO):
            found = find_dataset(root) if any(root.iterdir()) else None
    except UserError as error:
        assert "\n" not in str(error)
        return
    if found is None:
        return
    used = set()
    standard = {"train": "train", "Train": "train", "training": "train", "holdout": None, "": "train"}
    for split, pairs in found.splits.items():
        assert len({pair.name for pair in pairs}) == len(pairs)
        for pair in pairs:
            image, mask = (path.relative_to(root).as_posix() for path in (pair.image, pair.mask))
            used |= {image, mask}
            assert mask in truth.get(image, ()), (image, mask)
            folder = next((part for part in image.split("/") if part in splits), "")
            assert standard.get(folder, "validation") == split, image
    said = caplog.text
    alone = {path.relative_to(root).as_posix() for path in (*found.images_alone, *found.masks_alone)}
    counted = sum(int(number) for number in re.findall(r"(\d+) (?:other picture|test images)", said))
    loose = sum(2 * int(number) for number in re.findall(r"(\d+) images? with (?:its|their) masks?", said))
    pictures = [path for path in root.rglob("*") if path.suffix in (".jpg", ".png")]
    assert len(pictures) == len(used) + len(alone) + counted + loose, said


def test_masks_are_written_for_every_case_above(tmp_path):
    """The helpers write what they say: photographs have many colours, masks few."""
    photo(tmp_path / "a.png")
    spots(tmp_path / "b.png")
    assert Image.open(tmp_path / "a.png").getcolors(64) is None
    assert len(np.unique(np.asarray(Image.open(tmp_path / "b.png")))) == 3
