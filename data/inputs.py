"""What is to be predicted, as people name it: files, folders, patterns, addresses on the web, and lists of these.

    for item in expand(["photos", "more/*.jpg", "@list.txt", "https://example.org/b.jpg"]): ...
    with Downloads(most_bytes=2**28, seconds=60) as downloads:
        path = downloads.path_of(item.source)

An `Address` is downloaded when it is read, and deleted when the next one is.
"""

import glob
import hashlib
import logging
import os
import queue
import re
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib import request
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit

from cli_utils import UserError, count_of, one_line, read_text, shorten
from data.layouts import split_extension
from data.output_paths import inner_names
from data.synonyms import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from data.unread import describe_unread, unread_among

logger = logging.getLogger(__name__)

LIST_SIGN, STDIN = "@", "-"
MAX_REDIRECTS = 10
CHUNK = 1 << 16


class Address(str):
    """Of an image on the web, http or https."""

    @property
    def shown(self) -> str:
        """For messages: without a password, and without what follows "?", which may be a signature."""
        return re.sub("//[^/]*@", "//", self.partition("?")[0]) + ("?…" if "?" in self else "")

    @property
    def name(self) -> str:
        """Host and path, without extension."""
        parts = urlsplit(self)
        return split_extension(f"{parts.hostname}/{unquote(parts.path).strip('/')}".rstrip("/"))[0]

    @property
    def suffix(self) -> str:
        """Extension of its path, in small letters, if it is one of an image's."""
        suffix = split_extension(urlsplit(self).path)[1]
        return suffix if suffix in IMAGE_EXTENSIONS else ""


@dataclass(frozen=True)
class Input:
    """A file, a folder or an address.

    name: of its outputs, without extension; of a folder, nothing. listed: it stands in a list, where one that is not
    there is left out like one that cannot be read.
    """

    source: Path | Address
    name: str = ""
    listed: bool = False


def expand(words: Iterable[str | os.PathLike]) -> list[Input]:
    """What the words of a command line name, in their order.

    Patterns, where no shell has seen them, become what they match, sorted; "@FILE" what its lines name.

    Raises:
        UserError: nothing is there, or it is of a kind that is not read.
    """
    found = []
    for word in map(os.fspath, words):
        if word.startswith(LIST_SIGN) and not os.path.exists(word):
            found += _of_list(Path(word[len(LIST_SIGN) :]).expanduser())
        else:
            found += _of_word(word)
    return _told_apart(found)


