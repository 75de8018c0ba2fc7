"""Masks as programs write them: each form is read to the pixel, or refused in one line with the flag that settles it.

From known arrays to files, and back through loading, classes and preparation.
"""

import numpy as np
import pytest
import tifffile
from factories.datasets import load
from factories.trees import HEIGHT, WIDTH, photo, spots
from PIL import Image

from checks.judge import find_faults
from checks.scan import scan
from cli_utils import UserError
from data.preparation import prepare_pairs
from metrics_utils import IGNORE_INDEX

COLORS = np.array([[10, 20, 30], [200, 30, 30], [30, 60, 200]], np.uint8)
WITH_COLORS = "name,r,g,b\nground,10,20,30\ncat,200,30,30\ndog,30,60,200\n"
ORDERS = ([0, 1, 2], [1, 2, 0], [2, 0, 1])


def first_row(ids, value):
    ids = ids.copy()
    ids[0] = value
    return ids


def indexed(ids, order):
    """Indices in an order of their own, with a palette that shows the classes' colours."""
    image = Image.fromarray(np.array(order, np.uint8)[ids])
    palette = np.zeros((3, 3), np.uint8)
    palette[order] = COLORS
    image.putpalette(palette.tobytes())
    return image


def tiff(ids, nodata=None, **options):
    tags = [] if nodata is None else [(42113, "s", len(nodata) + 1, nodata, True)]
    return lambda file: tifffile.imwrite(file, ids, extratags=tags, photometric="minisblack", **options)


# What is written for the ids of an image; what is ignored: nothing, the first row or a class; flags.
FORMS = {
    "float32": (lambda ids: tiff(ids.astype("f4")), None, {}),
    "float64": (lambda ids: tiff(ids.astype("f8")), None, {}),
    "uint16, big-endian": (lambda ids: tiff(ids.astype(">u2"), byteorder=">"), None, {}),
    "tiles": (lambda ids: tiff(ids, tile=(16, 16), compression="zlib"), None, {}),
    "int16, -1": (lambda ids: tiff(first_row(ids.astype("i2"), -1)), "row", {"ignore_values": [-1]}),
    "int8, -1": (lambda ids: tiff(first_row(ids.astype("i1"), -1)), "row", {"ignore_values": [-1]}),
    "int32, -9999": (lambda ids: tiff(first_row(ids.astype("i4"), -9999)), "row", {}),
    "float32, -9999": (lambda ids: tiff(first_row(ids.astype("f4"), -9999)), "row", {}),
    "float32, NaN": (lambda ids: tiff(first_row(ids.astype("f4"), np.nan)), "row", {}),
    "nodata 99": (lambda ids: tiff(first_row(ids, 99), "99"), "row", {}),
    "nodata 0, ignored": (lambda ids: tiff(ids, "0"), 0, {"ignore_values": [0]}),
    "nodata 0, reduced": (lambda ids: tiff(ids, "0"), 0, {"do_reduce_labels": True}),
    "nodata 0, a class": (lambda ids: tiff(ids, "0"), None, {"id2label": "ground\ncat\ndog\n"}),
    "colours": (lambda ids: Image.fromarray(COLORS[ids]), None, {"id2label": WITH_COLORS}),
    "colours off by 3": (lambda ids: Image.fromarray(COLORS[ids] - np.uint8(3)), None, {"id2label": WITH_COLORS}),
    "indices as they occur": (lambda ids: indexed(ids, ORDERS[ids[9, 9] % 3]), None, {"id2label": WITH_COLORS}),
    "colours made fewer": (lambda ids: Image.fromarray(COLORS[ids]).quantize(8), None, {"id2label": WITH_COLORS}),
}


def write(root, form, suffix):
    truth = {}
    for seed in range(3):
        photo(root / "images" / f"p{seed}.png", seed)
        ids = truth[f"p{seed}"] = spots(root / "masks" / f"p{seed}{suffix}", seed)
        made = form(ids)
        made(root / "masks" / f"p{seed}{suffix}") if callable(made) else made.save(root / "masks" / f"p{seed}{suffix}")
    return truth


def read(root, flags):
    """Name → (H, W) training ids, and the findings that keep training from starting."""
    if isinstance(flags.get("id2label"), str):  # what such a file holds
        file = root.parent / ("classes.csv" if "," in flags["id2label"] else "classes.txt")
        file.write_text(flags["id2label"])
        flags = flags | {"id2label": file}
    data, class_map = load(root, **flags)
    errors = [found for found in find_faults(scan(data.splits, class_map), class_map) if found.severity == "error"]
    prepared, _ = prepare_pairs(data.splits, class_map)
    return {row["name"]: np.asarray(row["label"]) for row in prepared["train"]}, errors, class_map


