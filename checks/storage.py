"""How images and masks are stored: files that cannot be used, EXIF entries, modes, sizes, colours instead of ids."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from checks.records import ERROR, INFO, WARNING, Finding, ImageRecord, finding, keys_of, part_of
from cli_utils import shorten
from data.image_files import BY_CHANNEL, BY_COLOR, BY_INDEX, BY_PALETTE, PROBLEMS

TINY_SIDE, MAX_ASPECT, MAX_UPSAMPLING = 32, 4, 2
# Files that cannot be used: where what is said here is more to the point than `PROBLEMS`.
FILE_FAULTS = {
    kind: (what, "copy or download them again, or delete them together with their image or mask")
    for kind, what in (
        ("file-empty", "files are empty (0 bytes)"),
        ("file-truncated", "files end too early"),
        ("file-unreadable", "files cannot be read"),
    )
} | {
    "mask-turned": ("masks lie on their side: as wide as their image is high", "turn them by 90 degrees"),
    "size-mismatch": (
        "masks differ in size from their image",
        "export them again at the image's size, or resize them with nearest neighbour",
    ),
}
KINDS = {"colors": "mask-colors", "unknown colors": "mask-colors-unknown", "lossy colors": "mask-colors-lossy"}


def file_faults(records: Sequence[ImageRecord]) -> list[Finding]:
    """Pairs that cannot be used at all, by what `mask_utils` says of them."""
    by_kind = defaultdict(list)
    for record in records:
        if record.problem in ("empty", "truncated", "unreadable"):
            by_kind[f"file-{record.problem}"].append(record)
        elif record.problem == "size":
            turned = record.mask_size == (record.height, record.width)
            by_kind["mask-turned" if turned else "size-mismatch"].append(record)
        elif record.problem:
            by_kind[KINDS.get(record.problem) or record.problem.replace(" ", "-")].append(record)
    findings = []
    for kind, found in by_kind.items():
        what, fix = FILE_FAULTS.get(kind) or PROBLEMS[found[0].problem]
        message = f"{len(found)} {what}: {shorten(record.detail for record in found)}"
        files = [record.problem_file for record in found] if kind.startswith("file-") else keys_of(found)
        findings.append(finding(kind, ERROR, message, fix or "mend them", files))
    return findings


def exif_faults(records: Sequence[ImageRecord]) -> list[Finding]:
    """EXIF entries that say how to turn an image, which not every program obeys."""
    findings = []
    turned = [record for record in records if 1 < record.orientation <= 8]
    odd = [record for record in turned if "EXIF" in record.note]
    doubtful = [r for r in turned if r not in odd and (r.orientation in (2, 3, 4) or r.width == r.height)]
    harmless = [record for record in turned if record not in odd and record not in doubtful]
    if odd:
        message = f"{part_of(odd, records, 'masks')} were {odd[0].note}"
        fix = "look whether masks fit their images; --fix OUT_DIR writes both upright"
        findings.append(finding("exif-mask", WARNING, message, fix, keys_of(odd)))
    if doubtful:
        message = (
            f"{part_of(doubtful, records, 'images')} are turned or mirrored by an EXIF entry, and sizes do not tell "
            "whether their masks were drawn before or after that"
        )
        fix = "look at them; --fix OUT_DIR writes image and mask as they are understood"
        findings.append(finding("exif-doubtful", WARNING, message, fix, keys_of(doubtful)))
    if harmless:
        message = f"{part_of(harmless, records, 'images')} are stored turned, with an EXIF entry, and read upright"
        fix = "nothing for training; --fix OUT_DIR writes them upright, for programs that pass over the entry"
        findings.append(finding("exif-rotation", INFO, message, fix, keys_of(harmless)))
    return findings


def image_faults(records: Sequence[ImageRecord], image_size: int | None) -> list[Finding]:
    """Images that are odd by themselves, whatever their masks."""
    decoded = [record for record in records if record.width]
    findings = []

    def report(kind: str, severity: str, chosen: list[ImageRecord], what: str, fix: str) -> None:
        if chosen:
            findings.append(
                finding(kind, severity, f"{part_of(chosen, decoded, 'images')} {what}", fix, keys_of(chosen))
            )

    def with_oddity(oddity: str) -> list[ImageRecord]:
        return [record for record in decoded if oddity in record.oddities]

    blank, animated = with_oddity("blank image"), with_oddity("animated image")
    report("image-blank", WARNING, blank, "show one colour and nothing else", "leave them out, or export them again")
    fix = "store each frame or page as an image of its own"
    report("image-animated", WARNING, animated, "hold several frames or pages, of which the first is read", fix)
    fix = "paste them on the background they belong on, if what lies beneath matters"
    report(
        "image-transparent", WARNING, with_oddity("transparent image"), "are transparent; transparency is lost", fix
    )
    cmyk = [record for record in decoded if record.image_mode == "CMYK"]
    fix = "convert them to RGB with their colour profile"
    report("image-cmyk", WARNING, cmyk, "have printers' colours (CMYK), converted without their profile", fix)
    modes = Counter(record.image_mode for record in decoded if record not in cmyk)
    if len(modes) > 1:
        common = modes.most_common(1)[0][0]
        others = [record for record in decoded if record not in cmyk and record.image_mode != common]
        listed = ", ".join(f"{mode}: {count}" for mode, count in modes.most_common())
        report("image-modes-mixed", INFO, others, f"have another mode than the rest ({listed})", "all are read as RGB")

    tiny = sorted((r for r in decoded if min(r.width, r.height) < TINY_SIDE), key=lambda r: min(r.width, r.height))
    report("image-tiny", WARNING, tiny, f"are less than {TINY_SIDE} pixels high or wide", "leave them out")
    if image_size is not None:
        small = [record for record in decoded if min(record.width, record.height) * MAX_UPSAMPLING < image_size]
        small.sort(key=lambda record: min(record.width, record.height))
        shortest = min((min(record.width, record.height) for record in small), default=0)
        what = (
            f"are enlarged more than {MAX_UPSAMPLING} times to --image_size {image_size}; the smallest has {shortest}"
        )
        severity = WARNING if len(small) > 0.1 * len(decoded) else INFO
        report("image-upsampled", severity, small, what, "choose a smaller --image_size, or larger images")
    long = [
        record
        for record in decoded
        if max(record.width, record.height) > MAX_ASPECT * min(record.width, record.height)
    ]
    what = f"are more than {MAX_ASPECT} times as long as wide and are distorted in evaluation"
    report("image-elongated", INFO, long, what, "cut them into tiles")
    return findings


def mask_form_faults(records: Sequence[ImageRecord]) -> list[Finding]:
    """How masks are stored: colours instead of ids, palettes that contradict each other, several frames."""
    findings = []
    animated = [record for record in records if "animated mask" in record.oddities]
    if animated:
        message = f"{part_of(animated, records, 'masks')} hold several frames or pages, of which the first is read"
        fix = "store masks with one page; separate masks of single classes must be joined into one of ids"
        findings.append(finding("mask-animated", WARNING, message, fix, keys_of(animated)))

    # Programs that save "indexed colours" number them by how often they occur, in every file anew.
    colors_of, first = defaultdict(Counter), {}
    for record in records:
        for value, color in {} if record.note == BY_PALETTE else record.palette.items():
            colors_of[value][color] += 1
            first.setdefault((value, color), record)
    differing = {value: colors for value, colors in colors_of.items() if len(colors) > 1}
    if differing:
        usual = {value: colors.most_common(1)[0][0] for value, colors in differing.items()}
        odd = [r for r in records if any(color != usual.get(value, color) for value, color in r.palette.items())]
        value, colors = next(iter(differing.items()))
        listed = ", ".join(f"{color} in {first[value, color].key}" for color in list(colors)[:2])
        message = (
            f"indexed masks give {len(differing)} values different colours in different files (value {value}: {listed}"
            "), so a value may stand for another class in each"
        )
        fix = "export masks of class ids, or RGB masks together with a list of classes and their colours (--id2label)"
        findings.append(finding("mask-palettes-differ", WARNING, message, fix, keys_of(odd)))

    for kind, severity, notes, fix in (
        ("mask-channels", INFO, (BY_CHANNEL,), "nothing for training; --fix OUT_DIR writes them with one channel"),
        ("mask-by-color", INFO, (BY_COLOR, BY_PALETTE), "nothing for training; --fix OUT_DIR writes them as ids"),
        ("mask-palette-contradicts", WARNING, (BY_INDEX,), "check the order of the list of classes (--id2label)"),
    ):
        noted = [record for record in records if record.note.startswith(notes)]
        if noted:
            message = f"{part_of(noted, records, 'masks')} are {noted[0].note}"
            findings.append(finding(kind, severity, message, fix, keys_of(noted)))
    modes = Counter(record.mask_mode for record in records if record.mask_mode and not record.problem)
    if len(modes) > 1:
        common = modes.most_common(1)[0][0]
        listed = ", ".join(f"{mode}: {count}" for mode, count in modes.most_common())
        others = [record for record in records if record.mask_mode not in ("", common) and not record.problem]
        message = f"masks are stored in different modes ({listed})"
        fix = "look whether the same values mean the same in all of them"
        findings.append(finding("mask-modes-mixed", INFO, message, fix, keys_of(others)))
    return findings
