"""The clean copy of a broken dataset passes the check and is read by training; the source stays as it is."""

import csv
import errno
import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
from factories.broken_datasets import (
    COLORS,
    FAULTS,
    NAMES,
    TRAIN,
    VALIDATION,
    draw_scene,
    each_image,
    each_mask,
    ids,
    image_of,
    load,
    make_clean,
    mask_of,
    replace,
    with_orientation,
    write_classes,
)
from factories.datasets import LAYOUT_FILES
from PIL import Image

import check_dataset
from checks import clean_copy
from checks.clean_copy import snap, write_clean_copy
from checks.judge import prepare_dataset
from cli_utils import UserError
from data_utils import find_classes, load_data

# Those of which nothing is left in the copy.
MENDED = (
    *("image cut off", "JPEG image cut off", "mask cut off", "empty image", "empty mask", "text as image"),
    *("web page as mask", "16-bit image", "float image", "one mask cropped", "mask on its side"),
    *("image without mask", "mask without image", "EXIF in the image, mask as stored"),
    *("EXIF in the image, mask as seen", "EXIF upside down", "colour masks that can be read"),
    *("palettes with the colours of other classes", "mask of two pages", "palettes that differ"),
    *("masks of three equal channels", "one 16-bit mask", "JPEG masks", "JPEG mask called PNG", "0 and 255"),
    "unknown id",
)
# Those of which a copy would say something wrong, or nothing.
REFUSED = {
    "masks of half size": "none of 12 pairs can be used",
    "no layout": "cannot be loaded",
    "twice with another extension": "cannot be loaded",
    "class list with a name twice": "needs to know the classes",
    "colour masks": "none of 12 pairs can be used",
    "colour masks as JPEG": "none of 12 pairs can be used",
    "void after the last class": "--ignore_values 4",
    "ids from 1": "--do_reduce_labels",
    "reduced twice": "mask-reduced-twice",
    "ids times 85": "mask-values-scaled",
    "ids of objects without a class list": "mask-instance-ids",
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make_clean(tmp_path_factory.mktemp("clean") / "data")


@pytest.fixture
def fix(tmp_path, capsys):
    """(folder, flags …) → folder of the copy, flags for it, rows of its report by split and name, what was printed.

    Sees that the source is not touched.
    """

    def run(source, *flags):
        out = tmp_path / "copy"
        before = hashes(source) if Path(str(source)).is_dir() else None
        first = [str(source)] if before is not None else ["--dataset_name", str(source)]
        check_dataset.main([*first, "--image_size", "48", "--num_proc", "1", *flags, "--fix", str(out)])
        assert before is None or hashes(source) == before
        summary = capsys.readouterr().out.splitlines()[-1]
        with open(out / "fix_report.csv", newline="", encoding="utf-8") as file:
            rows = {(row["split"], row["name"]): row for row in csv.DictReader(file)}
        copy_flags = summary.split("check_dataset.py ")[1].removesuffix(" (the same flags for training)").split()
        return out, copy_flags, rows, summary

    return run


def hashes(root):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(root).rglob("*") if path.is_file()}


def kinds(flags, tmp_path):
    """What the check says of a copy."""
    file = tmp_path / "report.json"
    check_dataset.main([*flags, "--image_size", "48", "--num_proc", "1", "--json", str(file)])
    return {found["kind"] for found in json.loads(file.read_text())["findings"]}


def prepared(flags):
    """What training makes of a dataset."""
    _, dataset_args, class_args = check_dataset.parse(list(flags))
    data = load_data(dataset_args)
    return prepare_dataset(data.splits, find_classes(data, class_args))


def labels(flags):
    """(split, name) → training ids."""
    return {
        (split, name): np.asarray(label)
        for split, rows in prepared(flags).items()
        for name, label in zip(rows["name"], rows["label"], strict=True)
    }


@pytest.mark.parametrize("name", MENDED)
def test_what_is_mended(clean, tmp_path, fix, name):
    fault = FAULTS[name]
    root = shutil.copytree(clean, tmp_path / "data")
    fault.break_it(root)
    out, flags, rows, summary = fix(root, *fault.flags)

    assert fault.kind not in kinds(flags, tmp_path)
    pairs = sum(len(split) for split in prepared(flags).values())
    assert pairs == sum(not row["left_out"] for row in rows.values()) >= TRAIN + VALIDATION - 1
    assert f"{pairs} pairs" in summary
    assert sorted(path.name for path in out.iterdir()) == sorted(["fix_report.csv", "train", "val", "labels.json"])
    for file in out.glob("*/masks/*"):
        assert file.suffix == ".png" and load(file).mode == "L"