@pytest.mark.parametrize("case", FORMS)
def test_each_form_is_read_exactly(tmp_path, case):
    form, ignored, flags = FORMS[case]
    tiffs = callable(form(np.zeros((HEIGHT, WIDTH), np.uint8)))
    truth = write(tmp_path / "data", form, ".tif" if tiffs else ".png")
    found, errors, class_map = read(tmp_path / "data", flags)
    assert errors == [] and found.keys() == truth.keys()
    for name, ids in truth.items():
        expected = ids - 1 if ignored == 0 else ids
        expected = np.where(ids == 0, IGNORE_INDEX, expected) if ignored == 0 else expected
        expected = first_row(expected, IGNORE_INDEX) if ignored == "row" else expected
        assert (found[name] == expected).all(), name
    assert class_map.num_labels == 3 - (ignored == 0)


def test_nodata_of_0_without_a_class_list_is_asked_about(tmp_path):
    write(tmp_path / "data", lambda ids: tiff(ids, "0"), ".tif")
    with pytest.raises(UserError, match=r"3 masks state that 0 means no data .* --ignore_values 0 .* --id2label FILE"):
        load(tmp_path / "data")


@pytest.mark.parametrize("value", [1, 255])
def test_nodata_of_0_is_the_background_of_a_single_class(tmp_path, value):
    truth = write(tmp_path / "data", lambda ids: tiff(np.where(ids == 1, value, 0).astype(np.uint8), "0"), ".tif")
    found, errors, _ = read(tmp_path / "data", {})
    assert not errors and all((found[name] == (ids == 1)).all() for name, ids in truth.items())


def test_palettes_that_differ_are_no_ids_unless_the_classes_are_named(tmp_path):
    orders = iter(ORDERS)
    write(tmp_path / "data", lambda ids: indexed(ids, next(orders)), ".png")
    [error] = read(tmp_path / "data", {})[1]
    assert error.kind == "mask-palettes-differ" and "--id2label FILE, a CSV with the columns name,r,g,b" in error.fix
    assert read(tmp_path / "data", {"id2label": "ground\ncat\ndog\n"})[1] == []


@pytest.mark.parametrize("values", [(0, 128, 255), (0, 127, 255)])
def test_classes_spread_out_to_be_seen_are_asked_about(tmp_path, values):
    """255 is ignored, unless somebody says that it is a class."""
    spread = np.array(values, np.uint8)
    truth = write(tmp_path / "data", lambda ids: Image.fromarray(spread[ids]), ".png")
    with pytest.raises(UserError, match=r"--label_map FILE with {0: class_0, .*, --ignore_values 255"):
        load(tmp_path / "data")
    table = tmp_path / "map.yaml"
    table.write_text("".join(f"{value}: class_{value}\n" for value in values))
    found, errors, _ = read(tmp_path / "data", {"label_map": table})
    assert errors == [] and all((found[name] == ids).all() for name, ids in truth.items())
    assert load(tmp_path / "data", ignore_values=[255])[1].num_labels == 2


CLASS_LISTS = {
    "hex.csv": "name,color\nground,#0a141e\ncat,#C81E1E\ndog,#1e3cc8\n",
    "hex.json": '{"ground": "#0a141e", "cat": "#c81e1e", "dog": "#1e3cc8"}',
    "names.json": '{"ground": [10, 20, 30], "cat": [200, 30, 30], "dog": [30, 60, 200]}',
    "names.txt": "ground 10 20 30\nfat cat, 200, 30, 30\ndog: 30,60,200\n",
}


@pytest.mark.parametrize("file", CLASS_LISTS)
def test_lists_of_colours_in_many_hands(tmp_path, file):
    truth = write(tmp_path / "data", lambda ids: Image.fromarray(COLORS[ids]), ".png")
    (tmp_path / file).write_text(CLASS_LISTS[file])
    found, errors, class_map = read(tmp_path / "data", {"id2label": tmp_path / file})
    assert errors == [] and all((found[name] == ids).all() for name, ids in truth.items())
    assert class_map.id2label[0] == "ground" and class_map.id2label[1].endswith("cat")
