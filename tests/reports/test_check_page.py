"""The page of a check: valid, escaped, complete in itself, readable, with the right pictures of the right files."""

import base64
import io
import os
import re
import shutil
from dataclasses import replace as changed
from html.parser import HTMLParser

import numpy as np
import pytest
from datasets import DatasetDict
from factories.broken_datasets import FAULTS, NAMES, draw_scene, each_mask, ids, image_of, make_clean, mask_of, replace
from PIL import Image

import check_dataset
from checks.records import DatasetReport, ImageRecord, finding
from cli_utils import UserError
from data.classes import ClassMap
from reports.check_page import NO_CLASS_COLOR, SIDE, write_html

LABEL_MAP = ClassMap(NAMES, [[200, 0, 0], [0, 100, 0], [0, 0, 250], [250, 200, 0]])


class Page(HTMLParser):
    """What a browser would find; fails where a tag is left open or closed out of turn.

    samples: (tag, attributes) and texts of the section of pairs from all over the dataset, which the others leave out.
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.cells, self.samples = [], [], [], [], []
        self.in_samples = False
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.in_samples |= dict(attrs).get("id") == "samples"
        (self.samples if self.in_samples else self.tags).append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.in_samples &= tag != "section"

    def handle_data(self, data):
        if self.in_samples:
            self.samples.append(data)
        elif "style" not in self.open:
            self.texts.append(data)
        if "td" in self.open:
            self.cells[-1] += data

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def images(self, samples=False):
        """Pictures in their order, decoded."""
        tags = [entry for entry in self.samples if entry[0] == "img"] if samples else self.tags
        sources = [attrs["src"] for name, attrs in tags if name == "img"]
        content = [source.removeprefix("data:image/jpeg;base64,") for source in sources]
        return [Image.open(io.BytesIO(base64.b64decode(text, validate=True))) for text in content]


def page_of(tmp_path, report, *args, **kwargs):
    write_html(report, tmp_path / "page.html", *args, **kwargs)
    return Page((tmp_path / "page.html").read_text(encoding="utf-8"))


def report_of(records=(), findings=(), class_pixels=None):
    splits = dict.fromkeys((record.split for record in records), 1)
    return DatasetReport(
        "data", "split folders", splits, NAMES, class_pixels or {}, list(records), list(findings), 2.0
    )


def checked(root, *flags):
    """Report, data and class map of a folder, as `check_dataset.py` finds them."""
    return check_dataset.check(*check_dataset.parse([str(root), "--image_size", "48", "--num_proc", "1", *flags]))


def close_to(color, pixels, tolerance=30):
    """Where pixels have a colour, as nearly as JPEG keeps it."""
    return (np.abs(np.asarray(pixels).astype(int) - color) <= tolerance).all(axis=-1)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make_clean(tmp_path_factory.mktemp("clean") / "data")


# ---- the page -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("image cut off", "web page as mask", "16-bit image", "masks of half size", "mask on its side"),
        *("image without mask", "mask without image", "no layout", "class list with a name twice", "colour masks"),
        *("0 and 255", "ids of objects", "validation ignored", "image twice with two masks"),
    ],
)
def test_page_of_a_broken_dataset(clean, tmp_path, name):
    fault = FAULTS[name]
    root = shutil.copytree(clean, tmp_path / "data")
    fault.break_it(root)
    report, dataset, class_map = checked(root, *fault.flags)
    page = page_of(tmp_path, report, dataset, class_map)
    assert [fault.kind in page.texts, report.verdict() in page.texts] == [True, True]
    assert {f"finding-{i}" for i, found in enumerate(report.findings) if found.files} == {
        attrs["id"] for attrs in page.named("section")
    }
    assert {attrs["href"] for attrs in page.named("a")} == {f"#{attrs['id']}" for attrs in page.named("section")}
    for picture, attrs in zip(page.images(), page.named("img"), strict=True):
        assert picture.format == "JPEG" and max(picture.size) == SIDE
        assert (int(attrs["width"]), int(attrs["height"])) == picture.size and attrs["alt"] in ("image", "mask")
    assert bool(page.images()) == (name not in ("no layout", "class list with a name twice"))


def test_clean_dataset(clean, tmp_path):
    page = page_of(tmp_path, *checked(clean))
    assert "fit for training" in page.texts and "Findings" not in page.texts
    assert [page.named("img"), page.named("section")] == [[], []]
    assert {"class": "verdict fit"} in page.named("p")


def test_clean_dataset_is_shown(clean, tmp_path):
    """Six pairs from all over it, over any table, and the names of the classes in their colours."""
    report, dataset, class_map = checked(clean)
    class_map = changed(class_map, palette=LABEL_MAP.palette)
    page = page_of(tmp_path, report, dataset, class_map)
    text = (tmp_path / "page.html").read_text()
    assert text.index('id="samples"') < text.index("<table>")
    keys = [record.key for record in report.records]
    assert [entry for entry in page.samples if entry in keys] == [keys[i] for i in (0, 2, 4, 7, 9, 11)]
    swatches = [entry[1]["style"] for entry in page.samples if entry[0] == "span"]
    assert swatches == [f"background: #{bytes(color).hex()}" for color in LABEL_MAP.palette]
    assert [entry for entry in page.samples if entry in NAMES.values()] == list(NAMES.values())
    pictures = page.images(samples=True)
    assert len(pictures) == 12
    for index, (image, mask) in zip((0, 2, 4, 7, 9, 11), zip(pictures[::2], pictures[1::2], strict=True), strict=True):
        with Image.open(image_of(clean, index)) as photo:
            photo = np.asarray(photo.convert("RGB").resize(image.size, Image.Resampling.NEAREST)).astype(int)
        assert np.abs(np.asarray(image) - photo).mean() < 5
        inside = (
            np.asarray(Image.fromarray(ids(mask_of(clean, index))).resize(mask.size, Image.Resampling.NEAREST)) == 1
        )
        blended = 0.4 * photo + 0.6 * np.array(LABEL_MAP.palette[1])
        assert np.median(np.abs(np.asarray(mask) - blended)[inside]) < 8


def test_a_broken_dataset_is_not_shown_as_a_whole(clean, tmp_path):
    root = shutil.copytree(clean, tmp_path / "data")
    image_of(root, 2).write_text("no image")
    assert page_of(tmp_path, *checked(root)).samples == []


def test_names_are_escaped(tmp_path):
    nasty = "<b>&\"'</td><script>x</script>"
    record = ImageRecord("train", nasty, "", "", width=8, height=8, raw_values={0: 64})
    report = DatasetReport(
        f"in/{nasty}", nasty, {nasty: 1}, {0: nasty}, {nasty: [64]}, [record],
        [finding("mask-constant", "warning", nasty, nasty, [f"train/{nasty}", os.fsdecode(b"\xff<i>.png")])], 1.0,
    )  # fmt: skip
    page = page_of(tmp_path, report, None, ClassMap({0: nasty}))
    assert not {"script", "b", "i"} & {tag for tag, _ in page.tags}
    for text in (f"in/{nasty}", f"Check of in/{nasty}", nasty, f"train/{nasty}", f"{nasty} pixels", r"\xff<i>.png"):
        assert text in page.texts, text
    assert f"{nasty}Fix: {nasty}" in page.cells


def test_names_below_pictures_are_escaped(clean, tmp_path):
    nasty = "<b>&\"'"
    root = shutil.copytree(clean, tmp_path / "data")
    image_of(root, 1).rename(root / "train" / "images" / f"{nasty}.png")
    mask_of(root, 1).rename(root / "train" / "masks" / f"{nasty}.png")
    (root / "train" / "masks" / f"{nasty}.png").write_text("no mask")
    page = page_of(tmp_path, *checked(root))
    assert len(page.images()) == 1 and "b" not in {tag for tag, _ in page.tags}
    assert page.texts.count(f"{nasty}.png (no image, or of an unknown format)") == 1
    assert str(root / "train" / "masks" / f"{nasty}.png") in page.texts


def test_page_loads_nothing(clean, tmp_path):
    root = shutil.copytree(clean, tmp_path / "data")
    FAULTS["0 and 255"].break_it(root)
    page = page_of(tmp_path, *checked(root))
    policy = page.named("meta")[2]
    assert policy["http-equiv"] == "Content-Security-Policy" and policy["content"].startswith("default-src 'none';")
    assert {"link", "script", "iframe", "object"} & {tag for tag, _ in page.tags} == set()
    assert all(attrs["src"].startswith("data:") for attrs in page.named("img"))
    assert not re.search(r"url\(|@import|http:|https:", (tmp_path / "page.html").read_text())


def _luminance(color):
    """Relative luminance of "#rrggbb". Source: Web Content Accessibility Guidelines 2.1."""
    srgb = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in srgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# Colours of text.
INK = ("text", "muted", "error", "warning", "info", "fit", "first", "second")


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read(tmp_path, scheme):
    """With a contrast of 4.5 at least, the guidelines' level AA."""
    write_html(report_of(), tmp_path / "page.html")
    blocks = re.findall(r":root \{(.*?)\}", (tmp_path / "page.html").read_text(), flags=re.DOTALL)
    colors = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", blocks[scheme]))
    assert colors.keys() == {"back", "line", "bar", *INK}
    pairs = [(name, "back") for name in INK] + [("text", "bar")]
    for text, back in pairs:
        dark, light = sorted(_luminance(colors[name]) for name in (text, back))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, back)


