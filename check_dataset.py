"""Says what is wrong with a dataset before anybody waits for a training run.

    python check_dataset.py my_photos
    python check_dataset.py my_photos --ignore_values 11 --image_size 512 --json report.json --html report.html
    python check_dataset.py --dataset_name scene_parse_150 --max_images 2000

The flags that say which data and what its annotations mean are those of `run_segmentation.py`. Reads every file and
prints a verdict, what was found and how to mend it, and tables. A clean copy of what can be mended without a person:

    python check_dataset.py my_photos --fix my_clean_photos

The exit code is 0, 2 where there are errors, and under `--strict` 1 where there are warnings.
"""

import json
import logging
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from checks.clean_copy import check_out_dir, write_clean_copy
from checks.judge import find_faults, orphan_faults
from checks.records import ERROR, DatasetReport, Finding, ImageRecord
from checks.scan import scan
from checks.values import count_class_pixels
from cli_utils import UserError, check_positive, parse_arguments, run_cli
from data.arguments import ClassArguments, DatasetArguments
from data.class_weights import class_weights
from data.classes import ClassMap
from data_utils import Data, find_classes, load_data
from reports.check_page import write_html

CLASSES_SHOWN, VALUES_SHOWN = 40, 40


@dataclass
class CheckArguments:
    """How to check, and what to write."""

    image_size: int = field(default=512, metadata={"help": "short side in training, by which images are judged"})
    json: str | None = field(default=None, metadata={"help": "write the report to this file, for programs"})
    html: str | None = field(
        default=None, metadata={"help": "write a page with pictures of the worst files to this file"}
    )
    fix: str | None = field(default=None, metadata={"help": "write a clean copy into this new folder"})
    strict: bool = field(default=False, metadata={"help": "exit with code 1 if there are warnings"})
    num_proc: int | None = field(
        default=None, metadata={"help": "number of processes; chosen by images and CPUs if left out"}
    )
    max_images: int | None = field(default=None, metadata={"help": "look at a random sample of this many images"})
    seed: int = field(default=42, metadata={"help": "seed of the sample and of --train_val_split"})

    def __post_init__(self):
        check_positive(self, "image_size", "num_proc", "max_images")


def parse(argv: list[str] | None) -> tuple[CheckArguments, DatasetArguments, ClassArguments]:
    """Flags, of which the dataset's folder may be a word alone."""
    args, dataset_args, class_args = parse_arguments(
        (CheckArguments, DatasetArguments, ClassArguments),
        argv,
        description=__doc__,
        exclusive=(("dataset_dir", "dataset_name"),),
        positional="dataset_dir",
    )
    source = dataset_args.source  # raises where there is none
    if dataset_args.streaming:
        raise UserError("--streaming: a check reads all of a dataset, so leave the flag out")
    if args.fix:
        if args.max_images is not None:
            raise UserError("--fix writes all of a dataset, so leave out --max_images")
        check_out_dir(args.fix, source)
    return args, dataset_args, class_args


def check(
    args: CheckArguments, dataset_args: DatasetArguments, class_args: ClassArguments
) -> tuple[DatasetReport, Data | None, ClassMap | None]:
    """Loads, scans and judges a dataset. Where it cannot be loaded, the report says why and has no records."""
    started = time.perf_counter()
    try:
        data = load_data(dataset_args, args.seed)
    except UserError as error:
        source = dataset_args.source
        fault = Finding("not-loadable", ERROR, str(error), "see the README for layouts and flags", (source,), 1)
        return DatasetReport(source, "unknown", {}, {}, {}, [], [fault], time.perf_counter() - started), None, None
    class_map, unclear = None, []
    try:
        class_map = find_classes(data, class_args)
    except UserError as error:
        # The files may be right and the classes be what is wrong; then the values tell why.
        unclear = [Finding("classes-unclear", ERROR, str(error), "give the list of classes with --id2label")]
    records = scan(data.splits, class_map, args.max_images, args.num_proc, args.seed, num_channels=data.num_channels)
    splits = {split: len(rows) for split, rows in data.splits.items()}
    faults = find_faults(records, class_map, args.image_size, complete=len(records) == sum(splits.values()))
    # What is wrong with the values says more than that no classes could be made of them.
    findings = [*([] if any(found.severity == ERROR for found in faults) else unclear), *faults, *orphan_faults(data)]
    pixels = count_class_pixels(records, class_map) if class_map else {}
    train = pixels.get("train")
    report = DatasetReport(
        dataset=data.source,
        layout=data.layout,
        splits=splits,
        id2label=class_map.id2label if class_map else {},
        class_pixels={split: counts.tolist() for split, counts in pixels.items()},
        records=records,
        findings=findings,
        seconds=time.perf_counter() - started,
        class_weights=class_weights(train).tolist() if train is not None and train.any() else [],
    )
    return report, data, class_map


