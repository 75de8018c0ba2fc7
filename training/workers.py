"""How many processes read images for a process that trains on an accelerator, where no flag says so.

On CPUs none: the network itself takes all of them. Beside an accelerator as many as this process has CPUs, at most
`MOST_WORKERS`, and no more than shared memory holds batches of, through which they hand them over.
"""

import os
import shutil
from pathlib import Path

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