def _of_word(word: str, beside: Path | None = None) -> list[Input]:
    """beside: the folder of the list that it stands in."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", word):
        address = Address(word)
        if not re.match(r"(?i)https?://[^/?#@]+([/?#]|$)", word):
            raise UserError(f"{address.shown}: what is read is http://host/path and https://host/path; download it")
        if split_extension(urlsplit(address).path)[1] in VIDEO_EXTENSIONS:
            raise UserError(f"{address.shown}: films are read from files; download it")
        return [Input(address, address.name)]
    if not word.strip():
        raise UserError("an image without a name (a variable of the shell that is not set?)")
    path = Path(word).expanduser()
    if beside is not None and not os.path.exists(path) and os.path.exists(beside / path):
        path = beside / path
    if os.path.exists(path) or not glob.has_magic(str(path)):
        return [Input(path, split_extension(path.name)[0], beside is not None)]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not matches and beside is not None:
        matches = [Path(match) for match in sorted(glob.glob(str(beside / path), recursive=True))]
    if not matches:
        raise UserError(f"{path}: no such file or folder")
    return _of_matches(path, matches)


def _of_matches(pattern: Path, matches: list[Path]) -> list[Input]:
    """Images, films and folders; says what else there is."""
    # Of photos/** the files come by themselves.
    matches = [path for path in matches if not path.is_dir() or "**" not in pattern.parts]
    read = IMAGE_EXTENSIONS | VIDEO_EXTENSIONS
    kept = [path for path in matches if path.is_dir() or split_extension(path.name)[1] in read]
    unread = unread_among((path for path in matches if not path.is_dir()), read)
    passed_over = f"{pattern}: {', '.join(describe_unread(unread))}" if unread else ""
    if not kept:
        raise UserError(passed_over or f"{pattern} matches {count_of(len(matches), 'file')} and no image")
    if unread:
        logger.warning(passed_over)
    return [Input(path, split_extension(path.name)[0]) for path in kept]


def _of_list(file: Path) -> list[Input]:
    """What the lines of a text file name: from here, or beside it. Empty lines, and those that begin with #, are none.

    A file is called as its line says, with the folders, where that leads out of no folder.
    """
    try:
        lines = [line.strip() for line in read_text(file).splitlines()]
    except OSError as error:
        raise UserError(f"{LIST_SIGN}{file}: {error.strerror or one_line(error)}; it is a list of images") from None
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"{LIST_SIGN}{file} lists nothing: it takes a file, a folder, a pattern or an address a line")
    nested = [line for line in lines if line.startswith(LIST_SIGN) or line == STDIN]
    if nested:
        raise UserError(f"{LIST_SIGN}{file} lists {nested[0]!r}; name it on the command line")
    items = [(line, item) for line in lines for item in _of_word(line, file.parent)]
    if not any(isinstance(item.source, Address) or os.path.exists(item.source) for _, item in items):
        raise UserError(f"{LIST_SIGN}{file}: not one of the files that it lists is there: {shorten(lines)}")
    plain = [index for index, (_, item) in enumerate(items) if item.listed and not item.source.is_dir()]
    names = inner_names([split_extension(Path(items[index][0]).as_posix())[0] for index in plain])
    found = [item for _, item in items]
    for index, name in zip(plain, names, strict=True):
        found[index] = replace(found[index], name=name)
    return found


def _told_apart(found: list[Input]) -> list[Input]:
    """Different addresses of one name, as they differ in what follows "?", get a part of its hash."""
    addresses = {item.source for item in found if isinstance(item.source, Address)}
    counts = Counter(address.name for address in addresses)

    def named(item: Input) -> Input:
        if not isinstance(item.source, Address) or counts[item.name] == 1:
            return item
        return replace(item, name=f"{item.name}_{hashlib.sha256(item.source.encode()).hexdigest()[:8]}")

    return [named(item) for item in found]


# ---- the web --------------------------------------------------------------------------------------------------------


class Downloads:
    """Context manager: a folder for the image that is read, of its own, and gone at the end.

    Args:
        most_bytes: of a file. seconds: for all of its download.
    """

    def __init__(self, most_bytes: int, seconds: float):
        self.most_bytes, self.seconds = most_bytes, seconds
        self.folder = None

    def __enter__(self) -> "Downloads":
        self.folder = TemporaryDirectory(prefix="images_", ignore_cleanup_errors=True)
        return self

    def __exit__(self, *exception) -> None:
        self.folder.cleanup()

    def path_of(self, source: Path | Address) -> Path:
        """A file of this machine; of an address, until the next call.

        Raises:
            UserError: it cannot be had, is too large or takes too long.
        """
        if isinstance(source, Path):
            return source
        for path in Path(self.folder.name).iterdir():
            path.unlink(missing_ok=True)
        target = Path(self.folder.name, hashlib.sha256(source.encode()).hexdigest()[:16] + source.suffix)
        # By itself, as a server may take its time over every single byte of an answer.
        outcome, stop = queue.SimpleQueue(), threading.Event()
        threading.Thread(target=self._work, args=(source, target, outcome, stop), daemon=True).start()
        try:
            error = outcome.get(timeout=self.seconds)
        except queue.Empty:
            error = f"not there after {self.seconds:g} seconds; --url_seconds allows more"
        stop.set()
        if error:
            raise UserError(f"{source.shown} ({error})")
        return target

    def _work(self, address: Address, target: Path, outcome: queue.SimpleQueue, stop: threading.Event) -> None:
        try:
            self._download(address, target, stop)
        except Exception as error:  # as it comes: of the address, the network, the server, the disk
            if isinstance(error, HTTPError):
                outcome.put(f"the server answers {error.code} {error.reason}".splitlines()[0])
            else:
                reason = getattr(error, "reason", None)  # of what the library wraps
                outcome.put(one_line(reason if isinstance(reason, Exception) else error))
        else:
            outcome.put(None)

    def _download(self, address: Address, target: Path, stop: threading.Event) -> None:
        headers = {"User-Agent": "predict.py", "Accept": "image/*, */*;q=0.5"}
        with (
            _opener().open(request.Request(address, headers=headers), timeout=self.seconds) as answer,
            open(target, "wb") as file,
        ):
            stated, size = int(answer.headers.get("Content-Length", -1)), 0
            kind = answer.headers.get_content_type()
            if kind in ("text/html", "application/json"):
                raise ValueError(f"no image: the server sends {kind}")
            while not stop.is_set() and (chunk := answer.read1(CHUNK)):
                size += len(chunk)
                if max(size, stated) > self.most_bytes:
                    most = f"{self.most_bytes / 2**20:g} MB"
                    raise ValueError(f"more than {most}; --url_megabytes allows more")
                file.write(chunk)
            if size < stated:
                raise ValueError(f"ends after {size:,} of {stated:,} bytes")


def _opener() -> request.OpenerDirector:
    """For http and https alone, also where a server sends on."""
    redirects = request.HTTPRedirectHandler()
    redirects.max_redirections = MAX_REDIRECTS
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.UnknownHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        redirects,
        request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
