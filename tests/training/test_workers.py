"""How many workers read images: by CPUs, processes, device and shared memory."""

import pytest
import torch

from training import arguments, workers
from training.arguments import SegmentationTrainingArguments
from training.workers import cpus_of_process, default_workers, describe_workers


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
