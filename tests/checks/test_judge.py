"""One judge: whoever asks about a fault hears the same finding and advice; nothing is decoded or said twice."""

import logging
import re
import shutil
from collections import Counter
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import pytest
from factories.broken_datasets import (
    FAULTS,
    NAMES,
    cut,
    draw_scene,
    each_mask,
    ids,
    image_of,
    make_clean,
    mask_of,
    replace,
)
from factories.datasets import load_splits
from PIL import Image

from checks import judge
from checks.judge import find_faults, judge_example, orphan_faults, prepare_and_judge, prepare_dataset, raise_on_errors
from checks.records import Finding
from checks.scan import scan
from cli_utils import UserError
from data.arguments import ClassArguments, DatasetArguments
from data.classes import ClassMap
from data.image_files import StoredFile
from data.preparation import prepare_one, undecoded
from data_utils import find_classes, load_data

# Errors that only a close look shows: of runs of pixels, of copies, of alignment.
CLOSE = {"mask-interpolated", "duplicate-across-splits", "mask-shifted", "mask-flipped"}
# Errors that a single example shows, whatever the others hold.
SINGLE = {
    *("file-empty", "file-truncated", "file-unreadable", "image-depth", "mask-turned", "size-mismatch", "mask-colors"),
    *("mask-colors-unknown", "mask-colors-lossy", "mask-lossy", "mask-instance-ids", "mask-reduced-twice"),
    *("mask-values-unknown", "mask-values-scaled", "mask-reduction-needed"),
}
# Those of which no dataset or no classes can be made, so that there is nothing to judge.
UNCLEAR = ("not-loadable", "classes-unclear")
ERRORS = [name for name, fault in FAULTS.items() if fault.severity == "error" and fault.kind not in UNCLEAR]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make_clean(tmp_path_factory.mktemp("clean") / "data")


@pytest.fixture
def broken(clean, tmp_path):
    """Name of a fault → dataset and class map; an error that keeps the classes from being found is raised."""

    def make(name):
        root = shutil.copytree(clean, tmp_path / "data")
        FAULTS[name].break_it(root)
        data = load_data(DatasetArguments(dataset_dir=str(root)))
        return data.splits, lambda: find_classes(data, ClassArguments())

    return make


def advice(error: UserError) -> dict[str, str]:
    """Kind → all after the message's facts, line by line."""
    return dict(
        re.match(r"\s*\[([a-z0-9-]+)\] (.*)", line).groups() for line in str(error).splitlines() if "[" in line
    )


@pytest.mark.parametrize("name", ERRORS)
def test_all_say_the_same(broken, monkeypatch, tmp_path, name):
    """The check, training from its sample, training from all pairs, and a stream."""
    fault = FAULTS[name]
    dataset, classes = broken(name)
    try:
        class_map = classes()
    except UserError as error:  # without a list, from the values; the check then judges without classes
        [found] = [f for f in find_faults(scan(dataset, None, progress=False), None, 48) if f.severity == "error"]
        assert found.kind == fault.kind
        if "class list" in name and fault.kind == "mask-binary-255":
            assert advice(error)[found.kind].endswith(f"{found.message}: {found.fix}")
        return
    faults = find_faults(scan(dataset, class_map, progress=False), class_map, 48)
    [found] = [found for found in faults if found.severity == "error"]
    assert found.kind == fault.kind
    sentence = f"{found.message}: {found.fix}"

    def raised(call, *args, **options):
        with pytest.raises(UserError) as caught:
            call(*args, **options)
        return advice(caught.value)

    with monkeypatch.context() as patch:
        patch.setattr(judge, "prepare_pairs", None)  # nothing is prepared before the sample is judged
        assert raised(prepare_and_judge, dataset, class_map, 48) == {found.kind: sentence}
    if fault.kind not in CLOSE:
        for number, options in enumerate(({"check_data": False}, {})):
            call = prepare_dataset if number else prepare_and_judge
            assert raised(call, dataset, class_map, cache_dir=tmp_path / "cache", **options) == {found.kind: sentence}
    if fault.kind in SINGLE:
        split, row = next(
            (split, row)
            for split, rows in dataset.items()
            for row in undecoded(rows)
            if f"{split}/{row['name']}" in found.files or {row["image"]["path"], row["label"]["path"]} & {*found.files}
        )
        files = (StoredFile.of(row[column], row["name"]) for column in ("image", "label"))
        record, label, _ = prepare_one(*files, class_map)
        assert label is None
        [(kind, said)] = raised(judge_example, record, class_map).items()
        assert kind == found.kind and said.endswith(f": {found.fix}") and row["name"] in said


def test_every_error_is_of_a_known_reach():
    kinds = {FAULTS[name].kind for name in ERRORS}
    assert kinds >= CLOSE and kinds >= SINGLE


def test_value_254_is_explained_once(clean, tmp_path):
    """It used to be void by one judge and reduced twice by the other."""
    root = shutil.copytree(clean, tmp_path / "data")
    each_mask(root, lambda mask: mask - 2)
    with pytest.raises(UserError, match="mask-reduced-twice") as caught:
        prepare_dataset(load_splits(root), ClassMap(NAMES))
    assert "--ignore_values" not in str(caught.value)


