"""What the values in masks tell: lossy and interpolated masks, ids shifted or scaled, classes that are missing.

A cause is named once: values that compression or interpolation brought about are not reported as unknown classes too.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from checks.records import (
    CLEAN_COPY,
    ERROR,
    INFO,
    WARNING,
    Finding,
    ImageRecord,
    finding,
    keys_of,
    looked_at,
    part_finding,
    part_of,
)
from cli_utils import agree, count_of, shorten
from data.classes import ClassMap
from data.image_files import COLOR_TOLERANCE, share_of
from data.mask_values import LOSSY, MaskValues, doubt_values
from data.preparation import class_pixels
from metrics_utils import IGNORE_INDEX

# Pixels along a row or column: what counts as an area, and as what interpolation may put between two areas.
MIN_AREA_RUN, MAX_RAMP = 3, 8
# Share of borders with ramps. Measured on masks as they were drawn: at most 0.04 (CamVid, the toy dataset) and 0.35
# (tiny random shapes, and then of one or two values); resized, softened or compressed: 0.1 to 1, mostly above 0.5.
MANY_RAMPS = 0.5  # a share that tells by itself, or with one value that is no class
SOME_RAMPS = 0.12  # a share that tells with several values
SOME_RAMPS_VALUES = 4  # that many
MIN_RAMPS = 10  # in a mask
IMBALANCE = 1000  # times as many pixels
MOSTLY_IGNORED = 0.5  # share of the pixels
# Kind, message and fix of the finding.
BINARY_MASKS = (
    "mask-binary-255",
    "all masks hold the values 0 and 255 alone: they are pictures of two classes, but 255 means ignored",
    "give a list of two classes with --id2label, of which 255 is the second; check_dataset.py --fix OUT_DIR writes "
    "them with 0 and 1",
)
# Layout → the value that stands for void in the dataset that it is named after.
KNOWN_VOID = {"CamVid": 11}
# Names that lists of classes give to what is no class.
VOID_NAMES = ("void", "unlabeled", "unlabelled", "unknown", "ignore", "ignored", "undefined", "nodata", "no data")


# ---- interpolated masks ---------------------------------------------------------------------------------------------


def transitions(mask: np.ndarray) -> tuple[int, int, dict[int, int]]:
    """Counts how the areas of a mask meet, along its rows and its columns.

    An area shows as a run of at least 3 equal values. Where two areas meet whose values differ by two or more, a mask
    that somebody drew has nothing in between; one that was resized with interpolation, or softened, has one or more
    thin runs of values in between.

    Args:
        mask: integers (H, W).

    Returns:
        Places where two such areas meet, at most 8 pixels apart; how many of these have a ramp, that is thin runs all
        of whose values lie strictly between; and value → how many ramps it stands in.
    """
    crossings, ramps, values = _row_transitions(mask)
    more = _row_transitions(np.ascontiguousarray(mask.T))
    found, counts = np.unique(np.concatenate([values, more[2]]), return_counts=True)
    return crossings + more[0], ramps + more[1], dict(zip(found.tolist(), counts.tolist(), strict=True))


def _row_transitions(mask: np.ndarray) -> tuple[int, int, np.ndarray]:
    height, width = mask.shape
    pixels, change = mask.reshape(-1), np.empty(mask.size, bool)
    np.not_equal(pixels[1:], pixels[:-1], out=change[1:])
    change[::width] = True
    starts = np.flatnonzero(change)
    lengths = np.diff(starts, append=mask.size)
    values = pixels[starts].astype(np.int64)

    areas = np.flatnonzero(lengths >= MIN_AREA_RUN)
    left, right = areas[:-1], areas[1:]
    gap = starts[right] - starts[left] - lengths[left]
    low, high = np.minimum(values[left], values[right]), np.maximum(values[left], values[right])
    meet = (starts[left] // width == starts[right] // width) & (gap <= MAX_RAMP) & (high - low >= 2)

    # Each thin run belongs to the meeting of the last area before it with the next one.
    thin = np.flatnonzero(lengths < MIN_AREA_RUN)
    meeting = np.searchsorted(areas, thin) - 1
    inside = (meeting >= 0) & (meeting < len(left))
    thin, meeting = thin[inside], meeting[inside]
    between = (low[meeting] < values[thin]) & (values[thin] < high[meeting])
    spoilt = np.bincount(meeting[~between], minlength=len(left)) > 0
    ramp = meet & (gap > 0) & ~spoilt
    return int(meet.sum()), int(ramp.sum()), values[thin[ramp[meeting]]]


# ---- values ---------------------------------------------------------------------------------------------------------


def value_faults(records: Sequence[ImageRecord], class_map: ClassMap | None) -> list[Finding]:
    """What the values in masks tell: lossy and interpolated masks, 0/255, ids shifted, scaled or of other classes."""
    classes = set(class_map.class_values) if class_map else set()
    known = class_map.value_ids if class_map else range(IGNORE_INDEX + 1)
    unknown = {record.key: sorted(value for value in record.raw_values if value not in known) for record in records}
    findings = []

    def strays_of(record: ImageRecord) -> str:
        return f"{record.key} has {shorten(map(str, unknown[record.key]), 5)}"

    if class_map is None:  # else the list of classes says which values are classes
        masks = [MaskValues(record.key, record.raw_values, record.lossy) for record in records]
        doubt = doubt_values(masks)
        if doubt:
            doubtful = sorted(records, key=lambda record: -len(record.raw_values))
            return [finding(doubt[0], ERROR, *doubt[1:], keys_of(doubtful))]
    lossy = sorted((record for record in records if record.lossy), key=lambda record: -len(unknown[record.key]))
    if lossy:
        harmed = [record for record in lossy if unknown[record.key]]
        message = part_of(lossy, records, "mask", "has/have lossy compression (JPEG or WebP), which changes values")
        if harmed:
            message += f"; {count_of(len(harmed), 'holds/hold values that belong to no class')}: "
            message += shorten(map(strays_of, harmed))
        fix = LOSSY
        findings.append(finding("mask-lossy", ERROR if harmed else WARNING, message, fix, keys_of(lossy)))
    exact, looked = [record for record in records if not record.lossy], looked_at(records)
    blurred = sorted((r for r in exact if _is_interpolated(r, classes)), key=lambda record: -record.ramps)
    if blurred:
        worst = blurred[0]
        message = (
            f"{part_of(blurred, looked, 'mask', 'was/were resized with interpolation, softened or compressed')}: in "
            f"{worst.key} {worst.ramps} of {count_of(worst.crossings, 'border')} have thin runs of other values in "
            f"between ({shorten(map(str, sorted(worst.ramp_values)), 5)})"
        )
        fix = "resize the original masks again, with nearest neighbour"
        severe = len(blurred) > 0.5 * len(looked) or any(unknown[record.key] for record in blurred)
        findings.append(finding("mask-interpolated", ERROR if severe else WARNING, message, fix, keys_of(blurred)))
    spoilt = set(keys_of(blurred))
    others = [record for record in exact if record.key not in spoilt]

    values = set().union(*(record.raw_values for record in others))
    is_ignored = class_map is None or IGNORE_INDEX not in class_map.class_values
    if values == {0, IGNORE_INDEX} and is_ignored:
        kind, message, fix = BINARY_MASKS
        chosen = sorted(others, key=lambda record: -record.raw_values.get(IGNORE_INDEX, 0))
        return [*findings, finding(kind, ERROR, message, fix, keys_of(chosen))]
    pictures = [record for record in others if record.raw_values.keys() == {0, IGNORE_INDEX}]
    if values == {0, 1, IGNORE_INDEX} and len(pictures) < len(others):
        said = "mask holds/hold 0 and 255 where others hold 0 and 1: there the object itself is ignored"
        findings += part_finding("mask-binary-mixed", WARNING, pictures, records, said, "write 1 instead of 255")
    strange = [record for record in others if unknown[record.key]]
    if strange:
        strange.sort(key=lambda r: -sum(r.raw_values[value] for value in unknown[r.key]))
        kind, what, fix = _explain_unknown(values, sorted(set().union(*(unknown[r.key] for r in strange))), class_map)
        message = part_of(strange, records, "mask", "holds/hold values that belong to no class")
        message += f" ({shorten(map(strays_of, strange))}). {what}"
        findings.append(finding(kind, ERROR, message, fix, keys_of(strange)))
    elif class_map is not None and others:
        findings += _doubtful_values(others, values, class_map)
    return findings


def _is_interpolated(record: ImageRecord, classes: set[int]) -> bool:
    """Whether the borders between areas are ramps.

    A class that lies between two others all along, as a one-pixel outline does, looks much the same. So one value
    alone tells only if it is no class, or one with areas of its own.
    """
    if record.ramps < max(MIN_RAMPS, SOME_RAMPS * record.crossings):
        return False
    often = {value: count for value, count in record.ramp_values.items() if count > 0.05 * record.ramps}
    share = record.ramps / record.crossings
    if len(often) > 1:
        return share > MANY_RAMPS or len(often) >= SOME_RAMPS_VALUES
    [(value, count)] = often.items()
    has_areas = record.raw_values[value] > 4 * count and share > 0.8
    return has_areas or bool(classes and value not in classes and share > MANY_RAMPS)


def _explain_unknown(values: set[int], unknown: list[int], class_map: ClassMap | None) -> tuple[str, str, str]:
    """Kind, cause and fix for masks with values that belong to no class."""
    if unknown[-1] < 0:
        flag, named = " ".join(map(str, unknown)), " and ".join(map(str, unknown))
        fix = f"--ignore_values {flag} if {named} {agree(len(unknown), 'stands/stand')} for no data or void"
        return "mask-values-negative", "Ids of classes start from 0; programs write less where nothing is known", fix
    if class_map is None or (unknown[-1] > IGNORE_INDEX and len(unknown) > 2):
        return (
            "mask-instance-ids",
            f"Values reach {unknown[-1]}: they count objects, or belong to a much larger list of classes",
            "map them to classes with --label_map FILE, or export masks of class ids",
        )
    known = class_map.describe_values() + "; label reduction is on" * class_map.do_reduce_labels
    if unknown == [IGNORE_INDEX - 1]:
        return (
            "mask-reduced-twice",
            "254 is what 0 becomes when labels are reduced twice, and class 0 became 255",
            "write the masks again from the originals, not reduced; --do_reduce_labels reduces them in reading",
        )
    factor = _scale(values, class_map.class_values[-1])
    if factor:
        return (
            "mask-values-scaled",
            f"They were multiplied by about {factor:g} to be seen; {known}",
            f"divide them by {factor:g}, or name them in --label_map FILE",
        )
    if class_map.suggests_reduction(unknown) and 0 not in values:
        return "mask-reduction-needed", f"{known}; 0 never occurs, so ids count from 1", "--do_reduce_labels"
    fix = "give the list of these classes with --id2label"
    if len(unknown) < 3:
        flag, named = " ".join(map(str, unknown)), " and ".join(map(str, unknown))
        fix = f"--ignore_values {flag} if {named} {agree(len(unknown), 'stands/stand')} for void; else {fix}"
    if class_map.suggests_reduction(unknown):
        fix = f"--do_reduce_labels if 0 stands for unlabelled and ids count from 1; {fix}"
    return "mask-values-unknown", known, fix


def _scale(values: set[int], last: int) -> float | None:
    """What ids 0 … `last` may have been multiplied by to fill 0…255; None if the values do not look like it."""
    for found in (values, values - {IGNORE_INDEX}):
        factor = math.gcd(*found)
        if factor >= 10 and max(found) <= factor * last:
            return factor
    factor = IGNORE_INDEX / last if last else 0
    if factor >= 10 and len(values) > 2 and all(abs(v / factor - round(v / factor)) * factor <= 1 for v in values):
        return factor
    return None


def _doubtful_values(records: Sequence[ImageRecord], values: set[int], class_map: ClassMap) -> list[Finding]:
    """Values that are all valid, but fit the classes better one place further up or down."""
    classes, files = class_map.class_values, keys_of(records)
    if class_map.do_reduce_labels:
        down = set(range(class_map.num_labels)) <= values and class_map.num_labels not in values
        done = IGNORE_INDEX in values and 0 in values and class_map.num_labels not in values
        if down or done:
            message = (
                f"label reduction is on, so that 0 is ignored, yet the masks seem to be reduced already: value "
                f"{class_map.num_labels} never occurs, {'all below it do' if down else '0 and 255 both do'}"
            )
            return [finding("mask-reduced-already", WARNING, message, "--no_do_reduce_labels if 0 is a class", files)]
    elif classes[0] == 0 and 0 not in values and len(values - {IGNORE_INDEX}) > 1:
        message = f"0 never occurs ({class_map.id2label[class_map.value_ids[0]]}): ids may count from 1"
        return [
            finding("mask-reduction-needed", WARNING, message, "--do_reduce_labels if value 1 is the first", files)
        ]
    return []


# ---- classes --------------------------------------------------------------------------------------------------------


def count_class_pixels(records: Sequence[ImageRecord], class_map: ClassMap) -> dict[str, np.ndarray]:
    """Split → pixels by training id, int64 (num_labels,)."""
    counts: dict[str, np.ndarray] = {}
    for record in records:
        counts[record.split] = counts.get(record.split, 0) + class_pixels(record, class_map)
    return counts


def void_faults(records: Sequence[ImageRecord], class_map: ClassMap, layout: str | None = None) -> list[Finding]:
    """Classes that are none: values and names that stand for void where others use them; and pixels without data.

    layout: a key of `data.layouts.LAYOUTS`.
    """
    findings, values = [], set().union(*(record.raw_values for record in records))
    void = KNOWN_VOID.get(layout)
    # Only where classes are named after values does nobody say what the value is.
    if void in values and class_map.id2label.get(class_map.value_ids.get(void)) == f"class_{void}":
        holding = [record for record in records if void in record.raw_values]
        share = _share(holding, records, {void})
        message = f"value {void} is void in {layout}, and a class here ({share} of the pixels)"
        fix = f"--ignore_values {void}, or give the list of classes with --id2label"
        findings.append(finding("class-void", WARNING, message, fix, keys_of(holding)))
    for i, name in class_map.id2label.items():
        if name.lower().strip("_ ").replace("_", " ") not in VOID_NAMES:
            continue
        raw = {value for value, of in class_map.value_ids.items() if of == i}
        holding = [record for record in records if raw & record.raw_values.keys()]
        if holding:
            message = f"{name} is trained and scored as a class ({_share(holding, records, raw)} of the pixels)"
            fix = f"--drop_classes {name} ignores it" if " " not in name else f"--drop_classes '{name}' ignores it"
            findings.append(finding("class-void", INFO, message, fix, keys_of(holding)))
    without = sorted((record for record in records if record.nodata), key=lambda record: -record.nodata)
    if without:
        pixels, total = (sum(map(count, records)) for count in (lambda r: r.nodata, _pixels))
        message = (
            f"{part_of(without, records, 'mask', 'holds/hold')} {pixels:,} pixels ({share_of(pixels, total)}) without "
            "data, as the file states, or -9999 or NaN: ignored"
        )
        fix = "right if they are not to count; if the value is a class, name it with --id2label"
        findings.append(finding("mask-nodata", INFO, message, fix, keys_of(without)))
    kept = [record for record in records if record.nodata_class is not None]
    if kept:
        value = kept[0].nodata_class
        name = class_map.id2label.get(class_map.value_ids.get(value), "a class")
        said = f"mask states/state that {value} means no data, but it is the class {name}, and is trained as such"
        findings += part_finding("mask-nodata-class", WARNING, kept, records, said, f"--ignore_values {value}")
    near = sorted((record for record in records if record.near_colors), key=lambda record: -record.near_colors)
    if near:
        pixels, total = (sum(map(count, records)) for count in (lambda r: r.near_colors, _pixels))
        message = (
            f"{part_of(near, records, 'mask', 'holds/hold')} {pixels:,} pixels ({share_of(pixels, total)}) whose "
            f"colour is up to {COLOR_TOLERANCE} away from that of a class, and from no other: taken for it"
        )
        fix = f"nothing for training; {CLEAN_COPY} writes ids"
        findings.append(finding("mask-colors-near", INFO, message, fix, keys_of(near)))
    return findings


def _pixels(record: ImageRecord) -> int:
    return sum(record.raw_values.values())


def _share(part: Sequence[ImageRecord], records: Sequence[ImageRecord], values: set[int]) -> str:
    count = sum(record.raw_values.get(value, 0) for record in part for value in values)
    return share_of(count, sum(map(_pixels, records)))


def class_faults(records: Sequence[ImageRecord], class_map: ClassMap, complete: bool) -> list[Finding]:
    """Masks without any class, or with one alone; the only class that is left; pixels that are mostly ignored."""
    value_ids, findings = class_map.value_ids, []
    empty = [r for r in records if {value_ids.get(value) for value in r.raw_values} == {IGNORE_INDEX}]
    empty_keys = set(keys_of(empty))
    for split in dict.fromkeys(record.split for record in records):
        inside = [record for record in records if record.split == split]
        if all(record.key in empty_keys for record in inside) and split != "test":
            message = f"{split}: every pixel of {part_of(inside, inside, 'mask')} is ignored, as in {inside[0].name}"
            fix = "see --do_reduce_labels and --ignore_values"
            return [finding("split-all-ignored", ERROR if complete else WARNING, message, fix, keys_of(inside))]
    if empty:
        message = f"{part_of(empty, records, 'mask', 'is/are ignored entirely')}: {shorten(keys_of(empty))}"
        findings.append(finding("mask-all-ignored", WARNING, message, "label or leave out", keys_of(empty)))
    constant = [record for record in records if len(record.raw_values) == 1 and record.key not in empty_keys]
    ids = {value_ids.get(value) for record in records for value in record.raw_values} - {IGNORE_INDEX}
    if complete and len(ids) == 1 and len(constant) == len(records):
        said, fix = "mask holds/hold one and the same class: nothing can be learnt", "check how they were exported"
        severity = ERROR if any(record.split == "train" for record in records) else WARNING  # may be so in a test
        return findings + part_finding("masks-all-constant", severity, constant, records, said, fix)
    findings += _mostly_ignored(records, class_map)
    severity = WARNING if len(constant) > 0.5 * len(records) else INFO
    fix = "right if the images show nothing else; check some"
    return findings + part_finding(
        "mask-constant", severity, constant, records, "mask holds/hold one class and nothing else", fix
    )


def _mostly_ignored(records: Sequence[ImageRecord], class_map: ClassMap) -> list[Finding]:
    """Splits of which more pixels are ignored than trained on, or scored."""
    value_ids, findings = class_map.value_ids, []
    for split in dict.fromkeys(record.split for record in records):
        inside = [record for record in records if record.split == split]
        ignored = Counter()
        for record in inside:
            ignored.update({v: n for v, n in record.raw_values.items() if value_ids.get(v) == IGNORE_INDEX})
        total = sum(map(_pixels, inside))
        if ignored.total() >= MOSTLY_IGNORED * total:
            listed = ", ".join(f"value {v}: {share_of(n, total)}" for v, n in ignored.most_common(3))
            message = f"{split}: {share_of(ignored.total(), total)} of the pixels are ignored ({listed})"
            fix = "no score shows it; see --do_reduce_labels and --ignore_values, if these pixels are to count"
            findings.append(finding("pixels-mostly-ignored", WARNING, message, fix))
    return findings


def _class_alone(records: Sequence[ImageRecord], class_map: ClassMap) -> list[Finding]:
    """The only class that is left in the training masks, of several in the list: it would score 1.0."""
    value_ids, trained = class_map.value_ids, [record for record in records if record.split == "train"]
    values = set().union(*(record.raw_values for record in trained))
    left = {value_ids[value] for value in values} - {IGNORE_INDEX}
    if len(left) != 1 or class_map.num_labels == 1:
        return []
    ignored = sorted(value for value in values if value_ids[value] == IGNORE_INDEX)
    listed = f" (ignored: {shorten(map(str, ignored), 5)})" if ignored else ""
    message = f"{class_map.id2label[min(left)]} is the only class in the training masks{listed}: nothing to tell apart"
    fix = "see --do_reduce_labels, --ignore_values and --drop_classes"
    return [finding("class-alone", ERROR, message, fix, keys_of(trained))]


def presence_faults(records: Sequence[ImageRecord], class_map: ClassMap) -> list[Finding]:
    """Classes that cannot be learnt or measured, as they are not there; one that is rare. Of a whole dataset."""
    alone = _class_alone(records, class_map)
    if alone:
        return alone
    pixels = count_class_pixels(records, class_map)
    if "train" not in pixels:
        return []
    names, findings = class_map.id2label, []
    train, validation = pixels["train"], pixels.get("validation")
    nowhere = np.flatnonzero(sum(pixels.values()) == 0).tolist()
    if nowhere:
        listed = shorten((names[i] for i in nowhere), 8)
        message = f"{len(nowhere)} of {count_of(len(names), 'class/classes')} never "
        message += f"{agree(len(nowhere), 'occurs/occur')}: {listed}"
        fix = "right if the list of classes is a longer one; else check values against it"
        findings.append(finding("class-nowhere", WARNING, message, fix))
    untrained = [i for i in np.flatnonzero(train == 0).tolist() if i not in nowhere]
    if untrained:
        raw = {raw for raw, i in class_map.value_ids.items() if i in untrained}
        files = keys_of(record for record in records if raw & record.raw_values.keys())
        listed = shorten((names[i] for i in untrained), 8)
        phrase = "class/classes occurs/occur outside training only and cannot be learnt"
        message = f"{count_of(len(untrained), phrase)}: {listed}"
        findings.append(finding("class-not-in-train", WARNING, message, "split again, stratified by class", files))
    if validation is not None:
        unmeasured = np.flatnonzero((validation == 0) & (train > 0)).tolist()
        if unmeasured:
            listed = shorten((names[i] for i in unmeasured), 8)
            phrase = "class/classes never occurs/occur in validation and is/are not measured there"
            message = f"{count_of(len(unmeasured), phrase)}: {listed}"
            findings.append(finding("class-not-in-validation", INFO, message, "split again, stratified by class"))
    present = np.flatnonzero(train)
    if len(present) > 1 and train[present].max() > IMBALANCE * train[present].min():
        rare, common = present[train[present].argmin()], present[train[present].argmax()]
        message = (
            f"{names[common]} has {train[common] / train[rare]:,.0f} times as many training pixels as {names[rare]}"
        )
        findings.append(finding("class-imbalance", INFO, message, "--class_weights auto, or --loss ce+dice"))
    return findings


def split_faults(records: Sequence[ImageRecord]) -> list[Finding]:
    """Splits that are missing or too small to measure anything."""
    counts = Counter(record.split for record in records)
    if "train" not in counts:
        message = f"there is no training split, only {', '.join(counts)}"
        return [finding("no-training-split", WARNING, message, "right for an evaluation alone")]
    if not {"validation", "test"} & counts.keys():
        return [finding("no-validation-split", INFO, "there is no validation split", "--train_val_split 0.2")]
    return []
