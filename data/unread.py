"""Files that people take for pictures and that are not read: by their extension, or by their first bytes.

A folder with eight .jpg and four .heic is not a folder of eight photos. Whoever searches one (training, the check,
prediction) says how many files it passed over, and which. What to do about each kind stands in `data.synonyms`.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from cli_utils import count_of, shorten
from data.layouts import Tree, split_extension
from data.synonyms import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS

# What lies beside pictures; of other files the first bytes tell.
COMPANIONS = set(
    ".txt .json .jsonl .ndjson .geojson .csv .tsv .xml .yaml .yml .toml .md .rst .html .log .py .ipynb .sh .cfg .ini "
    ".cache .pt .bin .safetensors .parquet .arrow .zip .gz .tar .7z .rar .prj .tfw .jgw .pgw .wld .aux .xlsx .docx"
    "".split()
)
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")


def unread_pictures(tree: Tree, read: Collection[str] = IMAGE_EXTENSIONS) -> list[Path]:
    """Files of a tree that are pictures, films or arrays and none of those that are read, sorted.

    read: the extensions that are, in small letters.
    """
    return unread_among((tree.path(*file) for file in tree.files if not _is_known(file[1], read)), read)


def unread_among(paths: Iterable[Path], read: Collection[str] = IMAGE_EXTENSIONS) -> list[Path]:
    """As `unread_pictures`, of any files."""
    found = []
    for path in paths:
        if _is_known(path.name, read):
            continue
        if _extension(path.name) in UNREAD_EXTENSIONS or _begins_like_a_picture(path):
            found.append(path)
    return sorted(found)


def describe_unread(paths: Iterable[Path]) -> tuple[str, str]:
    """What was passed over, and what to do about it."""
    paths = list(paths)
    kinds = Counter(_extension(path.name) for path in paths)
    listed = ", ".join(f"{count} {kind or 'without extension'}" for kind, count in kinds.most_common())
    phrase = count_of(len(paths), "file/files is/are")
    message = f"{phrase} of kinds that are not read ({listed}): {shorten(path.name for path in paths)}"
    advice = defaultdict(list)
    for kind, _ in kinds.most_common():
        advice[UNREAD_EXTENSIONS.get(kind, "convert to JPEG or PNG")].append(kind or "without extension")
    each = [f"{' '.join(of)}: {what}" if len(advice) > 1 else what for what, of in advice.items()]
    return message, f"{'; '.join(each)} (read are {' '.join(sorted(IMAGE_EXTENSIONS))})"


def _extension(name: str) -> str:
    return ".nii.gz" if name.lower().endswith(".nii.gz") else split_extension(name)[1]


def _is_known(name: str, read: Collection[str]) -> bool:
    """Whether a file is read, or is of those that lie beside pictures."""
    extension = _extension(name)
    return extension in read or extension in COMPANIONS


def _begins_like_a_picture(path: Path) -> bool:
    try:
        if not path.is_file():  # a pipe would wait for ever
            return False
        with open(path, "rb") as file:
            return file.read(8).startswith(SIGNATURES)
    except OSError:
        return False
