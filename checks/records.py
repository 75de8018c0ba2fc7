"""What a check of a dataset reports: a record of every pair, the findings drawn from all of them, and the verdict."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

ERROR, WARNING, INFO = "error", "warning", "info"
MAX_FILES = 20  # that a finding lists


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
class ImageRecord:
    """What is known about one image and its mask after both were decoded once. Unknown values keep their default.

    Attributes:
        split, name: as in the dataset; "split/name" is its key in `Finding.files`.
        image_file, mask_file: paths, or names where the dataset keeps bytes.
        width, height: of the image as it is seen, upright, in pixels.
        image_mode, mask_mode: Pillow's, as stored.
        raw_values: value in the mask → pixels.
        problem_file: the one of the two that `problem` is about.
        problem, detail, note: what `data.image_files.read_pair` said: a key of `PROBLEMS` ("empty" and "truncated" are
            kinds of "unreadable"), the file and what was found in it, and how an odd mask was read; empty if all is
            well.
        orientation: the image's EXIF entry; 1 is upright.
        oddities: of "animated image", "animated mask", "blank image", "transparent image", "lossy mask".
        mask_size: width and height of the mask as stored.
        palette: of an indexed mask, value → "#rrggbb", for those values that occur.
        crossings, ramps: places along rows and columns where one region ends and another begins whose value differs by
            two or more; those of them with thin runs of values in between, as interpolation leaves them.
        ramp_values: value → places where it stands in between.
        image_digest, mask_digest: of the decoded pixels.
        image_hash: 64 bits of difference hash. thumbnail: grey, 16x16, uint8.
        alignment: for the mask as it is, mirrored, upside down and turned by 180 degrees: (dx, dy, score, score
            unmoved) of the shift that fits the image best, in shares of its width and height; empty if not measured.
    """

    split: str
    name: str
    image_file: str
    mask_file: str
    width: int = 0
    height: int = 0
    image_mode: str = ""
    mask_mode: str = ""
    raw_values: dict[int, int] = field(default_factory=dict)
    problem: str = ""
    problem_file: str = ""
    detail: str = ""
    note: str = ""
    orientation: int = 1
    oddities: tuple[str, ...] = ()
    mask_size: tuple[int, int] = (0, 0)
    palette: dict[int, str] = field(default_factory=dict)
    crossings: int = 0
    ramps: int = 0
    ramp_values: dict[int, int] = field(default_factory=dict)
    image_digest: str = ""
    mask_digest: str = ""
    image_hash: int = 0
    thumbnail: bytes = b""
    alignment: tuple[tuple[float, float, float, float], ...] = ()

    @property
    def key(self) -> str:
        return f"{self.split}/{self.name}"


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
        found = f"{errors} error{'s' * (errors != 1)} and {warnings} warning{'s' * (warnings != 1)}"
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


def keys_of(records: Iterable[ImageRecord]) -> list[str]:
    return [record.key for record in records]


def part_of(part: Sequence, whole: Sequence, noun: str) -> str:
    """ "3 of 20 masks"."""
    return f"{len(part)} of {len(whole)} {noun}"
