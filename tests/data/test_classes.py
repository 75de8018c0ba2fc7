"""Raw annotation values <-> training ids, against literals; class lists."""

import json
from contextlib import suppress

import numpy as np
import pytest
from transformers import AutoConfig, SegformerConfig, SegformerImageProcessor

from cli_utils import UserError
from data.classes import ClassMap, class_map_of_list, edit_classes, map_classes, read_class_list, read_label_mapping
from data_utils import LABELS


def names(count):
    return {i: f"name_{i}" for i in range(count)}


ADE20K = ClassMap(names(150), do_reduce_labels=True)
CAMVID = ClassMap(names(11), ignore_values=(11,))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, ">u2"])
def test_reduction_of_ade20k(dtype):
    mask = np.array([[0, 1, 2], [149, 150, 255]], dtype)
    before = mask.copy()
    reduced = ADE20K.reduce(mask)
    np.testing.assert_array_equal(reduced, [[255, 0, 1], [148, 149, 255]])
    assert reduced.dtype == np.uint8
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("high", [256, 70_000])
def test_reduction_equals_a_search_for_every_value(dtype, high):
    """By table where values are small, else by a search; written down with a dictionary here."""
    rng = np.random.default_rng(0)
    values = rng.choice(min(high, np.iinfo(dtype).max + 1), 40, replace=False)
    values = np.append(values, -5) if np.iinfo(dtype).min < 0 and high > 256 else values
    class_map = ClassMap(names(len(values)), raw_to_id={int(value): i for i, value in enumerate(values)})
    mask = rng.choice(values, (30, 50)).astype(dtype)
    expected = np.vectorize(class_map.value_ids.get)(mask)
    np.testing.assert_array_equal(class_map.reduce(mask), expected)
    np.testing.assert_array_equal(class_map.reduce(mask, np.unique(mask)[::-1].tolist()), expected)


def test_no_reduction_and_ignored_values():
    np.testing.assert_array_equal(CAMVID.reduce(np.array([[0, 10], [11, 255]])), [[0, 10], [255, 255]])
    both = ClassMap(names(3), do_reduce_labels=True, ignore_values=(2, -1, 65535))
    np.testing.assert_array_equal(both.reduce(np.array([[0, 1, 2, 3, -1, 65535]])), [[255, 0, 255, 2, 255, 255]])


def test_reduction_is_the_image_processors():
    mask = np.random.default_rng(0).integers(0, 151, (20, 30)).astype(np.uint8)
    processor = SegformerImageProcessor(do_reduce_labels=True, do_resize=False)
    labels = processor(np.zeros((20, 30, 3), np.uint8), mask, return_tensors="np")["labels"][0]
    np.testing.assert_array_equal(ADE20K.reduce(mask), labels)


@pytest.mark.parametrize(("value", "class_map"), [(151, ADE20K), (256, ADE20K), (-1, ADE20K), (12, CAMVID)])
def test_values_beyond_the_classes_are_refused(value, class_map):
    with pytest.raises(UserError, match=rf"values {value} are none of the {class_map.num_labels} classes"):
        class_map.reduce(np.array([[1, value]], np.int32))


def test_back_to_raw_values():
    predicted = np.array([[0, 149, 255]], np.uint8)
    raw = ADE20K.to_raw(predicted)
    np.testing.assert_array_equal(raw, [[1, 150, 0]])
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(CAMVID.to_raw(np.array([[0, 10, 255]], np.uint8)), [[0, 10, 255]])
    assert ADE20K.raw_values == list(range(1, 151)) and CAMVID.raw_values == list(range(11))


def test_table():
    assert ClassMap({0: "sky", 1: "old tree"}, do_reduce_labels=True, ignore_values=(9,)).table() == (
        "0 -> ignored; 9 -> ignored; 255 -> ignored; 1 -> 0 sky; 2 -> 1 old tree"
    )
    assert "2 -> 2" not in ClassMap(names(3), ignore_values=(2,)).table()
    assert "2 -> ignored" in ClassMap(names(3), ignore_values=(2,)).table()
    lines = ADE20K.table().splitlines()
    assert max(map(len, lines)) <= 110 and len(lines) < 40
    assert lines[-1].endswith("150 -> 149 name_149")


