"""The measures behind the findings, against slow oracles and literals; scanning, sampling and the quick check."""

import itertools
import json
import logging
import re
from dataclasses import replace

import datasets
import numpy as np
import pytest
from factories.broken_datasets import NAMES, cut, draw_scene, each_mask, image_of, make_clean, mask_of
from PIL import Image

from checks.alignment import alignment
from checks.duplicates import best_matches, difference_hash, mirrored, normalized_thumbnails, thumbnail
from checks.judge import find_faults, orphan_faults, raise_on_errors
from checks.records import DatasetReport, Finding
from checks.scan import scan
from checks.values import count_class_pixels, transitions
from cli_utils import UserError
from data.arguments import DatasetArguments
from data.classes import ClassMap
from data.image_files import ReadBy, Turned
from data_utils import load_data, load_segmentation_dataset

FOUR = ClassMap(NAMES)


def load(root):
    return load_segmentation_dataset(dataset_dir=root)


# ---- interpolated masks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, expected",
    [
        ("00033333", (1, 0, {})),  # two areas, as drawn
        ("00012333", (1, 1, {1: 1, 2: 1})),
        ("33321000", (1, 1, {1: 1, 2: 1})),
        ("00011222", (1, 1, {1: 1})),
        ("00053333", (1, 0, {})),  # a thin thing that is not in between
        ("00015333", (1, 0, {})),  # nor is all of this
        ("00011111", (0, 0, {})),  # there is nothing between 0 and 1
        ("00012222000", (2, 1, {1: 1})),
        ("01230123", (0, 0, {})),  # no areas
        ("0001232323232333", (0, 0, {})),  # too far apart
    ],
)
def test_transitions_of_a_row(row, expected):
    row = np.array([[int(value) for value in row]], np.uint8)
    assert transitions(row) == transitions(row.T) == expected


def slow_transitions(mask):
    crossings, ramps, values = 0, 0, {}
    for row in [*mask.tolist(), *mask.T.tolist()]:
        runs = [(value, len(list(run))) for value, run in itertools.groupby(row)]
        areas = [i for i, (_, length) in enumerate(runs) if length >= 3]
        for left, right in itertools.pairwise(areas):
            between = runs[left + 1 : right]
            ends = sorted((runs[left][0], runs[right][0]))
            if sum(length for _, length in between) > 8 or ends[1] - ends[0] < 2:
                continue
            crossings += 1
            if between and all(ends[0] < value < ends[1] for value, _ in between):
                ramps += 1
                for value, _ in between:
                    values[value] = values.get(value, 0) + 1
    return crossings, ramps, values


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_transitions_against_loops(dtype):
    rng = np.random.default_rng(0)
    for _ in range(20):
        coarse = rng.integers(0, 7, (5, 6))
        mask = coarse.repeat(rng.integers(1, 6, 5), axis=0).repeat(rng.integers(1, 6, 6), axis=1).astype(dtype)
        noisy = np.where(rng.random(mask.shape) < 0.05, rng.integers(0, 7, mask.shape), mask).astype(dtype)
        assert transitions(noisy) == slow_transitions(noisy)


# ---- duplicates -----------------------------------------------------------------------------------------------------


