"""How names that come from data (a file, a table, JSON) become paths of outputs: the one way there is.

    for name, path in zip(names, output_names(names), strict=True):     # "sub/a" → "sub/a", "../a" → "a_2"
        ...                                                             # folder / f"{path}.png"
    refuse_inputs(outputs, data.files(), "--output_dir")                # before any long work

A name never decides where something is written: its path lies below the output folder, is the only one of its kind
where neither capitals nor Unicode normal forms count (macOS, Windows), and is valid on Windows too. Ordinary names
stay as they are.
"""

import hashlib
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePath

from cli_utils import UserError, printable
from data.synonyms import IMAGE_EXTENSIONS, MASK_EXTENSIONS

# Bytes of a part of a path, of 255 at most, and of all of it. A number, an extension, "." and ".partial" come on top.
MAX_PART, MAX_PATH = 180, 1000
# Not allowed on Windows, or not shown as what they are: control characters, line breaks, turns of the direction.
_FORBIDDEN = re.compile('[<>:"|?*\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]')
# Bytes of a name that is no UTF-8, as Python holds them, and other halves of characters, which no file can be called.
_SURROGATE = re.compile("[\ud800-\udfff]")
# Devices on Windows, whatever the extension.
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{device}{digit}" for device in ("com", "lpt") for digit in "0123456789¹²³"
}
_EXTENSIONS = IMAGE_EXTENSIONS | MASK_EXTENSIONS
UNNAMED = "image"


def output_names(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Names from data → paths below any folder, with "/" between their parts and without extension, in that order.

    Args:
        names: any text. Of two that would be the same file, the later one gets a number; a name that has to be changed
            never takes the place of one that can stay.
        taken: paths that are given away already.
    """
    names = list(names)
    paths = [_valid_path(name) for name in names]
    used = {_key(path): 1 for path in taken}  # → the last number that was tried
    changed_last = sorted(range(len(names)), key=lambda index: paths[index] != names[index])
    for index in changed_last:
        key, path = _key(paths[index]), paths[index]
        while _key(path) in used:
            used[key] += 1
            path = f"{paths[index]}_{used[key]}"
        used[_key(path)] = 1
        paths[index] = path
    return paths


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[str | os.PathLike], flag: str) -> None:
    """Raises UserError where an output is a file that is to be read: by that path, through a link or as a copy of it.

    outputs: paths, there already or not. flag: names what the user has to change.
    """
    there = {}
    for path in outputs:
        status = _status(path)
        if status:
            there[status.st_dev, status.st_ino] = path
    if not there:
        return
    for path in inputs:
        status = _status(path)
        output = status and there.get((status.st_dev, status.st_ino))
        if output:
            raise UserError(
                f"{printable(str(output))} would be overwritten, and it is one of the images and masks that are read; "
                f"give another {flag}"
            )


def check_writable(path: str | os.PathLike, flag: str, is_folder: bool = False) -> None:
    """Raises UserError where a file, or files of a folder, cannot be written; makes nothing that stays.

    path: there already or not; missing folders above it would be made.
    """
    path = Path(os.path.abspath(path))  # "." has no name
    folder = path if is_folder else path.parent
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)  # raises where the name is too long
        if path.is_dir() and not is_folder:
            raise UserError(f"{flag} {printable(str(path))} is a folder; give a file in it")
        if path.exists() and not path.is_dir():
            if is_folder:
                raise UserError(f"{flag} {printable(str(path))} is a file; give a folder")
            if not path.is_file():
                return  # /dev/stdout and the like
        while not os.path.lexists(folder):
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):  # what permissions say does not hold for mounts, nor for root
            pass
    except OSError as error:
        raise UserError(
            f"{flag} {printable(str(path))} cannot be written to ({error.strerror}: {printable(str(folder))}); "
            "give another one"
        ) from None


def check_files_writable(args, *names: str) -> None:
    """`check_writable` of the files that fields of a group of flags name, where they are given."""
    for name in names:
        if getattr(args, name) is not None:
            check_writable(getattr(args, name), f"--{name}")


def inner_names(names: Sequence[str]) -> list[str]:
    """Paths without extension, as a table has them → names that lead out of no folder nor tell of this machine.

    Absolute paths are named from the folder down that all of them share, others lose what goes up; those that do
    neither stay as they are. Different paths get different names.
    """
    absolute = [PurePath(name).parent for name in names if PurePath(name).is_absolute()]
    shared = ""
    with suppress(ValueError):  # nothing absolute, or on several drives
        shared = os.path.commonpath(absolute)
    taken = {name for name in names if _is_inner(name)}
    inner = {name: name for name in taken}
    for name in names:
        if name in inner:
            continue
        path = PurePath(name)
        path = path.relative_to(shared or path.anchor) if path.is_absolute() else PurePath(os.path.normpath(path))
        start = unique = "/".join(part for part in path.parts if part != "..") or UNNAMED
        number = 2
        while unique in taken:
            unique, number = f"{start}_{number}", number + 1
        taken.add(unique)
        inner[name] = unique
    return [inner[name] for name in names]


def _is_inner(name: str) -> bool:
    return not PurePath(name).is_absolute() and ".." not in PurePath(name).parts


def _status(path: str | os.PathLike) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):  # missing, too long, or with a NUL in it
        return None


def _key(path: str) -> str:
    """The same for paths that are one file where capitals and normal forms do not count."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def _valid_path(name: str) -> str:
    """The name itself where it can stay."""
    parts = [_valid_part(part) for part in re.split(r"[/\\]", name)]
    parts = [part for part in parts if part] or [UNNAMED]
    # A folder called a.png would be in the way of the prediction of an image called a.
    folders = [part + "_" * (Path(part).suffix.lower() in _EXTENSIONS) for part in parts[:-1]]
    path = "/".join([*folders, parts[-1]])
    return path if len(path.encode()) <= MAX_PATH else _shortened(parts[-1], MAX_PART, name)


def _valid_part(part: str) -> str:
    """A part of a path, empty for one that names no folder of its own."""
    valid = _SURROGATE.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", part)
    valid = _FORBIDDEN.sub("_", valid).lstrip(".").rstrip(". ")
    if valid.startswith("~"):
        valid = "_" + valid[1:]
    if valid.split(".")[0].rstrip(" ").casefold() in _DEVICES:
        valid = f"_{valid}"
    return valid if len(valid.encode()) <= MAX_PART else _shortened(valid, MAX_PART, part)


def _shortened(text: str, size: int, of: str) -> str:
    """The first bytes of a text, whole characters, and a hash of what it is short for."""
    digest = hashlib.sha256(of.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    start = text.encode()[: size - len(digest) - 1].decode("utf-8", "ignore")
    return f"{start}_{digest}"
