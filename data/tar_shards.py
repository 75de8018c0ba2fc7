"""Tar shards as webdataset has them, at an address: files whose names are alike up to the first dot belong together.

`datasets` reads them from disks and from the Hub by itself, but not through s3fs: it opens archives with an option
that s3fs does not know (since huggingface/datasets#6578).
tests/data/test_object_storage.py::test_datasets_still_cannot_read_tar_shards_there tells when this can go.
"""

import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePosixPath

import fsspec
from datasets import Features, Image, IterableDataset
from PIL.Image import registered_extensions

SEEN = 5  # examples of a shard that tell its columns


def open_shards(files: list[str]) -> IterableDataset:
    """The images of tar files at addresses, a column for each ending ("jpg", "seg.png"); each file is a shard.

    Raises:
        OSError, tarfile.TarError: the first file cannot be read.
        ValueError: it holds no images.
    """
    columns = sorted(set().union(*islice(_examples(files[0]), SEEN)))
    if not columns:
        raise ValueError(f"{files[0]} holds no images")
    # Of what the generator is given a list is dealt out among the readers, and a tuple is not.
    options = {"files": files, "columns": tuple(columns)}
    return IterableDataset.from_generator(_rows, Features({name: Image() for name in columns}), options)


def _rows(files: list[str], columns: tuple[str, ...]) -> Iterator[dict]:
    for file in files:
        for example in _examples(file):
            yield {name: example.get(name) for name in columns}


def _examples(file: str) -> Iterator[dict[str, dict]]:
    """Column → {"bytes", "path"} of the images that belong together."""
    endings = registered_extensions()
    example, last = {}, None
    with fsspec.open(file, "rb") as opened, tarfile.open(fileobj=opened, mode="r|") as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            stem, _, column = name.name.partition(".")
            if not member.isfile() or not stem or name.suffix.lower() not in endings:
                continue
            key = str(name.with_name(stem))
            if example and key != last:
                yield example
                example = {}
            last = key
            example[column] = {"bytes": tar.extractfile(member).read(), "path": f"{key}.{column}"}
    if example:
        yield example
