"""What a check of a dataset reports: a record of every pair, the findings drawn from all of them, and the verdict."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from cli_utils import agree, count_of
from data.image_files import ReadBy, Turned
from data.preparation import PairRecord

ERROR, WARNING, INFO = "error", "warning", "info"
MAX_FILES = 20  # that a finding lists
CLEAN_COPY = "check_dataset.py --fix OUT_DIR"
# What was done to a mask, or to several.
HOW_READ = {
    ReadBy.COLOR: "read by the colours of the classes",
    ReadBy.CHANNEL: "read from one of several equal channels",
    ReadBy.PALETTE: "read by the colours in the palette, as the indices belong to no class",
    ReadBy.PALETTE_NOT_INDEX: "read by the colours in the palette, although the indices belong to other classes",
    Turned.LIKE_IMAGE: "turned like the image, as the EXIF orientation of the image says",
    Turned.AGAINST_ENTRY: "not turned, against the EXIF orientation of the mask, to fit the image",
}


@dataclass(frozen=True)
class Finding:
    """One kind of fault in a dataset, with all files that have it.

    Attributes:
        kind: short, stable name, as "mask-interpolated"; tests and programs rely on it.
        severity: "error" (training would fail or learn something wrong), "warning" or "info".
        message: one line: what was found, with counts.
        fix: one line: what to do about it.
        files: worst first, at most 20, each "split/name" of a record or the path of a file.
        count: how many there are in all.
    """

    kind: str
    severity: str
    message: str
    fix: str
    files: tuple[str, ...] = ()
    count: int = 0


@dataclass(frozen=True)
class ImageRecord(PairRecord):
    """What is known about a pair that was looked at closely; of one that was only prepared, this keeps its defaults.

    Attributes:
        oddities: of "animated image", "animated mask", "blank image", "transparent image".
        palette: of an indexed mask, value → "#rrggbb", for those values that occur.
        crossings, ramps: places along rows and columns where one region ends and another begins whose value differs by
            two or more; those of them with thin runs of values in between, as interpolation leaves them.
        ramp_values: value → places where it stands in between.
        image_digest, mask_digest: of the decoded pixels; empty if the pair was not looked at closely.
        image_hash: 64 bits of difference hash. thumbnail: grey, 16x16, uint8.
        alignment: for the mask as it is, mirrored, upside down and turned by 180 degrees: (dx, dy, score, score
            unmoved) of the shift that fits the image best, in shares of its width and height; empty if not measured.
    """

    oddities: tuple[str, ...] = ()
    palette: dict[int, str] = field(default_factory=dict)
    crossings: int = 0
    ramps: int = 0
    ramp_values: dict[int, int] = field(default_factory=dict)
    image_digest: str = ""
    mask_digest: str = ""
    image_hash: int = 0
    thumbnail: bytes = b""
    alignment: tuple[tuple[float, float, float, float], ...] = ()


@dataclass(frozen=True)
class DatasetReport:
    """All that is known about a dataset.

    Attributes:
        splits: split → pairs in it, also where only a sample was scanned.
        class_pixels: split → pixels by training id.
        class_weights: by training id, what `--class_weights auto` would give.
        records: in the order of the splits. findings: errors first.
    """

    dataset: str
    layout: str
    splits: dict[str, int]
    id2label: dict[int, str]
    class_pixels: dict[str, list[int]]
    records: list[ImageRecord]
    findings: list[Finding]
    seconds: float
    class_weights: list[float] = field(default_factory=list)

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def verdict(self) -> str:
        """One line."""
        errors, warnings = self.count(ERROR), self.count(WARNING)
        found = f"{count_of(errors, 'error')} and {count_of(warnings, 'warning')}"
        if errors:
            return f"not fit for training: {found}"
        return f"fit for training, but look at the warnings: {found}" if warnings else "fit for training"

    def exit_code(self, strict: bool = False) -> int:
        """2 with errors; 1 with warnings, if `strict`; else 0."""
        return 2 if self.count(ERROR) else int(strict and self.count(WARNING) > 0)

    def to_json(self) -> dict:
        """Plain values for `json.dumps`, without the thumbnails."""
        result = asdict(self) | {"verdict": self.verdict()}
        for record in result["records"]:
            del record["thumbnail"]
        return result


def finding(kind: str, severity: str, message: str, fix: str, files: Iterable[str] = ()) -> Finding:
    """A finding about files, worst first, of which it keeps as many as a person reads."""
    files = list(files)
    return Finding(kind, severity, message, fix, tuple(files[:MAX_FILES]), len(files))


def by_cost(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings; among equals what is about all of the dataset, then what is about most files."""
    order = (ERROR, WARNING, INFO)
    return sorted(findings, key=lambda found: (order.index(found.severity), -(found.count or float("inf"))))


def keys_of(records: Iterable[PairRecord]) -> list[str]:
    return [record.key for record in records]


def looked_at(records: Iterable[ImageRecord]) -> list[ImageRecord]:
    """Those of the pairs that can be used that were looked at closely."""
    return [record for record in records if record.image_digest]


def part_of(part: Sequence, whole: Sequence, noun: str, phrase: str = "") -> str:
    """ "3 of 20 masks differ" of the phrase "differs/differ", see `cli_utils.agree`."""
    count, total = len(part), len(whole)
    counted = count_of(count, noun) if total == 1 else f"{count} of {total} {noun}s"
    if count == total > 1:
        counted = f"all {total} {noun}s"
    return f"{counted} {agree(count, phrase)}".rstrip()


def part_finding(
    kind: str, severity: str, part: Sequence[PairRecord], whole: Sequence[PairRecord], said: str, fix: str
) -> list[Finding]:
    """A finding about a part of the pairs, worst first; none where there is no such part. said: "mask is/are …"."""
    if not part:
        return []
    return [finding(kind, severity, part_of(part, whole, *said.split(" ", 1)), fix, keys_of(part))]