def test_clean_is_copied_as_it_is(clean, fix):
    out, flags, rows, summary = fix(clean)
    assert len(rows) == 12 and all(row["changed"] == row["left_out"] == "" for row in rows.values())
    for index in range(TRAIN + VALIDATION):
        assert image_of(out, index).read_bytes() == image_of(clean, index).read_bytes()
        assert np.array_equal(ids(mask_of(out, index)), ids(mask_of(clean, index)))
    assert "12 pairs (train: 8, val: 4), 0 pairs and 0 single files left out, 0 pixels" in summary
    assert flags == ["--dataset_dir", str(out)]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(clean, tmp_path, name):
    root = shutil.copytree(clean, tmp_path / "data")
    FAULTS[name].break_it(root)
    with pytest.raises(UserError, match=REFUSED[name]):
        check_dataset.main([str(root), "--image_size", "48", "--num_proc", "1", "--fix", str(tmp_path / "copy")])
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("training image in validation", "masks mirrored", "masks interpolated", "one mask interpolated"),
        *("0 and 255 in one mask", "blank image", "no training split", "class that never occurs"),
    ],
)
def test_what_is_left_as_it_is_is_said(clean, tmp_path, fix, name):
    root = shutil.copytree(clean, tmp_path / "data")
    FAULTS[name].break_it(root)
    _, flags, _, summary = fix(root)
    assert f"Not mended, or not for certain: {FAULTS[name].kind}" in summary
    assert FAULTS[name].kind in kinds(flags, tmp_path)


@pytest.mark.parametrize("name", ["palettes that differ", "mask of two pages", "EXIF upside down", "JPEG masks"])
def test_doubt_that_the_copy_no_longer_shows_is_said(clean, tmp_path, fix, name):
    root = shutil.copytree(clean, tmp_path / "data")
    FAULTS[name].break_it(root)
    _, _, _, summary = fix(root)
    assert f"Not mended, or not for certain: {FAULTS[name].kind}." in summary


@pytest.mark.parametrize("out", ["data", "data/clean", ".", "full", "file", "link/clean"])
def test_places_that_are_refused(clean, tmp_path, out):
    shutil.copytree(clean, tmp_path / "data")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    before = hashes(tmp_path)
    with pytest.raises(UserError, match="--fix .* (exists and is not an empty folder|lie one inside the other)"):
        check_dataset.main([str(tmp_path / "data"), "--fix", str(tmp_path / out)])
    assert hashes(tmp_path) == before


