"""A clean copy of a dataset: what can be mended without a person is mended, the rest is left out and listed.

    copy = write_clean_copy(dataset, class_map, report, data_args, "my_clean_photos")
    print(copy.summary)                # the flags for the copy are copy.flags

The copy has the layout {train,val,test}/{images,masks}, and appears under its name when it is complete. Masks are PNGs
with one channel of annotation values, neither reduced nor merged; images are the same files, except that those stored
turned are written upright. The source is only read.
"""

import csv
import io
import os
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageOps
from tqdm import tqdm

from checks.records import HOW_READ, INFO, DatasetReport, ImageRecord
from checks.values import value_faults
from cli_utils import UserError, shorten
from data.arguments import ClassArguments, DatasetArguments
from data.classes import ClassMap
from data.image_files import EIGHT_BITS, EXIF_ORIENTATION, Problem, StoredFile
from data.output_paths import check_writable, output_names
from data.preparation import decode_pair, undecoded
from data.synonyms import IMAGE_EXTENSIONS, MASK_EXTENSIONS
from data_utils import Data, find_classes, reduces_labels
from metrics_utils import IGNORE_INDEX, csv_text

FOLDERS = {"train": "train", "validation": "val", "test": "test"}
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tif"}
REPORT, CLASSES = "fix_report.csv", "labels.json"
REPORT_COLUMNS = ("split", "name", "changed", "pixels_changed", "left_out")
MAX_STRAYS = 0.1  # share of a mask's pixels
RARE = 0.05  # share of all pixels that compression of masks of 0 and 255 may bring about of one other value
# Where all masks mean something else than was said, those that happen to fit would be kept with the wrong classes.
MISREAD = ("mask-reduction-needed", "mask-reduced-twice", "mask-values-scaled", "mask-instance-ids")
MANY_UNKNOWN = 0.2  # share of the masks
ORPHANS = {"image-without-mask": "image without a mask", "mask-without-image": "mask without an image"}
# Of these nothing is left in the copy, and no doubt; all other errors and warnings are named, for a person to look at.
MENDED = (
    *(problem.value for problem in Problem),
    *("mask-values-unknown", "mask-binary-255", "mask-nodata", "mask-colors-near"),
    *("exif-mask", *ORPHANS),
)


@dataclass(frozen=True)
class CleanCopy:
    """flags: what `check_dataset.py` and `run_segmentation.py` need for the copy. summary: for a person."""

    flags: list[str]
    summary: str


@dataclass(frozen=True)
class _Fixed:
    """A row of the report: a pair that was written, or that was left out for a reason."""

    split: str
    name: str
    changed: tuple[str, ...] = ()
    pixels_changed: int = 0
    left_out: str = ""


class _LeaveOut(Exception):
    """Why a pair cannot be part of the copy."""


