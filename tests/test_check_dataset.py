"""Every fault is named, with its file and exit code, and nothing else is; clean datasets give no alarm."""

import errno
import json
import re
import runpy
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from factories.broken_datasets import (
    FAULTS,
    NAMES,
    each_mask,
    ids,
    image_of,
    make_clean,
    mask_of,
    replace,
)
from factories.datasets import LAYOUT_FILES
from PIL import Image

import check_dataset
from cli_utils import UserError
from data_utils import load_segmentation_dataset


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make_clean(tmp_path_factory.mktemp("clean") / "data")


def run(root, tmp_path, *flags):
    """Exit code and report of `check_dataset.py`."""
    file = tmp_path / "report.json"
    code = check_dataset.main(
        [str(root), "--image_size", "48", "--num_proc", "1", "--json", str(file), *map(str, flags)]
    )
    return code, json.loads(file.read_text())


def alarms(report):
    return {found["kind"] for found in report["findings"] if found["severity"] != "info"}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_named(clean, tmp_path, capsys, name):
    fault = FAULTS[name]
    root = shutil.copytree(clean, tmp_path / "data")
    fault.break_it(root)
    code, report = run(root, tmp_path, *fault.flags)

    found = {finding["kind"]: finding for finding in report["findings"]}
    assert fault.kind in found, report["findings"]
    assert found[fault.kind]["severity"] == fault.severity
    assert alarms(report) - {fault.kind, *fault.also} == set(), report["findings"]
    assert {*fault.also} <= found.keys()
    files = found[fault.kind]["files"]
    if fault.file is None:
        assert files == []
    else:
        assert any(file.endswith(fault.file) for file in files), files
    assert code == (2 if fault.severity == "error" else 0)
    printed = capsys.readouterr().out
    assert f"{fault.severity} [{fault.kind}]" in printed and printed.startswith("verdict: ")
    assert "\n" not in found[fault.kind]["message"].strip()
    if fault.severity != "error":
        assert run(root, tmp_path, *fault.flags, "--strict")[0] == (1 if alarms(report) else 0)


@pytest.mark.parametrize("layout", LAYOUT_FILES)
def test_clean_in_every_layout(tmp_path, layout):
    root = make_clean(tmp_path / "data", layout, seed=list(LAYOUT_FILES).index(layout))
    code, report = run(root, tmp_path, "--strict")
    assert (code, alarms(report), report["verdict"]) == (0, set(), "fit for training")
    assert report["layout"] == layout