def test_source_inside_a_folder_that_looks_empty(clean, tmp_path):
    """Through a link, the copy would lie around its source."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "inner")
    with pytest.raises(UserError, match="lie one inside the other"):
        check_dataset.main([str(tmp_path / "inner"), "--fix", str(tmp_path / "link")])
    with pytest.raises(UserError, match="--max_images"):
        check_dataset.main([str(clean), "--fix", str(tmp_path / "copy"), "--max_images", "3"])


def test_0_and_255(tmp_path, fix):
    root = make_clean(tmp_path / "data")
    each_mask(root, lambda mask: (mask > 0).astype(np.uint8) * 255)
    things = ids(mask_of(root, 3)) == 255
    write_classes(root, {0: "ground", 1: "thing"})
    out, flags, rows, _ = fix(root)
    assert np.array_equal(ids(mask_of(out, 3)), things)
    assert rows["train", "scene_03"]["pixels_changed"] == str(things.sum())
    assert json.loads((out / "labels.json").read_text())[1]["name"] == "thing"
    assert kinds(flags, tmp_path) == set()


def test_0_and_255_as_jpeg(tmp_path, fix):
    """A value of 1 is then a trace of compression, not the second class."""
    root = make_clean(tmp_path / "data", counts=(2, 1), names={0: "ground", 1: "thing"})
    things = {}
    for index, name in enumerate(["train/{}/scene_00", "train/{}/scene_01", "val/{}/scene_02"]):
        image, mask = draw_scene(index, (256, 192))
        things[name[-8:]] = np.asarray(mask) > 0
        image.save(root / f"{name.format('images')}.png")
        (root / f"{name.format('masks')}.png").unlink()
        Image.fromarray(things[name[-8:]].astype(np.uint8) * 255).save(
            root / f"{name.format('masks')}.jpg", quality=90
        )
    assert any((ids(file) == 1).any() for file in root.rglob("*.jpg"))
    _, flags, rows, _ = fix(root)
    assert not any(row["left_out"] for row in rows.values())
    for (_, name), mask in labels(flags).items():
        assert set(np.unique(mask)) == {0, 1}
        assert (mask == things[name]).mean() > 0.998


def test_void_of_255_is_no_class(tmp_path, fix):
    """0, 1 and 255 stay."""
    root = make_clean(tmp_path / "data", names={0: "ground", 1: "thing"})
    each_mask(root, lambda mask: np.array([0, 1, 255, 0], np.uint8)[mask])
    out, _, _, _ = fix(root)
    assert np.array_equal(ids(mask_of(out, 5)), ids(mask_of(root, 5)))


def test_single_bits(tmp_path, fix):
    root = make_clean(tmp_path / "data", names={0: "ground", 1: "thing"})
    each_mask(root, lambda mask: Image.fromarray(mask > 0))
    out, _, rows, _ = fix(root)
    assert load(mask_of(root, 0)).mode == "1" and load(mask_of(out, 0)).mode == "L"
    assert np.array_equal(ids(mask_of(out, 0)), ids(mask_of(root, 0)).astype(np.uint8))
    assert rows["train", "scene_00"]["changed"] == "mask stored as PNG of 8 bits"


def test_colors(tmp_path, fix):
    root = make_clean(tmp_path / "data")
    before = labels([str(root)])
    each_mask(root, lambda mask: np.array(COLORS, np.uint8)[mask])
    write_classes(root, NAMES, COLORS)
    out, flags, _, summary = fix(root)
    after = labels(flags)
    assert before.keys() == after.keys() and all(np.array_equal(before[key], after[key]) for key in before)
    assert json.loads((out / "labels.json").read_text())[3] == {"id": 3, "name": "bar", "color": list(COLORS[3])}
    assert "mask read by the colours of the classes (12)" in summary


@pytest.mark.parametrize(
    "suffix, mask_turned",
    [(".jpg", False), (".jpg", True), (".png", True), (".webp", True), (".tif", False)],
)
def test_turned_image(tmp_path, fix, suffix, mask_turned):
    root = make_clean(tmp_path / "data")
    picture, mask = load(image_of(root, 1)), load(mask_of(root, 1))
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    options = {".jpg": {"quality": 95}, ".webp": {"lossless": True}}.get(suffix, {})
    replace(image_of(root, 1), turned, suffix, **with_orientation(turned, 6), **options)
    if mask_turned:
        replace(mask_of(root, 1), mask.transpose(Image.Transpose.ROTATE_90))
    out, _, rows, _ = fix(root)
    assert image_of(out, 1).name == f"scene_01{suffix}"
    with Image.open(image_of(out, 1)) as written:
        assert written.size == picture.size and 0x0112 not in written.getexif()
        assert np.abs(np.asarray(written).astype(int) - np.asarray(picture)).mean() < (6 if suffix == ".jpg" else 1e-9)
    assert "image turned upright" in rows["train", "scene_01"]["changed"]
    assert np.array_equal(ids(mask_of(out, 1)), np.asarray(mask))


def test_stray_pixels(tmp_path, fix):
    """Between 0 and 40 stand values that are no class; 0 and 40 come back, and a mask full of strays is left out."""
    root = make_clean(tmp_path / "data")
    (root / "id2label.json").unlink()
    mapping = tmp_path / "map.json"
    mapping.write_text('{"0": "ground", "40": "thing"}')
    truth = np.zeros((48, 64), np.uint8)
    truth[10:30, 20:50] = 40
    soft = np.zeros((48, 64), np.uint8)
    soft[10:30, 20:50] = 20  # a border of one pixel
    soft[11:29, 21:49] = 40
    each_mask(root, lambda mask: truth)
    replace(mask_of(root, 1), soft)
    replace(mask_of(root, 2), Image.fromarray(truth), ".jpg", quality=30)
    out, flags, rows, _ = fix(root, "--label_map", str(mapping))
    assert rows["train", "scene_01"]["pixels_changed"] == "96"
    # Along a straight border there are three pixels of either; at the corners more of the ground.
    expected = np.zeros((48, 64), np.uint8)
    expected[11:29, 21:49] = 40
    assert np.array_equal(ids(mask_of(out, 1)), expected)
    assert "too many to guess" in rows["train", "scene_02"]["left_out"]
    assert not (out / "train" / "images" / "scene_02.png").exists()
    assert flags[2:] == ["--label_map", str(mapping)]
    prepared(flags)


def test_unknown_class_is_left_out(clean, tmp_path, fix):
    """It is no trace of compression, so nothing is guessed."""
    root = shutil.copytree(clean, tmp_path / "data")
    FAULTS["unknown id"].break_it(root)
    _, _, rows, _ = fix(root)
    assert rows["train", "scene_01"]["left_out"] == "values that belong to no class: 7"


def test_snap():
    mask = np.array([[1, 1, 9, 2, 2], [1, 9, 9, 9, 2], [1, 1, 9, 2, 2]], np.uint8)
    fixed = snap(mask, mask == 9)
    # (0, 2) and (2, 2) have one 1 and one 2 in 3x3, (1, 2) two of each: the lower one. (1, 1) has 1s, (1, 3) 2s.
    assert fixed.tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 2, 2], [1, 1, 1, 2, 2]]
    wide = np.array([[3, 9, 9, 9, 9]], np.uint8)
    assert snap(wide[:, :3], wide[:, :3] == 9).tolist() == [[3, 3, 3]]  # the last one through 5x5
    assert snap(wide, wide == 9) is None


def test_snap_agrees_with_a_loop():
    rng = np.random.default_rng(3)
    mask = rng.integers(0, 4, (24, 31)).astype(np.uint8)
    strays = rng.random(mask.shape) < 0.5
    fixed = snap(mask, strays)
    for y, x in np.ndindex(mask.shape):
        expected = mask[y, x]
        for reach in (1, 2) if strays[y, x] else ():
            window = np.s_[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
            counts = np.bincount(mask[window][~strays[window]], minlength=4)
            if counts.any():
                expected = counts.argmax()
                break
        assert fixed[y, x] == expected


@pytest.mark.parametrize("layout", LAYOUT_FILES)
def test_every_layout(tmp_path, fix, layout):
    """The copy of ADE20K keeps values from 1, and says that they are to be reduced."""
    root = make_clean(tmp_path / "data", layout)
    before = labels([str(root)])
    out, flags, rows, _ = fix(root)
    assert flags == ["--dataset_dir", str(out)] + ["--do_reduce_labels"] * (layout == "ADE20K")
    after = labels(flags)
    assert before.keys() == after.keys() and all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    "flags",
    [
        ("--merge_classes", "disc,box=thing"),
        ("--drop_classes", "bar", "--ignore_values", "1"),
        ("--do_reduce_labels", "--id2label", "LIST"),
        ("--label_map", "MAP"),
    ],
)
def test_flags_go_with_the_copy(tmp_path, fix, flags):
    root = make_clean(tmp_path / "data")
    (tmp_path / "list.json").write_text('{"0": "one", "1": "two", "2": "three"}')
    (tmp_path / "map.json").write_text('{"0": "low", "1": "low", "2": "high", "3": null}')
    files = {"LIST": str(tmp_path / "list.json"), "MAP": str(tmp_path / "map.json")}
    flags = [files.get(flag, flag) for flag in flags]
    before = labels([str(root), *flags])
    _, copy_flags, _, _ = fix(root, *flags)
    after = labels(copy_flags)
    assert "--id2label" not in copy_flags
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_new_validation_split_is_written(tmp_path, fix):
    root = make_clean(tmp_path / "data", counts=(8, 0))
    _, flags, _, summary = fix(root, "--train_val_split", "0.25")
    assert "(train: 6, val: 2)" in summary and "--train_val_split" not in flags
    assert {split: len(rows) for split, rows in prepared(flags).items()} == {"train": 6, "validation": 2}


def test_hub_dataset(tmp_path, fix):
    """Bytes without file names, in GIF even; names are made."""
    scenes = [draw_scene(seed) for seed in range(3)]
    rows = {"image": [], "label": []}
    for index, (image, mask) in enumerate(scenes):
        for key, picture, kind in (("image", image, ("PNG", "JPEG", "GIF")[index]), ("label", mask, "PNG")):
            file = tmp_path / f"{key}{index}"
            picture.save(file, kind)
            rows[key].append({"bytes": file.read_bytes(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data.parquet")
    out, flags, report, _ = fix(tmp_path / "data.parquet")
    names = sorted(path.name for path in (out / "train" / "images").iterdir())
    assert names == ["train_000000.png", "train_000001.jpg", "train_000002.png"]
    assert (out / "train/images/train_000001.jpg").read_bytes() == (tmp_path / "image1").read_bytes()
    assert report["train", "train_000002"]["changed"] == "image stored as PNG"
    assert all(np.array_equal(labels(flags)["train", f"train_{i:06d}"], scenes[i][1]) for i in range(3))


def test_names_stay_inside_the_copy(tmp_path, fix):
    """Metadata may name files anywhere, also two that differ in capitals alone or begin with a dot."""
    root = tmp_path / "data" / "lists"
    root.mkdir(parents=True)
    rows = ["file_name,mask_file_name"]
    for index, name in enumerate(["../a/x", "a/X", ".hidden", "b/x.v1"]):
        for picture, kind in zip(draw_scene(index), ("image", "mask"), strict=True):
            file = root / f"{name}.png" if kind == "image" else root / f"mask_{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)
        rows.append(f"{name}.png,mask_{index}.png")
    (root / "metadata.csv").write_text("\n".join(rows))
    out, flags, report, _ = fix(root)
    images = sorted(path.relative_to(out).as_posix() for path in out.rglob("images/**/*.png"))
    assert images == [f"train/images/{name}.png" for name in ("a/X_2", "a/x", "b/x.v1", "hidden")]
    assert report["train", ".hidden"]["changed"] == "named hidden"
    assert len(prepared(flags)["train"]) == 4


def test_orphan_whose_name_is_no_utf8(tmp_path):
    root = make_clean(tmp_path / "data")
    shutil.copy(image_of(root, 0), os.fsdecode(bytes(root / "train/images") + b"/caf\xe9.png"))
    args, *data_args = check_dataset.parse([str(root), "--num_proc", "1"])
    report, data, class_map = check_dataset.check(args, *data_args)
    write_clean_copy(data, class_map, report, *data_args, tmp_path / "copy")
    last = (tmp_path / "copy" / "fix_report.csv").read_text(encoding="utf-8").splitlines()[-1]
    assert last == rf",{root}/train/images/caf\udce9.png,,0,image without a mask"


def test_all_orphans_are_listed(tmp_path, fix):
    root = make_clean(tmp_path / "data", counts=(30, 4))
    for index in range(5, 30):
        (root / f"train/masks/scene_{index:02d}.png").unlink()
    _, _, rows, summary = fix(root)
    orphans = [name for (split, name), row in rows.items() if row["left_out"] == "image without a mask"]
    assert len(orphans) == 21 and orphans[-1] == "5 more"
    assert "25 single files left out" in summary


def test_symlinks_are_followed(tmp_path, fix):
    """The copy holds files, so that changing them does not reach the source."""
    root = make_clean(tmp_path / "data")
    real = tmp_path / "real.png"
    image_of(root, 0).rename(real)
    (root / "train/images/scene_00.png").symlink_to(real)
    each_image(root, lambda picture: picture, only=[1])
    out, _, _, _ = fix(root)
    assert not image_of(out, 0).is_symlink()
    assert image_of(out, 0).read_bytes() == real.read_bytes()


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "empty folder"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("fails_at", [1, 5, 13])
def test_an_interrupted_copy_leaves_nothing(tmp_path, monkeypatch, is_there, error, fails_at):
    root, out = make_clean(tmp_path / "data"), tmp_path / "copy"
    if is_there:
        out.mkdir()
    args, *data_args = check_dataset.parse([str(root), "--num_proc", "1"])
    report, data, class_map = check_dataset.check(args, *data_args)
    written, write, save = [], clean_copy._write_pair, clean_copy._write_report

    def fail(function, *args):
        result = function(*args)
        written.append(args)
        if len(written) == fails_at:
            raise error
        return result

    monkeypatch.setattr(clean_copy, "_write_pair", partial(fail, write))
    monkeypatch.setattr(clean_copy, "_write_report", partial(fail, save))
    expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="copy cannot be written: No space.*nothing" if expected is UserError else None):
        write_clean_copy(data, class_map, report, *data_args, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "data"][1 - is_there :]
    assert not is_there or list(out.iterdir()) == []
    monkeypatch.undo()
    write_clean_copy(data, class_map, report, *data_args, out)
    assert sorted(path.name for path in out.iterdir()) == ["fix_report.csv", "labels.json", "train", "val"]
    assert out.stat().st_mode == root.stat().st_mode


def test_a_copy_that_cannot_be_written_is_refused_before_the_check(tmp_path):
    root = make_clean(tmp_path / "data")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "copy", "/proc/copy"):
        with pytest.raises(UserError, match="--fix .*cannot be written"):
            check_dataset.parse([str(root), "--fix", str(out)])
