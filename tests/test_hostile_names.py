"""Names of classes and files that mean something to a terminal, a table, Markdown or a spreadsheet stay text."""

import csv
import io
import json
import logging
import os
import re

import numpy as np
import pytest
from factories.broken_datasets import each_mask, image_of, make_clean, mask_of
from PIL import Image

import check_dataset
from cli_utils import PrintableFormatter, UserError
from data.arguments import ClassArguments, DatasetArguments
from data.classes import ClassMap
from data_utils import find_classes, load_data
from metrics_utils import csv_text, per_category_table, save_confusion
from reports.templates import plain
from visual_utils import augmentation_sheet, default_palette, side_by_side

HOSTILE = [
    *("two\nlines", "a|b", "![x](http://x/y.png)", "[click](javascript:alert(1))", "\x1b[31mred\x1b[0m", "\x9b2J"),
    *(
        '=HYPERLINK("http://x")',
        "@SUM(1)",
        "+1",
        "-1",
        "\u202egnp.exe",
        "a\r\nb",
        "<script>x</script>",
        "\udcff",
        "``",
    ),
    *("tab\tbed", "\u2028", "", " =1", "＝1"),
]
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.mark.parametrize("name", HOSTILE)
def test_class_names_are_one_line_of_text_wherever_they_go(tmp_path, name):
    class_map = ClassMap({0: "wall", 1: name})
    clean = class_map.id2label[1]
    assert not UNPRINTABLE.search(clean)
    assert clean == name or UNPRINTABLE.search(name)
    # The CSV, also of names that no class map has seen.
    for written in (name, clean):
        save_confusion(tmp_path, np.eye(2, dtype=np.int64), {0: "wall", 1: written})
        text = (tmp_path / "per_category.csv").read_bytes().decode()
        assert len(text.splitlines()) == 3 and not UNPRINTABLE.search(text.replace("\r\n", ""))
        cell = list(csv.reader(io.StringIO(text)))[2][1]
        assert cell.lstrip()[:1] not in tuple("=+-@＝")
        assert cell == csv_text(written).encode(errors="backslashreplace").decode()
    assert [path.name for path in tmp_path.iterdir()] and not list(tmp_path.glob(".*"))
    assert len(per_category_table(np.eye(2, dtype=np.int64), class_map.id2label).splitlines()) == 3
    # The card.
    assert not re.search(r"[\[\]|`<>\x00-\x1f]", plain(name)) and "![" not in plain(name)
    # Pictures with a legend, and rows named after files.
    picture, ids, palette = Image.new("RGB", (64, 48)), np.ones((48, 64), np.uint8), default_palette(2)
    side_by_side(picture, ids, ids, palette, {0: "wall", 1: name})
    augmentation_sheet([(name, picture, [(picture, ids)])], palette, {0: "wall", 1: name})


def test_ordinary_names_stay_as_they_are():
    names = ["road, paved", "Straße", "道路", "سيارة", "می‌خواهم", "a  b", "👩‍🚒", "it's 5 % <= x"]
    assert list(ClassMap(dict(enumerate(names))).id2label.values()) == names
    assert [csv_text(name) for name in names] == names


def test_a_check_shows_no_control_character(tmp_path, capsys):
    """Names of files in findings, of classes in tables; the page and the JSON hold them as text as well."""
    root = make_clean(tmp_path / "data", names={0: "ground", 1: "disc", 2: "=box", 3: "bar"})
    for index, name in enumerate(["\x1b[31mred", "two\nlines", "\u202egnp"]):
        image_of(root, index).rename(root / "train" / "images" / f"{name}.png")
        mask_of(root, index).rename(root / "train" / "masks" / f"{name}.png")
        (root / "train" / "masks" / f"{name}.png").write_text("no mask")
    files = tmp_path / "\x1b[32mreport.html", tmp_path / "report.json"
    check_dataset.main([str(root), "--num_proc", "1", "--html", str(files[0]), "--json", str(files[1])])
    out = capsys.readouterr().out
    assert not UNPRINTABLE.search(out.replace("\n", ""))
    assert r"\x1b[31mred.png" in out and r"two\nlines.png" in out and r"\u202egnp.png" in out
    assert f"written: {tmp_path}/\\x1b[32mreport.html (--html)" in out and f"written: {files[1]} (--json)" in out
    assert json.loads(files[1].read_text())["id2label"]["2"] == "=box"
    assert not UNPRINTABLE.search(files[0].read_text().replace("\n", ""))


def test_names_that_are_no_utf8_are_named(tmp_path):
    root = make_clean(tmp_path / "data")
    folder = bytes(root / "train")
    for kind in (b"images", b"masks"):
        os.rename(folder + b"/" + kind + b"/scene_00.png", folder + b"/" + kind + b"/caf\xe9.png")
    with pytest.raises(UserError, match=r"2 file names are no valid UTF-8: .*train/images/caf\\xe9\.png.*rename"):
        load_data(DatasetArguments(dataset_dir=str(root)))


def test_logs_show_no_control_character(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = make_clean(tmp_path / "data\x1b[31m", names={0: "a", 1: "b", 2: "c", 3: "d"})
    each_mask(root, lambda mask: mask)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PrintableFormatter())
    logging.getLogger().addHandler(handler)
    try:
        data = load_data(DatasetArguments(dataset_dir=str(root)))
        logging.getLogger("x").info(find_classes(data, ClassArguments()).table())
    finally:
        logging.getLogger().removeHandler(handler)
    shown = stream.getvalue()
    assert r"data\x1b[31m" in shown and "\x1b" not in shown