def test_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "file" / "page.html", "(Not a directory|File exists)"),
    ):
        with pytest.raises(UserError, match=rf"{path} cannot be written: {reason}"):
            write_html(report_of(), path)
    write_html(report_of(), tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!DOCTYPE html>")


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_findings_classes_values_and_sizes(tmp_path):
    records = [
        ImageRecord("train", "a", "", "", width=20, height=10, raw_values={0: 150, 1: 50}),
        ImageRecord("validation", "b", "", "", width=10, height=10, raw_values={1: 60, 9: 25, 255: 15}),
    ]
    findings = [
        finding("mask-values-unknown", "error", "1 of 2 masks", "give a list"),
        finding("image-tiny", "warning", "2 images", "leave them out"),
    ]
    report = report_of(records, findings, {"train": [150, 50, 0, 0], "validation": [0, 60, 0, 0]})
    page = page_of(tmp_path, changed(report, class_weights=[0.5, 1.5, 1, 1]), None, LABEL_MAP)
    rows = [
        *("error", "mask-values-unknown", "1 of 2 masksFix: give a list"),
        *("warning", "image-tiny", "2 imagesFix: leave them out"),
        *("1", "disc", "50 (25.00%)", "60 (100.00%)", "1.50"),
        *("0", "ground", "150 (75.00%)", "0 (0.00%)", "0.50"),
        *("2", "box", "0 (0.00%)", "0 (0.00%)", "1.00"),
        *("3", "bar", "0 (0.00%)", "0 (0.00%)", "1.00"),
        *("0", "150 (50.00%)", "1", "ground"),
        *("1", "110 (36.67%)", "2", "disc"),
        *("9", "25 (8.33%)", "1", "no class"),
        *("255", "15 (5.00%)", "1", "ignored"),
        *("20x10", "1", "10x10", "1"),
    ]
    assert page.cells == rows
    bars = [attrs["style"] for attrs in page.named("td") if "style" in attrs]
    assert bars[:4] == ["--share: 25.00%", "--share: 100.00%", "--share: 75.00%", "--share: 0.00%"]
    assert bars[8:10] == ["--share: 50.00%", "--share: 36.67%"] and bars[-1] == "--share: 50.00%"
    swatches = [attrs["style"] for attrs in page.named("span") if attrs.get("class") == "swatch"]
    assert swatches == ["background: #006400", "background: #c80000", "background: #0000fa", "background: #fac800"]
    assert {"class": "error"} in page.named("td") and {"class": "verdict error"} in page.named("p")


def test_long_tables_are_cut(tmp_path):
    records = [
        ImageRecord("train", str(i), "", "", width=30 + i, height=20 + i, raw_values={i: 600}) for i in range(50)
    ]
    page = page_of(tmp_path, report_of(records))
    assert "and 10 more values" in page.texts and "50 sizes in all, short sides 20 to 69" in page.texts
    assert len(page.cells) == 40 * 4 + 10 * 2


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_stray_values_glare_however_few(clean, tmp_path):
    """One pixel in 960x720, of which one in sixteen is shown."""
    root = shutil.copytree(clean, tmp_path / "data")
    photo, mask = draw_scene(1, (960, 720))
    mask.putpixel((501, 302), 77)
    replace(image_of(root, 1), photo)
    replace(mask_of(root, 1), mask)
    report, dataset, class_map = checked(root)
    image, mask = page_of(tmp_path, report, dataset, changed(class_map, palette=LABEL_MAP.palette)).images()
    assert image.size == mask.size == (240, 180)
    found = np.argwhere(close_to(NO_CLASS_COLOR, mask, 90))
    assert len(found) and (np.abs(found - [302 // 4, 501 // 4]) <= 1).all()
    assert np.abs(np.asarray(image).astype(int) - np.asarray(photo.resize((240, 180)))).mean() < 5


def test_ignored_pixels_are_dark_and_others_blended(clean, tmp_path):
    root = shutil.copytree(clean, tmp_path / "data")
    replace(image_of(root, 1), Image.new("RGB", (48, 64), (100, 100, 100)))
    mask = np.full((64, 48), 2, np.uint8)
    mask[:32] = 255
    replace(mask_of(root, 1), mask)
    report, dataset, class_map = checked(root)
    [blank] = [found for found in report.findings if found.kind == "image-blank"]
    page = page_of(tmp_path, changed(report, findings=[blank]), dataset, changed(class_map, palette=LABEL_MAP.palette))
    image, mask = page.images()
    assert image.size == mask.size == (180, 240)
    assert close_to([100] * 3, image, 3).all()
    assert close_to([60] * 3, np.asarray(mask)[:112], 4).all()
    assert close_to([40, 40, 190], np.asarray(mask)[128:], 6).all()  # 0.4 of the photo, 0.6 of the class's colour


@pytest.mark.parametrize(
    "kind, is_alone", [("mask-interpolated", True), ("mask-lossy", True), ("mask-constant", False)]
)
def test_masks_with_spoilt_borders_are_shown_alone(clean, tmp_path, kind, is_alone):
    report, dataset, class_map = checked(clean)
    found = finding(kind, "warning", "odd", "mend it", ["train/scene_01"])
    class_map = changed(class_map, palette=LABEL_MAP.palette)
    _, mask = page_of(tmp_path, changed(report, findings=[found]), dataset, class_map).images()
    in_colors = sum(close_to(color, mask, 40) for color in LABEL_MAP.palette) > 0
    assert (in_colors.mean() > 0.9) == is_alone


def test_masks_without_known_classes(clean, tmp_path):
    """Values that differ have colours that differ."""
    root = shutil.copytree(clean, tmp_path / "data")
    FAULTS["0 and 255"].break_it(root)
    report, dataset, _ = checked(root)
    _, mask = page_of(tmp_path, report, dataset).images()[:2]
    inside = ids(mask_of(root, int(report.findings[0].files[0][-2:]))) == 255
    inside = np.asarray(Image.fromarray(inside).resize(mask.size))
    colors = [np.median(np.asarray(mask)[area], axis=0) for area in (inside, ~inside)]
    assert np.abs(colors[0] - colors[1]).max() > 60


def test_worst_files_in_pictures_the_others_by_name(clean, tmp_path):
    report, dataset, class_map = checked(clean)
    keys = [record.key for record in report.records]
    found = changed(finding("image-tiny", "warning", "tiny", "leave them out", keys), count=500)
    page = page_of(tmp_path, changed(report, findings=[found]), dataset, class_map)
    assert len(page.images()) == 2 * 6 and len(page.named("figure")) == 6
    assert [text for text in page.texts if text in keys] == keys
    assert ", 488 more" in page.texts


def test_page_stays_small(clean, tmp_path):
    """Twenty findings about pictures of noise, which JPEG can compress least."""
    root, rng = shutil.copytree(clean, tmp_path / "data"), np.random.default_rng(0)
    replace(image_of(root, 1), rng.integers(256, size=(320, 320, 3), dtype=np.uint8), ".png")
    replace(mask_of(root, 1), rng.integers(4, size=(320, 320), dtype=np.uint8), ".png")
    report, dataset, class_map = checked(root)
    findings = [finding(f"kind-{i}", "warning", "noise", "none", ["train/scene_01"] * 500) for i in range(20)]
    page = page_of(tmp_path, changed(report, findings=findings), dataset, class_map)
    assert len(page.named("img")) == 20 * 6 * 2
    assert (tmp_path / "page.html").stat().st_size < 25_000_000  # pages of photos have a tenth


def test_file_that_cannot_be_read_is_shown_by_its_other_half(clean, tmp_path):
    root = shutil.copytree(clean, tmp_path / "data")
    mask_of(root, 1).write_bytes(b"")
    image_of(root, 2).write_text("no image")
    page = page_of(tmp_path, *checked(root))
    assert [attrs["alt"] for attrs in page.named("img")] == ["image", "mask"]
    for file in (mask_of(root, 1), image_of(root, 2)):
        assert str(file) in page.texts and f"{file.name} (no image, or of an unknown format)" in page.texts


def test_images_and_masks_alone(clean, tmp_path):
    root = shutil.copytree(clean, tmp_path / "data")
    mask_of(root, 1).unlink()
    image_of(root, 2).unlink()
    report, dataset, class_map = checked(root)
    page = page_of(tmp_path, report, dataset, changed(class_map, palette=LABEL_MAP.palette))
    assert [attrs["alt"] for attrs in page.named("img")] == ["image", "mask"]
    mask = page.images()[1]
    assert (sum(close_to(color, mask, 40) for color in LABEL_MAP.palette) > 0).mean() > 0.9


def test_copies_stand_side_by_side(clean, tmp_path):
    """Two frames of one film in validation are most like each other; what counts is their like in training."""
    root = shutil.copytree(clean, tmp_path / "data")
    shot = Image.open(image_of(root, 1)).convert("RGB")
    for index, brightness in ((8, 1.1), (10, 1.12)):
        replace(image_of(root, index), shot.point(lambda value, by=brightness: min(255, round(value * by))))
    replace(image_of(root, 9), Image.open(image_of(root, 4)).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    replace(image_of(root, 11), Image.open(image_of(root, 5)))
    for source, target in ((6, 11), (2, 7), (0, 3)):
        replace(mask_of(root, target), Image.open(mask_of(root, source)))
    report, dataset, class_map = checked(root)
    assert {"near-duplicate-across-splits", "duplicate-across-splits"} <= {found.kind for found in report.findings}

    def pairs(kind):
        found = [found for found in report.findings if found.kind == kind]
        page = page_of(tmp_path, changed(report, findings=found), dataset, class_map)
        assert {"class": "together"} in page.named("div")
        listed = [text for text in page.texts if re.fullmatch(r"(train|validation)/scene_\d\d", text)]
        return [{first[-2:], second[-2:]} for first, second in zip(listed[::2], listed[1::2], strict=True)]

    assert pairs("duplicate-across-splits") == [{"05", "11"}]
    assert pairs("near-duplicate-across-splits") == [{"08", "01"}, {"10", "01"}, {"09", "04"}]
    assert pairs("mask-repeated") == [{"00", "03"}, {"02", "07"}, {"06", "11"}]


def test_images_inside_a_hub_dataset_and_none_at_all(clean, tmp_path):
    report, dataset, class_map = checked(clean)
    found = finding("image-tiny", "warning", "tiny", "leave it out", ["validation/scene_09"])
    report = changed(report, findings=[found])
    rows = {split: rows.map(lambda row: row) for split, rows in dataset.splits.items()}
    inside = changed(dataset, splits=DatasetDict(rows))
    expected = page_of(tmp_path, report, dataset, class_map).named("img")
    assert page_of(tmp_path, report, inside, class_map).named("img") == expected
    page = page_of(tmp_path, report, None, class_map)
    assert page.named("img") == [] and "validation/scene_09" in page.texts


def test_images_of_four_channels(clean, tmp_path):
    root = shutil.copytree(clean, tmp_path / "data")
    for index in range(12):
        picture = Image.open(image_of(root, index)).convert("RGBA")
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        replace(image_of(root, index), picture)
    each_mask(root, lambda mask: mask * 0 + 1, only=[4])
    report, dataset, class_map = checked(root, "--num_channels", "4")
    images = page_of(tmp_path, report, dataset, class_map).images()
    with Image.open(image_of(root, 4)) as picture:
        photo = np.asarray(picture.resize((240, 180), Image.Resampling.NEAREST))[..., :3]
    assert len(images) == 2 and np.abs(np.asarray(images[0]).astype(int) - photo).mean() < 5
