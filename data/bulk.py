"""Work on whole datasets: in several processes, and under a name that changes with all that the result depends on."""

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import chain, islice

import numpy as np
import pyarrow as pa
from datasets import Dataset

MAX_PROCESSES = 8
KILLED = "the system killed a process at work on the images, mostly as memory ran out: the rest is done in one process"
BLOCK, CHUNK = 128, 16  # tasks handed to all processes, and to one, at a time

logger = logging.getLogger(__name__)


def processes_for(count: int, images_per_process: int) -> int:
    """How many processes pay off: one for every `images_per_process` images, as far as there are CPUs, at most 8."""
    return max(1, min(os.cpu_count() or 1, MAX_PROCESSES, count // images_per_process))


def map_in_order(function: Callable, tasks: Iterable, num_proc: int) -> Iterator:
    """`map` in processes. Tasks are handed out in blocks, as they may hold whole files.

    Where the system kills one of the processes, this one does the rest alone.
    """
    tasks, block, done = iter(tasks), [], 0
    if num_proc > 1:
        try:
            with ProcessPoolExecutor(num_proc) as pool:
                while block := list(islice(tasks, BLOCK)):
                    done = 0
                    for result in pool.map(function, block, chunksize=CHUNK):
                        yield result
                        done += 1
        except BrokenProcessPool:
            logger.warning(KILLED)
    yield from map(function, chain(block[done:], tasks))


def column_of(rows: Dataset, name: str) -> np.ndarray:
    """A column of numbers, (rows,), or of as many numbers in every row, (rows, numbers); straight from Arrow, in a
    twentieth of the time that goes through Python's own numbers."""
    column = rows.select_columns([name]).with_format("arrow")[:][name].combine_chunks()
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.to_numpy(zero_copy_only=False)
    numbers = column.flatten().to_numpy(zero_copy_only=False)
    return numbers.reshape(len(column), -1) if len(column) else numbers.reshape(0, 0)


def cache_key(*facts: object, files: Iterable[str | os.PathLike | None]) -> str:
    """Hash of facts, a version of the code among them, and of the paths, sizes and times of files."""
    digest = hashlib.sha256(repr(facts).encode())
    for path in files:
        stamp = None
        with suppress(OSError, ValueError):  # there is no such file, or it can have no such name
            status = os.stat(path or "")
            if stat.S_ISREG(status.st_mode):
                stamp = status.st_size, status.st_mtime_ns
        digest.update(repr((str(path), stamp)).encode())
    return digest.hexdigest()[:40]