def test_names_and_colours():
    class_map = ClassMap({0: "sky", 1: "tree"}, [[1, 2, 3], [4, 5, 6]])
    assert class_map.label2id == {"sky": 0, "tree": 1} and class_map.num_labels == 2
    np.testing.assert_array_equal(class_map.colors(), [[1, 2, 3], [4, 5, 6]])
    assert ADE20K.colors().shape == (150, 3) and ADE20K.colors().dtype == np.uint8


def test_saved_and_read_again(tmp_path):
    class_map = ClassMap({0: "sky", 1: "Bäume"}, [[1, 2, 3], [4, 5, 6]])
    class_map.save(tmp_path / "new" / "labels.json")
    assert read_class_list(tmp_path / "new" / "labels.json") == (class_map.id2label, class_map.palette)


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
        ("class_dict.csv", "Name, R, G, B\nsky, 1, 2, 3\ntree,4,5,6\n",
         ({0: "sky", 1: "tree"}, [[1, 2, 3], [4, 5, 6]])),
        ("a.csv", "id,name,r,g,b\n1,tree,4,5,6\n0,sky,1,2,3\n",
         ({0: "sky", 1: "tree"}, [[1, 2, 3], [4, 5, 6]])),
        ("a.CSV", "name\nsky\ntree\n", ({0: "sky", 1: "tree"}, None)),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nroad:128,64,128::\n\nside: walk:1,2,3:a,b:c\n",
         ({0: "road", 1: "side: walk"}, [[128, 64, 128], [1, 2, 3]])),
        ("labelmap.txt", "road:::\nsky:1,2,3::\n", ({0: "road", 1: "sky"}, None)),
        ("names.txt", "sky\nold tree\n\nroad\n", ({0: "sky", 1: "old tree", 2: "road"}, None)),
        ("class_names.txt", "__ignore__\n_background_\ncat\n", ({0: "_background_", 1: "cat"}, None)),
        ("classes.txt", "0: sky\n3: tree\n", ({0: "sky", 3: "tree"}, None)),
        ("classes.txt", "1 sky\n2 tree 9\n", ({1: "sky", 2: "tree 9"}, None)),
        ("label_colors.txt", "1 2 3 sky\n4\t5\t6\ttree\n", ({0: "sky", 1: "tree"}, [[1, 2, 3], [4, 5, 6]])),
        ("obj.names", "sky\ntree\n", ({0: "sky", 1: "tree"}, None)),
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, cat\n", ({0: "background", 1: "cat"}, None)),
        ("a.csv", "value;name;r;g;b\n7;sky;1;2;3\n5;tree;4;5;6\n",
         ({5: "tree", 7: "sky"}, [[4, 5, 6], [1, 2, 3]])),
        ("a.json", '["sky", "tree"]', ({0: "sky", 1: "tree"}, None)),
        ("a.json", '{"sky": 0, "tree": 4}', ({0: "sky", 4: "tree"}, None)),
        ("dataset.json", '{"labels": {"background": 0, "tumour": 1}, "numTraining": 8}',
         ({0: "background", 1: "tumour"}, None)),
        ("config.json", '{"labels": [{"name": "void", "color": [1, 2, 3]}, {"name": "bird", "color": [4, 5, 6]}]}',
         ({0: "void", 1: "bird"}, [[1, 2, 3], [4, 5, 6]])),
        ("data.yaml", "names: [sky, tree]\nnc: 2\n", ({0: "sky", 1: "tree"}, None)),
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
        ('{"sky": [0, 1], "sea": 2}', "is neither {id: name} nor"),
        ('[{"id": 0}]', "KeyError 'name'"),
        ('[{"id": 0, "name": "a", "color": [1, 2]}]', r"colour \[1, 2\] is not three numbers"),
        ('[{"id": 0, "name": "a"}, {"id": 0, "name": "b"}]', "uses an id twice"),
        ("{}", "names no class"),
        ('{"0": "a", "1": "a"}', "uses a name twice: a"),
    ],
)
def test_bad_class_lists(tmp_path, text, message):
    file = tmp_path / "classes.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_class_list(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "a.csv",
            "name,r,g,b\nsky,1,2\n",
            "is no table with the columns id, name, color or name, r, g, b: ValueError",
        ),
        ("a.csv", "name,r,g,b\nsky,1,2,256\n", "is not three numbers in 0…255"),
        ("a.csv", "colour,r,g,b\nsky,1,2,3\n", "KeyError 'name'"),
        ("a.csv", "name,r,g,b\nsky,1,2,3\nsky,4,5,6\n", "uses a name twice: sky"),
        ("labelmap.txt", "sky:1,2,3::\nroad 1 2 3\n", "no label map of CVAT, .*ValueError in 'road 1 2 3'"),
        ("labelmap.txt", "road:1,2::\n", "colour '1,2' is not three numbers"),
        ("labelmap.txt", "# nothing\n", "names no class"),
    ],
)
def test_bad_tables_of_classes(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=message):
        read_class_list(tmp_path / file)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("file", ["a.json", "a.csv", "a.txt"])
