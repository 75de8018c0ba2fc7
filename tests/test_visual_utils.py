"""Palettes, indexed PNGs, overlays, panels and contact sheets, on images of a few pixels."""

import numpy as np
import pytest
from PIL import Image

from visual_utils import (
    DRAW_SIDE,
    IGNORED_BRIGHTNESS,
    LINE_HEIGHT,
    MARGIN,
    PngWriter,
    augmentation_sheet,
    colorize,
    contact_sheet,
    default_palette,
    overlay,
    raw_palette,
    save_indexed_png,
    side_by_side,
)

PALETTE = np.array([[200, 0, 0], [0, 100, 0], [0, 0, 250]], np.uint8)


def solid(size, color=(100, 100, 100)):
    return Image.new("RGB", size, color)


@pytest.mark.parametrize("num_labels", [1, 19, 150, 255])
def test_default_palette_has_distinct_colours_that_are_neither_black_nor_white(num_labels):
    palette = default_palette(num_labels)
    assert palette.shape == (num_labels, 3) and palette.dtype == np.uint8
    colors = palette.astype(int)
    between = np.abs(colors[:, None] - colors).sum(axis=-1) + 1000 * np.eye(num_labels)
    assert between.min() >= 17
    assert colors.sum(axis=1).min() > 60 and (255 - colors).sum(axis=1).min() > 60


def test_default_palette_keeps_its_colours_when_classes_are_added():
    assert (default_palette(150)[:12] == default_palette(12)).all()
    few = default_palette(12).astype(int)
    assert (np.abs(few[:, None] - few).sum(axis=-1) + 1000 * np.eye(12)).min() > 100


def test_default_palette_refuses_more_classes_than_there_are_colours():
    with pytest.raises(ValueError, match="100000"):
        default_palette(100000)


def test_raw_palette_follows_the_annotation_values():
    reduced = raw_palette(PALETTE, [1, 2, 3])
    assert reduced.shape == (256, 3) and reduced.dtype == np.uint8
    assert reduced[:4].tolist() == [[0, 0, 0], [200, 0, 0], [0, 100, 0], [0, 0, 250]]
    assert not reduced[4:].any()


@pytest.mark.parametrize("values", [[0, 150, 255], [0, 1, 1], [255, 255, 255]])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_indexed_png_holds_ids_and_colours(tmp_path, values, dtype):
    palette = default_palette(256)
    path = tmp_path / "new" / "folder" / "name.with.dots.png"
    mask = np.array([values, values[::-1]], dtype)
    save_indexed_png(path, mask, palette)
    with Image.open(path) as image:
        assert image.mode == "P" and image.format == "PNG"
        assert np.array_equal(np.asarray(image), mask)
        assert np.array_equal(np.asarray(image.convert("RGB")), palette[mask])
    # Bit depth 8 and colour type 3 (palette), the bytes behind width and height in the header chunk.
    assert tuple(path.read_bytes()[24:26]) == (8, 3)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("value", [-1, 256])
def test_indexed_png_refuses_what_a_byte_cannot_hold(tmp_path, value):
    with pytest.raises(ValueError, match=str(value)):
        save_indexed_png(tmp_path / "mask.png", np.full((2, 2), value), default_palette(256))
    assert not any(tmp_path.iterdir())


def test_colorize():
    ids = np.array([[0, 2, 255]])
    assert np.asarray(colorize(ids, PALETTE)).tolist() == [[[200, 0, 0], [0, 0, 250], [0, 0, 0]]]
    ignored = np.asarray(colorize(np.array([[1, 2]]), PALETTE, ignore_index=2, ignore_color=(9, 8, 7)))
    assert ignored.tolist() == [[[0, 100, 0], [9, 8, 7]]]


@pytest.mark.parametrize("bad", [-1, 3])
def test_an_id_without_a_colour_is_an_error(bad):
    with pytest.raises(ValueError, match=str(bad)):
        colorize(np.array([[0, bad]]), PALETTE)


def test_overlay_blends_and_leaves_ignored_pixels_a_dimmed_photo():
    ids = np.full((4, 5), 255)
    ids[:, :2] = 0
    pixels = np.asarray(overlay(solid((5, 4)), ids, PALETTE, alpha=0.5))
    assert pixels[:, :2].reshape(-1, 3).tolist() == [[150, 50, 50]] * 8
    assert (pixels[:, 2:] == 100 * IGNORED_BRIGHTNESS).all()


def test_overlay_draws_a_line_where_classes_meet():
    ids = np.zeros((3, 6), int)
    ids[:, 3:] = 1
    pixels = np.asarray(overlay(solid((6, 3)), ids, PALETTE, alpha=0.5)).astype(int)
    assert (pixels[:, :3] == [150, 50, 50]).all() and (pixels[:, 4:] == [50, 100, 50]).all()
    assert (pixels[:, 3] > 200).all()


