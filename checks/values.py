"""What the values in masks tell: lossy and interpolated masks, ids shifted or scaled, classes that are missing.

A cause is named once: values that compression or interpolation brought about are not reported as unknown classes too.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from checks.records import ERROR, INFO, WARNING, Finding, ImageRecord, finding, keys_of, part_of
from cli_utils import shorten
from data.classes import ClassMap
from metrics_utils import IGNORE_INDEX

# Pixels along a row or column: what counts as an area, and as what interpolation may put between two areas.
MIN_AREA_RUN, MAX_RAMP = 3, 8
# Share of borders with ramps. Measured on masks as they were drawn: at most 0.04 (CamVid, the toy dataset) and 0.35
# (tiny random shapes, and then of one or two values); resized, softened or compressed: 0.1 to 1, mostly above 0.5.
MANY_RAMPS, SOME_RAMPS, SOME_RAMPS_VALUES, MIN_RAMPS = 0.5, 0.12, 4, 10
IMBALANCE = 1000  # times as many pixels


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
    change = np.ones((height, width), bool)
    np.not_equal(mask[:, 1:], mask[:, :-1], out=change[:, 1:])
    starts = np.flatnonzero(change)
    lengths = np.diff(starts, append=mask.size)
    values = mask.reshape(-1)[starts].astype(np.int64)

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
    pixels: Counter = Counter()
    for record in records:
        pixels.update(record.raw_values)
    if not pixels:
        return []
    classes = set(class_map.class_values) if class_map else set()
    unknown = {record.key: set(_unknown(record, class_map)) for record in records}
    findings = []

    lossy = [record for record in records if "lossy mask" in record.oddities]
    if lossy:
        harmed = [record for record in lossy if unknown[record.key]]
        message = f"{part_of(lossy, records, 'masks')} have lossy compression (JPEG or WebP), which changes values"
        if harmed:
            listed = shorten(map(str, sorted(unknown[harmed[0].key])), 5)
            message += f"; {len(harmed)} hold values that are no class, as {harmed[0].key} {listed}"
        fix = "write masks as PNG files from their source; the loss cannot be undone"
        files = keys_of(sorted(lossy, key=lambda record: -len(unknown[record.key])))
        findings.append(finding("mask-lossy", ERROR if harmed else WARNING, message, fix, files))
    others = [record for record in records if record not in lossy]
    blurred = [record for record in others if _is_interpolated(record, classes)]
    if blurred:
        blurred.sort(key=lambda record: -record.ramps)
        worst = blurred[0]
        message = (
            f"{part_of(blurred, records, 'masks')} were resized with interpolation, softened or compressed: in "
            f"{worst.key} {worst.ramps} of {worst.crossings} borders have thin runs of other values in between "
            f"({shorten(map(str, sorted(worst.ramp_values)), 5)})"
        )
        fix = "resize the original masks anew with nearest neighbour"
        severe = len(blurred) > 0.5 * len(records) or any(unknown[record.key] for record in blurred)
        findings.append(finding("mask-interpolated", ERROR if severe else WARNING, message, fix, keys_of(blurred)))
        others = [record for record in others if record not in blurred]

    values = set().union(*(record.raw_values for record in others))
    if values == {0, IGNORE_INDEX}:
        message = "masks hold the values 0 and 255 alone: they are pictures of two classes, but 255 means ignored"
        fix = "--fix OUT_DIR writes them with 0 and 1"
        chosen = sorted(others, key=lambda record: -record.raw_values.get(IGNORE_INDEX, 0))
        return [*findings, finding("mask-binary-255", ERROR, message, fix, keys_of(chosen))]
    pictures = [record for record in others if record.raw_values.keys() == {0, IGNORE_INDEX}]
    if pictures and values == {0, 1, IGNORE_INDEX} and len(pictures) < len(others):
        message = (
            f"{part_of(pictures, records, 'masks')} hold 0 and 255 where others hold 0 and 1: there the object "
            "itself is ignored"
        )
        fix = "write 1 instead of 255 in them"
        findings.append(finding("mask-binary-mixed", WARNING, message, fix, keys_of(pictures)))
    strange = [record for record in others if unknown[record.key]]
    if strange:
        strange.sort(key=lambda r: -sum(r.raw_values[value] for value in unknown[r.key]))
        kind, what, fix = _explain_unknown(values, sorted(set().union(*(unknown[r.key] for r in strange))), class_map)
        listed = shorten((f"{record.key} {min(unknown[record.key])}" for record in strange), 3)
        message = f"{part_of(strange, records, 'masks')} hold values that are no class ({listed}). {what}"
        findings.append(finding(kind, ERROR, message, fix, keys_of(strange)))
    elif class_map is not None:
        findings += _doubtful_values(others, values, class_map)
    return findings


def _unknown(record: ImageRecord, class_map: ClassMap | None) -> list[int]:
    values = np.array(sorted(record.raw_values), np.int64)
    known = class_map.value_ids if class_map else range(IGNORE_INDEX + 1)
    return [value for value in values.tolist() if value not in known]


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
    """Kind, cause and fix for masks with values that are no class."""
    if max(unknown) > IGNORE_INDEX or class_map is None:
        return (
            "mask-instance-ids",
            f"Values reach {max(unknown)}: they count objects, or belong to a much larger list of classes",
            "map them to classes with --label_map FILE, or export masks of class ids",
        )
    known = class_map.describe_values()
    listed = shorten(map(str, unknown), 5)
    if unknown == [IGNORE_INDEX - 1]:
        return (
            "mask-reduced-twice",
            "254 is what 0 becomes when labels are reduced twice, and class 0 became 255",
            "write the masks anew from the originals, not reduced; --do_reduce_labels reduces them in reading",
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
    if class_map.suggests_reduction(unknown):
        fix = (
            f"--do_reduce_labels if 0 stands for unlabelled and ids count from 1; --ignore_values {unknown[0]} if "
            f"{unknown[0]} stands for void; else the list of classes (--id2label) lacks one"
        )
        return "mask-values-unknown", f"{known}", fix
    flag = (
        f"--ignore_values {' '.join(map(str, unknown))} if {listed} stand for void; else " if len(unknown) < 3 else ""
    )
    return "mask-values-unknown", f"{known}; {listed} are not", f"{flag}give the list of these classes with --id2label"


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
    value_ids = class_map.value_ids
    counts: dict[str, np.ndarray] = {}
    for record in records:
        row = counts.setdefault(record.split, np.zeros(class_map.num_labels, np.int64))
        for value, pixels in record.raw_values.items():
            if value_ids.get(value, IGNORE_INDEX) != IGNORE_INDEX:
                row[value_ids[value]] += pixels
    return counts


def class_faults(records: Sequence[ImageRecord], class_map: ClassMap, complete: bool) -> list[Finding]:
    """Masks without any class, or with one alone."""
    value_ids, findings = class_map.value_ids, []
    empty = [r for r in records if {value_ids.get(value) for value in r.raw_values} == {IGNORE_INDEX}]
    empty_keys = set(keys_of(empty))
    for split in dict.fromkeys(record.split for record in records):
        inside = [record for record in records if record.split == split]
        if all(record.key in empty_keys for record in inside) and split != "test":
            message = f"{split}: every pixel of all {len(inside)} masks is ignored"
            fix = "see --do_reduce_labels and --ignore_values"
            return [finding("split-all-ignored", ERROR if complete else WARNING, message, fix, keys_of(inside))]
    if empty:
        message = f"{part_of(empty, records, 'masks')} are ignored entirely"
        findings.append(finding("mask-all-ignored", WARNING, message, "label them or leave them out", keys_of(empty)))
    constant = [record for record in records if len(record.raw_values) == 1 and record.key not in empty_keys]
    ids = {value_ids.get(value) for record in records for value in record.raw_values} - {IGNORE_INDEX}
    if complete and len(ids) == 1 and len(constant) == len(records):
        message = f"all {len(records)} masks hold one and the same class, so there is nothing to learn"
        findings.append(
            finding("masks-all-constant", ERROR, message, "check how they were exported", keys_of(constant))
        )
    elif constant:
        message = f"{part_of(constant, records, 'masks')} hold one class and nothing else"
        severity = WARNING if len(constant) > 0.5 * len(records) else INFO
        fix = "right if the images show nothing else; check some"
        findings.append(finding("mask-constant", severity, message, fix, keys_of(constant)))
    return findings


def presence_faults(records: Sequence[ImageRecord], class_map: ClassMap) -> list[Finding]:
    """Classes that cannot be learnt or measured, as they are not there; one that is rare. Of a whole dataset."""
    pixels = count_class_pixels(records, class_map)
    if "train" not in pixels:
        return []
    names, findings = class_map.id2label, []
    train, validation = pixels["train"], pixels.get("validation")
    nowhere = np.flatnonzero(sum(pixels.values()) == 0).tolist()
    if nowhere:
        listed = shorten((names[i] for i in nowhere), 8)
        message = f"{len(nowhere)} of {len(names)} classes never occur: {listed}"
        fix = "right if the list of classes is a longer one; else check values against it"
        findings.append(finding("class-nowhere", WARNING, message, fix))
    untrained = [i for i in np.flatnonzero(train == 0).tolist() if i not in nowhere]
    if untrained:
        raw = {raw for raw, i in class_map.value_ids.items() if i in untrained}
        files = keys_of(record for record in records if raw & record.raw_values.keys())
        listed = shorten((names[i] for i in untrained), 8)
        message = f"{len(untrained)} classes occur outside the training split only and cannot be learnt: {listed}"
        findings.append(finding("class-not-in-train", WARNING, message, "split anew, stratified by class", files))
    if validation is not None:
        unmeasured = np.flatnonzero((validation == 0) & (train > 0)).tolist()
        if unmeasured:
            listed = shorten((names[i] for i in unmeasured), 8)
            message = f"{len(unmeasured)} classes never occur in validation and are not measured there: {listed}"
            findings.append(finding("class-not-in-validation", INFO, message, "split anew, stratified by class"))
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