def test_class_lists_of_any_editor(tmp_path, file, encoding):
    text = {".json": '{"0": "Straße", "1": "Bäume"}', ".csv": "id;name\n0;Straße\n1;Bäume\n"}
    (tmp_path / file).write_bytes(text.get(file[1:], "Straße\nBäume\n").encode(encoding))
    assert read_class_list(tmp_path / file) == ({0: "Straße", 1: "Bäume"}, None)


def test_ids_with_gaps_are_values():
    """Training ids count up in their order; predictions come back in the values."""
    class_map = class_map_of_list({7: "road", 11: "building", 26: "car"}, [[1, 1, 1], [2, 2, 2], [3, 3, 3]], False)
    assert class_map.id2label == {0: "road", 1: "building", 2: "car"}
    np.testing.assert_array_equal(class_map.reduce(np.array([[7, 26, 255, 11]])), [[0, 2, 255, 1]])
    np.testing.assert_array_equal(class_map.to_raw(np.array([[0, 2]], np.uint8)), [[7, 26]])
    assert class_map.values_by_color() == {(1, 1, 1): 7, (2, 2, 2): 11, (3, 3, 3): 26}
    with pytest.raises(UserError, match="values 0 are none"):
        class_map.reduce(np.array([[0, 7]]))


def test_ids_from_one_and_void():
    class_map = class_map_of_list({1: "wall", 2: "sky"}, None, True)
    assert (class_map.do_reduce_labels, class_map.id2label) == (True, {0: "wall", 1: "sky"})
    class_map = class_map_of_list({1: "wall", 3: "sky"}, None, True)
    np.testing.assert_array_equal(class_map.reduce(np.array([[0, 1, 3]])), [[255, 0, 1]])
    with pytest.raises(UserError, match="would ignore 0"):
        class_map_of_list({0: "wall", 3: "sky"}, None, True)
    class_map = class_map_of_list({0: "wall", 1: "sky", 255: "void"}, [[1, 1, 1], [2, 2, 2], [9, 9, 9]], False)
    assert class_map.num_labels == 2 and class_map.values_by_color()[9, 9, 9] == 255


def test_the_label_ids_of_cityscapes():
    mapping = read_label_mapping(LABELS / "cityscapes_label_ids.yaml")
    class_map = map_classes(mapping, "x", None)
    assert class_map.id2label == read_class_list(LABELS / "cityscapes.json")[0]
    np.testing.assert_array_equal(class_map.reduce(np.array([[7, 33, 0, 9, -1]])), [[0, 18, 255, 255, 255]])


