"""The loop that writes predictions: what is left out, what each process writes, in which order it is named."""

import errno
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cli_utils import UserError
from data.classes import ClassMap
from reports import predictions
from reports.predictions import prediction_files, write_predictions

ODD_NAMES = ["/etc/x", "../../up", "a" * 254, "A/b", "a/b", "new\nline", "\x1b[31m", "CON", "\udcff", "contact_sheet"]
CLASS_MAP = ClassMap({0: "wall", 1: "floor"}, do_reduce_labels=True)
NAMES = ["c", "sub/a", "b", "d"]


def write(folder, skipped=(), names=NAMES, inputs=()):
    def read(index):
        truth = Image.new("L", (30, 20), 1) if index == 0 else None
        return None if index in skipped else (Image.new("RGB", (30, 20), (index, 0, 0)), truth)

    def predict(image):
        return np.full((20, 30), image.getpixel((0, 0))[0] % 2)

    return write_predictions(
        names,
        read,
        predict,
        CLASS_MAP,
        folder / "predictions",
        folder / "sheet.png",
        folder / "sample.jpg",
        inputs,
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
        assert [index for index, _ in written] == mine
        return [(index, np.nan) for index in (0, 2, 1, 3)]

    monkeypatch.setattr(predictions, "gather_object", gather)
    files = write(tmp_path)
    assert files == prediction_files(NAMES, tmp_path / "predictions")
    assert [index for index in range(4) if files[index][0].exists()] == mine
    assert (tmp_path / "sheet.png").exists() == (tmp_path / "sample.jpg").exists() == (process == 0)


def test_odd_names_stay_below_the_folder(tmp_path, caplog):
    root = tmp_path / "deep" / "out"
    files = write(root, names=ODD_NAMES)
    assert len({str(png).lower() for png, _ in files}) == len(ODD_NAMES)
    found = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert found == sorted([path for pair in files for path in pair] + [root / "sheet.png", root / "sample.jpg"])
    assert files[-1][0] == root / "predictions" / "contact_sheet.png"  # the sheet lies elsewhere
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("8 predictions are named otherwise") and r"new\nline → new_line.png" in said
    assert "\x1b" not in said and said.isprintable()


def test_an_input_is_never_replaced(tmp_path):
    photo = tmp_path / "predictions" / "overlays" / "b.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_text("photo")
    (tmp_path / "link.jpg").symlink_to(photo)
    for name in (photo, tmp_path / "link.jpg"):
        with pytest.raises(UserError, match=r"overlays/b\.jpg would be overwritten, .* give another --output_dir"):
            write(tmp_path, inputs=[name])
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {photo, tmp_path / "link.jpg"}
    assert photo.read_text() == "photo"


@pytest.mark.parametrize("fails_at", range(1, 10))
def test_a_full_disk_leaves_whole_files(tmp_path, monkeypatch, fails_at):
    """4 images: each of the 9 pictures in turn is cut off in the middle."""
    saved, save = [], Image.Image.save

    def cut_off(self, path, *args, **kwargs):
        save(self, path, *args, **kwargs)
        saved.append(path)
        if len(saved) == fails_at:
            Path(path).write_bytes(Path(path).read_bytes()[:50])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", cut_off)
    with pytest.raises(UserError, match=r"(png|jpg) cannot be written: No space left on device"):
        write(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == (fails_at - 1) // 2 * 2  # picture and overlay, or neither
    for path in files:
        with Image.open(path) as picture:
            picture.load()


def test_the_worst_come_first_on_the_contact_sheet_with_their_names(tmp_path, monkeypatch):
    truths = [[0, 0, 1, 1], [0, 1, 1, 1], None, [1, 0, 0, 0], [255] * 4]
    shown = {}
    draw = predictions.visual_utils.contact_sheet
    monkeypatch.setattr(
        predictions.visual_utils, "contact_sheet", lambda files, **more: shown.update(more) or draw(files, **more)
    )
    files = write_predictions(
        ["half", "good", "unknown", "bad", "unlabelled"],
        lambda index: (
            Image.new("RGB", (4, 1)),
            truths[index] and Image.fromarray(np.array([truths[index]], np.uint8)),
        ),
        lambda image: np.array([[0, 1, 1, 1]]),
        CLASS_MAP,
        tmp_path / "predictions",
        tmp_path / "sheet.png",
    )
    assert [png.stem for png, _ in files] == ["half", "good", "unknown", "bad", "unlabelled"]
    names = [title.split("   ")[0] for title in shown["titles"]]
    assert names[:3] == ["bad", "half", "good"] and {*names[3:]} == {"unknown", "unlabelled"}
    assert shown["titles"][2] == "good   IoU 1.000" and shown["titles"][1].endswith(f"IoU {(1 / 2 + 2 / 3) / 2:.3f}")
