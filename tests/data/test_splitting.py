"""Parting a training split: seeded, in whole groups, every class on both sides where that can be."""

import itertools
import json
import logging

import numpy as np
import pytest
from factories.datasets import save_pair
from PIL import Image

from cli_utils import UserError
from data.splitting import group_keys, stratify
from data_utils import load_segmentation_dataset


def split(root, fraction=0.3, **options):
    dataset = load_segmentation_dataset(dataset_dir=root, train_val_split=fraction, **options)
    return dataset["train"]["name"][:], dataset["validation"]["name"][:]


def folder_of(root, values):
    """`images` + `masks` with the given values in the mask of each name."""
    for name, found in values.items():
        ids = np.resize(np.array(found), (6, 8)).astype(np.uint8)
        save_pair(root / "images" / f"{name}.png", root / "masks" / f"{name}.png", ids)
    return root


# ---- sides ----


def test_sizes_file_and_seed(make_dataset, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root, file = make_dataset("images and masks", count=10), tmp_path / "out" / "split.json"
    train, validation = split(root, split_file=file)
    assert len(train) == 7 and len(validation) == 3 and not set(train) & set(validation)
    assert train + validation == sorted(train) + sorted(validation)
    assert sorted(train + validation) == [f"train_{i}" for i in range(10)]
    assert "train 7, validation 3" in caplog.text
    assert json.loads(file.read_text()) == {
        "train_val_split": 0.3,
        "seed": 42,
        "split_groups": None,
        "train": train,
        "validation": validation,
    }
    assert split(root) == (train, validation)  # seeded
    assert split(root, seed=1) != (train, validation)
    assert split(root, seed=1, split_file=file) == (train, validation)  # the file decides
    assert str(file) in caplog.text
    assert [len(side) for side in split(root, 0.001)] == [9, 1] and [len(side) for side in split(root, 0.999)] == [
        1,
        9,
    ]


def test_a_split_file_that_does_not_fit(make_dataset, tmp_path):
    root, file = make_dataset("images and masks", count=4), tmp_path / "split.json"
    split(root, split_file=file)
    with pytest.raises(UserError, match="--train_val_split is 0.5, but .*split.json was made with 0.3"):
        split(root, 0.5, split_file=file)
    with pytest.raises(UserError, match=r"--split_groups is \\d, but .*split.json was made with None"):
        split(root, split_file=file, split_groups=r"\d")
    (root / "images" / "train_2.jpeg").rename(root / "images" / "new.jpeg")
    (root / "masks" / "train_2.bmp").rename(root / "masks" / "new.bmp")
    with pytest.raises(UserError, match=r"split.json does not fit the dataset: 2 names .*\(new, train_2\); delete it"):
        split(root, split_file=file)
    for damaged in ("{", "[]", '{"train_val_split": 0.3}'):
        file.write_text(damaged)
        with pytest.raises(UserError, match="split.json is damaged"):
            split(root, split_file=file)


def test_a_split_file_without_groups_is_read(make_dataset, tmp_path):
    root, file = make_dataset("images and masks", count=3), tmp_path / "split.json"
    content = {"train_val_split": 0.3, "seed": 42, "train": ["train_2", "train_0"], "validation": ["train_1"]}
    file.write_text(json.dumps(content))
    assert split(root, split_file=file) == (["train_2", "train_0"], ["train_1"])


def test_splits_that_are_refused(make_dataset):
    with pytest.raises(UserError, match="has a validation split of 2 images; leave the flag out"):
        split(make_dataset())
    with pytest.raises(UserError, match="a training split of 1 image cannot be split"):
        split(make_dataset("images and masks", count=1, folder="one"))
    root = make_dataset(folder="only_test")
    (root / "train").rename(root / "test")
    (root / "val").rename(root.parent / "elsewhere")
    with pytest.raises(UserError, match="has no training split, only test"):
        split(root)
    with pytest.raises(UserError, match="--split_groups belongs to a split: add --train_val_split"):
        load_segmentation_dataset(dataset_dir=root, split_groups="x")


# ---- groups ----


def test_groups_stay_together(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = [f"video{video}_{frame}" for video in range(5) for frame in range(video + 1)]
    root, file = folder_of(tmp_path / "data", dict.fromkeys(names, (0, 1))), tmp_path / "split.json"
    for seed in range(4):
        train, validation = split(root, 0.2, split_groups=r"^video\d", seed=seed)
        assert len(validation) == 3 and {name[:6] for name in train}.isdisjoint({name[:6] for name in validation})
    assert split(root, 0.2, split_groups=r"^(video\d)_", seed=3, split_file=file) == (train, validation)
    assert json.loads(file.read_text())["split_groups"] == r"^(video\d)_"
    groups = len({name[:6] for name in validation})
    assert f"train 12, validation 3; groups: train {5 - groups}, validation {groups}" in caplog.text
    assert split(root, 0.2, split_groups=r"^(video\d)_", split_file=file) == (train, validation)


def test_what_names_a_group():
    assert group_keys(["a1_x", "b2_y"], r"\d") == ["1", "2"]
    assert group_keys(["a1_x", "b2_y"], r"([ab])\d_(.)") == ["a", "b"]
    assert group_keys(["town/a", "wood/b"], "^[^/]+") == ["town", "wood"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"--split_groups '\(' is no regular expression"),
        (r"video_\d", "finds no group in 4 of 5 names: a_1, a_2, a_3 and 1 more"),
        (r"(video)?_\d", "finds no group in 4 of 5 names"),  # the expression matches, its group does not
        (r"z?", "finds no group in 5 of 5 names"),
    ],
)
def test_expressions_that_do_not_fit(pattern, message):
    with pytest.raises(UserError, match=message):
        group_keys(["a_1", "a_2", "a_3", "a_4", "video_1"], pattern)