@pytest.mark.parametrize(
    "line", ["1" + " " * 10**5 + "2", "a" + ",1" * 10**5, "1 " * 10**5, "," * 10**5, "1" * 10**5, "x " + "1," * 10**5]
)
def test_a_long_line_is_read_at_once(tmp_path, line):
    """Patterns that try many places of a line would take hours over it."""
    (tmp_path / "classes.txt").write_text(line)
    with suppress(UserError):
        assert len(read_class_list(tmp_path / "classes.txt")[0]) == 1


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
        ClassMap(names(count), do_reduce_labels=reduce)


def test_most_classes():
    mask = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(ClassMap(names(255)).reduce(mask), mask)
    reduced = ClassMap(names(254), do_reduce_labels=True)
    np.testing.assert_array_equal(reduced.to_raw(reduced.reduce(mask)), [*range(255), 0])


# ---- an explicit table ----


def test_several_values_of_one_class():
    class_map = ClassMap({0: "a", 1: "b"}, raw_to_id={7: 1, 3: 0, 1: 0, 9: 255, 1000: 1}, ignore_values=(4,))
    mask = np.array([[1, 3, 4], [7, 9, 255]], np.uint8)
    np.testing.assert_array_equal(class_map.reduce(mask), [[0, 0, 255], [1, 255, 255]])
    np.testing.assert_array_equal(class_map.reduce(np.array([1000, 3], ">u2")), [1, 0])
    assert class_map.raw_values == [3, 7]  # the first of each class
    np.testing.assert_array_equal(class_map.to_raw(np.array([[0, 1, 255]], np.uint8)), [[3, 7, 255]])
    assert class_map.table() == (
        "4 -> ignored; 9 -> ignored; 255 -> ignored; 1 -> 0 a; 3 -> 0 a; 7 -> 1 b; 1000 -> 1 b"
    )
    with pytest.raises(UserError, match="annotation values 0, 8 are none of the 2 classes"):
        class_map.reduce(np.array([0, 1, 8]))


def test_values_are_described():
    assert ClassMap(names(3)).describe_values() == "0 to 2 are classes and 255 is ignored"
    assert ClassMap(names(2), do_reduce_labels=True).describe_values() == "1 to 2 are classes and 255 is ignored"
    assert ClassMap(names(1)).describe_values() == "0 is a class and 255 is ignored"
    scattered = ClassMap(names(2), raw_to_id={24: 1, 8: 0, 7: 0, 9: 255, 30: 1, 31: 1})
    assert scattered.class_values == [7, 8, 24, 30, 31]
    assert scattered.describe_values() == "7 to 8, 24, 30 to 31 are classes and 255 is ignored"
    with pytest.raises(UserError, match="no class is left: --ignore_values has"):
        ClassMap(names(2), ignore_values=(0, 1))


def test_when_labels_may_need_reduction():
    assert ClassMap(names(3)).suggests_reduction([3])
    assert not ClassMap(names(3)).suggests_reduction([4]) and not ClassMap(names(3)).suggests_reduction([3, 4])
    assert not ClassMap(names(3), do_reduce_labels=True).suggests_reduction([4])
    assert ClassMap(names(1), raw_to_id={0: 255, 1: 0}).suggests_reduction([2])  # the first class was dropped
    assert not ClassMap(names(2), raw_to_id={7: 0, 8: 1}).suggests_reduction([9])


def test_values_beyond_eight_bits_are_predicted_as_ids():
    for value in (1000, -1):
        class_map = ClassMap({0: "a", 1: "b"}, raw_to_id={5: 0, value: 1})
        assert class_map.raw_values == [0, 1]


