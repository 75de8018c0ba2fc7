"""Says what is wrong with a dataset before anybody waits for a training run.

    python check_dataset.py my_photos
    python check_dataset.py my_photos --ignore_values 11 --image_size 512 --json report.json --html report.html
    python check_dataset.py --dataset_name scene_parse_150 --max_images 2000

The flags that say which data and what its annotations mean are those of `run_segmentation.py`. Reads every file and
prints a verdict, what was found and how to fix it, and tables. A clean copy of what can be fixed without a person:

    python check_dataset.py my_photos --fix my_clean_photos

What is written (`--json`, `--html`, `--fix`) appears under its name when it is complete, and never in place of a file
that is no report.

The exit code is 0, 2 where there are errors, and under `--strict` 1 where there are warnings.
"""

if __name__ == "__main__":
    from checks.arguments import CHECK
    from cli_utils import answer_early

    answer_early(__doc__, **CHECK)  # before the imports below, which take seconds

import json
import logging
import sys
import time
from pathlib import Path

from checks.arguments import CHECK, CheckArguments
from checks.clean_copy import check_out_dir, write_clean_copy
from checks.judge import find_faults, orphan_faults, outline_faults, unread_faults
from checks.records import ERROR, DatasetReport, Finding, by_cost
from checks.scan import scan
from checks.values import count_class_pixels
from cli_utils import UserError, parse_arguments, printable, run_cli, set_up_logging, write_text
from data.arguments import ClassArguments, DatasetArguments
from data.class_weights import class_weights
from data.classes import ClassMap
from data.output_paths import check_writable, refuse_inputs
from data_utils import Data, find_classes, load_data
from reports.check_page import write_html
from reports.check_tables import ROWS_SHOWN, class_table, mode_table, size_table, value_table
from reports.tables import Share, Table, more

# Near the start of what `--json` and `--html` write.
REPORT_MARKS = (b'{\n "dataset": ', b"<title>Check of ")


def parse(argv: list[str] | None) -> tuple[CheckArguments, DatasetArguments, ClassArguments]:
    """Flags, of which the dataset's folder may be a word alone."""
    args, dataset_args, class_args = parse_arguments(argv=argv, description=__doc__, **CHECK)
    source = dataset_args.source  # raises where there is none
    if dataset_args.streaming:
        raise UserError("--streaming: a check reads all of a dataset, so leave the flag out")
    if args.fix:
        if args.max_images is not None:
            raise UserError("--fix writes all of a dataset, so leave out --max_images")
        check_out_dir(args.fix, source)
    for flag, file in args.reports().items():
        check_writable(file, flag)
        _refuse_other_files(file, flag)
    return args, dataset_args, class_args


def _refuse_other_files(file: Path, flag: str) -> None:
    """Raises UserError where a file is there that is no report of ours, but a list of classes, a page of its own …"""
    if not file.is_file() or not file.stat().st_size:
        return
    with open(file, "rb") as opened:
        start = opened.read(4096)
    if not any(mark in start for mark in REPORT_MARKS):
        raise UserError(f"{flag} {file} exists and is no report of a check; delete it, or give another file")


