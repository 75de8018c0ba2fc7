"""The judge of a dataset: what is wrong with it, drawn from one record a pair.

    findings = find_faults(records, class_map, image_size)      # records of `checks.scan.scan`
    raise_on_errors(findings)

Training asks it of a sample (`quick_check`), `check_dataset.py` of everything.
"""

import logging
from collections.abc import Sequence

from datasets import DatasetDict

from checks.alignment import alignment_faults
from checks.duplicates import duplicate_faults
from checks.records import ERROR, INFO, WARNING, Finding, ImageRecord, finding
from checks.scan import scan
from checks.storage import exif_faults, file_faults, image_faults, mask_form_faults
from checks.values import class_faults, presence_faults, split_faults, value_faults
from cli_utils import UserError, shorten
from data.classes import ClassMap
from data_utils import Data

logger = logging.getLogger(__name__)

QUICK_SAMPLE = 100


def quick_check(
    dataset: DatasetDict,
    class_map: ClassMap | None,
    image_size: int | None = None,
    num_images: int = QUICK_SAMPLE,
    seed: int = 0,
    num_channels: int = 3,
) -> list[Finding]:
    """What a seeded sample of a dataset shows, errors first; takes seconds.

    What only a whole dataset can tell, as classes that never occur, is left to `data.preparation.prepare_dataset`.

    Args:
        dataset: of `data_utils.load_segmentation_dataset`.
        class_map: what the values in its masks mean.
        image_size: short side in training, in pixels.
        num_images: over all splits.
        num_channels: of the images.
    """
    records = scan(dataset, class_map, num_images, 1, seed, progress=False, num_channels=num_channels)
    return find_faults(records, class_map, image_size, complete=False)


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
    records: Sequence[ImageRecord], class_map: ClassMap | None, image_size: int | None = None, complete: bool = True
) -> list[Finding]:
    """All findings, errors first.

    Args:
        records: of `scan`.
        class_map: None where the classes cannot be told; values are then judged by themselves.
        image_size: short side in training, in pixels; None: images are not judged by it.
        complete: the records are of the whole dataset, so that what they do not show is not there.
    """
    readable = [record for record in records if not record.problem]
    findings = [
        *file_faults(records),
        *exif_faults(records),
        *image_faults(records, image_size),
        *mask_form_faults(records),
        *alignment_faults(readable),
        *duplicate_faults(records),
    ]
    of_values = value_faults(readable, class_map)
    if class_map is not None:
        of_values += class_faults(readable, class_map, complete)
        # Where values are wrong, that they leave classes out says nothing.
        if complete and not any(found.severity == ERROR for found in of_values):
            of_values += presence_faults(readable, class_map)
    findings += of_values
    if complete:
        findings += split_faults(records)
    return sorted(findings, key=lambda found: (ERROR, WARNING, INFO).index(found.severity))


def orphan_faults(data: Data) -> list[Finding]:
    """Images without masks and masks without images, which are left out."""
    severity, fix = WARNING, "add what is missing, or give both the same name"
    if data.layout in ("metadata", "COCO"):
        severity, fix = INFO, "right if the file that lists the images leaves them out on purpose"
    findings = []
    for kind, what, files in (
        ("image-without-mask", "images without a mask", data.images_alone),
        ("mask-without-image", "masks without an image", data.masks_alone),
    ):
        if files:
            message = f"{len(files)} {what} are left out: {shorten(path.name for path in files)}"
            fix_all = f"{fix}; --fix OUT_DIR writes a copy without them"
            findings.append(finding(kind, severity, message, fix_all, map(str, files)))
    return findings