@pytest.mark.parametrize("counts", [(1, 1), (2, 1), (3, 1), (4, 2), (30, 10)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_clean_of_any_size(tmp_path, counts, seed):
    """Without a class list, as with few images not every class occurs."""
    root = make_clean(tmp_path / "data", seed=seed, counts=counts, names=None)
    code, report = run(root, tmp_path, "--strict")
    assert (code, alarms(report)) == (0, set()), report["findings"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_clean_but_with_void_borders_and_larger(tmp_path, seed):
    """255 between areas, as in Pascal VOC, and an outline of its own class, are no interpolation."""
    root = make_clean(tmp_path / "data", seed=seed, names=NAMES | {4: "outline"})

    def outlined(value):
        def change(mask):
            edge = np.zeros(mask.shape, bool)
            edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
            edge[1:] |= mask[1:] != mask[:-1]
            mask[edge] = value
            return mask

        return change

    each_mask(root, outlined(255), range(0, 12, 2))
    each_mask(root, outlined(4), range(1, 12, 2))
    code, report = run(root, tmp_path, "--strict")
    assert (code, alarms(report)) == (0, set()), report["findings"]


def test_report_for_programs(clean, tmp_path):
    code, report = run(clean, tmp_path)
    assert (code, report["verdict"], report["findings"]) == (0, "fit for training", [])
    assert report["dataset"] == str(clean) and report["layout"] == "split folders"
    assert report["splits"] == {"train": 8, "validation": 4}
    assert report["id2label"] == {str(i): name for i, name in NAMES.items()}
    assert [sum(report["class_pixels"][split]) for split in ("train", "validation")] == [8 * 64 * 48, 4 * 64 * 48]
    assert len(report["class_weights"]) == 4 and report["class_weights"][0] == min(report["class_weights"])
    assert [record["name"] for record in report["records"]] == [f"scene_{i:02d}" for i in range(12)]


def test_report_for_a_person(tmp_path, capsys):
    root = make_clean(tmp_path / "data")
    each_mask(root, lambda mask: np.where(mask == 3, 255, mask))
    file = mask_of(root, 0)
    mask = ids(file)
    mask[0, :24] = 9
    replace(file, mask)
    assert run(root, tmp_path)[0] == 2
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert lines[0] == "verdict: not fit for training: 1 error and 0 warnings"
    assert "pairs train: 8, validation: 4; looked at 12" in printed.replace("     ", " ")
    assert "sizes 64x48: 12" in lines and "masks mode L: 12" in lines
    assert f"9 {24 / (12 * 64 * 48):.3%} 1 no class" in lines
    assert any(line.startswith("255 ") and line.endswith("12 ignored") for line in lines)
    assert any(line.startswith("2 ") and line.endswith(" 12 2 box") for line in lines)


def test_processes_change_nothing(clean, tmp_path):
    alone, many = run(clean, tmp_path)[1], run(clean, tmp_path, "--num_proc", "2")[1]
    assert alone | {"seconds": 0} == many | {"seconds": 0}


def test_sample(tmp_path):
    """What a sample does not show may be in the rest, so it is not reported."""
    root = make_clean(tmp_path / "data", names=NAMES | {4: "cloud"})
    report = run(root, tmp_path, "--max_images", "6")[1]
    assert len(report["records"]) == 6 and report["findings"] == []
    assert report["splits"] == {"train": 8, "validation": 4}


def test_hub_dataset(clean, tmp_path):
    """Saved by `datasets`, images inside, as a Hub dataset is."""
    dataset = load_segmentation_dataset(dataset_dir=clean)
    saved = datasets.DatasetDict({split: rows.map(lambda row: row) for split, rows in dataset.items()})
    saved.save_to_disk(str(tmp_path / "saved"))
    code, report = run(f"--dataset_name={tmp_path / 'saved'}", tmp_path, "--id2label", clean / "id2label.json")
    assert (code, report["findings"], report["layout"]) == (0, [], "Hub dataset")
    assert report["splits"] == {"train": 8, "validation": 4}


def test_split_made_by_flag_is_checked(tmp_path):
    root = make_clean(tmp_path / "data", "images and masks")
    for i in range(12):
        (root / "images" / f"again_{i:02d}.jpeg").write_bytes((root / "images" / f"scene_{i:02d}.jpeg").read_bytes())
        (root / "masks" / f"again_{i:02d}.bmp").write_bytes((root / "masks" / f"scene_{i:02d}.bmp").read_bytes())
    assert alarms(run(root, tmp_path)[1]) == {"duplicate-in-split"}
    assert "duplicate-across-splits" in alarms(run(root, tmp_path, "--train_val_split", "0.4")[1])


def test_page_and_clean_copy(tmp_path):
    root = make_clean(tmp_path / "data")
    each_mask(root, lambda mask: (mask > 0).astype(np.uint8) * 255)
    code, _ = run(root, tmp_path, "--html", tmp_path / "page.html", "--fix", tmp_path / "fixed")
    assert code == 2
    assert "mask-binary-255" in (tmp_path / "page.html").read_text()
    code, report = run(tmp_path / "fixed", tmp_path)
    assert (code, alarms(report)) == (0, {"class-nowhere"}), report["findings"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "no data: give --dataset_dir FOLDER"),
        (["data", "--max_images", "0"], "--max_images is 0; it must be at least 1"),
        (["data", "--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["data", "--num_proc", "99999999999"], "--num_proc is 99999999999; it must be at most 1024"),
        (["data", "--dataset_name", "x/y"], "give only one of --dataset_dir and --dataset_name"),
        (["data", "--num_procs", "2"], "unknown flag --num_procs (did you mean --num_proc?)"),
        (["data", "more"], "'more' belongs to no flag"),
        (["--dataset_name", "x/y", "--streaming"], "--streaming: a check reads all"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(UserError) as caught:
        check_dataset.main(flags)
    assert message in str(caught.value)


def test_pictures_that_are_not_read_are_a_finding(tmp_path):
    """Once, and with all of their names, wherever they lie below the folder."""
    root = make_clean(tmp_path / "data")
    (root / "more").mkdir()
    for name in ("more/a.heic", "more/b.nii.gz", "c.CR2", "notes.txt"):
        (root / name).write_bytes(b"\0")
    _, report = run(root, tmp_path)
    found = [finding for finding in report["findings"] if "not read" in finding["message"]]
    assert [finding["kind"] for finding in found] == ["file-not-read"]
    assert found[0]["severity"] == "warning" and found[0]["count"] == 3
    assert "(1 .cr2, 1 .heic, 1 .nii.gz)" in found[0]["message"] and ".cr2: develop them" in found[0]["fix"]


def test_report_that_cannot_be_written(clean, tmp_path):
    for flag in ("--json", "--html"):
        with pytest.raises(UserError, match=f"{flag} {tmp_path} is a folder; give a file in it"):
            check_dataset.main([str(clean), "--num_proc", "1", flag, str(tmp_path)])


def test_exit_code_of_the_script(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check_dataset.py", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(check_dataset.__file__, run_name="__main__")
    assert caught.value.code == 2
    assert "error [not-loadable]" in capsys.readouterr().out


def test_reports_take_the_place_of_reports_alone(clean, tmp_path, capsys):
    """Before anything is read."""
    for name, text in (("labels.json", "{}"), ("page.html", "<html></html>"), ("notes.txt", "mine")):
        (tmp_path / name).write_text(text)
        for flag in ("--json", "--html"):
            with pytest.raises(UserError, match=f"{flag} {tmp_path}/{name} exists and is no report of a check"):
                check_dataset.main([str(tmp_path / "nowhere"), flag, str(tmp_path / name)])
        assert (tmp_path / name).read_text() == text
    files = [tmp_path / "new" / name for name in ("report.json", "page.html")]
    for _ in range(2):
        check_dataset.main([str(clean), "--num_proc", "1", "--json", str(files[0]), "--html", str(files[1])])
        printed = capsys.readouterr().out
        assert f"written: {files[0]} (--json)\nwritten: {files[1]} (--html)" in printed
    assert sorted((tmp_path / "new").iterdir()) == sorted(files)


def test_reports_that_cannot_be_finished(clean, tmp_path, monkeypatch):
    """A full disk: nothing new under the final name, what was there before stays."""
    for flag, name in (("--json", "report.json"), ("--html", "page.html")):
        argv = [str(clean), "--num_proc", "1", flag, str(tmp_path / name)]
        check_dataset.main(argv)
        before = (tmp_path / name).read_bytes()
        with monkeypatch.context() as patch:

            def cut_off(self, content, write=Path.write_bytes):
                write(self, content[:100])
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(Path, "write_bytes", cut_off)
            with pytest.raises(UserError, match=f"{name} cannot be written: No space left on device"):
                check_dataset.main(argv)
        assert (tmp_path / name).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_pictures_that_are_not_read_are_counted(clean, tmp_path, capsys):
    root = shutil.copytree(clean, tmp_path / "data")
    for index in range(3):
        (root / "train" / "images" / f"IMG_{index}.HEIC").write_bytes(b"photo")
    (root / "readme.pdf").write_bytes(b"%PDF")
    assert check_dataset.main([str(root), "--num_proc", "1", "--image_size", "48"]) == 0
    out = capsys.readouterr().out
    assert "warning [file-not-read] 3 files are of kinds that are not read (3 .heic): IMG_0.HEIC, IMG_1.HEIC" in out
    for path in (root / "train" / "images").glob("*.png"):
        path.rename(path.with_suffix(".heic"))
    shutil.rmtree(root / "val")
    assert check_dataset.main([str(root), "--num_proc", "1"]) == 2
    assert "11 files are of kinds that are not read (11 .heic)" in capsys.readouterr().out


def test_findings_stand_in_the_order_of_what_they_cost(clean, tmp_path):
    root = shutil.copytree(clean, tmp_path / "data")
    image_of(root, 1).unlink()
    replace(image_of(root, 2), Image.new("RGB", (64, 48), (9, 9, 9)))
    args = check_dataset.parse([str(root), "--num_proc", "1"])
    findings = check_dataset.check(*args)[0].findings
    assert [(found.severity, found.kind) for found in findings[:1]] == [("warning", "image-upsampled")]
    order = [("error", "warning", "info").index(found.severity) for found in findings]
    assert order == sorted(order) and {"mask-without-image", "image-blank"} < {found.kind for found in findings}


def test_the_example_in_the_docs_is_what_is_printed(toy_dataset_dir, tmp_path, capsys):
    """Twenty pictures with a few things done to them; numbers may differ, as libraries compress differently."""
    root = tmp_path / "my_photos"
    for split, folder, scene in (("train", "training", "street"), ("val", "validation", "park")):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i, image in enumerate(sorted((toy_dataset_dir / "images" / folder).iterdir())):
            shutil.copy(image, root / split / "images" / f"{scene}_{i:02}.jpg")
            mask = np.asarray(Image.open(toy_dataset_dir / "annotations" / folder / f"{image.stem}.png"))
            Image.fromarray(mask % 6).save(root / split / "masks" / f"{scene}_{i:02}.png")
    (root / "id2label.json").write_text(json.dumps([f"kind {i}" for i in range(6)]))
    images, masks = root / "train" / "images", root / "train" / "masks"
    Image.open(masks / "street_04.png").resize((256, 192), Image.Resampling.NEAREST).save(masks / "street_04.png")
    (images / "street_06.jpg").write_bytes((images / "street_06.jpg").read_bytes()[:-800])
    shutil.copy(images / "street_00.jpg", root / "val" / "images" / "park_03.jpg")
    shutil.copy(masks / "street_00.png", root / "val" / "masks" / "park_03.png")
    Image.open(masks / "street_03.png").save(masks / "street_03.jpg", quality=40)
    (masks / "street_03.png").unlink()
    values = np.array(Image.open(masks / "street_05.png"))
    values[:40, :40] = 17
    Image.fromarray(values).save(masks / "street_05.png")
    (masks / "street_07.png").unlink()
    assert check_dataset.main([str(root)]) == 2
    docs = (Path(check_dataset.__file__).parent / "docs" / "checking.md").read_text(encoding="utf-8")
    shown = docs.split("```\n")[2].strip()
    printed = capsys.readouterr().out.partition("\n\ndataset ")[0].strip()
    numbers = r"\d+(, \d+)*"
    assert re.sub(numbers, "#", printed) == re.sub(numbers, "#", shown), printed
