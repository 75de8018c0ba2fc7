"""The loop that writes predictions: what is left out, what each process writes, in which order it is named."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data.classes import ClassMap
from reports import predictions
from reports.predictions import prediction_files, write_predictions

CLASS_MAP = ClassMap({0: "wall", 1: "floor"}, do_reduce_labels=True)
NAMES = ["c", "sub/a", "b", "d"]


def write(folder, skipped=()):
    def read(index):
        truth = Image.new("L", (30, 20), 1) if index == 0 else None
        return None if index in skipped else (Image.new("RGB", (30, 20), (index, 0, 0)), truth)

    def predict(image):
        return np.full((20, 30), image.getpixel((0, 0))[0] % 2)

    return write_predictions(
        NAMES, read, predict, CLASS_MAP, folder / "predictions", folder / "sheet.png", folder / "sample.jpg"
    )


def test_files(tmp_path):
    folder = tmp_path / "predictions"
    files = write(tmp_path)
    assert files == prediction_files(NAMES, folder)
    assert files[1] == (folder / "sub" / "a.png", folder / "overlays" / "sub" / "a.jpg")
    for index, (png, _) in enumerate(files):
        with Image.open(png) as image:
            assert np.unique(np.asarray(image)).tolist() == [index % 2 + 1]  # in the annotation files' values
    widths = [Image.open(overlay).width for _, overlay in files]
    assert widths[0] > widths[1] == widths[2] == widths[3]  # the first has a truth
    assert (tmp_path / "sample.jpg").read_bytes() == files[0][1].read_bytes()
    assert (tmp_path / "sheet.png").is_file()


def test_images_that_are_left_out(tmp_path):
    files = write(tmp_path, skipped=(0, 2))
    assert files == prediction_files(("sub/a", "d"), tmp_path / "predictions")
    assert (tmp_path / "sample.jpg").read_bytes() == files[0][1].read_bytes()
    assert not (tmp_path / "predictions" / "c.png").exists()
    assert write(tmp_path / "nothing", skipped=range(4)) == []
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(("process", "mine"), [(0, [0, 2]), (1, [1, 3])])
def test_each_process_writes_its_share_and_names_all(tmp_path, monkeypatch, process, mine):
    state = SimpleNamespace(process_index=process, num_processes=2, is_main_process=process == 0)
    monkeypatch.setattr(predictions, "PartialState", lambda: state)
    for index in {0, 1, 2, 3} - {*mine}:  # written by the other process
        _, overlay = prediction_files(NAMES, tmp_path / "predictions")[index]
        overlay.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 20)).save(overlay)

    def gather(written):
        assert written == mine
        return [0, 2, 1, 3]

    monkeypatch.setattr(predictions, "gather_object", gather)
    files = write(tmp_path)
    assert files == prediction_files(NAMES, tmp_path / "predictions")
    assert [index for index in range(4) if files[index][0].exists()] == mine
    assert (tmp_path / "sheet.png").exists() == (tmp_path / "sample.jpg").exists() == (process == 0)