# ---- for a person ---------------------------------------------------------------------------------------------------


def as_text(report: DatasetReport, class_map: ClassMap | None) -> str:
    """The verdict, the findings, and tables of what is there."""
    lines = [f"verdict: {report.verdict()}"]
    lines += [""] * bool(report.findings)
    for found in report.findings:
        lines += [f"{found.severity} [{found.kind}] {found.message}", f"    fix: {found.fix}"]
    counts = ", ".join(f"{split}: {count}" for split, count in report.splits.items())
    rate = f"{len(report.records) / report.seconds:.0f} images/s" if report.records else "none"
    lines += ["", f"dataset   {report.dataset}: {report.layout} layout"]
    lines += [f"pairs     {counts or 'none'}; looked at {len(report.records)} in {report.seconds:.1f} s ({rate})"]
    if report.records:
        lines += tables(report.records)
        lines += [""] + value_table(report.records, class_map)
    if report.class_pixels:
        lines += [""] + class_table(report)
    return "\n".join(lines)


def tables(records: list[ImageRecord]) -> list[str]:
    """Sizes and modes."""
    decoded = [record for record in records if record.width]
    sizes = Counter((record.width, record.height) for record in decoded)
    listed = ", ".join(f"{width}x{height}: {count}" for (width, height), count in sizes.most_common(4))
    more = f" and {len(sizes) - 4} other sizes" if len(sizes) > 4 else ""
    lines = [f"sizes     {listed}{more}"]
    for title, modes in (
        ("images", Counter(record.image_mode for record in decoded)),
        ("masks", Counter(record.mask_mode for record in records if record.mask_mode)),
    ):
        lines.append(f"{title:<9} {', '.join(f'mode {mode}: {count}' for mode, count in modes.most_common())}")
    return lines


def value_table(records: list[ImageRecord], class_map: ClassMap | None) -> list[str]:
    """What stands in the masks: value, share of all pixels, masks with it, what it means."""
    pixels, masks = Counter(), Counter()
    for record in records:
        pixels.update(record.raw_values)
        masks.update(record.raw_values.keys())
    total = sum(pixels.values())
    lines = [f"{'value':>7} {'pixels':>9} {'masks':>7}  meaning"]
    for value in sorted(pixels)[:VALUES_SHOWN]:
        meaning = "" if class_map is None else meaning_of(value, class_map)
        lines.append(f"{value:>7} {pixels[value] / total:>9.3%} {masks[value]:>7}  {meaning}")
    if len(pixels) > VALUES_SHOWN:
        lines.append(f"        and {len(pixels) - VALUES_SHOWN} more values")
    return lines


def meaning_of(value: int, class_map: ClassMap) -> str:
    """ "3 road", "ignored" or "no class"."""
    training_id = class_map.value_ids.get(value)
    if training_id is None:
        return "no class"
    name = class_map.id2label.get(training_id)
    return "ignored" if name is None else f"{training_id} {name}"


def class_table(report: DatasetReport) -> list[str]:
    """Each class's share of the labelled pixels of each split, most frequent first, and its weight in the loss."""
    shares = {split: np.array(counts) / max(sum(counts), 1) for split, counts in report.class_pixels.items()}
    order = np.argsort(-sum(shares.values()), kind="stable").tolist()
    width = max(len(name) for name in report.id2label.values())
    weights = report.class_weights
    lines = ["   ".join([f" id {'class':<{width}}", *(f"{split:>10}" for split in shares), "weight" * bool(weights)])]
    for i in order[:CLASSES_SHOWN]:
        cells = [f"{i:>3} {report.id2label[i]:<{width}}", *(f"{share[i]:>10.3%}" for share in shares.values())]
        lines.append("   ".join([*cells, f"{weights[i]:6.2f}" if weights else ""]).rstrip())
    if len(order) > CLASSES_SHOWN:
        lines.append(f"    and {len(order) - CLASSES_SHOWN} more classes")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Checks a dataset and prints what was found; returns the exit code.

    argv: command-line arguments without the program's name; None takes them from the command line.
    Raises `cli_utils.UserError` for flags that do not fit; what is wrong with the dataset is reported, not raised.
    """
    args, dataset_args, class_args = parse(argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.ERROR)
    report, data, class_map = check(args, dataset_args, class_args)
    print(as_text(report, class_map))
    if args.json:
        try:
            Path(args.json).write_text(json.dumps(report.to_json(), indent=1), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json {args.json} cannot be written: {error.strerror}") from None
    if args.html:
        write_html(report, args.html, data, class_map)
    if args.fix:
        if data is None:
            raise UserError(f"--fix {args.fix}: the dataset cannot be loaded, so there is nothing to copy")
        copy = write_clean_copy(data, class_map, report, dataset_args, class_args, args.fix)
        print(f"\n{copy.summary}")
    return report.exit_code(args.strict)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold anything
    run_cli(lambda: sys.exit(main()))
