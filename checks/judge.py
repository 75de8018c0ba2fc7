"""The judge of a dataset: what is wrong with it, drawn from one record a pair.

    dataset = prepare_and_judge(dataset, class_map, image_size)     # what training calls
    dataset = prepare_dataset(dataset, class_map)                   # the same, without a close look
    findings = find_faults(records, class_map, image_size)          # `check_dataset.py`, of `checks.scan.scan`
    judge_example(record, class_map)                                # one example of a stream

All of them come down to `find_faults`, so the same fault has the same name and the same advice everywhere.
"""

import logging
import os
from collections.abc import Sequence

from datasets import DatasetDict

from checks.alignment import alignment_faults
from checks.duplicates import duplicate_faults
from checks.records import CLEAN_COPY, ERROR, INFO, WARNING, Finding, ImageRecord, finding
from checks.scan import scan_sample
from checks.storage import exif_faults, file_faults, image_faults, mask_form_faults
from checks.values import BINARY_MASKS, class_faults, presence_faults, split_faults, value_faults, void_faults
from cli_utils import UserError, count_of, shorten
from data.classes import ClassMap
from data.preparation import PairRecord, prepare_pairs
from data.unread import describe_unread
from data_utils import Data

logger = logging.getLogger(__name__)

QUICK_SAMPLE = 100  # pairs over all splits that are looked at closely before training
ALL_OF_IT = "all of it, in pictures too: python check_dataset.py, with the same flags for the data"


def prepare_and_judge(
    splits: DatasetDict,
    class_map: ClassMap,
    image_size: int | None = None,
    num_channels: int = 3,
    check_data: bool = True,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
    layout: str | None = None,
    findings: list[Finding] | None = None,
) -> DatasetDict:
    """Looks closely at a seeded sample, prepares all pairs, each decoded once, and judges them.

    Args:
        splits: of `data_utils.load_segmentation_dataset`.
        image_size: short side in training, in pixels; None: images are not judged by it.
        check_data: False: no close look, and nothing said but errors.
        cache_dir, num_proc, num_channels: as for `data.preparation.prepare_pairs`.
        layout: of `data_utils.Data`.
        findings: a list that what is found in all of the dataset is added to.

    Returns:
        Columns "image" (as it was), "label" (PIL L of training ids, upright like the image), "name", "height" and
        "width" (pixels), "class_pixels" (num_labels integers).

    Raises:
        UserError: for all errors of the sample together, before the long work; or else for all of the dataset.
    """
    sample, known = [], {}
    if check_data:
        sample, known = scan_sample(splits, class_map, QUICK_SAMPLE, seed, num_channels)
        complete = len(sample) == sum(len(rows) for rows in splits.values())
        faults = find_faults(sample, class_map, image_size, complete, layout)
        raise_on_errors([found for found in faults if found.severity == ERROR], ALL_OF_IT)
    prepared, records = prepare_pairs(splits, class_map, cache_dir, num_proc, num_channels, known)
    looked_at = {record.key: record for record in sample}
    records = [looked_at.get(record.key) or ImageRecord(**vars(record)) for record in records]
    faults = find_faults(records, class_map, image_size, layout=layout)
    raise_on_errors([found for found in faults if check_data or found.severity == ERROR], ALL_OF_IT)
    if findings is not None:
        findings += faults
    return prepared


def prepare_dataset(
    dataset: DatasetDict,
    class_map: ClassMap,
    cache_dir: str | os.PathLike | None = None,
    num_proc: int | None = None,
    num_channels: int = 3,
    complete: bool = True,
) -> DatasetDict:
    """`prepare_and_judge` without a close look: all pairs are prepared, what is odd is logged, errors are raised.

    complete: as for `find_faults`.
    """
    prepared, records = prepare_pairs(dataset, class_map, cache_dir, num_proc, num_channels)
    raise_on_errors(find_faults([ImageRecord(**vars(record)) for record in records], class_map, complete=complete))
    return prepared