def test_difference_hash_of_a_ramp():
    ramp = Image.fromarray(np.tile(np.arange(0, 180, 20, dtype=np.uint8), (8, 1)))
    assert difference_hash(ramp) == 2**64 - 1
    assert difference_hash(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
    one = np.zeros((8, 9), np.uint8)
    one[0, 1] = 1  # the first cell is darker than the second
    assert difference_hash(Image.fromarray(one)) == 2**63


def prints(pictures):
    pictures = [picture.convert("L") for picture in pictures]
    hashes = np.array([difference_hash(picture) for picture in pictures], np.uint64)
    return hashes, normalized_thumbnails([thumbnail(picture) for picture in pictures])


def test_mirrored_is_the_print_of_the_mirror_image():
    pictures = [draw_scene(seed)[0] for seed in range(5)]
    hashes, thumbnails = mirrored(*prints(pictures))
    expected = prints([picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures])
    assert max(np.bitwise_count(hashes ^ expected[0])) <= 1  # sums are rounded otherwise
    np.testing.assert_allclose(thumbnails, expected[1], atol=0.01)


def test_best_matches_against_loops(monkeypatch):
    monkeypatch.setattr("checks.duplicates.BLOCK", 3)
    pictures = [draw_scene(seed)[0] for seed in (0, 1, 2, 0, 3, 1, 0)]
    pictures[3] = pictures[3].resize((50, 40)).resize((64, 48))
    hashes, thumbnails = prints(pictures)
    assert best_matches(hashes, thumbnails, hashes, thumbnails, earlier=True)[:6].tolist() == [-1, -1, -1, 0, -1, 1]
    others = prints([draw_scene(seed)[0] for seed in (9, 1, 3)])
    assert best_matches(hashes, thumbnails, *others).tolist() == [-1, 1, -1, -1, 2, 1, -1]


def test_pictures_without_contrast_match_nothing():
    flat = prints([Image.new("RGB", (64, 48), color) for color in ("black", "black", "gray")])
    assert best_matches(*flat, *flat, earlier=True).tolist() == [-1, -1, -1]


def test_different_scenes_are_no_duplicates():
    found = prints([draw_scene(seed)[0] for seed in range(300)])
    assert best_matches(*found, *found, earlier=True).max() == -1


# ---- alignment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 48), (400, 300)])
@pytest.mark.parametrize("dx, dy", [(0, 0), (5, 3), (-4, 0), (0, -4)])
def test_alignment_finds_the_shift_back(size, dx, dy):
    scale = size[0] // 64
    picture, mask = draw_scene(5, size)
    moved = np.roll(np.asarray(mask), (dy * scale, dx * scale), (0, 1))
    found = alignment(picture.convert("L"), moved)
    x, y, score, unmoved = found[0]
    assert (x * size[0], y * size[1]) == pytest.approx((-dx * scale, -dy * scale), abs=1.1 * max(1, size[0] / 192))
    assert score > 0.3 and (unmoved < 0.7 * score if dx or dy else unmoved == pytest.approx(score))
    assert all(other[3] < 0.7 * score for other in found[1:])


@pytest.mark.parametrize("flip, place", [(np.fliplr, 1), (np.flipud, 2), (lambda m: m[::-1, ::-1], 3)])
def test_alignment_finds_flips(flip, place):
    picture, mask = draw_scene(4)
    found = alignment(picture.convert("L"), flip(np.asarray(mask)))
    unmoved = [score for *_, score in found]
    assert int(np.argmax(unmoved)) == place
    assert unmoved[place] == pytest.approx(alignment(picture.convert("L"), np.asarray(mask))[0][3])


def test_nothing_to_align():
    picture, mask = draw_scene(4)
    assert alignment(picture.convert("L"), np.zeros((48, 64), np.uint8)) == ()
    assert alignment(Image.new("L", picture.size), np.asarray(mask)) == ()
    assert alignment(Image.new("L", (15, 40)), np.zeros((40, 15), np.uint8)) == ()


# ---- scanning -------------------------------------------------------------------------------------------------------


def test_record(tmp_path):
    root = make_clean(tmp_path)
    record = scan(load(root), FOUR)[9]
    mask = np.asarray(Image.open(mask_of(root, 9)))
    assert (record.key, record.width, record.height) == ("validation/scene_09", 64, 48)
    assert (record.image_file, record.mask_file) == (str(image_of(root, 9)), str(mask_of(root, 9)))
    assert (record.image_mode, record.mask_mode, record.mask_size) == ("RGB", "L", (64, 48))
    assert record.raw_values == {value: int((mask == value).sum()) for value in range(4)}
    assert record.image_hash == difference_hash(Image.open(image_of(root, 9)).convert("L"))
    assert (record.problem, record.read_by, record.turned) == (None, ReadBy.IDS, Turned.AS_STORED)
    assert (record.lossy, record.oddities, record.orientation) == (False, (), 1)
    assert len(record.alignment) == 4


def test_processes_and_bytes_change_nothing(tmp_path):
    dataset = load(make_clean(tmp_path))
    alone = scan(dataset, FOUR, num_proc=1)
    assert scan(dataset, FOUR, num_proc=2) == alone
    in_memory = datasets.DatasetDict({split: rows.map(lambda row: row) for split, rows in dataset.items()})
    as_bytes = scan(in_memory, FOUR)
    assert [record.raw_values for record in as_bytes] == [record.raw_values for record in alone]
    assert [record.image_digest for record in as_bytes] == [record.image_digest for record in alone]


def test_a_color_that_no_class_has_is_named_with_the_nearest(tmp_path):
    root = make_clean(tmp_path)
    colors = np.array([[10, 10, 10], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    four = ClassMap(NAMES, colors.tolist())
    each_mask(root, lambda mask: colors[mask])
    red = colors.copy()
    red[1] = 190, 0, 0
    each_mask(root, lambda _: red[np.asarray(draw_scene(9)[1])], only=[9])
    [found] = [found for found in find_faults(scan(load(root), four), four) if found.severity == "error"]
    assert (found.kind, found.files) == ("mask-colors-unknown", ("validation/scene_09",))
    assert re.search(
        rf"scene_09.png has 190 0 0 on [\d.]+% of it \(nearest: {NAMES[1]} 200 0 0, 10 away\)", found.message
    )
    assert "--drop_classes NAME" in found.fix


def test_sample_is_seeded_and_parted_by_size(tmp_path):
    dataset = load(make_clean(tmp_path, counts=(12, 4)))
    names = [record.key for record in scan(dataset, FOUR, max_images=4, seed=1)]
    assert len(names) == 4 and sum(name.startswith("validation/") for name in names) == 1
    assert names == [record.key for record in scan(dataset, FOUR, max_images=4, seed=1)]
    assert any(names != [record.key for record in scan(dataset, FOUR, max_images=4, seed=s)] for s in range(2, 5))
    assert len(scan(dataset, FOUR, max_images=99)) == 16


def test_class_pixels_under_reduction(tmp_path):
    root = make_clean(tmp_path)
    class_map = ClassMap({0: "disc", 1: "box", 2: "bar"}, do_reduce_labels=True)
    counts = count_class_pixels(scan(load(root), class_map), class_map)
    masks = np.stack([np.asarray(Image.open(mask_of(root, i))) for i in range(8)])
    assert counts["train"].tolist() == [int((masks == value).sum()) for value in (1, 2, 3)]


def test_orphans_in_every_split(tmp_path):
    root = make_clean(tmp_path)
    mask_of(root, 1).unlink()
    image_of(root, 9).unlink()
    (root / "train" / "images" / "Thumbs.db").write_bytes(b"litter")
    data = load_data(DatasetArguments(dataset_dir=str(root)))
    alone, masks = orphan_faults(data)
    assert (alone.kind, alone.files) == ("image-without-mask", (str(image_of(root, 1)),))
    assert (masks.kind, masks.files, masks.count) == ("mask-without-image", (str(mask_of(root, 9)),), 1)
    assert alone.severity == masks.severity == "warning"
    [listed] = orphan_faults(replace(data, layout="COCO", masks_alone=[]))  # on purpose, it may be
    assert (listed.kind, listed.severity) == ("image-without-mask", "info")


# ---- the report -----------------------------------------------------------------------------------------------------


def report_of(*severities):
    findings = [Finding(f"kind-{severity}", severity, "what", "how") for severity in severities]
    return DatasetReport("data", "CamVid", {"train": 1}, {0: "a"}, {"train": [5]}, [], findings, 1.0)


@pytest.mark.parametrize(
    "severities, code, strict, verdict",
    [
        ((), 0, 0, "fit for training"),
        (("info",), 0, 0, "fit for training"),
        (("warning", "info"), 0, 1, "fit for training, but look at the warnings: 0 errors and 1 warning"),
        (("error", "warning", "warning"), 2, 2, "not fit for training: 1 error and 2 warnings"),
    ],
)
def test_verdict_and_exit_code(severities, code, strict, verdict):
    report = report_of(*severities)
    assert (report.exit_code(), report.exit_code(strict=True), report.verdict()) == (code, strict, verdict)
    assert json.loads(json.dumps(report.to_json()))["verdict"] == verdict


def test_findings_keep_the_worst_twenty(tmp_path):
    root = make_clean(tmp_path, counts=(30, 4))
    for i, file in enumerate(sorted((root / "train" / "masks").iterdir())):
        mask = np.array(Image.open(file))
        mask[: i + 1, 0] = 9
        Image.fromarray(mask).save(file)
    [found] = [found for found in find_faults(scan(load(root), FOUR), FOUR) if found.severity == "error"]
    assert (found.kind, found.count, len(found.files)) == ("mask-values-unknown", 30, 20)
    assert found.files[0] == "train/scene_29"


# ---- a sample -------------------------------------------------------------------------------------------------------


def findings_of_sample(root, class_map=FOUR):
    return find_faults(scan(load(root), class_map, max_images=100, progress=False), class_map, 48, complete=False)


def test_sample_of_a_clean_dataset(tmp_path):
    assert findings_of_sample(make_clean(tmp_path)) == []


def test_findings_of_several_kinds(tmp_path):
    root = make_clean(tmp_path)
    each_mask(root, lambda mask: mask + 1)
    cut(image_of(root, 2))
    assert [(finding.kind, finding.count) for finding in findings_of_sample(root)] == [
        ("file-truncated", 1),
        ("mask-reduction-needed", 11),
    ]


def test_a_sample_is_silent_on_what_it_cannot_know(tmp_path):
    root = make_clean(tmp_path)
    five = ClassMap(NAMES | {4: "cloud"})
    assert [found.kind for found in find_faults(scan(load(root), five), five, 48)] == ["class-nowhere"]
    assert findings_of_sample(root, five) == []


def test_errors_are_raised_together_and_warnings_logged(caplog):
    caplog.set_level(logging.INFO)
    findings = report_of("error", "warning", "info").findings + [Finding("second", "error", "that too", "do this")]
    with pytest.raises(UserError) as caught:
        raise_on_errors(findings, "for all of it: python check_dataset.py data")
    assert str(caught.value).splitlines() == [
        "[kind-error] what: how",
        "  [second] that too: do this",
        "  for all of it: python check_dataset.py data",
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    raise_on_errors(report_of("warning").findings)