def test_a_table_that_does_not_fit_the_classes():
    for table in ({1: 0}, {1: 0, 2: 1, 3: 2}, {1: 0, 2: 2}):
        with pytest.raises(ValueError, match="does not reach exactly the ids"):
            ClassMap({0: "a", 1: "b"}, raw_to_id=table)
    with pytest.raises(ValueError, match="do_reduce_labels must be False"):
        ClassMap({0: "a"}, do_reduce_labels=True, raw_to_id={1: 0})


@pytest.mark.parametrize(
    "class_map",
    [ADE20K, CAMVID, ClassMap({0: "a", 1: "b"}, raw_to_id={10: 1, 9: 0, 2: 0, 3: 255}, ignore_values=(4,))],
    ids=["reduced", "plain", "table"],
)
def test_kept_in_the_models_config(tmp_path, class_map):
    config = SegformerConfig(id2label=class_map.id2label)
    config.segmentation_label_map = class_map.to_config()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    again = ClassMap.from_config(loaded.segmentation_label_map, loaded.id2label)
    assert again == class_map and again.raw_values == class_map.raw_values


def test_values_by_colour():
    colors = [[1, 2, 3], [4, 5, 6]]
    assert ClassMap(names(2), colors).values_by_color() == {(1, 2, 3): 0, (4, 5, 6): 1}
    assert ClassMap(names(2), colors, do_reduce_labels=True).values_by_color() == {(1, 2, 3): 1, (4, 5, 6): 2}
    with pytest.raises(UserError, match="the class list has no colours"):
        ClassMap(names(2)).values_by_color()
    with pytest.raises(
        UserError, match=r"colour 1 2 3 for both annotation value 0 \(name_0\) and annotation value 1 \(name_1\)"
    ):
        ClassMap(names(2), [[1, 2, 3], [1, 2, 3]]).values_by_color()


# ---- editing ----

STREET = ClassMap(
    {0: "road", 1: "car", 2: "sky", 3: "bus", 4: "void"},
    [[1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4], [5, 5, 5]],
    ignore_values=(9,),
)


def edited(class_map):
    return class_map.id2label, class_map.raw_values, class_map.palette


def test_merging_and_dropping():
    both = edit_classes(STREET, ["bus,car=vehicle"], ["void"])
    assert edited(both) == ({0: "road", 1: "vehicle", 2: "sky"}, [0, 1, 2], [[1, 1, 1], [2, 2, 2], [3, 3, 3]])
    mask = np.array([0, 1, 2, 3, 4, 9, 255])
    np.testing.assert_array_equal(both.reduce(mask), [0, 1, 2, 1, 255, 255, 255])
    joined = edit_classes(STREET, ["car = bus", "void,sky=sky"])  # the name of a class: its value and colour stay
    assert edited(joined) == ({0: "road", 1: "bus", 2: "sky"}, [0, 3, 2], [[1, 1, 1], [4, 4, 4], [3, 3, 3]])
    np.testing.assert_array_equal(joined.reduce(mask), [0, 1, 2, 1, 2, 255, 255])
    assert STREET.id2label[4] == "void" and edit_classes(STREET).id2label == STREET.id2label


def test_editing_reduced_labels():
    class_map = edit_classes(ClassMap(names(4), do_reduce_labels=True), ["name_1,name_3=x"], ["name_0"])
    np.testing.assert_array_equal(class_map.reduce(np.arange(5)), [255, 255, 0, 1, 0])
    assert class_map.raw_values == [2, 3] and class_map.id2label == {0: "x", 1: "name_2"}


def test_colours_of_dropped_and_merged_classes_can_be_read():
    class_map = edit_classes(STREET, ["car,bus=vehicle"], ["void"])
    values = class_map.values_by_color()
    assert values == {(1, 1, 1): 0, (2, 2, 2): 1, (3, 3, 3): 2, (4, 4, 4): 3, (5, 5, 5): 4}
    np.testing.assert_array_equal(class_map.reduce(np.array(list(values.values()))), [0, 1, 2, 1, 255])
    same = ClassMap(names(3), [[1, 1, 1], [2, 2, 2], [2, 2, 2]])
    assert edit_classes(same, ["name_1,name_2=x"]).values_by_color() == {(1, 1, 1): 0, (2, 2, 2): 1}


