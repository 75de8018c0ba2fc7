"""Classes are taken from a folder's name, or from values, only where the values are what they are taken for."""

import io
import json
import logging

import numpy as np
import pytest
from factories.datasets import load, save_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from checks.judge import find_faults, prepare_dataset
from checks.scan import scan
from cli_utils import UserError
from data.mask_values import MaskValues, doubt_values, looks_published
from data_utils import reduces_labels


def resolve(root, **flags):
    return load(root, **flags)[1]


def kinds(root, **flags):
    data, class_map = load(root, **flags)
    return {found.kind for found in find_faults(scan(data.splits, class_map), class_map, layout=data.layout)}


# ---- folders of a published dataset ----


def like_ade20k(rng, count):
    """Images with 6 to 14 of 150 ids, those of low numbers more often and with more pixels."""
    masks = []
    for i in range(count):
        weights = 1 / np.arange(1, 151) ** 0.9
        ids = rng.choice(np.arange(1, 151), rng.integers(6, 15), replace=False, p=weights / weights.sum())
        pixels = rng.dirichlet(np.full(len(ids), 0.7)) * 1e5 / ids**0.5 + 1
        masks.append(MaskValues(str(i), {0: 900} | dict(zip(ids.tolist(), pixels.astype(int).tolist(), strict=True))))
    return masks


def test_small_parts_of_ade20k_look_like_it():
    rng = np.random.default_rng(0)
    found = [looks_published("ADE20K", like_ade20k(rng, count)) for count in (4, 10, 50, 200) for _ in range(50)]
    assert np.mean(found) > 0.99 and all(found[50:])
    shifted = [MaskValues(m.key, {v - 1: n for v, n in m.pixels.items() if v}) for m in like_ade20k(rng, 20)]
    assert looks_published("ADE20K", shifted, shift=1)


