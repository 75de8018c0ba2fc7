"""How many workers read images: by CPUs, processes, device and shared memory."""

import itertools
import time

import pytest
import torch

from training import arguments, workers
from training.arguments import SegmentationTrainingArguments
from training.workers import compare_with_step, cpus_of_process, default_workers, describe_workers, seconds_per_image


@pytest.mark.parametrize(
    ("device", "batch_size", "cpus", "gib", "expected"),
    [
        ("cpu", 2, 64, 64, 0),
        ("cuda", 2, 16, 64, 8),
        ("cuda", 2, 3, 64, 3),
        ("mps", 2, 1, 64, 1),  # one still reads while the accelerator computes
        ("cuda", 16, 16, 4, 4),  # 3 batches of 16 images of 20 MiB are 960 MiB
        ("cuda", 2, 16, 1 / 16, 0),  # what Docker gives without --shm-size
    ],
)
def test_the_rule(device, batch_size, cpus, gib, expected):
    assert default_workers(device, batch_size, cpus, int(gib * 2**30)) == expected


def test_processes_share_the_cpus_and_the_memory(monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: range(12), raising=False)
    assert cpus_of_process() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cpus_of_process() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    assert cpus_of_process() == 1
    monkeypatch.setattr(workers, "SHARED_MEMORY", workers.Path(__file__).parent)
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 24 * 2**30}))
    assert default_workers("cuda", 2, cpus=8) == 2  # 245 MiB for each process


def test_arguments_follow_the_rule_where_no_flag_says_otherwise(tmp_path, monkeypatch):
    options = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    args = SegmentationTrainingArguments(**options)
    assert (args.dataloader_num_workers, args.dataloader_persistent_workers) == (0, False)
    monkeypatch.setattr(arguments, "default_workers", lambda device, batch_size: 5 if device == "cpu" else -1)
    args = SegmentationTrainingArguments(**options)
    assert (args.dataloader_num_workers, args.dataloader_persistent_workers) == (5, True)
    args = SegmentationTrainingArguments(**options, dataloader_num_workers=2)
    assert (args.dataloader_num_workers, args.dataloader_persistent_workers) == (2, False)
    args = SegmentationTrainingArguments(**options, dataloader_num_workers=0)
    assert (args.dataloader_num_workers, args.dataloader_persistent_workers) == (0, False)


def test_the_device_is_the_trainers(tmp_path):
    args = SegmentationTrainingArguments(output_dir=str(tmp_path), use_cpu=not torch.accelerator.is_available())
    assert args._device_type() == args.device.type


def test_what_was_chosen_is_told():
    assert "by the training process itself" in describe_workers(0, False, False, "cpu")
    told = describe_workers(4, True, True, "cuda")
    assert "4 worker processes, kept from epoch to epoch, through pinned memory, beside cuda" in told


@pytest.mark.parametrize(
    ("per_image", "step", "workers", "cpus", "parts", "seconds"),
    [
        # 16 images a step; one process reads 50 a second.
        (0.02, 1.0, 0, 8, ["it reads about 50.0", "takes 16.0", "24% of the time; --dataloader_num_workers 1 "], 1.32),
        (0.02, 0.04, 0, 8, ["takes 400.0: reading is 89%", "--dataloader_num_workers 7 "], 0.36),
        (0.02, 1.0, 0, 1, ["reading is 24% of the time"], 1.32),
        (0.02, 1.0, 1, 8, ["the worker reads about 50.0", "keeps up"], 1.0),
        (0.02, 0.04, 4, 16, ["4 workers read about 200.0", "waits 50%", "--dataloader_num_workers 8 "], 0.08),
        (0.02, 0.04, 4, 4, ["waits 50% of the time, and all 4 CPUs read"], 0.08),
    ],
)
def test_the_loader_is_compared_with_the_step(per_image, step, workers, cpus, parts, seconds):
    told, found = compare_with_step(per_image, 16, step, workers, cpus)
    assert all(part in told for part in parts), told
    assert found == pytest.approx(seconds)
    assert ("--dataloader_num_workers" in told) == ("--dataloader_num_workers" in str(parts))


def test_reading_is_timed():
    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            time.sleep(0.02)

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return (time.sleep(0.02) for _ in itertools.count())

    for dataset in (Slow(), Endless()):
        assert 0.02 <= seconds_per_image(dataset, most=4) < 0.2