def test_overlay_wants_image_and_label_map_of_one_size():
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(3, 4\)"):
        overlay(solid((4, 3)), np.zeros((4, 3), int), PALETTE)


NAMES = {0: "wall", 1: "a class with a name that is longer than any legend likes it", 2: "sky"}


@pytest.mark.parametrize("size", [(32, 24), (683, 512), (2000, 1500), (3, 700), (700, 1)])
def test_panels_have_a_readable_size(size):
    ids = np.zeros(size[::-1], np.uint8)
    with_truth = side_by_side(solid(size), ids, ids, PALETTE, NAMES)
    without = side_by_side(solid(size), None, ids, PALETTE, NAMES)
    column = with_truth.width - without.width
    assert 160 <= column - MARGIN <= 640
    assert without.width == 2 * column + MARGIN
    assert max(column - MARGIN, without.height) >= 256


def panel_pixel(panels, size, index, x, y):
    """Colour at (x, y) of a panel of `side_by_side` that is drawn at `size`."""
    return np.asarray(panels)[LINE_HEIGHT + y, MARGIN + index * (max(size[0], 160) + MARGIN) + x].astype(int)


def test_prediction_is_shown_where_the_truth_is_ignored():
    size = (300, 260)
    truth, prediction = np.full((260, 300), 255, np.uint8), np.full((260, 300), 2, np.uint8)
    panels = side_by_side(solid(size), truth, prediction, PALETTE, NAMES)
    assert panel_pixel(panels, size, 0, 50, 50).tolist() == [100, 100, 100]
    assert (panel_pixel(panels, size, 1, 50, 50) == 100 * IGNORED_BRIGHTNESS).all()
    red, green, blue = panel_pixel(panels, size, 2, 50, 50)
    assert blue > 150 and red < 60 and green < 60


def test_small_images_are_enlarged_without_mixing_pixels():
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))
    panels = side_by_side(image, None, np.array([[0, 1]]), PALETTE, NAMES)
    row = np.asarray(panels)[LINE_HEIGHT + 10, MARGIN : MARGIN + 256]
    assert (row[:128] == [255, 0, 0]).all() and (row[128:] == [0, 0, 255]).all()