def check_out_dir(out_dir: str | os.PathLike, source: str | os.PathLike) -> None:
    """Refuses to write where something is, or among the source's files.

    source: the dataset's folder or file; where there is none of that name (a Hub id), only `out_dir` is looked at.

    Raises:
        UserError: `out_dir` is a file or a folder with something in it, or cannot be written to, or one of the two
            lies inside the other.
    """
    out, source = Path(out_dir), Path(source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--fix {out} exists and is not an empty folder; give a new one")
    if source.exists():
        real_out, real_source = out.resolve(), source.resolve()
        if real_out.is_relative_to(real_source) or real_source.is_relative_to(real_out):
            raise UserError(f"--fix {out} and the dataset {source} lie one inside the other; give a folder elsewhere")
    check_writable(out, "--fix", is_folder=True)


def write_clean_copy(
    data: Data,
    class_map: ClassMap | None,
    report: DatasetReport,
    dataset_args: DatasetArguments,
    class_args: ClassArguments,
    out_dir: str | os.PathLike,
) -> CleanCopy:
    """Writes a clean copy, with its list of classes (`labels.json`) and a table of what was done (`fix_report.csv`).

    Masks of 0 and 255 alone become 0 and 1. In masks that were compressed with loss or resized with interpolation,
    pixels that are no class become the most frequent value around them. Left out are pairs that cannot be used, masks
    with more than 10 % of such pixels and others with values that are no class. Nothing is done about duplicates.

    Args:
        data: of `data_utils.load_data`.
        class_map: of `data_utils.find_classes`; None where the classes are not clear.
        report: of a check of all of the dataset.
        dataset_args, class_args: the flags that the dataset was read with.

    Raises:
        UserError: `out_dir` will not do, see `check_out_dir`; the masks mean something else than the flags say; no
            pair is left.
    """
    out = Path(out_dir)
    check_out_dir(out, data.source)
    binary = _are_binary(report.records)
    _refuse_misread(report, class_map, binary)
    known = {0, IGNORE_INDEX} if binary else set(class_map.value_ids)

    records = {record.key: record for record in report.records}
    sources = {split: undecoded(rows) for split, rows in data.splits.items()}
    tasks = []
    for split, rows in sources.items():
        names = list(rows["name"])
        for index, target in enumerate(output_names(names)):
            tasks.append((split, index, records[f"{split}/{names[index]}"], target))

    def fix(task: tuple[str, int, ImageRecord, str]) -> _Fixed:
        split, index, record, target = task
        if record.problem:
            return _Fixed(split, record.name, left_out=f"{record.problem.value}: {record.detail}")
        try:
            return _write_pair(
                sources[split][index],
                record,
                class_map,
                known,
                binary,
                aside / FOLDERS[split],
                target,
                data.num_channels,
            )
        except _LeaveOut as reason:
            return _Fixed(split, record.name, left_out=str(reason))

    with _folder_aside(out) as aside:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            futures = [pool.submit(fix, task) for task in tasks]
            try:
                rows = [future.result() for future in tqdm(futures, desc="writing", unit=" images")]
            except BaseException:  # a full disk, Ctrl-C: no use in writing the others
                pool.shutdown(cancel_futures=True)
                raise
        if all(row.left_out for row in rows):
            reasons = shorten(dict.fromkeys(row.left_out for row in rows))
            raise UserError(f"--fix: none of {len(rows)} pairs can be used: {reasons}")
        _write_report(aside / REPORT, rows, report)
        has_classes = _save_classes(aside / CLASSES, data, class_args, binary)
    flags = _flags(out, data, dataset_args, class_args)
    return CleanCopy(flags, _summary(out, rows, report, has_classes, flags))


@contextmanager
def _folder_aside(out: Path) -> Iterator[Path]:
    """A folder to write to, whose content becomes that of `out` at the end, and is gone after an exception."""
    try:
        beside = out if out.is_dir() else out.parent
        beside.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", suffix=".partial", dir=beside) as temporary:
            aside = Path(temporary, "copy")  # with the rights that new folders have
            aside.mkdir()
            yield aside
            if beside != out:
                aside.rename(out)
            else:
                for path in sorted(aside.iterdir()):
                    path.rename(out / path.name)
    except OSError as error:
        raise UserError(f"--fix {out} cannot be written: {error.strerror or error}; nothing of it is kept") from None


# ---- what the dataset is --------------------------------------------------------------------------------------------


def _are_binary(records: Iterable[ImageRecord]) -> bool:
    """Whether 0 and 255 are all there is, but for a few values of each kind that lossy compression brought about."""
    exact, lossy = Counter(), Counter()
    for record in records:
        (lossy if record.lossy else exact).update(record.raw_values)
    total = exact + lossy
    limit = RARE * total.total()
    others = [count for value, count in total.items() if value not in (0, IGNORE_INDEX)]
    return exact.keys() <= {0, IGNORE_INDEX} <= total.keys() and max(others, default=0) <= limit


def _refuse_misread(report: DatasetReport, class_map: ClassMap | None, binary: bool) -> None:
    for found in report.findings:
        unknown = found.kind == "mask-values-unknown" and found.count > MANY_UNKNOWN * len(report.records)
        if unknown or (found.kind in MISREAD and found.severity == "error"):
            raise UserError(f"--fix does not mend [{found.kind}] {found.message}: {found.fix}")
    if class_map is None and not binary:
        raise UserError("--fix needs to know the classes; mend first what the check says of them")
    if all(record.problem for record in report.records):
        raise UserError(f"--fix: none of {len(report.records)} pairs can be used ({report.records[0].detail} …)")


# ---- one pair -------------------------------------------------------------------------------------------------------


def _write_pair(
    row: dict,
    record: ImageRecord,
    class_map: ClassMap | None,
    known: Collection[int],
    binary: bool,
    folder: Path,
    target: str,
    num_channels: int,
) -> _Fixed:
    """row: with undecoded "image" and "label". known: values that may stay. Raises _LeaveOut."""
    image, mask = (StoredFile.of(row[column], record.name) for column in ("image", "label"))
    now, decoded = decode_pair(record.split, image, mask, class_map, num_channels)
    if decoded is None:  # it was usable when it was checked
        raise _LeaveOut(f"{now.problem.value}: {now.detail}")
    ids, how = decoded.ids, (record.read_by, record.turned)
    changed, pixels = [f"mask {HOW_READ[way]}" for way in how if way in HOW_READ], 0
    strays = ~np.isin(ids, list(known))
    if strays.any():
        _check_strays(ids, strays, record, class_map)
        ids, pixels = snap(ids, strays), int(strays.sum())
        if ids is None:
            raise _LeaveOut("values: whole areas, not only edges, belong to no class")
        changed.append("stray pixels of the mask set to the value around them")
    if binary:
        pixels += int((ids == IGNORE_INDEX).sum())
        ids = (ids == IGNORE_INDEX).astype(np.uint8)
        changed.append("mask of 0 and 255 written with 0 and 1")
    void = ids < 0 if class_map is None else np.isin(ids, _ignored(class_map)) & ((ids < 0) | (ids > 65535))
    ids = np.where(void, IGNORE_INDEX, ids.astype(np.int64))
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > 65535:
        raise _LeaveOut(f"values: {low} to {high} do not fit into a PNG")
    ids = ids.astype(np.uint8 if high <= 255 else np.uint16)
    others = MASK_EXTENSIONS - {".png"}
    if record.mask_mode != "L" or Path(record.mask_file).suffix.lower() in others:
        changed.append(f"mask stored as PNG of {8 * ids.itemsize} bits")

    image_file, content, note = _image_to_write(image, record, target, num_channels)
    changed += [note] if note else []
    changed += [f"named {target}"] if target != record.name else []
    for file in (folder / "images" / image_file, folder / "masks" / f"{target}.png"):
        file.parent.mkdir(parents=True, exist_ok=True)
    (folder / "images" / image_file).write_bytes(content)
    Image.fromarray(ids).save(folder / "masks" / f"{target}.png")
    return _Fixed(record.split, record.name, tuple(changed), pixels)


def _ignored(class_map: ClassMap) -> list[int]:
    return [value for value, i in class_map.value_ids.items() if i == IGNORE_INDEX]


def _check_strays(ids: np.ndarray, strays: np.ndarray, record: ImageRecord, class_map: ClassMap | None) -> None:
    """Values that are no class are mended where they come from compression or interpolation, and are few."""
    listed = ", ".join(map(str, np.unique(ids[strays])[:5].tolist()))
    spoilt = record.lossy or any(found.kind == "mask-interpolated" for found in value_faults([record], class_map))
    if not spoilt:
        raise _LeaveOut(f"values that belong to no class: {listed}")
    if strays.mean() > MAX_STRAYS:
        raise _LeaveOut(
            f"values: {strays.mean():.0%} of the pixels belong to no class ({listed} …), too many to guess"
        )


def snap(ids: np.ndarray, strays: np.ndarray) -> np.ndarray | None:
    """Gives stray pixels the most frequent value of the others in the 3x3 pixels around them, or else in the 5x5.

    Args:
        ids: integers (H, W). strays: bool (H, W).

    Returns:
        int64 (H, W), the lowest of equally frequent values; None if a stray pixel has only others around it.
    """
    result = ids.astype(np.int64)
    values, index = np.unique(result, return_inverse=True)
    index = np.where(strays, len(values), index.reshape(ids.shape))  # one more value: none
    left = strays
    for size in (3, 5):
        windows = sliding_window_view(np.pad(index, size // 2, constant_values=len(values)), (size, size))
        around = windows[left].reshape(-1, size * size)
        best, most = np.zeros(len(around), np.int64), np.zeros(len(around), np.int64)
        for i in np.setdiff1d(around, [len(values)]).tolist():
            count = (around == i).sum(axis=1)
            best, most = np.where(count > most, i, best), np.maximum(most, count)
        places = np.argwhere(left)
        found = tuple(places[most > 0].T)
        result[found] = values[best[most > 0]]
        left = left.copy()
        left[found] = False
        if not left.any():
            return result
    return None


def _image_to_write(image: StoredFile, record: ImageRecord, target: str, num_channels: int) -> tuple[str, bytes, str]:
    """File name, content and what was changed: nothing, where the file is upright and of a kind that is read."""
    with image.stream() as file:
        content = file.read()
    suffix = Path(record.image_file).suffix
    has_suffix = suffix.lower() in IMAGE_EXTENSIONS
    if num_channels not in (1, 3) or record.image_dtype != EIGHT_BITS:  # bands of a file that Pillow may not know
        return target + (suffix if has_suffix else ".tif"), content, ""
    with Image.open(io.BytesIO(content)) as opened:
        kind = opened.format
        turned = 1 < opened.getexif().get(EXIF_ORIENTATION, 1) <= 8  # after decoding, Pillow keeps it no more in TIFFs
    if not turned and (has_suffix or kind in SUFFIXES):
        return target + (suffix if has_suffix else SUFFIXES[kind]), content, ""
    upright = ImageOps.exif_transpose(image.open())
    # Of a kind that is not among those of the layouts, or that Pillow only reads: PNG loses nothing.
    kind = {"MPO": "JPEG"}.get(kind, kind if kind in SUFFIXES else "PNG")
    options = {"JPEG": {"quality": 95, "subsampling": 0}}.get(kind, {})
    if kind == "WEBP":
        options = {"quality": 95} if image.is_lossy() else {"lossless": True}
    file = io.BytesIO()
    upright.save(file, kind, exif=upright.getexif(), icc_profile=upright.info.get("icc_profile"), **options)
    suffix = suffix if has_suffix else SUFFIXES[kind]
    return target + suffix, file.getvalue(), "image turned upright" if turned else f"image stored as {kind}"


# ---- what goes with it ----------------------------------------------------------------------------------------------


def _save_classes(file: Path, data: Data, args: ClassArguments, binary: bool) -> bool:
    """Writes the list of classes before any was merged or dropped, as flags do that to the copy too."""
    if args.label_map and args.id2label:  # the list then names the classes of the map; the flag stays
        return False
    try:
        classes = find_classes(data, replace(args, merge_classes=[], drop_classes=[], label_map=None))
    except UserError:  # from the values of the source's masks no classes can be told; from those of the copy they can
        return False
    if classes.raw_to_id is not None and not binary:  # values with gaps, which training finds in the copy as well
        return False
    classes.save(file)
    return True


def _flags(out: Path, data: Data, dataset_args: DatasetArguments, class_args: ClassArguments) -> list[str]:
    """The flags of the source, but for those of which the copy has no need."""
    reduce = reduces_labels(data, class_args)  # the source's default, which is not the copy's
    flags = ["--dataset_dir", str(out)] + ["--do_reduce_labels"] * reduce
    for name in ("ignore_values", "merge_classes", "drop_classes"):
        if getattr(class_args, name):
            flags += [f"--{name}", *map(str, getattr(class_args, name))]
    if class_args.label_map:
        flags += ["--label_map", class_args.label_map]
        flags += ["--id2label", class_args.id2label] if class_args.id2label else []
    if dataset_args.train_val_split is not None and "validation" not in data.splits:
        flags += ["--train_val_split", str(dataset_args.train_val_split)]
        flags += ["--split_groups", dataset_args.split_groups] if dataset_args.split_groups else []
    return flags + (["--num_channels", str(data.num_channels)] if data.num_channels != 3 else [])


def _write_report(file: Path, rows: list[_Fixed], report: DatasetReport) -> None:
    # Names that are no valid UTF-8 cannot be written otherwise.
    with file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(REPORT_COLUMNS)
        for row in rows:
            name, changed, left_out = map(csv_text, (row.name, "; ".join(row.changed), row.left_out))
            writer.writerow([row.split, name, changed, row.pixels_changed, left_out])
        for found in report.findings:
            if found.kind in ORPHANS:
                for path in found.files:
                    writer.writerow(["", csv_text(path), "", 0, ORPHANS[found.kind]])
                if found.count > len(found.files):
                    more = f"{found.count - len(found.files)} more"
                    writer.writerow(["", more, "", 0, ORPHANS[found.kind]])


def _summary(out: Path, rows: list[_Fixed], report: DatasetReport, has_classes: bool, flags: list[str]) -> str:
    written = Counter(FOLDERS[row.split] for row in rows if not row.left_out)
    counts = ", ".join(f"{split}: {count}" for split, count in written.items())
    changes = Counter(change for row in rows for change in row.changed if not change.startswith("named "))
    listed = "; ".join(f"{change} ({count})" for change, count in changes.most_common())
    left_out = sum(bool(row.left_out) for row in rows)
    orphans = sum(found.count for found in report.findings if found.kind in ORPHANS)
    kept = [found.kind for found in report.findings if found.severity != INFO and found.kind not in MENDED]
    sentences = [
        f"clean copy in {out}: {written.total()} pairs ({counts}), {left_out} pairs and {orphans} single files left "
        f"out, {sum(row.pixels_changed for row in rows)} pixels of masks changed (each file: {REPORT})",
        f"Changed: {listed}" if listed else "Nothing else had to be changed",
        f"The classes are in {CLASSES}" if has_classes else "No list of classes was written",
        *([f"Not mended, or not for certain: {', '.join(dict.fromkeys(kept))}"] if kept else []),
        f"Look at it: python check_dataset.py {shlex.join(flags)} (the same flags for training)",
    ]
    return ". ".join(sentences)