def test_the_toy_dataset_looks_like_ade20k(toy_dataset_dir):
    class_map = resolve(toy_dataset_dir)
    assert (class_map.num_labels, class_map.do_reduce_labels) == (150, True)
    for name in ("training", "validation"):
        masks = [
            np.unique(np.asarray(Image.open(f)), return_counts=True) for f in toy_dataset_dir.glob(f"*s/{name}/*.png")
        ]
        values = [MaskValues(str(i), dict(zip(*map(np.ndarray.tolist, m), strict=True))) for i, m in enumerate(masks)]
        assert looks_published("ADE20K", values)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_lists_of_ones_own_look_like_nothing_published(data):
    """Values that count up from 0 or 1, or in equal steps, with or without void, in any shares."""
    count, first = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 1))
    step = data.draw(st.sampled_from([1, 1, 1, 2, 10, 20])) if count < 8 else 1
    values = [first + step * i for i in range(count)] + data.draw(st.sampled_from([[], [255]]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    masks = [MaskValues("all", {value: int(rng.integers(1, 1000)) for value in values})]
    masks += [MaskValues(str(i), {v: int(rng.integers(1, 1000)) for v in rng.choice(values, 3)}) for i in range(9)]
    assert not looks_published("ADE20K", masks)
    if not (255 in values and 12 <= count <= 19):  # which may be a part of it
        assert not looks_published("Cityscapes", masks)


@pytest.mark.parametrize(
    "values", [(0, 1), (0, 1, 2), (0, 255), (0, 1, 255), (1, 2), (0, 128), range(20), range(1, 20)]
)
@pytest.mark.parametrize("layout", ["ADE20K", "Cityscapes"])
def test_own_masks_in_their_folders_are_asked_about(make_dataset, tmp_path, layout, values):
    root = make_dataset(layout, values=values)
    with pytest.raises(UserError, match=f"has the folders of {layout}, but the masks do not look like it") as caught:
        resolve(root)
    names = tmp_path / "names.json"
    own = 2 if values == (0, 255) else max(set(values) - {255}) + 1
    names.write_text(json.dumps({i: f"own {i}" for i in range(own)}))
    if layout == "Cityscapes":
        assert "--id2label labels/cityscapes.json" in str(caught.value)
        assert resolve(root, id2label=names).id2label[0] == "own 0"
        assert resolve(root, id2label="labels/cityscapes.json").id2label[0] == "road"
        return
    for part in ("--no_do_reduce_labels --id2label FILE", "--do_reduce_labels --id2label labels/ade20k.json"):
        assert part in str(caught.value)
    class_map = resolve(root, id2label=names, do_reduce_labels=False)
    assert (class_map.id2label[0], class_map.do_reduce_labels) == ("own 0", False)
    assert resolve(root, do_reduce_labels=False).id2label[0] == f"class_{min(set(values) - {255})}"
    class_map = resolve(root, do_reduce_labels=True, id2label="labels/ade20k.json")
    assert (class_map.id2label[0], class_map.do_reduce_labels) == ("wall", True)


def test_a_list_of_ones_own_in_ade20ks_folders(make_dataset):
    """With K names, the value K can only be the last class; without it, 0 may be a class or unlabelled."""
    root = make_dataset("ADE20K", values=(0, 1, 2, 3))
    (root / "classes.json").write_text('{"0": "a", "1": "b", "2": "c"}')
    assert resolve(root).do_reduce_labels is True
    (root / "classes.json").write_text('{"0": "a", "1": "b", "2": "c", "3": "d"}')
    with pytest.raises(UserError, match="4 classes. Say what 0 is: --no_do_reduce_labels if it is the first class"):
        resolve(root)
    assert resolve(root, do_reduce_labels=False).id2label[3] == "d"


def test_label_maps_of_values_need_no_list(make_dataset, tmp_path):
    root, file = make_dataset("ADE20K", values=(0, 1, 2)), tmp_path / "map.json"
    file.write_text('{"0": "ground", "1": "thing"}')
    class_map = resolve(root, label_map=file)
    assert class_map.id2label == {0: "ground", 1: "thing"}
    assert 2 not in class_map.value_ids  # and not ignored as one of ADE20K's that the table leaves out


def test_the_copy_of_ade20k_is_told_what_training_does(make_dataset):
    from data.arguments import ClassArguments

    data, _ = load(make_dataset("ADE20K", values=(0, 1)), do_reduce_labels=False)
    assert not reduces_labels(data, ClassArguments(do_reduce_labels=False))
    with pytest.raises(UserError, match="do not look like it"):
        reduces_labels(data, ClassArguments())


# ---- values that are no classes ----


def scenes(seed, size=(160, 120), factor=20):
    """Ids 0, factor, … 4 * factor: a few large areas."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size[::-1], np.uint8)
    for i in range(1, 5):
        y, x = rng.integers(0, size[1] - 30), rng.integers(0, size[0] - 40)
        mask[y : y + 30, x : x + 40] = i * factor
    return Image.fromarray(mask)


def once_jpeg(mask, **options):
    file = io.BytesIO()
    mask.save(file, "JPEG", **({"quality": 75} | options))
    return Image.open(file)


def make(root, save, count=6, factor=20):
    for i in range(count):
        mask = scenes(i, factor=factor)
        save_pair(root / "images" / f"x{i}.jpg", root / "masks" / f"x{i}.png", np.asarray(mask), i)
        (root / "masks" / f"x{i}.png").unlink()
        save(mask, root / "masks" / f"x{i}")
    return root


def smaller_and_larger(mask):
    return mask.resize((80, 60), Image.Resampling.BICUBIC).resize((160, 120), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("save", "kind"),
    [
        (lambda m, f: m.save(f"{f}.jpg"), "mask-lossy"),
        (lambda m, f: m.save(f"{f}.jpeg", quality=95), "mask-lossy"),
        (lambda m, f: m.save(f"{f}.png", "JPEG"), "mask-lossy"),
        (lambda m, f: m.save(f"{f}.tif", compression="jpeg"), "mask-lossy"),
        (lambda m, f: m.save(f"{f}.jp2", irreversible=True, quality_layers=[20]), "mask-lossy"),
        (lambda m, f: m.convert("RGB").save(f"{f}.webp", quality=80), None),  # colours: an error of its own
        (lambda m, f: once_jpeg(m).save(f"{f}.png"), "mask-values-doubtful"),
        (lambda m, f: once_jpeg(m, quality=95).save(f"{f}.tif"), "mask-values-doubtful"),
        (lambda m, f: m.filter(ImageFilter.GaussianBlur(1.5)).save(f"{f}.png"), "mask-values-doubtful"),
        (lambda m, f: smaller_and_larger(m).save(f"{f}.png"), "mask-values-doubtful"),
        (lambda m, f: m.rotate(7, Image.Resampling.BICUBIC).save(f"{f}.bmp"), "mask-values-doubtful"),
        (lambda m, f: m.save(f"{f}.jp2", quality_layers=[30]), "mask-values-doubtful"),  # reversible, then cut off
    ],
)  # fmt: skip
def test_values_of_masks_that_lost_theirs(tmp_path, save, kind):
    """An error instead of hundreds of classes, the same in the check; with a list of classes it is another matter."""
    root = make(tmp_path / "data", save)
    with pytest.raises(UserError) as caught:
        resolve(root)
    if kind is None:
        return
    assert str(caught.value).startswith(f"[{kind}] ")
    for part in ("of which cover less than 0.1% each", "are these classes?", "PNG", "--id2label FILE"):
        assert part in str(caught.value)
    data, _ = load(root, id2label="labels/ade20k.json")
    [found] = [found for found in find_faults(scan(data.splits, None), None) if found.severity == "error"]
    assert found.kind == kind and found.message in str(caught.value) and found.count == 6


@pytest.mark.parametrize(
    "save",
    [
        lambda m, f: m.save(f"{f}.png"),
        lambda m, f: m.save(f"{f}.gif"),
        lambda m, f: m.save(f"{f}.jp2"),  # lossless
        lambda m, f: m.save(f"{f}.tif", compression="tiff_lzw"),
        lambda m, f: m.rotate(7).save(f"{f}.png"),
    ],
)
def test_values_that_are_what_was_drawn(tmp_path, save):
    assert resolve(make(tmp_path, save)).id2label == {i: f"class_{20 * i}" for i in range(5)}


def test_many_classes_are_no_doubt():
    """Ten kinds of defects that are rare everywhere, one or two in a mask; and 100 classes without a list."""
    rng = np.random.default_rng(0)
    defects = [{0: 100_000} | {int(v): 40 for v in rng.integers(1, 11, 2)} for _ in range(60)]
    assert doubt_values([MaskValues(str(i), pixels) for i, pixels in enumerate(defects)]) is None
    assert doubt_values(like_ade20k(rng, 200)) is None
    assert doubt_values([MaskValues("a", {0: 5}, lossy=True), MaskValues("b", {1: 9, 255: 1}, lossy=True)]) is None
    assert doubt_values([]) is None


def test_photos_among_masks(tmp_path):
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (160, 120), Image.Resampling.BICUBIC
    )
    root = make(tmp_path / "rgb", lambda mask, file: photo.save(f"{file}.jpg"))
    with pytest.raises(UserError, match=r"x0.jpg \([\d,]+ colours\), .*: are images and masks swapped\?"):
        resolve(root)
    root = make(tmp_path / "gray", lambda mask, file: photo.convert("L").save(f"{file}.png"))
    with pytest.raises(UserError, match="if these are photos, images and masks are swapped"):
        resolve(root)


# ---- 0 and 255 ----


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "LA", "I;16"])
def test_pictures_of_two_classes(make_dataset, caplog, tmp_path, mode):
    """Without a list, with one of two names, and with one that names the values."""
    caplog.set_level(logging.INFO)
    root = make_dataset(values=(0, 255))
    for file in root.glob("*/masks/*.png"):
        array = np.asarray(Image.open(file))
        (Image.fromarray(array.astype(np.uint16)) if mode == "I;16" else Image.fromarray(array).convert(mode)).save(
            file
        )
    data, class_map = load(root)
    assert class_map.id2label == {0: "class_0", 1: "class_255"} and "255 is a class and not ignored" in caplog.text
    row = prepare_dataset(data.splits, class_map, tmp_path / "cache")["train"][0]
    assert row["class_pixels"] == [48, 48] and np.asarray(row["label"])[0].tolist() == [0, 1] * 6
    assert class_map.to_raw(np.array([[0, 1]], np.uint8)).tolist() == [[0, 255]]
    for listed in ('{"0": "ground", "255": "car"}', '{"0": "ground", "1": "car"}', '{"255": "car", "0": "ground"}'):
        (root / "classes.json").write_text(listed)
        class_map = resolve(root)
        assert class_map.value_ids == {0: 0, 255: 1} and class_map.id2label == {0: "ground", 1: "car"}


def test_255_stays_void_where_other_values_are(make_dataset):
    root = make_dataset(values=(0, 1, 255))
    assert resolve(root).value_ids == {0: 0, 1: 1, 255: 255}
    (root / "classes.json").write_text('{"0": "ground", "1": "car"}')
    assert resolve(root).value_ids == {0: 0, 1: 1, 255: 255}
    [file] = root.glob("train/masks/train_0.png")
    Image.fromarray(np.resize(np.array([0, 255], np.uint8), (8, 12))).save(file)
    assert "mask-binary-mixed" in kinds(root)
    three = make_dataset(values=(0, 255), folder="three")
    (three / "classes.json").write_text('{"0": "a", "1": "b", "2": "c"}')
    assert "mask-binary-255" in kinds(three)
    assert resolve(make_dataset(values=(0, 255), folder="given"), do_reduce_labels=False).num_labels == 2


def test_a_label_map_may_make_a_class_of_255(make_dataset, tmp_path):
    root, file = make_dataset(values=(0, 1, 255)), tmp_path / "map.json"
    file.write_text('{"0": "a", "1": null, "255": "b"}')
    assert resolve(root, label_map=file).value_ids == {0: 0, 1: 255, 255: 1}


# ---- void ----


def test_the_void_of_camvid(make_dataset):
    root = make_dataset("CamVid", values=range(12))
    data, class_map = load(root)
    found = {f.kind: f for f in find_faults(scan(data.splits, class_map), class_map, layout=data.layout)}["class-void"]
    assert found.severity == "warning" and found.fix.startswith("--ignore_values 11") and "8.3%" in found.message
    assert "class-void" not in kinds(root, ignore_values=[11])
    assert "class-void" not in kinds(make_dataset(values=range(12), folder="else"))
    (root / "id2label.json").write_text(json.dumps({i: f"name {i}" for i in range(12)}))
    assert "class-void" not in kinds(root)  # somebody says that it is a class


def test_classes_called_void(make_dataset):
    root = make_dataset(values=(0, 1, 2))
    (root / "id2label.json").write_text('{"0": "sky", "1": "Un_known", "2": "No_Data"}')
    data, class_map = load(root)
    found = [f for f in find_faults(scan(data.splits, class_map), class_map) if f.kind == "class-void"]
    assert [(f.severity, f.fix) for f in found] == [("info", "--drop_classes No_Data ignores it")]


def test_what_is_ignored_is_said(make_dataset, tmp_path):
    root = make_dataset(values=(0, 0, 0, 1, 2))
    data, class_map = load(root, ignore_values=[0])
    findings = find_faults(scan(data.splits, class_map), class_map)
    found = next(found for found in findings if found.kind == "pixels-mostly-ignored")
    assert found.severity == "warning" and found.message == "train: 60.4% of the pixels are ignored (value 0: 60.4%)"
    names = tmp_path / "names.json"
    names.write_text('{"0": "ground", "1": "car"}')
    alone = make_dataset(values=(0, 1), folder="alone")
    data, class_map = load(alone, id2label=names, ignore_values=[0])
    with pytest.raises(
        UserError, match=r"car is the only class in the training masks \(ignored: 0\): nothing to tell"
    ):
        prepare_dataset(data.splits, class_map)


def test_a_name_that_is_no_utf8_is_named(make_dataset):
    root = make_dataset()
    (root / "train/images/train_0.jpg").rename(root / "train/images" / "gr\udcf6\udcdfe.jpg")
    (root / "train/masks/train_0.png").rename(root / "train/masks" / "gr\udcf6\udcdfe.png")
    with pytest.raises(UserError, match=r"2 file names are no valid UTF-8: .*gr\\xf6\\xdfe.jpg.*convmv"):
        load(root)