def swatches(panels, palette):
    """Ids whose colour fills a box of the legend, in reading order."""
    pixels = np.asarray(panels.crop((0, LINE_HEIGHT + 260, panels.width, panels.height)))
    places = {}
    for i, color in enumerate(palette):
        rows, columns = np.nonzero((pixels == color).all(axis=-1))
        if len(rows) > 100:
            places[i] = (rows.min() // LINE_HEIGHT, columns.min())
    return sorted(places, key=places.get)


def test_legend_names_the_classes_of_both_maps_largest_first():
    truth = np.full((260, 300), 255, np.uint8)
    truth[:100] = 1
    prediction = np.full((260, 300), 2, np.uint8)
    assert swatches(side_by_side(solid((300, 260)), truth, prediction, PALETTE, NAMES), PALETTE) == [2, 1]
    assert swatches(side_by_side(solid((300, 260)), None, prediction, PALETTE, NAMES), PALETTE) == [2]


def test_legend_wraps_and_leaves_out_the_smallest_classes():
    palette = default_palette(150)
    prediction = np.repeat(np.arange(260) % 150, 300).reshape(260, 300)
    panels = side_by_side(solid((300, 260)), None, prediction, palette, {i: f"name {i}" for i in range(150)})
    shown = swatches(panels, palette)
    # 260 rows over 150 classes: 0 … 109 have two rows each, and equals come in the order of their ids.
    assert 12 < len(shown) < 60 and shown == list(range(len(shown)))
    one_line = side_by_side(solid((300, 260)), None, np.zeros((260, 300), int), palette, {0: "one"})
    assert panels.height - one_line.height == 3 * LINE_HEIGHT


def test_side_by_side_wants_maps_of_the_image_size():
    with pytest.raises(ValueError, match="truth"):
        side_by_side(solid((4, 3)), np.zeros((4, 3), int), np.zeros((3, 4), int), PALETTE, NAMES)


def test_augmentation_sheet():
    ids = np.array([[0, 255], [2, 2]])
    draws = [(solid((2, 2), (10, 20, 30)), ids), (solid((2, 2), (40, 50, 60)), np.zeros((2, 2), int))]
    rows = [("first", solid((20, 10), (1, 2, 3)), draws), ("second", solid((10, 20), (4, 5, 6)), draws[:1])]
    sheet = augmentation_sheet(rows, PALETTE, NAMES)
    cell, row = DRAW_SIDE + MARGIN, DRAW_SIDE + MARGIN + LINE_HEIGHT
    assert sheet.width == 5 * cell + MARGIN and sheet.height == 2 * row + LINE_HEIGHT + MARGIN // 2
    pixels = np.asarray(sheet)

    def panel(i, j, y=0.5, x=0.5):
        """The pixel of panel j in row i at these shares of its height and width."""
        top, left = i * row + LINE_HEIGHT, MARGIN + j * cell
        return pixels[top + round(y * (DRAW_SIDE - 1)), left + round(x * (DRAW_SIDE - 1))]

    assert panel(0, 0, y=0.25).tolist() == [1, 2, 3] and panel(0, 0, y=0.75).tolist() == [255] * 3
    assert panel(1, 0, x=0.25).tolist() == [4, 5, 6] and panel(1, 0, x=0.75).tolist() == [255] * 3
    assert panel(0, 1).tolist() == panel(1, 1).tolist() == [10, 20, 30]
    assert panel(0, 3).tolist() == [40, 50, 60] and panel(1, 3).tolist() == [255] * 3
    assert [panel(0, 2, y, x).tolist() for y, x in ((0, 0), (0, 1), (1, 0))] == [[200, 0, 0], [0, 0, 0], [0, 0, 250]]
    assert panel(0, 4).tolist() == [200, 0, 0]
    # Every class that any mask shows is in the legend below, largest first.
    assert panel(2, 0, y=-LINE_HEIGHT / 2 / DRAW_SIDE, x=8 / DRAW_SIDE).tolist() == [200, 0, 0]


def test_contact_sheet_puts_pictures_and_files_below_the_shortest_column(tmp_path):
    solid((30, 40), (0, 0, 255)).save(tmp_path / "blue.png")
    green, red = solid((20, 5), (0, 255, 0)), solid((30, 10), (255, 0, 0))
    sheet = contact_sheet([red, tmp_path / "blue.png", green, red])
    # Left: red, green, red; right: blue.
    assert sheet.size == (2 * 30 + 3 * MARGIN, max(10 + 5 + 10 + 4 * MARGIN, 40 + 2 * MARGIN))
    pixels = np.asarray(sheet)
    assert pixels[MARGIN, MARGIN].tolist() == [255, 0, 0]
    assert pixels[MARGIN + 39, 30 + 2 * MARGIN + 29].tolist() == [0, 0, 255]
    assert pixels[10 + 2 * MARGIN, MARGIN + 19].tolist() == [0, 255, 0]
    assert pixels[15 + 3 * MARGIN, MARGIN + 29].tolist() == [255, 0, 0]


def test_contact_sheet_scales_down_and_samples_evenly():
    assert contact_sheet([solid((4000, 1000))], max_width=2000).width == 2000
    many = contact_sheet([solid((10, 10), (i, 0, 0)) for i in range(101)], columns=1, max_panels=3)
    assert many.height == 3 * 10 + 4 * MARGIN
    assert np.asarray(many)[[MARGIN, 10 + 2 * MARGIN, 20 + 3 * MARGIN], MARGIN, 0].tolist() == [0, 50, 100]


def test_contact_sheet_names_its_pictures():
    plain = contact_sheet([solid((200, 20), (9, 9, 9))] * 2, columns=1)
    named = contact_sheet([solid((200, 20), (9, 9, 9))] * 2, columns=1, titles=["short", "folder/" * 20 + "name.png"])
    assert named.height == plain.height + 2 * LINE_HEIGHT
    pixels = np.asarray(named)
    for top in (MARGIN, 2 * MARGIN + LINE_HEIGHT + 20):
        line = pixels[top : top + LINE_HEIGHT, MARGIN : MARGIN + 200]
        assert (line < 100).any() and (pixels[top + LINE_HEIGHT + 1, MARGIN] == 9).all()
    assert (pixels[:, MARGIN + 200 :] == pixels[0, 0]).all()  # a long one is cut


def test_contact_sheet_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_a_png_written_in_bands(tmp_path):
    mask = np.random.default_rng(0).integers(0, 256, (50, 37), dtype=np.uint8)
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    with PngWriter(tmp_path / "bands.png", (50, 37), palette) as png:
        for start, stop in ((0, 1), (1, 30), (30, 50)):
            png.write(mask[start:stop])
    save_indexed_png(tmp_path / "whole.png", mask, palette)
    with Image.open(tmp_path / "bands.png") as bands, Image.open(tmp_path / "whole.png") as whole:
        assert bands.mode == whole.mode == "P" and bands.getpalette() == whole.getpalette()
        assert np.array_equal(np.asarray(bands), mask)
    with PngWriter(tmp_path / "grey.png", (50, 37)) as png:
        png.write(mask)
    with Image.open(tmp_path / "grey.png") as grey:
        assert grey.mode == "L" and np.array_equal(np.asarray(grey), mask)