def test_one_group_cannot_be_parted(make_dataset):
    with pytest.raises(UserError, match=r"--split_groups 'train': all 2 images are one group \('train'\)"):
        split(make_dataset("images and masks"), split_groups="train")


# ---- classes ----


def test_rare_classes_are_on_both_sides(tmp_path, caplog):
    """Twenty images; five classes have two images each, one has one. Chance alone would miss most of them."""
    values = {f"i{n:02d}": {0, 255} for n in range(20)}
    for rare in range(5):
        values[f"i{2 * rare:02d}"].add(10 + rare)
        values[f"i{2 * rare + 1:02d}"].add(10 + rare)
    values["i19"].add(99)
    root = folder_of(tmp_path, {name: sorted(found) for name, found in values.items()})
    for seed in range(3):
        caplog.clear()
        train, validation = split(root, 0.25, seed=seed)
        assert len(validation) == 5
        for rare in range(10, 15):
            assert all(any(rare in values[name] for name in side) for side in (train, validation))
        assert "1 of 7 annotation values occur in train only: 99" in caplog.text and "i19" in train
    assert "in validation only" not in caplog.text


def test_rare_colors_are_on_both_sides(tmp_path, caplog):
    """Twenty images; pure blue, 255 as a number, and green are in two masks each, one colour is in one alone."""
    rare = {0: (0, 0, 255), 1: (0, 0, 255), 2: (0, 255, 0), 3: (0, 255, 0), 4: (1, 2, 3)}
    for n in range(20):
        mask = np.zeros((6, 8, 3), np.uint8)  # those that stay black have equal channels
        mask[:3] = rare.get(n, 0)
        save_pair(tmp_path / "images" / f"i{n:02d}.png", tmp_path / "masks" / f"i{n:02d}.png", mask[..., 0])
        Image.fromarray(mask).save(tmp_path / "masks" / f"i{n:02d}.png")
    for seed in range(4):
        caplog.clear()
        _, validation = split(tmp_path, 0.1, seed=seed)
        assert len({"i00", "i01"} & set(validation)) == len({"i02", "i03"} & set(validation)) == 1
        assert "1 of 4 annotation values occur in train only: #010203" in caplog.text


def test_shares_of_classes():
    """1,000 images; classes of 500, 100 and 20 images are parted within one image of the wanted share."""
    rng = np.random.default_rng(0)
    values = [set() for _ in range(1000)]
    for value, count in ((1, 500), (2, 100), (3, 20)):
        for index in rng.choice(1000, count, replace=False):
            values[index].add(value)
    chosen = stratify([f"{i:04d}" for i in range(1000)], values, 0.2, seed=0)
    assert chosen.dtype == bool and chosen.sum() == 200
    for value, wanted in ((1, 100), (2, 20), (3, 4)):
        assert abs(sum(value in values[i] for i in np.flatnonzero(chosen)) - wanted) <= 1


@pytest.mark.parametrize("seed", range(40))
def test_as_many_classes_on_both_sides_as_possible(seed):
    """Against all splits of up to nine groups of up to three images."""
    rng = np.random.default_rng(seed)
    groups, classes = int(rng.integers(2, 10)), int(rng.integers(1, 6))
    keys = [f"group{i}" for i in range(groups) for _ in range(rng.integers(1, 4))]
    values = [set(np.flatnonzero(rng.random(classes) < 0.4).tolist()) for _ in keys]

    def both_sides(chosen):
        sides = [
            set().union(*(found for found, inside in zip(values, chosen, strict=True) if inside is side))
            for side in (True, False)
        ]
        return len(sides[0] & sides[1])

    chosen = stratify(keys, values, 0.3, seed).tolist()
    by_group = {key: {inside for other, inside in zip(keys, chosen, strict=True) if other == key} for key in keys}
    assert all(len(sides) == 1 for sides in by_group.values()) and 0 < sum(chosen) < len(chosen)
    best = 0
    for sides in itertools.product([False, True], repeat=groups):
        if any(sides) and not all(sides):
            best = max(best, both_sides([sides[int(key[5:])] for key in keys]))
    assert both_sides(chosen) == best


def test_the_order_of_files_does_not_matter(tmp_path):
    rng = np.random.default_rng(0)
    values = {f"{n}": rng.choice(4, 2).tolist() for n in range(12)}
    rows = [f"images/{name}.png,masks/{name}.png" for name in values]
    root = folder_of(tmp_path, values)
    for folder in ("images", "masks"):  # with a table of names the order is that of the table
        (root / folder).rename(root / f"{folder}_")
    rows = [row.replace("images/", "images_/").replace("masks/", "masks_/") for row in rows]
    found = []
    for order in (rows, rows[::-1]):
        (root / "metadata.csv").write_text("\n".join(["image,mask", *order]))
        found.append(split(root, 0.4))
    assert found[0] == found[1] and [len(side) for side in found[0]] == [7, 5]
