"""Training on a Hub dataset while it is being read: `--streaming`.

    data = load_data(args, max_eval_samples=500)        # of `data_utils`, which calls `open_streams`
    train_dataset = StreamingDataset(data.stream, class_map, TrainTransform(protocol), judge_example, seed=42)

Training images are prepared as they are drawn, and judged by the function that judges whole datasets.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import datasets
import fsspec
import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, IterableDataset
from PIL import Image

from cli_utils import UserError, count_of, one_line
from data.arguments import DatasetArguments
from data.augmentation import TrainTransform
from data.classes import ClassMap
from data.hub_datasets import image_columns, load_through_datasets, standard_columns
from data.image_files import EIGHT_BITS, StoredFile, decode_image, upright_rgb
from data.layouts import standard_split_name
from data.preparation import PairRecord, prepare_one

logger = logging.getLogger(__name__)

# Rows held back to be drawn from at random: files, not decoded, so some 100 MB of photos.
SHUFFLE_BUFFER = 500
# Stands for an example that is thrown away.
SKIPPED = {"pixel_values": torch.empty(0), "labels": torch.empty(0, dtype=torch.uint8), "name": ""}
NO_CLASS_LIST = (
    "--streaming needs to know the classes beforehand: give --id2label FILE or --label_map FILE, or put an "
    "id2label.json beside the data"
)


def open_streams(
    args: DatasetArguments, max_eval_samples: int | None, token: str | None = None
) -> tuple[IterableDataset | None, DatasetDict]:
    """The training split as a stream, and of the validation split, else of the test split, the first rows.

    Args:
        max_eval_samples: how many; None: the split is left alone.
        token: as for `datasets.load_dataset`.

    Returns:
        The stream, with the columns "image" and "label" as {"bytes", "path"}, None where there is no training split;
        and splits as of `data_utils.Data`, one or none.

    Raises:
        UserError: it cannot be reached or read.
    """
    loaded = load_through_datasets(args.dataset_name, args.dataset_config_name, token=token, streaming=True)
    streams = {standard_split_name(name): rows for name, rows in loaded.items()}
    if not {"train", "validation", "test"} & streams.keys():
        raise UserError(f"{args.dataset_name} has no train, validation or test split; its splits: {', '.join(loaded)}")
    streams = {
        split: _files(rows, *image_columns(rows, args.image_column, args.label_column))
        for split, rows in streams.items()
        if split
    }
    evaluation = next((split for split in ("validation", "test") if split in streams), None)
    splits = DatasetDict()
    if evaluation and max_eval_samples is not None:
        rows = streams[evaluation]
        taken = [{name: _with_bytes(file) for name, file in row.items()} for row in _read(rows.take(max_eval_samples))]
        taken = Dataset.from_list(taken, features=rows.features)
        splits[evaluation] = standard_columns(taken, evaluation, "image", "label")
        logger.info(f"the first {len(taken)} rows of the {evaluation} split of {args.dataset_name} are evaluated")
    return streams.get("train"), splits


def _files(rows: IterableDataset, image_column: str, label_column: str) -> IterableDataset:
    """The columns "image" and "label" alone, not decoded, and not read yet where a row has but the address of a
    file."""
    undecoded = datasets.Image(decode=False)
    rows = rows.select_columns([image_column, label_column])
    rows = rows.cast_column(image_column, undecoded).cast_column(label_column, undecoded)
    return rows.map(
        lambda row: {"image": row[image_column], "label": row[label_column]},
        remove_columns=[image_column, label_column],
        features=Features({"image": undecoded, "label": undecoded}),
    )


def _with_bytes(file: dict | None) -> dict | None:
    """A file as {"bytes", "path"}, read from wherever it is, as folders of images are streamed by their addresses."""
    if not file or file["bytes"] is not None:
        return file
    try:
        with fsspec.open(file["path"], "rb") as opened:
            return {"bytes": opened.read(), "path": file["path"]}
    except OSError:
        return file  # which is then found to be unreadable


def _read(rows: Iterable[dict]) -> Iterator[dict]:
    """The rows, as long as they can be read.

    Raises:
        UserError: a file of the stream is damaged or gone, or the network is.
    """
    rows = iter(rows)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # every format and every storage has kinds of errors of its own
            raise UserError(
                f"the stream of images breaks off ({one_line(error)}); a run that has a checkpoint goes on from it "
                "with --resume_from_checkpoint last"
            ) from None
        yield row


class StreamingDataset(torch.utils.data.IterableDataset):
    """Endless training examples, "pixel_values", "labels" and "name" as those of `data_utils.SegmentationDataset`.

    The readers, which are the workers of all processes, share every pass: an image comes once, whatever the number of
    files and readers. As far as the files can be dealt out evenly each reader has its own; readers that have to share
    files go through the same shuffled rows and take turns, so they also read, and do not decode, what the others take.
    Nobody knows how many images a file holds, so a reader whose files hold fewer than those of others is through
    sooner, and begins its next pass while they are at this one.

    Order and random transforms are a function of seed, pass, position in it and the numbers of readers and files. The
    Trainer sees one epoch of `--max_steps`, so that resuming skips the right batches: it throws them away, so they are
    empty, see `skip_first`.

    Args:
        stream: of `open_streams`.
        transform: draws a training example, as in `data_utils.SegmentationDataset`.
        judge: raises UserError for an example that cannot be used, `checks.judge.judge_example`.
        buffer_size: rows from which the next is drawn.

    Raises (while iterating):
        UserError: an image or mask that cannot be used, by name; or the stream breaks off.
    """

    def __init__(
        self,
        stream: IterableDataset,
        class_map: ClassMap,
        transform: TrainTransform,
        judge: Callable[[PairRecord, ClassMap], None],
        seed: int = 0,
        buffer_size: int = SHUFFLE_BUFFER,
    ):
        self.stream = stream
        self.class_map = class_map
        self.transform = transform
        self.judge = judge
        self.seed = seed
        self.buffer_size = buffer_size
        self.first_pass = 0
        self.process, self.num_processes = 0, 1
        self.skipped_batches, self.batch_size = 0, 1

    def share_with(self, process: int, num_processes: int) -> None:
        """From now on this is the part of one of several processes."""
        self.process, self.num_processes = process, num_processes

    def skip_first(self, batches: int, batch_size: int) -> None:
        """The first batches of a process's data loader are empty from now on, and the others what they were. For a run
        that goes on: of the passes that it has behind it the first and the last are read, and nothing is decoded."""
        self.skipped_batches, self.batch_size = batches, batch_size

    def describe_sharing(self, workers: int) -> str:
        """One line on how the files are dealt out. workers: of each process."""
        files, readers = self.stream.num_shards, max(1, workers) * self.num_processes
        sharing = readers // math.gcd(files, readers)
        line = f"streaming from {count_of(files, 'file')} with {count_of(readers, 'reader')}"
        if sharing == 1:
            return f"{line}, each with files of its own"
        return (
            f"{line}: {sharing} at a time share files, so each row is fetched {sharing} times and decoded once; with "
            f"files by multiples of {readers}, or another --dataloader_num_workers, it would be fetched once"
        )

    def set_epoch(self, epoch: int) -> None:
        """Chooses the pass with which iteration starts."""
        self.first_pass = epoch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        of_process, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        reader, readers = self.process * workers + of_process, self.num_processes * workers
        # The workers of a process make its batches in turn.
        to_skip = self.batch_size * len(range(of_process, self.skipped_batches, workers))
        # As many groups of readers as get the same number of files each; those of a group take turns.
        groups = math.gcd(self.stream.num_shards, readers)
        group, turn, turns = reader % groups, reader // groups, readers // groups
        stream = self.stream.shard(groups, group, contiguous=False) if groups > 1 else self.stream
        seen = 0  # in all passes, so that nobody has an image more than the others at the end of each
        rows_of_pass = None
        for number in itertools.count(self.first_pass):
            if to_skip and rows_of_pass:
                own = len(range((turn - seen) % turns, rows_of_pass, turns))
                if own <= to_skip:
                    yield from itertools.repeat(SKIPPED, own)
                    to_skip, seen = to_skip - own, seen + rows_of_pass
                    continue
            # Not `IterableDataset.set_epoch`, whose number all workers share.
            order = int(np.random.default_rng([self.seed, number]).integers(2**32))
            position = -1
            # `iter` alone does not deal out files among the workers by itself, and leave some without any.
            rows = stream.shuffle(seed=order, buffer_size=self.buffer_size).iter(batch_size=1)
            for position, row in enumerate(_read(rows)):
                if (seen + position) % turns != turn:
                    continue
                if to_skip:
                    to_skip -= 1
                    yield SKIPPED
                    continue
                row = {name: _with_bytes(file) for name, (file,) in row.items()}
                name = f"row {position} of pass {number} (worker {reader})"
                if row["image"] and row["image"]["path"]:
                    name = Path(row["image"]["path"]).stem
                image, label = self._decode(row, name)
                rng = np.random.default_rng([self.seed, number, group, position])
                yield self.transform(image, label, rng) | {"name": name}
            if position < 0:  # there is nothing
                return
            rows_of_pass = position + 1
            seen += rows_of_pass

    def _decode(self, row: dict, name: str) -> tuple[Image.Image | torch.Tensor, np.ndarray]:
        """Image, as `data_utils.SegmentationDataset.read` has it, and mask of training ids, uint8 (H, W), decoded and
        checked."""
        image, mask = (StoredFile.of(row[column], name) for column in ("image", "label"))
        protocol = self.transform.protocol
        num_channels, dtype = protocol.num_channels, protocol.image_dtype
        record, label, picture = prepare_one(image, mask, self.class_map, num_channels)
        if label is None:
            self.judge(record, self.class_map)
        if num_channels == 3 and record.image_dtype == dtype == EIGHT_BITS:
            return upright_rgb(picture), label
        return decode_image(image, num_channels, dtype=dtype), label