@pytest.mark.parametrize(
    ("merge", "drop", "message"),
    [
        (["car,bus"], [], "--merge_classes car,bus: write NAME,NAME=NEW_NAME"),
        (["car,=x"], [], "write NAME,NAME=NEW_NAME"),
        (["car="], [], "write NAME,NAME=NEW_NAME"),
        (["cat,bus=x"], [], r"--merge_classes: there is no class 'cat' \(did you mean car\?\)"),
        ([], ["rod"], r"--drop_classes: there is no class 'rod' \(did you mean road\?\)"),
        (["car,bus=x", "bus,sky=y"], [], "puts bus into both x and y"),
        (["car=x", "bus=x"], [], "makes x twice"),
        (["car,sky=bus", "bus,road=x"], [], "puts bus into both bus and x"),
        (["car,bus=x"], ["bus"], "--drop_classes bus: also in --merge_classes"),
        (["car=bus"], ["bus"], "--drop_classes bus: also in --merge_classes"),
        ([], ["road", "car", "sky", "bus", "void"], "no class is left"),
    ],
)
def test_edits_that_are_refused(merge, drop, message):
    with pytest.raises(UserError, match=message):
        edit_classes(STREET, merge, drop)


@pytest.mark.parametrize("group", ["car,sky=x", "road,sky=car"])
def test_merging_an_ignored_class_is_refused(group):
    class_map = ClassMap(names(2) | {1: "car", 2: "sky", 0: "road"}, do_reduce_labels=True, ignore_values=(2,))
    with pytest.raises(
        UserError, match="puts car into (x|car), but --ignore_values has its annotation value 2: leave"
    ):
        edit_classes(class_map, [group])
    assert edit_classes(class_map, ["road,sky=x"]).id2label == {0: "x"}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.json", '{"0": "a", "car": null, "-3": 4, "7": 255}'),
        ("a.yaml", "0: a\ncar: null\n-3: 4\n7: 255\n"),
        ("a.yml", "{0: a, car: , -3: 4, 7: 255}"),
        ("a.csv", "from,to\n0,a\ncar,\n-3, 4\n7,255\n"),
    ],
)
def test_formats_of_label_maps(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    assert read_label_mapping(tmp_path / file) == {0: "a", "car": None, -3: 4, 7: None}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.json", "[1]", "is not a table from annotation values"),
        ("a.json", "", "is not a table from annotation values"),
        ("a.yaml", "a: [", "is not a table from annotation values"),
        ("a.yaml", "no: x", "False is neither a whole number nor a name .*in quotes"),
        ("a.yaml", "1: 2.5", "2.5 is neither a whole number nor a name"),
        ("a.csv", "from,to\n1,2,3\n", "is not a table from annotation values"),
        ("a.csv", "from,to\n1,2\n1,3\n", "names a value or class twice"),
        ("none.json", None, "none.json: No such file"),
    ],
)
def test_bad_label_maps(tmp_path, file, text, message):
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=message):
        read_label_mapping(tmp_path / file)


def test_mapping_to_names(caplog):
    mapping = {"bus": "vehicle", 0: "ground", "car": "vehicle", "sky": None}
    class_map = map_classes(mapping, "map.json", STREET, ignore_values=(9,))
    # Ids in the order of the file; `void`, which the class list has and the file has not, is ignored.
    assert edited(class_map) == ({0: "vehicle", 1: "ground"}, [3, 0], [[4, 4, 4], [1, 1, 1]])
    np.testing.assert_array_equal(class_map.reduce(np.array([0, 1, 2, 3, 4, 9])), [1, 0, 255, 0, 255, 255])
    assert "1 classes are not in --label_map and are ignored: void" in caplog.text