def opened(monkeypatch):
    """Counts how often each file is decoded."""
    counts, original = Counter(), StoredFile.open
    monkeypatch.setattr(StoredFile, "open", lambda self: (counts.update([self.path]), original(self))[1])
    return counts


@pytest.mark.parametrize("sample", [100, 5])
def test_no_file_is_decoded_twice(clean, tmp_path, monkeypatch, sample):
    monkeypatch.setattr(judge, "QUICK_SAMPLE", sample)
    dataset, class_map = load_splits(clean), ClassMap(NAMES)
    plain = prepare_dataset(dataset, class_map, cache_dir=tmp_path / "one")
    counts = opened(monkeypatch)
    prepared = prepare_and_judge(dataset, class_map, 48, cache_dir=tmp_path / "other")
    assert len(counts) == 24 and set(counts.values()) == {1}
    for split, rows in prepared.items():
        assert rows["class_pixels"][:] == plain[split]["class_pixels"][:]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(rows["label"], plain[split]["label"], strict=True))
        masks = [np.asarray(Image.open(row["label"]["path"])) for row in undecoded(dataset[split])]
        assert all(np.array_equal(a, b) for a, b in zip(rows["label"], masks, strict=True))


@pytest.mark.parametrize("sample", [100, 5])
def test_nothing_is_said_twice(clean, tmp_path, monkeypatch, caplog, sample):
    """What is odd in the sample is odd in the whole, where it is counted."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(judge, "QUICK_SAMPLE", sample)
    root = shutil.copytree(clean, tmp_path / "data")
    each_mask(root, lambda mask: np.stack([mask] * 3, axis=-1))
    dataset, class_map = load_splits(root), ClassMap(NAMES | {4: "cloud"})
    caplog.clear()
    prepare_and_judge(dataset, class_map, 512, cache_dir=tmp_path / "cache")
    said = [record.getMessage() for record in caplog.records if record.name == "checks.judge"]
    assert [message.split("]")[0] for message in said] == [
        *("[image-upsampled", "[class-nowhere", "[mask-channels"),
    ]
    assert "all 12 images are enlarged" in said[0] and "1 of 5 classes never occurs: cloud" in said[1]
    caplog.clear()
    prepare_and_judge(dataset, class_map, 512, check_data=False, cache_dir=tmp_path / "cache")
    assert [record for record in caplog.records if record.name == "checks.judge"] == []


def test_a_fault_outside_the_sample_is_found_when_all_is_prepared(clean, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "QUICK_SAMPLE", 1)
    root = shutil.copytree(clean, tmp_path / "data")
    dataset = load_splits(root)
    looked_at = {record.key for record in scan(dataset, ClassMap(NAMES), max_images=1, progress=False)}
    index = next(i for i in range(8) if f"train/scene_{i:02d}" not in looked_at)
    file = mask_of(root, index)
    replace(file, np.where(ids(file) == 3, 9, ids(file)))
    message = rf"1 of 12 masks holds values that belong to no class \(train/{Path(file).stem} has 9\)"
    with pytest.raises(UserError, match=message):
        prepare_and_judge(dataset, ClassMap(NAMES), 48, cache_dir=tmp_path / "cache")


# ---- findings of records --------------------------------------------------------------------------------------------


def findings_of_sample(root, class_map=None):
    class_map = class_map or ClassMap(NAMES)
    records = scan(load_splits(root), class_map, max_images=100, progress=False)
    return find_faults(records, class_map, 48, complete=False)


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
    assert [found.kind for found in find_faults(scan(load_splits(root), five), five, 48)] == ["class-nowhere"]
    assert findings_of_sample(root, five) == []


def test_a_color_that_no_class_has_is_named_with_the_nearest(tmp_path):
    root = make_clean(tmp_path)
    colors = np.array([[10, 10, 10], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    four = ClassMap(NAMES, colors.tolist())
    each_mask(root, lambda mask: colors[mask])
    red = colors.copy()
    red[1] = 190, 0, 0
    each_mask(root, lambda _: red[np.asarray(draw_scene(9)[1])], only=[9])
    [found] = [found for found in find_faults(scan(load_splits(root), four), four) if found.severity == "error"]
    assert (found.kind, found.files) == ("mask-colors-unknown", ("validation/scene_09",))
    assert re.search(
        rf"scene_09.png has 190 0 0 on [\d.]+% of it \(nearest: {NAMES[1]} 200 0 0, 10 away\)", found.message
    )
    assert "--drop_classes NAME" in found.fix


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
    [listed] = orphan_faults(changed(data, layout="COCO", masks_alone=[]))  # on purpose, it may be
    assert (listed.kind, listed.severity) == ("image-without-mask", "info")


def test_errors_are_raised_together_and_warnings_logged(caplog):
    caplog.set_level(logging.INFO)
    findings = [Finding(f"kind-{severity}", severity, "what", "how") for severity in ("error", "warning", "info")]
    findings.append(Finding("second", "error", "that too", "do this"))
    with pytest.raises(UserError) as caught:
        raise_on_errors(findings, "for all of it: python check_dataset.py data")
    assert str(caught.value).splitlines() == [
        "[kind-error] what: how",
        "  [second] that too: do this",
        "  for all of it: python check_dataset.py data",
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    raise_on_errors([Finding("kind-warning", "warning", "what", "how")])
