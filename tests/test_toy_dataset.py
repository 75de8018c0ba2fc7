"""The rendered toy dataset: its layout, its masks, that it repeats, and that it overwrites nothing."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import toy_dataset
from cli_utils import UserError
from toy_dataset import RAW_ID, render_scene, render_toy_dataset

IMAGE_NAMES = {
    "training": [f"ADE_train_000000{number}" for number in "01 02 03 04 05 06 07 08 09 10".split()],
    "validation": [f"ADE_val_000000{number}" for number in "01 02 03 04 05 06 07 08 09 10".split()],
}


@pytest.fixture(scope="module")
def dataset(toy_dataset_dir):
    return toy_dataset_dir


@pytest.fixture(scope="module")
def pictures(dataset):
    """{split: [(image (H, W, 3), mask (H, W)), ...]}"""
    return {
        split: [
            (
                np.array(Image.open(dataset / "images" / split / f"{name}.jpg")),
                np.array(Image.open(dataset / "annotations" / split / f"{name}.png")),
            )
            for name in names
        ]
        for split, names in IMAGE_NAMES.items()
    }


@pytest.fixture
def quick(monkeypatch):
    """Scenes of a few pixels, for the tests of files and folders; returns the list of calls."""
    calls = []

    def scene(seed, split, index):
        calls.append((seed, split, index))
        return Image.new("RGB", (8, 8)), Image.new("L", (8, 8))

    monkeypatch.setattr(toy_dataset, "render_scene", scene)
    return calls


def classes(pairs):
    return set(np.concatenate([np.unique(mask) for _, mask in pairs]).tolist()) - {0}


def test_annotation_ids_are_those_of_ade20k():
    expected = {"wall": 1, "sky": 3, "tree": 5, "road": 7, "person": 13, "car": 21, "flag": 150, None: 0}
    assert {name: RAW_ID[name] for name in expected} == expected


@pytest.mark.parametrize("split", ["training", "validation"])
def test_layout_and_modes(dataset, split):
    for kind, suffix, file_format, mode in (("images", ".jpg", "JPEG", "RGB"), ("annotations", ".png", "PNG", "L")):
        files = sorted((dataset / kind / split).iterdir())
        assert [path.name for path in files] == [name + suffix for name in IMAGE_NAMES[split]]
        for path in files:
            with Image.open(path) as picture:
                assert (picture.format, picture.mode) == (file_format, mode)
    assert {path.name for path in dataset.iterdir()} == {"images", "annotations"}
    assert [path.name for path in dataset.parent.iterdir()] == [dataset.name]  # no temporary folder is left


@pytest.mark.parametrize("split", ["training", "validation"])
def test_sizes_vary_around_ade20k(pictures, split):
    sizes = [mask.shape for _, mask in pictures[split]]
    assert [image.shape[:2] for image, _ in pictures[split]] == sizes
    assert all(480 <= min(size) <= 560 and 640 <= max(size) <= 720 for size in sizes)
    assert len(set(sizes)) >= 8
    portraits = sum(height > width for height, width in sizes)
    assert 2 <= portraits <= 5


def test_classes(pictures):
    training, validation = classes(pictures["training"]), classes(pictures["validation"])
    assert max(training | validation) <= 150
    assert len(training) >= 33
    assert len(training & validation) >= 0.9 * len(training | validation)
    wanted = "sky building road sidewalk tree car person grass mountain water wall floor ceiling windowpane bed sofa"
    assert {RAW_ID[name] for name in wanted.split()} <= training & validation


@pytest.mark.parametrize("split", ["training", "validation"])
def test_no_picture_is_trivial(pictures, split):
    for _, mask in pictures[split]:
        ids, counts = np.unique(mask, return_counts=True)
        assert len(ids) >= 9
        assert counts.max() < 0.6 * mask.size


def test_few_pixels_are_unlabelled(pictures):
    for split in pictures:
        share = np.mean(np.concatenate([mask.ravel() == 0 for _, mask in pictures[split]]))
        assert 0.001 < share < 0.03


def test_no_class_is_a_flat_colour(pictures):
    # The mean over 4x4 blocks removes most of the sensor noise, so that what is left is texture and light.
    for image, mask in pictures["training"]:
        height, width = (side // 4 * 4 for side in mask.shape)
        blocks = image[:height, :width].reshape(height // 4, 4, width // 4, 4, 3).mean(axis=(1, 3, 4))
        centres = mask[2:height:4, 2:width:4]
        for raw_id in np.unique(centres):
            values = blocks[centres == raw_id]
            if len(values) >= 100:
                assert values.std() > 3, raw_id


def test_masks_follow_the_pictures(pictures):
    """Edges of a mask lie on edges of its picture: shifting the mask by 12 pixels loses contrast across them."""
    for image, mask in pictures["training"]:
        steps = np.abs(np.diff(image.astype(int).sum(axis=2), axis=1))
        edges = np.diff(mask.astype(int), axis=1) != 0
        assert steps[edges].mean() > 1.3 * steps[np.roll(edges, 12, axis=1)].mean()


def test_pictures_are_those_that_the_demo_is_measured_with(pictures):
    """Mean colour of each image and mean id of each mask; not their bytes, which change with NumPy and Pillow."""
    expected = {
        "training": (
            [114.16, 146.16, 115.98, 117.01, 123.11, 137.94, 110.53, 145.71, 104.25, 116.11],
            [9.96, 17.65, 15.78, 16.81, 9.86, 17.24, 12.97, 14.27, 9.75, 14.01],
        ),
        "validation": (
            [109.1, 145.84, 124.19, 99.43, 111.6, 139.04, 118.6, 160.84, 103.71, 121.85],
            [10.16, 14.84, 15.75, 16.45, 10.29, 18.23, 16.22, 12.09, 11.37, 14.61],
        ),
    }
    for split, (colours, ids) in expected.items():
        assert [image.mean() for image, _ in pictures[split]] == pytest.approx(colours, abs=0.3)
        assert [mask.mean() for _, mask in pictures[split]] == pytest.approx(ids, abs=0.05)


def test_a_scene_depends_on_seed_split_and_index_alone(dataset):
    # Rendered out of order and into memory, the files come out again byte for byte.
    for split, index in (("validation", 3), ("training", 5)):
        image, mask = render_scene(0, split, index)
        for picture, kind, suffix, options in (
            (image, "images", ".jpg", {"format": "JPEG", "quality": 92}),
            (mask, "annotations", ".png", {"format": "PNG"}),
        ):
            buffer = io.BytesIO()
            picture.save(buffer, **options)
            path = dataset / kind / split / (IMAGE_NAMES[split][index] + suffix)
            assert path.read_bytes() == buffer.getvalue()


def test_another_seed_and_another_split_differ(pictures):
    shown = pictures["training"][5][1]
    assert not np.array_equal(shown, np.array(render_scene(1, "training", 5)[1]))
    assert not np.array_equal(shown, pictures["validation"][5][1])


def test_a_complete_dataset_is_left_alone(tmp_path, quick, capsys):
    for split in ("training", "validation"):
        for kind, name in (("images", "ADE_x_00000001.jpg"), ("annotations", "ADE_x_00000001.png")):
            (tmp_path / kind / split).mkdir(parents=True)
            (tmp_path / kind / split / name).write_bytes(b"real")
    assert render_toy_dataset(tmp_path) == tmp_path
    assert quick == []
    assert (tmp_path / "images/training/ADE_x_00000001.jpg").read_bytes() == b"real"
    assert "already there" in capsys.readouterr().out

    (tmp_path / "annotations/validation/ADE_x_00000001.png").unlink()
    with pytest.raises(UserError, match="not a complete dataset"):
        render_toy_dataset(tmp_path)


def test_a_foreign_folder_or_file_is_refused(tmp_path, quick):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="exists but is not a complete dataset"):
            render_toy_dataset(path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert quick == []


def test_the_command_says_in_one_line_what_is_wrong(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    command = [sys.executable, toy_dataset.__file__, "--output_dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {tmp_path} exists but is not a complete dataset")
    assert result.stderr.count("\n") == 1


def test_an_empty_folder_is_filled(tmp_path, quick):
    (tmp_path / "data").mkdir()
    assert render_toy_dataset(tmp_path / "data", seed=7) == tmp_path / "data"
    assert quick[0] == (7, "training", 0) and quick[-1] == (7, "validation", 9) and len(quick) == 20
    assert len(list((tmp_path / "data").rglob("*.png"))) == 20


def test_a_dataset_that_another_process_finished_first_is_taken(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()

    def scene(seed, split, index):
        if (split, index) == ("validation", 9):  # the other process is done just before this one
            for part in ("training", "validation"):
                for kind, name in (("images", "theirs.jpg"), ("annotations", "theirs.png")):
                    (tmp_path / "data" / kind / part).mkdir(parents=True)
                    (tmp_path / "data" / kind / part / name).write_bytes(b"theirs")
        return Image.new("RGB", (8, 8)), Image.new("L", (8, 8))

    monkeypatch.setattr(toy_dataset, "render_scene", scene)
    assert render_toy_dataset(tmp_path / "data") == tmp_path / "data"
    assert [path.name for path in (tmp_path / "data/images/training").iterdir()] == ["theirs.jpg"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # our temporary folder is gone


def test_what_cannot_be_replaced_is_an_error(tmp_path, monkeypatch):
    def scene(seed, split, index):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / "notes.txt").write_text("mine")
        return Image.new("RGB", (8, 8)), Image.new("L", (8, 8))

    monkeypatch.setattr(toy_dataset, "render_scene", scene)
    with pytest.raises(OSError):
        render_toy_dataset(tmp_path / "data")
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "notes.txt"]


def test_an_interrupted_rendering_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(seed, split, index):
        if index == 2:
            raise KeyboardInterrupt
        return Image.new("RGB", (8, 8)), Image.new("L", (8, 8))

    monkeypatch.setattr(toy_dataset, "render_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render_toy_dataset(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []
