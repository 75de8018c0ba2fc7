"""The tables of a check, and how they read in a terminal; tests/reports/test_check_page.py has the page's view."""

from check_dataset import as_text, table_lines
from checks.records import DatasetReport, ImageRecord
from data.classes import ClassMap
from reports.check_tables import class_table, mode_table, size_table, value_table
from reports.tables import Share


def report_of(class_map, class_pixels, records=(), class_weights=()):
    splits = dict.fromkeys(class_pixels, 1)
    return DatasetReport(
        "data", "COCO", splits, class_map.id2label, class_pixels, list(records), [], 2.0, list(class_weights)
    )


def test_classes_by_frequency():
    class_map = ClassMap({0: "sky", 1: "car", 2: "bus"}, [[0, 0, 255], [255, 0, 0], [0, 16, 0]])
    pixels = {"train": [30, 60, 10], "validation": [0, 0, 0]}
    table = class_table(report_of(class_map, pixels, class_weights=[1, 0.5, 2.25]), class_map)
    assert [row[0] for row in table.rows] == [1, 0, 2]
    assert [row[1].color for row in table.rows] == ["#ff0000", "#0000ff", "#001000"]
    assert table_lines(table) == [
        "id   class   train pixels   validation pixels   weight with --class_weights auto",
        " 1   car          60.000%              0.000%                               0.50",
        " 0   sky          30.000%              0.000%                               1.00",
        " 2   bus          10.000%              0.000%                               2.25",
    ]
    assert class_table(report_of(class_map, {}), class_map).rows == []


def test_long_table_is_cut_in_the_terminal_and_complete_on_the_page():
    class_map = ClassMap({i: f"class {i}" for i in range(41)})
    table = class_table(report_of(class_map, {"train": [1] * 41}), class_map)
    lines = table_lines(table)
    assert len(table.rows) == 41 and len(lines) == 1 + 40 + 1 and lines[-1] == "and 1 more row"


def test_values_and_what_they_mean():
    records = [ImageRecord("train", "a", "", "", raw_values={0: 5, 7: 90}), ImageRecord("train", "b", "", "")]
    records += [ImageRecord("train", "c", "", "", raw_values={7: 4, 255: 1})]
    class_map = ClassMap({0: "road"}, raw_to_id={7: 0})
    assert [tuple(map(str, row)) for row in value_table(records, class_map).rows] == [
        ("0", "5.000%", "1", "no class"),
        ("7", "94.000%", "2", "0 road"),
        ("255", "1.000%", "1", "ignored"),
    ]
    assert [row[-1] for row in value_table(records, None).rows] == ["", "", ""]
    many = [ImageRecord("train", "a", "", "", raw_values=dict.fromkeys(range(42), 1))]
    assert [len(value_table(many, None).rows), value_table(many, None).note] == [40, "and 2 more values"]


def test_sizes_and_modes():
    records = [ImageRecord("train", str(i), "", "", width=20, height=10 + i, image_mode="RGB") for i in range(12)]
    records += [ImageRecord("train", "last", "", "", width=20, height=10, image_mode="L", mask_mode="P")]
    records += [ImageRecord("train", "not read", "", "")]
    sizes = size_table(records)
    assert sizes.rows[0] == ("20x10", Share(2, 13, percent=False)) and len(sizes.rows) == 10
    assert sizes.note == "12 sizes in all, short sides 10 to 20"
    modes = mode_table("Modes", [record.image_mode for record in records])
    assert [(mode, share.count) for mode, share in modes.rows] == [("mode RGB", 12), ("mode L", 1)]
    class_map = ClassMap({0: "road"})
    lines = as_text(report_of(class_map, {"train": [8]}, records), class_map).splitlines()
    assert {"images    mode RGB: 12, mode L: 1", "masks     mode P: 1"} <= set(lines)
    assert any(line.startswith("sizes     20x10: 2, 20x11: 1") and line.endswith(sizes.note) for line in lines)