def check(
    args: CheckArguments, dataset_args: DatasetArguments, class_args: ClassArguments
) -> tuple[DatasetReport, Data | None, ClassMap | None]:
    """Loads, scans and judges a dataset. Where it cannot be loaded, the report says why and has no records."""
    started = time.perf_counter()
    try:
        data = load_data(dataset_args, args.seed)
    except UserError as error:
        source = dataset_args.source
        fix = "as it says; --images DIR and --masks DIR name folders, and docs/data.md has the tree of every layout"
        fault = Finding("not-loadable", ERROR, str(error), fix, (source,), 1)
        return DatasetReport(source, "unknown", {}, {}, {}, [], [fault], time.perf_counter() - started), None, None
    for flag, file in args.reports().items():
        refuse_inputs([file], data.files(), f"file for {flag}")
    class_map, unclear = None, []
    try:
        class_map = find_classes(data, class_args)
    except UserError as error:
        # The files may be right and the classes be what is wrong; then the values tell why.
        given = class_args.id2label or class_args.label_map
        fix = f"mend {given}; docs/data.md has the formats" if given else "give the list of classes with --id2label"
        unclear = [Finding("classes-unclear", ERROR, str(error), fix)]
    records = scan(data.splits, class_map, args.max_images, args.num_proc, args.seed, num_channels=data.num_channels)
    splits = {split: len(rows) for split, rows in data.splits.items()}
    faults = find_faults(records, class_map, args.image_size, len(records) == sum(splits.values()), data.layout)
    # What is wrong with the values says more than that no classes could be made of them.
    unclear = [] if any(found.severity == ERROR for found in faults) else unclear
    findings = by_cost([*unclear, *faults, *outline_faults(data), *orphan_faults(data), *unread_faults(data)])
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
    records = report.records
    lines = [f"verdict: {report.verdict()}"]
    lines += [""] * bool(report.findings)
    for found in report.findings:
        lines += [f"{found.severity} [{found.kind}] {found.message}", f"    fix: {found.fix}"]
    counts = ", ".join(f"{split}: {count}" for split, count in report.splits.items())
    rate = f"{len(records) / report.seconds:.0f} images/s" if records else "none"
    lines += ["", f"dataset   {report.dataset}: {report.layout} layout"]
    lines += [f"pairs     {counts or 'none'}; looked at {len(records)} in {report.seconds:.1f} s ({rate})"]
    for title, table in (
        ("sizes", size_table(records)),
        ("images", mode_table("Modes of the images", (record.image_mode for record in records))),
        ("masks", mode_table("Modes of the masks", (record.mask_mode for record in records))),
    ):
        counts = ", ".join(f"{label}: {share.count}" for label, share in table.rows)
        lines += [f"{title:<9} {'; '.join(filter(None, (counts, table.note)))}"] if counts else []
    for table in (value_table(records, class_map), class_table(report, class_map)):
        lines += ["", *table_lines(table)] if table.rows else []
    return "\n".join(lines)


def table_lines(table: Table) -> list[str]:
    """A table in columns, numbers to the right; of a long one the first rows."""
    rows = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in table.rows]
    rows = [table.columns, *rows[:ROWS_SHOWN]]
    columns = []
    for cell, column in zip(table.rows[0], zip(*rows, strict=True), strict=True):
        width = max(map(len, column))
        align = str.rjust if isinstance(cell, int | float | Share) else str.ljust
        columns.append([align(text, width) for text in column])
    lines = ["   ".join(line).rstrip() for line in zip(*columns, strict=True)]
    return lines + list(filter(None, (more(len(table.rows) - ROWS_SHOWN, "row"), table.note)))


def main(argv: list[str] | None = None) -> int:
    """Checks a dataset and prints what was found; returns the exit code.

    argv: command-line arguments without the program's name; None takes them from the command line.
    Raises `cli_utils.UserError` for flags that do not fit; what is wrong with the dataset is reported, not raised.
    """
    args, dataset_args, class_args = parse(argv)
    set_up_logging(logging.ERROR, force=False)
    report, data, class_map = check(args, dataset_args, class_args)
    print(printable(as_text(report, class_map), lines=True))
    if args.json:
        write_text(args.json, json.dumps(report.to_json(), indent=1))
    if args.html:
        write_html(report, args.html, data, class_map)
    for flag, file in args.reports().items():
        print(printable(f"written: {file} ({flag})"))
    if args.fix:
        if data is None:
            raise UserError(f"--fix {args.fix}: the dataset cannot be loaded, so there is nothing to copy")
        copy = write_clean_copy(data, class_map, report, dataset_args, class_args, args.fix)
        print(printable(f"\n{copy.summary}", lines=True))
    return report.exit_code(args.strict)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold anything
    run_cli(lambda: sys.exit(main()))
