"""How many processes read images for a process that trains on an accelerator, where no flag says so, and whether they
read as fast as it trains.

On CPUs none: the network itself takes all of them. Beside an accelerator as many as this process has CPUs, at most
`MOST_WORKERS`, and no more than shared memory holds batches of, through which they hand them over.
"""

import itertools
import math
import os
import shutil
import time
from pathlib import Path

import torch
from torch.utils.data import Dataset, IterableDataset

from cli_utils import count_of

MOST_WORKERS = 8
SHARED_MEMORY = Path("/dev/shm")  # of Linux; elsewhere there is no limit to look up
# A float32 image of 1024 x 1024 with its int64 labels; of each worker torch keeps two batches ready and makes a third.
BYTES_PER_IMAGE, BATCHES_PER_WORKER = 20 * 2**20, 3


def default_workers(device: str, batch_size: int, cpus: int | None = None, shared_memory: int | None = None) -> int:
    """The rule.

    Args:
        device: type of the device that is trained on, "cpu" or another. batch_size: on one device.
        cpus: that this process has; default: those of the machine that it may use, shared with the other processes of
            the run on it.
        shared_memory: bytes that are free; default: those that are.
    """
    if device == "cpu":
        return 0
    cpus = cpus_of_process() if cpus is None else cpus
    if shared_memory is None and SHARED_MEMORY.is_dir():
        shared_memory = shutil.disk_usage(SHARED_MEMORY).free // processes_of_machine()
    workers = min(MOST_WORKERS, max(1, cpus))
    if shared_memory is not None:
        workers = min(workers, shared_memory // (BATCHES_PER_WORKER * batch_size * BYTES_PER_IMAGE))
    return workers


def cpus_of_process() -> int:
    """CPUs that this process may use, divided among the processes of the run on this machine; at least 1."""
    try:
        cpus = len(os.sched_getaffinity(0))  # what a batch system gave
    except AttributeError:  # not on macOS and Windows
        cpus = os.cpu_count() or 1
    return max(1, cpus // processes_of_machine())


def processes_of_machine() -> int:
    """Of this run on this machine, as `torchrun` and `accelerate launch` tell."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def describe_workers(workers: int, persistent: bool, pinned: bool, device: str) -> str:
    """One line for the log."""
    if not workers:
        reason = "the network takes the CPUs anyway" if device == "cpu" else "see --dataloader_num_workers"
        return f"images are read by the training process itself ({reason})"
    kept = "kept from epoch to epoch" if persistent else "started anew for each epoch"
    memory = ", through pinned memory" if pinned else ""
    return (
        f"images are read by {workers} worker processes, {kept}{memory}, beside {device} and with {cpus_of_process()} "
        "CPUs for this process (--dataloader_num_workers, --dataloader_persistent_workers, --dataloader_pin_memory)"
    )


def seconds_per_image(dataset: Dataset | IterableDataset, most: int = 16, seconds: float = 2.0) -> float:
    """How long one process takes for a training example, measured on the first ones.

    most, seconds: to look at, and to take, at most.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as workers have them
    examples = (
        iter(dataset)
        if isinstance(dataset, IterableDataset)
        else (dataset[i % len(dataset)] for i in itertools.count())
    )
    try:
        next(examples)  # opens files, imports decoders
        begin, count = time.perf_counter(), 0
        for _ in itertools.islice(examples, most):
            count += 1
            if time.perf_counter() - begin > seconds:
                break
        return (time.perf_counter() - begin) / max(count, 1)
    finally:
        torch.set_num_threads(threads)


def compare_with_step(per_image: float, images: int, step: float, workers: int, cpus: int) -> tuple[str, float]:
    """What the loader gives beside what the step needs, and which flag closes the gap; seconds that a step will take.

    Args:
        per_image: seconds in which one process reads an image. images: of one step of one training process.
        step: seconds of that step once its images are there.
        cpus: of that process.
    """
    rate, need = max(1, workers) / per_image, images / step
    reads = f"{count_of(workers, 'worker')} read" if workers > 1 else f"{'the worker' if workers else 'it'} reads"
    line = f"{reads} about {rate:.1f} images/s, and the step takes {need:.1f}"
    enough = math.ceil(need * per_image)
    if not workers:
        total = step + images * per_image
        share = images * per_image / total
        if share < 0.05 or cpus < 2:
            return f"{line}: reading is {share:.0%} of the time", total
        wanted = min(enough, cpus - 1)
        return f"{line}: reading is {share:.0%} of the time; --dataloader_num_workers {wanted} reads beside it", total
    if rate >= need:
        return f"{line}: the loader keeps up", step
    waits = f"{line}: the step waits {1 - rate / need:.0%} of the time"
    if workers < cpus:
        return f"{waits}; --dataloader_num_workers {min(enough, cpus)} reads faster", images / rate
    return (
        f"{waits}, and all {cpus} CPUs read: a smaller --image_size or smaller copies of large photos are read faster"
    ), images / rate
