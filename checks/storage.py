"""How images and masks are stored: files that cannot be used, EXIF entries, modes, sizes, colours instead of ids."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from checks.records import (
    CLEAN_COPY,
    ERROR,
    HOW_READ,
    INFO,
    WARNING,
    Finding,
    ImageRecord,
    finding,
    keys_of,
    looked_at,
    part_finding,
)
from cli_utils import count_of, shorten
from data.classes import ClassMap
from data.image_files import Problem, ReadBy, Turned, describe_problem

TINY_SIDE, MAX_ASPECT, MAX_UPSAMPLING = 32, 4, 2
# Colours in some masks are evidence against ids in others that could be either.
CONTRADICTIONS = ((ReadBy.COLOR, ReadBy.CHANNEL),)


def file_faults(records: Sequence[ImageRecord]) -> list[Finding]:
    """Pairs that cannot be used at all."""
    findings = []
    for problem in Problem:
        found = [record for record in records if record.problem is problem]
        if found:
            message, fix = describe_problem(problem, [f"{record.split}/{record.detail}" for record in found])
            is_one_file = problem in (Problem.EMPTY, Problem.TRUNCATED, Problem.UNREADABLE)
            files = [record.problem_file for record in found] if is_one_file else keys_of(found)
            findings.append(finding(problem.value, ERROR, message, fix, files))
    return findings


def exif_faults(records: Sequence[ImageRecord]) -> list[Finding]:
    """EXIF entries that say how to turn an image, which not every program obeys."""
    findings = []
    for turned in (Turned.LIKE_IMAGE, Turned.AGAINST_ENTRY):
        odd = [record for record in records if record.turned is turned]
        fix = f"look whether masks fit their images; {CLEAN_COPY} writes both upright"
        findings += part_finding("exif-mask", WARNING, odd, records, f"mask was/were {HOW_READ[turned]}", fix)
    by_entry = [r for r in records if 1 < r.orientation <= 8 and r.turned is Turned.BY_ENTRY]
    doubtful = [r for r in by_entry if r.orientation in (2, 3, 4) or r.width == r.height]
    said = (
        "image is/are turned or mirrored by an EXIF entry, and sizes do not tell whether masks were drawn before that"
    )
    fix = f"look at some; {CLEAN_COPY} writes image and mask as they are understood"
    findings += part_finding("exif-doubtful", WARNING, doubtful, records, said, fix)
    doubtful_keys = set(keys_of(doubtful))
    harmless = [record for record in by_entry if record.key not in doubtful_keys]
    said = "image is/are stored turned, with an EXIF entry, and read upright"
    fix = f"nothing for training; {CLEAN_COPY} writes upright images, for programs that ignore the entry"
    return findings + part_finding("exif-rotation", INFO, harmless, records, said, fix)


def image_faults(records: Sequence[ImageRecord], image_size: int | None) -> list[Finding]:
    """Images that are odd by themselves, whatever their masks."""
    decoded, looked = [record for record in records if record.width], looked_at(records)
    decoded.sort(key=_short_side)
    findings = []
    for oddity, kind, said, fix in (
        ("blank image", "image-blank", "image shows/show one colour and nothing else", "leave out, or export again"),
        (
            *("animated image", "image-animated", "image holds/hold several frames or pages; the first is read"),
            "store each frame or page as an image of its own",
        ),
        (
            *("transparent image", "image-transparent", "image is/are transparent; transparency is lost"),
            "paste onto the right background, if what is behind matters",
        ),
    ):
        found = [record for record in looked if oddity in record.oddities]
        findings += part_finding(kind, WARNING, found, looked, said, fix)
    usable = [record for record in decoded if not record.problem]
    dtypes = Counter(record.image_dtype for record in usable)
    if len(dtypes) > 1:
        others = [record for record in usable if record.image_dtype != dtypes.most_common(1)[0][0]]
        said = f"image has/have numbers of another kind than the rest ({_listed(dtypes)})"
        fix = "convert all to one kind, with one unit, as they are normalised by one mean"
        findings += part_finding("image-dtypes-mixed", ERROR, others, usable, said, fix)
    cmyk = [record for record in decoded if record.image_mode == "CMYK"]
    said = "image has/have printers' colours (CMYK), converted without their profile"
    findings += part_finding("image-cmyk", WARNING, cmyk, decoded, said, "convert to RGB with the colour profile")
    modes = Counter(record.image_mode for record in decoded if record.image_mode != "CMYK")
    if len(modes) > 1:
        others = [record for record in decoded if record.image_mode not in ("CMYK", modes.most_common(1)[0][0])]
        said = f"image has/have another mode than the rest ({_listed(modes)})"
        findings += part_finding("image-modes-mixed", INFO, others, decoded, said, "all are read as RGB")

    tiny = [record for record in decoded if _short_side(record) < TINY_SIDE]
    said = f"image is/are less than {TINY_SIDE} pixels high or wide"
    findings += part_finding("image-tiny", WARNING, tiny, decoded, said, "leave out")
    small = [record for record in decoded if _short_side(record) * MAX_UPSAMPLING < (image_size or 0)]
    if small:
        said = f"image is/are enlarged more than {MAX_UPSAMPLING} times to --image_size {image_size}"
        said += f"; the smallest has {_short_side(small[0])}"
        severity = WARNING if len(small) > 0.1 * len(decoded) else INFO
        fix = "choose a smaller --image_size, or larger images"
        findings += part_finding("image-upsampled", severity, small, decoded, said, fix)
    long = [record for record in decoded if max(record.width, record.height) > MAX_ASPECT * _short_side(record)]
    said = f"image is/are more than {MAX_ASPECT} times as long as wide, which evaluation distorts"
    return findings + part_finding("image-elongated", INFO, long, decoded, said, "cut into tiles")


def _short_side(record: ImageRecord) -> int:
    return min(record.width, record.height)


def mask_form_faults(records: Sequence[ImageRecord], class_map: ClassMap | None) -> list[Finding]:
    """How masks are stored: colours instead of ids, palettes that contradict each other, several frames."""
    looked = looked_at(records)
    animated = [record for record in looked if "animated mask" in record.oddities]
    said = "mask holds/hold several frames or pages; the first is read"
    fix = "store masks with one page; separate masks of single classes must be joined into one of ids"
    findings = part_finding("mask-animated", WARNING, animated, looked, said, fix)

    # Programs that save "indexed colours" number them by how often they occur, in every file anew.
    colors_of, first = defaultdict(Counter), {}
    for record in looked:
        by_color = record.read_by in (ReadBy.PALETTE, ReadBy.PALETTE_NOT_INDEX)
        for value, color in {} if by_color else record.palette.items():
            colors_of[value][color] += 1
            first.setdefault((value, color), record)
    differing = {value: colors for value, colors in colors_of.items() if len(colors) > 1}
    if differing:
        usual = {value: colors.most_common(1)[0][0] for value, colors in differing.items()}
        odd = [r for r in looked if any(color != usual.get(value, color) for value, color in r.palette.items())]
        value, colors = next(iter(differing.items()))
        listed = ", ".join(f"{color} in {first[value, color].key}" for color in list(colors)[:2])
        message = (
            f"indexed masks give {count_of(len(differing), 'value')} different colours in different files (value "
            f"{value}: {listed}), so a value may stand for another class in each"
        )
        fix = (
            "if the colours tell the classes, give the list of these: --id2label FILE, a CSV with the columns "
            "name,r,g,b; if the values do, one with names alone"
        )
        severity = ERROR if class_map is None or class_map.is_named_after_values else WARNING
        findings.append(finding("mask-palettes-differ", severity, message, fix, keys_of(odd)))

    usable = [record for record in records if not record.problem]
    by_reading = defaultdict(list)
    for record in usable:
        by_reading[record.read_by].append(record)
    for colors, ids in CONTRADICTIONS:
        by_color, by_id = by_reading[colors], by_reading[ids]
        if by_color and by_id:
            message = (
                f"{count_of(len(by_color), 'mask/masks was/were')} {HOW_READ[colors]} ({shorten(keys_of(by_color))}), "
                f"but {count_of(len(by_id), 'was/were')} {HOW_READ[ids]} ({shorten(keys_of(by_id))})"
            )
            fix = (
                "if all show colours, add those that belong to no class to the list of classes (--id2label); else "
                "write all with one channel, a class id for each pixel"
            )
            findings.append(finding("mask-forms-mixed", ERROR, message, fix, keys_of(by_id)))
    for kind, severity, ways, fix in (
        ("mask-channels", INFO, (ReadBy.CHANNEL,), f"nothing for training; {CLEAN_COPY} writes one channel"),
        ("mask-by-color", INFO, (ReadBy.COLOR, ReadBy.PALETTE), f"nothing for training; {CLEAN_COPY} writes ids"),
        (
            "mask-palette-contradicts",
            WARNING,
            (ReadBy.PALETTE_NOT_INDEX,),
            "right if the masks were drawn in colours; else give a list of classes without colours (--id2label)",
        ),
    ):
        for way in ways:
            findings += part_finding(kind, severity, by_reading[way], usable, f"mask was/were {HOW_READ[way]}", fix)
    modes = Counter(record.mask_mode for record in usable)
    if len(modes) > 1:
        common = modes.most_common(1)[0][0]
        others = [record for record in usable if record.mask_mode != common]
        message = f"masks are stored in different modes ({_listed(modes)})"
        fix = "look whether the same values mean the same in all of them"
        findings.append(finding("mask-modes-mixed", INFO, message, fix, keys_of(others)))
    return findings


def _listed(modes: Counter) -> str:
    return ", ".join(f"{mode}: {count}" for mode, count in modes.most_common())
