"""Raw annotation values <-> training ids, against literals; class lists."""

import numpy as np
import pytest
from transformers import SegformerImageProcessor

from cli_utils import UserError
from data_utils import LABELS
from label_utils import LabelMap, read_class_list


def names(count):
    return {i: f"name_{i}" for i in range(count)}


ADE20K = LabelMap(names(150), do_reduce_labels=True)
CAMVID = LabelMap(names(11), ignore_values=(11,))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, ">u2"])
def test_reduction_of_ade20k(dtype):
    mask = np.array([[0, 1, 2], [149, 150, 255]], dtype)
    before = mask.copy()
    reduced = ADE20K.reduce(mask)
    np.testing.assert_array_equal(reduced, [[255, 0, 1], [148, 149, 255]])
    assert reduced.dtype == np.uint8
    np.testing.assert_array_equal(mask, before)


def test_no_reduction_and_ignored_values():
    np.testing.assert_array_equal(CAMVID.reduce(np.array([[0, 10], [11, 255]])), [[0, 10], [255, 255]])
    both = LabelMap(names(3), do_reduce_labels=True, ignore_values=(2, -1, 65535))
    np.testing.assert_array_equal(both.reduce(np.array([[0, 1, 2, 3, -1, 65535]])), [[255, 0, 255, 2, 255, 255]])


def test_reduction_is_the_image_processors():
    mask = np.random.default_rng(0).integers(0, 151, (20, 30)).astype(np.uint8)
    processor = SegformerImageProcessor(do_reduce_labels=True, do_resize=False)
    labels = processor(np.zeros((20, 30, 3), np.uint8), mask, return_tensors="np")["labels"][0]
    np.testing.assert_array_equal(ADE20K.reduce(mask), labels)


@pytest.mark.parametrize(("value", "label_map"), [(151, ADE20K), (256, ADE20K), (-1, ADE20K), (12, CAMVID)])
def test_values_beyond_the_classes_are_refused(value, label_map):
    with pytest.raises(UserError, match=rf"values {value} are none of the {label_map.num_labels} classes"):
        label_map.reduce(np.array([[1, value]], np.int32))


def test_back_to_raw_values():
    predicted = np.array([[0, 149, 255]], np.uint8)
    raw = ADE20K.to_raw(predicted)
    np.testing.assert_array_equal(raw, [[1, 150, 0]])
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(CAMVID.to_raw(np.array([[0, 10, 255]], np.uint8)), [[0, 10, 255]])
    assert ADE20K.raw_values == list(range(1, 151)) and CAMVID.raw_values == list(range(11))


def test_table():
    assert LabelMap({0: "sky", 1: "old tree"}, do_reduce_labels=True, ignore_values=(9,)).table() == (
        "0 -> ignored; 9 -> ignored; 255 -> ignored; 1 -> 0 sky; 2 -> 1 old tree"
    )
    assert "2 -> 2" not in LabelMap(names(3), ignore_values=(2,)).table()
    assert "2 -> ignored" in LabelMap(names(3), ignore_values=(2,)).table()
    lines = ADE20K.table().splitlines()
    assert max(map(len, lines)) <= 110 and len(lines) < 40
    assert lines[-1].endswith("150 -> 149 name_149")


def test_names_and_colours():
    label_map = LabelMap({0: "sky", 1: "tree"}, [[1, 2, 3], [4, 5, 6]])
    assert label_map.label2id == {"sky": 0, "tree": 1} and label_map.num_labels == 2
    np.testing.assert_array_equal(label_map.colors(), [[1, 2, 3], [4, 5, 6]])
    assert ADE20K.colors().shape == (150, 3) and ADE20K.colors().dtype == np.uint8


def test_saved_and_read_again(tmp_path):
    label_map = LabelMap({0: "sky", 1: "Bäume"}, [[1, 2, 3], [4, 5, 6]])
    label_map.save(tmp_path / "new" / "labels.json")
    assert read_class_list(tmp_path / "new" / "labels.json") == (label_map.id2label, label_map.palette)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("a.json", '{"1": "tree", "0": "sky"}', ({0: "sky", 1: "tree"}, None)),
        ("a.json", '[{"id": 1, "name": "b", "color": [4, 5, 6]}, {"id": 0, "name": "a", "color": [1, 2, 3]}]',
         ({0: "a", 1: "b"}, [[1, 2, 3], [4, 5, 6]])),
        ("a.json", '[{"id": 0, "name": "a", "color": [1, 2, 3]}, {"id": 1, "name": "b"}]', ({0: "a", 1: "b"}, None)),
        ("a.csv", "\ufeffid,name,color\n0,sky,1 2 3\n1,tree,\"4, 5, 6\"\n",
         ({0: "sky", 1: "tree"}, [[1, 2, 3], [4, 5, 6]])),
        ("a.csv", "id,name\n0,sky\n", ({0: "sky"}, None)),
    ],
)  # fmt: skip
def test_formats_of_class_lists(tmp_path, file, text, expected):
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_class_list(tmp_path / file) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is neither {id: name} nor"),
        ("3", "is neither {id: name} nor"),
        ('["sky"]', "is neither {id: name} nor"),
        ('[{"id": 0}]', "KeyError 'name'"),
        ('[{"id": 0, "name": "a", "color": [1, 2]}]', r"colour \[1, 2\] is not three numbers"),
        ('[{"id": 0, "name": "a"}, {"id": 0, "name": "b"}]', "uses an id twice"),
        (
            '{"1": "a", "2": "b"}',
            "found 1 to 2, 2 of them.*--do_reduce_labels the class of annotation value 1 has id 0",
        ),
        ('{"0": "a", "2": "b"}', "without a gap"),
        ("{}", "found none"),
        ('{"0": "a", "1": "a"}', "uses a name twice: a"),
    ],
)
def test_bad_class_lists(tmp_path, text, message):
    file = tmp_path / "classes.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_class_list(file)
    assert str(file) in str(caught.value)


def test_missing_class_list(tmp_path):
    with pytest.raises(UserError, match="none.json: No such file"):
        read_class_list(tmp_path / "none.json")


def test_shipped_lists():
    assert {file.stem: len(read_class_list(file)[0]) for file in LABELS.glob("*.json")} == {
        "ade20k": 150,
        "cityscapes": 19,
    }
    assert all(read_class_list(file)[1] for file in LABELS.glob("*.json"))


@pytest.mark.parametrize(("count", "reduce"), [(0, False), (256, False), (255, True)])
def test_number_of_classes(count, reduce):
    with pytest.raises(UserError, match=f"{count} classes"):
        LabelMap(names(count), do_reduce_labels=reduce)


def test_most_classes():
    mask = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(LabelMap(names(255)).reduce(mask), mask)
    reduced = LabelMap(names(254), do_reduce_labels=True)
    np.testing.assert_array_equal(reduced.to_raw(reduced.reduce(mask)), [*range(255), 0])