def test_mapping_without_a_class_list():
    class_map = map_classes({7: "road", 11: "road", 8: "walk", 0: None}, "map.json", None)
    assert edited(class_map) == ({0: "road", 1: "walk"}, [7, 8], None)
    with pytest.raises(UserError, match="annotation values 1 are none of the 2 classes"):
        class_map.reduce(np.array([7, 1]))


def test_mapping_to_ids():
    assert edited(map_classes({7: 1, 8: 0, 9: 1}, "m", None)) == ({0: "class_0", 1: "class_1"}, [8, 7], None)
    colors = [[1, 2, 3], [4, 5, 6]]
    class_map = map_classes({7: 1, 8: 0, 9: None}, "m", STREET, ({0: "a", 1: "b"}, colors))
    assert edited(class_map) == ({0: "a", 1: "b"}, [8, 7], colors)


@pytest.mark.parametrize(
    ("mapping", "options", "message"),
    [
        ({"cra": "x"}, {}, r"--label_map m: there is no class 'cra' \(did you mean car\?\)"),
        ({"car": "x"}, {"class_map": None}, "--label_map m names car, but there is no class list: give --id2label"),
        ({"car": "x", 1: "y"}, {}, "has x and y for annotation value 1"),
        ({0: "x", 1: 0}, {}, r"maps to both names and ids \(0 …\)"),
        ({"car": 0}, {}, "maps names to ids; map annotation values to ids, or names to names"),
        ({1: 0, 2: 2}, {"class_map": None}, "every training id from 0 to 1 and no other; 1, 2 are in one of the two"),
        ({1: 0}, {"names": ({0: "a", 1: "b"}, None)}, "from 0 to 1 and no other; 1 is in one of the two only"),
        ({1: -1}, {}, "from 0 to 0 and no other; -1, 0 are"),
        ({9: "x", 1: "y"}, {"ignore_values": (9,)}, "value 9 the class x, but it is ignored by --ignore_values"),
        ({1: None}, {}, "no class is left"),
    ],
)
def test_mappings_that_are_refused(mapping, options, message):
    with pytest.raises(UserError, match=message):
        map_classes(mapping, "m", **({"class_map": STREET} | options))


@pytest.mark.parametrize(
    "name", ["stop\xa0sign", "\u0645\u06cc\u200c\u062e", "\U0001f468\u200d\U0001f33e", "Stra\xdfe"]
)
def test_names_in_any_script_are_names(tmp_path, name):
    """With the spaces of web pages, and the joiners of Persian and of emoji."""
    texts = {".json": json.dumps([name, "b"]), ".txt": f"{name}\nb\n", ".csv": f"id,name\n0,{name}\n1,b"}
    for suffix, text in texts.items():
        (tmp_path / f"classes{suffix}").write_text(text, encoding="utf-8")
        assert read_class_list(tmp_path / f"classes{suffix}")[0][0] == name


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\u202eb", "a\x85b", "\u200b", " ", "a\u2028b"])
def test_names_that_break_a_line_or_cannot_be_seen_are_none(tmp_path, name):
    (tmp_path / "classes.json").write_text(json.dumps({"0": name, "1": "b"}))
    with pytest.raises(UserError, match="cannot be printed|cannot be seen|without a name"):
        read_class_list(tmp_path / "classes.json")


@pytest.mark.parametrize(
    "config",
    [
        [1],
        {"do_reduce_labels": "x", "ignore_values": [], "raw_to_id": None},
        {"do_reduce_labels": False, "ignore_values": ["x"], "raw_to_id": None},
        {"do_reduce_labels": False, "ignore_values": [], "raw_to_id": [[1, 2, 3]]},
        {"do_reduce_labels": False, "ignore_values": [], "raw_to_id": [[0, 0], [1, 7]]},
        {},
    ],
)
def test_a_damaged_entry_of_a_model_is_named(config):
    with pytest.raises(UserError, match="segmentation_label_map in the model's config.json is damaged"):
        ClassMap.from_config(config, {0: "a", 1: "b"})
