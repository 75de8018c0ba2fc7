"""Files that people take for pictures and that are not read: by their extension, or by their first bytes.

A folder with eight .jpg and four .heic is not a folder of eight photos. Whoever searches one (training, the check,
prediction) says how many files it passed over, and which.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from cli_utils import count_of, shorten
from data.layouts import is_litter

# Photos, raw photos, films, scans, arrays. Those of them that are read elsewhere in `data/` are not passed over.
PICTURES = set(
    ".heic .heif .avif .jxl .jp2 .j2k .jpf .jpx .jfif .jpe .gif .ppm .pgm .pnm .tga .psd .exr .hdr .dds "
    ".raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .mp4 .mov .avi .mkv .webm .npy .npz .dcm .nii .czi .nd2 .svs"
    "".split()
)
# What lies beside pictures; of other files the first bytes tell.
COMPANIONS = set(
    ".txt .json .jsonl .ndjson .geojson .csv .tsv .xml .yaml .yml .toml .md .rst .html .log .py .ipynb .sh .cfg .ini "
    ".cache .pt .bin .safetensors .parquet .arrow .zip .gz .tar .7z .rar .prj .tfw .jgw .pgw .wld .aux .xlsx .docx"
    "".split()
)
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")


def unread_pictures(folder: str | os.PathLike, read: Collection[str]) -> list[Path]:
    """Files in a folder and its subfolders that are pictures and none of those that are read, sorted.

    read: the extensions that are, in small letters.
    """
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_litter(Path(name)))
        for name in sorted(files):
            path = Path(parent, name)
            suffix = path.suffix.lower()
            if suffix in read or suffix in COMPANIONS or is_litter(Path(name)):
                continue
            if suffix in PICTURES or _begins_like_a_picture(path):
                found.append(path)
    return found


def describe_unread(paths: Iterable[Path], read: Collection[str]) -> tuple[str, str]:
    """What was passed over, and what to do about it."""
    paths = list(paths)
    kinds = Counter(path.suffix.lower() or "without extension" for path in paths)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    phrase = count_of(len(paths), "file/files is/are")
    first = next((kind for kind, _ in kinds.most_common() if kind.startswith(".")), "")
    example = f", for instance with `mogrify -format png *{first}`" if first else ""
    message = f"{phrase} of kinds that are not read ({listed}): {shorten(path.name for path in paths)}"
    return message, f"convert to JPEG or PNG{example} (read are {' '.join(sorted(read))})"


def _begins_like_a_picture(path: Path) -> bool:
    try:
        if not path.is_file():  # a pipe would wait for ever
            return False
        with open(path, "rb") as file:
            return file.read(8).startswith(SIGNATURES)
    except OSError:
        return False
