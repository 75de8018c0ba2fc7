"""What lies at an address, `--dataset_name s3://bucket/folder`, through the package of fsspec that reads it.

    builder, files = find_files("s3://bucket/folder")       # datasets.load_dataset(builder, data_files=files)

Where to ask and who asks is the package's own affair: the environment tells it, as AWS_ENDPOINT_URL and
AWS_ACCESS_KEY_ID do for s3://.
"""

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from xxhash import xxh64_hexdigest

from cli_utils import UserError, one_line, shorten, written_aside
from data.layouts import standard_split_name, words_of

logger = logging.getLogger(__name__)

BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}  # of `datasets`, which reads these from anywhere
PATIENCE = 30  # seconds within which a storage answers at all; the packages themselves try for minutes
CREDENTIALS = (
    "credentials come from the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY do for s3://, and "
    "FSSPEC_S3_ANON=true asks without any"
)


def find_files(name: str, token: str | None = None) -> tuple[str, dict[str, list[str]]]:
    """What lies at an address, a folder or a file: the builder of `datasets` that reads it, and split → addresses of
    files. Listed once, however many there are.

    token: of the Hub, for hf://.

    Raises:
        UserError: nothing is there, or nothing that can be read; no credentials, or wrong ones; no answer.
    """
    folder = name.rstrip("/")
    with _explained(name):
        storage = _storage(name, token)
        is_file = _first_answer(storage, name)["type"] == "file"
        found = [folder] if is_file else sorted(map(storage.unstrip_protocol, storage.find(folder)))
    found = [file for file in found if _suffix(file) in BUILDERS]
    suffixes = sorted({_suffix(file) for file in found})
    if len(suffixes) != 1:
        what = f"both {' and '.join(suffixes)} files, of which either is read" if suffixes else "no dataset"
        raise UserError(
            f"--dataset_name {name} holds {what}: parquet files (train-00000.parquet …) or the tar shards of "
            "webdataset (train-00000.tar …)"
        )
    splits: dict[str | None, list[str]] = {}
    for file in found:
        splits.setdefault(None if is_file else _split_of(file.removeprefix(folder)), []).append(file)
    unnamed = splits.pop(None, [])
    if not splits:
        splits = {"train": unnamed}
    elif unnamed:
        logger.warning(f"{name}: files that name no split are left out: {shorten(unnamed)}")
    return BUILDERS[suffixes[0]], splits


def _suffix(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def _split_of(path: str) -> str | None:
    """The split that a path below the dataset's folder names: in the file's name, else in that of a folder."""
    for part in reversed(PurePosixPath(path).parts):
        split = next(filter(None, map(standard_split_name, words_of(part))), None)
        if split:
            return split
    return None


def fetch_first(name: str, files: Iterable[str], cache_dir: Path, token: str | None = None) -> Path | None:
    """The first of the files that the folder at an address has, copied to a folder of its own below `cache_dir`; None
    where it has none.

    Raises:
        UserError: it cannot be read.
    """
    folder = name.rstrip("/")
    with _explained(name):
        storage = _storage(name, token)
        _first_answer(storage, name)
        for file in files:
            if storage.exists(f"{folder}/{file}"):
                copy = Path(cache_dir, xxh64_hexdigest(f"{folder}/{file}".encode()), file)
                with written_aside(copy) as partial:
                    storage.get_file(f"{folder}/{file}", str(partial))
                return copy
    return None


def _storage(name: str, token: str | None) -> AbstractFileSystem:
    options = {"token": token} if token and name.startswith("hf://") else {}
    return url_to_fs(name, **options)[0]


def _first_answer(storage: AbstractFileSystem, name: str) -> dict:
    """What a storage says of an address: "type", "file" or "directory", and so on."""
    answers, faults = [], []

    def ask() -> None:
        try:
            answers.append(storage.info(name))
        except Exception as error:  # raised again below
            faults.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    if faults:
        raise faults[0]
    if not answers:
        raise TimeoutError(f"no answer within {PATIENCE} s")
    return answers[0]


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Makes a UserError of whatever the storage raises, whose package has kinds of errors of its own."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"--dataset_name {name}: {_how_far_it_is_right(name)}") from None
    except Exception as error:
        said = one_line(error)
        if isinstance(error, PermissionError) or "credential" in f"{type(error).__name__} {error}".lower():
            raise UserError(f"--dataset_name {name} must not be read ({said}); {CREDENTIALS}") from None
        raise UserError(f"--dataset_name {name} cannot be reached ({said})") from None


def _how_far_it_is_right(name: str) -> str:
    """What is there of an address that leads to nothing."""
    kind, _, rest = name.rstrip("/").partition("://")
    parts = rest.split("/")
    for known in range(len(parts) - 1, 0, -1):
        parent = f"{kind}://{'/'.join(parts[:known])}"
        try:
            held = sorted(Path(path).name for path in _storage(parent, None).ls(parent, detail=False))
        except Exception:  # it is not there either, or must not be listed
            continue
        beside = f"it has {shorten(held)}" if held else "it is empty"
        return f"{parent} has no {'/'.join(parts[known:])}; {beside}"
    return f"there is no {kind}://{parts[0]}"