def judge_example(record: PairRecord, class_map: ClassMap) -> None:
    """Raises UserError for an example of a stream that cannot be used."""
    findings = find_faults([ImageRecord(**vars(record))], class_map, complete=False)
    raise_on_errors([found for found in findings if found.severity == ERROR])


def raise_on_errors(findings: Sequence[Finding], all_of_it: str = "") -> None:
    """Logs what a check found; raises one UserError for all errors. all_of_it: the command for a complete check."""
    for found in findings:
        if found.severity != ERROR:
            level = logging.WARNING if found.severity == WARNING else logging.INFO
            logger.log(level, f"[{found.kind}] {found.message}: {found.fix}")
    errors = [f"[{found.kind}] {found.message}: {found.fix}" for found in findings if found.severity == ERROR]
    if errors:
        raise UserError("\n  ".join([*errors, all_of_it] if all_of_it else errors))


def find_faults(
    records: Sequence[ImageRecord],
    class_map: ClassMap | None,
    image_size: int | None = None,
    complete: bool = True,
    layout: str | None = None,
) -> list[Finding]:
    """All findings, errors first.

    Args:
        records: of `checks.scan.scan`; or of pairs that were only prepared, of which findings that need a close look
            say nothing.
        class_map: None where the classes cannot be told; values are then judged by themselves.
        image_size: short side in training, in pixels; None: images are not judged by it.
        complete: the records are of the whole dataset, so that what they do not show is not there.
        layout: of `data_utils.Data`, where the dataset that it is named after has values for void.
    """
    readable = [record for record in records if not record.problem]
    findings = [
        *file_faults(records),
        *exif_faults(records),
        *image_faults(records, image_size),
        *mask_form_faults(records, class_map),
        *alignment_faults(readable),
        *duplicate_faults(records),
    ]
    of_values = value_faults(readable, class_map)
    if class_map is not None and not any(found.kind == BINARY_MASKS[0] for found in of_values):
        of_values += [*class_faults(readable, class_map, complete), *void_faults(readable, class_map, layout)]
        # Where values are wrong, that they leave classes out says nothing.
        if complete and not any(found.severity == ERROR for found in of_values):
            of_values += presence_faults(readable, class_map)
    findings += of_values
    if complete:
        findings += split_faults(records)
    return sorted(findings, key=lambda found: (ERROR, WARNING, INFO).index(found.severity))


def outline_faults(data: Data) -> list[Finding]:
    """Outlined objects of which no pixel is left."""
    if not data.hidden:
        return []
    worst = sorted(data.hidden, key=lambda key: -len(data.hidden[key]))
    listed = shorten(f"{' and '.join(data.hidden[key])} in {key}" for key in worst)
    phrase = "outlined object/objects is/are hidden entirely by smaller ones drawn over it/them"
    message = f"{count_of(sum(map(len, data.hidden.values())), phrase)}: {listed}"
    fix = "right if one is in front of the other; else delete the outline that is too much"
    return [finding("outline-hidden", WARNING, message, fix, worst)]


def orphan_faults(data: Data) -> list[Finding]:
    """Images without masks and masks without images, which are left out."""
    severity, fix = WARNING, "add what is missing, or give both the same name"
    if data.layout in ("metadata", "COCO"):
        severity, fix = INFO, "right if the file that lists the images leaves them out on purpose"
    findings = []
    for kind, phrase, files in (
        ("image-without-mask", "image/images without a mask is/are left out", data.images_alone),
        ("mask-without-image", "mask/masks without an image is/are left out", data.masks_alone),
    ):
        if files:
            message = f"{count_of(len(files), phrase)}: {shorten(path.name for path in files)}"
            fix_all = f"{fix}; {CLEAN_COPY} writes a copy without such files"
            findings.append(finding(kind, severity, message, fix_all, map(str, files)))
    for sentence in data.left_out:
        findings.append(
            Finding("files-left-out", WARNING, sentence, "move, rename or convert what training should use")
        )
    return findings


def unread_faults(data: Data) -> list[Finding]:
    """Pictures of kinds that are not read."""
    if not data.unread:
        return []
    message, fix = describe_unread(data.unread)
    return [finding("file-not-read", WARNING, message, fix, map(str, data.unread))]
