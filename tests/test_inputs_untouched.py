"""The real scripts on tables that name files anywhere: whatever is written, what was there stays as it was."""

import csv
import hashlib
import json
import os

import pytest
from factories.broken_datasets import draw_scene
from transformers import SegformerConfig

import check_dataset
import predict
import run_segmentation
from cli_utils import UserError


def sums(folder):
    """Path → hash of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_table(root, style, extension, photos):
    """Four training and two validation pairs in `photos`, and a table elsewhere that names them."""
    data, rows = root / "data", []
    for index in range(6):
        files = photos / f"{index:02}.{extension}", root / "raw" / "masks" / f"{index:02}.png"
        for picture, file in zip(draw_scene(index), files, strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)
        split = "train" if index < 4 else "val"
        below = data / split if style == "up, a table for each split" else data
        named = [os.path.relpath(file, below) if "up" in style else str(file) for file in files]
        rows.append({"image": named[0], "mask": named[1], "split": split})
    for split in ("train", "val"):
        (data / split).mkdir(parents=True)
        if style == "up, a table for each split":
            lines = [json.dumps({key: row[key] for key in ("image", "mask")}) for row in rows if row["split"] == split]
            (data / split / "metadata.jsonl").write_text("\n".join(lines))
    if style != "up, a table for each split":
        with (data / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["image", "mask", "split"])
            writer.writeheader()
            writer.writerows(rows)
    return data


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    SegformerConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=16
    ).save_pretrained(folder)
    return str(folder / "config.json")


def train(data, out, tiny):
    run_segmentation.main(
        [
            *("--dataset_dir", str(data), "--output_dir", str(out), "--from_scratch", tiny, "--image_size", "32"),
            *(
                "--max_steps",
                "1",
                "--eval_strategy",
                "no",
                "--report_to",
                "none",
                "--use_cpu",
                "--disable_tqdm",
                "true",
            ),
            *("--do_train", "--do_eval", "--do_predict"),
        ]
    )


@pytest.mark.parametrize(
    ("style", "extension"),
    [("absolute", "png"), ("absolute", "jpg"), ("up", "png"), ("up, a table for each split", "jpg")],
)
def test_tables_that_name_files_anywhere(tmp_path, tiny, style, extension):
    data, out = write_table(tmp_path, style, extension, tmp_path / "raw" / "img"), tmp_path / "out"
    before = sums(tmp_path)
    train(data, out, tiny)
    copy, page = tmp_path / "copy", tmp_path / "page.html"
    code = check_dataset.main([str(data), "--fix", str(copy), "--html", str(page), "--num_proc", "1"])
    assert code == 0
    predict.main([str(tmp_path / "raw" / "img"), "--model", str(out), "--output_dir", str(tmp_path / "predicted")])
    after = sums(tmp_path)
    assert {path: after.get(path) for path in before} == before
    new = [path for path in after.keys() - before.keys() if path != page]
    assert all(any(path.is_relative_to(place) for place in (out, copy, tmp_path / "predicted")) for path in new)
    pictures = sorted(path.relative_to(out).as_posix() for path in new if path.is_relative_to(out / "predictions"))
    folder = "" if style == "absolute" else "raw/img/"
    assert pictures == sorted(
        f"predictions/{kind}{folder}0{index}.{suffix}"
        for kind, suffix in (("", "png"), ("overlays/", "jpg"))
        for index in (4, 5)
    )
    # Nor does what may be published tell where they lie on this machine.
    for name in ("README.md", "per_category.csv", "per_image.npz", "eval_results.json", "labels.json", "config.json"):
        assert str(tmp_path).encode() not in (out / name).read_bytes()


@pytest.mark.parametrize(("extension", "place"), [("png", "predictions"), ("jpg", "predictions/overlays")])
def test_photos_where_predictions_go_are_refused_before_any_work(tmp_path, tiny, extension, place, monkeypatch):
    photos = tmp_path / "out" / place
    data = write_table(tmp_path, "absolute", extension, photos)
    before = sums(tmp_path)
    monkeypatch.setattr(run_segmentation, "find_classes", None)  # which reads masks
    with pytest.raises(
        UserError, match=rf"{place}/04\.{extension} would be overwritten|holds files that no run of this project wrote"
    ):
        train(data, tmp_path / "out", tiny)
    assert sums(tmp_path) == before


@pytest.mark.parametrize("flag", ["--json", "--html", "--preview"])
def test_no_flag_for_a_file_replaces_a_picture_of_the_dataset(tmp_path, tiny, flag):
    data = write_table(tmp_path, "up", "png", tmp_path / "raw" / "img")
    (tmp_path / "link.png").symlink_to(tmp_path / "raw" / "masks" / "00.png")
    before = sums(tmp_path)
    for target in (tmp_path / "raw" / "img" / "03.png", tmp_path / "link.png"):
        with pytest.raises(UserError, match=f"{flag}.* another|would be overwritten.*{flag}"):
            if flag == "--preview":
                run_segmentation.main(
                    ["--dataset_dir", str(data), "--from_scratch", tiny, "--preview", str(target), "--use_cpu"]
                )
            else:
                check_dataset.main([str(data), flag, str(target)])
    assert sums(tmp_path) == before
