"""Training from a stream: what is drawn, in which order, what is refused, and through the Trainer."""

import itertools
from collections import Counter
from unittest.mock import Mock

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, IterableDataset
from datasets import Image as ImageFeature
from factories.shards import Level, encoded, levels_of, open_stream, parquet_shard, tar_shard
from PIL import Image
from torch.utils.data import DataLoader
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from checks.judge import judge_example, prepare_dataset
from cli_utils import UserError
from data import streaming
from data.augmentation import TrainTransform
from data.preprocessing import EvaluationProtocol
from data.streaming import StreamingDataset
from data_utils import collate_train
from training.arguments import Arguments, SegmentationTrainingArguments
from training.trainer import SegmentationTrainer

# More workers than this machine may have cores, for what each of them reads, not for speed.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """`datasets` sleeps for 5 seconds after each pass over Parquet files, which give the threads of PyArrow up to 24
    the time to end (apache/arrow#45214); with newer ones nothing is left to wait for."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def write_parquet(file, numbers, **options):
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(parquet_shard(numbers, **options))


@pytest.fixture
def folder(tmp_path):
    """Ten training images in two files, four for evaluation, and a class list beside them."""
    root = tmp_path / "hub"
    write_parquet(root / "train-00.parquet", range(0, 5))
    write_parquet(root / "train-01.parquet", range(5, 10))
    write_parquet(root / "validation.parquet", range(100, 104))
    return root


def streamed(folder, max_eval_samples=None, **flags):
    return open_stream(folder, folder.parent, max_eval_samples, **flags)


def drawn(folder, count, seed=0, start=0, **options):
    dataset = levels_of(streamed(folder)[0], seed=seed, **options)
    dataset.set_epoch(start)
    return [(example["level"], example["random"]) for example in itertools.islice(dataset, count)]


# ---- what is drawn ----


def test_passes_follow_each_other(folder):
    examples = drawn(folder, 30)
    passes = [examples[:10], examples[10:20], examples[20:]]
    levels = [[level for level, _ in one] for one in passes]
    assert all(sorted(one) == list(range(10)) for one in levels)
    assert len({tuple(one) for one in levels}) == 3  # shuffled, each in its own way
    assert len({random for _, random in examples}) == 30
    assert drawn(folder, 30) == examples
    assert drawn(folder, 10, start=2) == passes[2]
    assert [level for level, _ in drawn(folder, 10, seed=1)] != levels[0]
    assert {random for _, random in drawn(folder, 10, seed=1)}.isdisjoint(random for _, random in examples)


def test_workers_read_files_of_their_own(folder):
    data, class_map = streamed(folder)
    dataset = StreamingDataset(data.stream, class_map, Level(), judge_example, seed=0)

    def first(workers, count=20):
        loader = DataLoader(dataset, batch_size=None, num_workers=workers)
        return [(int(example["level"]), float(example["random"])) for example in itertools.islice(loader, count)]

    examples = first(2)
    assert sorted(level for level, _ in examples[:10]) == list(range(10))  # neither twice nor missing
    halves = [{level for level, _ in examples[start:10:2]} for start in (0, 1)]
    assert sorted(map(sorted, halves)) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert len({random for _, random in examples}) == 20
    assert first(2) == examples


@pytest.mark.parametrize(
    ("processes", "workers", "buffer_size"),
    [
        *((1, 0, 1), (1, 2, 1), (1, 3, 1), (1, 4, 1), (2, 0, 1), (3, 2, 1), (2, 4, 1)),
        *((1, 0, 500), (1, 3, 500), (3, 2, 500)),
    ],
)
def test_an_image_comes_once_a_pass_whatever_the_number_of_readers(folder, processes, workers, buffer_size):
    """Two files of five rows each."""
    data, class_map = streamed(folder)
    drawn_by, randoms = [], set()
    for process in range(processes):
        dataset = StreamingDataset(data.stream, class_map, Level(), judge_example, 0, buffer_size)
        dataset.share_with(process, processes)
        loader = DataLoader(dataset, batch_size=None, num_workers=workers)
        examples = [(int(e["level"]), float(e["random"])) for e in itertools.islice(loader, 120 // processes)]
        drawn_by.append([level for level, _ in examples])
        randoms |= {random for _, random in examples}
    assert set(Counter(itertools.chain(*drawn_by)).values()) == {12} and len(randoms) == 120
    in_turn = list(itertools.chain(*zip(*drawn_by, strict=True)))  # as processes draw, one each
    for end in range(1, 120):  # nor is one far behind or ahead on the way
        counts = Counter(in_turn[:end])
        assert max(counts.values()) - min(counts[level] for level in range(10)) <= 2


@pytest.mark.parametrize("source", ["folder", "shards"])
@pytest.mark.parametrize(("num_processes", "workers", "skipped"), [(1, 0, 3), (1, 2, 14), (2, 3, 8), (3, 0, 9)])
def test_what_is_skipped_is_not_decoded_and_the_rest_stays(
    request, monkeypatch, source, num_processes, workers, skipped
):
    """Batches of two, up to more than four passes of ten images, of parquet files and of tar shards."""
    data, class_map = streamed(request.getfixturevalue(source))
    both = [StreamingDataset(data.stream, class_map, Level(), judge_example) for _ in range(2)]
    loaders = [DataLoader(one, 2, num_workers=workers, collate_fn=list) for one in both]
    for one in both:
        one.share_with(num_processes - 1, num_processes)
    both[1].skip_first(skipped, 2)
    if not workers:
        monkeypatch.setattr(both[1], "_decode", counted := Mock(side_effect=both[1]._decode))
    whole, resumed = (list(itertools.islice(loader, skipped + 4)) for loader in loaders)
    assert resumed[skipped:] == whole[skipped:]
    assert all(example["pixel_values"].numel() == 0 for batch in resumed[:skipped] for example in batch)
    assert workers or counted.call_count == 8


def test_passes_that_are_skipped_are_not_even_read(folder, monkeypatch):
    data, class_map = streamed(folder)
    dataset = StreamingDataset(data.stream, class_map, Level(), judge_example)
    orders, shuffle = [], IterableDataset.shuffle
    monkeypatch.setattr(IterableDataset, "shuffle", lambda *a, **k: orders.append(k["seed"]) or shuffle(*a, **k))
    dataset.skip_first(1000, 3)
    next(itertools.islice(dataset, 3000, None))
    assert len(orders) == 2


def test_how_files_are_shared_is_told(folder):
    data, class_map = streamed(folder)
    dataset = StreamingDataset(data.stream, class_map, Level(), judge_example)
    assert dataset.describe_sharing(0) == "streaming from 2 files with 1 reader, each with files of its own"
    assert dataset.describe_sharing(2) == "streaming from 2 files with 2 readers, each with files of its own"
    dataset.share_with(1, 3)
    assert "with 6 readers: 3 at a time share files, so each row is fetched 3 times" in dataset.describe_sharing(2)


def test_training_examples(folder):
    data, class_map = streamed(folder)
    dataset = StreamingDataset(data.stream, class_map, TrainTransform(EvaluationProtocol(16)), judge_example)
    batch = collate_train(list(itertools.islice(dataset, 3)))
    assert batch["pixel_values"].shape == (3, 3, 16, 16) and batch["labels"].shape == (3, 16, 16)
    assert set(batch["labels"].unique().tolist()) <= {0, 1, 255}


def test_the_first_rows_are_evaluated(folder):
    data, class_map = streamed(folder, 3, merge_classes=["dark=night"])
    dataset = data.splits
    assert list(dataset) == ["validation"] and class_map.id2label == {0: "night", 1: "light"}
    prepared = prepare_dataset(dataset, class_map)["validation"]
    assert prepared["class_pixels"][:] == [[40, 56]] * 3
    assert [row["image"].getpixel((0, 0))[0] for row in prepared] == [100, 101, 102]
    assert prepared["name"][:] == ["validation_000000", "validation_000001", "validation_000002"]
    (folder / "validation.parquet").rename(folder / "test.parquet")
    assert list(streamed(folder, 3)[0].splits) == ["test"]
    assert list(streamed(folder)[0].splits) == []


def test_a_folder_of_images(tmp_path):
    """Streamed by address: the files are opened when they are drawn."""
    root = tmp_path / "folder"
    (root / "train").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((8, 12, 3), number, np.uint8)).save(root / "train" / f"i{number}.png")
        Image.fromarray(np.zeros((8, 12), np.uint8)).save(root / "train" / f"m{number}.png")
    rows = [f"i{number}.png,m{number}.png" for number in range(4)]
    (root / "train" / "metadata.csv").write_text("\n".join(["file_name,mask_file_name", *rows]))
    assert sorted(level for level, _ in drawn(root, 4)) == [0, 1, 2, 3]


@pytest.fixture
def shards(tmp_path):
    """Ten training images in two tar shards."""
    root = tmp_path / "shards"
    root.mkdir()
    for number in range(2):
        (root / f"train-{number:05d}.tar").write_bytes(tar_shard(range(5 * number, 5 * number + 5)))
    return root


def test_tar_shards_of_images_and_masks(shards):
    """Two processes share them out."""
    data, levels = streamed(shards)[0], []
    for process in range(2):
        dataset = levels_of(data, process, 2)
        assert "2 files with 2 readers, each with files of its own" in dataset.describe_sharing(0)
        examples = list(itertools.islice(dataset, 10))
        assert all(example["name"] == f"{example['level']:06d}" for example in examples)
        levels += [example["level"] for example in examples]
    assert Counter(levels) == dict.fromkeys(range(10), 2)  # two passes


# ---- what is refused ----


@pytest.mark.parametrize(
    ("name", "named"), [(None, r"row \d+ of pass 0 \(worker 0\) has 7"), ("bad.png", "bad has 7")]
)
def test_a_bad_example_is_named(folder, name, named):
    write_parquet(folder / "train-02.parquet", [50], value=7, name=name)
    with pytest.raises(
        UserError, match=rf"1 mask holds values that belong to no class \(train/{named}\)\. .* --ignore_values 7"
    ):
        drawn(folder, 11)


@pytest.mark.parametrize("source", ["folder", "shards"])
def test_a_file_that_is_cut_ends_a_run_with_one_sentence(request, source):
    """The first files are whole, so it is found while images are drawn."""
    root = request.getfixturevalue(source)
    data, _ = streamed(root)
    last = sorted(root.glob("train*"))[-1]
    last.write_bytes(last.read_bytes()[:700])
    with pytest.raises(UserError, match=r"the stream of images breaks off \(.*--resume_from_checkpoint last"):
        list(itertools.islice(levels_of(data), 11))


def test_empty_rows_are_named(folder):
    features = Features({"image": ImageFeature(), "label": ImageFeature()})
    rows = {"image": [encoded(np.zeros((4, 4, 3), np.uint8))], "label": [None]}
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train-02.parquet")
    with pytest.raises(UserError, match=r"1 file cannot be read: train/row \d+ of pass 0 .*is empty"):
        drawn(folder, 11)


def test_streams_that_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="--streaming needs to know the classes beforehand: give --id2label FILE"):
        streamed(folder, id2label=None)
    with pytest.raises(UserError, match="cannot be loaded"):
        streamed(tmp_path / "nowhere")
    with pytest.raises(UserError, match="--label_column mask: no such column"):
        streamed(folder, label_column="mask")
    saved = tmp_path / "saved"
    Dataset.from_parquet(str(folder / "train-00.parquet")).save_to_disk(saved)
    with pytest.raises(UserError, match=f"--streaming: {saved} is on this disk already"):
        streamed(saved)


STREAM = ("--dataset_name", "x", "--streaming", "--id2label", "names.json", "--from_scratch", "mit-b0", "--do_train")
NO_EVALUATION = ("--eval_strategy", "no")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset_dir", "x", "without", "--dataset_name"), "--streaming reads --dataset_name; a folder"),
        (("--max_steps", "5", "--max_eval_samples", "5", "--train_val_split", "0.2"), "leave out --train_val_split"),
        (("--max_eval_samples", "5"), "give --max_steps"),
        (("--max_steps", "5"), "say how many with --max_eval_samples"),
        (("--max_steps", "5", *NO_EVALUATION, "--class_weights", "auto"), "counts all pixels first"),
        (("--max_steps", "5", *NO_EVALUATION, "--preview", "x.png"), "keeps no training images"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, tmp_path):
    stream, flags = list(STREAM), list(flags)
    if "without" in flags:
        name = flags.pop()
        flags.remove("without")
        del stream[(at := stream.index(name)) : at + 2]
    with pytest.raises(UserError, match=message):
        Arguments.parse([*stream, *flags, "--output_dir", str(tmp_path), "--use_cpu"])


@pytest.mark.parametrize("flags", [("--max_eval_samples", "5"), NO_EVALUATION])
def test_flags_that_do(flags, tmp_path):
    Arguments.parse([*STREAM, "--max_steps", "5", *flags, "--output_dir", str(tmp_path), "--use_cpu"])


# ---- through the Trainer ----


@pytest.mark.parametrize("source", ["folder", "shards"])
def test_training_and_resuming(request, source, tmp_path, monkeypatch):
    """Eight steps of two images, more than one pass; the last four again from the checkpoint are equal bit for bit."""
    data, class_map = streamed(request.getfixturevalue(source))
    protocol, weights = EvaluationProtocol(32), []
    monkeypatch.setattr(streaming, "prepare_one", prepare := Mock(side_effect=streaming.prepare_one))
    for resume in (None, str(tmp_path / "checkpoint-4")):
        torch.manual_seed(0)
        config = SegformerConfig(
            hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=2
        )
        trainer = SegmentationTrainer(
            model=SegformerForSemanticSegmentation(config),
            args=SegmentationTrainingArguments(
                str(tmp_path),
                do_train=True,
                max_steps=8,
                save_strategy="steps",
                save_steps=4,
                save_total_limit=None,
                eval_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=StreamingDataset(data.stream, class_map, TrainTransform(protocol), judge_example, seed=1),
            protocol=protocol,
        )
        assert trainer.train(resume_from_checkpoint=resume).global_step == 8
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())
    assert prepare.call_count <= 2 * (8 + 4 + 2)  # in the second run those of four steps, and a batch ahead in both
